//! The small verbs on a running container: pause, resume, update, pids, terminal, input, log.

use axil_proto::shim::events::{TaskPaused, TaskResumed};

use crate::error::VerbError;
use crate::pod::Pod;
use crate::runtime::{Call, CallStdio};
use crate::task::create::LOG_FILE;
use crate::task::phase::{Event, Phase};
use crate::task::table::Task;

/// Largest resources document, in bytes.
const RESOURCES_LIMIT: usize = 1 << 20;

impl Pod {
    /// Freezes a container.
    ///
    /// # Errors
    /// It does not run, or the runtime fails.
    pub async fn pause(&self, id: &str) -> Result<(), VerbError> {
        let task = self.tasks.get(id)?;
        task.init.apply(Event::PauseBegun)?;
        let paused = self.simple(&task, "pause").await;
        task.init.apply(match paused {
            Ok(()) => Event::PauseDone,
            Err(_) => Event::PauseFailed,
        })?;
        paused?;
        self.events.publish(&TaskPaused {
            container_id: task.id.clone(),
        });
        Ok(())
    }

    /// Thaws a container.
    ///
    /// # Errors
    /// It is not paused, or the runtime fails.
    pub async fn resume(&self, id: &str) -> Result<(), VerbError> {
        let task = self.tasks.get(id)?;
        if task.init.phase() != Phase::Paused {
            // Asks the phase machine for its words.
            task.init.apply(Event::Resumed)?;
        }
        self.simple(&task, "resume").await?;
        task.init.apply(Event::Resumed)?;
        self.events.publish(&TaskResumed {
            container_id: task.id.clone(),
        });
        Ok(())
    }

    async fn simple(&self, task: &Task, command: &'static str) -> Result<(), VerbError> {
        let log = task.bundle.join(LOG_FILE);
        let call = Call::new(command, &log).arg(&task.id);
        Ok(task.runtime.run(&self.reaper, call).await?)
    }

    /// Changes the resources of a container; `resources` is OCI JSON.
    ///
    /// # Errors
    /// It has ended, the document is too large, or the runtime fails.
    pub async fn update(&self, id: &str, resources: Vec<u8>) -> Result<(), VerbError> {
        let task = self.tasks.get(id)?;
        if !task.init.phase().is_alive() {
            return Err(VerbError::Precondition {
                id: task.id.clone(),
                reason: "resources of a stopped container cannot change",
            });
        }
        if resources.is_empty() || resources.len() > RESOURCES_LIMIT {
            return Err(VerbError::Field {
                field: "resources",
                reason: format!("must have 1 to {RESOURCES_LIMIT} bytes"),
                value: resources.len().to_string(),
            });
        }
        let log = task.bundle.join(LOG_FILE);
        let call = Call::new("update", &log)
            .arg("--resources")
            .arg("-")
            .arg(&task.id)
            .stdio(CallStdio::Input(resources));
        Ok(task.runtime.run(&self.reaper, call).await?)
    }

    /// The pids of a container, each with the exec it is the first process of.
    ///
    /// # Errors
    /// There is no such container.
    pub fn pids(&self, id: &str) -> Result<Vec<(u32, Option<String>)>, VerbError> {
        let task = self.tasks.get(id)?;
        let execs = task.execs();
        let exec_of = |pid: u32| {
            let exec = execs.iter().find(|e| e.pid() == pid && e.exit().is_none());
            exec.map(|e| e.id.clone())
        };
        let pids = match task.cgroup() {
            Some(cgroup) => cgroup.pids(),
            None if task.init.phase().is_alive() => vec![task.init.pid()],
            None => Vec::new(),
        };
        Ok(pids.into_iter().map(|pid| (pid, exec_of(pid))).collect())
    }

    /// Sets the size of a terminal, in characters.
    ///
    /// # Errors
    /// The process is not there or has no terminal, or a size is out of range.
    pub fn resize(
        &self,
        id: &str,
        exec_id: &str,
        width: u32,
        height: u32,
    ) -> Result<(), VerbError> {
        let process = self.tasks.get(id)?.process(exec_id)?;
        let size = |field: &'static str, value: u32| {
            u16::try_from(value).map_err(|_| VerbError::Field {
                field,
                reason: "must be at most 65535".to_owned(),
                value: value.to_string(),
            })
        };
        let (columns, rows) = (size("width", width)?, size("height", height)?);
        match process.io().resize(columns, rows) {
            Some(Ok(())) => Ok(()),
            Some(Err(source)) => Err(VerbError::Io {
                action: "resize the terminal of",
                path: process.id.clone().into(),
                source,
            }),
            None => Err(VerbError::Precondition {
                id: process.id.clone(),
                reason: "the process has no terminal",
            }),
        }
    }

    /// Ends the input of a process once its writers are gone.
    ///
    /// # Errors
    /// The process is not there.
    pub fn close_stdin(&self, id: &str, exec_id: &str) -> Result<(), VerbError> {
        self.tasks.get(id)?.process(exec_id)?.io().close_stdin();
        Ok(())
    }

    /// Copies the output of a container to FIFOs as well, until it exits or they are not read.
    ///
    /// # Errors
    /// The container is not there or has ended, has no output that could be copied, too many clients are
    /// attached, or a FIFO cannot be opened.
    pub async fn attach(&self, id: &str, stdout: &str, stderr: &str) -> Result<(), VerbError> {
        let task = self.tasks.get(id)?;
        if !task.init.phase().is_alive() {
            return Err(VerbError::Precondition {
                id: task.id.clone(),
                reason: "a container that has ended has no output to attach to",
            });
        }
        match task.init.io().tap(stdout, stderr).await {
            Some(result) => Ok(result?),
            None => Err(VerbError::Precondition {
                id: task.id.clone(),
                reason: "the shim does not read its output",
            }),
        }
    }

    /// Opens the log of a container again at its path.
    ///
    /// # Errors
    /// The container is not there, has no log, or the file cannot be opened.
    pub async fn reopen_log(&self, id: &str) -> Result<(), VerbError> {
        let task = self.tasks.get(id)?;
        match task.init.io().reopen_log().await {
            Some(result) => Ok(result?),
            None => Err(VerbError::Precondition {
                id: task.id.clone(),
                reason: "the shim does not write its log",
            }),
        }
    }
}
