//! What one shim serves: the tasks of a pod, its sandbox, and what they share.

use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use crate::error::VerbError;
use crate::events::Publisher;
use crate::reaper::Reaper;
use crate::sandbox::Sandbox;
use crate::task::table::Table;

/// What does not change while the shim lives.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The containerd namespace.
    pub namespace: String,
    /// A private directory with a short path, for console sockets.
    pub socket_dir: PathBuf,
}

/// The pod of this shim.
#[derive(Debug)]
pub struct Pod {
    /// What does not change.
    pub settings: Settings,
    /// The only one who waits for children.
    pub reaper: Arc<Reaper>,
    /// The tasks.
    pub tasks: Table,
    /// The sandbox, once a client has created it.
    pub sandbox: Mutex<Option<Arc<Sandbox>>>,
    /// Publishes to containerd.
    pub events: Publisher,
    /// Told when the shim is to end.
    pub shutdown: Notify,
}

impl Pod {
    /// An empty pod.
    #[must_use]
    pub fn new(settings: Settings, reaper: Arc<Reaper>, events: Publisher) -> Arc<Self> {
        Arc::new(Self {
            settings,
            reaper,
            tasks: Table::default(),
            sandbox: Mutex::new(None),
            events,
            shutdown: Notify::new(),
        })
    }
}

/// Runs work that is to be finished even if the client goes away and its request is dropped.
pub async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, VerbError>> + Send + 'static,
) -> Result<T, VerbError> {
    tokio::spawn(work).await.unwrap_or(Err(VerbError::Lost))
}
