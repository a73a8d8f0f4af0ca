//! What pods and containers use. Who they are comes from the views, what they use from the meter, and nobody is
//! asked: not the driver, not the shim.

use std::sync::Arc;

use super::Engine;
use super::views::{ContainerView, PodView};
use crate::domain::container::phase::ContainerPhase;
use crate::domain::usage::{CgroupUsage, LayerUsage, NetworkUsage};
use crate::ports::meter::{CgroupTarget, Meter};

/// A container and what it uses.
#[derive(Debug, Clone)]
pub struct ContainerStats {
    /// The container.
    pub view: ContainerView,
    /// None when it has ended.
    pub usage: Option<Arc<CgroupUsage>>,
    /// None while its writable layer is being made or removed.
    pub layer: Option<LayerUsage>,
}

/// A pod and what it uses.
#[derive(Clone)]
#[expect(missing_debug_implementations, reason = "holds the shim's connection")]
pub struct PodStats {
    /// The pod.
    pub view: PodView,
    /// None when it is not ready, or has no cgroup yet because it has no container.
    pub usage: Option<Arc<CgroupUsage>>,
    /// None when it is not ready or uses the node's network.
    pub network: Option<Arc<NetworkUsage>>,
    /// Processes of all its containers.
    pub processes: Option<u64>,
    /// Its containers that have not ended.
    pub containers: Vec<ContainerStats>,
}

/// Whether a container's cgroup is there.
pub(super) fn has_cgroup(phase: &ContainerPhase) -> bool {
    phase.is_running() || *phase == ContainerPhase::Created
}

impl Engine {
    /// What counts.
    #[must_use]
    pub fn meter(&self) -> &Arc<dyn Meter> {
        &self.shared.ports.meter
    }

    /// What containers use; those that have ended have a writable layer only.
    pub async fn container_stats(&self, views: Vec<ContainerView>) -> Vec<ContainerStats> {
        let mut targets = Vec::new();
        let asked: Vec<bool> = views
            .iter()
            .map(|view| {
                let target = self.container_target(view);
                let asks = target.is_some();
                targets.extend(target);
                asks
            })
            .collect();
        let mut usages = self.meter().cgroups(targets).await.into_iter();
        let stats = views.into_iter().zip(asked).map(|(view, asked)| {
            let usage = if asked { usages.next().flatten() } else { None };
            let layer = self.images.container_usage(&view.id);
            ContainerStats { view, usage, layer }
        });
        stats.collect()
    }

    /// What pods use, and their containers that have not ended.
    pub async fn pod_stats(&self, views: Vec<PodView>) -> Vec<PodStats> {
        let ready: Vec<&PodView> = views.iter().filter(|v| v.record.phase.is_ready()).collect();
        let targets: Vec<_> = ready.iter().map(|view| self.pod_target(view)).collect();
        let paths: Vec<_> = targets.iter().map(|target| target.path.clone()).collect();
        let pins: Vec<_> = ready.iter().map(|view| self.namespaces(view).net).collect();
        let with_network: Vec<bool> = pins.iter().map(Option::is_some).collect();
        let mut usages = self.meter().cgroups(targets).await.into_iter();
        let mut counts = self.meter().processes(paths).await.into_iter();
        let pins = pins.into_iter().flatten().collect();
        let mut networks = self.meter().networks(pins).await.into_iter();
        let mut with_network = with_network.into_iter();
        let mut containers = self.containers_by_pod(&views).await;
        let mut stats = Vec::new();
        for view in views {
            let own = containers.remove(&view.id).unwrap_or_default();
            let mut one = PodStats {
                view,
                usage: None,
                network: None,
                processes: None,
                containers: own,
            };
            if one.view.record.phase.is_ready() {
                one.usage = usages.next().flatten();
                one.processes = counts.next().flatten();
                if with_network.next() == Some(true) {
                    one.network = networks.next().flatten();
                }
            }
            stats.push(one);
        }
        stats
    }

    /// Containers of these pods that have not ended, by pod.
    pub(super) async fn containers_by_pod(
        &self,
        pods: &[PodView],
    ) -> std::collections::BTreeMap<axil_proto::ids::PodId, Vec<ContainerStats>> {
        let wanted: std::collections::BTreeSet<_> = pods.iter().map(|pod| &pod.id).collect();
        let mut views = self.containers();
        views.retain(|one| wanted.contains(&one.pod) && has_cgroup(&one.record.phase));
        let mut by_pod = std::collections::BTreeMap::<_, Vec<_>>::new();
        for stats in self.container_stats(views).await {
            by_pod
                .entry(stats.view.pod.clone())
                .or_default()
                .push(stats);
        }
        by_pod
    }

    /// Takes note of everybody's CPU time, so that whoever asks next is told a rate of the last seconds.
    pub async fn sample_usage(&self) {
        let mut targets: Vec<_> = self
            .containers()
            .iter()
            .filter_map(|view| self.container_target(view))
            .collect();
        let pods = self.pods();
        let ready = pods.iter().filter(|pod| pod.record.phase.is_ready());
        targets.extend(ready.map(|pod| self.pod_target(pod)));
        if !targets.is_empty() {
            self.meter().sample(targets).await;
        }
    }

    /// The cgroup of a container that has not ended.
    pub(super) fn container_target(&self, view: &ContainerView) -> Option<CgroupTarget> {
        if !has_cgroup(&view.record.phase) {
            return None;
        }
        let pod = self.shared.views.pod(&view.pod)?;
        let cgroups = &self.shared.ports.cgroups;
        Some(CgroupTarget {
            path: cgroups.container_dir(&pod.id, &pod.record.spec, view.id.as_str()),
            made_at: view.record.created_at,
        })
    }

    /// The cgroup around a pod's containers.
    pub(super) fn pod_target(&self, view: &PodView) -> CgroupTarget {
        CgroupTarget {
            path: self
                .shared
                .ports
                .cgroups
                .pod_dir(&view.id, &view.record.spec),
            made_at: view.record.created_at,
        }
    }
}
