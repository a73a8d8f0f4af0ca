//! What the engine needs in order to tell what pods and containers use.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;

use super::Answer;
use crate::domain::usage::{
    CgroupUsage, DeviceNumber, FilesystemUsage, NetworkUsage, ProcessUsage,
};

/// A cgroup to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupTarget {
    /// Its path below the hierarchies.
    pub path: String,
    /// When it was made, nanoseconds since the epoch: it had used nothing then.
    pub made_at: i64,
}

/// Reads what the kernel counts. Answers are in the order of what was asked for, at most a second old, and none
/// where there is nothing to read.
#[async_trait]
pub trait Meter: Send + Sync {
    /// Usage of cgroups.
    async fn cgroups(&self, targets: Vec<CgroupTarget>) -> Vec<Option<Arc<CgroupUsage>>>;
    /// Takes note of the CPU time of cgroups, for the rates of a later reading.
    async fn sample(&self, targets: Vec<CgroupTarget>);
    /// Traffic of pinned network namespaces.
    async fn networks(&self, pins: Vec<PathBuf>) -> Vec<Option<Arc<NetworkUsage>>>;
    /// How many processes are in cgroups and below.
    async fn processes(&self, paths: Vec<String>) -> Vec<Option<u64>>;
    /// What the processes of cgroups hold open.
    async fn open_files(&self, paths: Vec<String>) -> Vec<Option<Arc<ProcessUsage>>>;
    /// The file system of the writable layers.
    fn filesystem(&self) -> Answer<FilesystemUsage>;
    /// Names of block devices, such as `/dev/sda1`; those that have none are left out.
    async fn device_names(&self, devices: BTreeSet<DeviceNumber>)
    -> BTreeMap<DeviceNumber, String>;
    /// Where that file system's part that is axil's is mounted.
    fn mountpoint(&self) -> String;
}
