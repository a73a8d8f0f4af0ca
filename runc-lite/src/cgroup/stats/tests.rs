//! Recorded cgroup files and the numbers they come to.

use std::path::Path;

use serde_json::{Value, json};

use super::*;

fn tree(recorded: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, content) in recorded {
        std::fs::write(directory.path().join(name), content).unwrap();
    }
    directory
}

#[test]
fn v2_files_come_to_the_numbers_of_runc() {
    let directory = tree(&[
        (
            "cpu.stat",
            "usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_periods 4\nnr_throttled 3\nthrottled_usec 2\n",
        ),
        (
            "cpu.pressure",
            "some avg10=1.50 avg60=0.25 avg300=0.00 total=77\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5\n",
        ),
        ("cpuset.cpus", "0-2,5\n"),
        ("memory.current", "100\n"),
        ("memory.max", "400\n"),
        ("memory.peak", "200\n"),
        ("memory.swap.current", "7\n"),
        ("memory.swap.max", "50\n"),
        ("memory.stat", "anon 60\nfile 40\n"),
        ("pids.current", "3\n"),
        ("pids.max", "max\n"),
        (
            "io.stat",
            "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n8:16\n",
        ),
        ("hugetlb.2MB.current", "0\n"),
        ("hugetlb.2MB.rsvd.current", "2097152\n"),
        ("hugetlb.2MB.events", "max 9\n"),
    ]);
    let stats = serde_json::to_value(v2::read(directory.path()).unwrap()).unwrap();
    let at = |pointer: &str| stats.pointer(pointer).cloned().unwrap_or(Value::Null);
    for (pointer, value) in [
        ("/cpu/usage/total", json!(30_000)),
        ("/cpu/usage/user", json!(20_000)),
        ("/cpu/usage/kernel", json!(10_000)),
        ("/cpu/throttling/throttledTime", json!(2000)),
        ("/cpu/psi/some/avg10", json!(1.5)),
        ("/cpu/psi/full/total", json!(5)),
        ("/cpuset/cpus", json!([0, 1, 2, 5])),
        ("/memory/cache", json!(40)),
        (
            "/memory/usage",
            json!({"limit": 400, "usage": 100, "max": 200, "failcnt": 0}),
        ),
        (
            "/memory/swap",
            json!({"limit": 450, "usage": 107, "failcnt": 0}),
        ),
        ("/memory/raw/anon", json!(60)),
        ("/memory/psi", Value::Null),
        ("/pids", json!({"current": 3})),
        (
            "/blkio/ioServiceBytesRecursive/1",
            json!({"major": 8, "op": "Write", "value": 20}),
        ),
        ("/blkio/ioServicedRecursive/0/value", json!(1)),
        ("/hugetlb/2MB", json!({"usage": 2_097_152, "failcnt": 9})),
        ("/network_interfaces", Value::Null),
    ] {
        assert_eq!(at(pointer), value, "{pointer}");
    }
}

#[test]
fn a_cgroup_that_is_gone_is_an_error() {
    let error = v2::read(Path::new("/nonexistent/cgroup")).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/cgroup/cpu.stat"));
}

#[test]
fn v1_files_come_to_the_numbers_of_runc() {
    let directory = tree(&[
        ("cpuacct.usage", "3000\n"),
        ("cpuacct.stat", "user 2\nsystem 1\n"),
        ("cpuacct.usage_percpu", "1000 2000 \n"),
        (
            "cpuacct.usage_all",
            "cpu user system\n0 600 400\n1 1500 500\n",
        ),
        (
            "cpu.stat",
            "nr_periods 4\nnr_throttled 3\nthrottled_time 2\n",
        ),
        ("cpuset.cpus", "1\n"),
        ("cpuset.sched_relax_domain_level", "-1\n"),
        ("memory.usage_in_bytes", "100\n"),
        ("memory.limit_in_bytes", "400\n"),
        ("memory.max_usage_in_bytes", "200\n"),
        ("memory.failcnt", "6\n"),
        ("memory.kmem.tcp.usage_in_bytes", "8\n"),
        ("memory.stat", "cache 40\nrss 60\n"),
        ("pids.current", "3\n"),
        ("pids.max", "20\n"),
        ("blkio.bfq.io_service_bytes_recursive", "Total 0\n"),
        (
            "blkio.throttle.io_service_bytes_recursive",
            "8:0 Read 10\n8:0 Total 10\nTotal 10\n",
        ),
        ("hugetlb.2MB.usage_in_bytes", "5\n"),
        ("hugetlb.2MB.max_usage_in_bytes", "6\n"),
        ("hugetlb.2MB.rsvd.usage_in_bytes", "7\n"),
        ("hugetlb.2MB.failcnt", "1\n"),
    ]);
    let stats = v1::read(&|_| Some(directory.path())).unwrap();
    let stats = serde_json::to_value(stats).unwrap();
    let at = |pointer: &str| stats.pointer(pointer).cloned().unwrap_or(Value::Null);
    for (pointer, value) in [
        (
            "/cpu/usage",
            json!({"total": 3000, "percpu": [1000, 2000], "percpu_kernel": [400, 500],
                   "percpu_user": [600, 1500], "kernel": 10_000_000, "user": 20_000_000}),
        ),
        ("/cpu/throttling/periods", json!(4)),
        ("/cpuset/sched_relax_domain_level", json!(-1)),
        (
            "/memory/usage",
            json!({"limit": 400, "usage": 100, "max": 200, "failcnt": 6}),
        ),
        ("/memory/kernelTCP/usage", json!(8)),
        ("/memory/cache", json!(40)),
        ("/pids", json!({"current": 3, "limit": 20})),
        (
            "/blkio/ioServiceBytesRecursive",
            json!([{"major": 8, "op": "Read", "value": 10}, {"major": 8, "op": "Total", "value": 10}]),
        ),
        (
            "/hugetlb",
            json!({"2MB": {"usage": 5, "max": 6, "failcnt": 1}}),
        ),
    ] {
        assert_eq!(at(pointer), value, "{pointer}");
    }
}

#[test]
fn interfaces_are_read_from_the_table_of_the_namespace() {
    let table = "Inter-|   Receive  |  Transmit\n face |bytes packets\n    lo: 1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0\n  eth0:10 20 0 0 0 0 0 0 30 40 0 0 0 0 0 0\n";
    let interfaces = network_interfaces(table);
    assert_eq!(interfaces.len(), 2);
    let lo = serde_json::to_value(&interfaces[0]).unwrap();
    let expected = json!({"Name": "lo", "RxBytes": 1, "RxPackets": 2, "RxErrors": 3, "RxDropped": 4,
                          "TxBytes": 5, "TxPackets": 6, "TxErrors": 7, "TxDropped": 8});
    assert_eq!(lo, expected);
    assert_eq!((interfaces[1].rx_bytes, interfaces[1].tx_packets), (10, 40));
}
