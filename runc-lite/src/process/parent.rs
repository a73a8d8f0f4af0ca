//! The creating process: prepares, bears init, watches it get ready, and leaves.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::SystemTime;

use rustix::process::{DumpableBehavior, WaitId, WaitIdOptions, set_dumpable_behavior, waitid};

use super::error::{ProcessError, io_error};
use super::hooks::Surroundings;
use super::host::check_host;
use super::init::{self, Inheritance};
use super::intermediate::{Role, Waiting, bear};
use super::message::{MAX_WARNINGS, ParentEnd, ToChild, ToParent, pair};
use super::placement::{Made, Placement};
use super::terminal::Console;
use super::undo::Undo;
use super::user_namespace::UserNamespace;
use super::wait::{KILL_PATIENCE, end};
use super::{
    bundle, gate, hooks, joins, net_devices, placement, scheduling, time_namespace, user_namespace,
};
use crate::cgroup::{Cgroup, Driver, Hierarchies, Wish};
use crate::config::{Hook, StateDocument};
use crate::log::Log;
use crate::plan::{IdMappings, IdmapPlan, NamespaceKind, Plan};
use crate::resctrl;
use crate::rootfs::{CgroupView, Sources, Which};
use crate::seccomp;
use crate::seccomp::agent::{ContainerProcessState, SECCOMP_FD};
use crate::state::{CONFIG_FILE, ContainerId, ProcessIdentity, Record, StateDirectory};
use crate::sys::{CloneFlags, Forked, clone3};

/// What `create` and `run` are asked for.
#[derive(Debug)]
pub struct CreateRequest<'a> {
    /// Directory of all containers.
    pub root: &'a Path,
    /// Container id.
    pub id: &'a ContainerId,
    /// Absolute path of the bundle.
    pub bundle: &'a Path,
    /// Where to write init's pid.
    pub pid_file: Option<&'a Path>,
    /// Who takes the terminal's master.
    pub console: Console<'a>,
    /// Descriptors from 3 on that the program inherits.
    pub preserve_fds: u32,
    /// Who makes the cgroup.
    pub cgroup_driver: Driver,
    /// Variables beyond those of the document.
    pub environment: &'a [String],
    /// Whether the cgroup may be done without where the caller may not make it.
    pub rootless: bool,
    /// Warnings go here.
    pub log: &'a Log,
}

/// A created container.
#[derive(Debug)]
pub struct Created {
    /// Its directory, locked by this process.
    pub directory: StateDirectory,
    /// Its record.
    pub record: Record,
    /// Its init.
    pub pidfd: OwnedFd,
    /// The plan it was made by.
    pub plan: Plan,
}

/// Makes a container up to the point where its init waits for `start`.
///
/// Every side effect is undone when a later step fails.
///
/// # Errors
/// [`ProcessError`].
pub fn create(request: &CreateRequest<'_>) -> Result<Created, ProcessError> {
    let mut aftermath = None;
    let created = make(request, &mut aftermath);
    if let (Err(_), Some(Aftermath { poststop, state })) = (&created, aftermath) {
        // By now everything is undone. The specification, Lifecycle: the container whose hook failed is
        // destroyed, then the poststop hooks run.
        let surroundings = Surroundings::of_runtime(&state, request.bundle);
        for failure in hooks::run_all("poststop", &poststop, surroundings) {
            request.log.warn(&failure);
        }
    }
    created
}

/// What is due when create fails after its hooks have begun.
struct Aftermath {
    poststop: Vec<Hook>,
    state: String,
}

