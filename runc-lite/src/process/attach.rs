//! A later process in a running container: what `exec` does.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use super::error::{ProcessError, io_error};
use super::host::check_labels;
use super::intermediate::{Role, bear};
use super::message::{ChildEnd, LISTENER, MAX_WARNINGS, ParentEnd, ToChild, ToParent, pair};
use super::parent::{
    agent_state, open_pidfd, proceed_and_receive, protect, set_oom_score, write_pid_file,
};
use super::terminal::Console;
use super::user_namespace::{
    self, UserNamespace, become_first_user, check_groups, is_privileged, may_set_groups,
    prepare_from_outside,
};
use super::wait::{KILL_PATIENCE, end, wait_for_exit};
use super::{joins, program, scheduling, terminal};
use crate::cgroup::{Cgroup, Subgroup};
use crate::error_chain;
use crate::log::Log;
use crate::plan::{NamespaceKind, ProcessPlan};
use crate::resctrl::ResctrlRecord;
use crate::rootfs::{self, Root};
use crate::seccomp::Filter;
use crate::seccomp::agent::Agent;
use crate::state::{Record, process_stat};
use crate::sys::{CloneFlags, close_all_except, exit_now};

/// Init ended before or while the process was made.
const STOPPED: &str = "cannot exec in a stopped container";

/// What `exec` is asked for.
#[derive(Debug)]
pub struct AttachRequest<'a> {
    /// Container id.
    pub id: &'a str,
    /// The container's init, verified to be it.
    pub init: BorrowedFd<'a>,
    /// Kinds of namespaces the container's document lists.
    pub namespaces: &'a [NamespaceKind],
    /// What to run.
    pub plan: &'a ProcessPlan,
    /// The container's filter.
    pub filter: Option<&'a Filter>,
    /// The container's cgroup, if it has one.
    pub cgroup: Option<&'a dyn Cgroup>,
    /// The container's place in the resctrl tree.
    pub resctrl: Option<&'a ResctrlRecord>,
    /// A cgroup below it.
    pub subgroup: Option<&'a Subgroup>,
    /// Where to write the pid.
    pub pid_file: Option<&'a Path>,
    /// Who takes the terminal's master.
    pub console: Console<'a>,
    /// Descriptors from 3 on that the program inherits.
    pub preserve_fds: u32,
    /// The container's record, told to a seccomp agent.
    pub record: &'a Record,
    /// Warnings go here.
    pub log: &'a Log,
}

impl AttachRequest<'_> {
    fn init_pid(&self) -> i32 {
        self.record.init.map_or(0, |init| init.pid)
    }
}

/// A process that runs its program in the container.
#[derive(Debug)]
pub struct Attached {
    /// As this process's PID namespace numbers it.
    pub pid: i32,
    /// Its handle.
    pub pidfd: OwnedFd,
}

/// Runs a program in the namespaces and the cgroup of a container; returns once execve succeeded.
///
/// # Errors
/// [`ProcessError`].
pub fn attach(request: &AttachRequest<'_>) -> Result<Attached, ProcessError> {
    check_labels(request.plan)?;
    // Order: connected before there is a process, so that nothing is left when the agent is not there.
    let listener = request.filter.and_then(|filter| filter.listener.as_ref());
    let agent = listener.map(Agent::connect).transpose()?;
    request.console.check(request.plan.terminal)?;
    let console = request.console.open(request.plan.terminal)?;
    let ids = Ids::of(request)?;
    if is_privileged() {
        protect()?;
    }
    let (channel, child_end) = pair().map_err(|e| io_error("make", "a socket pair", e))?;
    let enter = || {
        set_dumpable_behavior(DumpableBehavior::NotDumpable)
            .map_err(|e| format!("cannot protect a process: {e}"))?;
        enter_container(request, ids.namespace.is_some())?;
        // Order: nobody in the container sees this process, but everybody the one it bears (CVE-2016-9962).
        let mut keep = vec![child_end.as_fd()];
        keep.extend(console.as_ref().map(AsFd::as_fd));
        close_all_except(3 + request.preserve_fds, &keep)
            .map_err(|e| format!("cannot close inherited descriptors: {e}"))
    };
    let role = bear(channel, &child_end, CloneFlags::NONE, enter)
        .map_err(|e| io_error("make", "the process", e))?;
    let intermediate = match role {
        Role::Born => run(request, &child_end, console.as_ref().map(AsFd::as_fd), &ids),
        Role::Parent(intermediate) => intermediate,
    };
    drop(child_end);
    let affinity = &request.plan.exec_cpu_affinity;
    if let Some(cpus) = &affinity.initial {
        // Order: before the cgroup, so that the process never runs on the cgroup's other CPUs first.
        scheduling::set_affinity(intermediate.pid(), "initial", cpus)
            .map_err(|reason| ProcessError::Child { reason })?;
    }
    // Order: the intermediate process is moved before it proceeds, so that the new one is born inside.
    if let Some(group) = request.cgroup {
        group.join(intermediate.pid(), request.subgroup)?;
    }
    if let Some(place) = request.resctrl {
        place.join(intermediate.pid())?;
    }
    match (&affinity.initial, &affinity.last) {
        (_, Some(cpus)) => scheduling::set_affinity(intermediate.pid(), "final", cpus)
            .map_err(|reason| ProcessError::Child { reason })?,
        // What is left then is the kernel's choice, says the specification.
        (Some(_), None) => {}
        (None, None) => scheduling::reset_affinity(intermediate.pid())
            .map_err(|e| io_error("reset the CPU affinity of", "the process", e))?,
    }
    if let Some(score) = request.plan.oom_score_adj {
        set_oom_score(intermediate.pid(), score, request.log)?;
    }
    protect()?;
    let (pid, channel) = proceed_and_receive(intermediate)?;
    let pidfd = open_pidfd(pid)?;
    if let Some(namespace) = &ids.namespace {
        prepare_from_outside(pid, request.plan, namespace);
    }
    let attached = Attached { pid, pidfd };
    let done = watch(request, &channel, agent, &attached).and_then(|()| match request.pid_file {
        Some(path) => write_pid_file(path, pid),
        None => Ok(()),
    });
    if let Err(error) = done {
        // Whatever it still waits for, an agent's answer for one: it must not run its program later, and one
        // that runs is nobody's.
        end(pid, attached.pidfd.as_fd(), Duration::ZERO);
        return Err(error);
    }
    Ok(attached)
}

