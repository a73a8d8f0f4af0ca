//! Opening things below a directory descriptor so that no name from an image or a container can
//! lead out of it. Nothing here takes or keeps a joined path of the host.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat, openat2};
use rustix::io::Errno;

/// How often a resolution that raced with a rename elsewhere on the machine is tried again
/// (openat2(2), EAGAIN).
const AGAIN_LIMIT: u32 = 32;

/// Opens `path` below `dir`; a symbolic link in any component, a mount point or a way out is an
/// error. An empty path opens `dir` itself.
pub(crate) fn open_beneath(dir: impl AsFd, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
    let path: &[u8] = if path.is_empty() { b"." } else { path };
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mut tries = 0;
    loop {
        match openat2(dir.as_fd(), path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN) if tries < AGAIN_LIMIT => tries += 1,
            other => return Ok(other?),
        }
    }
}

/// Opens the directory `path` below `dir` for reading, listing and metadata.
pub(crate) fn open_dir(dir: impl AsFd, path: &[u8]) -> io::Result<OwnedFd> {
    open_beneath(dir, path, OFlags::RDONLY | OFlags::DIRECTORY)
}

/// Opens the directory `path` below `dir` only to use it as a starting point.
pub(crate) fn open_dir_path(dir: impl AsFd, path: &[u8]) -> io::Result<OwnedFd> {
    open_beneath(dir, path, OFlags::PATH | OFlags::DIRECTORY)
}

/// Returns the type of a file.
pub(crate) fn kind_of(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Tells whether a file is an overlay whiteout: a character device 0:0 (kernel documentation,
/// overlayfs, "whiteouts and opaque directories").
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    kind_of(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}
