//! The files of the unified tree, which count a cgroup and all below it.

use super::files::{Directory, device_number, field, fields};
use crate::domain::usage::{
    CpuUsage, DeviceUsage, MemoryUsage, Stall, StallShare, Stalls, SwapUsage, TaskUsage,
};

/// Most devices told apart.
const MAX_DEVICES: usize = 256;

pub(super) fn cpu_time(group: &Directory) -> Option<u64> {
    let stat = group.text("cpu.stat")?;
    field(&stat, "usage_usec").map(|us| us.saturating_mul(1000))
}

pub(super) fn cpu(group: &Directory) -> Option<CpuUsage> {
    let stat = group.text("cpu.stat")?;
    let mut usage = CpuUsage {
        total_ns: field(&stat, "usage_usec")?.saturating_mul(1000),
        ..CpuUsage::default()
    };
    for (name, value) in fields(&stat) {
        match name {
            "user_usec" => usage.user_ns = value.saturating_mul(1000),
            "system_usec" => usage.system_ns = value.saturating_mul(1000),
            "nr_periods" => usage.periods = value,
            "nr_throttled" => usage.throttled_periods = value,
            "throttled_usec" => usage.throttled_ns = value.saturating_mul(1000),
            _ => {}
        }
    }
    // "max 100000": the quota, then the period.
    let limit = group.text("cpu.max").unwrap_or_default();
    let mut limit = limit.split_whitespace();
    usage.quota_us = limit.next().and_then(|quota| quota.parse().ok());
    usage.period_us = limit
        .next()
        .and_then(|period| period.parse().ok())
        .unwrap_or(0);
    usage.shares = group.number("cpu.weight").map_or(0, shares_of_weight);
    Some(usage)
}

/// v2 weight (1 to 10000) to v1 shares (2 to 262144): the way back along the curve that runc, crun and
/// `runc-lite` turn shares into weights by.
fn shares_of_weight(weight: u64) -> u64 {
    let weight = u32::try_from(weight.clamp(1, 10_000)).unwrap_or(10_000);
    let exponent = f64::from(weight).log10() + 7.0 / 34.0;
    let bits = (-125.0 + (125.0f64 * 125.0 + 4.0 * 612.0 * exponent).sqrt()) / 2.0;
    let shares = bits.exp2().round().clamp(2.0, 262_144.0);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to 2 to 262144 above"
    )]
    let shares = shares as u64;
    shares
}

pub(super) fn memory(group: &Directory) -> Option<MemoryUsage> {
    let mut memory = MemoryUsage {
        usage: group.number("memory.current")?,
        peak: group.number("memory.peak"),
        limit: group.limit("memory.max"),
        reservation: group.limit("memory.min").filter(|&bytes| bytes > 0),
        ..MemoryUsage::default()
    };
    // Before 5.18 the kernel's part is told in pieces only.
    let mut kernel = None;
    let mut pieces = 0u64;
    let stat = group.text("memory.stat").unwrap_or_default();
    for (name, value) in fields(&stat) {
        match name {
            "anon" => memory.rss = value,
            "file" => memory.cache = value,
            "file_mapped" => memory.mapped_file = value,
            "inactive_file" => memory.inactive_file = value,
            "pgfault" => memory.faults = value,
            "pgmajfault" => memory.major_faults = value,
            "kernel" => kernel = Some(value),
            "kernel_stack" | "slab" | "pagetables" | "percpu" => {
                pieces = pieces.saturating_add(value);
            }
            _ => {}
        }
    }
    memory.kernel = kernel.unwrap_or(pieces);
    let events = group.text("memory.events").unwrap_or_default();
    memory.limit_hits = field(&events, "max").unwrap_or(0);
    memory.oom_kills = field(&events, "oom_kill").unwrap_or(0);
    memory.swap = group.number("memory.swap.current").map(|used| {
        let limit = group.limit("memory.swap.max");
        SwapUsage {
            used,
            limit,
            raw_limit: limit,
        }
    });
    Some(memory)
}

/// Threads; the files are named alike on both versions.
pub(super) fn tasks(group: &Directory) -> Option<TaskUsage> {
    Some(TaskUsage {
        threads: group.number("pids.current")?,
        limit: group.limit("pids.max"),
    })
}

pub(super) fn devices(group: &Directory) -> Vec<DeviceUsage> {
    let text = group.text("io.stat").unwrap_or_default();
    text.lines().filter_map(device).take(MAX_DEVICES).collect()
}

/// `8:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0`.
fn device(line: &str) -> Option<DeviceUsage> {
    let mut words = line.split(' ');
    let mut usage = DeviceUsage {
        device: device_number(words.next()?)?,
        ..DeviceUsage::default()
    };
    for (name, value) in words.filter_map(|word| word.split_once('=')) {
        let value = value.parse().unwrap_or(0);
        match name {
            "rbytes" => usage.read_bytes = value,
            "wbytes" => usage.written_bytes = value,
            "rios" => usage.reads = value,
            "wios" => usage.writes = value,
            _ => {}
        }
    }
    Some(usage)
}

pub(super) fn stalls(group: &Directory) -> Stalls {
    // Unreadable where PSI is not built, is off, or is off for this cgroup (cgroup.pressure).
    let read = |name: &str| group.text(name).as_deref().and_then(stall);
    Stalls {
        cpu: read("cpu.pressure"),
        memory: read("memory.pressure"),
        io: read("io.pressure"),
    }
}

