//! containerd with the shim it brings, `runc-lite` as that shim's binary.

use std::fs;

use axil_integration::engines::EngineLab;
use axil_integration::engines::containerd::Containerd;
use axil_integration::eventually::eventually;
use axil_integration::guard::Need;

const NEEDS: &[Need] = &[
    Need::Program("containerd"),
    Need::Program("ctr"),
    Need::Program("containerd-shim-runc-v2"),
    Need::Program("script"),
];

#[test]
fn privileged_containerd_runs_programs_and_tells_how_they_ended() {
    let Some(lab) = EngineLab::open(NEEDS) else {
        return;
    };
    let containerd = Containerd::start(&lab);
    assert_eq!(
        containerd.run(&["--rm"], "hello", "echo hello").ok(),
        "hello"
    );
    assert_eq!(containerd.run(&["--rm"], "seven", "exit 7").code, 7);
    let missing = containerd.run_program(&["--rm"], "missing", &["/no/such"]);
    missing.fails(1, "no such file or directory");
    // A failed create leaves nothing that its name could collide with.
    let again = containerd.run_program(&["--rm"], "missing", &["true"]);
    let _ = again.ok();
    let seen = containerd.run_on_terminal(&["--rm"], "tty", "tty; exit 5");
    assert_eq!(
        (seen.code, seen.out.contains("/dev/pts/0")),
        (5, true),
        "{seen:?}"
    );
    containerd.stop();
    lab.close();
}

#[test]
fn privileged_containerd_applies_what_it_is_told() {
    let Some(lab) = EngineLab::open(NEEDS) else {
        return;
    };
    let containerd = Containerd::start(&lab);
    let options = [
        "--rm",
        "--seccomp",
        "--cap-add=CAP_SYS_PTRACE",
        "--cwd=/tmp",
        "--env=A=b",
    ];
    let script = "pwd; echo $A; grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status";
    let said = containerd.run(&options, "told", script).ok();
    assert_eq!(said, "/tmp\nb\nNoNewPrivs:\t1\nSeccomp:\t2");
    let readonly = containerd.run(&["--rm", "--read-only"], "ro", "touch /x");
    readonly.fails(1, "Read-only");
    // ctr mounts no cgroups into the container, so that its limits are read from outside.
    let options = ["--detach", "--memory-limit=33554432", "--cpus=0.5"];
    let _ = containerd.run(&options, "limits", "sleep 1000").ok();
    let limit = |v1: &str, v2: &str| {
        let at = |dir: &str| format!("/sys/fs/cgroup/{dir}{}/limits", lab.cgroup());
        let (v1, v2) = (v1.split_once('/').unwrap(), format!("{}/{v2}", at("")));
        let text = fs::read_to_string(format!("{}/{}", at(v1.0), v1.1));
        text.or_else(|_| fs::read_to_string(v2))
            .unwrap()
            .trim()
            .to_owned()
    };
    let memory = limit("memory/memory.limit_in_bytes", "memory.max");
    assert_eq!(memory, "33554432");
    let quota = limit("cpu/cpu.cfs_quota_us", "cpu.max");
    assert_eq!(quota.split(' ').next(), Some("50000"));
    let _ = containerd.call(&["task", "rm", "--force", "limits"]).ok();
    let _ = containerd.call(&["container", "rm", "limits"]).ok();
    let bind = format!(
        "--mount=type=bind,src={},dst=/host,options=rbind:ro",
        lab.dir().display()
    );
    assert!(
        containerd
            .run(&["--rm", &bind], "bind", "ls /host")
            .ok()
            .contains("image.tar")
    );
    let network = containerd
        .run(&["--rm", "--net-host"], "net", "readlink /proc/self/ns/net")
        .ok();
    let own = fs::read_link("/proc/thread-self/ns/net").unwrap();
    assert_eq!(network, own.display().to_string());
    let all = containerd
        .run(&["--rm", "--privileged"], "all", "ls /dev/null /dev/full")
        .ok();
    assert_eq!(all, "/dev/full\n/dev/null");
    containerd.stop();
    lab.close();
}

#[test]
fn privileged_containerd_execs_measures_pauses_kills_and_removes() {
    let Some(lab) = EngineLab::open(NEEDS) else {
        return;
    };
    let containerd = Containerd::start(&lab);
    let _ = containerd
        .run(&["--detach"], "box", "sleep 1000; true")
        .ok();
    assert_eq!(containerd.status("box"), "RUNNING");
    let exec = |id: &str, script: &str| {
        containerd.call(&["task", "exec", "--exec-id", id, "box", "sh", "-c", script])
    };
    let processes = exec("one", "ps; exit 4");
    assert_eq!(processes.code, 4, "{processes:?}");
    assert!(processes.out.contains("sleep 1000"), "{processes:?}");
    exec("two", "kill -TERM $$").fails(143, "");
    let list = containerd.call(&["task", "ps", "box"]).ok();
    // A header, the shell, its sleep.
    assert_eq!(list.lines().count(), 3, "{list}");
    let metrics = containerd.call(&["task", "metrics", "box"]).ok();
    assert!(metrics.contains("pids.current"), "{metrics}");

    let _ = containerd.call(&["task", "pause", "box"]).ok();
    assert_eq!(containerd.status("box"), "PAUSED");
    let _ = containerd.call(&["task", "resume", "box"]).ok();
    assert_eq!(containerd.status("box"), "RUNNING");
    let refused = containerd.call(&["task", "checkpoint", "box"]);
    assert_ne!(refused.code, 0, "{refused:?}");
    assert!(refused.err.contains("checkpoint"), "{refused:?}");
    // Whatever it tried, the task goes on.
    assert_eq!(containerd.status("box"), "RUNNING");

    let _ = containerd
        .call(&["task", "kill", "--signal", "SIGKILL", "box"])
        .ok();
    eventually("the task has stopped", || {
        (containerd.status("box") == "STOPPED").then_some(())
    });
    let removed = containerd.call(&["task", "rm", "box"]);
    assert!(removed.err.contains("137"), "{removed:?}");
    let _ = containerd.call(&["container", "rm", "box"]).ok();
    containerd.stop();
    lab.close();
}
