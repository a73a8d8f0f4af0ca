//! The container's root as a descriptor, and name resolution confined to it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, StatxFlags, fstat, fstatfs, mkdirat,
    openat2, readlinkat, statx,
};
use rustix::io::Errno;

use super::mounts::PROC_MAGIC;
use super::{RootfsError, io_error};

/// Rounds of openat2(2) answering EAGAIN because something was renamed meanwhile.
const MAX_RACES: usize = 128;

/// Symbolic links followed on one path, as path_resolution(7) bounds them.
const MAX_LINKS: usize = 40;

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
                reason: "must be mounted on ordinary directory, it is a symbolic link or file"
                    .to_owned(),
            }),
            Err(errno) => Err(io_error("open", path, errno)),
        }
    }

    /// Opens directory `path`, making what is missing with `mode`, also where a link of the image points.
    ///
    /// # Errors
    /// [`RootfsError::Io`].
    pub fn make_directory(&self, path: &str, mode: u32) -> Result<OwnedFd, RootfsError> {
        match self.open(path, PATH | OFlags::DIRECTORY) {
            Ok(fd) => Ok(fd),
            Err(Errno::NOENT) => self.make(path, Last::Directory, mode),
            Err(errno) => Err(io_error("open", path, errno)),
        }
    }

    /// Walks `path` by single names and makes what is missing. Links are followed by their text inside the
    /// root, as the kernel does it, but on to places that do not exist yet: images bring such links. They must
    /// not lead to where something would be made in a volume of the host.
    fn make(&self, path: &str, last: Last, mode: u32) -> Result<OwnedFd, RootfsError> {
        let mut ahead: Vec<String> = names_of(path);
        let mut behind: Vec<OwnedFd> = Vec::new();
        let mut links = 0;
        let root = self.fd.try_clone().map_err(|e| io_error("open", "/", e))?;
        behind.push(root);
        while let Some(name) = ahead.pop() {
            let current = &behind[behind.len() - 1];
            if name == ".." {
                // The root's parent is the root.
                if behind.len() > 1 {
                    behind.pop();
                }
                continue;
            }
            let is_last = ahead.is_empty();
            let found = match resolve_name(current, &name) {
                Err(Errno::NOENT) => {
                    if links > 0 && !self.is_of_root(current) {
                        return Err(RootfsError::Unsafe {
                            path: path.to_owned(),
                            reason: "leads by a link to a place in another mount where nothing is"
                                .to_owned(),
                        });
                    }
                    match (is_last, last) {
                        (true, Last::File) => make_empty_file(current, &name),
                        _ => mkdirat(current, name.as_str(), Mode::from_raw_mode(mode)),
                    }
                    .or_else(|e| if e == Errno::EXIST { Ok(()) } else { Err(e) })
                    .map_err(|e| io_error("make", path, e))?;
                    resolve_name(current, &name)
                }
                other => other,
            };
            let found = found.map_err(|e| io_error("open", path, e))?;
            let stat = fstat(&found).map_err(|e| io_error("examine", path, e))?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
                behind.push(found);
                continue;
            }
            links += 1;
            // Links of procfs lead where their text does not say.
            let is_magic = fstatfs(&found).is_ok_and(|s| s.f_type == PROC_MAGIC);
            if links > MAX_LINKS || is_magic {
                return Err(io_error("follow the links of", path, Errno::LOOP));
            }
            let text = readlinkat(&found, c"", Vec::new())
                .map_err(|e| io_error("read the link at", path, e))?;
            let text = text
                .to_str()
                .map_err(|_| io_error("follow the links of", path, Errno::ILSEQ))?;
            if text.starts_with('/') {
                behind.truncate(1);
            }
            ahead.extend(names_of(text));
        }
        behind
            .pop()
            .ok_or_else(|| io_error("open", path, Errno::NOENT))
    }

    /// Whether `place` lies in the mount of the root itself.
    fn is_of_root(&self, place: &OwnedFd) -> bool {
        let mount = |fd: BorrowedFd<'_>| {
            statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).map(|found| found.stx_mnt_id)
        };
        matches!((mount(self.as_fd()), mount(place.as_fd())), (Ok(root), Ok(place)) if root == place)
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
        match self.find(path)? {
            Some(found) => Ok(found),
            None => self.make(path, Last::File, 0o755),
        }
    }
}

/// What the last name of a path is to be when it is made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    Directory,
    File,
}

/// The names of a path, the first one last; `.` and nothing are no names.
fn names_of(path: &str) -> Vec<String> {
    let names = path
        .split('/')
        .filter(|name| !name.is_empty() && *name != ".");
    names.rev().map(str::to_owned).collect()
}

/// Opens one name of a directory, a link as itself.
fn resolve_name(dir: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
    let flags = PATH | OFlags::NOFOLLOW;
    resolve(dir.as_fd(), name, flags, Mode::empty(), ONE_NAME)
}

fn make_empty_file(dir: &OwnedFd, name: &str) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    resolve(
        dir.as_fd(),
        name,
        flags,
        Mode::from_raw_mode(0o755),
        ONE_NAME,
    )
    .map(|_| ())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn root(dir: &tempfile::TempDir) -> Root {
        Root::new(std::fs::File::open(dir.path()).unwrap().into())
    }

    #[test]
    fn what_a_dangling_link_names_is_made_inside_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let inside = |path: &str| dir.path().join(path);
        std::fs::create_dir(inside("etc")).unwrap();
        symlink("/tmp/foo/bar", inside("jump")).unwrap();
        symlink("/jump/baz/hosts", inside("etc/hosts")).unwrap();
        symlink("../../../../outside/x", inside("etc/up")).unwrap();
        let root = root(&dir);
        root.make_file("/etc/hosts").unwrap();
        assert!(inside("tmp/foo/bar/baz/hosts").is_file());
        root.make_directory("/etc/up/below", 0o755).unwrap();
        assert!(inside("outside/x/below").is_dir());
        // Again, now that it is there.
        root.make_file("/etc/hosts").unwrap();
        root.make_directory("/jump/more", 0o700).unwrap();
        assert!(inside("tmp/foo/bar/more").is_dir());
    }

    #[test]
    fn links_without_end_or_through_files_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let inside = |path: &str| dir.path().join(path);
        symlink("/b/x", inside("a")).unwrap();
        symlink("/a", inside("b")).unwrap();
        std::fs::write(inside("file"), "").unwrap();
        let root = root(&dir);
        assert!(root.make_directory("/a/y", 0o755).is_err());
        assert!(root.make_directory("/file/y", 0o755).is_err());
        assert!(root.make_file("/file/y").is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
    }
}
