//! Side by side: pulls by `axild` against pulls by Debian's containerd, of one image from one registry, in
//! one run; and what inflating, hashing and writing that image cannot take less than.
//!
//! Contestants take turns within a round, each on directories no other turn had, so that a busy machine is
//! busy for all and no turn pays for what another deleted: ext4 is slow for minutes where inodes were freed.
//! Everything is deleted at the end.

pub mod contestant;
pub mod limit;
pub mod meter;
pub mod sample;

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::fs::syncfs;

use self::contestant::{Axild, Containerd, Daemon};
use self::meter::Cost;
use self::sample::Sample;
use crate::binaries::Binaries;
use crate::isolate::isolate;
use crate::lab::Ground;
use crate::registry::{Registry, RegistryOptions};
use crate::{children, say};

/// How long nothing happens before a turn, after everything was written to disk.
const SETTLE: Duration = Duration::from_secs(2);

/// Who takes a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contestant {
    /// Nobody's daemon: the work itself.
    Limit,
    /// `axild`, unconfigured.
    Axild,
    /// Debian's containerd with its defaults: overlayfs, the CRI plugin.
    Containerd,
}

impl Contestant {
    /// All, in the order they are shown.
    pub const ALL: [Self; 3] = [Self::Axild, Self::Containerd, Self::Limit];

    /// As people read it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Limit => "raw limit",
            Self::Axild => "axild",
            Self::Containerd => "containerd",
        }
    }
}

/// Namespaces, a registry with the image, and what the turns leave.
#[derive(Debug)]
pub struct Track {
    binaries: Binaries,
    sample: Sample,
    reference: String,
    // Order: the daemons' grounds go first, then the registry, then its ground.
    used: Vec<Ground>,
    _registry: Registry,
    _ground: Ground,
}

impl Track {
    /// Moves this process into namespaces of its own, makes the image and starts the registry.
    ///
    /// # Errors
    /// When a step is refused; a benchmark needs root.
    pub fn open(binaries: Binaries, megabytes: u64) -> Result<Self> {
        isolate()?;
        children::adopt_orphans()?;
        let ground = Ground::claim("b")?;
        ground.clear_on_signal();
        let sample = Sample::make(megabytes, ground.dir())?;
        let registry = Registry::start(&ground.dir().join("registry"), RegistryOptions::default())?;
        let reference = registry.push(sample.image(), "bench/image", "1")?;
        Ok(Self {
            binaries,
            sample,
            reference,
            used: Vec::new(),
            _registry: registry,
            _ground: ground,
        })
    }

    /// The image.
    #[must_use]
    pub fn sample(&self) -> &Sample {
        &self.sample
    }

    /// Lets everybody take a turn, beginning with another one each round.
    ///
    /// # Errors
    /// When one of them fails.
    pub fn round(&mut self, number: usize) -> Result<[Cost; 3]> {
        let mut costs = [Cost::default(); 3];
        for turn in 0..3 {
            let at = (number + turn) % 3;
            costs[at] = self
                .turn(Contestant::ALL[at])
                .with_context(|| Contestant::ALL[at].name())?;
        }
        Ok(costs)
    }

    fn turn(&mut self, contestant: Contestant) -> Result<Cost> {
        let ground = Ground::claim("b")?;
        let daemon: Option<Box<dyn Daemon>> = match contestant {
            Contestant::Limit => None,
            Contestant::Axild => Some(Box::new(Axild::start(&ground, &self.binaries)?)),
            Contestant::Containerd => Some(Box::new(Containerd::start(&ground)?)),
        };
        settle(ground.dir())?;
        let cost = match daemon {
            None => limit::measure(&self.sample, ground.dir())?,
            Some(daemon) => {
                let cost = meter::pull(&*daemon, &self.reference, ground.dir())?;
                daemon.stop()?;
                cost
            }
        };
        self.used.push(ground);
        Ok(cost)
    }
}

/// Writes everything that waits to be written, and lets the machine rest.
fn settle(dir: &Path) -> Result<()> {
    let dir = fs::File::open(dir).with_context(|| format!("open {}", dir.display()))?;
    syncfs(dir).context("sync the file system")?;
    thread::sleep(SETTLE);
    Ok(())
}

/// The value in the middle of a figure; zero of none.
#[must_use]
pub fn median(costs: &[Cost], figure: impl Fn(&Cost) -> f64) -> f64 {
    let mut values: Vec<f64> = costs.iter().map(figure).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// Says what the image is.
pub fn describe(sample: &Sample) {
    say::out(format!(
        "{:.0} MB in {} entries and {} gzip layers, {:.0} MB compressed",
        sample.unpacked() as f64 / 1e6,
        sample.entries(),
        sample.image().layers.len(),
        sample.image().size() as f64 / 1e6,
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_of_any_order() {
        let cost = |seconds| Cost {
            wall: Duration::from_secs(seconds),
            ..Cost::default()
        };
        let wall = |cost: &Cost| cost.wall.as_secs_f64();
        assert!((median(&[cost(9), cost(1), cost(5)], wall) - 5.0).abs() < 1e-9);
        assert!(median(&[], wall).abs() < 1e-9);
    }
}
