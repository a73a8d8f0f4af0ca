//! What one pull costs: time, CPU time, memory and disk, of a daemon and of the processes it starts.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use rustix::fs::syncfs;

use super::contestant::Daemon;
use crate::memory::{children_of, kib};

/// How often it is looked what the helpers of a daemon take: often enough for processes that live for a
/// second, seldom enough to take no time worth measuring.
const LOOK: Duration = Duration::from_millis(50);

/// The cost of one pull.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cost {
    /// Until the call was answered.
    pub wall: Duration,
    /// Until everything was on disk, which the answer may promise or not.
    pub durable: Duration,
    /// User and system time of the daemon and of what it started.
    pub cpu: Duration,
    /// The most memory the daemon ever had, in KiB.
    pub resident: u64,
    /// The most its helpers had together, in KiB.
    pub helpers: u64,
    /// What it takes on disk afterwards, in bytes.
    pub disk: u64,
}

/// Pulls `reference` and measures.
///
/// # Errors
/// When the pull fails.
pub fn pull(daemon: &dyn Daemon, reference: &str, dir: &Path) -> Result<Cost> {
    let client = daemon.client()?;
    // The connection is there before the clock starts.
    client.version().map_err(|status| anyhow!("{status}"))?;
    let disk = fs::File::open(dir).with_context(|| format!("open {}", dir.display()))?;
    let pid = daemon.pid();
    let is_done = AtomicBool::new(false);
    let cpu = cpu(pid)?;
    let begun = Instant::now();
    let (pulled, helpers) = thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let mut most = 0;
            while !is_done.load(Ordering::Relaxed) {
                most = most.max(children_of(pid).map(|pid| kib(pid, "VmRSS:")).sum());
                thread::sleep(LOOK);
            }
            most
        });
        let pulled = client.pull(reference);
        let wall = begun.elapsed();
        is_done.store(true, Ordering::Relaxed);
        (pulled.map(|_| wall), looking.join().unwrap_or_default())
    });
    let wall = pulled.map_err(|status| anyhow!("pull {reference}: {status}"))?;
    let waited = Instant::now();
    syncfs(&disk).context("sync the file system")?;
    Ok(Cost {
        wall,
        durable: wall + waited.elapsed(),
        cpu: self::cpu(pid)?.saturating_sub(cpu),
        resident: kib(pid, "VmHWM:"),
        helpers,
        disk: allocated(dir),
    })
}

/// User and system time of a process and of its children that ended (proc_pid_stat(5)).
///
/// # Errors
/// When it is gone.
pub fn cpu(pid: i32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    // The name may contain anything; what follows its closing parenthesis starts with field 3.
    let rest = stat.rsplit(") ").next().unwrap_or_default();
    let ticks: u64 = rest
        .split(' ')
        .skip(11)
        .take(4)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    // sysconf(3): a second has a hundred clock ticks on all supported machines.
    Ok(Duration::from_millis(ticks * 10))
}

/// Bytes on disk of everything below `dir`, files with several names once each.
fn allocated(dir: &Path) -> u64 {
    let mut sum = 0;
    let mut seen = std::collections::BTreeSet::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let Ok(stat) = entry.path().symlink_metadata() else {
                continue;
            };
            if stat.nlink() == 1 || stat.is_dir() || seen.insert(stat.ino()) {
                sum += stat.blocks() * 512;
            }
            if stat.is_dir() {
                open.push(entry.path());
            }
        }
    }
    sum
}
