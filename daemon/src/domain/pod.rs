//! A pod: what was asked for and its state machine.

pub mod cgroup;
pub mod phase;
pub mod record;
pub mod spec;
pub mod user_namespace;
