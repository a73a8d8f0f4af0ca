//! What is on disk of a pod.

use serde::{Deserialize, Serialize};

use super::phase::PodPhase;
use super::spec::PodSpec;
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
    /// How its start went.
    #[serde(default)]
    pub timeline: Timeline,
}
