//! `/proc` and `/sys`: tests 18, 19 and the procfs half of 24.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;

use serde_json::json;

use super::arena::{Canary, SYSRQ_HELP, bind};
use crate::bundle::{Bundle, ready};

#[test]
fn privileged_cve_2019_19921_proc_and_sys_must_be_plain_directories() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    let hostile = canary.path();
    for name in ["proc", "sys"] {
        for target in [
            "/tmp",
            "/",
            ".",
            "/not/there",
            "../../canary",
            hostile.to_str().unwrap(),
            "/proc/self/root",
        ] {
            let bundle = Bundle::new("true");
            symlink(target, bundle.rootfs().join(name)).unwrap();
            bundle.create().fails(1, "ordinary directory");
            bundle.assert_gone();
        }
        // A file is none either.
        let bundle = Bundle::new("true");
        fs::write(bundle.rootfs().join(name), "").unwrap();
        bundle.create().fails(1, "ordinary directory");
    }
    canary.assert_alive();
}

/// CVE-2023-27561, CVE-2023-28642: a bind of /proc or /sys is no way round.
#[test]
fn privileged_cve_2023_28642_a_bind_of_proc_or_sys_follows_no_link_either() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    for name in ["proc", "sys"] {
        for place in [format!("/{name}"), format!("/{name}/fs")] {
            let mut bundle = Bundle::new("true");
            let entries = bundle.config["mounts"].as_array_mut().unwrap();
            entries.retain(|m| m["destination"] != format!("/{name}"));
            bundle.set("/linux/maskedPaths", json!([]));
            bundle.set("/linux/readonlyPaths", json!([]));
            symlink("/tmp", bundle.rootfs().join(name)).unwrap();
            fs::create_dir(bundle.rootfs().join("tmp/fs")).unwrap();
            let source = std::path::Path::new("/").join(name);
            bind(&mut bundle, &source, &place, &["rbind", "ro"]);
            bundle.create().fails(1, "ordinary directory");
            bundle.assert_gone();
        }
    }
    canary.assert_alive();
}

#[test]
fn privileged_cve_2019_16884_nothing_covers_proc() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    for destination in [
        "/proc",
        "/proc/self/attr",
        "/proc/thread-self/attr/exec",
        "/proc/sys/net",
        "/elsewhere/self",
    ] {
        let mut bundle = Bundle::new("true");
        let volume = bundle.dir.path().join("volume");
        fs::create_dir(&volume).unwrap();
        symlink("proc", bundle.rootfs().join("elsewhere")).unwrap();
        bind(&mut bundle, &volume, destination, &[]);
        bundle.create().fails(1, "proc");
        bundle.assert_gone();
    }
    let mut bundle = Bundle::new("cat /proc/uptime");
    let file = bundle.dir.path().join("uptime");
    fs::write(&file, "covered").unwrap();
    bind(&mut bundle, &file, "/proc/uptime", &["ro"]);
    assert_eq!(bundle.run().ok(), "covered");
    canary.assert_alive();
}

/// CVE-2025-52881: whatever lies over procfs, a label is written to procfs itself or not at all.
#[test]
fn privileged_cve_2025_52881_a_label_goes_to_no_file_mounted_over_procfs() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    let decoy = canary.path().join("file");
    for place in [
        "/proc/thread-self/attr/exec",
        "/proc/thread-self/attr/current",
    ] {
        // Bound over the file by its own number: thread-self is a link.
        let place = fs::canonicalize(place).unwrap();
        rustix::mount::mount_bind(&decoy, &place).unwrap();
    }
    let current = fs::read("/proc/thread-self/attr/exec").unwrap();
    assert_eq!(current, b"alive", "the decoy is not in place");
    // Without a security module the kernel refuses; the decoy would have taken it.
    let outcome = runc_lite::rootfs::write_lsm_label("exec", "exec decoy");
    let reached_kernel = !outcome
        .as_ref()
        .is_err_and(|error| runc_lite::error_chain(error).contains("No such file"));
    assert!(reached_kernel, "{outcome:?}");
    for place in [
        "/proc/thread-self/attr/exec",
        "/proc/thread-self/attr/current",
    ] {
        let place = fs::canonicalize(place).unwrap();
        rustix::mount::unmount(&place, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
    canary.assert_alive();
}

/// Names that lead out of the private instance are not followed, also where there is a file to write to.
#[test]
fn privileged_cve_2025_62596_a_label_s_name_leads_nowhere_else() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    let file = fs::OpenOptions::new()
        .append(true)
        .open(canary.file())
        .unwrap();
    for name in [
        "../../../sysrq-trigger".to_owned(),
        "../../../../proc/sysrq-trigger".to_owned(),
        "../root/tmp/x".to_owned(),
        "../cwd/x".to_owned(),
        format!("../root{}", canary.file().display()),
        format!("../fd/{}", file.as_raw_fd()),
        format!("../../../..{}", canary.file().display()),
    ] {
        let written = runc_lite::rootfs::write_lsm_label(&name, SYSRQ_HELP);
        assert!(written.is_err(), "{name}");
        canary.assert_alive();
    }
}
