//! The compiler: a profile → BPF programs that decide by architecture, then by number, then by arguments.
//!
//! ```text
//! arch = native?  ──► [x32 number?] ──► number above all the profile names? ──► ENOSYS
//!      = compat?  ──► ...          └──► binary search ──► return | argument checks
//!      otherwise  ──► kill
//! ```
//!
//! For one call the rules are a union, as libseccomp makes it: a rule without conditions beats all that have
//! some, of several without conditions the first decides, and of those with conditions the first whose
//! conditions hold. Rules whose action is the default action are left out, as in runc. Where this compiler
//! decides differently from libseccomp on purpose is listed in `tests/differential`.

use std::collections::{BTreeMap, HashMap};

use super::action::{ENOSYS, ERRNO, KILL_PROCESS, hides_newer, is_stricter};
use super::names::{Arch, X32_BIT, multiplexed};
use super::profile::{self, Profile};
use super::split;
use super::tree::{
    Comparison, Condition, OFFSET_ARCH, OFFSET_NR, Outcome, Range, if_at_least, if_equal, load,
    ret, search,
};
use super::{Filter, SeccompError};
use crate::sys::BpfInstruction;

/// Compiles the text of a profile. `note` is told what is left out: unknown calls, architectures that
/// cannot run here.
///
/// # Errors
/// [`SeccompError`] naming the field.
pub fn compile(text: &str, note: &mut dyn FnMut(String)) -> Result<Filter, SeccompError> {
    let profile = profile::parse(text, note)?;
    let sections = sections(&profile, note);
    let whole = Body {
        default: profile.default,
        foreign: KILL_PROCESS,
        newer: hides_newer(profile.default).then_some(ERRNO | ENOSYS),
    };
    Ok(Filter {
        flags: profile.flags,
        programs: split::programs(sections, whole)?,
        listener: profile.listener,
    })
}

/// The decisions of one architecture: outcomes by number and the highest number the profile names.
#[derive(Debug, Clone)]
pub(super) struct Section {
    pub(super) arch: Arch,
    pub(super) outcomes: BTreeMap<u32, Outcome>,
    pub(super) highest: Option<u32>,
}

/// What a program does with calls that have no outcome.
#[derive(Debug, Clone, Copy)]
pub(super) struct Body {
    /// Calls of the profile's architectures.
    pub(super) default: u32,
    /// Calls of other architectures.
    pub(super) foreign: u32,
    /// Calls above the highest number of the profile, if they are another case.
    pub(super) newer: Option<u32>,
}

/// What the rules say about one call so far.
#[derive(Debug, Default)]
struct Union {
    alternatives: Vec<(Vec<Condition>, u32)>,
    always: Option<u32>,
}

impl Union {
    fn add(&mut self, alternatives: &[Vec<Condition>], action: u32) {
        if alternatives.is_empty() {
            self.always.get_or_insert(action);
        } else {
            let with_action = alternatives.iter().map(|group| (group.clone(), action));
            self.alternatives.extend(with_action);
        }
    }

    fn outcome(self, default: u32) -> Outcome {
        match self.always {
            Some(action) => Outcome::always(action),
            None => Outcome {
                alternatives: self.alternatives,
                otherwise: default,
            },
        }
    }
}

fn sections(profile: &Profile, note: &mut dyn FnMut(String)) -> Vec<Section> {
    let tables: Vec<_> = profile
        .architectures
        .iter()
        .map(|arch| (*arch, arch.numbers()))
        .collect();
    for name in profile.rules.iter().flat_map(|rule| &rule.names) {
        let known = |(arch, table): &(Arch, HashMap<&str, u32>)| {
            table.contains_key(name.as_str()) || *arch == Arch::X86 && multiplexed(name).is_some()
        };
        if !tables.iter().any(known) {
            note(format!("seccomp: unknown system call {name:?} left out"));
        }
    }
    tables
        .iter()
        .map(|(arch, numbers)| section(*arch, numbers, profile))
        .collect()
}

