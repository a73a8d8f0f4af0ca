//! Side by side: `runc-lite` against the OCI runtimes of the distribution, on one bundle, in one run.
//!
//! The contestants take turns within a round, so that a busy machine is busy for all of them; a pause parts the
//! turns. CPU time is
//! that of a cgroup around everything a command starts, the container's first process included; it holds
//! where wall time does not.

pub mod bundle;
pub mod contestant;
pub mod counts;
pub mod meter;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use self::bundle::Bundle;
use self::contestant::Contestant;
use self::meter::{Meter, Sample};
use crate::isolate::isolate;
use crate::lab::Ground;

/// Rounds whose figures are dropped: caches of filters and of the kernel fill.
const WARM_UP: usize = 3;

/// What a container or a process is asked to do, and what is measured of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// `run` of a program that ends at once, and the delete that belongs to it.
    Run,
    /// `create`.
    Create,
    /// `start`.
    Start,
    /// `delete` of the stopped container.
    Delete,
    /// `exec` of a program that ends at once in a running container.
    Exec,
    /// `delete --force` of a running container.
    Kill,
}

impl Phase {
    /// All, in the order they are shown.
    pub const ALL: [Self; 6] = [
        Self::Run,
        Self::Create,
        Self::Start,
        Self::Delete,
        Self::Exec,
        Self::Kill,
    ];

    /// As people read it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Run => "run and delete",
            Self::Create => "create",
            Self::Start => "start",
            Self::Delete => "delete",
            Self::Exec => "exec",
            Self::Kill => "delete --force",
        }
    }
}

/// What was measured of one contestant.
#[derive(Debug)]
pub struct Figures {
    /// Its name.
    pub name: String,
    /// The samples of each phase, in the order of [`Phase::ALL`].
    pub samples: Vec<Vec<Sample>>,
    /// Highest resident size of the process a caller waits for, in KiB.
    pub resident: u64,
    /// Calls into the kernel by one `run`; `None` without strace.
    pub counts: Option<counts::Counts>,
}

/// Namespaces, a directory and a cgroup for one run of the benchmark.
#[derive(Debug)]
pub struct Track {
    // Order: this process leaves the cgroup before the ground removes it.
    meter: Meter,
    ground: Ground,
}

impl Track {
    /// Moves this process into namespaces of its own and makes the place.
    ///
    /// # Errors
    /// When a step is refused; a benchmark needs root.
    pub fn open() -> Result<Self> {
        isolate()?;
        hide_unified()?;
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .context("become a sub-reaper")?;
        let ground = Ground::claim("b")?;
        ground.clear_on_signal();
        // Records of containers lie on a tmpfs in real life too; on disk the file system would be measured.
        mount(
            Some("tmpfs"),
            ground.dir(),
            Some("tmpfs"),
            MsFlags::empty(),
            None::<&str>,
        )
        .context("mount a tmpfs")?;
        let meter = Meter::around(ground.cgroup())?;
        Ok(Self { meter, ground })
    }

    /// Where a file named `name` may be put.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.ground.dir().join(name)
    }

    /// Lets the runtimes, given by name and program, take turns for `rounds` rounds.
    ///
    /// # Errors
    /// When one of them fails.
    pub fn compare(&self, runtimes: &[(String, PathBuf)], rounds: usize) -> Result<Vec<Figures>> {
        let brief = Bundle::make(&self.path("brief"), self.ground.cgroup(), &["/bin/true"])?;
        let lasting = Bundle::make(
            &self.path("lasting"),
            self.ground.cgroup(),
            &["/bin/sleep", "1000"],
        )?;
        // Ends with its input.
        let reading = Bundle::make(&self.path("reading"), self.ground.cgroup(), &["/bin/cat"])?;
        let contestants: Vec<Contestant> = runtimes
            .iter()
            .map(|(name, program)| Contestant::new(name, program, &self.path("state")))
            .collect();
        let mut figures: Vec<Figures> = contestants
            .iter()
            .map(|contestant| Figures {
                name: contestant.name().to_owned(),
                samples: vec![Vec::new(); Phase::ALL.len()],
                resident: 0,
                counts: None,
            })
            .collect();
        for round in 0..rounds + WARM_UP {
            for (contestant, figures) in contestants.iter().zip(&mut figures) {
                let samples = contestant.round(&self.meter, &brief, &lasting)?;
                ensure!(samples.len() == Phase::ALL.len(), "a phase is missing");
                if round >= WARM_UP {
                    for (all, sample) in figures.samples.iter_mut().zip(samples) {
                        all.push(sample);
                    }
                }
            }
        }
        for (contestant, figures) in contestants.iter().zip(&mut figures) {
            figures.resident = contestant.resident(&reading)?;
            figures.counts = counts::of_run(contestant, &brief, &self.path("strace"))?;
        }
        Ok(figures)
    }
}

/// crun refuses a hybrid host as long as it sees the unified tree, so nobody sees it.
fn hide_unified() -> Result<()> {
    let unified = Path::new("/sys/fs/cgroup/unified");
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").context("read the mounts")?;
    if mounts.contains(" /sys/fs/cgroup/unified ") {
        umount2(unified, MntFlags::MNT_DETACH).context("hide the unified cgroup tree")?;
    }
    Ok(())
}

/// The value in the middle; zero of none.
#[must_use]
pub fn median(mut values: Vec<Duration>) -> Duration {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_of_any_order() {
        let ms = Duration::from_millis;
        assert_eq!(median(vec![ms(9), ms(1), ms(5)]), ms(5));
        assert_eq!(median(Vec::new()), Duration::ZERO);
    }
}
