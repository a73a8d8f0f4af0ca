//! Overlays whose lower directories are seen with other owners: each is cloned, its ids are mapped, and the overlay
//! is made of the clones. The upper directory is the container's own and belongs to its users already.
//!
//! Overlayfs takes directories only of mounts that are attached in the mount namespace of the one who mounts. So
//! the clones are attached, one on the other, at the place of the overlay, until the overlay has them.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, UnmountFlags, open_tree};

use super::{Mount, MountError, Overlay, attach, bind, detached_overlay, open_target};
use crate::error::PathError;
use crate::sys::map_ids;

/// As [`super::mount_all`] for one mount at `target`, with the ids of the layers mapped as the user namespace
/// `ids` maps them. Needs the mount API with `lowerdir+` (Linux 6.5). A bind mount is made as it is: what it shows
/// belongs to the container alone.
///
/// # Errors
/// As [`super::mount_all`], and `Internal` where the kernel or the file system cannot map ids.
pub fn mount_mapped(mount: &Mount, target: &Path, ids: BorrowedFd<'_>) -> Result<(), MountError> {
    let (place, path) = open_target(mount, target)?;
    if mount.kind == "bind" {
        return bind(mount, &place, &path);
    }
    let options = Overlay::parse(mount)?;
    options.forget_volatile();
    let overlay = {
        let clones = Clones::attach(&options.lowers, &place, ids)?;
        let names = clones.names();
        let mapped = Overlay {
            lowers: names.iter().map(String::as_str).collect(),
            ..options
        };
        detached_overlay(&mapped)
    };
    let failed = |error: Errno| PathError::new("mount overlay on", path.display(), error);
    let overlay = overlay.map_err(failed)?;
    Ok(attach(&overlay, &place).map_err(failed)?)
}

/// Clones with mapped ids, attached until they are dropped.
struct Clones(Vec<OwnedFd>);

impl Clones {
    fn attach(dirs: &[&str], place: &OwnedFd, ids: BorrowedFd<'_>) -> Result<Self, MountError> {
        let mut clones = Self(Vec::new());
        for dir in dirs {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            let clone = open_tree(CWD, *dir, flags)
                .map_err(|error| PathError::new("clone the mount of", dir, error))?;
            map_ids(clone.as_fd(), ids)
                .map_err(|error| PathError::new("map the ids of", dir, error))?;
            attach(&clone, place)
                .map_err(|error| PathError::new("attach the clone of", dir, error))?;
            clones.0.push(clone);
        }
        Ok(clones)
    }

    fn names(&self) -> Vec<String> {
        let name = |clone: &OwnedFd| format!("/proc/self/fd/{}", clone.as_raw_fd());
        self.0.iter().map(name).collect()
    }
}

impl Drop for Clones {
    fn drop(&mut self) {
        // Order: the last one lies on the others.
        for name in self.names().iter().rev() {
            // Ignored: what stays is taken off with the overlay, when the container is released.
            let _ = rustix::mount::unmount(name.as_str(), UnmountFlags::DETACH);
        }
    }
}
