//! The verbs one after the other, and what they say when they cannot.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use serde_json::json;

use super::bundle::{Bundle, adopter, eventually, parent_of, ready, runtime};

#[test]
fn privileged_run_gives_output_and_exit_code_and_leaves_nothing() {
    if !ready() {
        return;
    }
    let bundle = Bundle::new("echo out; echo err >&2; exit 7");
    let done = bundle.run();
    assert_eq!(
        (done.code, done.out.as_str(), done.err.as_str()),
        (7, "out", "err")
    );
    bundle.assert_gone();
    assert_eq!(bundle.log(), "");
}

#[test]
fn privileged_run_tells_a_deadly_signal_and_forwards_signals() {
    if !ready() {
        return;
    }
    let bundle = Bundle::new("kill -KILL $$; sleep 60");
    // A process cannot kill the init of its own PID namespace: it is a child here.
    let mut bundle = bundle;
    bundle.set(
        "/process/args",
        json!(["sh", "-c", "sh -c 'kill -KILL $$'; exit $?"]),
    );
    assert_eq!(bundle.run().code, 137);
    let bundle = Bundle::new("trap 'exit 5' TERM; echo ready; while :; do sleep 0.1; done");
    bundle.write();
    let mut command = bundle.command(&["run", &bundle.id]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let out = child.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(5));
    bundle.assert_gone();
}

#[test]
fn privileged_create_start_kill_delete() {
    if !ready() {
        return;
    }
    let bundle = Bundle::new("echo started; exec sleep 1000");
    assert_eq!(bundle.create().ok(), "");
    assert_eq!(bundle.status(), "created");
    let pid = bundle.pid();
    assert_eq!(bundle.state()["pid"], pid);
    assert_eq!(
        parent_of(pid),
        adopter(),
        "init is an orphan once create is done"
    );
    bundle.start().ok();
    assert_eq!(bundle.status(), "running");
    eventually("output", || bundle.output() == "started");
    bundle
        .start()
        .fails(1, "cannot start an already running container");
    bundle
        .call(&["delete", &bundle.id])
        .fails(1, "not stopped: running");
    assert!(bundle.call(&["list"]).ok().contains(&bundle.id));
    bundle
        .call(&["kill", &bundle.id, "0x9"])
        .fails(1, "unknown signal");
    bundle.call(&["kill", &bundle.id, "KILL"]).ok();
    eventually("stopped", || bundle.status() == "stopped");
    bundle
        .call(&["kill", &bundle.id, "KILL"])
        .fails(1, "container not running");
    bundle
        .start()
        .fails(1, "cannot start a container that has stopped");
    bundle.call(&["delete", &bundle.id]).ok();
    bundle.assert_gone();
    bundle
        .call(&["state", &bundle.id])
        .fails(1, "does not exist");
    bundle
        .call(&["delete", &bundle.id])
        .fails(1, "does not exist");
    bundle.call(&["delete", "--force", &bundle.id]).ok();
    assert!(bundle.log().contains("\"level\":\"error\""));
}

#[test]
fn privileged_a_created_container_is_deleted_without_force() {
    if !ready() {
        return;
    }
    let bundle = Bundle::new("true");
    bundle.create().ok();
    bundle.call(&["delete", &bundle.id]).ok();
    bundle.assert_gone();
}

#[test]
fn privileged_a_program_that_is_not_there_fails_create() {
    if !ready() {
        return;
    }
    for (args, words) in [
        (
            json!(["nope"]),
            "exec: \"nope\": executable file not found in $PATH",
        ),
        (json!(["/bin/nope"]), "exec: \"/bin/nope\": no such file"),
        (
            json!(["/etc/passwd"]),
            "exec: \"/etc/passwd\": permission denied",
        ),
        (json!(["/etc"]), "exec: \"/etc\": permission denied"),
    ] {
        let mut bundle = Bundle::new("");
        bundle.set("/process/args", args);
        bundle.create().fails(1, words);
        assert!(bundle.log().contains("exec: "));
        bundle.assert_gone();
    }
}

#[test]
fn privileged_a_program_that_cannot_run_fails_start() {
    if !ready() {
        return;
    }
    let mut bundle = Bundle::new("");
    let script = bundle.rootfs().join("script");
    std::fs::write(&script, "#!/no/interpreter\n").unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    bundle.set("/process/args", json!(["/script"]));
    bundle.create().ok();
    bundle
        .start()
        .fails(1, "exec /script: no such file or directory");
    eventually("stopped", || bundle.status() == "stopped");
}

