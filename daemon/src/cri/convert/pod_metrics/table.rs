//! The table of metrics, sorted by name, and where each value comes from. Nothing here invents a value: what the
//! kernel does not count is absent.

use super::{InterfaceUsage, Subject, Values};
use crate::domain::usage::{CpuUsage, DeviceUsage, HugePageUsage, MemoryUsage, ProcessUsage};

/// Nanoseconds of a second.
const NANOS: u64 = 1_000_000_000;

/// Microseconds of a second.
const MICROS: u64 = 1_000_000;

/// One metric.
pub(super) struct Metric {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) kind: Kind,
    /// Labels besides those all metrics have.
    pub(super) labels: &'static [&'static str],
    pub(super) source: Source,
}

/// Whether it only ever grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
}

/// Where its values come from.
#[derive(Clone, Copy)]
pub(super) enum Source {
    /// A container; the time is now, in nanoseconds since the epoch.
    Container(fn(&Subject<'_>, i64) -> Values),
    /// An interface of the pod.
    Interface(fn(&InterfaceUsage) -> u64),
}

const fn counter(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
    source: Source,
) -> Metric {
    Metric {
        name,
        help,
        kind: Kind::Counter,
        labels,
        source,
    }
}

const fn gauge(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
    source: Source,
) -> Metric {
    Metric {
        name,
        help,
        kind: Kind::Gauge,
        labels,
        source,
    }
}

/// Every metric.
pub(super) const METRICS: [Metric; 56] = [
    counter(
        "container_blkio_device_usage_total",
        &["device", "major", "minor", "operation"],
        "Bytes read from and written to a block device",
        Source::Container(blkio),
    ),
    counter(
        "container_cpu_cfs_periods_total",
        &[],
        "Elapsed periods of the CPU quota",
        Source::Container(|s, _| one(cpu(s).map(|cpu| cpu.periods))),
    ),
    counter(
        "container_cpu_cfs_throttled_periods_total",
        &[],
        "Periods in which the CPU quota was used up",
        Source::Container(|s, _| one(cpu(s).map(|cpu| cpu.throttled_periods))),
    ),
    counter(
        "container_cpu_cfs_throttled_seconds_total",
        &[],
        "Time spent waiting for the next period of the CPU quota",
        Source::Container(|s, _| one(cpu(s).map(|cpu| cpu.throttled_ns / NANOS))),
    ),
    counter(
        "container_cpu_system_seconds_total",
        &[],
        "CPU time in the kernel",
        Source::Container(|s, _| one(cpu(s).map(|cpu| cpu.system_ns / NANOS))),
    ),
    counter(
        "container_cpu_usage_seconds_total",
        &["cpu"],
        "CPU time of all cores",
        Source::Container(|s, _| labelled("total", cpu(s).map(|cpu| cpu.total_ns / NANOS))),
    ),
    counter(
        "container_cpu_user_seconds_total",
        &[],
        "CPU time in programs",
        Source::Container(|s, _| one(cpu(s).map(|cpu| cpu.user_ns / NANOS))),
    ),
    gauge(
        "container_file_descriptors",
        &[],
        "Open file descriptors",
        Source::Container(|s, _| one(files(s).map(|files| files.descriptors))),
    ),
    gauge(
        "container_fs_inodes_free",
        &["device"],
        "Free inodes of the file system of the writable layer",
        Source::Container(|s, _| filesystem(s, s.node.filesystem.free_inodes)),
    ),
    gauge(
        "container_fs_inodes_total",
        &["device"],
        "Inodes of the file system of the writable layer",
        Source::Container(|s, _| filesystem(s, s.node.filesystem.inodes)),
    ),
    gauge(
        "container_fs_limit_bytes",
        &["device"],
        "Size of the file system of the writable layer",
        Source::Container(|s, _| filesystem(s, s.node.filesystem.bytes)),
    ),
    counter(
        "container_fs_reads_bytes_total",
        &["device"],
        "Bytes read from a block device",
        Source::Container(|s, _| by_device(s, |one| one.read_bytes)),
    ),
    counter(
        "container_fs_reads_total",
        &["device"],
        "Reads from a block device",
        Source::Container(|s, _| by_device(s, |one| one.reads)),
    ),
    gauge(
        "container_fs_usage_bytes",
        &["device"],
        "Bytes the writable layer takes",
        Source::Container(layer),
    ),
    counter(
        "container_fs_writes_bytes_total",
        &["device"],
        "Bytes written to a block device",
        Source::Container(|s, _| by_device(s, |one| one.written_bytes)),
    ),
    counter(
        "container_fs_writes_total",
        &["device"],
        "Writes to a block device",
        Source::Container(|s, _| by_device(s, |one| one.writes)),
    ),
    gauge(
        "container_hugetlb_max_usage_bytes",
        &["pagesize"],
        "Most huge pages there ever were, in bytes",
        Source::Container(|s, _| by_page_size(s, |page| page.peak)),
    ),
    gauge(
        "container_hugetlb_usage_bytes",
        &["pagesize"],
        "Huge pages in bytes",
        Source::Container(|s, _| by_page_size(s, |page| Some(page.usage))),
    ),
    gauge(
        "container_last_seen",
        &[],
        "When the container was last seen, in seconds since the epoch",
        Source::Container(|_, now| one(Some(since_epoch(now)))),
    ),
    gauge(
        "container_memory_cache",
        &[],
        "Page cache in bytes",
        Source::Container(|s, _| one(memory(s).map(|memory| memory.cache))),
    ),
    counter(
        "container_memory_failcnt",
        &[],
        "How often the memory limit was met",
        Source::Container(|s, _| one(memory(s).map(|memory| memory.limit_hits))),
    ),
    counter(
        "container_memory_failures_total",
        &["failure_type", "scope"],
        "Page faults by kind",
        Source::Container(faults),
    ),
    gauge(
        "container_memory_kernel_usage",
        &[],
        "Memory of the kernel for the container, in bytes",
        Source::Container(|s, _| one(memory(s).map(|memory| memory.kernel))),
    ),
    gauge(
        "container_memory_mapped_file",
        &[],
        "Files mapped into memory, in bytes",
        Source::Container(|s, _| one(memory(s).map(|memory| memory.mapped_file))),
    ),
    gauge(
        "container_memory_max_usage_bytes",
        &[],
        "Most memory there ever was, in bytes",
        Source::Container(|s, _| one(memory(s).and_then(|memory| memory.peak))),
    ),
    gauge(
        "container_memory_rss",
        &[],
        "Anonymous memory in bytes",
        Source::Container(|s, _| one(memory(s).map(|memory| memory.rss))),
    ),
    gauge(
        "container_memory_swap",
        &[],
        "Swap in bytes",
        Source::Container(|s, _| one(memory(s).map(|memory| memory.swap.unwrap_or_default().used))),
    ),
    gauge(
        "container_memory_usage_bytes",
        &[],
        "All memory charged to the container, in bytes",
        Source::Container(|s, _| one(memory(s).map(|memory| memory.usage))),
    ),
    gauge(
        "container_memory_working_set_bytes",
        &[],
        "Memory that cannot be given up without swapping, in bytes",
        Source::Container(|s, _| one(memory(s).map(MemoryUsage::working_set))),
    ),
    counter(
        "container_network_receive_bytes_total",
        &["interface"],
        "Bytes received",
        Source::Interface(|one| one.received.bytes),
    ),
    counter(
        "container_network_receive_errors_total",
        &["interface"],
        "Packets received with errors",
        Source::Interface(|one| one.received.errors),
    ),
    counter(
        "container_network_receive_packets_dropped_total",
        &["interface"],
        "Packets dropped of those to be received",
        Source::Interface(|one| one.received.dropped),
    ),
    counter(
        "container_network_receive_packets_total",
        &["interface"],
        "Packets received",
        Source::Interface(|one| one.received.packets),
    ),
    counter(
        "container_network_transmit_bytes_total",
        &["interface"],
        "Bytes sent",
        Source::Interface(|one| one.sent.bytes),
    ),
    counter(
        "container_network_transmit_errors_total",
        &["interface"],
        "Packets sent with errors",
        Source::Interface(|one| one.sent.errors),
    ),
    counter(
        "container_network_transmit_packets_dropped_total",
        &["interface"],
        "Packets dropped of those to be sent",
        Source::Interface(|one| one.sent.dropped),
    ),
    counter(
        "container_network_transmit_packets_total",
        &["interface"],
        "Packets sent",
        Source::Interface(|one| one.sent.packets),
    ),
    counter(
        "container_oom_events_total",
        &[],
        "Processes the kernel killed for memory",
        Source::Container(|s, _| one(memory(s).map(|memory| memory.oom_kills))),
    ),
    counter(
        "container_pressure_cpu_stalled_seconds_total",
        &[],
        "Time in which all processes waited for CPU time",
        Source::Container(|s, _| one(s.usage.stalls.cpu.map(|stall| stall.full.total_us / MICROS))),
    ),
    counter(
        "container_pressure_cpu_waiting_seconds_total",
        &[],
        "Time in which some process waited for CPU time",
        Source::Container(|s, _| one(s.usage.stalls.cpu.map(|stall| stall.some.total_us / MICROS))),
    ),
    counter(
        "container_pressure_io_stalled_seconds_total",
        &[],
        "Time in which all processes waited for input and output",
        Source::Container(|s, _| one(s.usage.stalls.io.map(|stall| stall.full.total_us / MICROS))),
    ),
    counter(
        "container_pressure_io_waiting_seconds_total",
        &[],
        "Time in which some process waited for input and output",
        Source::Container(|s, _| one(s.usage.stalls.io.map(|stall| stall.some.total_us / MICROS))),
    ),
    counter(
        "container_pressure_memory_stalled_seconds_total",
        &[],
        "Time in which all processes waited for memory",
        Source::Container(|s, _| {
            one(s
                .usage
                .stalls
                .memory
                .map(|stall| stall.full.total_us / MICROS))
        }),
    ),
    counter(
        "container_pressure_memory_waiting_seconds_total",
        &[],
        "Time in which some process waited for memory",
        Source::Container(|s, _| {
            one(s
                .usage
                .stalls
                .memory
                .map(|stall| stall.some.total_us / MICROS))
        }),
    ),
    gauge(
        "container_processes",
        &[],
        "Processes",
        Source::Container(|s, _| one(files(s).map(|files| files.processes))),
    ),
    gauge(
        "container_sockets",
        &[],
        "Open sockets",
        Source::Container(|s, _| one(files(s).map(|files| files.sockets))),
    ),
    gauge(
        "container_spec_cpu_period",
        &[],
        "Period of the CPU quota in microseconds",
        Source::Container(|s, _| one(cpu(s).map(|cpu| cpu.period_us))),
    ),
    gauge(
        "container_spec_cpu_quota",
        &[],
        "CPU quota in microseconds of each period; absent without one",
        Source::Container(|s, _| one(cpu(s).and_then(|cpu| cpu.quota_us))),
    ),
    gauge(
        "container_spec_cpu_shares",
        &[],
        "Relative weight of the container on the CPU",
        Source::Container(|s, _| one(cpu(s).map(|cpu| cpu.shares))),
    ),
    gauge(
        "container_spec_memory_limit_bytes",
        &[],
        "Memory limit in bytes; 0 is none",
        Source::Container(|s, _| one(memory(s).map(|memory| memory.limit.unwrap_or(0)))),
    ),
    gauge(
        "container_spec_memory_reservation_limit_bytes",
        &[],
        "Memory kept from reclaim, in bytes; 0 is none",
        Source::Container(|s, _| one(memory(s).map(|memory| memory.reservation.unwrap_or(0)))),
    ),
    gauge(
        "container_spec_memory_swap_limit_bytes",
        &[],
        "Swap limit in bytes as the kernel has it; 0 is none",
        Source::Container(swap_limit),
    ),
    gauge(
        "container_start_time_seconds",
        &[],
        "When the container started, in seconds since the epoch",
        Source::Container(start_time),
    ),
    gauge(
        "container_threads",
        &[],
        "Threads",
        Source::Container(|s, _| one(s.usage.tasks.map(|tasks| tasks.threads))),
    ),
    gauge(
        "container_threads_max",
        &[],
        "Most threads there may be; 0 is unlimited",
        Source::Container(|s, _| one(s.usage.tasks.map(|tasks| tasks.limit.unwrap_or(0)))),
    ),
    gauge(
        "container_ulimits_soft",
        &["ulimit"],
        "Soft limits of the first process; the largest number is unlimited",
        Source::Container(ulimits),
    ),
];

fn cpu<'a>(subject: &Subject<'a>) -> Option<&'a CpuUsage> {
    subject.usage.cpu.as_ref()
}

