//! The container's own clocks: checked against the host's, set, entered.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use rustix::time::{ClockId, clock_gettime};

use super::error::{ProcessError, io_error};
use crate::plan::{NamespaceKind, OffsetClock, Plan, TimeOffset};

/// `KTIME_SEC_MAX / 2`: the latest a clock of a time namespace may show, in seconds.
const LATEST: i64 = i64::MAX / 1_000_000_000 / 2;

/// Refuses offsets that would put a clock before zero or beyond what the kernel takes.
pub(super) fn check(offsets: &[TimeOffset]) -> Result<(), ProcessError> {
    for offset in offsets {
        let clock = match offset.clock {
            OffsetClock::Monotonic => ClockId::Monotonic,
            OffsetClock::Boottime => ClockId::Boottime,
        };
        let now = clock_gettime(clock).tv_sec;
        if !is_in_range(now, offset.seconds) {
            return Err(ProcessError::Host {
                field: format!("linux.timeOffsets[{:?}].secs", offset.clock.name()),
                value: offset.seconds.to_string(),
                reason: format!(
                    "would make the clock, now at {now} s, show a time outside of 0 to {LATEST} s"
                ),
            });
        }
    }
    Ok(())
}

fn is_in_range(now: i64, offset: i64) -> bool {
    now.checked_add(offset)
        .is_some_and(|shown| (0..LATEST).contains(&shown))
}

/// The host's procfs for [`make`], opened while it is where everybody expects it.
pub(super) fn procfs(plan: &Plan) -> Result<Option<OwnedFd>, ProcessError> {
    if !plan.namespaces.makes(NamespaceKind::Time) {
        return Ok(None);
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, "/proc", flags, Mode::empty())
        .map(Some)
        .map_err(|e| io_error("open", "/proc", e))
}

/// Makes a time namespace and moves the calling process into it.
///
/// clone3(2) could make it too, but then its clocks could not be set any more: the first process inside
/// freezes the offsets (time_namespaces(7)).
///
/// # Errors
/// A text that names the clock.
pub(super) fn make(procfs: &OwnedFd, offsets: &[TimeOffset]) -> Result<(), String> {
    crate::sys::unshare(NamespaceKind::Time.clone_flag())
        .map_err(|e| format!("cannot make a time namespace: {e}"))?;
    if !offsets.is_empty() {
        let lines: String = offsets
            .iter()
            .map(|o| format!("{} {} {}\n", o.clock.name(), o.seconds, o.nanoseconds))
            .collect();
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let written = openat(procfs, "self/timens_offsets", flags, Mode::empty())
            .map_err(std::io::Error::from)
            .and_then(|file| File::from(file).write_all(lines.as_bytes()));
        written.map_err(|e| format!("cannot set the clocks of the time namespace: {e}"))?;
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    openat(procfs, "self/ns/time_for_children", flags, Mode::empty())
        .and_then(|fd| move_into_link_name_space(fd.as_fd(), Some(LinkNameSpaceType::Time)))
        .map_err(|e| format!("cannot enter the new time namespace: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_stay_between_zero_and_the_kernel_s_latest() {
        assert!(is_in_range(100, 0) && is_in_range(100, -100));
        assert!(!is_in_range(100, -101) && !is_in_range(100, i64::MIN));
        assert!(is_in_range(100, LATEST - 101));
        assert!(!is_in_range(100, LATEST - 100) && !is_in_range(1, i64::MAX));
    }
}
