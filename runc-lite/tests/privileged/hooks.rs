//! Hooks of every kind: order, namespaces, state, directory, environment, failures and timeouts.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::bundle::{Bundle, eventually, ready};

const KINDS: [&str; 6] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

fn shell(script: &str) -> Value {
    json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]})
}

#[test]
fn privileged_hooks_run_in_their_order_with_state_directory_and_namespaces() {
    if !ready() {
        return;
    }
    let mut bundle = Bundle::new("true");
    // startContainer hooks see the container's files only.
    let place = |kind: &str| match kind {
        "startContainer" => "/log".to_owned(),
        _ => bundle.dir.path().join("log").display().to_string(),
    };
    let mut hooks = serde_json::Map::new();
    for kind in KINDS {
        let script = format!(
            "exec >> {}; echo {kind}; cat; echo; pwd -P; readlink /proc/self/ns/mnt; readlink /proc/self/ns/net",
            place(kind)
        );
        hooks.insert(kind.to_owned(), json!([shell(&script)]));
    }
    bundle.set("/hooks", Value::Object(hooks));
    bundle.run().ok();
    let mut text = std::fs::read_to_string(bundle.dir.path().join("log")).unwrap();
    text.push_str(&std::fs::read_to_string(bundle.rootfs().join("log")).unwrap());
    let lines: Vec<&str> = text.lines().collect();
    let order: Vec<&str> = lines.chunks(5).map(|chunk| chunk[0]).collect();
    assert_eq!(
        order,
        [
            "prestart",
            "createRuntime",
            "createContainer",
            "poststart",
            "poststop",
            "startContainer"
        ]
    );
    let own = |kind| {
        std::fs::read_link(format!("/proc/thread-self/ns/{kind}"))
            .unwrap()
            .display()
            .to_string()
    };
    let bundle_path = bundle.dir.path().canonicalize().unwrap();
    for chunk in lines.chunks(5) {
        let (kind, state) = (chunk[0], serde_json::from_str::<Value>(chunk[1]).unwrap());
        assert_eq!(state["id"], bundle.id.as_str(), "{kind}");
        assert_eq!(
            state["bundle"],
            bundle.dir.path().to_str().unwrap(),
            "{kind}"
        );
        let inside = matches!(kind, "createContainer" | "startContainer");
        let status = match kind {
            "poststart" => "running",
            "poststop" => "stopped",
            "startContainer" => "created",
            _ => "creating",
        };
        assert_eq!(state["status"], status, "{kind}");
        // As seen from the namespace the hook runs in.
        match kind {
            "poststop" => assert_eq!(state.get("pid"), None),
            _ if inside => assert_eq!(state["pid"], 1, "{kind}"),
            _ => assert!(state["pid"].as_i64().unwrap() > 1, "{kind}"),
        }
        let directory = match kind {
            "startContainer" => "/".to_owned(),
            "createContainer" => bundle_path.join("rootfs").display().to_string(),
            _ => bundle_path.display().to_string(),
        };
        assert_eq!(chunk[2], directory, "{kind}");
        assert_eq!(chunk[3] != own("mnt"), inside, "{kind}");
        assert_eq!(chunk[4] != own("net"), inside, "{kind}");
    }
    bundle.assert_gone();
}

#[test]
fn privileged_a_hook_that_fails_fails_the_verb_and_leaves_nothing() {
    if !ready() {
        return;
    }
    for kind in &KINDS[..5] {
        let mut bundle = Bundle::new("echo ran; sleep 1000");
        let after = bundle.dir.path().join("after");
        let stopped = shell(&format!("cat > {}", after.display()));
        bundle.set(
            "/hooks",
            json!({*kind: [shell("true"), shell("echo no luck >&2; exit 3")], "poststop": [stopped]}),
        );
        let text = bundle
            .run()
            .fails(1, &format!("error running {kind} hook #1: /bin/sh"));
        assert!(text.contains("exit status 3: no luck"), "{text}");
        assert!(bundle.log().contains("no luck"), "{}", bundle.log());
        bundle.assert_gone();
        // Its container is destroyed, then the poststop hooks run.
        let state: Value = serde_json::from_slice(&std::fs::read(&after).unwrap()).unwrap();
        assert_eq!(state["status"], "stopped", "{kind}");
    }
}

