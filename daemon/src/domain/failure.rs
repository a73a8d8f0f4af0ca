//! The one error that crosses the seams of the daemon: a class and a sentence.
//!
//! Adapters turn the typed errors of their libraries into a `Failure` once, with the whole chain in the
//! sentence; `cri/status.rs` turns the class into a gRPC code. Nobody matches on the text.

use std::error::Error;
use std::fmt;

/// What kind of failure it is; decides the gRPC code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The request is wrong and stays wrong.
    InvalidArgument,
    /// The named thing does not exist.
    NotFound,
    /// The name is taken by something else.
    AlreadyExists,
    /// The thing exists but its state forbids the call.
    FailedPrecondition,
    /// The registry refused the credentials, or the policy the image.
    PermissionDenied,
    /// Something outside did not answer; a retry may help.
    Unavailable,
    /// A bound of time was reached.
    DeadlineExceeded,
    /// Disk, addresses or another bounded resource ran out.
    Exhausted,
    /// Bytes differ from their digest.
    DataLoss,
    /// Not built.
    Unsupported,
    /// A defect, or the machine misbehaves.
    Internal,
}

/// A failure the kubelet knows by name. It finds the name at the beginning of the text of a status whose code says
/// nothing (cri-api, `pkg/errors`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KubeletError {
    /// A mount cannot be made read-only recursively.
    RroUnsupported,
    /// An image volume cannot be mounted.
    ImageVolumeMountFailed,
    /// A registry was not reached, did not answer in time, or is busy.
    RegistryUnavailable,
    /// An image has no signature that the policy asks for.
    SignatureValidationFailed,
}

impl KubeletError {
    /// The name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RroUnsupported => "RROUnsupported",
            Self::ImageVolumeMountFailed => "ImageVolumeMountFailed",
            Self::RegistryUnavailable => "RegistryUnavailable",
            Self::SignatureValidationFailed => "SignatureValidationFailed",
        }
    }
}

/// A failed operation, as told to the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Decides the gRPC code.
    pub class: Class,
    /// What was attempted, on what, and why it failed.
    pub message: String,
    /// What the kubelet calls it, if it has a name for it.
    pub known_as: Option<KubeletError>,
}

impl Failure {
    /// A failure of `class`.
    pub fn new(class: Class, message: impl Into<String>) -> Self {
        Self {
            class,
            message: message.into(),
            known_as: None,
        }
    }

    /// The same failure under the name the kubelet has for it.
    #[must_use]
    pub fn known_as(mut self, name: KubeletError) -> Self {
        self.known_as = Some(name);
        self
    }

    /// A request field that is wrong, with its value.
    pub fn invalid(field: &str, value: impl fmt::Debug, why: impl fmt::Display) -> Self {
        Self::new(Class::InvalidArgument, format!("{field} {value:?}: {why}"))
    }

    /// Something that is not there.
    pub fn not_found(what: impl Into<String>) -> Self {
        Self::new(Class::NotFound, what)
    }

    /// An image without a signature that the policy asks for.
    pub fn unsigned(message: impl Into<String>) -> Self {
        Self::new(Class::PermissionDenied, message)
            .known_as(KubeletError::SignatureValidationFailed)
    }

    /// Something whose state forbids the call.
    pub fn precondition(message: impl Into<String>) -> Self {
        Self::new(Class::FailedPrecondition, message)
    }

    /// A defect or a misbehaving machine, with the whole chain of `error`.
    pub fn internal(what: impl fmt::Display, error: &(dyn Error + 'static)) -> Self {
        Self::new(Class::Internal, format!("{what}: {}", chain(error)))
    }

    /// An input/output failure: a full disk is told apart.
    pub fn io(what: impl fmt::Display, error: &std::io::Error) -> Self {
        let class = match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Class::Exhausted,
            _ => Class::Internal,
        };
        Self::new(class, format!("{what}: {error}"))
    }

    /// The same failure, saying first what it was part of.
    #[must_use]
    pub fn during(mut self, what: impl fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(name) = self.known_as {
            write!(f, "{}: ", name.as_str())?;
        }
        f.write_str(&self.message)
    }
}

impl Error for Failure {}

/// An error and all its sources, joined by colons.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}
