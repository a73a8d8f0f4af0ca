//! One process of a task, its init or an exec: phase, pid, streams and exit.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex};

use tokio::sync::watch;

use crate::cgroup::ExecCgroup;
use crate::error::VerbError;
use crate::reaper::Exit;
use crate::stdio::{IoSpec, ProcessIo};
use crate::sys::signal::{self, SignalNumber};
use crate::task::phase::{Event, Phase};
use crate::task::table::lock;

/// What exists only while the process does.
#[derive(Debug, Default)]
struct Live {
    pid: u32,
    pidfd: Option<Arc<OwnedFd>>,
    io: ProcessIo,
    cgroup: Option<ExecCgroup>,
}

/// What became of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Pending,
    Ended(Exit),
    /// It was given up before it ran.
    Never,
}

/// A process.
#[derive(Debug)]
pub struct Process {
    /// The task's id, or the exec's.
    pub id: String,
    /// Its streams, as the request named them.
    pub io_spec: IoSpec,
    /// The OCI process document of an exec; empty for an init.
    pub document: Vec<u8>,
    phase: watch::Sender<Phase>,
    outcome: watch::Sender<Outcome>,
    live: Mutex<Live>,
}

impl Process {
    /// A process in `phase`.
    #[must_use]
    pub fn new(id: String, io_spec: IoSpec, document: Vec<u8>, phase: Phase) -> Self {
        Self {
            id,
            io_spec,
            document,
            phase: watch::channel(phase).0,
            outcome: watch::channel(Outcome::Pending).0,
            live: Mutex::default(),
        }
    }

    /// Its phase.
    #[must_use]
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Takes a transition.
    ///
    /// # Errors
    /// It does not fit; nothing changed.
    pub fn apply(&self, event: Event) -> Result<(), VerbError> {
        let mut result = Ok(());
        self.phase
            .send_if_modified(|phase| match phase.apply(event) {
                Ok(next) => std::mem::replace(phase, next) != next,
                Err(source) => {
                    result = Err(VerbError::Phase {
                        id: self.id.clone(),
                        source,
                    });
                    false
                }
            });
        result
    }

    /// Waits until no `create` or `start` runs.
    pub async fn settled(&self) {
        let mut phase = self.phase.subscribe();
        let settled = |p: &Phase| !matches!(p, Phase::Creating | Phase::Starting);
        // The sender lives in `self`.
        let _ = phase.wait_for(settled).await;
    }

    /// Takes note of the running process.
    pub fn set_live(&self, pid: u32, pidfd: Option<OwnedFd>, io: ProcessIo) {
        let mut live = lock(&self.live);
        live.pid = pid;
        live.pidfd = pidfd.map(Arc::new);
        live.io = io;
    }

    /// Takes note of the cgroup of an exec.
    pub fn set_cgroup(&self, cgroup: Option<ExecCgroup>) {
        lock(&self.live).cgroup = cgroup;
    }

    /// The cgroup of an exec.
    #[must_use]
    pub fn cgroup(&self) -> Option<ExecCgroup> {
        lock(&self.live).cgroup.clone()
    }

    /// Its pid; 0 before there is one.
    #[must_use]
    pub fn pid(&self) -> u32 {
        lock(&self.live).pid
    }

    /// Its streams.
    #[must_use]
    pub fn io(&self) -> ProcessIo {
        lock(&self.live).io.clone()
    }

    /// Gives up its streams and its pidfd.
    pub fn release(&self) {
        let mut live = lock(&self.live);
        live.io = ProcessIo::default();
        live.pidfd = None;
    }

    /// Records the exit and tells everyone who waits. Order: what an exit promises (the log, the
    /// exit record) is done before.
    pub fn exited(&self, exit: Exit) {
        self.outcome.send_replace(Outcome::Ended(exit));
        // Every phase a live process can be in takes this event.
        if let Err(error) = self.apply(Event::Exited) {
            crate::log::error(format_args!("{error}"));
        }
        lock(&self.live).pidfd = None;
    }

    /// How it ended, if it did.
    #[must_use]
    pub fn exit(&self) -> Option<Exit> {
        match *self.outcome.borrow() {
            Outcome::Ended(exit) => Some(exit),
            Outcome::Pending | Outcome::Never => None,
        }
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// The process was deleted without ever running.
    pub async fn wait(&self) -> Result<Exit, VerbError> {
        let mut outcome = self.outcome.subscribe();
        let settled = outcome.wait_for(|outcome| *outcome != Outcome::Pending);
        match settled.await.as_deref() {
            Ok(Outcome::Ended(exit)) => Ok(*exit),
            _ => Err(VerbError::Precondition {
                id: self.id.clone(),
                reason: "the process was deleted before it ran",
            }),
        }
    }

    /// Tells everyone who waits that the process will not run. Changes nothing once it has ended.
    pub fn give_up(&self) {
        self.outcome.send_if_modified(|outcome| {
            let pending = *outcome == Outcome::Pending;
            if pending {
                *outcome = Outcome::Never;
            }
            pending
        });
    }

    /// Sends a signal to the process alone.
    ///
    /// # Errors
    /// It has ended, or has not begun.
    pub fn signal(&self, number: SignalNumber) -> Result<(), VerbError> {
        let finished = || VerbError::Finished {
            id: self.id.clone(),
        };
        let pidfd = lock(&self.live).pidfd.clone().ok_or_else(finished)?;
        signal::send(pidfd.as_fd(), number).map_err(|source| {
            if source.raw_os_error() == Some(libc::ESRCH) {
                finished()
            } else {
                VerbError::Io {
                    action: "signal",
                    path: self.id.clone().into(),
                    source,
                }
            }
        })
    }
}
