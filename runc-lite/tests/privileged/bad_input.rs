//! Documents and bundles that are wrong: an error on standard error and in the log, and nothing left.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::{Value, json};

use super::bundle::{Bundle, process_file, ready};

/// `create` fails with `words` on standard error and in one JSON line of the log, and made nothing at all.
#[track_caller]
fn refused(bundle: &Bundle, words: &str) {
    let done = bundle.call(&["create", "--bundle", ".", &bundle.id]);
    done.fails(1, words);
    let log = bundle.log();
    let line: Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    assert_eq!(line["level"], "error");
    assert!(line["msg"].as_str().unwrap().contains(words), "{log}");
    assert!(line["time"].as_str().is_some());
    assert!(!bundle.state_root().join(&bundle.id).exists());
    bundle.assert_gone();
}

#[test]
fn privileged_documents_that_are_none_are_refused() {
    if !ready() {
        return;
    }
    let bundle = Bundle::new("true");
    let path = bundle.dir.path().join("config.json");
    refused(&bundle, "config.json: no such file or directory");
    for (text, words) in [
        (String::new(), "is not an OCI runtime document: EOF"),
        ("{".to_owned(), "is not an OCI runtime document: EOF"),
        ("[]".to_owned(), "is not an OCI runtime document"),
        ("null".to_owned(), "is not an OCI runtime document"),
        ("{}".to_owned(), "ociVersion is missing"),
        (
            "{\"ociVersion\": \"1.0.0\"} trailing".to_owned(),
            "trailing characters",
        ),
        ("\u{feff}{}".to_owned(), "is not an OCI runtime document"),
        (
            format!("{{\"x\": {}1{}}}", "[".repeat(200_000), "]".repeat(200_000)),
            "ociVersion is missing",
        ),
        (
            format!("{{\"process\": {}", "{\"user\":".repeat(200_000)),
            "is not an OCI runtime document",
        ),
        (
            format!("{{\"mounts\": {}", "[".repeat(200_000)),
            "is not an OCI runtime document",
        ),
        (
            format!("{{\"x\": \"{}\"}}", "y".repeat(16 << 20)),
            "is larger than 16777216 bytes",
        ),
    ] {
        fs::write(&path, text).unwrap();
        refused(&bundle, words);
    }
    fs::write(&path, b"{\"ociVersion\": \"\xff\xfe\"}").unwrap();
    refused(&bundle, "is not an OCI runtime document");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    refused(&bundle, "config.json is not a file");
    fs::remove_dir(&path).unwrap();
    // Nobody will ever write into this one.
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &path, kind, rustix::fs::Mode::RUSR, 0).unwrap();
    refused(&bundle, "config.json is not a file");
}

#[test]
fn privileged_wrong_types_and_contradictions_are_refused_by_field() {
    if !ready() {
        return;
    }
    for (pointer, value, words) in [
        ("/process/args", json!("true"), "invalid type: string"),
        ("/process/user/uid", json!("root"), "invalid type: string"),
        ("/process/user/uid", json!(-1), "invalid value"),
        ("/process/terminal", json!(1), "invalid type: integer"),
        (
            "/process/rlimits",
            json!([{"type": "RLIMIT_NOFILE"}]),
            "missing field",
        ),
        ("/mounts", json!({}), "invalid type: map"),
        ("/mounts", json!([["/mnt"]]), "invalid type: sequence"),
        ("/root", json!(["rootfs"]), "invalid type: sequence"),
        ("/process/user", json!([]), "invalid type: sequence"),
        ("/hooks", json!([]), "invalid type: sequence"),
        ("/linux/resources", json!([]), "invalid type: sequence"),
        (
            "/linux/namespaces",
            json!([{"type": "galaxy"}]),
            "linux.namespaces[0].type: \"galaxy\"",
        ),
        ("/linux/namespaces", json!([{"type": "pid"}]), "mount"),
        (
            "/process/capabilities",
            json!({"bounding": ["CAP_X"]}),
            "process.capabilities.bounding[0]: \"CAP_X\"",
        ),
        (
            "/linux/sysctl",
            json!({"kernel.panic": "1"}),
            "linux.sysctl",
        ),
        (
            "/linux/sysctl",
            json!({"kernel.shmmax": 1}),
            "invalid type: integer",
        ),
        ("/annotations", json!({"a": 1}), "invalid type: integer"),
        ("/ociVersion", json!("0.1.0"), "ociVersion: \"0.1.0\""),
        (
            "/linux/personality",
            json!({"domain": "LINUX", "flags": ["X"]}),
            "linux.personality.flags[0]",
        ),
        (
            "/process/ioPriority",
            json!({"class": "IOPRIO_CLASS_BE", "priority": 9}),
            "process.ioPriority.priority",
        ),
        (
            "/process/scheduler",
            json!({"policy": "SCHED_FIFO"}),
            "process.scheduler.priority",
        ),
        (
            "/process/execCPUAffinity",
            json!({"final": "1-"}),
            "process.execCPUAffinity.final",
        ),
        ("/linux/memoryPolicy", json!({}), "linux.memoryPolicy.mode"),
        (
            "/linux/rootfsPropagation",
            json!("both"),
            "linux.rootfsPropagation",
        ),
        (
            "/linux/devices",
            json!([{"path": "/dev/x", "type": "c", "major": 1 << 20, "minor": 0}]),
            "linux.devices[0].major",
        ),
    ] {
        let mut bundle = Bundle::new("true");
        bundle.set(pointer, value);
        bundle.write();
        refused(&bundle, words);
    }
    let bundle = Bundle::new("true");
    let text = bundle
        .config
        .to_string()
        .replacen('{', "{\"hostname\": \"a\", ", 1);
    fs::write(bundle.dir.path().join("config.json"), text).unwrap();
    refused(&bundle, "duplicate field `hostname`");
}

