//! ListMetricDescriptors and ListPodSandboxMetrics: each of the 56 names of cAdvisor, one by one, against what the
//! kernel says past the daemon.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use axil_integration::build::ContainerBuilder;
use axil_integration::eventually::eventually;
use axil_integration::kernel::{Cgroup, Place};
use axil_integration::lab::Lab;
use axil_integration::node::Node;
use axil_proto::cri::{Metric, MetricDescriptor, MetricType, PodSandboxMetrics};

/// Labels besides those every metric has.
type Own = BTreeMap<String, String>;

/// One scrape of one pod with one container.
struct Scrape {
    keys: BTreeMap<String, Vec<String>>,
    samples: Vec<Metric>,
}

impl Scrape {
    fn take(node: &Node, pod: &str) -> Self {
        let descriptors: Vec<MetricDescriptor> = node.metric_descriptors().unwrap();
        let keys = descriptors
            .into_iter()
            .map(|one| (one.name, one.label_keys));
        let all: Vec<PodSandboxMetrics> = node.pod_metrics().unwrap();
        let own = all
            .into_iter()
            .find(|one| one.pod_sandbox_id == pod)
            .unwrap();
        let containers = own.container_metrics.into_iter();
        let samples = own
            .metrics
            .into_iter()
            .chain(containers.flat_map(|one| one.metrics));
        Self {
            keys: keys.collect(),
            samples: samples.collect(),
        }
    }

    fn labels(&self, sample: &Metric) -> Own {
        let keys = self.keys[&sample.name].iter().cloned();
        keys.zip(sample.label_values.iter().cloned()).collect()
    }

    /// Values by the labels that only this metric has.
    fn values(&self, name: &str, own: &[&str]) -> BTreeMap<Vec<String>, u64> {
        let samples = self.samples.iter().filter(|sample| sample.name == name);
        samples
            .map(|sample| {
                let labels = self.labels(sample);
                let own = own.iter().map(|key| labels[*key].clone()).collect();
                (own, sample.value.unwrap().value)
            })
            .collect()
    }

    fn one(&self, name: &str) -> u64 {
        let values = self.values(name, &[]);
        assert_eq!(values.len(), 1, "{name}: {values:?}");
        values[&Vec::new()]
    }

    fn labelled(&self, name: &str, key: &str, value: &str) -> u64 {
        self.values(name, &[key])[&vec![value.to_owned()]]
    }
}

const fn place(
    controller: &'static str,
    v1: (&'static str, Option<&'static str>),
    v2: (&'static str, Option<&'static str>),
) -> Place {
    Place { controller, v1, v2 }
}

/// Counters that only grow: the kernel before, the metric and the kernel after are in this order. The number is
/// what one of the metric is in the kernel's unit, on cgroup v1 and on v2.
const COUNTERS: &[(&str, Place, u64, u64)] = &[
    (
        "container_cpu_cfs_periods_total",
        place(
            "cpu",
            ("cpu.stat", Some("nr_periods")),
            ("cpu.stat", Some("nr_periods")),
        ),
        1,
        1,
    ),
    (
        "container_cpu_cfs_throttled_periods_total",
        place(
            "cpu",
            ("cpu.stat", Some("nr_throttled")),
            ("cpu.stat", Some("nr_throttled")),
        ),
        1,
        1,
    ),
    (
        "container_cpu_cfs_throttled_seconds_total",
        place(
            "cpu",
            ("cpu.stat", Some("throttled_time")),
            ("cpu.stat", Some("throttled_usec")),
        ),
        1_000_000_000,
        1_000_000,
    ),
    (
        "container_cpu_system_seconds_total",
        place(
            "cpuacct",
            ("cpuacct.usage_sys", None),
            ("cpu.stat", Some("system_usec")),
        ),
        1_000_000_000,
        1_000_000,
    ),
    (
        "container_cpu_usage_seconds_total",
        place(
            "cpuacct",
            ("cpuacct.usage", None),
            ("cpu.stat", Some("usage_usec")),
        ),
        1_000_000_000,
        1_000_000,
    ),
    (
        "container_cpu_user_seconds_total",
        place(
            "cpuacct",
            ("cpuacct.usage_user", None),
            ("cpu.stat", Some("user_usec")),
        ),
        1_000_000_000,
        1_000_000,
    ),
    (
        "container_memory_failcnt",
        place(
            "memory",
            ("memory.failcnt", None),
            ("memory.events", Some("max")),
        ),
        1,
        1,
    ),
    (
        "container_memory_max_usage_bytes",
        place(
            "memory",
            ("memory.max_usage_in_bytes", None),
            ("memory.peak", None),
        ),
        1,
        1,
    ),
    (
        "container_oom_events_total",
        place(
            "memory",
            ("memory.oom_control", Some("oom_kill")),
            ("memory.events", Some("oom_kill")),
        ),
        1,
        1,
    ),
];