fn section(arch: Arch, numbers: &HashMap<&'static str, u32>, profile: &Profile) -> Section {
    let mut unions: BTreeMap<u32, Union> = BTreeMap::new();
    let mut highest = None;
    for rule in &profile.rules {
        for name in &rule.names {
            let Some(&number) = numbers.get(name.as_str()) else {
                continue;
            };
            highest = highest.max(Some(number));
            if rule.action != profile.default {
                let union = unions.entry(number).or_default();
                union.add(&rule.alternatives, rule.action);
            }
        }
    }
    if arch == Arch::X86 {
        add_multiplexed(&mut unions, profile);
    }
    Section {
        arch,
        outcomes: unions
            .into_iter()
            .map(|(number, union)| (number, union.outcome(profile.default)))
            .collect(),
        // runc takes number zero for "names nothing".
        highest: highest.filter(|number| *number & !X32_BIT != 0),
    }
}

/// `socketcall` and `ipc` carry calls that have numbers of their own, too: a rule for one of those holds for
/// both ways.
fn add_multiplexed(unions: &mut BTreeMap<u32, Union>, profile: &Profile) {
    /// The first action without conditions, and the first that may apply.
    #[derive(Default)]
    struct Choice {
        always: Option<u32>,
        perhaps: Option<u32>,
    }
    let mut inner: BTreeMap<(u32, u32), Choice> = BTreeMap::new();
    for rule in &profile.rules {
        let strict = is_stricter(rule.action, profile.default);
        for call in rule.names.iter().filter_map(|name| multiplexed(name)) {
            if rule.action == profile.default {
                continue;
            }
            let known = inner.entry(call).or_default();
            if rule.alternatives.is_empty() {
                known.always.get_or_insert(rule.action);
            } else if strict {
                // Its arguments lie in memory, where no filter looks. A condition that would permit is never
                // known to hold; one that would forbid may hold.
                known.perhaps.get_or_insert(rule.action);
            }
        }
    }
    for ((number, call), known) in inner {
        let Some(action) = known.always.or(known.perhaps) else {
            continue;
        };
        // The upper half of ipc's argument is a version that the kernel cuts off: with it a call could slip
        // past what forbids it.
        let comparison = if is_stricter(action, profile.default) {
            Comparison::MaskedEqual { mask: 0xffff }
        } else {
            Comparison::Equal
        };
        let condition = Condition {
            index: 0,
            comparison,
            value: call.into(),
        };
        let group = [vec![condition]];
        unions.entry(number).or_default().add(&group, action);
    }
}

fn body(section: &Section, body: Body) -> Vec<BpfInstruction> {
    let default = Outcome::always(body.default);
    let newer = body.newer.map(Outcome::always);
    let first = if section.arch == Arch::X32 {
        X32_BIT
    } else {
        0
    };
    let mut ranges: Vec<Range<'_>> = Vec::with_capacity(2 * section.outcomes.len() + 2);
    let mut push = |start: u32, outcome| match ranges.last_mut() {
        Some(last) if last.start == start => last.outcome = outcome,
        _ => ranges.push(Range { start, outcome }),
    };
    push(first, &default);
    for (&number, outcome) in &section.outcomes {
        push(number, outcome);
        push(number + 1, &default);
    }
    if let (Some(highest), Some(newer)) = (section.highest, &newer) {
        push(highest + 1, newer);
    }
    ranges.dedup_by(|later, earlier| later.outcome == earlier.outcome);
    search(&ranges, !section.arch.is_32_bit())
}

/// The program of `sections`.
pub(super) fn join(sections: &[Section], rest: Body) -> Vec<BpfInstruction> {
    let mut program = vec![load(OFFSET_ARCH)];
    for section in sections {
        if section.arch == Arch::X32 {
            continue;
        }
        let mut part = vec![load(OFFSET_NR)];
        let own = body(section, rest);
        if section.arch == Arch::X86_64 {
            let x32 = match sections.iter().find(|section| section.arch == Arch::X32) {
                Some(section) => body(section, rest),
                None => vec![ret(rest.foreign)],
            };
            // Minus one is what a tracer writes to skip a call; it is no x32 number.
            let mut high = if_equal(u32::MAX, vec![ret(rest.default)]);
            high.extend(x32);
            part.extend(if_at_least(X32_BIT, high, own));
        } else {
            part.extend(own);
        }
        program.extend(if_equal(section.arch.audit(), part));
    }
    program.push(ret(rest.foreign));
    program
}

// The expected numbers are those of one architecture.
#[cfg(test)]
#[cfg(target_arch = "x86_64")]
mod tests;
