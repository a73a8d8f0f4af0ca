//! User namespaces as the parent sees them: ids written and read, processes that hold one for a moment, and
//! what only a process outside can do for one inside.

use std::fmt::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Gid, Pid, Rlimit, Uid, getrlimit, set_dumpable_behavior};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::error::{ProcessError, io_error};
use super::id_programs::{self, Kind};
use super::message::{ToParent, pair};
use super::wait::{KILL_PATIENCE, end};
use crate::plan::{IdMapping, IdMappings, NamespaceKind, Plan, ProcessPlan};
use crate::rootfs::is_in_user_namespace;
use crate::sys::{CloneFlags, Forked, clone3, exit_now};

/// A user namespace that is not the runtime's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct UserNamespace {
    /// Its ids; outside ones as the runtime's user namespace numbers them.
    pub(super) ids: IdMappings,
    /// Whether setgroups(2) works inside.
    pub(super) may_set_groups: bool,
}

/// Whether this process may do what root may: decides who prepares, the parent or the process inside.
pub(super) fn is_privileged() -> bool {
    rustix::process::geteuid().is_root()
}

/// The lines of `/proc/<pid>/uid_map` for `mappings`.
fn text(mappings: &[IdMapping]) -> String {
    let mut text = String::new();
    for m in mappings {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{} {} {}", m.container, m.host, m.size);
    }
    text
}

/// The rules for a container of an ordinary user, see runc's "rootless" documents.
pub(super) fn check_rootless(plan: &Plan) -> Result<(), ProcessError> {
    if is_privileged() {
        return Ok(());
    }
    if !plan.namespaces.separates(NamespaceKind::User) {
        return Err(ProcessError::Host {
            field: "linux.namespaces".to_owned(),
            value: "[...]".to_owned(),
            reason: "has no user namespace: a rootless container requires user namespaces"
                .to_owned(),
        });
    }
    if let Some(mount) = plan.mounts.iter().find(|mount| mount.idmap.is_some()) {
        return Err(ProcessError::Host {
            field: format!("mounts[{}].uidMappings", mount.index),
            value: mount.destination.clone(),
            reason: "mapping the ids of a mount is for root, this is a rootless container"
                .to_owned(),
        });
    }
    Ok(())
}

/// Refuses mappings whose text the kernel would not take: it reads at most a page, less one byte.
pub(super) fn check_size(mappings: &IdMappings, field: &str) -> Result<(), ProcessError> {
    for (kind, list) in [("uid", &mappings.uids), ("gid", &mappings.gids)] {
        let (length, page) = (text(list).len(), rustix::param::page_size());
        if length >= page {
            return Err(ProcessError::Host {
                field: format!("{field}{kind}Mappings"),
                value: format!("{} entries", list.len()),
                reason: format!(
                    "take {length} bytes in /proc/<pid>/{kind}_map, this kernel takes less than {page}"
                ),
            });
        }
    }
    Ok(())
}

/// Gives the user namespace of `pid`, a child of this process, its ids.
///
/// With privileges they are written as they are. An ordinary user may write a single id, its own, and has
/// to give up setgroups(2) for the group; everything else is for newuidmap(1) and newgidmap(1).
pub(super) fn write_ids(pid: i32, ids: &IdMappings) -> Result<(), ProcessError> {
    let write = |file: &str, value: &str| {
        let path = format!("/proc/{pid}/{file}");
        let opened = std::fs::OpenOptions::new().write(true).open(&path);
        opened
            .and_then(|mut file| std::io::Write::write_all(&mut file, value.as_bytes()))
            .map_err(|e| io_error("write", format!("{path}: {:?}", value.trim_end()), e))
    };
    let denied = |result: &Result<(), ProcessError>| {
        let error = result.as_ref().err();
        let permission = |e: &ProcessError| matches!(e, ProcessError::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied);
        error.is_some_and(permission)
    };
    let written = write("uid_map", &text(&ids.uids));
    if denied(&written) && !is_privileged() {
        id_programs::run(Kind::User, pid, &ids.uids)?;
    } else {
        written?;
    }
    if !is_privileged() && is_only(&ids.gids, rustix::process::getegid().as_raw()) {
        // Without it a process could drop a group that keeps it out of a file (CVE-2014-8989).
        write("setgroups", "deny")?;
        return write("gid_map", &text(&ids.gids));
    }
    let written = write("gid_map", &text(&ids.gids));
    if denied(&written) && !is_privileged() {
        return id_programs::run(Kind::Group, pid, &ids.gids);
    }
    written
}

