//! What is on disk of a pod.

use serde::{Deserialize, Serialize};

use super::phase::PodPhase;
use super::spec::PodSpec;
use crate::domain::resources::LinuxResources;
use crate::domain::timeline::Timeline;

/// Version of the record's format; a reader refuses a newer one.
pub const POD_RECORD_VERSION: u32 = 1;

/// The durable record of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRecord {
    /// Format version.
    pub version: u32,
    /// Pod id.
    pub id: String,
    /// When RunPodSandbox accepted it, nanoseconds since the epoch.
    pub created_at: i64,
    /// What was asked for.
    pub spec: PodSpec,
    /// Where it is in its life.
    pub phase: PodPhase,
    /// Overhead and resources since they were changed; what is none is still the spec's.
    #[serde(default)]
    pub resources: PodResources,
    /// SELinux level of its containers, which no other pod has; none without SELinux.
    #[serde(default)]
    pub selinux_level: Option<String>,
    /// How its start went.
    #[serde(default)]
    pub timeline: Timeline,
}

/// What a pod has as a whole.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodResources {
    /// Overhead of the pod itself.
    pub overhead: Option<LinuxResources>,
    /// Sum of the containers' resources.
    pub resources: Option<LinuxResources>,
}

impl PodRecord {
    /// What the pod has as a whole now.
    #[must_use]
    pub fn whole(&self) -> PodResources {
        let (changed, spec) = (&self.resources, &self.spec);
        PodResources {
            overhead: changed.overhead.clone().or_else(|| spec.overhead.clone()),
            resources: changed.resources.clone().or_else(|| spec.resources.clone()),
        }
    }
}
