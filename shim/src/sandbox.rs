//! The sandbox of the pod: a process of its own only where its bundle describes one.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axil_proto::shim::options::Options;
use tokio::sync::watch;

use crate::error::VerbError;
use crate::log;
use crate::pod::Pod;
use crate::reaper::Exit;
use crate::stdio::IoSpec;
use crate::sys::signal::SignalNumber;
use crate::task::create::CreateOptions;
use crate::task::kill::kill_task;
use crate::task::phase::Phase;
use crate::task::table::{Task, lock};

/// How long a sandbox process may take to die of `SIGKILL`.
const DEATH_TIMEOUT: Duration = Duration::from_secs(10);

/// How far the sandbox is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Created,
    Starting,
    Ready(SystemTime),
    Stopped(SystemTime, Exit),
}

/// A sandbox.
#[derive(Debug)]
pub struct Sandbox {
    id: String,
    bundle: PathBuf,
    options: Options,
    state: watch::Sender<State>,
}

/// What is told about a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SandboxView {
    /// The sandbox process, or the shim where there is none.
    pub pid: u32,
    /// Whether it is ready.
    pub ready: bool,
    /// When it became ready.
    pub created_at: Option<SystemTime>,
    /// How it ended.
    pub exit: Option<Exit>,
}

impl Sandbox {
    fn has_process(&self) -> bool {
        self.bundle.join("config.json").is_file()
    }
}

impl Pod {
    /// Takes note of the sandbox.
    ///
    /// # Errors
    /// There is one already, or its bundle is no absolute path.
    pub fn create_sandbox(
        &self,
        id: String,
        bundle: &Path,
        options: Options,
    ) -> Result<(), VerbError> {
        if !bundle.is_absolute() {
            return Err(VerbError::Field {
                field: "bundle_path",
                reason: "must be an absolute path".to_owned(),
                value: bundle.display().to_string(),
            });
        }
        let mut sandbox = lock(&self.sandbox);
        if let Some(sandbox) = &*sandbox {
            return Err(VerbError::Exists {
                what: "sandbox",
                id: sandbox.id.clone(),
            });
        }
        *sandbox = Some(Arc::new(Sandbox {
            id,
            bundle: bundle.to_owned(),
            options,
            state: watch::channel(State::Created).0,
        }));
        Ok(())
    }

    /// The sandbox with this id.
    ///
    /// # Errors
    /// There is none.
    pub fn find_sandbox(&self, id: &str) -> Result<Arc<Sandbox>, VerbError> {
        let sandbox = lock(&self.sandbox).clone();
        sandbox
            .filter(|sandbox| sandbox.id == id)
            .ok_or_else(|| VerbError::NoSandbox { id: id.to_owned() })
    }

    fn sandbox_task(&self, sandbox: &Sandbox) -> Option<Arc<Task>> {
        self.tasks.get(&sandbox.id).ok().filter(|t| t.is_sandbox)
    }

    /// Starts the sandbox, with a process if its bundle has a `config.json`.
    ///
    /// # Errors
    /// It was started before, or the runtime fails; then it may be tried again.
    pub async fn start_sandbox(self: &Arc<Self>, id: &str) -> Result<SandboxView, VerbError> {
        let sandbox = self.find_sandbox(id)?;
        let begun = sandbox.state.send_if_modified(|state| {
            let fits = *state == State::Created;
            if fits {
                *state = State::Starting;
            }
            fits
        });
        if !begun {
            return Err(VerbError::Precondition {
                id: id.to_owned(),
                reason: "the sandbox was started before",
            });
        }
        if sandbox.has_process()
            && let Err(error) = self.start_sandbox_process(&sandbox).await
        {
            sandbox.state.send_replace(State::Created);
            return Err(error);
        }
        let since = SystemTime::now();
        sandbox.state.send_replace(State::Ready(since));
        if let Some(task) = self.sandbox_task(&sandbox) {
            let sandbox = Arc::clone(&sandbox);
            tokio::spawn(async move {
                if let Ok(exit) = task.init.wait().await {
                    sandbox.state.send_replace(State::Stopped(since, exit));
                }
            });
        }
        Ok(self.view(&sandbox))
    }

    async fn start_sandbox_process(self: &Arc<Self>, sandbox: &Sandbox) -> Result<(), VerbError> {
        let options = CreateOptions {
            id: sandbox.id.clone(),
            bundle: sandbox.bundle.clone(),
            rootfs: Vec::new(),
            io: IoSpec::default(),
            options: sandbox.options.clone(),
            is_sandbox: true,
        };
        self.create(options).await?;
        if let Err(error) = self.start(&sandbox.id, "").await {
            self.remove_sandbox_process(sandbox).await?;
            return Err(error);
        }
        Ok(())
    }

