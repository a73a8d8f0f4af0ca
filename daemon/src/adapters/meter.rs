//! What pods and containers use, read from the kernel's own files and kept for a second.
//!
//! Nothing a container writes is read here but what the kernel counts of it; every file, list and walk has a
//! bound, and all reading is done on threads that may block.

mod files;
mod hierarchies;
mod network;
mod processes;
mod recent;
mod v1;
mod v2;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;

use crate::domain::failure::Failure;
use crate::domain::usage::{
    CgroupUsage, CpuSample, DeviceNumber, FilesystemUsage, NetworkUsage, ProcessUsage, nano_cores,
};
use crate::engine::lock;
use crate::engine::spawn::blocking;
use crate::ports::meter::{CgroupTarget, Meter};
use crate::ports::{Answer, unix_nanos};
pub(super) use hierarchies::Hierarchies;
use recent::Recent;

/// How long a reading is given out again.
const FRESH: Duration = Duration::from_secs(1);

/// How long a count of open files is given out again: it looks at every descriptor.
const FRESH_FILES: Duration = Duration::from_secs(10);

/// How long a cgroup nobody asks for is remembered.
const REMEMBERED: Duration = Duration::from_secs(60);

/// Shortest time a rate is taken over, in nanoseconds: below it the clock of the scheduler shows.
const SHORTEST: i64 = 500_000_000;

/// Longest time since a cgroup was made that its first rate is taken over, in nanoseconds.
const YOUNG: i64 = 30_000_000_000;

/// The kernel, as a meter.
#[derive(Debug)]
pub struct KernelMeter {
    hierarchies: Arc<Hierarchies>,
    cgroups: Mutex<HashMap<String, Reading>>,
    networks: Recent<PathBuf, NetworkUsage>,
    processes: Recent<String, u64>,
    open_files: Recent<String, ProcessUsage>,
    layers: PathBuf,
}

/// What is remembered of a cgroup.
#[derive(Debug, Default)]
struct Reading {
    touched: Option<Instant>,
    read: Option<(Instant, Option<Arc<CgroupUsage>>)>,
    /// The two last samples, the later one first.
    samples: [Option<CpuSample>; 2],
}

impl Reading {
    /// The sample a rate at this time is taken from.
    fn base(&self, made_at: i64, now: i64) -> Option<CpuSample> {
        let old_enough = |sample: &CpuSample| now.saturating_sub(sample.at) >= SHORTEST;
        let known = self.samples.iter().flatten().copied().find(old_enough);
        let born = CpuSample {
            at: made_at,
            total_ns: 0,
        };
        known.or_else(|| (made_at > 0 && now.saturating_sub(made_at) < YOUNG).then_some(born))
    }

    fn note(&mut self, sample: CpuSample) {
        let early = |last: &CpuSample| sample.at.saturating_sub(last.at) < SHORTEST;
        if !self.samples[0].as_ref().is_some_and(early) {
            self.samples = [Some(sample), self.samples[0]];
        }
    }
}

impl KernelMeter {
    /// Opens the hierarchies; `layers` is the directory of the writable layers.
    ///
    /// # Errors
    /// The kernel's mount table cannot be read.
    pub fn open(layers: &Path) -> Result<Self, Failure> {
        Ok(Self::over(Hierarchies::open()?, layers))
    }

    fn over(hierarchies: Hierarchies, layers: &Path) -> Self {
        Self {
            hierarchies: Arc::new(hierarchies),
            cgroups: Mutex::default(),
            networks: Recent::new(FRESH),
            processes: Recent::new(FRESH),
            open_files: Recent::new(FRESH_FILES),
            layers: layers.to_owned(),
        }
    }

    /// A reading that is still fresh.
    fn fresh(&self, path: &str) -> Option<Option<Arc<CgroupUsage>>> {
        let mut known = lock(&self.cgroups);
        let reading = known.get_mut(path)?;
        let (at, usage) = reading.read.as_ref()?;
        if at.elapsed() >= FRESH {
            return None;
        }
        reading.touched = Some(Instant::now());
        Some(usage.clone())
    }

