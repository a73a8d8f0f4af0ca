//! The process in between: it enters existing namespaces and bears the real process into them.
//!
//! setns(2) to a PID namespace holds for children only, so whoever is to live in one must be born there; what is
//! made for a container must belong to its user namespace, so that one is entered before too. The child is
//! made a sibling (CLONE_PARENT), so that the intermediate process can go away and the parent stays the
//! parent.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use super::message::{ChildEnd, ParentEnd, ToChild, ToParent};
use super::wait::end;
use crate::sys::{CloneFlags, Forked, clone3, exit_now};

/// How long a process that has nothing left to do may take to leave.
const LEAVE: Duration = Duration::from_secs(10);

/// Which process returns from [`bear`].
#[derive(Debug)]
pub(super) enum Role {
    /// The caller, with the intermediate process that waits to proceed.
    Parent(Waiting),
    /// The new process, in the namespaces entered, with `flags` applied.
    Born,
}

/// An intermediate process that has not been let go yet. Dropping it sends it away.
#[derive(Debug)]
pub(super) struct Waiting {
    pid: i32,
    pidfd: OwnedFd,
    channel: Option<ParentEnd>,
}

impl Waiting {
    /// Its number.
    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    /// Lets it go on; gives what it answers first, and the channel for what follows.
    pub(super) fn proceed(mut self) -> std::io::Result<(Option<ToParent>, ParentEnd)> {
        let channel = self
            .channel
            .take()
            .expect("taken here only, and this consumes it");
        let answer = channel
            .send(&ToChild::Proceed)
            .and_then(|()| channel.receive());
        // It has nothing left to do, or hangs and will not do it: a namespace or a frozen cgroup may hold it.
        end(self.pid, self.pidfd.as_fd(), LEAVE);
        Ok((answer?, channel))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.channel.take().is_some() {
            // Order: it sees the end of the channel, and ends.
            end(self.pid, self.pidfd.as_fd(), LEAVE);
        }
    }
}

/// Clones twice: an intermediate process that waits for `Proceed`, calls `enter` and then bears the process
/// that returns as [`Role::Born`].
pub(super) fn bear(
    parent_end: ParentEnd,
    channel: &ChildEnd,
    flags: CloneFlags,
    enter: impl FnOnce() -> Result<(), String>,
) -> std::io::Result<Role> {
    match clone3(CloneFlags::NONE, None)? {
        Forked::Parent { pid, pidfd } => {
            return Ok(Role::Parent(Waiting {
                pid,
                pidfd,
                channel: Some(parent_end),
            }));
        }
        // Its copy would hide the parent's death from this process and from the one it bears.
        Forked::Child => drop(parent_end),
    }
    let outcome = match channel.receive() {
        Ok(Some(ToChild::Proceed)) => enter(),
        Ok(_) => exit_now(1),
        Err(e) => Err(format!("cannot receive from the runtime: {e}")),
    };
    let born = outcome.and_then(|()| {
        clone3(CloneFlags::PARENT.and(flags), None).map_err(|e| match e.raw_os_error() {
            Some(libc::ENOMEM) => {
                format!("cannot make a process in the PID namespace, its init is gone: {e}")
            }
            _ => format!("cannot make a process in the namespaces: {e}"),
        })
    });
    match born {
        Ok(Forked::Child) => Ok(Role::Born),
        Ok(Forked::Parent { pid, .. }) => {
            let told = channel.send(&ToParent::Born(pid.to_le_bytes()));
            exit_now(i32::from(told.is_err()))
        }
        Err(text) => {
            let _ = channel.send(&ToParent::Failed(text));
            exit_now(1)
        }
    }
}
