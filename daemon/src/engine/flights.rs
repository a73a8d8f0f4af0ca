//! Work that several callers wait for: one task per key does it, and stops when the last caller has left. What
//! the work is, and who may join it, is its owner's business.
//!
//! ```text
//!   join (first) -> at work --ended--> told to every caller; a kept result stays until the last one left
//!   join (more)  -> at work
//!                      | the last caller left, nobody came within `linger`
//!                      v
//!                   closing: the work is told to stop; who joins now waits for its end, then begins anew
//! ```

use std::collections::BTreeMap;
use std::future::{Future, pending};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{lock, spawn};
use crate::domain::failure::{Class, Failure};

/// When work ends and how long its result is of use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    /// How long work goes on without a caller; who comes within that time joins it.
    pub(super) linger: Duration,
    /// Whether a result is kept for further callers for as long as one of those who waited has not left. Failures
    /// are never kept.
    pub(super) keeps: bool,
}

/// The work at hand, by key.
pub(super) struct Flights<K, T> {
    rules: Rules,
    open: Mutex<BTreeMap<K, Arc<Flight<T>>>>,
}

struct Flight<T> {
    outcome: watch::Sender<Option<Result<T, Failure>>>,
    callers: watch::Sender<usize>,
    /// Nobody joins any more. Changed under the lock of the map only, as the count goes up under it only.
    closing: AtomicBool,
    ended: CancellationToken,
}

/// A caller's place; dropping it is leaving.
pub(super) struct Ticket<T> {
    flight: Arc<Flight<T>>,
    /// Whether this caller began the work.
    pub(super) is_first: bool,
}

impl<T> Drop for Ticket<T> {
    fn drop(&mut self) {
        self.flight.callers.send_modify(|count| *count -= 1);
    }
}

impl<T: Clone> Ticket<T> {
    /// Waits for the end of the work.
    ///
    /// # Errors
    /// The work's own failure, the same for every caller.
    pub(super) async fn outcome(&self) -> Result<T, Failure> {
        let mut outcome = self.flight.outcome.subscribe();
        let told = outcome.wait_for(Option::is_some).await;
        match told.as_deref() {
            Ok(Some(result)) => result.clone(),
            Ok(None) | Err(_) => Err(Failure::new(Class::Internal, "shared work ended unheard")),
        }
    }

    /// Leaves; if this was the last caller, waits until the work has ended and its result is thrown away.
    pub(super) async fn leave(self) {
        let flight = Arc::clone(&self.flight);
        let mut callers = flight.callers.subscribe();
        drop(self);
        tokio::select! {
            () = flight.ended.cancelled() => {}
            _ = callers.wait_for(|count| *count > 0) => {}
        }
    }
}

enum Entered<T> {
    Joined(Ticket<T>),
    Begun(Ticket<T>),
    Closing(CancellationToken),
}

impl<K, T> Flights<K, T>
where
    K: Ord + Clone + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    pub(super) fn new(rules: Rules) -> Arc<Self> {
        Arc::new(Self {
            rules,
            open: Mutex::default(),
        })
    }

    /// Joins the work for `key`, or begins it. `work` gets the token that tells it to stop, and then has to end
    /// within a bounded time.
    pub(super) async fn join<W>(
        self: &Arc<Self>,
        key: K,
        work: impl FnOnce(CancellationToken) -> W + Send,
    ) -> Ticket<T>
    where
        W: Future<Output = Result<T, Failure>> + Send + 'static,
    {
        let ticket = loop {
            match self.enter(&key) {
                Entered::Joined(ticket) => return ticket,
                Entered::Begun(ticket) => break ticket,
                Entered::Closing(ended) => ended.cancelled().await,
            }
        };
        let stop = CancellationToken::new();
        // A panic in the work must reach its callers, not leave them waiting: it has a task of its own.
        let task = spawn::spawn("shared work", work(stop.clone()));
        let (flights, flight) = (Arc::clone(self), Arc::clone(&ticket.flight));
        spawn::spawn("shared work watch", async move {
            flights.watch(key, &flight, task, &stop).await;
        });
        ticket
    }

    fn enter(&self, key: &K) -> Entered<T> {
        let mut open = lock(&self.open);
        if let Some(flight) = open.get(key) {
            if flight.closing.load(Ordering::Relaxed) {
                return Entered::Closing(flight.ended.clone());
            }
            flight.callers.send_modify(|count| *count += 1);
            return Entered::Joined(Ticket {
                flight: Arc::clone(flight),
                is_first: false,
            });
        }
        let flight = Arc::new(Flight {
            outcome: watch::Sender::new(None),
            callers: watch::Sender::new(1),
            closing: AtomicBool::new(false),
            ended: CancellationToken::new(),
        });
        open.insert(key.clone(), Arc::clone(&flight));
        Entered::Begun(Ticket {
            flight,
            is_first: true,
        })
    }

    async fn watch(
        &self,
        key: K,
        flight: &Flight<T>,
        mut task: JoinHandle<Result<T, Failure>>,
        stop: &CancellationToken,
    ) {
        let mut callers = flight.callers.subscribe();
        let ended = loop {
            tokio::select! {
                ended = &mut task => break ended,
                () = abandoned(&mut callers, self.rules.linger) => {
                    if self.close(flight) {
                        stop.cancel();
                        break task.await;
                    }
                }
            }
        };
        let result = ended.unwrap_or_else(|error| Err(Failure::internal("shared work", &error)));
        if self.rules.keeps && result.is_ok() {
            flight.outcome.send_replace(Some(result));
            loop {
                abandoned(&mut callers, Duration::ZERO).await;
                if self.close(flight) {
                    break;
                }
            }
            // What is thrown away may be files.
            let unused = flight.outcome.send_replace(None);
            let dropping = tokio::task::spawn_blocking(move || drop(unused));
            if let Err(error) = dropping.await {
                tracing::error!(error = %error, "a result nobody took could not be thrown away");
            }
            lock(&self.open).remove(&key);
        } else {
            // Order: who hears of the end and asks again begins anew.
            lock(&self.open).remove(&key);
            flight.outcome.send_replace(Some(result));
        }
        flight.ended.cancel();
    }

    /// Lets nobody join any more, unless somebody did.
    fn close(&self, flight: &Flight<T>) -> bool {
        let _open = lock(&self.open);
        let is_empty = *flight.callers.borrow() == 0;
        flight.closing.store(is_empty, Ordering::Relaxed);
        is_empty
    }
}

/// Waits until there was no caller for as long as `linger`.
async fn abandoned(callers: &mut watch::Receiver<usize>, linger: Duration) {
    loop {
        if callers.wait_for(|count| *count == 0).await.is_err() {
            // The flight holds the sender and outlives its watch.
            return pending().await;
        }
        let returned = callers.wait_for(|count| *count > 0);
        if tokio::time::timeout(linger, returned).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
