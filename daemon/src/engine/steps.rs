//! The steps of a verb: each is timed, can be made to fail by a test, and has its undo beside it.
//!
//! An undo is registered *before* its step runs, because a step that failed half-way must be undone
//! too; undos are therefore idempotent and tolerate that nothing was done.

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

use crate::domain::failure::Failure;
use crate::domain::timeline::{Step, Timeline};

type Undo<'a> = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'a>>;

/// The verbs that act in steps, with their steps in order; what `axild --list-steps` prints.
pub const STEPS: &[(&str, &[&str])] = &[
    (
        "RunPodSandbox",
        &[
            "record",
            "files",
            "namespaces",
            "network",
            "shim",
            "sandbox",
            "ready",
        ],
    ),
    (
        "CreateContainer",
        &[
            "record", "bundle", "rootfs", "volumes", "document", "task", "created",
        ],
    ),
    ("StartContainer", &["start", "running"]),
    (
        "StopPodSandbox",
        &[
            "record",
            "containers",
            "shim",
            "network",
            "namespaces",
            "cgroups",
            "stopped",
        ],
    ),
    (
        "RemovePodSandbox",
        &["record", "containers", "files", "forget"],
    ),
    (
        "RemoveContainer",
        &["record", "task", "rootfs", "bundle", "forget"],
    ),
    ("UpdateContainerResources", &["oom_score", "cgroups"]),
    (
        "PullImage",
        &[
            "resolve",
            "manifest",
            "signature",
            "config",
            "layers",
            "commit",
            "record",
        ],
    ),
];

/// The steps of one run of a verb.
#[derive(Default)]
pub struct Steps<'a> {
    verb: &'static str,
    /// Hears of each step as it begins.
    heard: Option<Box<dyn Fn(&'static str) + Send + Sync + 'a>>,
    began: Option<Instant>,
    timeline: Vec<Step>,
    undo: Vec<(&'static str, Undo<'a>)>,
}

impl std::fmt::Debug for Steps<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Steps")
            .field("verb", &self.verb)
            .finish_non_exhaustive()
    }
}

/// Why a verb failed, and whether anything of it is left.
#[derive(Debug)]
pub struct Failed {
    /// What the caller is told.
    pub failure: Failure,
    /// What could not be undone; empty when nothing is left.
    pub left: Vec<Failure>,
}

impl<'a> Steps<'a> {
    /// Begins a verb.
    #[must_use]
    pub fn begin(verb: &'static str) -> Self {
        Self {
            verb,
            heard: None,
            began: Some(Instant::now()),
            timeline: Vec::new(),
            undo: Vec::new(),
        }
    }

    /// Tells somebody of each step as it begins.
    #[must_use]
    pub fn telling(mut self, heard: impl Fn(&'static str) + Send + Sync + 'a) -> Self {
        self.heard = Some(Box::new(heard));
        self
    }

    /// Runs a step that needs no undo of its own.
    ///
    /// # Errors
    /// The step's, or one a test asked for.
    pub async fn run<T>(
        &mut self,
        step: &'static str,
        act: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let full = format!("{}/{step}", self.verb);
        let started = Instant::now();
        if let Some(heard) = &self.heard {
            heard(step);
        }
        fault::before(&full).await?;
        let result = act.await;
        if result.is_ok() {
            fault::after(&full)?;
        }
        let began = self.began.unwrap_or(started);
        self.push(full, started.duration_since(began), started.elapsed());
        result.map_err(|failure| failure.during(step))
    }

    /// Runs a step; `undo` runs when this or a later step fails.
    ///
    /// # Errors
    /// The step's, or one a test asked for.
    pub async fn run_undo<T>(
        &mut self,
        step: &'static str,
        act: impl Future<Output = Result<T, Failure>>,
        undo: impl Future<Output = Result<(), Failure>> + Send + 'a,
    ) -> Result<T, Failure> {
        self.undo.push((step, Box::pin(undo)));
        self.run(step, act).await
    }

    /// Adds the parts of the last step, such as the plugins of a network.
    pub fn parts(&mut self, parts: &[(String, Duration)]) {
        let Some(whole) = self.timeline.last().cloned() else {
            return;
        };
        let mut at = Duration::from_micros(whole.started_us);
        for (name, took) in parts {
            self.push(format!("{}/{name}", whole.step), at, *took);
            at += *took;
        }
    }

    fn push(&mut self, step: String, started: Duration, took: Duration) {
        let micros = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
        self.timeline.push(Step {
            step,
            started_us: micros(started),
            took_us: micros(took),
        });
    }

    /// The timeline so far; the undos stay armed.
    #[must_use]
    pub fn timeline(&self) -> Timeline {
        Timeline(self.timeline.clone())
    }

    /// The verb succeeded: nothing is undone.
    #[must_use]
    pub fn finish(self) -> Timeline {
        Timeline(self.timeline)
    }

    /// The verb failed: undoes what was done, last step first, past errors.
    pub async fn undo(self, failure: Failure) -> Failed {
        let mut left = Vec::new();
        for (step, undo) in self.undo.into_iter().rev() {
            if let Err(failure) = undo.await {
                left.push(failure.during(format!("undo {step}")));
            }
        }
        Failed { failure, left }
    }
}

/// Faults asked for by tests: `AXIL_FAULT="RunPodSandbox/network=error,PullImage/commit=kill"`.
#[cfg(feature = "failpoints")]
mod fault {
    use std::sync::OnceLock;

