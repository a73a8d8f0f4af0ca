//! Creates a container: mount, record, streams, `runtime create`, and what is learnt of its process.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axil_proto::keys::EXIT_RECORD;
use axil_proto::shim::events::{TaskCreate, TaskIo};
use axil_proto::shim::options::Options;
use axil_proto::shim::types::Mount;

use crate::cgroup::Cgroup;
use crate::error::VerbError;
use crate::log;
use crate::mount::{self, MountError};
use crate::oom::OomWatch;
use crate::pod::Pod;
use crate::reaper::ExitReceiver;
use crate::record::{RECORD_VERSION, TaskRecord, start_time};
use crate::runtime::{Call, CallStdio, Runtime, RuntimeError, read_pid_file};
use crate::stdio::pty::Console;
use crate::stdio::{IoSpec, ProcessIo};
use crate::task::phase::{Event, Phase};
use crate::task::process::Process;
use crate::task::table::{Details, Task};

/// The runtime's log of a container, in its bundle.
pub const LOG_FILE: &str = "log.json";

/// The pid of the init process, in its bundle.
pub const PID_FILE: &str = "init.pid";

/// What a container is created from.
#[derive(Debug)]
pub struct CreateOptions {
    /// Its id, checked.
    pub id: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// What to mount as its root file system; empty when it is mounted.
    pub rootfs: Vec<Mount>,
    /// Its streams.
    pub io: IoSpec,
    /// The runtime and its options.
    pub options: Options,
    /// Whether it is the sandbox process of the pod.
    pub is_sandbox: bool,
}

impl Pod {
    /// Creates a container and answers its pid.
    ///
    /// # Errors
    /// The id is taken, the request is wrong, or a step fails; then everything is undone.
    pub async fn create(self: &Arc<Self>, options: CreateOptions) -> Result<u32, VerbError> {
        let runtime = Runtime::from_options(&options.options, &self.settings.namespace)?;
        check_bundle(&options.bundle)?;
        let init = Process::new(
            options.id.clone(),
            options.io.clone(),
            Vec::new(),
            Phase::Creating,
        );
        let mounted = !options.rootfs.is_empty();
        let mut task = Task::new(
            options.id.clone(),
            options.bundle.clone(),
            runtime,
            mounted,
            init,
        );
        task.is_sandbox = options.is_sandbox;
        let task = Arc::new(task);
        self.tasks.insert(Arc::clone(&task))?;
        let mut created = false;
        let steps = self.create_steps(&task, &options.rootfs, &mut created);
        match steps.await {
            Ok((pid, exit)) => {
                self.supervise(Arc::clone(&task), Arc::clone(&task.init), exit);
                self.publish_create(&task, pid, options.rootfs);
                Ok(pid)
            }
            Err(error) => {
                self.undo_create(&task, created).await;
                self.tasks.remove(&task.id);
                Err(error)
            }
        }
    }

    async fn create_steps(
        self: &Arc<Self>,
        task: &Task,
        rootfs: &[Mount],
        created: &mut bool,
    ) -> Result<(u32, ExitReceiver), VerbError> {
        if task.rootfs_mounted {
            mount_rootfs(rootfs, &task.bundle)?;
        }
        // An earlier task of this bundle must not be taken for this one.
        for name in [EXIT_RECORD, PID_FILE] {
            remove_stale(&task.bundle.join(name))?;
        }
        let record = record_of(task);
        write_record(&record, &task.bundle)?;

        let (mut io, child) = ProcessIo::open(&task.init.io_spec)?;
        let console = self.console(task.init.io_spec.terminal)?;
        let (log, pid_file) = (task.bundle.join(LOG_FILE), task.bundle.join(PID_FILE));
        let mut call = task.runtime.create(&task.bundle, &log);
        if let Some(console) = &console {
            call = call.arg("--console-socket").arg(console.path());
        }
        call = call.arg("--pid-file").arg(&pid_file).arg(&task.id);
        let hold = self.reaper.hold();
        let run = task
            .runtime
            .run(&self.reaper, call.stdio(CallStdio::Container(child)))
            .await;
        // A runtime that fails has undone its work, and the id may be another container's.
        *created = matches!(run, Ok(()) | Err(RuntimeError::Deadline { .. }));
        run?;
        let pid = read_pid_file(&pid_file).map_err(|source| io_error("read", &pid_file, source))?;
        let (pidfd, exit) = self.adopt(task, pid)?;
        drop(hold);
        learn(task, pid);
        let record = TaskRecord {
            pid: Some(pid),
            start_time: start_time(pid),
            cgroup: task.cgroup().cloned(),
            ..record
        };
        write_record(&record, &task.bundle)?;
        if let Some(console) = &console {
            io.attach(&task.init.io_spec, console).await?;
        }
        task.init.set_live(pid, pidfd, io);
        task.init.apply(Event::CreateDone)?;
        Ok((pid, exit))
    }

