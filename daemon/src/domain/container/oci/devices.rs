//! Devices of a container, and the rules that let it use them and no others.

use std::collections::BTreeMap;

use super::{ContainerInput, Device, DeviceRule, OciError, clean_container_path};

/// A device of the host as a container gets it; the caller has looked it up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostDevice {
    /// Absolute path in the container.
    pub container_path: String,
    /// Block or character.
    pub kind: DeviceKind,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Mode of the node; only the permission bits count.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Of `r`, `w` and `m`.
    pub permissions: String,
}

/// Kind of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    /// Character device.
    Char,
    /// Block device.
    Block,
    /// Named pipe, which CDI has among devices. It has no numbers and needs no rule.
    Fifo,
}

impl DeviceKind {
    /// What documents call it.
    #[must_use]
    pub fn letter(self) -> &'static str {
        match self {
            Self::Char => "c",
            Self::Block => "b",
            Self::Fifo => "p",
        }
    }
}

/// Numbers of null, zero, full, random, urandom, tty, console, ptmx and, with any minor, pts.
const DEFAULT: [(u32, Option<u32>); 9] = [
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(1)),
    (5, Some(2)),
    (136, None),
];

impl DeviceRule {
    /// Allows or denies every device.
    pub(super) fn all(allow: bool) -> Self {
        Self {
            allow,
            kind: None,
            major: None,
            minor: None,
            access: "rwm".to_owned(),
        }
    }
}

/// The nodes to make beside those every container has; for a privileged one, all of the host.
pub(super) fn container_devices(input: &ContainerInput<'_>) -> Result<Vec<Device>, OciError> {
    let of_host: &[HostDevice] = if input.container.security.privileged {
        &input.host.all_devices
    } else {
        &[]
    };
    // By path, so that a device asked for takes the place of the host's.
    let mut devices = BTreeMap::new();
    for device in of_host.iter().chain(input.devices) {
        let path = clean_container_path("devices.container_path", &device.container_path)?;
        let node = Device {
            path: path.clone(),
            kind: device.kind.letter(),
            major: device.major,
            minor: device.minor,
            file_mode: device.mode & 0o7777,
            uid: device.uid,
            gid: device.gid,
        };
        devices.insert(path, node);
    }
    // Those of CDI take the place of any other; a node without an owner is of the process (CDI, `deviceNodes`).
    for node in &input.injection.nodes {
        let path = clean_container_path("CDI deviceNodes.path", &node.path)?;
        let device = Device {
            path: path.clone(),
            kind: node.kind.letter(),
            major: node.major,
            minor: node.minor,
            file_mode: node.mode,
            uid: node.uid.unwrap_or(input.user.uid),
            gid: node.gid.unwrap_or(input.user.gid),
        };
        devices.insert(path, device);
    }
    Ok(devices.into_values().collect())
}

/// Denies everything, then allows what every container has and what this one asked for. Nodes may be made of any
/// number, as under docker: making one is not using it.
pub(super) fn device_rules(input: &ContainerInput<'_>) -> Result<Vec<DeviceRule>, OciError> {
    if let Some(device) = input
        .devices
        .iter()
        .find(|device| !are_permissions(&device.permissions))
    {
        return Err(OciError::DevicePermissions {
            path: device.container_path.clone(),
            permissions: device.permissions.clone(),
        });
    }
    if input.container.security.privileged {
        return Ok(vec![DeviceRule::all(true)]);
    }
    let mut rules = vec![DeviceRule::all(false)];
    rules.extend(
        [DeviceKind::Char, DeviceKind::Block].map(|kind| DeviceRule {
            kind: Some(kind.letter()),
            access: "m".to_owned(),
            ..DeviceRule::all(true)
        }),
    );
    rules.extend(DEFAULT.map(|(major, minor)| DeviceRule {
        kind: Some(DeviceKind::Char.letter()),
        major: Some(major),
        minor,
        ..DeviceRule::all(true)
    }));
    rules.extend(input.devices.iter().map(|device| DeviceRule {
        allow: true,
        kind: Some(device.kind.letter()),
        major: Some(device.major),
        minor: Some(device.minor),
        access: device.permissions.clone(),
    }));
    let nodes = input.injection.nodes.iter();
    let usable = nodes.filter(|node| node.kind != DeviceKind::Fifo && !node.access.is_empty());
    rules.extend(usable.map(|node| DeviceRule {
        allow: true,
        kind: Some(node.kind.letter()),
        major: Some(node.major),
        minor: Some(node.minor),
        access: node.access.clone(),
    }));
    Ok(rules)
}

fn are_permissions(text: &str) -> bool {
    (1..=3).contains(&text.len()) && text.bytes().all(|byte| b"rwm".contains(&byte))
}
