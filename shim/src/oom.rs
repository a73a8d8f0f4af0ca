//! Tells an exit by the kernel's out-of-memory killer from other exits, by the cgroup's counter.

use crate::cgroup::Cgroup;

/// The exit status of a process that died of `SIGKILL`.
pub const KILLED: u32 = 137;

/// Remembers the counter of a container from when its process was created.
#[derive(Debug, Clone, Copy)]
pub struct OomWatch {
    before: u64,
}

impl OomWatch {
    /// Starts counting.
    #[must_use]
    pub fn start(cgroup: Option<&Cgroup>) -> Self {
        Self {
            before: cgroup.and_then(Cgroup::oom_kills).unwrap_or(0),
        }
    }

    /// Whether a process that ended with `status` was killed for memory. Ask before the group is
    /// removed.
    #[must_use]
    pub fn was_killed(self, cgroup: Option<&Cgroup>, status: u32) -> bool {
        status == KILLED && cgroup.and_then(Cgroup::oom_kills).unwrap_or(0) > self.before
    }
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
    }
}
