//! After a restart: read the records, ask the shims, decide; nothing recorded is believed unasked.

use std::sync::Arc;
use std::time::Duration;

use axil_proto::ids::{ContainerId, PodId};
use tokio::sync::{Semaphore, mpsc};

use super::pod_driver::{Command, ExitSeen, PodDriver};
use super::{Engine, Shared, exec, lock, run_pod_sandbox, spawn, stop_pod_sandbox};
use crate::domain::container::phase::{ContainerPhase, Exit, ExitReason};
use crate::domain::container::record::ContainerRecord;
use crate::domain::failure::{Class, Failure};
use crate::domain::pod::phase::PodPhase;
use crate::domain::pod::record::PodRecord;
use crate::ports::{Shim, TaskExit, TaskState, exit_of, unix_nanos};

/// How long a reconnect to a shim whose connection broke is tried.
const RECONNECT: Duration = Duration::from_secs(2);

/// Exit code of a process whose end nobody saw.
const UNSEEN: i32 = 255;

impl Engine {
    /// Takes up every recorded pod. Pods are reconciled side by side and each within a bound, so that
    /// a shim that hangs delays nobody. Returns how many there are, without those whose interrupted
    /// `RunPodSandbox` is undone.
    ///
    /// # Errors
    /// The records cannot be read at all.
    pub async fn recover(&self) -> Result<usize, Failure> {
        let records = Arc::clone(&self.shared.ports.records);
        let recorded = spawn::blocking("load records", move || records.load()).await?;
        let kept = recorded
            .iter()
            .filter(|(pod, _)| pod.phase != PodPhase::Starting);
        let count = kept.count();
        let keep: Vec<PodId> = recorded
            .iter()
            .filter_map(|(pod, _)| pod.id.parse().ok())
            .collect();
        let width = Arc::new(Semaphore::new(self.shared.bounds.recovery_width));
        let mut tasks = Vec::new();
        for (pod, containers) in recorded {
            let Ok(id) = pod.id.parse::<PodId>() else {
                continue;
            };
            let mut index = lock(&self.shared.index);
            let commands = index.register(&id, &Arc::new(pod.spec.clone()));
            if let Some(level) = &pod.selinux_level {
                index.own_level(&id, level);
            }
            drop(index);
            let (shared, width) = (Arc::clone(&self.shared), Arc::clone(&width));
            tasks.push(spawn::spawn("recover a pod", async move {
                let _place = width.acquire_owned().await;
                recover_pod(&shared, id, pod, containers, commands).await;
            }));
        }
        for task in tasks {
            if let Err(error) = task.await {
                tracing::error!(error = %error, "recovering a pod failed");
            }
        }
        let network = &self.shared.ports.network;
        for result in [network.reconcile(&keep).await, network.restore().await] {
            if let Err(failure) = result {
                tracing::error!(error = %failure, "the pod network was not reconciled");
            }
        }
        Ok(count)
    }
}

async fn recover_pod(
    shared: &Arc<Shared>,
    id: PodId,
    mut record: PodRecord,
    containers: Vec<ContainerRecord>,
    commands: mpsc::Receiver<Command>,
) {
    if record.phase == PodPhase::Starting {
        return undo_start(shared, id, record, commands).await;
    }
    let shim = match record
        .phase
        .sandbox()
        .map(|sandbox| sandbox.shim_address.clone())
    {
        None => None,
        Some(address) => {
            let connect = shared.ports.shims.connect(&id, &address);
            match tokio::time::timeout(shared.bounds.recovery, connect).await {
                Ok(Ok(shim)) => Some(shim),
                Ok(Err(failure)) => {
                    tracing::warn!(pod.id = %id, error = %failure, "the pod's shim is gone");
                    None
                }
                Err(_) => {
                    tracing::error!(pod.id = %id, "the pod's shim does not answer");
                    None
                }
            }
        }
    };
    let lost = record.phase.is_ready() && shim.is_none();
    let mut found = Vec::new();
    for container in containers {
        let Ok(container_id) = container.id.parse::<ContainerId>() else {
            continue;
        };
        let work = recover_container(shared, &id, &container_id, container, shim.as_ref());
        if let Some(container) = work.await {
            found.push((container_id, container));
        }
    }
    // A stop or removal that was interrupted starts anew: both are idempotent.
    if lost || matches!(record.phase, PodPhase::Stopping | PodPhase::Removing) {
        record.phase = PodPhase::NotReady { released: false };
    }
    // Remains are killed now, not when the kubelet notices; the driver does it as an ordinary stop.
    PodDriver::recovered(shared, id, record, shim, found).spawn(commands);
}

