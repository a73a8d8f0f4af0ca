//! Events: what verbs and watchers bring back, and the answers their callers get.

use axil_proto::ids::ContainerId;

use super::{Event, ExitSeen, Lane, Life, PodDriver, PodLane, answer, never_ran, refuse};
use crate::domain::container::phase::{ContainerEvent, Exit, ExitReason};
use crate::domain::container::record::ContainerRecord;
use crate::domain::failure::Failure;
use crate::domain::pod::phase::PodEvent;
use crate::engine::events::NewsKind;
use crate::engine::run_pod_sandbox;
use crate::engine::steps::Failed;

impl PodDriver {
    pub(super) fn apply(&mut self, event: Event) -> Life {
        match event {
            Event::RunDone(result) => return self.run_done(*result),
            Event::StopDone(result) => self.stop_done(result),
            Event::RemoveDone(result) => return self.remove_done(result),
            Event::CreateDone(id, result) => self.create_done(&id, *result),
            Event::StartDone(id, result) => self.start_done(&id, *result),
            Event::StopContainerDone(id, result) => self.stop_container_done(&id, &result),
            Event::RemoveContainerDone(id, result) => self.remove_container_done(&id, &result),
            Event::UpdateDone(id, result) => self.update_done(&id, result),
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

    pub(super) fn run_done(&mut self, result: run_pod_sandbox::Outcome) -> Life {
        self.lane = PodLane::Idle;
        match result {
            Ok((record, shim)) => {
                self.record = record;
                self.shim = Some(shim);
                self.publish();
                self.watch_sandbox();
                tracing::info!("pod is ready");
                self.tell(self.id.as_str(), NewsKind::Created);
                self.tell(self.id.as_str(), NewsKind::Started);
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

    pub(super) fn stop_done(&mut self, result: Result<(), Failure>) {
        self.lane = PodLane::Idle;
        self.stop_wanted = false;
        self.shim = None;
        let event = if result.is_ok() {
            PodEvent::Released
        } else {
            PodEvent::ReleaseFailed
        };
        self.transit(event);
        if std::mem::take(&mut self.stops_ready) {
            self.tell(self.id.as_str(), NewsKind::Stopped);
        }
        if let Err(failure) = &result {
            tracing::error!(error = %failure, "the pod could not be stopped whole");
            for reply in self.remove_waiters.drain(..) {
                answer(reply, Err(failure.clone()));
            }
        }
        for reply in self.stop_waiters.drain(..) {
            answer(reply, result.clone());
        }
        for command in std::mem::take(&mut self.after_stop) {
            self.accept(command);
        }
    }

    pub(super) fn remove_done(&mut self, result: Result<(), Failure>) -> Life {
        self.lane = PodLane::Idle;
        let life = if result.is_ok() {
            let ids: Vec<_> = self.containers.keys().cloned().collect();
            for id in ids {
                self.forget_container(&id);
                self.tell(id.as_str(), NewsKind::Deleted);
            }
            let life = self.transit(PodEvent::Removed);
            self.tell(self.id.as_str(), NewsKind::Deleted);
            life
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

    pub(super) fn create_done(
        &mut self,
        id: &ContainerId,
        result: Result<ContainerRecord, Failed>,
    ) {
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
                self.tell(id.as_str(), NewsKind::Created);
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

    pub(super) fn start_done(
        &mut self,
        id: &ContainerId,
        result: Result<ContainerRecord, (Failure, Exit)>,
    ) {
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
                self.tell(id.as_str(), NewsKind::Started);
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

    pub(super) fn stop_container_done(&mut self, id: &ContainerId, result: &Result<(), Failure>) {
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

    pub(super) fn remove_container_done(&mut self, id: &ContainerId, result: &Result<(), Failure>) {
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
            self.tell(id.as_str(), NewsKind::Deleted);
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

    pub(super) fn exited(
        &mut self,
        id: &ContainerId,
        exit: crate::ports::TaskExit,
        seen: ExitSeen,
    ) {
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
    pub(super) fn resume(&mut self, id: &ContainerId) {
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
}
