//! Sysctls of the container: the other half of test 24.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::json;

use super::arena::{Canary, SYSRQ_HELP, present, without_mounts};
use crate::bundle::{Bundle, ready};

/// The namespaces a sysctl may belong to, as a container would have them.
const UTS_AND_IPC: u64 = 0x0400_0000 | 0x0800_0000;

#[test]
fn privileged_cve_2025_52881_a_sysctl_goes_to_no_file_mounted_over_procfs() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    runc_lite::sys::unshare(UTS_AND_IPC).unwrap();
    let decoy = canary.path().join("file");
    let place = "/proc/sys/kernel/domainname";
    let original = fs::read_to_string(place).unwrap().trim().to_owned();
    rustix::mount::mount_bind(&decoy, place).unwrap();
    let sysctls = [("kernel/domainname".to_owned(), "changed".to_owned())];
    runc_lite::rootfs::write_sysctls(&sysctls).unwrap();
    rustix::mount::unmount(place, rustix::mount::UnmountFlags::DETACH).unwrap();
    // The decoy is as it was, and the value is where it belongs.
    assert_eq!(fs::read_to_string(&decoy).unwrap(), "alive");
    assert_eq!(fs::read_to_string(place).unwrap().trim(), "changed");
    let back = [("kernel/domainname".to_owned(), original)];
    runc_lite::rootfs::write_sysctls(&back).unwrap();
    canary.assert_alive();
}

#[test]
fn privileged_cve_2025_62596_an_image_that_brings_its_own_proc_redirects_no_sysctl() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    let mut bundle = Bundle::new("true");
    without_mounts(&mut bundle, "/proc");
    bundle.set("/linux/maskedPaths", json!([]));
    bundle.set("/linux/readonlyPaths", json!([]));
    let kernel = bundle.rootfs().join("proc/sys/kernel");
    fs::create_dir_all(&kernel).unwrap();
    symlink(canary.file(), kernel.join("msgmax")).unwrap();
    symlink("/proc/sysrq-trigger", kernel.join("shm_rmid_forced")).unwrap();
    bundle.set(
        "/linux/sysctl",
        json!({"kernel.msgmax": "4096", "kernel.shm_rmid_forced": "1"}),
    );
    // Set in the container's namespace, whatever the image calls /proc.
    bundle.run().ok();
    canary.assert_alive();
}

#[test]
fn privileged_sysctls_of_the_host_are_refused_before_anything_is_made() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    let pattern = present("kernel/core_pattern");
    for (name, value) in [
        ("kernel.core_pattern", pattern.clone()),
        ("kernel/core_pattern", pattern.clone()),
        ("kernel.modprobe", present("kernel/modprobe")),
        ("kernel.sysrq", present("kernel/sysrq")),
        ("vm.overcommit_memory", present("vm/overcommit_memory")),
        ("net/../kernel/core_pattern", pattern.clone()),
        ("net.ipv4./../../kernel/core_pattern", pattern.clone()),
        ("kernel/../../sysrq-trigger", SYSRQ_HELP.to_owned()),
        ("net/../../sysrq-trigger", SYSRQ_HELP.to_owned()),
        ("fs/mqueue/../../kernel/core_pattern", pattern),
        ("net//ipv4", "1".to_owned()),
        ("", "1".to_owned()),
    ] {
        let mut bundle = Bundle::new("true");
        bundle.set("/linux/sysctl", json!({name: value}));
        bundle.create().fails(1, "linux.sysctl");
        bundle.assert_gone();
    }
    canary.assert_alive();
}

#[test]
fn privileged_sysctls_of_a_shared_namespace_are_refused() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    for (kind, name) in [
        ("network", "net.ipv4.ip_forward"),
        ("ipc", "kernel.msgmax"),
        ("uts", "kernel.domainname"),
    ] {
        let mut bundle = Bundle::new("true");
        bundle.config.as_object_mut().unwrap().remove("hostname");
        let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != kind);
        let value = present(&name.replace('.', "/"));
        bundle.set("/linux/sysctl", json!({name: value}));
        bundle.create().fails(1, kind);
        bundle.assert_gone();
    }
    // By the path of the host's own namespace it is the host as well.
    let mut bundle = Bundle::new("true");
    bundle.config["linux"]["namespaces"][1]["path"] = json!("/proc/self/ns/net");
    let value = present("net/ipv4/ip_forward");
    bundle.set("/linux/sysctl", json!({"net.ipv4.ip_forward": value}));
    bundle.create().fails(1, "would change the host");
    canary.assert_alive();
}
