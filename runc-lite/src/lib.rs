//! A small OCI runtime: namespaces, cgroups, mounts, seccomp and capabilities, driven by runc's command line.
//!
//! Reading order: [`commands`] (one file per verb) → [`spec`] (config.json to [`plan::Plan`], pure) →
//! [`process`] (parent, intermediate, init) → [`rootfs`], [`cgroup`], [`seccomp`]. There is no async
//! runtime and one thread only, because the child is made by a plain clone of this process.
//!
//! It needs Linux 5.12 (clone3, openat2, close_range, the mount API with mount_setattr, pidfd).
#![deny(unsafe_code)]

pub mod cgroup;
pub mod commands;
pub mod config;
pub mod container;
#[doc(hidden)]
pub mod fuzzing;
pub mod log;
mod netlink;
pub mod plan;
pub mod process;
pub mod resctrl;
pub mod rootfs;
pub mod seccomp;
pub mod spec;
pub mod state;
#[expect(
    unsafe_code,
    reason = "the one place for system calls that neither std nor rustix offers safely"
)]
pub mod sys;

/// The message of `error` and of everything below it, for the one place where it is shown.
#[must_use]
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut below = error.source();
    while let Some(source) = below {
        text.push_str(": ");
        text.push_str(&source.to_string());
        below = source.source();
    }
    text
}