fn stall(text: &str) -> Option<Stall> {
    let line = |kind: &str| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(kind)?.strip_prefix(' '))?;
        let mut share = StallShare::default();
        for (name, value) in line.split(' ').filter_map(|word| word.split_once('=')) {
            match name {
                "total" => share.total_us = value.trim().parse().ok()?,
                "avg10" => share.avg10 = value.parse().ok()?,
                "avg60" => share.avg60 = value.parse().ok()?,
                "avg300" => share.avg300 = value.parse().ok()?,
                _ => {}
            }
        }
        Some(share)
    };
    Some(Stall {
        some: line("some")?,
        // The CPU has no "full" line before 5.13.
        full: line("full").unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::hierarchies::Hierarchies;
    use super::*;

    fn usage_of(files: &[(&str, &str)]) -> Option<crate::domain::usage::CgroupUsage> {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let table = format!(
            "1 0 0:1 / {} rw - cgroup2 cgroup2 rw\n",
            dir.path().display()
        );
        Hierarchies::of(&table, vec!["2MB".to_owned()]).usage("/", 1)
    }

    /// Files of a container on a kernel 6.1 with cgroup v2 alone.
    #[test]
    fn real_files_are_read() {
        let usage = usage_of(&[
            (
                "cpu.stat",
                "usage_usec 30012\nuser_usec 20000\nsystem_usec 10012\nnr_periods 12\n\
                 nr_throttled 3\nthrottled_usec 4567\nnr_bursts 0\nburst_usec 0\n",
            ),
            ("cpu.max", "50000 100000\n"),
            ("cpu.weight", "100\n"),
            ("memory.current", "1000000\n"),
            ("memory.peak", "1200000\n"),
            ("memory.max", "67108864\n"),
            ("memory.min", "0\n"),
            (
                "memory.stat",
                "anon 300000\nfile 500000\nkernel 65536\nkernel_stack 16384\nslab 9\n\
                 file_mapped 20000\ninactive_file 400000\npgfault 700\npgmajfault 7\n",
            ),
            (
                "memory.events",
                "low 0\nhigh 0\nmax 5\noom 3\noom_kill 2\noom_group_kill 0\n",
            ),
            ("memory.swap.current", "8192\n"),
            ("memory.swap.max", "67108864\n"),
            ("pids.current", "3\n"),
            ("pids.max", "max\n"),
            (
                "io.stat",
                "8:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n254:0 \n",
            ),
            ("hugetlb.2MB.current", "2097152\n"),
            (
                "cpu.pressure",
                "some avg10=1.53 avg60=0.40 avg300=0.09 total=123456\n\
                 full avg10=0.50 avg60=0.10 avg300=0.02 total=23456\n",
            ),
            (
                "memory.pressure",
                "some avg10=0.00 avg60=0.00 avg300=0.00 total=9\n",
            ),
        ])
        .unwrap();
        let cpu = CpuUsage {
            total_ns: 30_012_000,
            user_ns: 20_000_000,
            system_ns: 10_012_000,
            nano_cores: None,
            periods: 12,
            throttled_periods: 3,
            throttled_ns: 4_567_000,
            period_us: 100_000,
            quota_us: Some(50_000),
            shares: 1024,
        };
        assert_eq!(usage.cpu, Some(cpu));
        let limit = Some(67_108_864);
        let memory = MemoryUsage {
            usage: 1_000_000,
            peak: Some(1_200_000),
            limit,
            reservation: None,
            inactive_file: 400_000,
            rss: 300_000,
            cache: 500_000,
            mapped_file: 20_000,
            kernel: 65_536,
            faults: 700,
            major_faults: 7,
            limit_hits: 5,
            oom_kills: 2,
            swap: Some(SwapUsage {
                used: 8192,
                limit,
                raw_limit: limit,
            }),
        };
        assert_eq!(usage.memory, Some(memory));
        let tasks = TaskUsage {
            threads: 3,
            limit: None,
        };
        assert_eq!(usage.tasks, Some(tasks));
        assert_eq!(usage.devices.len(), 2);
        assert_eq!(
            (usage.devices[0].written_bytes, usage.devices[0].writes),
            (8192, 2)
        );
        assert_eq!(usage.huge_pages[0].usage, 2_097_152);
        let stall = usage.stalls.cpu.unwrap();
        assert_eq!(
            (stall.some.total_us, stall.full.total_us),
            (123_456, 23_456)
        );
        assert!((stall.some.avg10 - 1.53).abs() < 1e-9);
        // An older kernel tells no "full" of the CPU; a file that is not there is no pressure at all.
        assert_eq!(usage.stalls.memory.unwrap().full, StallShare::default());
        assert_eq!(usage.stalls.io, None);
    }

    #[test]
    fn an_older_kernel_tells_its_part_in_pieces() {
        let usage = usage_of(&[
            ("memory.current", "1\n"),
            ("memory.stat", "kernel_stack 16384\nslab 1000\npercpu 24\n"),
        ]);
        assert_eq!(usage.unwrap().memory.unwrap().kernel, 17_408);
    }

    #[test]
    fn a_directory_without_controllers_is_no_usage() {
        assert_eq!(usage_of(&[("cgroup.procs", "1\n")]), None);
    }

    #[test]
    fn weights_become_the_shares_they_were_made_of() {
        for (weight, shares) in [
            (1, 2),
            (100, 1024),
            (10_000, 262_144),
            (0, 2),
            (99_999, 262_144),
        ] {
            assert_eq!(shares_of_weight(weight), shares, "{weight}");
        }
    }

    #[test]
    fn a_pressure_file_that_is_no_pressure_is_none() {
        for text in ["", "some total=x\n", "full avg10=0.00 total=1\n"] {
            assert_eq!(stall(text), None, "{text:?}");
        }
    }
}