    /// Keeps what was read, adds its rate, and forgets cgroups nobody asked for.
    fn keep(&self, target: &CgroupTarget, usage: Option<CgroupUsage>) -> Option<Arc<CgroupUsage>> {
        let mut known = lock(&self.cgroups);
        let reading = known.entry(target.path.clone()).or_default();
        let usage = usage.map(|mut usage| {
            if let Some(cpu) = &mut usage.cpu {
                let now = CpuSample {
                    at: usage.read_at,
                    total_ns: cpu.total_ns,
                };
                let base = reading.base(target.made_at, now.at);
                cpu.nano_cores = base.and_then(|base| nano_cores(base, now));
                reading.note(now);
            }
            let before = reading.read.as_ref().and_then(|(_, usage)| usage.clone());
            keep_peaks(&mut usage, before.as_deref());
            Arc::new(usage)
        });
        let now = Instant::now();
        reading.touched = Some(now);
        reading.read = Some((now, usage.clone()));
        usage
    }

    fn forget_old(&self) {
        lock(&self.cgroups).retain(|_, reading| {
            reading
                .touched
                .is_some_and(|touched| touched.elapsed() < REMEMBERED)
        });
    }
}

/// Where the kernel keeps no highest value, the highest one read stands for it.
fn keep_peaks(usage: &mut CgroupUsage, before: Option<&CgroupUsage>) {
    for page in &mut usage.huge_pages {
        let earlier = before.and_then(|before| {
            let same = before.huge_pages.iter().find(|one| one.size == page.size);
            same.and_then(|one| one.peak)
        });
        let seen = page.usage.max(earlier.unwrap_or(0));
        page.peak = page.peak.or(Some(seen));
    }
    if let Some(memory) = &mut usage.memory {
        let earlier = before
            .and_then(|before| before.memory.as_ref())
            .and_then(|memory| memory.peak);
        let seen = memory.usage.max(earlier.unwrap_or(0));
        memory.peak = memory.peak.or(Some(seen));
    }
}

#[async_trait]
impl Meter for KernelMeter {
    async fn cgroups(&self, targets: Vec<CgroupTarget>) -> Vec<Option<Arc<CgroupUsage>>> {
        let mut found: Vec<_> = targets.iter().map(|one| self.fresh(&one.path)).collect();
        let missing: Vec<CgroupTarget> = targets
            .iter()
            .zip(&found)
            .filter(|(_, found)| found.is_none())
            .map(|(target, _)| target.clone())
            .collect();
        if !missing.is_empty() {
            let hierarchies = Arc::clone(&self.hierarchies);
            let work = move || {
                let read = |target: CgroupTarget| {
                    let usage = hierarchies.usage(&target.path, unix_nanos());
                    (target, usage)
                };
                Ok(missing.into_iter().map(read).collect::<Vec<_>>())
            };
            let read = told(blocking("read cgroups", work).await);
            let mut read: HashMap<String, _> = read
                .into_iter()
                .map(|(target, usage)| {
                    let usage = self.keep(&target, usage);
                    (target.path, usage)
                })
                .collect();
            for (target, slot) in targets.iter().zip(&mut found) {
                if slot.is_none() {
                    *slot = read.get_mut(&target.path).map(|usage| usage.clone());
                }
            }
            self.forget_old();
        }
        found.into_iter().map(Option::flatten).collect()
    }

    async fn sample(&self, targets: Vec<CgroupTarget>) {
        let hierarchies = Arc::clone(&self.hierarchies);
        let work = move || {
            let read = |target: CgroupTarget| {
                let total_ns = hierarchies.cpu_time(&target.path)?;
                let at = unix_nanos();
                Some((target.path, CpuSample { at, total_ns }))
            };
            Ok(targets.into_iter().filter_map(read).collect::<Vec<_>>())
        };
        let read = told(blocking("sample CPU time", work).await);
        let mut known = lock(&self.cgroups);
        for (path, sample) in read {
            let reading = known.entry(path).or_default();
            reading.touched = Some(Instant::now());
            reading.note(sample);
        }
        drop(known);
        self.forget_old();
    }

    async fn networks(&self, pins: Vec<PathBuf>) -> Vec<Option<Arc<NetworkUsage>>> {
        self.networks
            .through(pins, |pins| async {
                told(blocking("read network interfaces", move || network::read(pins)).await)
            })
            .await
    }

    async fn processes(&self, paths: Vec<String>) -> Vec<Option<u64>> {
        let hierarchies = Arc::clone(&self.hierarchies);
        let read = |paths: Vec<String>| async move {
            let count = move |path: &String| {
                processes::pids(&hierarchies, path)
                    .map(|pids| u64::try_from(pids.len()).unwrap_or(u64::MAX))
            };
            let work = move || Ok(paths.iter().map(count).collect());
            told(blocking("count processes", work).await)
        };
        let counts = self.processes.through(paths, read).await;
        counts.into_iter().map(|count| count.map(|n| *n)).collect()
    }

