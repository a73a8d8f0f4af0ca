//! config.json → [`Plan`]: every rejection happens here, before any side effect; nothing here touches the system.

mod intel_rdt;
mod mounts;
mod namespaces;
mod net_devices;
mod process;
mod resources;
mod scheduling;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;

use crate::config::{Config, Device, Hooks, Linux};
use crate::plan::{
    DeviceKind, DeviceNode, NamespaceKind, Namespaces, Plan, Propagation, PropagationKind,
    RootfsPlan,
};

pub(crate) use mounts::known_options as known_mount_options;
pub(crate) use namespaces::{check_process_ids, kinds};
pub use process::{CAPABILITY_NAMES, plan_process};
pub(crate) use scheduling::{memory_policy_flags, memory_policy_modes};

/// Why a document is refused. Every variant names the field as it is written in the document.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SpecError {
    /// The value cannot be right.
    #[error("config.json: {field}: {value:?} {reason}")]
    Invalid {
        /// JSON path of the field.
        field: String,
        /// What was found.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The value may be right, but this runtime cannot do it.
    #[error("config.json: {field} is not supported: {reason}")]
    Unsupported {
        /// JSON path of the field.
        field: String,
        /// Why, or what would be needed.
        reason: String,
    },
    /// A field that must be there is not.
    #[error("config.json: {field} is missing")]
    Missing {
        /// JSON path of the field.
        field: &'static str,
    },
}

fn invalid(
    field: impl Into<String>,
    value: impl Into<String>,
    reason: impl Into<String>,
) -> SpecError {
    SpecError::Invalid {
        field: field.into(),
        value: value.into(),
        reason: reason.into(),
    }
}

fn unsupported(field: impl Into<String>, reason: impl Into<String>) -> SpecError {
    SpecError::Unsupported {
        field: field.into(),
        reason: reason.into(),
    }
}

/// Decides everything about a container from its document. `warnings` receives what is tolerated.
///
/// # Errors
/// [`SpecError`] for anything that cannot be carried out exactly as written.
pub fn plan(config: Config, warnings: &mut Vec<String>) -> Result<Plan, SpecError> {
    check_version(&config.oci_version, warnings)?;
    check_annotations(&config.annotations)?;
    let root = config.root.ok_or(SpecError::Missing { field: "root" })?;
    if root.path.is_empty() {
        return Err(SpecError::Missing { field: "root.path" });
    }
    check_text("root.path", &root.path)?;
    let process = config
        .process
        .ok_or(SpecError::Missing { field: "process" })?;
    let linux = config.linux.ok_or(SpecError::Missing { field: "linux" })?;
    let process = plan_process(process, &linux)?;
    let namespaces = namespaces::plan_namespaces(&linux)?;
    let id_mappings = namespaces::plan_id_mappings(&linux, &namespaces)?;
    let time_offsets = namespaces::plan_time_offsets(&linux, &namespaces)?;
    check_names(&config.hostname, &config.domainname, &namespaces)?;
    let net_devices = net_devices::plan_net_devices(&linux.net_devices, &namespaces)?;
    let mut mounts = Vec::with_capacity(config.mounts.len());
    for (index, mount) in config.mounts.iter().enumerate() {
        mounts.push(mounts::plan_mount(index, mount, warnings)?);
    }
    namespaces::check_ids(&id_mappings, &namespaces, &process, &mounts)?;
    check_text("linux.mountLabel", &linux.mount_label)?;
    for mount in &mut mounts {
        mounts::label(mount, &linux.mount_label);
    }
    let hooks = config.hooks.unwrap_or_default();
    check_hooks(&hooks)?;
    let deadline = process.scheduler.filter(|plan| plan.forbids_fork());
    if let (Some(plan), false) = (deadline, hooks.start_container.is_empty()) {
        return Err(invalid(
            "process.scheduler.policy",
            plan.name,
            "without SCHED_FLAG_RESET_ON_FORK cannot go with hooks.startContainer: the kernel lets no \
             deadline process fork",
        ));
    }
    let devices = plan_devices(&linux.devices)?;
    let sysctls = plan_sysctls(&linux, &namespaces)?;
    let resources = linux.resources.unwrap_or_default();
    resources::check(&resources)?;
    Ok(Plan {
        oci_version: config.oci_version,
        rootfs: RootfsPlan {
            path: PathBuf::from(root.path),
            readonly: root.readonly,
            propagation: parse_propagation("linux.rootfsPropagation", &linux.rootfs_propagation)?,
        },
        hostname: config.hostname,
        domainname: config.domainname,
        mounts,
        devices,
        net_devices,
        mount_label: linux.mount_label,
        intel_rdt: linux
            .intel_rdt
            .as_ref()
            .map(intel_rdt::plan_intel_rdt)
            .transpose()?,
        masked_paths: clean_list("linux.maskedPaths", &linux.masked_paths)?,
        readonly_paths: clean_list("linux.readonlyPaths", &linux.readonly_paths)?,
        sysctls,
        cgroup_path: resources::plan_cgroup_path(&linux.cgroups_path)?,
        resources,
        seccomp: linux.seccomp.filter(|raw| raw.get() != "null"),
        hooks,
        process,
        annotations: config.annotations,
        namespaces,
        id_mappings,
        time_offsets,
    })
}

