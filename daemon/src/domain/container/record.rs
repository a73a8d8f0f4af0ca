//! What is on disk of a container.

use serde::{Deserialize, Serialize};

use super::phase::ContainerPhase;
use super::spec::ContainerSpec;
use crate::domain::resources::LinuxResources;
use crate::domain::timeline::Timeline;

/// Version of the record's format; a reader refuses a newer one.
pub const CONTAINER_RECORD_VERSION: u32 = 1;

/// The durable record of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// Format version.
    pub version: u32,
    /// Container id.
    pub id: String,
    /// Its pod.
    pub pod: String,
    /// When CreateContainer accepted it, nanoseconds since the epoch.
    pub created_at: i64,
    /// What was asked for.
    pub spec: ContainerSpec,
    /// The image it runs.
    pub image: ResolvedImage,
    /// The images its volumes are of, in the order of those mounts.
    #[serde(default)]
    pub volumes: Vec<ResolvedImage>,
    /// The user its process runs as, once resolved.
    #[serde(default)]
    pub user: Option<ResolvedUser>,
    /// Signal that stops it.
    pub stop_signal: i32,
    /// Where it is in its life.
    pub phase: ContainerPhase,
    /// Its limits since they were changed; until then they are those of the spec.
    #[serde(default)]
    pub resources: Option<LinuxResources>,
    /// Limits that an update at work leads to: what is done again when the daemon dies in the middle.
    #[serde(default)]
    pub updating: Option<LinuxResources>,
    /// How its creation and start went.
    #[serde(default)]
    pub timeline: Timeline,
}

impl ContainerRecord {
    /// The limits it has now.
    #[must_use]
    pub fn limits(&self) -> &LinuxResources {
        self.resources.as_ref().unwrap_or(&self.spec.resources)
    }
}

/// An image a container runs or mounts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedImage {
    /// Image id: digest of its configuration.
    pub id: String,
    /// Repository digest, or the id when the image has none.
    pub reference: String,
    /// The tag people know it by; none when it had none as the container was made.
    #[serde(default)]
    pub tag: Option<String>,
}

/// The user of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedUser {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}
