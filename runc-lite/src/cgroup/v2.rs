//! cgroup v2: one directory in the unified tree.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags};

use super::device::DeviceSet;
use super::files::{self, KILL_PATIENCE, wait_until, write};
use super::v1::files_rdma;
use super::{Cgroup, CgroupDirectory, CgroupError, CgroupRecord, Subgroup, io_error};
use crate::config::{BlockIo, Cpu, Memory, Resources, ThrottleDevice};

/// How long the freezer may take.
const FREEZE_PATIENCE: Duration = Duration::from_secs(2);
/// What the kernel takes as the period when none is given, in microseconds.
const DEFAULT_PERIOD: u64 = 100_000;

/// A container's directory in the unified tree.
#[derive(Debug)]
pub(super) struct CgroupV2 {
    record: CgroupRecord,
}

impl CgroupV2 {
    pub(super) fn new(record: CgroupRecord) -> CgroupV2 {
        CgroupV2 { record }
    }

    fn here(&self) -> &CgroupDirectory {
        // Invariant: `locate` gives a version 2 record exactly one directory.
        &self.record.directories[0]
    }

    fn path(&self) -> &Path {
        &self.here().path
    }

    /// Writes a limit; a file that is not there means that the controller is not.
    fn set(
        &self,
        file: &str,
        value: &str,
        controller: &'static str,
        field: &str,
    ) -> Result<(), CgroupError> {
        match write(self.path(), file, value) {
            Err(CgroupError::Io { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound =>
            {
                Err(CgroupError::MissingController {
                    field: format!("linux.resources.{field}"),
                    controller,
                })
            }
            other => other,
        }
    }

    fn is_populated(&self) -> bool {
        files::read(self.path(), "cgroup.events").is_some_and(|e| e.contains("populated 1"))
    }
}

impl Cgroup for CgroupV2 {
    fn record(&self) -> &CgroupRecord {
        &self.record
    }

    fn refuse_occupied(&self) -> Result<(), CgroupError> {
        if !self.path().exists() {
            return Ok(());
        }
        let count = files::processes(self.path()).len();
        if count > 0 {
            return Err(CgroupError::NotEmpty {
                path: self.path().to_owned(),
                count,
            });
        }
        if self.is_frozen() {
            return Err(CgroupError::Frozen {
                path: self.path().to_owned(),
            });
        }
        Ok(())
    }

    fn create(&self) -> Result<(), CgroupError> {
        let CgroupDirectory {
            path, mount_point, ..
        } = self.here();
        let below = path.strip_prefix(mount_point).unwrap_or(Path::new(""));
        let mut current = mount_point.clone();
        for part in below.components() {
            // Order: a directory gets its controller files from its parent's subtree_control.
            enable_controllers(&current);
            current.push(part);
            files::make(&current)?;
        }
        Ok(())
    }

    fn apply(&self, resources: &Resources, _warnings: &mut Vec<String>) -> Result<(), CgroupError> {
        let devices = DeviceSet::of_rules(&resources.devices);
        if !devices.allows_everything() {
            self.attach_devices(&devices)?;
        }
        if let Some(memory) = &resources.memory {
            self.apply_memory(memory)?;
        }
        if let Some(cpu) = &resources.cpu {
            self.apply_cpu(cpu)?;
        }
        if let Some(limit) = resources
            .pids
            .as_ref()
            .and_then(|p| p.limit)
            .filter(|l| *l != 0)
        {
            let value = if limit < 0 {
                "max".to_owned()
            } else {
                limit.to_string()
            };
            self.set("pids.max", &value, "pids", "pids.limit")?;
        }
        if let Some(block_io) = &resources.block_io {
            self.apply_block_io(block_io)?;
        }
        for limit in &resources.hugepage_limits {
            let file = format!("hugetlb.{}.max", limit.page_size);
            // The kubelet sends a zero limit for every page size, with or without the controller.
            if limit.limit == 0 && !self.path().join(&file).exists() {
                continue;
            }
            self.set(&file, &limit.limit.to_string(), "hugetlb", "hugepageLimits")?;
            let reserved = format!("hugetlb.{}.rsvd.max", limit.page_size);
            if self.path().join(&reserved).exists() {
                write(self.path(), &reserved, &limit.limit.to_string())?;
            }
        }
        for (device, limits) in &resources.rdma {
            self.set("rdma.max", &files_rdma(device, limits), "rdma", "rdma")?;
        }
        for (key, value) in &resources.unified {
            // Several lines are several settings; the kernel takes one line per write.
            for line in value.lines() {
                write(self.path(), key, line)?;
            }
        }
        Ok(())
    }

    fn join(&self, pid: i32, subgroup: Option<&Subgroup>) -> Result<(), CgroupError> {
        let path = match subgroup {
            Some(subgroup) => {
                subgroup.check_exists(&self.record.directories)?;
                subgroup.below(self.here())
            }
            None => self.path().to_owned(),
        };
        write(&path, "cgroup.procs", &pid.to_string())
    }

    fn signal(&self, signal: i32) -> Result<(), CgroupError> {
        files::signal_all(&self.record.directories, signal);
        Ok(())
    }

    fn kill(&self) -> Result<(), CgroupError> {
        let has_kill = files::write_io(&self.path().join("cgroup.kill"), "1").is_ok();
        let gone = wait_until(KILL_PATIENCE, || {
            if !has_kill {
                let _ = self.set_frozen(true);
                files::signal_all(&self.record.directories, libc::SIGKILL);
                let _ = self.set_frozen(false);
            }
            !self.is_populated()
        });
        if gone {
            return Ok(());
        }
        let seconds = KILL_PATIENCE.as_secs();
        Err(CgroupError::StillPopulated {
            path: self.path().to_owned(),
            seconds,
        })
    }

    fn is_frozen(&self) -> bool {
        files::read(self.path(), "cgroup.freeze").is_some_and(|value| value == "1")
    }

    fn set_frozen(&self, frozen: bool) -> Result<(), CgroupError> {
        let (value, event) = if frozen {
            ("1", "frozen 1")
        } else {
            ("0", "frozen 0")
        };
        write(self.path(), "cgroup.freeze", value)?;
        let reached = wait_until(FREEZE_PATIENCE, || {
            files::read(self.path(), "cgroup.events").is_none_or(|e| e.contains(event))
        });
        if reached {
            return Ok(());
        }
        if frozen {
            // Never leave it half frozen.
            write(self.path(), "cgroup.freeze", "0")?;
        }
        let source = std::io::ErrorKind::TimedOut.into();
        Err(io_error(format!("reach {event:?} in"), self.path(), source))
    }

    fn remove(&self) -> Result<(), CgroupError> {
        if files::remove_quick(self.path()) {
            return Ok(());
        }
        self.kill()?;
        files::remove(self.path())
    }
}

impl CgroupV2 {
    fn attach_devices(&self, devices: &DeviceSet) -> Result<(), CgroupError> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fail = |operation: &str, e: std::io::Error| io_error(operation, self.path(), e);
        let directory = rustix::fs::openat(CWD, self.path(), flags, Mode::empty())
            .map_err(|errno| fail("open", errno.into()))?;
        let program = crate::sys::load_device_program(&devices.program())
            .map_err(|e| fail("load the device program of", e))?;
        crate::sys::attach_device_program(directory.as_fd(), program.as_fd())
            .map_err(|e| fail("attach the device program to", e))
    }

    fn apply_memory(&self, memory: &Memory) -> Result<(), CgroupError> {
        let text = |value: i64| {
            if value < 0 {
                "max".to_owned()
            } else {
                value.to_string()
            }
        };
        let limit = memory.limit.filter(|limit| *limit != 0);
        let swap = memory.swap.filter(|swap| *swap != 0);
        if let Some(swap) = swap {
            // The document counts memory and swap together, the kernel swap alone.
            let swap = match limit {
                Some(limit) if limit > 0 && swap > 0 => swap - limit,
                _ => swap,
            };
            self.set("memory.swap.max", &text(swap), "memory", "memory.swap")?;
        } else if limit == Some(-1) {
            self.set("memory.swap.max", "max", "memory", "memory.swap")?;
        }
        if let Some(limit) = limit {
            self.set("memory.max", &text(limit), "memory", "memory.limit")?;
        }
        if let Some(low) = memory.reservation.filter(|r| *r != 0) {
            self.set("memory.low", &text(low), "memory", "memory.reservation")?;
        }
        Ok(())
    }

    fn apply_cpu(&self, cpu: &Cpu) -> Result<(), CgroupError> {
        if let Some(idle) = cpu.idle {
            self.set("cpu.idle", &idle.to_string(), "cpu", "cpu.idle")?;
        }
        // An idle group has no weight of its own.
        if let Some(shares) = cpu.shares.filter(|s| *s != 0 && cpu.idle != Some(1)) {
            self.set(
                "cpu.weight",
                &weight_of_shares(shares).to_string(),
                "cpu",
                "cpu.shares",
            )?;
        }
        let quota = cpu.quota.filter(|q| *q != 0);
        let period = cpu.period.filter(|p| *p != 0);
        if quota.is_some() || period.is_some() {
            let quota = match quota {
                Some(quota) if quota > 0 => quota.to_string(),
                _ => "max".to_owned(),
            };
            let value = format!("{quota} {}", period.unwrap_or(DEFAULT_PERIOD));
            self.set("cpu.max", &value, "cpu", "cpu.quota")?;
        }
        if let Some(burst) = cpu.burst {
            self.set("cpu.max.burst", &burst.to_string(), "cpu", "cpu.burst")?;
        }
        if !cpu.cpus.is_empty() {
            self.set("cpuset.cpus", &cpu.cpus, "cpuset", "cpu.cpus")?;
        }
        if !cpu.mems.is_empty() {
            self.set("cpuset.mems", &cpu.mems, "cpuset", "cpu.mems")?;
        }
        Ok(())
    }

    fn apply_block_io(&self, block_io: &BlockIo) -> Result<(), CgroupError> {
        let bfq = self.path().join("io.bfq.weight").exists();
        let weight = |weight: u16| {
            if bfq {
                ("io.bfq.weight", u64::from(weight))
            } else {
                // 10..=1000 of the document onto 1..=10000 of io.weight.
                (
                    "io.weight",
                    1 + (u64::from(weight).max(10) - 10) * 9999 / 990,
                )
            }
        };
        if let Some((file, value)) = block_io.weight.filter(|w| *w != 0).map(weight) {
            self.set(file, &value.to_string(), "io", "blockIO.weight")?;
        }
        for device in &block_io.weight_device {
            if let Some((file, value)) = device.weight.map(weight) {
                let value = format!("{}:{} {value}", device.major, device.minor);
                self.set(file, &value, "io", "blockIO.weightDevice")?;
            }
        }
        let throttles: [(&str, &[ThrottleDevice]); 4] = [
            ("rbps", &block_io.throttle_read_bps_device),
            ("wbps", &block_io.throttle_write_bps_device),
            ("riops", &block_io.throttle_read_iops_device),
            ("wiops", &block_io.throttle_write_iops_device),
        ];
        for (key, devices) in throttles {
            for device in devices {
                let value = format!("{}:{} {key}={}", device.major, device.minor, device.rate);
                self.set("io.max", &value, "io", "blockIO.throttle")?;
            }
        }
        Ok(())
    }
}

/// Passes every controller on to the cgroups below `directory`, as far as that is possible: what a limit
/// needs and does not get is found out when the limit is written.
fn enable_controllers(directory: &Path) {
    let offered = files::read(directory, "cgroup.controllers").unwrap_or_default();
    let enabled = files::read(directory, "cgroup.subtree_control").unwrap_or_default();
    let missing: Vec<String> = offered
        .split(' ')
        .filter(|c| !c.is_empty() && !enabled.split(' ').any(|e| e == *c))
        .map(|c| format!("+{c}"))
        .collect();
    if missing.is_empty() || write(directory, "cgroup.subtree_control", &missing.join(" ")).is_ok()
    {
        return;
    }
    // One that cannot be enabled must not keep back the others.
    for controller in missing {
        let _ = write(directory, "cgroup.subtree_control", &controller);
    }
}

/// v1 shares (2..=262144, 1024 by default) to v2 weight (1..=10000, 100 by default): the curve through
/// the three pairs of limits and defaults that runc and crun agreed on, in powers of two.
fn weight_of_shares(shares: u64) -> u64 {
    const MAX: u64 = 262_144;
    if shares <= 2 {
        return 1;
    }
    if shares >= MAX {
        return 10_000;
    }
    // Below 2^18, so the conversion to f64 is exact.
    let l = f64::from(u32::try_from(shares).unwrap_or(u32::MAX)).log2();
    let weight = 10f64.powf((l * l + 125.0 * l) / 612.0 - 7.0 / 34.0).ceil();
    // The smallest whole weight not below it; a search instead of a cast that could truncate.
    let reaches = |candidate: &u32| f64::from(*candidate) >= weight;
    (1..=10_000u32).find(reaches).map_or(10_000, u64::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_shares_are_the_default_weight() {
        for (shares, weight) in [
            (2, 1),
            (1024, 100),
            (262_144, 10_000),
            (0, 1),
            (u64::MAX, 10_000),
        ] {
            assert_eq!(weight_of_shares(shares), weight, "{shares}");
        }
        assert!(weight_of_shares(512) < 100 && weight_of_shares(2048) > 100);
    }
}