fn make(
    request: &CreateRequest<'_>,
    aftermath: &mut Option<Aftermath>,
) -> Result<Created, ProcessError> {
    let (document, mut plan) = bundle::read_plan(request.bundle, request.log)?;
    plan.process.env.extend_from_slice(request.environment);
    bundle::check_root(&plan.rootfs, request.bundle)?;
    check_host(&plan)?;
    user_namespace::check_rootless(&plan)?;
    request.console.check(plan.process.terminal)?;
    net_devices::check(&plan.net_devices)?;
    let resctrl = plan
        .intel_rdt
        .as_ref()
        .map(|rdt| resctrl::locate(&resctrl::mount_point()?, rdt, request.id.as_str()))
        .transpose()?;
    let joined = joins::open(&plan.namespaces)?;
    if user_namespace::is_privileged() {
        protect()?;
    }
    let mut warn = |text: &str| request.log.warn(text);
    let user_fd = joins::user(&joined);
    let user_namespace = user_namespace::foresee(&plan, user_fd, &mut warn)?;
    let sources = clone_sources(&plan, request.bundle, user_namespace.as_ref(), user_fd)?;
    let procfs = time_namespace::procfs(&plan)?;
    crate::state::make_root(request.root)?;
    let filter = plan
        .seccomp
        .as_ref()
        .map(|profile| seccomp::cache::filter(request.root, profile.get(), request.log))
        .transpose()?;
    if let Some(filter) = &filter {
        filter.check_host()?;
    }
    let wish = Wish {
        driver: request.cgroup_driver,
        path: &plan.cgroup_path,
        id: request.id.as_str(),
        annotations: &plan.annotations,
    };
    let hierarchies = Hierarchies::of_this_host()?;
    let placement = Placement::new(&hierarchies, &plan, &wish, request.rootless)?;
    let console = request.console.open(plan.process.terminal)?;
    let group = placement.whole();
    group.refuse_occupied()?;

    let mut undo = Undo::new(StateDirectory::create(request.root, request.id)?);
    let mut record = Record {
        oci_version: plan.oci_version.clone(),
        bundle: request.bundle.to_owned(),
        rootfs: request.bundle.join(&plan.rootfs.path),
        annotations: plan.annotations.clone(),
        created: crate::log::rfc3339(SystemTime::now()),
        private_pid_namespace: plan.namespaces.makes(NamespaceKind::Pid),
        cgroup: Some(group.record().clone()),
        seccomp_listener: filter.as_ref().and_then(|filter| filter.listener.clone()),
        resctrl,
        ..Record::new(request.id)
    };
    // Order: the record names the cgroup before it exists, so that delete finds it whenever this process
    // dies.
    undo.directory().store(&record)?;
    undo.directory().write(CONFIG_FILE, &document)?;
    undo.group = Some(group);
    let mut warnings = Vec::new();
    if let Made::Part(group) = placement.make(undo.whole_group(), &mut warnings)? {
        record.cgroup = group.as_ref().map(|group| group.record().clone());
        undo.group = group;
        undo.directory().store(&record)?;
    }
    let birthplace = match undo.group() {
        Some(group) if !request.rootless => group.birthplace()?,
        _ => None,
    };
    if let (Some(group), Some(namespace)) = (undo.group(), &user_namespace) {
        placement::delegate(&plan, group, namespace)?;
    }

    if let (Some(place), Some(rdt)) = (&record.resctrl, &plan.intel_rdt) {
        undo.resctrl.insert(place.clone()).create(rdt)?;
    }
    let gate = gate::open(undo.directory()).map_err(|e| io_error("make", "the start socket", e))?;
    let shown = placement.shown(undo.group());
    let inheritance = Inheritance {
        id: request.id.as_str(),
        plan: &plan,
        bundle: request.bundle,
        cgroup: CgroupView {
            version: placement.version(),
            directories: &shown,
            namespace: plan.namespaces.separates(NamespaceKind::Cgroup),
            foreign: user_namespace.is_some() || request.rootless,
        },
        filter: filter.as_ref(),
        joined: &joined,
        user_namespace: user_namespace.as_ref(),
        may_set_groups: user_namespace::may_set_groups(user_namespace.as_ref()),
        sources: &sources,
        procfs: procfs.as_ref(),
        gate: gate.as_fd(),
        console: console.as_ref().map(AsFd::as_fd),
        relayed: request.console.is_relayed(),
        first_private_fd: 3 + request.preserve_fds,
    };
    let Birth {
        channel,
        pid,
        pidfd,
        born_inside,
    } = bear_init(&inheritance, birthplace.as_ref().map(AsFd::as_fd))?;
    drop(birthplace);
    undo.init = Some((pid, pidfd));
    if let Some(namespace) = &user_namespace {
        if plan.namespaces.makes(NamespaceKind::User) {
            user_namespace::write_ids(pid, &plan.id_mappings)?;
        }
        user_namespace::prepare_from_outside(pid, &plan.process, namespace);
    }
    record.init = ProcessIdentity::of(pid);
    undo.directory().store(&record)?;
    let admitted = undo.group().map_or(Ok(()), |group| {
        group.admit(pid, born_inside, placement.resources(), &mut warnings)
    });
    if let Err(error) = admitted {
        placement.tolerate(error)?;
        undo.group().map_or(Ok(()), Cgroup::remove)?;
        (undo.group, record.cgroup) = (None, None);
        undo.directory().store(&record)?;
    }
    scheduling::reset_affinity(pid)
        .map_err(|e| io_error("reset the CPU affinity of", "the container's init", e))?;
    warnings
        .iter()
        .for_each(|warning| request.log.warn(warning));
    if let Some(place) = &record.resctrl {
        place.join(pid)?;
    }
    let network = joined
        .iter()
        .find(|(kind, _)| *kind == NamespaceKind::Network);
    let network = network.map(|(_, fd)| fd.as_fd());
    undo.devices = net_devices::move_all(&plan.net_devices, network, pid)?;
    if let Some(score) = plan.process.oom_score_adj {
        set_oom_score(pid, score, request.log)?;
    }
    protect()?;
    let watch = Watch {
        plan: &plan,
        record: &record,
        sources: &sources,
        log: request.log,
    };
    watch_init(&channel, &watch, (pid, undo.pidfd()), aftermath)?;
    if let Some(path) = request.pid_file {
        write_pid_file(path, pid)?;
    }
    let (directory, pidfd) = undo.disarm();
    Ok(Created {
        directory,
        record,
        pidfd,
        plan,
    })
}

