//! Scheduler, I/O priority, CPU affinity, execution domain and memory policy, as the kernel shows them.

use serde_json::{Value, json};

use super::bundle::{Bundle, process_file, ready};

/// `policy nice priority` of a process, from fields 41, 19 and 40 of proc_pid_stat(5).
fn scheduling_of(pid: i32) -> (i64, i64, i64) {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<i64> = stat[stat.rfind(')').unwrap() + 2..]
        .split(' ')
        .map(|field| field.trim().parse().unwrap_or_default())
        .collect();
    (fields[38], fields[16], fields[37])
}

fn with_process(field: &str, value: Value, script: &str) -> Bundle {
    let mut bundle = Bundle::new(script);
    bundle.set(&format!("/process/{field}"), value);
    bundle
}

fn running(field: &str, value: Value) -> Bundle {
    let bundle = with_process(field, value, "sleep 1000");
    bundle.create().ok();
    bundle.start().ok();
    bundle
}

/// A sleeping process, exec'd with the process document given and more; its pid.
fn exec_detached(bundle: &Bundle, more: &Value) -> i32 {
    let mut document =
        json!({"args": ["/bin/sleep", "1000"], "cwd": "/", "user": {"uid": 0, "gid": 0}});
    for (key, value) in more.as_object().unwrap() {
        document[key] = value.clone();
    }
    let file = process_file(bundle, &document);
    let pid_file = bundle.dir.path().join("exec.pid");
    let args = [
        "exec",
        "-d",
        "--process",
        &file,
        "--pid-file",
        "exec.pid",
        &bundle.id,
    ];
    let mut command = bundle.command(&args);
    // What is left running must not hold this test's pipes.
    command
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null());
    assert!(command.status().unwrap().success());
    std::fs::read_to_string(pid_file).unwrap().parse().unwrap()
}

#[test]
fn privileged_a_scheduler_holds_for_init_and_exec() {
    if !ready() {
        return;
    }
    let bundle = running("scheduler", json!({"policy": "SCHED_BATCH", "nice": 19}));
    let pid = bundle.state()["pid"].as_i64().unwrap();
    assert_eq!(scheduling_of(i32::try_from(pid).unwrap()), (3, 19, 0));
    let stat = bundle.exec(&["cat", "/proc/self/stat"]).ok();
    let fields: Vec<&str> = stat[stat.rfind(')').unwrap() + 2..].split(' ').collect();
    assert_eq!((fields[38], fields[16]), ("3", "19"));
    let deadline = json!({"scheduler": {
        "policy": "SCHED_DEADLINE", "flags": ["SCHED_FLAG_RESET_ON_FORK"],
        "runtime": 42_000, "deadline": 100_000, "period": 1_000_000
    }});
    assert_eq!(scheduling_of(exec_detached(&bundle, &deadline)).0, 6);
    let idle = json!({"scheduler": {"policy": "SCHED_IDLE", "nice": 5}});
    assert_eq!(scheduling_of(exec_detached(&bundle, &idle)).0, 5);
}

#[test]
fn privileged_a_scheduler_the_kernel_refuses_is_an_error_that_leaves_nothing() {
    if !ready() {
        return;
    }
    let deadline = json!({"policy": "SCHED_DEADLINE", "runtime": 42_000, "deadline": 1_000_000});
    let mut bundle = with_process("scheduler", deadline, "true");
    if bundle.cgroup("cpuset").is_some() {
        bundle.set("/linux/resources/cpu", json!({"cpus": "0", "mems": "0"}));
        let text = bundle.run().fails(1, "process.scheduler");
        assert!(
            text.contains("SCHED_DEADLINE") && text.contains("cpu.cpus"),
            "{text}"
        );
        assert!(bundle.log().contains("process.scheduler"));
        bundle.assert_gone();
    }
    let clamp = json!({"policy": "SCHED_OTHER", "flags": ["SCHED_FLAG_UTIL_CLAMP_MIN"]});
    let bundle = with_process("scheduler", clamp, "true");
    let done = bundle.run();
    // Only a kernel with CONFIG_UCLAMP_TASK has this flag.
    if done.code != 0 {
        done.fails(1, "one of the flags of process.scheduler.flags");
    }
    bundle.assert_gone();
}

