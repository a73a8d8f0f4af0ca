//! `create`: make a container whose init waits for `start`.

use std::path::PathBuf;

use lexopt::prelude::*;

use super::descriptors::{Passed, connect_pidfd_socket, keep_descriptors, send_pidfd};
use super::usage;
use super::{CommandError, Globals, absolute, number_value, parse_id, run_sealed};
use crate::container::Container;
use crate::process::{Console, CreateRequest, Created, create};
use crate::state::ContainerId;

/// Options that create and run share.
#[derive(Debug)]
pub(super) struct Options {
    bundle: PathBuf,
    pid_file: Option<PathBuf>,
    console_socket: Option<PathBuf>,
    pidfd_socket: Option<PathBuf>,
    preserve_fds: u32,
    pub(super) detach: bool,
    pub(super) keep: bool,
    pub(super) id: ContainerId,
}

/// Parses the options of create, and of run with its two more.
pub(super) fn parse(parser: &mut lexopt::Parser, is_run: bool) -> Result<Options, CommandError> {
    let mut bundle = PathBuf::from(".");
    let (mut pid_file, mut id) = (None, None);
    let (mut console_socket, mut pidfd_socket) = (None, None);
    let (mut preserve_fds, mut detach, mut keep) = (0, false, false);
    while let Some(argument) = parser.next()? {
        match argument {
            Short('b') | Long("bundle") => bundle = PathBuf::from(parser.value()?),
            Long("pid-file") => pid_file = Some(absolute(&PathBuf::from(parser.value()?))?),
            Long("console-socket") => {
                console_socket = Some(absolute(&PathBuf::from(parser.value()?))?);
            }
            Long("pidfd-socket") => {
                pidfd_socket = Some(absolute(&PathBuf::from(parser.value()?))?);
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
            // Orphans of the container go to whoever adopts them; this process only waits for its own child.
            Long("no-subreaper") if is_run => {}
            Value(value) if id.is_none() => id = Some(value),
            other => return Err(other.unexpected().into()),
        }
    }
    if is_run && !detach && console_socket.is_some() {
        return Err(usage(
            "--console-socket goes with --detach only: in the foreground the runtime has the terminal",
        ));
    }
    Ok(Options {
        bundle: absolute(&bundle)?,
        pid_file,
        console_socket,
        pidfd_socket,
        preserve_fds,
        detach,
        keep,
        id: parse_id(id)?,
    })
}

pub(super) fn run(globals: &Globals, parser: &mut lexopt::Parser) -> Result<(), CommandError> {
    let options = parse(parser, false)?;
    run_sealed(globals)?;
    let console = options.console();
    make(globals, &options, console).map(|_| ())
}

impl Options {
    /// Who takes the terminal when the runtime leaves.
    pub(super) fn console(&self) -> Console<'_> {
        self.console_socket
            .as_deref()
            .map_or(Console::Nobody, Console::Socket)
    }
}

/// Makes the container.
pub(super) fn make(
    globals: &Globals,
    options: &Options,
    console: Console<'_>,
) -> Result<Created, CommandError> {
    let passed = Passed::with_sockets(options.preserve_fds)?;
    let pidfd_socket = connect_pidfd_socket(options.pidfd_socket.as_deref())?;
    keep_descriptors(passed.count)?;
    if !globals.root_is_given {
        super::rootless::make_default_root(&globals.root)?;
    }
    let created = create(&CreateRequest {
        root: &globals.root,
        id: &options.id,
        bundle: &options.bundle,
        pid_file: options.pid_file.as_deref(),
        console,
        preserve_fds: passed.count,
        environment: &passed.environment,
        cgroup_driver: globals.cgroup_driver,
        rootless: globals.rootless,
        log: &globals.log,
    })?;
    globals.log.debug(|| {
        let pid = created.record.init.map_or(0, |init| init.pid);
        let bundle = options.bundle.display();
        format!(
            "container {:?} created from {bundle}, its init is process {pid}",
            options.id.as_str()
        )
    });
    let sent = pidfd_socket.map_or(Ok(()), |socket| send_pidfd(&socket, &created.pidfd));
    if let Err(error) = sent {
        // The caller waits for the handle in vain: the container is not there without it.
        let container = Container {
            directory: created.directory,
            record: created.record,
        };
        super::delete::remove(globals, &container)?;
        return Err(error);
    }
    Ok(created)
}
