//! What the metrics of pods are made of: usage, and what only a scrape is worth looking at.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Engine;
use super::stats::ContainerStats;
use super::views::PodView;
use crate::domain::failure::Failure;
use crate::domain::usage::{DeviceNumber, FilesystemUsage, NetworkUsage, ProcessUsage};

/// One pod's measurements.
#[derive(Clone)]
#[expect(missing_debug_implementations, reason = "holds the shim's connection")]
pub struct PodMeasures {
    /// The pod.
    pub view: PodView,
    /// Its cgroup.
    pub cgroup: String,
    /// None when it uses the node's network.
    pub network: Option<Arc<NetworkUsage>>,
    /// Its containers that have not ended.
    pub containers: Vec<ContainerMeasures>,
}

/// One container's measurements.
#[derive(Debug, Clone)]
pub struct ContainerMeasures {
    /// The container, its usage and its writable layer.
    pub stats: ContainerStats,
    /// Its cgroup.
    pub cgroup: String,
    /// What its processes hold open.
    pub open_files: Option<Arc<ProcessUsage>>,
}

/// The measurements of every ready pod.
#[derive(Clone)]
#[expect(missing_debug_implementations, reason = "holds shim connections")]
pub struct NodeMeasures {
    /// By pod.
    pub pods: Vec<PodMeasures>,
    /// The file system of the writable layers.
    pub filesystem: FilesystemUsage,
    /// Names of the block devices that occur.
    pub devices: BTreeMap<DeviceNumber, String>,
}

impl Engine {
    /// Measures every ready pod.
    ///
    /// # Errors
    /// The file system of the writable layers cannot be looked at.
    pub async fn measure_pods(&self) -> Result<NodeMeasures, Failure> {
        let mut views = self.pods();
        views.retain(|view| view.record.phase.is_ready());
        let pins: Vec<_> = views.iter().map(|view| self.namespaces(view).net).collect();
        let own: Vec<bool> = pins.iter().map(Option::is_some).collect();
        let pins = pins.into_iter().flatten().collect();
        let mut networks = self.meter().networks(pins).await.into_iter();
        let mut containers = self.measured_containers(&views).await;
        let filesystem = self.meter().filesystem()?;
        let mut devices = BTreeSet::from([filesystem.device]);
        let mut pods = Vec::with_capacity(views.len());
        for (view, own) in views.into_iter().zip(own) {
            let containers = containers.remove(&view.id).unwrap_or_default();
            let usages = containers.iter().filter_map(|one| one.stats.usage.as_ref());
            devices.extend(usages.flat_map(|usage| usage.devices.iter().map(|one| one.device)));
            pods.push(PodMeasures {
                cgroup: self.pod_target(&view).path,
                network: if own { networks.next().flatten() } else { None },
                view,
                containers,
            });
        }
        let devices = self.meter().device_names(devices).await;
        Ok(NodeMeasures {
            pods,
            filesystem,
            devices,
        })
    }

    async fn measured_containers(
        &self,
        pods: &[PodView],
    ) -> BTreeMap<axil_proto::ids::PodId, Vec<ContainerMeasures>> {
        let mut by_pod = self.containers_by_pod(pods).await;
        let all: Vec<ContainerStats> = std::mem::take(&mut by_pod)
            .into_values()
            .flatten()
            .filter(|stats| stats.usage.is_some())
            .collect();
        let cgroups: Vec<String> = all
            .iter()
            .map(|stats| self.container_target(&stats.view).map(|target| target.path))
            .map(Option::unwrap_or_default)
            .collect();
        let files = self.meter().open_files(cgroups.clone()).await;
        let mut measured = BTreeMap::<_, Vec<_>>::new();
        for ((stats, cgroup), open_files) in all.into_iter().zip(cgroups).zip(files) {
            let pod = stats.view.pod.clone();
            measured.entry(pod).or_default().push(ContainerMeasures {
                stats,
                cgroup,
                open_files,
            });
        }
        measured
    }
}
