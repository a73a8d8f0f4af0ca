//! `delete`: remove a container and everything create made, at whatever point create got to.

use std::os::fd::AsFd;
use std::time::Duration;

use lexopt::prelude::*;

use super::start::hooks_of;
use super::{CommandError, Globals, parse_id, refused};
use crate::container::{Container, Status};
use crate::process::hooks::{self, Surroundings};
use crate::process::state_text;
use crate::state::StateError;

/// How long delete waits for a running container to end by itself before it refuses.
const LAST_MOMENT: Duration = Duration::from_millis(100);

pub(super) fn run(globals: &Globals, parser: &mut lexopt::Parser) -> Result<(), CommandError> {
    let (mut force, mut id) = (false, None);
    while let Some(argument) = parser.next()? {
        match argument {
            Short('f') | Long("force") => force = true,
            Value(value) if id.is_none() => id = Some(value),
            other => return Err(other.unexpected().into()),
        }
    }
    let id = parse_id(id)?;
    let container = match Container::open_locked(&globals.root, &id) {
        Ok(container) => container,
        Err(StateError::NotFound { .. }) if force => return Ok(()),
        // A record nobody can read has nothing more to tell; what it named cannot be found by it.
        Err(StateError::Record { path, source }) if force => {
            globals.log.warn(&format!(
                "record {} is unreadable: {source}",
                path.display()
            ));
            let directory = crate::state::StateDirectory::open(&globals.root, &id)?;
            return Ok(directory.remove()?);
        }
        Err(error) => return Err(error.into()),
    };
    let mut status = container.status();
    if !force && status == Status::Running {
        // It may be about to end: callers delete right after a kill, or after a program that is done.
        if let Some(init) = container.init() {
            let _ = crate::process::wait_for_exit(init.as_fd(), LAST_MOMENT);
        }
        status = container.status();
    }
    if !force && matches!(status, Status::Running | Status::Paused | Status::Creating) {
        return Err(refused(format!(
            "cannot delete container {:?} that is not stopped: {}",
            id.as_str(),
            status.as_str()
        )));
    }
    remove(globals, &container)
}

/// Kills what is left of a locked container and removes its cgroup and directory.
pub(super) fn remove(globals: &Globals, container: &Container) -> Result<(), CommandError> {
    container.kill_init().map_err(refused)?;
    if let Some(group) = container.cgroup() {
        group.remove()?;
    }
    if let Some(place) = &container.record.resctrl {
        place.remove()?;
    }
    let hooks = hooks_of(container).poststop;
    if !hooks.is_empty() {
        let mut record = container.record.clone();
        record.init = None;
        let state = state_text(&record, "stopped");
        let surroundings = Surroundings::of_runtime(&state, &record.bundle);
        // The specification: a poststop hook that fails is logged, the others still run.
        for failure in hooks::run_all("poststop", &hooks, surroundings) {
            globals.log.warn(&failure);
        }
    }
    Ok(container.directory.remove()?)
}
