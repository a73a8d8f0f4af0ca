//! Durable files: written beside, synced, renamed over, directory synced.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::domain::failure::Failure;

/// Replaces `path` by `bytes` (mode 0600) so that after a crash it has the old or the new content.
///
/// # Errors
/// Whatever the file system says, with the path; nothing of the attempt stays.
pub fn atomic_write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    // A name of its own for each writer: two at once must not mix their bytes.
    static WRITERS: AtomicU64 = AtomicU64::new(0);
    let writer = WRITERS.fetch_add(1, Ordering::Relaxed);
    let partial = path.with_extension(format!("{writer}.partial"));
    let write = || -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&partial, path)?;
        sync_parent(path)
    };
    write().map_err(|error| {
        // Ignored: the failure to write is what matters.
        let _cleanup = fs::remove_file(&partial);
        Failure::io(format!("write {}", path.display()), &error)
    })
}

/// Removes a file durably; none is success.
///
/// # Errors
/// Whatever the file system says, with the path.
pub fn remove_file(path: &Path) -> Result<(), Failure> {
    match fs::remove_file(path) {
        Ok(()) => sync_parent(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
    .map_err(|error| Failure::io(format!("remove {}", path.display()), &error))
}

/// Makes a directory (mode 0700) and its parents.
///
/// # Errors
/// Whatever the file system says, with the path.
pub fn make_private_dir(path: &Path) -> Result<(), Failure> {
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path);
    made.map_err(|error| Failure::io(format!("make the directory {}", path.display()), &error))
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}
