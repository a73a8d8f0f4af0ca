//! Lists of pods and containers, whole and as streams, with their filters.

use axil_proto::cri;

use super::RuntimeCalls;
use crate::cri::chunks::{self, Streamed};
use crate::cri::convert::{container, filter, pod};
use crate::engine::views::{ContainerView, PodView};

impl RuntimeCalls {
    /// The pods a filter wants.
    fn wanted_pods(&self, wanted: Option<cri::PodSandboxFilter>) -> Vec<PodView> {
        let mut views = self.engine.pods();
        let wanted = wanted.unwrap_or_default();
        views.retain(|view| {
            filter::id_matches(&wanted.id, view.id.as_str())
                && filter::labels_match(&wanted.label_selector, &view.record.spec.labels)
                && wanted
                    .state
                    .is_none_or(|state| state.state == pod::state_of(view))
        });
        views
    }

    /// The containers a filter wants.
    fn wanted_containers(&self, wanted: Option<cri::ContainerFilter>) -> Vec<ContainerView> {
        let mut views = self.engine.containers();
        let wanted = wanted.unwrap_or_default();
        views.retain(|view| {
            filter::id_matches(&wanted.id, view.id.as_str())
                && filter::id_matches(&wanted.pod_sandbox_id, view.pod.as_str())
                && wanted
                    .state
                    .is_none_or(|state| state.state == container::state_of(view))
                && filter::labels_match(&wanted.label_selector, &view.record.spec.labels)
        });
        views
    }

    pub(super) fn pod_list(
        &self,
        request: cri::ListPodSandboxRequest,
    ) -> cri::ListPodSandboxResponse {
        let views = self.wanted_pods(request.filter);
        cri::ListPodSandboxResponse {
            items: views.iter().map(pod::to_list).collect(),
        }
    }

    pub(super) fn container_list(
        &self,
        request: cri::ListContainersRequest,
    ) -> cri::ListContainersResponse {
        let views = self.wanted_containers(request.filter);
        cri::ListContainersResponse {
            containers: views.iter().map(container::to_list).collect(),
        }
    }

    pub(super) fn pod_stream(
        &self,
        request: cri::StreamPodSandboxesRequest,
    ) -> Streamed<cri::StreamPodSandboxesResponse> {
        let views = self.wanted_pods(request.filter).into_iter();
        chunks::stream(views.map(|view| pod::to_list(&view)), |pod_sandboxes| {
            cri::StreamPodSandboxesResponse { pod_sandboxes }
        })
    }

    pub(super) fn container_stream(
        &self,
        request: cri::StreamContainersRequest,
    ) -> Streamed<cri::StreamContainersResponse> {
        let views = self.wanted_containers(request.filter).into_iter();
        chunks::stream(views.map(|view| container::to_list(&view)), |containers| {
            cri::StreamContainersResponse { containers }
        })
    }
}
