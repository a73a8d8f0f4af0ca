//! How long the steps of a verb took: the start-up timeline of a pod or container.

use serde::{Deserialize, Serialize};

/// Steps in the order they began.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timeline(pub Vec<Step>);

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Verb and step, or a part of a step: "RunPodSandbox/network", "RunPodSandbox/network/bridge".
    pub step: String,
    /// Microseconds since the verb began.
    pub started_us: u64,
    /// Microseconds it took.
    pub took_us: u64,
}
