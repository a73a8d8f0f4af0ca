//! The pod's own lane: which pod verb begins when nothing stands in its way.

use std::sync::Arc;

use tokio::time::Instant;

use super::{Container, Event, Lane, PodDriver, PodLane, answer, send};
use crate::domain::container::phase::ContainerPhase;
use crate::domain::pod::phase::{PodEvent, PodPhase};
use crate::engine::{remove_pod_sandbox, spawn, stop_pod_sandbox};

impl PodDriver {
    /// Starts the next pod verb that somebody waits for, when nothing stands in its way.
    pub(super) fn advance_pod(&mut self) {
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
    pub(super) fn quiet_lanes(&self) -> bool {
        let mut quiet = true;
        for container in self.containers.values() {
            if let Lane::Stopping(_, deadline) = &container.lane {
                deadline.send_replace(Instant::now());
            }
            quiet &= !container.busy();
        }
        quiet
    }

    pub(super) fn begin_stop(&mut self) {
        let was = self.record.phase.clone();
        self.stops_ready = was.is_ready();
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

    pub(super) fn begin_remove(&mut self) {
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
}