/// What the new process needs to know about users and groups; asked while /proc is the host's.
#[derive(Debug)]
struct Ids {
    /// The container's user namespace, when it is not the runtime's.
    namespace: Option<UserNamespace>,
    may_set_groups: bool,
}

impl Ids {
    fn of(request: &AttachRequest<'_>) -> Result<Ids, ProcessError> {
        let path = format!("/proc/{}/ns/user", request.init_pid());
        let own = !request.namespaces.contains(&NamespaceKind::User)
            || joins::is_own(Path::new(&path), NamespaceKind::User);
        let namespace = if own {
            None
        } else {
            let found = user_namespace::of_process(request.init_pid())?;
            // Order: the files are those of init if it is still there after they were read.
            if wait_for_exit(request.init, Duration::ZERO) {
                return Err(ProcessError::Child {
                    reason: STOPPED.to_owned(),
                });
            }
            crate::spec::check_process_ids(&found.ids, request.plan)?;
            check_groups(request.plan, &found)?;
            Some(found)
        };
        Ok(Ids {
            may_set_groups: may_set_groups(namespace.as_ref()),
            namespace,
        })
    }
}

/// Joins the namespaces of the container's init, all at once.
fn enter_container(request: &AttachRequest<'_>, user: bool) -> Result<(), String> {
    let mut kinds = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::PROCESS_ID
        | ThreadNameSpaceType::NETWORK
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::CONTROL_GROUP;
    if request.namespaces.contains(&NamespaceKind::Time) {
        kinds |= ThreadNameSpaceType::TIME;
    }
    if user {
        kinds |= ThreadNameSpaceType::USER;
    }
    let joined = match move_into_thread_name_spaces(request.init, kinds) {
        // Somebody who is not root outside may not join what the container shares with everybody.
        Err(Errno::PERM) => {
            move_into_thread_name_spaces(request.init, kinds & foreign(request.init_pid()))
        }
        other => other,
    };
    joined.map_err(|e| match e {
        Errno::SRCH => STOPPED.to_owned(),
        other => format!("cannot join the container's namespaces: {other}"),
    })
}

/// The kinds of namespaces in which process `pid` has another one than the caller.
fn foreign(pid: i32) -> ThreadNameSpaceType {
    NamespaceKind::ALL
        .into_iter()
        .filter(|kind| {
            let path = format!("/proc/{pid}/ns/{}", kind.proc_name());
            !joins::is_own(Path::new(&path), *kind)
        })
        .map(|kind| match kind {
            NamespaceKind::Pid => ThreadNameSpaceType::PROCESS_ID,
            NamespaceKind::Network => ThreadNameSpaceType::NETWORK,
            NamespaceKind::Mount => ThreadNameSpaceType::MOUNT,
            NamespaceKind::Uts => ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME,
            NamespaceKind::Ipc => ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION,
            NamespaceKind::Cgroup => ThreadNameSpaceType::CONTROL_GROUP,
            NamespaceKind::User => ThreadNameSpaceType::USER,
            NamespaceKind::Time => ThreadNameSpaceType::TIME,
        })
        .fold(ThreadNameSpaceType::empty(), |all, one| all | one)
}

