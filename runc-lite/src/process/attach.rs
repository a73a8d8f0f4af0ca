//! A later process in a running container: what `exec` does.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::process::{DumpableBehavior, WaitOptions, set_dumpable_behavior};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use super::intermediate::{Role, bear};
use super::message::{ChildEnd, LISTENER, ToChild, ToParent, pair};
use super::parent::{
    ProcessError, agent_state, check_labels, io_error, open_pidfd, proceed_and_receive,
    set_oom_score, write_pid_file,
};
use super::terminal::Console;
use super::wait::reap;
use super::{program, scheduling, terminal};
use crate::cgroup::{Cgroup, Subgroup};
use crate::error_chain;
use crate::log::Log;
use crate::plan::ProcessPlan;
use crate::resctrl::ResctrlRecord;
use crate::rootfs::{self, Root};
use crate::seccomp::Filter;
use crate::seccomp::agent::Agent;
use crate::state::Record;
use crate::sys::{CloneFlags, close_all_except, exit_now, send_signal};

/// What `exec` is asked for.
#[derive(Debug)]
pub struct AttachRequest<'a> {
    /// Container id.
    pub id: &'a str,
    /// The container's init, verified to be it.
    pub init: BorrowedFd<'a>,
    /// What to run.
    pub plan: &'a ProcessPlan,
    /// The container's filter.
    pub filter: Option<&'a Filter>,
    /// The container's cgroup.
    pub cgroup: &'a dyn Cgroup,
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
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|e| io_error("protect", "this process", e))?;
    let (channel, child_end) = pair().map_err(|e| io_error("make", "a socket pair", e))?;
    let enter = || {
        // All at once; user namespaces come later and will be left out when they are the caller's own.
        let all = ThreadNameSpaceType::MOUNT
            | ThreadNameSpaceType::PROCESS_ID
            | ThreadNameSpaceType::NETWORK
            | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
            | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
            | ThreadNameSpaceType::CONTROL_GROUP;
        move_into_thread_name_spaces(request.init, all).map_err(|e| match e {
            rustix::io::Errno::SRCH => "cannot exec in a stopped container".to_owned(),
            other => format!("cannot join the container's namespaces: {other}"),
        })
    };
    let role = bear(channel, &child_end, CloneFlags::NONE, enter)
        .map_err(|e| io_error("make", "the process", e))?;
    let intermediate = match role {
        Role::Born => run(request, &child_end, console.as_ref().map(AsFd::as_fd)),
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
    request.cgroup.join(intermediate.pid(), request.subgroup)?;
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
    let mut agent = agent;
    let (pid, channel) = proceed_and_receive(intermediate)?;
    let pidfd = open_pidfd(pid)?;
    let talk = |e| io_error("talk to", "the new process", e);
    channel.send(&ToChild::Proceed).map_err(talk)?;
    let mut ready = false;
    loop {
        match channel.receive_with_descriptor().map_err(talk)? {
            Some((ToParent::Ready, _)) => ready = true,
            Some((ToParent::Warning(text), _)) => request.log.warn(&text),
            Some((ToParent::Failed(reason), _)) => {
                reap(pid, WaitOptions::empty());
                return Err(ProcessError::Child { reason });
            }
            Some((ToParent::Listener, Some(seccomp_fd))) if agent.is_some() => {
                let sent = agent.take().map(|agent| {
                    let state = agent_state(request.record, agent.metadata(), pid, "running");
                    agent.hand_over(&state, seccomp_fd.as_fd())
                });
                if let Some(Err(error)) = sent {
                    // Nobody will answer: the program must not run.
                    let _ = send_signal(pidfd.as_fd(), libc::SIGKILL);
                    reap(pid, WaitOptions::empty());
                    return Err(error.into());
                }
            }
            Some((other, _)) => {
                return Err(ProcessError::Child {
                    reason: format!("unexpected {other:?}"),
                });
            }
            // The socket closes on execve.
            None if ready => break,
            None => {
                reap(pid, WaitOptions::empty());
                return Err(ProcessError::Child {
                    reason: "the process died before it could run its program".to_owned(),
                });
            }
        }
    }
    if let Some(path) = request.pid_file {
        write_pid_file(path, pid)?;
    }
    Ok(Attached { pid, pidfd })
}

/// The new process, born in the container's namespaces. Never returns.
fn run(request: &AttachRequest<'_>, channel: &ChildEnd, console: Option<BorrowedFd<'_>>) -> ! {
    let failure = match prepare(request, channel, console) {
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
    let _ = channel.send(&ToParent::Failed(failure));
    exit_now(1)
}

fn prepare<'a>(
    request: &AttachRequest<'a>,
    channel: &ChildEnd,
    console: Option<BorrowedFd<'_>>,
) -> Result<program::Prepared<'a>, String> {
    let mut keep = vec![channel.as_fd()];
    keep.extend(console);
    close_all_except(3 + request.preserve_fds, &keep)
        .map_err(|e| format!("cannot close inherited descriptors: {e}"))?;
    match channel.receive() {
        Ok(Some(ToChild::Proceed)) => {}
        _ => exit_now(1),
    }
    rustix::process::setsid().map_err(|e| format!("cannot make a session: {e}"))?;
    let root = Root::of_this_process().map_err(|e| error_chain(&e))?;
    if let Some(socket) = console {
        let (master, slave) =
            rootfs::open_terminal(&root, request.plan.console_size).map_err(|e| error_chain(&e))?;
        terminal::send_master(socket, master.as_fd())
            .and_then(|()| terminal::take_terminal(&slave))
            .map_err(|e| format!("cannot hand over the terminal: {e}"))?;
    }
    let mut warn = |text: String| {
        // A lost warning changes nothing.
        let _ = channel.send(&ToParent::Warning(text));
    };
    program::prepare(request.id, &root, request.plan, request.filter, &mut warn)
}
