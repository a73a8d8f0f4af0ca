//! The one place where tasks are spawned: each has a name and a span.

use std::future::Future;

use tokio::task::JoinHandle;
use tracing::Instrument as _;

/// Spawns a named task in the current span.
pub fn spawn<F>(name: &'static str, work: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let span = tracing::debug_span!("task", name);
    tokio::spawn(work.instrument(span))
}

/// Runs blocking work on the blocking pool; a panic in it becomes a failure.
///
/// # Errors
/// The work's own failure, or `Internal` when it panicked.
pub async fn blocking<T, F>(
    what: &'static str,
    work: F,
) -> Result<T, crate::domain::failure::Failure>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, crate::domain::failure::Failure> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(crate::domain::failure::Failure::internal(what, &error)),
    }
}
