//! What follows an exit: kill what is left, ask for an OOM, pass on the output, record, tell.

use std::sync::Arc;

use axil_proto::shim::events::{TaskExit, TaskOom};
use prost_types::Timestamp;

use crate::log;
use crate::pod::Pod;
use crate::reaper::{Exit, ExitReceiver};
use crate::record::ExitRecord;
use crate::task::process::Process;
use crate::task::table::Task;

impl Pod {
    /// Waits for the exit of a process and does what follows it.
    pub(super) fn supervise(
        self: &Arc<Self>,
        task: Arc<Task>,
        process: Arc<Process>,
        exit: ExitReceiver,
    ) {
        let pod = Arc::clone(self);
        tokio::spawn(async move {
            // The reaper lives as long as the shim.
            let Ok(exit) = exit.await else { return };
            // Bounded by the deadline of the runtime's `start`, so that clients and events see a
            // process start before it ends.
            process.settled().await;
            if Arc::ptr_eq(&process, &task.init) {
                settle_init(&pod, &task, exit).await;
            } else {
                process.io().drain().await;
            }
            process.exited(exit);
            pod.events.publish(&TaskExit {
                container_id: task.id.clone(),
                id: process.id.clone(),
                pid: process.pid(),
                exit_status: exit.status,
                exited_at: Some(Timestamp::from(exit.at)),
            });
        });
    }
}

async fn settle_init(pod: &Pod, task: &Task, exit: Exit) {
    if !task.has_own_pid_namespace()
        && let Some(cgroup) = task.cgroup()
    {
        // Without a namespace of their own the other processes survive their first.
        cgroup.kill_all().await;
    }
    let details = task.details.get();
    let oom_killed = details.is_some_and(|d| d.oom.was_killed(d.cgroup.as_ref(), exit.status));
    task.init.io().drain().await;
    // Order: who is attached has read all before the exit is told.
    task.init.io().untap().await;
    // Order: the record is on disk before any client hears of the exit.
    if let Err(error) = ExitRecord::new(exit, oom_killed).write(&task.bundle) {
        log::error(format_args!("write the exit of {:?}: {error}", task.id));
    }
    if oom_killed {
        pod.events.publish(&TaskOom {
            container_id: task.id.clone(),
        });
    }
}
