//! The state machine of a container. Pure: one function decides, nothing here acts.
//!
//! ```text
//!     Creating --created--> Created --start--> Starting --started--> Running
//!      |    |                 |  |                |                     |
//!      |    | undo incomplete |  | pod stopped    | start failed        | exit
//!      |    +---------------->|--+--> Exited <----+---------------------+
//!      | failed, undone       |        |   ^
//!      v                      | remove |   | something left
//!    (gone) <---done---- Removing <----+   |
//!                             +------------+
//! ```
//!
//! A container that the daemon cannot tell about after a restart is `Exited` with reason `Unknown`.

use serde::{Deserialize, Serialize};

/// Where a container is in its life, with what is known only there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub enum ContainerPhase {
    /// CreateContainer is at work; not listed.
    Creating,
    /// The task is made and waits to be started.
    Created,
    /// StartContainer is at work.
    Starting,
    /// The process runs.
    Running {
        /// Nanoseconds since the epoch.
        started_at: i64,
    },
    /// The process ended, or could never be started.
    Exited(Exit),
    /// RemoveContainer is at work.
    Removing {
        /// How it had ended, if it ever ran.
        exit: Option<Exit>,
    },
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code, or 128 plus the signal's number.
    pub code: i32,
    /// Why, in the words the kubelet knows.
    pub reason: ExitReason,
    /// A sentence for people; empty when the code says it all.
    #[serde(default)]
    pub message: String,
    /// When it had started, nanoseconds since the epoch; 0 when it never did.
    pub started_at: i64,
    /// When it ended, nanoseconds since the epoch.
    pub finished_at: i64,
}

/// Why a container ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// Code 0.
    Completed,
    /// Any other code.
    Error,
    /// The kernel killed it for memory.
    OomKilled,
    /// It could not be started.
    StartError,
    /// Nobody was there to see it.
    Unknown,
}

impl ExitReason {
    /// The reason in a CRI ContainerStatus.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "Completed",
            Self::Error => "Error",
            Self::OomKilled => "OOMKilled",
            Self::StartError => "StartError",
            Self::Unknown => "Unknown",
        }
    }
}

/// What happened to a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerEvent {
    /// CreateContainer succeeded.
    Created,
    /// CreateContainer failed.
    CreateFailed,
    /// StartContainer begins.
    Start,
    /// StartContainer succeeded, at this time in nanoseconds since the epoch.
    Started(i64),
    /// The process ended; also when StartContainer failed or the container never ran.
    Exited(Exit),
    /// RemoveContainer begins.
    Remove,
    /// RemoveContainer is done.
    Removed,
    /// Something could not be given back; RemoveContainer must be called again.
    RemoveFailed(Exit),
}

/// Where a container goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerTransition {
    /// To another phase.
    To(ContainerPhase),
    /// The container is no more.
    Gone,
}

/// An event that a phase does not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a container that is {phase} does not take {event:?}")]
pub struct Refused {
    /// The phase.
    pub phase: &'static str,
    /// The event.
    pub event: ContainerEvent,
}

