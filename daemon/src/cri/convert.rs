//! Protobuf to domain and back: pure, both directions beside each other.

pub mod container;
pub mod filter;
pub mod image;
pub mod pod;
pub mod resources;

use crate::domain::failure::Failure;

/// A message that must be there.
pub(crate) fn need<T>(field: &str, value: Option<T>) -> Result<T, Failure> {
    value.ok_or_else(|| Failure::invalid(field, "", "is missing"))
}
