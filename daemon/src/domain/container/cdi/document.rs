//! A document of the Container Device Interface, version 0.1.0 to 1.1.0: its form, and what is refused in it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{check_device, check_kind};
use crate::domain::container::oci::clean_container_path;

/// The versions there are. A later one may mean what is not known here.
const VERSIONS: [&str; 10] = [
    "0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0",
];

/// When hooks run, as the OCI runtime spec calls it.
const HOOKS: [&str; 6] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

/// The kernel's longest name of an interface (IFNAMSIZ), in bytes.
const MAX_INTERFACE: usize = 15;

/// What is wrong in a document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {value:?}: {reason}")]
pub struct DocumentError {
    /// The field.
    pub field: &'static str,
    /// Its value.
    pub value: String,
    /// What is wrong.
    pub reason: String,
}

fn wrong(
    field: &'static str,
    value: impl ToString,
    reason: impl Into<String>,
) -> Result<(), DocumentError> {
    Err(DocumentError {
        field,
        value: value.to_string(),
        reason: reason.into(),
    })
}

/// A document: devices of one kind. Unknown fields are refused, as by the reference implementation: they would be
/// left out of a container in silence.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct CdiDocument {
    cdi_version: String,
    kind: String,
    /// For people; nothing is made of them.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    devices: Vec<DeviceEntry>,
    #[serde(default)]
    container_edits: ContainerEdits,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct DeviceEntry {
    name: String,
    #[serde(default, rename = "annotations")]
    _annotations: BTreeMap<String, String>,
    container_edits: ContainerEdits,
}

/// What is changed of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ContainerEdits {
    /// "NAME=value".
    pub env: Vec<String>,
    /// Device nodes.
    pub device_nodes: Vec<NodeEdit>,
    /// Interfaces of the host that move to the container.
    pub net_devices: Vec<NetDeviceEdit>,
    /// Hooks.
    pub hooks: Vec<HookEdit>,
    /// Mounts.
    pub mounts: Vec<MountEdit>,
    /// Cache and memory bandwidth class.
    pub intel_rdt: Option<IntelRdt>,
    /// Groups of the process.
    pub additional_gids: Vec<u32>,
}

/// A device node.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct NodeEdit {
    /// Path in the container.
    pub path: String,
    /// Path on the host; none is the same.
    pub host_path: Option<String>,
    /// b, c, u or p; none is what the host has there.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Major number; none is the host's.
    pub major: Option<u32>,
    /// Minor number.
    pub minor: Option<u32>,
    /// Permission bits.
    pub file_mode: Option<u32>,
    /// Of `r`, `w` and `m`, or "none"; none is all three.
    pub permissions: Option<String>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
}

/// An interface of the host.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct NetDeviceEdit {
    /// Its name on the host.
    pub host_interface_name: String,
    /// Its name in the container.
    pub name: String,
}

/// A hook.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct HookEdit {
    /// When it runs.
    pub hook_name: String,
    /// The program, absolute.
    pub path: String,
    /// Its arguments, the first its name.
    #[serde(default)]
    pub args: Vec<String>,
    /// Its environment.
    #[serde(default)]
    pub env: Vec<String>,
    /// Seconds, above 0; none is no bound.
    pub timeout: Option<u32>,
}

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct MountEdit {
    /// Path on the host, or a name where `kind` is a file system without one.
    pub host_path: String,
    /// Path in the container.
    pub container_path: String,
    /// File system; none is a bind.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Options.
    #[serde(default)]
    pub options: Vec<String>,
}

impl MountEdit {
    /// Whether it shows files of the host.
    #[must_use]
    pub fn is_bind(&self) -> bool {
        let bind = |word: &str| word == "bind" || word == "rbind";
        self.kind
            .as_deref()
            .is_none_or(|kind| kind.is_empty() || bind(kind))
            || self.options.iter().any(|option| bind(option))
    }
}

