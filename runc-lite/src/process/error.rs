//! Why a process of a container could not be made.

use std::path::PathBuf;

use super::net_devices::NetDeviceError;
use crate::cgroup::CgroupError;
use crate::resctrl::ResctrlError;
use crate::seccomp::SeccompError;
use crate::spec::SpecError;
use crate::state::StateError;

/// Why a process could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The document is refused.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// A document that is a directory, a device or a FIFO.
    #[error("{path} is not a file")]
    NotAFile {
        /// Path.
        path: PathBuf,
    },
    /// A document nobody writes.
    #[error("{path} is larger than {limit} bytes")]
    TooLarge {
        /// File.
        path: PathBuf,
        /// Bytes.
        limit: u64,
    },
    /// The document is no JSON, or not of this form.
    #[error("{path} is not an OCI runtime document")]
    Document {
        /// File.
        path: PathBuf,
        /// What serde says.
        source: serde_json::Error,
    },
    /// The seccomp profile is refused.
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
    /// The cgroup could not be made.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// An interface of the host could not be had.
    #[error(transparent)]
    NetDevice(#[from] NetDeviceError),
    /// The resctrl class could not be had.
    #[error(transparent)]
    Resctrl(#[from] ResctrlError),
    /// The record could not be written.
    #[error(transparent)]
    State(#[from] StateError),
    /// A value of the document that this host cannot serve.
    #[error("config.json: {field}: {value:?} {reason}")]
    Host {
        /// JSON path of the field.
        field: String,
        /// What was found.
        value: String,
        /// What the host lacks.
        reason: String,
    },
    /// A system call failed.
    #[error("cannot {operation} {object}")]
    Io {
        /// Verb.
        operation: &'static str,
        /// Object.
        object: String,
        /// Errno.
        source: std::io::Error,
    },
    /// Terminal and console socket do not go together.
    #[error("{reason}")]
    Terminal {
        /// Why not.
        reason: &'static str,
    },
    /// An ordinary user may not make the cgroup that is asked for.
    #[error("unable to apply cgroup configuration: {reason}: {cause}")]
    Rootless {
        /// What is asked for.
        reason: String,
        /// What the kernel says.
        cause: String,
    },
    /// The container's side said why.
    #[error("{reason}")]
    Child {
        /// Its words.
        reason: String,
    },
    /// A hook of the runtime's side failed.
    #[error("{reason}")]
    Hook {
        /// Kind, index, program, reason.
        reason: String,
    },
}

pub(super) fn io_error(
    operation: &'static str,
    object: impl Into<String>,
    source: impl Into<std::io::Error>,
) -> ProcessError {
    ProcessError::Io {
        operation,
        object: object.into(),
        source: source.into(),
    }
}
