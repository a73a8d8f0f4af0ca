//! The process that unpacks a layer, seen from the process that wants it unpacked.
//!
//! Image bytes are inflated, hashed, parsed and applied in a process that can do nothing else (`cage.rs`):
//! one per layer, started by running a program again under the name [`NAME`].
//!
//! ```text
//!   this process                                    the unpack process
//!   source -> tee to disk, blob digest -> [pipe] -> inflate -> diff id -> apply -> <id>/fs, <id>/skeleton
//!             attributes only we may set  <-- a descriptor and a value
//!             what was applied            <-- [socket]
//! ```
//!
//! The digest of the blob is taken here, the one of the archive there: whoever has taken the unpack process over
//! writes what he likes into the layer, whatever the archive hashes to, so to carry the archive back for hashing
//! would cost and prove nothing. All that comes back is checked as an image is (`frame.rs`, `session.rs`), and
//! nothing of the layer is looked at before the process is dead.

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use serve::{is_asked_for, main};
pub(crate) use session::fuzzed_report;

mod cage;
mod filter;
mod frame;
mod process;
mod serve;
pub(crate) mod session;
mod wire;

/// The name a program has to have been started by to be the unpack process.
pub const NAME: &str = "axil-unpack";

/// The program that is run to unpack a layer, and how patient one is with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    program: PathBuf,
    stall: Duration,
}

impl Worker {
    /// The running program itself, also when its file was replaced. It has to call [`is_asked_for`] and [`main`]
    /// before anything else.
    #[must_use]
    pub fn this_program() -> Self {
        Self::program(Path::new("/proc/self/exe"))
    }

    /// Another program, such as `axil-unpack`.
    #[must_use]
    pub fn program(path: &Path) -> Self {
        Self {
            program: path.to_owned(),
            stall: Duration::from_secs(120),
        }
    }

    /// How long the process may go without taking a byte or telling of one before it is killed. Two minutes if
    /// nothing else is said; a slow disk has to be able to take a megabyte in that time.
    #[must_use]
    pub fn with_stall(mut self, stall: Duration) -> Self {
        self.stall = stall;
        self
    }
}

/// Why the unpack process did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// It could not be started.
    #[error("cannot start the unpack process {program:?}")]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It could not shut itself in, or a system call failed there.
    #[error("unpack process: {reason}")]
    Told {
        /// What it said, cut and escaped.
        reason: String,
    },
    /// It ended without a word.
    #[error("unpack process ended without a result: {status}")]
    Died {
        /// How it ended.
        status: String,
    },
    /// It did not go on.
    #[error("unpack process made no progress for {seconds} s and was killed")]
    Stalled {
        /// How long was waited.
        seconds: u64,
    },
    /// It said what it must not say; it may have been taken over by the layer.
    #[error("unpack process broke its protocol: {reason}")]
    Protocol {
        /// How.
        reason: String,
    },
}
