//! `start`: let the init of a created container become its program.

use super::{CommandError, Globals, io_error, only_id, refused};
use crate::config::Hooks;
use crate::container::{Container, Status};
use crate::process::{self, hooks};
use crate::state::CONFIG_FILE;

pub(super) fn run(globals: &Globals, parser: &mut lexopt::Parser) -> Result<(), CommandError> {
    let id = only_id(parser)?;
    let container = Container::open_locked(&globals.root, &id)?;
    start(globals, &container)
}

/// Starts a container that this process has locked.
pub(super) fn start(globals: &Globals, container: &Container) -> Result<(), CommandError> {
    match container.status() {
        Status::Created => {}
        Status::Stopped => return Err(refused("cannot start a container that has stopped")),
        Status::Creating | Status::Running | Status::Paused => {
            return Err(refused("cannot start an already running container"));
        }
    }
    let outcome = process::start(&container.directory).map_err(|e| {
        io_error(
            "start",
            format!("container {:?}, is its init gone?", container.record.id),
            e,
        )
    })?;
    outcome.map_err(refused)?;
    let state = process::state_text(&container.record, "running");
    for hook in hooks_of(container).poststart {
        // The specification: a poststart hook that fails is logged, the container goes on.
        if let Err(reason) = hooks::run("poststart", std::slice::from_ref(&hook), &state) {
            globals.log.warn(&reason);
        }
    }
    Ok(())
}

/// The hooks of the container's document; most have none, and then nothing is parsed.
pub(super) fn hooks_of(container: &Container) -> Hooks {
    #[derive(serde::Deserialize)]
    struct Document {
        hooks: Option<Hooks>,
    }
    let bytes = container
        .directory
        .read(CONFIG_FILE)
        .ok()
        .flatten()
        .unwrap_or_default();
    if !bytes.windows(7).any(|window| window == b"\"hooks\"") {
        return Hooks::default();
    }
    serde_json::from_slice::<Document>(&bytes)
        .ok()
        .and_then(|document| document.hooks)
        .unwrap_or_default()
}
