//! Statistics of cgroup v1: each controller has its own directory.

use std::path::Path;

use super::{
    BlockIo, BlockIoEntry, Cpu, CpuUsage, Cpuset, Hugetlb, Memory, MemoryEntry, Pids, Stats,
    Throttling, files, huge_page_sizes, number, pairs, ranges,
};
use crate::cgroup::CgroupError;

/// Nanoseconds of one of the hundred ticks a second that cpuacct.stat counts in (USER_HZ).
const TICK: u64 = 10_000_000;

/// Reads what the hierarchies hold that `directory` finds by controller.
///
/// # Errors
/// [`CgroupError::NotMounted`] when there is none.
pub(in crate::cgroup) fn read<'a>(
    directory: &dyn Fn(&str) -> Option<&'a Path>,
) -> Result<Stats, CgroupError> {
    let mut stats = Stats::default();
    if let Some(accounting) = directory("cpuacct") {
        stats.cpu.usage = cpu_usage(accounting);
    }
    if let Some(cpu) = directory("cpu") {
        stats.cpu = Cpu {
            throttling: throttling(cpu),
            ..stats.cpu
        };
    }
    if let Some(set) = directory("cpuset") {
        stats.cpuset = cpuset(set);
    }
    if let Some(memory) = directory("memory") {
        stats.memory = self::memory(memory);
    }
    if let Some(pids) = directory("pids") {
        stats.pids = Pids {
            current: number(pids, "pids.current"),
            limit: match number(pids, "pids.max") {
                u64::MAX => 0,
                limit => limit,
            },
        };
    }
    if let Some(block_io) = directory("blkio") {
        stats.blkio = self::block_io(block_io);
    }
    if let Some(hugetlb) = directory("hugetlb") {
        for size in huge_page_sizes(hugetlb, ".usage_in_bytes") {
            let of = |name: &str| number(hugetlb, &format!("hugetlb.{size}.{name}"));
            let entry = Hugetlb {
                usage: of("usage_in_bytes"),
                max: of("max_usage_in_bytes"),
                failcnt: of("failcnt"),
            };
            stats.hugetlb.insert(size, entry);
        }
    }
    Ok(stats)
}

fn cpu_usage(directory: &Path) -> CpuUsage {
    let mut usage = CpuUsage {
        total: number(directory, "cpuacct.usage"),
        ..CpuUsage::default()
    };
    for (key, ticks) in pairs(&files::read(directory, "cpuacct.stat").unwrap_or_default()) {
        match key {
            "user" => usage.user = ticks.saturating_mul(TICK),
            "system" => usage.kernel = ticks.saturating_mul(TICK),
            _ => {}
        }
    }
    let per_cpu = files::read(directory, "cpuacct.usage_percpu").unwrap_or_default();
    usage.percpu = per_cpu.split(' ').filter_map(|n| n.parse().ok()).collect();
    let all = files::read(directory, "cpuacct.usage_all").unwrap_or_default();
    for line in all.lines().skip(1) {
        let mut columns = line
            .split(' ')
            .skip(1)
            .map(|n| n.parse().unwrap_or_default());
        usage.percpu_user.push(columns.next().unwrap_or_default());
        usage.percpu_kernel.push(columns.next().unwrap_or_default());
    }
    usage
}

fn throttling(directory: &Path) -> Throttling {
    let mut throttling = Throttling::default();
    for (key, value) in pairs(&files::read(directory, "cpu.stat").unwrap_or_default()) {
        match key {
            "nr_periods" => throttling.periods = value,
            "nr_throttled" => throttling.throttled_periods = value,
            "throttled_time" => throttling.throttled_time = value,
            _ => {}
        }
    }
    throttling
}

