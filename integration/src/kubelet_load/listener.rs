//! Who listens to events, and what must have been told of each life.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use axil_proto::cri::ContainerEventType;
use tonic::Code;

use super::Place;
use crate::cri::Cri;

/// How long nothing has to come after the last call for all to have come.
const QUIET: Duration = Duration::from_secs(3);

/// A life, in order.
const LIFE: [ContainerEventType; 4] = [
    ContainerEventType::ContainerCreatedEvent,
    ContainerEventType::ContainerStartedEvent,
    ContainerEventType::ContainerStoppedEvent,
    ContainerEventType::ContainerDeletedEvent,
];

/// What was told of each pod and container.
#[derive(Debug, Default)]
pub(super) struct Heard(BTreeMap<String, Vec<ContainerEventType>>);

impl Heard {
    /// How many events came.
    pub(super) fn count(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }

    /// Of these lives, which were not told whole, once, and in order.
    pub(super) fn missing(&self, lives: &[String]) -> Vec<String> {
        let told = |id: &String| self.0.get(id).map_or(&[][..], Vec::as_slice);
        let wrong = lives.iter().filter(|id| told(id) != LIFE);
        wrong
            .map(|id| format!("events of {id}: {:?}", told(id)))
            .collect()
    }
}

/// Listens until the load is done and nothing more comes.
pub(super) fn listen(place: &Place, listening: &AtomicBool, done: &AtomicBool) -> Result<Heard> {
    let cri = Cri::new(&place.socket)?.with_deadline(QUIET);
    let mut events = cri.events().context("listen to events")?;
    listening.store(true, Ordering::Release);
    let mut heard = Heard::default();
    loop {
        match cri.next(&mut events) {
            Ok(Some(event)) => {
                let kind = event.container_event_type();
                heard.0.entry(event.container_id).or_default().push(kind);
            }
            Ok(None) => bail!("the stream of events ended"),
            Err(status) if status.code() == Code::DeadlineExceeded => {
                if done.load(Ordering::Acquire) {
                    return Ok(heard);
                }
            }
            Err(status) => return Err(status).context("the stream of events"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_that_was_told_otherwise_is_named() {
        let mut twice = LIFE.to_vec();
        twice.insert(1, LIFE[1]);
        let heard = Heard(BTreeMap::from([
            ("whole".to_owned(), LIFE.to_vec()),
            ("twice".to_owned(), twice),
            ("short".to_owned(), LIFE[..2].to_vec()),
        ]));
        let lives = ["whole", "twice", "short", "never"].map(str::to_owned);
        let missing = heard.missing(&lives);
        assert_eq!(missing.len(), 3, "{missing:?}");
        assert!(!missing.iter().any(|line| line.contains("whole")));
        assert_eq!(heard.count(), 11);
    }
}
