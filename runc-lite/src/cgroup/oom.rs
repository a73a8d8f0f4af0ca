//! Waiting for the out-of-memory killer: an eventfd on v1, inotify on v2. Whoever waits polls the
//! descriptor, with a bound of its own.

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::EventfdFlags;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use super::files;
use super::{CgroupError, io_error};

const OOM_CONTROL: &str = "memory.oom_control";

/// A descriptor that becomes readable when the killer may have struck, and what tells whether it did.
#[derive(Debug)]
pub struct OomWatch {
    fd: OwnedFd,
    /// The file with the counter, and the counter's name.
    counter: (PathBuf, &'static str, &'static str),
    seen: Cell<u64>,
}

impl OomWatch {
    /// The v1 way: `<eventfd> <descriptor of memory.oom_control>` goes into cgroup.event_control.
    pub(super) fn of_oom_control(directory: &Path) -> Result<OomWatch, CgroupError> {
        let path = directory.join(OOM_CONTROL);
        let fail = |operation: &'static str| {
            let path = path.clone();
            move |e: std::io::Error| io_error(operation, &path, e)
        };
        let control = std::fs::File::open(&path).map_err(fail("open"))?;
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let fd = rustix::event::eventfd(0, flags)
            .map_err(|e| fail("make an event descriptor for")(e.into()))?;
        let line = format!("{} {}", raw(fd.as_fd()), raw(control.as_fd()));
        files::write(directory, "cgroup.event_control", &line)?;
        // The kernel holds the eventfd's registration; the control file may be closed.
        OomWatch::starting(fd, (directory.to_owned(), OOM_CONTROL, "oom_kill"))
    }

    /// The v2 way: memory.events is modified when a counter of it grows.
    pub(super) fn of_memory_events(directory: &Path) -> Result<OomWatch, CgroupError> {
        const FILE: &str = "memory.events";
        let path = directory.join(FILE);
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
            .map_err(|e| io_error("watch", &path, e.into()))?;
        match inotify::add_watch(&fd, &path, WatchFlags::MODIFY) {
            Ok(_) => {}
            Err(rustix::io::Errno::NOENT) if directory.exists() => {
                return Err(CgroupError::MissingController {
                    field: "memory".to_owned(),
                    controller: "memory",
                });
            }
            Err(e) => return Err(io_error("watch", &path, e.into())),
        }
        OomWatch::starting(fd, (directory.to_owned(), FILE, "oom_kill"))
    }

    fn starting(
        fd: OwnedFd,
        counter: (PathBuf, &'static str, &'static str),
    ) -> Result<OomWatch, CgroupError> {
        let watch = OomWatch {
            fd,
            counter,
            seen: Cell::new(0),
        };
        watch.seen.set(watch.count().unwrap_or_default());
        Ok(watch)
    }

    fn count(&self) -> Option<u64> {
        let (directory, file, key) = &self.counter;
        let text = files::read(directory, file)?;
        text.lines().find_map(|line| {
            let (name, value) = line.split_once(' ')?;
            (name == *key).then(|| value.parse().ok())?
        })
    }

    /// How many times memory ran out since the last call: the processes ended, or on v1 the event itself,
    /// which also comes where the killer is off or not counted (kernels before 4.13). Empties the
    /// descriptor. The end of the cgroup, which v1 signals as well, is no such event.
    pub fn take(&self) -> u64 {
        let mut buffer = [0u8; 4096];
        let mut signalled = false;
        while let Ok(length) = rustix::io::read(&self.fd, &mut buffer) {
            if length == 0 {
                break;
            }
            signalled = true;
        }
        let killed = self
            .count()
            .map_or(0, |now| now.saturating_sub(self.seen.replace(now)));
        let told = signalled && self.counter.1 == OOM_CONTROL && self.counter.0.exists();
        killed.max(u64::from(told))
    }
}

impl AsFd for OomWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn raw(fd: BorrowedFd<'_>) -> i32 {
    std::os::fd::AsRawFd::as_raw_fd(&fd)
}
