//! Tells an exit by the kernel's out-of-memory killer from other exits, by the cgroup's counter.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::AbortHandle;

use crate::cgroup::Cgroup;
use crate::log;
use crate::sys::descriptor::watch;

/// The exit status of a process that died of `SIGKILL`.
pub const KILLED: u32 = 137;

/// After a notice the counter is read again this much later each time: the kernel tells of a file's
/// changes at most every 10 ms (`cgroup_file_notify`), and of the first in a row at once.
const PAUSES: [Duration; 5] = [
    Duration::from_millis(0),
    Duration::from_millis(1),
    Duration::from_millis(2),
    Duration::from_millis(4),
    Duration::from_millis(8),
];

/// Remembers the counter of a container from when its process was created.
#[derive(Debug)]
pub struct OomWatch {
    before: u64,
    follower: Option<Follower>,
}

/// Follows the counter while the group exists. systemd removes a scope, and the counter with it, as
/// soon as the last process is gone: it would be too late to read it when the exit is known.
#[derive(Debug)]
struct Follower {
    last: Arc<AtomicU64>,
    task: AbortHandle,
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl OomWatch {
    /// Starts counting, within the event loop. `vanishes` says that somebody other than the OCI
    /// runtime removes the group.
    #[must_use]
    pub fn start(cgroup: Option<&Cgroup>, vanishes: bool) -> Self {
        let before = cgroup.and_then(Cgroup::oom_kills).unwrap_or(0);
        let events = cgroup.filter(|_| vanishes).and_then(Cgroup::memory_events);
        let follower = events.and_then(|events| {
            let started = Follower::start(events, before);
            started
                .inspect_err(|error| log::warn(format_args!("watch memory.events: {error}")))
                .ok()
        });
        Self { before, follower }
    }

    /// Whether a process that ended with `status` was killed for memory. Ask before the group is
    /// removed.
    #[must_use]
    pub fn was_killed(&self, cgroup: Option<&Cgroup>, status: u32) -> bool {
        if status != KILLED {
            return false;
        }
        let now = cgroup.and_then(Cgroup::oom_kills).unwrap_or(0);
        let followed = self.follower.as_ref();
        let seen = followed.map_or(0, |follower| follower.last.load(Ordering::Relaxed));
        now.max(seen) > self.before
    }
}

impl Follower {
    fn start(events: File, before: u64) -> io::Result<Self> {
        let last = Arc::new(AtomicU64::new(before));
        // The kernel tells of a change by POLLPRI (cgroup v2, "file modified event").
        let events = watch(events.into(), Interest::PRIORITY)?;
        let task = tokio::spawn(follow(events, Arc::clone(&last))).abort_handle();
        Ok(Self { last, task })
    }
}

/// Ends with the group: its files then answer `ENODEV`.
async fn follow(events: AsyncFd<OwnedFd>, last: Arc<AtomicU64>) {
    let read = || {
        let text = read_events(events.get_ref()).ok()?;
        last.fetch_max(parse_kills(&text)?, Ordering::Relaxed);
        Some(parse_limit_hits(&text))
    };
    let Some(mut hits) = read() else { return };
    loop {
        match events.ready(Interest::PRIORITY).await {
            Ok(mut guard) => guard.clear_ready(),
            Err(_) => return,
        }
        for pause in PAUSES {
            tokio::time::sleep(pause).await;
            let Some(now) = read() else { return };
            // Only a group at its limit is about to lose a process.
            if now == hits && pause.is_zero() {
                break;
            }
            hits = now;
        }
    }
}

fn read_events(events: &OwnedFd) -> io::Result<String> {
    // The whole file has some 100 bytes.
    let mut buffer = [0; 1024];
    let count = rustix::io::pread(events, &mut buffer, 0)?;
    Ok(String::from_utf8_lossy(&buffer[..count]).into_owned())
}

/// How often the group was at its limit: the `max` line of `memory.events`.
fn parse_limit_hits(text: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix("max "));
    line.and_then(|count| count.trim().parse().ok())
        .unwrap_or(0)
}

/// Reads the `oom_kill` line of `memory.events` (v2) or `memory.oom_control` (v1).
#[must_use]
pub fn parse_kills(text: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill "))
        .and_then(|count| count.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_forms() {
        let v1 = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n";
        let v2 = "low 0\nhigh 0\nmax 12\noom 2\noom_kill 1\noom_group_kill 0\n";
        assert_eq!(parse_kills(v1), Some(3));
        assert_eq!(parse_kills(v2), Some(1));
        assert_eq!(parse_kills("oom_kill_disable 0\n"), None);
        assert_eq!((parse_limit_hits(v2), parse_limit_hits(v1)), (12, 0));
    }
}
