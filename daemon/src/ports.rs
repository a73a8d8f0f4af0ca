//! What the engine needs of the outside world: small traits, spoken in domain types.
//!
//! Adapters implement them; only `app.rs` names adapters. Every call is bounded by the adapter, every
//! release is idempotent, and a failure says what was attempted and on what.

pub mod images;
pub mod meter;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axil_proto::ids::{ContainerId, ExecId, PodId};
use tokio::net::TcpStream;

use crate::domain::container::phase::Exit;
use crate::domain::container::record::ContainerRecord;
use crate::domain::failure::Failure;
use crate::domain::pod::cgroup::CgroupDriver;
use crate::domain::pod::record::PodRecord;
use crate::domain::pod::spec::PodSpec;
use crate::domain::pod::user_namespace::IdMappings;
use crate::domain::runtime_handler::HandlerSnapshotter;
use crate::domain::selinux::Labels;

/// Result of a port call.
pub type Answer<T> = Result<T, Failure>;

/// Durable records of pods and containers.
pub trait Records: Send + Sync {
    /// Writes or replaces a pod's record; durable when it returns.
    fn put_pod(&self, record: &PodRecord) -> Answer<()>;
    /// Writes or replaces a container's record; durable when it returns.
    fn put_container(&self, record: &ContainerRecord) -> Answer<()>;
    /// Deletes a pod's record and those of its containers.
    fn delete_pod(&self, pod: &PodId) -> Answer<()>;
    /// Deletes a container's record.
    fn delete_container(&self, pod: &PodId, container: &ContainerId) -> Answer<()>;
    /// Everything recorded; damaged records are named in the log and left where they are.
    fn load(&self) -> Answer<Vec<(PodRecord, Vec<ContainerRecord>)>>;
}

/// Namespaces a pod's containers share, pinned by bind mounts so that they need no process.
#[async_trait]
pub trait Namespaces: Send + Sync {
    /// Creates and pins the pod's namespaces, names the host and applies the sysctls in them.
    async fn pin(&self, pod: &PodId, plan: NamespacePlan) -> Answer<NamespacePaths>;
    /// Where the pins of a pod are, whether or not they exist.
    fn paths(&self, pod: &PodId, spec: &PodSpec) -> NamespacePaths;
    /// Removes the pins.
    async fn unpin(&self, pod: &PodId) -> Answer<()>;
    /// Connects to a port of a pod's loopback, IPv4 first; without a pin to the node's.
    async fn dial(&self, netns: Option<&Path>, port: u16) -> Answer<TcpStream>;
}

/// Which namespaces a pod gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespacePlan {
    /// Ids of a user namespace of its own, which then owns the others.
    pub user: Option<IdMappings>,
    /// A network namespace of its own, and with it a UTS namespace.
    pub network: bool,
    /// An IPC namespace of its own.
    pub ipc: bool,
    /// Host name set in the UTS namespace; empty leaves the node's.
    pub hostname: String,
    /// Sysctls written in the namespaces.
    pub sysctls: BTreeMap<String, String>,
}

/// Pins of a pod; none means the node's namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NamespacePaths {
    /// User namespace.
    pub user: Option<PathBuf>,
    /// Network namespace.
    pub net: Option<PathBuf>,
    /// IPC namespace.
    pub ipc: Option<PathBuf>,
    /// UTS namespace.
    pub uts: Option<PathBuf>,
}

/// The pod network.
#[async_trait]
pub trait Network: Send + Sync {
    /// Attaches a pod; answers its addresses and how long each plugin took.
    async fn up(&self, pod: &PodId, spec: &PodSpec, netns: &Path) -> Answer<Attached>;
    /// Detaches a pod, also when its namespace is gone.
    async fn down(&self, pod: &PodId, spec: &PodSpec, netns: &Path) -> Answer<()>;
    /// Whether pods can be attached now; the reason and a message when not.
    async fn ready(&self) -> Result<(), (String, String)>;
    /// Which network serves, for people.
    fn describe(&self) -> serde_json::Value;
    /// Makes rules and links again that somebody removed under running pods.
    async fn restore(&self) -> Answer<()>;
    /// Gives back what no pod of `keep` holds.
    async fn reconcile(&self, keep: &[PodId]) -> Answer<()>;
}

