//! Statistics of cgroup v2: one directory, told in the terms of v1 where runc does so.

use std::path::Path;

use super::{
    BlockIo, BlockIoEntry, Cpu, Cpuset, Hugetlb, Memory, MemoryEntry, Pids, Pressure, PressureLine,
    Stats, files, huge_page_sizes, number, pairs, ranges,
};
use crate::cgroup::{CgroupError, error::io_error};

/// Reads what `directory` holds.
///
/// # Errors
/// [`CgroupError::Io`] when the cgroup is gone.
pub(in crate::cgroup) fn read(directory: &Path) -> Result<Stats, CgroupError> {
    // The one file that every kernel and every cgroup has.
    let stat = std::fs::read_to_string(directory.join("cpu.stat"))
        .map_err(|e| io_error("read", &directory.join("cpu.stat"), e))?;
    let list = |name: &str| ranges(&files::read(directory, name).unwrap_or_default());
    let mut stats = Stats {
        cpu: cpu(&stat),
        cpuset: Cpuset {
            cpus: list("cpuset.cpus"),
            mems: list("cpuset.mems"),
            ..Cpuset::default()
        },
        memory: memory(directory),
        pids: pids(directory),
        blkio: block_io(&files::read(directory, "io.stat").unwrap_or_default()),
        ..Stats::default()
    };
    stats.cpu.psi = pressure(directory, "cpu.pressure");
    stats.memory.psi = pressure(directory, "memory.pressure");
    stats.blkio.psi = pressure(directory, "io.pressure");
    for size in huge_page_sizes(directory, ".current") {
        let reserved = files::read_number(directory, &format!("hugetlb.{size}.rsvd.current"));
        let usage =
            reserved.unwrap_or_else(|| number(directory, &format!("hugetlb.{size}.current")));
        let events = files::read(directory, &format!("hugetlb.{size}.events")).unwrap_or_default();
        let failcnt = pairs(&events).find(|(key, _)| *key == "max");
        let entry = Hugetlb {
            usage,
            max: 0,
            failcnt: failcnt.map_or(0, |(_, count)| count),
        };
        stats.hugetlb.insert(size, entry);
    }
    Ok(stats)
}

fn cpu(stat: &str) -> Cpu {
    let mut cpu = Cpu::default();
    for (key, value) in pairs(stat) {
        let nanoseconds = value.saturating_mul(1000);
        match key {
            "usage_usec" => cpu.usage.total = nanoseconds,
            "user_usec" => cpu.usage.user = nanoseconds,
            "system_usec" => cpu.usage.kernel = nanoseconds,
            "nr_periods" => cpu.throttling.periods = value,
            "nr_throttled" => cpu.throttling.throttled_periods = value,
            "throttled_usec" => cpu.throttling.throttled_time = nanoseconds,
            _ => {}
        }
    }
    cpu
}

fn memory(directory: &Path) -> Memory {
    let stat = files::read(directory, "memory.stat").unwrap_or_default();
    let raw: std::collections::BTreeMap<String, u64> = pairs(&stat)
        .map(|(key, value)| (key.to_owned(), value))
        .collect();
    let usage = MemoryEntry {
        limit: number(directory, "memory.max"),
        usage: number(directory, "memory.current"),
        max: number(directory, "memory.peak"),
        failcnt: 0,
    };
    // Memory and swap together, as v1 has it; a joint maximum was never measured.
    let swap = files::read_number(directory, "memory.swap.current").map(|swapped| MemoryEntry {
        limit: match number(directory, "memory.swap.max") {
            u64::MAX => u64::MAX,
            limit => limit.saturating_add(usage.limit),
        },
        usage: swapped.saturating_add(usage.usage),
        max: 0,
        failcnt: 0,
    });
    Memory {
        cache: raw.get("file").copied().unwrap_or_default(),
        usage,
        swap: swap.unwrap_or_default(),
        raw,
        ..Memory::default()
    }
}

fn pids(directory: &Path) -> Pids {
    match files::read_number(directory, "pids.current") {
        Some(current) => Pids {
            current,
            limit: match number(directory, "pids.max") {
                u64::MAX => 0,
                limit => limit,
            },
        },
        // Without the controller the members can still be counted.
        None => Pids {
            current: u64::try_from(files::processes(directory).len()).unwrap_or_default(),
            limit: 0,
        },
    }
}

/// Lines `8:0 rbytes=1 wbytes=2 rios=3 wios=4 ...`.
fn block_io(stat: &str) -> BlockIo {
    let mut block_io = BlockIo::default();
    for line in stat.lines() {
        let mut words = line.split(' ');
        let device = words.next().and_then(|device| device.split_once(':'));
        let Some((Ok(major), Ok(minor))) =
            device.map(|(major, minor)| (major.parse::<u64>(), minor.parse::<u64>()))
        else {
            continue;
        };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let (table, op) = match key {
                "rbytes" => (&mut block_io.io_service_bytes_recursive, "Read"),
                "wbytes" => (&mut block_io.io_service_bytes_recursive, "Write"),
                "rios" => (&mut block_io.io_serviced_recursive, "Read"),
                "wios" => (&mut block_io.io_serviced_recursive, "Write"),
                _ => continue,
            };
            table.push(BlockIoEntry {
                major,
                minor,
                op: op.to_owned(),
                value: value.parse().unwrap_or_default(),
            });
        }
    }
    block_io
}

/// `None` where the kernel does not measure pressure, or refuses to read it (EOPNOTSUPP with `psi=0`).
fn pressure(directory: &Path, file: &str) -> Option<Pressure> {
    let text = files::read(directory, file)?;
    let mut pressure = Pressure::default();
    for line in text.lines() {
        let (kind, values) = line.split_once(' ')?;
        let mut parsed = PressureLine::default();
        for (key, value) in values.split(' ').filter_map(|word| word.split_once('=')) {
            match key {
                "avg10" => parsed.avg10 = value.parse().ok()?,
                "avg60" => parsed.avg60 = value.parse().ok()?,
                "avg300" => parsed.avg300 = value.parse().ok()?,
                "total" => parsed.total = value.parse().ok()?,
                _ => {}
            }
        }
        match kind {
            "some" => pressure.some = parsed,
            "full" => pressure.full = parsed,
            _ => {}
        }
    }
    Some(pressure)
}
