//! RemoveContainer: record, task, rootfs, bundle, forget. The process has ended already.

use std::sync::Arc;

use axil_proto::ids::{ContainerId, PodId};

use super::Shared;
use super::create_container::{delete_record, put_record};
use super::steps::Steps;
use crate::domain::container::record::ContainerRecord;
use crate::domain::failure::Failure;
use crate::ports::Shim;

/// What RemoveContainer works on.
#[expect(missing_debug_implementations, reason = "holds the shim's connection")]
pub struct Work {
    /// What all share.
    pub shared: Arc<Shared>,
    /// Its pod.
    pub pod: PodId,
    /// The container.
    pub id: ContainerId,
    /// Its record, already `Removing`.
    pub record: ContainerRecord,
    /// Its pod's shim, while that is there.
    pub shim: Option<Arc<dyn Shim>>,
}

/// Removes a container's task, layer and files, and at last its record.
///
/// # Errors
/// What could not be removed; the record stays, and the next call goes on.
pub async fn remove_container(work: Work) -> Result<(), Failure> {
    let Work {
        shared,
        pod,
        id,
        record,
        shim,
    } = work;
    let ports = &shared.ports;
    let mut steps = Steps::begin("RemoveContainer");
    steps.run("record", put_record(&shared, record)).await?;
    let end = async {
        let Some(shim) = &shim else { return Ok(()) };
        shim.delete(&id, None).await
    };
    steps.run("task", end).await?;
    let bundle = ports.files.bundle(&pod, &id);
    steps
        .run("rootfs", ports.rootfs.release(&id, &bundle))
        .await?;
    steps
        .run("bundle", ports.files.remove_bundle(&pod, &id))
        .await?;
    steps.run("forget", delete_record(&shared, &pod, &id)).await
}
