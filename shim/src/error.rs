//! What a verb can fail with, and the ttrpc code each failure travels as.

use std::error::Error;
use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;

use ttrpc::proto::Code;

use crate::runtime::RuntimeError;
use crate::stdio::StdioError;
use crate::task::phase::Refused;

/// Why a verb on a task, an exec or the sandbox failed.
#[derive(Debug, thiserror::Error)]
pub enum VerbError {
    /// No such task in this shim.
    #[error("container {id:?} not found")]
    NoTask {
        /// The id asked for.
        id: String,
    },
    /// No such exec in the task.
    #[error("exec {exec_id:?} of container {id:?} not found")]
    NoExec {
        /// The task.
        id: String,
        /// The exec asked for.
        exec_id: String,
    },
    /// No such sandbox in this shim.
    #[error("sandbox {id:?} not found")]
    NoSandbox {
        /// The id asked for.
        id: String,
    },
    /// The id is taken.
    #[error("{what} {id:?} already exists")]
    Exists {
        /// What it would have been.
        what: &'static str,
        /// The id.
        id: String,
    },
    /// The process has ended, so it cannot be signalled.
    #[error("process of {id:?} already finished")]
    Finished {
        /// The task or exec.
        id: String,
    },
    /// The verb does not fit the phase.
    #[error("{id:?}: {source}")]
    Phase {
        /// The task or exec.
        id: String,
        /// The transition that was refused.
        source: Refused,
    },
    /// The verb does not fit for another reason.
    #[error("{id:?}: {reason}")]
    Precondition {
        /// The task, exec or sandbox.
        id: String,
        /// Why.
        reason: &'static str,
    },
    /// A field of the request is wrong.
    #[error("field {field}: {reason}, got {value:?}")]
    Field {
        /// Its name.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
        /// The value given.
        value: String,
    },
    /// The shim has no such feature.
    #[error("{what} is not supported")]
    Unsupported {
        /// Which.
        what: &'static str,
    },
    /// The OCI runtime failed.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The streams of the process could not be set up.
    #[error(transparent)]
    Stdio(#[from] StdioError),
    /// A system call failed.
    #[error("{action} {path:?}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The kernel did not do it in time.
    #[error("{id:?}: {what} did not finish in {seconds} s")]
    Late {
        /// The task or exec.
        id: String,
        /// What was waited for.
        what: &'static str,
        /// How long.
        seconds: u64,
    },
    /// A bug: the work ended without a result.
    #[error("the work on this request ended early")]
    Lost,
}

impl VerbError {
    /// The code the error travels as.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::NoTask { .. }
            | Self::NoExec { .. }
            | Self::NoSandbox { .. }
            | Self::Finished { .. } => Code::NOT_FOUND,
            Self::Exists { .. } => Code::ALREADY_EXISTS,
            Self::Phase { .. } | Self::Precondition { .. } => Code::FAILED_PRECONDITION,
            Self::Field { .. } => Code::INVALID_ARGUMENT,
            Self::Unsupported { .. } => Code::UNIMPLEMENTED,
            Self::Runtime(error) => error.code(),
            Self::Stdio(error) => error.code(),
            Self::Late { .. } => Code::DEADLINE_EXCEEDED,
            Self::Io { .. } | Self::Lost => Code::INTERNAL,
        }
    }
}

impl From<VerbError> for ttrpc::Error {
    fn from(error: VerbError) -> Self {
        axil_proto::shim::rpc::status(error.code(), chain(&error))
    }
}

/// An error and its sources in one line, outermost first.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        // A transparent layer prints what its source prints.
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            let _ = write!(text, ": {cause_text}");
        }
        source = cause.source();
    }
    text
}
