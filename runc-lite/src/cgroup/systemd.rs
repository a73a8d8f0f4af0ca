//! The systemd driver: the container's cgroup is that of a transient scope, which systemd makes with init in
//! it and knows the limits of. What a unit cannot express the cgroupfs back end writes into the scope's own
//! directories, which `Delegate=yes` makes ours.
//!
//! ```text
//!  create   StartTransientUnit(scope, PIDs=[init], limits) ── JobRemoved ──► cgroupfs: rest of the limits
//!  update   SetUnitProperties ──► cgroupfs
//!  delete   cgroup.kill ──► StopUnit ── JobRemoved ──► ResetFailedUnit ──► cgroupfs: what is left
//! ```
//!
//! A verb makes one connection at most and waits for each answer with a bound, so that PID 1 is never
//! flooded. Without `Delegate` and without telling systemd the limits, its next `daemon-reload` would put
//! its own idea of them back.

mod annotation;
mod bus;
mod calls;
mod properties;
mod unit;

use std::cell::Cell;

use super::oom::OomWatch;
use super::stats::Stats;
use super::{Cgroup, CgroupError, CgroupRecord, Change, Subgroup};
use crate::config::Resources;

pub use bus::Address;
pub use unit::Unit;
pub(super) use unit::is_ordinary_user;

use calls::Systemd;
use properties::Version;

/// Why systemd could not be asked, or what it answered.
#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    /// No bus to ask on.
    #[error("systemd cannot be reached for --systemd-cgroup ({tried}): is it running?")]
    Unreachable {
        /// Addresses, with what connecting to them gave.
        tried: String,
    },
    /// The other side does not know us.
    #[error("systemd's bus {address} refused us: {answer:?}")]
    Refused {
        /// Where.
        address: String,
        /// Its line.
        answer: String,
    },
    /// A system call on the connection failed, or the other side closed it.
    #[error("cannot talk to systemd over {address}")]
    Io {
        /// Where.
        address: String,
        /// Errno.
        source: std::io::Error,
    },
    /// The bound of a wait.
    #[error("systemd did not answer {call} within {seconds} s")]
    Silent {
        /// What was asked, or waited for.
        call: String,
        /// The bound.
        seconds: u64,
    },
    /// Bytes that are no D-Bus message, or not of the form the interface has.
    #[error("systemd's answer to {call} cannot be understood: {reason}")]
    Malformed {
        /// What was asked.
        call: String,
        /// What is wrong.
        reason: String,
    },
    /// An error message.
    #[error("systemd refused {call}: {name}: {message}")]
    Answered {
        /// What was asked.
        call: String,
        /// D-Bus error name.
        name: String,
        /// Its text.
        message: String,
    },
    /// The job came to another end than `done`.
    #[error("systemd could not {verb} {unit}: the job ended as {result:?}")]
    Job {
        /// `start` or `stop`.
        verb: &'static str,
        /// Unit.
        unit: String,
        /// `canceled`, `timeout`, `failed`, `dependency`, `skipped`.
        result: String,
    },
    /// A part of `linux.cgroupsPath` that makes no unit name.
    #[error("config.json: linux.cgroupsPath: {part} {value:?} {reason}")]
    BadUnit {
        /// `slice`, `prefix` or `name`.
        part: &'static str,
        /// As given.
        value: String,
        /// What is wrong.
        reason: String,
    },
    /// An annotation `org.systemd.property.*` that is no property.
    #[error("config.json: annotations[{annotation:?}]: {value:?} {reason}")]
    BadProperty {
        /// Its key.
        annotation: String,
        /// As given.
        value: String,
        /// What is wrong.
        reason: String,
    },
    /// A limit that systemd's property cannot take.
    #[error("config.json: linux.resources.{field}: {value:?} {reason}")]
    BadLimit {
        /// JSON path.
        field: String,
        /// As given.
        value: String,
        /// What is wrong.
        reason: &'static str,
    },
}

/// A container's scope and its directories.
#[derive(Debug)]
pub(super) struct SystemdCgroup {
    unit: Unit,
    direct: Box<dyn Cgroup>,
    addresses: Vec<Address>,
    /// Whom the directory goes to once there is one.
    owner: Cell<Option<(u32, u32)>>,
}

impl SystemdCgroup {
    pub(super) fn new(unit: Unit, direct: Box<dyn Cgroup>) -> SystemdCgroup {
        let addresses = bus::addresses(unit.user);
        SystemdCgroup {
            unit,
            direct,
            addresses,
            owner: Cell::new(None),
        }
    }

    fn connect(&self) -> Result<Systemd, SystemdError> {
        Systemd::connect(&self.addresses)
    }

    fn version(&self, systemd: &mut Systemd) -> Result<Version, SystemdError> {
        Ok(Version {
            cgroup: self.record().version,
            systemd: systemd.version()?,
        })
    }
}

impl Cgroup for SystemdCgroup {
    fn record(&self) -> &CgroupRecord {
        self.direct.record()
    }

