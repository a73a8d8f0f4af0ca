//! cgroup v1, one directory per hierarchy, and the hybrid layout: the unified tree beside the v1
//! hierarchies holds no controllers, but membership in it gives cgroup.kill. Limits are in `limits`.

mod limits;

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::device::{DeviceSet, Exceptions};
use super::files::{self, KILL_PATIENCE, wait_until, write};
use super::journal::Journal;
use super::oom::OomWatch;
use super::stats::{self, Stats};
use super::{Cgroup, CgroupError, CgroupRecord, Change, Subgroup, io_error};
use crate::config::Resources;
use limits::Limits;

/// How long the freezer may take.
const FREEZE_PATIENCE: Duration = Duration::from_secs(2);

/// A container's directories in all hierarchies.
#[derive(Debug)]
pub(super) struct CgroupV1 {
    record: CgroupRecord,
}

impl CgroupV1 {
    pub(super) fn new(record: CgroupRecord) -> CgroupV1 {
        CgroupV1 { record }
    }

    fn unified(&self) -> Option<&Path> {
        let mut directories = self.record.directories.iter();
        directories
            .find(|d| d.controllers.is_empty())
            .map(|d| d.path.as_path())
    }

    fn is_empty(&self) -> bool {
        self.record
            .directories
            .iter()
            .all(|d| files::processes(&d.path).is_empty())
    }

    fn create(&self) -> Result<(), CgroupError> {
        for directory in &self.record.directories {
            files::make(&directory.path)?;
            if directory.controllers.iter().any(|c| c == "cpuset") {
                inherit_cpuset(&directory.path, &directory.mount_point)?;
            }
        }
        Ok(())
    }

    /// Changes the device rules of running processes without denying for a moment what stays allowed.
    fn update_devices(&self, rules: &[crate::config::DeviceRule]) -> Result<(), CgroupError> {
        let Some(directory) = self
            .record
            .directory("devices")
            .filter(|_| !rules.is_empty())
        else {
            return Ok(());
        };
        let now = files::read(directory, "devices.list").and_then(|list| Exceptions::parse(&list));
        let wanted = DeviceSet::of_rules(rules).exceptions()?;
        for (file, value) in wanted.writes_from(now.as_ref()) {
            write(directory, file, &value)?;
        }
        Ok(())
    }

    fn any_path(&self) -> PathBuf {
        self.record
            .directories
            .first()
            .map(|d| d.path.clone())
            .unwrap_or_default()
    }
}

impl Cgroup for CgroupV1 {
    fn record(&self) -> &CgroupRecord {
        &self.record
    }

    fn refuse_occupied(&self) -> Result<(), CgroupError> {
        for directory in &self.record.directories {
            // Only the hierarchies that exist can be occupied: one failed stat each in the usual case.
            if !directory.path.exists() {
                continue;
            }
            let count = files::processes(&directory.path).len();
            if count > 0 {
                return Err(CgroupError::NotEmpty {
                    path: directory.path.clone(),
                    count,
                });
            }
            if files::read(&directory.path, "freezer.state").is_some_and(|s| s != "THAWED") {
                return Err(CgroupError::Frozen {
                    path: directory.path.clone(),
                });
            }
        }
        Ok(())
    }

    fn prepare(
        &self,
        resources: &Resources,
        warnings: &mut Vec<String>,
    ) -> Result<(), CgroupError> {
        let devices = DeviceSet::of_rules(&resources.devices);
        // A new directory starts with what its parent allows, so "everything" needs no write.
        let guarded = self
            .record
            .directory("devices")
            .filter(|_| !devices.allows_everything());
        let writes = match guarded {
            Some(_) => devices.exceptions()?.writes(),
            None => Vec::new(),
        };
        self.create()?;
        for (directory, (file, value)) in guarded
            .iter()
            .flat_map(|d| writes.iter().map(move |w| (d, w)))
        {
            write(directory, file, value)?;
        }
        Limits {
            record: &self.record,
            journal: &Journal::forgetful(),
        }
        .write(resources, warnings)
    }

    fn admit(
        &self,
        pid: i32,
        _born_inside: bool,
        _resources: &Resources,
        _warnings: &mut Vec<String>,
    ) -> Result<(), CgroupError> {
        self.join(pid, None)
    }

    fn update(&self, change: Change<'_>, warnings: &mut Vec<String>) -> Result<(), CgroupError> {
        let mut tolerated = Vec::new();
        let written = Journal::all_or_nothing(
            |journal| {
                Limits {
                    record: &self.record,
                    journal,
                }
                .write(change.asked, &mut tolerated)?;
                // Order: last, because these writes are what the journal cannot take back.
                self.update_devices(&change.asked.devices)
            },
            warnings,
        );
        warnings.append(&mut tolerated);
        written
    }

