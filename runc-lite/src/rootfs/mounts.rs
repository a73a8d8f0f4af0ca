//! Execution of the mount steps with the descriptor-based mount API of Linux 5.2 and later.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, FileType, FsWord, fstat, fstatfs};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use super::attributes;
use super::cgroups::{CgroupView, mount_cgroups};
use super::copy_up;
use super::file_systems::{mount_by_mount2, reconfigure};
use super::sources::{MapLate, bind_of, clone_for, clone_inside, inside_rootfs};
use super::{Root, RootfsError, Sources, io_error};
use crate::plan::{MountKind, MountPlan, Propagation};
use crate::sys::{MountAttributes, mount_setattr};

/// `PROC_SUPER_MAGIC`.
pub(super) const PROC_MAGIC: FsWord = 0x9fa0;

/// Files of procfs that may be covered by a bind, because they only tell numbers (lxcfs does this).
const COVERABLE_PROC: [&str; 12] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/net/dev",
    "/proc/kmsg",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

/// What the mounts need to know besides themselves.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// Where relative sources start.
    pub bundle: &'a Path,
    /// The container's root on the host.
    pub rootfs: &'a Path,
    /// What a cgroup mount shows.
    pub cgroup: CgroupView<'a>,
    /// Trees that were cloned before, by the parent and by this process.
    pub sources: [&'a Sources; 2],
    /// Whether attributes that the parent's trees have on the host are not the container's to clear: it has a
    /// user namespace of its own.
    pub locked: bool,
}

/// Makes every mount of the plan, in order; gives the mounts that are to become read-only by
/// [`super::seal`] when nothing is made in them any more.
///
/// # Errors
/// [`RootfsError`] naming the entry.
pub fn mount_all(
    root: &Root,
    mounts: &[MountPlan],
    surroundings: Surroundings<'_>,
    map_late: MapLate<'_>,
) -> Result<Vec<OwnedFd>, RootfsError> {
    let mut unsealed = Vec::new();
    for mount in mounts {
        unsealed.extend(mount_one(root, mount, surroundings, map_late)?);
    }
    Ok(unsealed)
}

fn mount_one(
    root: &Root,
    mount: &MountPlan,
    surroundings: Surroundings<'_>,
    map_late: MapLate<'_>,
) -> Result<Option<OwnedFd>, RootfsError> {
    match &mount.kind {
        MountKind::Bind {
            source, recursive, ..
        } => {
            match bind_of(surroundings.sources, mount) {
                Some(tree) => bind(root, mount, tree, surroundings.locked)?,
                None => {
                    let source = surroundings.bundle.join(source);
                    let tree = match inside_rootfs(surroundings.rootfs, &source) {
                        Some(path) => clone_inside(root, mount, &path, *recursive, map_late)?,
                        None => clone_for(mount, &source, *recursive)?,
                    };
                    bind(root, mount, tree.as_fd(), false)?;
                }
            }
            Ok(None)
        }
        MountKind::New {
            fs_type,
            source,
            parameters,
            copy_up,
            by_mount2,
        } => {
            // What cannot be looked up is judged, and refused, when the place is made.
            let was_there = matches!(root.find(&mount.destination), Ok(Some(_)));
            let target = new_target(root, mount, fs_type)?;
            refuse_inside_proc(mount, fs_type, &target)?;
            let parameters = if was_there {
                with_mode_of(&target, fs_type, parameters)
            } else {
                parameters.clone()
            };
            if let Some(legacy) = by_mount2 {
                let names = (fs_type.as_str(), source.as_str());
                mount_by_mount2(root, mount, names, &parameters, *legacy, &target)?;
                return Ok(None);
            }
            let wanted = mount.attributes.set;
            // Mount points and devices are still to be made in a tmpfs; its wish waits for the end.
            let late = fs_type == "tmpfs" && wanted & MountAttributes::RDONLY != 0;
            let now = if late {
                wanted & !MountAttributes::RDONLY
            } else {
                wanted
            };
            let made = make(fs_type, source, &parameters, now)
                .map_err(|reason| failed(mount, fs_type, with_hint(fs_type, reason)))?;
            if *copy_up {
                copy_up::copy_up(target.as_fd(), made.as_fd())
                    .map_err(|reason| failed(mount, "tmpcopyup", reason))?;
            }
            attach_planned(mount, fs_type, &made, target.as_fd())?;
            Ok(late.then_some(made))
        }
        MountKind::Cgroup => mount_cgroups(root, mount, surroundings).map(|()| None),
        MountKind::Remount { parameters } => {
            let target = root
                .find(&mount.destination)?
                .ok_or_else(|| failed(mount, "remount", "it does not exist"))?;
            change(mount, "remount", target.as_fd())?;
            reconfigure(mount, parameters, &target).map(|()| None)
        }
    }
}

