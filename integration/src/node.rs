//! One running daemon of a lab: started from real binaries, killed, restarted, emptied.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use axil_proto::cri::{ContainerState, ContainerStatus, PodSandboxConfig};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::binaries::Binaries;
use crate::build::{ContainerBuilder, PodBuilder};
use crate::children::{self, Finished, Running};
use crate::cri::{Answer, Cri};
use crate::eventually::{eventually, patient, poll};
use crate::lab::Ground;
use crate::leakcheck::FileList;
use crate::say;

/// How long the daemon may take to answer after its start, recovery included.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long the daemon may take to end after SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// Lines of the daemon's log shown when a test fails.
const LOG_TAIL: usize = 80;

/// What may differ from a node with the built-in network.
#[derive(Debug, Clone, Default)]
pub struct NodeOptions {
    /// A CNI network list, as JSON; with one, plugins are executed instead of the built-in network.
    pub conflist: Option<String>,
    /// Directories of CNI plugins besides Debian's.
    pub plugin_dirs: Vec<PathBuf>,
    /// The shim to start instead of ours.
    pub shim: Option<PathBuf>,
    /// The OCI runtime the shim runs instead of ours.
    pub runtime: Option<PathBuf>,
    /// `[images] progress_timeout`.
    pub progress_timeout: Option<&'static str>,
    /// More lines of `[images]`.
    pub images: Vec<String>,
    /// More tables of the file, each with its heading.
    pub tables: String,
    /// `[cni] plugin_timeout`.
    pub plugin_timeout: Option<&'static str>,
    /// Value of `AXIL_FAULT` for the first start.
    pub fault: Option<String>,
    /// No configuration file: only flags that say where things lie. The other options do not apply.
    pub unconfigured: bool,
}

/// A pod that runs.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Its id.
    pub id: String,
    /// What it was made from; CreateContainer wants it again.
    pub config: PodSandboxConfig,
}

/// The daemon. Its CRI calls are those of [`Cri`].
#[derive(Debug)]
pub struct Node {
    dir: PathBuf,
    axild: PathBuf,
    arguments: Vec<String>,
    process: Option<Running>,
    cri: Cri,
    metrics_port: u16,
    idle: FileList,
}

impl Deref for Node {
    type Target = Cri;

    fn deref(&self) -> &Cri {
        &self.cri
    }
}

impl Node {
    /// Writes the configuration and starts the daemon; waits until it answers Version.
    ///
    /// # Errors
    /// When it ends at once or does not answer; the message has the end of its log.
    pub fn start(ground: &Ground, binaries: &Binaries, options: NodeOptions) -> Result<Self> {
        let dir = ground.dir().to_owned();
        let metrics_port = free_port()?;
        let arguments = if options.unconfigured {
            places(&dir, metrics_port)
        } else {
            let file = dir.join("config.toml");
            fs::write(&file, configuration(ground, metrics_port, &options)?)
                .with_context(|| format!("write {}", file.display()))?;
            vec!["--config".to_owned(), file.display().to_string()]
        };
        let mut node = Self {
            cri: Cri::new(&dir.join("axil.sock"))?,
            dir,
            axild: binaries.axild(),
            arguments,
            process: None,
            metrics_port,
            idle: FileList::default(),
        };
        node.launch(options.fault.as_deref())?;
        node.idle = FileList::read(&node.dir);
        Ok(node)
    }

