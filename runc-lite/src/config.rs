//! The OCI runtime document (config.json) as it is written; nothing is judged here, see [`crate::spec`].
//!
//! Own types instead of the oci-spec crate: its builders and getters cost a third of the binary, and the
//! seccomp profile must stay raw text so that a cached filter needs no parsing. Unknown fields are
//! ignored, as the OCI runtime specification demands ("Extensibility").
#![expect(
    missing_docs,
    reason = "field names and meanings are those of the OCI runtime specification"
)]

mod objects;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use objects::{Object, maybe_object, null_as_default, object, objects, unique_keys};

impl Config {
    /// Reads a document.
    ///
    /// # Errors
    /// What is wrong with it, by line and column.
    pub fn parse(document: &[u8]) -> Result<Config, serde_json::Error> {
        serde_json::from_slice::<Object<Config>>(document).map(|Object(config)| config)
    }
}

impl Process {
    /// Reads a process document.
    ///
    /// # Errors
    /// What is wrong with it, by line and column.
    pub fn parse(document: &[u8]) -> Result<Process, serde_json::Error> {
        serde_json::from_slice::<Object<Process>>(document).map(|Object(process)| process)
    }
}

/// The whole document.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Config {
    pub oci_version: String,
    #[serde(deserialize_with = "maybe_object")]
    pub root: Option<Root>,
    #[serde(deserialize_with = "maybe_object")]
    pub process: Option<Process>,
    pub hostname: String,
    pub domainname: String,
    #[serde(deserialize_with = "objects")]
    pub mounts: Vec<Mount>,
    #[serde(deserialize_with = "maybe_object")]
    pub hooks: Option<Hooks>,
    #[serde(deserialize_with = "unique_keys")]
    pub annotations: BTreeMap<String, String>,
    #[serde(deserialize_with = "maybe_object")]
    pub linux: Option<Linux>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Root {
    pub path: String,
    pub readonly: bool,
}

