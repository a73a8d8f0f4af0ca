//! What a filter does to a real program, and which profiles are no profiles.

use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use super::bundle::{Bundle, ready};

fn with(script: &str, profile: Value) -> Bundle {
    let mut bundle = Bundle::new(script);
    bundle.set("/linux/seccomp", profile);
    bundle
}

/// How many filters a process has, from proc_pid_status(5).
const FILTERS: &str = "grep '^Seccomp_filters' /proc/self/status | grep -o '[0-9]*$'";

#[test]
fn privileged_cve_2023_2431_an_empty_profile_never_means_unconfined() {
    if !ready() {
        return;
    }
    for profile in [
        json!({}),
        json!({"defaultAction": ""}),
        json!({"defaultAction": null}),
        json!({"syscalls": []}),
        json!(""),
        json!([]),
        json!(false),
    ] {
        let bundle = with("echo ran", profile.clone());
        let done = bundle.run();
        assert_eq!(
            (done.code, done.out.as_str()),
            (1, ""),
            "{profile}: {done:?}"
        );
        assert!(done.err.contains("linux.seccomp"), "{profile}: {done:?}");
        bundle.assert_gone();
    }
    // No profile is said by leaving it out, or by null.
    assert_eq!(with(FILTERS, Value::Null).run().ok(), "0");
}

#[test]
fn privileged_a_profile_above_one_mebibyte_is_refused() {
    if !ready() {
        return;
    }
    let names: Vec<String> = (0..60_000)
        .map(|n| format!("no_such_call_{n:05}"))
        .collect();
    let profile = json!({"defaultAction": "SCMP_ACT_ALLOW",
                         "syscalls": [{"names": names, "action": "SCMP_ACT_ERRNO"}]});
    let bundle = with("echo ran", profile);
    bundle.run().fails(1, "the limit is 1048576");
    bundle.assert_gone();
}

#[test]
fn privileged_a_long_profile_is_several_filters_for_the_program() {
    if !ready() {
        return;
    }
    let mut rules: Vec<Value> = (0..250)
        .flat_map(|value| ["mkdir", "rmdir", "chmod", "rename"].map(|name| (name, value)))
        .map(|(name, value)| {
            json!({"names": [name], "action": "SCMP_ACT_ERRNO", "errnoRet": 123,
                   "args": [{"index": 3, "value": 0x7000_0000 + value, "op": "SCMP_CMP_EQ"}]})
        })
        .collect();
    rules.push(
        json!({"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 123,
                      "args": [{"index": 1, "value": 0o777, "op": "SCMP_CMP_EQ"}]}),
    );
    let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules});
    for no_new_privileges in [true, false] {
        let script = format!("{FILTERS}; mkdir /tmp/a; touch /tmp/b && rm /tmp/b && echo done");
        let mut bundle = with(&script, profile.clone());
        bundle.set("/process/noNewPrivileges", json!(no_new_privileges));
        let done = bundle.run();
        let err = done.err.clone();
        let out = done.ok();
        let (filters, rest) = out.split_once('\n').unwrap();
        assert!(filters.parse::<u32>().unwrap() > 1, "{filters}");
        assert_eq!(rest, "done");
        assert!(err.contains("No medium found"), "{err}");
    }
}

#[test]
fn privileged_every_action_does_what_it_says() {
    if !ready() {
        return;
    }
    let run = |action: &str, errno: Value| {
        let profile = json!({"defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir"], "action": action, "errnoRet": errno}]});
        let mut bundle = with("mkdir /tmp/a; echo $?", profile);
        bundle.set(
            "/process/rlimits",
            json!([{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]),
        );
        bundle.run()
    };
    // SIGSYS is 31.
    for action in [
        "SCMP_ACT_KILL",
        "SCMP_ACT_KILL_THREAD",
        "SCMP_ACT_KILL_PROCESS",
        "SCMP_ACT_TRAP",
    ] {
        assert_eq!(
            run(action, Value::Null).ok().lines().last(),
            Some("159"),
            "{action}"
        );
    }
    let done = run("SCMP_ACT_ERRNO", Value::Null);
    assert!(done.err.contains("Operation not permitted"), "{done:?}");
    let done = run("SCMP_ACT_ERRNO", json!(100));
    assert!(done.err.contains("Network is down"), "{done:?}");
    // Nobody traces: the call is not made.
    let done = run("SCMP_ACT_TRACE", json!(7));
    assert!(done.err.contains("Function not implemented"), "{done:?}");
    assert_eq!(run("SCMP_ACT_LOG", Value::Null).ok(), "0");
    run("SCMP_ACT_LOG", json!(5)).fails(1, "does not take errnoRet");
}

