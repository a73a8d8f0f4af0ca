//! The cgroup mount: whatever version the document names, the container sees what the host has.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, symlinkat};
use rustix::io::Errno;

use super::mounts::{
    Surroundings, attach, attach_planned, clone_path, failed, make, propagate, refuse_inside_proc,
};
use super::{Root, RootfsError};
use crate::cgroup::CgroupDirectory;
use crate::plan::MountPlan;
use crate::sys::{MountAttributes, mount_setattr};

/// What a cgroup mount shows.
#[derive(Debug, Clone, Copy)]
pub struct CgroupView<'a> {
    /// 1 (and hybrid) or 2.
    pub version: u8,
    /// The directory of the container in each hierarchy; where it has none, that of the runtime.
    pub directories: &'a [CgroupDirectory],
    /// Whether the container has a cgroup namespace of its own.
    pub namespace: bool,
    /// Whether directories that are bound, for want of a cgroup namespace, must be read-only: they may
    /// belong to the user who is root in the container's user namespace (CVE-2023-25809).
    pub foreign: bool,
}

/// Mounts the container's view of the cgroup tree.
///
/// With a cgroup namespace the file systems are mounted anew and show the container's cgroup as their
/// root; without one the container's directories are bound.
pub(super) fn mount_cgroups(
    root: &Root,
    mount: &MountPlan,
    surroundings: Surroundings<'_>,
) -> Result<(), RootfsError> {
    let view = surroundings.cgroup;
    let Some(first) = view.directories.first() else {
        return Err(failed(mount, "cgroup", "the host has no cgroups"));
    };
    let target = root.make_directory(&mount.destination, 0o755)?;
    refuse_inside_proc(mount, "cgroup", &target)?;
    if view.version == 2 {
        let tree = hierarchy(mount, view, first, "cgroup2")?;
        return attach_planned(mount, "cgroup2", &tree, target.as_fd());
    }
    mount_v1(root, mount, view, &target)
}

fn mount_v1(
    root: &Root,
    mount: &MountPlan,
    view: CgroupView<'_>,
    target: &OwnedFd,
) -> Result<(), RootfsError> {
    let attributes = mount.attributes.set;
    // Writable while the directories are made; the wish for read-only comes at the end.
    let parameters = [("mode".to_owned(), Some("755".to_owned()))];
    let tmpfs = make(
        "tmpfs",
        "tmpfs",
        &parameters,
        attributes & !MountAttributes::RDONLY,
    )
    .map_err(|reason| failed(mount, "tmpfs", reason))?;
    attach(tmpfs.as_fd(), target.as_fd()).map_err(|e| failed(mount, "tmpfs", e))?;
    for directory in view.directories {
        let Some(name) = directory.mount_point.file_name().and_then(|n| n.to_str()) else {
            continue;
        };
        rustix::fs::mkdirat(&tmpfs, name, Mode::from_raw_mode(0o755))
            .map_err(|e| failed(mount, name, e))?;
        let tree = hierarchy(mount, view, directory, name)?;
        let place = root.open(
            &format!("{}/{name}", mount.destination),
            rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY,
        );
        let place = place.map_err(|e| failed(mount, name, e))?;
        attach(tree.as_fd(), place.as_fd()).map_err(|e| failed(mount, name, e))?;
        // Co-mounted controllers are also found by their single names.
        for controller in directory
            .controllers
            .iter()
            .filter(|c| !c.contains('=') && *c != name)
        {
            symlinkat(name, &tmpfs, controller.as_str())
                .map_err(|e| failed(mount, controller, e))?;
        }
    }
    if attributes & MountAttributes::RDONLY != 0 {
        let readonly = MountAttributes {
            set: MountAttributes::RDONLY,
            ..MountAttributes::default()
        };
        mount_setattr(tmpfs.as_fd(), c"", false, readonly)
            .map_err(|e| failed(mount, "tmpfs", e))?;
    }
    propagate(tmpfs.as_fd(), &mount.propagation).map_err(|e| failed(mount, "cgroup", e))
}

/// One hierarchy: mounted anew in a cgroup namespace, or the container's directory of it.
fn hierarchy(
    mount: &MountPlan,
    view: CgroupView<'_>,
    directory: &CgroupDirectory,
    name: &str,
) -> Result<OwnedFd, RootfsError> {
    if !view.namespace {
        return bound(mount, directory, view.foreign);
    }
    let (fs_type, parameters) = if directory.controllers.is_empty() {
        ("cgroup2", Vec::new())
    } else {
        let all = directory.controllers.iter().map(|c| v1_parameter(c));
        ("cgroup", all.collect())
    };
    match make(fs_type, "cgroup", &parameters, mount.attributes.set) {
        Ok(tree) => Ok(tree),
        // A cgroup namespace that was joined and belongs to another user namespace.
        Err(reason) if view.foreign && reason.contains("not permitted") => {
            bound(mount, directory, true)
        }
        Err(reason) => Err(failed(mount, name, reason)),
    }
}

/// `memory` is a flag, `name=systemd` a key with a value.
fn v1_parameter(controller: &str) -> (String, Option<String>) {
    match controller.split_once('=') {
        Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
        None => (controller.to_owned(), None),
    }
}

fn bound(
    mount: &MountPlan,
    directory: &CgroupDirectory,
    readonly: bool,
) -> Result<OwnedFd, RootfsError> {
    let tree = clone_path(&directory.path)?;
    let mut attributes = MountAttributes {
        propagation: 0,
        ..mount.attributes
    };
    if readonly {
        attributes.set |= MountAttributes::RDONLY;
        attributes.clear &= !MountAttributes::RDONLY;
    }
    if attributes.is_empty() {
        return Ok(tree);
    }
    let locked = MountAttributes {
        set: attributes.set & !MountAttributes::ATIME_MASK,
        clear: 0,
        ..attributes
    };
    match mount_setattr(tree.as_fd(), c"", false, attributes) {
        // What the host's mount is locked to, it keeps; nothing that is asked to be forbidden is let go.
        Err(e) if e.raw_os_error() == Some(Errno::PERM.raw_os_error()) => {
            mount_setattr(tree.as_fd(), c"", false, locked)
        }
        other => other,
    }
    .map_err(|e| failed(mount, "cgroup", e))?;
    Ok(tree)
}
