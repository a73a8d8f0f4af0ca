//! The mounts of a container: what every one has, the pod's files, the volumes.

use std::path::{Path, PathBuf};

use super::{ContainerInput, Mount, OciError, clean_container_path, paths, runs};
use crate::domain::container::cdi::MountEdit;
use crate::domain::container::spec::{MountOption, MountPropagation, MountSpec};

/// Mounts in order, and the propagation of the root that some of them need.
#[derive(Debug)]
pub(super) struct Mounts {
    pub(super) mounts: Vec<Mount>,
    pub(super) rootfs_propagation: Option<&'static str>,
}

/// All mounts of a container.
///
/// A volume takes the place of a default mount at the same path, and a volume at /dev of all below it. Parents
/// come before what is below them; otherwise defaults come first and the order of the request is kept.
pub(super) fn container_mounts(
    input: &ContainerInput<'_>,
    cgroup_namespace: bool,
) -> Result<Mounts, OciError> {
    let asked = &input.container.mounts;
    let mut images = input.image_volumes.iter();
    let volumes = asked
        .iter()
        .map(|spec| match &spec.image {
            Some(_) => image_volume(spec, images.next().map(PathBuf::as_path)),
            None => volume(spec, input),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let is_volume = |path: &str| volumes.iter().any(|volume| volume.destination == path);
    let own_dev = is_volume("/dev");

    let mut mounts = defaults(input, cgroup_namespace);
    mounts.retain(|mount| !(own_dev && mount.destination.starts_with("/dev/")));
    mounts.extend(pod_files(input)?);
    mounts.retain(|mount| !is_volume(&mount.destination));
    mounts.extend(volumes);
    for edit in &input.injection.mounts {
        let injected = injected(edit)?;
        mounts.retain(|mount| mount.destination != injected.destination);
        mounts.push(injected);
    }
    mounts.sort_by_key(|mount| mount.destination.matches('/').count());

    let has = |propagation| asked.iter().any(|mount| mount.propagation == propagation);
    let rootfs_propagation = if has(MountPropagation::Bidirectional) {
        Some("rshared")
    } else if has(MountPropagation::HostToContainer) {
        Some("rslave")
    } else {
        None
    };
    Ok(Mounts {
        mounts,
        rootfs_propagation,
    })
}

/// The mounts of the sandbox process: itself, and what runtimes need to start it.
pub(super) fn sandbox_mounts(runtime_binary: &Path) -> Result<Vec<Mount>, OciError> {
    Ok(vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "noexec", "mode=755", "size=64k"],
        ),
        mount(
            "/pause",
            "bind",
            &paths::text(runtime_binary)?,
            &["bind", "ro", "nosuid", "nodev"],
        ),
    ])
}

fn mount(destination: &str, kind: &'static str, source: &str, options: &[&str]) -> Mount {
    Mount {
        destination: destination.to_owned(),
        kind: kind.into(),
        source: source.to_owned(),
        options: options.iter().map(|&option| option.to_owned()).collect(),
        ..Mount::default()
    }
}

/// What every container has. The kernel's trees are read-only unless it is privileged.
fn defaults(input: &ContainerInput<'_>, cgroup_namespace: bool) -> Vec<Mount> {
    let kernel = if input.container.security.privileged {
        "rw"
    } else {
        "ro"
    };
    let closed = ["nosuid", "noexec", "nodev"];
    let mut cgroup = mount(
        "/sys/fs/cgroup",
        "cgroup",
        "cgroup",
        &["nosuid", "noexec", "nodev", "relatime", kernel],
    );
    if input.host.cgroup_v2 && !cgroup_namespace {
        cgroup
            .options
            .extend(input.host.cgroup2_options.iter().cloned());
    }
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &closed),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", &closed),
        mount(
            "/sys",
            "sysfs",
            "sysfs",
            &["nosuid", "noexec", "nodev", kernel],
        ),
        cgroup,
    ];
    if input.files.shm.is_none() {
        let options = ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"];
        mounts.push(mount("/dev/shm", "tmpfs", "shm", &options));
    }
    mounts
}