/// Keeps this process, and what it bears until execve, from being traced or looked into by a container.
///
/// A process of an ordinary user is born before this and does the same for itself once its ids are
/// written: until then the user's procfs files about it must stay writable, and nobody else is in its
/// namespaces.
pub(super) fn protect() -> Result<(), ProcessError> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|e| io_error("protect", "this process", e))
}

/// Clones the trees that the container's first process could not: its user namespace is another one, or ids
/// are to be mapped. An ordinary user's process is no worse off inside, and clones for itself.
fn clone_sources(
    plan: &Plan,
    bundle: &Path,
    namespace: Option<&UserNamespace>,
    joined: Option<BorrowedFd<'_>>,
) -> Result<Sources, ProcessError> {
    let which = match namespace {
        Some(_) if user_namespace::is_privileged() => Which::All,
        None if plan.mounts.iter().any(|mount| mount.idmap.is_some()) => Which::Mapped,
        _ => return Ok(Sources::default()),
    };
    let mut made: Vec<(IdMappings, OwnedFd)> = Vec::new();
    let mut userns = |idmap: &IdmapPlan| {
        let chain = |e: ProcessError| crate::error_chain(&e);
        let copy = |fd: BorrowedFd<'_>| {
            let copied = fd.try_clone_to_owned();
            copied.map_err(|e| format!("cannot copy a descriptor: {e}"))
        };
        let ids = match (&idmap.mappings, joined) {
            (Some(ids), _) => ids,
            (None, Some(joined)) => return copy(joined),
            (None, None) => &plan.id_mappings,
        };
        if ids.is_empty() {
            return Err("the container's user namespace is the runtime's own".to_owned());
        }
        if let Some((_, fd)) = made.iter().find(|(known, _)| known == ids) {
            return copy(fd.as_fd());
        }
        user_namespace::check_size(ids, "").map_err(chain)?;
        let fd = user_namespace::with_ids(ids).map_err(chain)?;
        made.push((ids.clone(), fd.try_clone().map_err(|e| e.to_string())?));
        Ok(fd)
    };
    Sources::clone_trees(plan, bundle, which, &mut userns).map_err(|e| ProcessError::Child {
        reason: crate::error_chain(&e),
    })
}

/// A living init that waits for its parent's word.
struct Birth {
    channel: ParentEnd,
    pid: i32,
    pidfd: OwnedFd,
    /// Whether it is in the container's cgroup already.
    born_inside: bool,
}

