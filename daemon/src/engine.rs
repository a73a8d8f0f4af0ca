//! The engine: every CRI verb as a sequence of steps, one driver task per pod, and published views.
//!
//! Handlers send a command and wait; the work runs in the pod's driver and outlives a vanished caller.
//! Queries read views and never wait for a driver.

mod admission;
pub mod attach;
pub mod create_container;
pub mod events;
pub mod exec;
pub mod exec_sync;
pub mod export_image;
mod fetch_layers;
mod fifos;
mod flights;
pub mod fsck;
pub mod handlers;
pub mod images;
pub mod import_image;
pub mod pod_driver;
pub mod pod_metrics;
pub mod pods;
pub mod port_forward;
pub mod progress;
pub mod pull_image;
pub mod queries;
pub mod recover;
pub mod remove_container;
pub mod remove_pod_sandbox;
pub mod reopen_container_log;
pub mod run_pod_sandbox;
pub mod session;
mod share_layers;
pub mod spawn;
pub mod start_container;
pub mod stats;
pub mod steps;
pub mod stop_container;
pub mod stop_pod_sandbox;
pub mod update_container_resources;
pub mod update_pod_sandbox_resources;
pub mod update_runtime_config;
pub mod views;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::domain::container::oci::HostFacts;
use crate::domain::pod::cgroup::CgroupDriver;
use crate::metrics::Metrics;
use crate::ports::meter::Meter;
use crate::ports::{Cgroups, Namespaces, Network, PodFiles, Records, Rootfs, Shims};

/// The outside world, as the engine sees it.
#[expect(missing_debug_implementations, reason = "trait objects")]
pub struct Ports {
    /// Durable records.
    pub records: Arc<dyn Records>,
    /// Pinned namespaces.
    pub namespaces: Arc<dyn Namespaces>,
    /// Pod network.
    pub network: Arc<dyn Network>,
    /// Run-time files.
    pub files: Arc<dyn PodFiles>,
    /// Root file systems.
    pub rootfs: Arc<dyn Rootfs>,
    /// Shims.
    pub shims: Arc<dyn Shims>,
    /// cgroups that axil makes.
    pub cgroups: Arc<dyn Cgroups>,
    /// What pods and containers use.
    pub meter: Arc<dyn Meter>,
}

/// Bounds of the engine's own waits.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// How long a killed container may take to be gone.
    pub kill: Duration,
    /// How long the output of an ended exec is read while something holds it open.
    pub exec_drain: Duration,
    /// How long a command lives on after its client has hung up.
    pub hang_up: Duration,
    /// How many pods are reconciled at once after a restart.
    pub recovery_width: usize,
    /// How long the reconciliation of one pod may take before it is left as it is recorded.
    pub recovery: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            kill: Duration::from_secs(10),
            exec_drain: Duration::from_secs(1),
            hang_up: Duration::from_secs(5),
            recovery_width: 16,
            recovery: Duration::from_secs(8),
        }
    }
}

/// What every verb and driver shares.
#[expect(missing_debug_implementations, reason = "trait objects")]
pub struct Shared {
    /// The outside world.
    pub ports: Ports,
    /// What queries read.
    pub views: views::Views,
    /// Who listens to what happens.
    pub events: events::Events,
    /// What the machine can do.
    pub host: HostFacts,
    /// OCI runtimes, and what can be done through each.
    pub handlers: handlers::Handlers,
    /// The bundled runtime's binary, which is also the sandbox process.
    pub sandbox_binary: std::path::PathBuf,
    /// Directories of CDI documents, the last first in rank.
    pub cdi_spec_dirs: Vec<std::path::PathBuf>,
    /// Counters and gauges.
    pub metrics: Arc<Metrics>,
    /// Bounds of waits.
    pub bounds: Bounds,
    /// The pod addresses the kubelet told last.
    pub(crate) pod_cidr: Mutex<String>,
    /// Which pods there are, by id and by name.
    pub(crate) index: Mutex<pods::Index>,
}

/// The engine: what the CRI services call.
#[derive(Clone)]
#[expect(missing_debug_implementations, reason = "trait objects")]
pub struct Engine {
    pub(crate) shared: Arc<Shared>,
    /// Images and pulls.
    pub images: Arc<images::Images>,
}

impl Engine {
    /// An engine with no pods; `recover` reads those of an earlier life.
    #[must_use]
    pub fn new(shared: Arc<Shared>, images: Arc<images::Images>) -> Self {
        Self { shared, images }
    }

    /// Who makes the cgroups of containers.
    #[must_use]
    pub fn cgroup_driver(&self) -> CgroupDriver {
        self.shared.ports.cgroups.driver()
    }

    /// The runtime handlers.
    #[must_use]
    pub fn handlers(&self) -> &handlers::Handlers {
        &self.shared.handlers
    }

    /// The pod network.
    #[must_use]
    pub fn network(&self) -> &Arc<dyn Network> {
        &self.shared.ports.network
    }
}

/// Locks a mutex; a panic elsewhere does not poison what is a plain map.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
