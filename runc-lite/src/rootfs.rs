//! Building the container's file system view, inside its own mount namespace and by descriptors only.
//!
//! Nothing here uses a path of the container as a host path: every target is opened below the root
//! directory's descriptor with `RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS`, and mounts are attached to such
//! descriptors with move_mount(2).

mod attributes;
mod cgroups;
mod copy_up;
mod devices;
mod file_systems;
mod masks;
mod mounts;
mod pivot;
mod procfs;
mod root;
mod sources;

pub use cgroups::CgroupView;
pub(crate) use devices::is_in_user_namespace;
pub use devices::{Nodes, bind_console, make_devices, open_terminal};
pub use file_systems::seal;
pub use masks::{make_paths_readonly, mask_paths};
pub(crate) use mounts::make as make_detached;
pub use mounts::{Surroundings, mount_all};
pub use pivot::{enter, finish};
pub use procfs::{PrivateProcfs, write_lsm_label, write_sysctls};
pub use root::Root;
pub(crate) use sources::inside_rootfs;
pub use sources::{MapLate, Sources, Which};

/// What went wrong while the file system view was built. Paths are those of the container.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// A system call failed.
    #[error("cannot {operation} {path:?}")]
    Io {
        /// Verb.
        operation: &'static str,
        /// Object.
        path: String,
        /// Errno.
        source: std::io::Error,
    },
    /// A mount of the document could not be made.
    #[error("mounts[{index}]: cannot mount {what} on {destination:?}: {reason}")]
    Mount {
        /// Position in the document.
        index: usize,
        /// Type or source.
        what: String,
        /// In the container.
        destination: String,
        /// Errno, or what the kernel says in its words.
        reason: String,
    },
    /// A place that must be a plain directory or device is something else.
    #[error("{path:?} {reason}")]
    Unsafe {
        /// In the container.
        path: String,
        /// What is wrong.
        reason: String,
    },
}

pub(crate) fn io_error(
    operation: &'static str,
    path: impl Into<String>,
    source: impl Into<std::io::Error>,
) -> RootfsError {
    RootfsError::Io {
        operation,
        path: path.into(),
        source: source.into(),
    }
}
