//! cgroup v1, one directory per hierarchy, and the hybrid layout: the unified tree beside the v1
//! hierarchies holds no controllers, but membership in it gives cgroup.kill.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::device::DeviceSet;
use super::files::{self, KILL_PATIENCE, wait_until, write};
use super::{Cgroup, CgroupError, CgroupRecord, Subgroup, io_error};
use crate::config::{BlockIo, Cpu, Memory, Resources, ThrottleDevice};

/// How long the freezer may take.
const FREEZE_PATIENCE: Duration = Duration::from_secs(2);

/// A container's directories in all hierarchies.
#[derive(Debug)]
pub(super) struct CgroupV1 {
    record: CgroupRecord,
}

impl CgroupV1 {
    pub(super) fn new(record: CgroupRecord) -> CgroupV1 {
        CgroupV1 { record }
    }

    fn directory(&self, controller: &str) -> Option<&Path> {
        let mut directories = self.record.directories.iter();
        directories
            .find(|d| d.controllers.iter().any(|c| c == controller))
            .map(|d| d.path.as_path())
    }

    fn need(&self, controller: &'static str, field: &str) -> Result<&Path, CgroupError> {
        self.directory(controller)
            .ok_or_else(|| CgroupError::MissingController {
                field: format!("linux.resources.{field}"),
                controller,
            })
    }

    fn unified(&self) -> Option<&Path> {
        let mut directories = self.record.directories.iter();
        directories
            .find(|d| d.controllers.is_empty())
            .map(|d| d.path.as_path())
    }

    fn is_empty(&self) -> bool {
        self.record
            .directories
            .iter()
            .all(|d| files::processes(&d.path).is_empty())
    }

    fn any_path(&self) -> PathBuf {
        self.record
            .directories
            .first()
            .map(|d| d.path.clone())
            .unwrap_or_default()
    }
}

impl Cgroup for CgroupV1 {
    fn record(&self) -> &CgroupRecord {
        &self.record
    }

    fn refuse_occupied(&self) -> Result<(), CgroupError> {
        for directory in &self.record.directories {
            // Only the hierarchies that exist can be occupied: one failed stat each in the usual case.
            if !directory.path.exists() {
                continue;
            }
            let count = files::processes(&directory.path).len();
            if count > 0 {
                return Err(CgroupError::NotEmpty {
                    path: directory.path.clone(),
                    count,
                });
            }
            if files::read(&directory.path, "freezer.state").is_some_and(|s| s != "THAWED") {
                return Err(CgroupError::Frozen {
                    path: directory.path.clone(),
                });
            }
        }
        Ok(())
    }

    fn create(&self) -> Result<(), CgroupError> {
        for directory in &self.record.directories {
            files::make(&directory.path)?;
            if directory.controllers.iter().any(|c| c == "cpuset") {
                inherit_cpuset(&directory.path, &directory.mount_point)?;
            }
        }
        Ok(())
    }

