//! The agent of `SCMP_ACT_NOTIFY`: a program of the host that answers system calls of the container. It is
//! given the listener over its socket, with the container process state of the OCI runtime specification
//! (config-linux.md, "The Container Process State"), one per connection.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::net::{SendFlags, send};
use serde::Serialize;

use super::{Listener, SeccompError};
use crate::config::StateDocument;
use crate::socket::{Address, check_listener, connect, send_descriptor};

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

/// Makes sure that somebody listens at the agent's socket, without disturbing them. The specification demands a
/// stream.
///
/// # Errors
/// [`SeccompError::Agent`].
pub fn check(listener: &Listener) -> Result<(), SeccompError> {
    check_listener(address(listener)).map_err(|e| fail("connect with", listener, e))
}

fn address(listener: &Listener) -> Address<'_> {
    match listener.path.strip_prefix('@') {
        Some(name) => Address::Abstract(name.as_bytes()),
        None => Address::Path(Path::new(&listener.path)),
    }
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
        match connect(address(listener), PATIENCE) {
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
