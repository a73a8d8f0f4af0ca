//! One operation at a time per pod: CNI forbids parallel operations on one container
//! (specification, section 2, "Lifecycle & Ordering").

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

/// A pod's turn. Shared with worker threads, so that it lasts until their work ends even when
/// the future that waits for them is dropped.
pub(crate) type Turn = Arc<OwnedMutexGuard<()>>;

/// The pods that are being worked on. The lock is asynchronous because it is held while plugins
/// run; different pods never wait for each other.
#[derive(Debug, Default)]
pub(crate) struct Lanes {
    pods: Mutex<BTreeMap<String, Weak<AsyncMutex<()>>>>,
}

impl Lanes {
    /// Waits for the pod's turn.
    pub(crate) async fn enter(&self, pod: &str) -> Turn {
        let lane = {
            let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
            pods.retain(|_, lane| lane.strong_count() > 0);
            let known = pods.get(pod).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let lane = Arc::new(AsyncMutex::new(()));
                pods.insert(pod.to_owned(), Arc::downgrade(&lane));
                lane
            })
        };
        Arc::new(lane.lock_owned().await)
    }

    /// The pods somebody works on or waits for.
    pub(crate) fn busy(&self) -> BTreeSet<String> {
        let pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        let busy = pods.iter().filter(|(_, lane)| lane.strong_count() > 0);
        busy.map(|(pod, _)| pod.clone()).collect()
    }
}