/// Lets the new process proceed and serves it until it runs its program.
fn watch(
    request: &AttachRequest<'_>,
    channel: &ParentEnd,
    mut agent: Option<Agent<'_>>,
    &Attached { pid, ref pidfd }: &Attached,
) -> Result<(), ProcessError> {
    let talk = |e| io_error("talk to", "the new process", e);
    channel.send(&ToChild::Proceed).map_err(talk)?;
    let (mut ready, mut warnings) = (false, 0);
    loop {
        match channel.receive_with_descriptor().map_err(talk)? {
            Some((ToParent::Ready, _)) => ready = true,
            Some((ToParent::Warning(text), _)) if warnings < MAX_WARNINGS => {
                warnings += 1;
                request.log.warn(&text);
            }
            Some((ToParent::Failed(reason), _)) => return Err(ProcessError::Child { reason }),
            Some((ToParent::Listener, Some(seccomp_fd))) if agent.is_some() => {
                if let Some(agent) = agent.take() {
                    let state = agent_state(request.record, agent.metadata(), pid, "running");
                    agent.hand_over(&state, seccomp_fd.as_fd())?;
                }
            }
            Some((other, _)) => {
                return Err(ProcessError::Child {
                    reason: format!("unexpected {other:?}"),
                });
            }
            // The socket closes on execve, and at the end of a process that was kept from saying why it ends.
            None if ready && process_stat(pid).is_some_and(|stat| stat.has_executed) => {
                return Ok(());
            }
            None => {
                let code = end(pid, pidfd.as_fd(), KILL_PATIENCE);
                return Err(ProcessError::Child {
                    reason: format!(
                        "the process died before it could run its program (exit code {})",
                        code.unwrap_or(-1)
                    ),
                });
            }
        }
    }
}

/// The new process, born in the container's namespaces. Never returns.
fn run(
    request: &AttachRequest<'_>,
    channel: &ChildEnd,
    console: Option<BorrowedFd<'_>>,
    ids: &Ids,
) -> ! {
    let failure = match prepare(request, channel, console, ids) {
        Ok(prepared) => {
            if channel.send(&ToParent::Ready).is_err() {
                exit_now(1)
            }
            match prepared.confine(channel.as_fd(), LISTENER) {
                Ok(()) => prepared.execute(),
                Err(text) => text,
            }
        }
        Err(text) => text,
    };
    channel.say_last(&ToParent::Failed(failure));
    exit_now(1)
}

fn prepare<'a>(
    request: &AttachRequest<'a>,
    channel: &ChildEnd,
    console: Option<BorrowedFd<'_>>,
    ids: &Ids,
) -> Result<program::Prepared<'a>, String> {
    match channel.receive() {
        Ok(Some(ToChild::Proceed)) => {}
        _ => exit_now(1),
    }
    rustix::process::setsid().map_err(|e| format!("cannot make a session: {e}"))?;
    if let Some(namespace) = &ids.namespace {
        become_first_user(namespace)?;
        set_dumpable_behavior(DumpableBehavior::NotDumpable)
            .map_err(|e| format!("cannot protect the process: {e}"))?;
    }
    let root = Root::of_this_process().map_err(|e| error_chain(&e))?;
    if let Some(socket) = console {
        let size = request.plan.console_size;
        let opened = rootfs::open_terminal(&root, size, request.console.is_relayed());
        let (master, slave) = opened.map_err(|e| error_chain(&e))?;
        terminal::send_master(socket, master.as_fd())
            .and_then(|()| terminal::take_terminal(&slave))
            .map_err(|e| format!("cannot hand over the terminal: {e}"))?;
    }
    let mut warn = |text: String| {
        // A lost warning changes nothing.
        let _ = channel.send(&ToParent::Warning(text));
    };
    program::prepare(
        request.id,
        &root,
        request.plan,
        request.filter,
        ids.may_set_groups,
        &mut warn,
    )
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::thread;

    use super::*;
    use crate::log::Format;
    use crate::state::ContainerId;

    #[test]
    fn a_process_that_only_warns_is_not_believed_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(&dir.path().join("log"), Format::Json, false).unwrap();
        let plan = crate::spec::plan_process(
            serde_json::from_str(r#"{"args": ["x"], "cwd": "/"}"#).unwrap(),
            &crate::config::Linux::default(),
        )
        .unwrap();
        let record = Record::new(&ContainerId::parse("one").unwrap());
        let nobody = fs::File::open("/dev/null").unwrap();
        let request = AttachRequest {
            id: "one",
            init: nobody.as_fd(),
            namespaces: &[],
            plan: &plan,
            filter: None,
            cgroup: None,
            resctrl: None,
            subgroup: None,
            pid_file: None,
            console: Console::Nobody,
            preserve_fds: 0,
            record: &record,
            log: &log,
        };
        let (parent, child) = pair().unwrap();
        let warner = thread::spawn(move || {
            // As the new process does; the kernel tells of what was left unread before what was sent.
            assert_eq!(child.receive().unwrap(), Some(ToChild::Proceed));
            // Ignored: nobody listens any more, as it should be.
            let _ = (0..2 * MAX_WARNINGS)
                .try_for_each(|_| child.send(&ToParent::Warning("again".to_owned())))
                .and_then(|()| child.send(&ToParent::Failed("all were taken".to_owned())));
        });
        let process = Attached {
            pid: 0,
            pidfd: nobody.try_clone().unwrap().into(),
        };
        let watched = watch(&request, &parent, None, &process).unwrap_err();
        drop(parent);
        warner.join().unwrap();
        assert!(
            watched.to_string().contains("unexpected Warning"),
            "{watched}"
        );
        let lines = fs::read_to_string(dir.path().join("log")).unwrap();
        assert_eq!(lines.lines().count(), MAX_WARNINGS);
    }
}
