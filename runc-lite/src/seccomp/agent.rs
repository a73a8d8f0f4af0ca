//! The agent of `SCMP_ACT_NOTIFY`: a program of the host that answers system calls of the container. It is
//! given the listener over its socket, with the container process state of the OCI runtime specification
//! (config-linux.md, "The Container Process State"), one per connection.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, send, socket_with,
    sockopt,
};
use serde::Serialize;

use super::{Listener, SeccompError};
use crate::config::StateDocument;
use crate::process::descriptor::send_descriptor;

/// How long the agent may take to accept a connection and to take a message.
const PATIENCE: Duration = Duration::from_secs(10);

/// The message to the agent; its one descriptor is the listener.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerProcessState<'a> {
    /// Version of the specification.
    pub oci_version: &'a str,
    /// Names of the descriptors sent.
    pub fds: [&'a str; 1],
    /// The process that has the filter, as the runtime's PID namespace numbers it.
    pub pid: i32,
    /// `listenerMetadata`.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub metadata: &'a str,
    /// The container.
    pub state: StateDocument<'a>,
}

/// The name the specification gives to the listener.
pub const SECCOMP_FD: &str = "seccompFd";

/// A connection to the agent, good for one message.
#[derive(Debug)]
pub struct Agent<'a> {
    listener: &'a Listener,
    socket: OwnedFd,
}

fn fail(
    operation: &'static str,
    listener: &Listener,
    source: impl Into<io::Error>,
) -> SeccompError {
    SeccompError::Agent {
        operation,
        path: listener.path.clone(),
        source: source.into(),
    }
}

/// Whether somebody listens at the agent's socket, without disturbing them: a datagram socket cannot be
/// connected to a stream socket, and the errno tells that there is one (unix(7), EPROTOTYPE).
///
/// # Errors
/// [`SeccompError::Agent`].
pub fn check(listener: &Listener) -> Result<(), SeccompError> {
    let probe = || -> io::Result<()> {
        let socket = unix_socket(SocketType::DGRAM)?;
        match connect_to(&socket, &listener.path) {
            Err(e) if e.raw_os_error() == Some(Errno::PROTOTYPE.raw_os_error()) => Ok(()),
            Err(e) => Err(e),
            // A datagram socket; the specification demands a stream.
            Ok(()) => Err(Errno::PROTOTYPE.into()),
        }
    };
    probe().map_err(|e| fail("connect with", listener, e))
}

impl<'a> Agent<'a> {
    /// `listenerMetadata`.
    #[must_use]
    pub fn metadata(&self) -> &'a str {
        &self.listener.metadata
    }

    /// Connects.
    ///
    /// # Errors
    /// [`SeccompError::Agent`]; EAGAIN when the agent's queue stays full.
    pub fn connect(listener: &'a Listener) -> Result<Agent<'a>, SeccompError> {
        let connected = || -> io::Result<OwnedFd> {
            let socket = unix_socket(SocketType::STREAM)?;
            // It bounds connect(2) too, see unix(7) on SO_SNDTIMEO.
            sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(PATIENCE))?;
            connect_to(&socket, &listener.path)?;
            Ok(socket)
        };
        match connected() {
            Ok(socket) => Ok(Agent { listener, socket }),
            Err(e) => Err(fail("connect with", listener, e)),
        }
    }

    /// Sends `state` and the listener, and closes the connection.
    ///
    /// # Errors
    /// [`SeccompError::Agent`]; EPIPE when the agent is gone, EAGAIN when it does not read.
    pub fn hand_over(
        self,
        state: &ContainerProcessState<'_>,
        seccomp_fd: BorrowedFd<'_>,
    ) -> Result<(), SeccompError> {
        let sent = || -> io::Result<()> {
            let message = serde_json::to_vec(state)?;
            // The specification: descriptors go with the first message.
            let mut at = send_descriptor(self.socket.as_fd(), &message, seccomp_fd)?;
            while at < message.len() {
                at += rustix::io::retry_on_intr(|| {
                    send(&self.socket, &message[at..], SendFlags::NOSIGNAL)
                })?;
            }
            Ok(())
        };
        sent().map_err(|e| fail("send the listener to the", self.listener, e))
    }
}

fn unix_socket(kind: SocketType) -> io::Result<OwnedFd> {
    Ok(socket_with(
        AddressFamily::UNIX,
        kind,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

fn connect_to(socket: &OwnedFd, path: &str) -> io::Result<()> {
    if let Some(name) = path.strip_prefix('@') {
        let address = SocketAddrUnix::new_abstract_name(name.as_bytes())?;
        return Ok(connect(socket, &address)?);
    }
    if let Ok(address) = SocketAddrUnix::new(path) {
        return Ok(connect(socket, &address)?);
    }
    // Addresses end at 108 bytes: a longer path goes through a descriptor of its directory.
    let (Some(directory), Some(name)) = (Path::new(path).parent(), Path::new(path).file_name())
    else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(CWD, directory, flags, Mode::empty())?;
    let short = Path::new("/proc/self/fd")
        .join(directory.as_raw_fd().to_string())
        .join(name);
    Ok(connect(socket, &SocketAddrUnix::new(short)?)?)
}
