//! What the tests stand on: a private mount namespace, bundles, a shim and its clients; all of it
//! is taken down when the test ends, however it ends.

use std::fs;
use std::future::Future;
use std::io::Write as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use axil_proto::shim::axil::ShimClient;
use axil_proto::shim::bootstrap::BootstrapParams;
use axil_proto::shim::options::Options;
use axil_proto::shim::sandbox::SandboxClient;
use axil_proto::shim::task::{
    CreateTaskRequest, DeleteRequest, DeleteResponse, ExecProcessRequest, KillRequest,
    StartRequest, StateRequest, StateResponse, TaskClient, WaitRequest,
};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use prost::Message as _;
use prost_types::Any;
use serde_json::{Value, json};

pub(crate) const NAMESPACE: &str = "shimtest";
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Runs a test where it can run; see the guard rules in CONTRIBUTING.
pub(crate) fn privileged<F: Future<Output = ()>>(test: impl FnOnce(Bed) -> F) {
    let required = std::env::var("AXIL_TEST_REQUIRE").is_ok_and(|value| value == "1");
    let missing = if !nix::unistd::geteuid().is_root() {
        Some("needs root")
    } else if runtime().is_none() {
        Some("needs an OCI runtime: set AXIL_TEST_RUNTIME or install runc")
    } else if busybox().is_none() {
        Some("needs a static busybox")
    } else {
        None
    };
    if let Some(reason) = missing {
        assert!(!required, "AXIL_TEST_REQUIRE=1, but the test {reason}");
        println!("skipped: {reason}");
        return;
    }
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
    let event_loop = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let bed = Bed::new();
    event_loop.block_on(test(bed));
}

fn runtime() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("AXIL_TEST_RUNTIME") {
        return Some(PathBuf::from(path));
    }
    ["/usr/sbin/runc", "/usr/bin/runc", "/usr/bin/crun"]
        .map(PathBuf::from)
        .into_iter()
        .find(|path| path.exists())
}

/// The shim that is tested: `AXIL_TEST_SHIM`, such as a release build, else the one just built.
pub(crate) fn shim() -> PathBuf {
    let built = || env!("CARGO_BIN_EXE_containerd-shim-axil-v1").into();
    PathBuf::from(std::env::var_os("AXIL_TEST_SHIM").unwrap_or_else(built))
}

fn busybox() -> Option<PathBuf> {
    ["/usr/bin/busybox", "/bin/busybox"]
        .map(PathBuf::from)
        .into_iter()
        .find(|path| path.exists())
}

/// The directory of a test and the pod in it.
pub(crate) struct Bed {
    pub(crate) name: String,
    pub(crate) dir: PathBuf,
}

impl Bed {
    fn new() -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("axs{}-{number}", std::process::id());
        let dir = std::env::temp_dir().join(&name);
        fs::DirBuilder::new().mode(0o700).create(&dir).unwrap();
        Self { name, dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(crate) fn options(&self) -> Any {
        let options = Options {
            binary_name: runtime().unwrap().display().to_string(),
            root: self.path("state").display().to_string(),
            ..Options::default()
        };
        Any {
            type_url: "containerd.runc.v1.Options".into(),
            value: options.encode_to_vec(),
        }
    }

    /// Runs the shim's `start` in a bundle directory.
    pub(crate) fn run_start(&self, bundle: &Path, id: &str) -> Output {
        let params = BootstrapParams {
            instance_id: id.into(),
            namespace: NAMESPACE.into(),
            socket_dir: Some(self.path("s").display().to_string()),
            ..BootstrapParams::default()
        };
        self.run_shim(bundle, id, "start", &params.encode_to_vec())
    }

    pub(crate) fn run_shim(&self, bundle: &Path, id: &str, action: &str, stdin: &[u8]) -> Output {
        let mut child = Command::new(shim())
            .args([
                "-namespace",
                NAMESPACE,
                "-id",
                id,
                "-address",
                "",
                "-debug",
                action,
            ])
            .current_dir(bundle)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(stdin).unwrap();
        child.wait_with_output().unwrap()
    }

    /// Starts the shim of a pod in an empty bundle.
    pub(crate) async fn pod(&self) -> Pod<'_> {
        let bundle = self.path("pod");
        fs::create_dir(&bundle).unwrap();
        let output = self.run_start(&bundle, "pod");
        self.attach(bundle, &output).await
    }

    /// Connects to the shim that `start` answered.
    pub(crate) async fn attach(&self, bundle: PathBuf, output: &Output) -> Pod<'_> {
        assert!(output.status.success(), "{output:?}");
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        let address = answer["address"].as_str().unwrap().to_owned();
        Pod::connect(self, bundle, address).await
    }

    /// Every cgroup directory of this test.
    pub(crate) fn cgroups(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for hierarchy in fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten()
        {
            let ours = hierarchy.path().join(&self.name);
            if ours.is_dir() {
                collect_dirs(&ours, &mut found);
            }
        }
        found
    }
}