/// Values that stand still while the container sleeps.
const STILL: &[(&str, Place)] = &[
    (
        "container_memory_mapped_file",
        place(
            "memory",
            ("memory.stat", Some("total_mapped_file")),
            ("memory.stat", Some("file_mapped")),
        ),
    ),
    (
        "container_spec_cpu_period",
        place(
            "cpu",
            ("cpu.cfs_period_us", None),
            ("cpu.cfs_period_us", None),
        ),
    ),
    (
        "container_spec_cpu_quota",
        place("cpu", ("cpu.cfs_quota_us", None), ("cpu.max", None)),
    ),
    (
        "container_spec_memory_limit_bytes",
        place(
            "memory",
            ("memory.limit_in_bytes", None),
            ("memory.max", None),
        ),
    ),
    (
        "container_threads",
        place("pids", ("pids.current", None), ("pids.current", None)),
    ),
];

/// Values that may move by what the daemon's own look moves: a few pages.
const NEAR: &[(&str, Place)] = &[
    (
        "container_memory_cache",
        place(
            "memory",
            ("memory.stat", Some("total_cache")),
            ("memory.stat", Some("file")),
        ),
    ),
    (
        "container_memory_rss",
        place(
            "memory",
            ("memory.stat", Some("total_rss")),
            ("memory.stat", Some("anon")),
        ),
    ),
    (
        "container_memory_usage_bytes",
        place(
            "memory",
            ("memory.usage_in_bytes", None),
            ("memory.current", None),
        ),
    ),
    (
        "container_memory_kernel_usage",
        place(
            "memory",
            ("memory.kmem.usage_in_bytes", None),
            ("memory.stat", Some("kernel")),
        ),
    ),
    (
        "container_memory_swap",
        place(
            "memory",
            ("memory.stat", Some("total_swap")),
            ("memory.swap.current", None),
        ),
    ),
];

/// How far those may be apart, in bytes: the kernel batches the charges of each CPU.
const PAGES: u64 = 4 << 20;

fn is_v1() -> bool {
    Path::new("/sys/fs/cgroup/cpuacct").is_dir()
}

/// A pod with a container whose limits are all set, that worked for a while and now sleeps with two sockets.
fn stage(lab: &Lab, node: &Node, image: &str) -> (String, String) {
    let pod = node.up(&lab.pod("web")).unwrap();
    let script = "i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done; \
        head -c 3000000 /dev/zero > /filled; sync; echo ready; \
        dd if=/dev/zero of=/direct bs=65536 count=4 oflag=direct; \
        nc -l -p 4000 & nc -l -p 4001 & sleep 300; true";
    let container = ContainerBuilder::new("c", image)
        .shell(script)
        .limits(|limits| {
            limits.cpu_period = 100_000;
            limits.cpu_quota = 50_000;
            limits.cpu_shares = 1024;
            limits.memory_limit_in_bytes = 64 << 20;
            limits.memory_swap_limit_in_bytes = 64 << 20;
        });
    let id = node.run_in(&pod, &container).unwrap();
    eventually("it sleeps", || {
        let listening = node.sh(
            &id,
            "ls -l /proc/[0-9]*/fd 2>/dev/null | grep -c socket: || true",
        );
        (listening.parse::<u32>().unwrap_or(0) >= 2).then_some(())
    });
    (pod.id, id)
}

/// Waits until a scrape is newer than this moment: readings are kept for a second, open files for ten.
fn fresh(node: &Node, pod: &str) -> Scrape {
    axil_integration::eventually::within(
        std::time::Duration::from_secs(30),
        "a scrape in which the container sleeps",
        || {
            let scrape = Scrape::take(node, pod);
            (scrape.one("container_sockets") == 2).then_some(scrape)
        },
    )
}

