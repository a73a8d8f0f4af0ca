//! The container's root as a descriptor, and name resolution confined to it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat2};
use rustix::io::Errno;

use super::{RootfsError, io_error};

/// Rounds of openat2(2) answering EAGAIN because something was renamed meanwhile.
const MAX_RACES: usize = 128;

const CONFINED: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);
const ONE_NAME: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);
const PATH: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

/// The root directory of the container.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn resolve(
    dir: BorrowedFd<'_>,
    path: &str,
    flags: OFlags,
    mode: Mode,
    how: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    for _ in 0..MAX_RACES {
        match openat2(dir, path, flags, mode, how) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

impl Root {
    /// Takes `fd` as the root.
    #[must_use]
    pub fn new(fd: OwnedFd) -> Root {
        Root { fd }
    }

    /// The root directory of the calling process.
    ///
    /// # Errors
    /// [`RootfsError::Io`].
    pub fn of_this_process() -> Result<Root, RootfsError> {
        let fd = rustix::fs::openat(CWD, "/", PATH | OFlags::DIRECTORY, Mode::empty())
            .map_err(|e| io_error("open", "/", e))?;
        Ok(Root { fd })
    }

    /// Opens `path` with `flags`, following symbolic links inside the root only.
    ///
    /// # Errors
    /// The errno of openat2(2).
    pub fn open(&self, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        let path = if path == "/" { "." } else { path };
        resolve(
            self.as_fd(),
            path,
            flags | OFlags::CLOEXEC,
            Mode::empty(),
            CONFINED,
        )
    }

    /// Opens `path` as a handle for mounting and examining; `None` when there is nothing.
    ///
    /// # Errors
    /// [`RootfsError::Io`].
    pub fn find(&self, path: &str) -> Result<Option<OwnedFd>, RootfsError> {
        match self.open(path, PATH) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(io_error("open", path, errno)),
        }
    }

    /// Opens directory `path` where no component may be a symbolic link; `None` when it is not there.
    ///
    /// # Errors
    /// [`RootfsError::Unsafe`] when it is a link or no directory.
    pub fn find_plain_directory(&self, path: &str) -> Result<Option<OwnedFd>, RootfsError> {
        let how = CONFINED | ResolveFlags::NO_SYMLINKS;
        match resolve(
            self.as_fd(),
            path,
            PATH | OFlags::DIRECTORY,
            Mode::empty(),
            how,
        ) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::LOOP | Errno::NOTDIR) => Err(RootfsError::Unsafe {
                path: path.to_owned(),
                reason: "must be an ordinary directory, not a symbolic link or file".to_owned(),
            }),
            Err(errno) => Err(io_error("open", path, errno)),
        }
    }

    /// Opens directory `path`, making what is missing with `mode`.
    ///
    /// # Errors
    /// [`RootfsError::Io`]; a dangling link is an error, nothing is made where it points.
    pub fn make_directory(&self, path: &str, mode: u32) -> Result<OwnedFd, RootfsError> {
        match self.open(path, PATH | OFlags::DIRECTORY) {
            Ok(fd) => return Ok(fd),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(io_error("open", path, errno)),
        }
        let mut done = String::new();
        let mut current = self.fd.try_clone().map_err(|e| io_error("open", "/", e))?;
        for part in path.split('/').filter(|part| !part.is_empty()) {
            done.push('/');
            done.push_str(part);
            current = match self.open(&done, PATH | OFlags::DIRECTORY) {
                Ok(fd) => fd,
                Err(Errno::NOENT) => {
                    match mkdirat(&current, part, Mode::from_raw_mode(mode)) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(errno) => return Err(io_error("make directory", &done, errno)),
                    }
                    let flags = PATH | OFlags::DIRECTORY;
                    resolve(current.as_fd(), part, flags, Mode::empty(), ONE_NAME)
                        .map_err(|e| io_error("open", &done, e))?
                }
                Err(errno) => return Err(io_error("open", &done, errno)),
            };
        }
        Ok(current)
    }

    /// Opens the directory that holds `path` and gives the last name.
    ///
    /// # Errors
    /// [`RootfsError::Io`].
    pub fn make_parent<'a>(&self, path: &'a str) -> Result<(OwnedFd, &'a str), RootfsError> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let parent = if parent.is_empty() { "/" } else { parent };
        Ok((self.make_directory(parent, 0o755)?, name))
    }

    /// Opens `path`, making an empty file when there is nothing.
    ///
    /// # Errors
    /// [`RootfsError::Io`].
    pub fn make_file(&self, path: &str) -> Result<OwnedFd, RootfsError> {
        if let Some(found) = self.find(path)? {
            return Ok(found);
        }
        let (parent, name) = self.make_parent(path)?;
        let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        match resolve(
            parent.as_fd(),
            name,
            flags,
            Mode::from_raw_mode(0o755),
            ONE_NAME,
        ) {
            Ok(_) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(io_error("make file", path, errno)),
        }
        resolve(parent.as_fd(), name, PATH, Mode::empty(), ONE_NAME)
            .map_err(|e| io_error("open", path, e))
    }
}
