//! The only place that waits for children: the shim is sub-reaper, and every exit comes through here.
//!
//! A child that nobody watches yet is not lost: while a runtime command runs, exits of unknown pids
//! are kept, because the pid it reports at its end may have exited before.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use nix::sys::signal::SigSet;
use rustix::process::{Pid, PidfdFlags, WaitOptions, WaitStatus, pidfd_open, wait};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use crate::log;
use crate::task::table::lock;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// The exit code, or 128 plus the number of the signal that killed it.
    pub status: u32,
    /// When it was reaped.
    pub at: SystemTime,
}

/// Delivers the exit of one process.
pub type ExitReceiver = oneshot::Receiver<Exit>;

/// A process that a runtime command reported.
#[derive(Debug)]
pub struct Adopted {
    /// Holds the process; `None` if it is gone already.
    pub pidfd: Option<OwnedFd>,
    /// Its exit, at once if it is gone already.
    pub exit: ExitReceiver,
}

#[derive(Debug, Default)]
struct State {
    watched: HashMap<i32, oneshot::Sender<Exit>>,
    holds: usize,
    held: HashMap<i32, Exit>,
}

/// Owns all waits of the process.
#[derive(Debug, Default)]
pub struct Reaper {
    state: Mutex<State>,
}

/// While one exists, exits of unknown pids are kept.
#[derive(Debug)]
pub struct Hold<'a>(&'a Reaper);

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        state.holds = state.holds.saturating_sub(1);
        if state.holds == 0 {
            state.held = HashMap::new();
        }
    }
}

impl Reaper {
    /// Becomes sub-reaper and reaps from now on, within the current event loop.
    ///
    /// `SIGTERM`, `SIGINT` and `SIGHUP` no longer end the process. They are caught, neither ignored
    /// nor blocked: both of these would be inherited by every container.
    ///
    /// # Errors
    /// The kernel refuses one of the steps.
    pub fn start() -> io::Result<Arc<Self>> {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        SigSet::empty().thread_set_mask()?;
        for kind in [
            SignalKind::terminate(),
            SignalKind::interrupt(),
            SignalKind::hangup(),
        ] {
            // The handler stays when the stream is dropped; nobody has to read it.
            drop(signal(kind)?);
        }
        let children = signal(SignalKind::child())?;
        let reaper = Arc::new(Self::default());
        tokio::spawn(run(Arc::clone(&reaper), children));
        Ok(reaper)
    }

    /// Keeps exits of unknown pids until the answer is dropped.
    #[must_use]
    pub fn hold(&self) -> Hold<'_> {
        lock(&self.state).holds += 1;
        Hold(self)
    }

    /// Watches a child that was just spawned; there must be no await between the two.
    pub fn watch(&self, pid: i32) -> ExitReceiver {
        let (sender, receiver) = oneshot::channel();
        lock(&self.state).watched.insert(pid, sender);
        receiver
    }

    /// Takes over a process that a runtime command reported, within a [`Hold`] from before it ran.
    ///
    /// # Errors
    /// The process neither runs nor was reaped: the runtime reported a pid that is not a descendant.
    pub fn adopt(&self, pid: i32) -> io::Result<Adopted> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidData);
        let target = Pid::from_raw(pid).filter(|_| pid > 1).ok_or_else(invalid)?;
        // Order: nothing reaps between the open and the registration, since both are on the one thread.
        match pidfd_open(target, PidfdFlags::empty()) {
            Ok(pidfd) => {
                // A kept exit under this pid belongs to an earlier process of the same number.
                lock(&self.state).held.remove(&pid);
                Ok(Adopted {
                    pidfd: Some(pidfd),
                    exit: self.watch(pid),
                })
            }
            Err(error) => {
                let exit = lock(&self.state).held.remove(&pid).ok_or(error)?;
                let (sender, receiver) = oneshot::channel();
                let _ = sender.send(exit);
                Ok(Adopted {
                    pidfd: None,
                    exit: receiver,
                })
            }
        }
    }

    fn reap(&self) {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => self.ended(pid.as_raw_nonzero().get(), status),
                Ok(None) | Err(rustix::io::Errno::CHILD) => return,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return log::error(format_args!("wait for children: {error}")),
            }
        }
    }

    fn ended(&self, pid: i32, status: WaitStatus) {
        let Some(status) = exit_status(status) else {
            return;
        };
        let exit = Exit {
            status,
            at: SystemTime::now(),
        };
        let mut state = lock(&self.state);
        if let Some(watcher) = state.watched.remove(&pid) {
            let _ = watcher.send(exit);
        } else if state.holds > 0 {
            state.held.insert(pid, exit);
        }
    }
}

fn exit_status(status: WaitStatus) -> Option<u32> {
    let code = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => return None,
    };
    u32::try_from(code).ok()
}

async fn run(reaper: Arc<Reaper>, mut children: Signal) {
    loop {
        reaper.reap();
        // Order: a child that ends while others are reaped leaves another notice.
        if children.recv().await.is_none() {
            return log::error(format_args!("no more notices of ended children"));
        }
    }
}
