//! Wall time and CPU time of one command and of everything it starts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// One measured command.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sample {
    /// From before the start of the command until it ended.
    pub wall: Duration,
    /// User and system time of its cgroup meanwhile.
    pub cpu: Duration,
}

/// A cgroup this process and all it starts are in, and that the containers lie below: its CPU time is
/// theirs, whoever reaps them.
#[derive(Debug)]
pub struct Meter {
    usage: PathBuf,
    is_v1: bool,
    /// Where this process was, to go back to.
    home: PathBuf,
}

impl Meter {
    /// Moves this process into cgroup `path` of the hierarchy that counts CPU time.
    ///
    /// # Errors
    /// When there is none, or it cannot be joined.
    pub fn around(path: &str) -> Result<Self> {
        let v1 = Path::new("/sys/fs/cgroup/cpuacct");
        let is_v1 = v1.is_dir();
        let root = if is_v1 {
            v1
        } else {
            Path::new("/sys/fs/cgroup")
        };
        let own = fs::read_to_string("/proc/self/cgroup").context("read this process's cgroup")?;
        let own = own.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            let wanted = if is_v1 { "cpuacct" } else { "" };
            controllers.split(',').any(|c| c == wanted).then_some(path)
        });
        let own = own.context("this process is in no cgroup that counts CPU time")?;
        let home = root.join(own.trim_start_matches('/'));
        let top = root.join(path.trim_start_matches('/'));
        // On v2 processes are in leaves only; the containers are this one's neighbours.
        let leaf = if is_v1 {
            top.clone()
        } else {
            top.join("meter")
        };
        fs::create_dir_all(&leaf).with_context(|| format!("make {}", leaf.display()))?;
        join(&leaf)?;
        let usage = top.join(if is_v1 { "cpuacct.usage" } else { "cpu.stat" });
        Ok(Self { usage, is_v1, home })
    }

    fn cpu(&self) -> Result<Duration> {
        let text = fs::read_to_string(&self.usage)
            .with_context(|| format!("read {}", self.usage.display()))?;
        let number = if self.is_v1 {
            text.trim().parse().ok().map(Duration::from_nanos)
        } else {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix("usage_usec "));
            line.and_then(|n| n.parse().ok()).map(Duration::from_micros)
        };
        number.with_context(|| format!("{} has no time", self.usage.display()))
    }

    /// Runs `command` to its end, which must be a success, and measures it.
    ///
    /// # Errors
    /// When it cannot be started or fails; the message has its standard error.
    pub fn measure(&self, command: &mut Command, log: &Path) -> Result<Sample> {
        let file = fs::File::create(log).with_context(|| format!("create {}", log.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file);
        let cpu = self.cpu()?;
        let begun = Instant::now();
        let status = command
            .status()
            .with_context(|| format!("start {:?}", command.get_program()))?;
        let wall = begun.elapsed();
        let cpu = self.cpu()?.saturating_sub(cpu);
        if !status.success() {
            let text = fs::read_to_string(log).unwrap_or_default();
            bail!("{command:?}: {status}: {}", text.trim());
        }
        Ok(Sample { wall, cpu })
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        // Out of the cgroup again, so that it can be removed.
        let _ = join(&self.home);
    }
}

fn join(cgroup: &Path) -> Result<()> {
    let procs = cgroup.join("cgroup.procs");
    fs::write(&procs, std::process::id().to_string())
        .with_context(|| format!("join {}", cgroup.display()))
}
