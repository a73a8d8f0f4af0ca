//! The daemons that are compared. Both are spoken to by the same CRI client.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::binaries::Binaries;
use crate::children::Running;
use crate::cri::Cri;
use crate::eventually::poll;
use crate::lab::Ground;
use crate::node::{Node, NodeOptions};

/// How long a daemon may take to answer, and to end.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a pull may take.
const PULL: Duration = Duration::from_secs(600);

/// A daemon that pulls.
pub trait Daemon {
    /// Its process id.
    fn pid(&self) -> i32;

    /// A client of its socket.
    ///
    /// # Errors
    /// When it cannot be made.
    fn client(&self) -> Result<Cri>;

    /// Ends it.
    ///
    /// # Errors
    /// When it does not end, or not well.
    fn stop(self: Box<Self>) -> Result<()>;
}

/// `axild` as it is without a configuration.
#[derive(Debug)]
pub struct Axild(Node);

impl Axild {
    /// Starts it with its directories on this ground.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn start(ground: &Ground, binaries: &Binaries) -> Result<Self> {
        let options = NodeOptions {
            unconfigured: true,
            ..NodeOptions::default()
        };
        Node::start(ground, binaries, options).map(Self)
    }
}

impl Daemon for Axild {
    fn pid(&self) -> i32 {
        self.0.pid()
    }

    fn client(&self) -> Result<Cri> {
        Ok(self.0.client().with_deadline(PULL))
    }

    fn stop(mut self: Box<Self>) -> Result<()> {
        let status = self.0.term().context("axild ended before")?;
        ensure!(status.success(), "axild ended with {status}");
        Ok(())
    }
}

/// Debian's containerd.
#[derive(Debug)]
pub struct Containerd {
    socket: std::path::PathBuf,
    process: Running,
}

impl Containerd {
    /// Starts it with its directories on this ground and its defaults for everything that counts.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn start(ground: &Ground) -> Result<Self> {
        let dir = ground.dir();
        let text = dir.display();
        // What is switched off needs devices this machine may not have, and takes no part in a pull.
        let config = format!(
            "version = 2
root = \"{text}/root\"
state = \"{text}/state\"
disabled_plugins = [
  \"io.containerd.snapshotter.v1.btrfs\",
  \"io.containerd.snapshotter.v1.devmapper\",
  \"io.containerd.snapshotter.v1.zfs\",
]
[grpc]
address = \"{text}/c.sock\"
[plugins.\"io.containerd.internal.v1.opt\"]
path = \"{text}/opt\"
[plugins.\"io.containerd.grpc.v1.cri\"]
stream_server_port = \"0\"
[plugins.\"io.containerd.grpc.v1.cri\".cni]
conf_dir = \"{text}/net.d\"
"
        );
        let path = dir.join("config.toml");
        fs::write(&path, config).with_context(|| format!("write {}", path.display()))?;
        let log = dir.join("log");
        let file = fs::File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let mut command = Command::new("containerd");
        command
            .arg("--config")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(file.try_clone().context("share the log")?)
            .stderr(file);
        let mut containerd = Self {
            socket: dir.join("c.sock"),
            process: Running::start(&mut command)?,
        };
        containerd.wait_until_ready(&log)?;
        Ok(containerd)
    }

    fn wait_until_ready(&mut self, log: &Path) -> Result<()> {
        let client = self.client()?;
        let answered = poll(PATIENCE, || match self.process.try_wait() {
            Some(_) => Some(false),
            None => client.version().is_ok().then_some(true),
        });
        if answered != Some(true) {
            let said = fs::read_to_string(log).unwrap_or_default();
            bail!("containerd does not answer: {said}");
        }
        Ok(())
    }
}

impl Daemon for Containerd {
    fn pid(&self) -> i32 {
        self.process.pid()
    }

    fn client(&self) -> Result<Cri> {
        Ok(Cri::new(&self.socket)?.with_deadline(PULL))
    }

    fn stop(mut self: Box<Self>) -> Result<()> {
        self.process.signal(Signal::SIGTERM);
        let ended = self.process.wait(PATIENCE);
        ensure!(ended.is_some(), "containerd ignores SIGTERM");
        Ok(())
    }
}