/// Result of attaching a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attached {
    /// Addresses, the primary one first.
    pub ips: Vec<IpAddr>,
    /// Plugins or built-in steps and how long each took.
    pub parts: Vec<(String, Duration)>,
}

/// Files of the running system that belong to a pod: directories, resolv.conf, hostname, /dev/shm.
#[async_trait]
pub trait PodFiles: Send + Sync {
    /// Makes the pod's run-time directory and what its containers share.
    async fn prepare(
        &self,
        pod: &PodId,
        spec: &PodSpec,
        labels: Option<&Labels>,
    ) -> Answer<PodPaths>;
    /// Where they are, whether or not they exist.
    fn paths(&self, pod: &PodId, spec: &PodSpec) -> PodPaths;
    /// Writes the OCI document of the sandbox process into the sandbox bundle, and makes a root for it.
    async fn write_sandbox_bundle(
        &self,
        pod: &PodId,
        spec: &PodSpec,
        document: Vec<u8>,
    ) -> Answer<()>;
    /// Removes everything of the pod, unmounting first.
    async fn remove(&self, pod: &PodId) -> Answer<()>;
    /// Makes the bundle directory of a container.
    async fn make_bundle(&self, pod: &PodId, container: &ContainerId) -> Answer<PathBuf>;
    /// Writes a container's OCI document.
    async fn write_document(&self, bundle: &Path, document: Vec<u8>) -> Answer<()>;
    /// Removes a container's bundle.
    async fn remove_bundle(&self, pod: &PodId, container: &ContainerId) -> Answer<()>;
    /// Where a container's bundle is, whether or not it exists.
    fn bundle(&self, pod: &PodId, container: &ContainerId) -> PathBuf;
    /// The exit the shim recorded for a container, if there is one.
    async fn recorded_exit(&self, pod: &PodId, container: &ContainerId) -> Option<TaskExit>;
}

/// Paths of a pod's shared files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodPaths {
    /// Bundle of the sandbox: the shim's working directory.
    pub sandbox_bundle: PathBuf,
    /// resolv.conf for the containers.
    pub resolv_conf: PathBuf,
    /// hostname file for the containers; none on the node's network.
    pub hostname: Option<PathBuf>,
    /// What is mounted at /dev/shm.
    pub shm: PathBuf,
}

/// Root file systems of containers.
#[async_trait]
pub trait Rootfs: Send + Sync {
    /// Makes a writable layer over the image's layers and mounts it at `target`.
    async fn prepare(
        &self,
        container: &ContainerId,
        plan: &RootfsPlan,
        target: &Path,
    ) -> Answer<()>;
    /// Mounts an image, or a part of it, read-only in the container's bundle; answers where.
    async fn mount_image(
        &self,
        container: &ContainerId,
        volume: &VolumePlan,
        bundle: &Path,
    ) -> Answer<PathBuf>;
    /// Unmounts what is mounted in the container's bundle and removes the writable layer and the views of
    /// images; their space is free when it returns.
    async fn release(&self, container: &ContainerId, bundle: &Path) -> Answer<()>;
    /// /etc/passwd and /etc/group of a mounted root file system, read within it.
    async fn user_files(&self, rootfs: &Path) -> Answer<UserFiles>;
}

/// A root file system to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootfsPlan {
    /// Chain id of the image's topmost layer; none for an image without layers.
    pub chain: Option<String>,
    /// Whom its files belong to.
    pub users: Option<Users>,
    /// How it is made; none is the store's way.
    pub snapshotter: Option<HandlerSnapshotter>,
    /// SELinux context of its files; none leaves them as they are.
    pub label: Option<String>,
}

