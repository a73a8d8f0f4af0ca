//! Removing and measuring whole trees that a hostile image or container made: any depth, any
//! number of names, a constant number of descriptors, no symbolic link followed.

use std::collections::HashSet;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, fstat, openat, statat, unlinkat};
use rustix::io::Errno;

use crate::confined::{kind_of, open_dir};

/// Space and files taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Allocated bytes, as `du` counts them.
    pub bytes: u64,
    /// Files, directories and other nodes; a file with several names counts once.
    pub inodes: u64,
}

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.inodes = self.inodes.saturating_add(other.inodes);
    }
}

/// One directory of the way from the root of a walk to where it stands.
struct Level {
    /// Name in the directory above; empty for the root.
    name: CString,
    /// Device and inode, to notice when `..` leads elsewhere.
    identity: (u64, u64),
    /// Directories below it that are still to be visited.
    pending: Vec<CString>,
}

/// Removes `name` in `dir` with everything below it. A missing name is not an error.
///
/// Returns whether something was there.
pub(crate) fn remove_tree(dir: impl AsFd, name: &[u8]) -> io::Result<bool> {
    let dir = dir.as_fd();
    match unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) => return Ok(true),
        Err(Errno::NOENT) => return Ok(false),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(other) => return Err(other.into()),
    }
    let root = open_dir(dir, name)?;
    walk(root, |at, child, stat| {
        if kind_of(stat) != FileType::Directory {
            return ignore_missing(unlinkat(at, child, AtFlags::empty())).map(|()| Visit::Leave);
        }
        match unlinkat(at, child, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(Visit::Leave),
            Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(Visit::EnterThenRemove),
            Err(other) => Err(other.into()),
        }
    })?;
    ignore_missing(unlinkat(dir, name, AtFlags::REMOVEDIR))?;
    Ok(true)
}

/// Measures the tree of which `root` is the top directory.
pub(crate) fn measure(root: OwnedFd) -> io::Result<Usage> {
    let mut usage = Usage::default();
    let mut linked: HashSet<(u64, u64)> = HashSet::new();
    let mut add = |stat: &rustix::fs::Stat| {
        let counted_once = kind_of(stat) == FileType::Directory || stat.st_nlink <= 1;
        if counted_once || linked.insert((stat.st_dev, stat.st_ino)) {
            usage += Usage {
                bytes: allocated(stat),
                inodes: 1,
            };
        }
    };
    add(&fstat(&root)?);
    walk(root, |_, _, stat| {
        add(stat);
        Ok(if kind_of(stat) == FileType::Directory {
            Visit::Enter
        } else {
            Visit::Leave
        })
    })?;
    Ok(usage)
}

/// Returns the bytes a file occupies; `st_blocks` counts units of 512 bytes (stat(3type)).
pub(crate) fn allocated(stat: &rustix::fs::Stat) -> u64 {
    u64::try_from(stat.st_blocks)
        .unwrap_or(0)
        .saturating_mul(512)
}

/// What a walk does with an entry after the callback saw it.
enum Visit {
    Leave,
    Enter,
    EnterThenRemove,
}

