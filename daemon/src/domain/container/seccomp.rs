//! Seccomp profiles as documents: their form in the OCI runtime spec, the runtime's default one and those an
//! operator keeps on the node. Compiling them is the OCI runtime's work.
//!
//! Documents are equal byte for byte for equal inputs: runtimes cache compiled programs by content.

use serde::{Deserialize, Serialize};

mod default;
mod localhost;

pub use default::default_profile;
pub use localhost::{MAX_PROFILE_BYTES, SeccompProfileError, parse_localhost};

/// `linux.seccomp` of the OCI runtime spec, without user notification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Seccomp {
    /// What happens to a call no rule matches.
    pub default_action: Action,
    /// errno of `default_action`; EPERM when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_errno_ret: Option<u32>,
    /// Calling conventions the rules hold for (`SCMP_ARCH_…`); empty is the native one only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub architectures: Vec<String>,
    /// Flags of seccomp(2) (`SECCOMP_FILTER_FLAG_…`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<String>,
    /// The rules.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub syscalls: Vec<Rule>,
}

/// What happens to the named calls when every condition holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    /// Names of system calls; runtimes pass over those they do not know.
    pub names: Vec<String>,
    /// What happens.
    pub action: Action,
    /// errno of `action`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno_ret: Option<u32>,
    /// Conditions, joined by "and".
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<Condition>,
}

/// A condition on one argument of a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Which argument, 0 to 5.
    pub index: u32,
    /// Value, or the mask of [`Operator::MaskedEqual`].
    pub value: u64,
    /// What the masked argument has to be.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub value_two: u64,
    /// How they are compared, in 64 bits.
    pub op: Operator,
}

/// Actions of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// The call is made.
    #[serde(rename = "SCMP_ACT_ALLOW")]
    Allow,
    /// The call fails.
    #[serde(rename = "SCMP_ACT_ERRNO")]
    Errno,
    /// The call is made and logged.
    #[serde(rename = "SCMP_ACT_LOG")]
    Log,
    /// The thread is killed.
    #[serde(rename = "SCMP_ACT_KILL")]
    Kill,
    /// The thread is killed.
    #[serde(rename = "SCMP_ACT_KILL_THREAD")]
    KillThread,
    /// The process is killed.
    #[serde(rename = "SCMP_ACT_KILL_PROCESS")]
    KillProcess,
    /// The process gets SIGSYS.
    #[serde(rename = "SCMP_ACT_TRAP")]
    Trap,
    /// A tracer decides.
    #[serde(rename = "SCMP_ACT_TRACE")]
    Trace,
}

/// Comparisons of a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operator {
    /// Not equal.
    #[serde(rename = "SCMP_CMP_NE")]
    NotEqual,
    /// Less.
    #[serde(rename = "SCMP_CMP_LT")]
    LessThan,
    /// Less or equal.
    #[serde(rename = "SCMP_CMP_LE")]
    LessEqual,
    /// Equal.
    #[serde(rename = "SCMP_CMP_EQ")]
    Equal,
    /// Greater or equal.
    #[serde(rename = "SCMP_CMP_GE")]
    GreaterEqual,
    /// Greater.
    #[serde(rename = "SCMP_CMP_GT")]
    GreaterThan,
    /// The argument and `value` is `value_two`.
    #[serde(rename = "SCMP_CMP_MASKED_EQ")]
    MaskedEqual,
}

/// Processor family a profile is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Arch {
    /// x86-64, with its 32-bit and x32 calls.
    X86_64,
    /// arm64, with 32-bit arm calls.
    Aarch64,
    /// Any other: native calls only.
    #[default]
    Other,
}

impl Arch {
    /// The family this program was built for.
    #[must_use]
    pub const fn native() -> Self {
        if cfg!(target_arch = "x86_64") {
            Self::X86_64
        } else if cfg!(target_arch = "aarch64") {
            Self::Aarch64
        } else {
            Self::Other
        }
    }

    /// Calling conventions by the names of the OCI runtime spec, the native one first.
    fn conventions(self) -> &'static [&'static str] {
        match self {
            Self::X86_64 => &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            Self::Aarch64 => &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
            Self::Other => &[],
        }
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature serde asks for"
)]
fn is_zero(value: &u64) -> bool {
    *value == 0
}