#[test]
fn privileged_an_io_priority_holds_for_init_and_exec() {
    if !ready() {
        return;
    }
    let bundle = running(
        "ioPriority",
        json!({"class": "IOPRIO_CLASS_BE", "priority": 6}),
    );
    let of = |pid: i64| {
        let output = std::process::Command::new("ionice")
            .args(["-p", &pid.to_string()])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    assert_eq!(
        of(bundle.state()["pid"].as_i64().unwrap()),
        "best-effort: prio 6"
    );
    let own = exec_detached(
        &bundle,
        &json!({"ioPriority": {"class": "IOPRIO_CLASS_IDLE"}}),
    );
    assert_eq!(of(own.into()), "idle");
}

#[test]
fn privileged_personality_and_memory_policy_hold_for_init_and_exec() {
    if !ready() {
        return;
    }
    let script = "uname -m; head -n 1 /proc/self/numa_maps | sed 's/ /\\n/g' | sed -n 2p";
    for (flags, expect) in [
        (json!([]), "interleave:0"),
        (json!(["MPOL_F_STATIC_NODES"]), "interleave=static:0"),
        (json!(["MPOL_F_RELATIVE_NODES"]), "interleave=relative:0"),
    ] {
        let mut bundle = Bundle::new(&format!("{script}; exec sleep 1000"));
        let policy = json!({"mode": "MPOL_INTERLEAVE", "nodes": "0", "flags": flags});
        bundle.set("/linux/personality", json!({"domain": "LINUX32"}));
        bundle.set("/linux/memoryPolicy", policy);
        bundle.create().ok();
        bundle.start().ok();
        let machine = if cfg!(target_arch = "x86_64") {
            "i686"
        } else {
            "armv8l"
        };
        let expect = format!("{machine}\n{expect}");
        super::bundle::eventually("output", || bundle.output() == expect);
        assert_eq!(bundle.exec(&["sh", "-c", script]).ok(), expect);
    }
}

#[test]
fn privileged_every_memory_policy_mode_reaches_the_kernel() {
    if !ready() {
        return;
    }
    for (mode, nodes, shown) in [
        ("MPOL_DEFAULT", "", "default"),
        ("MPOL_PREFERRED", "0", "prefer:0"),
        ("MPOL_BIND", "0", "bind:0"),
        ("MPOL_LOCAL", "", "local"),
        ("MPOL_PREFERRED_MANY", "0", "prefer (many):0"),
        ("MPOL_WEIGHTED_INTERLEAVE", "0", "weighted interleave:0"),
    ] {
        let mut bundle = Bundle::new("head -n 1 /proc/self/numa_maps");
        bundle.set("/linux/memoryPolicy", json!({"mode": mode, "nodes": nodes}));
        let done = bundle.run();
        if done.code == 0 {
            assert!(done.out.contains(shown), "{mode}: {}", done.out);
        } else {
            // A mode newer than the kernel.
            assert!(matches!(
                mode,
                "MPOL_PREFERRED_MANY" | "MPOL_WEIGHTED_INTERLEAVE"
            ));
            done.fails(1, &format!("cannot set linux.memoryPolicy to {mode}"));
        }
        bundle.assert_gone();
    }
    let mut bundle = Bundle::new("true");
    bundle.set(
        "/linux/memoryPolicy",
        json!({"mode": "MPOL_BIND", "nodes": "1023"}),
    );
    bundle.run().fails(1, "linux.memoryPolicy");
    bundle.assert_gone();
}

#[test]
fn privileged_exec_runs_on_the_cpus_asked_for_and_init_on_all() {
    if !ready() {
        return;
    }
    let allowed = |status: &str| {
        let line = status
            .lines()
            .find(|line| line.starts_with("Cpus_allowed_list:"))
            .unwrap();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    let own = allowed(&std::fs::read_to_string("/proc/self/status").unwrap());
    if !own.contains(['-', ',']) {
        println!("skipped: it needs two CPUs");
        assert!(std::env::var("AXIL_TEST_REQUIRE").as_deref() != Ok("1"));
        return;
    }
    let first: u32 = own.split(['-', ',']).next().unwrap().parse().unwrap();
    let second = own.split(['-', ',']).nth(1).unwrap();
    let affinity = json!({"initial": first.to_string(), "final": second});
    let bundle = running("execCPUAffinity", affinity);
    let init = bundle.exec(&["cat", "/proc/1/status"]).ok();
    assert_eq!(allowed(&init), own, "the setting is not for init");
    let exec = bundle.exec(&["cat", "/proc/self/status"]).ok();
    assert_eq!(allowed(&exec), second);
    let status = |affinity: Value| {
        let pid = exec_detached(&bundle, &json!({"execCPUAffinity": affinity}));
        allowed(&std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap())
    };
    assert_eq!(
        status(json!({"final": format!("{first}")})),
        first.to_string()
    );
    // Whoever runs the runtime on one CPU does not say anything about the container.
    let bundle = Bundle::new("cat /proc/self/status");
    bundle.write();
    let plain = bundle.command(&["run", &bundle.id]);
    let mut pinned = std::process::Command::new("taskset");
    pinned
        .args(["-c", second])
        .arg(plain.get_program())
        .args(plain.get_args());
    let output = pinned.current_dir(bundle.dir.path()).output().unwrap();
    assert_eq!(allowed(&String::from_utf8_lossy(&output.stdout)), own);
}

#[test]
fn privileged_a_cpu_that_is_not_there_is_named() {
    if !ready() {
        return;
    }
    let bundle = running("execCPUAffinity", json!({"final": "8191"}));
    let text = bundle
        .exec(&["true"])
        .fails(255, "process.execCPUAffinity.final");
    assert!(text.contains("none of them is online"), "{text}");
}

#[test]
fn privileged_an_unknown_capability_is_refused_before_anything_is_made() {
    if !ready() {
        return;
    }
    let mut bundle = Bundle::new("true");
    bundle.set(
        "/process/capabilities/bounding",
        json!(["CAP_NEVER_HEARD_OF"]),
    );
    bundle.run().fails(
        1,
        "process.capabilities.bounding[0]: \"CAP_NEVER_HEARD_OF\"",
    );
    assert!(bundle.log().contains("CAP_NEVER_HEARD_OF"));
    assert!(!bundle.state_root().exists(), "nothing was made");
    bundle.assert_gone();
    let bundle = running("noNewPrivileges", json!(true));
    let args = ["exec", "--cap", "CAP_NEVER_HEARD_OF", &bundle.id, "true"];
    bundle.call(&args).fails(255, "CAP_NEVER_HEARD_OF");
}
