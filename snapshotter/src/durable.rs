//! The one way a file of the store comes into being: written aside, synced, renamed, directory synced.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, Mode, OFlags, fsync, openat, renameat, unlinkat};

/// Names that start so are unfinished writes; opening the store deletes them.
pub(crate) const TMP_PREFIX: &str = ".tmp-";

/// Writes `bytes` to `name` in `dir` so that after a power cut the name has the old content or the
/// new one, never a part.
pub(crate) fn atomic_write(dir: impl AsFd, name: &str, bytes: &[u8]) -> io::Result<()> {
    atomic_write_unsynced(dir.as_fd(), name, bytes)?;
    sync_dir(dir)
}

/// As [`atomic_write`], but leaves the sync of the directory to the caller, who writes several.
pub(crate) fn atomic_write_unsynced(dir: impl AsFd, name: &str, bytes: &[u8]) -> io::Result<()> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let dir = dir.as_fd();
    let tmp = format!(
        "{TMP_PREFIX}{}-{name}",
        COUNTER.fetch_add(1, Ordering::Relaxed)
    );
    let written = create_new(dir, &tmp).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    let renamed = written.and_then(|()| Ok(renameat(dir, tmp.as_str(), dir, name)?));
    if renamed.is_err() {
        // The first error is the one to tell; what stays is swept when the store is opened.
        let _ = unlinkat(dir, tmp.as_str(), AtFlags::empty());
    }
    renamed
}

/// Makes names created, renamed or removed in `dir` durable.
pub(crate) fn sync_dir(dir: impl AsFd) -> io::Result<()> {
    // An O_PATH descriptor cannot be synced, so the directory is opened for reading.
    let readable: OwnedFd = openat(
        dir,
        ".",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    Ok(fsync(readable)?)
}

fn create_new(dir: impl AsFd, name: &str) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(File::from(openat(
        dir,
        name,
        flags,
        Mode::from_raw_mode(0o600),
    )?))
}