/// Classes of resctrl; the OCI runtime spec has the same names (`linux.intelRdt`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IntelRdt {
    /// Name of the class.
    #[serde(rename = "closID", skip_serializing_if = "Option::is_none")]
    pub clos_id: Option<String>,
    /// Cache.
    #[serde(rename = "l3CacheSchema", skip_serializing_if = "Option::is_none")]
    pub l3_cache_schema: Option<String>,
    /// Memory bandwidth.
    #[serde(rename = "memBwSchema", skip_serializing_if = "Option::is_none")]
    pub mem_bw_schema: Option<String>,
    /// Lines of `schemata`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub schemata: Vec<String>,
    /// A monitoring group.
    #[serde(rename = "enableMonitoring", skip_serializing_if = "Option::is_none")]
    pub enable_monitoring: Option<bool>,
    /// Cache occupancy, before 1.1.0.
    #[serde(rename = "enableCMT", skip_serializing_if = "Option::is_none")]
    pub enable_cmt: Option<bool>,
    /// Memory bandwidth, before 1.1.0.
    #[serde(rename = "enableMBM", skip_serializing_if = "Option::is_none")]
    pub enable_mbm: Option<bool>,
}

impl CdiDocument {
    /// "vendor/class".
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// What is changed for all of its devices.
    #[must_use]
    pub fn for_all(&self) -> &ContainerEdits {
        &self.container_edits
    }

    /// What a device changes.
    #[must_use]
    pub fn device(&self, name: &str) -> Option<&ContainerEdits> {
        let mut devices = self.devices.iter();
        let found = devices.find(|device| device.name == name);
        found.map(|device| &device.container_edits)
    }

    /// Refuses what no container can be made of.
    ///
    /// # Errors
    /// [`DocumentError`] naming field and value.
    pub fn check(&self) -> Result<(), DocumentError> {
        if !VERSIONS.contains(&self.cdi_version.trim_start_matches('v')) {
            return wrong(
                "cdiVersion",
                &self.cdi_version,
                "is not known, the last is 1.1.0",
            );
        }
        check_kind(&self.kind).or_else(|why| wrong("kind", &self.kind, why))?;
        if self.devices.is_empty() {
            return wrong("devices", "", "there is none");
        }
        let mut names = BTreeSet::new();
        for device in &self.devices {
            let name = &device.name;
            check_device(name).or_else(|why| wrong("devices.name", name, why))?;
            if !names.insert(name) {
                return wrong("devices.name", name, "is there twice");
            }
            if device.container_edits == ContainerEdits::default() {
                return wrong("devices.name", name, "changes nothing");
            }
            device.container_edits.check()?;
        }
        self.container_edits.check()
    }
}

impl ContainerEdits {
    /// Adds others. A class of resctrl is had once: the last one holds, as in the reference implementation.
    pub(super) fn append(&mut self, other: &Self) {
        let other = other.clone();
        self.env.extend(other.env);
        self.device_nodes.extend(other.device_nodes);
        self.net_devices.extend(other.net_devices);
        self.hooks.extend(other.hooks);
        self.mounts.extend(other.mounts);
        self.intel_rdt = other.intel_rdt.or(self.intel_rdt.take());
        self.additional_gids.extend(other.additional_gids);
    }

    fn check(&self) -> Result<(), DocumentError> {
        self.env
            .iter()
            .try_for_each(|entry| variable("env", entry))?;
        self.device_nodes.iter().try_for_each(NodeEdit::check)?;
        self.mounts.iter().try_for_each(MountEdit::check)?;
        self.hooks.iter().try_for_each(HookEdit::check)?;
        self.intel_rdt.iter().try_for_each(IntelRdt::check)?;
        let (mut theirs, mut ours) = (BTreeSet::new(), BTreeSet::new());
        for NetDeviceEdit {
            host_interface_name: host,
            name,
        } in &self.net_devices
        {
            for (field, interface, seen) in [
                ("netDevices.hostInterfaceName", host, &mut theirs),
                ("netDevices.name", name, &mut ours),
            ] {
                let odd = |c: char| c.is_whitespace() || c.is_control() || c == '/';
                if !(1..=MAX_INTERFACE).contains(&interface.len()) || interface.contains(odd) {
                    return wrong(field, interface, "is no name of an interface");
                }
                if !seen.insert(interface) {
                    return wrong(field, interface, "is there twice");
                }
            }
        }
        Ok(())
    }
}