fn collect_dirs(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            collect_dirs(&entry.path(), found);
        }
    }
    found.push(dir.to_owned());
}

impl Drop for Bed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.path("pod/shim.log"));
            println!("shim.log:\n{}", log.unwrap_or_default());
        }
        let kill = |pid: &str| {
            if let Ok(pid) = pid.trim().parse::<i32>() {
                let _ = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid),
                    nix::sys::signal::Signal::SIGKILL,
                );
            }
        };
        if let Ok(pid) = fs::read_to_string(self.path("pod/shim.pid"))
            && is_shim(pid.trim())
        {
            kill(&pid);
        }
        // Deepest first, as `cgroups` lists them; what was paused must wake up to die.
        for _ in 0..50 {
            let cgroups = self.cgroups();
            for cgroup in &cgroups {
                for pid in fs::read_to_string(cgroup.join("cgroup.procs"))
                    .unwrap_or_default()
                    .lines()
                {
                    kill(pid);
                }
                let _ = fs::write(cgroup.join("freezer.state"), "THAWED");
                let _ = fs::remove_dir(cgroup);
            }
            if cgroups.is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Whether the pid still is a shim: it may have ended and the number been reused.
pub(crate) fn is_shim(pid: &str) -> bool {
    fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == shim())
}

/// A running shim and connections to it.
pub(crate) struct Pod<'a> {
    pub(crate) bed: &'a Bed,
    pub(crate) bundle: PathBuf,
    pub(crate) address: String,
    pub(crate) task: TaskClient,
    pub(crate) sandbox: SandboxClient,
    pub(crate) shim: ShimClient,
}

impl<'a> Pod<'a> {
    async fn connect(bed: &'a Bed, bundle: PathBuf, address: String) -> Pod<'a> {
        let client = ttrpc::asynchronous::Client::connect(&address)
            .await
            .unwrap();
        Pod {
            bed,
            bundle,
            task: TaskClient::new(client.clone()),
            sandbox: SandboxClient::new(client.clone()),
            shim: ShimClient::new(client),
            address,
        }
    }

    /// Another connection.
    pub(crate) async fn another(&self) -> TaskClient {
        let client = ttrpc::asynchronous::Client::connect(&self.address)
            .await
            .unwrap();
        TaskClient::new(client)
    }

    pub(crate) fn pid(&self) -> u32 {
        let text = fs::read_to_string(self.bundle.join("shim.pid")).unwrap();
        text.parse().unwrap()
    }

    pub(crate) fn container(&self, id: &str, script: &str) -> Container<'_> {
        Container::new(self, id, script)
    }
}

/// A container to be: change what is public, then `create`.
pub(crate) struct Container<'a> {
    pub(crate) pod: &'a Pod<'a>,
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) spec: Value,
    pub(crate) request: CreateTaskRequest,
}

impl<'a> Container<'a> {
    fn new(pod: &'a Pod<'a>, id: &str, script: &str) -> Self {
        let bundle = pod.bed.path(id);
        let log = pod.bed.path(&format!("{id}.log"));
        let log = format!("cri-log://{}", log.display());
        Self {
            pod,
            id: id.to_owned(),
            spec: spec(&format!("/{}/{id}", pod.bed.name), script),
            request: CreateTaskRequest {
                id: id.to_owned(),
                bundle: bundle.display().to_string(),
                stdout: log.clone(),
                stderr: log,
                options: Some(pod.bed.options()),
                ..CreateTaskRequest::default()
            },
            bundle,
        }
    }

    /// Writes the bundle.
    pub(crate) fn write(&self) {
        let root = self.bundle.join("rootfs");
        make_root(&root);
        let config = serde_json::to_vec(&self.spec).unwrap();
        fs::write(self.bundle.join("config.json"), config).unwrap();
    }

    pub(crate) async fn create(&self) -> u32 {
        self.write();
        let created = self.pod.task.create(&self.request, LIMIT).await;
        created.unwrap().pid
    }

    pub(crate) async fn run(&self) -> u32 {
        let pid = self.create().await;
        self.start("").await.unwrap();
        pid
    }

    pub(crate) async fn start(&self, exec_id: &str) -> ttrpc::Result<u32> {
        let request = StartRequest {
            id: self.id.clone(),
            exec_id: exec_id.to_owned(),
        };
        Ok(self.pod.task.start(&request, LIMIT).await?.pid)
    }

