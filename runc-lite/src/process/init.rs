//! The container's first process, from its birth to execve.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::hooks::Surroundings;
use super::message::{ChildEnd, ToChild, ToParent};
use super::program::{self, Prepared};
use super::{gate, hooks, terminal};
use crate::cgroup::CgroupRecord;
use crate::config::StateDocument;
use crate::error_chain;
use crate::plan::{NamespaceKind, Plan};
use crate::rootfs::{self, Root};
use crate::seccomp::Filter;
use crate::sys::{close_all_except, exit_now};

/// What init inherits from the parent by the clone.
#[derive(Debug)]
pub(super) struct Inheritance<'a> {
    pub(super) id: &'a str,
    pub(super) plan: &'a Plan,
    pub(super) bundle: &'a Path,
    pub(super) cgroup: &'a CgroupRecord,
    pub(super) filter: Option<&'a Filter>,
    /// Namespaces to join, opened by the parent.
    pub(super) joined: &'a [(NamespaceKind, OwnedFd)],
    pub(super) gate: BorrowedFd<'a>,
    pub(super) console: Option<BorrowedFd<'a>>,
    /// First descriptor that is not meant for the program.
    pub(super) first_private_fd: u32,
}

/// Runs init. Never returns: it becomes the program or ends.
pub(super) fn run(inheritance: &Inheritance<'_>, channel: &ChildEnd) -> ! {
    let prepared = match prepare(inheritance, channel) {
        Ok(prepared) => prepared,
        Err(text) => {
            let _ = channel.send(&ToParent::Failed(text));
            exit_now(1)
        }
    };
    if channel.send(&ToParent::Ready).is_err() {
        exit_now(1)
    }
    // What is left open while the container waits for its start is what the program will have, and the gate.
    let first = inheritance.first_private_fd;
    if close_all_except(first, &[inheritance.gate]).is_err() {
        exit_now(1)
    }
    let Ok(starter) = gate::wait(inheritance.gate) else {
        exit_now(1)
    };
    let surroundings = Surroundings {
        state: &prepared.state,
        directory: None,
        environment: prepared.program.environment(),
    };
    let hooks = &inheritance.plan.hooks.start_container;
    // The filter first: it holds for startContainer hooks too, which are programs of the container.
    let failure = prepared
        .program
        .confine(starter.as_fd(), gate::LISTENER)
        .and_then(|()| hooks::run("startContainer", hooks, surroundings))
        .map_or_else(|text| text, |()| prepared.program.execute());
    gate::report(starter.as_fd(), &failure);
    exit_now(1)
}

struct Ready<'a> {
    program: Prepared<'a>,
    /// For startContainer hooks.
    state: String,
}

fn prepare<'a>(inheritance: &Inheritance<'a>, channel: &ChildEnd) -> Result<Ready<'a>, String> {
    let plan = inheritance.plan;
    let mut keep = vec![channel.as_fd(), inheritance.gate];
    keep.extend(inheritance.console);
    keep.extend(inheritance.joined.iter().map(|(_, fd)| fd.as_fd()));
    // Before anything else: the parent's lock and log are not for this process.
    close_all_except(inheritance.first_private_fd, &keep)
        .map_err(|e| format!("cannot close inherited descriptors: {e}"))?;
    match channel.receive() {
        Ok(Some(ToChild::Proceed)) => {}
        // The runtime was killed: nobody is told, nothing is left.
        _ => exit_now(1),
    }
    rustix::process::setsid().map_err(|e| format!("cannot make a session: {e}"))?;
    enter_namespaces(inheritance)?;
    // Mount points and devices get the modes they are made with, whatever the caller's mask is; the
    // container's own mask is set before its program runs.
    rustix::process::umask(rustix::fs::Mode::empty());
    let root = build_rootfs(inheritance, channel)?;
    if !plan.hostname.is_empty() {
        rustix::system::sethostname(plan.hostname.as_bytes())
            .map_err(|e| format!("cannot set the host name {:?}: {e}", plan.hostname))?;
    }
    if !plan.domainname.is_empty() {
        rustix::system::setdomainname(plan.domainname.as_bytes())
            .map_err(|e| format!("cannot set the domain name {:?}: {e}", plan.domainname))?;
    }
    rootfs::write_sysctls(&plan.sysctls).map_err(|e| error_chain(&e))?;
    let state = if plan.hooks.start_container.is_empty() {
        String::new()
    } else {
        state_document(inheritance, "created")
    };
    // An image need not bring its working directory; what resolves strangely is left to the check below.
    if matches!(root.find(&plan.process.cwd), Ok(None)) {
        root.make_directory(&plan.process.cwd, 0o755)
            .map_err(|e| error_chain(&e))?;
    }
    rootfs::finish(&root, &plan.rootfs).map_err(|e| error_chain(&e))?;
    let mut warn = |text: String| {
        // A lost warning changes nothing.
        let _ = channel.send(&ToParent::Warning(text));
    };
    let program = program::prepare(
        inheritance.id,
        &root,
        &plan.process,
        inheritance.filter,
        &mut warn,
    )?;
    Ok(Ready { program, state })
}

