//! podman as root.

use std::fs;

use axil_integration::engines::EngineLab;
use axil_integration::engines::podman::Podman;
use axil_integration::eventually::eventually;
use axil_integration::guard::Need;

const NEEDS: &[Need] = &[
    Need::Program("podman"),
    Need::Program("conmon"),
    Need::Program("criu"),
    Need::Program("script"),
];

/// Limits this machine's root may set, and the engine's own do not fit where hard limits cannot be raised.
fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.split_whitespace().nth(1))
        .unwrap_or_default()
}

#[test]
fn privileged_podman_runs_programs_and_tells_how_they_ended() {
    let Some(lab) = EngineLab::open(NEEDS) else {
        return;
    };
    let podman = Podman::as_root(&lab);
    assert_eq!(podman.run(&[], "echo hello").ok(), "hello");
    assert_eq!(podman.run(&[], "exit 7").code, 7);
    assert_eq!(
        podman
            .run_with_input(&["--interactive"], &["cat"], "in\n")
            .ok(),
        "in"
    );
    // podman reads the runtime's words: 127 and 126 are what a shell would say.
    podman
        .run_program(&[], &["/no/such"])
        .fails(127, "/no/such");
    podman.run_program(&[], &["no-such"]).fails(127, "no-such");
    podman
        .run_program(&[], &["/etc/passwd"])
        .fails(126, "/etc/passwd");
    lab.close();
}

#[test]
fn privileged_podman_lists_inspects_execs_stops_and_removes() {
    let Some(lab) = EngineLab::open(NEEDS) else {
        return;
    };
    let podman = Podman::as_root(&lab);
    // The shell sleeps in a child, so that SIGTERM is handled at once.
    let script = "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.1; done";
    let _ = podman.start("box", &["--hostname", "inside"], script).ok();
    assert_eq!(podman.inspect("box", "{{.State.Status}}"), "running");
    let runtime = podman.inspect("box", "{{.OCIRuntime}}");
    assert_eq!(runtime, lab.runtime().display().to_string());
    let list = podman
        .call(&["ps", "--format", "{{.Names}} {{.Status}}"])
        .ok();
    assert!(list.starts_with("box Up"), "{list}");
    let pid: i32 = podman.inspect("box", "{{.State.Pid}}").parse().unwrap();
    let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(cgroup.contains(lab.cgroup()), "{cgroup}");

    assert_eq!(podman.call(&["exec", "box", "hostname"]).ok(), "inside");
    assert_eq!(podman.call(&["exec", "box", "sh", "-c", "exit 3"]).code, 3);
    let user = podman
        .call(&["exec", "--user", "1000:2000", "box", "id"])
        .ok();
    assert!(user.starts_with("uid=1000(app) gid=2000"), "{user}");
    let place = [
        "exec",
        "--workdir",
        "/tmp",
        "--env",
        "A=b",
        "box",
        "sh",
        "-c",
        "pwd; echo $A",
    ];
    assert_eq!(podman.call(&place).ok(), "/tmp\nb");
    podman
        .call(&["exec", "box", "/no/such"])
        .fails(127, "/no/such");
    let top = podman.call(&["top", "box", "pid", "args"]).ok();
    assert!(top.contains("trap"), "{top}");
    let detached = podman.call(&[
        "exec",
        "--detach",
        "box",
        "sh",
        "-c",
        "echo made > /tmp/made",
    ]);
    let _ = detached.ok();
    eventually("the detached exec wrote its file", || {
        let answer = podman.call(&["exec", "box", "cat", "/tmp/made"]);
        (answer.out == "made").then_some(())
    });

    let _ = podman.call(&["stop", "--time", "10", "box"]).ok();
    assert_eq!(
        podman.inspect("box", "{{.State.Status}} {{.State.ExitCode}}"),
        "exited 5"
    );
    assert_eq!(podman.call(&["logs", "box"]).ok(), "up\nbye");
    let _ = podman.call(&["start", "box"]).ok();
    podman.call(&["rm", "box"]).fails(2, "running");
    let _ = podman.call(&["rm", "--force", "--time", "0", "box"]).ok();
    assert_eq!(podman.call(&["ps", "--all", "--quiet"]).ok(), "");
    lab.close();
}

