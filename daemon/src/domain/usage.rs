//! What pods and containers use of the machine, as the kernel counts it. Plain values; reading them is an
//! adapter's.

/// Nanoseconds of a second: a rate of one core is this many nano cores.
const SECOND: u128 = 1_000_000_000;

/// What the processes of one cgroup, and of those below it, use.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CgroupUsage {
    /// When it was read, nanoseconds since the epoch.
    pub read_at: i64,
    /// CPU time; none without the controller.
    pub cpu: Option<CpuUsage>,
    /// Memory; none without the controller.
    pub memory: Option<MemoryUsage>,
    /// Threads and processes; none without the controller.
    pub tasks: Option<TaskUsage>,
    /// Input and output by device, in the kernel's order.
    pub devices: Vec<DeviceUsage>,
    /// Huge pages by size.
    pub huge_pages: Vec<HugePageUsage>,
    /// Stalls by resource; each is none where the kernel counts none.
    pub stalls: Stalls,
}

/// CPU time and its limits.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CpuUsage {
    /// Nanoseconds of all cores together.
    pub total_ns: u64,
    /// Of those, in programs.
    pub user_ns: u64,
    /// Of those, in the kernel.
    pub system_ns: u64,
    /// Nano cores over the last seconds; none until there are two readings.
    pub nano_cores: Option<u64>,
    /// Elapsed CFS periods.
    pub periods: u64,
    /// Periods in which processes had to wait.
    pub throttled_periods: u64,
    /// Nanoseconds they waited.
    pub throttled_ns: u64,
    /// CFS period in microseconds.
    pub period_us: u64,
    /// CFS quota in microseconds; none is unlimited.
    pub quota_us: Option<u64>,
    /// Relative weight on the scale of cgroup v1, 2 to 262144.
    pub shares: u64,
}

/// Memory and its limits, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryUsage {
    /// Everything charged.
    pub usage: u64,
    /// The most there ever was; none where the kernel does not keep it.
    pub peak: Option<u64>,
    /// The limit; none is unlimited.
    pub limit: Option<u64>,
    /// What is kept from reclaim; none when nothing is.
    pub reservation: Option<u64>,
    /// Page cache that can be dropped first.
    pub inactive_file: u64,
    /// Anonymous memory.
    pub rss: u64,
    /// Page cache.
    pub cache: u64,
    /// Files mapped into processes.
    pub mapped_file: u64,
    /// Memory of the kernel for these processes.
    pub kernel: u64,
    /// Page faults.
    pub faults: u64,
    /// Page faults that had to read a disk.
    pub major_faults: u64,
    /// How often the limit was met.
    pub limit_hits: u64,
    /// Processes the kernel killed for memory.
    pub oom_kills: u64,
    /// Swap; none where it is not accounted for.
    pub swap: Option<SwapUsage>,
}

impl MemoryUsage {
    /// What cannot be given up without swapping: usage less the inactive page cache, as the kubelet counts.
    #[must_use]
    pub fn working_set(&self) -> u64 {
        self.usage.saturating_sub(self.inactive_file)
    }

    /// What is left below the limit; none without a limit.
    #[must_use]
    pub fn available(&self) -> Option<u64> {
        Some(self.limit?.saturating_sub(self.working_set()))
    }
}

/// Swap in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SwapUsage {
    /// What is swapped out.
    pub used: u64,
    /// The most that may be; none is unlimited.
    pub limit: Option<u64>,
    /// The limit as the kernel's file has it: with memory on cgroup v1, swap alone on v2; none is unlimited.
    pub raw_limit: Option<u64>,
}

/// Threads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TaskUsage {
    /// Threads now.
    pub threads: u64,
    /// The most there may be; none is unlimited.
    pub limit: Option<u64>,
}

/// Number of a block device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceNumber {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

/// Input and output of one block device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeviceUsage {
    /// The device.
    pub device: DeviceNumber,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
}

/// Huge pages of one size.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HugePageUsage {
    /// The size as the kernel names it: "2MB".
    pub size: String,
    /// Bytes now.
    pub usage: u64,
    /// The most there ever was in bytes; none where the kernel does not keep it.
    pub peak: Option<u64>,
}

/// Pressure stall information by resource.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stalls {
    /// CPU.
    pub cpu: Option<Stall>,
    /// Memory.
    pub memory: Option<Stall>,
    /// Input and output.
    pub io: Option<Stall>,
}

/// Stalls for one resource.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stall {
    /// Some processes waited.
    pub some: StallShare,
    /// All processes waited at once.
    pub full: StallShare,
}

