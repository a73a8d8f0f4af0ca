//! Tests of the compiler: its programs are run by an interpreter and must decide as the profile says.

use serde_json::{Value, json};

use super::super::action::*;
use super::super::program::{Call, MAX_INSTRUCTIONS, decide, is_legal, run};
use super::super::{FLAG_LOG, FLAG_SPEC_ALLOW, FLAG_WAIT_KILLABLE_RECV};
use super::*;
use crate::sys::SECCOMP_NEW_LISTENER;

const NATIVE: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;
const EPERM_ACTION: u32 = ERRNO | 1;
const ENOSYS_ACTION: u32 = ERRNO | ENOSYS;

fn filter(profile: &Value) -> Result<Filter, SeccompError> {
    compile(&profile.to_string(), &mut |_| {})
}

fn program(profile: Value) -> Vec<BpfInstruction> {
    let mut programs = filter(&profile).unwrap().programs;
    assert_eq!(programs.len(), 1);
    assert!(is_legal(&programs[0]));
    programs.remove(0)
}

fn call(program: &[BpfInstruction], nr: u32, args: &[u64]) -> u32 {
    on(program, NATIVE, nr, args)
}

fn on(program: &[BpfInstruction], arch: u32, nr: u32, args: &[u64]) -> u32 {
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    run(
        program,
        &Call {
            nr,
            arch,
            args: all,
        },
    )
    .unwrap()
}

