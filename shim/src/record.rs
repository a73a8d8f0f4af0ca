//! The shim's files in a bundle: how the task is run, and how it ended. Written whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use axil_proto::keys::EXIT_RECORD;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use crate::clock;
use crate::log::flags;
use crate::reaper::Exit;

/// File with the [`TaskRecord`] of a bundle.
pub const TASK_RECORD: &str = "task.json";

/// Longest record that is read, in bytes.
const RECORD_LIMIT: u64 = 1 << 20;

/// What cleaning up after a dead shim needs to know of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskRecord {
    /// Version of this form.
    pub version: u32,
    /// The OCI runtime.
    pub binary: PathBuf,
    /// Its state directory.
    pub root: PathBuf,
    /// Whether it is told to use systemd for cgroups.
    #[serde(default)]
    pub systemd_cgroup: bool,
    /// Whether the shim mounted the root file system.
    #[serde(default)]
    pub rootfs_mounted: bool,
    /// The init process, once there is one.
    #[serde(default)]
    pub pid: Option<u32>,
    /// Its start in clock ticks since boot, which with the pid names it for ever.
    #[serde(default)]
    pub start_time: Option<u64>,
    /// Its cgroup directories.
    #[serde(default)]
    pub cgroup: Option<crate::cgroup::Cgroup>,
}

/// The current version of [`TaskRecord`] and of the exit record.
pub const RECORD_VERSION: u32 = 1;

/// How a task ended, as on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Version of this form.
    pub version: u32,
    /// The exit code, or 128 plus the signal.
    pub exit_status: u32,
    /// RFC 3339, UTC, nine digits.
    pub exited_at: String,
    /// Whether the kernel killed the process for memory.
    pub oom_killed: bool,
}

impl ExitRecord {
    /// The record of `exit`.
    #[must_use]
    pub fn new(exit: Exit, oom_killed: bool) -> Self {
        Self {
            version: RECORD_VERSION,
            exit_status: exit.status,
            exited_at: clock::rfc3339_string(exit.at),
            oom_killed,
        }
    }

    /// Writes it into `bundle`.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn write(&self, bundle: &Path) -> io::Result<()> {
        write_json(&bundle.join(EXIT_RECORD), self)
    }

    /// Reads it from `bundle`; `None` if there is none that can be read.
    #[must_use]
    pub fn read(bundle: &Path) -> Option<Self> {
        read_json(&bundle.join(EXIT_RECORD)).ok()
    }

    /// The exit it records.
    #[must_use]
    pub fn exit(&self) -> Option<Exit> {
        Some(Exit {
            status: self.exit_status,
            at: clock::parse_rfc3339(&self.exited_at)?,
        })
    }
}

impl TaskRecord {
    /// Writes it into `bundle`.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn write(&self, bundle: &Path) -> io::Result<()> {
        write_json(&bundle.join(TASK_RECORD), self)
    }

    /// Reads it from `bundle`; `None` if there is none that can be read.
    #[must_use]
    pub fn read(bundle: &Path) -> Option<Self> {
        read_json(&bundle.join(TASK_RECORD)).ok()
    }
}

fn write_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    write_atomic(path, &serde_json::to_vec(value)?)
}

fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> io::Result<T> {
    Ok(serde_json::from_slice(&read_bounded(path, RECORD_LIMIT)?)?)
}

/// Reads a file of at most `limit` bytes.
///
/// # Errors
/// It cannot be read or is longer.
pub fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length <= limit) {
        Ok(bytes)
    } else {
        Err(io::Error::from(io::ErrorKind::FileTooLarge))
    }
}

/// Writes `bytes` beside `path` and renames, so that a reader sees the old file or the new one.
///
/// The bundle lies on a tmpfs that does not outlive the kernel, so nothing is synced.
///
/// # Errors
/// The file system refuses; the old file is then untouched.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    // A left-over of a killed predecessor; created anew below, never truncated through a link.
    if let Err(error) = fs::remove_file(&beside)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let mut file = create_new(&beside)?;
    let written = file
        .write_all(bytes)
        .and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}

/// Creates a private file that did not exist.
///
/// # Errors
/// It exists or cannot be created.
pub fn create_new(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(flags(OFlags::NOFOLLOW))
        .open(path)
}

/// When the process started, in clock ticks since boot (proc(5), field 22 of `stat`).
#[must_use]
pub fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name may hold spaces and parentheses; fields are counted from the last one.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn the_exit_record_has_the_agreed_form() {
        let bundle = tempfile::tempdir().unwrap();
        let exit = Exit {
            status: 137,
            at: UNIX_EPOCH + Duration::new(1_709_210_096, 5),
        };
        ExitRecord::new(exit, true).write(bundle.path()).unwrap();
        let text = fs::read_to_string(bundle.path().join("exit.json")).unwrap();
        assert_eq!(
            text,
            r#"{"version":1,"exit_status":137,"exited_at":"2024-02-29T12:34:56.000000005Z","oom_killed":true}"#
        );
        let read = ExitRecord::read(bundle.path()).unwrap();
        assert_eq!(read.exit(), Some(exit));
        assert_eq!(fs::read_dir(bundle.path()).unwrap().count(), 1);
    }

    #[test]
    fn replaces_a_left_over_and_a_link() {
        let bundle = tempfile::tempdir().unwrap();
        let victim = bundle.path().join("victim");
        fs::write(&victim, "keep").unwrap();
        std::os::unix::fs::symlink(&victim, bundle.path().join("x.new")).unwrap();
        write_atomic(&bundle.path().join("x"), b"new").unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "keep");
        assert_eq!(fs::read_to_string(bundle.path().join("x")).unwrap(), "new");
    }

    #[test]
    fn own_start_time_is_known() {
        assert!(start_time(std::process::id()).is_some_and(|ticks| ticks > 0));
        assert_eq!(start_time(0), None);
    }
}
