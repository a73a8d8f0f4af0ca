//! Tests of the compiler: its programs are run by an interpreter and must decide as the profile says.

use serde_json::{Value, json};

use super::super::names::Arch;
use super::super::tree::interpreter::{Call, run};
use super::*;

const NATIVE: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;
const EPERM_ACTION: u32 = ERRNO | 1;
const ENOSYS_ACTION: u32 = ERRNO | ENOSYS;

fn program(profile: Value) -> Vec<BpfInstruction> {
    compile(&profile.to_string()).unwrap().program
}

fn call(program: &[BpfInstruction], nr: u32, args: &[u64]) -> u32 {
    on(program, NATIVE, nr, args)
}

fn on(program: &[BpfInstruction], arch: u32, nr: u32, args: &[u64]) -> u32 {
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    run(
        program,
        Call {
            nr,
            arch,
            args: all,
        },
    )
}

fn error(profile: Value) -> String {
    compile(&profile.to_string()).unwrap_err().to_string()
}

#[test]
fn listed_calls_are_allowed_and_newer_ones_look_unimplemented() {
    let program = program(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{"names": ["read", "openat2", "no_such_call"], "action": "SCMP_ACT_ALLOW"},
                     {"names": ["write"], "action": "SCMP_ACT_ERRNO", "errnoRet": 42}]
    }));
    assert_eq!(call(&program, 0, &[]), ALLOW);
    assert_eq!(call(&program, 1, &[]), ERRNO | 42);
    assert_eq!(call(&program, 2, &[]), EPERM_ACTION);
    assert_eq!(call(&program, 437, &[]), ALLOW);
    assert_eq!(call(&program, 438, &[]), ENOSYS_ACTION);
    assert_eq!(call(&program, 0x3fff_ffff, &[]), ENOSYS_ACTION);
}

#[test]
fn an_open_default_stays_open() {
    let program = program(json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_KILL"},
                     {"names": ["rmdir"], "action": "SCMP_ACT_KILL_PROCESS"},
                     {"names": ["chmod"], "action": "SCMP_ACT_TRAP"},
                     {"names": ["chown"], "action": "SCMP_ACT_LOG"},
                     {"names": ["link"], "action": "SCMP_ACT_TRACE", "errnoRet": 7}]
    }));
    assert_eq!(call(&program, 83, &[]), KILL_THREAD);
    assert_eq!(call(&program, 84, &[]), KILL_PROCESS);
    assert_eq!(call(&program, 90, &[]), TRAP);
    assert_eq!(call(&program, 92, &[]), LOG);
    assert_eq!(call(&program, 86, &[]), TRACE | 7);
    assert_eq!(call(&program, 5000, &[]), ALLOW);
}

#[test]
fn foreign_architectures_are_killed_and_listed_ones_have_their_own_numbers() {
    let profile = |architectures: Value| {
        program(json!({
            "defaultAction": "SCMP_ACT_ERRNO", "architectures": architectures,
            "syscalls": [{"names": ["mkdir", "ioctl"], "action": "SCMP_ACT_ALLOW"}]
        }))
    };
    let native = profile(json!(["SCMP_ARCH_X86_64"]));
    assert_eq!(call(&native, 83, &[]), ALLOW);
    assert_eq!(on(&native, I386, 39, &[]), KILL_PROCESS);
    assert_eq!(on(&native, 0xc000_00b7, 34, &[]), KILL_PROCESS);
    assert_eq!(call(&native, X32_BIT | 83, &[]), KILL_PROCESS);
    // A tracer's "skip" is no x32 call.
    assert_eq!(call(&native, u32::MAX, &[]), EPERM_ACTION);
    let all = profile(json!([
        "SCMP_ARCH_X86_64",
        "SCMP_ARCH_X86",
        "SCMP_ARCH_X32",
        "SCMP_ARCH_MIPS"
    ]));
    assert_eq!(on(&all, I386, 39, &[]), ALLOW);
    assert_eq!(on(&all, I386, 83, &[]), ENOSYS_ACTION);
    assert_eq!(on(&all, I386, 10, &[]), EPERM_ACTION);
    assert_eq!(call(&all, X32_BIT | 83, &[]), ALLOW);
    assert_eq!(call(&all, X32_BIT | 514, &[]), ALLOW);
}

#[test]
fn every_comparison_is_exact_in_64_bits() {
    let values = [
        0u64,
        1,
        0xffff_ffff,
        0x1_0000_0000,
        0x1_0000_0001,
        u64::MAX,
        u64::MAX - 1,
        7,
    ];
    type Check = (&'static str, fn(u64, u64) -> bool);
    let checks: [Check; 6] = [
        ("SCMP_CMP_NE", |a, b| a != b),
        ("SCMP_CMP_LT", |a, b| a < b),
        ("SCMP_CMP_LE", |a, b| a <= b),
        ("SCMP_CMP_EQ", |a, b| a == b),
        ("SCMP_CMP_GE", |a, b| a >= b),
        ("SCMP_CMP_GT", |a, b| a > b),
    ];
    for (op, holds) in checks {
        for bound in values {
            let program = program(json!({
                "defaultAction": "SCMP_ACT_ERRNO",
                "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW",
                              "args": [{"index": 2, "value": bound, "op": op}]}]
            }));
            for argument in values {
                let expect = if holds(argument, bound) {
                    ALLOW
                } else {
                    EPERM_ACTION
                };
                assert_eq!(
                    call(&program, 0, &[9, 9, argument]),
                    expect,
                    "{argument} {op} {bound}"
                );
            }
        }
    }
}

