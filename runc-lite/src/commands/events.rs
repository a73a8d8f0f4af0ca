//! `events`: statistics at intervals and out-of-memory kills, one JSON document a line, until the container
//! stops.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use lexopt::prelude::*;
use rustix::event::{PollFd, PollFlags, poll};
use serde::Serialize;

use super::{CommandError, Globals, io_error, parse_id, print, refused, text_value, usage};
use crate::cgroup::{Cgroup, Stats, stats};
use crate::container::{Container, Status};
use crate::error_chain;
use crate::process::timespec;

const DEFAULT_INTERVAL: Duration = Duration::from_secs(5);

#[derive(Serialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a Stats>,
}

pub(super) fn run(globals: &Globals, parser: &mut lexopt::Parser) -> Result<(), CommandError> {
    let (mut once, mut interval, mut id) = (false, DEFAULT_INTERVAL, None);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("stats") => once = true,
            Long("interval") => {
                let text = text_value(parser, "interval")?;
                interval = parse_duration(&text)
                    .ok_or_else(|| usage(format!("--interval {text:?} is not a duration")))?;
            }
            Value(value) if id.is_none() => id = Some(value),
            other => return Err(other.unexpected().into()),
        }
    }
    let id = parse_id(id)?;
    if interval.is_zero() {
        return Err(usage("--interval must be greater than 0"));
    }
    let container = Container::open(&globals.root, &id)?;
    let stopped = || refused(format!("container with id {} is not running", id.as_str()));
    if container.status() == Status::Stopped {
        return Err(stopped());
    }
    let group = container.cgroup().ok_or_else(stopped)?;
    if once {
        return write(id.as_str(), Some(&read_stats(&container, group.as_ref())?));
    }
    follow(globals, &container, group.as_ref(), interval)
}

fn follow(
    globals: &Globals,
    container: &Container,
    group: &dyn Cgroup,
    interval: Duration,
) -> Result<(), CommandError> {
    let id = container.record.id.as_str();
    let Some(init) = container.init() else {
        return Ok(());
    };
    let watch = match group.watch_oom() {
        Ok(watch) => Some(watch),
        Err(error) => {
            globals
                .log
                .warn(&format!("no out-of-memory events: {}", error_chain(&error)));
            None
        }
    };
    let mut next = Instant::now() + interval;
    loop {
        let left = next.saturating_duration_since(Instant::now());
        let timeout = timespec(left);
        let mut polled = vec![PollFd::new(&init, PollFlags::IN)];
        polled.extend(
            watch
                .as_ref()
                .map(|w| PollFd::from_borrowed_fd(w.as_fd(), PollFlags::IN)),
        );
        rustix::io::retry_on_intr(|| poll(&mut polled, Some(&timeout)))
            .map_err(|e| io_error("wait for", "events", e.into()))?;
        let ended = !polled[0].revents().is_empty();
        // Also at the end: the kill may be what ended it.
        for _ in 0..watch.as_ref().map_or(0, |watch| watch.take()) {
            write(id, None)?;
        }
        if ended {
            return Ok(());
        }
        if Instant::now() >= next {
            // The next one counts from the last, so that the work does not add up.
            next = (next + interval).max(Instant::now());
            match read_stats(container, group) {
                Ok(stats) => write(id, Some(&stats))?,
                // It stops just now; the next round sees it.
                Err(error) => globals.log.warn(&error_chain(&error)),
            }
        }
    }
}

fn read_stats(container: &Container, group: &dyn Cgroup) -> Result<Stats, CommandError> {
    let mut stats = group.stats()?;
    let interfaces = container.record.init.and_then(|init| {
        use std::os::unix::fs::MetadataExt;
        let namespace = |process: &str| {
            let found = std::fs::metadata(format!("/proc/{process}/ns/net")).ok()?;
            Some((found.dev(), found.ino()))
        };
        let process = init.pid.to_string();
        // The counters of the host are nobody's usage.
        if namespace(&process)? == namespace("self")? {
            return None;
        }
        let table = std::fs::read_to_string(format!("/proc/{process}/net/dev")).ok()?;
        // Order: asked after the read, so that the number was init's all along.
        init.is_alive().then(|| stats::network_interfaces(&table))
    });
    stats.network_interfaces = interfaces;
    Ok(stats)
}

/// Writes statistics, or without them an out-of-memory kill.
fn write(id: &str, data: Option<&Stats>) -> Result<(), CommandError> {
    let event = Event {
        kind: if data.is_some() { "stats" } else { "oom" },
        id,
        data,
    };
    let text =
        serde_json::to_string(&event).map_err(|e| io_error("print", "an event", e.into()))?;
    print(&format!("{text}\n"))
}

/// Numbers with units as runc takes them: `5s`, `100ms`, `1m30s`, `1.5h`; at most a year.
fn parse_duration(text: &str) -> Option<Duration> {
    const MAX: f64 = 366.0 * 86_400.0;
    let mut rest = text;
    let mut seconds = 0.0;
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let end = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let scale = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        seconds += number.parse::<f64>().ok()? * scale;
        rest = tail;
    }
    (!text.is_empty() && seconds <= MAX).then(|| Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        for (text, milliseconds) in [
            ("5s", 5000),
            ("100ms", 100),
            ("1m30s", 90_000),
            ("1.5s", 1500),
            ("0", 0),
            ("0s", 0),
        ] {
            assert_eq!(
                parse_duration(text),
                Some(Duration::from_millis(milliseconds)),
                "{text}"
            );
        }
        for text in ["", "5", "s", "-1s", "1d", "1s2", "..s", "99999999h"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }
}
