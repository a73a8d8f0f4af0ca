//! The pure core: what pods, containers and images are, and every decision about them.
//!
//! Invariant: no tokio, no nix, no file system, no clock and no protobuf below this module; a tidy test
//! checks it. Spec types are plain values that derive serde, because the durable record of a spec is the
//! spec itself, written once.

pub mod container;
pub mod failure;
pub mod image;
pub mod pod;
pub mod resources;
pub mod runtime_handler;
pub mod selinux;
pub mod timeline;
pub mod usage;
