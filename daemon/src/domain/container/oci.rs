//! Builds the OCI documents of containers and of the sandbox process, as values, from what was asked for, what
//! the image says and what the host can do. Every refusal of a CreateContainer that needs no look at the disk
//! is here or in a module below.
//!
//! Labels and annotations, of the request or of the image, never reach a document (CVE-2023-6476,
//! CVE-2026-53488, CVE-2026-94603): its annotations are axil's own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::domain::container::seccomp::{Arch, Seccomp, default_profile};
use crate::domain::container::spec::ContainerSpec;
use crate::domain::container::user::ResolvedUser;
use crate::domain::pod::spec::{PodSpec, SecurityProfile};

mod capabilities;
mod devices;
mod document;
mod error;
mod mounts;
mod paths;
mod process;
mod resources;
mod signal;
mod sysctls;
#[cfg(test)]
mod tests;

pub use devices::{DeviceKind, HostDevice};
pub use document::{
    CgroupResources, Cpu, Device, DeviceRule, HugepageLimit, Linux, Memory, Mount, Namespace, Pids,
    Process, ProcessCapabilities, Root, RuntimeSpec, User,
};
pub use error::OciError;
pub use paths::clean_container_path;
pub use resources::cgroup_resources;
pub use signal::stop_signal;
pub use sysctls::{SysctlError, check_sysctls, sysctl_path};

// The keys other programs know; the same texts as in axil-proto, which this pure module does not use.
const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";
const CONTAINER_NAME: &str = "io.kubernetes.cri.container-name";
const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";
const SANDBOX_NAME: &str = "io.kubernetes.cri.sandbox-name";
const SANDBOX_NAMESPACE: &str = "io.kubernetes.cri.sandbox-namespace";
const SANDBOX_UID: &str = "io.kubernetes.cri.sandbox-uid";

/// Root file system of every bundle, relative to it.
const ROOTFS: &str = "rootfs";

/// User and group of the sandbox process: nobody.
const SANDBOX_USER: u32 = 65535;

/// The sandbox process goes last when memory is short: without it the pod is gone.
const SANDBOX_OOM_SCORE_ADJ: i64 = -998;

/// Hidden from the sandbox process: what Kubernetes hides of /proc by default.
const SANDBOX_MASKED: &str =
    "/proc/acpi /proc/asound /proc/kcore /proc/keys /proc/latency_stats /proc/scsi
    /proc/sched_debug /proc/timer_list /proc/timer_stats";

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
    /// Whether kernel and OCI runtime make mounts read-only recursively.
    pub recursive_read_only: bool,
    /// Every device of the host, for privileged containers.
    pub all_devices: Vec<HostDevice>,
}

/// Namespaces of the pod that a process joins; none is the host's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NamespacePaths {
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
    /// The devices asked for, as they are on the host.
    pub devices: &'a [HostDevice],
    /// The host.
    pub host: &'a HostFacts,
    /// The profile of the node the container names, if it names one.
    pub seccomp_profile: Option<&'a Seccomp>,
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

/// A document, and what the caller may want to log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// The content of config.json.
    pub spec: RuntimeSpec,
    /// Capabilities that were asked for and that the daemon cannot give.
    pub left_out_capabilities: BTreeSet<String>,
}

impl Document {
    /// config.json, compact; equal for equal documents.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(&self.spec)
            .expect("strings, numbers and maps with text keys have a JSON form")
    }
}

/// The document of a container.
///
/// # Errors
/// [`OciError`] naming the field and its value.
pub fn container_document(input: &ContainerInput<'_>) -> Result<Document, OciError> {
    let ContainerInput {
        pod,
        container,
        host,
        ..
    } = *input;
    let security = &container.security;
    if security.privileged && !pod.security.privileged {
        return Err(OciError::PrivilegedPod {
            pod: pod.metadata.name.clone(),
        });
    }
    let granted = capabilities::grant(security, &host.bounding_capabilities)?;
    let cgroup_namespace = host.cgroup_v2 && !security.privileged;
    let mounts = mounts::container_mounts(input, cgroup_namespace)?;
    let devices = devices::container_devices(input)?;
    let mut resources = cgroup_resources(&container.resources, input.pids_limit, host)?;
    resources.devices = devices::device_rules(input)?;

    let mut namespaces = pod_namespaces(input.namespaces)?;
    match input.pid {
        PidNamespace::Own => namespaces.push(Namespace {
            kind: "pid",
            path: None,
        }),
        PidNamespace::Host => {}
        PidNamespace::Join(path) => namespaces.push(Namespace {
            kind: "pid",
            path: Some(paths::text(path)?),
        }),
    }
    namespaces.push(Namespace {
        kind: "mount",
        path: None,
    });
    if cgroup_namespace {
        namespaces.push(Namespace {
            kind: "cgroup",
            path: None,
        });
    }

    let mut annotations = annotations(pod, input.pod_id, "container");
    annotations.insert(CONTAINER_NAME, container.name.clone());
    let shown = |paths: &[String], field| -> Result<Vec<String>, OciError> {
        if security.privileged {
            return Ok(Vec::new());
        }
        paths
            .iter()
            .map(|path| clean_container_path(field, path))
            .collect()
    };
    let spec = RuntimeSpec {
        root: Root {
            path: ROOTFS,
            readonly: security.readonly_rootfs,
        },
        process: Process {
            terminal: container.tty,
            user: User {
                uid: input.user.uid,
                gid: input.user.gid,
                additional_gids: input.user.additional_gids.clone(),
            },
            args: process::args(container, input.image)?,
            env: process::environment(input)?,
            cwd: process::working_dir(container, input.image)?,
            capabilities: granted.capabilities(),
            no_new_privileges: security.no_new_privs,
            apparmor_profile: apparmor(input)?,
            oom_score_adj: resources::oom_score_adj(container.resources.oom_score_adj, host)?,
        },
        mounts: mounts.mounts,
        annotations,
        linux: Linux {
            cgroups_path: input.cgroups_path.to_owned(),
            resources,
            namespaces,
            devices,
            seccomp: seccomp(input, &granted.bounding)?,
            rootfs_propagation: mounts.rootfs_propagation,
            masked_paths: shown(&security.masked_paths, "masked_paths")?,
            readonly_paths: shown(&security.readonly_paths, "readonly_paths")?,
        },
        ..RuntimeSpec::default()
    };
    Ok(Document {
        spec,
        left_out_capabilities: granted.left_out,
    })
}

