//! StopContainer: the stop signal, a grace period that later calls may shorten, then SIGKILL of all.

use std::sync::Arc;
use std::time::Duration;

use axil_proto::ids::ContainerId;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::domain::failure::{Class, Failure};
use crate::ports::Shim;

/// What StopContainer works on.
#[expect(missing_debug_implementations, reason = "holds the shim's connection")]
pub struct Work {
    /// The container.
    pub id: ContainerId,
    /// Its stop signal.
    pub signal: i32,
    /// Whether its process was ever started; one that was not knows no signals.
    pub started: bool,
    /// Its pod's shim.
    pub shim: Arc<dyn Shim>,
    /// When the grace period ends.
    pub deadline: watch::Receiver<Instant>,
    /// News of its end.
    pub ended: watch::Receiver<bool>,
    /// How long a killed container may take to be gone.
    pub kill: Duration,
}

/// Ends a container's processes.
///
/// # Errors
/// `DeadlineExceeded` when it lives on after SIGKILL (a process in uninterruptible sleep).
pub async fn stop_container(mut work: Work) -> Result<(), Failure> {
    let graceful = work.started && *work.deadline.borrow() > Instant::now();
    if graceful && !signal(&work, work.signal, false).await? {
        return Ok(());
    }
    if graceful && ended_in_time(&mut work).await {
        return Ok(());
    }
    if !signal(&work, 9, true).await? {
        return Ok(());
    }
    let wait = work.ended.wait_for(|ended| *ended);
    match tokio::time::timeout(work.kill, wait).await {
        Ok(_) => Ok(()),
        Err(_) => Err(Failure::new(
            Class::DeadlineExceeded,
            format!(
                "container {} is alive {:?} after SIGKILL",
                work.id, work.kill
            ),
        )),
    }
}

/// Waits for the end until the deadline, which a later call may bring forward.
async fn ended_in_time(work: &mut Work) -> bool {
    loop {
        let deadline = *work.deadline.borrow_and_update();
        // All branches are cancellation-safe: two watches and a timer.
        tokio::select! {
            _ = work.ended.wait_for(|ended| *ended) => return true,
            _ = work.deadline.changed() => {}
            () = tokio::time::sleep_until(deadline) => return false,
        }
    }
}

/// Sends a signal; `false` when the process has ended and its end is known.
async fn signal(work: &Work, signal: i32, all: bool) -> Result<bool, Failure> {
    match work.shim.kill(&work.id, None, signal, all).await {
        Ok(()) => Ok(true),
        // It ended in between: its watcher brings the news.
        Err(failure)
            if matches!(
                failure.class,
                Class::NotFound | Class::FailedPrecondition | Class::Unavailable
            ) =>
        {
            let mut ended = work.ended.clone();
            let wait = tokio::time::timeout(work.kill, ended.wait_for(|ended| *ended)).await;
            if wait.is_ok() {
                Ok(false)
            } else {
                Err(failure)
            }
        }
        Err(failure) => Err(failure),
    }
}
