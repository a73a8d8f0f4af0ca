//! `create`: make a container whose init waits for `start`.

use std::path::PathBuf;

use lexopt::prelude::*;

use super::usage;
use super::{
    CommandError, Globals, absolute, keep_descriptors, number_value, parse_id, run_sealed,
};
use crate::process::{CreateRequest, Created, create};
use crate::state::ContainerId;

/// Options that create and run share.
#[derive(Debug)]
pub(super) struct Options {
    bundle: PathBuf,
    pid_file: Option<PathBuf>,
    console_socket: Option<PathBuf>,
    preserve_fds: u32,
    pub(super) detach: bool,
    pub(super) keep: bool,
    pub(super) id: ContainerId,
}

/// Parses the options of create, and of run with its two more.
pub(super) fn parse(parser: &mut lexopt::Parser, is_run: bool) -> Result<Options, CommandError> {
    let mut bundle = PathBuf::from(".");
    let (mut pid_file, mut console_socket, mut id) = (None, None, None);
    let (mut preserve_fds, mut detach, mut keep) = (0, false, false);
    while let Some(argument) = parser.next()? {
        match argument {
            Short('b') | Long("bundle") => bundle = PathBuf::from(parser.value()?),
            Long("pid-file") => pid_file = Some(absolute(&PathBuf::from(parser.value()?))?),
            Long("console-socket") => {
                console_socket = Some(absolute(&PathBuf::from(parser.value()?))?);
            }
            Long("preserve-fds") => preserve_fds = number_value(parser, "preserve-fds")?,
            Long("no-pivot") => {
                return Err(usage(
                    "--no-pivot is refused: without pivot_root the host's /proc could be uncovered",
                ));
            }
            // The keyring is always the container's own.
            Long("no-new-keyring") => {
                return Err(usage(
                    "--no-new-keyring is refused: containers get their own keyring",
                ));
            }
            Short('d') | Long("detach") if is_run => detach = true,
            Long("keep") if is_run => keep = true,
            Value(value) if id.is_none() => id = Some(value),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Options {
        bundle: absolute(&bundle)?,
        pid_file,
        console_socket,
        preserve_fds,
        detach,
        keep,
        id: parse_id(id)?,
    })
}

pub(super) fn run(globals: &Globals, parser: &mut lexopt::Parser) -> Result<(), CommandError> {
    let options = parse(parser, false)?;
    run_sealed(globals)?;
    make(globals, &options).map(|_| ())
}

/// Makes the container.
pub(super) fn make(globals: &Globals, options: &Options) -> Result<Created, CommandError> {
    keep_descriptors(options.preserve_fds)?;
    Ok(create(&CreateRequest {
        root: &globals.root,
        id: &options.id,
        bundle: &options.bundle,
        pid_file: options.pid_file.as_deref(),
        console_socket: options.console_socket.as_deref(),
        preserve_fds: options.preserve_fds,
        cgroup_driver: globals.cgroup_driver,
        log: &globals.log,
    })?)
}
