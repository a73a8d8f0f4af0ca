//! CreateContainer: record, bundle, rootfs, volumes, document, task, created.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use axil_proto::ids::{ContainerId, PodId};

use super::handlers::Handler;
use super::steps::{Failed, Steps};
use super::{Shared, fifos, spawn};
use crate::domain::container::cdi::Injection;
use crate::domain::container::phase::ContainerPhase;
use crate::domain::container::record::{ContainerRecord, ResolvedUser};
use crate::domain::container::spec::ContainerSpec;
use crate::domain::container::{oci, user};
use crate::domain::failure::{Failure, KubeletError};
use crate::domain::image::stored::StoredImage;
use crate::domain::pod::record::PodRecord;
use crate::domain::pod::spec::{NamespaceMode, PodSpec, SecurityProfile};
use crate::domain::selinux::Labels;
use crate::ports::{RootfsPlan, Shim, TaskPlan, Users, VolumePlan};

/// The FIFO of a container's standard input, in its bundle; lasting, so that clients may attach one after the
/// other and after a restart of the daemon.
pub(super) const STDIN: &str = "stdin";

/// What CreateContainer works on.
#[expect(missing_debug_implementations, reason = "holds the shim's connection")]
pub struct Work {
    /// What all share.
    pub shared: Arc<Shared>,
    /// The pod.
    pub pod: PodId,
    /// Its record.
    pub pod_record: PodRecord,
    /// Its shim.
    pub shim: Arc<dyn Shim>,
    /// The container named by `target_id`, and whether it runs.
    pub target_pid: Option<(ContainerId, bool)>,
    /// The container.
    pub id: ContainerId,
    /// Its record, `Creating`.
    pub record: ContainerRecord,
    /// Its image.
    pub image: Arc<StoredImage>,
    /// The images of its volumes, in the order of those mounts.
    pub volumes: Vec<Arc<StoredImage>>,
}

/// Makes a container; nothing is left of a failed one unless `Failed::left` says so.
///
/// # Errors
/// The step that failed, and what could not be undone.
pub async fn create_container(work: Work) -> Result<ContainerRecord, Failed> {
    let mut record = work.record.clone();
    let mut steps = Steps::begin("CreateContainer");
    match sequence(&work, &mut record, &mut steps).await {
        Ok(()) => {
            record.timeline = steps.finish();
            Ok(record)
        }
        Err(failure) => {
            let mut failed = steps.undo(failure).await;
            if failed.left.is_empty()
                && let Err(failure) = delete_record(&work.shared, &work.pod, &work.id).await
            {
                failed.left.push(failure);
            }
            Err(failed)
        }
    }
}

async fn sequence<'a>(
    work: &'a Work,
    record: &mut ContainerRecord,
    steps: &mut Steps<'a>,
) -> Result<(), Failure> {
    let Work {
        shared,
        pod,
        id,
        shim,
        image,
        ..
    } = work;
    let ports = &shared.ports;
    let spec = record.spec.clone();
    let handler = shared.handlers.of(&work.pod_record.spec)?;
    record.stop_signal = oci::stop_signal(spec.stop_signal, image.config.stop_signal.as_deref())
        .map_err(Failure::from)?;

    let labels = labels(work, handler).await?;

    // Before anything is made: which devices there are changes while the daemon runs.
    let dirs = &shared.cdi_spec_dirs;
    let injection = crate::host::cdi::inject(dirs, &spec.cdi_devices).await?;

    steps
        .run("record", put_record(shared, record.clone()))
        .await?;

    let make = ports.files.make_bundle(pod, id);
    let bundle = steps
        .run_undo("bundle", make, ports.files.remove_bundle(pod, id))
        .await?;

    let rootfs = bundle.join("rootfs");
    let undo_bundle = bundle.clone();
    let undo = async move { ports.rootfs.release(id, &undo_bundle).await };
    let plan = RootfsPlan {
        chain: image.chain.clone(),
        users: users(work),
        snapshotter: handler.snapshotter,
        label: labels.as_ref().map(|labels| labels.file.clone()),
    };
    let prepare = ports.rootfs.prepare(id, &plan, &rootfs);
    steps.run_undo("rootfs", prepare, undo).await?;

    // Undone with the root file system.
    let volumes = steps
        .run(
            "volumes",
            mount_volumes(work, handler, labels.as_ref(), &bundle),
        )
        .await?;

    let document = async {
        let (document, user) = document(
            work,
            handler,
            &rootfs,
            &volumes,
            labels.as_ref(),
            &injection,
        )
        .await?;
        relabel_volumes(&spec, labels.as_ref()).await?;
        ports.files.write_document(&bundle, document).await?;
        Ok(user)
    };
    record.user = Some(steps.run("document", document).await?);

    let stdin = spec.stdin.then(|| bundle.join(STDIN));
    let plan = TaskPlan {
        container: id.clone(),
        bundle: bundle.clone(),
        runtime: handler.runtime.clone(),
        stdin: stdin.clone(),
        log: log_path(&work.pod_record.spec, &spec)?,
        terminal: spec.tty,
    };
    let undo = async move {
        // Ignored: `delete` forces what `kill` could not; an unknown task is success there.
        let _gone = shim.kill(id, None, 9, true).await;
        let wait = shim.wait(id, None);
        let _ended = tokio::time::timeout(shared.bounds.kill, wait).await;
        shim.delete(id, None).await
    };
    let task = async {
        // It goes with the bundle.
        if let Some(stdin) = &stdin {
            fifos::make(stdin)?;
        }
        shim.create(&plan).await
    };
    steps.run_undo("task", task, undo).await?;

    record.phase = ContainerPhase::Created;
    record.timeline = steps.timeline();
    steps
        .run("created", put_record(shared, record.clone()))
        .await
}

