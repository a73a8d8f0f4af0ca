//! Mounts a root file system from a list of mounts, and takes it down again.
//!
//! Under axild the list is empty: the daemon has mounted it. Under containerd the shim mounts.

use std::ffi::CString;
use std::io;
use std::path::{Path, PathBuf};

use axil_proto::shim::types::Mount;
use rustix::mount::{
    MountFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive, mount_remount, unmount,
};

/// Longest option text the kernel takes: one page.
const OPTIONS_LIMIT: usize = 4095;

/// Why a mount cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The options do not fit into what the kernel takes.
    #[error("options of the {kind} mount have {length} bytes, more than {OPTIONS_LIMIT}")]
    Options {
        /// The file system type.
        kind: String,
        /// Their length.
        length: usize,
    },
    /// The kernel refuses.
    #[error("mount {source_path:?} ({kind}) at {target:?}")]
    Kernel {
        /// What.
        source_path: String,
        /// The file system type.
        kind: String,
        /// Where.
        target: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Mounts `mounts` in order at `root`. On an error what was mounted is taken down.
///
/// # Errors
/// The first mount that fails.
pub fn mount_all(mounts: &[Mount], root: &Path) -> Result<(), MountError> {
    for (done, wanted) in mounts.iter().enumerate() {
        if let Err(error) = mount_one(wanted, root) {
            if done > 0 {
                let _ = unmount_all(root);
            }
            return Err(error);
        }
    }
    Ok(())
}

/// Takes down everything mounted at `root`, without waiting for users.
///
/// # Errors
/// The kernel refuses; nothing mounted there is no error.
pub fn unmount_all(root: &Path) -> io::Result<()> {
    // Several mounts may lie on each other; a container cannot add any here, so the bound is ample.
    for _ in 0..64 {
        match unmount(root, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn mount_one(wanted: &Mount, root: &Path) -> Result<(), MountError> {
    let target = root.join(wanted.target.trim_start_matches('/'));
    let (flags, bind, options) = split_options(&wanted.options);
    let kernel = |errno: rustix::io::Errno| MountError::Kernel {
        source_path: wanted.source.clone(),
        kind: wanted.r#type.clone(),
        target: target.clone(),
        source: errno.into(),
    };
    if options.len() > OPTIONS_LIMIT {
        return Err(MountError::Options {
            kind: wanted.r#type.clone(),
            length: options.len(),
        });
    }
    if bind || wanted.r#type == "bind" {
        if wanted.options.iter().any(|o| o == "rbind") {
            mount_bind_recursive(&wanted.source, &target).map_err(kernel)?;
        } else {
            mount_bind(&wanted.source, &target).map_err(kernel)?;
        }
        if !flags.is_empty() {
            // A bind mount takes its flags only when it is mounted again.
            let again = mount_remount(&target, MountFlags::BIND | flags, c"");
            if let Err(errno) = again {
                let _ = unmount(&target, UnmountFlags::DETACH);
                return Err(kernel(errno));
            }
        }
        return Ok(());
    }
    let options = CString::new(options).map_err(|_| kernel(rustix::io::Errno::INVAL))?;
    mount(
        &wanted.source,
        &target,
        &wanted.r#type,
        flags,
        Some(options.as_c_str()),
    )
    .map_err(kernel)
}

/// Splits mount options (mount(8)) into flags, whether it is a bind, and the file system's own.
fn split_options(options: &[String]) -> (MountFlags, bool, String) {
    let mut flags = MountFlags::empty();
    let mut bind = false;
    let mut own = Vec::new();
    for option in options {
        match option.as_str() {
            "bind" | "rbind" => bind = true,
            "ro" => flags |= MountFlags::RDONLY,
            "nosuid" => flags |= MountFlags::NOSUID,
            "nodev" => flags |= MountFlags::NODEV,
            "noexec" => flags |= MountFlags::NOEXEC,
            "noatime" => flags |= MountFlags::NOATIME,
            "relatime" => flags |= MountFlags::RELATIME,
            "rw" | "" => {}
            other => own.push(other),
        }
    }
    (flags, bind, own.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_told_from_flags() {
        let options = ["ro", "lowerdir=/a:/b", "rbind", "index=off"].map(str::to_owned);
        let (flags, bind, own) = split_options(&options);
        assert_eq!(flags, MountFlags::RDONLY);
        assert!(bind);
        assert_eq!(own, "lowerdir=/a:/b,index=off");
    }

    #[test]
    fn options_beyond_a_page_are_refused() {
        let mount = Mount {
            r#type: "overlay".into(),
            source: "overlay".into(),
            target: String::new(),
            options: vec!["x".repeat(5000)],
        };
        let error = mount_all(&[mount], Path::new("/nonexistent")).unwrap_err();
        assert!(error.to_string().contains("5000"), "{error}");
    }
}
