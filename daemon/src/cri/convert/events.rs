//! News of pods and containers, on the wire.

use axil_proto::cri;

use super::{container, pod};
use crate::engine::events::{News, NewsKind};

/// An event with the statuses of the pod and of all its containers.
#[must_use]
pub fn to_wire(news: &News) -> cri::ContainerEventResponse {
    let kind = match news.kind {
        NewsKind::Created => cri::ContainerEventType::ContainerCreatedEvent,
        NewsKind::Started => cri::ContainerEventType::ContainerStartedEvent,
        NewsKind::Stopped => cri::ContainerEventType::ContainerStoppedEvent,
        NewsKind::Deleted => cri::ContainerEventType::ContainerDeletedEvent,
    };
    let logs = &news.pod.record.spec.log_directory;
    let containers = news.containers.iter();
    cri::ContainerEventResponse {
        container_id: news.about.clone(),
        container_event_type: kind as i32,
        created_at: news.at,
        pod_sandbox_status: Some(pod::to_status(&news.pod)),
        containers_statuses: containers
            .map(|one| container::to_status(one, logs))
            .collect(),
    }
}
