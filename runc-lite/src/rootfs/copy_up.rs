//! tmpcopyup: fills a new tmpfs with what the directory below it has.
//!
//! The files are the image's and hostile: everything is opened below a descriptor without following links or
//! crossing into other mounts, and how deep it goes is bounded. How much it is, the tmpfs bounds by its size.

use std::ffi::CStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid,
    XattrFlags, chmodat, chownat, fchmod, fgetxattr, flistxattr, fsetxattr, fstat, mkdirat,
    mknodat, openat2, readlinkat, statat, symlinkat, utimensat,
};
use rustix::io::Errno;

/// Directories within directories; each level holds two descriptors.
const MAX_DEPTH: usize = 128;
/// Bound of the names and of one value of extended attributes, those of xattr(7).
const MAX_XATTR: usize = 64 << 10;

const INSIDE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_XDEV);

/// Copies the content, owner and times of directory `from` to directory `to`, which is empty.
///
/// # Errors
/// A text that names the step and the file.
pub(super) fn copy_up(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), String> {
    let from = open(from, c".", OFlags::DIRECTORY).map_err(|e| format!("open: {e}"))?;
    let to = open(to, c".", OFlags::DIRECTORY).map_err(|e| format!("open the tmpfs: {e}"))?;
    copy_directory(&from, &to, MAX_DEPTH)?;
    let stat = fstat(&from).map_err(|e| format!("examine: {e}"))?;
    finish(to.as_fd(), c".", &stat).map_err(|e| format!("set owner and times: {e}"))
}

fn open(dir: BorrowedFd<'_>, name: &CStr, flags: OFlags) -> Result<OwnedFd, Errno> {
    // Non-blocking: what was a file when it was looked at may be a FIFO now.
    let flags = flags | OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    openat2(dir, name, flags, Mode::empty(), INSIDE)
}

fn copy_directory(from: &OwnedFd, to: &OwnedFd, depth: usize) -> Result<(), String> {
    if depth == 0 {
        return Err(format!(
            "more than {MAX_DEPTH} directories within each other"
        ));
    }
    let entries = Dir::read_from(from).map_err(|e| format!("read: {e}"))?;
    for entry in entries {
        let entry = entry.map_err(|e| format!("read: {e}"))?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        copy_entry(from, to, name, depth)
            .map_err(|reason| format!("{}: {reason}", name.to_string_lossy()))?;
    }
    Ok(())
}

fn copy_entry(from: &OwnedFd, to: &OwnedFd, name: &CStr, depth: usize) -> Result<(), String> {
    let told = |what: &'static str| move |e: Errno| format!("{what}: {e}");
    let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW).map_err(told("examine"))?;
    let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
    let kind = FileType::from_raw_mode(stat.st_mode);
    match kind {
        FileType::Directory => {
            mkdirat(to, name, Mode::RWXU).map_err(told("make directory"))?;
            match open(from.as_fd(), name, OFlags::DIRECTORY) {
                Ok(below) => {
                    let made = open(to.as_fd(), name, OFlags::DIRECTORY).map_err(told("open"))?;
                    copy_directory(&below, &made, depth - 1)?;
                    copy_xattrs(&below, &made);
                }
                // Something is mounted there: the place for it is enough.
                Err(Errno::XDEV) => {}
                Err(errno) => return Err(told("open")(errno)),
            }
        }
        FileType::RegularFile => {
            let source = open(from.as_fd(), name, OFlags::empty()).map_err(told("open"))?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let made = openat2(to, name, flags, Mode::RUSR | Mode::WUSR, INSIDE)
                .map_err(told("make file"))?;
            let (mut source, mut made) = (File::from(source), File::from(made));
            std::io::copy(&mut source, &mut made).map_err(|e| format!("copy: {e}"))?;
            copy_xattrs(&source, &made);
        }
        FileType::Symlink => {
            let target = readlinkat(from, name, Vec::new()).map_err(told("read link"))?;
            symlinkat(target.as_c_str(), to, name).map_err(told("make link"))?;
        }
        FileType::Fifo | FileType::Socket | FileType::CharacterDevice | FileType::BlockDevice => {
            mknodat(to, name, kind, mode, stat.st_rdev).map_err(told("make node"))?;
        }
        FileType::Unknown => return Err("is of no known type".to_owned()),
    }
    finish(to.as_fd(), name, &stat).map_err(told("set owner and times"))
}