fn enter_namespaces(inheritance: &Inheritance<'_>) -> Result<(), String> {
    for (kind, fd) in inheritance.joined {
        let link = match kind {
            NamespaceKind::Network => LinkNameSpaceType::Network,
            NamespaceKind::Mount => LinkNameSpaceType::Mount,
            NamespaceKind::Uts => LinkNameSpaceType::HostNameAndNISDomainName,
            NamespaceKind::Ipc => LinkNameSpaceType::InterProcessCommunication,
            NamespaceKind::Cgroup => LinkNameSpaceType::ControlGroup,
            // Entered before this process was born.
            NamespaceKind::Pid | NamespaceKind::User | NamespaceKind::Time => continue,
        };
        move_into_link_name_space(fd.as_fd(), Some(link))
            .map_err(|e| format!("cannot join the {} namespace: {e}", kind.name()))?;
    }
    if inheritance.plan.namespaces.makes(NamespaceKind::Cgroup) {
        // Order: its root is the cgroup this process is in by now.
        crate::sys::unshare(NamespaceKind::Cgroup.clone_flag())
            .map_err(|e| format!("cannot make a cgroup namespace: {e}"))?;
    }
    Ok(())
}

fn build_rootfs(inheritance: &Inheritance<'_>, channel: &ChildEnd) -> Result<Root, String> {
    let Inheritance { plan, bundle, .. } = *inheritance;
    let chain = |e: rootfs::RootfsError| error_chain(&e);
    let shared = rootfs::prepare_shared_binds(&plan.mounts, bundle).map_err(chain)?;
    let root = rootfs::enter(&plan.rootfs, bundle).map_err(chain)?;
    rootfs::mount_all(
        &root,
        &plan.mounts,
        shared,
        bundle,
        Some(inheritance.cgroup),
        plan.namespaces.separates(NamespaceKind::Cgroup),
    )
    .map_err(chain)?;
    rootfs::make_devices(&root, &plan.devices, &plan.mounts).map_err(chain)?;
    if let Some(socket) = inheritance.console {
        let (master, slave) =
            rootfs::open_terminal(&root, plan.process.console_size).map_err(chain)?;
        rootfs::bind_console(&root, &slave).map_err(chain)?;
        terminal::send_master(socket, master.as_fd())
            .and_then(|()| terminal::take_terminal(&slave))
            .map_err(|e| format!("cannot hand over the terminal: {e}"))?;
    }
    if plan.hooks.any_of_create() {
        channel
            .send(&ToParent::RunHooks)
            .map_err(|e| format!("cannot send to the runtime: {e}"))?;
        match channel.receive() {
            Ok(Some(ToChild::HooksDone)) => {}
            _ => exit_now(1),
        }
    }
    if !plan.hooks.create_container.is_empty() {
        // Where runc runs them, so that hooks can name the container's files by relative paths.
        rustix::process::fchdir(root.as_fd())
            .map_err(|e| format!("cannot change directory to the container's root: {e}"))?;
        let surroundings = Surroundings {
            state: &state_document(inheritance, "creating"),
            directory: None,
            environment: &[],
        };
        hooks::run(
            "createContainer",
            &plan.hooks.create_container,
            surroundings,
        )?;
    }
    rootfs::make_paths_readonly(&root, &plan.readonly_paths).map_err(chain)?;
    rootfs::mask_paths(&root, &plan.masked_paths).map_err(chain)?;
    Ok(root)
}

/// The state for hooks that init runs itself; its pid is the container's, as the specification wants it.
fn state_document(inheritance: &Inheritance<'_>, status: &str) -> String {
    let document = StateDocument {
        oci_version: &inheritance.plan.oci_version,
        id: inheritance.id,
        status,
        pid: rustix::process::getpid().as_raw_pid(),
        bundle: &inheritance.bundle.to_string_lossy(),
        annotations: &inheritance.plan.annotations,
        rootfs: "",
        created: "",
    };
    serde_json::to_string(&document).unwrap_or_default()
}