    fn apply(&self, resources: &Resources, warnings: &mut Vec<String>) -> Result<(), CgroupError> {
        if let Some(key) = resources.unified.keys().next() {
            return Err(CgroupError::UnifiedOnV1 { key: key.clone() });
        }
        let devices = DeviceSet::of_rules(&resources.devices);
        // A new directory starts with what its parent allows, so "everything" needs no write.
        if !devices.allows_everything()
            && let Some(directory) = self.directory("devices")
        {
            for (file, value) in devices.v1_writes() {
                write(directory, file, &value)?;
            }
        }
        if let Some(memory) = &resources.memory {
            self.apply_memory(memory, warnings)?;
        }
        if let Some(cpu) = &resources.cpu {
            self.apply_cpu(cpu)?;
        }
        // Zero was "not set" before version 1.3 of the specification, and callers still send it.
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
            write(self.need("pids", "pids.limit")?, "pids.max", &value)?;
        }
        if let Some(block_io) = &resources.block_io {
            self.apply_block_io(block_io)?;
        }
        for limit in &resources.hugepage_limits {
            // The kubelet sends a zero limit for every page size, with or without the controller.
            if self.directory("hugetlb").is_none() && limit.limit == 0 {
                continue;
            }
            let directory = self.need("hugetlb", "hugepageLimits")?;
            let file = format!("hugetlb.{}.limit_in_bytes", limit.page_size);
            write(directory, &file, &limit.limit.to_string())?;
        }
        if let Some(network) = &resources.network {
            if let Some(class) = network.class_id {
                let directory = self.need("net_cls", "network.classID")?;
                write(directory, "net_cls.classid", &class.to_string())?;
            }
            for entry in &network.priorities {
                let directory = self.need("net_prio", "network.priorities")?;
                let value = format!("{} {}", entry.name, entry.priority);
                write(directory, "net_prio.ifpriomap", &value)?;
            }
        }
        for (device, limits) in &resources.rdma {
            let directory = self.need("rdma", "rdma")?;
            write(directory, "rdma.max", &files_rdma(device, limits))?;
        }
        Ok(())
    }

    fn join(&self, pid: i32, subgroup: Option<&Subgroup>) -> Result<(), CgroupError> {
        if let Some(subgroup) = subgroup {
            subgroup.check_exists(&self.record.directories)?;
        }
        for directory in &self.record.directories {
            let mut path = subgroup.map_or_else(|| directory.path.clone(), |s| s.below(directory));
            if directory.controllers.is_empty() && !path.is_dir() {
                path.clone_from(&directory.path);
            }
            write(&path, "cgroup.procs", &pid.to_string())?;
        }
        Ok(())
    }

    fn signal(&self, signal: i32) -> Result<(), CgroupError> {
        files::signal_all(&self.record.directories, signal);
        Ok(())
    }

    fn kill(&self) -> Result<(), CgroupError> {
        let mut attempt = 0;
        let gone = wait_until(KILL_PATIENCE, || {
            attempt += 1;
            if let Some(unified) = self.unified() {
                // Kernels before 5.14 have no such file; the loop below does the work then.
                let _ = files::write_io(&unified.join("cgroup.kill"), "1");
            }
            // Frozen from the second round on: a process that forks faster than it is killed stands still.
            let freeze = attempt > 1 && self.set_frozen(true).is_ok();
            let left = files::signal_all(&self.record.directories, libc::SIGKILL);
            if freeze || self.is_frozen() {
                let _ = self.set_frozen(false);
            }
            left == 0
        });
        if gone || self.is_empty() {
            return Ok(());
        }
        Err(CgroupError::StillPopulated {
            path: self.any_path(),
            seconds: KILL_PATIENCE.as_secs(),
        })
    }

    fn is_frozen(&self) -> bool {
        self.directory("freezer")
            .and_then(|directory| files::read(directory, "freezer.state"))
            .is_some_and(|state| state != "THAWED")
    }

    fn set_frozen(&self, frozen: bool) -> Result<(), CgroupError> {
        let directory = self.need("freezer", "freezer")?;
        let state = if frozen { "FROZEN" } else { "THAWED" };
        write(directory, "freezer.state", state)?;
        let reached = wait_until(FREEZE_PATIENCE, || {
            files::read(directory, "freezer.state").is_none_or(|now| now == state)
        });
        if reached {
            return Ok(());
        }
        if frozen {
            // Never leave it half frozen.
            write(directory, "freezer.state", "THAWED")?;
        }
        let source = std::io::ErrorKind::TimedOut.into();
        Err(io_error(format!("reach {state} in"), directory, source))
    }

    fn remove(&self) -> Result<(), CgroupError> {
        let busy: Vec<_> = self
            .record
            .directories
            .iter()
            .filter(|directory| !files::remove_quick(&directory.path))
            .collect();
        if busy.is_empty() {
            return Ok(());
        }
        self.kill()?;
        for directory in busy {
            files::remove(&directory.path)?;
        }
        Ok(())
    }
}

