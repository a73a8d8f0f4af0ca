//! UpdatePodSandboxResources: the sums of a pod's resources and its overhead are recorded. The pod's cgroup is
//! the kubelet's, which has changed it before it calls (CRI, UpdatePodSandboxResources).

use super::Engine;
use super::pod_driver::Command;
use crate::domain::failure::Failure;
use crate::domain::pod::record::PodResources;

impl Engine {
    /// Records a pod's overhead and resources; what is not given stays.
    ///
    /// # Errors
    /// `NotFound`, `FailedPrecondition` when it is not ready, or the record cannot be written.
    pub async fn update_pod_sandbox_resources(
        &self,
        id: &str,
        change: PodResources,
    ) -> Result<(), Failure> {
        let unknown = || Failure::not_found(format!("pod sandbox {id:?} does not exist"));
        let pod = self.find_pod(id)?.ok_or_else(unknown)?;
        let command = |reply| Command::UpdatePod(Box::new(change), reply);
        self.ask(&pod, command)
            .await
            .unwrap_or_else(|| Err(unknown()))
    }
}
