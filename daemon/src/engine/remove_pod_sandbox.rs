//! RemovePodSandbox: record, containers, files, forget. The pod is stopped already.

use std::sync::Arc;

use axil_proto::ids::{ContainerId, PodId};

use super::Shared;
use super::run_pod_sandbox::{delete_record, put_record};
use super::steps::Steps;
use crate::domain::failure::Failure;
use crate::domain::pod::record::PodRecord;

/// What RemovePodSandbox works on.
#[expect(missing_debug_implementations, reason = "trait objects")]
pub struct Work {
    /// What all share.
    pub shared: Arc<Shared>,
    /// The pod.
    pub id: PodId,
    /// Its record, already `Removing`.
    pub record: PodRecord,
    /// Its containers.
    pub containers: Vec<ContainerId>,
}

/// Removes a stopped pod, its containers' layers and files, and at last its record.
///
/// # Errors
/// What could not be removed; the record stays, and the next call goes on.
pub async fn remove_pod_sandbox(work: Work) -> Result<(), Failure> {
    let Work {
        shared,
        id,
        record,
        containers,
    } = work;
    let ports = &shared.ports;
    let mut steps = Steps::begin("RemovePodSandbox");
    steps.run("record", put_record(&shared, record)).await?;
    let release = async {
        for container in &containers {
            let bundle = ports.files.bundle(&id, container);
            ports.rootfs.release(container, &bundle).await?;
        }
        Ok(())
    };
    steps.run("containers", release).await?;
    steps.run("files", ports.files.remove(&id)).await?;
    steps.run("forget", delete_record(&shared, &id)).await?;
    tracing::info!("pod is removed");
    Ok(())
}