#[test]
fn privileged_two_creates_of_one_id() {
    if !ready() {
        return;
    }
    let bundle = Bundle::new("sleep 1000");
    bundle.write();
    let other = format!("{}/second", bundle.dir.path().display());
    let mut children: Vec<_> = (0..4)
        .map(|n| {
            let mut command = bundle.command(&["create", &bundle.id]);
            command.stderr(std::fs::File::create(format!("{other}{n}")).unwrap());
            command.stdout(Stdio::null()).spawn().unwrap()
        })
        .collect();
    let codes: Vec<_> = children
        .iter_mut()
        .map(|c| c.wait().unwrap().code().unwrap())
        .collect();
    assert_eq!(
        codes.iter().filter(|code| **code == 0).count(),
        1,
        "{codes:?}"
    );
    for (n, code) in codes.iter().enumerate() {
        let text = std::fs::read_to_string(format!("{other}{n}")).unwrap();
        let told = text.contains("already exists") || text.contains("is not empty");
        assert!(*code == 0 || told, "{text}");
    }
    assert_eq!(bundle.status(), "created");
}

#[test]
fn privileged_bad_documents_change_nothing() {
    if !ready() {
        return;
    }
    let version = runc_lite::cgroup::Hierarchies::of_this_host()
        .unwrap()
        .version();
    for (pointer, value, words) in [
        (
            "/linux/namespaces/-",
            json!({"type": "user"}),
            "linux.uidMappings",
        ),
        (
            "/process/apparmorProfile",
            json!("axil-test"),
            "process.apparmorProfile",
        ),
        (
            "/process/selinuxLabel",
            json!("a:b:c"),
            "process.selinuxLabel",
        ),
        (
            "/linux/seccomp",
            json!({"defaultAction": "X"}),
            "linux.seccomp.defaultAction",
        ),
        (
            "/linux/resources/unified",
            json!({"memory.high": "1"}),
            "unified",
        ),
        ("/process/terminal", json!(true), "--console-socket"),
        (
            "/mounts/-",
            json!({"destination": "/x", "type": "no-such-fs"}),
            "mounts[4]",
        ),
        (
            "/mounts/-",
            json!({"destination": "/x", "type": "bind", "source": "/no/such", "options": ["bind"]}),
            "mounts[4]",
        ),
        (
            "/mounts/-",
            json!({"destination": "/x", "type": "tmpfs", "options": ["size=banana"]}),
            "size",
        ),
        ("/root/path", json!("no/such"), "no/such"),
        (
            "/linux/namespaces/-",
            json!({"type": "network", "path": "/no/such"}),
            "namespaces[6]",
        ),
    ] {
        // Which module is active differs from host to host; the refusal is for those without.
        let module = std::path::Path::new("/sys/module/apparmor/parameters/enabled");
        if pointer.contains("apparmor") && module.exists() {
            continue;
        }
        if pointer.contains("unified") && version == Some(2) {
            continue;
        }
        let mut bundle = Bundle::new("true");
        bundle.set(pointer, value);
        bundle.create().fails(1, words);
        bundle.assert_gone();
    }
}

#[test]
fn privileged_options_that_are_refused_say_why() {
    if !ready() {
        return;
    }
    let mut bundle = Bundle::new("true");
    bundle.set("/linux/cgroupsPath", json!("/x"));
    bundle.write();
    bundle
        .call(&["--systemd-cgroup", "create", &bundle.id])
        .fails(1, "slice:prefix:name");
    bundle
        .call(&["create", "--no-pivot", &bundle.id])
        .fails(1, "--no-pivot");
    bundle
        .call(&["frobnicate"])
        .fails(1, "No help topic for 'frobnicate'");
    for id in ["../x", "a/b", ".", "..", "", "a\nb", ".seccomp-cache"] {
        bundle
            .call(&["create", id])
            .fails(1, "invalid container id");
    }
    assert!(!bundle.state_root().join("x").exists());
}

/// Takes the descriptor that comes over a socket.
pub(crate) fn receive_descriptor(listener: &UnixListener) -> OwnedFd {
    let (stream, _) = listener.accept().unwrap();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = rustix::net::RecvAncillaryBuffer::new(&mut space);
    let mut name = [0u8; 64];
    let mut parts = [std::io::IoSliceMut::new(&mut name)];
    let flags = rustix::net::RecvFlags::CMSG_CLOEXEC;
    rustix::net::recvmsg(stream.as_fd(), &mut parts, &mut control, flags).unwrap();
    control
        .drain()
        .find_map(|message| match message {
            rustix::net::RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        })
        .expect("a descriptor comes along")
}

/// Reads until `words` were seen; the other end of a terminal answers EIO when it is closed.
fn read_until(master: &OwnedFd, words: &str) -> String {
    let mut text = String::new();
    let mut buffer = [0u8; 256];
    while !text.contains(words) {
        match rustix::io::read(master, &mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(length) => text.push_str(&String::from_utf8_lossy(&buffer[..length])),
        }
    }
    text
}

