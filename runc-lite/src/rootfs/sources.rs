//! Trees of the host that are cloned before the container's first process needs them: what needs privileges
//! in the host's user namespace, or a look at the host's mounts from outside.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, OFlags};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::mounts::{clone_of, failed, propagate};
use super::pivot::{cut_off, open_rootfs};
use super::{Root, RootfsError, io_error};
use crate::plan::{IdmapPlan, MountKind, MountPlan, Plan, Propagation};
use crate::spec::clean_path;
use crate::sys::{MountAttributes, mount_setattr};

/// Cloned trees, attached nowhere. Those that nobody attaches are gone with their descriptors.
#[derive(Debug, Default)]
pub struct Sources {
    rootfs: Option<OwnedFd>,
    binds: Vec<(usize, OwnedFd)>,
    /// User namespaces of id-mapped binds that can be cloned late only.
    namespaces: Vec<(usize, OwnedFd)>,
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
            let tree = open_rootfs(&path)
                .and_then(|place| clone_of(place.as_fd(), true))
                .map_err(|e| io_error("clone the rootfs", &text, e))?;
            propagate(tree.as_fd(), &[cut])
                .map_err(|e| io_error("change the propagation of", &text, e))?;
            sources.rootfs = Some(tree);
        }
        for mount in &plan.mounts {
            let MountKind::Bind {
                source, recursive, ..
            } = &mount.kind
            else {
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
            if inside_rootfs(&bundle.join(&plan.rootfs.path), &bundle.join(source)).is_some() {
                // What earlier entries mount there is part of it.
                if let Some(idmap) = &mount.idmap {
                    let namespace = userns(idmap).map_err(|e| failed(mount, &what, e))?;
                    sources.namespaces.push((mount.index, namespace));
                }
                continue;
            }
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

    /// Maps the ids of `tree`, a bind of what the container's first process mounted before: inside a user
    /// namespace it may not do it itself. The mappings are those that were found with the other trees.
    ///
    /// # Errors
    /// [`RootfsError::Mount`].
    pub fn map_late(&self, mount: &MountPlan, tree: BorrowedFd<'_>) -> Result<(), RootfsError> {
        let fail = |reason: String| failed(mount, "what is mounted there", reason);
        let mut namespaces = self.namespaces.iter();
        let (idmap, (_, namespace)) = mount
            .idmap
            .as_ref()
            .zip(namespaces.find(|(index, _)| *index == mount.index))
            .ok_or_else(|| fail("its ids are not to be mapped".to_owned()))?;
        map_ids(tree, idmap, namespace.as_fd()).map_err(fail)
    }

    /// The rootfs, if it was cloned.
    pub(super) fn rootfs(&self) -> Option<BorrowedFd<'_>> {
        self.rootfs.as_ref().map(AsFd::as_fd)
    }

    /// All descriptors, for a process that closes the others.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let binds = self.binds.iter().chain(&self.namespaces);
        self.rootfs()
            .into_iter()
            .chain(binds.map(|(_, fd)| fd.as_fd()))
    }
}

/// The source of a bind, if it was cloned.
pub(super) fn bind_of<'a>(sources: [&'a Sources; 2], mount: &MountPlan) -> Option<BorrowedFd<'a>> {
    let mut binds = sources.into_iter().flat_map(|sources| &sources.binds);
    binds
        .find(|(index, _)| *index == mount.index)
        .map(|(_, tree)| tree.as_fd())
}

/// The path inside the container of a source that lies in its own rootfs.
pub(crate) fn inside_rootfs(rootfs: &Path, source: &Path) -> Option<String> {
    let clean = |path: &Path| path.to_str().map(clean_path);
    let (rootfs, source) = (clean(rootfs)?, clean(source)?);
    let rest = source.strip_prefix(&rootfs)?;
    if rest.is_empty() {
        return Some("/".to_owned());
    }
    rest.starts_with('/').then(|| rest.to_owned())
}

/// Clones the source of a bind that lies in the container's rootfs, with what is mounted there by now. Links
/// lead nowhere but inside the container.
pub(super) fn clone_inside(
    root: &Root,
    mount: &MountPlan,
    path: &str,
    recursive: bool,
    map_late: MapLate<'_>,
) -> Result<OwnedFd, RootfsError> {
    let fail = |e: Errno| failed(mount, path, e);
    let place = root.open(path, OFlags::PATH).map_err(fail)?;
    let tree = clone_of(place.as_fd(), recursive).map_err(fail)?;
    if mount.idmap.is_some() {
        map_late(mount, tree.as_fd()).map_err(|reason| failed(mount, path, reason))?;
    }
    Ok(tree)
}

/// Has the ids of a tree mapped, by whoever may do it: see [`Sources::map_late`].
pub type MapLate<'a> = &'a dyn Fn(&MountPlan, BorrowedFd<'_>) -> Result<(), String>;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_inside_the_rootfs_are_told_from_neighbours() {
        let inside = |source: &str| inside_rootfs(Path::new("/b/rootfs"), Path::new(source));
        assert_eq!(inside("/b/rootfs/mnt/../tmp").as_deref(), Some("/tmp"));
        assert_eq!(inside("/b/rootfs").as_deref(), Some("/"));
        assert_eq!(inside("/b/rootfs-other/x"), None);
        assert_eq!(inside("/b/rootfs/../secret"), None);
    }
}
