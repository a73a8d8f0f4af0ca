//! Profiles that are longer than one program may be: the kernel runs every filter of a process and takes the
//! strictest answer, so calls can be decided in different programs if each program allows what another one
//! decides.
//!
//! The last program keeps what must be there: calls that ask an agent, because only one program can have a
//! listener; `seccomp` itself, or the first program could forbid loading the second; and everything without
//! conditions, which takes no room.

use super::SeccompError;
use super::action::{ALLOW, NOTIFY};
use super::compile::{Body, Section, join};
use super::names::Arch;
use super::program::MAX_INSTRUCTIONS;
use super::tree::{Outcome, leaf};
use crate::sys::BpfInstruction;

/// Bound of all programs together. The kernel's own is 32768 (`MAX_INSNS_PER_PATH`), counted after a
/// translation that may double them; and every call of the container runs through all of it.
const MAX_TOTAL: usize = 4 * MAX_INSTRUCTIONS;
/// Room for one more call in the search: two steps, each a long jump at most.
const SEARCH_STEP: usize = 6;
/// Room for the way to a section.
const FRAME: usize = 64;

/// Compiles `sections` into as many programs as it takes.
pub(super) fn programs(
    mut sections: Vec<Section>,
    last: Body,
) -> Result<Vec<Vec<BpfInstruction>>, SeccompError> {
    let whole = join(&sections, last);
    if whole.len() <= MAX_INSTRUCTIONS {
        return Ok(vec![whole]);
    }
    let too_long = |count, limit| Err(SeccompError::TooLong { count, limit });
    if whole.len() > MAX_TOTAL {
        return too_long(whole.len(), MAX_TOTAL);
    }
    let excess = whole.len() - MAX_INSTRUCTIONS;
    let mut moved = 0;
    let mut programs = Vec::new();
    let mut early = Vec::new();
    let mut room = MAX_INSTRUCTIONS - FRAME;
    for (at, number, weight) in movable(&sections) {
        if weight > MAX_INSTRUCTIONS - FRAME {
            return too_long(weight, MAX_INSTRUCTIONS);
        }
        if weight > room {
            programs.push(early_program(std::mem::take(&mut early)));
            room = MAX_INSTRUCTIONS - FRAME;
        }
        room -= weight;
        moved += weight;
        let arch = sections[at].arch;
        if let Some(outcome) = sections[at].outcomes.get_mut(&number) {
            early.push((
                arch,
                number,
                std::mem::replace(outcome, Outcome::always(ALLOW)),
            ));
        }
        if moved < excess {
            continue;
        }
        let rest = join(&sections, last);
        if rest.len() <= MAX_INSTRUCTIONS {
            programs.push(early_program(early));
            programs.push(rest);
            return match programs.iter().find(|p| p.len() > MAX_INSTRUCTIONS) {
                Some(program) => too_long(program.len(), MAX_INSTRUCTIONS),
                None => Ok(programs),
            };
        }
    }
    too_long(join(&sections, last).len(), MAX_INSTRUCTIONS)
}

/// Position of the section, number and instructions of every call that may be decided early, the longest
/// first.
fn movable(sections: &[Section]) -> Vec<(usize, u32, usize)> {
    let mut list = Vec::new();
    for (at, section) in sections.iter().enumerate() {
        let loads = section.arch.numbers().get("seccomp").copied();
        let wide = !section.arch.is_32_bit();
        for (&number, outcome) in &section.outcomes {
            let asks = outcome
                .alternatives
                .iter()
                .any(|(_, action)| *action == NOTIFY);
            if outcome.alternatives.is_empty() || asks || Some(number) == loads {
                continue;
            }
            list.push((at, number, leaf(outcome, wide).len() + SEARCH_STEP));
        }
    }
    list.sort_by_key(|(.., weight)| std::cmp::Reverse(*weight));
    list
}

fn early_program(decided: Vec<(Arch, u32, Outcome)>) -> Vec<BpfInstruction> {
    let mut sections: Vec<Section> = Vec::new();
    for (arch, number, outcome) in decided {
        let at = sections.iter().position(|section| section.arch == arch);
        let at = at.unwrap_or_else(|| {
            sections.push(Section {
                arch,
                outcomes: Default::default(),
                highest: None,
            });
            sections.len() - 1
        });
        sections[at].outcomes.insert(number, outcome);
    }
    // x32 numbers lie within x86_64's part of the program.
    if sections.iter().any(|section| section.arch == Arch::X32)
        && !sections.iter().any(|section| section.arch == Arch::X86_64)
    {
        sections.push(Section {
            arch: Arch::X86_64,
            outcomes: Default::default(),
            highest: None,
        });
    }
    let rest = Body {
        default: ALLOW,
        foreign: ALLOW,
        newer: None,
    };
    join(&sections, rest)
}
