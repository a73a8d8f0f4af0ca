//! Queries: read the published views, never wait for a driver.

use axil_proto::ids::{ContainerId, PodId};

use super::views::{ContainerView, PodView};
use super::{Engine, pods};
use crate::domain::failure::Failure;

impl Engine {
    /// Every listed pod.
    #[must_use]
    pub fn pods(&self) -> Vec<PodView> {
        self.shared.views.pods()
    }

    /// Every listed container.
    #[must_use]
    pub fn containers(&self) -> Vec<ContainerView> {
        self.shared.views.containers()
    }

    /// Begins to listen to what happens to pods and containers.
    ///
    /// # Errors
    /// `Exhausted` when too many listen, `Unavailable` when the daemon is going down.
    pub fn listen(&self) -> Result<super::events::Listener, Failure> {
        self.shared.events.listen()
    }

    /// One pod by id or unique prefix.
    ///
    /// # Errors
    /// `NotFound`, or `InvalidArgument` when several match.
    pub fn pod(&self, id: &str) -> Result<PodView, Failure> {
        let unknown = || Failure::not_found(format!("pod sandbox {id:?} does not exist"));
        let found: PodId = self.find_pod(id)?.ok_or_else(unknown)?;
        let view = self
            .shared
            .views
            .pod(&found)
            .filter(|pod| pod.record.phase.is_listed());
        view.ok_or_else(unknown)
    }

    /// One container by id or unique prefix.
    ///
    /// # Errors
    /// `NotFound`, or `InvalidArgument` when several match.
    pub fn container(&self, id: &str) -> Result<ContainerView, Failure> {
        let (_, found): (PodId, ContainerId) = self.need_container(id)?;
        let view = self.shared.views.container(&found);
        view.filter(|one| one.record.phase.is_listed())
            .ok_or_else(|| pods::unknown_container(id))
    }

    /// Bundle directory of a container, for its verbose status.
    #[must_use]
    pub fn bundle(&self, view: &ContainerView) -> std::path::PathBuf {
        self.shared.ports.files.bundle(&view.pod, &view.id)
    }

    /// Pins of a pod's namespaces, for its verbose status.
    #[must_use]
    pub fn namespaces(&self, view: &PodView) -> crate::ports::NamespacePaths {
        self.shared
            .ports
            .namespaces
            .paths(&view.id, &view.record.spec)
    }
}