fn cpuset(directory: &Path) -> Cpuset {
    let of = |name: &str| number(directory, &format!("cpuset.{name}"));
    let list = |name: &str| ranges(&files::read(directory, name).unwrap_or_default());
    let level = files::read(directory, "cpuset.sched_relax_domain_level");
    Cpuset {
        cpus: list("cpuset.cpus"),
        cpu_exclusive: of("cpu_exclusive"),
        mems: list("cpuset.mems"),
        mem_hardwall: of("mem_hardwall"),
        mem_exclusive: of("mem_exclusive"),
        memory_migrate: of("memory_migrate"),
        memory_spread_page: of("memory_spread_page"),
        memory_spread_slab: of("memory_spread_slab"),
        memory_pressure: of("memory_pressure"),
        sched_load_balance: of("sched_load_balance"),
        sched_relax_domain_level: level.and_then(|l| l.parse().ok()).unwrap_or_default(),
    }
}

fn memory(directory: &Path) -> Memory {
    let entry = |prefix: &str| MemoryEntry {
        limit: number(directory, &format!("{prefix}.limit_in_bytes")),
        usage: number(directory, &format!("{prefix}.usage_in_bytes")),
        max: number(directory, &format!("{prefix}.max_usage_in_bytes")),
        failcnt: number(directory, &format!("{prefix}.failcnt")),
    };
    let stat = files::read(directory, "memory.stat").unwrap_or_default();
    let raw: std::collections::BTreeMap<String, u64> = pairs(&stat)
        .map(|(key, value)| (key.to_owned(), value))
        .collect();
    Memory {
        cache: raw.get("cache").copied().unwrap_or_default(),
        usage: entry("memory"),
        swap: entry("memory.memsw"),
        kernel: entry("memory.kmem"),
        kernel_tcp: entry("memory.kmem.tcp"),
        raw,
        psi: None,
    }
}

fn block_io(directory: &Path) -> BlockIo {
    // The proportional scheduler counts what goes through it; without it the throttler counts everything.
    let entries = |names: &[&str]| {
        names
            .iter()
            .map(|name| entries(&files::read(directory, name).unwrap_or_default()))
            .find(|entries| !entries.is_empty())
            .unwrap_or_default()
    };
    BlockIo {
        io_service_bytes_recursive: entries(&[
            "blkio.bfq.io_service_bytes_recursive",
            "blkio.io_service_bytes_recursive",
            "blkio.throttle.io_service_bytes_recursive",
        ]),
        io_serviced_recursive: entries(&[
            "blkio.bfq.io_serviced_recursive",
            "blkio.io_serviced_recursive",
            "blkio.throttle.io_serviced_recursive",
        ]),
        io_queue_recursive: entries(&[
            "blkio.bfq.io_queued_recursive",
            "blkio.io_queued_recursive",
        ]),
        io_service_time_recursive: entries(&[
            "blkio.bfq.io_service_time_recursive",
            "blkio.io_service_time_recursive",
        ]),
        io_wait_time_recursive: entries(&[
            "blkio.bfq.io_wait_time_recursive",
            "blkio.io_wait_time_recursive",
        ]),
        io_merged_recursive: entries(&[
            "blkio.bfq.io_merged_recursive",
            "blkio.io_merged_recursive",
        ]),
        io_time_recursive: entries(&["blkio.bfq.time_recursive", "blkio.time_recursive"]),
        sectors_recursive: entries(&["blkio.bfq.sectors_recursive", "blkio.sectors_recursive"]),
        psi: None,
    }
}

/// Lines `8:0 Read 4096`, or `8:0 4096` without an operation; the final `Total` has no device.
fn entries(text: &str) -> Vec<BlockIoEntry> {
    text.lines()
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let (major, minor) = words.first()?.split_once(':')?;
            let (op, value) = match words.as_slice() {
                [_, op, value] => (*op, value),
                [_, value] => ("", value),
                _ => return None,
            };
            Some(BlockIoEntry {
                major: major.parse().ok()?,
                minor: minor.parse().ok()?,
                op: op.to_owned(),
                value: value.parse().ok()?,
            })
        })
        .collect()
}
