//! Writes to procfs through a private instance that no mount of the container can stand in for
//! (CVE-2025-52881).

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, fstat, fstatfs, openat2};
use rustix::mount::{OpenTreeFlags, open_tree};

use super::mounts::{PROC_MAGIC, make};
use super::{RootfsError, io_error};

/// `PROC_ROOT_INO` of linux/proc_fs.h.
const PROC_ROOT_INODE: u64 = 1;

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
        let root = match make("proc", "proc", &[], 0) {
            Ok(root) => root,
            // In a user namespace the kernel wants to see a procfs without anything over it first, and
            // masks are over it.
            Err(reason) => clone_of_proc().ok_or_else(|| {
                io_error("mount a private", "proc", std::io::Error::other(reason))
            })?,
        };
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

/// The procfs at /proc without what is mounted over parts of it; `None` when there is something else.
fn clone_of_proc() -> Option<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, "/proc", flags).ok()?;
    let is_procfs = fstatfs(&tree).is_ok_and(|s| s.f_type == PROC_MAGIC);
    let is_root = fstat(&tree).is_ok_and(|s| s.st_ino == PROC_ROOT_INODE);
    (is_procfs && is_root).then_some(tree)
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

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};

    use super::*;

    #[test]
    fn privileged_what_lies_over_proc_is_not_taken_for_procfs() {
        if !rustix::process::geteuid().is_root() {
            assert!(
                std::env::var("AXIL_TEST_REQUIRE").as_deref() != Ok("1"),
                "cannot run: it needs root"
            );
            println!("skipped: it needs root");
            return;
        }
        let run = || {
            // CLONE_NEWNS: nothing is mounted for anybody else.
            crate::sys::unshare(0x0002_0000).unwrap();
            let private = crate::sys::MountAttributes {
                propagation: libc::MS_PRIVATE,
                ..Default::default()
            };
            let root = File::open("/").unwrap();
            crate::sys::mount_setattr(root.as_fd(), c"", true, private).unwrap();
            let uptime = |tree: &OwnedFd| {
                let flags = OFlags::RDONLY | OFlags::CLOEXEC;
                let file = rustix::fs::openat(tree, "uptime", flags, Mode::empty()).unwrap();
                std::io::read_to_string(File::from(file)).unwrap()
            };
            // A mask is not in the clone.
            mount_bind("/dev/null", "/proc/uptime").unwrap();
            assert_eq!(std::fs::read_to_string("/proc/uptime").unwrap(), "");
            assert_ne!(uptime(&clone_of_proc().unwrap()), "");
            // Another file system.
            mount("tmpfs", "/proc", "tmpfs", MountFlags::empty(), None).unwrap();
            assert!(clone_of_proc().is_none());
            unmount("/proc", UnmountFlags::DETACH).unwrap();
            // A directory of procfs that is not its root.
            mount_bind("/proc/self/attr", "/proc").unwrap();
            assert!(clone_of_proc().is_none());
            unmount("/proc", UnmountFlags::DETACH).unwrap();
            assert!(clone_of_proc().is_some());
        };
        std::thread::spawn(run).join().unwrap();
    }
}