fn stop_work(
    shared: &Arc<Shared>,
    id: &PodId,
    record: &PodRecord,
    found: &[(ContainerId, ContainerRecord)],
) -> stop_pod_sandbox::Work {
    stop_pod_sandbox::Work {
        shared: Arc::clone(shared),
        id: id.clone(),
        record: record.clone(),
        was: record.phase.clone(),
        shim: None,
        alive: Vec::new(),
        containers: found.iter().map(|(id, _)| id.clone()).collect(),
    }
}

/// A pod whose RunPodSandbox was interrupted was never acknowledged: it is undone whole.
async fn undo_start(
    shared: &Arc<Shared>,
    id: PodId,
    record: PodRecord,
    commands: mpsc::Receiver<Command>,
) {
    let work = stop_work(shared, &id, &record, &[]);
    let mut result = stop_pod_sandbox::stop_pod_sandbox(work).await;
    if result.is_ok() {
        result = shared.ports.files.remove(&id).await;
    }
    if result.is_ok() {
        result = run_pod_sandbox::delete_record(shared, &id).await;
    }
    match result {
        Ok(()) => {
            tracing::info!(pod.id = %id, "an interrupted RunPodSandbox is undone");
            lock(&shared.index).forget_pod(&id);
        }
        Err(failure) => {
            tracing::error!(pod.id = %id, error = %failure, "an interrupted RunPodSandbox");
            let record = PodRecord {
                phase: PodPhase::NotReady { released: false },
                ..record
            };
            PodDriver::recovered(shared, id, record, None, Vec::new()).spawn(commands);
        }
    }
}

/// What a container is now; `None` when it was never made and is undone.
async fn recover_container(
    shared: &Arc<Shared>,
    pod: &PodId,
    id: &ContainerId,
    mut record: ContainerRecord,
    shim: Option<&Arc<dyn Shim>>,
) -> Option<ContainerRecord> {
    let state = match shim {
        None => TaskState::Missing,
        Some(shim) => {
            let asked = tokio::time::timeout(shared.bounds.recovery, shim.state(id)).await;
            asked
                .ok()
                .and_then(Result::ok)
                .unwrap_or(TaskState::Missing)
        }
    };
    match record.phase {
        ContainerPhase::Creating => {
            return undo_creation(shared, pod, id, record, shim).await;
        }
        ContainerPhase::Exited(_) => return Some(record),
        ContainerPhase::Removing { ref exit } => {
            let exit = exit.clone().unwrap_or_else(|| unseen(0));
            record.phase = ContainerPhase::Exited(exit);
            return Some(record);
        }
        ContainerPhase::Created | ContainerPhase::Starting | ContainerPhase::Running { .. } => {}
    }
    let started_at = match record.phase.started_at() {
        0 => record.created_at,
        at => at,
    };
    if let (TaskState::Running, Some(shim)) = (&state, shim) {
        end_orphans(shared, id, shim).await;
    }
    record.phase = match state {
        TaskState::Running => ContainerPhase::Running { started_at },
        TaskState::Created => ContainerPhase::Created,
        TaskState::Stopped(exit) => {
            // The shim tells the code; only its record on disk tells of the memory.
            let exit = shared
                .ports
                .files
                .recorded_exit(pod, id)
                .await
                .unwrap_or(exit);
            if let Some(shim) = shim {
                let delete = shim.delete(id, None);
                let _bounded = tokio::time::timeout(shared.bounds.kill, delete).await;
            }
            ContainerPhase::Exited(exit_of(exit, started_at))
        }
        TaskState::Missing => {
            let recorded = shared.ports.files.recorded_exit(pod, id).await;
            let exit = recorded.map_or_else(|| unseen(started_at), |e| exit_of(e, started_at));
            ContainerPhase::Exited(exit)
        }
    };
    if let Err(failure) = super::create_container::put_record(shared, record.clone()).await {
        tracing::error!(container.id = %id, error = %failure, "record not written");
    }
    Some(record)
}