#[test]
fn privileged_podman_signals_pauses_and_updates() {
    let Some(lab) = EngineLab::open(NEEDS) else {
        return;
    };
    let podman = Podman::as_root(&lab);
    let script = "trap 'echo usr1' USR1; while :; do sleep 0.1; done";
    let _ = podman
        .start("box", &["--memory", "64m", "--memory-swap", "64m"], script)
        .ok();
    let _ = podman.call(&["kill", "--signal", "USR1", "box"]).ok();
    eventually("the signal was handled", || {
        (podman.call(&["logs", "box"]).out == "usr1").then_some(())
    });
    let _ = podman.call(&["pause", "box"]).ok();
    assert_eq!(podman.inspect("box", "{{.State.Status}}"), "paused");
    let _ = podman.call(&["unpause", "box"]).ok();
    assert_eq!(podman.inspect("box", "{{.State.Status}}"), "running");
    let limit = [
        "exec",
        "box",
        "cat",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ];
    let v1 = std::path::Path::new("/sys/fs/cgroup/memory").exists();
    if v1 {
        assert_eq!(podman.call(&limit).ok(), (64 << 20).to_string());
    }
    let more = [
        "update",
        "--memory",
        "96m",
        "--memory-swap",
        "96m",
        "--cpu-shares",
        "700",
        "box",
    ];
    let _ = podman.call(&more).ok();
    if v1 {
        assert_eq!(podman.call(&limit).ok(), (96 << 20).to_string());
    }
    let _ = podman.call(&["kill", "box"]).ok();
    let _ = podman.call(&["wait", "box"]).ok();
    assert_eq!(podman.inspect("box", "{{.State.ExitCode}}"), "137");
    // There is no checkpoint, and podman is to find that out before it freezes anything.
    let _ = podman.call(&["start", "box"]).ok();
    let refused = podman.call(&["container", "checkpoint", "box"]);
    refused.fails(125, "does not support checkpoint");
    assert_eq!(podman.inspect("box", "{{.State.Status}}"), "running");
    let _ = podman.call(&["rm", "--force", "--time", "0", "box"]).ok();
    lab.close();
}

#[test]
fn privileged_podman_gives_users_and_capabilities() {
    let Some(lab) = EngineLab::open(NEEDS) else {
        return;
    };
    let podman = Podman::as_root(&lab);
    assert_eq!(
        podman.run(&["--user", "app"], "id -u; id -g").ok(),
        "1000\n1000"
    );
    let groups = podman
        .run(&["--user", "5", "--group-add", "7"], "id -G")
        .ok();
    assert!(groups.split(' ').any(|group| group == "7"), "{groups}");
    let options = ["--cap-drop=all", "--cap-add=net_raw", "--cap-add=chown"];
    let status = podman.run(&options, "cat /proc/self/status").ok();
    for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
        assert_eq!(field(&status, set), "0000000000002001", "{set}");
    }
    assert_eq!(field(&status, "Seccomp:"), "2");
    let options = [
        "--security-opt=seccomp=unconfined",
        "--security-opt=no-new-privileges",
    ];
    let status = podman.run(&options, "cat /proc/self/status").ok();
    assert_eq!(field(&status, "Seccomp:"), "0");
    assert_eq!(field(&status, "NoNewPrivs:"), "1");
    let options = [
        "--umask=0077",
        "--ulimit=nofile=100:200",
        "--oom-score-adj=500",
    ];
    let script = "umask; ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj";
    assert_eq!(podman.run(&options, script).ok(), "0077\n100\n200\n500");
    let privileged = podman
        .run(&["--privileged"], "ls /dev/fuse; ls -d /proc/kcore")
        .code;
    assert!(privileged <= 1);
    lab.close();
}