    async fn open_files(&self, paths: Vec<String>) -> Vec<Option<Arc<ProcessUsage>>> {
        let hierarchies = Arc::clone(&self.hierarchies);
        let read = |paths: Vec<String>| async move {
            let count = move |path: &String| processes::open_files(&hierarchies, path);
            let work = move || Ok(paths.iter().map(count).collect());
            told(blocking("count open files", work).await)
        };
        self.open_files.through(paths, read).await
    }

    fn filesystem(&self) -> Answer<FilesystemUsage> {
        let stat = rustix::fs::statvfs(&self.layers).map_err(|errno| {
            Failure::io(format!("statvfs {}", self.layers.display()), &errno.into())
        })?;
        let meta = rustix::fs::stat(&self.layers).map_err(|errno| {
            Failure::io(format!("stat {}", self.layers.display()), &errno.into())
        })?;
        Ok(FilesystemUsage {
            device: DeviceNumber {
                major: rustix::fs::major(meta.st_dev),
                minor: rustix::fs::minor(meta.st_dev),
            },
            bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
            inodes: stat.f_files,
            free_inodes: stat.f_ffree,
        })
    }

    async fn device_names(
        &self,
        devices: BTreeSet<DeviceNumber>,
    ) -> BTreeMap<DeviceNumber, String> {
        let named = |device: DeviceNumber| Some((device, device_name(device)?));
        let work = move || Ok(devices.into_iter().filter_map(named).collect::<Vec<_>>());
        let named = told(blocking("name block devices", work).await);
        named.into_iter().collect()
    }

    fn mountpoint(&self) -> String {
        self.layers.display().to_string()
    }
}

/// The name the kernel gave a block device; sysfs has it for as long as the device is there.
fn device_name(device: DeviceNumber) -> Option<String> {
    let path = format!("/sys/dev/block/{}:{}/uevent", device.major, device.minor);
    let text = std::fs::read_to_string(path).ok()?;
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("DEVNAME="))?;
    Some(format!("/dev/{name}"))
}

/// What was read; a failure is told in the log and is as good as nothing to read.
fn told<T>(read: Result<Vec<T>, Failure>) -> Vec<T> {
    read.unwrap_or_else(|failure| {
        tracing::warn!(error = %failure, "usage could not be read");
        Vec::new()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rate_of_a_young_cgroup_is_since_it_was_made() {
        let reading = Reading::default();
        let second = 1_000_000_000;
        let base = reading.base(5 * second, 10 * second).unwrap();
        assert_eq!((base.at, base.total_ns), (5 * second, 0));
        assert_eq!(reading.base(5 * second, 100 * second), None);
    }

    #[test]
    fn a_rate_is_taken_from_the_latest_sample_that_is_old_enough() {
        let second = 1_000_000_000;
        let sample = |at| CpuSample { at, total_ns: 1 };
        let mut reading = Reading::default();
        reading.note(sample(second));
        reading.note(sample(second + 5));
        assert_eq!(reading.samples, [Some(sample(second)), None]);
        reading.note(sample(3 * second));
        assert_eq!(reading.base(0, 3 * second + 7), Some(sample(second)));
        assert_eq!(reading.base(0, 4 * second), Some(sample(3 * second)));
    }

    #[test]
    fn the_highest_value_is_kept_where_the_kernel_keeps_none() {
        use crate::domain::usage::{HugePageUsage, MemoryUsage};
        let usage = |bytes, peak| CgroupUsage {
            memory: Some(MemoryUsage {
                usage: bytes,
                peak,
                ..MemoryUsage::default()
            }),
            huge_pages: vec![HugePageUsage {
                size: "2MB".into(),
                usage: bytes,
                peak,
            }],
            ..CgroupUsage::default()
        };
        let peaks = |usage: &CgroupUsage| {
            (
                usage.memory.as_ref().unwrap().peak,
                usage.huge_pages[0].peak,
            )
        };
        let mut first = usage(9, None);
        keep_peaks(&mut first, None);
        assert_eq!(peaks(&first), (Some(9), Some(9)));
        let mut second = usage(4, None);
        keep_peaks(&mut second, Some(&first));
        assert_eq!(peaks(&second), (Some(9), Some(9)));
        let mut third = usage(4, Some(12));
        keep_peaks(&mut third, Some(&second));
        assert_eq!(peaks(&third), (Some(12), Some(12)));
    }
}