/// The container's SELinux contexts: of its own options or else the pod's, at the pod's level.
async fn labels(work: &Work, handler: &Handler) -> Result<Option<Labels>, Failure> {
    let (own, pod) = (&work.record.spec.security, &work.pod_record);
    let options = own.selinux.as_ref().or(pod.spec.security.selinux.as_ref());
    let selinux = &handler.host.selinux;
    let labels = selinux.labels(options, pod.selinux_level.as_deref())?;
    if let Some(labels) = &labels {
        for context in [&labels.process, &labels.file] {
            crate::host::selinux::check(context).await?;
        }
    }
    Ok(labels)
}

/// Gives the volumes that the request wants relabelled to the container, last of all that can fail by the request.
async fn relabel_volumes(spec: &ContainerSpec, labels: Option<&Labels>) -> Result<(), Failure> {
    let Some(labels) = labels else { return Ok(()) };
    let asked = spec.mounts.iter().filter(|mount| mount.selinux_relabel);
    for mount in asked.filter(|mount| mount.image.is_none()) {
        crate::host::selinux::relabel_volume(&mount.host_path, &labels.file).await?;
    }
    Ok(())
}

/// The users of the pod's user namespace, if it has one.
fn users(work: &Work) -> Option<Users> {
    let pod = &work.pod_record.spec;
    let pins = work.shared.ports.namespaces.paths(&work.pod, pod);
    let ids = pod.namespaces.user.ids()?;
    Some(Users {
        ids: ids.clone(),
        namespace: pins.user?,
    })
}

/// Mounts the images that are volumes; answers where, in the order of those mounts.
async fn mount_volumes(
    work: &Work,
    handler: &Handler,
    labels: Option<&Labels>,
    bundle: &Path,
) -> Result<Vec<PathBuf>, Failure> {
    let mut places = Vec::new();
    let mounts = &work.record.spec.mounts;
    let asked = mounts.iter().filter_map(|mount| mount.image.as_ref());
    for (number, (volume, image)) in asked.zip(&work.volumes).enumerate() {
        let plan = VolumePlan {
            number,
            chain: image.chain.clone(),
            sub_path: volume.sub_path.clone(),
            users: users(work),
            snapshotter: handler.snapshotter,
            label: labels.map(|labels| labels.file.clone()),
        };
        let rootfs = &work.shared.ports.rootfs;
        let place = rootfs.mount_image(&work.id, &plan, bundle).await;
        places.push(place.map_err(|failure| {
            let image = &volume.image.image;
            failure
                .during(format!("mount image {image:?}"))
                .known_as(KubeletError::ImageVolumeMountFailed)
        })?);
    }
    Ok(places)
}