#[test]
fn privileged_podman_mounts_volumes_and_read_only_roots() {
    let Some(lab) = EngineLab::open(NEEDS) else {
        return;
    };
    let podman = Podman::as_root(&lab);
    let volume = lab.dir().join("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("file"), "data\n").unwrap();
    let at = |options: &str| format!("--volume={}:/v:{options}", volume.display());
    podman
        .run(&[&at("ro")], "cat /v/file; touch /v/new")
        .fails(1, "Read-only");
    assert_eq!(
        podman.run(&[&at("rw,rshared")], "touch /v/new; ls /v").ok(),
        "file\nnew"
    );
    assert_eq!(
        podman.run(&["--volume=named:/n"], "touch /n/x; ls /n").ok(),
        "x"
    );
    let _ = podman.call(&["volume", "rm", "named"]).ok();
    podman
        .run(&["--read-only"], "touch /x")
        .fails(1, "Read-only");
    assert_eq!(
        podman
            .run(&["--read-only"], "touch /tmp/x /run/x && echo made")
            .ok(),
        "made"
    );
    // A tmpfs starts with what the image has at its place.
    let scratch = podman.run(
        &["--tmpfs=/etc:size=1m,mode=755"],
        "touch /etc/x; ls /etc; stat -f -c %T /etc",
    );
    let scratch = scratch.ok();
    assert!(
        scratch.contains("passwd") && scratch.ends_with("tmpfs"),
        "{scratch}"
    );
    assert_eq!(
        podman
            .run(&["--shm-size=1m"], "stat -f -c %b /dev/shm")
            .ok(),
        "256"
    );
    let script = "ls -l /dev/fuse | cut -c1; cat /proc/sys/net/ipv4/ip_forward";
    let options = ["--device=/dev/fuse", "--sysctl=net.ipv4.ip_forward=0"];
    assert_eq!(podman.run(&options, script).ok(), "c\n0");
    lab.close();
}

#[test]
fn privileged_podman_limits_memory_cpu_and_processes() {
    let Some(lab) = EngineLab::open(NEEDS) else {
        return;
    };
    let podman = Podman::as_root(&lab);
    let options = [
        "--memory=64m",
        "--cpus=0.5",
        "--cpu-shares=300",
        "--pids-limit=33",
    ];
    let cgroup = "/sys/fs/cgroup";
    if std::path::Path::new("/sys/fs/cgroup/memory").exists() {
        let script = format!(
            "cat {cgroup}/memory/memory.limit_in_bytes {cgroup}/cpu/cpu.cfs_quota_us \
             {cgroup}/cpu/cpu.shares {cgroup}/pids/pids.max"
        );
        assert_eq!(
            podman.run(&options, &script).ok(),
            "67108864\n50000\n300\n33"
        );
    } else {
        let script = format!("cat {cgroup}/memory.max {cgroup}/cpu.max {cgroup}/pids.max");
        assert_eq!(
            podman.run(&options, &script).ok(),
            "67108864\n50000 100000\n33"
        );
    }
    // The limit is the kernel's: the shell is refused when it forks beyond it.
    let forks = podman.run(
        &["--pids-limit=5"],
        "for i in 1 2 3 4 5 6 7; do sleep 1 & done",
    );
    assert!(forks.err.contains("fork"), "{forks:?}");
    // Under a limit of memory the greedy program is killed, and podman says so.
    let greedy = "dd if=/dev/zero of=/dev/null bs=200M count=1";
    let _ = podman
        .start("greedy", &["--memory=32m", "--memory-swap=32m"], greedy)
        .ok();
    let _ = podman.call(&["wait", "greedy"]).ok();
    let state = podman.inspect("greedy", "{{.State.ExitCode}} {{.State.OOMKilled}}");
    assert!(state.starts_with("137"), "{state}");
    let _ = podman.call(&["rm", "greedy"]).ok();
    lab.close();
}

#[test]
fn privileged_podman_shares_or_separates_namespaces() {
    let Some(lab) = EngineLab::open(NEEDS) else {
        return;
    };
    let podman = Podman::as_root(&lab);
    let own = |kind: &str| {
        let link = fs::read_link(format!("/proc/thread-self/ns/{kind}")).unwrap();
        link.display().to_string()
    };
    let ask = "for k in pid ipc uts net mnt cgroup; do readlink /proc/self/ns/$k; done";
    let apart = podman.run(&["--cgroupns=private"], ask).ok();
    for kind in ["pid", "ipc", "uts", "net", "mnt", "cgroup"] {
        assert!(!apart.contains(&own(kind)), "{kind}: {apart}");
    }
    let shared = podman
        .run(
            &["--pid=host", "--ipc=host", "--uts=host", "--cgroupns=host"],
            ask,
        )
        .ok();
    for kind in ["pid", "ipc", "uts", "cgroup"] {
        assert!(shared.contains(&own(kind)), "{kind}: {shared}");
    }
    assert!(!shared.contains(&own("mnt")), "{shared}");
    let _ = podman.start("first", &[], "sleep 1000").ok();
    let first = podman
        .call(&["exec", "first", "readlink", "/proc/self/ns/ipc"])
        .ok();
    let joined = podman
        .run(
            &["--ipc=container:first", "--pid=container:first"],
            "readlink /proc/self/ns/ipc; ps",
        )
        .ok();
    assert!(
        joined.starts_with(&first) && joined.contains("sleep 1000"),
        "{joined}"
    );
    let _ = podman.call(&["rm", "--force", "--time=0", "first"]).ok();
    lab.close();
}

#[test]
fn privileged_podman_gives_terminals() {
    let Some(lab) = EngineLab::open(NEEDS) else {
        return;
    };
    let podman = Podman::as_root(&lab);
    let seen = podman.run_on_terminal(&[], "tty; test -t 0 && test -t 1 && test -t 2; exit 3");
    assert_eq!(seen.code, 3, "{seen:?}");
    assert!(seen.out.contains("/dev/pts/0"), "{seen:?}");
    let _ = podman.start("box", &["--tty"], "tty; sleep 1000").ok();
    let tty = podman.call(&["exec", "--tty", "box", "sh", "-c", "tty; exit 4"]);
    assert_eq!(
        (tty.code, tty.out.contains("/dev/pts/1")),
        (4, true),
        "{tty:?}"
    );
    eventually("the terminal's output is in the log", || {
        podman
            .call(&["logs", "box"])
            .out
            .contains("/dev/pts/0")
            .then_some(())
    });
    let _ = podman.call(&["rm", "--force", "--time=0", "box"]).ok();
    lab.close();
}

#[test]
fn privileged_podman_checks_health_by_exec() {
    let Some(lab) = EngineLab::open(NEEDS) else {
        return;
    };
    let podman = Podman::as_root(&lab);
    let options = [
        "--health-cmd=test -e /tmp/well",
        "--health-interval=disable",
    ];
    let _ = podman.start("box", &options, "sleep 1000").ok();
    assert_eq!(podman.call(&["healthcheck", "run", "box"]).code, 1);
    let _ = podman.call(&["exec", "box", "touch", "/tmp/well"]).ok();
    assert_eq!(podman.call(&["healthcheck", "run", "box"]).code, 0);
    let _ = podman.call(&["rm", "--force", "--time=0", "box"]).ok();
    lab.close();
}
