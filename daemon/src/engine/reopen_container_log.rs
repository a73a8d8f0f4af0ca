//! ReopenContainerLog: the shim opens the log file again after the kubelet renamed it.

use super::Engine;
use crate::domain::failure::Failure;

impl Engine {
    /// Opens a running container's log file again at its path.
    ///
    /// # Errors
    /// `NotFound`, `FailedPrecondition` when it does not run, or the shim's failure; then no file is made.
    pub async fn reopen_container_log(&self, id: &str) -> Result<(), Failure> {
        let (view, shim) = self.running(id)?;
        if view.record.spec.log_path.is_empty() {
            return Err(Failure::precondition(format!(
                "container {id:?} has no log file"
            )));
        }
        shim.reopen_log(&view.id).await
    }
}
