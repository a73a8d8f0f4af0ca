//! What a container will be, as values: the output of [`crate::spec`], the input of everything that acts.

mod numbers;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::value::RawValue;

use crate::config::{Hooks, Resources};
use crate::sys::MountAttributes;

pub use numbers::NumberSet;

/// Everything decided about a container before the first side effect.
#[derive(Debug)]
pub struct Plan {
    /// `ociVersion` of the document.
    pub oci_version: String,
    /// The root file system.
    pub rootfs: RootfsPlan,
    /// Namespaces to make and to join.
    pub namespaces: Namespaces,
    /// Ids of the user namespace; empty when it is joined and the document does not repeat them.
    pub id_mappings: IdMappings,
    /// Clocks of a new time namespace that differ from the host's.
    pub time_offsets: Vec<TimeOffset>,
    /// Empty: leave the host name alone.
    pub hostname: String,
    /// Empty: leave the NIS domain name alone.
    pub domainname: String,
    /// Mounts in the order of the document.
    pub mounts: Vec<MountPlan>,
    /// Device nodes to make, the default ones first.
    pub devices: Vec<DeviceNode>,
    /// Interfaces of the host that become the container's.
    pub net_devices: Vec<NetDevicePlan>,
    /// Cache and memory bandwidth class; `None`: resctrl is left alone.
    pub intel_rdt: Option<IntelRdtPlan>,
    /// SELinux context of the file systems that are made, already among their parameters; empty: none.
    pub mount_label: String,
    /// Absolute, clean paths to hide.
    pub masked_paths: Vec<String>,
    /// Absolute, clean paths to make read-only.
    pub readonly_paths: Vec<String>,
    /// Files below `/proc/sys` (relative) and their values.
    pub sysctls: Vec<(String, String)>,
    /// Where in the cgroup tree.
    pub cgroup_path: CgroupPath,
    /// Limits.
    pub resources: Resources,
    /// Raw profile text, compiled or found in the cache by [`crate::seccomp`].
    pub seccomp: Option<Box<RawValue>>,
    /// Hooks of all six kinds.
    pub hooks: Hooks,
    /// What runs.
    pub process: ProcessPlan,
    /// Carried into the state document; those of `org.systemd.property.` are properties of the unit as well.
    pub annotations: BTreeMap<String, String>,
}

/// What a container asks of resctrl.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IntelRdtPlan {
    /// Which class of service.
    pub class: ClassOfService,
    /// Lines an existing class must have, and a new one gets first: `l3CacheSchema`, `memBwSchema`.
    pub compared: Vec<String>,
    /// Lines written in any case.
    pub schemata: Vec<String>,
    /// Whether the container gets a monitoring group.
    pub monitoring: bool,
}

/// A class of service (CLOS).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClassOfService {
    /// The root of the resctrl file system.
    Default,
    /// Shared under this name.
    Named(String),
    /// The container's alone, named after it.
    OfContainer,
}

/// An interface of the host that becomes the container's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetDevicePlan {
    /// On the host.
    pub name: String,
    /// In the container; with `%d` in it, the kernel puts the first free number there.
    pub new_name: String,
}

/// The root file system of a container.
#[derive(Debug)]
pub struct RootfsPlan {
    /// Absolute, or relative to the bundle.
    pub path: PathBuf,
    /// Whether the root mount becomes read-only at the end.
    pub readonly: bool,
    /// Propagation of the container's root mount; `None`: as inherited (a slave of the host).
    pub propagation: Option<Propagation>,
}

/// A propagation type with or without the whole subtree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Propagation {
    /// Value for mount_setattr(2).
    pub kind: PropagationKind,
    /// Whether mounts below are changed too.
    pub recursive: bool,
}

/// The propagation types of mount_namespaces(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PropagationKind {
    /// Receives and sends nothing.
    Private,
    /// Receives only.
    Slave,
    /// Receives and sends.
    Shared,
    /// Private and not to be bound.
    Unbindable,
}

impl PropagationKind {
    /// The `MS_*` value that mount_setattr(2) takes.
    #[must_use]
    pub fn bits(self) -> u64 {
        match self {
            PropagationKind::Private => libc::MS_PRIVATE,
            PropagationKind::Slave => libc::MS_SLAVE,
            PropagationKind::Shared => libc::MS_SHARED,
            PropagationKind::Unbindable => libc::MS_UNBINDABLE,
        }
    }
}

