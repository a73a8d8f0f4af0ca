//! The compiler against libseccomp: the same profiles through both, judged by an interpreter over many calls
//! and by the kernel itself.
//!
//! Decided differently on purpose:
//!
//! | case | libseccomp as runc uses it | runc-lite | why |
//! | --- | --- | --- | --- |
//! | [`Difference::Foreign`]: call of an architecture that is not listed | kills the thread | kills the process | a program that has lost a thread hangs instead of ending |
//! | [`Difference::Overlap`]: rules with conditions of one call have different actions | the order of its tree, by argument and operator | the first that holds, as written | the order of the document can be read |
//! | [`Difference::Joined`]: several rules with conditions of one call have one action | one tree, in which 64-bit comparisons of one argument share their halves; seldom that leads past a rule that holds, or into one that does not | every rule for itself | seccomp_rule_add(3): the rules are a union |
//! | [`Difference::Conflict`]: two rules of different actions with the same conditions, or one within the other | refuses the profile (EEXIST); with contradictory comparisons 2.5.4 may never end | the first as written | as above |
//! | [`Difference::Multiplexed`]: 32-bit `socketcall` and `ipc` for a rule with conditions | replaces the condition on the first argument, keeps the others though they look at a pointer | forbids what may be forbidden, permits nothing by it | arguments lie in memory, where no filter looks |
//! | [`Difference::Version`]: 32-bit `ipc` with a version in the upper half of its first argument | compares the whole word, so it passes what it should forbid | forbids it as well | the kernel cuts the version off |
//! | numbers from 0x8000_0000 on (not compared) | x32 for libseccomp, newer than the profile for runc's stub where bit 30 is clear, also for a tracer's -1 with x32 | x32, and -1 has the default action | no such calls exist |
//! | names libseccomp does not know yet, on some architecture (not compared) | left out, and newer than the profile | known | a table of a later kernel |
//! | `errnoRet` for an action that takes none, or above 4095; a rule without names; no `defaultAction` (not compared) | ignored, cut to 16 bits; ignored; no filter at all | refused | the specification; CVE-2023-2431 |
//!
//! The rule for newer calls (ENOSYS above the highest number of the profile) is runc's, and expected here.
#![cfg(target_arch = "x86_64")]
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and a skip is printed"
)]

mod profiles;
mod sys;

use std::collections::BTreeMap;

use profiles::{Arch, Profile, Random, Rule};
use runc_lite::seccomp::compile::compile;
use runc_lite::seccomp::program::{Call, decide, run};
use sys::kernel;
use sys::libseccomp::Libseccomp;

const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;
const AARCH64: u32 = 0xc000_00b7;
const X32_BIT: u32 = 0x4000_0000;
const ENOSYS: u32 = 0x0005_0026;
const KILL_PROCESS: u32 = 0x8000_0000;
const KILL_THREAD: u32 = 0;

/// Why the two may decide differently, see the table above.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Difference {
    Foreign,
    Overlap,
    Joined,
    Conflict,
    Multiplexed,
    Version,
}

/// libseccomp, or `None` with the reason printed; a failure where the machine must have it.
fn library() -> Option<Libseccomp> {
    match Libseccomp::load() {
        Ok(library) => Some(library),
        Err(reason) => {
            assert!(
                std::env::var("AXIL_TEST_REQUIRE").as_deref() != Ok("1"),
                "cannot run without libseccomp2: {reason}"
            );
            println!("skipped: it needs libseccomp2: {reason}");
            None
        }
    }
}

/// One profile, ready to be compared.
struct Comparison<'a> {
    profile: &'a Profile,
    /// Rules that are not the default, by architecture and number.
    rules: BTreeMap<(u32, u32), Vec<&'a Rule>>,
    /// Highest number by architecture, as runc finds it.
    highest: BTreeMap<u32, u32>,
    /// Rules of calls that the 32-bit architecture has behind a multiplexer.
    multiplexed: Vec<&'a Rule>,
}

