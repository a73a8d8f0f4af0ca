//! The table against what the kubelet and critest expect, and each value's place.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::*;
use crate::domain::usage::{
    CpuUsage, DeviceUsage, FilesystemUsage, HugePageUsage, LayerUsage, MemoryUsage, NetworkUsage,
    ProcessUsage, Stall, StallShare, Stalls, SwapUsage, TaskUsage, Traffic,
};
use crate::engine::stats::ContainerStats;
use crate::engine::views::{ContainerView, PodView};

fn pod_view() -> PodView {
    let record = serde_json::json!({
        "version": 1, "id": "a".repeat(64), "created_at": 1, "phase": {"phase": "removing"},
        "spec": {
            "metadata": {"name": "web", "namespace": "shop", "uid": "u", "attempt": 0},
            "runtime_handler": "", "hostname": "", "log_directory": "", "dns": null,
            "port_mappings": [], "labels": {}, "annotations": {}, "cgroup_parent": "",
            "sysctls": {}, "overhead": null, "resources": null,
            "namespaces": {"network": "pod", "pid": "container", "ipc": "pod", "target_id": ""},
            "security": {"privileged": false, "seccomp": "unset"}
        }
    });
    PodView {
        id: "a".repeat(64).parse().unwrap(),
        record: Arc::new(serde_json::from_value(record).unwrap()),
        shim: None,
    }
}