/// A kind of namespace the runtime knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NamespaceKind {
    /// Process ids.
    Pid,
    /// Network.
    Network,
    /// Mounts.
    Mount,
    /// Host and domain name.
    Uts,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// The view of the cgroup tree.
    Cgroup,
    /// User and group ids, capabilities.
    User,
    /// The monotonic and the boot-time clock.
    Time,
}

impl NamespaceKind {
    /// Every kind.
    pub const ALL: [NamespaceKind; 8] = [
        NamespaceKind::Pid,
        NamespaceKind::Network,
        NamespaceKind::Mount,
        NamespaceKind::Uts,
        NamespaceKind::Ipc,
        NamespaceKind::Cgroup,
        NamespaceKind::User,
        NamespaceKind::Time,
    ];

    /// The `CLONE_NEW*` bit.
    #[must_use]
    pub const fn clone_flag(self) -> u64 {
        match self {
            NamespaceKind::Pid => 0x2000_0000,
            NamespaceKind::Network => 0x4000_0000,
            NamespaceKind::Mount => 0x0002_0000,
            NamespaceKind::Uts => 0x0400_0000,
            NamespaceKind::Ipc => 0x0800_0000,
            NamespaceKind::Cgroup => 0x0200_0000,
            NamespaceKind::User => 0x1000_0000,
            NamespaceKind::Time => 0x0000_0080,
        }
    }

    /// The name of the OCI specification.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            NamespaceKind::Pid => "pid",
            NamespaceKind::Network => "network",
            NamespaceKind::Mount => "mount",
            NamespaceKind::Uts => "uts",
            NamespaceKind::Ipc => "ipc",
            NamespaceKind::Cgroup => "cgroup",
            NamespaceKind::User => "user",
            NamespaceKind::Time => "time",
        }
    }

    /// The file below `/proc/<pid>/ns`.
    #[must_use]
    pub const fn proc_name(self) -> &'static str {
        match self {
            NamespaceKind::Pid => "pid",
            NamespaceKind::Network => "net",
            NamespaceKind::Mount => "mnt",
            NamespaceKind::Uts => "uts",
            NamespaceKind::Ipc => "ipc",
            NamespaceKind::Cgroup => "cgroup",
            NamespaceKind::User => "user",
            NamespaceKind::Time => "time",
        }
    }
}

/// Which namespaces are made and which are joined; a kind in neither list is shared with the caller.
#[derive(Debug, Default)]
pub struct Namespaces {
    /// Made for this container.
    pub new: Vec<NamespaceKind>,
    /// Joined by path.
    pub join: Vec<(NamespaceKind, PathBuf)>,
}

impl Namespaces {
    /// Whether `kind` is made for this container.
    #[must_use]
    pub fn makes(&self, kind: NamespaceKind) -> bool {
        self.new.contains(&kind)
    }

    /// The path by which `kind` is joined, if it is.
    #[must_use]
    pub fn joined(&self, kind: NamespaceKind) -> Option<&PathBuf> {
        self.join
            .iter()
            .find(|(joined, _)| *joined == kind)
            .map(|(_, path)| path)
    }

    /// Whether the container's `kind` is another one than the caller's.
    #[must_use]
    pub fn separates(&self, kind: NamespaceKind) -> bool {
        self.makes(kind) || self.joined(kind).is_some()
    }
}

/// Consecutive ids of a user namespace and what they are outside of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdMapping {
    /// First id inside; on an id-mapped mount the first id on disk.
    pub container: u32,
    /// First id outside, as the runtime's own user namespace numbers it.
    pub host: u32,
    /// How many, at least one.
    pub size: u32,
}

/// The user and group ids of a user namespace or an id-mapped mount.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdMappings {
    /// User ids.
    pub uids: Vec<IdMapping>,
    /// Group ids.
    pub gids: Vec<IdMapping>,
}

impl IdMappings {
    /// What user `id` of the container is outside; `None` when it is not mapped.
    #[must_use]
    pub fn host_uid(&self, id: u32) -> Option<u32> {
        outside(&self.uids, id)
    }