#[test]
fn privileged_a_filter_that_permits_little_more_than_the_program_needs_is_enough() {
    if !ready() {
        return;
    }
    // Between the filter and the program there is execve and nothing else, with no_new_privs and without.
    let calls = [
        "execve",
        "arch_prctl",
        "set_tid_address",
        "brk",
        "mmap",
        "mprotect",
        "munmap",
        "getuid",
        "prctl",
        "readlink",
        "write",
        "exit_group",
        "set_robust_list",
        "rseq",
        "prlimit64",
        "getrandom",
        "newfstatat",
        "fstat",
        "ioctl",
        "rt_sigaction",
        "uname",
        "getpid",
        "geteuid",
        "readlinkat",
        "getcwd",
        "stat",
        "open",
        "openat",
        "read",
        "close",
        "poll",
        "getgid",
    ];
    let profile = json!({"defaultAction": "SCMP_ACT_ERRNO",
                         "syscalls": [{"names": calls, "action": "SCMP_ACT_ALLOW"}]});
    for no_new_privileges in [true, false] {
        let mut bundle = with("", profile.clone());
        bundle.set("/process/args", json!(["echo", "ran"]));
        bundle.set("/process/noNewPrivileges", json!(no_new_privileges));
        assert_eq!(bundle.run().ok(), "ran");
    }
}

#[test]
fn privileged_the_capability_that_loads_the_filter_is_not_the_program_s() {
    if !ready() {
        return;
    }
    let profile = json!({"defaultAction": "SCMP_ACT_ALLOW",
                         "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}]});
    for (uid, expect) in [
        (0, "CapEff:\t0000000000000020"),
        (1000, "CapEff:\t0000000000000000"),
    ] {
        let mut bundle = with("grep -E '^Cap(Prm|Eff)' /proc/self/status", profile.clone());
        let kill = json!(["CAP_KILL"]);
        bundle.set("/process/noNewPrivileges", json!(false));
        bundle.set("/process/user", json!({"uid": uid, "gid": uid}));
        bundle.set(
            "/process/capabilities",
            json!({"bounding": kill, "effective": kill, "permitted": kill}),
        );
        let out = bundle.run().ok();
        let prm = expect.replace("CapEff", "CapPrm");
        assert_eq!(out, format!("{prm}\n{expect}"), "uid {uid}");
    }
}

#[test]
fn privileged_a_program_that_cannot_be_executed_is_told_whatever_the_filter_forbids() {
    if !ready() {
        return;
    }
    let format = "exec /tmp/broken: exec format error";
    let silent = "died before it could run its program (exit code 1)";
    for (forbidden, words, exec_words) in [
        (&[][..], format, format),
        (&["sendto"], format, format),
        (&["write"], format, format),
        (&["sendto", "write"], "died before it could run", silent),
    ] {
        let rules = if forbidden.is_empty() {
            json!([])
        } else {
            json!([{"names": forbidden, "action": "SCMP_ACT_ERRNO"}])
        };
        let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules});
        let mut bundle = with("", profile);
        let broken = bundle.rootfs().join("tmp/broken");
        std::fs::write(&broken, "neither a program nor a script").unwrap();
        std::fs::set_permissions(&broken, PermissionsExt::from_mode(0o755)).unwrap();
        bundle.set("/process/args", json!(["/tmp/broken"]));
        bundle.run().fails(1, words);
        bundle.assert_gone();
        bundle.set("/process/args", json!(["sleep", "1000"]));
        bundle.create().ok();
        bundle.start().ok();
        bundle.exec(&["/tmp/broken"]).fails(255, exec_words);
        assert_eq!(bundle.exec(&["true"]).code, 0, "{forbidden:?}");
    }
}

#[test]
fn privileged_a_program_whose_execve_is_killed_by_the_filter_never_ran() {
    if !ready() {
        return;
    }
    let mut bundle = with(
        "echo ran",
        json!({"defaultAction": "SCMP_ACT_ALLOW",
               "syscalls": [{"names": ["execve"], "action": "SCMP_ACT_KILL_PROCESS"}]}),
    );
    bundle.set(
        "/process/rlimits",
        json!([{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]),
    );
    bundle
        .run()
        .fails(1, "died before it could run its program");
    bundle.assert_gone();
}
