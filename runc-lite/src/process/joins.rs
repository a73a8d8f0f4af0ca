//! Existing namespaces: opened by the caller, judged before any side effect, entered in an order that works.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{CWD, FsWord, Mode, OFlags, fstat, fstatfs};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::error::{ProcessError, io_error};
use crate::plan::{NamespaceKind, Namespaces, Plan};
use crate::sys::namespace_type;

/// `NSFS_MAGIC`.
const NSFS_MAGIC: FsWord = 0x6e73_6673;

/// A namespace to join, of the kind the document says.
pub(super) type Joined = (NamespaceKind, OwnedFd);

/// Opens the namespaces to join. The user namespace of the runtime itself is left out: everything is in it
/// already, and setns(2) refuses it.
pub(super) fn open(namespaces: &Namespaces) -> Result<Vec<Joined>, ProcessError> {
    let mut opened = Vec::with_capacity(namespaces.join.len());
    for (kind, path) in &namespaces.join {
        if *kind == NamespaceKind::User && is_own(path, *kind) {
            continue;
        }
        opened.push((*kind, open_one(*kind, path)?));
    }
    Ok(opened)
}

fn open_one(kind: NamespaceKind, path: &Path) -> Result<OwnedFd, ProcessError> {
    let fail = |e: Errno| {
        let object = format!("the {} namespace {}", kind.name(), path.display());
        io_error("open", object, e)
    };
    let refuse = |reason: String| ProcessError::Host {
        field: "linux.namespaces.path".to_owned(),
        value: path.display().to_string(),
        reason,
    };
    let not_one = || {
        refuse(format!(
            "is not a {} namespace but another file",
            kind.name()
        ))
    };
    // Order: examined before it is opened for good, because opening a FIFO waits and opening a device acts.
    let found = rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let found = found.map_err(fail)?;
    if fstatfs(&found).map_err(fail)?.f_type != NSFS_MAGIC {
        return Err(not_one());
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let fd = rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(fail)?;
    let same = |a: &OwnedFd, b: &OwnedFd| {
        let inode = |fd: &OwnedFd| fstat(fd).ok().map(|s| (s.st_dev, s.st_ino));
        inode(a) == inode(b)
    };
    match namespace_type(fd.as_fd()) {
        Ok(found_kind) if found_kind == kind.clone_flag() && same(&found, &fd) => Ok(fd),
        Ok(other) => {
            let name = NamespaceKind::ALL
                .into_iter()
                .find(|known| known.clone_flag() == other)
                .map_or("unknown", NamespaceKind::name);
            Err(refuse(format!(
                "is not a {} namespace but one of type {name}",
                kind.name()
            )))
        }
        Err(_) => Err(not_one()),
    }
}

/// Whether `path` is the runtime's own namespace of this kind.
pub(super) fn is_own(path: &Path, kind: NamespaceKind) -> bool {
    let own = std::fs::metadata(format!("/proc/self/ns/{}", kind.proc_name()));
    match (std::fs::metadata(path), own) {
        (Ok(a), Ok(b)) => a.dev() == b.dev() && a.ino() == b.ino(),
        _ => false,
    }
}

/// The user namespace among them.
pub(super) fn user(joined: &[Joined]) -> Option<BorrowedFd<'_>> {
    let found = joined.iter().find(|(kind, _)| *kind == NamespaceKind::User);
    found.map(|(_, fd)| fd.as_fd())
}

/// Whether init must be born by a process that joined: a PID namespace is joined by children only; in a user
/// namespace, joined or new, there is no way back to join what is owned outside; and what is made at the
/// birth must belong to the user namespace.
pub(super) fn need_birth_inside(plan: &Plan, joined: &[Joined]) -> bool {
    let inside = |(kind, _): &Joined| matches!(kind, NamespaceKind::Pid | NamespaceKind::User);
    joined.iter().any(inside) || (!joined.is_empty() && plan.namespaces.makes(NamespaceKind::User))
}

/// The order of joining. The mount namespace comes last of those that the caller's privileges are for,
/// because paths mean something else from then on.
const ORDER: [NamespaceKind; 7] = [
    NamespaceKind::Time,
    NamespaceKind::Ipc,
    NamespaceKind::Uts,
    NamespaceKind::Network,
    NamespaceKind::Pid,
    NamespaceKind::Cgroup,
    NamespaceKind::Mount,
];

/// Joins all namespaces.
///
/// Those that the caller may join come before the user namespace: once inside, it has no say over what a
/// namespace outside owns. What is refused then is owned by the user namespace in a way that only its
/// members have a say over, and is tried again from inside; setns(2) and user_namespaces(7), "Interaction
/// of user namespaces and other types of namespaces".
///
/// # Errors
/// A text that names the namespace.
pub(super) fn enter(joined: &[Joined]) -> Result<(), String> {
    let find = |kind: NamespaceKind| joined.iter().find(|(known, _)| *known == kind);
    let user = find(NamespaceKind::User);
    let mut deferred: Vec<&Joined> = Vec::new();
    for one in ORDER.into_iter().filter_map(find) {
        match enter_one(one) {
            Err(Errno::PERM) if user.is_some() => deferred.push(one),
            other => told(one, other)?,
        }
    }
    for one in user.into_iter().chain(deferred) {
        told(one, enter_one(one))?;
    }
    Ok(())
}

fn enter_one((kind, fd): &Joined) -> Result<(), Errno> {
    let link = match kind {
        NamespaceKind::Network => LinkNameSpaceType::Network,
        NamespaceKind::Mount => LinkNameSpaceType::Mount,
        NamespaceKind::Uts => LinkNameSpaceType::HostNameAndNISDomainName,
        NamespaceKind::Ipc => LinkNameSpaceType::InterProcessCommunication,
        NamespaceKind::Cgroup => LinkNameSpaceType::ControlGroup,
        NamespaceKind::Pid => LinkNameSpaceType::ProcessID,
        NamespaceKind::User => LinkNameSpaceType::User,
        NamespaceKind::Time => LinkNameSpaceType::Time,
    };
    move_into_link_name_space(fd.as_fd(), Some(link))
}

fn told((kind, _): &Joined, result: Result<(), Errno>) -> Result<(), String> {
    result.map_err(|e| format!("cannot join the {} namespace: {e}", kind.name()))
}