    /// What group `id` of the container is outside; `None` when it is not mapped.
    #[must_use]
    pub fn host_gid(&self, id: u32) -> Option<u32> {
        outside(&self.gids, id)
    }

    /// Whether nothing is mapped.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.uids.is_empty() && self.gids.is_empty()
    }
}

fn outside(mappings: &[IdMapping], id: u32) -> Option<u32> {
    // The highest number is how the kernel shows an id that has no number in the reader's namespace.
    let mut known = mappings.iter().filter(|mapping| mapping.host != u32::MAX);
    known.find_map(|mapping| {
        let offset = id.checked_sub(mapping.container)?;
        (offset < mapping.size).then(|| mapping.host.checked_add(offset))?
    })
}

/// How far a clock of the container is ahead of the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeOffset {
    /// Which.
    pub clock: OffsetClock,
    /// Whole seconds, negative when it is behind.
    pub seconds: i64,
    /// 0 to 999999999, added to the seconds.
    pub nanoseconds: u32,
}

/// A clock that a time namespace has of its own, see time_namespaces(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OffsetClock {
    /// `CLOCK_MONOTONIC`.
    Monotonic,
    /// `CLOCK_BOOTTIME`.
    Boottime,
}

impl OffsetClock {
    /// The name in the document and in `/proc/<pid>/timens_offsets`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            OffsetClock::Monotonic => "monotonic",
            OffsetClock::Boottime => "boottime",
        }
    }
}

/// How the ids of a bind are translated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdmapPlan {
    /// With all mounts below it.
    pub recursive: bool,
    /// `None`: as in the container's user namespace.
    pub mappings: Option<IdMappings>,
}

/// One mount.
#[derive(Debug, Clone)]
pub struct MountPlan {
    /// Position in the document, for messages.
    pub index: usize,
    /// Absolute and clean, inside the container.
    pub destination: String,
    /// What is mounted.
    pub kind: MountKind,
    /// Attributes of the mount itself.
    pub attributes: MountAttributes,
    /// Attributes of the whole subtree (`rro` and kin).
    pub recursive_attributes: MountAttributes,
    /// Propagation changes, in order, after attaching.
    pub propagation: Vec<Propagation>,
    /// Translation of ids; binds only.
    pub idmap: Option<IdmapPlan>,
}

/// An option of a file system: a key, and a value unless it is a flag.
pub type MountParameter = (String, Option<String>);

/// What mount(2) is told besides the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LegacyMount {
    /// `MS_I_VERSION`.
    pub inode_versions: bool,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountKind {
    /// A directory or file of the host.
    Bind {
        /// Path on the host; relative ones start at the bundle.
        source: PathBuf,
        /// With all mounts below it.
        recursive: bool,
        /// Whether `attributes` stand for all that the source has. Without option words they all stay.
        replaces: bool,
    },
    /// A new instance of a file system.
    New {
        /// Type as the kernel knows it.
        fs_type: String,
        /// The `source` string.
        source: String,
        /// Options for the file system, in order.
        parameters: Vec<MountParameter>,
        /// Whether a tmpfs begins with what the directory below it has.
        copy_up: bool,
        /// Whether it must be made by mount(2), which takes what fsconfig(2) cannot: values of 256 bytes
        /// and more, and inode versions.
        by_mount2: Option<LegacyMount>,
    },
    /// The container's view of the cgroup tree, whatever the host's version is.
    Cgroup,
    /// Change the attributes of what is mounted there already.
    Remount {
        /// Options for the file system itself, in order.
        parameters: Vec<MountParameter>,
    },
}

/// One device node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceNode {
    /// Absolute and clean, inside the container.
    pub path: String,
    /// Character, block or FIFO.
    pub kind: DeviceKind,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// The type of a device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    /// Character device (`c`, `u`).
    Character,
    /// Block device (`b`).
    Block,
    /// Named pipe (`p`).
    Fifo,
}

/// Where the container's cgroup lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CgroupPath {
    /// Below the root of each controller; begins with `/`.
    Absolute(String),
    /// Below the runtime's own cgroup.
    Relative(String),
    /// A systemd unit, `slice:prefix:name`.
    Unit(String),
}