    pub(crate) async fn wait(&self, exec_id: &str) -> u32 {
        let request = WaitRequest {
            id: self.id.clone(),
            exec_id: exec_id.to_owned(),
        };
        self.pod
            .task
            .wait(&request, LIMIT)
            .await
            .unwrap()
            .exit_status
    }

    pub(crate) async fn kill(&self, exec_id: &str, signal: u32, all: bool) -> ttrpc::Result<()> {
        let request = KillRequest {
            id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            signal,
            all,
        };
        self.pod.task.kill(&request, LIMIT).await
    }

    pub(crate) async fn state(&self) -> ttrpc::Result<StateResponse> {
        let request = StateRequest {
            id: self.id.clone(),
            exec_id: String::new(),
        };
        self.pod.task.state(&request, LIMIT).await
    }

    pub(crate) async fn delete(&self, exec_id: &str) -> ttrpc::Result<DeleteResponse> {
        let request = DeleteRequest {
            id: self.id.clone(),
            exec_id: exec_id.to_owned(),
        };
        self.pod.task.delete(&request, LIMIT).await
    }

    /// Kills and deletes.
    pub(crate) async fn remove(&self) {
        let _ = self.kill("", 9, true).await;
        self.wait("").await;
        self.delete("").await.unwrap();
    }

    pub(crate) async fn add_exec(
        &self,
        exec_id: &str,
        script: &str,
        stdout: &Path,
    ) -> ttrpc::Result<()> {
        let request = self.exec_request(exec_id, script, stdout);
        self.pod.task.exec(&request, LIMIT).await
    }

    pub(crate) fn exec_request(
        &self,
        exec_id: &str,
        script: &str,
        stdout: &Path,
    ) -> ExecProcessRequest {
        ExecProcessRequest {
            id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            stdout: stdout.display().to_string(),
            spec: Some(Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
                value: serde_json::to_vec(&process(script)).unwrap(),
            }),
            ..ExecProcessRequest::default()
        }
    }

    pub(crate) fn log_path(&self) -> PathBuf {
        self.pod.bed.path(&format!("{}.log", self.id))
    }

    /// The entries of the log: stream, tag, text.
    pub(crate) fn log(&self) -> Vec<(String, String, String)> {
        entries(&fs::read(self.log_path()).unwrap())
    }

    pub(crate) fn exit_record(&self) -> Value {
        let bytes = fs::read(self.bundle.join("exit.json")).unwrap();
        serde_json::from_slice(&bytes).unwrap()
    }
}

/// Parses a CRI log.
pub(crate) fn entries(bytes: &[u8]) -> Vec<(String, String, String)> {
    let text = String::from_utf8_lossy(bytes);
    assert!(text.is_empty() || text.ends_with('\n'), "a torn entry");
    let entry = |line: &str| {
        let mut fields = line.splitn(4, ' ');
        let time = fields.next().unwrap();
        assert!(axil_shim::clock::parse_rfc3339(time).is_some(), "{line:?}");
        let mut field = || fields.next().unwrap().to_owned();
        (field(), field(), field())
    };
    text.lines().map(entry).collect()
}

pub(crate) fn make_root(root: &Path) {
    for name in ["bin", "dev", "proc", "tmp"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    fs::copy(busybox().unwrap(), root.join("bin/busybox")).unwrap();
    for name in [
        "sh", "sleep", "echo", "cat", "setsid", "stty", "seq", "dd", "head", "true", "tail",
    ] {
        let _ = std::os::unix::fs::symlink("busybox", root.join("bin").join(name));
    }
}

pub(crate) fn process(script: &str) -> Value {
    json!({
        "user": {"uid": 0, "gid": 0},
        "args": ["/bin/sh", "-c", script],
        "env": ["PATH=/bin"],
        "cwd": "/",
        "noNewPrivileges": true,
    })
}

fn spec(cgroup: &str, script: &str) -> Value {
    json!({
        "ociVersion": "1.0.2",
        "process": process(script),
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"},
                           {"type": "network"}],
        },
    })
}

pub(crate) fn make_fifo(path: &Path) {
    nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
}

/// Reads a FIFO to its end in the background.
pub(crate) fn read_fifo(path: &Path) -> std::thread::JoinHandle<Vec<u8>> {
    let path = path.to_owned();
    std::thread::spawn(move || fs::read(path).unwrap())
}

/// The code of a failed call.
pub(crate) fn code<T: std::fmt::Debug>(result: ttrpc::Result<T>) -> (ttrpc::Code, String) {
    match result.unwrap_err() {
        ttrpc::Error::RpcStatus(status) => (status.code(), status.message),
        other => panic!("no status: {other}"),
    }
}

/// Waits until `condition` holds.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
