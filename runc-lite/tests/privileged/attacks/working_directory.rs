//! The working directory: tests 3 and 5.

use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;

use serde_json::json;

use super::arena::Canary;
use super::loops::{directories_under_exchange, leak_host_directories};
use crate::bundle::{Bundle, ready};

#[test]
fn privileged_cve_2024_21626_no_descriptor_is_a_working_directory() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    let leaked = leak_host_directories();
    let highest = leaked.iter().map(AsRawFd::as_raw_fd).max().unwrap() + 4;
    let running = Bundle::new("sleep 1000");
    running.create().ok();
    running.start().ok();
    for fd in 3..highest {
        for cwd in [
            format!("/proc/self/fd/{fd}"),
            format!("/proc/self/fd/{fd}/../.."),
        ] {
            let mut bundle = Bundle::new("pwd; ls /");
            bundle.set("/process/cwd", json!(cwd));
            bundle.create().fails(1, "/proc/self/fd");
            bundle.assert_gone();
            running
                .call(&["exec", "--cwd", &cwd, &running.id, "true"])
                .fails(255, "/proc/self/fd");
        }
    }
    drop(leaked);
    canary.assert_alive();
}

#[test]
fn privileged_cve_2024_21626_a_link_of_the_image_leads_to_no_descriptor() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    let leaked = leak_host_directories();
    for target in [
        "/proc/self/fd/7",
        "/proc/thread-self/fd/8/",
        "/proc/1/root",
        "/proc/self/cwd",
    ] {
        let mut bundle = Bundle::new("sleep 1000");
        symlink(target, bundle.rootfs().join("link")).unwrap();
        bundle.create().ok();
        bundle.start().ok();
        bundle
            .call(&["exec", "--cwd", "/link", &bundle.id, "true"])
            .fails(255, "/link");
        bundle.call(&["delete", "--force", &bundle.id]).ok();
        bundle.set("/process/cwd", json!("/link"));
        bundle.create().fails(1, "/link");
        bundle.assert_gone();
    }
    // A link that stays inside is as good as a directory.
    let mut bundle = Bundle::new("pwd");
    symlink("../../../../tmp", bundle.rootfs().join("link")).unwrap();
    bundle.set("/process/cwd", json!("/link"));
    assert_eq!(bundle.run().ok(), "/tmp");
    drop(leaked);
    canary.assert_alive();
}

/// A neighbour moves the directory out of the volume between its lookup and its use.
#[test]
fn privileged_the_working_directory_never_lies_outside() {
    if !ready() {
        return;
    }
    directories_under_exchange(25);
}
