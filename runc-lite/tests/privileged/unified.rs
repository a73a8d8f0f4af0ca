//! What only a host with cgroup v2 alone can show: limits, pressure, the device program, kill, freeze and
//! out-of-memory groups of the unified tree. The VM lane runs these.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use super::bundle::{Bundle, eventually};
use super::guard::{Need, ready_with};

const NEEDS: &[Need] = &[Need::CgroupV2];

fn read(directory: &Path, file: &str) -> String {
    let path = directory.join(file);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.trim().to_owned()
}

/// Device numbers of a disk that block I/O limits can name.
fn disk() -> (u32, u32) {
    let disks = std::fs::read_dir("/sys/block").unwrap().flatten();
    let named = disks.filter(|entry| {
        let name = entry.file_name();
        ["vd", "sd", "nvme"]
            .iter()
            .any(|kind| name.to_string_lossy().starts_with(kind))
    });
    let numbers = named.map(|entry| read(&entry.path(), "dev")).min();
    let numbers = numbers.expect("a machine that boots has a disk");
    let (major, minor) = numbers.split_once(':').unwrap();
    (major.parse().unwrap(), minor.parse().unwrap())
}

#[test]
fn privileged_limits_are_visible_in_v2_files() {
    if !ready_with(NEEDS) {
        return;
    }
    let (major, minor) = disk();
    let mut bundle = Bundle::new("sleep 1000");
    bundle.set(
        "/linux/resources",
        json!({
            "devices": [{"allow": false, "access": "rwm"}],
            "memory": {"limit": 67_108_864, "reservation": 33_554_432, "swap": 100_663_296},
            "cpu": {"shares": 1024, "quota": 50_000, "period": 100_000, "cpus": "0", "mems": "0"},
            "pids": {"limit": 42},
            "blockIO": {"weight": 10, "throttleReadBpsDevice": [
                {"major": major, "minor": minor, "rate": 1_048_576}], "throttleWriteIOPSDevice": [
                {"major": major, "minor": minor, "rate": 77}]},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 4_194_304}],
            "unified": {"memory.high": "50331648", "cpu.weight.nice": "0"}
        }),
    );
    bundle.create().ok();
    let cgroup = bundle.unified().unwrap();
    for (file, value) in [
        ("memory.max", "67108864"),
        ("memory.low", "33554432"),
        ("memory.high", "50331648"),
        // The document counts memory and swap together.
        ("memory.swap.max", "33554432"),
        ("cpu.weight", "100"),
        ("cpu.max", "50000 100000"),
        ("cpuset.cpus", "0"),
        ("cpuset.mems", "0"),
        ("pids.max", "42"),
        ("hugetlb.2MB.max", "4194304"),
        ("hugetlb.2MB.rsvd.max", "4194304"),
    ] {
        assert_eq!(read(&cgroup, file), value, "{file}");
    }
    let throttle = read(&cgroup, "io.max");
    let expected = format!("{major}:{minor} rbps=1048576 wbps=max riops=max wiops=77");
    assert_eq!(throttle, expected);
    let weights = ["io.bfq.weight", "io.weight"].map(|file| cgroup.join(file));
    let weight = weights.iter().find(|path| path.exists()).unwrap();
    let weight = std::fs::read_to_string(weight).unwrap();
    assert!(["default 10\n", "default 1\n"].contains(&weight.as_str()));
    let own = std::fs::read_to_string(format!("/proc/{}/cgroup", bundle.pid())).unwrap();
    let below = cgroup.strip_prefix("/sys/fs/cgroup").unwrap();
    assert_eq!(own, format!("0::/{}\n", below.display()));
    bundle.call(&["delete", &bundle.id]).ok();
    bundle.assert_gone();
}

#[test]
fn privileged_a_setting_the_kernel_refuses_is_named_and_leaves_nothing() {
    if !ready_with(NEEDS) {
        return;
    }
    for (key, value) in [("memory.max", "many"), ("no.such.file", "1")] {
        let mut bundle = Bundle::new("true");
        bundle.set("/linux/resources/unified", json!({key: value}));
        bundle.create().fails(1, key);
        bundle.assert_gone();
    }
}

#[test]
fn privileged_the_device_program_decides_what_opens() {
    if !ready_with(NEEDS) {
        return;
    }
    // To open /dev/fuse takes no capability, only the permission.
    let open = "cat /dev/null && head -c 1 /dev/zero | wc -c; (: </dev/fuse) && echo fuse";
    for allowed in [false, true] {
        let mut bundle = Bundle::new(open);
        bundle.set(
            "/linux/devices",
            json!([{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o666}]),
        );
        bundle.set(
            "/linux/resources/devices",
            json!([{"allow": false, "access": "rwm"},
                   {"allow": allowed, "type": "c", "major": 10, "minor": 229, "access": "r"}]),
        );
        let done = bundle.run();
        if allowed {
            assert_eq!((done.code, done.out.as_str()), (0, "1\nfuse"), "{done:?}");
        } else {
            assert_eq!((done.code, done.out.as_str()), (1, "1"), "{done:?}");
            assert!(done.err.contains("not permitted"), "{done:?}");
        }
        bundle.assert_gone();
    }
}

