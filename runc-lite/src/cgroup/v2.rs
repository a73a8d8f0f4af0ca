//! cgroup v2: one directory in the unified tree. Its limits are in `limits`.

pub(super) mod limits;

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags};

use super::files::{self, KILL_PATIENCE, wait_until, write};
use super::journal::Journal;
use super::oom::OomWatch;
use super::stats::{self, Stats};
use super::{Cgroup, CgroupDirectory, CgroupError, CgroupRecord, Change, Subgroup, io_error};
use crate::config::Resources;
use limits::Limits;

/// How long the freezer may take.
const FREEZE_PATIENCE: Duration = Duration::from_secs(2);
/// What the kernel lists as safe to delegate.
const DELEGATE_LIST: &str = "/sys/kernel/cgroup/delegate";
/// The same by cgroups(7), for kernels before 4.15.
const DELEGATE_DEFAULT: &str = "cgroup.procs\ncgroup.threads\ncgroup.subtree_control\n";

/// A container's directory in the unified tree.
#[derive(Debug)]
pub(super) struct CgroupV2 {
    record: CgroupRecord,
    /// The container's init, when there is one.
    init: Option<i32>,
}

impl CgroupV2 {
    pub(super) fn new(record: CgroupRecord, init: Option<i32>) -> CgroupV2 {
        CgroupV2 { record, init }
    }

    fn here(&self) -> &CgroupDirectory {
        // Invariant: `locate` gives a version 2 record exactly one directory.
        &self.record.directories[0]
    }

    fn path(&self) -> &Path {
        &self.here().path
    }

    fn open(&self) -> Result<OwnedFd, CgroupError> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        rustix::fs::openat(CWD, self.path(), flags, Mode::empty())
            .map_err(|errno| io_error("open", self.path(), errno.into()))
    }

    fn is_populated(&self) -> bool {
        files::read(self.path(), "cgroup.events").is_some_and(|e| e.contains("populated 1"))
    }

    fn create(&self) -> Result<(), CgroupError> {
        let CgroupDirectory {
            path, mount_point, ..
        } = self.here();
        let below = path.strip_prefix(mount_point).unwrap_or(Path::new(""));
        let mut current = mount_point.clone();
        for part in below.components() {
            // Order: a directory gets its controller files from its parent's subtree_control.
            enable_controllers(&current);
            current.push(part);
            files::make(&current)?;
        }
        self.refuse_unfit()
    }

    fn refuse_unfit(&self) -> Result<(), CgroupError> {
        match self.unfit() {
            None => Ok(()),
            Some(reason) => Err(CgroupError::CannotHold {
                path: self.path().to_owned(),
                reason,
            }),
        }
    }

    /// Why the kernel would not let processes in; `None` when it would.
    fn unfit(&self) -> Option<String> {
        let kind = files::read(self.path(), "cgroup.type").unwrap_or_default();
        match kind.as_str() {
            "domain invalid" => {
                let parent = self.path().parent().unwrap_or(Path::new("/"));
                Some(format!(
                    "its type is \"domain invalid\", because {} is part of a threaded subtree",
                    parent.display()
                ))
            }
            "threaded" => Some("it is threaded and takes threads only".to_owned()),
            _ => {
                let passed_on = files::read(self.path(), "cgroup.subtree_control")?;
                (!passed_on.is_empty())
                    .then(|| format!("it passes controllers on to cgroups below it ({passed_on})"))
            }
        }
    }

    /// The cgroup of the container's init when that lies below the container's: where a later process goes
    /// when the container's own cgroup has become an inner node, as with an init system inside.
    fn cgroup_of_init(&self) -> Option<PathBuf> {
        let init = self.init?;
        let mut candidates = files::children(self.path());
        while let Some(candidate) = candidates.pop() {
            let procs = files::read(&candidate, "cgroup.procs").unwrap_or_default();
            if procs.lines().any(|line| line.parse() == Ok(init)) {
                return Some(candidate);
            }
            candidates.extend(files::children(&candidate));
        }
        None
    }

    fn enter(&self, path: &Path, pid: i32) -> Result<(), CgroupError> {
        let file = path.join("cgroup.procs");
        let Err(error) = files::write_io(&file, &pid.to_string()) else {
            return Ok(());
        };
        let explained = matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EOPNOTSUPP));
        match self.unfit().filter(|_| explained) {
            Some(reason) => Err(CgroupError::CannotHold {
                path: path.to_owned(),
                reason,
            }),
            None => Err(io_error(format!("write \"{pid}\" to"), &file, error)),
        }
    }
}