impl ContainerPhase {
    /// The name of the phase, for messages and metrics.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Running { .. } => "running",
            Self::Exited(_) => "exited",
            Self::Removing { .. } => "removing",
        }
    }

    /// Whether the CRI lists the container.
    #[must_use]
    pub fn is_listed(&self) -> bool {
        !matches!(self, Self::Creating)
    }

    /// Whether its process may be alive.
    #[must_use]
    pub fn is_running(&self) -> bool {
        matches!(self, Self::Starting | Self::Running { .. })
    }

    /// How it ended, if it did.
    #[must_use]
    pub fn exit(&self) -> Option<&Exit> {
        match self {
            Self::Exited(exit) => Some(exit),
            Self::Removing { exit } => exit.as_ref(),
            Self::Creating | Self::Created | Self::Starting | Self::Running { .. } => None,
        }
    }

    /// When it started, nanoseconds since the epoch; 0 when it did not.
    #[must_use]
    pub fn started_at(&self) -> i64 {
        match self {
            Self::Running { started_at } => *started_at,
            Self::Exited(exit) | Self::Removing { exit: Some(exit) } => exit.started_at,
            Self::Creating | Self::Created | Self::Starting | Self::Removing { exit: None } => 0,
        }
    }

    /// Decides what an event does.
    ///
    /// # Errors
    /// The event is not drawn for this phase.
    pub fn apply(&self, event: ContainerEvent) -> Result<ContainerTransition, Refused> {
        use ContainerTransition::{Gone, To};
        let refused = |event| {
            Err(Refused {
                phase: self.name(),
                event,
            })
        };
        match self {
            Self::Creating => match event {
                ContainerEvent::Created => Ok(To(Self::Created)),
                ContainerEvent::CreateFailed => Ok(Gone),
                // The undo was incomplete: what is left is removed by RemoveContainer.
                ContainerEvent::Exited(exit) => Ok(To(Self::Exited(exit))),
                other => refused(other),
            },
            Self::Created => match event {
                ContainerEvent::Start => Ok(To(Self::Starting)),
                ContainerEvent::Exited(exit) => Ok(To(Self::Exited(exit))),
                ContainerEvent::Remove => Ok(To(Self::Removing { exit: None })),
                other => refused(other),
            },
            Self::Starting => match event {
                ContainerEvent::Started(started_at) => Ok(To(Self::Running { started_at })),
                ContainerEvent::Exited(exit) => Ok(To(Self::Exited(exit))),
                other => refused(other),
            },
            Self::Running { .. } => match event {
                ContainerEvent::Exited(exit) => Ok(To(Self::Exited(exit))),
                other => refused(other),
            },
            Self::Exited(exit) => match event {
                ContainerEvent::Remove => Ok(To(Self::Removing {
                    exit: Some(exit.clone()),
                })),
                other => refused(other),
            },
            Self::Removing { .. } => match event {
                ContainerEvent::Removed => Ok(Gone),
                ContainerEvent::RemoveFailed(exit) => Ok(To(Self::Exited(exit))),
                other => refused(other),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn exit() -> Exit {
        Exit {
            code: 1,
            reason: ExitReason::Error,
            message: String::new(),
            started_at: 1,
            finished_at: 2,
        }
    }

    fn event() -> impl Strategy<Value = ContainerEvent> {
        prop_oneof![
            Just(ContainerEvent::Created),
            Just(ContainerEvent::CreateFailed),
            Just(ContainerEvent::Start),
            Just(ContainerEvent::Started(7)),
            Just(ContainerEvent::Exited(exit())),
            Just(ContainerEvent::Remove),
            Just(ContainerEvent::Removed),
            Just(ContainerEvent::RemoveFailed(exit())),
        ]
    }

    /// The edges of the drawing above.
    const DRAWN: &[(&str, &str)] = &[
        ("creating", "created"),
        ("creating", "gone"),
        ("creating", "exited"),
        ("created", "starting"),
        ("created", "exited"),
        ("created", "removing"),
        ("starting", "running"),
        ("starting", "exited"),
        ("running", "exited"),
        ("exited", "removing"),
        ("removing", "gone"),
        ("removing", "exited"),
    ];

    proptest! {
        #[test]
        fn no_event_sequence_leaves_the_drawing(events in prop::collection::vec(event(), 0..40)) {
            let mut phase = ContainerPhase::Creating;
            for event in events {
                let Ok(transition) = phase.apply(event) else { continue };
                let to = match &transition {
                    ContainerTransition::To(next) => next.name(),
                    ContainerTransition::Gone => "gone",
                };
                prop_assert!(DRAWN.contains(&(phase.name(), to)), "{} -> {}", phase.name(), to);
                match transition {
                    ContainerTransition::To(next) => phase = next,
                    ContainerTransition::Gone => break,
                }
            }
        }
    }

    #[test]
    fn every_phase_can_be_recorded() {
        let phases = [
            ContainerPhase::Creating,
            ContainerPhase::Created,
            ContainerPhase::Starting,
            ContainerPhase::Running { started_at: 1 },
            ContainerPhase::Exited(exit()),
            ContainerPhase::Removing { exit: None },
            ContainerPhase::Removing { exit: Some(exit()) },
        ];
        for phase in phases {
            let text = serde_json::to_string(&phase).unwrap();
            assert_eq!(
                serde_json::from_str::<ContainerPhase>(&text).unwrap(),
                phase
            );
        }
    }

    #[test]
    fn a_running_container_is_not_removed() {
        assert!(
            ContainerPhase::Running { started_at: 1 }
                .apply(ContainerEvent::Remove)
                .is_err()
        );
    }
}