/// Newest minor version of the specification this runtime knows.
const MINOR: u64 = 3;

/// `ociVersion` must be a semantic version (semver.org 2.0.0) of the specification's first major version.
fn check_version(version: &str, warnings: &mut Vec<String>) -> Result<(), SpecError> {
    if version.is_empty() {
        return Err(SpecError::Missing {
            field: "ociVersion",
        });
    }
    let refuse = |reason: &str| Err(invalid("ociVersion", version, reason));
    let Some((major, minor)) = parse_version(version) else {
        return refuse("is not a semantic version");
    };
    match (major, minor) {
        (1, minor) => {
            if minor > MINOR {
                warnings.push(format!(
                    "ociVersion {version:?} is newer than 1.{MINOR}: fields it added are ignored"
                ));
            }
            Ok(())
        }
        (0, _) => refuse("is older than the first stable version 1.0.0"),
        _ => refuse("is not a version 1 document"),
    }
}

/// Major and minor number of `MAJOR.MINOR.PATCH[-PRE][+BUILD]`.
fn parse_version(version: &str) -> Option<(u64, u64)> {
    let (version, build) = version
        .split_once('+')
        .map_or((version, None), |(v, b)| (v, Some(b)));
    let (core, pre) = version
        .split_once('-')
        .map_or((version, None), |(c, p)| (c, Some(p)));
    let is_label = |text: &str| {
        let plain = |part: &str| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        text.split('.').all(plain)
    };
    if !pre.is_none_or(is_label) || !build.is_none_or(is_label) {
        return None;
    }
    let number = |text: &str| {
        let plain = text.bytes().all(|b| b.is_ascii_digit());
        let leading_zero = text.len() > 1 && text.starts_with('0');
        text.parse::<u64>().ok().filter(|_| plain && !leading_zero)
    };
    let mut numbers = core.split('.').map(number);
    let (major, minor, patch) = (numbers.next()??, numbers.next()??, numbers.next()?);
    (patch.is_some() && numbers.next().is_none()).then_some((major, minor))
}

/// Annotations are carried along; the specification has one rule for their keys.
fn check_annotations(annotations: &BTreeMap<String, String>) -> Result<(), SpecError> {
    match annotations.get("") {
        Some(value) => Err(invalid("annotations[\"\"]", value, "has an empty key")),
        None => Ok(()),
    }
}

/// Refuses what execve and mount could only see cut short.
fn check_text(field: impl Into<String>, value: &str) -> Result<(), SpecError> {
    if value.contains('\0') {
        return Err(invalid(field, value, "contains a NUL byte"));
    }
    Ok(())
}

fn check_names(host: &str, domain: &str, namespaces: &Namespaces) -> Result<(), SpecError> {
    for (field, name) in [("hostname", host), ("domainname", domain)] {
        if name.is_empty() {
            continue;
        }
        if !namespaces.separates(NamespaceKind::Uts) {
            return Err(invalid(
                field,
                name,
                "needs a UTS namespace of the container",
            ));
        }
        // __NEW_UTS_LEN of the kernel.
        if name.len() > 64 {
            return Err(invalid(field, name, "is longer than 64 bytes"));
        }
        check_text(field, name)?;
    }
    Ok(())
}