#[test]
fn privileged_every_metric_is_what_the_kernel_says() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let (pod, id) = stage(&lab, &node, &image);
    let cgroup = lab.cgroup_of(&pod, &id);
    fresh(&node, &pod);
    let counter = |place: Place| cgroup.number(place);
    let before: Vec<Option<u64>> = COUNTERS
        .iter()
        .map(|(_, place, _, _)| counter(*place))
        .collect();
    // Nothing but a reading that is newer than `before` counts.
    let scrape = newer(&node, &pod);
    let mut checked = BTreeSet::new();
    for ((name, place, v1, v2), before) in COUNTERS.iter().zip(before) {
        let unit = if is_v1() { v1 } else { v2 };
        let after = counter(*place).unwrap_or_else(|| panic!("{name}: nothing in the kernel"));
        let told = *scrape.values(name, &[]).values().next().unwrap();
        let range = before.unwrap() / unit..=after / unit;
        assert!(
            range.contains(&told),
            "{name}: {told} is not within {range:?}"
        );
        checked.insert(*name);
    }
    for (name, place) in STILL {
        let wanted = match (*name, is_v1()) {
            ("container_spec_cpu_period", false) => Some(100_000),
            _ => cgroup.number(*place),
        };
        assert_eq!(Some(scrape.one(name)), wanted, "{name}");
        checked.insert(*name);
    }
    for (name, place) in NEAR {
        let kernel = cgroup.number(*place).unwrap_or(0);
        let told = scrape.one(name);
        assert!(
            told.abs_diff(kernel) <= PAGES,
            "{name}: {told}, the kernel {kernel}"
        );
        checked.insert(*name);
    }
    check_memory(&scrape, &cgroup, &mut checked);
    check_processes(&node, &scrape, &id, &mut checked);
    check_disk(&lab, &scrape, &cgroup, &mut checked);
    check_network(&node, &scrape, &id, &mut checked);
    check_pressure(&scrape, &cgroup, &mut checked);
    check_times(&node, &scrape, &id, &mut checked);
    let names: BTreeSet<&str> = scrape.keys.keys().map(String::as_str).collect();
    assert_eq!(
        checked, names,
        "metrics nobody checked, or checked ones that are not there"
    );
    assert_eq!(names.len(), 56);
    lab.close(node);
}

/// A scrape whose reading of the cgroup is newer than this moment.
fn newer(node: &Node, pod: &str) -> Scrape {
    let began = std::time::SystemTime::now();
    eventually("a newer reading", || {
        // The reading is kept for a second; CPU time of the stats has its moment.
        let stats = node.pod_stats(pod).unwrap().linux.unwrap();
        let at = stats.containers.first()?.cpu.as_ref()?.timestamp;
        let at =
            std::time::UNIX_EPOCH + std::time::Duration::from_nanos(u64::try_from(at).unwrap());
        (at > began).then(|| Scrape::take(node, pod))
    })
}

fn check_memory(scrape: &Scrape, cgroup: &Cgroup, checked: &mut BTreeSet<&'static str>) {
    let number = |v1: (&'static str, Option<&'static str>), v2| {
        cgroup.number(place("memory", v1, v2)).unwrap_or(0)
    };
    let inactive = number(
        ("memory.stat", Some("total_inactive_file")),
        ("memory.stat", Some("inactive_file")),
    );
    let usage = number(("memory.usage_in_bytes", None), ("memory.current", None));
    let working_set = scrape.one("container_memory_working_set_bytes");
    assert!(
        working_set.abs_diff(usage - inactive) <= PAGES,
        "{working_set}, the kernel {usage} less {inactive}"
    );
    checked.insert("container_memory_working_set_bytes");
    let faults = scrape.values(
        "container_memory_failures_total",
        &["failure_type", "scope"],
    );
    assert_eq!(faults.len(), 4, "{faults:?}");
    for (kind, v1, v2) in [
        ("pgfault", "total_pgfault", "pgfault"),
        ("pgmajfault", "total_pgmajfault", "pgmajfault"),
    ] {
        let kernel = number(("memory.stat", Some(v1)), ("memory.stat", Some(v2)));
        for scope in ["container", "hierarchy"] {
            // Nobody works there any more, but each CPU's count is added up late.
            let told = faults[&vec![kind.to_owned(), scope.to_owned()]];
            assert!(
                told <= kernel && kernel - told <= 1024,
                "{kind} {scope}: {told}, the kernel {kernel}"
            );
        }
    }
    checked.insert("container_memory_failures_total");
    check_limits(scrape, cgroup, checked);
    check_huge_pages(scrape, cgroup, checked);
}

