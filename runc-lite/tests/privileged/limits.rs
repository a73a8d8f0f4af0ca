//! The verbs that act on a running container's cgroup: update, pause, resume, ps, events.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;

use runc_lite::cgroup::Hierarchies;
use serde_json::{Value, json};

use super::bundle::{Bundle, eventually, ready};

fn has_v1() -> bool {
    let version = Hierarchies::of_this_host().unwrap().version();
    if version != Some(1) {
        println!("the host has no cgroup v1 controllers");
    }
    version == Some(1)
}

fn running(script: &str, resources: Value) -> Bundle {
    let mut bundle = Bundle::new(script);
    bundle.set("/linux/resources", resources);
    bundle.create().ok();
    bundle.start().ok();
    bundle
}

fn value(bundle: &Bundle, controller: &str, file: &str) -> String {
    let path = bundle.cgroup(controller).unwrap().join(file);
    std::fs::read_to_string(path)
        .unwrap_or_default()
        .trim()
        .to_owned()
}

#[track_caller]
fn update(bundle: &Bundle, arguments: &[&str]) {
    let mut all = vec!["update", bundle.id.as_str()];
    all.extend(arguments);
    assert_eq!(bundle.call(&all).ok(), "");
}

/// `update -r -` with `document` on standard input.
fn update_by_document(bundle: &Bundle, document: &Value) -> (bool, String) {
    let mut child = bundle
        .command(&["update", "-r", "-", &bundle.id])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let text = document.to_string();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(text.as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.success(), error)
}