/// An image to be mounted for a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumePlan {
    /// Which of the container's image volumes it is, from 0.
    pub number: usize,
    /// Chain id of the image's topmost layer; none for an image without layers.
    pub chain: Option<String>,
    /// What of the image, relative to its root; empty is all of it.
    pub sub_path: String,
    /// Whom its files belong to.
    pub users: Option<Users>,
    /// As for the root file system.
    pub snapshotter: Option<HandlerSnapshotter>,
    /// SELinux context of its files.
    pub label: Option<String>,
}

/// The users and groups of a pod's user namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Users {
    /// Who they are on the node.
    pub ids: IdMappings,
    /// Where the namespace is pinned.
    pub namespace: PathBuf,
}

/// User database of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserFiles {
    /// /etc/passwd, when there is one.
    pub passwd: Option<Vec<u8>>,
    /// /etc/group, when there is one.
    pub group: Option<Vec<u8>>,
}

/// Starts, finds and ends the shims.
#[async_trait]
pub trait Shims: Send + Sync {
    /// Starts a pod's shim; answers its ttrpc address.
    async fn start(&self, pod: &PodId, bundle: &Path) -> Answer<String>;
    /// Connects to a shim; fails quickly when it is gone.
    async fn connect(&self, pod: &PodId, address: &str) -> Answer<Arc<dyn Shim>>;
    /// Ends a pod's shim and whatever its containers left behind, also when it is dead or hangs.
    async fn stop(&self, pod: &PodId, bundle: &Path, containers: &[PathBuf]) -> Answer<()>;
}

/// One pod's shim.
#[async_trait]
pub trait Shim: Send + Sync {
    /// Starts the sandbox; answers the pid of the sandbox process when the bundle describes one.
    async fn start_sandbox(&self, bundle: &Path, runtime: &OciRuntime) -> Answer<Option<u32>>;
    /// Returns when the shim, or the sandbox process, is gone.
    async fn sandbox_gone(&self);
    /// Makes a container's task; answers the pid of its process.
    async fn create(&self, task: &TaskPlan) -> Answer<u32>;
    /// Starts a task, or an exec in it.
    async fn start(&self, container: &ContainerId, exec: Option<&ExecId>) -> Answer<()>;
    /// Sends a signal to a task's or exec's process, or to all of its processes.
    async fn kill(
        &self,
        container: &ContainerId,
        exec: Option<&ExecId>,
        signal: i32,
        all: bool,
    ) -> Answer<()>;
    /// Waits for the end of a task or exec, without a bound: the caller sets one.
    async fn wait(&self, container: &ContainerId, exec: Option<&ExecId>) -> Answer<TaskExit>;
    /// Deletes an ended task or exec; success when there is none.
    async fn delete(&self, container: &ContainerId, exec: Option<&ExecId>) -> Answer<()>;
    /// What the shim says of a task.
    async fn state(&self, container: &ContainerId) -> Answer<TaskState>;
    /// Adds a process to a running task.
    async fn exec(&self, plan: &ExecPlan) -> Answer<()>;
    /// Changes limits of a task to those of an OCI resources document; all of them or none.
    async fn update(&self, container: &ContainerId, resources: Vec<u8>) -> Answer<()>;
    /// The execs of a task that run.
    async fn execs(&self, container: &ContainerId) -> Answer<Vec<ExecId>>;
    /// Ends the input of a task or exec once nobody writes to it any more.
    async fn close_stdin(&self, container: &ContainerId, exec: Option<&ExecId>) -> Answer<()>;
    /// Sets the size of a task's or exec's terminal.
    async fn resize(
        &self,
        container: &ContainerId,
        exec: Option<&ExecId>,
        size: TerminalSize,
    ) -> Answer<()>;
    /// Copies a task's output to FIFOs as well, until it ends or they are not read in time.
    async fn attach(&self, plan: &AttachPlan) -> Answer<()>;
    /// Opens the log file again at its path.
    async fn reopen_log(&self, container: &ContainerId) -> Answer<()>;
}