#[test]
fn privileged_pressure_is_measured_for_the_container_alone() {
    if !ready_with(NEEDS) {
        return;
    }
    let mut bundle = Bundle::new("while :; do :; done");
    // A tenth of one processor: a loop waits most of the time.
    bundle.set(
        "/linux/resources/cpu",
        json!({"quota": 10_000, "period": 100_000}),
    );
    bundle.create().ok();
    let cgroup = bundle.unified().unwrap();
    let stalled = || -> u64 {
        let pressure = read(&cgroup, "cpu.pressure");
        let total = pressure.lines().next().unwrap().rsplit_once("total=");
        total.unwrap().1.parse().unwrap()
    };
    let before = stalled();
    bundle.start().ok();
    eventually("a second of stall, in microseconds", || {
        stalled() > before + 1_000_000
    });
    for file in ["memory.pressure", "io.pressure"] {
        assert!(read(&cgroup, file).starts_with("some avg10="), "{file}");
    }
    bundle.call(&["delete", "--force", &bundle.id]).ok();
    bundle.assert_gone();
}

#[test]
fn privileged_cgroup_kill_ends_what_no_signal_by_pid_could_catch() {
    if !ready_with(NEEDS) {
        return;
    }
    // Every process replaces itself by two and goes: a list of pids is old when it has been read.
    let mut bundle = Bundle::new("breed() { breed & breed & }; breed; sleep 1000");
    bundle.config["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .retain(|n| n["type"] != "pid");
    bundle.set("/linux/resources/pids", json!({"limit": 64}));
    bundle.create().ok();
    bundle.start().ok();
    let cgroup = bundle.unified().unwrap();
    assert!(cgroup.join("cgroup.kill").exists());
    eventually("many processes", || {
        read(&cgroup, "pids.current").parse::<u32>().unwrap() > 16
    });
    bundle.call(&["delete", "--force", &bundle.id]).ok();
    bundle.assert_gone();
}

#[test]
fn privileged_an_oom_group_dies_whole() {
    if !ready_with(NEEDS) {
        return;
    }
    // dd has one buffer of its block size, which is more than the limit.
    let script = "dd if=/dev/zero of=/dev/null bs=100M count=1 2>/dev/null; echo survived";
    for (group, code, out) in [("0", 0, "survived"), ("1", 137, "")] {
        let mut bundle = Bundle::new(script);
        bundle.set("/linux/resources/memory", json!({"limit": 33_554_432}));
        bundle.set(
            "/linux/resources/unified",
            json!({"memory.oom.group": group}),
        );
        let done = bundle.run();
        assert_eq!((done.code, done.out.as_str()), (code, out), "{done:?}");
        bundle.assert_gone();
    }
}

#[test]
fn privileged_a_frozen_container_stands_still_and_goes_on() {
    if !ready_with(NEEDS) {
        return;
    }
    let bundle = Bundle::new("while :; do echo tick; sleep 0.05; done");
    bundle.create().ok();
    bundle.start().ok();
    let cgroup = bundle.unified().unwrap();
    let freeze = |value| std::fs::write(cgroup.join("cgroup.freeze"), value).unwrap();
    eventually("ticks", || bundle.output().lines().count() > 2);
    freeze("1");
    eventually("frozen", || {
        read(&cgroup, "cgroup.events").contains("frozen 1")
    });
    assert_eq!(bundle.status(), "paused");
    let stopped_at = bundle.output();
    let until = Instant::now() + Duration::from_millis(300);
    while Instant::now() < until {
        assert_eq!(bundle.output(), stopped_at, "a frozen process wrote");
        std::thread::yield_now();
    }
    freeze("0");
    eventually("more ticks", || {
        bundle.output().len() > stopped_at.len() + 10
    });
    assert_eq!(bundle.status(), "running");
}

#[test]
fn privileged_exec_cgroup_on_v2_stays_below_the_container() {
    if !ready_with(NEEDS) {
        return;
    }
    let bundle = Bundle::new("sleep 1000");
    bundle.create().ok();
    bundle.start().ok();
    let cgroup = bundle.unified().unwrap();
    let show = ["cat", "/proc/self/cgroup"];
    let exec = |path: &str| {
        let mut args = vec!["exec", "--cgroup", path, bundle.id.as_str()];
        args.extend(show);
        bundle.call(&args)
    };
    for bad in ["../", "/../x", "sub/../../b", ""] {
        exec(bad).fails(255, "cgroup");
    }
    exec("sub").fails(255, "no such file or directory");
    std::fs::create_dir(cgroup.join("sub")).unwrap();
    assert_eq!(exec("/sub").ok(), "0::/sub");
    bundle.call(&["delete", "--force", &bundle.id]).ok();
    bundle.assert_gone();
}
