//! The compiler: an OCI seccomp profile → a BPF program that decides by architecture, then by number,
//! then by arguments.
//!
//! ```text
//! arch = native?  ──► [x32 number?] ──► number above all the profile names? ──► ENOSYS
//!      = compat?  ──► ...          └──► binary search ──► return | argument checks
//!      otherwise  ──► kill
//! ```
//!
//! For one call the first rule that matches decides, as the rules are written. Rules whose action is the
//! default action are left out, and several conditions on one argument are alternatives; runc does both.

use std::collections::BTreeMap;

use super::names::{Arch, X32_BIT};
use super::tree::{
    Comparison, Condition, OFFSET_ARCH, OFFSET_NR, Outcome, Range, if_at_least, if_equal, load,
    ret, search,
};
use super::{Filter, SeccompError};
use crate::config::{Seccomp, SyscallArg, SyscallRule};
use crate::sys::BpfInstruction;

/// `BPF_MAXINSNS` of the kernel.
const MAX_INSTRUCTIONS: usize = 4096;
/// `MAX_ERRNO` of the kernel.
const MAX_ERRNO: u32 = 4095;

const KILL_PROCESS: u32 = 0x8000_0000;
const KILL_THREAD: u32 = 0;
const TRAP: u32 = 0x0003_0000;
const ERRNO: u32 = 0x0005_0000;
const TRACE: u32 = 0x7ff0_0000;
const LOG: u32 = 0x7ffc_0000;
const ALLOW: u32 = 0x7fff_0000;
const ENOSYS: u32 = 38;
const EPERM: u32 = 1;

const FLAG_LOG: u32 = 2;
const FLAG_SPEC_ALLOW: u32 = 4;

/// Compiles the text of a profile.
///
/// # Errors
/// [`SeccompError`] naming the field; unknown syscall names are skipped.
pub fn compile(profile: &str) -> Result<Filter, SeccompError> {
    let profile: Seccomp =
        serde_json::from_str(profile).map_err(|source| SeccompError::Parse { source })?;
    if !profile.listener_path.is_empty() {
        return Err(invalid(
            "listenerPath",
            &profile.listener_path,
            "is not supported yet",
        ));
    }
    let default = action(
        "defaultAction",
        &profile.default_action,
        profile.default_errno_ret,
    )?;
    let flags = flags(profile.flags.as_deref())?;
    let mut sections = Vec::new();
    for arch in architectures(&profile.architectures)? {
        sections.push((arch, section(arch, default, &profile.syscalls)?));
    }
    let program = join(default, sections);
    if program.len() > MAX_INSTRUCTIONS {
        return Err(SeccompError::TooLong {
            count: program.len(),
            limit: MAX_INSTRUCTIONS,
        });
    }
    Ok(Filter { flags, program })
}

fn invalid(
    field: impl Into<String>,
    value: impl Into<String>,
    reason: &'static str,
) -> SeccompError {
    SeccompError::Invalid {
        field: field.into(),
        value: value.into(),
        reason,
    }
}

fn flags(names: Option<&[String]>) -> Result<u32, SeccompError> {
    // Without a list: no speculation mitigations, which cost more than they give inside containers.
    let Some(names) = names else {
        return Ok(FLAG_SPEC_ALLOW);
    };
    let mut flags = 0;
    for name in names {
        match name.as_str() {
            // There is one thread, nothing to synchronise.
            "SECCOMP_FILTER_FLAG_TSYNC" => {}
            "SECCOMP_FILTER_FLAG_LOG" => flags |= FLAG_LOG,
            "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => flags |= FLAG_SPEC_ALLOW,
            "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" => {
                return Err(invalid(
                    "flags",
                    name,
                    "needs SCMP_ACT_NOTIFY, not supported yet",
                ));
            }
            _ => return Err(invalid("flags", name, "is not a filter flag")),
        }
    }
    Ok(flags)
}

fn architectures(names: &[String]) -> Result<Vec<Arch>, SeccompError> {
    let mut list = vec![Arch::NATIVE];
    for name in names {
        match Arch::parse(name) {
            None => return Err(invalid("architectures", name, "is not an architecture")),
            Some(Some(arch)) if !list.contains(&arch) => list.push(arch),
            Some(_) => {}
        }
    }
    list.sort();
    Ok(list)
}

fn action(field: &str, name: &str, errno: Option<u32>) -> Result<u32, SeccompError> {
    let number = errno.unwrap_or(EPERM);
    if number > MAX_ERRNO {
        return Err(invalid(
            format!("{field} errnoRet"),
            number.to_string(),
            "is above 4095",
        ));
    }
    let takes_errno = matches!(name, "SCMP_ACT_ERRNO" | "SCMP_ACT_TRACE");
    if errno.is_some() && !takes_errno {
        return Err(invalid(field, name, "does not take errnoRet"));
    }
    Ok(match name {
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => KILL_THREAD,
        "SCMP_ACT_KILL_PROCESS" => KILL_PROCESS,
        "SCMP_ACT_TRAP" => TRAP,
        "SCMP_ACT_ERRNO" => ERRNO | number,
        "SCMP_ACT_TRACE" => TRACE | number,
        "SCMP_ACT_LOG" => LOG,
        "SCMP_ACT_ALLOW" => ALLOW,
        "SCMP_ACT_NOTIFY" => return Err(invalid(field, name, "is not supported yet")),
        _ => return Err(invalid(field, name, "is not an action")),
    })
}

