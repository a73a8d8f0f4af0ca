//! Masked and read-only paths: tests 22, 28 and 29.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::json;

use super::arena::{Canary, SYSRQ_HELP, empower, present, without_mounts};
use super::loops::masks_under_exchange;
use crate::bundle::{Bundle, ready};

/// What the kubelet and the engines ask to be hidden (CVE-2018-10892, CVE-2017-16539, CVE-2020-8694,
/// GHSA-7ww5-4wqc-m92c).
const MASKED: [&str; 14] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
    "/sys/kernel/debug",
    "/sys/fs/bpf",
];
/// And to be read-only.
const READONLY: [&str; 6] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
    "/sys/module",
];

#[test]
fn privileged_cve_2025_31133_masks_need_no_null_device_of_the_image() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    for mounted in [true, false] {
        for (target, value) in [
            (
                "/proc/sys/kernel/core_pattern",
                present("kernel/core_pattern"),
            ),
            ("/proc/sysrq-trigger", SYSRQ_HELP.to_owned()),
            ("/etc/passwd", "x".to_owned()),
        ] {
            let mut bundle = Bundle::new(&format!("cat /secret; echo '{value}' > /secret"));
            let dev = bundle.rootfs().join("dev");
            fs::create_dir(&dev).unwrap();
            symlink(target, dev.join("null")).unwrap();
            fs::write(bundle.rootfs().join("secret"), "hidden").unwrap();
            bundle.set("/linux/maskedPaths", json!(["/secret", "/proc/kcore"]));
            if mounted {
                assert_eq!(bundle.run().ok(), "");
            } else {
                without_mounts(&mut bundle, "/dev");
                bundle.create().fails(1, "is not the device it should be");
            }
            assert_eq!(
                fs::read_to_string(bundle.rootfs().join("secret")).unwrap(),
                "hidden"
            );
            canary.assert_alive();
        }
    }
}

#[test]
fn privileged_cve_2025_62161_a_null_device_that_changes_unmasks_nothing() {
    if !ready() {
        return;
    }
    masks_under_exchange(25);
}

/// The cover of a masked file is the host's null device: the container may not change it.
#[test]
fn privileged_the_cover_of_a_masked_file_cannot_be_changed() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    let mut bundle = Bundle::new(
        "chmod 600 /proc/keys && echo GOT mode; /bin/busybox chown 1000 /proc/keys && echo GOT owner; \
         touch /proc/keys && echo GOT times; cat /proc/keys; echo x > /proc/keys; true",
    );
    // As powerful as containers are by default.
    empower(
        &mut bundle,
        &[
            "CAP_CHOWN",
            "CAP_DAC_OVERRIDE",
            "CAP_FOWNER",
            "CAP_FSETID",
            "CAP_SETFCAP",
        ],
    );
    let done = bundle.run();
    assert_eq!(done.out, "", "{done:?}");
    assert_eq!(
        done.err.matches("Read-only file system").count(),
        3,
        "{done:?}"
    );
    canary.assert_alive();
}

#[test]
fn privileged_cve_2018_10892_default_masks_hide_and_default_read_only_paths_hold() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    let script = format!(
        "for p in {}; do \
           if test -d $p; then test -z \"$(ls -A $p)\" || echo GOT names in $p; touch $p/x 2>/dev/null && echo GOT $p/x; \
           elif test -e $p; then test -z \"$(head -c 1 $p)\" || echo GOT bytes of $p; echo SEEN; fi; done; \
         for p in {}; do /bin/busybox find $p -maxdepth 2 -type f | while read f; do \
           if : >> $f; then echo GOT writable $f; fi 2>/dev/null; done; done; \
         echo {SYSRQ_HELP} > /proc/sysrq-trigger && echo GOT sysrq; \
         echo '{}' > /proc/sys/kernel/core_pattern && echo GOT core_pattern; echo done",
        MASKED.join(" "),
        READONLY.join(" "),
        present("kernel/core_pattern")
    );
    let mut bundle = Bundle::new(&script);
    empower(
        &mut bundle,
        &["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER"],
    );
    bundle.set("/linux/maskedPaths", json!(MASKED));
    bundle.set("/linux/readonlyPaths", json!(READONLY));
    let done = bundle.run();
    assert!(!done.out.contains("GOT"), "{done:?}");
    assert!(
        done.out.ends_with("done") && done.out.contains("SEEN"),
        "{done:?}"
    );
    assert!(done.err.contains("Read-only file system"), "{done:?}");
    canary.assert_alive();
}

/// Number 29: a mask that a link leads away would cover something else.
#[test]
fn privileged_masks_below_proc_and_sys_follow_no_link() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    for (field, path) in [
        ("maskedPaths", "/sys/firmware"),
        ("maskedPaths", "/proc/kcore"),
        ("readonlyPaths", "/proc/sys"),
        ("readonlyPaths", "/sys/fs"),
    ] {
        let top = &path[..path.rfind('/').unwrap()];
        let mut bundle = Bundle::new("true");
        // Not mounted, so that only the mask stands in the way.
        without_mounts(&mut bundle, top);
        symlink("/tmp", bundle.rootfs().join(&top[1..])).unwrap();
        let last = &path[top.len() + 1..];
        fs::create_dir_all(bundle.rootfs().join("tmp").join(last)).unwrap();
        bundle.set("/linux/maskedPaths", json!([]));
        bundle.set("/linux/readonlyPaths", json!([]));
        bundle.set(&format!("/linux/{field}"), json!([path]));
        bundle.create().fails(1, "symbolic link");
        bundle.assert_gone();
    }
    // Elsewhere links are part of images, and the mask goes where everybody else is led.
    let mut bundle = Bundle::new("cat /lib/secret /usr/lib/secret");
    fs::create_dir_all(bundle.rootfs().join("usr/lib")).unwrap();
    fs::write(bundle.rootfs().join("usr/lib/secret"), "hidden").unwrap();
    symlink("usr/lib", bundle.rootfs().join("lib")).unwrap();
    bundle.set("/linux/maskedPaths", json!(["/lib/secret"]));
    assert_eq!(bundle.run().ok(), "");
    canary.assert_alive();
}

/// A host whose null device is something else masks nothing with it.
#[test]
fn privileged_cve_2025_31133_the_host_s_null_device_is_verified_too() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    let mut bundle = Bundle::new("cat /secret");
    let decoy = bundle.dir.path().join("decoy");
    fs::write(&decoy, "decoy").unwrap();
    fs::write(bundle.rootfs().join("secret"), "hidden").unwrap();
    bundle.set("/linux/maskedPaths", json!(["/secret"]));
    // In the mount namespace of this test.
    rustix::mount::mount_bind(&decoy, "/dev/null").unwrap();
    let done = bundle.run();
    rustix::mount::unmount("/dev/null", rustix::mount::UnmountFlags::DETACH).unwrap();
    done.fails(1, "is not the null device");
    canary.assert_alive();
}