impl CgroupV1 {
    fn apply_memory(&self, memory: &Memory, warnings: &mut Vec<String>) -> Result<(), CgroupError> {
        const LIMIT: &str = "memory.limit_in_bytes";
        const SWAP: &str = "memory.memsw.limit_in_bytes";
        let limit = memory.limit.filter(|limit| *limit != 0);
        let mut swap = memory.swap.filter(|swap| *swap != 0);
        if limit == Some(-1) && swap.is_none() {
            swap = Some(-1);
        }
        if let Some(wanted) = swap
            && self
                .directory("memory")
                .is_some_and(|directory| !directory.join(SWAP).exists())
        {
            // The kernel was booted without swap accounting: there is nothing to write to.
            warnings.push(format!(
                "linux.resources.memory.swap: {wanted} ignored, no {SWAP}"
            ));
            swap = None;
        }
        if let Some(limit) = limit {
            let directory = self.need("memory", "memory.limit")?;
            let first = write(directory, LIMIT, &limit.to_string());
            match (first, swap) {
                (Ok(()), None) => {}
                (Ok(()), Some(swap)) => write(directory, SWAP, &swap.to_string())?,
                (Err(error), None) => return Err(error),
                // Order: memory plus swap never lies below memory, so a raise starts with the former.
                (Err(_), Some(swap)) => {
                    write(directory, SWAP, &swap.to_string())?;
                    write(directory, LIMIT, &limit.to_string())?;
                }
            }
        } else if let Some(swap) = swap {
            write(self.need("memory", "memory.swap")?, SWAP, &swap.to_string())?;
        }
        if let Some(reservation) = memory.reservation.filter(|r| *r != 0) {
            let directory = self.need("memory", "memory.reservation")?;
            write(
                directory,
                "memory.soft_limit_in_bytes",
                &reservation.to_string(),
            )?;
        }
        // All ones is how older callers say "not set".
        if let Some(swappiness) = memory.swappiness.filter(|s| *s != u64::MAX) {
            let directory = self.need("memory", "memory.swappiness")?;
            write(directory, "memory.swappiness", &swappiness.to_string())?;
        }
        if memory.disable_oom_killer == Some(true) {
            let directory = self.need("memory", "memory.disableOOMKiller")?;
            write(directory, "memory.oom_control", "1")?;
        }
        if memory.use_hierarchy == Some(true) {
            let directory = self.need("memory", "memory.useHierarchy")?;
            write(directory, "memory.use_hierarchy", "1")?;
        }
        Ok(())
    }

    fn apply_cpu(&self, cpu: &Cpu) -> Result<(), CgroupError> {
        let number = |file: &str, field: &str, value: Option<String>| match value {
            Some(value) => write(self.need("cpu", field)?, file, &value),
            None => Ok(()),
        };
        let text = |value: Option<u64>| value.filter(|v| *v != 0).map(|v| v.to_string());
        let signed = |value: Option<i64>| value.filter(|v| *v != 0).map(|v| v.to_string());
        number("cpu.shares", "cpu.shares", text(cpu.shares))?;
        number("cpu.idle", "cpu.idle", cpu.idle.map(|v| v.to_string()))?;
        number(
            "cpu.rt_period_us",
            "cpu.realtimePeriod",
            text(cpu.realtime_period),
        )?;
        number(
            "cpu.rt_runtime_us",
            "cpu.realtimeRuntime",
            signed(cpu.realtime_runtime),
        )?;
        let period = number("cpu.cfs_period_us", "cpu.period", text(cpu.period));
        number("cpu.cfs_quota_us", "cpu.quota", signed(cpu.quota))?;
        if period.is_err() {
            // Order: a period too short for the old quota is taken after the new one.
            number("cpu.cfs_period_us", "cpu.period", text(cpu.period))?;
        }
        number(
            "cpu.cfs_burst_us",
            "cpu.burst",
            cpu.burst.map(|v| v.to_string()),
        )?;
        if !cpu.cpus.is_empty() {
            write(self.need("cpuset", "cpu.cpus")?, "cpuset.cpus", &cpu.cpus)?;
        }
        if !cpu.mems.is_empty() {
            write(self.need("cpuset", "cpu.mems")?, "cpuset.mems", &cpu.mems)?;
        }
        Ok(())
    }

