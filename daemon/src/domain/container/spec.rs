//! What a CreateContainer asked for: validated, immutable, recorded as it is.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::domain::container::cdi::DeviceName;
use crate::domain::pod::spec::{NamespaceModes, SecurityProfile};
use crate::domain::pod::user_namespace::IdMappings;
use crate::domain::resources::LinuxResources;
use crate::domain::selinux::SelinuxOptions;

/// A container as asked for. Equality decides whether a repeated CreateContainer is a retry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Name within the pod.
    pub name: String,
    /// How often the kubelet has made this container before.
    pub attempt: u32,
    /// The image as the request names it: reference, digest or id.
    pub image: ImageSpec,
    /// Replaces the image's entrypoint when not empty.
    pub command: Vec<String>,
    /// Replaces the image's command when not empty.
    pub args: Vec<String>,
    /// Replaces the image's working directory when not empty.
    pub working_dir: String,
    /// Environment in order; values are bytes in the CRI.
    pub envs: Vec<(String, Vec<u8>)>,
    /// Volumes.
    pub mounts: Vec<MountSpec>,
    /// Devices of the node.
    pub devices: Vec<DeviceSpec>,
    /// Devices of CDI, each once, those of annotations last.
    #[serde(default)]
    pub cdi_devices: Vec<DeviceName>,
    /// Labels, returned unchanged.
    pub labels: BTreeMap<String, String>,
    /// Annotations, returned unchanged; what they decide is read out of them before.
    pub annotations: BTreeMap<String, String>,
    /// Log file relative to the pod's log directory; empty when nothing is logged.
    pub log_path: String,
    /// Whether standard input stays open for attach.
    pub stdin: bool,
    /// Whether standard input closes after the first attach.
    pub stdin_once: bool,
    /// Whether the process has a terminal.
    pub tty: bool,
    /// Number of the signal that stops the container; none leaves it to the image.
    pub stop_signal: Option<i32>,
    /// Limits.
    pub resources: LinuxResources,
    /// Security settings.
    pub security: ContainerSecurity,
}

/// CRI `ImageSpec`, returned unchanged in statuses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSpec {
    /// Reference, digest or id.
    pub image: String,
    /// What the user wrote.
    pub user_specified_image: String,
    /// Runtime handler of the image.
    pub runtime_handler: String,
    /// Annotations of the request.
    pub annotations: BTreeMap<String, String>,
}

impl ImageSpec {
    /// What the user calls the image; the kubelet asks for it by id and passes the name on beside it.
    #[must_use]
    pub fn asked(&self) -> &str {
        match self.user_specified_image.as_str() {
            "" => &self.image,
            name => name,
        }
    }
}

/// One volume: a path of the node, or of an image, in the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountSpec {
    /// Absolute path in the container.
    pub container_path: String,
    /// Absolute path on the node; empty for a volume that is an image.
    pub host_path: String,
    /// The image whose files it is.
    #[serde(default)]
    pub image: Option<ImageVolume>,
    /// Read-only at the top.
    pub readonly: bool,
    /// Read-only below as well.
    pub recursive_read_only: bool,
    /// Relabel for SELinux.
    pub selinux_relabel: bool,
    /// Propagation between node and container.
    pub propagation: MountPropagation,
    /// Ids of its files and who they are in the container; none leaves them as they are.
    #[serde(default)]
    pub ids: Option<IdMappings>,
    /// What is forbidden on it and on what is mounted below it.
    #[serde(default)]
    pub options: BTreeSet<MountOption>,
}

/// A volume with the files of an image (KEP-4639): always read-only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageVolume {
    /// The image as the request names it.
    pub image: ImageSpec,
    /// What of the image, relative to its root; empty is all of it.
    pub sub_path: String,
}

/// One of CRI `mount_options` (KEP-5855).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MountOption {
    /// No programs are run from it.
    NoExec,
    /// Device files do not work.
    NoDev,
    /// Set-user-id bits and file capabilities have no effect.
    NoSuid,
}

/// Propagation of a volume.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountPropagation {
    /// None either way (`rprivate`).
    #[default]
    Private,
    /// From the node to the container (`rslave`).
    HostToContainer,
    /// Both ways (`rshared`).
    Bidirectional,
}

/// A device of the node in the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceSpec {
    /// Path in the container.
    pub container_path: String,
    /// Path on the node: a device or a directory of devices.
    pub host_path: String,
    /// Of `r`, `w` and `m`.
    pub permissions: String,
}

/// CRI `LinuxContainerSecurityContext`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSecurity {
    /// All capabilities and devices, nothing masked.
    pub privileged: bool,
    /// Capabilities added to and dropped from the default set, without the `CAP_` prefix, or "ALL".
    pub capabilities: Capabilities,
    /// Namespaces.
    pub namespaces: NamespaceModes,
    /// User asked for.
    pub user: UserRequest,
    /// Groups asked for.
    pub supplemental_groups: Vec<u32>,
    /// How the image's groups count.
    pub groups_policy: GroupsPolicy,
    /// Root file system is read-only.
    pub readonly_rootfs: bool,
    /// `no_new_privs`.
    pub no_new_privs: bool,
    /// Paths hidden; the kubelet sends its default list.
    pub masked_paths: Vec<String>,
    /// Paths made read-only; the kubelet sends its default list.
    pub readonly_paths: Vec<String>,
    /// Seccomp profile.
    pub seccomp: SecurityProfile,
    /// AppArmor profile.
    pub apparmor: SecurityProfile,
    /// SELinux options; none is the pod's.
    #[serde(default)]
    pub selinux: Option<SelinuxOptions>,
}

/// Changes to the default capability set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Added.
    pub add: Vec<String>,
    /// Dropped.
    pub drop: Vec<String>,
    /// Added to the ambient set (and the others).
    pub add_ambient: Vec<String>,
}

/// Which user a request asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UserRequest {
    /// The image's.
    #[default]
    Image,
    /// A number, with a group if one is given.
    Id {
        /// User id.
        uid: u32,
        /// Group id.
        gid: Option<u32>,
    },
    /// A name in the image's /etc/passwd, with a group if one is given.
    Name {
        /// User name.
        name: String,
        /// Group id.
        gid: Option<u32>,
    },
}

/// CRI `SupplementalGroupsPolicy`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GroupsPolicy {
    /// The image's groups of the user count as well.
    #[default]
    Merge,
    /// Only the request's groups count.
    Strict,
}
