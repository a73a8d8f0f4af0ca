//! Time namespaces: clocks set, joined, refused.

use serde_json::json;

use super::bundle::{Bundle, ready};
use super::userns::{mapped, namespace, own_namespace};

const READ: &str = "cat /proc/self/timens_offsets; cat /proc/uptime";

fn with_time(mut bundle: Bundle) -> Bundle {
    bundle.set("/linux/namespaces/-", json!({"type": "time"}));
    bundle.set(
        "/linux/timeOffsets",
        json!({"monotonic": {"secs": 7881, "nanosecs": 2_718_281},
               "boottime": {"secs": 1_000_000, "nanosecs": 3_141_519}}),
    );
    bundle
}

/// The words of a line that begins with `name`.
fn words<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
    let line = text.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().collect()
}

#[track_caller]
fn assert_shifted(text: &str) {
    assert_eq!(words(text, "monotonic"), ["monotonic", "7881", "2718281"]);
    assert_eq!(words(text, "boottime"), ["boottime", "1000000", "3141519"]);
    // The program itself lives by these clocks, and not only its children.
    let uptime: f64 = text
        .lines()
        .last()
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    assert!(uptime > 1_000_000.0, "{text}");
}

#[test]
fn privileged_clocks_are_set_with_and_without_a_user_namespace() {
    if !ready() {
        return;
    }
    for bundle in [Bundle::new(READ), mapped(READ)] {
        assert_shifted(&with_time(bundle).run().ok());
    }
    let mut plain = Bundle::new("cat /proc/self/timens_offsets");
    plain.set("/linux/namespaces/-", json!({"type": "time"}));
    plain.set("/linux/timeOffsets", json!(null));
    let out = plain.run().ok();
    assert_eq!(words(&out, "monotonic"), ["monotonic", "0", "0"]);
}

#[test]
fn privileged_exec_and_a_second_container_live_by_the_same_clocks() {
    if !ready() {
        return;
    }
    for make in [Bundle::new, mapped] {
        let first = with_time(make("sleep 1000"));
        first.create().ok();
        first.start().ok();
        assert_shifted(&first.exec(&["sh", "-c", READ]).ok());
        assert_ne!(namespace(first.pid(), "time"), own_namespace("time"));
        let mut second = make(READ);
        let path = format!("/proc/{}/ns/time", first.pid());
        second.set("/linux/namespaces/-", json!({"type": "time", "path": path}));
        assert_shifted(&second.run().ok());
    }
}

#[test]
fn privileged_hooks_of_the_host_keep_the_host_s_clocks() {
    if !ready() {
        return;
    }
    let mut bundle = with_time(Bundle::new("true"));
    let script = "grep -q 'monotonic *0 *0' /proc/self/timens_offsets";
    bundle.set(
        "/hooks",
        json!({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]}]}),
    );
    bundle.run().ok();
}

#[test]
fn privileged_clocks_out_of_range_are_refused_before_anything_is_made() {
    if !ready() {
        return;
    }
    for (offsets, words) in [
        (json!({"boottime": {"secs": -1_000_000_000}}), "boottime"),
        (json!({"monotonic": {"secs": i64::MAX}}), "monotonic"),
        (json!({"monotonic": {"secs": i64::MIN}}), "monotonic"),
        (
            json!({"monotonic": {"secs": 4_611_686_019i64}}),
            "monotonic",
        ),
        (json!({"realtime": {"secs": 1}}), "realtime"),
        (json!({"boottime": {"nanosecs": 1_000_000_000}}), "nanosecs"),
    ] {
        let mut bundle = Bundle::new("true");
        bundle.set("/linux/namespaces/-", json!({"type": "time"}));
        bundle.set("/linux/timeOffsets", offsets);
        let text = bundle.create().fails(1, words);
        assert!(text.contains("linux.timeOffsets"), "{text}");
        assert!(!bundle.state_root().exists());
        bundle.assert_gone();
    }
    let mut stray = Bundle::new("true");
    stray.set("/linux/timeOffsets", json!({"monotonic": {"secs": 1}}));
    stray.create().fails(1, "needs a time namespace");
}