fn error(profile: Value) -> String {
    filter(&profile).unwrap_err().to_string()
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
fn rules_are_a_union_in_which_one_without_conditions_wins() {
    let is_five = json!([{"index": 0, "value": 5, "op": "SCMP_CMP_EQ"}]);
    let program = program(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [
            {"names": ["read", "write"], "action": "SCMP_ACT_KILL", "args": is_five},
            {"names": ["read"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["read"], "action": "SCMP_ACT_LOG"},
            {"names": ["write"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": 9, "op": "SCMP_CMP_LT"}]}
        ]
    }));
    // As libseccomp says of the more specific rule: dropped (seccomp_rule_add(3)).
    assert_eq!(call(&program, 0, &[5]), ALLOW);
    assert_eq!(call(&program, 0, &[6]), ALLOW);
    // With conditions on both, the first that holds.
    assert_eq!(call(&program, 1, &[5]), KILL_THREAD);
    assert_eq!(call(&program, 1, &[6]), ALLOW);
    assert_eq!(call(&program, 1, &[9]), EPERM_ACTION);
}

#[test]
fn a_tracing_or_logging_default_sees_newer_calls() {
    for default in ["SCMP_ACT_TRACE", "SCMP_ACT_LOG", "SCMP_ACT_ALLOW"] {
        let program = program(json!({"defaultAction": default,
            "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_KILL"}]}));
        let other = call(&program, 0, &[]);
        assert_ne!(other, ENOSYS_ACTION);
        assert_eq!(call(&program, 5000, &[]), other, "{default}");
    }
    // Only number zero is named: as in runc, nothing is newer than that.
    let program = program(json!({"defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}]}));
    assert_eq!(call(&program, 5000, &[]), EPERM_ACTION);
}

#[test]
fn calls_through_a_multiplexer_follow_the_rules_of_the_calls() {
    const SOCKETCALL: u32 = 102;
    const IPC: u32 = 117;
    let af = |op: &str| json!([{"index": 0, "value": 38, "op": op}]);
    let open = program(json!({
        "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86"],
        "syscalls": [{"names": ["bind", "shmat"], "action": "SCMP_ACT_ERRNO"},
                     {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "args": af("SCMP_CMP_EQ")}]
    }));
    assert_eq!(on(&open, I386, SOCKETCALL, &[2]), EPERM_ACTION);
    // Nobody can see the family in there, so it is taken for the forbidden one.
    assert_eq!(on(&open, I386, SOCKETCALL, &[1]), EPERM_ACTION);
    assert_eq!(on(&open, I386, SOCKETCALL, &[3]), ALLOW);
    assert_eq!(on(&open, I386, IPC, &[21]), EPERM_ACTION);
    // The kernel cuts the version off, and would take this for shmat as well.
    assert_eq!(on(&open, I386, IPC, &[0x1_0015]), EPERM_ACTION);
    let closed = program(json!({
        "defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86"],
        "syscalls": [{"names": ["bind", "shmat", "statx"], "action": "SCMP_ACT_ALLOW"},
                     {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": af("SCMP_CMP_NE")}]
    }));
    assert_eq!(on(&closed, I386, SOCKETCALL, &[2]), ALLOW);
    assert_eq!(on(&closed, I386, SOCKETCALL, &[1]), EPERM_ACTION);
    assert_eq!(on(&closed, I386, 359, &[1]), ALLOW);
    assert_eq!(on(&closed, I386, 359, &[38]), EPERM_ACTION);
    assert_eq!(on(&closed, I386, IPC, &[21]), ALLOW);
    assert_eq!(on(&closed, I386, IPC, &[0x1_0015]), EPERM_ACTION);
}

#[test]
fn a_profile_too_long_for_one_program_is_spread_over_several() {
    // 340 calls, each permitted for eight values of an argument, on three architectures.
    let names: Vec<&str> = (0..340)
        .filter_map(|nr| Some(syscalls::x86_64::Sysno::new(nr)?.name()))
        .collect();
    let rules: Vec<Value> = names
        .iter()
        .enumerate()
        .flat_map(|(at, name)| {
            (0..3).map(move |n| {
                json!({"names": [name], "action": "SCMP_ACT_ALLOW",
                       "args": [{"index": 1, "value": (at * 8 + n), "op": "SCMP_CMP_EQ"}]})
            })
        })
        .collect();
    let profile = json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules,
                         "architectures": ["SCMP_ARCH_X86"]});
    let filter = filter(&profile).unwrap();
    assert!(filter.programs.len() > 1);
    assert!(filter.programs.iter().all(|program| is_legal(program)));
    let decision = |nr, arch, args| decide(&filter.programs, &Call { nr, arch, args }).unwrap();
    for (at, name) in names.iter().enumerate() {
        let nr = Arch::X86_64.numbers()[name];
        let base = u64::try_from(at * 8).unwrap();
        for value in base..base + 3 {
            assert_eq!(
                decision(nr, NATIVE, [0, value, 0, 0, 0, 0]),
                ALLOW,
                "{name}"
            );
        }
        let beside = [0, base + 3, 0, 0, 0, 0];
        assert_eq!(decision(nr, NATIVE, beside), EPERM_ACTION, "{name}");
        assert_eq!(decision(X32_BIT | nr, NATIVE, beside), KILL_PROCESS);
        if let Some(&nr) = Arch::X86.numbers().get(name) {
            assert_eq!(decision(nr, I386, [0, base, 0, 0, 0, 0]), ALLOW, "{name}");
            assert_eq!(decision(nr, I386, beside), EPERM_ACTION, "{name}");
        }
    }
    assert_eq!(decision(5000, NATIVE, [0; 6]), ENOSYS_ACTION);
    assert_eq!(decision(0, 0xc000_00b7, [0; 6]), KILL_PROCESS);
    // The first program must not forbid loading the second.
    let loads = Call {
        nr: 317,
        arch: NATIVE,
        args: [1, 0, 0, 0, 0, 0],
    };
    assert_eq!(run(&filter.programs[0], &loads), Some(ALLOW));
}

#[test]
fn what_no_number_of_programs_can_hold_is_refused() {
    let rule = |value: u32| {
        json!({"names": ["ioctl"], "action": "SCMP_ACT_ALLOW",
               "args": [{"index": 1, "value": value, "op": "SCMP_CMP_EQ"}]})
    };
    let rules: Vec<Value> = (0..1000).map(rule).collect();
    let text = error(json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules}));
    assert!(text.contains(&MAX_INSTRUCTIONS.to_string()), "{text}");
}

