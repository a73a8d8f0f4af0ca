//! The container's cgroup: one trait, a back end for cgroup v1 (and the hybrid layout), one for v2, and a
//! driver that has systemd make the cgroup and leaves to these two what systemd cannot express.

mod device;
mod error;
mod files;
mod journal;
mod location;
mod oom;
pub mod stats;
mod subgroup;
pub mod systemd;
mod v1;
mod v2;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::Resources;
use crate::plan::CgroupPath;

pub use device::DeviceSet;
pub use error::CgroupError;
pub use location::{Hierarchies, Hierarchy};
pub use oom::OomWatch;
pub use stats::Stats;
pub use subgroup::Subgroup;
pub use systemd::Unit;

use error::io_error;

/// Who makes cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// This process.
    Cgroupfs,
    /// systemd, asked over D-Bus.
    Systemd,
}

/// The directories of a container's cgroup, as they are kept in its record.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CgroupRecord {
    /// 1 (and hybrid) or 2.
    pub version: u8,
    /// One directory per mounted hierarchy.
    pub directories: Vec<CgroupDirectory>,
    /// The systemd unit the directories belong to, with the systemd driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<Unit>,
}

impl CgroupRecord {
    /// The directory in the hierarchy that has `controller`.
    fn directory(&self, controller: &str) -> Option<&Path> {
        let mut directories = self.directories.iter();
        directories
            .find(|d| d.controllers.iter().any(|c| c == controller))
            .map(|d| d.path.as_path())
    }

    /// The same for a limit that cannot do without, `field` below `linux.resources`.
    fn need(&self, controller: &'static str, field: &str) -> Result<&Path, CgroupError> {
        self.directory(controller)
            .ok_or_else(|| CgroupError::MissingController {
                field: format!("linux.resources.{field}"),
                controller,
            })
    }
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

/// A change of limits.
#[derive(Debug, Clone, Copy)]
pub struct Change<'a> {
    /// What is to be written, nothing else is.
    pub asked: &'a Resources,
    /// Everything that was ever asked for with `asked` in it: some kernel files and systemd properties join
    /// two values, of which only one may be asked for.
    pub known: &'a Resources,
    /// The same without `asked`: what to go back to.
    pub before: &'a Resources,
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

    /// Makes the directories and writes the limits, as far as that is possible while the container has no
    /// process; `warnings` receives what is tolerated.
    ///
    /// # Errors
    /// [`CgroupError`] naming the limit and the file.
    fn prepare(&self, resources: &Resources, warnings: &mut Vec<String>)
    -> Result<(), CgroupError>;

    /// The directory that clone3(2) can bear init straight into; `None` when [`Cgroup::admit`] has to move
    /// it. On v2 a birth inside spares the migration, which waits for an RCU grace period.
    ///
    /// # Errors
    /// [`CgroupError::Io`].
    fn birthplace(&self) -> Result<Option<OwnedFd>, CgroupError> {
        Ok(None)
    }

    /// Makes init, process `pid`, the first member and completes what [`Cgroup::prepare`] could not do.
    /// With `born_inside` it was cloned into [`Cgroup::birthplace`].
    ///
    /// # Errors
    /// [`CgroupError`] naming the limit, the file or the unit.
    fn admit(
        &self,
        pid: i32,
        born_inside: bool,
        resources: &Resources,
        warnings: &mut Vec<String>,
    ) -> Result<(), CgroupError>;

