//! Shims: started by containerd's bootstrap convention, spoken to over ttrpc, ended for certain.

mod client;
mod launch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use axil_proto::ids::PodId;
use axil_proto::shim::sandbox::{SandboxClient, ShutdownSandboxRequest, StopSandboxRequest};

use crate::domain::failure::{Class, Failure};
use crate::engine::lock;
use crate::ports::{Answer, Shim, Shims};

pub use client::nanos;

/// How long a shim may take for what needs no process to end.
const QUICK: Duration = Duration::from_secs(5);

/// How long the sandbox process may take to end after SIGTERM.
const SANDBOX_GRACE: Duration = Duration::from_secs(2);

/// Which binary serves pods, and where its run-time files go.
#[derive(Debug, Clone)]
pub struct ShimOptions {
    /// The shim binary.
    pub shim: PathBuf,
    /// Directory of the shims' sockets.
    pub sockets: PathBuf,
}

/// Every pod's shim.
#[derive(Debug)]
pub struct ShimProcesses {
    options: ShimOptions,
    addresses: Mutex<BTreeMap<PodId, String>>,
}

impl ShimProcesses {
    /// No shims yet.
    #[must_use]
    pub fn new(options: ShimOptions) -> Self {
        Self {
            options,
            addresses: Mutex::default(),
        }
    }

    /// Asks a shim to end; a shim that is gone or does not answer is ended by `launch::end`.
    async fn ask_to_end(&self, pod: &PodId, address: &str) -> Answer<()> {
        let connection = client::connect(address).await?;
        let sandbox = SandboxClient::new(connection);
        let id = pod.to_string();
        let grace = u32::try_from(SANDBOX_GRACE.as_secs()).unwrap_or(u32::MAX);
        let stop = StopSandboxRequest {
            sandbox_id: id.clone(),
            timeout_secs: grace,
        };
        // Ignored: a sandbox without a process has nothing to stop, and the shutdown tells.
        let _stopped = sandbox.stop_sandbox(&stop, SANDBOX_GRACE + QUICK).await;
        let shutdown = ShutdownSandboxRequest { sandbox_id: id };
        match sandbox.shutdown_sandbox(&shutdown, QUICK).await {
            Ok(_) => Ok(()),
            Err(error) => Err(client::failure("shut the shim down", &error)),
        }
    }
}

#[async_trait]
impl Shims for ShimProcesses {
    async fn start(&self, pod: &PodId, bundle: &Path) -> Answer<String> {
        let address = launch::start(&self.options, pod, bundle).await?;
        lock(&self.addresses).insert(pod.clone(), address.clone());
        Ok(address)
    }

    async fn connect(&self, pod: &PodId, address: &str) -> Answer<Arc<dyn Shim>> {
        let client = client::ShimClient::open(pod, address).await?;
        lock(&self.addresses).insert(pod.clone(), address.to_owned());
        Ok(Arc::new(client))
    }

    async fn stop(&self, pod: &PodId, bundle: &Path, containers: &[PathBuf]) -> Answer<()> {
        if !bundle.exists() {
            // Never started, or gone with the last reboot.
            lock(&self.addresses).remove(pod);
            return Ok(());
        }
        let known = lock(&self.addresses).get(pod).cloned();
        let address = match known {
            Some(address) => Some(address),
            None => launch::recorded_address(bundle),
        };
        if let Some(address) = &address
            && let Err(failure) = self.ask_to_end(pod, address).await
            // It is gone, or was never asked for its sandbox and so has nothing to shut down: it ends below.
            && !matches!(failure.class, Class::Unavailable | Class::NotFound)
        {
            tracing::warn!(pod.id = %pod, error = %failure, "the shim does not end by itself");
        }
        launch::end(&self.options, pod, bundle, containers).await?;
        if let Some(path) = address.as_deref().and_then(|a| a.strip_prefix("unix://")) {
            super::durable::remove_file(Path::new(path))?;
        }
        lock(&self.addresses).remove(pod);
        Ok(())
    }
}

/// A failure of running a program.
fn run_failure(what: &str, program: &Path, error: &std::io::Error) -> Failure {
    Failure::io(format!("{what} {}", program.display()), error)
}
