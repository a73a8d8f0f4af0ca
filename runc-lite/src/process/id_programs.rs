//! newuidmap(1) and newgidmap(1): the set-uid programs that give an ordinary user the ids of subuid(5).

use std::io::{Read, Seek};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::error::{ProcessError, io_error};
use super::wait::wait_for_exit;
use crate::plan::IdMapping;

/// Bound of one call; it reads two small files and writes one.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    User,
    Group,
}

impl Kind {
    fn program(self) -> &'static str {
        match self {
            Kind::User => "newuidmap",
            Kind::Group => "newgidmap",
        }
    }

    fn field(self) -> &'static str {
        match self {
            Kind::User => "linux.uidMappings",
            Kind::Group => "linux.gidMappings",
        }
    }
}

/// Lets the program write the ids of process `pid`, found in the caller's PATH.
pub(super) fn run(kind: Kind, pid: i32, mappings: &[IdMapping]) -> Result<(), ProcessError> {
    let program = kind.program();
    let refuse = |reason: String| ProcessError::Host {
        field: kind.field().to_owned(),
        value: format!("{} entries", mappings.len()),
        reason,
    };
    let fail = |e: std::io::Error| io_error("run", program, e);
    // Ids in memory instead of pipes: a program that talks a lot cannot make the runtime wait.
    let mut said = memfd_create("id program output", MemfdFlags::CLOEXEC)
        .map(std::fs::File::from)
        .map_err(|e| fail(e.into()))?;
    let mut command = Command::new(program);
    command.arg(pid.to_string()).stdin(Stdio::null());
    for m in mappings {
        command.args([m.container, m.host, m.size].map(|number| number.to_string()));
    }
    command.stdout(Stdio::null());
    command.stderr(said.try_clone().map_err(fail)?);
    let mut child = match command.spawn() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(refuse(format!(
                "need {program} (package uidmap), which is not installed: an ordinary user may map \
                 a single id, its own"
            )));
        }
        other => other.map_err(fail)?,
    };
    let handle = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pidfd = handle.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    if !pidfd.is_none_or(|pidfd| wait_for_exit(pidfd.as_fd(), PATIENCE)) {
        let _ = child.kill();
        let _ = child.wait();
        return Err(refuse(format!(
            "{program} was not done after {} s",
            PATIENCE.as_secs()
        )));
    }
    let status = child.wait().map_err(fail)?;
    if status.success() {
        return Ok(());
    }
    let mut text = Vec::new();
    let _ = said
        .rewind()
        .and_then(|()| said.take(1024).read_to_end(&mut text));
    let text = String::from_utf8_lossy(&text);
    Err(refuse(format!(
        "are refused by {program}, {status}: {}",
        text.trim()
    )))
}