/// How long, and which share of the time.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct StallShare {
    /// Microseconds altogether.
    pub total_us: u64,
    /// Percent of the last 10 seconds.
    pub avg10: f64,
    /// Percent of the last minute.
    pub avg60: f64,
    /// Percent of the last five minutes.
    pub avg300: f64,
}

/// Traffic of a network namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkUsage {
    /// When it was read, nanoseconds since the epoch.
    pub read_at: i64,
    /// Every interface but loopback, in the kernel's order.
    pub interfaces: Vec<InterfaceUsage>,
}

impl NetworkUsage {
    /// The interface that stands for the pod: `eth0`, or the first there is.
    #[must_use]
    pub fn default_interface(&self) -> Option<&InterfaceUsage> {
        let named = self.interfaces.iter().find(|one| one.name == "eth0");
        named.or_else(|| self.interfaces.first())
    }
}

/// Traffic of one interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InterfaceUsage {
    /// Its name.
    pub name: String,
    /// What came in.
    pub received: Traffic,
    /// What went out.
    pub sent: Traffic,
}

/// Traffic in one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
    /// Packets with errors.
    pub errors: u64,
    /// Packets dropped.
    pub dropped: u64,
}

/// What the processes of a cgroup hold open.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProcessUsage {
    /// Processes, those of cgroups below included.
    pub processes: u64,
    /// Open file descriptors.
    pub descriptors: u64,
    /// Of those, sockets.
    pub sockets: u64,
    /// How many descriptors the first process may have; none is unlimited.
    pub descriptor_limit: Option<u64>,
}

/// The file system that writable layers are on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FilesystemUsage {
    /// The block device it is on.
    pub device: DeviceNumber,
    /// Size in bytes.
    pub bytes: u64,
    /// Inodes altogether.
    pub inodes: u64,
    /// Inodes free.
    pub free_inodes: u64,
}

/// Bytes and inodes of a writable layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LayerUsage {
    /// When it was measured, nanoseconds since the epoch.
    pub measured_at: i64,
    /// Allocated bytes.
    pub bytes: u64,
    /// Files and directories.
    pub inodes: u64,
}

/// CPU time at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuSample {
    /// Nanoseconds since the epoch.
    pub at: i64,
    /// CPU time in nanoseconds.
    pub total_ns: u64,
}

/// Nano cores between two moments; none when no time passed. A counter that went back counts from zero: the
/// cgroup was made anew.
#[must_use]
pub fn nano_cores(earlier: CpuSample, later: CpuSample) -> Option<u64> {
    let elapsed = u128::try_from(later.at.checked_sub(earlier.at)?).ok()?;
    let used = later
        .total_ns
        .checked_sub(earlier.total_ns)
        .unwrap_or(later.total_ns);
    let rate = (u128::from(used) * SECOND).checked_div(elapsed)?;
    u64::try_from(rate).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_cpu_time_over_time() {
        let sample = |at, total_ns| CpuSample { at, total_ns };
        let cases = [
            (
                sample(0, 0),
                sample(2_000_000_000, 1_000_000_000),
                Some(500_000_000),
            ),
            (sample(5, 7), sample(5, 9), None),
            (sample(5, 7), sample(4, 9), None),
            // Made anew in between.
            (sample(0, 900), sample(1_000_000_000, 100), Some(100)),
        ];
        for (earlier, later, wanted) in cases {
            assert_eq!(nano_cores(earlier, later), wanted, "{earlier:?} {later:?}");
        }
    }

    #[test]
    fn the_working_set_and_what_is_left_never_go_below_zero() {
        let mut memory = MemoryUsage {
            usage: 10,
            inactive_file: 30,
            ..MemoryUsage::default()
        };
        assert_eq!((memory.working_set(), memory.available()), (0, None));
        memory.inactive_file = 4;
        memory.limit = Some(5);
        assert_eq!((memory.working_set(), memory.available()), (6, Some(0)));
        memory.limit = Some(16);
        assert_eq!(memory.available(), Some(10));
    }

    #[test]
    fn eth0_stands_for_the_pod_wherever_it_is() {
        let named = |name: &str| InterfaceUsage {
            name: name.to_owned(),
            ..InterfaceUsage::default()
        };
        let mut usage = NetworkUsage::default();
        assert_eq!(usage.default_interface(), None);
        usage.interfaces = vec![named("net1"), named("eth0")];
        assert_eq!(usage.default_interface(), Some(&named("eth0")));
        usage.interfaces.pop();
        assert_eq!(usage.default_interface(), Some(&named("net1")));
    }
}
