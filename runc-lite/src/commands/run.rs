//! `run`: create, start, and unless detached wait and delete.

use std::os::fd::AsFd;

use super::create::{make, parse};
use super::delete::remove;
use super::{CommandError, Globals, io_error, run_sealed};
use crate::container::Container;
use crate::process::{Console, Relay, forward_signals_until_exit};

pub(super) fn run(globals: &Globals, parser: &mut lexopt::Parser) -> Result<u8, CommandError> {
    let options = parse(parser, true)?;
    run_sealed(globals)?;
    // Order: blocked before there is a child, so that no signal is lost.
    let blocked = if options.detach {
        None
    } else {
        let set = crate::sys::block_all_signals();
        Some(set.map_err(|e| io_error("block", "signals", e))?)
    };
    let relay = if options.detach {
        None
    } else {
        let made = Relay::new();
        Some(made.map_err(|e| io_error("make", "the console socket", e))?)
    };
    let console = match &relay {
        Some(relay) => Console::Runtime(relay.sender()),
        None => options.console(),
    };
    let created = make(globals, &options, console)?;
    let container = Container {
        directory: created.directory,
        record: created.record,
    };
    let started = super::start::start(&container);
    if started.is_err() {
        // The container never ran: nobody but this command knows of it.
        let removed = remove(globals, &container);
        started?;
        removed?;
    }
    let (Some(blocked), Some(init)) = (blocked, container.record.init) else {
        return Ok(0);
    };
    // Order: let go of while the program runs, so that others can delete the container under it.
    container.directory.unlock()?;
    let pidfd = created.pidfd.as_fd();
    let code = match relay.filter(|_| created.plan.process.terminal) {
        Some(relay) => relay.until_exit(init.pid, pidfd, &blocked),
        None => forward_signals_until_exit(init.pid, pidfd, &blocked),
    };
    let code = code.map_err(|e| io_error("wait for", "the container", e))?;
    if !options.keep {
        container.directory.lock()?;
        if container.directory.is_current() {
            remove(globals, &container)?;
        }
    }
    Ok(u8::try_from(code).unwrap_or(u8::MAX))
}