    /// Starts the daemon again after it ended, with fail points if asked.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub fn launch(&mut self, fault: Option<&str>) -> Result<()> {
        let log = self.log_path();
        let output = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("open {}", log.display()))?;
        let mut command = Command::new(&self.axild);
        command.args(&self.arguments);
        command.env_remove("RUST_LOG").env_remove("AXIL_FAULT");
        if let Some(fault) = fault {
            command.env("AXIL_FAULT", fault);
        }
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("share the log")?);
        self.process = Some(Running::start(command.stderr(output))?);
        self.wait_until_ready()
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let socket = self.dir.join("axil.sock");
        let answered = poll(START_LIMIT, || {
            if let Some(status) = self.process.as_mut().and_then(Running::try_wait) {
                return Some(Err(status));
            }
            // The file of a killed daemon may be there still; only an answer counts.
            (socket.exists() && self.cri.version().is_ok()).then_some(Ok(()))
        });
        match answered {
            Some(Ok(())) => Ok(()),
            Some(Err(status)) => {
                self.process = None;
                bail!("axild ended at once ({status}):\n{}", self.log_tail())
            }
            None => bail!(
                "axild does not answer after {:?}:\n{}",
                patient(START_LIMIT),
                self.log_tail()
            ),
        }
    }

    /// Kills the daemon, and nothing else, without a chance to clean up.
    pub fn kill9(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Asks the daemon to end and answers how it did; `None` when it was not running.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn term(&mut self) -> Option<ExitStatus> {
        let mut process = self.process.take()?;
        // An open connection that nobody reads from would be drained until the daemon's patience ends.
        self.cri = self.client();
        process.signal(Signal::SIGTERM);
        let status = process.wait(STOP_LIMIT);
        assert!(
            status.is_some(),
            "axild did not end within {STOP_LIMIT:?} of SIGTERM"
        );
        status
    }

    /// Ends the daemon by SIGTERM and starts it again.
    ///
    /// # Panics
    /// When it does not end or start.
    pub fn restart(&mut self) {
        self.term();
        self.launch(None)
            .unwrap_or_else(|error| panic!("restart: {error:#}"));
    }

    /// Runs a command of the operator, `axild ARGUMENTS`, with `input` on its standard input. It asks the daemon
    /// if that runs, and works on what it left otherwise.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn operate(&self, arguments: &[&str], input: &[u8]) -> Finished {
        let mut command = self.operation(arguments);
        children::output(&mut command, input)
            .unwrap_or_else(|error| panic!("axild {arguments:?}: {error:#}"))
    }

    /// A command of the operator that does not end by itself, with its standard output as a pipe.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn operate_on(&self, arguments: &[&str]) -> Running {
        let mut command = self.operation(arguments);
        Running::start(command.stdin(Stdio::null()).stdout(Stdio::piped()))
            .unwrap_or_else(|error| panic!("axild {arguments:?}: {error:#}"))
    }

    fn operation(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.axild);
        command.args(&self.arguments).args(arguments);
        command.env_remove("RUST_LOG").env_remove("AXIL_FAULT");
        command
    }

    /// Checks the store and answers the exit code and the report.
    ///
    /// # Panics
    /// When the check cannot be made.
    #[must_use]
    pub fn fsck(&self, options: &[&str]) -> (i32, Value) {
        let arguments = [&["fsck", "--json"], options].concat();
        let done = self.operate(&arguments, b"");
        let report = serde_json::from_slice(&done.stdout)
            .unwrap_or_else(|error| panic!("axild fsck: {error}: {}", done.text()));
        (done.status.code().unwrap_or(-1), report)
    }

    /// Waits until the daemon ended by itself, as a fail point makes it.
    ///
    /// # Panics
    /// When it still runs after twenty seconds.
    pub fn wait_for_end(&mut self) {
        let Some(mut process) = self.process.take() else {
            return;
        };
        let ended = process.wait(STOP_LIMIT);
        assert!(ended.is_some(), "axild should have ended by itself");
    }

    /// Whether the daemon ended without being asked.
    pub fn has_ended(&mut self) -> bool {
        self.process
            .as_mut()
            .is_none_or(|process| process.try_wait().is_some())
    }

    /// The daemon's process id.
    ///
    /// # Panics
    /// When it is not running.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.process.as_ref().expect("the daemon runs").pid()
    }

    /// Another client of the same socket, for another thread.
    ///
    /// # Panics
    /// When a reactor cannot be started.
    #[must_use]
    pub fn client(&self) -> Cri {
        Cri::new(&self.socket()).expect("the address was parsed once already")
    }

    /// The CRI socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.join("axil.sock")
    }

    /// The daemon's durable directory.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// The daemon's run-time directory.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// Where metrics are served, on loopback.
    #[must_use]
    pub fn metrics_port(&self) -> u16 {
        self.metrics_port
    }

    /// The files of a node that never ran a pod.
    #[must_use]
    pub fn idle_files(&self) -> &FileList {
        &self.idle
    }

    /// Runs a pod.
    ///
    /// # Errors
    /// The daemon's status.
    pub fn up(&self, pod: &PodBuilder) -> Answer<Pod> {
        let config = pod.build();
        Ok(Pod {
            id: self.run_pod(&config)?,
            config,
        })
    }

    /// Creates a container in a pod.
    ///
    /// # Errors
    /// The daemon's status.
    pub fn create_in(&self, pod: &Pod, container: &ContainerBuilder) -> Answer<String> {
        self.create(&pod.id, &container.build(), &pod.config)
    }

    /// Creates and starts a container in a pod.
    ///
    /// # Errors
    /// The daemon's status.
    pub fn run_in(&self, pod: &Pod, container: &ContainerBuilder) -> Answer<String> {
        let id = self.create_in(pod, container)?;
        self.start(&id)?;
        Ok(id)
    }

    /// Waits until a container exited and answers its status.
    ///
    /// # Panics
    /// When it does not exit in time.
    pub fn exit_of(&self, id: &str) -> ContainerStatus {
        eventually(&format!("container {id} exits"), || {
            let status = self.container_status(id).ok()?;
            (status.state() == ContainerState::ContainerExited).then_some(status)
        })
    }

    /// Runs a shell script in a container and answers its trimmed standard output.
    ///
    /// # Panics
    /// When the call fails or the script exits with another code than zero.
    pub fn sh(&self, id: &str, script: &str) -> String {
        let done = self
            .exec(id, &["/bin/sh", "-c", script], 30)
            .unwrap_or_else(|status| panic!("exec {script:?}: {status}"));
        let stderr = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.exit_code, 0, "exec {script:?}: {stderr}");
        String::from_utf8_lossy(&done.stdout).trim().to_owned()
    }

    /// The text of a container's CRI log.
    #[must_use]
    pub fn log_of(&self, pod: &Pod, container: &str) -> String {
        let path = Path::new(&pod.config.log_directory).join(format!("{container}.log"));
        fs::read_to_string(path).unwrap_or_default()
    }

    /// Stops and removes every pod, then removes every image.
    ///
    /// # Errors
    /// The first refusal.
    pub fn empty(&self) -> Result<()> {
        for pod in self.pods(None).context("list the pods")? {
            self.stop_pod(&pod.id)
                .with_context(|| format!("stop pod {}", pod.id))?;
            self.remove_pod(&pod.id)
                .with_context(|| format!("remove pod {}", pod.id))?;
        }
        for image in self.list_images().context("list the images")? {
            self.remove_image(&image.id)
                .with_context(|| format!("remove image {}", image.id))?;
        }
        Ok(())
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("axild.log")
    }

    /// Everything the daemon logged, over all its starts.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL)..].join("\n")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if thread::panicking() {
            say::err(format!(
                "--- the end of axild's log\n{}\n---",
                self.log_tail()
            ));
        }
    }
}

