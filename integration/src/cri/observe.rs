//! Calls that watch: stats, metrics, events and lists as streams; and the changes of limits.

use axil_proto::cri::{
    ContainerEventResponse, ContainerStats, ContainerStatsFilter, GetEventsRequest,
    LinuxContainerResources, ListContainerStatsRequest, ListMetricDescriptorsRequest,
    ListPodSandboxMetricsRequest, ListPodSandboxStatsRequest, MetricDescriptor, NetworkConfig,
    PodSandboxMetrics, PodSandboxStats, PodSandboxStatsFilter, PodSandboxStatsRequest,
    RuntimeConfig, StreamImagesRequest, StreamImagesResponse, UpdateContainerResourcesRequest,
    UpdatePodSandboxResourcesRequest, UpdateRuntimeConfigRequest,
};
use tonic::{Status, Streaming};

use super::{Answer, Cri};

/// Calls that watch and change.
#[expect(
    clippy::missing_errors_doc,
    reason = "each answers the daemon's status"
)]
impl Cri {
    /// ListContainerStats.
    pub fn container_stats_list(
        &self,
        filter: Option<ContainerStatsFilter>,
    ) -> Answer<Vec<ContainerStats>> {
        let request = ListContainerStatsRequest { filter };
        self.runtime(|mut client| async move { client.list_container_stats(request).await })
            .map(|list| list.stats)
    }

    /// PodSandboxStats.
    pub fn pod_stats(&self, id: &str) -> Answer<PodSandboxStats> {
        let request = PodSandboxStatsRequest {
            pod_sandbox_id: id.to_owned(),
        };
        self.runtime(|mut client| async move { client.pod_sandbox_stats(request).await })
            .and_then(|answer| answer.stats.ok_or_else(|| Status::internal("no stats")))
    }

    /// ListPodSandboxStats.
    pub fn pod_stats_list(
        &self,
        filter: Option<PodSandboxStatsFilter>,
    ) -> Answer<Vec<PodSandboxStats>> {
        let request = ListPodSandboxStatsRequest { filter };
        self.runtime(|mut client| async move { client.list_pod_sandbox_stats(request).await })
            .map(|list| list.stats)
    }

    /// ListMetricDescriptors.
    pub fn metric_descriptors(&self) -> Answer<Vec<MetricDescriptor>> {
        let request = ListMetricDescriptorsRequest {};
        self.runtime(|mut client| async move { client.list_metric_descriptors(request).await })
            .map(|list| list.descriptors)
    }

    /// ListPodSandboxMetrics.
    pub fn pod_metrics(&self) -> Answer<Vec<PodSandboxMetrics>> {
        let request = ListPodSandboxMetricsRequest {};
        self.runtime(|mut client| async move { client.list_pod_sandbox_metrics(request).await })
            .map(|list| list.pod_metrics)
    }

    /// GetContainerEvents; what happens from now on is in the stream.
    pub fn events(&self) -> Answer<Streaming<ContainerEventResponse>> {
        let request = GetEventsRequest {};
        self.runtime(|mut client| async move { client.get_container_events(request).await })
    }

    /// UpdateContainerResources.
    pub fn update(&self, id: &str, linux: LinuxContainerResources) -> Answer<()> {
        let request = UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(linux),
            ..UpdateContainerResourcesRequest::default()
        };
        self.runtime(|mut client| async move { client.update_container_resources(request).await })
            .map(|_| ())
    }

    /// UpdatePodSandboxResources.
    pub fn update_pod(
        &self,
        id: &str,
        overhead: Option<LinuxContainerResources>,
        resources: Option<LinuxContainerResources>,
    ) -> Answer<()> {
        let request = UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: id.to_owned(),
            overhead,
            resources,
        };
        self.runtime(|mut client| async move { client.update_pod_sandbox_resources(request).await })
            .map(|_| ())
    }

    /// UpdateRuntimeConfig.
    pub fn update_runtime_config(&self, pod_cidr: &str) -> Answer<()> {
        let network_config = Some(NetworkConfig {
            pod_cidr: pod_cidr.to_owned(),
        });
        let request = UpdateRuntimeConfigRequest {
            runtime_config: Some(RuntimeConfig { network_config }),
        };
        self.runtime(|mut client| async move { client.update_runtime_config(request).await })
            .map(|_| ())
    }

    /// StreamImages.
    pub fn image_stream(
        &self,
        request: StreamImagesRequest,
    ) -> Answer<Streaming<StreamImagesResponse>> {
        self.images(|mut client| async move { client.stream_images(request).await })
    }

    /// The next message of a stream; `None` at its end.
    pub fn next<T>(&self, stream: &mut Streaming<T>) -> Answer<Option<T>> {
        let bounded = async { tokio::time::timeout(self.deadline, stream.message()).await };
        match self.reactor.block_on(bounded) {
            Ok(message) => message,
            Err(_) => Err(Status::deadline_exceeded(format!(
                "no message within {:?}",
                self.deadline
            ))),
        }
    }

    /// Every message of a stream up to its end.
    pub fn drain<T>(&self, mut stream: Streaming<T>) -> Answer<Vec<T>> {
        let mut messages = Vec::new();
        while let Some(message) = self.next(&mut stream)? {
            messages.push(message);
        }
        Ok(messages)
    }
}
