//! The limits of cgroup v1: what the document says, in the files of each hierarchy.

use std::path::Path;

use super::super::files;
use super::super::journal::Journal;
use super::super::v2::limits::{pids_text, warn_about_kernel_memory};
use super::super::{CgroupError, CgroupRecord};
use super::rdma_line;
use crate::config::{BlockIo, Cpu, Memory, Resources, ThrottleDevice};

const LIMIT: &str = "memory.limit_in_bytes";
const TCP: &str = "memory.kmem.tcp.limit_in_bytes";
const SWAP: &str = "memory.memsw.limit_in_bytes";

/// Where limits go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits<'a> {
    pub(super) record: &'a CgroupRecord,
    pub(super) journal: &'a Journal,
}

impl Limits<'_> {
    /// Writes what is `asked`.
    pub(super) fn write(
        &self,
        asked: &Resources,
        warnings: &mut Vec<String>,
    ) -> Result<(), CgroupError> {
        if let Some(key) = asked.unified.keys().next() {
            return Err(CgroupError::UnifiedOnV1 { key: key.clone() });
        }
        if let Some(memory) = &asked.memory {
            self.memory(memory, warnings)?;
        }
        if let Some(cpu) = &asked.cpu {
            self.cpu(cpu)?;
        }
        if let Some(limit) = asked.pids.as_ref().and_then(|pids| pids.limit) {
            let directory = self.record.need("pids", "pids.limit")?;
            self.journal
                .write(directory, "pids.max", &pids_text(limit))?;
        }
        if let Some(block_io) = &asked.block_io {
            self.block_io(block_io)?;
        }
        for limit in &asked.hugepage_limits {
            // The kubelet sends a zero limit for every page size, with or without the controller.
            if self.record.directory("hugetlb").is_none() && limit.limit == 0 {
                continue;
            }
            let directory = self.record.need("hugetlb", "hugepageLimits")?;
            let value = limit.limit.to_string();
            let file = |part: &str| format!("hugetlb.{}.{part}limit_in_bytes", limit.page_size);
            self.journal.write(directory, &file(""), &value)?;
            if directory.join(file("rsvd.")).exists() {
                self.journal.write(directory, &file("rsvd."), &value)?;
            }
        }
        if let Some(network) = &asked.network {
            if let Some(class) = network.class_id {
                let directory = self.record.need("net_cls", "network.classID")?;
                self.journal
                    .write(directory, "net_cls.classid", &class.to_string())?;
            }
            for entry in &network.priorities {
                let directory = self.record.need("net_prio", "network.priorities")?;
                let value = format!("{} {}", entry.name, entry.priority);
                self.journal
                    .write(directory, "net_prio.ifpriomap", &value)?;
            }
        }
        for (device, limits) in &asked.rdma {
            let directory = self.record.need("rdma", "rdma")?;
            self.journal
                .write(directory, "rdma.max", &rdma_line(device, limits))?;
        }
        Ok(())
    }

    fn memory(&self, memory: &Memory, warnings: &mut Vec<String>) -> Result<(), CgroupError> {
        warn_about_kernel_memory("kernel", memory.kernel, warnings);
        let directory = self.record.directory("memory");
        let has_tcp = directory.is_some_and(|directory| directory.join(TCP).exists());
        if directory.is_some() && !has_tcp {
            warn_about_kernel_memory("kernelTCP", memory.kernel_tcp, warnings);
        }
        let limit = memory.limit.filter(|limit| *limit != 0);
        let mut swap = memory.swap.filter(|swap| *swap != 0);
        if limit == Some(-1) && swap.is_none() {
            swap = Some(-1);
        }
        if let Some(wanted) = swap
            && self
                .record
                .directory("memory")
                .is_some_and(|directory| !directory.join(SWAP).exists())
        {
            // The kernel was booted without swap accounting: there is nothing to write to.
            warnings.push(format!(
                "linux.resources.memory.swap: {wanted} ignored, no {SWAP}"
            ));
            swap = None;
        }
        if limit.is_some() || swap.is_some() {
            let directory = self.record.need("memory", "memory.limit")?;
            self.memory_and_swap(directory, limit, swap)?;
        }
        let write = |field: &str, file: &str, value: String| {
            let directory = self.record.need("memory", field)?;
            self.journal.write(directory, file, &value)
        };
        if let Some(bytes) = memory.reservation.filter(|r| *r != 0) {
            write(
                "memory.reservation",
                "memory.soft_limit_in_bytes",
                bytes.to_string(),
            )?;
        }
        if let Some(bytes) = memory.kernel_tcp.filter(|bytes| *bytes != 0)
            && (has_tcp || directory.is_none())
        {
            write("memory.kernelTCP", TCP, bytes.to_string())?;
        }
        // All ones is how older callers say "not set".
        if let Some(swappiness) = memory.swappiness.filter(|s| *s != u64::MAX) {
            write(
                "memory.swappiness",
                "memory.swappiness",
                swappiness.to_string(),
            )?;
        }
        if let Some(disable) = memory.disable_oom_killer {
            let value = u8::from(disable).to_string();
            // Not to kill is the default nowhere: "false" needs a write only after a "true".
            if disable || self.record.directory("memory").is_some_and(kills_nobody) {
                write("memory.disableOOMKiller", "memory.oom_control", value)?;
            }
        }
        if let Some(hierarchy) = memory.use_hierarchy {
            self.use_hierarchy(hierarchy, warnings)?;
        }
        Ok(())
    }

    /// Memory plus swap never lies below memory, so the one that makes room goes first.
    fn memory_and_swap(
        &self,
        directory: &Path,
        limit: Option<i64>,
        swap: Option<i64>,
    ) -> Result<(), CgroupError> {
        let now = files::read_number(directory, SWAP).unwrap_or_default();
        let raises = swap.is_some_and(|swap| swap < 0 || swap.unsigned_abs() > now);
        let mut writes = vec![(LIMIT, limit), (SWAP, swap)];
        if raises {
            writes.reverse();
        }
        for (file, value) in writes {
            let Some(value) = value else { continue };
            let written = self.journal.write(directory, file, &value.to_string());
            written.map_err(|error| explain_memory(directory, value, error))?;
        }
        Ok(())
    }

    fn use_hierarchy(&self, wanted: bool, warnings: &mut Vec<String>) -> Result<(), CgroupError> {
        let directory = self.record.need("memory", "memory.useHierarchy")?;
        let now = files::read_number(directory, "memory.use_hierarchy");
        if now == Some(u64::from(wanted)) {
            return Ok(());
        }
        if !wanted {
            // Since 5.11 the kernel knows nothing else.
            warnings.push(
                "linux.resources.memory.useHierarchy: false ignored, the kernel is always hierarchical"
                    .to_owned(),
            );
            return Ok(());
        }
        self.journal.write(directory, "memory.use_hierarchy", "1")
    }

    fn cpu(&self, cpu: &Cpu) -> Result<(), CgroupError> {
        let number = |file: &str, field: &str, value: Option<String>| match value {
            Some(value) => self
                .journal
                .write(self.record.need("cpu", field)?, file, &value),
            None => Ok(()),
        };
        let text = |value: Option<u64>| value.filter(|v| *v != 0).map(|v| v.to_string());
        let signed = |value: Option<i64>| value.filter(|v| *v != 0).map(|v| v.to_string());
        number("cpu.shares", "cpu.shares", text(cpu.shares))?;
        number("cpu.idle", "cpu.idle", cpu.idle.map(|v| v.to_string()))?;
        // The kernel checks runtime against period at each write: what fails first may pass second.
        let pair = |first: (&str, &str, Option<String>), second: (&str, &str, Option<String>)| {
            let early = number(first.0, first.1, first.2.clone());
            if second.2.is_none() {
                return early;
            }
            number(second.0, second.1, second.2)?;
            match early {
                Err(_) => number(first.0, first.1, first.2),
                done => done,
            }
        };
        pair(
            (
                "cpu.rt_period_us",
                "cpu.realtimePeriod",
                text(cpu.realtime_period),
            ),
            (
                "cpu.rt_runtime_us",
                "cpu.realtimeRuntime",
                signed(cpu.realtime_runtime),
            ),
        )?;
        let burst = cpu.burst.map(|burst| burst.to_string());
        let set_burst = || number("cpu.cfs_burst_us", "cpu.burst", burst.clone());
        // Order: a burst above the old quota is taken after the new one, one above the new before it.
        let early = set_burst();
        pair(
            ("cpu.cfs_period_us", "cpu.period", text(cpu.period)),
            ("cpu.cfs_quota_us", "cpu.quota", signed(cpu.quota)),
        )?;
        if early.is_err() {
            set_burst()?;
        }
        for (file, field, value) in [
            ("cpuset.cpus", "cpu.cpus", &cpu.cpus),
            ("cpuset.mems", "cpu.mems", &cpu.mems),
        ] {
            if !value.is_empty() {
                self.journal
                    .write(self.record.need("cpuset", field)?, file, value)?;
            }
        }
        Ok(())
    }

    fn block_io(&self, block_io: &BlockIo) -> Result<(), CgroupError> {
        let write = |file: &str, value: String| {
            let directory = self.record.need("blkio", "blockIO")?;
            match self.journal.write(directory, file, &value) {
                Err(CgroupError::Io { source, .. })
                    if source.kind() == std::io::ErrorKind::NotFound =>
                {
                    Err(CgroupError::MissingController {
                        field: format!("linux.resources.blockIO ({file})"),
                        controller: "weighing blkio",
                    })
                }
                other => other,
            }
        };
        // The weight belongs to the scheduler: its file is there when the scheduler is.
        let weighted = |name: &str| {
            let bfq = format!("blkio.bfq.{name}");
            let plain = format!("blkio.{name}");
            let directory = self.record.directory("blkio");
            if directory.is_some_and(|directory| directory.join(&bfq).exists()) {
                bfq
            } else {
                plain
            }
        };
        if let Some(weight) = block_io.weight.filter(|w| *w != 0) {
            write(&weighted("weight"), weight.to_string())?;
        }
        if let Some(weight) = block_io.leaf_weight.filter(|w| *w != 0) {
            write("blkio.leaf_weight", weight.to_string())?;
        }
        for device in &block_io.weight_device {
            let name = format!("{}:{}", device.major, device.minor);
            if let Some(weight) = device.weight {
                write(&weighted("weight_device"), format!("{name} {weight}"))?;
            }
            if let Some(weight) = device.leaf_weight {
                write("blkio.leaf_weight_device", format!("{name} {weight}"))?;
            }
        }
        let throttles: [(&str, &[ThrottleDevice]); 4] = [
            ("read_bps", &block_io.throttle_read_bps_device),
            ("write_bps", &block_io.throttle_write_bps_device),
            ("read_iops", &block_io.throttle_read_iops_device),
            ("write_iops", &block_io.throttle_write_iops_device),
        ];
        for (name, devices) in throttles {
            for device in devices {
                let value = format!("{}:{} {}", device.major, device.minor, device.rate);
                write(&format!("blkio.throttle.{name}_device"), value)?;
            }
        }
        Ok(())
    }
}

/// Whether the out-of-memory killer is off.
fn kills_nobody(directory: &Path) -> bool {
    files::read(directory, "memory.oom_control").is_some_and(|t| t.contains("oom_kill_disable 1"))
}

/// EBUSY means that the kernel could not free enough: tells how much is in use.
fn explain_memory(directory: &Path, limit: i64, error: CgroupError) -> CgroupError {
    match &error {
        CgroupError::Io { source, .. } if source.raw_os_error() == Some(libc::EBUSY) => {
            let usage = files::read_number(directory, "memory.usage_in_bytes");
            CgroupError::InUse {
                what: "memory",
                limit,
                usage: usage.unwrap_or_default(),
            }
        }
        _ => error,
    }
}
