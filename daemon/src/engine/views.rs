//! Published views: immutable pictures of pods and containers that queries read without waiting.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use axil_proto::ids::{ContainerId, PodId};

use crate::domain::container::record::ContainerRecord;
use crate::domain::pod::record::PodRecord;
use crate::ports::Shim;

/// A pod as last published by its driver.
#[derive(Clone)]
#[expect(missing_debug_implementations, reason = "holds the shim's connection")]
pub struct PodView {
    /// Its id.
    pub id: PodId,
    /// Its record.
    pub record: Arc<PodRecord>,
    /// Connection to its shim while it is ready.
    pub shim: Option<Arc<dyn Shim>>,
}

/// A container as last published by its pod's driver.
#[derive(Debug, Clone)]
pub struct ContainerView {
    /// Its id.
    pub id: ContainerId,
    /// Its pod.
    pub pod: PodId,
    /// Its record.
    pub record: Arc<ContainerRecord>,
}

/// Everything published.
#[derive(Default)]
#[expect(missing_debug_implementations, reason = "holds shim connections")]
pub struct Views {
    pods: RwLock<BTreeMap<PodId, PodView>>,
    containers: RwLock<BTreeMap<ContainerId, ContainerView>>,
}

impl Views {
    /// Publishes a pod.
    pub fn put_pod(&self, view: PodView) {
        write(&self.pods).insert(view.id.clone(), view);
    }

    /// Withdraws a pod.
    pub fn remove_pod(&self, id: &PodId) {
        write(&self.pods).remove(id);
    }

    /// Publishes a container.
    pub fn put_container(&self, view: ContainerView) {
        write(&self.containers).insert(view.id.clone(), view);
    }

    /// Withdraws a container.
    pub fn remove_container(&self, id: &ContainerId) {
        write(&self.containers).remove(id);
    }

    /// A pod by its full id.
    #[must_use]
    pub fn pod(&self, id: &PodId) -> Option<PodView> {
        read(&self.pods).get(id).cloned()
    }

    /// A container by its full id.
    #[must_use]
    pub fn container(&self, id: &ContainerId) -> Option<ContainerView> {
        read(&self.containers).get(id).cloned()
    }

    /// All pods that are listed.
    #[must_use]
    pub fn pods(&self) -> Vec<PodView> {
        let pods = read(&self.pods);
        pods.values()
            .filter(|pod| pod.record.phase.is_listed())
            .cloned()
            .collect()
    }

    /// All containers that are listed.
    #[must_use]
    pub fn containers(&self) -> Vec<ContainerView> {
        let containers = read(&self.containers);
        containers
            .values()
            .filter(|one| one.record.phase.is_listed())
            .cloned()
            .collect()
    }

    /// Ids of pods that begin with `prefix`, at most `limit`.
    #[must_use]
    pub fn pods_by_prefix(&self, prefix: &str, limit: usize) -> Vec<PodId> {
        let pods = read(&self.pods);
        pods.keys()
            .filter(|id| id.as_str().starts_with(prefix))
            .take(limit)
            .cloned()
            .collect()
    }

    /// Ids of containers that begin with `prefix`, at most `limit`.
    #[must_use]
    pub fn containers_by_prefix(&self, prefix: &str, limit: usize) -> Vec<ContainerId> {
        let all = read(&self.containers);
        all.keys()
            .filter(|id| id.as_str().starts_with(prefix))
            .take(limit)
            .cloned()
            .collect()
    }
}

// A panic while a lock is held leaves a whole map behind: poison means nothing here.
fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}
