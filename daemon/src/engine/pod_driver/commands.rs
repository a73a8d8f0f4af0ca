//! Commands of callers: each joins a verb that does the same, waits for a busy lane, or begins a verb.

use std::sync::Arc;
use std::time::Duration;

use axil_proto::ids::{ContainerId, PodId};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::{Command, Container, Event, Lane, PodDriver, PodLane, Reply, answer, send};
use crate::domain::container::phase::{ContainerEvent, ContainerPhase, ContainerTransition};
use crate::domain::container::record::{CONTAINER_RECORD_VERSION, ContainerRecord};
use crate::domain::failure::{Class, Failure};
use crate::domain::pod::phase::PodPhase;
use crate::engine::pods::Creation;
use crate::engine::{
    create_container, lock, pods, remove_container, run_pod_sandbox, spawn, start_container,
    stop_container,
};
use crate::ports::unix_nanos;

impl PodDriver {
    pub(super) fn accept(&mut self, command: Command) {
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
            Command::Update(id, change, reply) => self.accept_update(id, *change, reply),
            Command::UpdatePod(change, reply) => self.accept_update_pod(*change, reply),
        }
    }

    pub(super) fn accept_run(&mut self, reply: Reply<PodId>) {
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

    pub(super) fn accept_create(&mut self, creation: Creation) {
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
            volumes: creation.resolved_volumes(),
            spec: creation.spec,
            user: None,
            stop_signal: 0,
            phase: ContainerPhase::Creating,
            resources: None,
            updating: None,
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
            volumes: creation.volumes,
        };
        let events = self.events.clone();
        spawn::spawn("CreateContainer", async move {
            let result = create_container::create_container(work).await;
            send(&events, Event::CreateDone(id, Box::new(result))).await;
        });
    }

    /// Bundle of the container whose PID namespace a new one joins.
    pub(super) fn target_pid(&self, record: &ContainerRecord) -> Option<(ContainerId, bool)> {
        let target = &record.spec.security.namespaces.target_id;
        let id: ContainerId = target.parse().ok()?;
        let running = self
            .containers
            .get(&id)
            .is_some_and(|one| one.record.phase.is_running());
        Some((id, running))
    }

    pub(super) fn accept_start(&mut self, id: ContainerId, reply: Reply<()>) {
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

    pub(super) fn accept_stop(&mut self, id: ContainerId, grace: Duration, reply: Reply<()>) {
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

    pub(super) fn accept_remove(&mut self, id: ContainerId, reply: Reply<()>) {
        let shim = self.shim.clone();
        let Some(container) = self.containers.get_mut(&id) else {
            return answer(reply, Ok(()));
        };
        if let Lane::Removing(waiters) = &mut container.lane {
            return waiters.push(reply);
        }
        // The kubelet's collector of dead containers does not know that the pod's worker stops the pod.
        // Both would ask the shim, one of them for its end.
        if self.lane == PodLane::Stopping {
            return self.after_stop.push(Command::RemoveContainer(id, reply));
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
}
