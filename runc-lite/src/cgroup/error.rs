//! What can go wrong in the cgroup tree, in words that name the file and the value.

use std::path::{Path, PathBuf};

use super::systemd::SystemdError;

/// What went wrong in the cgroup tree.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A system call on a cgroup file or directory failed.
    #[error("cannot {operation} {path}")]
    Io {
        /// Verb, with the value where there is one.
        operation: String,
        /// File or directory.
        path: PathBuf,
        /// Errno.
        source: std::io::Error,
    },
    /// No cgroup file system is mounted.
    #[error("no cgroup file system is mounted")]
    NotMounted,
    /// A limit for a controller that the host does not offer.
    #[error("config.json: {field} is set, but the host has no {controller} cgroup controller")]
    MissingController {
        /// JSON path of the limit.
        field: String,
        /// Name of the controller.
        controller: &'static str,
    },
    /// A setting that only cgroup v2 has, on v1.
    #[error(
        "invalid configuration: config.json: linux.resources.unified[{key:?}] needs cgroup v2, this host has v1"
    )]
    UnifiedOnV1 {
        /// First key of the map.
        key: String,
    },
    /// The cgroup exists and is in use.
    #[error("container's cgroup is not empty: {path} holds {count} process(es)")]
    NotEmpty {
        /// Directory.
        path: PathBuf,
        /// How many.
        count: usize,
    },
    /// The cgroup exists and is frozen: init would never run.
    #[error("container's cgroup unexpectedly frozen: {path}")]
    Frozen {
        /// Directory.
        path: PathBuf,
    },
    /// The processes did not end in time.
    #[error("processes of {path} are still there after SIGKILL and {seconds} s")]
    StillPopulated {
        /// Directory.
        path: PathBuf,
        /// Bound that was waited for.
        seconds: u64,
    },
    /// `exec --cgroup` with a path that leaves the container's cgroup or is not there.
    #[error("bad sub cgroup path {path:?}: {reason}")]
    BadSubgroup {
        /// As given.
        path: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// `linux.cgroupsPath` that does not go with the driver.
    #[error("config.json: linux.cgroupsPath: {path:?} {reason}")]
    BadPath {
        /// As given.
        path: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The kernel does not let processes into the cgroup.
    #[error("cgroup {path} takes no process: {reason}")]
    CannotHold {
        /// Directory.
        path: PathBuf,
        /// What its files say.
        reason: String,
    },
    /// A controller that the host has, but that is not passed on to the container's cgroup.
    #[error(
        "config.json: {field} is set, but the {controller} controller cannot be enabled below {path}: \
         {reason}"
    )]
    NotEnabled {
        /// JSON path of the limit.
        field: String,
        /// Name of the controller.
        controller: &'static str,
        /// The cgroup that does not pass it on.
        path: PathBuf,
        /// What its files say.
        reason: String,
    },
    /// A device rule that takes a part out of an earlier one, which cgroup v1 cannot express.
    #[error(
        "config.json: linux.resources.devices: cgroup v1 cannot take {rule:?} out of the earlier, wider \
         rule {wider:?}"
    )]
    HoleInRules {
        /// The later rule.
        rule: String,
        /// The rule it would cut.
        wider: String,
    },
    /// `memory.checkBeforeUpdate` found more in use than the new limit allows.
    #[error("rejecting {what} limit {limit} < usage {usage}")]
    InUse {
        /// `memory` or `memory+swap`.
        what: &'static str,
        /// Bytes asked for.
        limit: i64,
        /// Bytes in use.
        usage: u64,
    },
    /// Values that contradict each other.
    #[error("config.json: linux.resources.{field}: {value} {reason}")]
    Contradiction {
        /// JSON path below `linux.resources`.
        field: &'static str,
        /// As given.
        value: i64,
        /// With what.
        reason: String,
    },
    /// systemd was asked and did not do it.
    #[error(transparent)]
    Systemd(#[from] SystemdError),
}

pub(super) fn io_error(
    operation: impl Into<String>,
    path: &Path,
    source: std::io::Error,
) -> CgroupError {
    CgroupError::Io {
        operation: operation.into(),
        path: path.to_owned(),
        source,
    }
}