pub(super) fn failed(mount: &MountPlan, what: &str, reason: impl ToString) -> RootfsError {
    RootfsError::Mount {
        index: mount.index,
        what: what.to_owned(),
        destination: mount.destination.clone(),
        reason: reason.to_string(),
    }
}

/// Attaches the cloned `tree`; see [`attributes::replace`] for `locked`.
fn bind(
    root: &Root,
    mount: &MountPlan,
    tree: BorrowedFd<'_>,
    locked: bool,
) -> Result<(), RootfsError> {
    let MountKind::Bind {
        source, replaces, ..
    } = &mount.kind
    else {
        return Ok(());
    };
    let what = source.display().to_string();
    let stat = fstat(tree).map_err(|e| failed(mount, &what, e))?;
    let is_directory = FileType::from_raw_mode(stat.st_mode).is_dir();
    let on_proc = |fd: BorrowedFd<'_>| fstatfs(fd).is_ok_and(|s| s.f_type == PROC_MAGIC);
    if mount.destination == "/proc" && !on_proc(tree) {
        return Err(failed(mount, &what, "only procfs may be mounted on /proc"));
    }
    plain_top(root, &mount.destination)?;
    let target = if is_directory {
        root.make_directory(&mount.destination, 0o755)?
    } else {
        root.make_file(&mount.destination)?
    };
    // Judged on what was opened, so that a link elsewhere in the rootfs cannot lead here.
    let covers_proc = mount.destination != "/proc" && on_proc(target.as_fd());
    if covers_proc && !COVERABLE_PROC.contains(&mount.destination.as_str()) {
        return Err(failed(
            mount,
            &what,
            "it is inside /proc, which must stay as the kernel shows it",
        ));
    }
    // Order: attributes before attaching, so that nobody sees the mount without them.
    if *replaces {
        attributes::replace(tree, mount.attributes, locked).map_err(|e| failed(mount, &what, e))?;
    }
    if !mount.recursive_attributes.is_empty() {
        mount_setattr(tree, c"", true, mount.recursive_attributes)
            .map_err(|e| failed(mount, &what, e))?;
    }
    attach(tree, target.as_fd()).map_err(|e| failed(mount, &what, e))?;
    propagate(tree, &mount.propagation).map_err(|e| failed(mount, &what, e))
}

/// Refuses a /proc or /sys that is a link or file in the image, for what is bound there or below.
fn plain_top(root: &Root, destination: &str) -> Result<(), RootfsError> {
    for top in ["/proc", "/sys"] {
        let below = destination.strip_prefix(top);
        if below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) {
            root.find_plain_directory(top)?;
        }
    }
    Ok(())
}

/// Refuses a place inside procfs, however it was reached: what lies there must stay as the kernel shows it.
/// Procfs itself may be mounted over procfs.
pub(super) fn refuse_inside_proc(
    mount: &MountPlan,
    what: &str,
    target: &OwnedFd,
) -> Result<(), RootfsError> {
    let inside = fstatfs(target).is_ok_and(|s| s.f_type == PROC_MAGIC);
    if inside && mount.destination != "/proc" {
        return Err(failed(mount, what, "it is inside /proc"));
    }
    Ok(())
}

/// The place for a new file system. For procfs and sysfs no symbolic link is accepted on the way
/// (CVE-2019-19921 and kin): what the kernel shows there must be at the path everybody expects.
fn new_target(root: &Root, mount: &MountPlan, fs_type: &str) -> Result<OwnedFd, RootfsError> {
    if fs_type == "proc" || fs_type == "sysfs" {
        if let Some(found) = root.find_plain_directory(&mount.destination)? {
            return Ok(found);
        }
        root.make_directory(&mount.destination, 0o755)?;
        return root
            .find_plain_directory(&mount.destination)?
            .ok_or_else(|| failed(mount, fs_type, "the mount point vanished while it was made"));
    }
    root.make_directory(&mount.destination, 0o755)
}

/// Says what the kernel does not: which namespace a file system belongs to.
fn with_hint(fs_type: &str, reason: String) -> String {
    let kind = match fs_type {
        _ if !reason.contains("not permitted") => return reason,
        "sysfs" => "network",
        "proc" => "pid",
        "mqueue" => "ipc",
        _ => return reason,
    };
    format!(
        "{reason}; it needs a {kind} namespace of the container's own user namespace, and nothing \
         mounted over the host's {fs_type}; without, bind the host's"
    )
}