    use crate::domain::failure::{Class, Failure};

    fn wanted(step: &str) -> Option<&'static str> {
        static FAULTS: OnceLock<Vec<(String, String)>> = OnceLock::new();
        let faults = FAULTS.get_or_init(|| {
            let text = std::env::var("AXIL_FAULT").unwrap_or_default();
            let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
            pairs
                .map(|(step, action)| (step.trim().to_owned(), action.trim().to_owned()))
                .collect()
        });
        faults
            .iter()
            .find(|(name, _)| name == step)
            .map(|(_, action)| action.as_str())
    }

    pub(super) async fn before(step: &str) -> Result<(), Failure> {
        match wanted(step) {
            Some("error") => Err(Failure::new(
                Class::Internal,
                format!("fault injected before {step}"),
            )),
            Some("kill") => std::process::abort(),
            Some("hang") => std::future::pending().await,
            Some(_) | None => Ok(()),
        }
    }

    pub(super) fn after(step: &str) -> Result<(), Failure> {
        match wanted(step) {
            Some("error-after") => Err(Failure::new(
                Class::Internal,
                format!("fault injected after {step}"),
            )),
            Some("kill-after") => std::process::abort(),
            Some(_) | None => Ok(()),
        }
    }
}

#[cfg(not(feature = "failpoints"))]
mod fault {
    use crate::domain::failure::Failure;

    #[expect(clippy::unused_async, reason = "the same shape as with failpoints")]
    pub(super) async fn before(_step: &str) -> Result<(), Failure> {
        Ok(())
    }

    #[expect(
        clippy::unnecessary_wraps,
        reason = "the same shape as with failpoints"
    )]
    pub(super) fn after(_step: &str) -> Result<(), Failure> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::domain::failure::Class;

    #[tokio::test]
    async fn a_failed_step_undoes_itself_and_those_before_it_backwards() {
        let log = Mutex::new(Vec::new());
        let undo = |name: &'static str| {
            let log = &log;
            async move {
                log.lock().unwrap().push(name);
                Ok(())
            }
        };
        let mut steps = Steps::begin("Test");
        steps
            .run_undo("one", async { Ok(()) }, undo("one"))
            .await
            .unwrap();
        steps
            .run_undo("two", async { Ok(()) }, undo("two"))
            .await
            .unwrap();
        let failed = async { Err::<(), _>(Failure::new(Class::Unavailable, "no")) };
        let failure = steps
            .run_undo("three", failed, undo("three"))
            .await
            .unwrap_err();
        let failed = steps.undo(failure).await;
        assert_eq!(*log.lock().unwrap(), ["three", "two", "one"]);
        assert_eq!(failed.failure.message, "three: no");
        assert!(failed.left.is_empty());
    }

    #[tokio::test]
    async fn an_undo_that_fails_is_told_and_does_not_stop_the_others() {
        let undone = Mutex::new(false);
        let mut steps = Steps::begin("Test");
        let broken = async { Err(Failure::new(Class::Internal, "stuck")) };
        let works = async {
            *undone.lock().unwrap() = true;
            Ok(())
        };
        steps
            .run_undo("one", async { Ok(()) }, works)
            .await
            .unwrap();
        steps
            .run_undo("two", async { Ok(()) }, broken)
            .await
            .unwrap();
        let failed = steps.undo(Failure::new(Class::Internal, "later")).await;
        assert_eq!(failed.left.len(), 1);
        assert_eq!(failed.left[0].message, "undo two: stuck");
        assert!(*undone.lock().unwrap());
    }
}
