//! Publishes task events to containerd, in order, when it has named an address for them.
//!
//! axild does not: it uses `Wait` and the exit record. A containerd that is away is tried again; the
//! queue is bounded and nothing here ever holds up a task.

use std::time::{Duration, SystemTime};

use axil_proto::shim::event_service::{EventsClient, ForwardRequest};
use axil_proto::shim::events;
use axil_proto::shim::types::Envelope;
use prost::Message;
use prost_types::{Any, Timestamp};
use tokio::sync::mpsc;

use crate::log;

/// Events that wait for a containerd that is away. Some per task of a busy pod; a restart of
/// containerd takes seconds.
const QUEUE: usize = 256;

/// How long one event is tried before it is given up.
const TRIES: u32 = 30;
const PAUSE: Duration = Duration::from_secs(1);
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// A task event and its topic.
pub trait Event: Message {
    /// Where containerd files it.
    const TOPIC: &'static str;
    /// Its full protobuf name.
    const NAME: &'static str;
}

macro_rules! event {
    ($name:ident, $wire:literal, $topic:literal) => {
        impl Event for events::$name {
            const TOPIC: &'static str = $topic;
            const NAME: &'static str = concat!("containerd.events.", $wire);
        }
    };
}

event!(TaskCreate, "TaskCreate", "/tasks/create");
event!(TaskStart, "TaskStart", "/tasks/start");
event!(TaskExit, "TaskExit", "/tasks/exit");
event!(TaskDelete, "TaskDelete", "/tasks/delete");
event!(TaskOom, "TaskOOM", "/tasks/oom");
event!(TaskExecAdded, "TaskExecAdded", "/tasks/exec-added");
event!(TaskExecStarted, "TaskExecStarted", "/tasks/exec-started");
event!(TaskPaused, "TaskPaused", "/tasks/paused");
event!(TaskResumed, "TaskResumed", "/tasks/resumed");

/// Accepts events; does nothing when nobody wants them.
#[derive(Debug, Clone)]
pub struct Publisher {
    namespace: String,
    queue: Option<mpsc::Sender<Envelope>>,
}

impl Publisher {
    /// Publishes to the ttrpc socket at `address`, or nowhere.
    #[must_use]
    pub fn start(namespace: &str, address: Option<String>) -> Self {
        let queue = address.filter(|a| !a.is_empty()).map(|address| {
            let (sender, receiver) = mpsc::channel(QUEUE);
            tokio::spawn(forward(address, receiver));
            sender
        });
        Self {
            namespace: namespace.to_owned(),
            queue,
        }
    }

    /// Queues an event.
    pub fn publish<E: Event>(&self, event: &E) {
        let Some(queue) = &self.queue else { return };
        let envelope = Envelope {
            timestamp: Some(Timestamp::from(SystemTime::now())),
            namespace: self.namespace.clone(),
            topic: E::TOPIC.to_owned(),
            event: Some(Any {
                type_url: E::NAME.to_owned(),
                value: event.encode_to_vec(),
            }),
        };
        if queue.try_send(envelope).is_err() {
            log::warn(format_args!("event {} is dropped: queue is full", E::TOPIC));
        }
    }
}

async fn forward(address: String, mut queue: mpsc::Receiver<Envelope>) {
    let address = if address.contains("://") {
        address
    } else {
        format!("unix://{address}")
    };
    let mut client = None;
    while let Some(envelope) = queue.recv().await {
        let topic = envelope.topic.clone();
        let request = ForwardRequest {
            envelope: Some(envelope),
        };
        let mut tries = 0;
        while let Err(error) = send(&mut client, &address, &request).await {
            client = None;
            tries += 1;
            if tries == TRIES {
                log::warn(format_args!("event {topic} is dropped: {error}"));
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

async fn send(
    client: &mut Option<EventsClient>,
    address: &str,
    request: &ForwardRequest,
) -> ttrpc::Result<()> {
    if client.is_none() {
        let connection = ttrpc::asynchronous::Client::connect(address).await?;
        *client = Some(EventsClient::new(connection));
    }
    if let Some(client) = client {
        client.forward(request, SEND_TIMEOUT).await?;
    }
    Ok(())
}