#[test]
fn an_agent_is_asked_by_rules_only() {
    let profile = |action: &str, name: &str, path: &str| {
        json!({"defaultAction": action, "listenerPath": path, "listenerMetadata": "",
               "syscalls": [{"names": [name], "action": "SCMP_ACT_NOTIFY"}]})
    };
    let asking = filter(&profile("SCMP_ACT_ALLOW", "mkdir", "/run/agent")).unwrap();
    assert_eq!(asking.flags, FLAG_SPEC_ALLOW | SECCOMP_NEW_LISTENER);
    assert_eq!(asking.listener.unwrap().path, "/run/agent");
    assert_eq!(call(&asking.programs[0], 83, &[]), NOTIFY);
    for (profile, words) in [
        (
            profile("SCMP_ACT_NOTIFY", "mkdir", "/a"),
            "cannot be used as default action",
        ),
        (
            profile("SCMP_ACT_ALLOW", "write", "/a"),
            "cannot be used for the write syscall",
        ),
        (profile("SCMP_ACT_ALLOW", "mkdir", ""), "listenerPath"),
        (
            profile("SCMP_ACT_ALLOW", "mkdir", "run/agent"),
            "listenerPath",
        ),
    ] {
        let text = error(profile);
        assert!(text.contains(words), "{text}");
    }
    // Nobody is asked: the path is ignored, as the specification says.
    let idle = json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/agent"});
    assert_eq!(filter(&idle).unwrap().listener, None);
}

#[test]
fn waiting_killable_goes_with_an_agent_only() {
    let flags = json!(["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]);
    let mut profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/a", "flags": flags,
                             "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]});
    let filter = filter(&profile).unwrap();
    assert_eq!(filter.flags, FLAG_WAIT_KILLABLE_RECV | SECCOMP_NEW_LISTENER);
    profile["syscalls"] = json!([]);
    assert!(error(profile).contains("SCMP_ACT_NOTIFY"));
}

#[test]
fn what_is_left_out_is_told() {
    let profile = json!({"defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_MIPS"],
        "syscalls": [{"names": ["read", "no_such_call"], "action": "SCMP_ACT_ALLOW"}]});
    let mut notes = Vec::new();
    compile(&profile.to_string(), &mut |note| notes.push(note)).unwrap();
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert!(notes.iter().any(|note| note.contains("SCMP_ARCH_MIPS")));
    assert!(notes.iter().any(|note| note.contains("no_such_call")));
}

#[test]
fn lists_that_go_writes_as_null_are_empty() {
    let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": null, "flags": null,
        "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_KILL", "args": null}]});
    assert_eq!(call(&program(profile), 83, &[]), KILL_THREAD);
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
        (json!({}), "defaultAction"),
        (json!({"defaultAction": null}), "defaultAction"),
        (json!({"defaultAction": "SCMP_ACT_NOTIFY"}), "defaultAction"),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": [], "action": "SCMP_ACT_KILL"}]}),
            "syscalls[0].names",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": [""], "action": "SCMP_ACT_KILL"}]}),
            "syscalls[0].names",
        ),
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
            json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerMetadata": "x"}),
            "listenerMetadata",
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
    assert!(compile("[", &mut |_| {}).is_err());
}

#[test]
fn flags_default_to_allowed_speculation() {
    let flags = |list: Value| {
        filter(&json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": list}))
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
    assert_eq!(Arch::X86_64.numbers().get("openat2").copied(), Some(437));
    assert_eq!(Arch::X86.numbers().get("openat2").copied(), Some(437));
    assert_eq!(Arch::X86.numbers().get("socketcall").copied(), Some(102));
    assert_eq!(Arch::X86_64.numbers().get("socketcall").copied(), None);
    assert_eq!(Arch::Aarch64.numbers().get("openat").copied(), Some(56));
    assert_eq!(Arch::Arm.numbers().get("open").copied(), Some(5));
    assert_eq!(
        Arch::X32.numbers().get("ioctl").copied(),
        Some(X32_BIT | 514)
    );
    assert_eq!(Arch::X32.numbers().get("read").copied(), Some(X32_BIT));
}
