//! Classic BPF assembly: a binary search over ranges of syscall numbers, with leaves of return values
//! or argument checks.

use crate::sys::BpfInstruction;

// Offsets in struct seccomp_data.
pub(super) const OFFSET_NR: u32 = 0;
pub(super) const OFFSET_ARCH: u32 = 4;
const OFFSET_ARGS: u32 = 16;

// Classic BPF operations (linux/bpf_common.h), all that is used here.
pub(super) const LD_ABS: u16 = 0x20;
pub(super) const RET: u16 = 0x06;
pub(super) const JA: u16 = 0x05;
pub(super) const JEQ: u16 = 0x15;
pub(super) const JGT: u16 = 0x25;
pub(super) const JGE: u16 = 0x35;
pub(super) const AND: u16 = 0x54;

/// How one argument is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Comparison {
    NotEqual,
    Less,
    LessOrEqual,
    Equal,
    GreaterOrEqual,
    Greater,
    /// `argument & mask == value`.
    MaskedEqual {
        mask: u64,
    },
}

/// One condition on one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Condition {
    pub(super) index: u32,
    pub(super) comparison: Comparison,
    pub(super) value: u64,
}

/// What happens to a call: the first alternative whose conditions all hold, else `otherwise`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Outcome {
    pub(super) alternatives: Vec<(Vec<Condition>, u32)>,
    pub(super) otherwise: u32,
}

impl Outcome {
    pub(super) fn always(action: u32) -> Outcome {
        Outcome {
            alternatives: Vec::new(),
            otherwise: action,
        }
    }
}

/// A run of numbers, from `start` to the next range's start, with one outcome.
#[derive(Debug)]
pub(super) struct Range<'a> {
    pub(super) start: u32,
    pub(super) outcome: &'a Outcome,
}

fn op(code: u16, jt: u8, jf: u8, k: u32) -> BpfInstruction {
    BpfInstruction { code, jt, jf, k }
}

pub(super) fn load(offset: u32) -> BpfInstruction {
    op(LD_ABS, 0, 0, offset)
}

pub(super) fn ret(action: u32) -> BpfInstruction {
    op(RET, 0, 0, action)
}

/// If the accumulator equals `value`, runs `then`; otherwise continues behind it.
pub(super) fn if_equal(value: u32, then: Vec<BpfInstruction>) -> Vec<BpfInstruction> {
    branch(JEQ, value, then, Vec::new())
}

/// If the accumulator is at least `value`, runs `high`, else `low`. Both end in a return.
pub(super) fn if_at_least(
    value: u32,
    high: Vec<BpfInstruction>,
    low: Vec<BpfInstruction>,
) -> Vec<BpfInstruction> {
    branch(JGE, value, high, low)
}

/// `taken` lies first, so that only its length limits the short jump.
fn branch(
    code: u16,
    value: u32,
    taken: Vec<BpfInstruction>,
    other: Vec<BpfInstruction>,
) -> Vec<BpfInstruction> {
    let mut program = Vec::with_capacity(taken.len() + other.len() + 2);
    match u8::try_from(taken.len()) {
        Ok(skip) => program.push(op(code, 0, skip, value)),
        Err(_) => {
            program.push(op(code, 1, 0, value));
            // A conditional jump reaches 255 instructions, an unconditional one any distance.
            program.push(op(JA, 0, 0, u32::try_from(taken.len()).unwrap_or(u32::MAX)));
        }
    }
    program.extend(taken);
    program.extend(other);
    program
}

