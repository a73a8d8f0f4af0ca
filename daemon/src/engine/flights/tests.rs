//! Callers that come, leave and come back.

use std::sync::atomic::AtomicUsize;

use tokio::sync::Notify;

use super::*;

const LINGER: Duration = Duration::from_secs(5);

fn flights(keeps: bool) -> Arc<Flights<u8, Arc<usize>>> {
    Flights::new(Rules {
        linger: LINGER,
        keeps,
    })
}

/// Work that counts how often it began and ends when it is let go or stopped.
#[derive(Default)]
struct Work {
    begun: AtomicUsize,
    stopped: AtomicUsize,
    go: Notify,
}

impl Work {
    async fn run(self: Arc<Self>, stop: CancellationToken) -> Result<Arc<usize>, Failure> {
        let number = self.begun.fetch_add(1, Ordering::Relaxed) + 1;
        tokio::select! {
            () = self.go.notified() => Ok(Arc::new(number)),
            () = stop.cancelled() => {
                self.stopped.fetch_add(1, Ordering::Relaxed);
                Err(Failure::new(Class::Unavailable, "stopped"))
            }
        }
    }

    fn counts(&self) -> (usize, usize) {
        let load = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        (load(&self.begun), load(&self.stopped))
    }
}

async fn join(flights: &Arc<Flights<u8, Arc<usize>>>, work: &Arc<Work>) -> Ticket<Arc<usize>> {
    let work = Arc::clone(work);
    flights.join(1, |stop| work.run(stop)).await
}

/// Lets every other task go as far as it can; the clock stands still.
async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn callers_share_the_work_and_one_that_leaves_takes_nothing_from_the_others() {
    let (flights, work) = (flights(false), Arc::new(Work::default()));
    let first = join(&flights, &work).await;
    let second = join(&flights, &work).await;
    assert!(first.is_first && !second.is_first);
    drop(first);
    tokio::time::sleep(LINGER * 3).await;
    assert_eq!(work.counts(), (1, 0));
    work.go.notify_one();
    assert_eq!(*second.outcome().await.unwrap(), 1);
    // What ended is not joined.
    let third = join(&flights, &work).await;
    assert!(third.is_first);
}

#[tokio::test(start_paused = true)]
async fn work_without_a_caller_stops_after_the_time_in_which_it_can_be_joined() {
    let (flights, work) = (flights(false), Arc::new(Work::default()));
    drop(join(&flights, &work).await);
    tokio::time::sleep(LINGER / 2).await;
    let back = join(&flights, &work).await;
    assert!(!back.is_first);
    tokio::time::sleep(LINGER * 2).await;
    assert_eq!(work.counts(), (1, 0));
    drop(back);
    tokio::time::sleep(LINGER + Duration::from_millis(1)).await;
    settle().await;
    assert_eq!(work.counts(), (1, 1));
    let anew = join(&flights, &work).await;
    assert!(anew.is_first);
    settle().await;
    assert_eq!(work.counts(), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn who_comes_while_the_work_is_stopping_waits_for_its_end() {
    let flights = flights(false);
    let go = Arc::new(Notify::new());
    let slow = Arc::clone(&go);
    let ticket = flights
        .join(1, |stop| async move {
            stop.cancelled().await;
            slow.notified().await;
            Err(Failure::new(Class::Unavailable, "stopped"))
        })
        .await;
    drop(ticket);
    tokio::time::sleep(LINGER * 2).await;
    let work = Arc::new(Work::default());
    let coming = {
        let (flights, work) = (Arc::clone(&flights), Arc::clone(&work));
        spawn::spawn("test", async move { join(&flights, &work).await })
    };
    settle().await;
    assert_eq!(work.counts(), (0, 0));
    go.notify_one();
    assert!(coming.await.unwrap().is_first);
    settle().await;
    assert_eq!(work.counts(), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_kept_result_is_for_everybody_until_the_last_one_left_and_then_thrown_away() {
    let (flights, work) = (flights(true), Arc::new(Work::default()));
    let first = join(&flights, &work).await;
    work.go.notify_one();
    let result = Arc::downgrade(&first.outcome().await.unwrap());
    let late = join(&flights, &work).await;
    assert!(!late.is_first);
    assert_eq!(*late.outcome().await.unwrap(), 1);
    first.leave().await;
    settle().await;
    assert!(result.upgrade().is_some());
    late.leave().await;
    assert!(result.upgrade().is_none());
    let anew = join(&flights, &work).await;
    assert!(anew.is_first);
    settle().await;
    assert_eq!(work.counts(), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_told_to_all_and_not_kept() {
    for keeps in [false, true] {
        let flights = flights(keeps);
        let go = Arc::new(Notify::new());
        let waits = Arc::clone(&go);
        let first = flights
            .join(1, |_stop| async move {
                waits.notified().await;
                Err(Failure::new(Class::NotFound, "no"))
            })
            .await;
        let second = join(&flights, &Arc::default()).await;
        go.notify_one();
        assert_eq!(first.outcome().await.unwrap_err().message, "no");
        assert_eq!(second.outcome().await.unwrap_err().message, "no");
        assert!(join(&flights, &Arc::default()).await.is_first);
    }
}

#[tokio::test]
async fn a_panic_reaches_the_callers() {
    let flights: Arc<Flights<u8, ()>> = Flights::new(Rules {
        linger: LINGER,
        keeps: false,
    });
    let ticket = flights.join(1, |_stop| async { panic!("boom") }).await;
    assert_eq!(ticket.outcome().await.unwrap_err().class, Class::Internal);
}
