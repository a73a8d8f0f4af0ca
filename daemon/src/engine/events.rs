//! News of pods and containers for whoever listens: told by the drivers in the order things happened, after what
//! they tell of is published.
//!
//! A listener loses nothing. One that does not read is let go of once its queue is full, with what is queued
//! still delivered and the reason at the end; it lists anew, as after any break.

use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use tokio::sync::mpsc;

use super::lock;
use super::views::{ContainerView, PodView};
use crate::domain::failure::{Class, Failure};
use crate::metrics::Metrics;

/// News a listener may have waiting: a node of 250 pods with three containers that all end and go at once makes
/// two and a half thousand. Each holds references to records the views hold as well.
const QUEUE: usize = 4096;

/// Listeners at once: the kubelet is one.
const LISTENERS: usize = 16;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewsKind {
    /// It was made.
    Created,
    /// It runs.
    Started,
    /// It ended.
    Stopped,
    /// It is no more.
    Deleted,
}

/// Something that happened to a pod or a container, with the pod as it was right after.
#[derive(Clone)]
#[expect(missing_debug_implementations, reason = "a view")]
pub struct News {
    /// The container's id, or the pod's.
    pub about: String,
    /// What happened.
    pub kind: NewsKind,
    /// When, nanoseconds since the epoch.
    pub at: i64,
    /// The pod, without its connection.
    pub pod: PodView,
    /// Its containers.
    pub containers: Vec<ContainerView>,
}

/// Who listens.
#[derive(Default)]
#[expect(missing_debug_implementations, reason = "queues of views")]
pub struct Events {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    listeners: Vec<Ear>,
    closed: bool,
}

/// The daemon's end of a listener.
struct Ear {
    news: mpsc::Sender<Arc<News>>,
    parting: Arc<Mutex<Option<Failure>>>,
}

/// A listener's end: yields news, then why there will be no more.
#[expect(missing_debug_implementations, reason = "a queue of views")]
pub struct Listener {
    news: mpsc::Receiver<Arc<News>>,
    parting: Arc<Mutex<Option<Failure>>>,
}

impl Events {
    /// Begins to listen; everything told from now on is heard.
    ///
    /// # Errors
    /// `Exhausted` when too many listen, `Unavailable` when the daemon is going down.
    pub fn listen(&self) -> Result<Listener, Failure> {
        self.listen_with(QUEUE)
    }

    fn listen_with(&self, queue: usize) -> Result<Listener, Failure> {
        let mut state = lock(&self.state);
        if state.closed {
            return Err(going_down());
        }
        state.listeners.retain(|ear| !ear.news.is_closed());
        if state.listeners.len() >= LISTENERS {
            return Err(Failure::new(
                Class::Exhausted,
                format!("{LISTENERS} clients listen to events already"),
            ));
        }
        let (sender, receiver) = mpsc::channel(queue);
        let parting = Arc::default();
        state.listeners.push(Ear {
            news: sender,
            parting: Arc::clone(&parting),
        });
        Ok(Listener {
            news: receiver,
            parting,
        })
    }

    /// Whether news would be told to nobody, and need not be made.
    #[must_use]
    pub fn nobody_listens(&self) -> bool {
        lock(&self.state).listeners.is_empty()
    }

    /// Tells everybody who listens; never waits.
    pub fn tell(&self, news: News, metrics: &Metrics) {
        let news = Arc::new(news);
        lock(&self.state)
            .listeners
            .retain(|ear| match ear.news.try_send(Arc::clone(&news)) {
                Ok(()) => true,
                Err(mpsc::error::TrySendError::Closed(_)) => false,
                Err(mpsc::error::TrySendError::Full(_)) => {
                    let queue = ear.news.max_capacity();
                    tracing::warn!(queue, "a client that does not read its events is let go of");
                    metrics.listener_cut();
                    *lock(&ear.parting) = Some(Failure::new(
                        Class::Exhausted,
                        format!("{queue} events were not read in time; listen and list anew"),
                    ));
                    false
                }
            });
    }

    /// Lets go of everybody: the daemon is going down.
    pub fn close(&self) {
        let mut state = lock(&self.state);
        state.closed = true;
        for ear in state.listeners.drain(..) {
            *lock(&ear.parting) = Some(going_down());
        }
    }
}

fn going_down() -> Failure {
    Failure::new(Class::Unavailable, "the daemon is stopping; pods run on")
}

