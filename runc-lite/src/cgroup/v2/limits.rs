//! The limits of cgroup v2: what the document says, in the files and units of the kernel.

use std::path::Path;

use super::super::files;
use super::super::journal::Journal;
use super::super::v1::rdma_line;
use super::super::{CgroupDirectory, CgroupError};
use crate::config::{BlockIo, Cpu, HugepageLimit, Memory, Resources, ThrottleDevice};

/// What the kernel takes as the period when none is given, in microseconds.
pub(in crate::cgroup) const DEFAULT_PERIOD: u64 = 100_000;

/// Where limits go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits<'a> {
    pub(super) directory: &'a CgroupDirectory,
    pub(super) journal: &'a Journal,
}

impl Limits<'_> {
    fn path(&self) -> &Path {
        &self.directory.path
    }

    /// Writes a limit; a file that is not there means that the controller is not.
    fn set(
        &self,
        file: &str,
        value: &str,
        controller: &'static str,
        field: &str,
    ) -> Result<(), CgroupError> {
        match self.journal.write(self.path(), file, value) {
            Err(CgroupError::Io { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound =>
            {
                Err(self.missing(controller, field))
            }
            other => other,
        }
    }

    /// Why the files of `controller` are not there: the host lacks it, or a cgroup on the way does not pass
    /// it on.
    fn missing(&self, controller: &'static str, field: &str) -> CgroupError {
        let field = format!("linux.resources.{field}");
        let has = |directory: &Path, file: &str| {
            files::read(directory, file)
                .is_some_and(|list| list.split(' ').any(|c| c == controller))
        };
        let mut ancestors = self.path().ancestors().skip(1);
        let stopped_at = ancestors.find(|ancestor| {
            ancestor.starts_with(&self.directory.mount_point) && has(ancestor, "cgroup.controllers")
        });
        let Some(path) = stopped_at.filter(|path| !has(path, "cgroup.subtree_control")) else {
            return CgroupError::MissingController { field, controller };
        };
        let processes = files::read(path, "cgroup.procs").unwrap_or_default();
        let reason = if processes.is_empty() {
            "the kernel refused it".to_owned()
        } else {
            format!("it holds {} process(es)", processes.lines().count())
        };
        CgroupError::NotEnabled {
            field,
            controller,
            path: path.to_owned(),
            reason,
        }
    }

    /// Writes what is `asked`; `known` has what was asked for before as well.
    pub(super) fn write(
        &self,
        asked: &Resources,
        known: &Resources,
        warnings: &mut Vec<String>,
    ) -> Result<(), CgroupError> {
        if let Some(memory) = &asked.memory {
            self.memory(memory, known.memory.as_ref().unwrap_or(memory), warnings)?;
        }
        if let Some(cpu) = &asked.cpu {
            self.cpu(cpu)?;
        }
        if let Some(limit) = asked.pids.as_ref().and_then(|pids| pids.limit) {
            self.set("pids.max", &pids_text(limit), "pids", "pids.limit")?;
        }
        if let Some(block_io) = &asked.block_io {
            self.block_io(block_io)?;
        }
        for limit in &asked.hugepage_limits {
            self.hugepages(limit)?;
        }
        for (device, limits) in &asked.rdma {
            self.set("rdma.max", &rdma_line(device, limits), "rdma", "rdma")?;
        }
        if let Some(network) = &asked.network
            && (network.class_id.is_some() || !network.priorities.is_empty())
        {
            warnings.push(
                "linux.resources.network ignored: cgroup v2 has no net_cls and net_prio controllers"
                    .to_owned(),
            );
        }
        for (key, value) in &asked.unified {
            // Several lines are several settings; the kernel takes one line per write.
            for line in value.lines() {
                self.unified(key, line)?;
            }
        }
        Ok(())
    }

    fn unified(&self, key: &str, line: &str) -> Result<(), CgroupError> {
        let written = self.journal.write(self.path(), key, line);
        let controller = key.split('.').next().unwrap_or_default();
        let known = CONTROLLERS.into_iter().find(|known| *known == controller);
        match (written, known) {
            (Err(CgroupError::Io { source, .. }), Some(known))
                if source.kind() == std::io::ErrorKind::NotFound
                    && !has_controller(self.path(), known) =>
            {
                Err(self.missing(known, &format!("unified[{key:?}]")))
            }
            (written, _) => written,
        }
    }

    fn memory(
        &self,
        asked: &Memory,
        known: &Memory,
        warnings: &mut Vec<String>,
    ) -> Result<(), CgroupError> {
        warn_about_kernel_memory("kernel", asked.kernel, warnings);
        warn_about_kernel_memory("kernelTCP", asked.kernel_tcp, warnings);
        for (name, set) in [
            (
                "swappiness",
                asked.swappiness.is_some_and(|s| s != u64::MAX),
            ),
            ("disableOOMKiller", asked.disable_oom_killer == Some(true)),
            // Everything is hierarchical: the wish is granted.
            ("useHierarchy: false", asked.use_hierarchy == Some(false)),
        ] {
            if set {
                warnings.push(format!(
                    "linux.resources.memory.{name} ignored: cgroup v2 has no such setting"
                ));
            }
        }
        let limit = asked.limit.filter(|limit| *limit != 0);
        if let Some(swap) = swap_alone(asked, known)? {
            let value = bytes_text(swap);
            let written = self.set("memory.swap.max", &value, "memory", "memory.swap");
            match written {
                // Without swap accounting there is no swap to allow or forbid.
                Err(CgroupError::MissingController { .. })
                    if swap <= 0 && self.path().join("memory.max").exists() => {}
                written => written?,
            }
        }
        if let Some(limit) = limit {
            self.set("memory.max", &bytes_text(limit), "memory", "memory.limit")?;
        }
        if let Some(low) = asked.reservation.filter(|r| *r != 0) {
            self.set(
                "memory.low",
                &bytes_text(low),
                "memory",
                "memory.reservation",
            )?;
        }
        Ok(())
    }

    fn cpu(&self, cpu: &Cpu) -> Result<(), CgroupError> {
        if cpu.realtime_runtime.is_some_and(|v| v != 0)
            || cpu.realtime_period.is_some_and(|v| v != 0)
        {
            return Err(CgroupError::MissingController {
                field: "linux.resources.cpu.realtimeRuntime".to_owned(),
                controller: "real-time cpu (v1 only)",
            });
        }
        if let Some(idle) = cpu.idle {
            self.set("cpu.idle", &idle.to_string(), "cpu", "cpu.idle")?;
        }
        // An idle group has no weight of its own.
        if let Some(shares) = cpu.shares.filter(|s| *s != 0 && cpu.idle != Some(1)) {
            let weight = weight_of_shares(shares).to_string();
            self.set("cpu.weight", &weight, "cpu", "cpu.shares")?;
        }
        let burst = cpu.burst.map(|burst| burst.to_string());
        let set_burst = |value: &str| self.set("cpu.max.burst", value, "cpu", "cpu.burst");
        let quota = cpu.quota.filter(|q| *q != 0);
        let period = cpu.period.filter(|p| *p != 0);
        // Order: a burst above the old quota is taken after the new one, one above the new before it.
        let early = burst.as_deref().map(set_burst);
        if quota.is_some() || period.is_some() {
            let value = self.bandwidth(quota, period);
            self.set("cpu.max", &value, "cpu", "cpu.quota")?;
            if let (Some(Err(_)), Some(burst)) = (&early, &burst) {
                set_burst(burst)?;
            }
        } else if let Some(early) = early {
            early?;
        }
        if !cpu.cpus.is_empty() {
            self.set("cpuset.cpus", &cpu.cpus, "cpuset", "cpu.cpus")?;
        }
        if !cpu.mems.is_empty() {
            self.set("cpuset.mems", &cpu.mems, "cpuset", "cpu.mems")?;
        }
        Ok(())
    }

    /// The line of cpu.max; what is not given stays as it is.
    fn bandwidth(&self, quota: Option<i64>, period: Option<u64>) -> String {
        let now = files::read(self.path(), "cpu.max").unwrap_or_default();
        let (old_quota, old_period) = now.split_once(' ').unwrap_or(("max", ""));
        let quota = match quota {
            Some(quota) if quota > 0 => quota.to_string(),
            Some(_) => "max".to_owned(),
            None => old_quota.to_owned(),
        };
        let period = period.or_else(|| old_period.parse().ok());
        format!("{quota} {}", period.unwrap_or(DEFAULT_PERIOD))
    }

    fn block_io(&self, block_io: &BlockIo) -> Result<(), CgroupError> {
        let bfq = files::read(self.path(), "io.bfq.weight");
        if let Some(weight) = block_io.weight.filter(|w| *w != 0) {
            let (file, value) = match &bfq {
                Some(_) => ("io.bfq.weight", u64::from(weight)),
                None => ("io.weight", io_weight(weight)),
            };
            self.set(file, &value.to_string(), "io", "blockIO.weight")?;
        }
        for device in &block_io.weight_device {
            let Some(weight) = device.weight.filter(|w| *w != 0) else {
                continue;
            };
            // A bfq that shows a bare number takes no weights per device; io.weight (iocost) does.
            let (file, value) = match &bfq {
                Some(text) if text.parse::<u64>().is_err() => ("io.bfq.weight", u64::from(weight)),
                _ => ("io.weight", io_weight(weight)),
            };
            let value = format!("{}:{} {value}", device.major, device.minor);
            self.set(file, &value, "io", "blockIO.weightDevice")?;
        }
        let throttles: [(&str, &[ThrottleDevice]); 4] = [
            ("rbps", &block_io.throttle_read_bps_device),
            ("wbps", &block_io.throttle_write_bps_device),
            ("riops", &block_io.throttle_read_iops_device),
            ("wiops", &block_io.throttle_write_iops_device),
        ];
        for (key, devices) in throttles {
            for device in devices {
                // Zero is "no limit" in the files of v1, which the document follows.
                let rate = match device.rate {
                    0 => "max".to_owned(),
                    rate => rate.to_string(),
                };
                let value = format!("{}:{} {key}={rate}", device.major, device.minor);
                self.set("io.max", &value, "io", "blockIO.throttle")?;
            }
        }
        Ok(())
    }

    fn hugepages(&self, limit: &HugepageLimit) -> Result<(), CgroupError> {
        let file = format!("hugetlb.{}.max", limit.page_size);
        // The kubelet sends a zero limit for every page size, with or without the controller.
        if limit.limit == 0 && !self.path().join(&file).exists() {
            return Ok(());
        }
        let value = limit.limit.to_string();
        self.set(&file, &value, "hugetlb", "hugepageLimits")?;
        let reserved = format!("hugetlb.{}.rsvd.max", limit.page_size);
        if self.path().join(&reserved).exists() {
            self.journal.write(self.path(), &reserved, &value)?;
        }
        Ok(())
    }
}

/// Controllers of the unified tree that have files of their own.
const CONTROLLERS: [&str; 8] = [
    "cpu", "cpuset", "io", "memory", "hugetlb", "pids", "rdma", "misc",
];

fn has_controller(directory: &Path, controller: &str) -> bool {
    files::read(directory, "cgroup.controllers")
        .is_some_and(|list| list.split(' ').any(|c| c == controller))
}

/// Bytes as v2 writes them: `max` for -1.
fn bytes_text(value: i64) -> String {
    if value < 0 {
        "max".to_owned()
    } else {
        value.to_string()
    }
}

/// The value of pids.max. Zero becomes one, because systemd takes no zero, and the drivers shall not differ.
pub(in crate::cgroup) fn pids_text(limit: i64) -> String {
    match limit {
        0 => "1".to_owned(),
        limit if limit < 0 => "max".to_owned(),
        limit => limit.to_string(),
    }
}

/// Says that the limit of kernel memory in field `name` does nothing: cgroup v2 has none, and v1 only that of
/// TCP buffers since Linux 5.16.
pub(in crate::cgroup) fn warn_about_kernel_memory(
    name: &str,
    value: Option<i64>,
    warnings: &mut Vec<String>,
) {
    if let Some(value) = value {
        warnings.push(format!(
            "linux.resources.memory.{name}: {value} ignored: kernel memory has no limit of its own"
        ));
    }
}

/// Swap in bytes without memory, as v2 counts it (-1: no limit); `None` when it need not change. The
/// document counts memory and swap together.
///
/// # Errors
/// [`CgroupError::Contradiction`].
pub(in crate::cgroup) fn swap_alone(
    asked: &Memory,
    known: &Memory,
) -> Result<Option<i64>, CgroupError> {
    let given = |value: Option<i64>| value.filter(|value| *value != 0);
    let (limit, swap) = (given(known.limit), given(known.swap));
    if given(asked.limit).is_none() && given(asked.swap).is_none() {
        return Ok(None);
    }
    if given(asked.limit) == Some(-1) && given(asked.swap).is_none() {
        // Without a limit of memory one of both together is none of swap.
        return Ok(Some(-1));
    }
    let contradiction = |value, reason: String| CgroupError::Contradiction {
        field: "memory.swap",
        value,
        reason,
    };
    match (swap, limit) {
        (None, _) => Ok(None),
        (Some(swap), _) if swap < 0 => Ok(Some(-1)),
        (Some(swap), None) => Err(contradiction(
            swap,
            "needs memory.limit beside it: it counts memory and swap together".to_owned(),
        )),
        (Some(swap), Some(limit)) if limit < 0 => Err(contradiction(
            swap,
            "cannot be had with unlimited memory".to_owned(),
        )),
        (Some(swap), Some(limit)) if swap < limit => Err(contradiction(
            swap,
            format!("is below memory.limit {limit}; it counts memory and swap together"),
        )),
        (Some(swap), Some(limit)) => Ok(Some(swap - limit)),
    }
}

/// `memory.checkBeforeUpdate`: refuses limits below what is in use, which would have processes killed.
///
/// # Errors
/// [`CgroupError::InUse`].
pub(in crate::cgroup) fn check_usage(
    directory: &Path,
    asked: &Resources,
) -> Result<(), CgroupError> {
    let Some(memory) = asked
        .memory
        .as_ref()
        .filter(|memory| memory.check_before_update == Some(true))
    else {
        return Ok(());
    };
    let used = files::read_number(directory, "memory.current").unwrap_or_default();
    let swapped = files::read_number(directory, "memory.swap.current").unwrap_or_default();
    for (what, limit, usage) in [
        ("memory+swap", memory.swap, used.saturating_add(swapped)),
        ("memory", memory.limit, used),
    ] {
        let Some(limit) = limit.filter(|limit| *limit > 0) else {
            continue;
        };
        if usage > limit.unsigned_abs() {
            return Err(CgroupError::InUse { what, limit, usage });
        }
    }
    Ok(())
}

/// 10..=1000 of the document onto 1..=10000 of io.weight.
pub(in crate::cgroup) fn io_weight(weight: u16) -> u64 {
    1 + (u64::from(weight).max(10) - 10) * 9999 / 990
}

/// v1 shares (2..=262144, 1024 by default) to v2 weight (1..=10000, 100 by default): the curve through
/// the three pairs of limits and defaults that runc and crun agreed on, in powers of two.
pub(in crate::cgroup) fn weight_of_shares(shares: u64) -> u64 {
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
mod tests;
