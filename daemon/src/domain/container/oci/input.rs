//! What documents are made from: the request, the image, the pod's resources and the host, as plain values
//! that the caller has found out.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::HostDevice;
use crate::domain::container::cdi::Injection;
use crate::domain::container::seccomp::{Arch, Seccomp};
use crate::domain::container::spec::ContainerSpec;
use crate::domain::container::user::ResolvedUser;
use crate::domain::pod::spec::PodSpec;
use crate::domain::runtime_handler::AnnotationPatterns;
use crate::domain::selinux::{Labels, Selinux};

/// What an image's configuration says about its process. Hostile text, checked where it is used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageDefaults {
    /// USER.
    pub user: String,
    /// ENV, each "NAME=value".
    pub env: Vec<String>,
    /// ENTRYPOINT.
    pub entrypoint: Vec<String>,
    /// CMD.
    pub cmd: Vec<String>,
    /// WORKDIR.
    pub working_dir: String,
    /// STOPSIGNAL.
    pub stop_signal: Option<String>,
}

/// What the host can do and is, found out once by the caller.
#[derive(Debug, Clone, Default)]
pub struct HostFacts {
    /// Processor family.
    pub arch: Arch,
    /// Name of the node, for pods on its network.
    pub hostname: String,
    /// Whether cgroup v2 is the host's only hierarchy.
    pub cgroup_v2: bool,
    /// Options `nsdelegate` and `memory_recursiveprot` where the host's cgroup2 mount has them: a mount without
    /// them in the host's cgroup namespace would take them from the host.
    pub cgroup2_options: Vec<String>,
    /// Huge page sizes with a cgroup limit ("2MB").
    pub hugetlb: BTreeSet<String>,
    /// Whether swap can be limited.
    pub swap: bool,
    /// The bounding set of the daemon ("CAP_X"): nobody can be given more.
    pub bounding_capabilities: BTreeSet<String>,
    /// The lowest `oom_score_adj` the daemon may give: -1000 with CAP_SYS_RESOURCE, its own without.
    pub oom_score_adj_floor: i64,
    /// Whether the kernel filters system calls.
    pub seccomp: bool,
    /// Whether AppArmor is on.
    pub apparmor: bool,
    /// Name of the loaded profile that is the runtime's default under AppArmor.
    pub apparmor_default: Option<String>,
    /// Whether containers have SELinux contexts.
    pub selinux: Selinux,
    /// Whether kernel and OCI runtime make mounts read-only recursively.
    pub recursive_read_only: bool,
    /// Why no pod can have a user namespace; none where it can.
    pub no_user_namespaces: Option<String>,
    /// Every device of the host, for privileged containers.
    pub all_devices: Vec<HostDevice>,
}

/// Namespaces of the pod that a process joins; none is the host's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NamespacePaths {
    /// User; it owns the others.
    pub user: Option<PathBuf>,
    /// Network.
    pub net: Option<PathBuf>,
    /// IPC.
    pub ipc: Option<PathBuf>,
    /// UTS, which has the pod's host name already.
    pub uts: Option<PathBuf>,
}

/// Which processes a container sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PidNamespace {
    /// Its own.
    Own,
    /// The host's.
    Host,
    /// Those of the namespace at this path: the pod's or another container's.
    Join(PathBuf),
}

/// Files of the pod that are bound into its containers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodFiles {
    /// For /etc/resolv.conf.
    pub resolv_conf: Option<PathBuf>,
    /// For /etc/hostname.
    pub hostname: Option<PathBuf>,
    /// For /etc/hosts, where the kubelet brings none.
    pub hosts: Option<PathBuf>,
    /// For /dev/shm: the pod's, or the host's for pods in its IPC namespace. None is one of the container's own.
    pub shm: Option<PathBuf>,
}

/// All that a container's document is made from.
#[derive(Debug, Clone, Copy)]
pub struct ContainerInput<'a> {
    /// The pod.
    pub pod: &'a PodSpec,
    /// Its id.
    pub pod_id: &'a str,
    /// The container.
    pub container: &'a ContainerSpec,
    /// Its image.
    pub image: &'a ImageDefaults,
    /// Who it runs as.
    pub user: &'a ResolvedUser,
    /// Namespaces of the pod.
    pub namespaces: &'a NamespacePaths,
    /// PID namespace.
    pub pid: &'a PidNamespace,
    /// cgroup in the form of the cgroup driver in use.
    pub cgroups_path: &'a str,
    /// Most processes and threads; none is no limit.
    pub pids_limit: Option<i64>,
    /// Files of the pod.
    pub files: &'a PodFiles,
    /// Where the images of its volumes are mounted on the host, in the order of those mounts.
    pub image_volumes: &'a [PathBuf],
    /// The devices asked for, as they are on the host.
    pub devices: &'a [HostDevice],
    /// Its SELinux contexts; none leaves what it has to the policy.
    pub labels: Option<&'a Labels>,
    /// What its CDI devices change.
    pub injection: &'a Injection,
    /// The host.
    pub host: &'a HostFacts,
    /// The profile of the node the container names, if it names one.
    pub seccomp_profile: Option<&'a Seccomp>,
    /// Annotations that the operator lets reach the OCI runtime.
    pub annotations: &'a AnnotationPatterns,
}

/// All that the document of a sandbox process is made from.
#[derive(Debug, Clone, Copy)]
pub struct SandboxInput<'a> {
    /// The pod.
    pub pod: &'a PodSpec,
    /// Its id.
    pub pod_id: &'a str,
    /// The runtime's own binary, which is the sandbox process as well.
    pub runtime_binary: &'a Path,
    /// Namespaces of the pod.
    pub namespaces: &'a NamespacePaths,
    /// cgroup in the form of the cgroup driver in use.
    pub cgroups_path: &'a str,
    /// The host.
    pub host: &'a HostFacts,
}
