//! The caller's deadline, kept a moment before the transport keeps it.
//!
//! tonic ends a call whose `grpc-timeout` passed with CANCELLED; gRPC says DEADLINE_EXCEEDED. This layer
//! sits within tonic's and lets go of the call a little earlier, with the right code. Only the wait
//! ends: the work is the driver's and goes on.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use tonic::Status;
use tonic::body::Body;
use tower_service::Service;

/// How much earlier than the transport, at most.
const EARLIER: Duration = Duration::from_millis(10);

/// A service whose calls end at their deadline.
#[derive(Debug, Clone)]
pub struct Deadline<S> {
    inner: S,
}

impl<S> Deadline<S> {
    /// Wraps a service.
    pub fn new(inner: S) -> Self {
        Self { inner }
    }
}

type Answer<E> = Pin<Box<dyn Future<Output = Result<Response<Body>, E>> + Send>>;

impl<S> Service<Request<Body>> for Deadline<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Send,
    S::Future: Send + 'static,
    S::Error: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Answer<S::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let header = request.headers().get("grpc-timeout");
        let given = header
            .and_then(|value| value.to_str().ok())
            .and_then(parse_timeout);
        let work = self.inner.call(request);
        let Some(given) = given else {
            return Box::pin(work);
        };
        let wait = given.saturating_sub(EARLIER.min(given / 2));
        Box::pin(async move {
            match tokio::time::timeout(wait, work).await {
                Ok(answer) => answer,
                Err(_) => {
                    let message = format!("the caller's deadline of {given:?} passed");
                    Ok(Status::deadline_exceeded(message).into_http())
                }
            }
        })
    }
}

/// Reads a `grpc-timeout` value: at most eight digits and a unit (gRPC over HTTP/2, "Timeout").
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_the_protocol_writes_them() {
        for (text, wanted) in [
            ("1S", Some(Duration::from_secs(1))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("2m", Some(Duration::from_millis(2))),
            ("3H", Some(Duration::from_secs(10_800))),
            ("", None),
            ("S", None),
            ("123456789S", None),
            ("-1S", None),
            ("1x", None),
            ("1é", None),
        ] {
            assert_eq!(parse_timeout(text), wanted, "{text:?}");
        }
    }
}
