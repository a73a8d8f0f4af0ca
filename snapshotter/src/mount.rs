//! Mounts as values, performing them, and taking them away again.
//!
//! Overlays are made with the mount API (fsopen and `lowerdir+`, Linux 6.5), which has no limit on
//! the length of all options together; mount(2) with its one page of options is the fallback.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
    mount as mount_legacy, mount_remount, move_mount, open_tree,
};

use crate::error::{ErrorClass, PathError};
use crate::tree::remove_tree;

mod mapped;
mod part;

pub use mapped::mount_mapped;
pub use part::mount_part;

/// Longest value fsconfig(2) takes as a string, without its NUL.
const FSCONFIG_VALUE_MAX: usize = 255;
/// Longest options mount(2) takes: one page, without the NUL.
const MOUNT_DATA_MAX: usize = 4095;
/// How often an unmount that finds the mount in use is tried before it is detached.
const BUSY_TRIES: u32 = 10;
/// Pause between those tries.
const BUSY_PAUSE: Duration = Duration::from_millis(20);
/// Most mounts taken off one directory, should they be stacked: those of an overlay with mapped ids whose maker
/// was killed.
const STACKED_MAX: u32 = 1024;

/// A mount to be performed, in the form containerd's shim protocol carries.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Mount {
    /// `overlay` or `bind`.
    pub kind: String,
    /// The directory to bind; a label for overlays.
    pub source: String,
    /// Directory below the target to mount on; `None` is the target itself.
    pub target: Option<String>,
    /// Options as for mount(8). `lowerdir` lists directories top first, separated by colons.
    pub options: Vec<String>,
}

/// Why a mount could not be made or taken away.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The kind is neither `overlay` nor `bind`.
    #[error("mount kind \"{kind}\" is not one of overlay, bind")]
    Kind {
        /// The kind.
        kind: String,
    },
    /// An option is unknown or lacks its value.
    #[error("mount option \"{option}\" is not supported for kind {kind}")]
    Option {
        /// The kind.
        kind: String,
        /// The option.
        option: String,
    },
    /// A part of an image that cannot be mounted by itself.
    #[error("path \"{part}\" of the image {reason}")]
    Part {
        /// The path, cut and escaped.
        part: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The kernel has no `lowerdir+` and the options exceed what mount(2) takes.
    #[error("{count} lower directories need {bytes} bytes of options, mount(2) takes 4095")]
    TooLong {
        /// Lower directories.
        count: usize,
        /// Bytes needed.
        bytes: usize,
    },
    /// A system call failed.
    #[error(transparent)]
    Path(#[from] PathError),
}

impl MountError {
    /// Returns the class.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Kind { .. } | Self::Option { .. } | Self::Part { .. } => {
                ErrorClass::InvalidArgument
            }
            Self::TooLong { .. } => ErrorClass::Exhausted,
            Self::Path(error) => match Errno::from_io_error(&error.source) {
                Some(Errno::NOENT | Errno::NOTDIR) => ErrorClass::NotFound,
                _ => error.class(),
            },
        }
    }
}

/// Performs `mounts` in order on the directory `target`. After an error none of them stays.
///
/// # Errors
/// `InvalidArgument` for what is not supported, `NotFound` when a directory is missing.
pub fn mount_all(mounts: &[Mount], target: &Path) -> Result<(), MountError> {
    let mut done: Vec<PathBuf> = Vec::new();
    for mount in mounts {
        let outcome = mount_one(mount, target);
        match outcome {
            Ok(place) => done.push(place),
            Err(error) => {
                for place in done.iter().rev() {
                    // The error that led here is the one to tell.
                    let _ = unmount_one(place);
                }
                return Err(error);
            }
        }
    }
    Ok(())
}

/// Takes everything off the directory `target` and returns whether something was mounted there. A
/// mount that stays busy is detached. A missing directory has nothing mounted.
///
/// # Errors
/// The class of the I/O error, such as a missing privilege.
pub fn unmount(target: &Path) -> Result<bool, MountError> {
    let mut any = false;
    for _ in 0..STACKED_MAX {
        if !unmount_one(target)? {
            break;
        }
        any = true;
    }
    Ok(any)
}

fn unmount_one(target: &Path) -> Result<bool, MountError> {
    let mut tries = 0;
    loop {
        let flags = if tries < BUSY_TRIES {
            UnmountFlags::empty()
        } else {
            UnmountFlags::DETACH
        };
        match rustix::mount::unmount(target, flags | UnmountFlags::NOFOLLOW) {
            Ok(()) => return Ok(true),
            // umount(2): EINVAL is "not a mount point".
            Err(Errno::INVAL | Errno::NOENT | Errno::NOTDIR) => return Ok(false),
            Err(Errno::BUSY) if tries < BUSY_TRIES => {
                tries += 1;
                thread::sleep(BUSY_PAUSE);
            }
            Err(error) => return Err(PathError::new("unmount", target.display(), error).into()),
        }
    }
}

