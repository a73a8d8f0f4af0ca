//! The calls of a seccomp agent that no library offers (seccomp_unotify(2)).

use std::os::fd::{AsRawFd, BorrowedFd};

/// `struct seccomp_notif`.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Notification {
    pub(crate) id: u64,
    pub(crate) pid: u32,
    flags: u32,
    pub(crate) nr: i32,
    pub(crate) arch: u32,
    instruction_pointer: u64,
    pub(crate) args: [u64; 6],
}

/// `struct seccomp_notif_resp`.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
struct Response {
    id: u64,
    val: i64,
    error: i32,
    flags: u32,
}

const RECV: libc::c_ulong = 0xc050_2100;
const SEND: libc::c_ulong = 0xc018_2101;
/// `SECCOMP_USER_NOTIF_FLAG_CONTINUE`.
const CONTINUE: u32 = 1;

/// What the agent says to a call.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Reply {
    Continue,
    Errno(i32),
}

/// Takes the next notification; an error when there is none any more.
pub(crate) fn receive(listener: BorrowedFd<'_>) -> std::io::Result<Notification> {
    let mut notification = Notification::default();
    // SAFETY: the request writes one struct seccomp_notif, which this is, and it was zeroed as demanded.
    let result = unsafe { libc::ioctl(listener.as_raw_fd(), RECV as _, &mut notification) };
    if result == 0 {
        Ok(notification)
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// Answers it; the caller may be gone meanwhile.
pub(crate) fn answer(listener: BorrowedFd<'_>, id: u64, reply: Reply) -> std::io::Result<()> {
    let mut response = Response {
        id,
        ..Response::default()
    };
    match reply {
        Reply::Continue => response.flags = CONTINUE,
        Reply::Errno(errno) => response.error = -errno,
    }
    // SAFETY: the request reads one struct seccomp_notif_resp, which this is.
    let result = unsafe { libc::ioctl(listener.as_raw_fd(), SEND as _, &mut response) };
    if result == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}