    fn join(&self, pid: i32, subgroup: Option<&Subgroup>) -> Result<(), CgroupError> {
        if let Some(subgroup) = subgroup {
            subgroup.check_exists(&self.record.directories)?;
        }
        for directory in &self.record.directories {
            let mut path = subgroup.map_or_else(|| directory.path.clone(), |s| s.below(directory));
            if directory.controllers.is_empty() && !path.is_dir() {
                path.clone_from(&directory.path);
            }
            write(&path, "cgroup.procs", &pid.to_string())?;
        }
        Ok(())
    }

    fn stats(&self) -> Result<Stats, CgroupError> {
        stats::v1::read(&|controller| self.record.directory(controller))
    }

    fn watch_oom(&self) -> Result<OomWatch, CgroupError> {
        OomWatch::of_oom_control(self.record.need("memory", "memory")?)
    }

    fn delegate(&self, _uid: u32, _gid: u32) -> Result<(), CgroupError> {
        // cgroups(7): v1 hierarchies have no safe delegation; the container gets along without.
        Ok(())
    }

    fn signal(&self, signal: i32) -> Result<(), CgroupError> {
        files::signal_all(&self.record.directories, signal);
        Ok(())
    }

    fn kill(&self) -> Result<(), CgroupError> {
        let mut attempt = 0;
        let gone = wait_until(KILL_PATIENCE, || {
            attempt += 1;
            if let Some(unified) = self.unified() {
                // Kernels before 5.14 have no such file; the loop below does the work then.
                let _ = files::write_io(&unified.join("cgroup.kill"), "1");
            }
            // Frozen from the second round on: a process that forks faster than it is killed stands still.
            let freeze = attempt > 1 && self.set_frozen(true).is_ok();
            let left = files::signal_all(&self.record.directories, libc::SIGKILL);
            if freeze || self.is_frozen() {
                let _ = self.set_frozen(false);
            }
            left == 0
        });
        if gone || self.is_empty() {
            return Ok(());
        }
        Err(CgroupError::StillPopulated {
            path: self.any_path(),
            seconds: KILL_PATIENCE.as_secs(),
        })
    }

    fn is_frozen(&self) -> bool {
        self.record
            .directory("freezer")
            .and_then(|directory| files::read(directory, "freezer.state"))
            .is_some_and(|state| state != "THAWED")
    }

    fn set_frozen(&self, frozen: bool) -> Result<(), CgroupError> {
        let directory = self.record.need("freezer", "freezer")?;
        let state = if frozen { "FROZEN" } else { "THAWED" };
        write(directory, "freezer.state", state)?;
        let reached = wait_until(FREEZE_PATIENCE, || {
            files::read(directory, "freezer.state").is_none_or(|now| now == state)
        });
        if reached {
            return Ok(());
        }
        if frozen {
            // Never leave it half frozen.
            write(directory, "freezer.state", "THAWED")?;
        }
        let source = std::io::ErrorKind::TimedOut.into();
        Err(io_error(format!("reach {state} in"), directory, source))
    }

    fn remove(&self) -> Result<(), CgroupError> {
        let busy: Vec<_> = self
            .record
            .directories
            .iter()
            .filter(|directory| !files::remove_quick(&directory.path))
            .collect();
        if busy.is_empty() {
            return Ok(());
        }
        self.kill()?;
        for directory in busy {
            files::remove(&directory.path)?;
        }
        Ok(())
    }
}

/// The line of rdma.max, the same on both versions.
pub(super) fn rdma_line(device: &str, limits: &crate::config::Rdma) -> String {
    let part = |name: &str, value: Option<u32>| {
        value
            .map(|value| format!(" {name}={value}"))
            .unwrap_or_default()
    };
    let handles = part("hca_handle", limits.hca_handles);
    let objects = part("hca_object", limits.hca_objects);
    format!("{device}{handles}{objects}")
}

/// Gives a new cpuset the CPUs and memory nodes of its parent: an empty one takes no process.
fn inherit_cpuset(directory: &Path, mount_point: &Path) -> Result<(), CgroupError> {
    let file = |name: &str| files::read(directory, name).unwrap_or_default();
    if directory == mount_point
        || !(file("cpuset.cpus").is_empty() || file("cpuset.mems").is_empty())
    {
        return Ok(());
    }
    let Some(parent) = directory.parent().filter(|p| p.starts_with(mount_point)) else {
        return Ok(());
    };
    inherit_cpuset(parent, mount_point)?;
    for name in ["cpuset.cpus", "cpuset.mems"] {
        if file(name).is_empty() {
            write(
                directory,
                name,
                &files::read(parent, name).unwrap_or_default(),
            )?;
        }
    }
    Ok(())
}