    fn apply_block_io(&self, block_io: &BlockIo) -> Result<(), CgroupError> {
        let directory = || self.need("blkio", "blockIO");
        // The weight belongs to the scheduler: its file is there when the scheduler is.
        let weighted = |directory: &Path, name: &str| {
            let bfq = format!("blkio.bfq.{name}");
            if directory.join(&bfq).exists() {
                bfq
            } else {
                format!("blkio.{name}")
            }
        };
        if let Some(weight) = block_io.weight.filter(|w| *w != 0) {
            write(
                directory()?,
                &weighted(directory()?, "weight"),
                &weight.to_string(),
            )?;
        }
        if let Some(weight) = block_io.leaf_weight.filter(|w| *w != 0) {
            write(directory()?, "blkio.leaf_weight", &weight.to_string())?;
        }
        for device in &block_io.weight_device {
            let name = format!("{}:{}", device.major, device.minor);
            if let Some(weight) = device.weight {
                let file = weighted(directory()?, "weight_device");
                write(directory()?, &file, &format!("{name} {weight}"))?;
            }
            if let Some(weight) = device.leaf_weight {
                write(
                    directory()?,
                    "blkio.leaf_weight_device",
                    &format!("{name} {weight}"),
                )?;
            }
        }
        let throttles: [(&str, &[ThrottleDevice]); 4] = [
            (
                "blkio.throttle.read_bps_device",
                &block_io.throttle_read_bps_device,
            ),
            (
                "blkio.throttle.write_bps_device",
                &block_io.throttle_write_bps_device,
            ),
            (
                "blkio.throttle.read_iops_device",
                &block_io.throttle_read_iops_device,
            ),
            (
                "blkio.throttle.write_iops_device",
                &block_io.throttle_write_iops_device,
            ),
        ];
        for (file, devices) in throttles {
            for device in devices {
                let value = format!("{}:{} {}", device.major, device.minor, device.rate);
                write(directory()?, file, &value)?;
            }
        }
        Ok(())
    }
}

/// The line of rdma.max, the same on both versions.
pub(super) fn files_rdma(device: &str, limits: &crate::config::Rdma) -> String {
    let part = |name: &str, value: Option<u32>| {
        value
            .map(|value| format!(" {name}={value}"))
            .unwrap_or_default()
    };
    let handles = part("hca_handle", limits.hca_handles);
    let objects = part("hca_object", limits.hca_objects);
    format!("{device}{handles}{objects}")
}

/// Gives a new cpuset the CPUs and memory nodes of its parent: an empty one takes no process.
fn inherit_cpuset(directory: &Path, mount_point: &Path) -> Result<(), CgroupError> {
    let file = |name: &str| files::read(directory, name).unwrap_or_default();
    if directory == mount_point
        || !(file("cpuset.cpus").is_empty() || file("cpuset.mems").is_empty())
    {
        return Ok(());
    }
    let Some(parent) = directory.parent().filter(|p| p.starts_with(mount_point)) else {
        return Ok(());
    };
    inherit_cpuset(parent, mount_point)?;
    for name in ["cpuset.cpus", "cpuset.mems"] {
        if file(name).is_empty() {
            write(
                directory,
                name,
                &files::read(parent, name).unwrap_or_default(),
            )?;
        }
    }
    Ok(())
}
