//! Debian's dockerd (with the containerd it starts itself), and `runc-lite` as its default runtime.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;

use super::{Answer, EngineLab, IMAGE, ask, ask_on_terminal, program};
use crate::children::Running;
use crate::eventually::within;

/// A daemon for one test, and the command line to talk to it.
#[derive(Debug)]
pub struct Docker<'a> {
    lab: &'a EngineLab,
    dir: PathBuf,
    client: PathBuf,
    daemon: Running,
}

impl<'a> Docker<'a> {
    /// Starts the daemon and gives it the image.
    ///
    /// # Panics
    /// When it does not start or does not take the image; the message has the end of its log.
    #[must_use]
    pub fn start(lab: &'a EngineLab) -> Self {
        let docker = Self::launch(lab).unwrap_or_else(|error| panic!("start dockerd: {error:#}"));
        within(Duration::from_secs(60), "dockerd answers", || {
            (docker.call(&["version"]).code == 0).then_some(())
        });
        let archive = lab
            .rootfs_archive()
            .unwrap_or_else(|error| panic!("make the image: {error:#}"));
        let change = "--change=ENV PATH=/bin:/sbin";
        let archive = archive.to_string_lossy();
        let _ = docker.call(&["import", change, &archive, IMAGE]).ok();
        docker
    }

    fn launch(lab: &'a EngineLab) -> Result<Self> {
        let dir = lab.dir().join("d");
        fs::create_dir(&dir).with_context(|| format!("create {}", dir.display()))?;
        // The machine's own configuration is not this daemon's.
        let config = dir.join("daemon.json");
        fs::write(&config, "{}").with_context(|| format!("write {}", config.display()))?;
        let log = fs::File::create(dir.join("log")).context("create dockerd's log")?;
        let mut command = Command::new(program("dockerd")?);
        command.arg("--config-file").arg(&config);
        for (option, name) in [
            ("--data-root", "root"),
            ("--exec-root", "exec"),
            ("--pidfile", "pid"),
        ] {
            command.arg(option).arg(dir.join(name));
        }
        command
            .arg(format!("--host=unix://{}", dir.join("d.sock").display()))
            // Packet rules and bridges are not what is tested here.
            .args(["--bridge=none", "--iptables=false", "--ip6tables=false"])
            .args(["--exec-opt", "native.cgroupdriver=cgroupfs"])
            .arg(format!("--cgroup-parent={}", lab.cgroup()))
            .arg(format!(
                "--add-runtime=runc-lite={}",
                lab.runtime().display()
            ))
            .arg("--default-runtime=runc-lite")
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share the log")?)
            .stderr(log);
        let daemon = Running::start(&mut command)?;
        Ok(Self {
            lab,
            dir,
            client: program("docker")?,
            daemon,
        })
    }

    /// The command `docker ARGS`.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.client);
        command
            .arg("--config")
            .arg(&self.dir)
            .arg("--host")
            .arg(format!("unix://{}", self.dir.join("d.sock").display()))
            .args(args);
        command
    }

    /// Runs `docker ARGS`.
    #[must_use]
    pub fn call(&self, args: &[&str]) -> Answer {
        ask(&self.command(args), &[])
    }

    /// `docker run --rm` without a network: `options`, the image, and `sh -c script`.
    #[must_use]
    pub fn run(&self, options: &[&str], script: &str) -> Answer {
        self.run_program(options, &["sh", "-c", script])
    }

    /// The same with a program.
    #[must_use]
    pub fn run_program(&self, options: &[&str], program: &[&str]) -> Answer {
        let first = ["run", "--rm", "--network=none"];
        self.call(&[&first, options, &[IMAGE], program].concat())
    }

    /// The same with a terminal.
    #[must_use]
    pub fn run_on_terminal(&self, options: &[&str], script: &str) -> Answer {
        let first = ["run", "--rm", "--network=none", "--interactive", "--tty"];
        let arguments = [&first, options, &[IMAGE, "sh", "-c", script]].concat();
        ask_on_terminal(&self.command(&arguments))
    }

    /// The cgroup the containers of this daemon are below.
    #[must_use]
    pub fn cgroup(&self) -> &str {
        self.lab.cgroup()
    }

    /// Ends the daemon as an operator does.
    ///
    /// # Panics
    /// When it does not end.
    pub fn stop(mut self) {
        self.daemon.signal(Signal::SIGTERM);
        let ended = self.daemon.wait(Duration::from_secs(30));
        assert!(ended.is_some(), "dockerd ignores SIGTERM");
    }
}
