//! Network namespaces: create and pin, open, enter on a thread of their own, remove.

use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
    thread,
};

use nix::sched::{CloneFlags, unshare};
use rustix::{
    fs::fstatfs,
    io::Errno,
    mount::{UnmountFlags, mount_bind, unmount},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use crate::netlink::route::Route;

/// `NSFS_MAGIC` of linux/magic.h.
const NSFS: i64 = 0x6e73_6673;

/// Why a network namespace could not be made, entered or removed.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// A step on the namespace file failed.
    #[error("cannot {step} network namespace {path}")]
    Step {
        /// What was attempted: "create", "pin", "open", "enter", "unpin", "remove".
        step: &'static str,
        /// The namespace file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The path leads to the host's own namespace.
    #[error("{path} is the network namespace of the host")]
    OfTheHost {
        /// The file that was opened.
        path: PathBuf,
    },
    /// The path exists but is no pinned namespace.
    #[error("{path} is not a network namespace")]
    NotANamespace {
        /// The file that was opened.
        path: PathBuf,
    },
}

/// Creates a network namespace and pins it by a bind mount on the new file `path`.
///
/// Its loopback is left down; [`crate::Network::up`] brings it up.
///
/// # Errors
/// `path` exists, its directory is missing, or the kernel refuses; nothing is left then.
pub fn create(path: &Path) -> Result<(), NetnsError> {
    let failed = |step| {
        move |source| NetnsError::Step {
            step,
            path: path.to_owned(),
            source,
        }
    };
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)
        .map_err(failed("create"))?;
    // Unsharing changes the thread for good, so the thread ends with it.
    let pinned = thread::scope(|scope| {
        let pin = || {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|code| failed("create")(code.into()))?;
            mount_bind("/proc/thread-self/ns/net", path).map_err(|code| failed("pin")(code.into()))
        };
        match thread::Builder::new()
            .name("netns-create".into())
            .spawn_scoped(scope, pin)
        {
            Ok(thread) => thread.join().expect("the thread has no panic"),
            Err(source) => Err(failed("create")(source)),
        }
    });
    if pinned.is_err() {
        // The error of the pin is the one worth reporting.
        let _ = std::fs::remove_file(path);
    }
    pinned
}

/// Opens a pinned (or `/proc/<pid>/ns/net`) namespace.
///
/// # Errors
/// The path is missing, or is not on the kernel's namespace file system.
pub fn open(path: &Path) -> Result<File, NetnsError> {
    let failed = |source| NetnsError::Step {
        step: "open",
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let stat = fstatfs(&file).map_err(|code| failed(code.into()))?;
    if stat.f_type != NSFS {
        return Err(NetnsError::NotANamespace {
            path: path.to_owned(),
        });
    }
    Ok(file)
}

/// Unpins a namespace and removes its file; a missing path is no error.
///
/// # Errors
/// The kernel refuses to unmount or to unlink.
pub fn remove(path: &Path) -> Result<(), NetnsError> {
    let failed = |step| {
        move |source: io::Error| NetnsError::Step {
            step,
            path: path.to_owned(),
            source,
        }
    };
    match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        // EINVAL: a plain file, left by a reboot.
        Ok(()) | Err(Errno::NOENT | Errno::INVAL) => {}
        Err(code) => return Err(failed("unpin")(code.into())),
    }
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(failed("remove")(source)),
        _ => Ok(()),
    }
}

/// Runs `work` on a new thread inside the namespace and returns what it returns.
///
/// # Errors
/// The thread cannot start or cannot enter the namespace; `work` did not run then.
pub fn run_in<T: Send>(netns: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let inside = move || -> io::Result<T> {
            move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))?;
            Ok(work())
        };
        let thread = thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, inside)?;
        match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Whether the namespace is the calling thread's own.
pub(crate) fn is_own(netns: &File) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let own = std::fs::metadata("/proc/thread-self/ns/net")?;
    let other = netns.metadata()?;
    Ok((own.dev(), own.ino()) == (other.dev(), other.ino()))
}

/// Brings the loopback of a pod's namespace up; the host's own is refused.
///
/// # Errors
/// The namespace cannot be opened or entered, or the kernel refuses.
pub(crate) fn loopback_up(path: &Path) -> Result<(), NetnsError> {
    let failed = |source| NetnsError::Step {
        step: "bring up the loopback of",
        path: path.to_owned(),
        source,
    };
    let netns = open(path)?;
    if is_own(&netns).map_err(failed)? {
        return Err(NetnsError::OfTheHost {
            path: path.to_owned(),
        });
    }
    let raise = || -> Result<(), Errno> {
        let mut route = Route::open()?;
        let lo = route.link("lo")?.ok_or(Errno::NODEV)?;
        route.set_up(lo.index)
    };
    run_in(netns.as_fd(), raise)
        .map_err(failed)?
        .map_err(|code| failed(code.into()))
}