/// The decisions of one architecture: outcomes by number and the highest number the profile names.
struct Section {
    outcomes: BTreeMap<u32, Outcome>,
    highest: Option<u32>,
}

fn section(arch: Arch, default: u32, rules: &[SyscallRule]) -> Result<Section, SeccompError> {
    let mut outcomes: BTreeMap<u32, (Outcome, bool)> = BTreeMap::new();
    let mut highest = None;
    for (index, rule) in rules.iter().enumerate() {
        let field = format!("syscalls[{index}]");
        let action = action(&format!("{field}.action"), &rule.action, rule.errno_ret)?;
        let alternatives = alternatives(&field, &rule.args)?;
        for name in &rule.names {
            let Some(number) = arch.number(name) else {
                continue;
            };
            highest = highest.max(Some(number));
            if action == default {
                continue;
            }
            let (outcome, closed) = outcomes
                .entry(number)
                .or_insert_with(|| (Outcome::always(default), false));
            if *closed {
                continue;
            }
            if alternatives.is_empty() {
                outcome.otherwise = action;
                *closed = true;
            } else {
                outcome
                    .alternatives
                    .extend(alternatives.iter().map(|a| (a.clone(), action)));
            }
        }
    }
    let outcomes = outcomes
        .into_iter()
        .map(|(number, (outcome, _))| (number, outcome))
        .collect();
    Ok(Section { outcomes, highest })
}

fn alternatives(field: &str, args: &[SyscallArg]) -> Result<Vec<Vec<Condition>>, SeccompError> {
    let mut conditions = Vec::with_capacity(args.len());
    for (at, arg) in args.iter().enumerate() {
        let field = format!("{field}.args[{at}]");
        if arg.index > 5 {
            return Err(invalid(
                format!("{field}.index"),
                arg.index.to_string(),
                "is above 5",
            ));
        }
        let (comparison, value) = match arg.op.as_str() {
            "SCMP_CMP_NE" => (Comparison::NotEqual, arg.value),
            "SCMP_CMP_LT" => (Comparison::Less, arg.value),
            "SCMP_CMP_LE" => (Comparison::LessOrEqual, arg.value),
            "SCMP_CMP_EQ" => (Comparison::Equal, arg.value),
            "SCMP_CMP_GE" => (Comparison::GreaterOrEqual, arg.value),
            "SCMP_CMP_GT" => (Comparison::Greater, arg.value),
            "SCMP_CMP_MASKED_EQ" => (
                Comparison::MaskedEqual { mask: arg.value },
                arg.value_two & arg.value,
            ),
            other => return Err(invalid(format!("{field}.op"), other, "is not a comparison")),
        };
        conditions.push(Condition {
            index: arg.index,
            comparison,
            value,
        });
    }
    let repeated = (0..6).any(|i| conditions.iter().filter(|c| c.index == i).count() > 1);
    Ok(match (conditions.is_empty(), repeated) {
        (true, _) => Vec::new(),
        (false, true) => conditions.into_iter().map(|c| vec![c]).collect(),
        (false, false) => vec![conditions],
    })
}

/// Whether calls newer than the profile should look unimplemented rather than forbidden, so that
/// programs fall back: only where the default forbids.
fn forbids(action: u32) -> bool {
    action != ALLOW && action != LOG
}

fn body(arch: Arch, default: u32, section: &Section) -> Vec<BpfInstruction> {
    let default_outcome = Outcome::always(default);
    let unknown = Outcome::always(ERRNO | ENOSYS);
    let first = if arch == Arch::X32 { X32_BIT } else { 0 };
    let mut ranges: Vec<Range<'_>> = Vec::new();
    let mut push = |start: u32, outcome| match ranges.last_mut() {
        Some(last) if last.start == start => last.outcome = outcome,
        Some(last) if last.outcome == outcome => {}
        _ => ranges.push(Range { start, outcome }),
    };
    push(first, &default_outcome);
    for (&number, outcome) in &section.outcomes {
        push(number, outcome);
        push(number + 1, &default_outcome);
    }
    if let Some(highest) = section.highest.filter(|_| forbids(default)) {
        push(highest + 1, &unknown);
    }
    merge(&mut ranges);
    search(&ranges, !arch.is_32_bit())
}

/// Joins neighbours that ended up equal.
fn merge(ranges: &mut Vec<Range<'_>>) {
    ranges.dedup_by(|later, earlier| later.outcome == earlier.outcome);
}

fn join(default: u32, sections: Vec<(Arch, Section)>) -> Vec<BpfInstruction> {
    let find = |wanted: Arch| sections.iter().find(|(arch, _)| *arch == wanted);
    let mut program = vec![load(OFFSET_ARCH)];
    for (arch, section) in &sections {
        if *arch == Arch::X32 {
            continue;
        }
        let mut part = vec![load(OFFSET_NR)];
        if *arch == Arch::X86_64 {
            let x32 = match find(Arch::X32) {
                Some((arch, section)) => body(*arch, default, section),
                None => vec![ret(KILL_PROCESS)],
            };
            // Minus one is what a tracer writes to skip a call; it is no x32 number.
            let mut high = if_equal(u32::MAX, vec![ret(default)]);
            high.extend(x32);
            part.extend(if_at_least(X32_BIT, high, body(*arch, default, section)));
        } else {
            part.extend(body(*arch, default, section));
        }
        program.extend(if_equal(arch.audit(), part));
    }
    program.push(ret(KILL_PROCESS));
    program
}

// The expected numbers are those of one architecture.
#[cfg(test)]
#[cfg(target_arch = "x86_64")]
mod tests;
