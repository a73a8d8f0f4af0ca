//! A process that a record names, told from every later one with its number.

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// Process id.
    pub pid: i32,
    /// Clock ticks after boot, field 22 of proc_pid_stat(5).
    pub start_time: u64,
}

/// `PF_FORKNOEXEC` of linux/sched.h: set at the birth, cleared by execve(2) before it closes descriptors.
const FORKED_WITHOUT_EXEC: u32 = 0x40;

/// What `/proc/<pid>/stat` says about a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessStat {
    /// Clock ticks after boot.
    pub start_time: u64,
    /// Whether it has exited and waits to be reaped.
    pub is_dead: bool,
    /// Whether it has called execve(2) with success since its birth; to be asked of the dead as well.
    pub has_executed: bool,
}

/// Reads the state and start time of `pid`; `None` when there is no such process.
#[must_use]
pub fn process_stat(pid: i32) -> Option<ProcessStat> {
    parse_stat(&std::fs::read(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(stat: &[u8]) -> Option<ProcessStat> {
    // The command name is in parentheses and may contain anything, parentheses too.
    let end = stat.iter().rposition(|&b| b == b')')?;
    let rest = std::str::from_utf8(stat.get(end + 2..)?).ok()?;
    let mut fields = rest.split(' ');
    let state = fields.next()?;
    // Field 3 is consumed; the flags are field 9, the start time is field 22.
    let flags: u32 = fields.nth(5)?.parse().ok()?;
    let start_time = fields.nth(12)?.parse().ok()?;
    Some(ProcessStat {
        start_time,
        is_dead: matches!(state, "Z" | "X" | "x"),
        has_executed: flags & FORKED_WITHOUT_EXEC == 0,
    })
}

impl ProcessIdentity {
    /// The identity of a process that is alive or not yet reaped.
    #[must_use]
    pub fn of(pid: i32) -> Option<ProcessIdentity> {
        process_stat(pid).map(|stat| ProcessIdentity {
            pid,
            start_time: stat.start_time,
        })
    }

    /// Whether this very process, and no later one with its number, still runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        process_stat(self.pid)
            .is_some_and(|stat| stat.start_time == self.start_time && !stat.is_dead)
    }

    /// Whether this very process ended, or is about to, without ever having called execve(2) with success;
    /// false also when nothing is left of it to tell.
    #[must_use]
    pub fn ended_unexecuted(&self) -> bool {
        process_stat(self.pid)
            .is_some_and(|stat| stat.start_time == self.start_time && !stat.has_executed)
    }

    /// A pidfd of this very process; `None` when it has ended.
    #[must_use]
    pub fn pidfd(&self) -> Option<OwnedFd> {
        let pid = rustix::process::Pid::from_raw(self.pid)?;
        let fd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()?;
        // Order: the comparison comes after the open, so that the number cannot change hands between.
        self.is_alive().then_some(fd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_survives_hostile_command_names() {
        let line = b"42 (a) R 1 (b)) S 1 42 42 0 -1 4194624 1 0 0 0 0 0 0 0 20 0 1 0 777 0 0";
        assert_eq!(
            parse_stat(line),
            Some(ProcessStat {
                start_time: 777,
                is_dead: false,
                has_executed: false
            })
        );
        let line = b"42 (x) Z 1 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 778 0 0";
        assert_eq!(
            parse_stat(line),
            Some(ProcessStat {
                start_time: 778,
                is_dead: true,
                has_executed: true
            })
        );
        assert_eq!(parse_stat(b""), None);
    }

    #[test]
    fn a_reused_number_is_another_process() {
        let me = ProcessIdentity::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(me.pidfd().is_some());
        let later = ProcessIdentity {
            start_time: me.start_time + 1,
            ..me
        };
        assert!(!later.is_alive());
        assert!(later.pidfd().is_none());
    }
}
