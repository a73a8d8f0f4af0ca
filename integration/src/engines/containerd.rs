//! Debian's containerd with its own shim, and `runc-lite` named as the binary that shim runs.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;

use super::{Answer, EngineLab, IMAGE, ask, ask_on_terminal};
use crate::children::Running;
use crate::eventually::within;

/// A daemon for one test, and `ctr` to talk to it.
#[derive(Debug)]
pub struct Containerd<'a> {
    lab: &'a EngineLab,
    dir: PathBuf,
    daemon: Running,
}

impl<'a> Containerd<'a> {
    /// Starts the daemon and gives it the image.
    ///
    /// # Panics
    /// When it does not start or does not take the image.
    #[must_use]
    pub fn start(lab: &'a EngineLab) -> Self {
        let containerd =
            Self::launch(lab).unwrap_or_else(|error| panic!("start containerd: {error:#}"));
        within(Duration::from_secs(30), "containerd answers", || {
            (containerd.call(&["version"]).code == 0).then_some(())
        });
        let archive = lab
            .image_archive()
            .unwrap_or_else(|error| panic!("make the image: {error:#}"));
        let snapshotter = "--snapshotter=overlayfs";
        let archive = archive.to_string_lossy();
        let _ = containerd
            .call(&["image", "import", snapshotter, &archive])
            .ok();
        containerd
    }

    fn launch(lab: &'a EngineLab) -> Result<Self> {
        let dir = lab.dir().join("c");
        fs::create_dir(&dir).with_context(|| format!("create {}", dir.display()))?;
        let text = dir.display();
        // The CRI plugin would look for a network; the snapshotters need devices this test does not have.
        let config = format!(
            "version = 2
root = \"{text}/root\"
state = \"{text}/state\"
disabled_plugins = [
  \"io.containerd.grpc.v1.cri\",
  \"io.containerd.internal.v1.opt\",
  \"io.containerd.snapshotter.v1.btrfs\",
  \"io.containerd.snapshotter.v1.devmapper\",
  \"io.containerd.snapshotter.v1.zfs\",
]
[grpc]
address = \"{text}/c.sock\"
"
        );
        let path = dir.join("config.toml");
        fs::write(&path, config).with_context(|| format!("write {}", path.display()))?;
        let log = fs::File::create(dir.join("log")).context("create containerd's log")?;
        let mut command = Command::new("containerd");
        command
            .arg("--config")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share the log")?)
            .stderr(log);
        let daemon = Running::start(&mut command)?;
        Ok(Self { lab, dir, daemon })
    }

    /// The command `ctr ARGS`.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command
            .arg("--address")
            .arg(self.dir.join("c.sock"))
            .args(args);
        command
    }

    /// Runs `ctr ARGS`.
    #[must_use]
    pub fn call(&self, args: &[&str]) -> Answer {
        ask(&self.command(args), &[])
    }

    /// `ctr run` with `runc-lite` as the shim's binary: `options`, the image, `id`, `sh -c script`.
    #[must_use]
    pub fn run(&self, options: &[&str], id: &str, script: &str) -> Answer {
        self.run_program(options, id, &["sh", "-c", script])
    }

    /// The same with a program.
    #[must_use]
    pub fn run_program(&self, options: &[&str], id: &str, program: &[&str]) -> Answer {
        ask(&self.run_command(options, id, program), &[])
    }

    /// The same with a terminal.
    #[must_use]
    pub fn run_on_terminal(&self, options: &[&str], id: &str, script: &str) -> Answer {
        let options = [&["--tty"], options].concat();
        ask_on_terminal(&self.run_command(&options, id, &["sh", "-c", script]))
    }

    fn run_command(&self, options: &[&str], id: &str, program: &[&str]) -> Command {
        let mut command = self.command(&["run", "--runc-binary"]);
        command
            .arg(self.lab.runtime())
            .arg("--runc-root")
            .arg(self.dir.join("runc"))
            .arg(format!("--cgroup={}/{id}", self.lab.cgroup()))
            .args(options)
            .args([IMAGE, id])
            .args(program);
        command
    }

    /// The state `ctr task ls` shows for a task: `RUNNING`, `PAUSED`, `STOPPED`; empty without one.
    #[must_use]
    pub fn status(&self, id: &str) -> String {
        let list = self.call(&["task", "ls"]).ok();
        let line = list
            .lines()
            .find(|line| line.split_whitespace().next() == Some(id));
        let word = line.and_then(|line| line.split_whitespace().nth(2));
        word.unwrap_or_default().to_owned()
    }

    /// Ends the daemon as an operator does.
    ///
    /// # Panics
    /// When it does not end.
    pub fn stop(mut self) {
        self.daemon.signal(Signal::SIGTERM);
        let ended = self.daemon.wait(Duration::from_secs(20));
        assert!(ended.is_some(), "containerd ignores SIGTERM");
    }
}