fn bear_init(
    inheritance: &Inheritance<'_>,
    birthplace: Option<BorrowedFd<'_>>,
) -> Result<Birth, ProcessError> {
    let (channel, child_end) = pair().map_err(|e| io_error("make", "a socket pair", e))?;
    let new = inheritance.plan.namespaces.new.iter();
    let flags = new
        .filter(|kind| !init::makes_itself(**kind, inheritance.user_namespace.is_some()))
        .fold(0, |flags, kind| flags | kind.clone_flag());
    let fail = |e| user_namespace::told_birth("the container's init process", e);
    if !joins::need_birth_inside(inheritance.plan, inheritance.joined) {
        return match clone3(CloneFlags(flags), birthplace).map_err(fail)? {
            Forked::Child => init::run(inheritance, &child_end),
            Forked::Parent { pid, pidfd } => Ok(Birth {
                channel,
                pid,
                pidfd,
                born_inside: birthplace.is_some(),
            }),
        };
    }
    let enter = || {
        set_dumpable_behavior(DumpableBehavior::NotDumpable)
            .map_err(|e| format!("cannot protect a process: {e}"))?;
        joins::enter(inheritance.joined)?;
        // Order: those who live there see init from its birth on, and what it holds (CVE-2016-9962).
        inheritance.close_others(&child_end)
    };
    let intermediate = match bear(channel, &child_end, CloneFlags(flags), enter).map_err(fail)? {
        Role::Born => init::run(inheritance, &child_end),
        Role::Parent(intermediate) => intermediate,
    };
    drop(child_end);
    let (pid, channel) = proceed_and_receive(intermediate)?;
    let pidfd = open_pidfd(pid)?;
    Ok(Birth {
        channel,
        pid,
        pidfd,
        born_inside: false,
    })
}

/// Lets the intermediate process go and takes the number of the process it bore.
pub(super) fn proceed_and_receive(intermediate: Waiting) -> Result<(i32, ParentEnd), ProcessError> {
    let (answer, channel) = intermediate
        .proceed()
        .map_err(|e| io_error("talk to", "the container's process", e))?;
    match answer {
        Some(ToParent::Born(pid)) => Ok((i32::from_le_bytes(pid), channel)),
        Some(ToParent::Failed(reason)) => Err(ProcessError::Child { reason }),
        Some(other) => Err(ProcessError::Child {
            reason: format!("unexpected {other:?}"),
        }),
        None => Err(ProcessError::Child {
            reason: "the process died at its birth".to_owned(),
        }),
    }
}

pub(super) fn open_pidfd(pid: i32) -> Result<OwnedFd, ProcessError> {
    let stranger = |reason: &str| ProcessError::Child {
        reason: format!("process {pid} {reason}"),
    };
    let number = (pid > 0)
        .then(|| rustix::process::Pid::from_raw(pid))
        .flatten()
        .ok_or_else(|| stranger("cannot be"))?;
    let pidfd = rustix::process::pidfd_open(number, rustix::process::PidfdFlags::empty())
        .map_err(|e| io_error("open a handle of", "the container's process", e))?;
    // The number came over a socket that a tracer in the container could have got hold of. A child that is
    // not yet reaped keeps its number; anybody else is no child.
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    waitid(WaitId::PidFd(pidfd.as_fd()), options).map_err(|_| stranger("is not a child"))?;
    Ok(pidfd)
}

/// What init is served with.
struct Watch<'a> {
    plan: &'a Plan,
    record: &'a Record,
    sources: &'a Sources,
    log: &'a Log,
}

impl Watch<'_> {
    fn map_ids(&self, index: u32, tree: Option<OwnedFd>) -> Result<(), ProcessError> {
        let mount = usize::try_from(index)
            .ok()
            .and_then(|index| self.plan.mounts.iter().find(|mount| mount.index == index));
        let (Some(mount), Some(tree)) = (mount, tree) else {
            return Err(ProcessError::Child {
                reason: format!("unexpected ids for mounts[{index}]"),
            });
        };
        self.sources
            .map_late(mount, tree.as_fd())
            .map_err(|e| ProcessError::Child {
                reason: crate::error_chain(&e),
            })
    }
}