/// Whether nothing is mapped but the one id `own`.
fn is_only(mappings: &[IdMapping], own: u32) -> bool {
    matches!(mappings, [one] if one.host == own && one.size == 1)
}

/// The user namespace of process `pid`, which somebody must hold.
pub(super) fn of_process(pid: i32) -> Result<UserNamespace, ProcessError> {
    let read = |file: &str| {
        let path = format!("/proc/{pid}/{file}");
        std::fs::read_to_string(&path).map_err(|e| io_error("read", path, e))
    };
    Ok(UserNamespace {
        ids: IdMappings {
            uids: parse(&read("uid_map")?),
            gids: parse(&read("gid_map")?),
        },
        may_set_groups: read("setgroups")?.trim() == "allow",
    })
}

fn parse(text: &str) -> Vec<IdMapping> {
    let line = |line: &str| {
        let mut numbers = line.split_whitespace().map(|word| word.parse::<u32>().ok());
        Some(IdMapping {
            container: numbers.next()??,
            host: numbers.next()??,
            size: numbers.next()??,
        })
    };
    text.lines().filter_map(line).collect()
}

/// The ids of an existing user namespace: a process enters it and waits there until they were read.
pub(super) fn of_descriptor(namespace: BorrowedFd<'_>) -> Result<UserNamespace, ProcessError> {
    let enter = || {
        move_into_link_name_space(namespace, Some(LinkNameSpaceType::User))
            .map_err(|e| format!("cannot join the user namespace: {e}"))
    };
    hold(CloneFlags::NONE, enter, of_process)
}

/// Makes a user namespace for nothing but its ids, as an id-mapped mount wants it. It goes with the last
/// descriptor or mount that uses it.
pub(super) fn with_ids(ids: &IdMappings) -> Result<OwnedFd, ProcessError> {
    let flags = CloneFlags(NamespaceKind::User.clone_flag());
    hold(
        flags,
        || Ok(()),
        |pid| {
            write_ids(pid, ids)?;
            let path = format!("/proc/{pid}/ns/user");
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            rustix::fs::openat(CWD, &path, flags, Mode::empty())
                .map_err(|e| io_error("open", path, e))
        },
    )
}

/// Bears a process with `flags` that calls `enter` and then waits; calls `look` with its number and sends
/// it away. When this process dies, the other one sees the end of the channel and ends too.
fn hold<T>(
    flags: CloneFlags,
    enter: impl FnOnce() -> Result<(), String>,
    look: impl FnOnce(i32) -> Result<T, ProcessError>,
) -> Result<T, ProcessError> {
    let (parent_end, child_end) = pair().map_err(|e| io_error("make", "a socket pair", e))?;
    let forked = clone3(flags, None).map_err(|e| told_birth("a process for its ids", e))?;
    let (pid, pidfd) = match forked {
        Forked::Parent { pid, pidfd } => (pid, pidfd),
        Forked::Child => {
            drop(parent_end);
            // It is about to stand where others may have a say.
            let entered = set_dumpable_unless_mapped(flags)
                .map_err(|e| format!("cannot protect a process: {e}"))
                .and_then(|()| enter());
            let _ = match entered {
                Ok(()) => child_end.send(&ToParent::Ready),
                Err(text) => child_end.send(&ToParent::Failed(text)),
            };
            let _ = child_end.receive();
            exit_now(0)
        }
    };
    drop(child_end);
    let looked = match parent_end.receive() {
        Ok(Some(ToParent::Ready)) => look(pid),
        Ok(Some(ToParent::Failed(reason))) => Err(ProcessError::Child { reason }),
        Ok(_) => Err(ProcessError::Child {
            reason: "the process of a user namespace died".to_owned(),
        }),
        Err(e) => Err(io_error("talk to", "the process of a user namespace", e)),
    };
    // Order: it ends when it sees the end of the channel.
    drop(parent_end);
    end(pid, pidfd.as_fd(), KILL_PATIENCE);
    looked
}