/// Limits, of which "none" is told as 0.
fn check_limits(scrape: &Scrape, cgroup: &Cgroup, checked: &mut BTreeSet<&'static str>) {
    let limits = [
        (
            "container_spec_memory_reservation_limit_bytes",
            place(
                "memory",
                ("memory.soft_limit_in_bytes", None),
                ("memory.min", None),
            ),
        ),
        (
            "container_spec_memory_swap_limit_bytes",
            place(
                "memory",
                ("memory.memsw.limit_in_bytes", None),
                ("memory.swap.max", None),
            ),
        ),
        (
            "container_threads_max",
            place("pids", ("pids.max", None), ("pids.max", None)),
        ),
    ];
    for (name, place) in limits {
        // Without a limit cgroup v1 has the largest number of pages there is.
        let kernel = cgroup.number(place).filter(|&limit| limit < 1 << 62);
        assert_eq!(scrape.one(name), kernel.unwrap_or(0), "{name}");
        checked.insert(name);
    }
    let shares = place("cpu", ("cpu.shares", None), ("cpu.weight", None));
    let kernel = cgroup.number(shares).unwrap();
    // A weight of 100 is what 1024 shares become.
    let wanted = if is_v1() { kernel } else { kernel * 1024 / 100 };
    assert_eq!(scrape.one("container_spec_cpu_shares"), wanted);
    checked.insert("container_spec_cpu_shares");
}

/// Both figures for each page size that the kernel counts for this cgroup, and none that it does not.
fn check_huge_pages(scrape: &Scrape, cgroup: &Cgroup, checked: &mut BTreeSet<&'static str>) {
    let v1 = Path::new("/sys/fs/cgroup/hugetlb").join(cgroup.0.trim_start_matches('/'));
    let kernel = |size: &str| {
        let old = fs::read_to_string(v1.join(format!("hugetlb.{size}.usage_in_bytes"))).ok();
        let text = old.or_else(|| cgroup.unified(&format!("hugetlb.{size}.current")))?;
        Some((vec![size.to_owned()], text.trim().parse::<u64>().unwrap()))
    };
    let sizes = ["64KB", "2MB", "32MB", "512MB", "1GB", "16GB"];
    let wanted: BTreeMap<Vec<String>, u64> = sizes.into_iter().filter_map(kernel).collect();
    for name in [
        "container_hugetlb_usage_bytes",
        "container_hugetlb_max_usage_bytes",
    ] {
        // Nobody uses one, so that the most there ever was is the same.
        assert_eq!(scrape.values(name, &["pagesize"]), wanted, "{name}");
        checked.insert(name);
    }
}

fn check_processes(node: &Node, scrape: &Scrape, id: &str, checked: &mut BTreeSet<&'static str>) {
    // The shell, two listeners and the sleeper.
    assert_eq!(scrape.one("container_processes"), 4);
    assert_eq!(scrape.one("container_sockets"), 2);
    let count = "ls -d /proc/[0-9]*/fd/* 2>/dev/null | wc -l";
    let with_the_look: u64 = node.sh(id, count).parse().unwrap();
    let told = scrape.one("container_file_descriptors");
    // The look itself has a shell, ls and wc.
    assert!(
        told < with_the_look && told >= 4 * 3,
        "{told} {with_the_look}"
    );
    let soft: u64 = node.sh(id, "ulimit -n").parse().unwrap();
    assert_eq!(
        scrape.labelled("container_ulimits_soft", "ulimit", "max_open_files"),
        soft
    );
    checked.extend([
        "container_processes",
        "container_sockets",
        "container_file_descriptors",
        "container_ulimits_soft",
    ]);
}

