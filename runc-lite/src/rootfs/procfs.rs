//! Writes to procfs through a private instance that no mount of the container can stand in for
//! (CVE-2025-52881).

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use super::mounts::make;
use super::{RootfsError, io_error};

/// A detached procfs of the calling process's PID namespace.
#[derive(Debug)]
pub struct PrivateProcfs {
    root: OwnedFd,
}

impl PrivateProcfs {
    /// Mounts one, attached nowhere.
    ///
    /// # Errors
    /// [`RootfsError::Io`].
    pub fn open() -> Result<PrivateProcfs, RootfsError> {
        let root = make("proc", "proc", &[], 0)
            .map_err(|reason| io_error("mount a private", "proc", std::io::Error::other(reason)))?;
        Ok(PrivateProcfs { root })
    }

    /// Writes `value` to `path`, relative to the instance's root, in one write.
    fn write(&self, path: &str, value: &str) -> Result<(), RootfsError> {
        // `self` is the one magic link needed, so links are allowed but must stay beneath this mount.
        let how = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = openat2(&self.root, path, flags, Mode::empty(), how)
            .map_err(|e| io_error("open", format!("/proc/{path}"), e))?;
        File::from(file)
            .write_all(value.as_bytes())
            .map_err(|e| io_error("write", format!("/proc/{path}"), e))
    }
}

/// Sets the container's sysctls; the spec stage let only namespaced ones through.
///
/// # Errors
/// [`RootfsError::Io`].
pub fn write_sysctls(sysctls: &[(String, String)]) -> Result<(), RootfsError> {
    if sysctls.is_empty() {
        return Ok(());
    }
    let procfs = PrivateProcfs::open()?;
    sysctls
        .iter()
        .try_for_each(|(path, value)| procfs.write(&format!("sys/{path}"), value))
}

/// Asks the security module for a label on the next execve.
///
/// # Errors
/// [`RootfsError::Io`].
pub fn write_lsm_label(attribute: &str, value: &str) -> Result<(), RootfsError> {
    PrivateProcfs::open()?.write(&format!("thread-self/attr/{attribute}"), value)
}