/// Lets init proceed and serves it until it is ready.
fn watch_init(
    channel: &ParentEnd,
    watch: &Watch<'_>,
    (pid, pidfd): (i32, BorrowedFd<'_>),
    aftermath: &mut Option<Aftermath>,
) -> Result<(), ProcessError> {
    let Watch { plan, record, .. } = *watch;
    let talk = |e| io_error("talk to", "the container's init", e);
    // Init runs these itself while this process waits.
    channel
        .wait_longer(hooks::patience(&plan.hooks.create_container))
        .map_err(talk)?;
    channel.send(&ToChild::Proceed).map_err(talk)?;
    let mut warnings = 0;
    loop {
        let received = channel.receive_with_descriptor().map_err(talk)?;
        let (message, descriptor) = received.map_or((None, None), |(m, fd)| (Some(m), fd));
        match message {
            Some(ToParent::Ready) => {
                // Init closes its end last: from then on it holds only what its program will have.
                return match channel.receive().map_err(talk)? {
                    None => Ok(()),
                    Some(other) => Err(ProcessError::Child {
                        reason: format!("unexpected {other:?}"),
                    }),
                };
            }
            Some(ToParent::Warning(text)) if warnings < MAX_WARNINGS => {
                warnings += 1;
                watch.log.warn(&text);
            }
            Some(ToParent::MapIds(index)) => {
                watch.map_ids(u32::from_le_bytes(index), descriptor)?;
                channel.send(&ToChild::IdsMapped).map_err(talk)?;
            }
            // Once: a tracer in a PID namespace that was joined could repeat it.
            Some(ToParent::RunHooks) if aftermath.is_none() => {
                *aftermath = Some(Aftermath {
                    poststop: plan.hooks.poststop.clone(),
                    state: state_text(
                        &Record {
                            init: None,
                            ..record.clone()
                        },
                        "stopped",
                    ),
                });
                let state = state_text(record, "creating");
                let surroundings = Surroundings::of_runtime(&state, &record.bundle);
                hooks::run("prestart", &plan.hooks.prestart, surroundings)
                    .and_then(|()| {
                        hooks::run("createRuntime", &plan.hooks.create_runtime, surroundings)
                    })
                    .map_err(|reason| ProcessError::Hook { reason })?;
                channel.send(&ToChild::HooksDone).map_err(talk)?;
            }
            Some(ToParent::Failed(reason)) => return Err(ProcessError::Child { reason }),
            Some(other) => {
                return Err(ProcessError::Child {
                    reason: format!("unexpected {other:?}"),
                });
            }
            None => {
                let code = end(pid, pidfd, KILL_PATIENCE);
                return Err(ProcessError::Child {
                    reason: format!(
                        "the container's init died while it was prepared (exit code {})",
                        code.unwrap_or(-1)
                    ),
                });
            }
        }
    }
}

/// The state document of a record.
#[must_use]
pub(crate) fn state_text(record: &Record, status: &str) -> String {
    serde_json::to_string(&state_document(record, status)).unwrap_or_default()
}

fn state_document<'a>(record: &'a Record, status: &'a str) -> StateDocument<'a> {
    StateDocument {
        oci_version: &record.oci_version,
        id: &record.id,
        status,
        pid: record.init.map_or(0, |init| init.pid),
        bundle: record.bundle.to_str().unwrap_or_default(),
        annotations: &record.annotations,
        rootfs: "",
        created: "",
    }
}

/// What a seccomp agent is told of process `pid` of the container.
pub(crate) fn agent_state<'a>(
    record: &'a Record,
    metadata: &'a str,
    pid: i32,
    status: &'a str,
) -> ContainerProcessState<'a> {
    ContainerProcessState {
        oci_version: &record.oci_version,
        fds: [SECCOMP_FD],
        pid,
        metadata,
        state: state_document(record, status),
    }
}

/// Sets the OOM score; lowering it needs CAP_SYS_RESOURCE, and without it the score stays as it is.
pub(super) fn set_oom_score(pid: i32, score: i32, log: &Log) -> Result<(), ProcessError> {
    let path = format!("/proc/{pid}/oom_score_adj");
    let opened = std::fs::OpenOptions::new().write(true).open(&path);
    let written = opened
        .and_then(|mut file| std::io::Write::write_all(&mut file, score.to_string().as_bytes()));
    match written {
        Err(e) if matches!(e.raw_os_error(), Some(libc::EACCES | libc::EPERM)) => {
            log.warn(&format!(
                "process.oomScoreAdj {score} left out, the runtime may not lower it"
            ));
            Ok(())
        }
        other => other.map_err(|e| io_error("write", path, e)),
    }
}

/// Writes a pid file atomically.
pub(super) fn write_pid_file(path: &Path, pid: i32) -> Result<(), ProcessError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let written = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&temporary)
        .and_then(|mut file| std::io::Write::write_all(&mut file, pid.to_string().as_bytes()))
        .and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written.map_err(|e| io_error("write the pid file", path.display().to_string(), e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_child_is_the_container_s_process() {
        let mut child = std::process::Command::new("/bin/sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        assert!(open_pidfd(pid).is_ok());
        child.kill().unwrap();
        // Ended, but not reaped.
        assert!(open_pidfd(pid).is_ok());
        child.wait().unwrap();
        for stranger in [1, 0, -1, i32::try_from(std::process::id()).unwrap()] {
            assert!(open_pidfd(stranger).is_err(), "{stranger}");
        }
    }
}
