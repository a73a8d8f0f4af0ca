//! `kill`: send a signal to init, or with `-a` to every process of the container.

use std::os::fd::AsFd;

use lexopt::prelude::*;

use super::{CommandError, Globals, io_error, parse_id, refused, usage};
use crate::container::{Container, Status};
use crate::sys::send_signal;

/// Names by number, from 1 on, see signal(7).
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
/// As programs number real-time signals: the first two are taken by the C library.
const FIRST_REAL_TIME: i32 = 34;
const LAST_REAL_TIME: i32 = 64;

pub(super) fn run(globals: &Globals, parser: &mut lexopt::Parser) -> Result<(), CommandError> {
    let (mut all, mut id, mut signal) = (false, None, None);
    while let Some(argument) = parser.next()? {
        match argument {
            Short('a') | Long("all") => all = true,
            Value(value) if id.is_none() => id = Some(value),
            Value(value) if signal.is_none() => signal = Some(value),
            other => return Err(other.unexpected().into()),
        }
    }
    let id = parse_id(id)?;
    let signal = match &signal {
        None => libc::SIGTERM,
        Some(text) => text
            .to_str()
            .and_then(parse_signal)
            .ok_or_else(|| usage(format!("unknown signal {text:?}")))?,
    };
    let container = Container::open(&globals.root, &id)?;
    if all {
        return kill_all(&container, signal);
    }
    let status = container.status();
    let not_running = || refused("container not running");
    if signal == libc::SIGKILL && !container.record.private_pid_namespace {
        // No PID namespace ends with init: the rest of the container is ended by its cgroup, also when init
        // is gone already.
        let group = container.cgroup().ok_or_else(not_running)?;
        if group.processes().is_empty() {
            return Err(not_running());
        }
        return Ok(group.kill()?);
    }
    let init = container.init().ok_or_else(not_running)?;
    send_signal(init.as_fd(), signal).map_err(|e| match e.raw_os_error() {
        Some(libc::ESRCH) => not_running(),
        _ => io_error("signal", "init", e),
    })?;
    if signal == libc::SIGKILL {
        let Some(group) = container.cgroup() else {
            return Ok(());
        };
        if status == Status::Paused {
            // A frozen process dies when it is thawed.
            group.set_frozen(false)?;
        }
    }
    Ok(())
}

fn kill_all(container: &Container, signal: i32) -> Result<(), CommandError> {
    let Some(group) = container.cgroup() else {
        // A rootless container without a cgroup: with its init, its PID namespace ends.
        let init = container.init();
        return init.map_or(Ok(()), |init| {
            send_signal(init.as_fd(), signal).map_err(|e| io_error("signal", "init", e))
        });
    };
    if signal == libc::SIGKILL {
        Ok(group.kill()?)
    } else {
        Ok(group.signal(signal)?)
    }
}

/// `15`, `TERM`, `SIGTERM`, `RTMIN+1`, `SIGRTMAX-2`, in any case.
fn parse_signal(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        // Zero sends nothing and only asks whether there is somebody, as kill(2) has it.
        return (0..=LAST_REAL_TIME).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(at) = NAMES.iter().position(|known| *known == name) {
        return i32::try_from(at + 1).ok();
    }
    let number = if let Some(rest) = name.strip_prefix("RTMIN") {
        FIRST_REAL_TIME
            + if rest.is_empty() {
                0
            } else {
                rest.strip_prefix('+')?.parse().ok()?
            }
    } else {
        let rest = name.strip_prefix("RTMAX")?;
        let less: i32 = if rest.is_empty() {
            0
        } else {
            rest.strip_prefix('-')?.parse().ok()?
        };
        LAST_REAL_TIME.checked_sub(less)?
    };
    (FIRST_REAL_TIME..=LAST_REAL_TIME)
        .contains(&number)
        .then_some(number)
}

#[cfg(test)]
mod tests {
    use super::parse_signal;

    #[test]
    fn signals_have_numbers_and_names() {
        for (text, number) in [
            ("0", 0),
            ("9", 9),
            ("KILL", 9),
            ("SIGKILL", 9),
            ("sigterm", 15),
            ("SYS", 31),
            ("RTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            ("64", 64),
        ] {
            assert_eq!(parse_signal(text), Some(number), "{text}");
        }
        for text in [
            "", "65", "-9", "KILLER", "RTMIN-1", "RTMIN+31", "SIG", "RTMAX-31",
        ] {
            assert_eq!(parse_signal(text), None, "{text}");
        }
    }
}