#[test]
fn privileged_a_terminal_reaches_the_console_socket() {
    if !ready() {
        return;
    }
    let mut bundle =
        Bundle::new("tty; ls -l /dev/console; stat -c %t:%T /dev/console; echo done; sleep 1000");
    bundle.set("/process/terminal", json!(true));
    bundle.set("/process/consoleSize", json!({"height": 33, "width": 99}));
    bundle.write();
    let listener = UnixListener::bind(bundle.dir.path().join("tty.sock")).unwrap();
    bundle
        .call(&["create", "--console-socket", "tty.sock", &bundle.id])
        .ok();
    let master = receive_descriptor(&listener);
    let size = rustix::termios::tcgetwinsize(&master).unwrap();
    assert_eq!((size.ws_row, size.ws_col), (33, 99));
    bundle.start().ok();
    let text = read_until(&master, "done\r\n");
    assert!(
        text.contains("/dev/pts/0") && text.contains("88:0"),
        "{text}"
    );
    // As the kernel made it (ONLCR): who shows a terminal that is in raw mode needs the return.
    assert!(text.contains("done\r\n"), "{text:?}");
    // A later process gets a terminal of its own.
    let args = [
        "exec",
        "-d",
        "-t",
        "--console-socket",
        "tty.sock",
        &bundle.id,
        "sh",
        "-c",
        "tty; echo end",
    ];
    bundle.call(&args).ok();
    let text = read_until(&receive_descriptor(&listener), "end");
    assert!(text.contains("/dev/pts/1"), "{text}");
}

#[test]
fn privileged_features_and_version_are_told() {
    if !ready() {
        return;
    }
    let bundle = Bundle::new("true");
    let features: serde_json::Value =
        serde_json::from_str(&bundle.call(&["features"]).ok()).unwrap();
    assert!(
        features["mountOptions"]
            .as_array()
            .unwrap()
            .contains(&json!("rro"))
    );
    assert_eq!(features["linux"]["cgroup"]["systemd"], true);
    assert_eq!(
        features["linux"]["mountExtensions"]["idmap"]["enabled"],
        true
    );
    assert!(bundle.call(&["--version"]).ok().contains("spec:"));
    bundle.call(&["list"]).fails(1, "no such file");
    assert!(!bundle.state_root().exists(), "list makes no root");
}

#[test]
fn privileged_pause_holds_a_pid_namespace_and_reaps() {
    if !ready() {
        return;
    }
    let mut pod = Bundle::new("");
    std::fs::write(pod.rootfs().join("pause"), "").unwrap();
    let runtime = runtime();
    pod.set("/process/args", json!(["/pause"]));
    pod.set(
        "/mounts/-",
        json!({"destination": "/pause", "type": "bind", "source": runtime, "options": ["bind", "ro"]}),
    );
    // A development build is linked dynamically.
    for library in ["/lib", "/lib64"] {
        let source = std::fs::canonicalize(library).unwrap_or_default();
        if source.is_dir() {
            pod.set(
                "/mounts/-",
                json!({"destination": library, "type": "bind", "source": source,
                                        "options": ["rbind", "ro"]}),
            );
        }
    }
    pod.create().ok();
    pod.start().ok();
    let mut member =
        Bundle::new("readlink /proc/self; (setsid sh -c 'sleep 0.2' &); sleep 0.5; ps");
    let namespaces = member.config["linux"]["namespaces"].as_array_mut().unwrap();
    for kind in ["pid", "ipc", "network", "uts"] {
        let file = if kind == "network" { "net" } else { kind };
        let entry = namespaces.iter_mut().find(|n| n["type"] == kind).unwrap();
        entry["path"] = json!(format!("/proc/{}/ns/{file}", pod.pid()));
    }
    let out = member.run().ok();
    assert!(out.contains("/pause") || out.contains("pause"), "{out}");
    assert!(
        !out.contains("1 root") || out.lines().any(|l| l.trim().starts_with("1 ")),
        "{out}"
    );
    assert!(
        !out.contains("[sleep]") && !out.contains("<defunct>"),
        "zombie left: {out}"
    );
    member.assert_gone();
    assert_eq!(pod.status(), "running");
    pod.call(&["kill", &pod.id, "TERM"]).ok();
    eventually("pause ends on SIGTERM", || pod.status() == "stopped");
}

#[test]
fn privileged_a_container_that_runs_in_the_foreground_can_be_deleted_by_others() {
    if !ready() {
        return;
    }
    let bundle = Bundle::new("sleep 1000");
    bundle.write();
    let mut command = bundle.command(&["run", &bundle.id]);
    let mut run = command.stdout(Stdio::null()).spawn().unwrap();
    let status = || bundle.call(&["state", &bundle.id]);
    eventually("running", || status().out.contains("\"running\""));
    bundle
        .call(&["delete", &bundle.id])
        .fails(1, "that is not stopped: running");
    bundle.call(&["delete", "--force", &bundle.id]).ok();
    assert_eq!(run.wait().unwrap().code(), Some(137));
    bundle.assert_gone();
}