/// The `process` object, also the document given to `exec --process`.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Process {
    pub terminal: bool,
    #[serde(deserialize_with = "maybe_object")]
    pub console_size: Option<ConsoleSize>,
    #[serde(deserialize_with = "object")]
    pub user: User,
    pub args: Vec<String>,
    pub env: Vec<String>,
    pub cwd: String,
    #[serde(deserialize_with = "maybe_object")]
    pub capabilities: Option<Capabilities>,
    #[serde(deserialize_with = "objects")]
    pub rlimits: Vec<Rlimit>,
    pub no_new_privileges: bool,
    pub apparmor_profile: String,
    pub oom_score_adj: Option<i32>,
    pub selinux_label: String,
    #[serde(deserialize_with = "maybe_object")]
    pub scheduler: Option<Scheduler>,
    #[serde(deserialize_with = "maybe_object")]
    pub io_priority: Option<IoPriority>,
    #[serde(rename = "execCPUAffinity", deserialize_with = "maybe_object")]
    pub exec_cpu_affinity: Option<ExecCpuAffinity>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub struct Scheduler {
    pub policy: String,
    pub nice: i32,
    pub priority: i32,
    pub flags: Vec<String>,
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub struct IoPriority {
    pub class: String,
    pub priority: i64,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub struct ExecCpuAffinity {
    pub initial: String,
    #[serde(rename = "final")]
    pub last: String,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(default)]
pub struct ConsoleSize {
    pub height: u16,
    pub width: u16,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub umask: Option<u32>,
    pub additional_gids: Vec<u32>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub struct Capabilities {
    pub bounding: Vec<String>,
    pub effective: Vec<String>,
    pub inheritable: Vec<String>,
    pub permitted: Vec<String>,
    pub ambient: Vec<String>,
}

#[derive(Debug, Default, Clone, Deserialize)]
pub struct Rlimit {
    #[serde(rename = "type")]
    pub kind: String,
    pub hard: u64,
    pub soft: u64,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub struct Mount {
    pub destination: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub source: String,
    #[serde(deserialize_with = "null_as_default")]
    pub options: Vec<String>,
    #[serde(rename = "uidMappings", deserialize_with = "objects")]
    pub uid_mappings: Vec<IdMapping>,
    #[serde(rename = "gidMappings", deserialize_with = "objects")]
    pub gid_mappings: Vec<IdMapping>,
}

/// One range of a user namespace or of an id-mapped mount.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct IdMapping {
    #[serde(rename = "containerID")]
    pub container_id: u32,
    #[serde(rename = "hostID")]
    pub host_id: u32,
    pub size: u32,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hooks {
    #[serde(deserialize_with = "objects")]
    pub prestart: Vec<Hook>,
    #[serde(deserialize_with = "objects")]
    pub create_runtime: Vec<Hook>,
    #[serde(deserialize_with = "objects")]
    pub create_container: Vec<Hook>,
    #[serde(deserialize_with = "objects")]
    pub start_container: Vec<Hook>,
    #[serde(deserialize_with = "objects")]
    pub poststart: Vec<Hook>,
    #[serde(deserialize_with = "objects")]
    pub poststop: Vec<Hook>,
}

impl Hooks {
    /// Whether there is a hook that create runs.
    #[must_use]
    pub fn any_of_create(&self) -> bool {
        let lists = [&self.prestart, &self.create_runtime, &self.create_container];
        lists.iter().any(|list| !list.is_empty())
    }
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub struct Hook {
    pub path: String,
    pub args: Vec<String>,
    pub env: Vec<String>,
    pub timeout: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Linux {
    #[serde(deserialize_with = "objects")]
    pub uid_mappings: Vec<IdMapping>,
    #[serde(deserialize_with = "objects")]
    pub gid_mappings: Vec<IdMapping>,
    #[serde(deserialize_with = "unique_keys")]
    pub sysctl: BTreeMap<String, String>,
    #[serde(deserialize_with = "maybe_object")]
    pub resources: Option<Resources>,
    pub cgroups_path: String,
    #[serde(deserialize_with = "objects")]
    pub namespaces: Vec<Namespace>,
    #[serde(deserialize_with = "objects")]
    pub devices: Vec<Device>,
    #[serde(deserialize_with = "unique_keys")]
    pub net_devices: BTreeMap<String, NetDevice>,
    pub seccomp: Option<Box<RawValue>>,
    pub rootfs_propagation: String,
    pub masked_paths: Vec<String>,
    pub readonly_paths: Vec<String>,
    pub mount_label: String,
    #[serde(deserialize_with = "maybe_object")]
    pub intel_rdt: Option<IntelRdt>,
    #[serde(deserialize_with = "maybe_object")]
    pub memory_policy: Option<MemoryPolicy>,
    #[serde(deserialize_with = "maybe_object")]
    pub personality: Option<Personality>,
    #[serde(deserialize_with = "unique_keys")]
    pub time_offsets: BTreeMap<String, TimeOffset>,
}

/// How far a clock of a time namespace is ahead of the host's.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct TimeOffset {
    pub secs: i64,
    pub nanosecs: u32,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub struct NetDevice {
    pub name: String,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IntelRdt {
    #[serde(rename = "closID")]
    pub clos_id: Option<String>,
    pub l3_cache_schema: String,
    pub mem_bw_schema: String,
    pub schemata: Vec<String>,
    pub enable_monitoring: bool,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub struct MemoryPolicy {
    pub mode: String,
    pub nodes: String,
    pub flags: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Personality {
    pub domain: String,
    pub flags: Vec<String>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub struct Namespace {
    #[serde(rename = "type")]
    pub kind: String,
    pub path: String,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Device {
    pub path: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub major: i64,
    pub minor: i64,
    pub file_mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

/// `linux.resources`; kept as it is in the plan after the checks of [`crate::spec`].
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Resources {
    #[serde(deserialize_with = "objects")]
    pub devices: Vec<DeviceRule>,
    #[serde(deserialize_with = "maybe_object")]
    pub memory: Option<Memory>,
    #[serde(deserialize_with = "maybe_object")]
    pub cpu: Option<Cpu>,
    #[serde(deserialize_with = "maybe_object")]
    pub pids: Option<Pids>,
    #[serde(rename = "blockIO", deserialize_with = "maybe_object")]
    pub block_io: Option<BlockIo>,
    #[serde(deserialize_with = "objects")]
    pub hugepage_limits: Vec<HugepageLimit>,
    #[serde(deserialize_with = "maybe_object")]
    pub network: Option<Network>,
    #[serde(deserialize_with = "unique_keys")]
    pub rdma: BTreeMap<String, Rdma>,
    #[serde(deserialize_with = "unique_keys")]
    pub unified: BTreeMap<String, String>,
}

#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct DeviceRule {
    pub allow: bool,
    #[serde(rename = "type")]
    pub kind: String,
    pub major: Option<i64>,
    pub minor: Option<i64>,
    pub access: String,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Memory {
    pub limit: Option<i64>,
    pub reservation: Option<i64>,
    pub swap: Option<i64>,
    pub swappiness: Option<u64>,
    #[serde(rename = "disableOOMKiller")]
    pub disable_oom_killer: Option<bool>,
    pub use_hierarchy: Option<bool>,
    pub check_before_update: Option<bool>,
    pub kernel: Option<i64>,
    #[serde(rename = "kernelTCP")]
    pub kernel_tcp: Option<i64>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Cpu {
    pub shares: Option<u64>,
    pub quota: Option<i64>,
    pub burst: Option<u64>,
    pub period: Option<u64>,
    pub realtime_runtime: Option<i64>,
    pub realtime_period: Option<u64>,
    pub cpus: String,
    pub mems: String,
    pub idle: Option<i64>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub struct Pids {
    pub limit: Option<i64>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BlockIo {
    pub weight: Option<u16>,
    pub leaf_weight: Option<u16>,
    #[serde(deserialize_with = "objects")]
    pub weight_device: Vec<WeightDevice>,
    #[serde(deserialize_with = "objects")]
    pub throttle_read_bps_device: Vec<ThrottleDevice>,
    #[serde(deserialize_with = "objects")]
    pub throttle_write_bps_device: Vec<ThrottleDevice>,
    #[serde(rename = "throttleReadIOPSDevice", deserialize_with = "objects")]
    pub throttle_read_iops_device: Vec<ThrottleDevice>,
    #[serde(rename = "throttleWriteIOPSDevice", deserialize_with = "objects")]
    pub throttle_write_iops_device: Vec<ThrottleDevice>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WeightDevice {
    pub major: i64,
    pub minor: i64,
    pub weight: Option<u16>,
    pub leaf_weight: Option<u16>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub struct ThrottleDevice {
    pub major: i64,
    pub minor: i64,
    pub rate: u64,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HugepageLimit {
    pub page_size: String,
    pub limit: u64,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub struct Network {
    #[serde(rename = "classID")]
    pub class_id: Option<u32>,
    #[serde(deserialize_with = "objects")]
    pub priorities: Vec<InterfacePriority>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub struct InterfacePriority {
    pub name: String,
    pub priority: u32,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rdma {
    pub hca_handles: Option<u32>,
    pub hca_objects: Option<u32>,
}

/// The container state of the OCI runtime specification, given to hooks and printed by `state`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StateDocument<'a> {
    pub oci_version: &'a str,
    pub id: &'a str,
    pub status: &'a str,
    #[serde(skip_serializing_if = "is_zero")]
    pub pid: i32,
    pub bundle: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: &'a BTreeMap<String, String>,
    /// Beyond the specification, as runc prints it.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub rootfs: &'a str,
    /// Beyond the specification: RFC 3339, UTC.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub created: &'a str,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "signature demanded by serde"
)]
fn is_zero(pid: &i32) -> bool {
    *pid == 0
}
