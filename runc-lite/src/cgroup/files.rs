//! Reading, writing and removing cgroup files and directories: what both versions share.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{CgroupDirectory, CgroupError, io_error};

/// How long processes may take to disappear after SIGKILL.
pub(super) const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// How long rmdir may answer EBUSY although no process is left.
const REMOVE_PATIENCE: Duration = Duration::from_secs(5);

/// Writes `value` into `file` of `directory` with one system call.
pub(super) fn write(directory: &Path, file: &str, value: &str) -> Result<(), CgroupError> {
    let path = directory.join(file);
    write_io(&path, value).map_err(|e| io_error(format!("write {value:?} to"), &path, e))
}

pub(super) fn write_io(path: &Path, value: &str) -> std::io::Result<()> {
    OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_CLOEXEC | libc::O_NOFOLLOW)
        .open(path)?
        .write_all(value.as_bytes())
}

/// A file of one number; `max` is the greatest. `None` when it is not there or no number.
pub(super) fn read_number(directory: &Path, file: &str) -> Option<u64> {
    match read(directory, file)?.as_str() {
        "max" => Some(u64::MAX),
        text => text.parse().ok(),
    }
}

/// Reads `file` of `directory` without the final newline; `None` when it cannot be read.
pub(super) fn read(directory: &Path, file: &str) -> Option<String> {
    std::fs::read_to_string(directory.join(file))
        .ok()
        .map(|text| text.trim().to_owned())
}

/// Makes `directory` and its parents, as far as they are not there.
pub(super) fn make(directory: &Path) -> Result<(), CgroupError> {
    let made = match std::fs::create_dir(directory) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => std::fs::create_dir_all(directory),
        other => other,
    };
    made.map_err(|e| io_error("make", directory, e))
}

/// The processes of `directory` and of every cgroup below it; a cgroup that is gone has none.
pub(super) fn processes(directory: &Path) -> Vec<i32> {
    // A threaded cgroup answers EOPNOTSUPP; its processes are those of the domain above it, which is part
    // of the container's cgroup or the container's cgroup itself.
    let mut found: Vec<i32> = read(directory, "cgroup.procs")
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.parse().ok())
        .filter(|pid| *pid > 0)
        .collect();
    for child in children(directory) {
        found.extend(processes(&child));
    }
    found
}

pub(super) fn children(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// The processes of all `directories` and of the cgroups below them, ascending and each once.
pub(super) fn members(directories: &[CgroupDirectory]) -> Vec<i32> {
    let mut pids: Vec<i32> = directories
        .iter()
        .flat_map(|d| processes(&d.path))
        .collect();
    pids.sort_unstable();
    pids.dedup();
    pids
}

/// Sends `signal` to every process of the directories. A pidfd is opened first and the membership read
/// again, so that a number that changed hands meanwhile is left alone.
pub(super) fn signal_all(directories: &[CgroupDirectory], signal: i32) -> usize {
    let held: Vec<_> = members(directories)
        .into_iter()
        .filter_map(|pid| {
            let handle = rustix::process::Pid::from_raw(pid)?;
            let flags = rustix::process::PidfdFlags::empty();
            Some((pid, rustix::process::pidfd_open(handle, flags).ok()?))
        })
        .collect();
    if held.is_empty() {
        return 0;
    }
    let still = members(directories);
    for (pid, pidfd) in &held {
        if still.binary_search(pid).is_ok() {
            // The process may end at any time; that is what a signal is for.
            let _ = crate::sys::send_signal(std::os::fd::AsFd::as_fd(pidfd), signal);
        }
    }
    still.len()
}

/// Removes `directory` and the cgroups below it, deepest first; EBUSY is retried with growing pauses.
pub(super) fn remove(directory: &Path) -> Result<(), CgroupError> {
    let deadline = Instant::now() + REMOVE_PATIENCE;
    let mut pause = Duration::from_millis(1);
    loop {
        match remove_once(directory) {
            Ok(()) => return Ok(()),
            Err(e) if is_busy(&e) && Instant::now() < deadline => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(100));
            }
            Err(e) => return Err(io_error("remove", directory, e)),
        }
    }
}

/// Tries to remove a childless, empty cgroup at once: the usual case.
pub(super) fn remove_quick(directory: &Path) -> bool {
    match std::fs::remove_dir(directory) {
        Ok(()) => true,
        Err(e) => e.kind() == std::io::ErrorKind::NotFound,
    }
}

fn remove_once(directory: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir(directory) {
        Err(e) if is_busy(&e) => {
            for child in children(directory) {
                remove_once(&child)?;
            }
            std::fs::remove_dir(directory)
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn is_busy(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBUSY | libc::ENOTEMPTY))
}

/// Runs `attempt` with growing pauses until it answers true or `patience` is over.
pub(super) fn wait_until(patience: Duration, mut attempt: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    let mut pause = Duration::from_micros(200);
    loop {
        if attempt() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}
