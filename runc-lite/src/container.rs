//! An existing container as the verbs see it: its record, and what the kernel says about its init now.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use crate::cgroup::{self, Cgroup};
use crate::process::{KILL_PATIENCE, is_waiting, wait_for_exit};
use crate::state::{ContainerId, Record, StateDirectory, StateError};
use crate::sys::send_signal;

/// Where a container is in its life, in the words of the OCI specification and runc's `paused`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// create is at work.
    Creating,
    /// Init waits for start.
    Created,
    /// The program runs.
    Running,
    /// The program runs, but its cgroup is frozen.
    Paused,
    /// Init has ended, or create was killed before there was one.
    Stopped,
}

impl Status {
    /// The word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        }
    }
}

/// A container that has a directory below `--root`.
#[derive(Debug)]
pub struct Container {
    /// Its directory.
    pub directory: StateDirectory,
    /// Its record; empty when create was killed before it wrote one.
    pub record: Record,
}

impl Container {
    /// Opens container `id`.
    ///
    /// # Errors
    /// [`StateError::NotFound`] and what the record may hold against it.
    pub fn open(root: &Path, id: &ContainerId) -> Result<Container, StateError> {
        let directory = StateDirectory::open(root, id)?;
        let record = directory.load()?.unwrap_or_else(|| Record::new(id));
        Ok(Container { directory, record })
    }

    /// Opens container `id` and keeps others from changing it; waits for a create at work.
    ///
    /// # Errors
    /// As [`Container::open`], and [`StateError::Busy`].
    pub fn open_locked(root: &Path, id: &ContainerId) -> Result<Container, StateError> {
        let directory = StateDirectory::open(root, id)?;
        directory.lock()?;
        // Order: looked at after the lock. The other process may have written meanwhile, or removed all of it.
        if !directory.is_current() {
            return Err(StateError::NotFound {
                id: id.as_str().to_owned(),
            });
        }
        let record = directory.load()?.unwrap_or_else(|| Record::new(id));
        Ok(Container { directory, record })
    }

    /// Its cgroup; `None` before create decided where it lies.
    #[must_use]
    pub fn cgroup(&self) -> Option<Box<dyn Cgroup>> {
        let init = self.record.init.map(|init| init.pid);
        let record = self.record.cgroup.clone()?;
        Some(cgroup::open_beside(record, init))
    }

    /// A handle of its init; `None` when it has ended.
    #[must_use]
    pub fn init(&self) -> Option<OwnedFd> {
        self.record.init?.pidfd()
    }

    /// What the kernel says.
    #[must_use]
    pub fn status(&self) -> Status {
        let Some(init) = self.record.init else {
            return if self.directory.is_locked_elsewhere() {
                Status::Creating
            } else {
                Status::Stopped
            };
        };
        if !init.is_alive() {
            return Status::Stopped;
        }
        if self.cgroup().is_some_and(|group| group.is_frozen()) {
            return Status::Paused;
        }
        if is_waiting(&self.directory) {
            Status::Created
        } else {
            Status::Running
        }
    }

    /// Kills init and waits, with a bound, until it is gone.
    ///
    /// # Errors
    /// A text when it does not go away.
    pub fn kill_init(&self) -> Result<(), String> {
        let Some(init) = self.init() else {
            return Ok(());
        };
        // It may end by itself meanwhile.
        let _ = send_signal(init.as_fd(), libc::SIGKILL);
        if let Some(group) = self.cgroup().filter(|group| group.is_frozen()) {
            group
                .set_frozen(false)
                .map_err(|e| crate::error_chain(&e))?;
        }
        if wait_for_exit(init.as_fd(), KILL_PATIENCE) {
            return Ok(());
        }
        Err(format!(
            "container {:?}: init is still there {} s after SIGKILL",
            self.record.id,
            KILL_PATIENCE.as_secs()
        ))
    }
}