fn check_disk(lab: &Lab, scrape: &Scrape, cgroup: &Cgroup, checked: &mut BTreeSet<&'static str>) {
    let stat = nix::sys::statvfs::statvfs(lab.dir()).unwrap();
    let only = |name: &str| {
        let values = scrape.values(name, &["device"]);
        assert_eq!(values.len(), 1, "{name}: {values:?}");
        *values.values().next().unwrap()
    };
    assert_eq!(
        only("container_fs_limit_bytes"),
        stat.blocks() * stat.fragment_size()
    );
    assert_eq!(only("container_fs_inodes_total"), stat.files());
    assert!(only("container_fs_inodes_free").abs_diff(stat.files_free()) < 50_000);
    // A layer is measured every ten seconds, so this one may still be told as it was made.
    assert!((4096..8 << 20).contains(&only("container_fs_usage_bytes")));
    checked.extend([
        "container_fs_limit_bytes",
        "container_fs_inodes_total",
        "container_fs_inodes_free",
        "container_fs_usage_bytes",
    ]);
    // What the kernel lists of block devices is what is told, number for number.
    let kernel = device_numbers(cgroup, "io_service_bytes", ("rbytes", "wbytes"));
    let requests = device_numbers(cgroup, "io_serviced", ("rios", "wios"));
    // The container wrote past the page cache. Since Linux 6.10 cgroup v1 counts only for devices with a limit.
    let on_a_device = nix::sys::stat::major(nix::sys::stat::stat(lab.dir()).unwrap().st_dev) != 0;
    assert!(is_v1() || !on_a_device || !kernel.is_empty());
    let told = scrape.values(
        "container_blkio_device_usage_total",
        &["major", "minor", "operation"],
    );
    let told: BTreeMap<_, _> = told
        .into_iter()
        .map(|(labels, bytes)| {
            (
                (format!("{}:{}", labels[0], labels[1]), labels[2].clone()),
                bytes,
            )
        })
        .collect();
    assert_eq!(told, kernel);
    let by = |name: &str| scrape.values(name, &["device"]);
    for (operation, bytes, count) in [
        (
            "Read",
            "container_fs_reads_bytes_total",
            "container_fs_reads_total",
        ),
        (
            "Write",
            "container_fs_writes_bytes_total",
            "container_fs_writes_total",
        ),
    ] {
        let sum = |numbers: &BTreeMap<(String, String), u64>| {
            let of_this = numbers.iter().filter(|((_, one), _)| one == operation);
            of_this.map(|(_, number)| number).sum::<u64>()
        };
        assert_eq!(by(bytes).values().sum::<u64>(), sum(&kernel), "{bytes}");
        assert_eq!(by(count).values().sum::<u64>(), sum(&requests), "{count}");
        checked.extend([bytes, count]);
    }
    checked.insert("container_blkio_device_usage_total");
}

/// Numbers by device and operation, as the kernel lists them: a file of cgroup v1 below `blkio.throttle.`, and
/// the fields of reads and writes in `io.stat`.
fn device_numbers(
    cgroup: &Cgroup,
    v1: &str,
    (reads, writes): (&str, &str),
) -> BTreeMap<(String, String), u64> {
    let tree = Path::new("/sys/fs/cgroup/blkio").join(cgroup.0.trim_start_matches('/'));
    let mut found = BTreeMap::new();
    let mut add = |device: &str, operation: &str, number: &str| {
        let key = (device.to_owned(), operation.to_owned());
        found.insert(key, number.parse::<u64>().unwrap());
    };
    if tree.is_dir() {
        let text = fs::read_to_string(tree.join(format!("blkio.throttle.{v1}_recursive")));
        for line in text.unwrap().lines() {
            let words: Vec<&str> = line.split(' ').collect();
            if words.len() == 3 && matches!(words[1], "Read" | "Write") {
                add(words[0], words[1], words[2]);
            }
        }
        return found;
    }
    for line in cgroup.unified("io.stat").unwrap_or_default().lines() {
        let (device, rest) = line.split_once(' ').unwrap();
        for (field, number) in rest.split(' ').filter_map(|word| word.split_once('=')) {
            if field == reads {
                add(device, "Read", number);
            } else if field == writes {
                add(device, "Write", number);
            }
        }
    }
    found
}

fn check_network(node: &Node, scrape: &Scrape, id: &str, checked: &mut BTreeSet<&'static str>) {
    let line = node.sh(id, "grep eth0: /proc/net/dev");
    let now: Vec<u64> = line
        .split(':')
        .nth(1)
        .unwrap()
        .split_whitespace()
        .map(|word| word.parse().unwrap())
        .collect();
    for (name, column) in [
        ("container_network_receive_bytes_total", 0),
        ("container_network_receive_packets_total", 1),
        ("container_network_receive_errors_total", 2),
        ("container_network_receive_packets_dropped_total", 3),
        ("container_network_transmit_bytes_total", 8),
        ("container_network_transmit_packets_total", 9),
        ("container_network_transmit_errors_total", 10),
        ("container_network_transmit_packets_dropped_total", 11),
    ] {
        let told = scrape.labelled(name, "interface", "eth0");
        // Neighbour discovery may go on between the scrape and this look.
        assert!(
            told <= now[column] && now[column] - told < 4096,
            "{name}: {told} {}",
            now[column]
        );
        checked.insert(name);
    }
}

