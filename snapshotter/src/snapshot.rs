//! Snapshots: committed layers and the writable layers of containers.

pub mod chain;
pub(crate) mod kind;
pub(crate) mod measured;
pub mod store;