/// Owner, mode and times, in this order: a change of owner clears mode bits and sets times.
fn finish(dir: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> Result<(), Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    chownat(dir, name, Some(uid), Some(gid), flags)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind != FileType::Symlink {
        let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
        if name == c"." {
            fchmod(dir, mode)?;
        } else {
            // The tmpfs is attached nowhere yet: nobody can have put a link there.
            chmodat(dir, name, mode, AtFlags::empty())?;
        }
    }
    let time = |seconds, nanoseconds: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: i64::try_from(nanoseconds).unwrap_or_default(),
    };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    };
    utimensat(dir, name, &times, flags)
}

/// Extended attributes as far as a tmpfs takes them: capabilities of files, POSIX access lists, user's.
fn copy_xattrs(from: impl AsFd, to: impl AsFd) {
    let mut names = vec![0; MAX_XATTR];
    let Ok(length) = flistxattr(&from, names.as_mut_slice()) else {
        return;
    };
    let mut value = vec![0; if length == 0 { 0 } else { MAX_XATTR }];
    for name in names[..length].split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else {
            continue;
        };
        if let Ok(size) = fgetxattr(&from, name, value.as_mut_slice()) {
            // Ignored: a tmpfs may take fewer kinds than the image's file system.
            let _ = fsetxattr(&to, name, &value[..size], XattrFlags::empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_tree_is_copied_with_modes_links_and_times() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let path = |name: &str| from.path().join(name);
        std::fs::create_dir_all(path("a/b")).unwrap();
        std::fs::write(path("a/b/file"), "content").unwrap();
        std::fs::set_permissions(path("a/b/file"), PermissionsExt::from_mode(0o4751)).unwrap();
        std::fs::set_permissions(path("a/b"), PermissionsExt::from_mode(0o1777)).unwrap();
        std::fs::set_permissions(from.path(), PermissionsExt::from_mode(0o750)).unwrap();
        symlink("/no/such/place", path("link")).unwrap();
        let fifo = path("fifo");
        mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, Mode::RUSR, 0).unwrap();
        File::open(path("a/b/file"))
            .unwrap()
            .set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000))
            .unwrap();
        let open = |dir: &tempfile::TempDir| File::open(dir.path()).unwrap();
        copy_up(open(&from).as_fd(), open(&to).as_fd()).unwrap();
        let found = |name: &str| to.path().join(name).symlink_metadata().unwrap();
        assert_eq!(
            std::fs::read_to_string(to.path().join("a/b/file")).unwrap(),
            "content"
        );
        assert_eq!(found("a/b/file").mode() & 0o7777, 0o4751);
        assert_eq!(found("a/b/file").mtime(), 1_000);
        assert_eq!(found("a/b").mode() & 0o7777, 0o1777);
        assert_eq!(found("").mode() & 0o7777, 0o750);
        assert_eq!(
            std::fs::read_link(to.path().join("link")).unwrap().to_str(),
            Some("/no/such/place")
        );
        assert_eq!(found("fifo").mode() & 0o170_000, 0o010_000);
    }

    #[test]
    fn what_goes_too_deep_is_refused() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::create_dir_all(from.path().join("d/".repeat(MAX_DEPTH + 1))).unwrap();
        let open = |dir: &tempfile::TempDir| File::open(dir.path()).unwrap();
        let text = copy_up(open(&from).as_fd(), open(&to).as_fd()).unwrap_err();
        assert!(text.contains("more than 128 directories"), "{text}");
    }
}
