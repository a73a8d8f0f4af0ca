//! What a finished program is and does: the rules by which the kernel accepts one, and an interpreter. The
//! cache, the tests and the fuzz targets judge programs by them.

use super::action::{NOTIFY, is_known};
use super::tree::{AND, JA, JEQ, JGE, JGT, LD_ABS, RET};
use crate::sys::BpfInstruction;

/// `BPF_MAXINSNS` of the kernel.
pub const MAX_INSTRUCTIONS: usize = 4096;
/// Size of `struct seccomp_data`.
const DATA: u32 = 64;

/// Whether the kernel would take `program`, and it is one this compiler could have made: known instructions,
/// loads inside `struct seccomp_data`, jumps that stay inside, known answers, an answer at the end.
#[must_use]
pub fn is_legal(program: &[BpfInstruction]) -> bool {
    let ends = program.last().is_some_and(|last| last.code == RET);
    let inside = |at: usize, distance: u32| {
        usize::try_from(distance)
            .ok()
            .and_then(|distance| distance.checked_add(at + 1))
            .is_some_and(|target| target < program.len())
    };
    ends && program.len() <= MAX_INSTRUCTIONS
        && program.iter().enumerate().all(|(at, i)| match i.code {
            LD_ABS => i.k < DATA && i.k.is_multiple_of(4),
            RET => is_known(i.k),
            AND => true,
            JA => inside(at, i.k),
            JEQ | JGT | JGE => inside(at, i.jt.into()) && inside(at, i.jf.into()),
            _ => false,
        })
}

/// Whether `instruction` answers by asking the agent.
#[must_use]
pub fn asks(instruction: &BpfInstruction) -> bool {
    instruction.code == RET && instruction.k == NOTIFY
}

/// The input of a filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// Number.
    pub nr: u32,
    /// `AUDIT_ARCH_*`.
    pub arch: u32,
    /// Arguments.
    pub args: [u64; 6],
}

/// What `program` answers to `call`; `None` when it does something the kernel would not let it do.
#[must_use]
pub fn run(program: &[BpfInstruction], call: &Call) -> Option<u32> {
    let mut data = [0u8; DATA as usize];
    data[0..4].copy_from_slice(&call.nr.to_le_bytes());
    data[4..8].copy_from_slice(&call.arch.to_le_bytes());
    for (index, argument) in call.args.iter().enumerate() {
        data[16 + index * 8..24 + index * 8].copy_from_slice(&argument.to_le_bytes());
    }
    let mut accumulator = 0u32;
    let mut at = 0usize;
    // Every jump goes forward, so this ends.
    loop {
        let i = program.get(at)?;
        at += 1;
        let jump = |yes: bool| usize::from(if yes { i.jt } else { i.jf });
        match i.code {
            LD_ABS => {
                let from = usize::try_from(i.k).ok()?;
                let word = data.get(from..from.checked_add(4)?)?;
                accumulator = u32::from_le_bytes(word.try_into().ok()?);
            }
            RET => return Some(i.k),
            JA => at = at.checked_add(usize::try_from(i.k).ok()?)?,
            JEQ => at += jump(accumulator == i.k),
            JGT => at += jump(accumulator > i.k),
            JGE => at += jump(accumulator >= i.k),
            AND => accumulator &= i.k,
            _ => return None,
        }
    }
}

/// What the kernel does with `call` when all `programs` are in force: the strictest answer, of equally strict
/// ones that of the program loaded last.
#[must_use]
pub fn decide(programs: &[Vec<BpfInstruction>], call: &Call) -> Option<u32> {
    let mut decision = None;
    for program in programs.iter().rev() {
        let answer = run(program, call)?;
        if decision.is_none_or(|before| super::action::is_stricter(answer, before)) {
            decision = Some(answer);
        }
    }
    decision
}
