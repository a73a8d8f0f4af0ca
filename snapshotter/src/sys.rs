//! The one system call that no library offers safely: mount_setattr(2), for mounts with mapped ids.

#![expect(
    unsafe_code,
    reason = "neither rustix nor nix has mount_setattr(2); this file is all there is"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Maps the ids of a mount that is attached nowhere yet as `namespace`, a user namespace, maps them. The kernel
/// takes the descriptor's namespace during the call only.
///
/// # Errors
/// The errno of mount_setattr(2): `EINVAL` where the kernel or the file system cannot do it.
pub(crate) fn map_ids(mount: BorrowedFd<'_>, namespace: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::try_from(namespace.as_raw_fd()).unwrap_or(u64::MAX),
    };
    // SAFETY: the path is a C string, `attributes` is a whole struct mount_attr of the size given, and both
    // outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
