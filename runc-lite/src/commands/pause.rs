//! `pause`: with an id, freeze that container. As a bare word, be the sandbox process of a pod, first
//! process of a PID namespace its containers share.
//!
//! That process reaps what is reparented to it and ends on SIGTERM or SIGINT. It allocates next to nothing.

use std::process::ExitCode;

use rustix::process::{WaitOptions, wait};

use super::{CommandError, Globals, only_id, refused};
use crate::container::{Container, Status};

pub(super) fn run() -> ExitCode {
    let Ok(blocked) = crate::sys::block_all_signals() else {
        return ExitCode::from(1);
    };
    loop {
        match crate::sys::wait_for_signal(&blocked) {
            Ok(libc::SIGTERM | libc::SIGINT) => return ExitCode::SUCCESS,
            // Signals of one kind merge: reap until nobody is left.
            Ok(libc::SIGCHLD) => while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {},
            Ok(_) => {}
            Err(_) => return ExitCode::from(1),
        }
    }
}

/// Suspends every process of a container.
pub(super) fn freeze(globals: &Globals, parser: &mut lexopt::Parser) -> Result<(), CommandError> {
    let id = only_id(parser)?;
    let container = Container::open(&globals.root, &id)?;
    match container.status() {
        Status::Created | Status::Running => {}
        Status::Creating | Status::Paused | Status::Stopped => {
            return Err(refused("container not running"));
        }
    }
    let group = container
        .cgroup()
        .ok_or_else(|| refused("container not running"))?;
    Ok(group.set_frozen(true)?)
}
