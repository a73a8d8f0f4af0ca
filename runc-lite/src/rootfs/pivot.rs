//! Into the container's root and out of the host's.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{OpenTreeFlags, UnmountFlags, open_tree, unmount};

use super::mounts::{attach, propagate};
use super::{Root, RootfsError, io_error};
use crate::plan::{Propagation, PropagationKind, RootfsPlan};
use crate::sys::{MountAttributes, mount_setattr};

/// Cuts the new mount namespace off from the host and makes the rootfs a mount of its own.
///
/// Nothing mounted later reaches the host: the namespace becomes a slave of it, or private when the
/// document asks for a private root. Binds that want more were cloned before.
///
/// # Errors
/// [`RootfsError::Io`].
pub fn enter(plan: &RootfsPlan, bundle: &Path) -> Result<Root, RootfsError> {
    let private = plan
        .propagation
        .is_some_and(|p| p.kind == PropagationKind::Private);
    let kind = if private {
        PropagationKind::Private
    } else {
        PropagationKind::Slave
    };
    propagate_host(kind)?;
    let path = bundle.join(&plan.path);
    let text = path.display().to_string();
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let place = rustix::fs::openat(CWD, &path, flags, Mode::empty())
        .map_err(|e| io_error("open the rootfs", &text, e))?;
    let clone = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(&place, "", clone).map_err(|e| io_error("clone the rootfs", &text, e))?;
    attach(tree.as_fd(), place.as_fd()).map_err(|e| io_error("mount the rootfs", &text, e))?;
    Ok(Root::new(tree))
}

fn propagate_host(kind: PropagationKind) -> Result<(), RootfsError> {
    let root = rustix::fs::openat(CWD, "/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| io_error("open", "/", e))?;
    propagate(
        root.as_fd(),
        &[Propagation {
            kind,
            recursive: true,
        }],
    )
    .map_err(|e| io_error("change the propagation of", "/", e))
}

/// Makes `root` the root directory of this mount namespace and drops the host's.
///
/// # Errors
/// [`RootfsError::Io`].
pub fn finish(root: &Root, plan: &RootfsPlan) -> Result<(), RootfsError> {
    let fail = |operation, errno: rustix::io::Errno| io_error(operation, "/", errno);
    rustix::process::fchdir(root.as_fd()).map_err(|e| fail("change directory to", e))?;
    // Old and new root on one place: the old one then lies on top and is detached from there
    // (pivot_root(2), "pivot_root(".", ".")").
    rustix::process::pivot_root(".", ".").map_err(|e| fail("pivot the root to", e))?;
    unmount(".", UnmountFlags::DETACH).map_err(|e| fail("detach the host's", e))?;
    rustix::process::chdir("/").map_err(|e| fail("change directory to", e))?;
    if let Some(propagation) = plan.propagation {
        propagate(root.as_fd(), &[propagation])
            .map_err(|e| io_error("change the propagation of", "/", e))?;
    }
    if plan.readonly {
        let readonly = MountAttributes {
            set: MountAttributes::RDONLY,
            ..MountAttributes::default()
        };
        mount_setattr(root.as_fd(), c"", false, readonly)
            .map_err(|e| io_error("make read-only", "/", e))?;
    }
    Ok(())
}
