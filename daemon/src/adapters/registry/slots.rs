//! Who may ask a host now: a bounded number of transfers and of documents per host, and a bounded
//! memory for what came before its turn.
//!
//! Whoever holds a slot and no buffer hands on what comes; whoever waits for nobody's turn holds a
//! buffer for all of it. So every holder ends by itself, and waiting for a slot does too.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::origin::Origin;

/// Hosts remembered before those that nobody asks are forgotten.
const MAX_IDLE_HOSTS: usize = 256;
/// The unit in which memory is counted, in bytes.
const BUFFER_UNIT: u64 = 64 << 10;

/// The permission for one transfer or one document.
#[derive(Debug)]
pub(super) struct Slot {
    _permit: Option<OwnedSemaphorePermit>,
}

/// Memory that is reserved until this is dropped.
#[derive(Debug)]
pub(super) struct Buffer {
    _permit: OwnedSemaphorePermit,
}

#[derive(Debug, Clone)]
struct Gates {
    transfers: Arc<Semaphore>,
    documents: Arc<Semaphore>,
}

/// The slots of all hosts.
#[derive(Debug)]
pub(super) struct Slots {
    per_host: usize,
    hosts: Mutex<HashMap<Origin, Gates>>,
    buffer: Arc<Semaphore>,
}

impl Slots {
    pub(super) fn new(per_host: usize, buffer_bytes: u64) -> Self {
        let units = usize::try_from(buffer_bytes / BUFFER_UNIT).unwrap_or(usize::MAX);
        Self {
            per_host: per_host.max(1),
            hosts: Mutex::default(),
            buffer: Arc::new(Semaphore::new(units.min(Semaphore::MAX_PERMITS))),
        }
    }

    /// Waits for its turn to transfer a blob.
    pub(super) async fn for_transfer(&self, host: &Origin) -> Slot {
        Self::wait(self.gates(host).transfers).await
    }

    /// Takes a transfer's slot if one is free and nobody waits for it.
    pub(super) fn try_for_transfer(&self, host: &Origin) -> Option<Slot> {
        let permit = self.gates(host).transfers.try_acquire_owned().ok()?;
        Some(Slot {
            _permit: Some(permit),
        })
    }

    /// Waits for its turn to ask for a document. Blobs in transfer do not count: they may take
    /// hours, and a document's try has a bound.
    pub(super) async fn for_document(&self, host: &Origin) -> Slot {
        Self::wait(self.gates(host).documents).await
    }

    /// Reserves memory if there is some.
    pub(super) fn try_buffer(&self, bytes: u64) -> Option<Buffer> {
        let units = u32::try_from(bytes.div_ceil(BUFFER_UNIT)).ok()?;
        let permit = Arc::clone(&self.buffer)
            .try_acquire_many_owned(units)
            .ok()?;
        Some(Buffer { _permit: permit })
    }

    async fn wait(gate: Arc<Semaphore>) -> Slot {
        // A semaphore that is never closed always answers.
        Slot {
            _permit: gate.acquire_owned().await.ok(),
        }
    }

    fn gates(&self, host: &Origin) -> Gates {
        // A map of shared semaphores is never left half changed.
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gates) = hosts.get(host) {
            return gates.clone();
        }
        if hosts.len() >= MAX_IDLE_HOSTS {
            let idle = |gate: &Arc<Semaphore>| {
                Arc::strong_count(gate) == 1 && gate.available_permits() == self.per_host
            };
            hosts.retain(|_, gates| !(idle(&gates.transfers) && idle(&gates.documents)));
        }
        let gates = Gates {
            transfers: Arc::new(Semaphore::new(self.per_host)),
            documents: Arc::new(Semaphore::new(self.per_host)),
        };
        hosts.insert(host.clone(), gates.clone());
        gates
    }
}

#[cfg(test)]
mod tests {
    use super::super::origin::Scheme;
    use super::*;

    #[tokio::test]
    async fn slots_are_per_host_and_kind_and_come_back() {
        let slots = Slots::new(1, 2 * BUFFER_UNIT);
        let host = |name: &str| Origin::new(Scheme::Https, name).unwrap();
        let held = slots.for_transfer(&host("a.x")).await;
        assert!(slots.try_for_transfer(&host("a.x")).is_none());
        assert!(slots.try_for_transfer(&host("b.x")).is_some());
        let _document = slots.for_document(&host("a.x")).await;
        drop(held);
        assert!(slots.try_for_transfer(&host("a.x")).is_some());
        for number in 0..2000 {
            let _slot = slots.for_transfer(&host(&format!("h{number}.x"))).await;
        }
        assert!(slots.hosts.lock().unwrap().len() <= MAX_IDLE_HOSTS + 1);
    }

    #[test]
    fn memory_is_bounded() {
        let slots = Slots::new(1, 2 * BUFFER_UNIT);
        let first = slots.try_buffer(BUFFER_UNIT + 1).unwrap();
        assert!(slots.try_buffer(1).is_none());
        drop(first);
        assert!(slots.try_buffer(1).is_some());
        assert!(slots.try_buffer(u64::MAX).is_none());
        assert!(Slots::new(1, u64::MAX).try_buffer(1).is_some());
    }
}
