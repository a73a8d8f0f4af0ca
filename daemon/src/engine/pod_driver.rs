//! The task that alone changes one pod and its containers.
//!
//! The driver only dispatches and applies transitions; it never waits inside a step. The pod has a lane
//! for pod verbs and each container a lane of its own; a lane runs one verb at a time as a child task,
//! whose outcome comes back as an [`Event`]. Commands that meet a busy lane join it when they ask for
//! the same, and wait otherwise.

mod commands;
mod lane;
mod outcomes;
mod publish;
mod update;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axil_proto::ids::{ContainerId, PodId};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::pods::Creation;
use super::steps::Failed;
use super::{Shared, lock, run_pod_sandbox, spawn};
use crate::domain::container::phase::{ContainerPhase, Exit, ExitReason};
use crate::domain::container::record::ContainerRecord;
use crate::domain::failure::Failure;
use crate::domain::pod::phase::PodPhase;
use crate::domain::pod::record::{POD_RECORD_VERSION, PodRecord, PodResources};
use crate::domain::pod::spec::PodSpec;
use crate::domain::resources::LinuxResources;
use crate::ports::{Shim, unix_nanos};

type Reply<T> = oneshot::Sender<Result<T, Failure>>;

/// Events a driver may have waiting: one per lane and watcher of a pod with a hundred containers.
const EVENTS: usize = 256;

/// What a caller asks of a pod.
#[derive(Debug)]
pub enum Command {
    /// Run the pod, or join the attempt.
    Run(Reply<PodId>),
    /// Stop the pod.
    Stop(Reply<()>),
    /// Stop and remove the pod.
    Remove(Reply<()>),
    /// Make a container.
    Create(Box<Creation>),
    /// Start a container.
    Start(ContainerId, Reply<()>),
    /// Stop a container within a time.
    StopContainer(ContainerId, Duration, Reply<()>),
    /// Remove a container.
    RemoveContainer(ContainerId, Reply<()>),
    /// Change limits of a container.
    Update(ContainerId, Box<LinuxResources>, Reply<()>),
    /// Record the resources of the whole pod.
    UpdatePod(Box<PodResources>, Reply<()>),
}

/// What happened to a pod or one of its containers.
#[expect(missing_debug_implementations, reason = "holds the shim's connection")]
pub enum Event {
    /// RunPodSandbox ended.
    RunDone(Box<run_pod_sandbox::Outcome>),
    /// StopPodSandbox ended.
    StopDone(Result<(), Failure>),
    /// RemovePodSandbox ended.
    RemoveDone(Result<(), Failure>),
    /// CreateContainer ended.
    CreateDone(ContainerId, Box<Result<ContainerRecord, Failed>>),
    /// StartContainer ended; the error has the exit to record.
    StartDone(ContainerId, Box<Result<ContainerRecord, (Failure, Exit)>>),
    /// StopContainer ended.
    StopContainerDone(ContainerId, Result<(), Failure>),
    /// RemoveContainer ended.
    RemoveContainerDone(ContainerId, Result<(), Failure>),
    /// UpdateContainerResources ended.
    UpdateDone(ContainerId, Result<(), Failure>),
    /// A container's process ended.
    Exited(ContainerId, crate::ports::TaskExit, ExitSeen),
    /// The shim or the sandbox process is gone.
    SandboxGone,
}

/// Whether somebody saw a container end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitSeen {
    /// The shim did.
    Yes,
    /// Nobody did; the code is not the process's.
    No,
}

/// The verb that a container's lane runs.
enum Lane {
    Idle,
    Creating(Vec<Reply<ContainerId>>),
    Starting(Vec<Reply<()>>),
    Stopping(Vec<Reply<()>>, watch::Sender<Instant>),
    Removing(Vec<Reply<()>>),
    Updating(Reply<()>),
}

struct Container {
    record: ContainerRecord,
    lane: Lane,
    waiting: Vec<Command>,
    ended: watch::Sender<bool>,
    /// The end of a process whose start is still being recorded: a record has one writer at a time.
    early_exit: Option<(crate::ports::TaskExit, ExitSeen)>,
}

impl Container {
    fn busy(&self) -> bool {
        !matches!(self.lane, Lane::Idle)
    }
}

/// The verb that the pod's lane runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PodLane {
    Idle,
    Running,
    Stopping,
    Removing,
}

/// The driver of one pod.
#[expect(missing_debug_implementations, reason = "holds the shim's connection")]
pub struct PodDriver {
    shared: Arc<Shared>,
    id: PodId,
    record: PodRecord,
    shim: Option<Arc<dyn Shim>>,
    containers: BTreeMap<ContainerId, Container>,
    lane: PodLane,
    run_waiters: Vec<Reply<PodId>>,
    stop_waiters: Vec<Reply<()>>,
    remove_waiters: Vec<Reply<()>>,
    /// Removals of containers that came while the pod stops: its shim is about to end, or has ended.
    after_stop: Vec<Command>,
    stop_wanted: bool,
    /// Whether the stop at work is of a pod that was ready: only that is news.
    stops_ready: bool,
    events: mpsc::Sender<Event>,
    inbox: mpsc::Receiver<Event>,
}

