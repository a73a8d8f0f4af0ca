//! `start`: let the init of a created container become its program.

use std::os::fd::{AsFd, OwnedFd};

use super::{CommandError, Globals, io_error, only_id, refused};
use crate::config::Hooks;
use crate::container::{Container, Status};
use crate::error_chain;
use crate::process;
use crate::process::hooks::{self, Surroundings};
use crate::seccomp::agent::Agent;
use crate::state::CONFIG_FILE;
use crate::sys::send_signal;

pub(super) fn run(globals: &Globals, parser: &mut lexopt::Parser) -> Result<(), CommandError> {
    let id = only_id(parser)?;
    let container = Container::open_locked(&globals.root, &id)?;
    start(&container)
}

/// Starts a container that this process has locked.
pub(super) fn start(container: &Container) -> Result<(), CommandError> {
    match container.status() {
        Status::Created => {}
        Status::Stopped => return Err(refused("cannot start a container that has stopped")),
        Status::Creating | Status::Running | Status::Paused => {
            return Err(refused("cannot start an already running container"));
        }
    }
    let hooks = hooks_of(container);
    let patience = hooks::patience(&hooks.start_container);
    // Order: connected before init goes on, so that a container whose agent is away stays created.
    let listener = container.record.seccomp_listener.as_ref();
    let agent = listener.map(Agent::connect).transpose()?;
    let outcome = process::start(&container.directory, patience, |seccomp_fd| {
        agent.map_or(Ok(()), |agent| hand_over(agent, container, seccomp_fd))
    });
    let outcome = match (outcome, container.record.init) {
        (Ok(Ok(())), Some(init)) if init.ended_unexecuted() => Ok(Err(
            "the container's init died before it could run its program".to_owned(),
        )),
        (outcome, _) => outcome,
    };
    if listener.is_some()
        && !matches!(outcome, Ok(Ok(())))
        && let Some(init) = container.init()
    {
        // It has no agent, or one that does not answer its execve: it will never run, or must not.
        let _ = send_signal(init.as_fd(), libc::SIGKILL);
    }
    let outcome = outcome.map_err(|e| {
        io_error(
            "start",
            format!("container {:?}, is its init gone?", container.record.id),
            e,
        )
    })?;
    outcome.map_err(refused)?;
    let state = process::state_text(&container.record, "running");
    let surroundings = Surroundings::of_runtime(&state, &container.record.bundle);
    hooks::run("poststart", &hooks.poststart, surroundings).map_err(|reason| {
        // The specification, Lifecycle: the container of a poststart hook that fails is stopped.
        match container.kill_init() {
            Ok(()) => refused(reason),
            Err(alive) => refused(format!("{reason}; {alive}")),
        }
    })
}

fn hand_over(agent: Agent<'_>, container: &Container, seccomp_fd: OwnedFd) -> Result<(), String> {
    let pid = container.record.init.map_or(0, |init| init.pid);
    let state = process::agent_state(&container.record, agent.metadata(), pid, "created");
    agent
        .hand_over(&state, seccomp_fd.as_fd())
        .map_err(|e| error_chain(&e))
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
