//! Later processes in a running container.

use serde_json::json;

use super::bundle::{Bundle, adopter, eventually, parent_of, process_file, ready};
use super::guard::{Need, ready_with};

fn running() -> Bundle {
    let bundle = Bundle::new("sleep 1000");
    bundle.create().ok();
    bundle.start().ok();
    bundle
}

#[test]
fn privileged_exec_joins_namespaces_cgroup_and_identity() {
    if !ready() {
        return;
    }
    let bundle = running();
    let script = "for n in pid net mnt uts ipc cgroup; do readlink /proc/self/ns/$n; readlink /proc/1/ns/$n; done";
    let out = bundle.exec(&["sh", "-c", script]).ok();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines.len(), 12);
    assert!(lines.chunks(2).all(|pair| pair[0] == pair[1]), "{out}");
    let own = std::fs::read_link("/proc/self/ns/pid").unwrap();
    assert_ne!(lines[0], own.to_str().unwrap());
    // In its cgroup, seen from inside as the root.
    assert!(
        bundle
            .exec(&["cat", "/proc/self/cgroup"])
            .ok()
            .lines()
            .all(|l| l.ends_with(":/"))
    );
    let both = "grep -E 'Cap|NoNewPrivs|Seccomp:' /proc/self/status; echo; \
                grep -E 'Cap|NoNewPrivs|Seccomp:' /proc/1/status";
    let out = bundle.exec(&["sh", "-c", both]).ok();
    let (own, init) = out.split_once("\n\n").unwrap();
    assert_eq!(own, init);
    assert_eq!(bundle.exec(&["sh", "-c", "exit 42"]).code, 42);
    assert_eq!(bundle.exec(&["sh", "-c", "kill -9 $$"]).code, 137);
}

#[test]
fn privileged_exec_takes_the_options_of_runc() {
    if !ready() {
        return;
    }
    let bundle = running();
    let id = &bundle.id;
    let call = |args: &[&str]| {
        let mut all = vec!["exec"];
        all.extend(args);
        bundle.call(&all)
    };
    let out = call(&[
        "-u",
        "1000:1001",
        "-g",
        "7",
        "-e",
        "A=b",
        "--cwd",
        "/tmp",
        id,
        "sh",
        "-c",
        "id -u; id -g; id -G; echo $A $HOME; pwd",
    ]);
    assert_eq!(out.ok(), "1000\n1001\n1001 7\nb /home/user\n/tmp");
    call(&[
        "--cap",
        "CAP_SYS_PTRACE",
        id,
        "sh",
        "-c",
        "grep CapEff /proc/self/status",
    ])
    .ok();
    call(&["-u", "1:", id, "true"]).fails(255, "--user");
    call(&["--cwd", "/no/such", id, "true"]).fails(255, "/no/such");
    call(&[id, "nope"]).fails(255, "exec: \"nope\": executable file not found in $PATH");
    call(&[id]).fails(255, "process.args");
    call(&["no-such-container", "true"]).fails(255, "does not exist");
}

#[test]
fn privileged_exec_detached_by_a_process_document() {
    if !ready() {
        return;
    }
    let bundle = running();
    let file = process_file(
        &bundle,
        &json!({"args": ["sh", "-c", "id -u; sleep 1000"], "cwd": "/", "env": ["PATH=/bin"],
                "user": {"uid": 1000, "gid": 1000}}),
    );
    let out = std::fs::File::create(bundle.dir.path().join("exec-out")).unwrap();
    let mut command = bundle.command(&[
        "exec",
        "--process",
        &file,
        "--pid-file",
        "exec-pid",
        "--detach",
        &bundle.id,
    ]);
    assert!(command.stdout(out).status().unwrap().success());
    let pid: i32 = std::fs::read_to_string(bundle.dir.path().join("exec-pid"))
        .unwrap()
        .parse()
        .unwrap();
    assert_eq!(
        parent_of(pid),
        adopter(),
        "the process is an orphan once exec is done"
    );
    eventually("output", || {
        std::fs::read_to_string(bundle.dir.path().join("exec-out")).unwrap() == "1000\n"
    });
    // It ends with the PID namespace.
    bundle.call(&["kill", &bundle.id, "KILL"]).ok();
    eventually("stopped", || bundle.status() == "stopped");
    bundle
        .exec(&["true"])
        .fails(255, "cannot exec in a stopped container");
}

#[test]
fn privileged_exec_cgroup_never_leaves_the_container() {
    if !ready_with(&[Need::CgroupV1]) {
        return;
    }
    let bundle = running();
    let pids = bundle.cgroup("pids").unwrap();
    let exec = |cgroup: &str| {
        bundle.call(&[
            "exec",
            "--cgroup",
            cgroup,
            &bundle.id,
            "cat",
            "/proc/self/cgroup",
        ])
    };
    for bad in ["../", "/../x", "pids:a/../../b", "", "pids:", ":x"] {
        exec(bad).fails(255, "cgroup");
    }
    exec("pids:sub").fails(255, "no such file or directory");
    exec("nosuch:/").fails(255, "controller");
    std::fs::create_dir(pids.join("sub")).unwrap();
    let out = exec("pids:sub").ok();
    assert!(out.contains(":pids:/sub"), "{out}");
    assert!(
        out.contains(":memory:/\n") || !out.contains(":memory:"),
        "{out}"
    );
    bundle.call(&["delete", "--force", &bundle.id]).ok();
    assert!(!pids.exists(), "nested cgroups are removed");
}

#[test]
fn privileged_exec_keeps_the_filter() {
    if !ready() {
        return;
    }
    let mut bundle = Bundle::new("sleep 1000");
    bundle.set(
        "/linux/seccomp",
        json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
               "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]}),
    );
    bundle.create().ok();
    bundle.start().ok();
    let done = bundle.exec(&["mkdir", "/tmp/x"]);
    assert!(
        done.code == 1 && done.err.contains("No space left"),
        "{done:?}"
    );
}

#[test]
fn privileged_a_process_whose_pid_nobody_learns_does_not_stay() {
    if !ready() {
        return;
    }
    let bundle = running();
    let path = bundle.dir.path().join("missing/pid");
    let path = path.to_str().unwrap();
    let args = ["exec", "--detach", "--pid-file", path, &bundle.id];
    bundle
        .call(&[&args[..], &["sleep", "1000"]].concat())
        .fails(255, "cannot write the pid file");
    // The container's own alone.
    let script = "grep -l sleep /proc/[0-9]*/comm";
    assert_eq!(bundle.exec(&["sh", "-c", script]).ok(), "/proc/1/comm");
}
