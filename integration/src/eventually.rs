//! Waiting for a condition with a bound, instead of sleeping and hoping.

use std::thread;
use std::time::{Duration, Instant};

/// How long [`eventually`] waits.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Asks `probe` until it answers `Some`, at most [`PATIENCE`].
///
/// # Panics
/// When time is up; the message names `what`.
pub fn eventually<T>(what: &str, probe: impl FnMut() -> Option<T>) -> T {
    within(PATIENCE, what, probe)
}

/// Asks `probe` until it answers `Some`, at most `limit`.
///
/// # Panics
/// When time is up; the message names `what`.
pub fn within<T>(limit: Duration, what: &str, probe: impl FnMut() -> Option<T>) -> T {
    poll(limit, probe).unwrap_or_else(|| panic!("not within {limit:?}: {what}"))
}

/// Asks `probe` until it answers `Some` or `limit` has passed.
pub fn poll<T>(limit: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    let mut pause = Duration::from_millis(2);
    loop {
        if let Some(answer) = probe() {
            return Some(answer);
        }
        if Instant::now() >= deadline {
            return None;
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}