    /// Changes limits of a container that has processes. When one cannot be written, those before it get
    /// back their old values.
    ///
    /// # Errors
    /// [`CgroupError`] naming the limit and the file.
    fn update(&self, change: Change<'_>, warnings: &mut Vec<String>) -> Result<(), CgroupError>;

    /// Moves process `pid` in, into `subgroup` of it when one is given.
    ///
    /// # Errors
    /// [`CgroupError::BadSubgroup`], [`CgroupError::CannotHold`], [`CgroupError::Io`].
    fn join(&self, pid: i32, subgroup: Option<&Subgroup>) -> Result<(), CgroupError>;

    /// The processes in it and in every cgroup below, as this process's PID namespace numbers them, in
    /// ascending order; none when it is gone.
    fn processes(&self) -> Vec<i32> {
        files::members(&self.record().directories)
    }

    /// What it has used.
    ///
    /// # Errors
    /// [`CgroupError::Io`].
    fn stats(&self) -> Result<Stats, CgroupError>;

    /// Starts listening for kills by the out-of-memory killer.
    ///
    /// # Errors
    /// [`CgroupError::Io`], [`CgroupError::MissingController`].
    fn watch_oom(&self) -> Result<OomWatch, CgroupError>;

    /// Gives the directory and the files that the kernel names as safe to delegate to user `uid` and group
    /// `gid` (cgroups(7), "Cgroups delegation"): on v2 only, v1 hierarchies cannot be handed out safely.
    ///
    /// # Errors
    /// [`CgroupError::Io`].
    fn delegate(&self, uid: u32, gid: u32) -> Result<(), CgroupError>;

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
    /// [`CgroupError::StillPopulated`], [`CgroupError::Io`], [`CgroupError::Systemd`].
    fn remove(&self) -> Result<(), CgroupError>;
}

/// What decides where a container's cgroup lies.
#[derive(Debug, Clone, Copy)]
pub struct Wish<'a> {
    /// Who makes it.
    pub driver: Driver,
    /// `linux.cgroupsPath`.
    pub path: &'a CgroupPath,
    /// Container id.
    pub id: &'a str,
    /// Of the document: `org.systemd.property.*` are unit properties.
    pub annotations: &'a BTreeMap<String, String>,
}

/// Decides where the cgroup of a container lies on this host.
///
/// # Errors
/// [`CgroupError::NotMounted`], [`CgroupError::BadPath`], [`CgroupError::Systemd`].
pub fn locate(hierarchies: &Hierarchies, wish: &Wish<'_>) -> Result<CgroupRecord, CgroupError> {
    let version = hierarchies.version().ok_or(CgroupError::NotMounted)?;
    let bad = |path: &str, reason| CgroupError::BadPath {
        path: path.to_owned(),
        reason,
    };
    let unit = match (wish.driver, wish.path) {
        (Driver::Cgroupfs, CgroupPath::Unit(name)) => {
            return Err(bad(
                name,
                "is a systemd unit name and needs --systemd-cgroup",
            ));
        }
        (Driver::Cgroupfs, _) => None,
        (Driver::Systemd, CgroupPath::Unit(name)) => Some(Unit::parse(name, wish.annotations)?),
        (Driver::Systemd, CgroupPath::Relative(path)) if path.is_empty() => {
            Some(Unit::of_container(wish.id, wish.annotations)?)
        }
        (Driver::Systemd, CgroupPath::Absolute(path) | CgroupPath::Relative(path)) => {
            return Err(bad(
                path,
                "is not of the form slice:prefix:name, which --systemd-cgroup needs",
            ));
        }
    };
    let path = match &unit {
        Some(unit) => CgroupPath::Absolute(unit.control_group.clone()),
        None => wish.path.clone(),
    };
    let directories = hierarchies
        .iter()
        .map(|h| h.directory(&path, wish.id, version))
        .collect();
    Ok(CgroupRecord {
        version,
        directories,
        unit,
    })
}

/// The back end for a record.
#[must_use]
pub fn open(record: CgroupRecord) -> Box<dyn Cgroup> {
    open_beside(record, None)
}

/// The back end for a record of a container whose init is process `init`: a later process that cannot enter
/// the container's cgroup itself joins init in its.
#[must_use]
pub fn open_beside(record: CgroupRecord, init: Option<i32>) -> Box<dyn Cgroup> {
    let unit = record.unit.clone();
    let direct: Box<dyn Cgroup> = if record.version == 2 {
        Box::new(v2::CgroupV2::new(record, init))
    } else {
        Box::new(v1::CgroupV1::new(record))
    };
    match unit {
        Some(unit) => Box::new(systemd::SystemdCgroup::new(unit, direct)),
        None => direct,
    }
}
