//! The container's cgroup: one trait, a back end for cgroup v1 (and the hybrid layout) and one for v2.

mod device;
mod files;
mod location;
mod v1;
mod v2;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::Resources;
use crate::plan::CgroupPath;

pub use device::DeviceSet;
pub use location::{Hierarchies, Hierarchy};

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
    #[error("config.json: linux.resources.unified[{key:?}] needs cgroup v2, this host has v1")]
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
    #[error("container's cgroup {path} is frozen")]
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
    #[error("cgroup {path:?} {reason}")]
    BadSubgroup {
        /// As given.
        path: String,
        /// What is wrong.
        reason: &'static str,
    },
}

/// The directories of a container's cgroup, as they are kept in its record.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CgroupRecord {
    /// 1 (and hybrid) or 2.
    pub version: u8,
    /// One directory per mounted hierarchy.
    pub directories: Vec<CgroupDirectory>,
}

/// A container's directory in one hierarchy.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CgroupDirectory {
    /// Controllers of the hierarchy; empty for the unified one.
    pub controllers: Vec<String>,
    /// Absolute path on the host.
    pub path: PathBuf,
    /// Mount point of the hierarchy: nothing at or above it is ever changed.
    pub mount_point: PathBuf,
}

/// Operations on one container's cgroup.
pub trait Cgroup: std::fmt::Debug {
    /// What must be remembered to find it again.
    fn record(&self) -> &CgroupRecord;

    /// Refuses a cgroup that exists and holds processes or is frozen.
    ///
    /// # Errors
    /// [`CgroupError::NotEmpty`], [`CgroupError::Frozen`].
    fn refuse_occupied(&self) -> Result<(), CgroupError>;

    /// Makes the directories.
    ///
    /// # Errors
    /// [`CgroupError::Io`].
    fn create(&self) -> Result<(), CgroupError>;

    /// Writes the limits; `warnings` receives what is tolerated.
    ///
    /// # Errors
    /// [`CgroupError`] naming the limit and the file.
    fn apply(&self, resources: &Resources, warnings: &mut Vec<String>) -> Result<(), CgroupError>;

    /// Moves process `pid` in, into `subgroup` of it when one is given.
    ///
    /// # Errors
    /// [`CgroupError::BadSubgroup`], [`CgroupError::Io`].
    fn join(&self, pid: i32, subgroup: Option<&Subgroup>) -> Result<(), CgroupError>;

    /// Sends `signal` to every process in it.
    ///
    /// # Errors
    /// [`CgroupError::Io`].
    fn signal(&self, signal: i32) -> Result<(), CgroupError>;

    /// Kills every process in it and waits, with a bound, until none is left.
    ///
    /// # Errors
    /// [`CgroupError::StillPopulated`].
    fn kill(&self) -> Result<(), CgroupError>;

    /// Whether it is frozen.
    fn is_frozen(&self) -> bool;

    /// Freezes or thaws it and waits, with a bound, until it is so.
    ///
    /// # Errors
    /// [`CgroupError::Io`].
    fn set_frozen(&self, frozen: bool) -> Result<(), CgroupError>;

    /// Kills what is left in it and removes its directories, those below first. Succeeds when they are
    /// gone already.
    ///
    /// # Errors
    /// [`CgroupError::StillPopulated`], [`CgroupError::Io`].
    fn remove(&self) -> Result<(), CgroupError>;
}

/// `exec --cgroup [controller[,controller]:]path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subgroup {
    /// Only for these hierarchies; empty: all.
    pub controllers: Vec<String>,
    /// Relative and clean, below the container's cgroup.
    pub path: String,
}

impl Subgroup {
    /// Parses and checks the option's value.
    ///
    /// # Errors
    /// [`CgroupError::BadSubgroup`] for a path that leaves the container's cgroup.
    pub fn parse(text: &str) -> Result<Subgroup, CgroupError> {
        let bad = |reason| CgroupError::BadSubgroup {
            path: text.to_owned(),
            reason,
        };
        let (controllers, path) = match text.split_once(':') {
            Some((controllers, path)) => {
                (controllers.split(',').map(str::to_owned).collect(), path)
            }
            None => (Vec::new(), text),
        };
        if path.is_empty() {
            return Err(bad("is empty"));
        }
        if controllers.iter().any(String::is_empty) {
            return Err(bad("has an empty controller name"));
        }
        if path.contains('\0') || path.split('/').any(|part| part == "..") {
            return Err(bad("is not a sub-cgroup of the container's cgroup"));
        }
        let path = crate::spec::clean_path(path)
            .trim_start_matches('/')
            .to_owned();
        Ok(Subgroup { controllers, path })
    }

    /// Whether it speaks of the hierarchy of `directory`.
    fn concerns(&self, directory: &CgroupDirectory) -> bool {
        self.controllers.is_empty()
            || self
                .controllers
                .iter()
                .any(|c| directory.controllers.contains(c))
    }

    /// The directory to join for `directory`.
    fn below(&self, directory: &CgroupDirectory) -> PathBuf {
        if self.concerns(directory) {
            directory.path.join(&self.path)
        } else {
            directory.path.clone()
        }
    }

    /// Refuses a sub-cgroup that does not exist: exec never makes cgroups.
    fn check_exists(&self, directories: &[CgroupDirectory]) -> Result<(), CgroupError> {
        let bad = |reason| CgroupError::BadSubgroup {
            path: self.path.clone(),
            reason,
        };
        for controller in &self.controllers {
            if !directories
                .iter()
                .any(|d| d.controllers.contains(controller))
            {
                return Err(bad(
                    "names a controller the container's cgroup does not have",
                ));
            }
        }
        for directory in directories.iter().filter(|d| self.concerns(d)) {
            // The unified tree of a hybrid host need not mirror what was made in v1.
            let optional = directory.controllers.is_empty() && directories.len() > 1;
            if !self.below(directory).is_dir() && !optional {
                return Err(bad("does not exist below the container's cgroup"));
            }
        }
        Ok(())
    }
}

/// Decides where the cgroup of container `id` lies on this host.
///
/// # Errors
/// [`CgroupError::NotMounted`].
pub fn locate(
    hierarchies: &Hierarchies,
    path: &CgroupPath,
    id: &str,
) -> Result<CgroupRecord, CgroupError> {
    let version = hierarchies.version().ok_or(CgroupError::NotMounted)?;
    let directories = hierarchies
        .iter()
        .map(|h| h.directory(path, id, version))
        .collect();
    Ok(CgroupRecord {
        version,
        directories,
    })
}

/// The back end for a record.
#[must_use]
pub fn open(record: CgroupRecord) -> Box<dyn Cgroup> {
    if record.version == 2 {
        Box::new(v2::CgroupV2::new(record))
    } else {
        Box::new(v1::CgroupV1::new(record))
    }
}

fn io_error(operation: impl Into<String>, path: &Path, source: std::io::Error) -> CgroupError {
    CgroupError::Io {
        operation: operation.into(),
        path: path.to_owned(),
        source,
    }
}