impl<'a> Comparison<'a> {
    fn new(profile: &'a Profile) -> Comparison<'a> {
        let mut rules: BTreeMap<(u32, u32), Vec<&Rule>> = BTreeMap::new();
        let mut highest = BTreeMap::new();
        let mut multiplexed = Vec::new();
        for rule in &profile.rules {
            for arch in &profile.architectures {
                let token = arch.token();
                if *arch == Arch::X86 && profiles::is_multiplexed(rule.name) {
                    multiplexed.push(rule);
                }
                let Some(number) = arch.number(rule.name) else {
                    continue;
                };
                let top = highest.entry(token).or_insert(number);
                *top = number.max(*top);
                if rule.action.value != profile.default.value {
                    rules.entry((token, number)).or_default().push(rule);
                }
            }
        }
        Comparison {
            profile,
            rules,
            highest,
            multiplexed,
        }
    }

    /// The architecture whose calls `call` is one of, if the profile lists it.
    fn arch_of(&self, call: &Call) -> Option<Arch> {
        match call.arch {
            X86_64 if call.nr < X32_BIT || call.nr == u32::MAX => Some(Arch::X86_64),
            X86_64 => Some(Arch::X32),
            I386 => Some(Arch::X86),
            _ => None,
        }
        .filter(|arch| self.profile.architectures.contains(arch))
    }

    /// Whether runc's stub calls it newer than the profile, under a default that forbids.
    fn is_newer(&self, arch: Arch, nr: u32) -> bool {
        let permissive = [0x7fff_0000, 0x7ffc_0000, 0x7ff0_0000];
        let highest = self.highest.get(&arch.token()).copied().unwrap_or(0);
        !permissive.contains(&(self.profile.default.value & 0xffff_0000))
            && highest & !X32_BIT != 0
            && nr > highest
            && !(arch == Arch::X86_64 && nr == u32::MAX)
    }

    /// What the document says of a call that no multiplexer is involved in.
    fn meaning(&self, arch: Arch, call: &Call) -> u32 {
        if self.is_newer(arch, call.nr) {
            return ENOSYS;
        }
        let rules = self.rules.get(&(arch.token(), call.nr));
        let rules = rules.map_or(&[][..], Vec::as_slice);
        let always = rules.iter().find(|rule| rule.args.is_empty());
        let holds = |rule: &&&Rule| rule.matches(&call.args, arch.width());
        always
            .or_else(|| rules.iter().find(holds))
            .map_or(self.profile.default.value, |rule| rule.action.value)
    }

    /// Checks one decision; gives the difference that explains it if they are not the same.
    #[track_caller]
    fn judge(&self, call: &Call, ours: u32, theirs: u32) -> Option<Difference> {
        let arch = self.arch_of(call);
        let through_multiplexer = call.arch == I386 && (call.nr == 102 || call.nr == 117);
        let theirs = match arch {
            Some(arch) if self.is_newer(arch, call.nr) => ENOSYS,
            _ => theirs,
        };
        let explain = || {
            let Some(arch) = arch else {
                return ((ours, theirs) == (KILL_PROCESS, KILL_THREAD))
                    .then_some(Difference::Foreign);
            };
            if through_multiplexer {
                if call.nr == 117 && call.args[0] & 0xffff_ffff > 0xffff {
                    return Some(Difference::Version);
                }
                let conditional = self.multiplexed.iter().any(|rule| !rule.args.is_empty());
                return conditional.then_some(Difference::Multiplexed);
            }
            let rules = self.rules.get(&(arch.token(), call.nr))?;
            let first = rules.first()?.action.value;
            if rules.iter().any(|rule| rule.action.value != first) {
                return Some(Difference::Overlap);
            }
            let groups: usize = rules.iter().map(|rule| rule.groups()).sum();
            (groups > 1).then_some(Difference::Joined)
        };
        let shown = || {
            let rules = arch.map(|arch| self.rules.get(&(arch.token(), call.nr)));
            format!(
                "{call:x?}, rules {rules:?}, profile {}",
                self.profile.json()
            )
        };
        if let Some(arch) = arch
            && !through_multiplexer
        {
            let meaning = self.meaning(arch, call);
            assert_eq!(ours, meaning, "{ours:#x} is not {meaning:#x}: {}", shown());
        }
        if ours == theirs {
            return None;
        }
        let difference = explain();
        assert!(
            difference.is_some(),
            "{ours:#x} here, {theirs:#x} there: {}",
            shown()
        );
        difference
    }

    /// Calls worth asking about: every number around those of the profile, with arguments around its values.
    fn calls(&self, random: &mut Random, per_number: usize) -> Vec<Call> {
        let mut numbers = Vec::new();
        for (token, number) in self.rules.keys() {
            let arch = if *token == I386 { I386 } else { X86_64 };
            numbers.extend([
                (arch, *number),
                (arch, number.saturating_sub(1)),
                (arch, number + 1),
            ]);
        }
        for nr in [
            0,
            1,
            102,
            117,
            335,
            424,
            471,
            512,
            548,
            5000,
            X32_BIT - 1,
            u32::MAX,
        ] {
            numbers.extend([
                (X86_64, nr),
                (X86_64, nr | X32_BIT),
                (I386, nr),
                (AARCH64, nr),
            ]);
        }
        let values: Vec<u64> = self
            .profile
            .rules
            .iter()
            .flat_map(|rule| &rule.args)
            .flat_map(|a| {
                [
                    a.value,
                    a.value_two,
                    a.value.wrapping_add(1),
                    a.value.wrapping_sub(1),
                ]
            })
            .collect();
        let mut calls = Vec::new();
        for (arch, nr) in numbers {
            for _ in 0..per_number {
                let args = std::array::from_fn(|_| {
                    if values.is_empty() || random.below(3) == 0 {
                        random.value()
                    } else {
                        random.pick(&values)
                    }
                });
                let args = if arch == I386 {
                    args.map(|a: u64| a & 0xffff_ffff)
                } else {
                    args
                };
                let mut call = Call { nr, arch, args };
                if arch == I386 && (nr == 102 || nr == 117) && random.below(2) == 0 {
                    call.args[0] = random.below(26) as u64;
                }
                calls.push(call);
            }
        }
        calls
    }
}

/// Compares `profile` by the interpreter; counts differences by reason.
fn compare(
    library: &Libseccomp,
    profile: &Profile,
    random: &mut Random,
    per_number: usize,
    counts: &mut BTreeMap<Difference, usize>,
) -> usize {
    let ours = compile(&profile.json(), &mut |_| {}).unwrap();
    let Some(theirs) = library.compile_bounded(profile) else {
        *counts.entry(Difference::Conflict).or_default() += 1;
        return 0;
    };
    let comparison = Comparison::new(profile);
    let calls = comparison.calls(random, per_number);
    for call in &calls {
        let ours = decide(&ours.programs, call).unwrap();
        let theirs = run(&theirs, call).unwrap();
        if let Some(difference) = comparison.judge(call, ours, theirs) {
            *counts.entry(difference).or_default() += 1;
        }
    }
    calls.len()
}

/// Drops rules of calls that libseccomp's table numbers differently, or not at all.
fn keep_known(library: &Libseccomp, profile: &mut Profile) {
    let same_on = |arch: Arch, name: &str| {
        match (arch.number(name), library.number(arch.token(), name)) {
            (Some(ours), Some(theirs)) if theirs >= 0 => u32::try_from(theirs) == Ok(ours),
            // Its own number for what is behind a multiplexer.
            (Some(_), Some(_)) => arch == Arch::X86 && profiles::is_multiplexed(name),
            (None, Some(theirs)) => theirs < 0,
            (None, None) => true,
            (Some(_), None) => false,
        }
    };
    let same = |name: &str| {
        // runc leaves out what has no number on the native architecture, not even a pseudo number.
        library.number(X86_64, name).is_some()
            && Arch::ALL.into_iter().all(|arch| same_on(arch, name))
    };
    profile.rules.retain(|rule| same(rule.name));
}

#[test]
fn the_default_profile_decides_as_with_libseccomp() {
    let Some(library) = library() else { return };
    let mut profile = profiles::default_shape();
    keep_known(&library, &mut profile);
    assert!(profile.rules.len() > 350);
    let mut counts = BTreeMap::new();
    let calls = compare(&library, &profile, &mut Random(1), 20, &mut counts);
    println!("{calls} calls, differences {counts:?}");
    assert!(calls > 40_000);
    // No other difference: what engines ship means the same here.
    let differences: Vec<_> = counts.into_keys().collect();
    assert_eq!(differences, [Difference::Foreign]);
}

#[test]
fn random_profiles_decide_as_with_libseccomp() {
    let Some(library) = library() else { return };
    let mut counts = BTreeMap::new();
    let mut calls = 0;
    for seed in 0..300 {
        let mut random = Random(seed);
        let mut profile = profiles::random(&mut random, seed % 4 == 3);
        keep_known(&library, &mut profile);
        calls += compare(&library, &profile, &mut random, 8, &mut counts);
    }
    println!("{calls} calls, differences {counts:?}");
    assert!(calls > 200_000);
    // What libseccomp joins wrongly is rare; more would be ours.
    assert!(
        counts
            .get(&Difference::Joined)
            .is_none_or(|joined| joined * 100 < calls)
    );
}

#[test]
fn what_a_multiplexer_hides_is_forbidden_here_and_passes_there() {
    let Some(library) = library() else { return };
    let second_is_raw = profiles::Argument {
        index: 1,
        op: "EQ",
        value: 3,
        value_two: 0,
    };
    let forbid = |name, args| Rule {
        name,
        action: profiles::EPERM,
        args,
    };
    let profile = Profile {
        default: profiles::ALLOW,
        architectures: vec![Arch::X86],
        rules: vec![
            forbid("socket", vec![second_is_raw]),
            forbid("shmat", Vec::new()),
        ],
    };
    let ours = compile(&profile.json(), &mut |_| {}).unwrap();
    let theirs = library.compile_bounded(&profile).unwrap();
    let comparison = Comparison::new(&profile);
    // socketcall(SYS_SOCKET, pointer) and ipc(SHMAT, version 1).
    for (nr, first, why) in [
        (102, 1, Difference::Multiplexed),
        (117, 0x1_0015, Difference::Version),
    ] {
        let call = Call {
            nr,
            arch: I386,
            args: [first, 0xbfff_0000, 0, 0, 0, 0],
        };
        let (ours, theirs) = (decide(&ours.programs, &call), run(&theirs, &call));
        let (ours, theirs) = (ours.unwrap(), theirs.unwrap());
        assert_eq!(
            (ours, theirs),
            (profiles::EPERM.value, profiles::ALLOW.value)
        );
        assert_eq!(comparison.judge(&call, ours, theirs), Some(why));
    }
}

#[test]
fn the_kernel_decides_as_the_interpreter_and_as_with_libseccomp() {
    let Some(library) = library() else { return };
    let compat = kernel::has_compat();
    if !compat {
        println!("without calls of 32 bits: this kernel has none");
    }
    let mut all = vec![profiles::default_shape()];
    all.extend((1000..1024).map(|seed| profiles::random(&mut Random(seed), false)));
    for profile in &mut all {
        keep_known(&library, profile);
    }
    let mut judged = 0;
    for (seed, profile) in (0u64..).zip(&all) {
        let ours = compile(&profile.json(), &mut |_| {}).unwrap();
        let Some(theirs) = library.compile_bounded(profile) else {
            continue;
        };
        let comparison = Comparison::new(profile);
        let mut calls = comparison.calls(&mut Random(seed), 3);
        // A number of minus one is no call for the kernel, uretprobe and uprobe it keeps from every filter,
        // and other machines' calls cannot be made here.
        calls.retain(|call| match call.arch {
            X86_64 => ![335, 336, u32::MAX].contains(&call.nr),
            I386 => compat && call.nr != u32::MAX,
            _ => false,
        });
        let here = kernel::decisions(&ours.programs[0], &calls);
        let there = kernel::decisions(&theirs, &calls);
        for ((call, here), there) in calls.iter().zip(here).zip(there) {
            assert_eq!(Some(here), run(&ours.programs[0], call), "{call:x?}");
            assert_eq!(Some(there), run(&theirs, call), "{call:x?}");
            comparison.judge(call, here, there);
            judged += 1;
        }
    }
    println!("{judged} calls");
    assert!(judged > 5000);
}

#[test]
fn the_kernel_takes_a_profile_spread_over_programs() {
    // Calls without arguments and effects, each permitted for many values of an argument nobody looks at.
    const CALLS: [(&str, u32); 8] = [
        ("getpid", 39),
        ("getuid", 102),
        ("getgid", 104),
        ("geteuid", 107),
        ("getegid", 108),
        ("getppid", 110),
        ("gettid", 186),
        ("sched_yield", 24),
    ];
    let mut profile = Profile {
        default: profiles::EPERM,
        architectures: vec![Arch::X86_64],
        rules: Vec::new(),
    };
    for name in ["seccomp", "exit_group"] {
        profile.rules.push(Rule {
            name,
            action: profiles::ALLOW,
            args: Vec::new(),
        });
    }
    for (name, _) in CALLS {
        profile.rules.extend((0..300).map(|value| Rule {
            name,
            action: profiles::ALLOW,
            args: vec![profiles::Argument {
                index: 5,
                op: "EQ",
                value: value * 0x1_0000_0001,
                value_two: 0,
            }],
        }));
    }
    let filter = compile(&profile.json(), &mut |_| {}).unwrap();
    assert!(filter.programs.len() > 1);
    let values = [
        0,
        1,
        0x1_0000_0001,
        299 * 0x1_0000_0001,
        300 * 0x1_0000_0001,
        0x1_0000_0000,
    ];
    let permitted = [true, false, true, true, false, false];
    let results = kernel::in_child(CALLS.len() * values.len(), &|results| {
        rustix::thread::set_no_new_privs(true).unwrap();
        for (program, _) in filter.loads() {
            if runc_lite::sys::load_seccomp(program, 0).is_err() {
                return;
            }
        }
        let calls = CALLS
            .iter()
            .flat_map(|(_, nr)| values.map(|value| (*nr, value)));
        for ((nr, value), result) in calls.zip(results) {
            // Two more than the result: 1 is EPERM, and zero remains for calls that were not made.
            *result = kernel::enter(nr, [0, 0, 0, 0, 0, value]) + 2;
        }
    });
    for (at, result) in results.iter().enumerate() {
        let (name, _) = CALLS[at / values.len()];
        match permitted[at % values.len()] {
            true => assert!(*result >= 2, "{name} {result}"),
            false => assert_eq!(*result, 1, "{name}"),
        }
    }
}
