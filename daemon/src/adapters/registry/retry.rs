//! When to try again, and after how long: exponential with jitter, or as the server asks, within
//! bounds.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::Duration;

use super::RegistryOptions;
use super::error::Problem;

/// Longest pause between two tries of our own choice.
const MAX_BACKOFF: Duration = Duration::from_secs(10);

/// The tries of one request to one host.
#[derive(Debug, Clone)]
pub(super) struct Retry {
    max: u32,
    base: Duration,
    max_asked: Duration,
    failures: u32,
}

impl Retry {
    /// Allows the further tries of the options.
    pub(super) fn new(options: &RegistryOptions) -> Self {
        Self {
            max: options.max_retries,
            base: options.retry_backoff,
            max_asked: options.max_retry_after,
            failures: 0,
        }
    }

    /// Forgets earlier failures, after enough progress.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Counts a failure and returns the pause before the next try, `None` to give up.
    pub(super) fn pause(&mut self, problem: &Problem) -> Option<Duration> {
        if !problem.is_transient() || self.failures >= self.max {
            return None;
        }
        let doubled = self.base.saturating_mul(1 << self.failures.min(16));
        self.failures += 1;
        let asked = match problem {
            Problem::Status { retry_after, .. } => *retry_after,
            _ => None,
        };
        match asked {
            Some(asked) if asked > self.max_asked => None,
            Some(asked) => Some(asked.max(jittered(self.base))),
            None => Some(jittered(doubled.min(MAX_BACKOFF))),
        }
    }
}

/// Returns between half and all of `pause`, so that many nodes do not come back together.
fn jittered(pause: Duration) -> Duration {
    let random = RandomState::new().build_hasher().finish() % 512;
    pause.mul_f64(0.5 + f64::from(u32::try_from(random).unwrap_or(0)) / 1024.0)
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    fn thrice() -> Retry {
        Retry::new(&RegistryOptions {
            max_retries: 3,
            retry_backoff: Duration::from_millis(100),
            ..RegistryOptions::default()
        })
    }

    fn busy(retry_after: Option<u64>) -> Problem {
        Problem::Status {
            status: StatusCode::TOO_MANY_REQUESTS,
            retry_after: retry_after.map(Duration::from_secs),
            detail: String::new(),
        }
    }

    #[test]
    fn pauses_grow_and_end() {
        let mut retry = thrice();
        let pauses: Vec<_> = std::iter::from_fn(|| retry.pause(&busy(None))).collect();
        assert_eq!(pauses.len(), 3);
        assert!(pauses[2] >= Duration::from_millis(200) && pauses[2] <= Duration::from_millis(400));
        retry.reset();
        assert!(retry.pause(&busy(None)).is_some());
    }

    #[test]
    fn a_server_may_ask_for_a_bounded_pause() {
        let mut retry = thrice();
        assert_eq!(retry.pause(&busy(Some(7))), Some(Duration::from_secs(7)));
        assert!(retry.pause(&busy(Some(0))).unwrap() >= Duration::from_millis(50));
        assert_eq!(retry.pause(&busy(Some(3600))), None);
    }

    #[test]
    fn what_stays_wrong_is_not_tried_again() {
        let mut retry = thrice();
        let gone = Problem::NotFound {
            detail: String::new(),
        };
        assert_eq!(retry.pause(&gone), None);
    }
}
