//! Changes of limits while containers run.

use axil_proto::cri;

use super::RuntimeCalls;
use crate::cri::convert::{need, resources};
use crate::domain::failure::Failure;
use crate::domain::pod::record::PodResources;

impl RuntimeCalls {
    pub(super) async fn change_container(
        &self,
        request: cri::UpdateContainerResourcesRequest,
    ) -> Result<cri::UpdateContainerResourcesResponse, Failure> {
        let change = resources::named("linux", need("linux", request.linux)?)?;
        let id = &request.container_id;
        self.engine.update_container_resources(id, change).await?;
        Ok(cri::UpdateContainerResourcesResponse {})
    }

    pub(super) async fn change_pod(
        &self,
        request: cri::UpdatePodSandboxResourcesRequest,
    ) -> Result<cri::UpdatePodSandboxResourcesResponse, Failure> {
        let part = |field: &str, wire: Option<cri::LinuxContainerResources>| {
            wire.map(|wire| resources::named(field, wire)).transpose()
        };
        let change = PodResources {
            overhead: part("overhead", request.overhead)?,
            resources: part("resources", request.resources)?,
        };
        let id = &request.pod_sandbox_id;
        self.engine.update_pod_sandbox_resources(id, change).await?;
        Ok(cri::UpdatePodSandboxResourcesResponse {})
    }

    pub(super) fn change_runtime_config(
        &self,
        request: cri::UpdateRuntimeConfigRequest,
    ) -> Result<cri::UpdateRuntimeConfigResponse, Failure> {
        let network = request
            .runtime_config
            .and_then(|config| config.network_config);
        let pod_cidr = network.unwrap_or_default().pod_cidr;
        self.engine.update_runtime_config(&pod_cidr)?;
        Ok(cri::UpdateRuntimeConfigResponse {})
    }
}
