//! What a namespace descriptor is, which rustix does not tell.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The kind of namespace behind `fd`, as its `CLONE_NEW*` bit.
///
/// # Errors
/// The errno of ioctl(2); ENOTTY when it is no namespace. See ioctl_nsfs(2).
pub fn namespace_type(fd: BorrowedFd<'_>) -> io::Result<u64> {
    // `_IO(0xb7, 0x3)` of linux/nsfs.h.
    const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
    // SAFETY: this request takes no argument and touches no memory of ours.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE) };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    u64::try_from(result).map_err(io::Error::other)
}