    /// Takes over the process a runtime reported.
    pub(super) fn adopt(
        &self,
        task: &Task,
        pid: u32,
    ) -> Result<(Option<OwnedFd>, ExitReceiver), VerbError> {
        let adopted = i32::try_from(pid)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
            .and_then(|pid| self.reaper.adopt(pid));
        let adopted =
            adopted.map_err(|source| io_error("watch the process of", &task.bundle, source))?;
        Ok((adopted.pidfd, adopted.exit))
    }

    /// A console socket, if the process is to have a terminal.
    pub(super) fn console(&self, terminal: bool) -> Result<Option<Console>, VerbError> {
        if !terminal {
            return Ok(None);
        }
        let directory = &self.settings.socket_dir;
        let console = Console::listen(directory);
        console
            .map(Some)
            .map_err(|source| io_error("listen for the terminal in", directory, source))
    }

    /// Takes back what [`Self::create_steps`] may have done, as far as it has.
    async fn undo_create(&self, task: &Task, created: bool) {
        let log = task.bundle.join(LOG_FILE);
        let call = Call::new("delete", &log).arg("--force").arg(&task.id);
        if created
            && let Err(error) = task.runtime.run(&self.reaper, call).await
            && !error.is_not_found()
        {
            log::warn(format_args!("undo create of {:?}: {error}", task.id));
        }
        task.init.release();
        task.init.give_up();
        if task.rootfs_mounted
            && let Err(error) = mount::unmount_all(&task.bundle.join("rootfs"))
        {
            log::warn(format_args!("undo mount of {:?}: {error}", task.id));
        }
    }

    fn publish_create(&self, task: &Task, pid: u32, rootfs: Vec<Mount>) {
        let io = &task.init.io_spec;
        self.events.publish(&TaskCreate {
            container_id: task.id.clone(),
            bundle: task.bundle.display().to_string(),
            rootfs,
            io: Some(TaskIo {
                stdin: io.stdin.clone(),
                stdout: io.stdout.clone(),
                stderr: io.stderr.clone(),
                terminal: io.terminal,
            }),
            checkpoint: String::new(),
            pid,
        });
    }
}

/// Learns what must be known before the process can end: its cgroup, its namespace, the OOM counter.
fn learn(task: &Task, pid: u32) {
    let cgroup = Cgroup::of(pid).unwrap_or_else(|error| {
        // The process is gone already; then it has nothing left to kill or to count.
        log::debug(format_args!("cgroup of {pid}: {error}"));
        None
    });
    let details = Details {
        own_pid_namespace: is_namespace_init(pid),
        oom: OomWatch::start(cgroup.as_ref(), task.runtime.systemd_cgroup),
        cgroup,
    };
    // Set once per task, by the one create it has.
    let _ = task.details.set(details);
}

/// Whether the process is number 1 in its innermost PID namespace (proc(5), `NSpid`).
fn is_namespace_init(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let mut pids = line.unwrap_or_default().split_ascii_whitespace();
    pids.next().is_some() && pids.next_back() == Some("1")
}

fn check_bundle(bundle: &Path) -> Result<(), VerbError> {
    let field = |reason: &str| VerbError::Field {
        field: "bundle",
        reason: reason.to_owned(),
        value: bundle.display().to_string(),
    };
    if !bundle.is_absolute() {
        return Err(field("must be an absolute path"));
    }
    if !bundle.join("config.json").is_file() {
        return Err(field("must be a directory with a config.json"));
    }
    Ok(())
}

fn mount_rootfs(rootfs: &[Mount], bundle: &Path) -> Result<(), VerbError> {
    let root = bundle.join("rootfs");
    if let Err(error) = fs::create_dir(&root)
        && error.kind() != io::ErrorKind::AlreadyExists
    {
        return Err(io_error("create", &root, error));
    }
    mount::mount_all(rootfs, &root).map_err(|error| match error {
        MountError::Options { .. } => VerbError::Field {
            field: "rootfs",
            reason: error.to_string(),
            value: root.display().to_string(),
        },
        MountError::Kernel { target, source, .. } => io_error("mount", &target, source),
    })
}

fn remove_stale(path: &Path) -> Result<(), VerbError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error("remove", path, error))
        }
        _ => Ok(()),
    }
}

fn record_of(task: &Task) -> TaskRecord {
    TaskRecord {
        version: RECORD_VERSION,
        binary: task.runtime.binary.clone(),
        root: task.runtime.root.clone(),
        systemd_cgroup: task.runtime.systemd_cgroup,
        rootfs_mounted: task.rootfs_mounted,
        pid: None,
        start_time: None,
        cgroup: None,
    }
}

fn write_record(record: &TaskRecord, bundle: &Path) -> Result<(), VerbError> {
    record
        .write(bundle)
        .map_err(|source| io_error("write the task record in", bundle, source))
}

/// An I/O error with its object.
pub(crate) fn io_error(action: &'static str, path: &Path, source: io::Error) -> VerbError {
    VerbError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}