#[test]
fn privileged_a_poststop_hook_that_fails_is_logged_and_the_others_run() {
    if !ready() {
        return;
    }
    let mut bundle = Bundle::new("true");
    let ran = bundle.dir.path().join("ran");
    let second = shell(&format!("touch {}", ran.display()));
    bundle.set("/hooks", json!({"poststop": [shell("exit 9"), second]}));
    bundle.run().ok();
    assert!(ran.exists());
    let log = bundle.log();
    assert!(
        log.contains("error running poststop hook #0") && log.contains("warning"),
        "{log}"
    );
    bundle.assert_gone();
}

#[test]
fn privileged_a_poststart_hook_that_fails_stops_the_container_of_start() {
    if !ready() {
        return;
    }
    let mut bundle = Bundle::new("sleep 1000");
    bundle.set("/hooks", json!({"poststart": [{"path": "/bin/false"}]}));
    bundle.create().ok();
    bundle
        .start()
        .fails(1, "error running poststart hook #0: /bin/false");
    eventually("stopped", || bundle.status() == "stopped");
    bundle.call(&["delete", &bundle.id]).ok();
    bundle.assert_gone();
}

#[test]
fn privileged_a_hook_that_takes_too_long_is_killed_with_its_children() {
    if !ready() {
        return;
    }
    for kind in &KINDS[..4] {
        let mut bundle = Bundle::new("true");
        // The whole group is the hook's: what it started goes with it.
        let mut hook = shell("sleep 123456 & wait");
        hook["timeout"] = json!(1);
        if *kind == "startContainer" {
            hook["env"] = json!(["PATH=/bin"]);
        }
        bundle.set("/hooks", json!({*kind: [hook]}));
        let started = Instant::now();
        bundle.run().fails(
            1,
            &format!("error running {kind} hook #0: /bin/sh: not done after 1 s"),
        );
        assert!(started.elapsed() < Duration::from_secs(20));
        bundle.assert_gone();
    }
}

#[test]
fn privileged_start_container_hooks_inherit_the_environment_of_the_process() {
    if !ready() {
        return;
    }
    let mut bundle = Bundle::new("cat /hooked");
    let script = "echo $ONE $HOME $0 > /hooked";
    bundle.set("/process/env", json!(["PATH=/bin", "ONE=two"]));
    bundle.set(
        "/hooks",
        json!({"startContainer": [
            {"path": "/bin/busybox", "args": ["sh", "-c", script, "argv0"]}
        ]}),
    );
    assert_eq!(bundle.run().ok(), "two /root argv0");
}

#[test]
fn privileged_hooks_that_cannot_be_run_as_written_are_refused_before_anything_is_made() {
    if !ready() {
        return;
    }
    for (hooks, field) in [
        (
            json!({"createRuntime": [{"path": "bin/true"}]}),
            "hooks.createRuntime[0].path",
        ),
        (
            json!({"prestart": [{"path": "/bin/true"}, {"path": ""}]}),
            "hooks.prestart[1].path",
        ),
        (
            json!({"poststop": [{"path": "/bin/true", "timeout": 0}]}),
            "hooks.poststop[0].timeout",
        ),
        (
            json!({"poststart": [{"path": "/bin/true", "timeout": -5}]}),
            "hooks.poststart[0].timeout",
        ),
        (
            json!({"startContainer": [{"path": "/bin/true", "args": ["a\u{0}b"]}]}),
            "hooks.startContainer[0].args[0]",
        ),
        (json!({"prestart": "x"}), "invalid type"),
    ] {
        let mut bundle = Bundle::new("true");
        bundle.set("/hooks", hooks);
        bundle.run().fails(1, field);
        assert!(!bundle.state_root().exists());
        bundle.assert_gone();
    }
}
