//! The only place where our failures become gRPC codes.

use std::future::Future;
use std::time::Instant;

use tonic::{Code, Response, Status};
use tracing::Instrument as _;

use crate::domain::failure::{Class, Failure};
use crate::metrics::Metrics;

/// Longest message sent: error details travel in HTTP/2 headers, whose size peers bound.
const MAX_MESSAGE: usize = 4096;

/// Turns a failure into a status.
pub(super) fn status(failure: &Failure) -> Status {
    let code = match failure.class {
        // The kubelet looks for the name only where the code is this one.
        _ if failure.known_as.is_some() => Code::Unknown,
        Class::InvalidArgument => Code::InvalidArgument,
        Class::NotFound => Code::NotFound,
        Class::AlreadyExists => Code::AlreadyExists,
        Class::FailedPrecondition => Code::FailedPrecondition,
        Class::PermissionDenied => Code::PermissionDenied,
        Class::Unavailable => Code::Unavailable,
        Class::DeadlineExceeded => Code::DeadlineExceeded,
        Class::Exhausted => Code::ResourceExhausted,
        Class::DataLoss => Code::DataLoss,
        Class::Unsupported => Code::Unimplemented,
        Class::Internal => Code::Internal,
    };
    let mut message = failure.to_string();
    if message.len() > MAX_MESSAGE {
        let cut = (0..=MAX_MESSAGE)
            .rev()
            .find(|&at| message.is_char_boundary(at))
            .unwrap_or(0);
        message.truncate(cut);
        message.push('…');
    }
    Status::new(code, message)
}

/// Runs one call: opens its span, counts it, and turns its failure into a status.
pub(super) async fn call<T>(
    metrics: &Metrics,
    method: &'static str,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<Response<T>, Status> {
    let began = Instant::now();
    let span = tracing::debug_span!("call", rpc = method);
    let result = work.instrument(span).await;
    let result = result.map(Response::new).map_err(|failure| {
        let status = status(&failure);
        // A request that is wrong is the caller's business; anything else an operator may care for.
        match failure.class {
            Class::Internal | Class::DataLoss | Class::Exhausted => {
                tracing::error!(rpc = method, error = %failure, "call failed");
            }
            Class::Unavailable | Class::DeadlineExceeded | Class::PermissionDenied => {
                tracing::warn!(rpc = method, error = %failure, "call failed");
            }
            Class::InvalidArgument
            | Class::NotFound
            | Class::AlreadyExists
            | Class::FailedPrecondition
            | Class::Unsupported => tracing::debug!(rpc = method, error = %failure, "call refused"),
        }
        status
    });
    let code = result.as_ref().err().map_or(Code::Ok, Status::code);
    metrics.called(method, code_name(code), began.elapsed());
    result
}

/// Counts and refuses a call that is not built yet.
pub(super) fn unimplemented(metrics: &Metrics, method: &'static str) -> Status {
    metrics.called(
        method,
        code_name(Code::Unimplemented),
        std::time::Duration::ZERO,
    );
    Status::unimplemented(format!("{method} is not built yet"))
}

fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Cancelled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::failure::KubeletError;

    #[test]
    fn the_kubelets_own_errors_are_recognized_by_it() {
        let check = |failure: Failure, code, message: &str| {
            let status = status(&failure.during("y"));
            assert_eq!((status.code(), status.message()), (code, message));
        };
        // What the kubelet compares with: the constants of cri-api's pkg/errors.
        let silent = Failure::new(Class::Unavailable, "pull x: no");
        let known = silent.clone().known_as(KubeletError::RegistryUnavailable);
        check(known, Code::Unknown, "RegistryUnavailable: y: pull x: no");
        check(silent, Code::Unavailable, "y: pull x: no");
    }

    #[test]
    fn messages_are_cut_between_characters() {
        let long = "é".repeat(MAX_MESSAGE);
        let status = status(&Failure::new(Class::Internal, long));
        assert!(status.message().len() <= MAX_MESSAGE + '…'.len_utf8());
    }
}
