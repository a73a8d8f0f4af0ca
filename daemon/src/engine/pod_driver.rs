//! The task that alone changes one pod and its containers.
//!
//! The driver only dispatches and applies transitions; it never waits inside a step. The pod has a lane
//! for pod verbs and each container a lane of its own; a lane runs one verb at a time as a child task,
//! whose outcome comes back as an [`Event`]. Commands that meet a busy lane join it when they ask for
//! the same, and wait otherwise.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axil_proto::ids::{ContainerId, PodId};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::pods::Creation;
use super::steps::Failed;
use super::views::{ContainerView, PodView};
use super::{
    Shared, create_container, lock, pods, remove_container, remove_pod_sandbox, run_pod_sandbox,
    spawn, start_container, stop_container, stop_pod_sandbox,
};
use crate::domain::container::phase::{
    ContainerEvent, ContainerPhase, ContainerTransition, Exit, ExitReason,
};
use crate::domain::container::record::{CONTAINER_RECORD_VERSION, ContainerRecord};
use crate::domain::failure::{Class, Failure};
use crate::domain::pod::phase::{PodEvent, PodPhase, PodTransition};
use crate::domain::pod::record::{POD_RECORD_VERSION, PodRecord};
use crate::domain::pod::spec::PodSpec;
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
    stop_wanted: bool,
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
            stop_wanted: false,
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
        driver.stop_wanted = driver.record.phase == PodPhase::NotReady { released: false };
        driver.publish();
        driver.watch_sandbox();
        driver
    }

    /// Drives the pod until it is removed.
    pub fn spawn(self, commands: mpsc::Receiver<Command>) {
        let span = tracing::info_span!("pod", "pod.id" = %self.id);
        let work = tracing::Instrument::instrument(self.drive(commands), span);
        spawn::spawn("pod driver", work);
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

    // ---- commands -------------------------------------------------------------------------------

    fn accept(&mut self, command: Command) {
        match command {
            Command::Run(reply) => self.accept_run(reply),
            Command::Stop(reply) => {
                self.stop_waiters.push(reply);
                self.advance_pod();
            }
            Command::Remove(reply) => {
                self.remove_waiters.push(reply);
                self.advance_pod();
            }
            Command::Create(creation) => self.accept_create(*creation),
            Command::Start(id, reply) => self.accept_start(id, reply),
            Command::StopContainer(id, grace, reply) => self.accept_stop(id, grace, reply),
            Command::RemoveContainer(id, reply) => self.accept_remove(id, reply),
        }
    }

    fn accept_run(&mut self, reply: Reply<PodId>) {
        match &self.record.phase {
            PodPhase::Starting => {
                self.run_waiters.push(reply);
                if self.lane == PodLane::Idle {
                    self.lane = PodLane::Running;
                    let (shared, record) = (Arc::clone(&self.shared), self.record.clone());
                    let (id, events) = (self.id.clone(), self.events.clone());
                    spawn::spawn("RunPodSandbox", async move {
                        let result = run_pod_sandbox::run_pod_sandbox(&shared, &id, record).await;
                        send(&events, Event::RunDone(Box::new(result))).await;
                    });
                }
            }
            PodPhase::Ready(_) => answer(reply, Ok(self.id.clone())),
            PodPhase::Stopping | PodPhase::NotReady { .. } | PodPhase::Removing => {
                let message = format!(
                    "pod sandbox {} of this name is {}; remove it or raise the attempt",
                    self.id,
                    self.record.phase.name()
                );
                answer(reply, Err(Failure::new(Class::AlreadyExists, message)));
            }
        }
    }

    fn accept_create(&mut self, creation: Creation) {
        let same = |one: &&mut Container| {
            one.record.spec.name == creation.spec.name
                && one.record.spec.attempt == creation.spec.attempt
        };
        if let Some(known) = self.containers.values_mut().find(same) {
            let id = known.record.id.clone();
            if known.record.spec != creation.spec {
                let message = format!(
                    "container {} (attempt {}) exists in pod {} as {id} with another configuration",
                    creation.spec.name, creation.spec.attempt, self.id
                );
                return answer(
                    creation.reply,
                    Err(Failure::new(Class::AlreadyExists, message)),
                );
            }
            if let Lane::Creating(waiters) = &mut known.lane {
                waiters.push(creation.reply);
                return;
            }
            let result = if matches!(known.record.phase, ContainerPhase::Created) {
                id.parse()
                    .map_err(|error| Failure::internal("recorded container id", &error))
            } else {
                Err(Failure::new(
                    Class::AlreadyExists,
                    format!(
                        "container {id} of this name is {}",
                        known.record.phase.name()
                    ),
                ))
            };
            return answer(creation.reply, result);
        }
        let Some(shim) = self.ready_shim() else {
            let message = format!("pod sandbox {} is {}", self.id, self.phase_name());
            return answer(creation.reply, Err(Failure::precondition(message)));
        };
        let id: ContainerId = match pods::random_id().and_then(|text| {
            text.parse()
                .map_err(|error| Failure::internal("container id", &error))
        }) {
            Ok(id) => id,
            Err(failure) => return answer(creation.reply, Err(failure)),
        };
        let record = ContainerRecord {
            version: CONTAINER_RECORD_VERSION,
            id: id.to_string(),
            pod: self.id.to_string(),
            created_at: unix_nanos(),
            image: creation.resolved_image(),
            spec: creation.spec,
            user: None,
            stop_signal: 0,
            phase: ContainerPhase::Creating,
            timeline: crate::domain::timeline::Timeline::default(),
        };
        let container = Container {
            record: record.clone(),
            lane: Lane::Creating(vec![creation.reply]),
            waiting: Vec::new(),
            ended: watch::Sender::new(false),
            early_exit: None,
        };
        self.containers.insert(id.clone(), container);
        lock(&self.shared.index).own_container(id.clone(), self.id.clone());
        let work = create_container::Work {
            shared: Arc::clone(&self.shared),
            pod: self.id.clone(),
            pod_record: self.record.clone(),
            shim,
            target_pid: self.target_pid(&record),
            id: id.clone(),
            record,
            image: creation.image,
        };
        let events = self.events.clone();
        spawn::spawn("CreateContainer", async move {
            let result = create_container::create_container(work).await;
            send(&events, Event::CreateDone(id, Box::new(result))).await;
        });
    }

    /// Bundle of the container whose PID namespace a new one joins.
    fn target_pid(&self, record: &ContainerRecord) -> Option<(ContainerId, bool)> {
        let target = &record.spec.security.namespaces.target_id;
        let id: ContainerId = target.parse().ok()?;
        let running = self
            .containers
            .get(&id)
            .is_some_and(|one| one.record.phase.is_running());
        Some((id, running))
    }

    fn accept_start(&mut self, id: ContainerId, reply: Reply<()>) {
        let shim = self.ready_shim();
        let Some(container) = self.containers.get_mut(&id) else {
            return answer(reply, Err(pods::unknown_container(id.as_str())));
        };
        if let Lane::Starting(waiters) = &mut container.lane {
            return waiters.push(reply);
        }
        if container.busy() {
            return container.waiting.push(Command::Start(id, reply));
        }
        match (&container.record.phase, shim) {
            (ContainerPhase::Created, Some(shim)) if !self.stop_wanted => {
                container.lane = Lane::Starting(vec![reply]);
                container.record.phase = ContainerPhase::Starting;
                let work = start_container::Work {
                    shared: Arc::clone(&self.shared),
                    id: id.clone(),
                    record: container.record.clone(),
                    shim,
                };
                let events = self.events.clone();
                self.publish_container(&id);
                spawn::spawn("StartContainer", async move {
                    let result = start_container::start_container(work).await;
                    send(&events, Event::StartDone(id, Box::new(result))).await;
                });
            }
            // A retry of a start that succeeded gets its result.
            (ContainerPhase::Running { .. }, _) => answer(reply, Ok(())),
            (phase, _) => {
                let message = format!(
                    "container {id} is {} in a pod that is {}: only a created one starts",
                    phase.name(),
                    self.record.phase.name()
                );
                answer(reply, Err(Failure::precondition(message)));
            }
        }
    }

    fn accept_stop(&mut self, id: ContainerId, grace: Duration, reply: Reply<()>) {
        let shim = self.shim.clone();
        let Some(container) = self.containers.get_mut(&id) else {
            return answer(reply, Ok(()));
        };
        let deadline = Instant::now() + grace;
        if let Lane::Stopping(waiters, current) = &mut container.lane {
            // A later stop may shorten the wait of an earlier one, never lengthen it.
            current.send_if_modified(|at| {
                let earlier = deadline < *at;
                *at = (*at).min(deadline);
                earlier
            });
            return waiters.push(reply);
        }
        if container.busy() {
            return container
                .waiting
                .push(Command::StopContainer(id, grace, reply));
        }
        let alive = container.record.phase.is_running()
            || container.record.phase == ContainerPhase::Created;
        let Some(shim) = shim.filter(|_| alive) else {
            return answer(reply, Ok(()));
        };
        let (deadline_sender, deadline) = watch::channel(deadline);
        container.lane = Lane::Stopping(vec![reply], deadline_sender);
        let work = stop_container::Work {
            id: id.clone(),
            signal: container.record.stop_signal,
            started: container.record.phase.is_running(),
            shim,
            deadline,
            ended: container.ended.subscribe(),
            kill: self.shared.bounds.kill,
        };
        let events = self.events.clone();
        spawn::spawn("StopContainer", async move {
            let result = stop_container::stop_container(work).await;
            send(&events, Event::StopContainerDone(id, result)).await;
        });
    }

    fn accept_remove(&mut self, id: ContainerId, reply: Reply<()>) {
        let shim = self.shim.clone();
        let Some(container) = self.containers.get_mut(&id) else {
            return answer(reply, Ok(()));
        };
        if let Lane::Removing(waiters) = &mut container.lane {
            return waiters.push(reply);
        }
        if container.busy() {
            if let Lane::Stopping(_, deadline) = &container.lane {
                deadline.send_replace(Instant::now());
            }
            return container.waiting.push(Command::RemoveContainer(id, reply));
        }
        let alive = container.record.phase.is_running()
            || container.record.phase == ContainerPhase::Created;
        if alive && shim.is_some() {
            // Removal ends a container at once, then comes back here when its end is recorded.
            container
                .waiting
                .push(Command::RemoveContainer(id.clone(), reply));
            let (ignored, _) = oneshot::channel();
            return self.accept_stop(id, Duration::ZERO, ignored);
        }
        let Ok(ContainerTransition::To(phase)) =
            container.record.phase.apply(ContainerEvent::Remove)
        else {
            let message = format!("container {id} is {}", container.record.phase.name());
            return answer(reply, Err(Failure::precondition(message)));
        };
        container.record.phase = phase;
        container.lane = Lane::Removing(vec![reply]);
        let work = remove_container::Work {
            shared: Arc::clone(&self.shared),
            pod: self.id.clone(),
            id: id.clone(),
            record: container.record.clone(),
            shim,
        };
        let events = self.events.clone();
        spawn::spawn("RemoveContainer", async move {
            let result = remove_container::remove_container(work).await;
            send(&events, Event::RemoveContainerDone(id, result)).await;
        });
    }

    // ---- events ---------------------------------------------------------------------------------

    fn apply(&mut self, event: Event) -> Life {
        match event {
            Event::RunDone(result) => return self.run_done(*result),
            Event::StopDone(result) => self.stop_done(result),
            Event::RemoveDone(result) => return self.remove_done(result),
            Event::CreateDone(id, result) => self.create_done(&id, *result),
            Event::StartDone(id, result) => self.start_done(&id, *result),
            Event::StopContainerDone(id, result) => self.stop_container_done(&id, &result),
            Event::RemoveContainerDone(id, result) => self.remove_container_done(&id, &result),
            Event::Exited(id, exit, seen) => self.exited(&id, exit, seen),
            Event::SandboxGone => {
                if self.record.phase.is_ready() && self.lane == PodLane::Idle {
                    tracing::warn!("the pod's shim or sandbox process is gone");
                    self.stop_wanted = true;
                }
            }
        }
        self.advance_pod();
        Life::Goes
    }

    fn run_done(&mut self, result: run_pod_sandbox::Outcome) -> Life {
        self.lane = PodLane::Idle;
        match result {
            Ok((record, shim)) => {
                self.record = record;
                self.shim = Some(shim);
                self.publish();
                self.watch_sandbox();
                tracing::info!("pod is ready");
                for reply in self.run_waiters.drain(..) {
                    answer(reply, Ok(self.id.clone()));
                }
                self.advance_pod();
                Life::Goes
            }
            Err(Failed { failure, left }) => {
                let undone = left.is_empty();
                for failure in &left {
                    tracing::error!(error = %failure, "a failed pod could not be undone");
                }
                tracing::warn!(error = %failure, undone, "the pod could not be run");
                let life = self.transit(PodEvent::StartFailed { undone });
                for reply in self.run_waiters.drain(..) {
                    answer(reply, Err(failure.clone()));
                }
                self.advance_pod();
                life
            }
        }
    }

    fn stop_done(&mut self, result: Result<(), Failure>) {
        self.lane = PodLane::Idle;
        self.stop_wanted = false;
        self.shim = None;
        let event = if result.is_ok() {
            PodEvent::Released
        } else {
            PodEvent::ReleaseFailed
        };
        self.transit(event);
        if let Err(failure) = &result {
            tracing::error!(error = %failure, "the pod could not be stopped whole");
            for reply in self.remove_waiters.drain(..) {
                answer(reply, Err(failure.clone()));
            }
        }
        for reply in self.stop_waiters.drain(..) {
            answer(reply, result.clone());
        }
    }

    fn remove_done(&mut self, result: Result<(), Failure>) -> Life {
        self.lane = PodLane::Idle;
        let life = if result.is_ok() {
            let ids: Vec<_> = self.containers.keys().cloned().collect();
            for id in ids {
                self.forget_container(&id);
            }
            self.transit(PodEvent::Removed)
        } else {
            self.transit(PodEvent::ReleaseFailed)
        };
        let waiters = self
            .remove_waiters
            .drain(..)
            .chain(self.stop_waiters.drain(..));
        for reply in waiters {
            answer(reply, result.clone());
        }
        life
    }

    fn create_done(&mut self, id: &ContainerId, result: Result<ContainerRecord, Failed>) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let Lane::Creating(waiters) = std::mem::replace(&mut container.lane, Lane::Idle) else {
            return;
        };
        match result {
            Ok(record) => {
                container.record = record;
                self.publish_container(id);
                self.watch_container(id);
                for reply in waiters {
                    answer(reply, Ok(id.clone()));
                }
                self.resume(id);
            }
            Err(Failed { failure, left }) => {
                tracing::warn!(container.id = %id, error = %failure, "container could not be made");
                if left.is_empty() {
                    self.forget_container(id);
                } else {
                    for failure in &left {
                        tracing::error!(container.id = %id, error = %failure, "undo failed");
                    }
                    let exit = never_ran(ExitReason::StartError, &failure.message);
                    self.transit_container(id, ContainerEvent::Exited(exit));
                }
                for reply in waiters {
                    answer(reply, Err(failure.clone()));
                }
                self.resume(id);
            }
        }
    }

    fn start_done(&mut self, id: &ContainerId, result: Result<ContainerRecord, (Failure, Exit)>) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let Lane::Starting(waiters) = std::mem::replace(&mut container.lane, Lane::Idle) else {
            return;
        };
        let answer_all = match result {
            Ok(record) => {
                container.record = record;
                self.publish_container(id);
                Ok(())
            }
            Err((failure, exit)) => {
                self.transit_container(id, ContainerEvent::Exited(exit));
                Err(failure)
            }
        };
        let early = self
            .containers
            .get_mut(id)
            .and_then(|one| one.early_exit.take());
        if let Some((exit, seen)) = early {
            self.exited(id, exit, seen);
        }
        for reply in waiters {
            answer(reply, answer_all.clone());
        }
        self.resume(id);
    }

    fn stop_container_done(&mut self, id: &ContainerId, result: &Result<(), Failure>) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        if let Lane::Stopping(waiters, _) = std::mem::replace(&mut container.lane, Lane::Idle) {
            for reply in waiters {
                answer(reply, result.clone());
            }
        }
        if let Err(failure) = result {
            // Whoever waits for the end of this container must not wait for ever.
            for command in std::mem::take(&mut container.waiting) {
                refuse(command, failure);
            }
        }
        self.resume(id);
    }

    fn remove_container_done(&mut self, id: &ContainerId, result: &Result<(), Failure>) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let lane = std::mem::replace(&mut container.lane, Lane::Idle);
        let waiting = std::mem::take(&mut container.waiting);
        if let Err(failure) = result {
            let never = never_ran(ExitReason::Unknown, &failure.message);
            let exit = container.record.phase.exit().cloned().unwrap_or(never);
            self.transit_container(id, ContainerEvent::RemoveFailed(exit));
        } else {
            self.forget_container(id);
        }
        if let Lane::Removing(waiters) = lane {
            for reply in waiters {
                answer(reply, result.clone());
            }
        }
        for command in waiting {
            self.accept(command);
        }
    }

    fn exited(&mut self, id: &ContainerId, exit: crate::ports::TaskExit, seen: ExitSeen) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        if matches!(container.lane, Lane::Starting(_)) {
            container.early_exit = Some((exit, seen));
            return;
        }
        let started_at = container.record.phase.started_at();
        let mut exit = crate::ports::exit_of(exit, started_at);
        if seen == ExitSeen::No {
            exit.reason = ExitReason::Unknown;
            "the shim was gone before the process ended".clone_into(&mut exit.message);
        }
        self.transit_container(id, ContainerEvent::Exited(exit));
        self.resume(id);
    }

    /// Takes up the commands that waited for a container's lane.
    fn resume(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        if container.busy() || container.waiting.is_empty() {
            return;
        }
        for command in std::mem::take(&mut container.waiting) {
            self.accept(command);
        }
    }

    // ---- the pod's own lane ---------------------------------------------------------------------

    /// Starts the next pod verb that somebody waits for, when nothing stands in its way.
    fn advance_pod(&mut self) {
        if self.lane != PodLane::Idle {
            return;
        }
        let stop = self.stop_wanted || !self.stop_waiters.is_empty();
        let remove = !self.remove_waiters.is_empty();
        match self.record.phase {
            PodPhase::Ready(_) | PodPhase::NotReady { released: false } if stop || remove => {
                self.stop_wanted = true;
                if self.quiet_lanes() {
                    self.begin_stop();
                }
            }
            PodPhase::NotReady { released: true } => {
                self.stop_wanted = false;
                for reply in self.stop_waiters.drain(..) {
                    answer(reply, Ok(()));
                }
                if remove && self.quiet_lanes() {
                    self.begin_remove();
                }
            }
            PodPhase::Starting
            | PodPhase::Ready(_)
            | PodPhase::Stopping
            | PodPhase::NotReady { released: false }
            | PodPhase::Removing => {}
        }
    }

    /// Whether no container verb is at work; those that wait for a grace period stop waiting.
    fn quiet_lanes(&self) -> bool {
        let mut quiet = true;
        for container in self.containers.values() {
            if let Lane::Stopping(_, deadline) = &container.lane {
                deadline.send_replace(Instant::now());
            }
            quiet &= !container.busy();
        }
        quiet
    }

    fn begin_stop(&mut self) {
        let was = self.record.phase.clone();
        self.transit(PodEvent::Stop);
        self.lane = PodLane::Stopping;
        let alive = |one: &&Container| {
            one.record.phase.is_running() || one.record.phase == ContainerPhase::Created
        };
        let work = stop_pod_sandbox::Work {
            shared: Arc::clone(&self.shared),
            id: self.id.clone(),
            record: self.record.clone(),
            was,
            shim: self.shim.clone(),
            alive: self
                .containers
                .iter()
                .filter(|(_, one)| alive(one))
                .map(|(id, one)| (id.clone(), one.ended.subscribe()))
                .collect(),
            containers: self.containers.keys().cloned().collect(),
        };
        let events = self.events.clone();
        spawn::spawn("StopPodSandbox", async move {
            let result = stop_pod_sandbox::stop_pod_sandbox(work).await;
            send(&events, Event::StopDone(result)).await;
        });
    }

    fn begin_remove(&mut self) {
        self.transit(PodEvent::Remove);
        self.lane = PodLane::Removing;
        let work = remove_pod_sandbox::Work {
            shared: Arc::clone(&self.shared),
            id: self.id.clone(),
            record: self.record.clone(),
            containers: self.containers.keys().cloned().collect(),
        };
        let events = self.events.clone();
        spawn::spawn("RemovePodSandbox", async move {
            let result = remove_pod_sandbox::remove_pod_sandbox(work).await;
            send(&events, Event::RemoveDone(result)).await;
        });
    }

    // ---- transitions and views ------------------------------------------------------------------

    fn transit(&mut self, event: PodEvent) -> Life {
        match self.record.phase.apply(event) {
            Ok(PodTransition::To(phase)) => {
                self.record.phase = phase;
                self.publish();
                Life::Goes
            }
            Ok(PodTransition::Gone) => {
                self.shared.views.remove_pod(&self.id);
                lock(&self.shared.index).forget_pod(&self.id);
                Life::Ends
            }
            Err(refused) => {
                tracing::error!(error = %refused, "a pod event came at the wrong time");
                Life::Goes
            }
        }
    }

    fn transit_container(&mut self, id: &ContainerId, event: ContainerEvent) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        match container.record.phase.apply(event) {
            Ok(ContainerTransition::To(phase)) => {
                // Order: disk first, so that what is visible is never lost.
                container.record.phase = phase;
                if let Err(failure) = self.shared.ports.records.put_container(&container.record) {
                    tracing::error!(container.id = %id, error = %failure, "record not written");
                }
                let ended = container.record.phase.exit().is_some();
                self.publish_container(id);
                if let (true, Some(container)) = (ended, self.containers.get(id)) {
                    container.ended.send_replace(true);
                }
            }
            Ok(ContainerTransition::Gone) => self.forget_container(id),
            Err(refused) => {
                tracing::debug!(container.id = %id, error = %refused, "event ignored");
            }
        }
    }

    fn publish(&self) {
        self.shared.views.put_pod(PodView {
            id: self.id.clone(),
            record: Arc::new(self.record.clone()),
            shim: self.shim.clone(),
        });
    }

    fn publish_container(&self, id: &ContainerId) {
        let Some(container) = self.containers.get(id) else {
            return;
        };
        self.shared.views.put_container(ContainerView {
            id: id.clone(),
            pod: self.id.clone(),
            record: Arc::new(container.record.clone()),
        });
    }

    fn forget_container(&mut self, id: &ContainerId) {
        if let Some(container) = self.containers.remove(id) {
            container.ended.send_replace(true);
            for command in container.waiting {
                self.accept(command);
            }
        }
        self.shared.views.remove_container(id);
        lock(&self.shared.index).forget_container(id);
    }

    fn phase_name(&self) -> &'static str {
        if self.stop_wanted {
            "stopping"
        } else {
            self.record.phase.name()
        }
    }

    fn ready_shim(&self) -> Option<Arc<dyn Shim>> {
        let ready = self.record.phase.is_ready() && !self.stop_wanted;
        self.shim.clone().filter(|_| ready)
    }

    // ---- watchers -------------------------------------------------------------------------------

    fn watch_sandbox(&self) {
        let Some(shim) = self.shim.clone() else {
            return;
        };
        let events = self.events.clone();
        spawn::spawn("sandbox watch", async move {
            shim.sandbox_gone().await;
            send(&events, Event::SandboxGone).await;
        });
    }

    fn watch_container(&self, id: &ContainerId) {
        let Some(shim) = self.shim.clone() else {
            return;
        };
        let address = self.record.phase.sandbox().map(|s| s.shim_address.clone());
        let (shared, pod) = (Arc::clone(&self.shared), self.id.clone());
        let (id, events) = (id.clone(), self.events.clone());
        spawn::spawn("container watch", async move {
            let (exit, seen) = super::recover::await_exit(&shared, &pod, &id, shim, address).await;
            send(&events, Event::Exited(id, exit, seen)).await;
        });
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
        | Command::RemoveContainer(_, reply) => answer(reply, Err(failure.clone())),
    }
}

/// Sends an event to a driver that may have ended.
async fn send(events: &mpsc::Sender<Event>, event: Event) {
    // Ignored: a driver that ended needs no news.
    let _gone = events.send(event).await;
}
