//! The container's terminal: made in the container, its master sent to the caller's console socket or to
//! the runtime that stays (see `relay`).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FileType, Gid, Uid, fchown, fstat};

use super::error::{ProcessError, io_error};
use crate::socket::{Address, connect, send_descriptor};

/// How long whoever takes the master may take to accept the connection, and the master.
const PATIENCE: Duration = Duration::from_secs(30);

/// Who takes the master of a new terminal.
#[derive(Debug, Clone, Copy)]
pub enum Console<'a> {
    /// Nobody: the runtime leaves and no socket was named.
    Nobody,
    /// The listener of `--console-socket`.
    Socket(&'a Path),
    /// The runtime itself, which stays and copies; only where the process asks for a terminal.
    Runtime(BorrowedFd<'a>),
}

impl Console<'_> {
    /// Whether the runtime copies what comes out of the terminal.
    pub(super) fn is_relayed(self) -> bool {
        matches!(self, Console::Runtime(_))
    }

    /// Checks that a process with or without a terminal goes with it.
    ///
    /// # Errors
    /// [`ProcessError::Terminal`].
    pub(super) fn check(self, terminal: bool) -> Result<(), ProcessError> {
        let reason = match (self, terminal) {
            (Console::Nobody, true) => {
                "process.terminal: a terminal needs --console-socket when the runtime detaches"
            }
            (Console::Socket(_), false) => {
                "--console-socket goes with a process that has a terminal only"
            }
            _ => return Ok(()),
        };
        Err(ProcessError::Terminal { reason })
    }

    /// The descriptor to send the master over; `None` for a process without a terminal.
    ///
    /// # Errors
    /// [`ProcessError::Io`] when nobody listens.
    pub(super) fn open(self, terminal: bool) -> Result<Option<OwnedFd>, ProcessError> {
        match self {
            Console::Nobody => Ok(None),
            Console::Socket(path) => {
                let connected = connect(Address::Path(path), PATIENCE);
                connected.map(Some).map_err(|e| {
                    let object = path.display().to_string();
                    io_error("connect to the console socket", object, e)
                })
            }
            Console::Runtime(_) if !terminal => Ok(None),
            Console::Runtime(fd) => {
                let copy = fd.try_clone_to_owned();
                copy.map(Some)
                    .map_err(|e| io_error("copy", "the console socket", e))
            }
        }
    }
}

/// Sends the master of a terminal over the console socket.
pub(super) fn send_master(socket: BorrowedFd<'_>, master: BorrowedFd<'_>) -> std::io::Result<()> {
    // The payload is a name for the terminal; receivers only show it.
    send_descriptor(socket, b"/dev/ptmx", master).map(|_| ())
}

/// Makes the slave standard input, output and error and the controlling terminal.
pub(super) fn take_terminal(slave: &OwnedFd) -> std::io::Result<()> {
    rustix::process::ioctl_tiocsctty(slave)?;
    rustix::stdio::dup2_stdin(slave)?;
    rustix::stdio::dup2_stdout(slave)?;
    rustix::stdio::dup2_stderr(slave)?;
    Ok(())
}

/// Gives the standard streams to the container's user where that is safe: pipes, and the container's own
/// terminal. Files and devices of the host keep their owner (CVE-2026-88265).
pub(super) fn give_streams(own_terminal: bool, uid: u32, gid: u32) {
    let streams = [
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
    ];
    for stream in streams {
        let Ok(stat) = fstat(stream) else { continue };
        let is_pipe = FileType::from_raw_mode(stat.st_mode) == FileType::Fifo;
        if !(is_pipe || own_terminal) || stat.st_uid == uid {
            continue;
        }
        // A pipe of another user namespace cannot be given away; the program then uses it as it is.
        let group = if own_terminal {
            None
        } else {
            Some(Gid::from_raw(gid))
        };
        let _ = fchown(stream.as_fd(), Some(Uid::from_raw(uid)), group);
    }
}