fn places(dir: &Path, metrics_port: u16) -> Vec<String> {
    let dir = dir.display();
    [
        ("--root", format!("{dir}/root")),
        ("--state", format!("{dir}/state")),
        ("--listen", format!("unix://{dir}/axil.sock")),
        ("--metrics", format!("127.0.0.1:{metrics_port}")),
    ]
    .into_iter()
    .flat_map(|(flag, value)| [flag.to_owned(), value])
    .collect()
}

fn configuration(ground: &Ground, metrics_port: u16, options: &NodeOptions) -> Result<String> {
    let dir = ground.dir().display();
    let conf_dir = ground.dir().join("net.d");
    fs::create_dir_all(&conf_dir).with_context(|| format!("create {}", conf_dir.display()))?;
    if let Some(list) = &options.conflist {
        let file = conf_dir.join("10-test.conflist");
        fs::write(&file, list).with_context(|| format!("write {}", file.display()))?;
    }
    let mut plugin_dirs: Vec<_> = options
        .plugin_dirs
        .iter()
        .map(|d| d.display().to_string())
        .collect();
    plugin_dirs.extend(["/usr/lib/cni".to_owned(), "/opt/cni/bin".to_owned()]);
    let (driver, parent) = match ground.slice() {
        Some(slice) => ("systemd", slice),
        None => ("cgroupfs", ground.cgroup()),
    };
    let mut text = format!(
        "root = \"{dir}/root\"\nstate = \"{dir}/state\"\nlisten = \"unix://{dir}/axil.sock\"\n\
         [metrics]\nlisten = \"127.0.0.1:{metrics_port}\"\n\
         [log]\nlevel = \"info,axild=debug\"\n\
         [cgroups]\ndriver = \"{driver}\"\nparent = \"{parent}\"\n\
         [cni]\nconf_dir = \"{dir}/net.d\"\nbin_dirs = {plugin_dirs:?}\n",
    );
    if let Some(timeout) = options.plugin_timeout {
        text.push_str(&format!("plugin_timeout = \"{timeout}\"\n"));
    }
    text.push_str(&format!("[images]\nhosts_dirs = [\"{dir}/certs.d\"]\n"));
    if let Some(timeout) = options.progress_timeout {
        text.push_str(&format!("progress_timeout = \"{timeout}\"\n"));
    }
    for line in &options.images {
        text.push_str(&format!("{line}\n"));
    }
    text.push_str("[runtime]\n");
    for (key, path) in [("shim", &options.shim), ("binary", &options.runtime)] {
        if let Some(path) = path {
            text.push_str(&format!("{key} = \"{}\"\n", path.display()));
        }
    }
    text.push_str(&options.tables);
    Ok(text)
}

/// A port nobody uses; the network namespace is ours, so nobody takes it in between.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port")?;
    Ok(listener.local_addr().context("find a free port")?.port())
}