fn memory<'a>(subject: &Subject<'a>) -> Option<&'a MemoryUsage> {
    subject.usage.memory.as_ref()
}

fn files<'a>(subject: &Subject<'a>) -> Option<&'a ProcessUsage> {
    subject.container.open_files.as_deref()
}

/// A value without labels of its own.
fn one(value: Option<u64>) -> Values {
    value.map(|value| (Vec::new(), value)).into_iter().collect()
}

/// A value with one label.
fn labelled(label: &str, value: Option<u64>) -> Values {
    let labelled = value.map(|value| (vec![label.to_owned()], value));
    labelled.into_iter().collect()
}

fn since_epoch(nanoseconds: i64) -> u64 {
    u64::try_from(nanoseconds).unwrap_or(0) / NANOS
}

fn by_device(subject: &Subject<'_>, value: fn(&DeviceUsage) -> u64) -> Values {
    let devices = subject.usage.devices.iter();
    devices
        .map(|one| (vec![subject.device(one.device)], value(one)))
        .collect()
}

fn by_page_size(subject: &Subject<'_>, value: fn(&HugePageUsage) -> Option<u64>) -> Values {
    let pages = subject.usage.huge_pages.iter();
    pages
        .filter_map(|page| Some((vec![page.size.clone()], value(page)?)))
        .collect()
}

