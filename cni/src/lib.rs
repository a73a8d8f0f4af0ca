//! Pod networking for a Kubernetes node: a CNI 1.1 client that executes conflists to the spec,
//! and a built-in network (netlink and nftables, no external programs) for nodes without one.
//!
//! [`Network`] is the entry: `up`, `down`, `status`, `collect_garbage`, `restore`.
//!
//! ```text
//!   Network::up ── loopback ──┬── conflist present ── chain ── invoke ── plugin processes
//!                             └── none ────────────── builtin ── netlink (links, nf_tables)
//!   every attachment is recorded by `cache` before anything is done for it
//! ```
#![forbid(unsafe_code)]

mod atomic;
mod builtin;
mod cache;
mod chain;
mod conf;
mod error;
mod invoke;
mod lanes;
mod netlink;
pub mod netns;
mod network;
mod options;
mod pod;
mod result;
mod select;
mod stray;

pub use builtin::{BuiltinError, ipam::LeaseError};
pub use cache::RecordError;
pub use conf::ConfError;
pub use error::{ErrorClass, NetworkError, NotReady};
pub use invoke::InvokeError;
pub use netns::NetnsError;
pub use network::{
    Collected, Network, NetworkDescription, NetworkKind, PluginDescription, SkippedFile,
};
pub use options::{BuiltinOptions, NetworkOptions};
pub use pod::{Bandwidth, PodAddresses, PodDns, PodInterface, PodNetwork, PortMapping, Protocol};
pub use result::ResultError;
