//! Descriptors that come from the caller and go on to the program, and the handle that goes back.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use super::{CommandError, io_error, usage};
use crate::socket::{Address, connect, send_descriptor};

/// Descriptors that may be handed through: far more than anybody passes, far fewer than a mistake.
const MAX_PRESERVED: u32 = 4096;

/// How long whoever takes the handle of a process may take to accept the connection, and the handle.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the program inherits beside its standard streams.
#[derive(Debug, Default)]
pub(super) struct Passed {
    /// Descriptors from 3 on.
    pub(super) count: u32,
    /// What tells the program of them.
    pub(super) environment: Vec<String>,
}

impl Passed {
    /// As many descriptors as `--preserve-fds` says.
    pub(super) fn preserved(preserved: u32) -> Result<Passed, CommandError> {
        Passed::of(0, preserved)
    }

    /// The sockets a service manager passed to this process (sd_listen_fds(3)), and after them those of
    /// `--preserve-fds`.
    pub(super) fn with_sockets(preserved: u32) -> Result<Passed, CommandError> {
        let sockets = activated(&|name| std::env::var(name).ok(), std::process::id());
        Passed::of(sockets, preserved)
    }

    fn of(sockets: u32, preserved: u32) -> Result<Passed, CommandError> {
        let count = sockets.saturating_add(preserved);
        if count > MAX_PRESERVED {
            return Err(usage(format!(
                "--preserve-fds {preserved} and {sockets} of LISTEN_FDS are above {MAX_PRESERVED}"
            )));
        }
        for fd in 3..3 + count {
            let link = format!("/proc/self/fd/{fd}");
            if std::fs::symlink_metadata(&link).is_err() {
                return Err(usage(format!(
                    "descriptor {fd} is not open, but --preserve-fds {preserved} and {sockets} of \
                     LISTEN_FDS reach up to it"
                )));
            }
        }
        let mut environment = Vec::new();
        if sockets > 0 {
            // The program is the first process of its container.
            environment.extend([format!("LISTEN_FDS={sockets}"), "LISTEN_PID=1".to_owned()]);
        }
        Ok(Passed { count, environment })
    }
}

/// How many sockets are meant for process `own`, and not for one it descends from.
fn activated(variable: &dyn Fn(&str) -> Option<String>, own: u32) -> u32 {
    let number = |name: &str| variable(name)?.parse::<u32>().ok();
    match (number("LISTEN_PID"), number("LISTEN_FDS")) {
        (Some(pid), Some(count)) if pid == own => count,
        _ => 0,
    }
}

/// Keeps `count` descriptors from 3 on for the program and marks all others close-on-exec, whoever
/// left them open (CVE-2024-21626).
pub(super) fn keep_descriptors(count: u32) -> Result<(), CommandError> {
    crate::sys::close_range(3 + count, u32::MAX, true)
        .map_err(|e| io_error("close", "inherited descriptors", e))
}

/// Connects to the socket of `--pidfd-socket`, before there is a process.
pub(super) fn connect_pidfd_socket(path: Option<&Path>) -> Result<Option<OwnedFd>, CommandError> {
    path.map(|path| {
        let object = path.display().to_string();
        connect(Address::Path(path), PATIENCE)
            .map_err(|e| io_error("connect to the pidfd socket", object, e))
    })
    .transpose()
}

/// Sends the handle of a process.
pub(super) fn send_pidfd(socket: &OwnedFd, pidfd: &OwnedFd) -> Result<(), CommandError> {
    send_descriptor(socket.as_fd(), b"pidfd", pidfd.as_fd())
        .map(|_| ())
        .map_err(|e| io_error("send", "the pidfd", e))
}

#[cfg(test)]
mod tests {
    use super::activated;

    #[test]
    fn sockets_are_taken_only_when_they_are_for_this_process() {
        let check = |pid: Option<&str>, fds: Option<&str>, expect| {
            let variable = |name: &str| match name {
                "LISTEN_PID" => pid.map(str::to_owned),
                _ => fds.map(str::to_owned),
            };
            assert_eq!(activated(&variable, 42), expect, "{pid:?} {fds:?}");
        };
        check(Some("42"), Some("2"), 2);
        check(Some("41"), Some("2"), 0);
        check(None, Some("2"), 0);
        check(Some("42"), None, 0);
        check(Some("42"), Some("-1"), 0);
    }
}
