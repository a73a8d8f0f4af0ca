//! What making and changing file systems needs beyond fsopen(2): mount(2) for options that fsconfig(2) cannot
//! take, and new options for a file system that is mounted.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::mount::{
    FsPickFlags, MountFlags, fsconfig_reconfigure, fsconfig_set_flag, fsconfig_set_string, fspick,
    mount as mount2,
};

use super::mounts::{failed, kernel_words, propagate};
use super::{Root, RootfsError};
use crate::plan::{LegacyMount, MountParameter, MountPlan};
use crate::sys::{MountAttributes, mount_setattr};

/// Attributes of mount_setattr(2) and options of fsconfig(2) as the flags of mount(2).
const ATTRIBUTES: [(u64, MountFlags); 8] = [
    (MountAttributes::RDONLY, MountFlags::RDONLY),
    (MountAttributes::NOSUID, MountFlags::NOSUID),
    (MountAttributes::NODEV, MountFlags::NODEV),
    (MountAttributes::NOEXEC, MountFlags::NOEXEC),
    (MountAttributes::NOATIME, MountFlags::NOATIME),
    (MountAttributes::NODIRATIME, MountFlags::NODIRATIME),
    (MountAttributes::STRICTATIME, MountFlags::STRICTATIME),
    (
        MountAttributes::NOSYMFOLLOW,
        MountFlags::from_bits_retain(0x100),
    ),
];
const OPTIONS: [(&str, MountFlags); 7] = [
    ("sync", MountFlags::SYNCHRONOUS),
    ("dirsync", MountFlags::DIRSYNC),
    ("mand", MountFlags::PERMIT_MANDATORY_FILE_LOCKING),
    ("lazytime", MountFlags::LAZYTIME),
    ("async", MountFlags::empty()),
    ("nomand", MountFlags::empty()),
    ("nolazytime", MountFlags::empty()),
];
/// `MS_I_VERSION` of linux/mount.h.
const INODE_VERSIONS: MountFlags = MountFlags::from_bits_retain(1 << 23);

fn legacy_flags(attributes: u64, legacy: LegacyMount) -> MountFlags {
    let mut flags = MountFlags::empty();
    for (bit, flag) in ATTRIBUTES {
        flags.set(flag, attributes & bit != 0);
    }
    flags.set(INODE_VERSIONS, legacy.inode_versions);
    flags
}

/// Makes a new file system by mount(2) and mounts it on `target`.
pub(super) fn mount_by_mount2(
    root: &Root,
    mount: &MountPlan,
    (fs_type, source): (&str, &str),
    parameters: &[MountParameter],
    legacy: LegacyMount,
    target: &OwnedFd,
) -> Result<(), RootfsError> {
    let mut flags = legacy_flags(mount.attributes.set, legacy);
    let mut data: Vec<String> = Vec::new();
    for (key, value) in parameters {
        match (OPTIONS.iter().find(|(name, _)| name == key), value) {
            (Some((_, flag)), None) => flags |= *flag,
            (_, None) => data.push(key.clone()),
            (_, Some(value)) => data.push(format!("{key}={value}")),
        }
    }
    let data = CString::new(data.join(",")).map_err(|e| failed(mount, fs_type, e))?;
    // The descriptor's own link: no name of the container is resolved again.
    let place = format!("/proc/self/fd/{}", target.as_raw_fd());
    mount2(source, &place, fs_type, flags, data.as_c_str())
        .map_err(|e| failed(mount, fs_type, e))?;
    if mount.recursive_attributes.is_empty() && mount.propagation.is_empty() {
        return Ok(());
    }
    let made = root
        .find(&mount.destination)?
        .ok_or_else(|| failed(mount, fs_type, "it vanished"))?;
    if !mount.recursive_attributes.is_empty() {
        mount_setattr(made.as_fd(), c"", true, mount.recursive_attributes)
            .map_err(|e| failed(mount, fs_type, e))?;
    }
    propagate(made.as_fd(), &mount.propagation).map_err(|e| failed(mount, fs_type, e))
}

/// Gives the file system mounted at `target` new options; what is not named stays.
pub(super) fn reconfigure(
    mount: &MountPlan,
    parameters: &[MountParameter],
    target: &OwnedFd,
) -> Result<(), RootfsError> {
    if parameters.is_empty() {
        return Ok(());
    }
    let flags = FsPickFlags::FSPICK_EMPTY_PATH | FsPickFlags::FSPICK_CLOEXEC;
    let context = fspick(target, "", flags).map_err(|e| failed(mount, "remount", e))?;
    let told = |what: String, errno: rustix::io::Errno| {
        let words = kernel_words(context.as_fd());
        let reason = if words.is_empty() {
            errno.to_string()
        } else {
            words
        };
        failed(mount, "remount", format!("{what}: {reason}"))
    };
    for (key, value) in parameters {
        let result = match value {
            Some(value) => fsconfig_set_string(&context, key.as_str(), value.as_str()),
            None => fsconfig_set_flag(&context, key.as_str()),
        };
        result.map_err(|e| told(format!("option {key:?}"), e))?;
    }
    fsconfig_reconfigure(&context).map_err(|e| told("reconfigure".to_owned(), e))
}

/// Makes mounts read-only whose wish for it had to wait: things are still made in them.
///
/// # Errors
/// [`RootfsError::Io`].
pub fn seal(mounts: &[OwnedFd]) -> Result<(), RootfsError> {
    let readonly = MountAttributes {
        set: MountAttributes::RDONLY,
        ..MountAttributes::default()
    };
    mounts.iter().try_for_each(|mount| {
        mount_setattr(mount.as_fd(), c"", false, readonly)
            .map_err(|e| super::io_error("make read-only", "a tmpfs", e))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_become_flags_of_mount2() {
        let legacy = LegacyMount {
            inode_versions: true,
        };
        let set = MountAttributes::RDONLY | MountAttributes::NOSYMFOLLOW | MountAttributes::NOATIME;
        // MS_RDONLY, MS_NOSYMFOLLOW, MS_NOATIME, MS_I_VERSION of linux/mount.h.
        assert_eq!(legacy_flags(set, legacy).bits(), 1 | 256 | 1024 | 1 << 23);
    }
}