/// A value of the file system that the writable layers are on.
fn filesystem(subject: &Subject<'_>, value: u64) -> Values {
    labelled(&subject.device(subject.node.filesystem.device), Some(value))
}

fn layer(subject: &Subject<'_>, _now: i64) -> Values {
    let layer = subject.container.stats.layer;
    layer.map_or_else(Vec::new, |layer| filesystem(subject, layer.bytes))
}

fn blkio(subject: &Subject<'_>, _now: i64) -> Values {
    let values = |one: &DeviceUsage| {
        let name = subject.device(one.device);
        let (major, minor) = (one.device.major.to_string(), one.device.minor.to_string());
        [("Read", one.read_bytes), ("Write", one.written_bytes)].map(|(operation, bytes)| {
            let labels = [&name, &major, &minor, operation].map(str::to_owned);
            (labels.to_vec(), bytes)
        })
    };
    subject.usage.devices.iter().flat_map(values).collect()
}

/// A container is all of its cgroup, execs included, so both scopes are one.
fn faults(subject: &Subject<'_>, _now: i64) -> Values {
    let Some(memory) = memory(subject) else {
        return Vec::new();
    };
    let kinds = [
        ("pgfault", memory.faults),
        ("pgmajfault", memory.major_faults),
    ];
    let values = kinds.into_iter().flat_map(|(kind, value)| {
        ["container", "hierarchy"].map(|scope| (vec![kind.to_owned(), scope.to_owned()], value))
    });
    values.collect()
}

fn swap_limit(subject: &Subject<'_>, _now: i64) -> Values {
    let limit = |memory: &MemoryUsage| memory.swap.and_then(|swap| swap.raw_limit).unwrap_or(0);
    one(memory(subject).map(limit))
}

fn start_time(subject: &Subject<'_>, _now: i64) -> Values {
    let record = &subject.container.stats.view.record;
    let started_at = record.phase.started_at();
    one((started_at > 0).then(|| since_epoch(started_at)))
}

fn ulimits(subject: &Subject<'_>, _now: i64) -> Values {
    let limit = |files: &ProcessUsage| files.descriptor_limit.unwrap_or(u64::MAX);
    labelled("max_open_files", files(subject).map(limit))
}
