//! Implementations of the ports over the kernel, the file system, the shims and the registries. Only
//! `app.rs` names them.

mod archive;
pub mod cgroups;
mod dial;
pub mod durable;
pub mod layers;
pub mod meter;
pub mod namespaces;
pub mod network;
mod oom_score;
pub mod pod_files;
pub mod records;
pub mod registry;
pub mod remote;
pub mod rootfs;
pub mod runtime_features;
pub mod shim;
pub mod signatures;