/// Files of the pod, writable unless the root is read-only; shared memory always is.
fn pod_files(input: &ContainerInput<'_>) -> Result<Vec<Mount>, OciError> {
    let access = if input.container.security.readonly_rootfs {
        "ro"
    } else {
        "rw"
    };
    let files = input.files;
    [
        ("/dev/shm", &files.shm, "rw"),
        ("/etc/hostname", &files.hostname, access),
        ("/etc/hosts", &files.hosts, access),
        ("/etc/resolv.conf", &files.resolv_conf, access),
    ]
    .into_iter()
    .filter_map(|(destination, source, access)| {
        source
            .as_deref()
            .map(|source| (destination, source, access))
    })
    .map(|(destination, source, access)| {
        Ok(mount(
            destination,
            "bind",
            &paths::text(source)?,
            &["rbind", "rprivate", access],
        ))
    })
    .collect()
}

/// A mount of a CDI device. It takes the place of any other at its path, as in the reference implementation.
fn injected(edit: &MountEdit) -> Result<Mount, OciError> {
    let destination = clean_container_path("CDI mounts.containerPath", &edit.container_path)?;
    let mut options = edit.options.clone();
    let kind = edit.kind.clone().filter(|kind| !kind.is_empty());
    if kind.is_none() && !options.iter().any(|word| word == "bind" || word == "rbind") {
        options.push("rbind".to_owned());
    }
    Ok(Mount {
        destination,
        kind: kind.map_or("bind".into(), Into::into),
        source: edit.host_path.clone(),
        options,
        ..Mount::default()
    })
}

/// Where a volume is put.
fn place(spec: &MountSpec) -> Result<String, OciError> {
    let destination = clean_container_path("mounts.container_path", &spec.container_path)?;
    if destination == "/" {
        return Err(OciError::Path {
            field: "mounts.container_path",
            path: destination,
            reason: "the root of the container is not a place for a volume",
        });
    }
    Ok(destination)
}

/// What the request forbids, for all that is mounted there: a bind takes along what is mounted below.
fn restrictions(spec: &MountSpec) -> impl Iterator<Item = &'static str> {
    spec.options.iter().map(|option| match option {
        MountOption::NoExec => "rnoexec",
        MountOption::NoDev => "rnodev",
        MountOption::NoSuid => "rnosuid",
    })
}

/// A volume with the files of an image: read-only whatever the request says (CRI, `Mount.image`), and without
/// devices, which an image may well have.
fn image_volume(spec: &MountSpec, source: Option<&Path>) -> Result<Mount, OciError> {
    let destination = place(spec)?;
    let Some(source) = source else {
        return Err(OciError::Path {
            field: "mounts.image",
            path: destination,
            reason: "the image is not mounted",
        });
    };
    let mut options = vec!["bind", "rprivate", "ro", "nodev"];
    options.extend(restrictions(spec).filter(|option| *option != "rnodev"));
    Ok(mount(&destination, "bind", &paths::text(source)?, &options))
}

fn volume(spec: &MountSpec, input: &ContainerInput<'_>) -> Result<Mount, OciError> {
    let destination = place(spec)?;
    let source = paths::host_path("mounts.host_path", &spec.host_path)?;
    let refuse = |reason| {
        Err(OciError::Path {
            field: "mounts.container_path",
            path: destination.clone(),
            reason,
        })
    };
    let propagation = match spec.propagation {
        MountPropagation::Private => "rprivate",
        MountPropagation::HostToContainer => "rslave",
        MountPropagation::Bidirectional => "rshared",
    };
    let access = match (spec.recursive_read_only, spec.readonly) {
        (false, false) => "rw",
        (false, true) => "ro",
        (true, false) => return refuse("recursive read-only mount that is not read-only"),
        (true, true) if spec.propagation != MountPropagation::Private => {
            return refuse("recursive read-only mount that is not private");
        }
        (true, true) if !input.host.recursive_read_only => {
            return Err(OciError::RecursiveReadOnlyUnsupported { path: destination });
        }
        (true, true) => "rro",
    };
    let mut options = vec!["rbind", propagation, access];
    options.extend(restrictions(spec));
    let mut volume = mount(&destination, "bind", &source, &options);
    if let Some(ids) = &spec.ids {
        // For what is mounted below as well; the kernel refuses what cannot be mapped.
        volume.options.push("ridmap".to_owned());
        volume.uid_mappings = runs(&ids.uids);
        volume.gid_mappings = runs(&ids.gids);
    }
    Ok(volume)
}
