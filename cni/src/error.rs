//! What can go wrong with a pod's network, and the class a caller maps to its own codes.

use std::{path::PathBuf, sync::Arc};

use crate::{
    builtin::BuiltinError, cache::RecordError, conf::ConfError, invoke::InvokeError,
    netns::NetnsError, result::ResultError,
};

/// How a caller should treat an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// The request is wrong and stays wrong.
    InvalidArgument,
    /// May work when tried again.
    Unavailable,
    /// A bounded wait ended.
    DeadlineExceeded,
    /// The node or another pod is in the way: configuration, a taken port, a lost namespace.
    FailedPrecondition,
    /// No address is left.
    Exhausted,
    /// Everything else.
    Internal,
}

/// Why a network operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// An option given to [`crate::Network::new`] cannot be used.
    #[error("network option {option} is {value:?}: {reason}")]
    Option {
        /// The field.
        option: &'static str,
        /// What it was.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A field of the pod cannot be used.
    #[error("pod network field {field} is {value:?}: {reason}")]
    Pod {
        /// The field.
        field: &'static str,
        /// What it was.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The network configuration is not usable.
    #[error("network configuration is not usable")]
    Conf(#[source] Arc<ConfError>),
    /// No conflist is present and the built-in network is turned off.
    #[error("no network configuration in {conf_dir} and the built-in network is off")]
    NoNetwork {
        /// Where conflists are looked for.
        conf_dir: PathBuf,
    },
    /// A plugin failed.
    #[error("network plugin {plugin} failed to {command} on network {network}")]
    Plugin {
        /// The plugin's type.
        plugin: String,
        /// The CNI command.
        command: &'static str,
        /// The conflist's name.
        network: String,
        /// What happened.
        source: Box<InvokeError>,
    },
    /// All plugins succeeded, but their result is not usable.
    #[error("result of network {network} is not usable")]
    Result {
        /// The network's name.
        network: String,
        /// What is wrong with it.
        source: ResultError,
    },
    /// The pod's namespace is not usable.
    #[error("network namespace of pod {pod} is not usable")]
    Netns {
        /// The pod id.
        pod: String,
        /// What happened.
        source: NetnsError,
    },
    /// The built-in network failed.
    #[error("built-in network failed for {subject}")]
    Builtin {
        /// "pod" and its id, or what was worked on.
        subject: String,
        /// What happened.
        source: BuiltinError,
    },
    /// The durable record of an attachment could not be read or written.
    #[error("record of attachment failed")]
    Record(#[source] RecordError),
    /// The attachment is not there, or not as it was made.
    #[error("network of pod {pod} is damaged: {reason}")]
    Damaged {
        /// The pod id.
        pod: String,
        /// What differs.
        reason: String,
    },
    /// A step failed, and what was done before it could not all be undone. The pod stays in
    /// [`crate::Network::attached`] until [`crate::Network::down`] succeeds.
    #[error("network of pod {pod} failed and {} of its parts could not be undone", left.len())]
    UndoIncomplete {
        /// The pod id.
        pod: String,
        /// The step that failed.
        #[source]
        cause: Box<NetworkError>,
        /// What failed while undoing.
        left: Vec<NetworkError>,
    },
    /// A worker thread ended without an answer.
    #[error("network worker ended early")]
    Worker {
        /// The runtime's report.
        source: tokio::task::JoinError,
    },
}

impl NetworkError {
    /// The class of this error.
    pub fn class(&self) -> ErrorClass {
        match self {
            NetworkError::Option { .. } | NetworkError::Pod { .. } => ErrorClass::InvalidArgument,
            NetworkError::Conf(_)
            | NetworkError::NoNetwork { .. }
            | NetworkError::Netns { .. }
            | NetworkError::Damaged { .. } => ErrorClass::FailedPrecondition,
            NetworkError::Plugin { source, .. } => source.class(),
            NetworkError::Builtin { source, .. } => source.class(),
            NetworkError::UndoIncomplete { cause, .. } => cause.class(),
            NetworkError::Result { .. } | NetworkError::Record(_) | NetworkError::Worker { .. } => {
                ErrorClass::Internal
            }
        }
    }
}

/// Why no pod can get a network now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct NotReady {
    /// One CamelCase word for the CRI condition.
    pub reason: String,
    /// A sentence for the operator.
    pub message: String,
}

/// The text of an error and everything below it, for messages that leave the crate as text.
pub(crate) fn chain_text(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}
