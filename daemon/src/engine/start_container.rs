//! StartContainer: start, running.

use std::sync::Arc;

use axil_proto::ids::ContainerId;

use super::Shared;
use super::create_container::put_record;
use super::steps::Steps;
use crate::domain::container::phase::{ContainerPhase, Exit, ExitReason};
use crate::domain::container::record::ContainerRecord;
use crate::domain::failure::Failure;
use crate::ports::{Shim, unix_nanos};

/// What StartContainer works on.
#[expect(missing_debug_implementations, reason = "holds the shim's connection")]
pub struct Work {
    /// What all share.
    pub shared: Arc<Shared>,
    /// The container.
    pub id: ContainerId,
    /// Its record, `Starting` in memory.
    pub record: ContainerRecord,
    /// Its pod's shim.
    pub shim: Arc<dyn Shim>,
}

/// Starts a container's process. A container that cannot be started has ended: it is killed, and the
/// exit to record comes with the error.
///
/// # Errors
/// The step that failed.
pub async fn start_container(work: Work) -> Result<ContainerRecord, (Failure, Exit)> {
    let Work {
        shared,
        id,
        mut record,
        shim,
    } = work;
    let mut steps = Steps::begin("StartContainer");
    let result = async {
        // Taken before the start: a process that ends at once must not end before it began.
        let started_at = unix_nanos();
        steps.run("start", shim.start(&id, None)).await?;
        record.phase = ContainerPhase::Running { started_at };
        record.timeline.0.extend(steps.timeline().0);
        steps
            .run("running", put_record(&shared, record.clone()))
            .await
    };
    match result.await {
        Ok(()) => Ok(record),
        Err(failure) => {
            // Ignored: the process may never have been there, and its watcher reports its end.
            let _gone = shim.kill(&id, None, 9, true).await;
            let exit = Exit {
                code: 128,
                reason: ExitReason::StartError,
                message: failure.message.clone(),
                started_at: 0,
                finished_at: unix_nanos(),
            };
            Err((failure, exit))
        }
    }
}
