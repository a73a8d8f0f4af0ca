//! `ps`: the processes of a container, by the host's ps(1) or as numbers.

use std::io::{Read, Seek, Write};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::Duration;

use lexopt::prelude::*;
use rustix::fs::MemfdFlags;

use super::{CommandError, Globals, io_error, parse_id, print, refused, text_value, usage};
use crate::container::Container;
use crate::process::wait_for_exit;

/// How long the host's ps(1) may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bound of what it may print.
const MAX_OUTPUT: u64 = 64 << 20;

pub(super) fn run(globals: &Globals, parser: &mut lexopt::Parser) -> Result<(), CommandError> {
    let mut format = "table".to_owned();
    let mut id = None;
    let mut arguments = Vec::new();
    while let Some(argument) = parser.next()? {
        match argument {
            Short('f') | Long("format") => format = text_value(parser, "format")?,
            Value(value) => {
                id = Some(value);
                // The rest belongs to ps, options and all.
                arguments = parser.raw_args()?.collect();
                break;
            }
            other => return Err(other.unexpected().into()),
        }
    }
    let id = parse_id(id)?;
    if format != "table" && format != "json" {
        return Err(usage(format!("--format {format:?} is not table or json")));
    }
    let container = Container::open(&globals.root, &id)?;
    let group = container
        .cgroup()
        .ok_or_else(|| refused("container has no cgroup"))?;
    let pids = group.processes();
    if format == "json" {
        let text = serde_json::to_string(&pids)
            .map_err(|e| io_error("print", "the processes", e.into()))?;
        return print(&format!("{text}\n"));
    }
    if arguments.is_empty() {
        arguments.push("-ef".into());
    }
    print(&select(&host_ps(&arguments)?, &pids)?)
}

/// What ps(1) prints for all processes of the host.
fn host_ps(arguments: &[std::ffi::OsString]) -> Result<String, CommandError> {
    let fail = |e: std::io::Error| io_error("run", "ps", e);
    // A file instead of a pipe: it takes everything, and the wait needs a bound.
    let memory = rustix::fs::memfd_create("ps", MemfdFlags::CLOEXEC).map_err(|e| fail(e.into()))?;
    let mut file = std::fs::File::from(memory);
    let mut child = Command::new("ps")
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(file.try_clone().map_err(fail)?)
        .stderr(file.try_clone().map_err(fail)?)
        .spawn()
        .map_err(fail)?;
    let pid = i32::try_from(child.id()).ok();
    let pid = pid.and_then(rustix::process::Pid::from_raw);
    let pid = pid.ok_or_else(|| refused("ps has no process id"))?;
    let handle = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
        .map_err(|e| fail(e.into()))?;
    if !wait_for_exit(handle.as_fd(), PATIENCE) {
        // It may end just now; wait reaps it either way.
        let _ = child.kill();
    }
    let status = child.wait().map_err(fail)?;
    file.rewind().map_err(fail)?;
    let mut output = Vec::new();
    file.take(MAX_OUTPUT)
        .read_to_end(&mut output)
        .map_err(fail)?;
    let output = String::from_utf8_lossy(&output).into_owned();
    if !status.success() {
        return Err(refused(format!("ps: {status}: {}", output.trim())));
    }
    Ok(output)
}

/// The header and the lines of `pids`.
fn select(output: &str, pids: &[i32]) -> Result<String, CommandError> {
    let mut lines = output.lines();
    let header = lines.next().unwrap_or_default();
    let column = header
        .split_whitespace()
        .position(|title| title == "PID")
        .ok_or_else(|| refused("couldn't find PID field in ps output"))?;
    let mut selected = Vec::new();
    // Writing to memory does not fail.
    let _ = writeln!(selected, "{header}");
    for line in lines {
        let pid = line.split_whitespace().nth(column);
        if pid
            .and_then(|pid| pid.parse().ok())
            .is_some_and(|pid: i32| pids.binary_search(&pid).is_ok())
        {
            let _ = writeln!(selected, "{line}");
        }
    }
    Ok(String::from_utf8_lossy(&selected).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_the_container_stay() {
        let output = "UID    PID CMD\nroot     1 init\nroot    12 sh 7\nroot   120 7\n\n";
        assert_eq!(
            select(output, &[7, 12]).unwrap(),
            "UID    PID CMD\nroot    12 sh 7\n"
        );
        assert_eq!(select(output, &[]).unwrap(), "UID    PID CMD\n");
        assert!(select("COMMAND\nsh\n", &[1]).is_err());
    }
}