fn mount_one(mount: &Mount, target: &Path) -> Result<PathBuf, MountError> {
    let (place, path) = open_target(mount, target)?;
    match mount.kind.as_str() {
        "overlay" => overlay(&Overlay::parse(mount)?, &place, &path)?,
        "bind" => bind(mount, &place, &path)?,
        _ => {
            return Err(MountError::Kind {
                kind: mount.kind.clone(),
            });
        }
    }
    Ok(path)
}

/// Opens the directory to mount on. A place below the target is looked up inside it.
fn open_target(mount: &Mount, target: &Path) -> Result<(OwnedFd, PathBuf), MountError> {
    let failed = |path: &Path, error| PathError::new("open mount target", path.display(), error);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = openat(CWD, target, flags, Mode::empty()).map_err(|error| failed(target, error))?;
    let Some(below) = &mount.target else {
        return Ok((top, target.to_owned()));
    };
    let path = target.join(below.trim_start_matches('/'));
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let place = openat2(
        &top,
        below.trim_start_matches('/'),
        flags,
        Mode::empty(),
        resolve,
    )
    .map_err(|error| failed(&path, error))?;
    Ok((place, path))
}

/// The options of an overlay, taken apart.
#[derive(Debug, Default, PartialEq, Eq)]
struct Overlay<'a> {
    lowers: Vec<&'a str>,
    upper: Option<&'a str>,
    work: Option<&'a str>,
    /// `key=value` options passed on.
    values: Vec<(&'a str, &'a str)>,
    /// Options without a value passed on.
    flags: Vec<&'a str>,
    is_read_only: bool,
}

impl<'a> Overlay<'a> {
    fn parse(mount: &'a Mount) -> Result<Self, MountError> {
        let mut out = Self::default();
        for option in &mount.options {
            match option.split_once('=') {
                Some(("lowerdir", value)) => out.lowers.extend(value.split(':')),
                Some(("upperdir", value)) => out.upper = Some(value),
                Some(("workdir", value)) => out.work = Some(value),
                Some((
                    key @ ("index" | "xino" | "metacopy" | "redirect_dir" | "nfs_export"
                    | "context"),
                    value,
                )) => {
                    out.values.push((key, value));
                }
                None if option == "ro" => out.is_read_only = true,
                None if option == "rw" => {}
                None if matches!(option.as_str(), "volatile" | "userxattr") => {
                    out.flags.push(option);
                }
                _ => {
                    let (kind, option) = (mount.kind.clone(), option.clone());
                    return Err(MountError::Option { kind, option });
                }
            }
        }
        Ok(out)
    }

