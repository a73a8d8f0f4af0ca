//! mount_setattr(2), which rustix does not offer.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `struct mount_attr`: what to set, what to clear, and the propagation type (0: unchanged).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MountAttributes {
    /// `MOUNT_ATTR_*` bits to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` bits to clear.
    pub clear: u64,
    /// One of `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED`, `MS_UNBINDABLE`, or zero.
    pub propagation: u64,
    /// Descriptor of the user namespace of an id-mapped mount; only with [`MountAttributes::IDMAP`].
    pub userns_fd: u64,
}

impl MountAttributes {
    /// `MOUNT_ATTR_RDONLY`.
    pub const RDONLY: u64 = 0x1;
    /// `MOUNT_ATTR_NOSUID`.
    pub const NOSUID: u64 = 0x2;
    /// `MOUNT_ATTR_NODEV`.
    pub const NODEV: u64 = 0x4;
    /// `MOUNT_ATTR_NOEXEC`.
    pub const NOEXEC: u64 = 0x8;
    /// `MOUNT_ATTR__ATIME`: the mask of the access-time choice.
    pub const ATIME_MASK: u64 = 0x70;
    /// `MOUNT_ATTR_NOATIME`.
    pub const NOATIME: u64 = 0x10;
    /// `MOUNT_ATTR_STRICTATIME`.
    pub const STRICTATIME: u64 = 0x20;
    /// `MOUNT_ATTR_NODIRATIME`.
    pub const NODIRATIME: u64 = 0x80;
    /// `MOUNT_ATTR_IDMAP`.
    pub const IDMAP: u64 = 0x10_0000;
    /// `MOUNT_ATTR_NOSYMFOLLOW`.
    pub const NOSYMFOLLOW: u64 = 0x20_0000;

    /// Maps the ids of a mount as `namespace` maps them. The value must not outlive the descriptor.
    #[must_use]
    pub fn mapped(namespace: BorrowedFd<'_>) -> MountAttributes {
        MountAttributes {
            set: MountAttributes::IDMAP,
            userns_fd: u64::try_from(namespace.as_raw_fd()).unwrap_or_default(),
            ..MountAttributes::default()
        }
    }

    /// Whether the call would change nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == MountAttributes::default()
    }
}

/// Changes the mount `path` relative to `dir` (the mount of `dir` itself when `path` is empty).
///
/// # Errors
/// The errno of mount_setattr(2).
pub fn mount_setattr(
    dir: BorrowedFd<'_>,
    path: &CStr,
    recursive: bool,
    attributes: MountAttributes,
) -> io::Result<()> {
    let mut flags = libc::AT_EMPTY_PATH;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: `attributes` has the layout of struct mount_attr and outlives the call; `path` is a C string.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            dir.as_raw_fd(),
            path.as_ptr(),
            flags,
            std::ptr::from_ref(&attributes),
            std::mem::size_of::<MountAttributes>(),
        )
    };
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
