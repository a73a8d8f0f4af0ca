//! The verbs that act on a running container's cgroup, where that is cgroup v2: update, ps, events, and exec
//! into a container that has made cgroups of its own. The VM lane runs these with both drivers.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};

use super::bundle::{Bundle, eventually};
use super::guard::{Need, ready_with, systemd_driver};

const NEEDS: &[Need] = &[Need::CgroupV2];

fn read(directory: &Path, file: &str) -> String {
    let path = directory.join(file);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.trim().to_owned()
}

fn running(script: &str, resources: Value) -> Bundle {
    let mut bundle = Bundle::new(script);
    bundle.set("/linux/resources", resources);
    bundle.create().ok();
    bundle.start().ok();
    bundle
}

fn update(bundle: &Bundle, document: &Value) -> (bool, String) {
    let mut child = bundle
        .command(&["update", "-r", "-", &bundle.id])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(document.to_string().as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.success(), error)
}

#[test]
fn privileged_an_update_on_v2_changes_what_it_names() {
    if !ready_with(NEEDS) {
        return;
    }
    let bundle = running(
        "sleep 1000",
        json!({
            "devices": [{"allow": false, "access": "rwm"}],
            "memory": {"limit": 33_554_432, "reservation": 25_165_824},
            "cpu": {"shares": 100, "quota": 500_000, "period": 1_000_000},
            "pids": {"limit": 20}
        }),
    );
    let cgroup = bundle.unified().unwrap();
    let flags = |flags: &[&str]| {
        let mut all = vec!["update", bundle.id.as_str()];
        all.extend(flags);
        bundle.call(&all).ok();
    };
    flags(&["--memory", "50M", "--memory-swap", "96468992"]);
    assert_eq!(read(&cgroup, "memory.max"), "52428800");
    assert_eq!(
        read(&cgroup, "memory.swap.max"),
        (96_468_992 - 52_428_800).to_string()
    );
    assert_eq!(read(&cgroup, "memory.low"), "25165824");
    // The sum stays what it was.
    flags(&["--memory", "60M"]);
    assert_eq!(
        read(&cgroup, "memory.swap.max"),
        (96_468_992 - 62_914_560).to_string()
    );
    flags(&["--memory", "-1", "--memory-swap", "-1"]);
    assert_eq!(read(&cgroup, "memory.max"), "max");
    assert_eq!(read(&cgroup, "memory.swap.max"), "max");
    flags(&["--cpu-period", "900000"]);
    assert_eq!(
        read(&cgroup, "cpu.max"),
        format!("{} 900000", quota(500_000, 900_000))
    );
    flags(&["--cpu-quota", "600000", "--cpu-share", "200"]);
    assert_eq!(
        read(&cgroup, "cpu.max"),
        format!("{} 900000", quota(600_000, 900_000))
    );
    flags(&["--cpu-quota", "-1"]);
    assert_eq!(read(&cgroup, "cpu.max"), "max 900000");
    flags(&["--pids-limit", "0"]);
    assert_eq!(read(&cgroup, "pids.max"), "1");
    flags(&["--cpuset-cpus", "0"]);
    assert_eq!(read(&cgroup, "cpuset.cpus"), "0");
    for idle in ["1", "0"] {
        flags(&["--cpu-idle", idle]);
        assert_eq!(read(&cgroup, "cpu.idle"), idle);
    }
    let (done, error) = update(
        &bundle,
        &json!({"unified": {"cpu.max": "max 100000", "cpu.weight": "16", "pids.max": "10"}}),
    );
    assert!(done, "{error}");
    assert_eq!(read(&cgroup, "cpu.weight"), "16");
    assert_eq!(read(&cgroup, "pids.max"), "10");
    bundle.call(&["delete", "--force", &bundle.id]).ok();
    bundle.assert_gone();
}

/// What a driver makes of a quota: systemd counts in whole percents of a processor.
fn quota(quota: u64, period: u64) -> String {
    let whole = (quota * 1_000_000 / period).next_multiple_of(10_000);
    if systemd_driver() && !(quota * 1_000_000 / period).is_multiple_of(10_000) {
        return (whole * period / 1_000_000).to_string();
    }
    quota.to_string()
}

#[test]
fn privileged_an_update_on_v2_that_fails_leaves_every_old_value() {
    if !ready_with(NEEDS) {
        return;
    }
    let bundle = running(
        "sleep 1000",
        json!({
            "devices": [{"allow": false, "access": "rwm"}],
            "memory": {"limit": 33_554_432, "swap": 67_108_864},
            "pids": {"limit": 20}
        }),
    );
    let cgroup = bundle.unified().unwrap();
    let all = || ["memory.max", "memory.swap.max", "io.max"].map(|file| read(&cgroup, file));
    let before = all();
    let (done, error) = update(
        &bundle,
        &json!({"memory": {"limit": 134_217_728, "swap": 268_435_456},
                "blockIO": {"throttleReadBpsDevice": [{"major": 4095, "minor": 1, "rate": 5}]}}),
    );
    assert!(!done && error.contains("4095:1"), "{error}");
    assert_eq!(all(), before);
    let low = json!({"memory": {"limit": 1024, "checkBeforeUpdate": true}});
    let (done, error) = update(&bundle, &low);
    assert!(!done && error.contains("rejecting memory limit"), "{error}");
    let low = json!({"memory": {"limit": 1024, "swap": 2048, "checkBeforeUpdate": true}});
    let (done, error) = update(&bundle, &low);
    assert!(
        !done && error.contains("rejecting memory+swap limit"),
        "{error}"
    );
    assert_eq!(bundle.status(), "running");
}

