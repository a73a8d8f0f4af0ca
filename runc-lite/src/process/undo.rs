//! What create takes back when it fails.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use super::net_devices::MovedDevices;
use super::wait::{end, wait_for_exit};
use crate::cgroup::Cgroup;
use crate::resctrl::ResctrlRecord;
use crate::state::StateDirectory;

/// What must be taken back when create fails: in reverse order of the making.
pub(super) struct Undo {
    directory: Option<StateDirectory>,
    pub(super) group: Option<Box<dyn Cgroup>>,
    pub(super) init: Option<(i32, OwnedFd)>,
    pub(super) devices: Option<MovedDevices>,
    pub(super) resctrl: Option<ResctrlRecord>,
}

impl Undo {
    pub(super) fn new(directory: StateDirectory) -> Undo {
        Undo {
            directory: Some(directory),
            group: None,
            init: None,
            devices: None,
            resctrl: None,
        }
    }

    pub(super) fn directory(&self) -> &StateDirectory {
        self.directory
            .as_ref()
            .expect("taken by disarm only, which consumes the undo")
    }

    /// The cgroup, if the container has one.
    pub(super) fn group(&self) -> Option<&dyn Cgroup> {
        self.group.as_deref()
    }

    pub(super) fn pidfd(&self) -> BorrowedFd<'_> {
        let (_, pidfd) = self.init.as_ref().expect("set before the first use");
        pidfd.as_fd()
    }

    pub(super) fn whole_group(&self) -> &dyn Cgroup {
        self.group().expect("set before the first use")
    }

    pub(super) fn disarm(mut self) -> (StateDirectory, OwnedFd) {
        let directory = self.directory.take().expect("taken by disarm only");
        let (_, pidfd) = self.init.take().expect("set before the container is ready");
        if let Some(devices) = self.devices.take() {
            devices.keep();
        }
        (directory, pidfd)
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        let Some(directory) = self.directory.take() else {
            return;
        };
        // Order: given back while there is a namespace that holds them for sure.
        drop(self.devices.take());
        let mut left = false;
        if let Some((pid, pidfd)) = self.init.take() {
            end(pid, pidfd.as_fd(), Duration::ZERO);
            left |= !wait_for_exit(pidfd.as_fd(), Duration::ZERO);
        }
        left |= self
            .resctrl
            .take()
            .is_some_and(|place| place.undo().is_err());
        left |= self
            .group
            .take()
            .is_some_and(|group| group.remove().is_err());
        if !left {
            let _ = directory.remove();
        }
        // Otherwise the record stays, so that delete can finish the work.
    }
}