enum Life {
    Goes,
    Ends,
}

impl PodDriver {
    /// The driver of a pod that is about to be run.
    #[must_use]
    pub fn new(shared: &Arc<Shared>, id: PodId, spec: Arc<PodSpec>) -> Self {
        let record = PodRecord {
            version: POD_RECORD_VERSION,
            id: id.to_string(),
            created_at: unix_nanos(),
            spec: Arc::unwrap_or_clone(spec),
            phase: PodPhase::Starting,
            resources: PodResources::default(),
            selinux_level: None,
            timeline: crate::domain::timeline::Timeline::default(),
        };
        Self::with_record(shared, id, record, None)
    }

    fn with_record(
        shared: &Arc<Shared>,
        id: PodId,
        record: PodRecord,
        shim: Option<Arc<dyn Shim>>,
    ) -> Self {
        let (events, inbox) = mpsc::channel(EVENTS);
        Self {
            shared: Arc::clone(shared),
            id,
            record,
            shim,
            containers: BTreeMap::new(),
            lane: PodLane::Idle,
            run_waiters: Vec::new(),
            stop_waiters: Vec::new(),
            remove_waiters: Vec::new(),
            after_stop: Vec::new(),
            stop_wanted: false,
            stops_ready: false,
            events,
            inbox,
        }
    }

    /// The driver of a pod found after a restart; its phases are already reconciled. What a pod that is
    /// not ready still holds is released at once.
    #[must_use]
    pub fn recovered(
        shared: &Arc<Shared>,
        id: PodId,
        record: PodRecord,
        shim: Option<Arc<dyn Shim>>,
        containers: Vec<(ContainerId, ContainerRecord)>,
    ) -> Self {
        let mut driver = Self::with_record(shared, id, record, shim);
        for (id, record) in containers {
            let ended = watch::Sender::new(!record.phase.is_running());
            let watched = matches!(
                record.phase,
                ContainerPhase::Created | ContainerPhase::Running { .. }
            );
            driver.containers.insert(
                id.clone(),
                Container {
                    record,
                    lane: Lane::Idle,
                    waiting: Vec::new(),
                    ended,
                    early_exit: None,
                },
            );
            lock(&shared.index).own_container(id.clone(), driver.id.clone());
            driver.publish_container(&id);
            if watched {
                driver.watch_container(&id);
            }
        }
        driver.resume_updates();
        driver.stop_wanted = driver.record.phase == PodPhase::NotReady { released: false };
        driver.publish();
        driver.watch_sandbox();
        driver
    }

    /// Drives the pod until it is removed.
    pub fn spawn(self, commands: mpsc::Receiver<Command>) {
        // Without the span of the call that made it: other calls follow.
        let span = tracing::info_span!(parent: None, "pod", "pod.id" = %self.id);
        let entered = span.enter();
        spawn::spawn("pod driver", self.drive(commands));
        drop(entered);
    }

    async fn drive(mut self, mut commands: mpsc::Receiver<Command>) {
        // A recovered pod may have remains to release.
        self.advance_pod();
        loop {
            // Both branches are cancellation-safe: `recv` loses nothing when dropped.
            let life = tokio::select! {
                Some(event) = self.inbox.recv() => self.apply(event),
                command = commands.recv() => match command {
                    Some(command) => {
                        self.accept(command);
                        Life::Goes
                    }
                    // The daemon is going down: the pod lives on without us.
                    None => Life::Ends,
                },
            };
            if matches!(life, Life::Ends) {
                return;
            }
        }
    }
}

/// The exit of a container whose process never ran.
fn never_ran(reason: ExitReason, message: &str) -> Exit {
    Exit {
        code: 128,
        reason,
        message: message.to_owned(),
        started_at: 0,
        finished_at: unix_nanos(),
    }
}

/// Answers a caller that may have gone away.
fn answer<T>(reply: Reply<T>, result: Result<T, Failure>) {
    // Ignored: the caller's deadline passed; the work is done and the next call finds it.
    let _gone = reply.send(result);
}

/// Refuses a command that waited for something that failed.
fn refuse(command: Command, failure: &Failure) {
    match command {
        Command::Run(reply) => answer(reply, Err(failure.clone())),
        Command::Create(creation) => answer(creation.reply, Err(failure.clone())),
        Command::Stop(reply)
        | Command::Remove(reply)
        | Command::Start(_, reply)
        | Command::StopContainer(_, _, reply)
        | Command::RemoveContainer(_, reply)
        | Command::Update(_, _, reply)
        | Command::UpdatePod(_, reply) => answer(reply, Err(failure.clone())),
    }
}

/// Sends an event to a driver that may have ended.
async fn send(events: &mpsc::Sender<Event>, event: Event) {
    // Ignored: a driver that ended needs no news.
    let _gone = events.send(event).await;
}
