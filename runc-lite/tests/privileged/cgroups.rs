//! Limits as the kernel shows them, and the end of everything in a cgroup.

use std::path::Path;
use std::process::Command;

use runc_lite::cgroup::{CgroupDirectory, CgroupRecord};
use runc_lite::config::Resources;
use serde_json::json;

use super::bundle::{Bundle, eventually, ready, unique};
use super::guard::{Need, ready_with};

#[test]
fn privileged_limits_are_visible_in_v1_files() {
    if !ready_with(&[Need::CgroupV1]) {
        return;
    }
    let mut bundle = Bundle::new("sleep 1000");
    bundle.set(
        "/linux/resources",
        json!({
            "devices": [{"allow": false, "access": "rwm"},
                        {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"}],
            "memory": {"limit": 67_108_864, "reservation": 33_554_432, "swap": 67_108_864, "swappiness": 10,
                       "kernelTCP": 16_777_216},
            "cpu": {"shares": 512, "quota": 50_000, "period": 100_000, "cpus": "0", "mems": "0"},
            "pids": {"limit": 42},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 0}]
        }),
    );
    bundle.create().ok();
    let read = |controller: &str, file: &str| {
        let path = bundle.cgroup(controller).unwrap().join(file);
        std::fs::read_to_string(path)
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    assert_eq!(read("memory", "memory.limit_in_bytes"), "67108864");
    assert_eq!(read("memory", "memory.soft_limit_in_bytes"), "33554432");
    assert_eq!(read("memory", "memory.swappiness"), "10");
    // The one limit of kernel memory that v1 still has; files of cgroup v1 go one by one.
    let tcp = "memory.kmem.tcp.limit_in_bytes";
    if Path::new("/sys/fs/cgroup/memory").join(tcp).exists() {
        assert_eq!(read("memory", tcp), "16777216");
        let flags = ["update", "--kernel-memory-tcp", "32M", &bundle.id];
        bundle.call(&flags).ok();
        assert_eq!(read("memory", tcp), "33554432");
    } else {
        let log = bundle.log();
        assert!(log.contains("memory.kernelTCP: 16777216 ignored"), "{log}");
    }
    assert_eq!(read("cpu", "cpu.shares"), "512");
    assert_eq!(read("cpu", "cpu.cfs_quota_us"), "50000");
    assert_eq!(read("cpu", "cpu.cfs_period_us"), "100000");
    assert_eq!(read("cpuset", "cpuset.cpus"), "0");
    assert_eq!(read("pids", "pids.max"), "42");
    let devices = read("devices", "devices.list");
    assert!(
        devices.contains("c 1:3 rwm") && devices.contains("c 10:229 rw"),
        "{devices}"
    );
    assert!(!devices.contains("a *:* rwm"), "{devices}");
    let own = std::fs::read_to_string(format!("/proc/{}/cgroup", bundle.pid())).unwrap();
    let member = format!("/{}", bundle.id);
    assert!(own.lines().all(|line| line.ends_with(&member)), "{own}");
    bundle.call(&["delete", &bundle.id]).ok();
    bundle.assert_gone();
}

#[test]
fn privileged_a_limit_without_its_controller_is_refused() {
    if !ready_with(&[Need::CgroupV1]) || Path::new("/sys/fs/cgroup/hugetlb").exists() {
        return;
    }
    let mut bundle = Bundle::new("true");
    bundle.set(
        "/linux/resources/hugepageLimits",
        json!([{"pageSize": "2MB", "limit": 1}]),
    );
    bundle.create().fails(1, "no hugetlb cgroup controller");
    bundle.assert_gone();
}

#[test]
fn privileged_a_unit_name_without_the_systemd_driver_is_refused() {
    if !ready_with(&[Need::CgroupfsDriver]) {
        return;
    }
    let mut bundle = Bundle::new("true");
    bundle.set("/linux/cgroupsPath", json!("system.slice:axil:x"));
    bundle.create().fails(1, "needs --systemd-cgroup");
    bundle.assert_gone();
}

#[test]
fn privileged_a_pids_limit_bites() {
    if !ready() {
        return;
    }
    let mut bundle = Bundle::new("for i in $(seq 20); do sleep 100 & done");
    bundle.set("/linux/resources/pids", json!({"limit": 8}));
    let done = bundle.run();
    assert!(done.err.contains("can't fork"), "{done:?}");
    bundle.assert_gone();
}

#[test]
fn privileged_an_occupied_cgroup_is_refused() {
    if !ready_with(&[Need::CgroupfsDriver]) {
        return;
    }
    let first = Bundle::new("sleep 1000");
    first.create().ok();
    let mut second = Bundle::new("true");
    second.set("/linux/cgroupsPath", json!(format!("/{}", first.id)));
    second.create().fails(1, "is not empty");
    assert_eq!(first.status(), "created");
}

#[test]
fn privileged_the_whole_container_dies_without_a_pid_namespace_of_its_own() {
    if !ready() {
        return;
    }
    for how in [
        ["kill", "KILL"],
        ["delete", "--force"],
        ["kill-all", "KILL"],
    ] {
        let mut bundle = Bundle::new("for i in 1 2 3; do setsid sleep 1000 & done; sleep 1000");
        bundle.config["linux"]["namespaces"]
            .as_array_mut()
            .unwrap()
            .retain(|n| n["type"] != "pid");
        bundle.create().ok();
        bundle.start().ok();
        let procs = bundle.processes().join("cgroup.procs");
        let count = || {
            std::fs::read_to_string(&procs)
                .unwrap_or_default()
                .lines()
                .count()
        };
        eventually("five processes", || count() >= 4);
        match how[0] {
            "kill" => bundle.call(&["kill", &bundle.id, how[1]]).ok(),
            "kill-all" => bundle.call(&["kill", "-a", &bundle.id, how[1]]).ok(),
            _ => bundle.call(&["delete", how[1], &bundle.id]).ok(),
        };
        eventually("no process", || count() == 0);
        bundle.call(&["delete", "--force", &bundle.id]).ok();
        bundle.assert_gone();
    }
}

#[test]
fn privileged_a_frozen_container_can_be_deleted() {
    if !ready() {
        return;
    }
    let bundle = Bundle::new("sleep 1000");
    bundle.create().ok();
    bundle.start().ok();
    match (bundle.unified(), bundle.cgroup("freezer")) {
        (Some(unified), _) => std::fs::write(unified.join("cgroup.freeze"), "1").unwrap(),
        (None, Some(freezer)) => std::fs::write(freezer.join("freezer.state"), "FROZEN").unwrap(),
        (None, None) => panic!("no freezer to test with"),
    }
    eventually("frozen", || bundle.status() == "paused");
    bundle.exec(&["true"]).fails(255, "paused container");
    bundle.call(&["delete", "--force", &bundle.id]).ok();
    bundle.assert_gone();
}

/// The v2 back end on the unified tree of a hybrid host: everything but the limits, which need controllers.
#[test]
fn privileged_the_unified_tree_kills_guards_devices_and_is_removed() {
    if !ready() {
        return;
    }
    let mount_point = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
        .map(Path::new)
        .into_iter()
        .find(|path| path.join("cgroup.controllers").exists());
    let Some(mount_point) = mount_point else {
        println!("no unified tree here");
        return;
    };
    let group = runc_lite::cgroup::open(CgroupRecord {
        version: 2,
        directories: vec![CgroupDirectory {
            controllers: Vec::new(),
            path: mount_point.join(unique()).join("leaf"),
            mount_point: mount_point.to_owned(),
        }],
        unit: None,
    });
    let path = group.record().directories[0].path.clone();
    group.refuse_occupied().unwrap();
    let rules: Resources =
        serde_json::from_value(json!({"devices": [{"allow": false, "access": "rwm"}],
                                      "hugepageLimits": [{"pageSize": "2MB", "limit": 0}]}))
        .unwrap();
    group.prepare(&rules, &mut Vec::new()).unwrap();
    let missing: Resources = serde_json::from_value(json!({"pids": {"limit": 3}})).unwrap();
    if !path.join("pids.max").exists() {
        let error = group.prepare(&missing, &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("pids"), "{error}");
    }
    // A process that moves in opens devices as the rules allow.
    let script =
        "read line; cat /dev/zero | head -c 1 | wc -c; head -c 1 /dev/kmsg; exec sleep 1000";
    let mut child = Command::new("/bin/sh")
        .args(["-c", script])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    group
        .join(i32::try_from(child.id()).unwrap(), None)
        .unwrap();
    assert_eq!(group.processes(), [i32::try_from(child.id()).unwrap()]);
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"go\n").unwrap();
    let mut line = String::new();
    let mut stderr = std::io::BufReader::new(child.stderr.take().unwrap());
    std::io::BufRead::read_line(&mut stderr, &mut line).unwrap();
    assert!(
        line.contains("kmsg") && line.contains("not permitted"),
        "{line}"
    );
    assert!(group.refuse_occupied().is_err());
    group.set_frozen(true).unwrap();
    assert!(group.is_frozen());
    group.set_frozen(false).unwrap();
    std::fs::create_dir(path.join("below")).unwrap();
    let reaper = std::thread::spawn(move || child.wait());
    group.remove().unwrap();
    assert!(!path.exists());
    reaper.join().unwrap().unwrap();
    std::fs::remove_dir(path.parent().unwrap()).unwrap();
    group.remove().unwrap();
}
