//! Metrics of pods: all pods in one answer, however many there are.

use axil_proto::cri;

use super::RuntimeCalls;
use crate::cri::chunks::{self, Streamed};
use crate::cri::convert::pod_metrics;
use crate::domain::failure::Failure;
use crate::ports::unix_nanos;

impl RuntimeCalls {
    pub(super) async fn pod_metrics_list(
        &self,
    ) -> Result<cri::ListPodSandboxMetricsResponse, Failure> {
        let node = self.engine.measure_pods().await?;
        let now = unix_nanos();
        let pods = node
            .pods
            .iter()
            .map(|pod| pod_metrics::pod(pod, &node, now));
        Ok(cri::ListPodSandboxMetricsResponse {
            pod_metrics: pods.collect(),
        })
    }

    pub(super) async fn pod_metrics_stream(
        &self,
    ) -> Result<Streamed<cri::StreamPodSandboxMetricsResponse>, Failure> {
        let mut node = self.engine.measure_pods().await?;
        let pods = std::mem::take(&mut node.pods).into_iter();
        let now = unix_nanos();
        let pods = pods.map(move |pod| pod_metrics::pod(&pod, &node, now));
        Ok(chunks::stream(pods, |pod_sandbox_metrics| {
            cri::StreamPodSandboxMetricsResponse {
                pod_sandbox_metrics,
            }
        }))
    }
}