/// The OCI document of a container and the user it runs as.
async fn document(
    work: &Work,
    handler: &Handler,
    rootfs: &Path,
    volumes: &[PathBuf],
    labels: Option<&Labels>,
    injection: &Injection,
) -> Result<(Vec<u8>, ResolvedUser), Failure> {
    let Work {
        shared,
        pod,
        pod_record,
        id,
        image,
        record,
        ..
    } = work;
    let spec = &record.spec;
    let ports = &shared.ports;
    let pod_spec = &pod_record.spec;
    let files = ports.rootfs.user_files(rootfs).await?;
    let security = &spec.security;
    let user = user::resolve_user(
        &security.user,
        &image.config.user,
        files.passwd.as_deref(),
        files.group.as_deref(),
        &security.supplemental_groups,
        security.groups_policy,
    )
    .map_err(|error| {
        Failure::new(
            error.class(),
            format!("image {:?}: {error}", spec.image.image),
        )
    })?;
    let paths = ports.files.paths(pod, pod_spec);
    let pins = ports.namespaces.paths(pod, pod_spec);
    let seccomp_profile = match &security.seccomp {
        SecurityProfile::Localhost(path) if !security.privileged => {
            Some(crate::host::read_seccomp_profile(path, handler.host.arch).await?)
        }
        SecurityProfile::Localhost(_)
        | SecurityProfile::Unset
        | SecurityProfile::RuntimeDefault
        | SecurityProfile::Unconfined => None,
    };
    if let SecurityProfile::Localhost(profile) = &security.apparmor
        && handler.host.apparmor
    {
        crate::host::apparmor::check_loaded(profile).await?;
    }
    let input = oci::ContainerInput {
        pod: pod_spec,
        pod_id: pod.as_str(),
        container: spec,
        image: &oci::ImageDefaults {
            user: image.config.user.clone(),
            env: image.config.env.clone(),
            entrypoint: image.config.entrypoint.clone(),
            cmd: image.config.cmd.clone(),
            working_dir: image.config.working_dir.clone(),
            stop_signal: image.config.stop_signal.clone(),
        },
        user: &user,
        namespaces: &oci::NamespacePaths {
            user: pins.user,
            net: pins.net,
            ipc: pins.ipc,
            uts: pins.uts,
        },
        pid: &pid_namespace(work, spec)?,
        cgroups_path: &ports.cgroups.cgroups_path(pod, pod_spec, id.as_str()),
        pids_limit: None,
        files: &oci::PodFiles {
            resolv_conf: Some(paths.resolv_conf),
            hostname: paths.hostname,
            hosts: None,
            shm: Some(paths.shm),
        },
        image_volumes: volumes,
        devices: &crate::host::resolve_devices(&spec.devices).await?,
        labels,
        injection,
        host: &handler.host,
        annotations: &handler.annotations,
        seccomp_profile: seccomp_profile.as_ref(),
    };
    let document = oci::container_document(&input)?;
    if !document.left_out_capabilities.is_empty() {
        tracing::info!(
            container.id = %id,
            capabilities = ?document.left_out_capabilities,
            "capabilities that axild does not have itself are left out"
        );
    }
    crate::host::check_mount_sources(&spec.mounts).await?;
    let user = &document.spec.process.user;
    let resolved = ResolvedUser {
        uid: user.uid,
        gid: user.gid,
        groups: user.additional_gids.clone(),
    };
    Ok((document.to_json(), resolved))
}

/// Which PID namespace the container is in.
fn pid_namespace(work: &Work, spec: &ContainerSpec) -> Result<oci::PidNamespace, Failure> {
    let sandbox = work.pod_record.phase.sandbox();
    match spec.security.namespaces.pid {
        NamespaceMode::Container => Ok(oci::PidNamespace::Own),
        NamespaceMode::Node => Ok(oci::PidNamespace::Host),
        NamespaceMode::Pod => match sandbox.and_then(|sandbox| sandbox.pid) {
            Some(pid) => Ok(oci::PidNamespace::Join(
                format!("/proc/{pid}/ns/pid").into(),
            )),
            None => Err(Failure::invalid(
                "linux.security_context.namespace_options.pid",
                "POD",
                "the pod sandbox was run without a shared PID namespace",
            )),
        },
        NamespaceMode::Target => {
            let target = &spec.security.namespaces.target_id;
            let field = "linux.security_context.namespace_options.target_id";
            match &work.target_pid {
                None => Err(Failure::invalid(
                    field,
                    target,
                    "no such container in this pod",
                )),
                Some((_, false)) => Err(Failure::precondition(format!(
                    "{field} {target:?}: it does not run"
                ))),
                Some((container, true)) => {
                    let bundle = work.shared.ports.files.bundle(&work.pod, container);
                    let pid = crate::host::read_pid_file(&bundle.join("init.pid"))?;
                    Ok(oci::PidNamespace::Join(
                        format!("/proc/{pid}/ns/pid").into(),
                    ))
                }
            }
        }
    }
}

/// The container's log file: `log_path` below the pod's log directory, which ends before `/./`. The shim follows no
/// link below it (`shim/src/stdio/log_file.rs`).
fn log_path(pod: &PodSpec, spec: &ContainerSpec) -> Result<Option<std::path::PathBuf>, Failure> {
    if pod.log_directory.is_empty() || spec.log_path.is_empty() {
        return Ok(None);
    }
    let relative = Path::new(&spec.log_path);
    let plain = |part: std::path::Component<'_>| matches!(part, std::path::Component::Normal(_));
    if !relative.components().all(plain) {
        return Err(Failure::invalid(
            "log_path",
            &spec.log_path,
            "must stay in the log directory",
        ));
    }
    // As components, so that there is one `/./` only.
    let mut path: PathBuf = Path::new(&pod.log_directory).components().collect();
    path.push(".");
    path.extend(relative.components());
    Ok(Some(path))
}

/// Writes a container's record off the reactor.
pub(super) async fn put_record(
    shared: &Arc<Shared>,
    record: ContainerRecord,
) -> Result<(), Failure> {
    let records = Arc::clone(&shared.ports.records);
    spawn::blocking("write a container's record", move || {
        records.put_container(&record)
    })
    .await
}

/// Deletes a container's record off the reactor.
pub(super) async fn delete_record(
    shared: &Arc<Shared>,
    pod: &PodId,
    id: &ContainerId,
) -> Result<(), Failure> {
    let records = Arc::clone(&shared.ports.records);
    let (pod, id) = (pod.clone(), id.clone());
    spawn::blocking("delete a record", move || {
        records.delete_container(&pod, &id)
    })
    .await
}
