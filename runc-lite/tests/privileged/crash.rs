//! The runtime killed at any point, and process numbers that changed hands.

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::bundle::{Bundle, ready};

#[test]
fn privileged_a_create_killed_anywhere_can_be_deleted() {
    if !ready() {
        return;
    }
    let mut bundle = Bundle::new("sleep 1000");
    bundle.set(
        "/linux/seccomp",
        json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []}),
    );
    bundle.write();
    // A busy machine takes many times as long as an idle one.
    let begin = Instant::now();
    bundle.create().ok();
    let mut whole = begin.elapsed().max(Duration::from_millis(16));
    bundle.call(&["delete", "--force", &bundle.id]).ok();
    let mut survived = 0;
    for step in 0..60u32 {
        let mut command = bundle.command(&["create", &bundle.id]);
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // A sweep over the time create takes, not a wait for anything.
        std::thread::sleep(whole * step / 40);
        let _ = child.kill();
        let _ = child.wait();
        survived += usize::from(bundle.state_root().join(&bundle.id).exists());
        bundle.call(&["delete", "--force", &bundle.id]).ok();
        bundle.assert_gone();
        // The one that was measured may have been luckier than all the others.
        if survived == 0 && step % 15 == 14 {
            whole *= 3;
        }
    }
    assert!(survived > 0, "no create was caught at work");
}

#[test]
fn privileged_a_reused_pid_is_never_signalled() {
    if !ready() {
        return;
    }
    let bundle = Bundle::new("sleep 1000");
    bundle.create().ok();
    bundle.start().ok();
    let path = bundle.state_root().join(&bundle.id).join("state.json");
    let mut record: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    // As if the number now belonged to this test.
    let stranger = std::process::id();
    record["init"] = json!({"pid": stranger, "start_time": 1});
    let honest = std::fs::read(&path).unwrap();
    std::fs::write(&path, record.to_string()).unwrap();
    assert_eq!(bundle.status(), "stopped");
    bundle
        .call(&["kill", &bundle.id, "KILL"])
        .fails(1, "container not running");
    bundle.exec(&["true"]).fails(255, "stopped");
    std::fs::write(&path, honest).unwrap();
    assert_eq!(bundle.status(), "running");
}

#[test]
fn privileged_a_damaged_record_is_told_and_can_be_forced_away() {
    if !ready() {
        return;
    }
    let bundle = Bundle::new("sleep 1000");
    let directory = bundle.state_root().join(&bundle.id);
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("state.json"), "{").unwrap();
    bundle.call(&["state", &bundle.id]).fails(1, "state.json");
    bundle.call(&["delete", &bundle.id]).fails(1, "state.json");
    bundle.call(&["delete", "--force", &bundle.id]).ok();
    assert!(!directory.exists());
}
