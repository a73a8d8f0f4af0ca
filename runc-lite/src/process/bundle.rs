//! The bundle as the runtime finds it: its document and its root directory, looked at before any side effect.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, fstat, openat, statat};
use rustix::io::Errno;

use super::error::{ProcessError, io_error};
use crate::config::{Config, Process};
use crate::log::Log;
use crate::plan::{Plan, RootfsPlan};
use crate::rootfs::inside_rootfs;
use crate::spec;
use crate::state::CONFIG_FILE;

/// Bound of a document, in bytes.
const MAX_DOCUMENT: u64 = 16 << 20;

/// Reads the document of a bundle and decides everything it says.
pub(super) fn read_plan(bundle: &Path, log: &Log) -> Result<(Vec<u8>, Plan), ProcessError> {
    let path = bundle.join(CONFIG_FILE);
    let fail = |e: Errno| io_error("read", path.display().to_string(), e);
    // Non-blocking: a FIFO would be waited for, and nobody writes documents into one.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = openat(CWD, &path, flags, Mode::empty()).map_err(fail)?;
    let stat = fstat(&file).map_err(fail)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(ProcessError::NotAFile { path });
    }
    let document = read(File::from(file), &path)?;
    let mut config =
        Config::parse(&document).map_err(|source| ProcessError::Document { path, source })?;
    let rootfs = bundle.join(config.root.as_ref().map_or("", |root| &root.path));
    for mount in &mut config.mounts {
        // As runc takes it: the same place may be named as the host knows it.
        if let Some(path) = inside_rootfs(&rootfs, Path::new(&mount.destination)) {
            mount.destination = path;
        }
    }
    let mut warnings = Vec::new();
    let plan = spec::plan(config, &mut warnings)?;
    warnings.iter().for_each(|warning| log.warn(warning));
    Ok((document, plan))
}

/// Reads the document of `exec --process`, which may be a pipe.
///
/// # Errors
/// [`ProcessError::Io`], [`ProcessError::TooLarge`], [`ProcessError::Document`].
pub fn read_process(path: &Path) -> Result<Process, ProcessError> {
    let file = File::open(path).map_err(|e| io_error("read", path.display().to_string(), e))?;
    Process::parse(&read(file, path)?).map_err(|source| ProcessError::Document {
        path: path.to_owned(),
        source,
    })
}

fn read(file: File, path: &Path) -> Result<Vec<u8>, ProcessError> {
    let mut document = Vec::new();
    file.take(MAX_DOCUMENT + 1)
        .read_to_end(&mut document)
        .map_err(|e| io_error("read", path.display().to_string(), e))?;
    if document.len() as u64 > MAX_DOCUMENT {
        return Err(ProcessError::TooLarge {
            path: path.to_owned(),
            limit: MAX_DOCUMENT,
        });
    }
    Ok(document)
}

/// Makes sure that there is a directory at `root.path`, and no link in its place: whoever can change a link
/// decides which directory of the host becomes the container's.
pub(super) fn check_root(plan: &RootfsPlan, bundle: &Path) -> Result<(), ProcessError> {
    let path = bundle.join(&plan.path);
    let refuse = |reason: &str| ProcessError::Host {
        field: "root.path".to_owned(),
        value: plan.path.display().to_string(),
        reason: reason.to_owned(),
    };
    match statat(CWD, &path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Ok(()),
            FileType::Symlink => Err(refuse("is a symbolic link, not the directory itself")),
            _ => Err(refuse("is not a directory")),
        },
        Err(Errno::NOENT) => Err(refuse("does not exist")),
        Err(Errno::NOTDIR) => Err(refuse("leads through something that is no directory")),
        Err(Errno::LOOP) => Err(refuse("leads through links without end")),
        // Root of a user namespace may see more than this process does.
        Err(_) => Ok(()),
    }
}
