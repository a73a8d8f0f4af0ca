//! The files of cgroup v1: what each hierarchy counts.

use super::files::{Directory, device_number, field, fields};
use super::hierarchies::Group;
use crate::domain::usage::{CpuUsage, DeviceNumber, DeviceUsage, MemoryUsage, SwapUsage};

/// Most devices told apart.
const MAX_DEVICES: usize = 256;

pub(super) fn cpu(group: &Group<'_>) -> Option<CpuUsage> {
    let account = group.v1("cpuacct")?;
    let mut usage = CpuUsage {
        total_ns: account.number("cpuacct.usage")?,
        user_ns: account.number("cpuacct.usage_user").unwrap_or(0),
        system_ns: account.number("cpuacct.usage_sys").unwrap_or(0),
        ..CpuUsage::default()
    };
    if let Some(limits) = group.v1("cpu") {
        let stat = limits.text("cpu.stat").unwrap_or_default();
        usage.periods = field(&stat, "nr_periods").unwrap_or(0);
        usage.throttled_periods = field(&stat, "nr_throttled").unwrap_or(0);
        usage.throttled_ns = field(&stat, "throttled_time").unwrap_or(0);
        usage.period_us = limits.number("cpu.cfs_period_us").unwrap_or(0);
        usage.quota_us = limits.limit("cpu.cfs_quota_us");
        usage.shares = limits.number("cpu.shares").unwrap_or(0);
    }
    Some(usage)
}

pub(super) fn memory(group: &Directory) -> Option<MemoryUsage> {
    let mut memory = MemoryUsage {
        usage: group.number("memory.usage_in_bytes")?,
        peak: group.number("memory.max_usage_in_bytes"),
        limit: group.limit("memory.limit_in_bytes"),
        reservation: group.limit("memory.soft_limit_in_bytes"),
        limit_hits: group.number("memory.failcnt").unwrap_or(0),
        kernel: group.number("memory.kmem.usage_in_bytes").unwrap_or(0),
        ..MemoryUsage::default()
    };
    let control = group.text("memory.oom_control").unwrap_or_default();
    memory.oom_kills = field(&control, "oom_kill").unwrap_or(0);
    let mut swapped = None;
    // What begins with total_ includes the cgroups below: execs have their own.
    let stat = group.text("memory.stat").unwrap_or_default();
    for (name, value) in fields(&stat) {
        match name {
            "total_inactive_file" => memory.inactive_file = value,
            "total_rss" => memory.rss = value,
            "total_cache" => memory.cache = value,
            "total_mapped_file" => memory.mapped_file = value,
            "total_pgfault" => memory.faults = value,
            "total_pgmajfault" => memory.major_faults = value,
            "total_swap" => swapped = Some(value),
            _ => {}
        }
    }
    // Without swap accounting there is neither the field nor the limit.
    let both = group.number("memory.memsw.usage_in_bytes");
    let used = swapped.or_else(|| Some(both?.saturating_sub(memory.usage)));
    memory.swap = both.and(used).map(|used| {
        let raw_limit = group.limit("memory.memsw.limit_in_bytes");
        let limit = raw_limit.map(|both| both.saturating_sub(memory.limit.unwrap_or(0)));
        SwapUsage {
            used,
            limit,
            raw_limit,
        }
    });
    Some(memory)
}

/// Puts a number where it belongs: of writes, or of reads.
type Put = fn(&mut DeviceUsage, bool, u64);

/// Input and output by device. The throttling counters see every request, whatever scheduler the disk has; since
/// Linux 6.10 they count only for devices with a limit (block/blk-throttle.c), and else there is nothing to tell.
pub(super) fn devices(group: &Directory) -> Vec<DeviceUsage> {
    let mut devices: Vec<DeviceUsage> = Vec::new();
    let files: [(&str, Put); 2] = [
        (
            "blkio.throttle.io_service_bytes_recursive",
            |one, write, n| {
                if write {
                    one.written_bytes = n;
                } else {
                    one.read_bytes = n;
                }
            },
        ),
        ("blkio.throttle.io_serviced_recursive", |one, write, n| {
            if write {
                one.writes = n;
            } else {
                one.reads = n;
            }
        }),
    ];
    for (file, set) in files {
        let text = group.text(file).unwrap_or_default();
        for (device, operation, value) in text.lines().filter_map(line) {
            let write = match operation {
                "Read" => false,
                "Write" => true,
                _ => continue,
            };
            let known = devices.iter().position(|one| one.device == device);
            let at = match known {
                Some(at) => at,
                None if devices.len() < MAX_DEVICES => {
                    devices.push(DeviceUsage {
                        device,
                        ..DeviceUsage::default()
                    });
                    devices.len() - 1
                }
                None => continue,
            };
            set(&mut devices[at], write, value);
        }
    }
    devices
}