fn check_pressure(scrape: &Scrape, cgroup: &Cgroup, checked: &mut BTreeSet<&'static str>) {
    for (name, file, line) in [
        (
            "container_pressure_cpu_stalled_seconds_total",
            "cpu.pressure",
            "full",
        ),
        (
            "container_pressure_cpu_waiting_seconds_total",
            "cpu.pressure",
            "some",
        ),
        (
            "container_pressure_io_stalled_seconds_total",
            "io.pressure",
            "full",
        ),
        (
            "container_pressure_io_waiting_seconds_total",
            "io.pressure",
            "some",
        ),
        (
            "container_pressure_memory_stalled_seconds_total",
            "memory.pressure",
            "full",
        ),
        (
            "container_pressure_memory_waiting_seconds_total",
            "memory.pressure",
            "some",
        ),
    ] {
        let told = scrape.values(name, &[]);
        match cgroup.unified(file) {
            None => assert!(told.is_empty(), "{name}: {told:?} without {file}"),
            Some(text) => {
                let line = text.lines().find(|text| text.starts_with(line));
                let total = line.and_then(|line| line.rsplit_once("total="));
                let seconds = total.unwrap().1.parse::<u64>().unwrap() / 1_000_000;
                let told = *told.values().next().unwrap();
                assert!(
                    told <= seconds && seconds - told <= 1,
                    "{name}: {told} {seconds}"
                );
            }
        }
        checked.insert(name);
    }
}

fn check_times(node: &Node, scrape: &Scrape, id: &str, checked: &mut BTreeSet<&'static str>) {
    let started = u64::try_from(node.container_status(id).unwrap().started_at).unwrap();
    assert_eq!(
        scrape.one("container_start_time_seconds"),
        started / 1_000_000_000
    );
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let seen = scrape.one("container_last_seen");
    assert!(
        seen >= started / 1_000_000_000 && seen <= now.as_secs(),
        "{seen} {now:?}"
    );
    checked.extend(["container_start_time_seconds", "container_last_seen"]);
}

#[test]
fn privileged_metrics_have_the_labels_dashboards_query() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let (pod, id) = stage(&lab, &node, &image);
    let descriptors = node.metric_descriptors().unwrap();
    assert_eq!(descriptors, node.metric_descriptors().unwrap());
    for one in &descriptors {
        assert!(
            !one.help.is_empty() && one.label_keys.is_sorted(),
            "{one:?}"
        );
    }
    let scrape = Scrape::take(&node, &pod);
    for sample in &scrape.samples {
        let labels = scrape.labels(sample);
        assert_eq!(
            sample.label_values.len(),
            scrape.keys[&sample.name].len(),
            "{sample:?}"
        );
        assert_eq!(
            (labels["namespace"].as_str(), labels["pod"].as_str()),
            ("default", "web")
        );
        assert!(sample.timestamp > 0);
        // The number of inodes is a gauge in spite of its name, as cAdvisor has it.
        let counts = sample.name == "container_memory_failcnt"
            || (sample.name.ends_with("_total") && sample.name != "container_fs_inodes_total");
        assert_eq!(
            sample.metric_type() == MetricType::Counter,
            counts,
            "{}",
            sample.name
        );
        if sample.name.starts_with("container_network_") {
            assert_eq!(labels["container"], "POD");
            assert_eq!(labels["name"], pod);
        } else {
            assert_eq!((labels["container"].as_str(), &labels["name"]), ("c", &id));
            assert_eq!(labels["image"], image);
            assert_eq!(labels["id"], lab.cgroup_of(&pod, &id).0);
        }
    }
    lab.close(node);
}

#[test]
fn privileged_many_pods_are_scraped_in_one_answer() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    // containerd answers ten pods a second; here the first scrape after a start has all of them.
    let names: Vec<String> = (0..15).map(|number| format!("p{number}")).collect();
    for name in &names {
        let pod = node.up(&lab.pod(name)).unwrap();
        let container = ContainerBuilder::new("c", &image).command(&["sleep", "300"]);
        node.run_in(&pod, &container).unwrap();
    }
    for _ in 0..3 {
        let metrics = node.pod_metrics().unwrap();
        assert_eq!(metrics.len(), names.len());
        assert!(metrics.iter().all(|one| one.container_metrics.len() == 1));
    }
    lab.close(node);
}
