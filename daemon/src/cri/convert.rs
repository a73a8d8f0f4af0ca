//! Protobuf to domain and back: pure, both directions beside each other.

pub mod container;
pub mod events;
pub mod filter;
pub mod image;
pub mod pod;
pub mod pod_metrics;
pub mod resources;
pub mod stats;

use crate::domain::failure::Failure;

/// A message that must be there.
pub(crate) fn need<T>(field: &str, value: Option<T>) -> Result<T, Failure> {
    value.ok_or_else(|| Failure::invalid(field, "", "is missing"))
}
