//! clone3(2) used like fork: the child continues on a copy of this single-threaded process.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Flags of clone3(2), a subset of `CLONE_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CloneFlags(pub u64);

impl CloneFlags {
    /// The child becomes a child of the caller's parent.
    pub const PARENT: CloneFlags = CloneFlags(0x8000);
    /// No flags: a plain fork.
    pub const NONE: CloneFlags = CloneFlags(0);
    /// The child starts in the cgroup v2 directory given beside the flags.
    pub(crate) const INTO_CGROUP: u64 = 0x2_0000_0000;
    pub(crate) const PIDFD: u64 = 0x1000;

    /// Both sets of flags.
    #[must_use]
    pub const fn and(self, other: CloneFlags) -> CloneFlags {
        CloneFlags(self.0 | other.0)
    }
}

/// Which side of the clone the caller finds itself on.
#[derive(Debug)]
pub enum Forked {
    /// The new process.
    Child,
    /// The caller, with the child's pid in the caller's PID namespace and a pidfd for it.
    Parent {
        /// Process id as the caller sees it.
        pid: i32,
        /// Stable handle of the child.
        pidfd: OwnedFd,
    },
}

#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Clones the calling process with `flags`, optionally straight into a cgroup v2 directory.
///
/// The process must be single-threaded: the child goes on using the allocator and std.
///
/// # Errors
/// The errno of clone3(2).
pub fn clone3(flags: CloneFlags, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Forked> {
    let mut pidfd: libc::c_int = -1;
    let mut args = CloneArgs {
        flags: flags.0 | CloneFlags::PIDFD,
        pidfd: std::ptr::from_mut(&mut pidfd) as u64,
        // With CLONE_PARENT the kernel takes the exit signal of the caller and insists on zero.
        exit_signal: if flags.0 & CloneFlags::PARENT.0 == 0 {
            u64::try_from(libc::SIGCHLD).unwrap_or_default()
        } else {
            0
        },
        ..CloneArgs::default()
    };
    if let Some(fd) = cgroup {
        args.flags |= CloneFlags::INTO_CGROUP;
        args.cgroup = u64::try_from(fd.as_raw_fd()).unwrap_or_default();
    }
    // SAFETY: `args` is a valid clone_args of the given size that outlives the call; without CLONE_VM
    // the child has its own copy of memory, and the process has one thread, so no lock is held in it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            std::ptr::from_mut(&mut args),
            std::mem::size_of::<CloneArgs>(),
        )
    };
    match result {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        pid => {
            // SAFETY: on success the kernel stored a fresh descriptor in `pidfd` that nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            let pid = i32::try_from(pid).map_err(io::Error::other)?;
            Ok(Forked::Parent { pid, pidfd })
        }
    }
}

/// Ends the calling process at once, without running destructors or exit handlers.
///
/// For cloned children: handlers registered by the original process are not theirs to run.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit never returns and touches no memory of ours.
    unsafe { libc::_exit(code) }
}

/// Moves the calling process into new namespaces, `CLONE_NEW*` bits of unshare(2).
///
/// # Errors
/// The errno of unshare(2).
pub fn unshare(namespaces: u64) -> io::Result<()> {
    let flags = libc::c_int::try_from(namespaces).map_err(io::Error::other)?;
    // SAFETY: plain integer argument; callers pass namespace bits only, never CLONE_FILES, so descriptors
    // stay as std knows them.
    let result = unsafe { libc::unshare(flags) };
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
