//! Transitions: recorded, then published; and the watchers that bring news of ends.

use std::sync::Arc;

use axil_proto::ids::ContainerId;

use super::{Event, Life, PodDriver, send};
use crate::domain::container::phase::{ContainerEvent, ContainerPhase, ContainerTransition};
use crate::domain::pod::phase::{PodEvent, PodTransition};
use crate::engine::events::{News, NewsKind};
use crate::engine::views::{ContainerView, PodView};
use crate::engine::{lock, recover, spawn};
use crate::ports::{Shim, unix_nanos};

impl PodDriver {
    pub(super) fn transit(&mut self, event: PodEvent) -> Life {
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

    pub(super) fn transit_container(&mut self, id: &ContainerId, event: ContainerEvent) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        // A removal that failed ends in a state that was told before.
        let was_removing = matches!(container.record.phase, ContainerPhase::Removing { .. });
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
                    if !was_removing {
                        self.tell(id.as_str(), NewsKind::Stopped);
                    }
                }
            }
            Ok(ContainerTransition::Gone) => self.forget_container(id),
            Err(refused) => {
                tracing::debug!(container.id = %id, error = %refused, "event ignored");
            }
        }
    }

    pub(super) fn publish(&self) {
        self.shared.views.put_pod(PodView {
            id: self.id.clone(),
            record: Arc::new(self.record.clone()),
            shim: self.shim.clone(),
        });
    }

    pub(super) fn publish_container(&self, id: &ContainerId) {
        let Some(container) = self.containers.get(id) else {
            return;
        };
        self.shared.views.put_container(ContainerView {
            id: id.clone(),
            pod: self.id.clone(),
            record: Arc::new(container.record.clone()),
        });
    }

    /// Tells whoever listens what happened, after it was published.
    pub(super) fn tell(&self, about: &str, kind: NewsKind) {
        let shared = &self.shared;
        if shared.events.nobody_listens() {
            return;
        }
        let views = self.containers.keys();
        let views = views.filter_map(|id| shared.views.container(id));
        let news = News {
            about: about.to_owned(),
            kind,
            at: unix_nanos(),
            pod: PodView {
                id: self.id.clone(),
                record: Arc::new(self.record.clone()),
                shim: None,
            },
            containers: views.filter(|one| one.record.phase.is_listed()).collect(),
        };
        shared.events.tell(news, &shared.metrics);
    }

    pub(super) fn forget_container(&mut self, id: &ContainerId) {
        if let Some(container) = self.containers.remove(id) {
            container.ended.send_replace(true);
            for command in container.waiting {
                self.accept(command);
            }
        }
        self.shared.views.remove_container(id);
        lock(&self.shared.index).forget_container(id);
    }

    pub(super) fn phase_name(&self) -> &'static str {
        if self.stop_wanted {
            "stopping"
        } else {
            self.record.phase.name()
        }
    }

    pub(super) fn ready_shim(&self) -> Option<Arc<dyn Shim>> {
        let ready = self.record.phase.is_ready() && !self.stop_wanted;
        self.shim.clone().filter(|_| ready)
    }

    pub(super) fn watch_sandbox(&self) {
        let Some(shim) = self.shim.clone() else {
            return;
        };
        let events = self.events.clone();
        spawn::spawn("sandbox watch", async move {
            shim.sandbox_gone().await;
            send(&events, Event::SandboxGone).await;
        });
    }

    pub(super) fn watch_container(&self, id: &ContainerId) {
        let Some(shim) = self.shim.clone() else {
            return;
        };
        let address = self.record.phase.sandbox().map(|s| s.shim_address.clone());
        let (shared, pod) = (Arc::clone(&self.shared), self.id.clone());
        let (id, events) = (id.clone(), self.events.clone());
        spawn::spawn("container watch", async move {
            let (exit, seen) = recover::await_exit(&shared, &pod, &id, shim, address).await;
            send(&events, Event::Exited(id, exit, seen)).await;
        });
    }
}
