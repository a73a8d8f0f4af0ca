//! What every error of this crate can answer: its class. The error enums live with their operations.

use std::fmt::Display;
use std::io;

/// Longest part of a foreign name that a message repeats, in characters.
const SHOWN_CHARS: usize = 160;

/// What a failure means to the caller, independent of its wording.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// The request or the content of an image is wrong; trying again does not help.
    InvalidArgument,
    /// The named thing is not here.
    NotFound,
    /// The named thing is here already.
    AlreadyExists,
    /// The store is not in the state the request needs.
    FailedPrecondition,
    /// Something outside failed or is busy; trying again may help.
    Unavailable,
    /// A disk, a quota or a named limit is used up.
    Exhausted,
    /// Anything else: an I/O error of the disk, or a mistake of ours.
    Internal,
}

impl ErrorClass {
    /// Returns the class of an I/O error by its error number.
    #[must_use]
    pub fn of_io(error: &io::Error) -> Self {
        use rustix::io::Errno;
        match Errno::from_io_error(error) {
            Some(
                Errno::NOSPC
                | Errno::DQUOT
                | Errno::MFILE
                | Errno::NFILE
                | Errno::NOMEM
                | Errno::MLINK
                | Errno::FBIG,
            ) => Self::Exhausted,
            Some(Errno::ROFS | Errno::BUSY | Errno::AGAIN) => Self::Unavailable,
            _ => Self::Internal,
        }
    }
}

/// A system call on a path failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}")]
pub struct PathError {
    /// What was attempted, such as `write`.
    pub action: &'static str,
    /// The path, below the store or below the root of a layer; cut and escaped.
    pub path: String,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

impl PathError {
    pub(crate) fn new(
        action: &'static str,
        path: impl Display,
        source: impl Into<io::Error>,
    ) -> Self {
        Self {
            action,
            path: path.to_string(),
            source: source.into(),
        }
    }

    /// Returns the class of the underlying I/O error.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        ErrorClass::of_io(&self.source)
    }
}

/// Escapes and cuts bytes that came from an image, for messages.
pub(crate) fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN_CHARS * 4)]);
    let mut out: String = text
        .chars()
        .take(SHOWN_CHARS)
        .flat_map(char::escape_debug)
        .collect();
    if text.chars().nth(SHOWN_CHARS).is_some() || bytes.len() > SHOWN_CHARS * 4 {
        out.push_str("...");
    }
    out
}