/// A process whose ids an ordinary user still has to write must stay reachable for that user's procfs.
fn set_dumpable_unless_mapped(flags: CloneFlags) -> Result<(), Errno> {
    if flags == CloneFlags::NONE {
        return set_dumpable_behavior(DumpableBehavior::NotDumpable);
    }
    Ok(())
}

/// Explains why a process in new namespaces could not be born.
pub(super) fn told_birth(what: &str, error: std::io::Error) -> ProcessError {
    let hint = match error.raw_os_error() {
        Some(libc::ENOSPC) => "a limit of namespaces is reached, see namespaces(7), /proc/sys/user",
        Some(libc::EPERM) if !is_privileged() => {
            "the kernel does not let ordinary users make user namespaces, or this one is too deep"
        }
        Some(libc::EUSERS) => "user namespaces are nested too deep",
        Some(libc::EINVAL) => "the kernel lacks a kind of namespace that is asked for",
        _ => return io_error("make", what, error),
    };
    io_error("make", format!("{what} ({hint})"), error)
}

/// Whether a process with this user namespace (`None`: the runtime's own) may set its groups.
pub(super) fn may_set_groups(namespace: Option<&UserNamespace>) -> bool {
    match namespace {
        Some(namespace) => namespace.may_set_groups,
        None if is_in_user_namespace() => {
            std::fs::read("/proc/self/setgroups").is_ok_and(|text| text.starts_with(b"allow"))
        }
        None => true,
    }
}

/// Becomes the first user and group of the namespace, so that what the process makes belongs to somebody
/// there. Its capabilities stay: it has all of them in its user namespace.
///
/// # Errors
/// A text that names the id.
pub(super) fn become_first_user(namespace: &UserNamespace) -> Result<(), String> {
    let UserNamespace {
        ids,
        may_set_groups,
    } = namespace;
    let first = |mappings: &[IdMapping]| {
        let has_zero = mappings.iter().any(|m| m.container == 0);
        let lowest = mappings.first().map_or(0, |m| m.container);
        if has_zero { 0 } else { lowest }
    };
    if *may_set_groups {
        rustix::thread::set_thread_groups(&[])
            .map_err(|e| format!("cannot drop the groups of the runtime: {e}"))?;
    }
    let (uid, gid) = (first(&ids.uids), first(&ids.gids));
    let group = Gid::from_raw(gid);
    rustix::thread::set_thread_res_gid(group, group, group)
        .map_err(|e| format!("cannot become group {gid} of the user namespace: {e}"))?;
    let user = Uid::from_raw(uid);
    rustix::thread::set_thread_res_uid(user, user, user)
        .map_err(|e| format!("cannot become user {uid} of the user namespace: {e}"))
}

/// What only somebody outside can do for a process that will run in `namespace`: hard limits above the
/// runtime's own, and streams that belong to the user it will be.
pub(super) fn prepare_from_outside(pid: i32, plan: &ProcessPlan, namespace: &UserNamespace) {
    for limit in &plan.rlimits {
        let own = getrlimit(limit.resource);
        if own.maximum.is_none_or(|own| limit.hard <= own) {
            continue;
        }
        let wanted = Rlimit {
            current: own.current,
            maximum: (limit.hard != u64::MAX).then_some(limit.hard),
        };
        // Ignored: without CAP_SYS_RESOURCE the limit is clamped by the process, which says so.
        let _ = rustix::process::prlimit(Pid::from_raw(pid), limit.resource, wanted);
    }
    let outside = namespace
        .ids
        .host_uid(plan.uid)
        .zip(namespace.ids.host_gid(plan.gid));
    if let Some((uid, gid)) = outside.filter(|_| !plan.terminal) {
        super::terminal::give_streams(false, uid, gid);
    }
}

/// Refuses groups that could not be taken on.
pub(super) fn check_groups(
    plan: &ProcessPlan,
    namespace: &UserNamespace,
) -> Result<(), ProcessError> {
    if namespace.may_set_groups || plan.additional_gids.is_empty() {
        return Ok(());
    }
    Err(ProcessError::Host {
        field: "process.user.additionalGids".to_owned(),
        value: format!("{:?}", plan.additional_gids),
        reason: "cannot be taken on: setgroups(2) is denied in the user namespace, see \
                 user_namespaces(7)"
            .to_owned(),
    })
}

