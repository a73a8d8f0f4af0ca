//! Waiting for processes, with bounds, and passing signals on.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, WaitOptions, waitpid};

use crate::sys::{SignalSet, send_signal, wait_for_signal};

/// How long a killed process may take to go away.
pub const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// `time` as poll(2) takes it.
pub(crate) fn timespec(time: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: time.subsec_nanos().into(),
    }
}

/// Waits until the process behind `pidfd` has exited; false when `patience` is over.
#[must_use]
pub fn wait_for_exit(pidfd: BorrowedFd<'_>, patience: Duration) -> bool {
    wait_for(pidfd, PollFlags::IN, patience)
}

/// Waits until one of `events` holds for `fd`, or it is at its end; false when `patience` is over.
pub(super) fn wait_for(fd: BorrowedFd<'_>, events: PollFlags, patience: Duration) -> bool {
    let mut polled = [PollFd::from_borrowed_fd(fd, events)];
    let ready = rustix::io::retry_on_intr(|| poll(&mut polled, Some(&timespec(patience))));
    ready.is_ok_and(|count| count > 0)
}

/// The exit code of a child as a shell would tell it, reaping it; `None` while it runs.
pub(super) fn reap(pid: i32) -> Option<i32> {
    let (_, status) = waitpid(Pid::from_raw(pid), WaitOptions::NOHANG).ok()??;
    Some(match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 255,
    })
}

/// Waits until child `pid` has ended by itself, at most `patience`, then kills it, and reaps it; its exit code,
/// or `None` when it does not go away or is not a child. Later it will go, the signal waits for it.
pub(super) fn end(pid: i32, pidfd: BorrowedFd<'_>, patience: Duration) -> Option<i32> {
    if !wait_for_exit(pidfd, patience) {
        // It may end by itself meanwhile.
        let _ = send_signal(pidfd, libc::SIGKILL);
        if !wait_for_exit(pidfd, KILL_PATIENCE) {
            return None;
        }
    }
    reap(pid)
}

/// Passes every signal that arrives on to child `pid` until it exits; gives its exit code. The signals of
/// `blocked` must be blocked since before the child was made.
///
/// # Errors
/// The errno of sigwaitinfo(2).
pub fn forward_signals_until_exit(
    pid: i32,
    pidfd: BorrowedFd<'_>,
    blocked: &SignalSet,
) -> std::io::Result<i32> {
    loop {
        // Not only after SIGCHLD: the child may have ended before the first wait.
        if let Some(code) = reap(pid) {
            return Ok(code);
        }
        match wait_for_signal(blocked)? {
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
