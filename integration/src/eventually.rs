//! Waiting for a condition with a bound, instead of sleeping and hoping.

use std::env;
use std::thread;
use std::time::{Duration, Instant};

/// How long [`eventually`] waits.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Environment variable with a whole number that every wait is multiplied by: an emulated machine is slow.
pub const SLOWNESS: &str = "AXIL_TEST_SLOWNESS";

/// A limit as it is on this machine: multiplied by [`SLOWNESS`], 1 to 100.
#[must_use]
pub fn patient(limit: Duration) -> Duration {
    let slowness = env::var(SLOWNESS).ok().and_then(|text| text.parse().ok());
    limit * slowness.unwrap_or(1u32).clamp(1, 100)
}

/// Asks `probe` until it answers `Some`, at most [`PATIENCE`].
///
/// # Panics
/// When time is up; the message names `what`.
pub fn eventually<T>(what: &str, probe: impl FnMut() -> Option<T>) -> T {
    within(PATIENCE, what, probe)
}

/// Asks `probe` until it answers `Some`, at most `limit` on a machine that is not slow.
///
/// # Panics
/// When time is up; the message names `what`.
pub fn within<T>(limit: Duration, what: &str, probe: impl FnMut() -> Option<T>) -> T {
    poll(limit, probe).unwrap_or_else(|| panic!("not within {:?}: {what}", patient(limit)))
}

/// Asks `probe` until it answers `Some` or `limit`, as it is on this machine, has passed.
pub fn poll<T>(limit: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + patient(limit);
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
