//! Into the container's root and out of the host's.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use super::mounts::{attach, clone_of, propagate};
use super::{Root, RootfsError, Sources, io_error};
use crate::plan::{Propagation, PropagationKind, RootfsPlan};
use crate::sys::{MountAttributes, mount_setattr};

/// Cuts the new mount namespace off from the host and makes the rootfs a mount of its own.
///
/// Nothing mounted later reaches the host: the namespace becomes a slave of it, or private when the
/// document asks for a private root. Binds that want more were cloned before.
///
/// # Errors
/// [`RootfsError::Io`].
pub fn enter(
    plan: &RootfsPlan,
    bundle: &Path,
    sources: [&Sources; 2],
) -> Result<Root, RootfsError> {
    propagate_host(cut_off(plan))?;
    let path = bundle.join(&plan.path);
    let text = path.display().to_string();
    let place = open_rootfs(&path);
    if let Some(tree) = sources.into_iter().find_map(Sources::rootfs) {
        let place = match place {
            // A directory on the way keeps the container's users out. The root serves as well: what lies
            // on it is seen from the new root only.
            Err(Errno::ACCESS) => open_rootfs(Path::new("/")),
            other => other,
        };
        let place = place.map_err(|e| io_error("open the rootfs", &text, e))?;
        attach(tree, place.as_fd()).map_err(|e| io_error("mount the rootfs", &text, e))?;
        let tree = tree.try_clone_to_owned();
        return Ok(Root::new(
            tree.map_err(|e| io_error("open the rootfs", &text, e))?,
        ));
    }
    let place = place.map_err(|e| io_error("open the rootfs", &text, e))?;
    let tree = clone_of(place.as_fd(), true).map_err(|e| io_error("clone the rootfs", &text, e))?;
    attach(tree.as_fd(), place.as_fd()).map_err(|e| io_error("mount the rootfs", &text, e))?;
    Ok(Root::new(tree))
}

/// Opens the container's root on the host. That it is no link was checked before anything was made; here it
/// holds for what is used.
pub(super) fn open_rootfs(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty())
}

/// What the mounts of the host become in the container's namespace: they never send anything back.
pub(super) fn cut_off(plan: &RootfsPlan) -> PropagationKind {
    match plan.propagation {
        Some(propagation) if propagation.kind == PropagationKind::Private => {
            PropagationKind::Private
        }
        _ => PropagationKind::Slave,
    }
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
    let fail = |operation, errno: Errno| io_error(operation, "/", errno);
    rustix::process::fchdir(root.as_fd()).map_err(|e| fail("change directory to", e))?;
    // Old and new root on one place: the old one then lies on top and is detached from there
    // (pivot_root(2), "pivot_root(".", ".")").
    rustix::process::pivot_root(".", ".").map_err(|e| fail("pivot the root to", e))?;
    unmount(".", UnmountFlags::DETACH).map_err(|e| fail("detach the host's", e))?;
    rustix::process::chdir("/").map_err(|e| fail("change directory to", e))?;
    if let Some(propagation) = plan.propagation {
        if propagation.kind == PropagationKind::Shared {
            // Of a group of its own: what the host mounts below the rootfs is not for the container.
            let private = Propagation {
                kind: PropagationKind::Private,
                recursive: false,
            };
            propagate(root.as_fd(), &[private])
                .map_err(|e| io_error("change the propagation of", "/", e))?;
        }
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
