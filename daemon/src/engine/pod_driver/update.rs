//! Changes of limits: recorded before they are made, and how they ended after.

use std::sync::Arc;

use axil_proto::ids::ContainerId;
use tokio::sync::oneshot;

use super::{Command, Event, Lane, PodDriver, Reply, answer, send};
use crate::domain::container::phase::ContainerPhase;
use crate::domain::failure::Failure;
use crate::domain::pod::record::PodResources;
use crate::domain::resources::LinuxResources;
use crate::engine::update_container_resources::{UpdatePlan, Work, update_container_resources};
use crate::engine::{pods, spawn};

impl PodDriver {
    pub(super) fn accept_update(
        &mut self,
        id: ContainerId,
        change: LinuxResources,
        reply: Reply<()>,
    ) {
        let shim = self.ready_shim();
        let shared = Arc::clone(&self.shared);
        let Some(container) = self.containers.get_mut(&id) else {
            return answer(reply, Err(pods::unknown_container(id.as_str())));
        };
        if container.busy() {
            let command = Command::Update(id, Box::new(change), reply);
            return container.waiting.push(command);
        }
        let record = &mut container.record;
        let alive = matches!(
            record.phase,
            ContainerPhase::Created | ContainerPhase::Running { .. }
        );
        let Some(shim) = shim.filter(|_| alive) else {
            let message = format!(
                "container {id} is {} in a pod that is {}: only one that is there has limits",
                record.phase.name(),
                self.record.phase.name()
            );
            return answer(reply, Err(Failure::precondition(message)));
        };
        let plan = match UpdatePlan::new(record.limits(), &change, &shared.host) {
            Ok(plan) => plan,
            Err(failure) => return answer(reply, Err(failure)),
        };
        // Order: the record has what is asked for before the kernel has.
        record.updating = Some(plan.wanted.clone());
        if let Err(failure) = shared.ports.records.put_container(record) {
            record.updating = None;
            return answer(reply, Err(failure));
        }
        container.lane = Lane::Updating(reply);
        let cgroups = &shared.ports.cgroups;
        let cgroup = cgroups.container_dir(&self.id, &self.record.spec, id.as_str());
        let work = Work {
            shared,
            id: id.clone(),
            cgroup,
            plan,
            shim,
        };
        let events = self.events.clone();
        spawn::spawn("UpdateContainerResources", async move {
            let result = update_container_resources(work).await;
            send(&events, Event::UpdateDone(id, result)).await;
        });
    }

    pub(super) fn update_done(&mut self, id: &ContainerId, result: Result<(), Failure>) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let Lane::Updating(reply) = std::mem::replace(&mut container.lane, Lane::Idle) else {
            return;
        };
        let record = &mut container.record;
        let wanted = record.updating.take();
        if result.is_ok() {
            record.resources = wanted.or_else(|| record.resources.take());
        }
        let recorded = self.shared.ports.records.put_container(record);
        if let Err(failure) = &recorded {
            tracing::error!(container.id = %id, error = %failure, "record not written");
        }
        self.publish_container(id);
        answer(reply, result.and(recorded));
        self.resume(id);
    }

    /// Does updates again that a daemon died in: each of their writes may be done twice.
    pub(super) fn resume_updates(&mut self) {
        let unfinished: Vec<_> = self
            .containers
            .iter_mut()
            .filter_map(|(id, one)| Some((id.clone(), one.record.updating.take()?)))
            .collect();
        for (id, wanted) in unfinished {
            tracing::info!(container.id = %id, "an interrupted update of limits is done again");
            // Nobody waits for the answer; a failure is in the log of the update.
            let (nobody, _) = oneshot::channel();
            self.accept_update(id, wanted, nobody);
        }
    }

    pub(super) fn accept_update_pod(&mut self, change: PodResources, reply: Reply<()>) {
        if self.ready_shim().is_none() {
            let message = format!("pod sandbox {} is {}", self.id, self.phase_name());
            return answer(reply, Err(Failure::precondition(message)));
        }
        let mut record = self.record.clone();
        let resources = &mut record.resources;
        resources.overhead = change.overhead.or_else(|| resources.overhead.take());
        resources.resources = change.resources.or_else(|| resources.resources.take());
        let written = self.shared.ports.records.put_pod(&record);
        if written.is_ok() {
            self.record = record;
            self.publish();
        }
        answer(reply, written);
    }
}
