//! Trees of the host that are cloned before the container's first process needs them: what needs privileges
//! in the host's user namespace, or a look at the host's mounts from outside.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::mounts::{failed, propagate};
use super::pivot::cut_off;
use super::{RootfsError, io_error};
use crate::plan::{IdmapPlan, MountKind, MountPlan, Plan, Propagation};
use crate::sys::{MountAttributes, mount_setattr};

/// Cloned trees, attached nowhere. Those that nobody attaches are gone with their descriptors.
#[derive(Debug, Default)]
pub struct Sources {
    rootfs: Option<OwnedFd>,
    binds: Vec<(usize, OwnedFd)>,
}

/// Which trees are cloned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// The rootfs and every bind: the container's user namespace is another one. Its processes may not
    /// be able to reach the paths, and could not take a directory without the mounts below it.
    All,
    /// Binds whose ids are mapped: only outside can that be done.
    Mapped,
    /// Binds that ask for a propagation of their own. It must happen before the namespace is cut off from
    /// the host: only then can a bind stay in the host's peer group.
    Shared,
}

impl Sources {
    /// Clones the trees of `plan`. `userns` gives the user namespace of an id-mapped mount.
    ///
    /// # Errors
    /// [`RootfsError`]; nothing is left then.
    pub fn clone_trees(
        plan: &Plan,
        bundle: &Path,
        which: Which,
        userns: &mut dyn FnMut(&IdmapPlan) -> Result<OwnedFd, String>,
    ) -> Result<Sources, RootfsError> {
        let mut sources = Sources::default();
        // A less privileged mount namespace is never a peer of the host's, see mount_namespaces(7),
        // "Restrictions on mount namespaces".
        let cut = Propagation {
            kind: cut_off(&plan.rootfs),
            recursive: true,
        };
        if which == Which::All {
            let path = bundle.join(&plan.rootfs.path);
            let text = path.display().to_string();
            let tree = clone(&path, true).map_err(|e| io_error("clone the rootfs", &text, e))?;
            propagate(tree.as_fd(), &[cut])
                .map_err(|e| io_error("change the propagation of", &text, e))?;
            sources.rootfs = Some(tree);
        }
        for mount in &plan.mounts {
            let MountKind::Bind { source, recursive } = &mount.kind else {
                continue;
            };
            let wanted = match which {
                Which::All => true,
                Which::Mapped => mount.idmap.is_some(),
                Which::Shared => !mount.propagation.is_empty() && mount.idmap.is_none(),
            };
            if !wanted {
                continue;
            }
            let what = source.display().to_string();
            let tree = clone_for(mount, &bundle.join(source), *recursive)?;
            if which == Which::All || (which == Which::Mapped && mount.propagation.is_empty()) {
                propagate(tree.as_fd(), &[cut]).map_err(|e| failed(mount, &what, e))?;
            }
            if let Some(idmap) = &mount.idmap {
                let namespace = userns(idmap).map_err(|e| failed(mount, &what, e))?;
                map_ids(tree.as_fd(), idmap, namespace.as_fd())
                    .map_err(|reason| failed(mount, &what, reason))?;
            }
            sources.binds.push((mount.index, tree));
        }
        Ok(sources)
    }

    /// The rootfs, if it was cloned.
    pub(super) fn rootfs(&self) -> Option<BorrowedFd<'_>> {
        self.rootfs.as_ref().map(AsFd::as_fd)
    }

    /// All descriptors, for a process that closes the others.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let binds = self.binds.iter().map(|(_, tree)| tree.as_fd());
        self.rootfs().into_iter().chain(binds)
    }
}

/// The source of a bind, if it was cloned.
pub(super) fn bind_of<'a>(sources: [&'a Sources; 2], mount: &MountPlan) -> Option<BorrowedFd<'a>> {
    let mut binds = sources.into_iter().flat_map(|sources| &sources.binds);
    binds
        .find(|(index, _)| *index == mount.index)
        .map(|(_, tree)| tree.as_fd())
}

fn clone(path: &Path, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(CWD, path, flags)
}

/// Clones the source of a bind.
pub(super) fn clone_for(
    mount: &MountPlan,
    source: &Path,
    recursive: bool,
) -> Result<OwnedFd, RootfsError> {
    clone(source, recursive).map_err(|errno| {
        let reason = match errno {
            // The kernel's answer when mounts below would be uncovered to a less privileged namespace.
            Errno::INVAL if !recursive => format!(
                "{errno}; in a user namespace a directory cannot be taken without the mounts below \
                 it, try \"rbind\""
            ),
            _ => errno.to_string(),
        };
        failed(mount, &source.display().to_string(), reason)
    })
}

fn map_ids(
    tree: BorrowedFd<'_>,
    idmap: &IdmapPlan,
    namespace: BorrowedFd<'_>,
) -> Result<(), String> {
    let attributes = MountAttributes::mapped(namespace);
    mount_setattr(tree, c"", idmap.recursive, attributes).map_err(|e| {
        let why = match e.raw_os_error() {
            Some(libc::EINVAL) => "the file system does not support it, or one below does not",
            Some(libc::EPERM) => {
                "its ids are mapped already, or the file system belongs to another user namespace"
            }
            _ => "the kernel refuses",
        };
        format!("its ids cannot be mapped, {why}: {e}")
    })
}
