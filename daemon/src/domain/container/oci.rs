//! Builds the OCI documents of containers and of the sandbox process, as values, from what was asked for, what
//! the image says and what the host can do. Every refusal of a CreateContainer that needs no look at the disk
//! is here or in a module below.
//!
//! Labels, and annotations of images, never reach a document, annotations of the request only where the operator
//! allows them for the runtime handler (CVE-2023-6476, CVE-2026-53488, CVE-2026-94603).

use std::collections::{BTreeMap, BTreeSet};

use crate::domain::container::cdi::{Injection, IntelRdt};
use crate::domain::container::seccomp::{Seccomp, default_profile};
use crate::domain::container::user::ResolvedUser;
use crate::domain::pod::spec::{PodSpec, SecurityProfile};
use crate::domain::pod::user_namespace::IdMapping;

mod capabilities;
mod devices;
mod document;
mod error;
mod input;
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
    CgroupResources, Cpu, Device, DeviceRule, Hook, Hooks, HugepageLimit, IdRun, Linux, Memory,
    Mount, Namespace, NetDevice, Pids, Process, ProcessCapabilities, Root, RuntimeSpec, User,
};
pub use error::OciError;
pub use input::{
    ContainerInput, HostFacts, ImageDefaults, NamespacePaths, PidNamespace, PodFiles, SandboxInput,
};
pub use paths::clean_container_path;
pub use resources::{cgroup_resources, oom_score_adj};
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
    if !security.namespaces.user.fits(&pod.namespaces.user) {
        return Err(OciError::UserNamespace {
            pod: pod.metadata.name.clone(),
        });
    }
    let ids = pod.namespaces.user.ids();
    let user = with_groups(input);
    process::check_ids(&user, ids)?;
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

    // Ours last: nobody passes for another pod.
    let mut annotations = input
        .annotations
        .pick(&pod.annotations, &container.annotations);
    annotations.extend(ours(pod, input.pod_id, "container"));
    annotations.insert(CONTAINER_NAME.to_owned(), container.name.clone());
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
        oci_version: version(input.injection),
        root: Root {
            path: ROOTFS,
            readonly: security.readonly_rootfs,
        },
        process: Process {
            terminal: container.tty,
            user: User {
                uid: input.user.uid,
                gid: input.user.gid,
                additional_gids: user.additional_gids,
            },
            args: process::args(container, input.image)?,
            env: process::environment(input)?,
            cwd: process::working_dir(container, input.image)?,
            capabilities: granted.capabilities(),
            no_new_privileges: security.no_new_privs,
            apparmor_profile: apparmor(input)?,
            // Privileged containers are confined by nothing: theirs is the runtime's context, or what the policy
            // makes of it.
            selinux_label: input
                .labels
                .filter(|_| !security.privileged)
                .map(|labels| labels.process.clone()),
            oom_score_adj: resources::oom_score_adj(container.resources.oom_score_adj, host)?,
        },
        mounts: mounts.mounts,
        annotations,
        hooks: hooks(input.injection),
        linux: Linux {
            uid_mappings: ids.map(|ids| runs(&ids.uids)).unwrap_or_default(),
            gid_mappings: ids.map(|ids| runs(&ids.gids)).unwrap_or_default(),
            cgroups_path: input.cgroups_path.to_owned(),
            resources,
            namespaces,
            devices,
            net_devices: net_devices(input.injection),
            intel_rdt: input.injection.intel_rdt.clone(),
            seccomp: seccomp(input, &granted.bounding)?,
            rootfs_propagation: mounts.rootfs_propagation,
            masked_paths: shown(&security.masked_paths, "masked_paths")?,
            readonly_paths: shown(&security.readonly_paths, "readonly_paths")?,
            mount_label: input.labels.map(|labels| labels.file.clone()),
        },
    };
    Ok(Document {
        spec,
        left_out_capabilities: granted.left_out,
    })
}

/// The user with the groups that its CDI devices bring; of group 0 they bring none, as in the reference
/// implementation.
fn with_groups(input: &ContainerInput<'_>) -> ResolvedUser {
    let mut user = input.user.clone();
    for &gid in &input.injection.additional_gids {
        if gid != 0 && !user.additional_gids.contains(&gid) {
            user.additional_gids.push(gid);
        }
    }
    user
}

/// Hooks of CDI devices: a request has none.
fn hooks(injection: &Injection) -> Hooks {
    let mut hooks = Hooks::default();
    for edit in &injection.hooks {
        let hook = Hook {
            path: edit.path.clone(),
            args: edit.args.clone(),
            env: edit.env.clone(),
            timeout: edit.timeout,
        };
        let list = hooks.0.entry(edit.hook_name.clone()).or_default();
        list.push(hook);
    }
    hooks
}

fn net_devices(injection: &Injection) -> BTreeMap<String, NetDevice> {
    let devices = injection.net_devices.iter();
    devices
        .map(|(host, name)| (host.clone(), NetDevice { name: name.clone() }))
        .collect()
}

/// The version of the spec that has what these devices need.
fn version(injection: &Injection) -> &'static str {
    let recent = injection
        .intel_rdt
        .as_ref()
        .is_some_and(IntelRdt::is_recent);
    if recent || !injection.net_devices.is_empty() {
        document::RECENT_VERSION
    } else {
        document::VERSION
    }
}

/// The document of the process that holds a shared PID namespace: the runtime's own binary, which reaps and
/// waits, in an empty read-only root, as nobody, without capabilities.
///
/// # Errors
/// [`OciError`] when a path is no UTF-8.
pub fn sandbox_document(input: &SandboxInput<'_>) -> Result<Document, OciError> {
    let SandboxInput { pod, host, .. } = *input;
    let ids = pod.namespaces.user.ids();
    // Nobody, or the last one there is.
    let nobody = (0..=SANDBOX_USER)
        .rev()
        .find(|&id| ids.is_none_or(|ids| ids.host_uid(id).is_some() && ids.host_gid(id).is_some()))
        .unwrap_or(0);
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
                uid: nobody,
                gid: nobody,
                additional_gids: Vec::new(),
            },
            args: vec!["/pause".to_owned()],
            cwd: "/".to_owned(),
            no_new_privileges: true,
            oom_score_adj: SANDBOX_OOM_SCORE_ADJ.max(host.oom_score_adj_floor),
            ..Process::default()
        },
        mounts: mounts::sandbox_mounts(input.runtime_binary)?,
        annotations: ours(pod, input.pod_id, "sandbox"),
        linux: Linux {
            uid_mappings: ids.map(|ids| runs(&ids.uids)).unwrap_or_default(),
            gid_mappings: ids.map(|ids| runs(&ids.gids)).unwrap_or_default(),
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
        ("user", &paths.user),
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

fn runs(mappings: &[IdMapping]) -> Vec<IdRun> {
    let run = |mapping: &IdMapping| IdRun {
        container_id: mapping.container,
        host_id: mapping.host,
        size: mapping.length,
    };
    mappings.iter().map(run).collect()
}

/// The annotations that every document has.
fn ours(pod: &PodSpec, pod_id: &str, kind: &str) -> BTreeMap<String, String> {
    let pairs = [
        (CONTAINER_TYPE, kind.to_owned()),
        (SANDBOX_ID, pod_id.to_owned()),
        (SANDBOX_NAME, pod.metadata.name.clone()),
        (SANDBOX_NAMESPACE, pod.metadata.namespace.clone()),
        (SANDBOX_UID, pod.metadata.uid.clone()),
    ];
    pairs.map(|(name, value)| (name.to_owned(), value)).into()
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
