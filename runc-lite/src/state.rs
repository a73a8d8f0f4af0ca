//! The container record and the directory it lives in.
//!
//! ```text
//! <root>/<id>/            0700, made exclusively by create; flock held while create, start or delete works
//!   state.json            the record: written before each side effect it describes
//!   config.json           the document as create read it, for exec and poststop hooks
//!   resources.json        linux.resources with all updates in it; not there before the first update
//!   start.sock            init listens here until it executes the container's program
//! ```
//!
//! Nothing is synced to disk: the directory lives on a tmpfs and means nothing after a reboot.

mod id;
mod process;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, Stat, fstat, statat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::cgroup::CgroupRecord;
use crate::resctrl::ResctrlRecord;
use crate::seccomp::Listener;

pub use id::ContainerId;
pub use process::{ProcessIdentity, ProcessStat, process_stat};

/// Form of the record this version writes.
const RECORD_VERSION: u32 = 1;
/// Bound of a record or document read back.
const MAX_FILE: u64 = 16 << 20;
/// How long one runtime process waits for another one at work on the same container.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

const STATE_FILE: &str = "state.json";
/// Copy of the document.
pub const CONFIG_FILE: &str = "config.json";
/// Everything that create and the updates since were asked to limit.
pub const RESOURCES_FILE: &str = "resources.json";
/// Socket of a created, not yet started init.
pub const START_SOCKET: &str = "start.sock";

/// What went wrong with the records below `--root`.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// An id that could not be a directory name, or is too long.
    #[error("invalid container id {id:?}: {reason}")]
    InvalidId {
        /// As given.
        id: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// No such container.
    #[error("container {id:?} does not exist")]
    NotFound {
        /// As given.
        id: String,
    },
    /// Taken.
    #[error("container with id {id:?} already exists")]
    Exists {
        /// As given.
        id: String,
    },
    /// Another runtime process works on it.
    #[error("container {id:?} is busy: another process is creating or deleting it")]
    Busy {
        /// As given.
        id: String,
    },
    /// The record is of another form.
    #[error("record {path} has version {version}, this runtime knows {RECORD_VERSION}")]
    Version {
        /// File.
        path: PathBuf,
        /// What it says.
        version: u32,
    },
    /// A directory that somebody else could have filled.
    #[error("{path} {reason}, so what it holds is not believed")]
    Untrusted {
        /// Directory.
        path: PathBuf,
        /// Owner or mode.
        reason: String,
    },
    /// The record cannot be understood.
    #[error("cannot read the record {path}")]
    Record {
        /// File.
        path: PathBuf,
        /// What serde says.
        source: serde_json::Error,
    },
    /// A system call failed.
    #[error("cannot {operation} {path}")]
    Io {
        /// Verb.
        operation: &'static str,
        /// Object.
        path: PathBuf,
        /// Errno.
        source: std::io::Error,
    },
}

/// What is on disk about a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// Form of this record.
    pub version: u32,
    /// Container id.
    pub id: String,
    /// `ociVersion` of the document.
    pub oci_version: String,
    /// Absolute path.
    pub bundle: PathBuf,
    /// Absolute path.
    pub rootfs: PathBuf,
    /// From the document.
    pub annotations: BTreeMap<String, String>,
    /// RFC 3339, UTC.
    pub created: String,
    /// Init as the runtime's PID namespace numbers it; `None` while there is no init yet.
    pub init: Option<ProcessIdentity>,
    /// Whether the PID namespace ends with init; otherwise its other processes outlive it.
    pub private_pid_namespace: bool,
    /// Directories of the container's cgroup, written before they are made.
    pub cgroup: Option<CgroupRecord>,
    /// Who gets the listener of init's seccomp filter at `start`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seccomp_listener: Option<Listener>,
    /// Place in the resctrl tree, written before it is made.
    #[serde(default)]
    pub resctrl: Option<ResctrlRecord>,
}

impl Record {
    /// An empty record of the current form.
    #[must_use]
    pub fn new(id: &ContainerId) -> Record {
        Record {
            version: RECORD_VERSION,
            id: id.as_str().to_owned(),
            oci_version: String::new(),
            bundle: PathBuf::new(),
            rootfs: PathBuf::new(),
            annotations: BTreeMap::new(),
            created: String::new(),
            init: None,
            private_pid_namespace: false,
            cgroup: None,
            seccomp_listener: None,
            resctrl: None,
        }
    }
}

/// An open container directory.
#[derive(Debug)]
pub struct StateDirectory {
    id: ContainerId,
    path: PathBuf,
    fd: OwnedFd,
}