/// Visits every entry below `root`, parents before children. Holds two descriptors at a time:
/// the way back is `..`, checked, and a path from the top when a live container moved things.
fn walk(
    root: OwnedFd,
    mut visit: impl FnMut(BorrowedFd<'_>, &CString, &rustix::fs::Stat) -> io::Result<Visit>,
) -> io::Result<()> {
    let mut remove_on_leave = false;
    let mut at = root.try_clone()?;
    let mut levels: Vec<Level> = Vec::new();
    let mut entering: Option<CString> = Some(CString::default());
    loop {
        if let Some(name) = entering.take() {
            let stat = fstat(&at)?;
            let mut level = Level {
                name,
                identity: (stat.st_dev, stat.st_ino),
                pending: Vec::new(),
            };
            for entry in Dir::read_from(&at)? {
                let entry = entry?;
                let child = entry.file_name();
                if matches!(child.to_bytes(), b"." | b"..") {
                    continue;
                }
                let stat = match statat(&at, child, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => stat,
                    Err(Errno::NOENT) => continue,
                    Err(other) => return Err(other.into()),
                };
                let child = child.to_owned();
                match visit(at.as_fd(), &child, &stat)? {
                    Visit::Leave => {}
                    Visit::Enter => level.pending.push(child),
                    Visit::EnterThenRemove => {
                        remove_on_leave = true;
                        level.pending.push(child);
                    }
                }
            }
            levels.push(level);
        }
        let Some(level) = levels.last_mut() else {
            return Ok(());
        };
        if let Some(name) = level.pending.pop() {
            match open_dir(&at, name.to_bytes()) {
                Ok(child) => {
                    at = child;
                    entering = Some(name);
                }
                // Gone or replaced by a live container in the meantime.
                Err(error) if moved_away(&error) => {}
                Err(error) => return Err(error),
            }
            continue;
        }
        let done = levels.pop().expect("the level was just looked at");
        if levels.is_empty() {
            return Ok(());
        }
        at = ascend(&root, at, &mut levels)?;
        if remove_on_leave {
            ignore_missing(unlinkat(&at, &done.name, AtFlags::REMOVEDIR))?;
        }
    }
}

/// Goes one directory up. Levels that no longer exist are dropped.
fn ascend(root: &OwnedFd, at: OwnedFd, levels: &mut Vec<Level>) -> io::Result<OwnedFd> {
    let wanted = levels
        .last()
        .expect("the root level is never left")
        .identity;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    if let Ok(up) = openat(&at, "..", flags, Mode::empty())
        && identity(&up)? == wanted
    {
        return Ok(up);
    }
    drop(at);
    let mut open = root.try_clone()?;
    let mut good = 1;
    for level in &levels[1..] {
        match open_dir(&open, level.name.to_bytes()) {
            Ok(next) if identity(&next)? == level.identity => {
                open = next;
                good += 1;
            }
            _ => break,
        }
    }
    levels.truncate(good);
    Ok(open)
}

fn identity(fd: &OwnedFd) -> io::Result<(u64, u64)> {
    let stat = fstat(fd)?;
    Ok((stat.st_dev, stat.st_ino))
}

fn moved_away(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV)
    )
}

fn ignore_missing(result: rustix::io::Result<()>) -> io::Result<()> {
    match result {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(other) => Err(other.into()),
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::mkdirat;

    use super::*;

    #[test]
    fn removes_and_measures_a_tree_deeper_than_the_descriptor_limit() {
        let tmp = tempfile::tempdir().unwrap();
        let top = open_dir(rustix::fs::CWD, b".").map(|_| ()).and_then(|()| {
            Ok(openat(
                rustix::fs::CWD,
                tmp.path(),
                OFlags::RDONLY | OFlags::DIRECTORY,
                Mode::empty(),
            )?)
        });
        let top = top.unwrap();
        mkdirat(&top, "deep", Mode::from_raw_mode(0o700)).unwrap();
        let mut at = open_dir(&top, b"deep").unwrap();
        for _ in 0..3000 {
            mkdirat(&at, "d", Mode::from_raw_mode(0o700)).unwrap();
            at = open_dir(&at, b"d").unwrap();
        }
        assert_eq!(
            measure(open_dir(&top, b"deep").unwrap()).unwrap().inodes,
            3001
        );
        assert!(remove_tree(&top, b"deep").unwrap());
        assert!(!remove_tree(&top, b"deep").unwrap());
    }

    #[test]
    fn hard_links_count_once_and_links_are_not_followed() {
        let tmp = tempfile::tempdir().unwrap();
        let canary = tmp.path().join("canary");
        std::fs::create_dir_all(canary.join("kept")).unwrap();
        let tree = tmp.path().join("tree");
        std::fs::create_dir_all(tree.join("sub")).unwrap();
        std::fs::write(tree.join("sub/f"), vec![1; 10_000]).unwrap();
        std::fs::hard_link(tree.join("sub/f"), tree.join("g")).unwrap();
        std::os::unix::fs::symlink(&canary, tree.join("link")).unwrap();
        let top = openat(
            rustix::fs::CWD,
            tmp.path(),
            OFlags::RDONLY | OFlags::DIRECTORY,
            Mode::empty(),
        )
        .unwrap();
        let usage = measure(open_dir(&top, b"tree").unwrap()).unwrap();
        assert_eq!(usage.inodes, 4);
        assert!(usage.bytes >= 12_288, "{}", usage.bytes);
        remove_tree(&top, b"tree").unwrap();
        assert!(canary.join("kept").exists());
        assert!(!tree.exists());
    }
}