#[test]
fn privileged_a_root_that_is_no_directory_is_refused_before_anything_is_made() {
    if !ready() {
        return;
    }
    let mut bundle = Bundle::new("true");
    let path = |name: &str| bundle.dir.path().join(name);
    fs::write(path("file"), "").unwrap();
    symlink("rootfs", path("link")).unwrap();
    symlink("nowhere", path("dangling")).unwrap();
    symlink("loop", path("loop")).unwrap();
    for (root, words) in [
        ("missing", "root.path: \"missing\" does not exist"),
        ("file", "root.path: \"file\" is not a directory"),
        (
            "file/below",
            "root.path: \"file/below\" leads through something that is no directory",
        ),
        ("link", "root.path: \"link\" is a symbolic link"),
        ("dangling", "root.path: \"dangling\" is a symbolic link"),
        (
            "loop/below",
            "root.path: \"loop/below\" leads through links without end",
        ),
        ("", "root.path is missing"),
    ] {
        bundle.set("/root/path", json!(root));
        bundle.write();
        refused(&bundle, words);
    }
    // A link on the way is the host's business.
    symlink(bundle.dir.path(), bundle.dir.path().join("here")).unwrap();
    bundle.set("/root/path", json!("here/rootfs"));
    bundle.run().ok();
    let gone = bundle.call(&["create", "--bundle", "/no/such/bundle", &bundle.id]);
    gone.fails(1, "/no/such/bundle");
    bundle.assert_gone();
}

#[test]
fn privileged_a_process_document_of_exec_is_bounded_and_checked_too() {
    if !ready() {
        return;
    }
    let bundle = Bundle::new("sleep 1000");
    bundle.create().ok();
    bundle.start().ok();
    let exec = |file: &str| bundle.call(&["exec", "--process", file, &bundle.id]);
    for (document, words) in [
        (json!([]), "is not an OCI runtime document"),
        (json!({"args": []}), "process.args"),
        (
            json!({"args": ["true"], "cwd": "/", "x": "y".repeat(16 << 20)}),
            "is larger than",
        ),
        (
            json!({"args": ["true"], "cwd": "/", "scheduler": {"policy": "X"}}),
            "process.scheduler.policy",
        ),
        (
            json!({"args": ["true"], "cwd": "/", "capabilities": {"ambient": ["X"]}}),
            "process.capabilities.ambient[0]",
        ),
    ] {
        exec(&process_file(&bundle, &document)).fails(255, words);
    }
    exec("/no/such/file").fails(255, "/no/such/file");
}

#[test]
fn privileged_a_create_without_the_systemd_it_is_to_ask_leaves_nothing() {
    if !ready() {
        return;
    }
    let mut bundle = Bundle::new("true");
    let path = format!("system.slice:axil:{}", bundle.id);
    bundle.set("/linux/cgroupsPath", json!(path));
    bundle.write();
    let call = |args: &[&str]| {
        let mut command = bundle.command(&["--systemd-cgroup"]);
        command.args(args);
        command.env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent/bus");
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), text)
    };
    let (code, text) = call(&["create", &bundle.id]);
    assert_eq!(code, Some(1));
    assert!(text.contains("systemd cannot be reached"), "{text}");
    bundle.assert_gone();
}