/// A tmpfs over an existing directory keeps the directory's mode and owner, unless it is told otherwise.
fn with_mode_of(
    target: &OwnedFd,
    fs_type: &str,
    parameters: &[(String, Option<String>)],
) -> Vec<(String, Option<String>)> {
    let mut parameters = parameters.to_vec();
    let has = |name: &str| parameters.iter().any(|(key, _)| key == name);
    if fs_type == "tmpfs"
        && !has("mode")
        && let Ok(stat) = fstat(target)
    {
        parameters.push((
            "mode".to_owned(),
            Some(format!("{:o}", stat.st_mode & 0o7777)),
        ));
    }
    parameters
}

/// Makes a detached mount of a new file system. The error is the kernel's own words where it has any.
pub(crate) fn make(
    fs_type: &str,
    source: &str,
    parameters: &[(String, Option<String>)],
    attributes: u64,
) -> Result<OwnedFd, String> {
    let context = fsopen(fs_type, FsOpenFlags::FSOPEN_CLOEXEC).map_err(|e| match e {
        Errno::NODEV => format!("the kernel has no file system {fs_type:?}"),
        other => other.to_string(),
    })?;
    let told = |what: &str, errno: Errno| {
        let words = kernel_words(context.as_fd());
        if words.is_empty() {
            format!("{what}: {errno}")
        } else {
            format!("{what}: {words}")
        }
    };
    if !source.is_empty() {
        fsconfig_set_string(&context, "source", source).map_err(|e| told("source", e))?;
    }
    for (key, value) in parameters {
        let result = match value {
            Some(value) => fsconfig_set_string(&context, key.as_str(), value.as_str()),
            None => fsconfig_set_flag(&context, key.as_str()),
        };
        result.map_err(|e| told(&format!("option {key:?}"), e))?;
    }
    fsconfig_create(&context).map_err(|e| told("create", e))?;
    let attributes =
        MountAttrFlags::from_bits_retain(u32::try_from(attributes).unwrap_or_default());
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(|e| told("mount", e))
}

/// The messages a file system context collected, joined.
pub(super) fn kernel_words(context: BorrowedFd<'_>) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut buffer = [0u8; 512];
    while let Ok(length) = rustix::io::read(context, &mut buffer) {
        if length == 0 || words.len() == 8 {
            break;
        }
        let text = String::from_utf8_lossy(&buffer[..length]);
        // "e " begins errors, "w " warnings, "i " information.
        words.push(
            text.trim()
                .trim_start_matches(['e', 'w', 'i'])
                .trim()
                .to_owned(),
        );
    }
    words.join("; ")
}

pub(super) fn attach_planned(
    mount: &MountPlan,
    what: &str,
    made: &OwnedFd,
    target: BorrowedFd<'_>,
) -> Result<(), RootfsError> {
    attach(made.as_fd(), target).map_err(|e| failed(mount, what, e))?;
    let recursive = mount.recursive_attributes;
    if !recursive.is_empty() {
        mount_setattr(made.as_fd(), c"", true, recursive).map_err(|e| failed(mount, what, e))?;
    }
    propagate(made.as_fd(), &mount.propagation).map_err(|e| failed(mount, what, e))
}

pub(super) fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", target, "", flags)
}

fn change(mount: &MountPlan, what: &str, target: BorrowedFd<'_>) -> Result<(), RootfsError> {
    for (attributes, recursive) in [
        (mount.attributes, false),
        (mount.recursive_attributes, true),
    ] {
        if !attributes.is_empty() {
            mount_setattr(target, c"", recursive, attributes)
                .map_err(|e| failed(mount, what, e))?;
        }
    }
    propagate(target, &mount.propagation).map_err(|e| failed(mount, what, e))
}

pub(super) fn propagate(mount: BorrowedFd<'_>, changes: &[Propagation]) -> std::io::Result<()> {
    for change in changes {
        let attributes = MountAttributes {
            propagation: change.kind.bits(),
            ..MountAttributes::default()
        };
        mount_setattr(mount, c"", change.recursive, attributes)?;
    }
    Ok(())
}

/// Clones the mount behind `fd` so that it can be attached elsewhere.
pub(super) fn clone_of(fd: BorrowedFd<'_>, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(fd, "", flags)
}

/// Opens a path of the host as a detached clone.
pub(super) fn clone_path(path: &Path) -> Result<OwnedFd, RootfsError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(CWD, path, flags)
        .map_err(|e| io_error("clone the mount of", path.display().to_string(), e))
}