fn container_view() -> ContainerView {
    let config = cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata {
            name: "c".into(),
            attempt: 0,
        }),
        image: Some(cri::ImageSpec {
            image: "sha256:feed".into(),
            user_specified_image: "busybox:1".into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let spec = crate::cri::convert::container::spec(config).unwrap();
    let record = serde_json::json!({
        "version": 1, "id": "b".repeat(64), "pod": "a".repeat(64), "created_at": 1,
        "spec": spec, "image": {"id": "sha256:feed", "reference": "r"}, "stop_signal": 15,
        "phase": {"phase": "running", "started_at": 5_000_000_000i64}
    });
    ContainerView {
        id: "b".repeat(64).parse().unwrap(),
        pod: "a".repeat(64).parse().unwrap(),
        record: Arc::new(serde_json::from_value(record).unwrap()),
    }
}

fn stall(some: u64, full: u64) -> Option<Stall> {
    let share = |seconds| StallShare {
        total_us: seconds * 1_000_000 + 999_999,
        ..StallShare::default()
    };
    Some(Stall {
        some: share(some),
        full: share(full),
    })
}

/// A node where every value is another number.
fn node() -> NodeMeasures {
    let disk = DeviceNumber { major: 8, minor: 1 };
    let seconds = |seconds: u64| seconds * 1_000_000_000 + 999_999_999;
    let usage = CgroupUsage {
        read_at: 1,
        cpu: Some(CpuUsage {
            total_ns: seconds(101),
            user_ns: seconds(102),
            system_ns: seconds(103),
            nano_cores: None,
            periods: 104,
            throttled_periods: 105,
            throttled_ns: seconds(106),
            period_us: 107,
            quota_us: Some(108),
            shares: 109,
        }),
        memory: Some(MemoryUsage {
            usage: 1201,
            peak: Some(202),
            limit: Some(203),
            reservation: Some(204),
            inactive_file: 1000,
            rss: 205,
            cache: 206,
            mapped_file: 207,
            kernel: 208,
            faults: 209,
            major_faults: 210,
            limit_hits: 211,
            oom_kills: 212,
            swap: Some(SwapUsage {
                used: 213,
                limit: Some(1),
                raw_limit: Some(214),
            }),
        }),
        tasks: Some(TaskUsage {
            threads: 301,
            limit: Some(302),
        }),
        devices: vec![DeviceUsage {
            device: disk,
            read_bytes: 401,
            written_bytes: 402,
            reads: 403,
            writes: 404,
        }],
        huge_pages: vec![HugePageUsage {
            size: "2MB".into(),
            usage: 501,
            peak: Some(502),
        }],
        stalls: Stalls {
            cpu: stall(601, 602),
            memory: stall(603, 604),
            io: stall(605, 606),
        },
    };
    let files = ProcessUsage {
        processes: 701,
        descriptors: 702,
        sockets: 703,
        descriptor_limit: Some(704),
    };
    let stats = ContainerStats {
        view: container_view(),
        usage: Some(Arc::new(usage)),
        layer: Some(LayerUsage {
            measured_at: 1,
            bytes: 801,
            inodes: 9,
        }),
    };
    let interface = InterfaceUsage {
        name: "eth0".into(),
        received: Traffic {
            bytes: 901,
            packets: 902,
            errors: 903,
            dropped: 904,
        },
        sent: Traffic {
            bytes: 905,
            packets: 906,
            errors: 907,
            dropped: 908,
        },
    };
    let pod = PodMeasures {
        view: pod_view(),
        cgroup: "/kubepods/p".into(),
        network: Some(Arc::new(NetworkUsage {
            read_at: 1,
            interfaces: vec![interface],
        })),
        containers: vec![ContainerMeasures {
            stats,
            cgroup: "/kubepods/p/c".into(),
            open_files: Some(Arc::new(files)),
        }],
    };
    NodeMeasures {
        pods: vec![pod],
        filesystem: FilesystemUsage {
            device: disk,
            bytes: 802,
            inodes: 803,
            free_inodes: 804,
        },
        devices: BTreeMap::from([(disk, "/dev/sda1".to_owned())]),
    }
}

/// Own labels and value of every sample of a metric.
fn values(metrics: &[&cri::Metric], name: &str) -> Vec<(String, u64)> {
    let keys = descriptors().into_iter().find(|one| one.name == name);
    let keys = keys.unwrap().label_keys;
    let own = |metric: &&&cri::Metric| {
        let labels = keys.iter().zip(&metric.label_values);
        let own = labels.filter(|(key, _)| !BASE_LABELS.contains(&key.as_str()));
        let own: Vec<_> = own.map(|(key, value)| format!("{key}={value}")).collect();
        (own.join(","), metric.value.unwrap().value)
    };
    metrics
        .iter()
        .filter(|metric| metric.name == name)
        .map(|metric| own(&metric))
        .collect()
}

#[test]
fn every_metric_has_its_value() {
    let node = node();
    let wire = pod(&node.pods[0], &node, 7_000_000_000);
    let all: Vec<&cri::Metric> = wire
        .metrics
        .iter()
        .chain(&wire.container_metrics[0].metrics)
        .collect();
    let plain = |value: u64| vec![(String::new(), value)];
    let with = |labels: &str, value: u64| vec![(labels.to_owned(), value)];
    let disk = |value| with("device=/dev/sda1", value);
    let eth0 = |value| with("interface=eth0", value);
    let blkio = "device=/dev/sda1,major=8,minor=1,operation=";
    let fault = |kind: &str, scope: &str| format!("failure_type={kind},scope={scope}");
    let expected = [
        (
            "container_blkio_device_usage_total",
            vec![
                (format!("{blkio}Read"), 401),
                (format!("{blkio}Write"), 402),
            ],
        ),
        ("container_cpu_cfs_periods_total", plain(104)),
        ("container_cpu_cfs_throttled_periods_total", plain(105)),
        ("container_cpu_cfs_throttled_seconds_total", plain(106)),
        ("container_cpu_system_seconds_total", plain(103)),
        ("container_cpu_usage_seconds_total", with("cpu=total", 101)),
        ("container_cpu_user_seconds_total", plain(102)),
        ("container_file_descriptors", plain(702)),
        ("container_fs_inodes_free", disk(804)),
        ("container_fs_inodes_total", disk(803)),
        ("container_fs_limit_bytes", disk(802)),
        ("container_fs_reads_bytes_total", disk(401)),
        ("container_fs_reads_total", disk(403)),
        ("container_fs_usage_bytes", disk(801)),
        ("container_fs_writes_bytes_total", disk(402)),
        ("container_fs_writes_total", disk(404)),
        (
            "container_hugetlb_max_usage_bytes",
            with("pagesize=2MB", 502),
        ),
        ("container_hugetlb_usage_bytes", with("pagesize=2MB", 501)),
        ("container_last_seen", plain(7)),
        ("container_memory_cache", plain(206)),
        ("container_memory_failcnt", plain(211)),
        (
            "container_memory_failures_total",
            vec![
                (fault("pgfault", "container"), 209),
                (fault("pgfault", "hierarchy"), 209),
                (fault("pgmajfault", "container"), 210),
                (fault("pgmajfault", "hierarchy"), 210),
            ],
        ),
        ("container_memory_kernel_usage", plain(208)),
        ("container_memory_mapped_file", plain(207)),
        ("container_memory_max_usage_bytes", plain(202)),
        ("container_memory_rss", plain(205)),
        ("container_memory_swap", plain(213)),
        ("container_memory_usage_bytes", plain(1201)),
        ("container_memory_working_set_bytes", plain(201)),
        ("container_network_receive_bytes_total", eth0(901)),
        ("container_network_receive_errors_total", eth0(903)),
        ("container_network_receive_packets_dropped_total", eth0(904)),
        ("container_network_receive_packets_total", eth0(902)),
        ("container_network_transmit_bytes_total", eth0(905)),
        ("container_network_transmit_errors_total", eth0(907)),
        (
            "container_network_transmit_packets_dropped_total",
            eth0(908),
        ),
        ("container_network_transmit_packets_total", eth0(906)),
        ("container_oom_events_total", plain(212)),
        ("container_pressure_cpu_stalled_seconds_total", plain(602)),
        ("container_pressure_cpu_waiting_seconds_total", plain(601)),
        ("container_pressure_io_stalled_seconds_total", plain(606)),
        ("container_pressure_io_waiting_seconds_total", plain(605)),
        (
            "container_pressure_memory_stalled_seconds_total",
            plain(604),
        ),
        (
            "container_pressure_memory_waiting_seconds_total",
            plain(603),
        ),
        ("container_processes", plain(701)),
        ("container_sockets", plain(703)),
        ("container_spec_cpu_period", plain(107)),
        ("container_spec_cpu_quota", plain(108)),
        ("container_spec_cpu_shares", plain(109)),
        ("container_spec_memory_limit_bytes", plain(203)),
        ("container_spec_memory_reservation_limit_bytes", plain(204)),
        ("container_spec_memory_swap_limit_bytes", plain(214)),
        ("container_start_time_seconds", plain(5)),
        ("container_threads", plain(301)),
        ("container_threads_max", plain(302)),
        ("container_ulimits_soft", with("ulimit=max_open_files", 704)),
    ];
    let names: BTreeSet<&str> = expected.iter().map(|(name, _)| *name).collect();
    let table: BTreeSet<&str> = METRICS.iter().map(|metric| metric.name).collect();
    assert_eq!((names.len(), &names), (56, &table));
    for (name, expected) in expected {
        assert_eq!(values(&all, name), expected, "{name}");
    }
}

#[test]
fn labels_are_sorted_and_told_in_the_order_of_their_keys() {
    let node = node();
    let wire = pod(&node.pods[0], &node, 1);
    let keys: BTreeMap<String, Vec<String>> = descriptors()
        .into_iter()
        .map(|one| (one.name, one.label_keys))
        .collect();
    for (name, keys) in &keys {
        assert!(keys.is_sorted(), "{name}: {keys:?}");
    }
    let label = |metric: &cri::Metric, key: &str| {
        let at = keys[&metric.name]
            .iter()
            .position(|one| one == key)
            .unwrap();
        metric.label_values[at].clone()
    };
    let container = &wire.container_metrics[0];
    for metric in wire.metrics.iter().chain(&container.metrics) {
        assert_eq!(
            metric.label_values.len(),
            keys[&metric.name].len(),
            "{}",
            metric.name
        );
        assert_eq!(label(metric, "namespace"), "shop");
        assert_eq!(label(metric, "pod"), "web");
    }
    for (key, value) in [
        ("container", "c"),
        ("id", "/kubepods/p/c"),
        ("image", "busybox:1"),
        ("name", &"b".repeat(64)),
    ] {
        assert_eq!(label(&container.metrics[0], key), value);
    }
    for (key, value) in [("container", "POD"), ("id", "/kubepods/p"), ("image", "")] {
        assert_eq!(label(&wire.metrics[0], key), value);
    }
}

#[test]
fn what_is_not_counted_is_absent() {
    let mut node = node();
    let stats = &mut node.pods[0].containers[0].stats;
    stats.usage = Some(Arc::new(CgroupUsage::default()));
    stats.layer = None;
    node.pods[0].containers[0].open_files = None;
    node.pods[0].network = None;
    let wire = pod(&node.pods[0], &node, 1);
    assert_eq!(wire.metrics, []);
    let names: Vec<&str> = wire.container_metrics[0]
        .metrics
        .iter()
        .map(|metric| metric.name.as_str())
        .collect();
    let always = [
        "container_fs_inodes_free",
        "container_fs_inodes_total",
        "container_fs_limit_bytes",
        "container_last_seen",
        "container_start_time_seconds",
    ];
    assert_eq!(names, always);
}
