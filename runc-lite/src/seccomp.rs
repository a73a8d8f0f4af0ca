//! Seccomp profiles: compiled once into classic BPF, then taken from the cache by content.

mod action;
pub mod agent;
pub mod cache;
pub mod compile;
mod names;
mod profile;
pub mod program;
mod split;
mod tree;

use serde::{Deserialize, Serialize};

use crate::sys::{BpfInstruction, SECCOMP_NEW_LISTENER, seccomp_knows};

/// Bound of a profile's JSON text in bytes.
pub const MAX_PROFILE: usize = 1 << 20;

const FLAG_LOG: u32 = 2;
const FLAG_SPEC_ALLOW: u32 = 4;
const FLAG_WAIT_KILLABLE_RECV: u32 = 32;

/// A compiled profile, ready to load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// `SECCOMP_FILTER_FLAG_*` bits of the last program.
    pub flags: u32,
    /// Programs in the order of loading, at least one. The kernel runs all of them for each call and takes
    /// the strictest answer; each but the last allows what the others decide.
    pub programs: Vec<Vec<BpfInstruction>>,
    /// Whom `SCMP_ACT_NOTIFY` asks.
    pub listener: Option<Listener>,
}

/// The agent that answers `SCMP_ACT_NOTIFY`, as the profile names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// `listenerPath`: an absolute path, or `@` and an abstract name.
    pub path: String,
    /// `listenerMetadata`, for the agent alone.
    pub metadata: String,
}

impl Filter {
    /// What to load, in order, each program with its flags.
    pub fn loads(&self) -> impl Iterator<Item = (&[BpfInstruction], u32)> {
        let last = self.programs.len().saturating_sub(1);
        let early = self.flags & (FLAG_LOG | FLAG_SPEC_ALLOW);
        self.programs.iter().enumerate().map(move |(at, program)| {
            let flags = if at == last { self.flags } else { early };
            (program.as_slice(), flags)
        })
    }

    /// Checks what only this machine can say, before anything is changed: flags and the agent.
    ///
    /// # Errors
    /// [`SeccompError`] naming the flag or the agent's path.
    pub fn check_host(&self) -> Result<(), SeccompError> {
        if self.flags & FLAG_WAIT_KILLABLE_RECV != 0 && !supports_wait_killable() {
            return Err(SeccompError::Invalid {
                field: "flags".to_owned(),
                value: "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV".to_owned(),
                reason: "is not known to this kernel (it came with Linux 5.19)",
            });
        }
        self.listener.as_ref().map_or(Ok(()), agent::check)
    }
}

/// Whether flags, programs and listener of a filter go together.
fn is_coherent(filter: &Filter) -> bool {
    let known = FLAG_LOG | FLAG_SPEC_ALLOW | FLAG_WAIT_KILLABLE_RECV | SECCOMP_NEW_LISTENER;
    let listens = filter.flags & SECCOMP_NEW_LISTENER != 0;
    let waits = filter.flags & FLAG_WAIT_KILLABLE_RECV != 0;
    let asks = |program: &Vec<BpfInstruction>| program.iter().any(program::asks);
    let early = filter.programs.len().saturating_sub(1);
    !filter.programs.is_empty()
        && filter.flags & !known == 0
        && listens == filter.listener.is_some()
        && (listens || !waits)
        && (listens || !filter.programs.iter().any(asks))
        && !filter.programs[..early].iter().any(asks)
}

/// Whether this kernel has `SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV`.
#[must_use]
pub fn supports_wait_killable() -> bool {
    seccomp_knows(FLAG_WAIT_KILLABLE_RECV | SECCOMP_NEW_LISTENER)
}

/// Why a profile cannot be used. Syscall names that are not known are skipped and are no error.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// Not the JSON of a profile.
    #[error("linux.seccomp cannot be read")]
    Parse {
        /// What serde says.
        source: serde_json::Error,
    },
    /// Longer than any profile has reason to be.
    #[error("linux.seccomp has {length} bytes, the limit is {limit}")]
    TooBig {
        /// Bytes of the JSON text.
        length: usize,
        /// [`MAX_PROFILE`].
        limit: usize,
    },
    /// A value that means nothing.
    #[error("linux.seccomp.{field}: {value:?} {reason}")]
    Invalid {
        /// JSON path below `linux.seccomp`.
        field: String,
        /// What was found.
        value: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// More instructions than can be loaded, even in several programs.
    #[error("linux.seccomp compiles to {count} instructions, the limit is {limit}")]
    TooLong {
        /// Length of the program, or of one call's part of it.
        count: usize,
        /// What one program, or all of them, may have.
        limit: usize,
    },
    /// The agent of `SCMP_ACT_NOTIFY` is not there, or does not take the listener.
    #[error("failed to {operation} seccomp agent at {path:?}")]
    Agent {
        /// Verb and preposition.
        operation: &'static str,
        /// `listenerPath`.
        path: String,
        /// Errno.
        source: std::io::Error,
    },
}