#[test]
fn privileged_the_device_program_of_a_cgroup_is_replaced_in_one_step() {
    if !ready_with(NEEDS) {
        return;
    }
    let deny = json!({"allow": false, "access": "rwm"});
    let kmsg = |allow: bool| json!({"devices": [deny, {"allow": allow, "type": "c", "major": 1, "minor": 11, "access": "w"}]});
    let mut bundle =
        Bundle::new("while true; do head -c 1 /dev/zero > /dev/null || echo denied; done");
    bundle.set(
        "/linux/devices",
        json!([{"path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11, "fileMode": 0o666}]),
    );
    bundle.set("/linux/resources", kmsg(false));
    bundle.create().ok();
    bundle.start().ok();
    // For writing: to read it takes a capability as well.
    let opens = || bundle.exec(&["sh", "-c", ": > /dev/kmsg"]).code == 0;
    assert!(!opens());
    for _ in 0..10 {
        assert!(update(&bundle, &kmsg(true)).0);
        assert!(update(&bundle, &kmsg(false)).0);
    }
    assert!(!opens());
    assert!(update(&bundle, &kmsg(true)).0);
    assert!(opens());
    // An order that only a program can express: everything of major 1 but one.
    let hole = json!({"devices": [deny,
        {"allow": true, "type": "c", "major": 1, "access": "rw"},
        {"allow": false, "type": "c", "major": 1, "minor": 11, "access": "w"}]});
    assert!(update(&bundle, &hole).0);
    assert!(!opens());
    assert_eq!(
        bundle.output(),
        "",
        "a default device was denied for a moment"
    );
    bundle.call(&["delete", "--force", &bundle.id]).ok();
    bundle.assert_gone();
}

#[test]
fn privileged_events_of_a_cgroup_on_v2_tell_pressure_and_oom() {
    if !ready_with(NEEDS) {
        return;
    }
    let bundle = running(
        "sleep 1000",
        json!({"devices": [{"allow": false, "access": "rwm"}],
               "memory": {"limit": 33_554_432, "swap": 33_554_432}}),
    );
    let line = bundle.call(&["events", "--stats", &bundle.id]).ok();
    let event: Value = serde_json::from_str(&line).unwrap();
    for pointer in [
        "/data/memory/usage/usage",
        "/data/pids/current",
        "/data/hugetlb/2MB/failcnt",
    ] {
        assert!(
            event.pointer(pointer).is_some_and(Value::is_number),
            "{pointer}: {line}"
        );
    }
    // Only what is not zero is told of pressure, as runc does; that it is measured is told.
    for controller in ["cpu", "memory", "blkio"] {
        assert!(event["data"][controller]["psi"].is_object(), "{line}");
    }
    let mut child = bundle
        .command(&["events", "--interval", "100ms", &bundle.id])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || -> Option<Value> {
        let line = lines.next()?.unwrap();
        Some(serde_json::from_str(&line).unwrap())
    };
    assert_eq!(next().unwrap()["type"], "stats");
    bundle.exec(&["sh", "-c", "dd if=/dev/zero of=/dev/null bs=100M count=1"]);
    let oom = std::iter::from_fn(&mut next).find(|event| event["type"] == "oom");
    assert_eq!(oom, Some(json!({"type": "oom", "id": bundle.id})));
    bundle.call(&["delete", "--force", &bundle.id]).ok();
    while next().is_some() {}
    assert!(child.wait().unwrap().success());
    bundle.assert_gone();
}

#[test]
fn privileged_exec_joins_init_in_a_cgroup_of_its_own() {
    if !ready_with(NEEDS) {
        return;
    }
    // As an init system does: everybody into a cgroup below, then the controllers are passed on.
    let mut bundle = Bundle::new(
        "mkdir /sys/fs/cgroup/init && echo 1 > /sys/fs/cgroup/init/cgroup.procs \
         && echo +pids > /sys/fs/cgroup/cgroup.subtree_control && echo ready; sleep 1000",
    );
    bundle.set(
        "/mounts/-",
        json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rw"]}),
    );
    bundle.create().ok();
    bundle.start().ok();
    eventually("an inner cgroup", || bundle.output().contains("ready"));
    let own = bundle.exec(&["cat", "/proc/self/cgroup"]).ok();
    assert_eq!(own, "0::/init");
    let pids: Vec<i32> =
        serde_json::from_str(&bundle.call(&["ps", "-f", "json", &bundle.id]).ok()).unwrap();
    assert!(pids.contains(&bundle.pid()), "{pids:?}");
    bundle.call(&["delete", "--force", &bundle.id]).ok();
    bundle.assert_gone();
}

#[test]
fn privileged_a_threaded_cgroup_is_refused_with_the_reason() {
    if !ready_with(&[Need::CgroupV2, Need::CgroupfsDriver]) {
        return;
    }
    let mut bundle = Bundle::new("true");
    let parent = Path::new("/sys/fs/cgroup").join(&bundle.id);
    let child = parent.join("threaded");
    std::fs::create_dir(&parent).unwrap();
    std::fs::create_dir(&child).unwrap();
    std::fs::write(child.join("cgroup.type"), "threaded").unwrap();
    bundle.set(
        "/linux/cgroupsPath",
        json!(format!("/{}/threaded", bundle.id)),
    );
    bundle.create().fails(1, "is threaded");
    bundle.set("/linux/cgroupsPath", json!(format!("/{}/other", bundle.id)));
    bundle.create().fails(1, "domain invalid");
    for left in [child, parent.join("other"), parent.clone()] {
        // The runtime removes what it made; the rest is ours.
        let _ = std::fs::remove_dir(left);
    }
    assert!(!parent.exists());
}