/// The user namespace a container will have, as far as it is known before its first process: with the ids
/// of the document when it is made, with its own when it is joined.
pub(super) fn foresee(
    plan: &Plan,
    joined: Option<BorrowedFd<'_>>,
    warn: &mut dyn FnMut(&str),
) -> Result<Option<UserNamespace>, ProcessError> {
    let namespace = if plan.namespaces.makes(NamespaceKind::User) {
        check_size(&plan.id_mappings, "linux.")?;
        let own_group = rustix::process::getegid().as_raw();
        UserNamespace {
            ids: plan.id_mappings.clone(),
            may_set_groups: is_privileged() || !is_only(&plan.id_mappings.gids, own_group),
        }
    } else if let Some(fd) = joined {
        let found = of_descriptor(fd.as_fd())?;
        let given = &plan.id_mappings;
        if !given.is_empty() {
            // containerd and CRI-O give the path and the ids it has; they must not say different things.
            if !is_same(&given.uids, &found.ids.uids) || !is_same(&given.gids, &found.ids.gids) {
                return Err(ProcessError::Host {
                    field: "linux.uidMappings".to_owned(),
                    value: format!("{}, {}", list(&given.uids), list(&given.gids)),
                    reason: format!(
                        "are not the ids of the user namespace to join, which has {}, {}",
                        list(&found.ids.uids),
                        list(&found.ids.gids)
                    ),
                });
            }
            warn("linux.uidMappings: not needed, the user namespace is joined by its path");
        }
        crate::spec::check_process_ids(&found.ids, &plan.process)?;
        found
    } else {
        return Ok(None);
    };
    check_groups(&plan.process, &namespace)?;
    Ok(Some(namespace))
}

fn is_same(a: &[IdMapping], b: &[IdMapping]) -> bool {
    // The kernel keeps more than five entries sorted.
    let sorted = |list: &[IdMapping]| {
        let mut list = list.to_vec();
        list.sort_unstable_by_key(|m| m.container);
        list
    };
    sorted(a) == sorted(b)
}

fn list(mappings: &[IdMapping]) -> String {
    let mut parts: Vec<String> = mappings
        .iter()
        .take(8)
        .map(|m| format!("{}:{}:{}", m.container, m.host, m.size))
        .collect();
    if mappings.len() > parts.len() {
        parts.push("...".to_owned());
    }
    format!("[{}]", parts.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(container: u32, host: u32, size: u32) -> IdMapping {
        IdMapping {
            container,
            host,
            size,
        }
    }

    #[test]
    fn ids_are_written_and_read_as_the_kernel_does() {
        let ids = [mapping(0, 1000, 1), mapping(1, 100_000, 65_535)];
        assert_eq!(text(&ids), "0 1000 1\n1 100000 65535\n");
        let shown = "         0       1000          1\n         1     100000      65535\n";
        assert_eq!(parse(shown), ids);
        assert_eq!(parse("garbage\n1 2\n"), []);
    }

    #[test]
    fn a_text_of_more_than_a_page_is_refused() {
        let far = 4_000_000_000u32;
        let long = |count: u32| IdMappings {
            uids: (0..count).map(|i| mapping(far + i, far + i, 1)).collect(),
            gids: Vec::new(),
        };
        assert!(check_size(&long(100), "linux.").is_ok());
        if rustix::param::page_size() == 4096 {
            let text = check_size(&long(340), "linux.").unwrap_err().to_string();
            assert!(
                text.contains("linux.uidMappings") && text.contains("4096"),
                "{text}"
            );
        }
    }

    #[test]
    fn order_makes_no_difference_between_mappings() {
        let (a, b) = (mapping(0, 10, 1), mapping(1, 20, 1));
        assert!(is_same(&[a, b], &[b, a]));
        assert!(!is_same(&[a], &[a, b]));
        assert!(is_only(&[a], 10) && !is_only(&[a], 11) && !is_only(&[a, b], 10));
    }
}