    /// A volatile overlay leaves a mark that keeps its directories from being used again, for the
    /// case that data was lost (kernel documentation, overlayfs, "Volatile mount"). Here it only means
    /// that the container was mounted before.
    fn forget_volatile(&self) {
        let (true, Some(work)) = (self.flags.contains(&"volatile"), self.work) else {
            return;
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let marked = openat(
            CWD,
            format!("{work}/work"),
            flags | OFlags::NOFOLLOW,
            Mode::empty(),
        );
        if let Ok(marked) = marked {
            // Absent on the first mount. If it cannot be removed, the mount says so.
            let _ = remove_tree(marked, b"incompat");
        }
    }

    /// All options in the notation of mount(2).
    fn data(&self) -> String {
        let mut parts: Vec<String> = self.flags.iter().map(ToString::to_string).collect();
        parts.extend(self.values.iter().map(|(key, value)| match *key {
            // Categories of SELinux have commas between them.
            "context" => format!("{key}=\"{value}\""),
            _ => format!("{key}={value}"),
        }));
        parts.push(format!("lowerdir={}", self.lowers.join(":")));
        parts.extend(self.upper.map(|dir| format!("upperdir={dir}")));
        parts.extend(self.work.map(|dir| format!("workdir={dir}")));
        parts.join(",")
    }
}

fn overlay(options: &Overlay<'_>, place: &OwnedFd, path: &Path) -> Result<(), MountError> {
    options.forget_volatile();
    match overlay_by_api(options, place) {
        Ok(()) => Ok(()),
        // No mount API, or one without `lowerdir+`: the kernel is older than 6.5.
        Err(Errno::NOSYS | Errno::INVAL) => overlay_legacy(options, place, path),
        Err(error) => Err(PathError::new("mount overlay on", path.display(), error).into()),
    }
}

/// Makes an overlay that is attached nowhere, and lets it go again.
pub(crate) fn try_overlay(mount: &Mount) -> Result<(), MountError> {
    let options = Overlay::parse(mount)?;
    match detached_overlay(&options) {
        Ok(_mount) => Ok(()),
        // A kernel without the mount API for overlays has to be tried in earnest, on the lower directory.
        Err(Errno::NOSYS | Errno::INVAL) => {
            let path = Path::new(options.lowers.first().copied().unwrap_or_default());
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let place = openat(CWD, path, flags, Mode::empty())
                .map_err(|error| PathError::new("open", path.display(), error))?;
            overlay_legacy(&options, &place, path)?;
            unmount_one(path).map(drop)
        }
        Err(error) => Err(PathError::new("mount overlay of", &mount.source, error).into()),
    }
}

fn overlay_by_api(options: &Overlay<'_>, place: &OwnedFd) -> rustix::io::Result<()> {
    attach(&detached_overlay(options)?, place)
}

fn detached_overlay(options: &Overlay<'_>) -> rustix::io::Result<OwnedFd> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", "overlay")?;
    // Directories too long for a value are named by their descriptor, which has to live till then.
    let mut opened = Vec::new();
    let mut set_dir = |key: &str, dir: &str| {
        if dir.len() <= FSCONFIG_VALUE_MAX {
            return fsconfig_set_string(&context, key, dir);
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = openat(CWD, dir, flags, Mode::empty())?;
        let name = format!("/proc/self/fd/{}", fd.as_raw_fd());
        opened.push(fd);
        fsconfig_set_string(&context, key, &*name)
    };
    for dir in &options.lowers {
        set_dir("lowerdir+", dir)?;
    }
    for (key, dir) in [("upperdir", options.upper), ("workdir", options.work)] {
        if let Some(dir) = dir {
            set_dir(key, dir)?;
        }
    }
    for (key, value) in &options.values {
        fsconfig_set_string(&context, *key, *value)?;
    }
    for flag in &options.flags {
        fsconfig_set_flag(&context, *flag)?;
    }
    if options.is_read_only {
        fsconfig_set_flag(&context, "ro")?;
    }
    fsconfig_create(&context)?;
    let attributes = if options.is_read_only {
        MountAttrFlags::MOUNT_ATTR_RDONLY
    } else {
        MountAttrFlags::empty()
    };
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Attaches a detached mount to an open directory.
fn attach(mount: &OwnedFd, place: &OwnedFd) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount.as_fd(), "", place.as_fd(), "", flags)
}

fn overlay_legacy(options: &Overlay<'_>, place: &OwnedFd, path: &Path) -> Result<(), MountError> {
    let data = options.data();
    if data.len() > MOUNT_DATA_MAX {
        return Err(MountError::TooLong {
            count: options.lowers.len(),
            bytes: data.len(),
        });
    }
    let flags = if options.is_read_only {
        MountFlags::RDONLY
    } else {
        MountFlags::empty()
    };
    let failed = |error: std::io::Error| PathError::new("mount overlay on", path.display(), error);
    let data = std::ffi::CString::new(data).map_err(|error| failed(error.into()))?;
    let target = format!("/proc/self/fd/{}", place.as_raw_fd());
    mount_legacy("overlay", &*target, "overlay", flags, &*data)
        .map_err(|error| failed(error.into()))?;
    Ok(())
}

fn bind(mount: &Mount, place: &OwnedFd, path: &Path) -> Result<(), MountError> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mut is_read_only = false;
    for option in &mount.options {
        match option.as_str() {
            "bind" | "rw" => {}
            "rbind" => flags |= OpenTreeFlags::AT_RECURSIVE,
            "ro" => is_read_only = true,
            _ => {
                let (kind, option) = (mount.kind.clone(), option.clone());
                return Err(MountError::Option { kind, option });
            }
        }
    }
    let failed = |what, error| PathError::new(what, path.display(), error);
    let tree = open_tree(CWD, &*mount.source, flags)
        .map_err(|error| PathError::new("open bind source", &mount.source, error))?;
    attach(&tree, place).map_err(|error| failed("bind mount on", error))?;
    if is_read_only {
        let remounted = mount_remount(path, MountFlags::BIND | MountFlags::RDONLY, "");
        if let Err(error) = remounted {
            // A writable mount must not stay where a read-only one was asked for.
            unmount_one(path)?;
            return Err(failed("make read-only the mount on", error).into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlay_of(options: &[&str]) -> Mount {
        Mount {
            kind: "overlay".to_owned(),
            source: "overlay".to_owned(),
            target: None,
            options: options.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn options_are_taken_apart_and_put_together() {
        let mount = overlay_of(&[
            "index=off",
            "volatile",
            "lowerdir=/a:/b",
            "upperdir=/u",
            "workdir=/w",
        ]);
        let parsed = Overlay::parse(&mount).unwrap();
        assert_eq!(parsed.lowers, ["/a", "/b"]);
        assert_eq!(
            parsed.data(),
            "volatile,index=off,lowerdir=/a:/b,upperdir=/u,workdir=/w"
        );
    }

    #[test]
    fn unknown_options_and_kinds_are_refused() {
        for option in ["suid,exec", "lowerdir", "x=y", ""] {
            let mount = overlay_of(&[option]);
            let error = Overlay::parse(&mount).unwrap_err();
            assert_eq!(error.class(), ErrorClass::InvalidArgument);
        }
        let tmp = tempfile::tempdir().unwrap();
        let mount = Mount {
            kind: "nfs".to_owned(),
            ..overlay_of(&[])
        };
        let error = mount_all(&[mount], tmp.path()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "mount kind \"nfs\" is not one of overlay, bind"
        );
    }
}
