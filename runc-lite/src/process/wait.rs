//! Waiting for processes, with bounds, and passing signals on.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, WaitOptions, waitpid};

use crate::sys::{SignalSet, send_signal, wait_for_signal};

/// Waits until the process behind `pidfd` has exited; false when `patience` is over.
#[must_use]
pub fn wait_for_exit(pidfd: BorrowedFd<'_>, patience: Duration) -> bool {
    let timeout = Timespec {
        tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: patience.subsec_nanos().into(),
    };
    let mut polled = [PollFd::new(&pidfd, PollFlags::IN)];
    let ready = rustix::io::retry_on_intr(|| poll(&mut polled, Some(&timeout)));
    ready.is_ok_and(|count| count > 0)
}

/// The exit code of a child as a shell would tell it, reaping it; `None` while it runs.
pub(super) fn reap(pid: i32, options: WaitOptions) -> Option<i32> {
    let (_, status) = rustix::io::retry_on_intr(|| waitpid(Pid::from_raw(pid), options)).ok()??;
    Some(match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 255,
    })
}

/// Passes every signal that arrives on to child `pid` until it exits; gives its exit code. The signals of
/// `blocked` must be blocked since before the child was made.
///
/// # Errors
/// The errno of sigtimedwait(2).
pub fn forward_signals_until_exit(
    pid: i32,
    pidfd: BorrowedFd<'_>,
    blocked: &SignalSet,
) -> std::io::Result<i32> {
    loop {
        // Not only after SIGCHLD: the child may have ended before the first wait.
        if let Some(code) = reap(pid, WaitOptions::NOHANG) {
            return Ok(code);
        }
        let Some(signal) = wait_for_signal(blocked, None)? else {
            continue;
        };
        match signal {
            libc::SIGCHLD => {}
            // The runtime's own write to a closed stream.
            libc::SIGPIPE | libc::SIGURG => {}
            other => {
                // It may have ended meanwhile; the next round sees that.
                let _ = send_signal(pidfd.as_fd(), other);
            }
        }
    }
}