impl StateDirectory {
    /// Makes the directory of a new container, below a root that exists, and locks it for its creator.
    ///
    /// # Errors
    /// [`StateError::Exists`] when the id is taken.
    pub fn create(root: &Path, id: &ContainerId) -> Result<StateDirectory, StateError> {
        let path = root.join(id.as_str());
        match rustix::fs::mkdirat(CWD, &path, Mode::from_raw_mode(0o700)) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                return Err(StateError::Exists {
                    id: id.as_str().to_owned(),
                });
            }
            Err(errno) => return Err(io("make", &path, errno)),
        }
        let directory = StateDirectory::open(root, id)?;
        rustix::fs::flock(&directory.fd, FlockOperation::NonBlockingLockExclusive).map_err(
            |_| StateError::Busy {
                id: id.as_str().to_owned(),
            },
        )?;
        Ok(directory)
    }

    /// Opens the directory of an existing container.
    ///
    /// # Errors
    /// [`StateError::NotFound`].
    pub fn open(root: &Path, id: &ContainerId) -> Result<StateDirectory, StateError> {
        let path = root.join(id.as_str());
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
        match rustix::fs::openat(CWD, &path, flags, Mode::empty()) {
            Ok(fd) => {
                check_trust(root, &statat(CWD, root, AtFlags::empty()))?;
                check_trust(&path, &fstat(&fd))?;
                Ok(StateDirectory {
                    id: id.clone(),
                    path,
                    fd,
                })
            }
            Err(Errno::NOENT | Errno::NAMETOOLONG) => Err(StateError::NotFound {
                id: id.as_str().to_owned(),
            }),
            Err(errno) => Err(io("open", &path, errno)),
        }
    }

    /// Waits, with a bound, until no other process creates or deletes this container.
    ///
    /// # Errors
    /// [`StateError::Busy`] when the time is over.
    pub fn lock(&self) -> Result<(), StateError> {
        match lock(&self.fd) {
            Ok(true) => Ok(()),
            Ok(false) => Err(StateError::Busy {
                id: self.id.as_str().to_owned(),
            }),
            Err(errno) => Err(io("lock", &self.path, errno)),
        }
    }

    /// Lets others create, start or delete this container again.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn unlock(&self) -> Result<(), StateError> {
        rustix::fs::flock(&self.fd, FlockOperation::Unlock)
            .map_err(|errno| io("unlock", &self.path, errno))
    }

    /// Whether this directory is still the one at its path: somebody may have removed it since it was opened,
    /// and another container may have its id by now.
    #[must_use]
    pub fn is_current(&self) -> bool {
        let there = statat(CWD, &self.path, AtFlags::SYMLINK_NOFOLLOW);
        match (fstat(&self.fd), there) {
            (Ok(own), Ok(there)) => (own.st_dev, own.st_ino) == (there.st_dev, there.st_ino),
            _ => false,
        }
    }

    /// Whether another process creates, starts or deletes this container now.
    #[must_use]
    pub fn is_locked_elsewhere(&self) -> bool {
        let probe = rustix::fs::openat(
            &self.fd,
            ".",
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        );
        probe.is_ok_and(|probe| {
            rustix::fs::flock(&probe, FlockOperation::NonBlockingLockShared).is_err()
        })
    }

    /// The directory's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory's descriptor.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The user who made the container.
    #[must_use]
    pub fn owner(&self) -> u32 {
        // A directory that is open can be examined.
        rustix::fs::fstat(&self.fd).map_or(u32::MAX, |stat| stat.st_uid)
    }

    /// Reads the record; `None` when create was killed before it wrote one.
    ///
    /// # Errors
    /// [`StateError::Record`] when it cannot be understood, [`StateError::Version`] when it should not be.
    pub fn load(&self) -> Result<Option<Record>, StateError> {
        let Some(bytes) = self.read(STATE_FILE)? else {
            return Ok(None);
        };
        let path = self.path.join(STATE_FILE);
        match serde_json::from_slice::<Record>(&bytes) {
            Ok(Record { version, .. }) if version != RECORD_VERSION => {
                Err(StateError::Version { path, version })
            }
            Ok(record) => Ok(Some(record)),
            Err(source) => Err(StateError::Record { path, source }),
        }
    }

    /// Writes the record atomically.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn store(&self, record: &Record) -> Result<(), StateError> {
        let path = self.path.join(STATE_FILE);
        let bytes =
            serde_json::to_vec(record).map_err(|source| StateError::Record { path, source })?;
        self.write(STATE_FILE, &bytes)
    }

    /// Reads a file of the directory; `None` when it is not there.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&self.fd, name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(io("open", &self.path.join(name), errno)),
        };
        let mut bytes = Vec::new();
        File::from(file)
            .take(MAX_FILE)
            .read_to_end(&mut bytes)
            .map_err(|source| StateError::Io {
                operation: "read",
                path: self.path.join(name),
                source,
            })?;
        Ok(Some(bytes))
    }

    /// Replaces a file of the directory atomically.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        let temporary = format!(".{name}.new");
        let path = self.path.join(&temporary);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW;
        let mode = Mode::from_raw_mode(0o600);
        let file = rustix::fs::openat(&self.fd, &temporary, flags | OFlags::CLOEXEC, mode)
            .map_err(|errno| io("create", &path, errno))?;
        File::from(file)
            .write_all(bytes)
            .map_err(|source| StateError::Io {
                operation: "write",
                path: path.clone(),
                source,
            })?;
        rustix::fs::renameat(&self.fd, &temporary, &self.fd, name)
            .map_err(|errno| io("rename", &path, errno))
    }

    /// Removes the directory and what lies in it; the last step of delete.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn remove(&self) -> Result<(), StateError> {
        // The record goes last, so that a delete cut short can be repeated with full knowledge.
        let names = [
            START_SOCKET,
            CONFIG_FILE,
            RESOURCES_FILE,
            ".config.json.new",
            ".resources.json.new",
            ".state.json.new",
            STATE_FILE,
        ];
        for name in names {
            match rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(io("remove", &self.path.join(name), errno)),
            }
        }
        match rustix::fs::unlinkat(CWD, &self.path, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(io("remove", &self.path, errno)),
        }
    }
}