fn variable(field: &'static str, entry: &str) -> Result<(), DocumentError> {
    let name = entry.split_once('=').map_or("", |(name, _)| name);
    if name.is_empty() || entry.contains('\0') {
        return wrong(field, entry, "is not of the form NAME=value, without NUL");
    }
    Ok(())
}

fn place(field: &'static str, path: &str) -> Result<(), DocumentError> {
    match clean_container_path("path", path) {
        Ok(clean) if clean == "/" => wrong(field, path, "is the root of the container"),
        Ok(_) => Ok(()),
        Err(_) => wrong(field, path, "is not an absolute path without \"..\""),
    }
}

fn host_path(field: &'static str, path: &str) -> Result<(), DocumentError> {
    if !path.starts_with('/') || path.contains('\0') {
        return wrong(field, path, "is not an absolute path");
    }
    Ok(())
}

impl NodeEdit {
    fn check(&self) -> Result<(), DocumentError> {
        place("deviceNodes.path", &self.path)?;
        if let Some(path) = self.host_path.as_deref().filter(|path| !path.is_empty()) {
            host_path("deviceNodes.hostPath", path)?;
        }
        if let Some(kind) = &self.kind
            && !["", "b", "c", "u", "p"].contains(&kind.as_str())
        {
            return wrong("deviceNodes.type", kind, "is none of b, c, u, p");
        }
        let text = self.permissions.as_deref().unwrap_or_default();
        let of_rwm = text.len() <= 3 && text.bytes().all(|byte| b"rwm".contains(&byte));
        if text != "none" && !of_rwm {
            return wrong(
                "deviceNodes.permissions",
                text,
                "is not of r, w and m, nor none",
            );
        }
        Ok(())
    }
}

impl MountEdit {
    fn check(&self) -> Result<(), DocumentError> {
        place("mounts.containerPath", &self.container_path)?;
        if self.is_bind() {
            host_path("mounts.hostPath", &self.host_path)?;
        }
        let texts = [&self.host_path]
            .into_iter()
            .chain(&self.kind)
            .chain(&self.options);
        for text in texts {
            if text.contains('\0') {
                return wrong("mounts", text, "has a NUL byte");
            }
        }
        Ok(())
    }
}

impl HookEdit {
    fn check(&self) -> Result<(), DocumentError> {
        if !HOOKS.contains(&self.hook_name.as_str()) {
            return wrong("hooks.hookName", &self.hook_name, "is no hook");
        }
        host_path("hooks.path", &self.path)?;
        self.env
            .iter()
            .try_for_each(|entry| variable("hooks.env", entry))?;
        if let Some(argument) = self.args.iter().find(|argument| argument.contains('\0')) {
            return wrong("hooks.args", argument, "has a NUL byte");
        }
        match self.timeout {
            Some(0) => wrong("hooks.timeout", 0, "is not above 0"),
            Some(_) | None => Ok(()),
        }
    }
}

impl IntelRdt {
    fn check(&self) -> Result<(), DocumentError> {
        let id = self.clos_id.as_deref().unwrap_or("-");
        if id.is_empty() || id == "." || id == ".." || id.contains(['/', '\n', '\0']) {
            return wrong("intelRdt.closID", id, "is no name of a directory");
        }
        Ok(())
    }

    /// Whether it has what came with version 1.3.0 of the OCI runtime spec.
    pub(crate) fn is_recent(&self) -> bool {
        !self.schemata.is_empty() || self.enable_monitoring.is_some()
    }
}
