//! Deletes a container or an exec: what is left of it, its streams, its cgroup, its mounts.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axil_proto::shim::events::TaskDelete;
use prost_types::Timestamp;

use crate::error::VerbError;
use crate::log;
use crate::mount;
use crate::pod::Pod;
use crate::reaper::Exit;
use crate::runtime::Call;
use crate::sys::signal::SignalNumber;
use crate::task::create::{LOG_FILE, io_error};
use crate::task::kill::kill_task;
use crate::task::phase::{Event, Phase};
use crate::task::process::Process;
use crate::task::table::Task;

/// How long a container that was created and never started may take to die.
const DEATH_TIMEOUT: Duration = Duration::from_secs(10);

/// What is answered about a deleted process.
#[derive(Debug, Clone, Copy)]
pub struct Deleted {
    /// Its pid.
    pub pid: u32,
    /// How it ended.
    pub exit: Exit,
}

impl Pod {
    /// Deletes a container, or an exec.
    ///
    /// # Errors
    /// It is not there or still runs, or the runtime fails; it may be tried again.
    pub async fn delete(self: &Arc<Self>, id: &str, exec_id: &str) -> Result<Deleted, VerbError> {
        let task = self.tasks.get(id)?;
        let process = task.process(exec_id)?;
        if exec_id.is_empty() {
            self.delete_task(&task).await
        } else {
            self.delete_exec(&task, &process).await
        }
    }

    pub(crate) async fn delete_task(&self, task: &Task) -> Result<Deleted, VerbError> {
        // Every wait below has a bound, and so has this one.
        let _turn = task.deleting.lock().await;
        self.tasks.get(&task.id)?;
        let init = &task.init;
        if init.phase() == Phase::Created {
            kill_task(task, SignalNumber::KILL, true).await?;
            let death = tokio::time::timeout(DEATH_TIMEOUT, init.wait());
            death.await.map_err(|_| VerbError::Late {
                id: task.id.clone(),
                what: "the death of the process",
                seconds: DEATH_TIMEOUT.as_secs(),
            })??;
        }
        init.apply(Event::DeleteBegun)?;
        if let Err(error) = self.delete_steps(task).await {
            init.apply(Event::DeleteFailed)?;
            return Err(error);
        }
        self.tasks.remove(&task.id);
        let deleted = outcome(init);
        self.publish_delete(task, "", deleted);
        Ok(deleted)
    }

    async fn delete_steps(&self, task: &Task) -> Result<(), VerbError> {
        if let Some(cgroup) = task.cgroup() {
            if !cgroup.pids().is_empty() && !cgroup.kill_all().await {
                return Err(VerbError::Late {
                    id: task.id.clone(),
                    what: "killing left-over processes",
                    seconds: crate::cgroup::KILL_TIMEOUT.as_secs(),
                });
            }
            // Order: the runtime can remove a cgroup only without children.
            for exec in task.execs() {
                if let Some(cgroup) = exec.cgroup() {
                    cgroup.release().await;
                }
            }
        }
        let log = task.bundle.join(LOG_FILE);
        let call = Call::new("delete", &log).arg(&task.id);
        match task.runtime.run(&self.reaper, call).await {
            Err(error) if !error.is_not_found() => return Err(error.into()),
            _ => {}
        }
        task.init.io().finish().await;
        task.init.release();
        if task.rootfs_mounted {
            let root = task.bundle.join("rootfs");
            mount::unmount_all(&root).map_err(|source| io_error("unmount", &root, source))?;
        }
        Ok(())
    }

    async fn delete_exec(&self, task: &Task, process: &Process) -> Result<Deleted, VerbError> {
        process.apply(Event::DeleteBegun)?;
        process.give_up();
        process.io().finish().await;
        process.release();
        if let Some(cgroup) = process.cgroup() {
            // A background process that the exec left behind lives on as the container's.
            cgroup.release().await;
        }
        task.remove_exec(&process.id);
        let deleted = outcome(process);
        self.publish_delete(task, &process.id, deleted);
        Ok(deleted)
    }

    fn publish_delete(&self, task: &Task, exec_id: &str, deleted: Deleted) {
        self.events.publish(&TaskDelete {
            container_id: task.id.clone(),
            pid: deleted.pid,
            exit_status: deleted.exit.status,
            exited_at: Some(Timestamp::from(deleted.exit.at)),
            id: exec_id.to_owned(),
        });
        log::debug(format_args!("deleted {:?} {exec_id:?}", task.id));
    }
}

fn outcome(process: &Process) -> Deleted {
    // An exec that was never started has no exit.
    let never = Exit {
        status: 0,
        at: SystemTime::now(),
    };
    Deleted {
        pid: process.pid(),
        exit: process.exit().unwrap_or(never),
    }
}
