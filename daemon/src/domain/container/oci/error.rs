//! Why no document can be made: the field, its value and the reason.

use crate::domain::failure::{Class, Failure, KubeletError};

/// A request, or an image, that no container can be made from on this host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OciError {
    /// Neither the request nor the image names a program.
    #[error(
        "no command specified: image {image:?} has neither entrypoint nor command, and the request has none"
    )]
    NoCommand {
        /// The image as asked for.
        image: String,
    },
    /// Text the kernel would cut.
    #[error("{field} has a NUL byte")]
    NulByte {
        /// The field.
        field: String,
    },
    /// An environment variable that cannot be.
    #[error("environment variable {name:?}: {reason}")]
    Environment {
        /// Its name.
        name: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A path that is refused.
    #[error("{field} {path:?}: {reason}")]
    Path {
        /// The field.
        field: &'static str,
        /// The path.
        path: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The kubelet has a name for this.
    #[error("this host cannot make mount {path:?} read-only recursively")]
    RecursiveReadOnlyUnsupported {
        /// Path in the container.
        path: String,
    },
    /// A capability nobody knows.
    #[error("{field}: unknown capability {name:?}")]
    Capability {
        /// The field.
        field: &'static str,
        /// The name as given.
        name: String,
    },
    /// A limit that is refused.
    #[error("resources.{field} {value:?}: {reason}")]
    Resource {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The host cannot limit what is to be limited.
    #[error("resources.{field} {value:?}: {reason}")]
    ResourceUnsupported {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What the host lacks.
        reason: &'static str,
    },
    /// Permissions of a device other than r, w and m.
    #[error("device {path:?}: permissions {permissions:?} are not of r, w and m")]
    DevicePermissions {
        /// Path in the container.
        path: String,
        /// The permissions as given.
        permissions: String,
    },
    /// A privileged container in a pod that is not.
    #[error("no privileged container allowed: pod {pod:?} is not privileged")]
    PrivilegedPod {
        /// Name of the pod.
        pod: String,
    },
    /// Another user namespace than the pod's.
    #[error(
        "linux.security_context.namespace_options.userns_options: not the same as those of pod {pod:?}"
    )]
    UserNamespace {
        /// Name of the pod.
        pod: String,
    },
    /// A user or group that the pod's user namespace does not have.
    #[error("{kind} {id} of the process is not mapped in the pod's user namespace")]
    UnmappedId {
        /// "user" or "group".
        kind: &'static str,
        /// The id.
        id: u32,
    },
    /// A signal nobody knows.
    #[error("{field} {value:?} is no signal")]
    Signal {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
    },
    /// The kernel has no seccomp.
    #[error("a seccomp profile is asked for and this kernel has no seccomp")]
    SeccompUnsupported,
    /// The profile of the node was not read: never unconfined instead (CVE-2023-2431).
    #[error("seccomp profile {profile:?} of the node is not loaded")]
    SeccompProfile {
        /// The profile as named.
        profile: String,
    },
    /// AppArmor is off.
    #[error("apparmor profile {profile:?} is asked for and AppArmor is not on")]
    AppArmorUnsupported {
        /// The profile as named.
        profile: String,
    },
    /// AppArmor is on without our profile.
    #[error(
        "the default apparmor profile is asked for and axild could not load it, its log says why"
    )]
    AppArmorDefault,
}

impl OciError {
    /// Whether the request is wrong anywhere, or only on this host as it is.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::NoCommand { .. }
            | Self::NulByte { .. }
            | Self::Environment { .. }
            | Self::Path { .. }
            | Self::Capability { .. }
            | Self::Resource { .. }
            | Self::DevicePermissions { .. }
            | Self::PrivilegedPod { .. }
            | Self::UserNamespace { .. }
            | Self::UnmappedId { .. }
            | Self::Signal { .. } => Class::InvalidArgument,
            Self::RecursiveReadOnlyUnsupported { .. }
            | Self::ResourceUnsupported { .. }
            | Self::SeccompUnsupported
            | Self::SeccompProfile { .. }
            | Self::AppArmorUnsupported { .. }
            | Self::AppArmorDefault => Class::FailedPrecondition,
        }
    }
}

impl From<OciError> for Failure {
    fn from(error: OciError) -> Self {
        let failure = Self::new(error.class(), error.to_string());
        if matches!(error, OciError::RecursiveReadOnlyUnsupported { .. }) {
            return failure.known_as(KubeletError::RroUnsupported);
        }
        failure
    }
}