#[test]
fn masks_and_several_arguments_combine() {
    let program = program(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": 0x7e02_0000u64, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]},
            {"names": ["socket"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"},
                      {"index": 1, "value": 3, "op": "SCMP_CMP_LT"}]},
            {"names": ["socket"], "action": "SCMP_ACT_KILL",
             "args": [{"index": 0, "value": 38, "op": "SCMP_CMP_EQ"}]},
            // Two conditions on one argument are alternatives.
            {"names": ["personality"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": 0, "op": "SCMP_CMP_EQ"},
                      {"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]}
        ]
    }));
    assert_eq!(call(&program, 56, &[0x11]), ALLOW);
    assert_eq!(call(&program, 56, &[0x1000_0000]), EPERM_ACTION);
    assert_eq!(call(&program, 41, &[1, 2]), ALLOW);
    assert_eq!(call(&program, 41, &[1, 3]), EPERM_ACTION);
    assert_eq!(call(&program, 41, &[38, 2]), KILL_THREAD);
    assert_eq!(call(&program, 135, &[0]), ALLOW);
    assert_eq!(call(&program, 135, &[8]), ALLOW);
    assert_eq!(call(&program, 135, &[1]), EPERM_ACTION);
}

#[test]
fn on_32_bit_architectures_only_the_low_half_counts() {
    let program = program(json!({
        "defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86"],
        "syscalls": [{"names": ["personality"], "action": "SCMP_ACT_ALLOW",
                      "args": [{"index": 0, "value": u64::MAX, "op": "SCMP_CMP_EQ"}]}]
    }));
    assert_eq!(on(&program, I386, 136, &[0xffff_ffff]), ALLOW);
    assert_eq!(call(&program, 135, &[0xffff_ffff]), EPERM_ACTION);
}

#[test]
fn the_first_matching_rule_decides() {
    let program = program(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [
            {"names": ["read"], "action": "SCMP_ACT_KILL", "args": [{"index": 0, "value": 5, "op": "SCMP_CMP_EQ"}]},
            {"names": ["read"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["read"], "action": "SCMP_ACT_LOG"}
        ]
    }));
    assert_eq!(call(&program, 0, &[5]), KILL_THREAD);
    assert_eq!(call(&program, 0, &[6]), ALLOW);
}

#[test]
fn a_big_profile_compiles_to_a_shallow_search() {
    // Every second call with a check of its own, so that neighbours never merge.
    let rules: Vec<Value> = (0u32..330)
        .filter_map(|nr| syscalls::x86_64::Sysno::new(usize::try_from(nr).unwrap()))
        .enumerate()
        .map(|(at, call)| {
            json!({"names": [call.name()], "action": "SCMP_ACT_ALLOW",
                   "args": [{"index": 0, "value": at, "op": "SCMP_CMP_EQ"}]})
        })
        .collect();
    let program = program(json!({"defaultAction": "SCMP_ACT_KILL_PROCESS", "syscalls": rules}));
    assert!(program.len() > 600, "long jumps are exercised");
    for (at, nr) in (0u32..330)
        .filter(|nr| syscalls::x86_64::Sysno::new(usize::try_from(*nr).unwrap()).is_some())
        .enumerate()
    {
        let at = u64::try_from(at).unwrap();
        assert_eq!(call(&program, nr, &[at]), ALLOW, "{nr}");
        assert_eq!(call(&program, nr, &[at + 1]), KILL_PROCESS, "{nr}");
    }
}

#[test]
fn what_means_nothing_is_refused_by_name() {
    for (profile, field) in [
        (json!({"defaultAction": "ALLOW"}), "defaultAction"),
        (json!({"defaultAction": "SCMP_ACT_NOTIFY"}), "defaultAction"),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1}),
            "defaultAction",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 4096}),
            "errnoRet",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_VAX"]}),
            "architectures",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["X"]}),
            "flags",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x"}),
            "listenerPath",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "X"}]}),
            "syscalls[0].action",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"],
                "action": "SCMP_ACT_KILL", "args": [{"index": 6, "op": "SCMP_CMP_EQ"}]}]}),
            "args[0].index",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"],
                "action": "SCMP_ACT_KILL", "args": [{"index": 0, "op": "EQ"}]}]}),
            "args[0].op",
        ),
    ] {
        let shown = profile.to_string();
        let text = error(profile);
        assert!(text.contains(field), "{shown}: {text}");
    }
    assert!(compile("[").is_err());
}

#[test]
fn flags_default_to_allowed_speculation() {
    let flags = |list: Value| {
        compile(&json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": list}).to_string())
            .unwrap()
            .flags
    };
    assert_eq!(flags(json!(null)), FLAG_SPEC_ALLOW);
    assert_eq!(flags(json!([])), 0);
    assert_eq!(
        flags(json!([
            "SECCOMP_FILTER_FLAG_LOG",
            "SECCOMP_FILTER_FLAG_TSYNC"
        ])),
        FLAG_LOG
    );
}

#[test]
fn numbers_come_from_each_table() {
    assert_eq!(Arch::X86_64.number("openat2"), Some(437));
    assert_eq!(Arch::X86.number("openat2"), Some(437));
    assert_eq!(Arch::X86.number("socketcall"), Some(102));
    assert_eq!(Arch::X86_64.number("socketcall"), None);
    assert_eq!(Arch::Aarch64.number("openat"), Some(56));
    assert_eq!(Arch::Arm.number("open"), Some(5));
    assert_eq!(Arch::X32.number("ioctl"), Some(X32_BIT | 514));
    assert_eq!(Arch::X32.number("read"), Some(X32_BIT));
}
