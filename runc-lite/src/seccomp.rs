//! Seccomp profiles: compiled once into classic BPF, then taken from the cache by content.

pub mod cache;
pub mod compile;
mod names;
mod tree;

use crate::sys::BpfInstruction;

/// A compiled profile, ready to load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// `SECCOMP_FILTER_FLAG_*` bits.
    pub flags: u32,
    /// The program.
    pub program: Vec<BpfInstruction>,
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
    /// More instructions than the kernel takes.
    #[error("linux.seccomp compiles to {count} instructions, the kernel takes {limit}")]
    TooLong {
        /// Length of the program.
        count: usize,
        /// `BPF_MAXINSNS`.
        limit: usize,
    },
}
