//! What can go wrong between a reference and its bytes. No text here carries a credential, a query
//! string or userinfo of a URL, and no foreign text is repeated without bound.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use axil_snapshotter::Digest;
use http::StatusCode;

use super::hosts::HostsError;
use super::origin::UrlProblem;
use crate::domain::failure::Class;

/// A foreign error as it was thrown.
pub type Cause = Box<dyn Error + Send + Sync>;

/// A failed pull step: what was asked for, of which host, and why it failed.
#[derive(Debug)]
pub struct RegistryError {
    /// What was asked for, e.g. `manifest docker.io/library/nginx:latest`.
    pub what: String,
    /// The registry or mirror that answered last, with its port.
    pub host: String,
    /// Why it failed.
    pub problem: Problem,
}

impl RegistryError {
    /// Returns the class of the error.
    #[must_use]
    pub fn class(&self) -> Class {
        self.problem.class()
    }
}

impl fmt::Display for RegistryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} from {}: {}", self.what, self.host, self.problem)
    }
}

impl Error for RegistryError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.problem.source()
    }
}

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The operator's configuration of the host cannot be used.
    #[error("the registry configuration cannot be used")]
    Hosts {
        /// The file and what is wrong.
        source: HostsError,
    },
    /// No configured host may be asked.
    #[error("no configured host has the capability \"{capability}\"")]
    NoHost {
        /// What would be needed.
        capability: &'static str,
    },
    /// No connection: refused, no route, no such name.
    #[error("cannot connect")]
    Connect {
        /// The transport's error.
        source: Cause,
    },
    /// The TLS handshake failed.
    #[error("cannot agree on TLS")]
    Tls {
        /// The reason.
        source: Cause,
    },
    /// A connection broke or spoke no HTTP.
    #[error("the connection broke")]
    Transport {
        /// The transport's error.
        source: Cause,
    },
    /// A body ended before its announced or known end.
    #[error("the answer ended after {received} of {expected} bytes")]
    Truncated {
        /// Bytes received.
        received: u64,
        /// Bytes expected.
        expected: u64,
    },
    /// No answer, or no progress, for too long.
    #[error("no {what} within {} ms", .after.as_millis())]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// How long it was waited for.
        after: Duration,
    },
    /// The host does not have it.
    #[error("not found{detail}")]
    NotFound {
        /// The host's words, empty or starting with `: `.
        detail: String,
    },
    /// The host wants other credentials.
    #[error("unauthorized or denied (status {}){detail}", .status.as_u16())]
    Denied {
        /// 401 or 403.
        status: StatusCode,
        /// The host's words or ours, empty or starting with `: `.
        detail: String,
    },
    /// The host answered with another status.
    #[error("unexpected status {}{detail}", .status.as_u16())]
    Status {
        /// The status.
        status: StatusCode,
        /// How long the host asks to wait.
        retry_after: Option<Duration>,
        /// The host's words, empty or starting with `: `.
        detail: String,
    },
    /// A redirect is not followed.
    #[error("a redirect is not followed: {reason}")]
    Redirect {
        /// Why not.
        reason: String,
    },
    /// A token realm is not trusted.
    #[error("the token realm is refused: {reason}")]
    Realm {
        /// Why.
        reason: String,
    },
    /// A token response cannot be used.
    #[error("the token response cannot be used: {reason}")]
    Token {
        /// Why.
        reason: String,
    },
    /// The bytes have another digest.
    #[error("the bytes have digest {found}, expected {expected}")]
    Digest {
        /// The digest asked for or announced.
        expected: Digest,
        /// The digest of the bytes.
        found: Digest,
    },
    /// The bytes are more or fewer than the descriptor says.
    #[error("the answer has {found} bytes, the descriptor says {expected}")]
    Size {
        /// Bytes of the descriptor.
        expected: u64,
        /// Bytes announced or received, at least.
        found: u64,
    },
    /// The answer to a range request is for other bytes.
    #[error("the answer to a range request is for other bytes: {reason}")]
    Range {
        /// The contradiction.
        reason: String,
    },
    /// A document or token response is longer than its limit.
    #[error("the answer is longer than {limit} bytes")]
    TooLarge {
        /// Bytes allowed.
        limit: u64,
    },
    /// The answer is encoded although that was not asked for.
    #[error("the answer has the content encoding \"{encoding}\"")]
    Encoding {
        /// The encoding.
        encoding: String,
    },
    /// The content type contradicts the descriptor.
    #[error("the answer is a \"{found}\", the descriptor says \"{expected}\"")]
    ContentType {
        /// The media type of the descriptor.
        expected: String,
        /// The content type.
        found: String,
    },
    /// An offset lies behind the end.
    #[error("offset {offset} lies behind the end at {size}")]
    Offset {
        /// The offset asked for.
        offset: u64,
        /// The size of the blob.
        size: u64,
    },
    /// A URL cannot be formed.
    #[error("{source}")]
    Url {
        /// What is wrong with it.
        #[from]
        source: UrlProblem,
    },
}

impl Problem {
    /// Returns the class of the error.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Offset { .. } => Class::InvalidArgument,
            Self::Hosts { .. } | Self::NoHost { .. } => Class::FailedPrecondition,
            Self::Connect { .. }
            | Self::Tls { .. }
            | Self::Transport { .. }
            | Self::Truncated { .. }
            | Self::Redirect { .. }
            | Self::Token { .. } => Class::Unavailable,
            Self::Timeout { .. } => Class::DeadlineExceeded,
            Self::NotFound { .. } => Class::NotFound,
            Self::Denied { .. } | Self::Realm { .. } => Class::PermissionDenied,
            Self::Status { status, .. } => status_class(*status),
            Self::Digest { .. }
            | Self::Size { .. }
            | Self::Range { .. }
            | Self::ContentType { .. } => Class::DataLoss,
            Self::TooLarge { .. } => Class::Exhausted,
            Self::Encoding { .. } => Class::Unsupported,
            Self::Url { .. } => Class::Internal,
        }
    }

    /// Tells whether the same request to the same host may succeed in a moment.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Connect { .. }
            | Self::Transport { .. }
            | Self::Truncated { .. }
            | Self::Timeout { .. } => true,
            Self::Status { status, .. } => is_busy(*status),
            Self::Hosts { .. }
            | Self::NoHost { .. }
            | Self::Tls { .. }
            | Self::NotFound { .. }
            | Self::Denied { .. }
            | Self::Redirect { .. }
            | Self::Realm { .. }
            | Self::Token { .. }
            | Self::Digest { .. }
            | Self::Size { .. }
            | Self::Range { .. }
            | Self::TooLarge { .. }
            | Self::Encoding { .. }
            | Self::ContentType { .. }
            | Self::Offset { .. }
            | Self::Url { .. } => false,
        }
    }
}

fn is_busy(status: StatusCode) -> bool {
    status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED
        || status == StatusCode::TOO_MANY_REQUESTS
        || status == StatusCode::REQUEST_TIMEOUT
}

fn status_class(status: StatusCode) -> Class {
    if is_busy(status) {
        return Class::Unavailable;
    }
    match status {
        StatusCode::BAD_REQUEST => Class::InvalidArgument,
        StatusCode::METHOD_NOT_ALLOWED
        | StatusCode::NOT_ACCEPTABLE
        | StatusCode::UNSUPPORTED_MEDIA_TYPE
        | StatusCode::NOT_IMPLEMENTED => Class::Unsupported,
        _ => Class::Internal,
    }
}
