//! Setting and copying owner, permissions, attributes and times, always by descriptor or by a
//! name whose last component is not followed.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat,
    fchmod, fchown, fgetxattr, flistxattr, fsetxattr, fstat, futimens, getxattr, listxattr, openat,
    setxattr, utimensat,
};
use rustix::io::Errno;

use super::entry::{Metadata, keeps_xattr};
use super::pax::Time;

/// The attribute that makes a directory hide lower ones (kernel documentation, overlayfs).
pub(crate) const OPAQUE: &str = "trusted.overlay.opaque";
/// Largest list of attribute names the kernel gives (`XATTR_LIST_MAX`).
const XATTR_LIST_MAX: usize = 65_536;
/// Largest attribute value (`XATTR_SIZE_MAX`).
const XATTR_SIZE_MAX: usize = 65_536;

/// A file by its descriptor.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Node<'a> {
    /// A file or directory, open.
    Open(BorrowedFd<'a>),
    /// Anything, by a descriptor that only names it (`O_PATH`).
    Unopenable(BorrowedFd<'a>),
}

/// Sets extended attributes: some need a privilege that the one who unpacks may not have.
pub(crate) trait SetAttribute: std::fmt::Debug {
    fn set(&self, node: Node<'_>, name: &[u8], value: &[u8]) -> rustix::io::Result<()>;
}

/// Sets attributes with the privileges of this process.
#[derive(Debug)]
pub(crate) struct Direct;

impl SetAttribute for Direct {
    fn set(&self, node: Node<'_>, name: &[u8], value: &[u8]) -> rustix::io::Result<()> {
        match node {
            Node::Open(fd) => fsetxattr(fd, name, value, XattrFlags::empty()),
            Node::Unopenable(fd) => setxattr(&*magic_path(fd), name, value, XattrFlags::empty()),
        }
    }
}

/// Applies metadata to an open file or directory. The time of a directory is set later, when
/// nothing is added to it any more.
pub(crate) fn apply_open(fd: impl AsFd, metadata: &Metadata, with_time: bool) -> io::Result<()> {
    apply_open_by(&Direct, fd, metadata, with_time)
}

/// As [`apply_open`], with somebody else to set attributes.
pub(crate) fn apply_open_by(
    attributes: &dyn SetAttribute,
    fd: impl AsFd,
    metadata: &Metadata,
    with_time: bool,
) -> io::Result<()> {
    let fd = fd.as_fd();
    // Order: chown clears setuid bits and file capabilities, so they come after it.
    fchown(
        fd,
        Some(Uid::from_raw(metadata.uid)),
        Some(Gid::from_raw(metadata.gid)),
    )?;
    fchmod(fd, Mode::from_raw_mode(metadata.mode))?;
    for (name, value) in &metadata.xattrs {
        tolerate_missing_acl(name, attributes.set(Node::Open(fd), name, value))?;
    }
    if with_time {
        futimens(fd, &timestamps(metadata.mtime))?;
    }
    Ok(())
}

/// Applies metadata to a symbolic link, device or fifo that was made a moment ago; none of them may be opened.
pub(crate) fn apply_unopenable(
    parent: impl AsFd,
    name: &[u8],
    metadata: &Metadata,
    is_symlink: bool,
) -> io::Result<()> {
    apply_unopenable_by(&Direct, parent, name, metadata, is_symlink)
}

/// As [`apply_unopenable`], with somebody else to set attributes.
pub(crate) fn apply_unopenable_by(
    attributes: &dyn SetAttribute,
    parent: impl AsFd,
    name: &[u8],
    metadata: &Metadata,
    is_symlink: bool,
) -> io::Result<()> {
    let parent = parent.as_fd();
    let (uid, gid) = (Uid::from_raw(metadata.uid), Gid::from_raw(metadata.gid));
    chownat(
        parent,
        name,
        Some(uid),
        Some(gid),
        AtFlags::SYMLINK_NOFOLLOW,
    )?;
    if !is_symlink {
        // fchmodat(2) follows a link, but the name is a node of this process's making, in a directory that
        // nobody else can enter. What would not follow needs procfs, which an unpack process has not, or
        // Linux 6.6.
        let mode = Mode::from_raw_mode(metadata.mode);
        chmodat(parent, name, mode, AtFlags::empty())?;
    }
    if !metadata.xattrs.is_empty() {
        // The descriptor names this very inode; going through it cannot reach another.
        let node = openat(
            parent,
            name,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        for (name, value) in &metadata.xattrs {
            let set = attributes.set(Node::Unopenable(node.as_fd()), name, value);
            tolerate_missing_acl(name, set)?;
        }
    }
    let times = timestamps(metadata.mtime);
    Ok(utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Returns the name under which procfs shows a descriptor of this process.
fn magic_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// A file system mounted without access control lists loses them; everything else has to hold.
fn tolerate_missing_acl(name: &[u8], set: rustix::io::Result<()>) -> io::Result<()> {
    match set {
        Err(Errno::OPNOTSUPP) if name.starts_with(b"system.posix_acl_") => Ok(()),
        other => Ok(other?),
    }
}

/// Sets the modification time of an open directory.
pub(crate) fn set_time(fd: impl AsFd, mtime: Time) -> io::Result<()> {
    Ok(futimens(fd, &timestamps(mtime))?)
}

/// Runs `change` on a directory and gives the directory its old times back.
pub(crate) fn keeping_times<T>(
    dir: &OwnedFd,
    change: impl FnOnce(&OwnedFd) -> io::Result<T>,
) -> io::Result<T> {
    let before = time_of(&fstat(dir)?);
    let result = change(dir)?;
    futimens(dir, &timestamps(before))?;
    Ok(result)
}

fn timestamps(mtime: Time) -> Timestamps {
    let time = Timespec {
        tv_sec: mtime.seconds,
        tv_nsec: i64::from(mtime.nanoseconds),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

fn time_of(stat: &Stat) -> Time {
    Time {
        seconds: stat.st_mtime,
        nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
    }
}

/// Marks a directory as hiding what lower layers have below it.
pub(crate) fn set_opaque(dir: impl AsFd) -> io::Result<()> {
    set_opaque_by(&Direct, dir)
}

/// As [`set_opaque`], with somebody else to set attributes.
pub(crate) fn set_opaque_by(attributes: &dyn SetAttribute, dir: impl AsFd) -> io::Result<()> {
    Ok(attributes.set(Node::Open(dir.as_fd()), OPAQUE.as_bytes(), b"y")?)
}

/// Tells whether a directory hides what lower layers have below it.
pub(crate) fn is_opaque(dir: impl AsFd) -> io::Result<bool> {
    let mut value = [0_u8; 8];
    match fgetxattr(dir, OPAQUE, &mut value) {
        Ok(length) => Ok(length == 1 && value[0] == b'y'),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
        // Longer than what is ever written there.
        Err(Errno::RANGE) => Ok(false),
        Err(other) => Err(other.into()),
    }
}

/// Reads the metadata of an open file or directory, without attributes of overlayfs.
pub(crate) fn read_open(fd: impl AsFd) -> io::Result<Metadata> {
    let fd = fd.as_fd();
    let mut xattrs = Vec::new();
    let mut list = vec![0; XATTR_LIST_MAX];
    let length = no_xattrs(flistxattr(fd, &mut list))?;
    for name in kept_names(&list[..length]) {
        let mut value = vec![0; XATTR_SIZE_MAX];
        let length = fgetxattr(fd, name, &mut value)?;
        value.truncate(length);
        xattrs.push((name.to_vec(), value));
    }
    Ok(from_stat(&fstat(fd)?, xattrs))
}

/// Reads the metadata of a symbolic link, device or fifo through its `O_PATH` descriptor.
pub(crate) fn read_unopenable(node: &OwnedFd) -> io::Result<Metadata> {
    let magic = magic_path(node.as_fd());
    let mut xattrs = Vec::new();
    let mut list = vec![0; XATTR_LIST_MAX];
    let length = no_xattrs(listxattr(&*magic, &mut list))?;
    for name in kept_names(&list[..length]) {
        let mut value = vec![0; XATTR_SIZE_MAX];
        let length = getxattr(&*magic, name, &mut value)?;
        value.truncate(length);
        xattrs.push((name.to_vec(), value));
    }
    Ok(from_stat(&fstat(node)?, xattrs))
}

/// Reads every attribute of a file that layers and overlayfs set, sorted by name. What the machine's own
/// policy adds by itself is left out.
pub(crate) fn all_xattrs(node: &OwnedFd) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    const OF_THE_MACHINE: [&[u8]; 3] = [b"security.selinux", b"security.ima", b"security.evm"];
    let magic = magic_path(node.as_fd());
    let mut list = vec![0; XATTR_LIST_MAX];
    let length = no_xattrs(listxattr(&*magic, &mut list))?;
    let mut xattrs = Vec::new();
    for name in list[..length].split(|&b| b == 0) {
        if name.is_empty() || OF_THE_MACHINE.contains(&name) {
            continue;
        }
        let mut value = vec![0; XATTR_SIZE_MAX];
        let length = getxattr(&*magic, name, &mut value)?;
        value.truncate(length);
        xattrs.push((name.to_vec(), value));
    }
    xattrs.sort();
    Ok(xattrs)
}

fn no_xattrs(listed: rustix::io::Result<usize>) -> io::Result<usize> {
    match listed {
        Err(Errno::OPNOTSUPP) => Ok(0),
        other => Ok(other?),
    }
}

fn kept_names(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|&b| b == 0)
        .filter(|name| !name.is_empty() && keeps_xattr(name, true))
}

fn from_stat(stat: &Stat, xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Metadata {
    Metadata {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: time_of(stat),
        xattrs,
    }
}
