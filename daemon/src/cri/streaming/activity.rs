//! When bytes last moved in a session, and waiting until that is too long ago.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// A clock that is set back by each byte of a client or a process; pings do not count.
#[derive(Debug)]
pub(super) struct Activity {
    begun: Instant,
    /// Milliseconds after `begun`.
    last: AtomicU64,
}

impl Activity {
    pub(super) fn new() -> Self {
        Self {
            begun: Instant::now(),
            last: AtomicU64::new(0),
        }
    }

    /// Something moved.
    pub(super) fn touch(&self) {
        self.touch_at(Instant::now());
    }

    fn touch_at(&self, now: Instant) {
        let moved = now.duration_since(self.begun).as_millis();
        let moved = u64::try_from(moved).unwrap_or(u64::MAX);
        self.last.store(moved, Ordering::Relaxed);
    }

    /// When the session is idle, should nothing move any more.
    fn due(&self, limit: Duration) -> Instant {
        self.begun + Duration::from_millis(self.last.load(Ordering::Relaxed)) + limit
    }

    /// Returns when nothing has moved for `limit`.
    pub(super) async fn idle(&self, limit: Duration) {
        loop {
            let due = self.due(limit);
            if due <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(due).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_session_is_idle_once_nothing_moved_for_the_limit() {
        let activity = Activity::new();
        let limit = Duration::from_secs(10);
        assert_eq!(activity.due(limit), activity.begun + limit);
        activity.touch_at(activity.begun + Duration::from_secs(9));
        assert_eq!(
            activity.due(limit),
            activity.begun + Duration::from_secs(19)
        );
        // A limit that is over ends the waiting at once.
        activity.touch();
        activity.idle(Duration::ZERO).await;
    }
}
