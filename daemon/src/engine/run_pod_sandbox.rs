//! RunPodSandbox: record, files, namespaces, network, shim, sandbox, ready.

use std::sync::Arc;

use axil_proto::ids::PodId;

use super::steps::{Failed, Steps};
use super::{Shared, pods, spawn};
use crate::domain::container::oci;
use crate::domain::failure::Failure;
use crate::domain::pod::phase::{PodPhase, Sandbox};
use crate::domain::pod::record::PodRecord;
use crate::ports::{NamespacePlan, Shim};

/// A running pod's record and the connection to its shim, or what went wrong.
pub type Outcome = Result<(PodRecord, Arc<dyn Shim>), Failed>;

/// Runs a pod; nothing is left of a failed one unless `Failed::left` says so.
///
/// # Errors
/// The step that failed, and what could not be undone.
pub async fn run_pod_sandbox(shared: &Arc<Shared>, id: &PodId, mut record: PodRecord) -> Outcome {
    let mut steps = Steps::begin("RunPodSandbox");
    match sequence(shared, id, &mut record, &mut steps).await {
        Ok(shim) => {
            record.timeline = steps.finish();
            Ok((record, shim))
        }
        Err(failure) => {
            let mut failed = steps.undo(failure).await;
            settle_record(shared, id, record, &mut failed).await;
            Err(failed)
        }
    }
}

/// The record goes last: while anything is left it must tell the next start-up.
async fn settle_record(
    shared: &Arc<Shared>,
    id: &PodId,
    mut record: PodRecord,
    failed: &mut Failed,
) {
    let settled = if failed.left.is_empty() {
        delete_record(shared, id).await
    } else {
        record.phase = PodPhase::NotReady { released: false };
        put_record(shared, record).await
    };
    if let Err(failure) = settled {
        failed.left.push(failure);
    }
}

async fn sequence<'a>(
    shared: &'a Arc<Shared>,
    id: &'a PodId,
    record: &mut PodRecord,
    steps: &mut Steps<'a>,
) -> Result<Arc<dyn Shim>, Failure> {
    let ports = &shared.ports;
    let spec = record.spec.clone();
    let handler = shared.handlers.of(&spec)?;
    let sysctls = oci::check_sysctls(&spec)
        .map_err(|error| Failure::new(error.class(), error.to_string()))?;

    if let (Some(_), Some(lack)) = (spec.namespaces.user.ids(), &handler.host.no_user_namespaces) {
        let message = format!("namespace_options.userns_options.mode POD: {lack}");
        return Err(Failure::precondition(message));
    }

    record.selinux_level = pods::selinux_level(shared, id, &spec).await?;
    let options = spec.security.selinux.as_ref();
    let labels = handler
        .host
        .selinux
        .labels(options, record.selinux_level.as_deref())?;

    steps
        .run("record", put_record(shared, record.clone()))
        .await?;

    let files = ports.files.prepare(id, &spec, labels.as_ref());
    let paths = steps
        .run_undo("files", files, ports.files.remove(id))
        .await?;

    let plan = NamespacePlan {
        user: spec.namespaces.user.ids().cloned(),
        network: !spec.host_network(),
        ipc: spec.namespaces.ipc != crate::domain::pod::spec::NamespaceMode::Node,
        hostname: spec.hostname.clone(),
        sysctls,
    };
    let pin = ports.namespaces.pin(id, plan);
    let namespaces = steps
        .run_undo("namespaces", pin, ports.namespaces.unpin(id))
        .await?;

    let ips = match namespaces.net.clone() {
        None => Vec::new(),
        Some(netns) => {
            let (undo_spec, undo_netns) = (spec.clone(), netns.clone());
            let undo = async move { ports.network.down(id, &undo_spec, &undo_netns).await };
            let attached = steps
                .run_undo("network", ports.network.up(id, &spec, &netns), undo)
                .await?;
            steps.parts(&attached.parts);
            attached.ips
        }
    };

    let bundle = paths.sandbox_bundle.clone();
    let undo_bundle = bundle.clone();
    let undo_spec = spec.clone();
    let undo = async move {
        ports.shims.stop(id, &undo_bundle, &[]).await?;
        ports.cgroups.remove(id, &undo_spec, &[]).await
    };
    let address = steps
        .run_undo("shim", ports.shims.start(id, &bundle), undo)
        .await?;

    let start = async {
        if spec.shares_pid() {
            let input = oci::SandboxInput {
                pod: &spec,
                pod_id: id.as_str(),
                runtime_binary: &shared.sandbox_binary,
                namespaces: &oci::NamespacePaths {
                    user: namespaces.user.clone(),
                    net: namespaces.net.clone(),
                    ipc: namespaces.ipc.clone(),
                    uts: namespaces.uts.clone(),
                },
                cgroups_path: &ports.cgroups.cgroups_path(id, &spec, id.as_str()),
                host: &handler.host,
            };
            let document = oci::sandbox_document(&input)
                .map_err(|error| Failure::new(error.class(), error.to_string()))?;
            ports
                .files
                .write_sandbox_bundle(id, &spec, document.to_json())
                .await?;
        }
        let shim = ports.shims.connect(id, &address).await?;
        let pid = shim.start_sandbox(&bundle, &handler.runtime).await?;
        Ok((shim, pid))
    };
    let (shim, pid) = steps.run("sandbox", start).await?;

    record.phase = PodPhase::Ready(Sandbox {
        shim_address: address,
        pid,
        ips,
    });
    record.timeline = steps.timeline();
    steps
        .run("ready", put_record(shared, record.clone()))
        .await?;
    Ok(shim)
}

/// Writes a pod's record off the reactor.
pub(super) async fn put_record(shared: &Arc<Shared>, record: PodRecord) -> Result<(), Failure> {
    let records = Arc::clone(&shared.ports.records);
    spawn::blocking("write a pod's record", move || records.put_pod(&record)).await
}

/// Deletes a pod's record off the reactor.
pub(super) async fn delete_record(shared: &Arc<Shared>, id: &PodId) -> Result<(), Failure> {
    let (records, id) = (Arc::clone(&shared.ports.records), id.clone());
    spawn::blocking("delete a pod's record", move || records.delete_pod(&id)).await
}
