//! StopPodSandbox: record, containers, shim, network, namespaces, cgroups, stopped.
//!
//! Every step is tried even when an earlier one failed: what can be given back is given back now.

use std::sync::Arc;

use axil_proto::ids::{ContainerId, PodId};
use tokio::sync::watch;

use super::Shared;
use super::run_pod_sandbox::put_record;
use super::steps::Steps;
use crate::domain::failure::{Class, Failure};
use crate::domain::pod::phase::PodPhase;
use crate::domain::pod::record::PodRecord;
use crate::ports::Shim;

/// What StopPodSandbox works on.
#[expect(missing_debug_implementations, reason = "holds the shim's connection")]
pub struct Work {
    /// What all share.
    pub shared: Arc<Shared>,
    /// The pod.
    pub id: PodId,
    /// Its record, already `Stopping`.
    pub record: PodRecord,
    /// Its phase before.
    pub was: PodPhase,
    /// Its shim, if it is connected.
    pub shim: Option<Arc<dyn Shim>>,
    /// Containers that may be alive, each with the news of its end.
    pub alive: Vec<(ContainerId, watch::Receiver<bool>)>,
    /// All containers.
    pub containers: Vec<ContainerId>,
}

/// Stops a pod and gives back everything but its containers' records and layers.
///
/// # Errors
/// The first thing that could not be given back; the others were tried.
pub async fn stop_pod_sandbox(work: Work) -> Result<(), Failure> {
    let Work {
        shared,
        id,
        mut record,
        was,
        shim,
        alive,
        containers,
    } = work;
    let ports = &shared.ports;
    let spec = record.spec.clone();
    let mut steps = Steps::begin("StopPodSandbox");
    let mut failures = Vec::new();
    // Intent first: a daemon that dies from here on finishes the stop when it is back.
    steps
        .run("record", put_record(&shared, record.clone()))
        .await?;

    let end = end_containers(&shared, shim.as_deref(), alive);
    failures.extend(steps.run("containers", end).await.err());
    drop(shim);

    let paths = ports.files.paths(&id, &spec);
    let bundles: Vec<_> = containers
        .iter()
        .map(|one| ports.files.bundle(&id, one))
        .collect();
    let stop = ports.shims.stop(&id, &paths.sandbox_bundle, &bundles);
    failures.extend(steps.run("shim", stop).await.err());

    let namespaces = ports.namespaces.paths(&id, &spec);
    if let Some(netns) = &namespaces.net {
        failures.extend(
            steps
                .run("network", ports.network.down(&id, &spec, netns))
                .await
                .err(),
        );
    }
    failures.extend(
        steps
            .run("namespaces", ports.namespaces.unpin(&id))
            .await
            .err(),
    );
    let cgroups = ports.cgroups.remove(&id, &spec, &containers);
    failures.extend(steps.run("cgroups", cgroups).await.err());

    record.phase = PodPhase::NotReady {
        released: failures.is_empty(),
    };
    failures.extend(
        steps
            .run("stopped", put_record(&shared, record))
            .await
            .err(),
    );
    tracing::info!(was = was.name(), "pod is stopped");
    for failure in failures.iter().skip(1) {
        tracing::error!(error = %failure, "stopping a pod");
    }
    failures.into_iter().next().map_or(Ok(()), Err)
}

/// Kills every container and waits, within a bound, until each is known to have ended.
async fn end_containers(
    shared: &Shared,
    shim: Option<&dyn Shim>,
    alive: Vec<(ContainerId, watch::Receiver<bool>)>,
) -> Result<(), Failure> {
    let Some(shim) = shim else { return Ok(()) };
    let mut first = None;
    for (id, _) in &alive {
        if let Err(failure) = shim.kill(id, None, 9, true).await
            // A task or shim that is gone has nothing to kill; the shim's end kills what is left.
            && !matches!(failure.class, Class::NotFound | Class::Unavailable)
        {
            tracing::warn!(container.id = %id, error = %failure, "a container was not killed");
            first = first.or(Some(failure));
        }
    }
    let deadline = tokio::time::Instant::now() + shared.bounds.kill;
    for (id, mut ended) in alive {
        let wait = ended.wait_for(|ended| *ended);
        if tokio::time::timeout_at(deadline, wait).await.is_err() {
            let message = format!(
                "container {id} is alive {:?} after SIGKILL",
                shared.bounds.kill
            );
            first = first.or(Some(Failure::new(Class::DeadlineExceeded, message)));
        }
    }
    // A container whose process is gone needs no kill: only one that lives is a failure. The shim's
    // end, which follows, kills what is left.
    first.map_or(Ok(()), Err)
}