/// An OCI runtime, as a shim runs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OciRuntime {
    /// The binary.
    pub binary: PathBuf,
    /// Its state directory (`--root`), which runtimes do not share.
    pub root: PathBuf,
    /// Whether it has systemd make cgroups (`--systemd-cgroup`).
    pub systemd_cgroup: bool,
}

/// A task to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskPlan {
    /// The container.
    pub container: ContainerId,
    /// Its bundle, with config.json and a mounted rootfs.
    pub bundle: PathBuf,
    /// What makes it, and later starts, signals and deletes it.
    pub runtime: OciRuntime,
    /// FIFO of standard input; none is an empty input.
    pub stdin: Option<PathBuf>,
    /// Log file; without one the output is only for who attaches.
    pub log: Option<PathBuf>,
    /// Whether the process has a terminal.
    pub terminal: bool,
}

/// An exec to add.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecPlan {
    /// The container.
    pub container: ContainerId,
    /// The exec.
    pub exec: ExecId,
    /// OCI process document.
    pub process: Vec<u8>,
    /// Whether the process has a terminal.
    pub terminal: bool,
    /// FIFO of standard input; none is an empty input.
    pub stdin: Option<PathBuf>,
    /// FIFO of standard output; none discards it.
    pub stdout: Option<PathBuf>,
    /// FIFO of standard error; none discards it.
    pub stderr: Option<PathBuf>,
}

/// A client of a task's output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachPlan {
    /// The container.
    pub container: ContainerId,
    /// FIFO for standard output, if it is wanted.
    pub stdout: Option<PathBuf>,
    /// FIFO for standard error, if it is wanted.
    pub stderr: Option<PathBuf>,
}

/// Size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Width.
    pub columns: u16,
    /// Height.
    pub rows: u16,
}

/// How a task or exec ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskExit {
    /// Exit code, or 128 plus the signal's number.
    pub status: i32,
    /// Nanoseconds since the epoch.
    pub exited_at: i64,
    /// Whether the kernel killed it for memory.
    pub oom_killed: bool,
}

/// State of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskState {
    /// Made, not started.
    Created,
    /// Alive.
    Running,
    /// Ended.
    Stopped(TaskExit),
    /// The shim does not know it.
    Missing,
}

/// Names cgroups, and removes those that axil itself made as parents.
#[async_trait]
pub trait Cgroups: Send + Sync {
    /// Who makes the cgroups of containers.
    fn driver(&self) -> CgroupDriver;
    /// `linux.cgroupsPath` of a container of this pod.
    fn cgroups_path(&self, pod: &PodId, spec: &PodSpec, container: &str) -> String;
    /// The cgroup of a container of this pod, as a path below each hierarchy.
    fn container_dir(&self, pod: &PodId, spec: &PodSpec, container: &str) -> String;
    /// The cgroup around the containers of this pod, as a path below each hierarchy.
    fn pod_dir(&self, pod: &PodId, spec: &PodSpec) -> String;
    /// Sets `oom_score_adj`, -1000 to 1000, of every process at or below a cgroup.
    async fn set_oom_score_adj(&self, path: &str, score: i64) -> Answer<()>;
    /// Kills what is left in the pod's cgroups and removes the ones axil made; none is success.
    async fn remove(&self, pod: &PodId, spec: &PodSpec, containers: &[ContainerId]) -> Answer<()>;
}

/// Wall-clock time in nanoseconds since the epoch, never 0.
#[must_use]
pub fn unix_nanos() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(1, |d| {
        i64::try_from(d.as_nanos()).unwrap_or(i64::MAX).max(1)
    })
}

/// Builds the [`Exit`] of a task that ran since `started_at`.
#[must_use]
pub fn exit_of(exit: TaskExit, started_at: i64) -> Exit {
    use crate::domain::container::phase::ExitReason;
    let reason = match exit.status {
        0 => ExitReason::Completed,
        _ if exit.oom_killed => ExitReason::OomKilled,
        _ => ExitReason::Error,
    };
    Exit {
        code: exit.status,
        reason,
        message: String::new(),
        started_at,
        finished_at: exit.exited_at,
    }
}