/// A process of the container, its first or a later one.
#[derive(Debug, Clone)]
pub struct ProcessPlan {
    /// Whether it gets a terminal.
    pub terminal: bool,
    /// Rows and columns of the terminal.
    pub console_size: Option<(u16, u16)>,
    /// Program and arguments, at least one.
    pub args: Vec<String>,
    /// `NAME=value`, later ones win.
    pub env: Vec<String>,
    /// Absolute.
    pub cwd: String,
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups.
    pub additional_gids: Vec<u32>,
    /// File mode creation mask.
    pub umask: u32,
    /// `None`: it has none at all.
    pub capabilities: Option<CapabilityPlan>,
    /// Resource limits.
    pub rlimits: Vec<RlimitPlan>,
    /// Set no_new_privs.
    pub no_new_privileges: bool,
    /// Empty: none.
    pub apparmor_profile: String,
    /// Empty: none.
    pub selinux_label: String,
    /// `None`: as inherited.
    pub oom_score_adj: Option<i32>,
    /// `None`: as inherited.
    pub scheduler: Option<SchedulerPlan>,
    /// `None`: as inherited.
    pub io_priority: Option<IoPriorityPlan>,
    /// For `exec` only: the specification leaves the container's first process out.
    pub exec_cpu_affinity: AffinityPlan,
    /// Execution domain of every process of the container, see personality(2).
    pub personality: Option<u64>,
    /// NUMA memory policy of every process of the container; `None`: as inherited.
    pub memory_policy: Option<MemoryPolicyPlan>,
}

/// Arguments of sched_setattr(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchedulerPlan {
    /// `SCHED_*` name of the document.
    pub name: &'static str,
    /// `SCHED_*` number.
    pub policy: u32,
    /// `SCHED_FLAG_*` bits.
    pub flags: u64,
    /// -20 to 19.
    pub nice: i32,
    /// 1 to 99 for the real-time policies, otherwise 0.
    pub priority: u32,
    /// Nanoseconds, deadline policy only, like the next two.
    pub runtime: u64,
    /// Nanoseconds.
    pub deadline: u64,
    /// Nanoseconds; 0 is the deadline.
    pub period: u64,
}

impl SchedulerPlan {
    /// Whether a process under it cannot fork (sched(7), "SCHED_DEADLINE").
    #[must_use]
    pub fn forbids_fork(&self) -> bool {
        const DEADLINE: u32 = 6;
        const RESET_ON_FORK: u64 = 1;
        self.policy == DEADLINE && self.flags & RESET_ON_FORK == 0
    }
}

/// I/O class and level of ioprio_set(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoPriorityPlan {
    /// `IOPRIO_CLASS_*` name of the document.
    pub name: &'static str,
    /// 1 real time, 2 best effort, 3 idle.
    pub class: u32,
    /// 0 (highest) to 7.
    pub level: u32,
}

/// CPUs of an exec'd process before and after it enters the container's cgroup; `None`: left alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AffinityPlan {
    /// Before.
    pub initial: Option<NumberSet>,
    /// After.
    pub last: Option<NumberSet>,
}

/// Arguments of set_mempolicy(2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryPolicyPlan {
    /// `MPOL_*` name of the document.
    pub name: &'static str,
    /// `MPOL_*` number with its `MPOL_F_*` bits.
    pub mode: i32,
    /// Memory nodes; empty where the mode takes none.
    pub nodes: NumberSet,
}

/// The five sets as bit masks, bit n for capability number n.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CapabilityPlan {
    /// Upper bound of what execve can give.
    pub bounding: u64,
    /// In force.
    pub effective: u64,
    /// Kept over execve of files with inheritable capabilities.
    pub inheritable: u64,
    /// May be put in force.
    pub permitted: u64,
    /// Kept over execve of plain files.
    pub ambient: u64,
}

/// One resource limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RlimitPlan {
    /// `RLIMIT_*` name.
    pub name: &'static str,
    /// Which.
    pub resource: rustix::process::Resource,
    /// Soft limit; `u64::MAX` is unlimited.
    pub soft: u64,
    /// Hard limit; `u64::MAX` is unlimited.
    pub hard: u64,
}