/// The document of the process that holds a shared PID namespace: the runtime's own binary, which reaps and
/// waits, in an empty read-only root, as nobody, without capabilities.
///
/// # Errors
/// [`OciError`] when a path is no UTF-8.
pub fn sandbox_document(input: &SandboxInput<'_>) -> Result<Document, OciError> {
    let SandboxInput { pod, host, .. } = *input;
    let mut namespaces = pod_namespaces(input.namespaces)?;
    namespaces.push(Namespace {
        kind: "pid",
        path: None,
    });
    namespaces.push(Namespace {
        kind: "mount",
        path: None,
    });
    if host.cgroup_v2 {
        namespaces.push(Namespace {
            kind: "cgroup",
            path: None,
        });
    }
    let spec = RuntimeSpec {
        root: Root {
            path: ROOTFS,
            readonly: true,
        },
        process: Process {
            user: User {
                uid: SANDBOX_USER,
                gid: SANDBOX_USER,
                additional_gids: Vec::new(),
            },
            args: vec!["/pause".to_owned()],
            cwd: "/".to_owned(),
            no_new_privileges: true,
            oom_score_adj: SANDBOX_OOM_SCORE_ADJ.max(host.oom_score_adj_floor),
            ..Process::default()
        },
        mounts: mounts::sandbox_mounts(input.runtime_binary)?,
        annotations: annotations(pod, input.pod_id, "sandbox"),
        linux: Linux {
            cgroups_path: input.cgroups_path.to_owned(),
            resources: CgroupResources {
                devices: vec![DeviceRule::all(false)],
                cpu: Some(Cpu {
                    shares: Some(2),
                    ..Cpu::default()
                }),
                ..CgroupResources::default()
            },
            namespaces,
            seccomp: host
                .seccomp
                .then(|| default_profile(&BTreeSet::new(), host.arch)),
            masked_paths: SANDBOX_MASKED
                .split_ascii_whitespace()
                .map(str::to_owned)
                .collect(),
            ..Linux::default()
        },
        ..RuntimeSpec::default()
    };
    Ok(Document {
        spec,
        left_out_capabilities: BTreeSet::new(),
    })
}

fn pod_namespaces(paths: &NamespacePaths) -> Result<Vec<Namespace>, OciError> {
    [
        ("network", &paths.net),
        ("ipc", &paths.ipc),
        ("uts", &paths.uts),
    ]
    .into_iter()
    .filter_map(|(kind, path)| path.as_deref().map(|path| (kind, path)))
    .map(|(kind, path)| {
        Ok(Namespace {
            kind,
            path: Some(paths::text(path)?),
        })
    })
    .collect()
}

fn annotations(pod: &PodSpec, pod_id: &str, kind: &str) -> BTreeMap<&'static str, String> {
    BTreeMap::from([
        (CONTAINER_TYPE, kind.to_owned()),
        (SANDBOX_ID, pod_id.to_owned()),
        (SANDBOX_NAME, pod.metadata.name.clone()),
        (SANDBOX_NAMESPACE, pod.metadata.namespace.clone()),
        (SANDBOX_UID, pod.metadata.uid.clone()),
    ])
}

/// Privileged containers have no filter, whatever they ask for, as everywhere in Kubernetes.
fn seccomp(
    input: &ContainerInput<'_>,
    capabilities: &BTreeSet<String>,
) -> Result<Option<Seccomp>, OciError> {
    let security = &input.container.security;
    if security.privileged {
        return Ok(None);
    }
    let profile = match &security.seccomp {
        SecurityProfile::Unset | SecurityProfile::Unconfined => return Ok(None),
        SecurityProfile::RuntimeDefault => default_profile(capabilities, input.host.arch),
        SecurityProfile::Localhost(name) => {
            input
                .seccomp_profile
                .cloned()
                .ok_or_else(|| OciError::SeccompProfile {
                    profile: name.clone(),
                })?
        }
    };
    if input.host.seccomp {
        Ok(Some(profile))
    } else {
        Err(OciError::SeccompUnsupported)
    }
}

fn apparmor(input: &ContainerInput<'_>) -> Result<Option<String>, OciError> {
    let security = &input.container.security;
    match (&security.apparmor, input.host.apparmor) {
        (SecurityProfile::Localhost(profile), false) => Err(OciError::AppArmorUnsupported {
            profile: profile.clone(),
        }),
        (_, false) => Ok(None),
        (SecurityProfile::Localhost(profile), true) => Ok(Some(profile.clone())),
        (SecurityProfile::Unconfined, true) => Ok(Some("unconfined".to_owned())),
        (SecurityProfile::Unset | SecurityProfile::RuntimeDefault, true) if security.privileged => {
            Ok(None)
        }
        (SecurityProfile::Unset, true) => Ok(input.host.apparmor_default.clone()),
        (SecurityProfile::RuntimeDefault, true) => input
            .host
            .apparmor_default
            .clone()
            .map(Some)
            .ok_or(OciError::AppArmorDefault),
    }
}
