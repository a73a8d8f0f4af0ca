//! One OCI runtime and the command lines of a round.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use super::bundle::Bundle;
use super::meter::{Meter, Sample};
use crate::children;
use crate::eventually::poll;

/// How long a container may take to do what it was told.
const PATIENCE: Duration = Duration::from_secs(10);

/// Pause before a turn: removed cgroups and namespaces of the turn before are freed by the kernel behind the
/// runtime's back, over several RCU grace periods.
const PAUSE: Duration = Duration::from_millis(100);

/// A runtime with a directory of its own for its records.
#[derive(Debug)]
pub struct Contestant {
    name: String,
    program: PathBuf,
    root: PathBuf,
}

impl Contestant {
    /// `program`, known as `name`, with its records below `states`.
    #[must_use]
    pub fn new(name: &str, program: &Path, states: &Path) -> Self {
        Self {
            name: name.to_owned(),
            program: program.to_owned(),
            root: states.join(name),
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its program.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The arguments of a verb.
    #[must_use]
    pub fn arguments(&self, words: &[&str]) -> Vec<String> {
        let root = self.root.to_string_lossy();
        [&["--root", &root], words]
            .concat()
            .into_iter()
            .map(str::to_owned)
            .collect()
    }

    /// The command of a verb.
    #[must_use]
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(self.arguments(words));
        command
    }

    /// Goes through every phase once, in the order of [`super::Phase::ALL`].
    ///
    /// A pause and a run that is not measured come first, so that nobody pays for what another left behind.
    ///
    /// # Errors
    /// When a command fails; its container is then removed by force.
    pub fn round(&self, meter: &Meter, brief: &Bundle, lasting: &Bundle) -> Result<Vec<Sample>> {
        fs::create_dir_all(&self.root).with_context(|| format!("make {}", self.root.display()))?;
        let id = format!("{}-{}", self.name, std::process::id());
        let measured = self.phases(meter, brief, lasting, &id);
        if measured.is_err() {
            let _ = children::output(&mut self.command(&["delete", "--force", &id]), &[]);
        }
        measured
    }

    fn phases(
        &self,
        meter: &Meter,
        brief: &Bundle,
        lasting: &Bundle,
        id: &str,
    ) -> Result<Vec<Sample>> {
        let log = self.root.with_extension("log");
        let measure = |words: &[&str]| meter.measure(&mut self.command(words), &log);
        thread::sleep(PAUSE);
        let _ = measure(&["run", "--bundle", brief.path(), id])?;
        let mut samples = Vec::new();
        samples.push(measure(&["run", "--bundle", brief.path(), id])?);

        let pid_file = self.root.with_extension("pid");
        let pid_text = pid_file.to_string_lossy();
        let create = |bundle: &Bundle| {
            let sample = measure(&[
                "create",
                "--bundle",
                bundle.path(),
                "--pid-file",
                &pid_text,
                id,
            ])?;
            let pid = fs::read_to_string(&pid_file).context("read the pid file")?;
            let pid = Pid::from_raw(pid.trim().parse().context("read the pid")?);
            anyhow::Ok((sample, pid))
        };
        let (sample, pid) = create(brief)?;
        samples.push(sample);
        samples.push(measure(&["start", id])?);
        // Its creator is gone, so that it is this process's to reap.
        waitpid(pid, None).context("wait for the container")?;
        samples.push(measure(&["delete", id])?);

        let (_, pid) = create(lasting)?;
        let _ = measure(&["start", id])?;
        samples.push(measure(&["exec", id, "/bin/true"])?);
        let killed = thread::scope(|scope| {
            // The container must be reaped while the runtime waits for its end.
            let reaper = scope.spawn(|| waitpid(pid, None));
            let killed = measure(&["delete", "--force", id]);
            reaper.join().ok();
            killed
        })?;
        samples.push(killed);
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            if status.pid().is_none() {
                break;
            }
        }
        Ok(samples)
    }

    /// Highest resident size, in KiB, of the process that `run` leaves waiting for the container.
    ///
    /// # Errors
    /// When the container does not come up.
    pub fn resident(&self, reading: &Bundle) -> Result<u64> {
        let id = format!("{}-{}-rss", self.name, std::process::id());
        let mut waiting = self
            .command(&["run", "--bundle", reading.path(), &id])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("start {}", self.program.display()))?;
        let status = format!("/proc/{}/status", waiting.id());
        let reached = poll(PATIENCE, || {
            let state = children::output(&mut self.command(&["state", &id]), &[]).ok()?;
            let text = String::from_utf8_lossy(&state.stdout).into_owned();
            text.contains("\"running\"").then_some(())?;
            let text = fs::read_to_string(&status).ok()?;
            let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
            line.split_whitespace().next()?.parse().ok()
        });
        // cat ends with its input, and the runtime with cat.
        drop(waiting.stdin.take());
        waiting.wait().context("wait for the runtime")?;
        reached.with_context(|| format!("{}: the container did not run", self.name))
    }
}