impl Listener {
    /// The next news; after the last one the reason, once, and then none.
    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Arc<News>, Failure>>> {
        self.news.poll_recv(context).map(|news| match news {
            Some(news) => Some(Ok(news)),
            None => lock(&self.parting).take().map(Err),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;
    use crate::domain::pod::phase::PodPhase;
    use crate::domain::pod::record::{POD_RECORD_VERSION, PodRecord};

    fn news(about: &str) -> News {
        let spec = serde_json::json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "attempt": 0},
            "runtime_handler": "", "hostname": "", "log_directory": "", "dns": null,
            "port_mappings": [], "labels": {}, "annotations": {}, "cgroup_parent": "",
            "sysctls": {}, "overhead": null, "resources": null,
            "namespaces": {"network": "pod", "pid": "container", "ipc": "pod", "target_id": ""},
            "security": {"privileged": false, "seccomp": "unset"}
        });
        let id = "a".repeat(64);
        let record = PodRecord {
            version: POD_RECORD_VERSION,
            id: id.clone(),
            created_at: 1,
            spec: serde_json::from_value(spec).unwrap(),
            phase: PodPhase::Stopping,
            resources: crate::domain::pod::record::PodResources::default(),
            selinux_level: None,
            timeline: crate::domain::timeline::Timeline::default(),
        };
        News {
            about: about.to_owned(),
            kind: NewsKind::Created,
            at: 1,
            pod: PodView {
                id: id.parse().unwrap(),
                record: Arc::new(record),
                shim: None,
            },
            containers: Vec::new(),
        }
    }

    async fn next(listener: &mut Listener) -> Option<Result<String, Class>> {
        let next = poll_fn(|context| listener.poll(context)).await;
        next.map(|news| {
            news.map(|news| news.about.clone())
                .map_err(|failure| failure.class)
        })
    }

    #[tokio::test]
    async fn everybody_hears_everything_from_when_they_listen() {
        let (events, metrics) = (Events::default(), Metrics::default());
        assert!(events.nobody_listens());
        events.tell(news("0"), &metrics);
        let mut one = events.listen().unwrap();
        events.tell(news("1"), &metrics);
        let mut two = events.listen().unwrap();
        events.tell(news("2"), &metrics);
        assert_eq!(next(&mut one).await, Some(Ok("1".into())));
        assert_eq!(next(&mut one).await, Some(Ok("2".into())));
        assert_eq!(next(&mut two).await, Some(Ok("2".into())));
        drop(two);
        events.tell(news("3"), &metrics);
        assert_eq!(next(&mut one).await, Some(Ok("3".into())));
        assert_eq!(lock(&events.state).listeners.len(), 1);
    }

    #[tokio::test]
    async fn who_does_not_read_gets_what_is_queued_and_then_the_reason() {
        let (events, metrics) = (Events::default(), Metrics::default());
        let mut slow = events.listen_with(2).unwrap();
        let mut quick = events.listen().unwrap();
        for about in ["1", "2", "3"] {
            events.tell(news(about), &metrics);
        }
        assert_eq!(next(&mut slow).await, Some(Ok("1".into())));
        assert_eq!(next(&mut slow).await, Some(Ok("2".into())));
        assert_eq!(next(&mut slow).await, Some(Err(Class::Exhausted)));
        assert_eq!(next(&mut slow).await, None);
        for about in ["1", "2", "3"] {
            assert_eq!(next(&mut quick).await, Some(Ok(about.into())));
        }
    }

    #[tokio::test]
    async fn a_daemon_that_stops_says_so() {
        let (events, metrics) = (Events::default(), Metrics::default());
        let mut listener = events.listen().unwrap();
        events.tell(news("1"), &metrics);
        events.close();
        assert_eq!(next(&mut listener).await, Some(Ok("1".into())));
        assert_eq!(next(&mut listener).await, Some(Err(Class::Unavailable)));
        assert_eq!(next(&mut listener).await, None);
        assert_eq!(events.listen().err().unwrap().class, Class::Unavailable);
    }

    #[test]
    fn listeners_are_bounded_and_those_that_went_do_not_count() {
        let events = Events::default();
        let mut all: Vec<_> = (0..LISTENERS).map(|_| events.listen().unwrap()).collect();
        assert_eq!(events.listen().err().unwrap().class, Class::Exhausted);
        all.pop();
        events.listen().unwrap();
    }
}