/// Takes the lock of an open file or directory, with a bound; false when somebody else keeps it.
///
/// # Errors
/// The errno of flock(2).
pub(crate) fn lock(file: &OwnedFd) -> rustix::io::Result<bool> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    let mut pause = Duration::from_millis(1);
    loop {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < deadline => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(50));
            }
            Err(Errno::WOULDBLOCK | Errno::INTR) => return Ok(false),
            Err(errno) => return Err(errno),
        }
    }
}

/// Refuses a directory whose owner is neither this user nor root, or that others may write to: its records name
/// processes to signal and cgroups to remove. Others may write where the sticky bit keeps them from what is
/// not theirs, as in /tmp; the container's directory below is judged by itself.
fn check_trust(path: &Path, stat: &rustix::io::Result<Stat>) -> Result<(), StateError> {
    let stat = match stat {
        Ok(stat) => stat,
        Err(errno) => return Err(io("examine", path, *errno)),
    };
    let untrusted = |reason: String| {
        Err(StateError::Untrusted {
            path: path.to_owned(),
            reason,
        })
    };
    if stat.st_uid != 0 && stat.st_uid != rustix::process::geteuid().as_raw() {
        return untrusted(format!("belongs to user {}", stat.st_uid));
    }
    if stat.st_mode & 0o022 != 0 && stat.st_mode & 0o1000 == 0 {
        return untrusted(format!(
            "may be written by others (mode {:o})",
            stat.st_mode & 0o7777
        ));
    }
    Ok(())
}

/// Makes the directory of all containers.
///
/// # Errors
/// [`StateError::Io`].
pub fn make_root(root: &Path) -> Result<(), StateError> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(root)
        .map_err(|source| StateError::Io {
            operation: "make",
            path: root.to_owned(),
            source,
        })?;
    check_trust(root, &statat(CWD, root, AtFlags::empty()))
}

fn io(operation: &'static str, path: &Path, errno: Errno) -> StateError {
    StateError::Io {
        operation,
        path: path.to_owned(),
        source: errno.into(),
    }
}

/// The ids below `root`, sorted; a root that is not there has none.
///
/// # Errors
/// [`StateError::Io`].
pub fn list(root: &Path) -> Result<Vec<ContainerId>, StateError> {
    let fail = |source| StateError::Io {
        operation: "list",
        path: root.to_owned(),
        source,
    };
    let entries = match std::fs::read_dir(root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(fail(source)),
    };
    let mut ids = Vec::new();
    for entry in entries {
        let entry = entry.map_err(fail)?;
        if let Some(id) = entry
            .file_name()
            .to_str()
            .and_then(|name| ContainerId::parse(name).ok())
        {
            ids.push(id);
        }
    }
    ids.sort_by(|a, b| a.as_str().cmp(b.as_str()));
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_creators_of_one_id_get_one_directory() {
        let root = tempfile::tempdir().unwrap();
        make_root(root.path()).unwrap();
        let id = ContainerId::parse("one").unwrap();
        let first = StateDirectory::create(root.path(), &id).unwrap();
        assert!(matches!(
            StateDirectory::create(root.path(), &id),
            Err(StateError::Exists { .. })
        ));
        assert!(first.load().unwrap().is_none());
        let mut record = Record::new(&id);
        record.init = ProcessIdentity::of(i32::try_from(std::process::id()).unwrap());
        first.store(&record).unwrap();
        let read = first.load().unwrap().unwrap();
        assert_eq!(read.init, record.init);
        assert!(read.init.unwrap().is_alive());
        record.version += 1;
        first.store(&record).unwrap();
        assert!(matches!(first.load(), Err(StateError::Version { .. })));
        assert!(first.is_current());
        first.remove().unwrap();
        assert!(matches!(
            StateDirectory::open(root.path(), &id),
            Err(StateError::NotFound { .. })
        ));
        // Another container of the same id is another one.
        StateDirectory::create(root.path(), &id).unwrap();
        assert!(!first.is_current());
    }
}