/// `8:0 Read 4096`; the last line, `Total 4096`, is none.
fn line(text: &str) -> Option<(DeviceNumber, &str, u64)> {
    let mut words = text.split(' ');
    let device = device_number(words.next()?)?;
    let operation = words.next()?;
    Some((device, operation, words.next()?.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::hierarchies::Hierarchies;
    use super::*;

    /// Files of a container on a hybrid kernel 6.18, with the numbers made small.
    #[test]
    fn real_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let files = [
            ("cpuacct.usage", "30012345\n"),
            ("cpuacct.usage_user", "20000000\n"),
            ("cpuacct.usage_sys", "10012345\n"),
            (
                "cpu.stat",
                "nr_periods 12\nnr_throttled 3\nthrottled_time 4567\nnr_bursts 0\nburst_time 0\n",
            ),
            ("cpu.cfs_period_us", "100000\n"),
            ("cpu.cfs_quota_us", "-1\n"),
            ("cpu.shares", "1024\n"),
            ("memory.usage_in_bytes", "1000000\n"),
            ("memory.max_usage_in_bytes", "1200000\n"),
            ("memory.limit_in_bytes", "67108864\n"),
            ("memory.soft_limit_in_bytes", "9223372036854771712\n"),
            ("memory.failcnt", "5\n"),
            ("memory.kmem.usage_in_bytes", "4096\n"),
            (
                "memory.oom_control",
                "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
            ),
            ("memory.memsw.usage_in_bytes", "1008192\n"),
            ("memory.memsw.limit_in_bytes", "134217728\n"),
            (
                "memory.stat",
                "cache 1\nrss 2\nswap 3\ninactive_file 4\npgfault 5\n\
                 hierarchical_memory_limit 67108864\ntotal_cache 500000\ntotal_rss 300000\n\
                 total_mapped_file 20000\ntotal_swap 8192\ntotal_pgfault 700\n\
                 total_pgmajfault 7\ntotal_inactive_file 400000\n",
            ),
            (
                "blkio.throttle.io_service_bytes_recursive",
                "8:0 Read 4096\n8:0 Write 8192\n8:0 Sync 12288\n8:0 Async 0\n8:0 Discard 0\n\
                 8:0 Total 12288\n253:1 Read 512\nTotal 12800\n",
            ),
            (
                "blkio.throttle.io_serviced_recursive",
                "8:0 Read 1\n8:0 Write 2\n8:0 Total 3\nTotal 3\n",
            ),
        ];
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let table = format!(
            "1 0 0:1 / {} rw - cgroup cgroup rw,cpu,cpuacct,memory,blkio\n",
            dir.path().display()
        );
        let hierarchies = Hierarchies::of(&table, Vec::new());
        let usage = hierarchies.usage("/", 1).unwrap();
        let cpu = CpuUsage {
            total_ns: 30_012_345,
            user_ns: 20_000_000,
            system_ns: 10_012_345,
            nano_cores: None,
            periods: 12,
            throttled_periods: 3,
            throttled_ns: 4567,
            period_us: 100_000,
            quota_us: None,
            shares: 1024,
        };
        assert_eq!(usage.cpu, Some(cpu));
        let memory = usage.memory.unwrap();
        assert_eq!(memory.working_set(), 600_000);
        assert_eq!(memory.available(), Some(67_108_864 - 600_000));
        let swap = SwapUsage {
            used: 8192,
            limit: Some(67_108_864),
            raw_limit: Some(134_217_728),
        };
        let wanted = MemoryUsage {
            usage: 1_000_000,
            peak: Some(1_200_000),
            limit: Some(67_108_864),
            reservation: None,
            inactive_file: 400_000,
            rss: 300_000,
            cache: 500_000,
            mapped_file: 20_000,
            kernel: 4096,
            faults: 700,
            major_faults: 7,
            limit_hits: 5,
            oom_kills: 2,
            swap: Some(swap),
        };
        assert_eq!(memory, wanted);
        let disk = DeviceUsage {
            device: DeviceNumber { major: 8, minor: 0 },
            read_bytes: 4096,
            written_bytes: 8192,
            reads: 1,
            writes: 2,
        };
        assert_eq!(usage.devices[0], disk);
        assert_eq!(
            (usage.devices[1].device.minor, usage.devices[1].read_bytes),
            (1, 512)
        );
        assert_eq!(usage.devices.len(), 2);
    }

    #[test]
    fn without_swap_accounting_there_is_no_swap() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("memory.usage_in_bytes"), "7\n").unwrap();
        let table = format!(
            "1 0 0:1 / {} rw - cgroup cgroup rw,memory\n",
            dir.path().display()
        );
        let hierarchies = Hierarchies::of(&table, Vec::new());
        assert_eq!(
            hierarchies.usage("/", 1).unwrap().memory.unwrap().swap,
            None
        );
    }
}