fn check_hooks(hooks: &Hooks) -> Result<(), SpecError> {
    let kinds = [
        ("prestart", &hooks.prestart),
        ("createRuntime", &hooks.create_runtime),
        ("createContainer", &hooks.create_container),
        ("startContainer", &hooks.start_container),
        ("poststart", &hooks.poststart),
        ("poststop", &hooks.poststop),
    ];
    for (kind, list) in kinds {
        for (index, hook) in list.iter().enumerate() {
            if !hook.path.starts_with('/') {
                return Err(invalid(
                    format!("hooks.{kind}[{index}].path"),
                    &hook.path,
                    "is not absolute",
                ));
            }
            if hook.timeout.is_some_and(|seconds| seconds <= 0) {
                return Err(invalid(
                    format!("hooks.{kind}[{index}].timeout"),
                    hook.timeout.unwrap_or_default().to_string(),
                    "is not positive",
                ));
            }
            check_text(format!("hooks.{kind}[{index}].path"), &hook.path)?;
            for (name, list) in [("args", &hook.args), ("env", &hook.env)] {
                for (at, text) in list.iter().enumerate() {
                    check_text(format!("hooks.{kind}[{index}].{name}[{at}]"), text)?;
                }
            }
        }
    }
    Ok(())
}

fn parse_propagation(field: &str, text: &str) -> Result<Option<Propagation>, SpecError> {
    if text.is_empty() {
        return Ok(None);
    }
    propagation_option(text)
        .map(Some)
        .ok_or_else(|| invalid(field, text, "is not a propagation type"))
}

/// The propagation named by a mount option, if it is one.
fn propagation_option(text: &str) -> Option<Propagation> {
    let (kind, recursive) = match text {
        "private" => (PropagationKind::Private, false),
        "rprivate" => (PropagationKind::Private, true),
        "slave" => (PropagationKind::Slave, false),
        "rslave" => (PropagationKind::Slave, true),
        "shared" => (PropagationKind::Shared, false),
        "rshared" => (PropagationKind::Shared, true),
        "unbindable" => (PropagationKind::Unbindable, false),
        "runbindable" => (PropagationKind::Unbindable, true),
        _ => return None,
    };
    Some(Propagation { kind, recursive })
}

/// The checks of `linux.resources` that need no host, for a document of its own.
///
/// # Errors
/// [`SpecError`] naming the field.
pub(crate) fn check_resources(resources: &crate::config::Resources) -> Result<(), SpecError> {
    resources::check(resources)
}

/// Resolves `.`, `..` and repeated slashes by text alone; the result is absolute.
pub(crate) fn clean_path(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            name => parts.push(name),
        }
    }
    format!("/{}", parts.join("/"))
}

fn clean_list(field: &str, paths: &[String]) -> Result<Vec<String>, SpecError> {
    let mut cleaned = Vec::with_capacity(paths.len());
    let mut known = HashSet::with_capacity(paths.len());
    for (index, path) in paths.iter().enumerate() {
        let field = format!("{field}[{index}]");
        if !path.starts_with('/') {
            return Err(invalid(field, path, "is not absolute"));
        }
        check_text(&field, path)?;
        let path = clean_path(path);
        if path == "/" {
            return Err(invalid(field, path, "is the root of the container"));
        }
        // Twice is as good as once.
        if known.insert(path.clone()) {
            cleaned.push(path);
        }
    }
    Ok(cleaned)
}

/// The devices every container has, see "Default Devices" of the OCI specification.
fn default_devices() -> Vec<DeviceNode> {
    let node = |path: &str, major, minor| DeviceNode {
        path: path.to_owned(),
        kind: DeviceKind::Character,
        major,
        minor,
        mode: 0o666,
        uid: 0,
        gid: 0,
    };
    vec![
        node("/dev/null", 1, 3),
        node("/dev/zero", 1, 5),
        node("/dev/full", 1, 7),
        node("/dev/random", 1, 8),
        node("/dev/urandom", 1, 9),
        node("/dev/tty", 5, 0),
    ]
}

