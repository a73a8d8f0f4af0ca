//! The part of the OCI runtime spec's config.json that axil writes, so that equal values are equal bytes and
//! nothing absent is written.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Serialize;

use crate::domain::container::cdi::IntelRdt;
use crate::domain::container::seccomp::Seccomp;

/// The oldest version of the spec that has all we write but for the rarest.
pub(super) const VERSION: &str = "1.1.0";

/// The version that brought `linux.netDevices` and the newer half of `linux.intelRdt`.
pub(super) const RECENT_VERSION: &str = "1.3.0";

/// config.json.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuntimeSpec {
    /// Version of the spec.
    pub oci_version: &'static str,
    /// Root file system.
    pub root: Root,
    /// The process.
    pub process: Process,
    /// Mounts in the order they are made.
    pub mounts: Vec<Mount>,
    /// Annotations: ours, and what the operator allows.
    pub annotations: BTreeMap<String, String>,
    /// Programs run in the life of the container.
    #[serde(skip_serializing_if = "Hooks::is_empty")]
    pub hooks: Hooks,
    /// What is of Linux.
    pub linux: Linux,
}

impl Default for RuntimeSpec {
    fn default() -> Self {
        Self {
            oci_version: VERSION,
            root: Root::default(),
            process: Process::default(),
            mounts: Vec::new(),
            annotations: BTreeMap::new(),
            hooks: Hooks::default(),
            linux: Linux::default(),
        }
    }
}

/// `hooks`, each list in the order in which it runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Hooks(pub BTreeMap<String, Vec<Hook>>);

impl Hooks {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// One of `hooks`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hook {
    /// The program, absolute.
    pub path: String,
    /// Its arguments, the first its name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Its environment.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Seconds; none is no bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u32>,
}

/// `root`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Root {
    /// Relative to the bundle.
    pub path: &'static str,
    /// Whether it is read-only.
    pub readonly: bool,
}

/// `process`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// Whether it has a terminal.
    pub terminal: bool,
    /// Who it runs as.
    pub user: User,
    /// Program and arguments.
    pub args: Vec<String>,
    /// Environment, each "NAME=value".
    pub env: Vec<String>,
    /// Working directory.
    pub cwd: String,
    /// Capabilities. Always written: without them runtimes drop nothing.
    pub capabilities: ProcessCapabilities,
    /// `no_new_privs`.
    pub no_new_privileges: bool,
    /// AppArmor profile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub apparmor_profile: Option<String>,
    /// SELinux context.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selinux_label: Option<String>,
    /// `oom_score_adj`.
    pub oom_score_adj: i64,
}

/// `process.user`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Groups.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub additional_gids: Vec<u32>,
}

/// `process.capabilities`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ProcessCapabilities {
    /// The most that can be had.
    pub bounding: Vec<String>,
    /// In force at the start.
    pub effective: Vec<String>,
    /// Can be taken into force.
    pub permitted: Vec<String>,
    /// Empty but for ambient ones (CVE-2022-24769).
    pub inheritable: Vec<String>,
    /// Kept by programs without file capabilities.
    pub ambient: Vec<String>,
}

/// One of `mounts`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Mount {
    /// Path in the container.
    pub destination: String,
    /// File system, or "bind".
    #[serde(rename = "type")]
    pub kind: Cow<'static, str>,
    /// Path on the host, or a name.
    pub source: String,
    /// Options.
    pub options: Vec<String>,
    /// Ids of its users and who they are on the host.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub uid_mappings: Vec<IdRun>,
    /// Likewise of groups.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gid_mappings: Vec<IdRun>,
}

/// A run of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct IdRun {
    /// First id in the namespace or file system.
    #[serde(rename = "containerID")]
    pub container_id: u32,
    /// First id on the host.
    #[serde(rename = "hostID")]
    pub host_id: u32,
    /// How many.
    pub size: u32,
}

/// `linux`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Linux {
    /// Users of the user namespace.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub uid_mappings: Vec<IdRun>,
    /// Groups of the user namespace.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gid_mappings: Vec<IdRun>,
    /// cgroup.
    pub cgroups_path: String,
    /// Limits.
    pub resources: CgroupResources,
    /// Namespaces made or joined; the others are the host's.
    pub namespaces: Vec<Namespace>,
    /// Devices beside the default ones.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<Device>,
    /// Interfaces of the host that move to the container, by their names there.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub net_devices: BTreeMap<String, NetDevice>,
    /// Cache and memory bandwidth class.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub intel_rdt: Option<IntelRdt>,
    /// System call filter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seccomp: Option<Seccomp>,
    /// Propagation of the root; none is private.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rootfs_propagation: Option<&'static str>,
    /// Paths hidden.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub masked_paths: Vec<String>,
    /// Paths made read-only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub readonly_paths: Vec<String>,
    /// SELinux context of the file systems that are made for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mount_label: Option<String>,
}

/// One of `linux.namespaces`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Namespace {
    /// Which.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The one joined; none makes a new one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// One of `linux.netDevices`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NetDevice {
    /// Its name in the container.
    pub name: String,
}

/// One of `linux.devices`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    /// Path in the container.
    pub path: String,
    /// "c" or "b".
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits.
    pub file_mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// `linux.resources`, also the content of an update.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CgroupResources {
    /// Device rules, the last match deciding.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceRule>,
    /// Memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
    /// CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cpu>,
    /// Processes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<Pids>,
    /// Huge pages.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hugepage_limits: Vec<HugepageLimit>,
    /// Files of cgroup v2 by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub unified: BTreeMap<String, String>,
}

/// One of `linux.resources.devices`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeviceRule {
    /// Allowed or denied.
    pub allow: bool,
    /// "c" or "b"; none is both.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<&'static str>,
    /// Major number; none is any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub major: Option<u32>,
    /// Minor number; none is any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minor: Option<u32>,
    /// Of r, w and m.
    pub access: String,
}

/// `linux.resources.memory`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Bytes; -1 is no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<i64>,
    /// Bytes of memory and swap together; -1 is no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap: Option<i64>,
}

/// `linux.resources.cpu`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Cpu {
    /// Weight, cgroup v1 scale.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shares: Option<i64>,
    /// Microseconds per period; negative is no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quota: Option<i64>,
    /// Microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub period: Option<i64>,
    /// CPUs, the kernel's list format.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cpus: String,
    /// Memory nodes, the kernel's list format.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mems: String,
}

/// `linux.resources.pids`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pids {
    /// Most processes and threads.
    pub limit: i64,
}

/// One of `linux.resources.hugepageLimits`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HugepageLimit {
    /// "2MB".
    pub page_size: String,
    /// Bytes.
    pub limit: u64,
}
