//! The gate between create and start: a listening socket in the container's state directory.
//!
//! Init accepts one connection and goes on; the connection carries the error text when something fails, and
//! closes by itself when execve succeeds. It closes as well when init is kept from saying anything, see
//! [`crate::state::ProcessIdentity::ended_unexecuted`]. Whether init still waits can be asked without disturbing it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use rustix::net::{SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, sockopt};

use crate::socket::{Address, check_listener, connect, receive_descriptor, say_last, unix_socket};
use crate::state::{START_SOCKET, StateDirectory};

/// Longest error text taken from init.
const MAX_TEXT: usize = 16 * 1024;
/// What goes with the seccomp listener; an error text never has a descriptor beside it.
pub(super) const LISTENER: &[u8] = b"\0";
/// How long init may take from the start signal to execve, besides its startContainer hooks.
const PATIENCE: Duration = Duration::from_secs(300);

/// Through the descriptor: nobody can put another directory in the place of this one.
fn path(directory: &StateDirectory) -> PathBuf {
    let fd = directory.fd().as_raw_fd();
    PathBuf::from(format!("/proc/self/fd/{fd}/{START_SOCKET}"))
}

/// Makes the gate for a new init.
///
/// # Errors
/// The errno of bind(2) or listen(2).
pub fn open(directory: &StateDirectory) -> io::Result<OwnedFd> {
    let gate = unix_socket(SocketType::STREAM)?;
    bind(&gate, &SocketAddrUnix::new(path(directory))?)?;
    listen(&gate, 1)?;
    Ok(gate)
}

/// Whether an init waits behind the gate.
#[must_use]
pub fn is_waiting(directory: &StateDirectory) -> bool {
    check_listener(Address::Path(&path(directory))).is_ok()
}

/// Init's side: waits, as long as it takes, for the start signal.
pub(super) fn wait(gate: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(rustix::io::retry_on_intr(|| {
        accept_with(gate, SocketFlags::CLOEXEC)
    })?)
}

/// Init's side: tells the starter what went wrong.
pub(super) fn report(connection: BorrowedFd<'_>, text: &str) {
    // The starter may be gone; init ends either way.
    say_last(connection, &text.as_bytes()[..text.len().min(MAX_TEXT)]);
}

/// The starter's side: lets init go and waits until the program runs, `hooks` longer than without hooks. A
/// seccomp listener that init sends is given to `deliver`; when that fails, its text is the failure and init
/// is left to the caller.
///
/// # Errors
/// `ConnectionRefused` when no init waits; otherwise the outer result is that of the socket, the inner one
/// init's own failure.
pub fn start(
    directory: &StateDirectory,
    hooks: Duration,
    deliver: impl FnOnce(OwnedFd) -> Result<(), String>,
) -> io::Result<Result<(), String>> {
    let mut deliver = Some(deliver);
    let connection = connect(Address::Path(&path(directory)), PATIENCE)?;
    sockopt::set_socket_timeout(
        &connection,
        sockopt::Timeout::Recv,
        Some(PATIENCE.saturating_add(hooks)),
    )?;
    let mut text = Vec::new();
    let mut buffer = [0u8; 1024];
    loop {
        let (length, listener) = receive_descriptor(connection.as_fd(), &mut buffer)?;
        if let Some(listener) = listener {
            let outcome = deliver.take().map_or(Ok(()), |deliver| deliver(listener));
            if outcome.is_err() {
                return Ok(outcome);
            }
            continue;
        }
        if length == 0 || text.len() > MAX_TEXT {
            break;
        }
        text.extend_from_slice(&buffer[..length]);
    }
    if text.is_empty() {
        Ok(Ok(()))
    } else {
        Ok(Err(String::from_utf8_lossy(&text).into_owned()))
    }
}