impl Cgroup for CgroupV2 {
    fn record(&self) -> &CgroupRecord {
        &self.record
    }

    fn refuse_occupied(&self) -> Result<(), CgroupError> {
        if !self.path().exists() {
            return Ok(());
        }
        let count = files::processes(self.path()).len();
        if count > 0 {
            return Err(CgroupError::NotEmpty {
                path: self.path().to_owned(),
                count,
            });
        }
        if self.is_frozen() {
            return Err(CgroupError::Frozen {
                path: self.path().to_owned(),
            });
        }
        self.refuse_unfit()
    }

    fn prepare(
        &self,
        resources: &Resources,
        warnings: &mut Vec<String>,
    ) -> Result<(), CgroupError> {
        self.create()?;
        self.set_devices(&resources.devices)?;
        Limits {
            directory: self.here(),
            journal: &Journal::forgetful(),
        }
        .write(resources, resources, warnings)
    }

    fn birthplace(&self) -> Result<Option<OwnedFd>, CgroupError> {
        self.open().map(Some)
    }

    fn admit(
        &self,
        pid: i32,
        born_inside: bool,
        _resources: &Resources,
        _warnings: &mut Vec<String>,
    ) -> Result<(), CgroupError> {
        if born_inside {
            return Ok(());
        }
        self.enter(self.path(), pid)
    }

    fn update(&self, change: Change<'_>, warnings: &mut Vec<String>) -> Result<(), CgroupError> {
        limits::check_usage(self.path(), change.asked)?;
        let mut tolerated = Vec::new();
        let written = Journal::all_or_nothing(
            |journal| {
                Limits {
                    directory: self.here(),
                    journal,
                }
                .write(change.asked, change.known, &mut tolerated)?;
                // Order: last, because the program is what the journal cannot take back.
                if change.asked.devices.is_empty() {
                    return Ok(());
                }
                self.set_devices(&change.asked.devices)
            },
            warnings,
        );
        warnings.append(&mut tolerated);
        written
    }

    fn join(&self, pid: i32, subgroup: Option<&Subgroup>) -> Result<(), CgroupError> {
        if let Some(subgroup) = subgroup {
            subgroup.check_exists(&self.record.directories)?;
            return self.enter(&subgroup.below(self.here()), pid);
        }
        let direct = self.enter(self.path(), pid);
        match (&direct, self.init) {
            (Err(CgroupError::CannotHold { .. }), Some(_)) => match self.cgroup_of_init() {
                Some(path) => self.enter(&path, pid),
                None => direct,
            },
            _ => direct,
        }
    }

    fn stats(&self) -> Result<Stats, CgroupError> {
        stats::v2::read(self.path())
    }

    fn watch_oom(&self) -> Result<OomWatch, CgroupError> {
        OomWatch::of_memory_events(self.path())
    }

    fn delegate(&self, uid: u32, gid: u32) -> Result<(), CgroupError> {
        let directory = self.open()?;
        let list = std::fs::read_to_string(DELEGATE_LIST);
        let list = list.unwrap_or_else(|_| DELEGATE_DEFAULT.to_owned());
        let owner = Some(rustix::fs::Uid::from_raw(uid));
        let group = Some(rustix::fs::Gid::from_raw(gid));
        let fail = |name: &str, e: rustix::io::Errno| {
            let path = self.path().join(name);
            io_error(
                format!("give to user {uid} and group {gid}"),
                &path,
                e.into(),
            )
        };
        rustix::fs::fchown(&directory, owner, group).map_err(|e| fail("", e))?;
        for name in list.lines().filter(|name| !name.contains('/')) {
            let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
            match rustix::fs::chownat(&directory, name, owner, group, flags) {
                // The list is the kernel's whole, with files of controllers that are not here.
                Ok(()) | Err(rustix::io::Errno::NOENT) => {}
                Err(e) => return Err(fail(name, e)),
            }
        }
        Ok(())
    }

    fn signal(&self, signal: i32) -> Result<(), CgroupError> {
        files::signal_all(&self.record.directories, signal);
        Ok(())
    }