    /// What is known of the sandbox.
    #[must_use]
    pub fn view(&self, sandbox: &Sandbox) -> SandboxView {
        let pid = match self.sandbox_task(sandbox) {
            Some(task) => task.init.pid(),
            None => std::process::id(),
        };
        let state = *sandbox.state.borrow();
        let (created_at, exit) = match state {
            State::Created | State::Starting => (None, None),
            State::Ready(since) => (Some(since), None),
            State::Stopped(since, exit) => (Some(since), Some(exit)),
        };
        SandboxView {
            pid,
            ready: matches!(state, State::Ready(_)),
            created_at,
            exit,
        }
    }

    /// Stops the sandbox: `SIGTERM`, then after `grace` `SIGKILL`. A stopped one stays stopped.
    ///
    /// # Errors
    /// There is no such sandbox, or its process survives.
    pub async fn stop_sandbox(&self, id: &str, grace: Duration) -> Result<(), VerbError> {
        let sandbox = self.find_sandbox(id)?;
        let exit = match self.sandbox_task(&sandbox) {
            Some(task) => {
                let exit = stop_process(&task, grace).await?;
                self.delete_task(&task).await?;
                exit
            }
            None => Exit {
                status: 0,
                at: SystemTime::now(),
            },
        };
        sandbox.state.send_if_modified(|state| {
            let since = match *state {
                State::Stopped(..) => return false,
                State::Ready(since) => since,
                State::Created | State::Starting => exit.at,
            };
            *state = State::Stopped(since, exit);
            true
        });
        Ok(())
    }

    /// Waits until the sandbox has stopped.
    ///
    /// # Errors
    /// There is no such sandbox.
    pub async fn wait_sandbox(&self, id: &str) -> Result<Exit, VerbError> {
        let sandbox = self.find_sandbox(id)?;
        let mut state = sandbox.state.subscribe();
        loop {
            if let State::Stopped(_, exit) = *state.borrow_and_update() {
                return Ok(exit);
            }
            state.changed().await.map_err(|_| VerbError::Lost)?;
        }
    }

    /// Ends the shim, unless containers run.
    ///
    /// # Errors
    /// A container runs, or the sandbox process cannot be removed.
    pub async fn shutdown_sandbox(&self, id: &str) -> Result<(), VerbError> {
        let sandbox = self.find_sandbox(id)?;
        if let Some(id) = self.tasks.running_container() {
            return Err(VerbError::Precondition {
                id,
                reason: "the container still runs",
            });
        }
        self.remove_sandbox_process(&sandbox).await?;
        *lock(&self.sandbox) = None;
        self.shutdown.notify_one();
        Ok(())
    }

    async fn remove_sandbox_process(&self, sandbox: &Sandbox) -> Result<(), VerbError> {
        if let Some(task) = self.sandbox_task(sandbox) {
            stop_process(&task, Duration::ZERO).await?;
            self.delete_task(&task).await?;
        }
        Ok(())
    }

    /// Ends the shim if nothing is left to look after, as the task service's `Shutdown` asks.
    pub fn shutdown_if_idle(&self) {
        if self.tasks.is_empty() && lock(&self.sandbox).is_none() {
            self.shutdown.notify_one();
        } else {
            log::debug(format_args!("shutdown is put off: the pod is in use"));
        }
    }
}

async fn stop_process(task: &Task, grace: Duration) -> Result<Exit, VerbError> {
    if !grace.is_zero() && task.init.phase() == Phase::Running {
        ignore_finished(kill_task(task, SignalNumber::TERM, false).await)?;
        if let Ok(exit) = tokio::time::timeout(grace, task.init.wait()).await {
            return exit;
        }
    }
    if task.init.exit().is_none() {
        ignore_finished(kill_task(task, SignalNumber::KILL, true).await)?;
    }
    let death = tokio::time::timeout(DEATH_TIMEOUT, task.init.wait()).await;
    death.map_err(|_| VerbError::Late {
        id: task.id.clone(),
        what: "the death of the sandbox process",
        seconds: DEATH_TIMEOUT.as_secs(),
    })?
}

fn ignore_finished(result: Result<(), VerbError>) -> Result<(), VerbError> {
    match result {
        Err(VerbError::Finished { .. }) => Ok(()),
        other => other,
    }
}
