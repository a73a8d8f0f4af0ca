//! What the default profile lets through, read off the document as a filter would.

use super::*;

fn profile(capabilities: &[&str]) -> Seccomp {
    default_profile(
        &capabilities.iter().map(|&name| name.to_owned()).collect(),
        Arch::X86_64,
    )
}

/// What happens to a call with this first argument.
fn verdict(profile: &Seccomp, call: &str, argument: u64) -> (Action, Option<u32>) {
    let holds = |condition: &Condition| match condition.op {
        Operator::Equal => argument == condition.value,
        Operator::MaskedEqual => argument & condition.value == condition.value_two,
        other => panic!("the default profile does not use {other:?}"),
    };
    profile
        .syscalls
        .iter()
        .find(|rule| rule.names.iter().any(|name| name == call) && rule.args.iter().all(holds))
        .map_or(
            (profile.default_action, profile.default_errno_ret),
            |rule| (rule.action, rule.errno_ret),
        )
}

fn allows(profile: &Seccomp, call: &str, argument: u64) -> bool {
    verdict(profile, call, argument).0 == Action::Allow
}

#[test]
fn cve_2022_0492_and_kin_kernel_surface_is_refused_without_capabilities() {
    let plain = profile(&["CAP_CHOWN", "CAP_SYS_CHROOT"]);
    for call in [
        "unshare",
        "setns",
        "mount",
        "umount2",
        "pivot_root",
        "bpf",
        "userfaultfd",
        "keyctl",
        "add_key",
        "request_key",
        "io_uring_setup",
        "io_uring_enter",
        "io_uring_register",
        "perf_event_open",
        "init_module",
        "kexec_load",
        "swapon",
        "reboot",
        "open_by_handle_at",
        "syslog",
        "clock_settime",
        "open_tree",
        "move_mount",
        "fsopen",
        "quotactl",
        "ioperm",
        "no_such_call",
    ] {
        assert_eq!(verdict(&plain, call, 0), (Action::Errno, Some(1)), "{call}");
    }
    for call in [
        "read",
        "execve",
        "ptrace",
        "chroot",
        "arch_prctl",
        "openat2",
        "futex_waitv",
    ] {
        assert!(allows(&plain, call, 0), "{call}");
    }
    assert_eq!(verdict(&plain, "clone3", 0), (Action::Errno, Some(38)));
}

#[test]
fn clone_makes_processes_and_threads_but_no_namespaces() {
    let plain = profile(&[]);
    for flags in [17, 0x003d_0f00] {
        assert!(allows(&plain, "clone", flags), "{flags:#x}");
    }
    for bit in [17, 25, 26, 27, 28, 29, 30] {
        assert!(!allows(&plain, "clone", 17 | 1 << bit), "bit {bit}");
    }
    let admin = profile(&["CAP_SYS_ADMIN"]);
    assert!(allows(&admin, "clone", 1 << 28) && allows(&admin, "clone3", 0));
}

#[test]
fn cve_2026_31431_socket_families_are_read_in_32_bits_as_the_kernel_does() {
    let plain = profile(&[]);
    for family in 0..64 {
        assert_eq!(
            allows(&plain, "socket", family),
            family != 38 && family != 40,
            "{family}"
        );
    }
    for family in [
        (1 << 32) + 38,
        (1 << 40) + 40,
        (0xffff_ffff << 32) + 38,
        0xffff_ffff,
    ] {
        assert!(!allows(&plain, "socket", family), "{family:#x}");
    }
    assert!(
        allows(&plain, "socket", (1 << 32) + 2),
        "garbage above an int does no harm"
    );
}

#[test]
fn personality_takes_five_values() {
    let plain = profile(&[]);
    for value in [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff] {
        assert!(allows(&plain, "personality", value), "{value:#x}");
    }
    for value in [1, 0x40_0000, (1 << 32) | 8] {
        assert!(!allows(&plain, "personality", value), "{value:#x}");
    }
}

#[test]
fn capabilities_add_their_calls_only() {
    for (capability, call) in [
        ("CAP_SYS_ADMIN", "mount"),
        ("CAP_BPF", "bpf"),
        ("CAP_PERFMON", "perf_event_open"),
        ("CAP_SYSLOG", "syslog"),
        ("CAP_SYS_TIME", "settimeofday"),
        ("CAP_SYS_CHROOT", "chroot"),
        ("CAP_SYS_PTRACE", "kcmp"),
        ("CAP_SYS_MODULE", "finit_module"),
    ] {
        assert!(allows(&profile(&[capability]), call, 0), "{capability}");
        assert!(!allows(&profile(&["CAP_CHOWN"]), call, 0), "{call}");
    }
}

#[test]
fn equal_inputs_give_equal_bytes_without_repetition() {
    let one = serde_json::to_vec(&profile(&["CAP_BPF", "CAP_SYS_ADMIN"])).unwrap();
    let two = serde_json::to_vec(&profile(&["CAP_SYS_ADMIN", "CAP_BPF"])).unwrap();
    assert_eq!(one, two);
    let names = &profile(&["CAP_SYS_ADMIN", "CAP_BPF", "CAP_SYSLOG"]).syscalls[0].names;
    assert!(names.is_sorted_by(|a, b| a < b));
    assert!(one.len() < 8 * 1024, "{}", one.len());
}

#[test]
fn the_document_is_exact() {
    let mut small = profile(&[]);
    small.syscalls.drain(..small.syscalls.len() - 2);
    let text = serde_json::to_string(&small).unwrap();
    assert_eq!(
        text,
        r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":1,"#.to_owned()
            + r#""architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86","SCMP_ARCH_X32"],"#
            + r#""syscalls":[{"names":["clone"],"action":"SCMP_ACT_ALLOW","#
            + r#""args":[{"index":0,"value":2114060288,"op":"SCMP_CMP_MASKED_EQ"}]},"#
            + r#"{"names":["clone3"],"action":"SCMP_ACT_ERRNO","errnoRet":38}]}"#
    );
}
