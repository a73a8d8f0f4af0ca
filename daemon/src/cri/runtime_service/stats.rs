//! What pods and containers use: one, all that a filter wants, and as a stream.

use axil_proto::cri;

use super::RuntimeCalls;
use crate::cri::chunks::{self, Streamed};
use crate::cri::convert::{filter, stats};
use crate::domain::failure::Failure;
use crate::engine::stats::{ContainerStats, PodStats};

impl RuntimeCalls {
    pub(super) async fn stats_of_container(
        &self,
        request: cri::ContainerStatsRequest,
    ) -> Result<cri::ContainerStatsResponse, Failure> {
        let view = self.engine.container(&request.container_id)?;
        let found = self.engine.container_stats(vec![view]).await;
        let mountpoint = self.engine.meter().mountpoint();
        Ok(cri::ContainerStatsResponse {
            stats: found.first().map(|one| stats::container(one, &mountpoint)),
        })
    }

    pub(super) async fn stats_of_pod(
        &self,
        request: cri::PodSandboxStatsRequest,
    ) -> Result<cri::PodSandboxStatsResponse, Failure> {
        let view = self.engine.pod(&request.pod_sandbox_id)?;
        let found = self.engine.pod_stats(vec![view]).await;
        let mountpoint = self.engine.meter().mountpoint();
        Ok(cri::PodSandboxStatsResponse {
            stats: found.first().map(|one| stats::pod(one, &mountpoint)),
        })
    }

    pub(super) async fn container_stats_list(
        &self,
        request: cri::ListContainerStatsRequest,
    ) -> cri::ListContainerStatsResponse {
        let found = self.wanted_container_stats(request.filter).await;
        let mountpoint = self.engine.meter().mountpoint();
        let found = found.iter().map(|one| stats::container(one, &mountpoint));
        cri::ListContainerStatsResponse {
            stats: found.collect(),
        }
    }

    pub(super) async fn container_stats_stream(
        &self,
        request: cri::StreamContainerStatsRequest,
    ) -> Streamed<cri::StreamContainerStatsResponse> {
        let found = self.wanted_container_stats(request.filter).await;
        let mountpoint = self.engine.meter().mountpoint();
        let found = found.into_iter();
        let found = found.map(move |one| stats::container(&one, &mountpoint));
        chunks::stream(found, |container_stats| cri::StreamContainerStatsResponse {
            container_stats,
        })
    }

    pub(super) async fn pod_stats_list(
        &self,
        request: cri::ListPodSandboxStatsRequest,
    ) -> cri::ListPodSandboxStatsResponse {
        let found = self.wanted_pod_stats(request.filter).await;
        let mountpoint = self.engine.meter().mountpoint();
        let found = found.iter().map(|one| stats::pod(one, &mountpoint));
        cri::ListPodSandboxStatsResponse {
            stats: found.collect(),
        }
    }

    pub(super) async fn pod_stats_stream(
        &self,
        request: cri::StreamPodSandboxStatsRequest,
    ) -> Streamed<cri::StreamPodSandboxStatsResponse> {
        let found = self.wanted_pod_stats(request.filter).await;
        let mountpoint = self.engine.meter().mountpoint();
        let found = found.into_iter();
        let found = found.map(move |one| stats::pod(&one, &mountpoint));
        chunks::stream(found, |pod_sandbox_stats| {
            cri::StreamPodSandboxStatsResponse { pod_sandbox_stats }
        })
    }

    async fn wanted_container_stats(
        &self,
        wanted: Option<cri::ContainerStatsFilter>,
    ) -> Vec<ContainerStats> {
        let wanted = wanted.unwrap_or_default();
        let mut views = self.engine.containers();
        views.retain(|view| {
            filter::id_matches(&wanted.id, view.id.as_str())
                && filter::id_matches(&wanted.pod_sandbox_id, view.pod.as_str())
                && filter::labels_match(&wanted.label_selector, &view.record.spec.labels)
        });
        self.engine.container_stats(views).await
    }

    /// Pods that are not ready use nothing, and are left out.
    async fn wanted_pod_stats(&self, wanted: Option<cri::PodSandboxStatsFilter>) -> Vec<PodStats> {
        let wanted = wanted.unwrap_or_default();
        let mut views = self.engine.pods();
        views.retain(|view| {
            view.record.phase.is_ready()
                && filter::id_matches(&wanted.id, view.id.as_str())
                && filter::labels_match(&wanted.label_selector, &view.record.spec.labels)
        });
        self.engine.pod_stats(views).await
    }
}
