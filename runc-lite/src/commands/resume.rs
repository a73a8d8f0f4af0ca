//! `resume`: thaw a paused container.

use super::{CommandError, Globals, only_id, refused};
use crate::container::{Container, Status};

pub(super) fn run(globals: &Globals, parser: &mut lexopt::Parser) -> Result<(), CommandError> {
    let id = only_id(parser)?;
    let container = Container::open(&globals.root, &id)?;
    let paused = container.status() == Status::Paused;
    match container.cgroup().filter(|_| paused) {
        Some(group) => Ok(group.set_frozen(false)?),
        None => Err(refused("container not paused")),
    }
}