fn plan_devices(devices: &[Device]) -> Result<Vec<DeviceNode>, SpecError> {
    let mut planned = default_devices();
    let places = planned.iter().enumerate();
    let mut places: HashMap<String, usize> = places.map(|(at, d)| (d.path.clone(), at)).collect();
    for (index, device) in devices.iter().enumerate() {
        let field = |name: &str| format!("linux.devices[{index}].{name}");
        if !device.path.starts_with('/') {
            return Err(invalid(field("path"), &device.path, "is not absolute"));
        }
        check_text(field("path"), &device.path)?;
        let kind = match device.kind.as_str() {
            "c" | "u" => DeviceKind::Character,
            "b" => DeviceKind::Block,
            "p" => DeviceKind::Fifo,
            other => return Err(invalid(field("type"), other, "is none of c, u, b, p")),
        };
        // dev_t of the kernel: 12 bits of major, 20 bits of minor.
        let number = |name: &str, value: i64, limit: i64| {
            u32::try_from(value)
                .ok()
                .filter(|_| value < limit)
                .ok_or_else(|| {
                    invalid(
                        field(name),
                        value.to_string(),
                        "is out of range for a device number",
                    )
                })
        };
        let (major, minor) = if kind == DeviceKind::Fifo {
            (0, 0)
        } else {
            (
                number("major", device.major, 1 << 12)?,
                number("minor", device.minor, 1 << 20)?,
            )
        };
        let node = DeviceNode {
            path: clean_path(&device.path),
            kind,
            major,
            minor,
            mode: device.file_mode.unwrap_or(0o666) & 0o7777,
            uid: device.uid.unwrap_or(0),
            gid: device.gid.unwrap_or(0),
        };
        match places.get(&node.path) {
            Some(at) => planned[*at] = node,
            None => {
                places.insert(node.path.clone(), planned.len());
                planned.push(node);
            }
        }
    }
    Ok(planned)
}

/// Sysctls that belong to the IPC namespace, besides `fs.mqueue.*`.
const IPC_SYSCTLS: [&str; 8] = [
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
    "kernel/shm_rmid_forced",
];

fn plan_sysctls(
    linux: &Linux,
    namespaces: &Namespaces,
) -> Result<Vec<(String, String)>, SpecError> {
    let mut planned = Vec::with_capacity(linux.sysctl.len());
    for (name, value) in &linux.sysctl {
        let field = format!("linux.sysctl[{name:?}]");
        let path = sysctl_path(name);
        if path
            .split('/')
            .any(|part| part.is_empty() || part == "." || part == "..")
        {
            return Err(invalid(field, name, "is not the name of a sysctl"));
        }
        check_text(&field, value)?;
        check_text(&field, name)?;
        let needed = if path.starts_with("net/") {
            NamespaceKind::Network
        } else if path.starts_with("fs/mqueue/") || IPC_SYSCTLS.contains(&path.as_str()) {
            NamespaceKind::Ipc
        } else if path == "kernel/domainname" || path == "kernel/hostname" {
            NamespaceKind::Uts
        } else {
            return Err(invalid(
                field,
                value,
                "is not in a namespace and would change the host",
            ));
        };
        if !namespaces.separates(needed) {
            return Err(invalid(
                field,
                value,
                format!("needs a {} namespace of the container", needed.name()),
            ));
        }
        planned.push((path, value.clone()));
    }
    Ok(planned)
}

/// `net.ipv4.ip_forward` or `net/ipv4/ip_forward` → path; the first separator seen decides, so that
/// interface names with dots can be written (sysctl.d(5)).
fn sysctl_path(name: &str) -> String {
    let dotted = name
        .find(['.', '/'])
        .is_some_and(|at| name[at..].starts_with('.'));
    if !dotted {
        return name.to_owned();
    }
    name.chars()
        .map(|c| match c {
            '.' => '/',
            '/' => '.',
            other => other,
        })
        .collect()
}

#[cfg(test)]
mod tests;