#[test]
fn privileged_an_update_changes_what_it_names_and_nothing_else() {
    if !ready() || !has_v1() {
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
    let memory = |file: &str| value(&bundle, "memory", file);
    let cpu = |file: &str| value(&bundle, "cpu", file);
    update(&bundle, &["--memory", "50M"]);
    assert_eq!(memory("memory.limit_in_bytes"), "52428800");
    assert_eq!(memory("memory.soft_limit_in_bytes"), "25165824");
    update(&bundle, &["--memory-reservation", "33554432"]);
    assert_eq!(memory("memory.soft_limit_in_bytes"), "33554432");
    update(&bundle, &["--memory-swap", "96468992"]);
    assert_eq!(memory("memory.memsw.limit_in_bytes"), "96468992");
    // Both up past the old sum, both down below the old memory: the order of the writes turns.
    update(&bundle, &["--memory", "200M", "--memory-swap", "300M"]);
    assert_eq!(memory("memory.limit_in_bytes"), "209715200");
    assert_eq!(memory("memory.memsw.limit_in_bytes"), "314572800");
    update(&bundle, &["--memory", "30M", "--memory-swap", "50M"]);
    assert_eq!(memory("memory.limit_in_bytes"), "31457280");
    assert_eq!(memory("memory.memsw.limit_in_bytes"), "52428800");
    update(&bundle, &["--memory", "-1"]);
    assert_eq!(memory("memory.limit_in_bytes"), "9223372036854771712");
    assert_eq!(memory("memory.memsw.limit_in_bytes"), "9223372036854771712");

    update(&bundle, &["--cpu-period", "900000"]);
    assert_eq!(cpu("cpu.cfs_quota_us"), "500000");
    assert_eq!(cpu("cpu.cfs_period_us"), "900000");
    update(&bundle, &["--cpu-quota", "-1", "--cpu-share", "200"]);
    assert_eq!(cpu("cpu.cfs_quota_us"), "-1");
    assert_eq!(cpu("cpu.shares"), "200");
    // A short period is below the old quota, a burst above the old quota: each waits for the other.
    update(
        &bundle,
        &[
            "--cpu-period",
            "10000",
            "--cpu-quota",
            "3000",
            "--cpu-burst",
            "2000",
        ],
    );
    assert_eq!(cpu("cpu.cfs_period_us"), "10000");
    assert_eq!(cpu("cpu.cfs_quota_us"), "3000");
    assert_eq!(cpu("cpu.cfs_burst_us"), "2000");
    update(&bundle, &["--cpuset-cpus", "0", "--pids-limit", "0"]);
    assert_eq!(value(&bundle, "cpuset", "cpuset.cpus"), "0");
    assert_eq!(value(&bundle, "pids", "pids.max"), "1");
    update(&bundle, &["--pids-limit", "-1"]);
    assert_eq!(value(&bundle, "pids", "pids.max"), "max");
    for idle in ["1", "0"] {
        update(&bundle, &["--cpu-idle", idle]);
        assert_eq!(cpu("cpu.idle"), idle);
    }
    let (done, error) = update_by_document(
        &bundle,
        &json!({"memory": {"limit": 33_554_432, "kernel": 5}, "pids": {"limit": 20}}),
    );
    assert!(done, "{error}");
    assert_eq!(memory("memory.limit_in_bytes"), "33554432");
    assert_eq!(value(&bundle, "pids", "pids.max"), "20");
    assert!(
        bundle.log().contains("memory.kernel: 5 ignored"),
        "{}",
        bundle.log()
    );
    bundle.call(&["delete", "--force", &bundle.id]).ok();
    bundle.assert_gone();
}

#[test]
fn privileged_an_update_that_fails_leaves_every_old_value() {
    if !ready() || !has_v1() {
        return;
    }
    let bundle = running(
        "sleep 1000",
        json!({
            "devices": [{"allow": false, "access": "rwm"}],
            "memory": {"limit": 33_554_432, "swap": 67_108_864},
            "cpu": {"shares": 100, "idle": 0},
            "pids": {"limit": 20}
        }),
    );
    let all = || {
        [
            value(&bundle, "memory", "memory.limit_in_bytes"),
            value(&bundle, "memory", "memory.memsw.limit_in_bytes"),
            value(&bundle, "cpu", "cpu.shares"),
            value(&bundle, "cpu", "cpu.idle"),
            value(&bundle, "pids", "pids.max"),
        ]
    };
    let before = all();
    // The last file written refuses its value, after all the others took theirs.
    let document = json!({
        "memory": {"limit": 134_217_728, "swap": 268_435_456},
        "cpu": {"shares": 300, "cpus": "0"},
        "pids": {"limit": 30},
        "blockIO": {"throttleReadBpsDevice": [{"major": 4095, "minor": 1, "rate": 5}]}
    });
    let (done, error) = update_by_document(&bundle, &document);
    assert!(!done && error.contains("4095:1 5"), "{error}");
    assert_eq!(all(), before);
    for value in ["-1", "2"] {
        bundle
            .call(&["update", "--cpu-idle", value, &bundle.id])
            .fails(1, "cpu.idle");
    }
    let (done, error) = update_by_document(&bundle, &json!({"unified": {"memory.high": "1"}}));
    assert!(!done && error.contains("needs cgroup v2"), "{error}");
    bundle
        .call(&["update", "--l3-cache-schema", "L3:0=1", &bundle.id])
        .fails(1, "Intel RDT/CAT");
    bundle.call(&["kill", &bundle.id, "KILL"]).ok();
    eventually("stopped", || bundle.status() == "stopped");
    bundle
        .call(&["update", "--pids-limit", "9", &bundle.id])
        .fails(1, "container not running");
}

#[test]
fn privileged_device_rules_change_while_the_container_runs() {
    if !ready() || !has_v1() {
        return;
    }
    let deny = json!({"allow": false, "access": "rwm"});
    let bundle = running(
        "while true; do head -c 1 /dev/zero > /dev/null || echo denied; done",
        json!({"devices": [deny, {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"}]}),
    );
    let list = || value(&bundle, "devices", "devices.list");
    assert!(list().contains("c 10:229 rw"), "{}", list());
    // What others allowed since is not taken back by an update that changes no rule.
    let directory = bundle.cgroup("devices").unwrap();
    std::fs::write(directory.join("devices.allow"), "c 195:0 rw").unwrap();
    let same = json!({
        "devices": [deny, {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"}],
        "pids": {"limit": 50}
    });
    assert!(update_by_document(&bundle, &same).0);
    assert!(list().contains("c 195:0 rw"), "{}", list());
    for _ in 0..10 {
        let other = json!({"devices": [deny, {"allow": true, "type": "c", "major": 10, "minor": 200, "access": "r"}]});
        assert!(update_by_document(&bundle, &other).0);
        assert!(update_by_document(&bundle, &same).0);
    }
    assert!(
        !list().contains("10:200") && !list().contains("195:0"),
        "{}",
        list()
    );
    assert!(
        list().contains("c 10:229 rw") && list().contains("c 1:3 rwm"),
        "{}",
        list()
    );
    assert_eq!(
        bundle.output(),
        "",
        "a default device was denied for a moment"
    );
}

#[test]
fn privileged_a_hole_in_device_rules_is_refused_on_v1_before_anything_is_made() {
    if !ready() || !has_v1() {
        return;
    }
    let mut bundle = Bundle::new("true");
    bundle.set(
        "/linux/resources/devices",
        json!([{"allow": false, "access": "rwm"},
               {"allow": true, "type": "c", "major": 10, "access": "rw"},
               {"allow": false, "type": "c", "major": 10, "minor": 229, "access": "w"}]),
    );
    bundle.create().fails(1, "cannot take \"c 10:229 w\" out");
    bundle.assert_gone();
}

#[test]
fn privileged_pause_and_resume_are_seen_in_the_state() {
    if !ready() {
        return;
    }
    let bundle = Bundle::new("sleep 1000");
    bundle.create().ok();
    bundle.start().ok();
    bundle
        .call(&["resume", &bundle.id])
        .fails(1, "container not paused");
    bundle.call(&["pause", &bundle.id]).ok();
    assert_eq!(bundle.status(), "paused");
    bundle
        .call(&["pause", &bundle.id])
        .fails(1, "container not running");
    bundle
        .call(&["pause", "nonexistent"])
        .fails(1, "does not exist");
    // An update leaves it paused.
    bundle
        .call(&["update", "--pids-limit", "30", &bundle.id])
        .ok();
    assert_eq!(bundle.status(), "paused");
    bundle.call(&["resume", &bundle.id]).ok();
    assert_eq!(bundle.status(), "running");
    bundle.call(&["kill", &bundle.id, "KILL"]).ok();
    eventually("stopped", || bundle.status() == "stopped");
    bundle
        .call(&["pause", &bundle.id])
        .fails(1, "container not running");
}

#[test]
fn privileged_ps_shows_the_processes_of_the_container() {
    if !ready() {
        return;
    }
    let bundle = Bundle::new("sleep 997 & sleep 998; true");
    bundle.create().ok();
    bundle.start().ok();
    let numbers = || -> Vec<i32> {
        serde_json::from_str(&bundle.call(&["ps", "-f", "json", &bundle.id]).ok()).unwrap()
    };
    eventually("three processes", || numbers().len() == 3);
    assert!(numbers().contains(&bundle.pid()));
    let table = bundle.call(&["ps", &bundle.id]).ok();
    assert!(
        table.starts_with("UID ") && table.contains("sleep 997"),
        "{table}"
    );
    assert_eq!(table.lines().count(), 4, "{table}");
    let chosen = bundle.call(&["ps", &bundle.id, "-e", "-x"]).ok();
    assert!(chosen.contains("PID TTY"), "{chosen}");
    bundle
        .call(&["ps", &bundle.id, "--no-such-option"])
        .fails(1, "ps: exit status");
    bundle
        .call(&["ps", "-f", "yaml", &bundle.id])
        .fails(1, "not table or json");
    bundle.call(&["kill", &bundle.id, "KILL"]).ok();
    eventually("stopped", || bundle.status() == "stopped");
    eventually("empty", || numbers().is_empty());
    let table = bundle.call(&["ps", &bundle.id]).ok();
    assert_eq!(table.lines().count(), 1, "{table}");
}

#[test]
fn privileged_stats_have_the_form_of_runc() {
    if !ready() {
        return;
    }
    let bundle = Bundle::new("sleep 1000");
    bundle.create().ok();
    bundle.start().ok();
    let line = bundle.call(&["events", "--stats", &bundle.id]).ok();
    let prefix = format!("{{\"type\":\"stats\",\"id\":\"{}\",\"data\":{{", bundle.id);
    assert!(line.starts_with(&prefix), "{line}");
    let event: Value = serde_json::from_str(&line).unwrap();
    let number = |pointer: &str| event.pointer(pointer).and_then(Value::as_u64);
    if has_v1() {
        assert!(number("/data/memory/usage/usage").unwrap() > 0, "{line}");
        assert!(number("/data/cpu/usage/total").unwrap() > 0, "{line}");
        assert_eq!(number("/data/pids/current"), Some(1), "{line}");
        assert!(
            !event["data"]["cpuset"]["cpus"]
                .as_array()
                .unwrap()
                .is_empty()
        );
    }
    // The container's own network namespace has its own loopback and nothing of the host.
    let interfaces = event["data"]["network_interfaces"].as_array().unwrap();
    assert_eq!(interfaces.len(), 1, "{line}");
    assert_eq!(interfaces[0]["Name"], "lo");
    assert!(event["data"].get("intel_rdt").is_none());
    bundle
        .call(&["events", "--interval", "0s", &bundle.id])
        .fails(1, "greater than 0");
    bundle.call(&["kill", &bundle.id, "KILL"]).ok();
    eventually("stopped", || bundle.status() == "stopped");
    bundle
        .call(&["events", "--stats", &bundle.id])
        .fails(1, "is not running");
}

#[test]
fn privileged_events_come_at_intervals_tell_of_oom_and_end_with_the_container() {
    if !ready() || !has_v1() {
        return;
    }
    let bundle = running(
        "sleep 1000",
        json!({"devices": [{"allow": false, "access": "rwm"}],
               "memory": {"limit": 33_554_432, "swap": 33_554_432}}),
    );
    let mut child = bundle
        .command(&["events", "--interval", "50ms", &bundle.id])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || -> Option<Value> {
        let line = lines.next()?.unwrap();
        Some(serde_json::from_str(&line).unwrap())
    };
    for _ in 0..3 {
        assert_eq!(next().unwrap()["type"], "stats");
    }
    // A process of the container takes more memory than there is.
    bundle.exec(&["sh", "-c", "dd if=/dev/zero of=/dev/null bs=100M count=1"]);
    let oom = std::iter::from_fn(&mut next).find(|event| event["type"] == "oom");
    let oom = oom.expect("an oom event before the end");
    assert_eq!(oom, json!({"type": "oom", "id": bundle.id}));
    bundle.call(&["delete", "--force", &bundle.id]).ok();
    while next().is_some() {}
    assert!(child.wait().unwrap().success());
    let mut error = String::new();
    child.stderr.unwrap().read_to_string(&mut error).unwrap();
    assert_eq!(error, "");
    bundle.assert_gone();
}