    fn kill(&self) -> Result<(), CgroupError> {
        let has_kill = files::write_io(&self.path().join("cgroup.kill"), "1").is_ok();
        let gone = wait_until(KILL_PATIENCE, || {
            if !has_kill {
                let _ = self.set_frozen(true);
                files::signal_all(&self.record.directories, libc::SIGKILL);
                let _ = self.set_frozen(false);
            }
            !self.is_populated()
        });
        if gone {
            return Ok(());
        }
        let seconds = KILL_PATIENCE.as_secs();
        Err(CgroupError::StillPopulated {
            path: self.path().to_owned(),
            seconds,
        })
    }

    fn is_frozen(&self) -> bool {
        files::read(self.path(), "cgroup.freeze").is_some_and(|value| value == "1")
    }

    fn set_frozen(&self, frozen: bool) -> Result<(), CgroupError> {
        let (value, event) = if frozen {
            ("1", "frozen 1")
        } else {
            ("0", "frozen 0")
        };
        write(self.path(), "cgroup.freeze", value)?;
        let reached = wait_until(FREEZE_PATIENCE, || {
            files::read(self.path(), "cgroup.events").is_none_or(|e| e.contains(event))
        });
        if reached {
            return Ok(());
        }
        if frozen {
            // Never leave it half frozen.
            write(self.path(), "cgroup.freeze", "0")?;
        }
        let source = std::io::ErrorKind::TimedOut.into();
        Err(io_error(format!("reach {event:?} in"), self.path(), source))
    }

    fn remove(&self) -> Result<(), CgroupError> {
        if files::remove_quick(self.path()) {
            return Ok(());
        }
        self.kill()?;
        files::remove(self.path())
    }
}

impl CgroupV2 {
    /// Attaches the program for `rules`, or puts it in the place of an earlier one in one step.
    fn set_devices(&self, rules: &[crate::config::DeviceRule]) -> Result<(), CgroupError> {
        let devices = super::DeviceSet::of_rules(rules);
        let fail = |operation: &str, e: std::io::Error| io_error(operation, self.path(), e);
        let directory = self.open()?;
        let earlier = match crate::sys::device_programs(directory.as_fd()) {
            Ok(earlier) => earlier,
            // Nothing to forbid and no way to ask for programs: there are none of ours.
            Err(_) if devices.allows_everything() => return Ok(()),
            Err(e) if e.raw_os_error() == Some(libc::EPERM) => Vec::new(),
            Err(e) => return Err(fail("list the device programs of", e)),
        };
        if devices.allows_everything() && earlier.is_empty() {
            return Ok(());
        }
        let program = match crate::sys::load_device_program(&devices.program()) {
            Ok(program) => program,
            // Programs are for the host's root alone; others can make no devices to begin with.
            Err(e)
                if e.raw_os_error() == Some(libc::EPERM) && super::systemd::is_ordinary_user() =>
            {
                return Ok(());
            }
            Err(e) => return Err(fail("load the device program of", e)),
        };
        let replaced = match earlier.as_slice() {
            [one] => Some(one.as_fd()),
            _ => None,
        };
        crate::sys::attach_device_program(directory.as_fd(), program.as_fd(), replaced)
            .map_err(|e| fail("attach the device program to", e))?;
        if replaced.is_none() {
            // Order: until the old ones are gone an access needs the leave of all.
            for old in &earlier {
                crate::sys::detach_device_program(directory.as_fd(), old.as_fd())
                    .map_err(|e| fail("detach a device program from", e))?;
            }
        }
        Ok(())
    }
}

/// Passes every controller on to the cgroups below `directory`, as far as that is possible: what a limit
/// needs and does not get is found out when the limit is written.
fn enable_controllers(directory: &Path) {
    let offered = files::read(directory, "cgroup.controllers").unwrap_or_default();
    let enabled = files::read(directory, "cgroup.subtree_control").unwrap_or_default();
    let missing: Vec<String> = offered
        .split(' ')
        .filter(|c| !c.is_empty() && !enabled.split(' ').any(|e| e == *c))
        .map(|c| format!("+{c}"))
        .collect();
    if missing.is_empty() || write(directory, "cgroup.subtree_control", &missing.join(" ")).is_ok()
    {
        return;
    }
    // One that cannot be enabled must not keep back the others.
    for controller in missing {
        let _ = write(directory, "cgroup.subtree_control", &controller);
    }
}
