//! Readings that are given out again for a while, and are read anew for all that asked once they are old.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::engine::lock;

/// When a key was read, and what was there.
type Reading<V> = (Instant, Option<Arc<V>>);

/// What was read of each key lately.
#[derive(Debug)]
pub(super) struct Recent<K, V> {
    fresh: Duration,
    known: Mutex<HashMap<K, Reading<V>>>,
}

impl<K: Hash + Eq + Clone, V> Recent<K, V> {
    /// Nothing read yet; readings are given out again for this long.
    pub(super) fn new(fresh: Duration) -> Self {
        Self {
            fresh,
            known: Mutex::default(),
        }
    }

    /// Answers in the order of the keys; reads what is not fresh all at once.
    pub(super) async fn through<F>(
        &self,
        keys: Vec<K>,
        read: impl FnOnce(Vec<K>) -> F,
    ) -> Vec<Option<Arc<V>>>
    where
        F: Future<Output = Vec<Option<V>>>,
    {
        let mut missing = Vec::new();
        {
            let mut known = lock(&self.known);
            known.retain(|_, (at, _)| at.elapsed() < self.fresh);
            for key in &keys {
                if !known.contains_key(key) && !missing.contains(key) {
                    missing.push(key.clone());
                }
            }
            if missing.is_empty() {
                return keys.iter().map(|key| known.get(key)?.1.clone()).collect();
            }
        }
        let read: Vec<Option<V>> = read(missing.clone()).await;
        let mut known = lock(&self.known);
        let now = Instant::now();
        for (key, value) in missing.into_iter().zip(read) {
            known.insert(key, (now, value.map(Arc::new)));
        }
        keys.iter().map(|key| known.get(key)?.1.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_what_is_not_fresh_is_read() {
        let recent = Recent::new(Duration::from_secs(60));
        let first = recent.through(vec![1, 2], |keys| async move {
            assert_eq!(keys, [1, 2]);
            vec![Some("one"), None]
        });
        assert_eq!(first.await, [Some(Arc::new("one")), None]);
        let second = recent.through(vec![3, 2, 1, 3], |keys| async move {
            assert_eq!(keys, [3]);
            vec![Some("three")]
        });
        let wanted = [Some("three"), None, Some("one"), Some("three")];
        assert_eq!(second.await, wanted.map(|one| one.map(Arc::new)));
        let third = recent.through(vec![1], |_| async { unreachable!("all is fresh") });
        assert_eq!(third.await, [Some(Arc::new("one"))]);
    }

    #[tokio::test]
    async fn what_is_old_is_read_again() {
        let recent = Recent::new(Duration::ZERO);
        for value in [1, 2] {
            let read = recent.through(vec!["key"], |_| async move { vec![Some(value)] });
            assert_eq!(read.await, [Some(Arc::new(value))]);
        }
    }

    #[tokio::test]
    async fn a_reading_that_failed_is_nothing() {
        let recent: Recent<u8, u8> = Recent::new(Duration::from_secs(60));
        assert_eq!(
            recent.through(vec![1, 2], |_| async { Vec::new() }).await,
            [None, None]
        );
    }
}
