//! The container's first process, from its birth to execve.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use super::hooks::Surroundings;
use super::joins::{self, Joined};
use super::message::{ChildEnd, ToChild, ToParent};
use super::program::{self, Prepared};
use super::user_namespace::{UserNamespace, become_first_user};
use super::{gate, hooks, terminal, time_namespace};
use crate::config::StateDocument;
use crate::error_chain;
use crate::plan::{IdmapPlan, MountPlan, NamespaceKind, Plan};
use crate::rootfs::{self, CgroupView, Nodes, Root, Sources, Which};
use crate::seccomp::Filter;
use crate::sys::{close_all_except, exit_now};

/// What init inherits from the parent by the clone.
#[derive(Debug)]
pub(super) struct Inheritance<'a> {
    pub(super) id: &'a str,
    pub(super) plan: &'a Plan,
    pub(super) bundle: &'a Path,
    /// What a cgroup mount shows.
    pub(super) cgroup: CgroupView<'a>,
    pub(super) filter: Option<&'a Filter>,
    /// Namespaces to join, opened by the parent.
    pub(super) joined: &'a [Joined],
    /// The container's user namespace, when it is not the runtime's.
    pub(super) user_namespace: Option<&'a UserNamespace>,
    /// Whether setgroups(2) works in it.
    pub(super) may_set_groups: bool,
    /// Trees that the parent cloned.
    pub(super) sources: &'a Sources,
    /// The host's procfs, to set the clocks of a time namespace.
    pub(super) procfs: Option<&'a OwnedFd>,
    pub(super) gate: BorrowedFd<'a>,
    pub(super) console: Option<BorrowedFd<'a>>,
    /// Whether that is the runtime, which copies.
    pub(super) relayed: bool,
    /// First descriptor that is not meant for the program.
    pub(super) first_private_fd: u32,
}

impl Inheritance<'_> {
    /// Closes what is neither init's nor its program's.
    pub(super) fn close_others(&self, channel: &ChildEnd) -> Result<(), String> {
        let mut keep = vec![channel.as_fd(), self.gate];
        keep.extend(self.console);
        // The PID namespace was entered before init was born.
        let to_come = self
            .joined
            .iter()
            .filter(|(kind, _)| *kind != NamespaceKind::Pid);
        keep.extend(to_come.map(|(_, fd)| fd.as_fd()));
        keep.extend(self.sources.descriptors());
        keep.extend(self.procfs.map(AsFd::as_fd));
        close_all_except(self.first_private_fd, &keep)
            .map_err(|e| format!("cannot close inherited descriptors: {e}"))
    }
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
    // Order: the caller's create returns when the channel closes, and a created container can be ended by kill as
    // any other.
    if crate::sys::exit_on_termination().is_err() {
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
    // Before anything else: the parent's lock and log are not for this process.
    inheritance.close_others(channel)?;
    match channel.receive() {
        Ok(Some(ToChild::Proceed)) => {}
        // The runtime was killed: nobody is told, nothing is left.
        _ => exit_now(1),
    }
    rustix::process::setsid().map_err(|e| format!("cannot make a session: {e}"))?;
    if let Some(procfs) = inheritance.procfs {
        // Order: it needs the host's procfs and, from an ordinary user, a process that still belongs to them.
        time_namespace::make(procfs, &plan.time_offsets)?;
    }
    enter_namespaces(inheritance)?;
    let sources = own_sources(inheritance)?;
    if let Some(namespace) = inheritance.user_namespace {
        // Order: the trees were cloned as the user who may reach them.
        become_first_user(namespace)?;
        set_dumpable_behavior(DumpableBehavior::NotDumpable)
            .map_err(|e| format!("cannot protect init: {e}"))?;
        make_namespace(inheritance, NamespaceKind::Ipc)?;
    }
    // Mount points and devices get the modes they are made with, whatever the caller's mask is; the
    // container's own mask is set before its program runs.
    rustix::process::umask(rustix::fs::Mode::empty());
    let root = build_rootfs(inheritance, &sources, channel)?;
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
        inheritance.may_set_groups,
        &mut warn,
    )?;
    Ok(Ready { program, state })
}

fn enter_namespaces(inheritance: &Inheritance<'_>) -> Result<(), String> {
    // Where init was born by a process that joined, it is inside already.
    if !joins::need_birth_inside(inheritance.plan, inheritance.joined) {
        joins::enter(inheritance.joined)?;
    }
    make_namespace(inheritance, NamespaceKind::Cgroup)
}

