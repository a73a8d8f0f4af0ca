//! Files that are there whole or not at all.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::fs::OFlags;

/// Names of files being written end so; they are never read.
pub(crate) const TEMPORARY: &str = ".new";
static COUNTER: AtomicU64 = AtomicU64::new(0);

/// What a file must survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Survives {
    /// A killed process: the old or the new content is there.
    Kill,
    /// A power cut too.
    PowerCut,
}

/// Writes a file so that the old or the new content is there afterwards.
pub(crate) fn write(path: &Path, content: &[u8], survives: Survives) -> io::Result<()> {
    let temporary = stage(path, content, survives)?;
    fs::rename(&temporary, path).inspect_err(|_| forget(&temporary))?;
    if survives == Survives::PowerCut {
        sync_dir(path)
    } else {
        Ok(())
    }
}

/// Creates a file with its content, to survive a killed process; fails with `AlreadyExists` and
/// changes nothing when the name is taken.
pub(crate) fn create(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = stage(path, content, Survives::Kill)?;
    // A link, unlike a rename, refuses a taken name, and the file has its content already.
    let linked = fs::hard_link(&temporary, path);
    forget(&temporary);
    linked
}

/// Removes a file; a missing one is no error.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Reads at most `limit` bytes of a regular file; more is an error.
pub(crate) fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    // Without O_NONBLOCK a fifo would wait for its writer.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        ));
    }
    let mut content = Vec::new();
    file.take(limit + 1).read_to_end(&mut content)?;
    if content.len() as u64 > limit {
        let reason = format!("larger than {limit} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, reason));
    }
    Ok(content)
}

fn stage(path: &Path, content: &[u8], survives: Survives) -> io::Result<std::path::PathBuf> {
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.{number}{TEMPORARY}", std::process::id()));
    let temporary = std::path::PathBuf::from(name);
    let written = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(content)?;
        if survives == Survives::PowerCut {
            file.sync_data()
        } else {
            Ok(())
        }
    };
    written().inspect_err(|_| forget(&temporary))?;
    Ok(temporary)
}

/// A temporary file that stays behind is skipped by every reader.
fn forget(temporary: &Path) {
    let _ = fs::remove_file(temporary);
}

fn sync_dir(path: &Path) -> io::Result<()> {
    path.parent()
        .map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}
