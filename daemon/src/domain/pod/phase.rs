//! The state machine of a pod. Pure: one function decides, nothing here acts.
//!
//! ```text
//!   (name reserved)
//!         |
//!         v                 stop, or the sandbox died
//!     Starting --started--> Ready -------------------> Stopping
//!      |     |                ^                            |
//!      |     +--- failed, undo incomplete ---+             | released
//!      |                                     v             v
//!      | failed, undo complete            NotReady <-------+
//!      v                                     |    <--------+ release failed
//!    (gone) <----------- Removing <--remove--+
//! ```

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Where a pod is in its life, with what is known only there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub enum PodPhase {
    /// RunPodSandbox is at work; not listed.
    Starting,
    /// The sandbox runs.
    Ready(Sandbox),
    /// StopPodSandbox is at work.
    Stopping,
    /// Stopped, or died, or could not be started and not be undone.
    NotReady {
        /// Whether everything the pod held is given back; if not, the next stop does it.
        released: bool,
    },
    /// RemovePodSandbox is at work.
    Removing,
}

/// A running sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// ttrpc address of the shim.
    pub shim_address: String,
    /// The sandbox process when the pod shares a PID namespace.
    pub pid: Option<u32>,
    /// Addresses, the primary one first; empty on the node's network.
    pub ips: Vec<IpAddr>,
}

/// What happened to a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodEvent {
    /// RunPodSandbox succeeded.
    Started(Sandbox),
    /// RunPodSandbox failed; `undone` tells whether nothing is left of it.
    StartFailed {
        /// Whether every undo succeeded.
        undone: bool,
    },
    /// StopPodSandbox begins, or the sandbox died and its remains are being released.
    Stop,
    /// Everything the pod held is given back.
    Released,
    /// Something could not be given back.
    ReleaseFailed,
    /// RemovePodSandbox begins.
    Remove,
    /// RemovePodSandbox is done.
    Removed,
}

/// Where a pod goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodTransition {
    /// To another phase.
    To(PodPhase),
    /// The pod is no more.
    Gone,
}

/// An event that a phase does not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a pod that is {phase} does not take {event:?}")]
pub struct Refused {
    /// The phase.
    pub phase: &'static str,
    /// The event.
    pub event: PodEvent,
}

impl PodPhase {
    /// The name of the phase, for messages and metrics.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready(_) => "ready",
            Self::Stopping => "stopping",
            Self::NotReady { .. } => "notready",
            Self::Removing => "removing",
        }
    }

    /// Whether the CRI's SANDBOX_READY applies.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        matches!(self, Self::Ready(_))
    }

    /// Whether the CRI lists the pod: not before it runs, and until it is removed.
    #[must_use]
    pub fn is_listed(&self) -> bool {
        !matches!(self, Self::Starting)
    }

    /// The running sandbox, if there is one.
    #[must_use]
    pub fn sandbox(&self) -> Option<&Sandbox> {
        match self {
            Self::Ready(sandbox) => Some(sandbox),
            Self::Starting | Self::Stopping | Self::NotReady { .. } | Self::Removing => None,
        }
    }

    /// Decides what an event does.
    ///
    /// # Errors
    /// The event is not drawn for this phase.
    pub fn apply(&self, event: PodEvent) -> Result<PodTransition, Refused> {
        use PodTransition::{Gone, To};
        let refused = |event| {
            Err(Refused {
                phase: self.name(),
                event,
            })
        };
        match self {
            Self::Starting => match event {
                PodEvent::Started(sandbox) => Ok(To(Self::Ready(sandbox))),
                PodEvent::StartFailed { undone: true } => Ok(Gone),
                PodEvent::StartFailed { undone: false } => {
                    Ok(To(Self::NotReady { released: false }))
                }
                other => refused(other),
            },
            Self::Ready(_) => match event {
                PodEvent::Stop => Ok(To(Self::Stopping)),
                other => refused(other),
            },
            Self::Stopping => match event {
                PodEvent::Released => Ok(To(Self::NotReady { released: true })),
                PodEvent::ReleaseFailed => Ok(To(Self::NotReady { released: false })),
                other => refused(other),
            },
            Self::NotReady { .. } => match event {
                PodEvent::Stop => Ok(To(Self::Stopping)),
                PodEvent::Remove => Ok(To(Self::Removing)),
                other => refused(other),
            },
            Self::Removing => match event {
                PodEvent::Removed => Ok(Gone),
                PodEvent::ReleaseFailed => Ok(To(Self::NotReady { released: false })),
                other => refused(other),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sandbox() -> Sandbox {
        Sandbox {
            shim_address: "unix:///s".into(),
            pid: None,
            ips: vec![],
        }
    }

    fn event() -> impl Strategy<Value = PodEvent> {
        prop_oneof![
            Just(PodEvent::Started(sandbox())),
            any::<bool>().prop_map(|undone| PodEvent::StartFailed { undone }),
            Just(PodEvent::Stop),
            Just(PodEvent::Released),
            Just(PodEvent::ReleaseFailed),
            Just(PodEvent::Remove),
            Just(PodEvent::Removed),
        ]
    }

    /// The edges of the drawing above.
    const DRAWN: &[(&str, &str)] = &[
        ("starting", "ready"),
        ("starting", "notready"),
        ("starting", "gone"),
        ("ready", "stopping"),
        ("stopping", "notready"),
        ("notready", "stopping"),
        ("notready", "removing"),
        ("removing", "gone"),
        ("removing", "notready"),
    ];

    proptest! {
        #[test]
        fn no_event_sequence_leaves_the_drawing(events in prop::collection::vec(event(), 0..40)) {
            let mut phase = PodPhase::Starting;
            for event in events {
                let Ok(transition) = phase.apply(event) else { continue };
                let to = match &transition {
                    PodTransition::To(next) => next.name(),
                    PodTransition::Gone => "gone",
                };
                prop_assert!(DRAWN.contains(&(phase.name(), to)), "{} -> {}", phase.name(), to);
                match transition {
                    PodTransition::To(next) => phase = next,
                    PodTransition::Gone => break,
                }
            }
        }
    }

    #[test]
    fn a_pod_is_ready_only_after_it_started() {
        let refused = PodPhase::NotReady { released: true }.apply(PodEvent::Started(sandbox()));
        assert!(refused.is_err());
    }
}
