//! The cgroup mount: whatever version the document names, the container sees what the host has.

use std::os::fd::AsFd;

use rustix::fs::{Mode, symlinkat};

use super::mounts::{Surroundings, attach, attach_planned, clone_path, failed, make};
use super::{Root, RootfsError};
use crate::plan::MountPlan;
use crate::sys::{MountAttributes, mount_setattr};

/// Mounts the container's view of the cgroup tree.
///
/// With a cgroup namespace the file systems are mounted anew and show the container's cgroup as their
/// root; without one the container's directories are bound.
pub(super) fn mount_cgroups(
    root: &Root,
    mount: &MountPlan,
    surroundings: Surroundings<'_>,
) -> Result<(), RootfsError> {
    let Some(record) = surroundings.cgroup else {
        return Err(failed(mount, "cgroup", "the container has no cgroup"));
    };
    let target = root.make_directory(&mount.destination, 0o755)?;
    if record.version == 2 {
        let tree = if surroundings.cgroup_namespace {
            make("cgroup2", "cgroup", &[], mount.attributes.set)
                .map_err(|reason| failed(mount, "cgroup2", reason))?
        } else {
            bound(mount, &record.directories[0].path)?
        };
        return attach_planned(mount, "cgroup2", &tree, target.as_fd());
    }
    mount_v1(root, mount, surroundings, record, &target)
}

fn mount_v1(
    root: &Root,
    mount: &MountPlan,
    surroundings: Surroundings<'_>,
    record: &crate::cgroup::CgroupRecord,
    target: &std::os::fd::OwnedFd,
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
    for directory in &record.directories {
        let Some(name) = directory.mount_point.file_name().and_then(|n| n.to_str()) else {
            continue;
        };
        rustix::fs::mkdirat(&tmpfs, name, Mode::from_raw_mode(0o755))
            .map_err(|e| failed(mount, name, e))?;
        let tree = if surroundings.cgroup_namespace && directory.controllers.is_empty() {
            make("cgroup2", "cgroup", &[], attributes)
                .map_err(|reason| failed(mount, name, reason))?
        } else if surroundings.cgroup_namespace {
            let parameters: Vec<_> = directory
                .controllers
                .iter()
                .map(|c| v1_parameter(c))
                .collect();
            make("cgroup", "cgroup", &parameters, attributes)
                .map_err(|reason| failed(mount, name, reason))?
        } else {
            bound(mount, &directory.path)?
        };
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
    super::mounts::propagate(tmpfs.as_fd(), &mount.propagation)
        .map_err(|e| failed(mount, "cgroup", e))
}

/// `memory` is a flag, `name=systemd` a key with a value.
fn v1_parameter(controller: &str) -> (String, Option<String>) {
    match controller.split_once('=') {
        Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
        None => (controller.to_owned(), None),
    }
}

fn bound(mount: &MountPlan, path: &std::path::Path) -> Result<std::os::fd::OwnedFd, RootfsError> {
    let tree = clone_path(path)?;
    let attributes = MountAttributes {
        propagation: 0,
        ..mount.attributes
    };
    if !attributes.is_empty() {
        mount_setattr(tree.as_fd(), c"", false, attributes)
            .map_err(|e| failed(mount, "cgroup", e))?;
    }
    Ok(tree)
}
