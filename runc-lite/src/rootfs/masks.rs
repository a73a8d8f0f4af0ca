//! Hidden and read-only paths.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, fstat};

use super::devices::host_null;
use super::mounts::{attach, clone_of, make};
use super::{Root, RootfsError, io_error};
use crate::sys::{MountAttributes, mount_setattr};

const READONLY: MountAttributes = MountAttributes {
    set: MountAttributes::RDONLY,
    clear: 0,
    propagation: 0,
    userns_fd: 0,
};

/// Covers files by the null device and directories by an empty, read-only tmpfs. Paths that are not
/// there need no cover.
///
/// # Errors
/// [`RootfsError`].
pub fn mask_paths(root: &Root, paths: &[String]) -> Result<(), RootfsError> {
    refuse_links(root, paths)?;
    let mut null: Option<OwnedFd> = None;
    let mut empty: Option<OwnedFd> = None;
    for path in paths {
        let Some(target) = root.find(path)? else {
            continue;
        };
        let stat = fstat(&target).map_err(|e| io_error("examine", path, e))?;
        let cover = if FileType::from_raw_mode(stat.st_mode).is_dir() {
            // One tmpfs serves all directories: the first cover is made, the others are its clones.
            match &empty {
                Some(first) => clone_of(first.as_fd(), false)
                    .map_err(|e| io_error("clone the cover of", path, e))?,
                None => empty_directory(path)?,
            }
        } else {
            match &null {
                Some(first) => clone_of(first.as_fd(), false)
                    .map_err(|e| io_error("clone the cover of", path, e))?,
                None => null_device(path)?,
            }
        };
        attach(cover.as_fd(), target.as_fd()).map_err(|e| io_error("mask", path, e))?;
        let first = if FileType::from_raw_mode(stat.st_mode).is_dir() {
            &mut empty
        } else {
            &mut null
        };
        first.get_or_insert(cover);
    }
    Ok(())
}

/// The host's null device in a mount of its own. Read-only: it can be read and written as ever, but its owner,
/// mode and times, which are those of the host's own file, cannot be changed by the container.
fn null_device(path: &str) -> Result<OwnedFd, RootfsError> {
    let cover = clone_of(host_null()?.as_fd(), false)
        .map_err(|e| io_error("clone the cover of", path, e))?;
    let attributes = MountAttributes {
        set: MountAttributes::RDONLY | MountAttributes::NOSUID | MountAttributes::NOEXEC,
        ..MountAttributes::default()
    };
    mount_setattr(cover.as_fd(), c"", false, attributes)
        .map_err(|e| io_error("make read-only the cover of", path, e))?;
    Ok(cover)
}

/// Refuses a /proc or /sys that the image made a link: the paths below would be those of something else, and
/// the kernel's own would stay open. What is a link below them, the kernel made.
fn refuse_links(root: &Root, paths: &[String]) -> Result<(), RootfsError> {
    for top in ["/proc", "/sys"] {
        let concerns = |path: &String| path.strip_prefix(top).is_some_and(|p| p.starts_with('/'));
        if paths.iter().any(concerns) {
            root.find_plain_directory(top)?;
        }
    }
    Ok(())
}

fn empty_directory(path: &str) -> Result<OwnedFd, RootfsError> {
    let attributes = MountAttributes::RDONLY
        | MountAttributes::NOSUID
        | MountAttributes::NODEV
        | MountAttributes::NOEXEC;
    let parameters = [
        ("mode".to_owned(), Some("755".to_owned())),
        ("nr_blocks".to_owned(), Some("1".to_owned())),
        ("nr_inodes".to_owned(), Some("1".to_owned())),
    ];
    make("tmpfs", "tmpfs", &parameters, attributes)
        .map_err(|reason| io_error("make the cover of", path, std::io::Error::other(reason)))
}

/// Makes paths read-only by a mount of themselves over themselves. Paths that are not there are skipped.
///
/// # Errors
/// [`RootfsError`].
pub fn make_paths_readonly(root: &Root, paths: &[String]) -> Result<(), RootfsError> {
    refuse_links(root, paths)?;
    for path in paths {
        let Some(target) = root.find(path)? else {
            continue;
        };
        let tree =
            clone_of(target.as_fd(), true).map_err(|e| io_error("clone the mount of", path, e))?;
        mount_setattr(tree.as_fd(), c"", false, READONLY)
            .map_err(|e| io_error("make read-only", path, e))?;
        attach(tree.as_fd(), target.as_fd()).map_err(|e| io_error("make read-only", path, e))?;
    }
    Ok(())
}
