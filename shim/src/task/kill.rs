//! Signals: to one process by its pidfd, to a whole tree by its cgroup.

use std::collections::HashMap;
use std::fs;

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::cgroup::KILL_TIMEOUT;
use crate::error::VerbError;
use crate::pod::Pod;
use crate::sys::signal::{self, SignalNumber};
use crate::task::phase::Phase;
use crate::task::process::Process;
use crate::task::table::Task;

impl Pod {
    /// Sends a signal to a process, or with `all` to everything it started.
    ///
    /// # Errors
    /// It is not there, has not begun or has ended; the signal does not exist.
    pub async fn kill(
        &self,
        id: &str,
        exec_id: &str,
        number: u32,
        all: bool,
    ) -> Result<(), VerbError> {
        let task = self.tasks.get(id)?;
        let process = task.process(exec_id)?;
        let signal = SignalNumber::new(number).ok_or_else(|| VerbError::Field {
            field: "signal",
            reason: "must be a signal number".to_owned(),
            value: number.to_string(),
        })?;
        if exec_id.is_empty() {
            kill_task(&task, signal, all).await
        } else {
            kill_exec(&process, signal, all).await
        }
    }
}

/// Signals a container.
///
/// # Errors
/// It has not begun or has ended, or some of its processes survive.
pub async fn kill_task(task: &Task, signal: SignalNumber, all: bool) -> Result<(), VerbError> {
    check_alive(&task.init)?;
    let kills = signal == SignalNumber::KILL;
    let frozen = matches!(task.init.phase(), Phase::Paused | Phase::Pausing);
    match task.cgroup() {
        // The kernel ends the others with the first of a PID namespace, but not while it is frozen.
        Some(cgroup) if kills && (all || frozen || !task.has_own_pid_namespace()) => {
            if cgroup.kill_all().await {
                Ok(())
            } else {
                Err(late(&task.id))
            }
        }
        Some(cgroup) if all => {
            cgroup.signal_all(signal);
            Ok(())
        }
        _ => task.init.signal(signal),
    }
}

async fn kill_exec(process: &Process, signal: SignalNumber, all: bool) -> Result<(), VerbError> {
    if !all {
        check_alive(process)?;
        return process.signal(signal);
    }
    // What an exec started may outlive it, so `all` also serves one that has ended.
    match process.cgroup() {
        Some(cgroup) if signal == SignalNumber::KILL => {
            // Its first process in any case; it may have ended, which is no failure.
            let _ended = process.signal(signal);
            if cgroup.kill_all().await {
                Ok(())
            } else {
                Err(late(&process.id))
            }
        }
        Some(cgroup) => {
            cgroup.signal_all(signal);
            Ok(())
        }
        None => {
            check_alive(process)?;
            for pid in descendants(process.pid()) {
                let pidfd = pidfd_open(pid, PidfdFlags::empty());
                // A process that has ended meanwhile needs no signal.
                if let Ok(pidfd) = pidfd {
                    let _ = signal::send(std::os::fd::AsFd::as_fd(&pidfd), signal);
                }
            }
            process.signal(signal)
        }
    }
}

fn check_alive(process: &Process) -> Result<(), VerbError> {
    match process.phase() {
        Phase::Stopped | Phase::Deleting => Err(VerbError::Finished {
            id: process.id.clone(),
        }),
        _ if process.pid() == 0 => Err(VerbError::Precondition {
            id: process.id.clone(),
            reason: "the process has not started",
        }),
        _ => Ok(()),
    }
}

fn late(id: &str) -> VerbError {
    VerbError::Late {
        id: id.to_owned(),
        what: "killing all processes",
        seconds: KILL_TIMEOUT.as_secs(),
    }
}

/// The processes below `root`, by /proc. What was re-parented is not found: this is for runtimes
/// that cannot put an exec into a cgroup of its own.
fn descendants(root: u32) -> Vec<Pid> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in entries.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok()) {
        if let Some(parent) = parent_of(pid) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = Vec::new();
    let mut next = vec![root];
    while let Some(pid) = next.pop() {
        for child in children.remove(&pid).unwrap_or_default() {
            next.push(child);
            found.extend(i32::try_from(child).ok().and_then(Pid::from_raw));
        }
    }
    found
}

fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(1)?.parse().ok()
}