/// Has the execs of an earlier daemon ended. Order: they are counted before this one serves, so that none of its
/// own is among them; ending them takes its time.
async fn end_orphans(shared: &Arc<Shared>, id: &ContainerId, shim: &Arc<dyn Shim>) {
    let asked = tokio::time::timeout(shared.bounds.recovery, shim.execs(id)).await;
    let execs = match asked {
        Ok(Ok(execs)) => execs,
        Ok(Err(failure)) => {
            tracing::warn!(container.id = %id, error = %failure, "execs of an earlier life stay");
            return;
        }
        Err(_) => return,
    };
    if execs.is_empty() {
        return;
    }
    let (shared, shim, id) = (Arc::clone(shared), Arc::clone(shim), id.clone());
    spawn::spawn("end orphaned execs", async move {
        exec::end_orphans(&shared, shim.as_ref(), &id, &execs).await;
    });
}

/// A container whose CreateContainer was interrupted was never acknowledged: it is undone.
async fn undo_creation(
    shared: &Arc<Shared>,
    pod: &PodId,
    id: &ContainerId,
    mut record: ContainerRecord,
    shim: Option<&Arc<dyn Shim>>,
) -> Option<ContainerRecord> {
    let ports = &shared.ports;
    let undo = async {
        if let Some(shim) = shim {
            // Ignored: `delete` reports what matters, and forgives a missing task.
            let _gone = shim.kill(id, None, 9, true).await;
            let _ended = tokio::time::timeout(shared.bounds.kill, shim.wait(id, None)).await;
            shim.delete(id, None).await?;
        }
        ports
            .rootfs
            .release(id, &ports.files.bundle(pod, id))
            .await?;
        ports.files.remove_bundle(pod, id).await?;
        super::create_container::delete_record(shared, pod, id).await
    };
    let result: Result<(), Failure> = undo.await;
    if let Err(failure) = result {
        tracing::error!(container.id = %id, error = %failure, "an interrupted CreateContainer");
        record.phase = ContainerPhase::Exited(unseen(0));
        return Some(record);
    }
    tracing::info!(container.id = %id, "an interrupted CreateContainer is undone");
    None
}

fn unseen(started_at: i64) -> Exit {
    Exit {
        code: UNSEEN,
        reason: ExitReason::Unknown,
        message: "nobody saw the process end".to_owned(),
        started_at,
        finished_at: unix_nanos(),
    }
}

/// Waits for the end of a container's process, whatever happens to the connection; then deletes its
/// task, so that a container that is listed as exited holds no cgroup.
pub(super) async fn await_exit(
    shared: &Arc<Shared>,
    pod: &PodId,
    id: &ContainerId,
    mut shim: Arc<dyn Shim>,
    address: Option<String>,
) -> (TaskExit, ExitSeen) {
    loop {
        let failure = match shim.wait(id, None).await {
            Ok(exit) => {
                let exit = shared
                    .ports
                    .files
                    .recorded_exit(pod, id)
                    .await
                    .unwrap_or(exit);
                let delete = tokio::time::timeout(shared.bounds.kill, shim.delete(id, None)).await;
                match delete {
                    Ok(Ok(())) => {}
                    // The shim ended with its pod, whose removal deletes what is left of the task.
                    Ok(Err(failure)) if failure.class == Class::Unavailable => {
                        tracing::debug!(container.id = %id, error = %failure, "the shim ended before the task's deletion");
                    }
                    Ok(Err(failure)) => {
                        tracing::warn!(container.id = %id, error = %failure, "an ended task was not deleted");
                    }
                    Err(_) => {
                        tracing::warn!(container.id = %id, "an ended task was not deleted in time");
                    }
                }
                return (exit, ExitSeen::Yes);
            }
            Err(failure) => failure,
        };
        if let Some(exit) = shared.ports.files.recorded_exit(pod, id).await {
            return (exit, ExitSeen::Yes);
        }
        let again = match (&address, failure.class) {
            // The connection broke, not the shim: a new one waits on.
            (Some(address), Class::Unavailable) => {
                let connect = shared.ports.shims.connect(pod, address);
                tokio::time::timeout(RECONNECT, connect)
                    .await
                    .ok()
                    .and_then(Result::ok)
            }
            _ => None,
        };
        match again {
            Some(connected) => shim = connected,
            None => {
                tracing::warn!(container.id = %id, error = %failure, "lost sight of a container");
                let exit = TaskExit {
                    status: UNSEEN,
                    exited_at: unix_nanos(),
                    oom_killed: false,
                };
                return (exit, ExitSeen::No);
            }
        }
    }
}