/// Whether init makes a namespace of `kind`, if one is asked for, instead of being born into it.
///
/// The root of a cgroup namespace is the cgroup its maker is in. The clocks of a time namespace are set before
/// anybody is inside. The file system of an IPC namespace belongs to its maker, who must have an id in the
/// user namespace.
pub(super) fn makes_itself(kind: NamespaceKind, in_user_namespace: bool) -> bool {
    match kind {
        NamespaceKind::Cgroup | NamespaceKind::Time => true,
        NamespaceKind::Ipc => in_user_namespace,
        NamespaceKind::Pid
        | NamespaceKind::Network
        | NamespaceKind::Mount
        | NamespaceKind::Uts
        | NamespaceKind::User => false,
    }
}

fn make_namespace(inheritance: &Inheritance<'_>, kind: NamespaceKind) -> Result<(), String> {
    if !inheritance.plan.namespaces.makes(kind) {
        return Ok(());
    }
    crate::sys::unshare(kind.clone_flag())
        .map_err(|e| format!("cannot make a new {} namespace: {e}", kind.name()))
}

/// Clones what is to be cloned in the container's mount namespace while it is still like the host's.
fn own_sources(inheritance: &Inheritance<'_>) -> Result<Sources, String> {
    let Inheritance { plan, bundle, .. } = *inheritance;
    let which = match inheritance.user_namespace {
        None => Which::Shared,
        Some(_) if is_privileged_parent(inheritance) => return Ok(Sources::default()),
        Some(_) => Which::All,
    };
    // Mapped ids are the parent's business.
    let mut none = |_: &IdmapPlan| Err("the parent maps ids".to_owned());
    Sources::clone_trees(plan, bundle, which, &mut none).map_err(|e| error_chain(&e))
}

/// Whether the parent cloned the trees: it always clones the rootfs then.
fn is_privileged_parent(inheritance: &Inheritance<'_>) -> bool {
    inheritance.sources.descriptors().next().is_some()
}

fn build_rootfs(
    inheritance: &Inheritance<'_>,
    own: &Sources,
    channel: &ChildEnd,
) -> Result<Root, String> {
    let Inheritance { plan, bundle, .. } = *inheritance;
    let chain = |e: rootfs::RootfsError| error_chain(&e);
    let sources = [inheritance.sources, own];
    let root = rootfs::enter(&plan.rootfs, bundle, sources).map_err(chain)?;
    let host_root = bundle.join(&plan.rootfs.path);
    let surroundings = rootfs::Surroundings {
        bundle,
        rootfs: &host_root,
        cgroup: inheritance.cgroup,
        sources,
        locked: inheritance.user_namespace.is_some(),
    };
    let map_late = |mount: &MountPlan, tree: BorrowedFd<'_>| match inheritance.user_namespace {
        None => inheritance.sources.map_late(mount, tree).map_err(chain),
        Some(_) => map_outside(channel, mount, tree),
    };
    let unsealed =
        rootfs::mount_all(&root, &plan.mounts, surroundings, &map_late).map_err(chain)?;
    let nodes = match inheritance.user_namespace {
        Some(_) => Nodes::Bound,
        None => Nodes::Made,
    };
    rootfs::make_devices(&root, &plan.devices, &plan.mounts, nodes).map_err(chain)?;
    if let Some(socket) = inheritance.console {
        let size = plan.process.console_size;
        let (master, slave) =
            rootfs::open_terminal(&root, size, inheritance.relayed).map_err(chain)?;
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
    rootfs::seal(&unsealed).map_err(chain)?;
    Ok(root)
}

/// Has the parent map the ids of a tree; it ends this process when it cannot.
fn map_outside(channel: &ChildEnd, mount: &MountPlan, tree: BorrowedFd<'_>) -> Result<(), String> {
    let index = u32::try_from(mount.index).map_err(|e| e.to_string())?;
    let request = ToParent::MapIds(index.to_le_bytes());
    channel
        .send_with_descriptor(&request, tree)
        .map_err(|e| format!("cannot send to the runtime: {e}"))?;
    match channel.receive() {
        Ok(Some(ToChild::IdsMapped)) => Ok(()),
        _ => exit_now(1),
    }
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