/// The search over `ranges` (sorted, the first starting at or below any number that arrives); the
/// accumulator holds the number.
pub(super) fn search(ranges: &[Range<'_>], wide: bool) -> Vec<BpfInstruction> {
    match ranges {
        [] => Vec::new(),
        [only] => leaf(only.outcome, wide),
        _ => {
            let (low, high) = ranges.split_at(ranges.len() / 2);
            branch(JGE, high[0].start, search(high, wide), search(low, wide))
        }
    }
}

pub(super) fn leaf(outcome: &Outcome, wide: bool) -> Vec<BpfInstruction> {
    let mut program = Vec::new();
    for (conditions, action) in &outcome.alternatives {
        let mut body = vec![ret(*action)];
        for condition in conditions.iter().rev() {
            body = check(*condition, wide, body);
        }
        program.extend(body);
    }
    program.push(ret(outcome.otherwise));
    program
}

/// Runs `then` if `condition` holds, otherwise continues behind it.
fn check(condition: Condition, wide: bool, then: Vec<BpfInstruction>) -> Vec<BpfInstruction> {
    let low_offset = OFFSET_ARGS + condition.index * 8;
    let high_offset = low_offset + 4;
    let low = low_half(condition.value);
    let high = high_half(condition.value);
    let after = then.len();
    // Each step is an instruction with symbolic targets: where to go when true and when false.
    let steps: Vec<Step> = match condition.comparison {
        Comparison::Equal => {
            let mut steps = Vec::new();
            if wide {
                steps.push(Step::Load(high_offset));
                steps.push(Step::Jump(JEQ, high, Target::Next, Target::Fail));
            }
            steps.push(Step::Load(low_offset));
            steps.push(Step::Jump(JEQ, low, Target::Hold, Target::Fail));
            steps
        }
        Comparison::NotEqual => {
            let mut steps = Vec::new();
            if wide {
                steps.push(Step::Load(high_offset));
                steps.push(Step::Jump(JEQ, high, Target::Next, Target::Hold));
            }
            steps.push(Step::Load(low_offset));
            steps.push(Step::Jump(JEQ, low, Target::Fail, Target::Hold));
            steps
        }
        Comparison::MaskedEqual { mask } => {
            let mut steps = Vec::new();
            if wide {
                steps.push(Step::Load(high_offset));
                steps.push(Step::And(high_half(mask)));
                steps.push(Step::Jump(JEQ, high, Target::Next, Target::Fail));
            }
            steps.push(Step::Load(low_offset));
            steps.push(Step::And(low_half(mask)));
            steps.push(Step::Jump(JEQ, low, Target::Hold, Target::Fail));
            steps
        }
        Comparison::Greater => ordered(JGT, wide, low_offset, condition.value, Target::Hold),
        Comparison::GreaterOrEqual => ordered(JGE, wide, low_offset, condition.value, Target::Hold),
        Comparison::LessOrEqual => ordered(JGT, wide, low_offset, condition.value, Target::Fail),
        Comparison::Less => ordered(JGE, wide, low_offset, condition.value, Target::Fail),
    };
    assemble(&steps, then, after)
}

/// Compares by `last` (`JGT` or `JGE`) on the low half once the high halves are equal; `above` is where a
/// larger argument leads, the opposite where a smaller one does.
fn ordered(last: u16, wide: bool, low_offset: u32, value: u64, above: Target) -> Vec<Step> {
    let below = if above == Target::Hold {
        Target::Fail
    } else {
        Target::Hold
    };
    let mut steps = Vec::new();
    if wide {
        steps.push(Step::Load(low_offset + 4));
        steps.push(Step::Jump(JGT, high_half(value), above, Target::Next));
        steps.push(Step::Jump(JEQ, high_half(value), Target::Next, below));
    }
    steps.push(Step::Load(low_offset));
    steps.push(Step::Jump(last, low_half(value), above, below));
    steps
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Target {
    Next,
    Hold,
    Fail,
}

enum Step {
    Load(u32),
    And(u32),
    Jump(u16, u32, Target, Target),
}

/// Turns symbolic targets into offsets: `Hold` is the first instruction of `then`, `Fail` the one behind.
fn assemble(steps: &[Step], then: Vec<BpfInstruction>, after: usize) -> Vec<BpfInstruction> {
    let mut program = Vec::with_capacity(steps.len() + then.len());
    for (at, step) in steps.iter().enumerate() {
        let rest = steps.len() - at - 1;
        let distance = |target: Target| {
            let distance = match target {
                Target::Next => 0,
                Target::Hold => rest,
                Target::Fail => rest + after,
            };
            // One alternative checks at most six arguments of at most six steps each: below 255.
            u8::try_from(distance).unwrap_or(u8::MAX)
        };
        program.push(match *step {
            Step::Load(offset) => load(offset),
            Step::And(mask) => op(AND, 0, 0, mask),
            Step::Jump(code, k, yes, no) => op(code, distance(yes), distance(no), k),
        });
    }
    program.extend(then);
    program
}

fn low_half(value: u64) -> u32 {
    let [a, b, c, d, ..] = value.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

fn high_half(value: u64) -> u32 {
    low_half(value >> 32)
}
