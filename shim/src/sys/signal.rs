//! Sends signals by number through a pidfd; real-time numbers are why rustix's typed call is not used.
#![expect(
    unsafe_code,
    reason = "pidfd_send_signal takes a plain number only as a raw system call"
)]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// A signal number that Linux has, 1 to 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignalNumber(i32);

impl SignalNumber {
    /// `SIGKILL`.
    pub const KILL: Self = Self(9);
    /// `SIGTERM`.
    pub const TERM: Self = Self(15);

    /// The signal with this number, if there is one.
    #[must_use]
    pub fn new(number: u32) -> Option<Self> {
        match i32::try_from(number) {
            Ok(number @ 1..=64) => Some(Self(number)),
            _ => None,
        }
    }
}

/// Sends `signal` to the process held by `pidfd` (pidfd_send_signal(2)).
///
/// # Errors
/// `ESRCH` when it is gone.
pub fn send(pidfd: BorrowedFd<'_>, signal: SignalNumber) -> io::Result<()> {
    // SAFETY: the call reads no memory of ours: the siginfo pointer is null, and the descriptor is
    // borrowed for the duration of the call.
    let sent = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal.0,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if sent == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_the_numbers_of_linux() {
        for number in [1, 9, 15, 34, 37, 64] {
            assert!(SignalNumber::new(number).is_some(), "{number}");
        }
        for number in [0, 65, u32::MAX] {
            assert!(SignalNumber::new(number).is_none(), "{number}");
        }
    }
}