    fn refuse_occupied(&self) -> Result<(), CgroupError> {
        self.direct.refuse_occupied()
    }

    fn prepare(
        &self,
        _resources: &Resources,
        _warnings: &mut Vec<String>,
    ) -> Result<(), CgroupError> {
        // A scope begins with a process: see `admit`.
        Ok(())
    }

    fn admit(
        &self,
        pid: i32,
        _born_inside: bool,
        resources: &Resources,
        warnings: &mut Vec<String>,
    ) -> Result<(), CgroupError> {
        let resources = properties::rounded(resources);
        let mut systemd = self.connect()?;
        let version = self.version(&mut systemd)?;
        let change = Change {
            asked: &resources,
            known: &resources,
            before: &resources,
        };
        let mut all = properties::of_scope(&self.unit, pid, version)?;
        all.extend(properties::of_devices(
            &resources.devices,
            version,
            warnings,
        ));
        all.extend(properties::of_limits(change, version, warnings)?);
        all.extend(properties::of_oom_group(&resources, version));
        let all = annotation::override_with(all, &self.unit.properties)?;
        systemd.start_scope(&self.unit.name, &all)?;
        drop(systemd);
        self.direct.prepare(&resources, warnings)?;
        if let Some((uid, gid)) = self.owner.take() {
            self.direct.delegate(uid, gid)?;
        }
        // Order: after the limits; on v1 systemd moved it in its own hierarchies only.
        self.direct.admit(pid, false, &resources, warnings)
    }

    fn update(&self, change: Change<'_>, warnings: &mut Vec<String>) -> Result<(), CgroupError> {
        let asked = properties::rounded(&properties::with_bandwidth(change));
        let rounded = Change {
            asked: &asked,
            ..change
        };
        // Order: the check of what is in use comes before systemd lowers the limit.
        if let Some(directory) = self
            .record()
            .directories
            .first()
            .filter(|_| self.record().version == 2)
        {
            super::v2::limits::check_usage(&directory.path, &asked)?;
        }
        let mut systemd = self.connect()?;
        let version = self.version(&mut systemd)?;
        let mut all = properties::of_limits(rounded, version, warnings)?;
        if !asked.devices.is_empty() {
            all.extend(properties::of_devices(&asked.devices, version, warnings));
        }
        if !all.is_empty() {
            systemd.set_properties(&self.unit.name, &all)?;
        }
        let written = self.direct.update(rounded, warnings);
        if written.is_err() && !all.is_empty() {
            let earlier = properties::of_earlier(change.before, &all, version)?;
            if let Err(error) = systemd.set_properties(&self.unit.name, &earlier) {
                warnings.push(format!(
                    "systemd keeps the new limits of {}: {error}",
                    self.unit.name
                ));
            }
        }
        written
    }

    fn join(&self, pid: i32, subgroup: Option<&Subgroup>) -> Result<(), CgroupError> {
        if !self.unit.user {
            return self.direct.join(pid, subgroup);
        }
        // An ordinary user may not move a process across cgroups that only root can write, as between two
        // of its sessions; its systemd has the system's do it.
        if let Some(subgroup) = subgroup {
            subgroup.check_exists(&self.record().directories)?;
        }
        let below = subgroup.map_or("/".to_owned(), |subgroup| subgroup.below_unified());
        Ok(self.connect()?.attach(&self.unit.name, &below, pid)?)
    }

    fn stats(&self) -> Result<Stats, CgroupError> {
        self.direct.stats()
    }

    fn watch_oom(&self) -> Result<OomWatch, CgroupError> {
        self.direct.watch_oom()
    }

    fn delegate(&self, uid: u32, gid: u32) -> Result<(), CgroupError> {
        let made = self.record().directories.iter().all(|d| d.path.exists());
        if made {
            return self.direct.delegate(uid, gid);
        }
        self.owner.set(Some((uid, gid)));
        Ok(())
    }

    fn signal(&self, signal: i32) -> Result<(), CgroupError> {
        self.direct.signal(signal)
    }

    fn kill(&self) -> Result<(), CgroupError> {
        self.direct.kill()
    }

    fn is_frozen(&self) -> bool {
        self.direct.is_frozen()
    }

    fn set_frozen(&self, frozen: bool) -> Result<(), CgroupError> {
        self.direct.set_frozen(frozen)
    }

    fn remove(&self) -> Result<(), CgroupError> {
        // Order: killed first, so that StopUnit has nobody to wait for.
        self.direct.kill()?;
        let stopped = self
            .connect()
            .and_then(|mut systemd| systemd.stop(&self.unit.name));
        // The directories go in any case; a scope without processes ends by itself.
        self.direct.remove()?;
        match stopped {
            // Nobody is there to know a unit, or to be waited for: a container must not stay for want of it.
            Err(SystemdError::Unreachable { .. }) => Ok(()),
            other => Ok(other?),
        }
    }
}

#[cfg(test)]
mod tests;
