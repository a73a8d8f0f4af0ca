//! The life of one process, init or exec, as a pure state machine.
//!
//! ```text
//!            CreateDone          StartBegun            StartDone
//!  Creating ------------> Created ---------> Starting ---------> Running <-----------+
//!                           ^  |                |  |                |  PauseBegun    | Resumed,
//!                           |  | DeleteBegun    |  |                v                | PauseFailed
//!                           |  | (exec only)    |  |             Pausing ----------- Paused
//!                 StartFailed  v                |  |                |   PauseDone     |
//!                           +-----------------------+ Exited        | Exited          | Exited
//!                              |                   v                v                 v
//!                              |                Stopped <-----------+-----------------+
//!                              |                   |  ^
//!                              +--> Deleting <-----+  | DeleteFailed
//!                                      +--------------+
//! ```
//!
//! A process may exit at any moment, so the end of a step that the exit overtook changes nothing.

use std::fmt;

use axil_proto::shim::Status;

/// Where a process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// The runtime's `create` runs.
    Creating,
    /// The process exists and has not begun its program, or the exec is only described.
    Created,
    /// The runtime's `start` or `exec` runs.
    Starting,
    /// The program runs.
    Running,
    /// The runtime's `pause` runs.
    Pausing,
    /// The cgroup is frozen.
    Paused,
    /// The process has exited and its exit is recorded.
    Stopped,
    /// What is left of it is being removed.
    Deleting,
}

/// What happens to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// `create` succeeded.
    CreateDone,
    /// A client asks to start it.
    StartBegun,
    /// `start` or `exec` succeeded.
    StartDone,
    /// `start` or `exec` failed.
    StartFailed,
    /// A client asks to pause it.
    PauseBegun,
    /// `pause` succeeded.
    PauseDone,
    /// `pause` failed.
    PauseFailed,
    /// `resume` succeeded.
    Resumed,
    /// The process was reaped and its exit recorded.
    Exited,
    /// A client asks to delete it.
    DeleteBegun,
    /// The deletion failed; it may be tried again.
    DeleteFailed,
}

/// An event that does not fit a phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cannot {} a process that is {phase}", verb(*event))]
pub struct Refused {
    /// The phase the process is in.
    pub phase: Phase,
    /// What does not fit.
    pub event: Event,
}

impl Phase {
    /// The phase after `event`.
    ///
    /// # Errors
    /// The event does not fit this phase; nothing changed.
    pub fn apply(self, event: Event) -> Result<Self, Refused> {
        use Event as E;
        use Phase as P;
        let next = match (self, event) {
            (P::Creating, E::CreateDone) => P::Created,
            (P::Created, E::StartBegun) => P::Starting,
            (P::Starting, E::StartDone) => P::Running,
            (P::Starting, E::StartFailed) => P::Created,
            (P::Running, E::PauseBegun) => P::Pausing,
            (P::Pausing, E::PauseDone) => P::Paused,
            (P::Pausing, E::PauseFailed) | (P::Paused, E::Resumed) => P::Running,
            (P::Created | P::Starting | P::Running | P::Pausing | P::Paused, E::Exited) => {
                P::Stopped
            }
            (P::Created | P::Stopped, E::DeleteBegun) => P::Deleting,
            (P::Deleting, E::DeleteFailed) => P::Stopped,
            // The exit overtook the step.
            (
                P::Stopped | P::Deleting,
                E::CreateDone
                | E::StartDone
                | E::StartFailed
                | E::PauseDone
                | E::PauseFailed
                | E::Resumed
                | E::Exited,
            ) => self,
            (phase, event) => return Err(Refused { phase, event }),
        };
        Ok(next)
    }

    /// Whether the process can still run instructions.
    #[must_use]
    pub fn is_alive(self) -> bool {
        !matches!(self, Self::Creating | Self::Stopped | Self::Deleting)
    }

    /// The state the task service calls it.
    #[must_use]
    pub fn status(self) -> Status {
        match self {
            Self::Creating => Status::Unknown,
            Self::Created | Self::Starting => Status::Created,
            Self::Running => Status::Running,
            Self::Pausing => Status::Pausing,
            Self::Paused => Status::Paused,
            Self::Stopped | Self::Deleting => Status::Stopped,
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Creating => "being created",
            Self::Created => "created",
            Self::Starting => "being started",
            Self::Running => "running",
            Self::Pausing => "being paused",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Deleting => "being deleted",
        })
    }
}

fn verb(event: Event) -> &'static str {
    match event {
        Event::CreateDone => "finish creating",
        Event::StartBegun | Event::StartDone | Event::StartFailed => "start",
        Event::PauseBegun | Event::PauseDone | Event::PauseFailed => "pause",
        Event::Resumed => "resume",
        Event::Exited => "record the exit of",
        Event::DeleteBegun | Event::DeleteFailed => "delete",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EVENTS: [Event; 11] = [
        Event::CreateDone,
        Event::StartBegun,
        Event::StartDone,
        Event::StartFailed,
        Event::PauseBegun,
        Event::PauseDone,
        Event::PauseFailed,
        Event::Resumed,
        Event::Exited,
        Event::DeleteBegun,
        Event::DeleteFailed,
    ];

    fn run(events: &[Event]) -> Result<Phase, Refused> {
        events.iter().try_fold(Phase::Creating, |p, e| p.apply(*e))
    }

    #[test]
    fn walks_an_ordinary_life() {
        use Event as E;
        let life = [
            E::CreateDone,
            E::StartBegun,
            E::StartDone,
            E::Exited,
            E::DeleteBegun,
        ];
        assert_eq!(run(&life), Ok(Phase::Deleting));
        let pause = [
            E::CreateDone,
            E::StartBegun,
            E::StartDone,
            E::PauseBegun,
            E::PauseDone,
        ];
        assert_eq!(run(&pause), Ok(Phase::Paused));
    }

    #[test]
    fn an_exit_overtakes_a_step() {
        use Event as E;
        for late in [E::StartDone, E::StartFailed] {
            let events = [E::CreateDone, E::StartBegun, E::Exited, late];
            assert_eq!(run(&events), Ok(Phase::Stopped));
        }
        let events = [
            E::CreateDone,
            E::StartBegun,
            E::Exited,
            E::DeleteBegun,
            E::StartDone,
        ];
        assert_eq!(run(&events), Ok(Phase::Deleting));
    }

    #[test]
    fn refuses_what_does_not_fit() {
        use Event as E;
        let check = |events: &[Event], text: &str| {
            assert_eq!(run(events).unwrap_err().to_string(), text);
        };
        check(
            &[E::StartBegun],
            "cannot start a process that is being created",
        );
        check(
            &[E::CreateDone, E::StartBegun, E::StartDone, E::DeleteBegun],
            "cannot delete a process that is running",
        );
        check(
            &[E::CreateDone, E::Exited, E::StartBegun],
            "cannot start a process that is stopped",
        );
        check(
            &[E::CreateDone, E::DeleteBegun, E::DeleteBegun],
            "cannot delete a process that is being deleted",
        );
    }

    proptest! {
        /// After an exit nothing runs again, whatever else happens.
        #[test]
        fn the_dead_stay_dead(events in prop::collection::vec(0usize..EVENTS.len(), 0..40)) {
            let mut phase = Phase::Creating;
            let mut exited = false;
            for index in events {
                let event = EVENTS[index];
                let Ok(next) = phase.apply(event) else { continue };
                exited |= event == Event::Exited;
                if exited {
                    prop_assert!(matches!(next, Phase::Stopped | Phase::Deleting));
                }
                phase = next;
            }
        }
    }
}
