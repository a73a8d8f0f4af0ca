//! `ContainerConfig` to [`ContainerSpec`], and views to `Container` and `ContainerStatus`.

use std::collections::BTreeMap;

use axil_proto::cri;

use super::pod::{check_map, mappings, mappings_to_wire, namespaces, profile, selinux};
use super::{need, resources};
use crate::domain::container::cdi::{self, DeviceName};
use crate::domain::container::phase::ContainerPhase;
use crate::domain::container::record::ResolvedImage;
use crate::domain::container::spec::{
    Capabilities, ContainerSecurity, ContainerSpec, DeviceSpec, GroupsPolicy, ImageSpec,
    ImageVolume, MountOption, MountPropagation, MountSpec, UserRequest,
};
use crate::domain::failure::Failure;
use crate::domain::pod::user_namespace::IdMappings;
use crate::engine::views::ContainerView;

/// Longest container name, in bytes.
const MAX_NAME: usize = 253;

/// The kernel's longest path, in bytes.
const MAX_PATH: usize = 4096;

/// Most CDI devices of a container.
const MAX_CDI_DEVICES: usize = 256;

/// Validates a container's configuration.
///
/// # Errors
/// `InvalidArgument` naming the field and its value; `Unsupported` for what is not built.
pub fn spec(config: cri::ContainerConfig) -> Result<ContainerSpec, Failure> {
    let metadata = need("config.metadata", config.metadata)?;
    let image = need("config.image", config.image)?;
    let name = metadata.name;
    if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
        let why = "must be 1 to 253 printable characters";
        return Err(Failure::invalid("config.metadata.name", name, why));
    }
    if image.image.is_empty() {
        return Err(Failure::invalid(
            "config.image.image",
            image.image,
            "is empty",
        ));
    }
    check_map("config.labels", &config.labels)?;
    check_map("config.annotations", &config.annotations)?;
    let annotations = config.annotations.into_iter().collect();
    let cdi_devices = cdi_devices(&config.cdi_devices, &annotations)?;
    let linux = config.linux.unwrap_or_default();
    Ok(ContainerSpec {
        name,
        attempt: metadata.attempt,
        image: image_spec(image),
        command: config.command,
        args: config.args,
        working_dir: config.working_dir,
        envs: config
            .envs
            .into_iter()
            .map(|pair| (pair.key, pair.value))
            .collect(),
        mounts: config
            .mounts
            .into_iter()
            .map(mount)
            .collect::<Result<_, _>>()?,
        devices: config
            .devices
            .into_iter()
            .map(|device| DeviceSpec {
                container_path: device.container_path,
                host_path: device.host_path,
                permissions: device.permissions,
            })
            .collect(),
        cdi_devices,
        labels: config.labels.into_iter().collect(),
        annotations,
        log_path: config.log_path,
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
        stop_signal: stop_signal(config.stop_signal)?,
        resources: resources::from_wire(linux.resources)?,
        security: security(linux.security_context.unwrap_or_default())?,
    })
}

/// Devices of the field and of annotations, each once: the kubelet may tell the same twice.
fn cdi_devices(
    wire: &[cri::CdiDevice],
    annotations: &BTreeMap<String, String>,
) -> Result<Vec<DeviceName>, Failure> {
    let field = wire
        .iter()
        .map(|device| ("config.CDI_devices".to_owned(), device.name.as_str()));
    let annotated = cdi::named_in(annotations)
        .map(|(key, name)| (format!("config.annotations[{key:?}]"), name));
    let mut devices = Vec::new();
    for (field, text) in field.chain(annotated) {
        let name = text.parse();
        let name: DeviceName = name.map_err(|why| Failure::invalid(&field, text, why))?;
        if devices.contains(&name) {
            continue;
        }
        if devices.len() >= MAX_CDI_DEVICES {
            let why = format!("more than {MAX_CDI_DEVICES} CDI devices");
            return Err(Failure::invalid(&field, text, why));
        }
        devices.push(name);
    }
    Ok(devices)
}

fn mount(wire: cri::Mount) -> Result<MountSpec, Failure> {
    let propagation = match cri::MountPropagation::try_from(wire.propagation) {
        Ok(cri::MountPropagation::PropagationPrivate) => MountPropagation::Private,
        Ok(cri::MountPropagation::PropagationHostToContainer) => MountPropagation::HostToContainer,
        Ok(cri::MountPropagation::PropagationBidirectional) => MountPropagation::Bidirectional,
        Err(_) => {
            let field = "config.mounts.propagation";
            return Err(Failure::invalid(
                field,
                wire.propagation,
                "is no propagation",
            ));
        }
    };
    let image = wire.image.filter(|image| !image.image.is_empty());
    let image = match image {
        Some(_) if !wire.readonly => {
            // The API: image mounts are read-only by definition. The kubelet always says so.
            let why = "must be true where an image is mounted";
            return Err(Failure::invalid("config.mounts.readonly", "false", why));
        }
        image => image_volume(image, &wire.host_path, wire.image_sub_path, propagation)?,
    };
    for (field, path) in [
        ("container_path", &wire.container_path),
        ("host_path", &wire.host_path),
    ] {
        let needed = field == "container_path" || image.is_none();
        if needed && (!path.starts_with('/') || path.contains('\0')) {
            let field = format!("config.mounts.{field}");
            return Err(Failure::invalid(&field, path, "must be an absolute path"));
        }
    }
    let ids = IdMappings {
        uids: mappings(&wire.uid_mappings),
        gids: mappings(&wire.gid_mappings),
    };
    let ids = Some(ids).filter(|ids| *ids != IdMappings::default());
    if let Some(ids) = &ids {
        ids.check().map_err(|error| {
            Failure::invalid("config.mounts.container_path", &wire.container_path, error)
        })?;
    }
    let options = wire.mount_options.iter().map(|text| mount_option(text));
    Ok(MountSpec {
        container_path: wire.container_path,
        host_path: wire.host_path,
        image,
        readonly: wire.readonly,
        recursive_read_only: wire.recursive_read_only,
        selinux_relabel: wire.selinux_relabel,
        propagation,
        ids,
        options: options.collect::<Result<_, _>>()?,
    })
}

/// The image of a volume, if it is one. Such a volume has no path of the node and nothing is mounted below it.
fn image_volume(
    image: Option<cri::ImageSpec>,
    host_path: &str,
    sub_path: String,
    propagation: MountPropagation,
) -> Result<Option<ImageVolume>, Failure> {
    let field = "config.mounts.image_sub_path";
    let Some(image) = image else {
        if sub_path.is_empty() {
            return Ok(None);
        }
        return Err(Failure::invalid(field, sub_path, "needs an image"));
    };
    if !host_path.is_empty() {
        let why = "must be empty where an image is mounted";
        return Err(Failure::invalid("config.mounts.host_path", host_path, why));
    }
    if propagation != MountPropagation::Private {
        let why = "an image volume is private";
        return Err(Failure::invalid(
            "config.mounts.propagation",
            propagation,
            why,
        ));
    }
    let climbs = sub_path.split('/').any(|part| part == "..");
    if sub_path.starts_with('/')
        || climbs
        || sub_path.len() >= MAX_PATH
        || sub_path.contains(char::is_control)
    {
        let why = "must be a relative path without .. and control characters";
        return Err(Failure::invalid(field, sub_path, why));
    }
    Ok(Some(ImageVolume {
        image: image_spec(image),
        sub_path,
    }))
}

/// The options of KEP-5855; what would give more than a mount has anyway is none of them.
fn mount_option(text: &str) -> Result<MountOption, Failure> {
    match text {
        "noexec" => Ok(MountOption::NoExec),
        "nodev" => Ok(MountOption::NoDev),
        "nosuid" => Ok(MountOption::NoSuid),
        _ => {
            let why = "is not one of noexec, nodev, nosuid";
            Err(Failure::invalid("config.mounts.mount_options", text, why))
        }
    }
}

fn image_spec(wire: cri::ImageSpec) -> ImageSpec {
    ImageSpec {
        image: wire.image,
        user_specified_image: wire.user_specified_image,
        runtime_handler: wire.runtime_handler,
        annotations: wire.annotations.into_iter().collect(),
    }
}

#[expect(
    deprecated,
    reason = "old kubelets still send profiles in the old fields; the new ones win"
)]
fn security(wire: cri::LinuxContainerSecurityContext) -> Result<ContainerSecurity, Failure> {
    let field = "config.linux.security_context";
    let capabilities = wire.capabilities.unwrap_or_default();
    Ok(ContainerSecurity {
        privileged: wire.privileged,
        capabilities: Capabilities {
            add: capabilities.add_capabilities,
            drop: capabilities.drop_capabilities,
            add_ambient: capabilities.add_ambient_capabilities,
        },
        namespaces: namespaces(wire.namespace_options.unwrap_or_default())?,
        user: user(wire.run_as_user, wire.run_as_group, wire.run_as_username)?,
        supplemental_groups: wire
            .supplemental_groups
            .into_iter()
            .map(|group| id(&format!("{field}.supplemental_groups"), group))
            .collect::<Result<_, _>>()?,
        groups_policy: match cri::SupplementalGroupsPolicy::try_from(
            wire.supplemental_groups_policy,
        ) {
            Ok(cri::SupplementalGroupsPolicy::Merge) => GroupsPolicy::Merge,
            Ok(cri::SupplementalGroupsPolicy::Strict) => GroupsPolicy::Strict,
            Err(_) => {
                let field = format!("{field}.supplemental_groups_policy");
                let value = wire.supplemental_groups_policy;
                return Err(Failure::invalid(&field, value, "is no policy"));
            }
        },
        readonly_rootfs: wire.readonly_rootfs,
        no_new_privs: wire.no_new_privs,
        masked_paths: wire.masked_paths,
        readonly_paths: wire.readonly_paths,
        seccomp: profile(
            &format!("{field}.seccomp"),
            wire.seccomp,
            &wire.seccomp_profile_path,
        )?,
        apparmor: profile(
            &format!("{field}.apparmor"),
            wire.apparmor.map(bare_name),
            &wire.apparmor_profile,
        )?,
        selinux: selinux(wire.selinux_options)?,
    })
}

/// Without the prefix of the old field, which some clients write into the new one too.
fn bare_name(mut profile: cri::SecurityProfile) -> cri::SecurityProfile {
    if let Some(name) = profile.localhost_ref.strip_prefix("localhost/") {
        profile.localhost_ref = name.to_owned();
    }
    profile
}

/// A user or group id: what Linux and every OCI runtime take.
fn id(field: &str, value: i64) -> Result<u32, Failure> {
    let fits = u32::try_from(value)
        .ok()
        .filter(|&id| id <= i32::MAX.unsigned_abs());
    fits.ok_or_else(|| Failure::invalid(field, value, "must be 0 to 2147483647"))
}

fn user(
    uid: Option<cri::Int64Value>,
    gid: Option<cri::Int64Value>,
    name: String,
) -> Result<UserRequest, Failure> {
    let field = "config.linux.security_context.run_as";
    let gid = gid
        .map(|gid| id(&format!("{field}_group"), gid.value))
        .transpose()?;
    match (uid, name.is_empty()) {
        (Some(uid), _) => Ok(UserRequest::Id {
            uid: id(&format!("{field}_user"), uid.value)?,
            gid,
        }),
        (None, false) => Ok(UserRequest::Name { name, gid }),
        (None, true) => match gid {
            None => Ok(UserRequest::Image),
            Some(gid) => Err(Failure::invalid(
                &format!("{field}_group"),
                gid,
                "needs run_as_user or run_as_username",
            )),
        },
    }
}

/// The CRI numbers signals by name; the kernel's numbers are found by that name.
fn stop_signal(number: i32) -> Result<Option<i32>, Failure> {
    use crate::domain::container::oci;
    let wrong = |why: String| Failure::invalid("config.stop_signal", number, why);
    let signal = cri::Signal::try_from(number).map_err(|_| wrong("is no signal".to_owned()))?;
    if signal == cri::Signal::RuntimeDefault {
        return Ok(None);
    }
    let name = signal_name(signal);
    oci::stop_signal(None, Some(&name))
        .map(Some)
        .map_err(|error| wrong(error.to_string()))
}

/// "SIGTERM", "SIGRTMIN+3": the name the field uses, from the wire's name.
fn signal_name(signal: cri::Signal) -> String {
    let wire = signal.as_str_name();
    let name = wire.strip_prefix("SIGNAL_").unwrap_or(wire);
    match name {
        // Aliases of the kernel (signal(7)) that tables of names often lack.
        "SIGCLD" => "SIGCHLD".to_owned(),
        "SIGIOT" => "SIGABRT".to_owned(),
        "SIGPOLL" => "SIGIO".to_owned(),
        name => name.replace("MINPLUS", "MIN+").replace("MAXMINUS", "MAX-"),
    }
}

/// The wire's signal of a kernel's number; the first of several names.
fn signal_to_wire(number: i32) -> cri::Signal {
    let numbers = |signal: &cri::Signal| {
        use crate::domain::container::oci;
        oci::stop_signal(None, Some(&signal_name(*signal))).is_ok_and(|found| found == number)
    };
    let all = (1..=65).filter_map(|wire| cri::Signal::try_from(wire).ok());
    all.into_iter()
        .find(numbers)
        .unwrap_or(cri::Signal::RuntimeDefault)
}

fn state(phase: &ContainerPhase) -> i32 {
    match phase {
        ContainerPhase::Creating | ContainerPhase::Created | ContainerPhase::Starting => {
            cri::ContainerState::ContainerCreated as i32
        }
        ContainerPhase::Running { .. } => cri::ContainerState::ContainerRunning as i32,
        ContainerPhase::Exited(_) | ContainerPhase::Removing { .. } => {
            cri::ContainerState::ContainerExited as i32
        }
    }
}

/// The CRI state of a container.
#[must_use]
pub fn state_of(view: &ContainerView) -> i32 {
    state(&view.record.phase)
}

/// The image as it was asked for, under the tag people know it by: the kubelet asks by id, and shows users what
/// is answered here.
fn image_to_wire(image: &ImageSpec, resolved: &ResolvedImage) -> cri::ImageSpec {
    cri::ImageSpec {
        image: resolved.tag.as_ref().unwrap_or(&image.image).clone(),
        annotations: image.annotations.clone().into_iter().collect(),
        user_specified_image: image.user_specified_image.clone(),
        runtime_handler: image.runtime_handler.clone(),
        image_ref: String::new(),
    }
}

/// A list entry.
#[must_use]
pub fn to_list(view: &ContainerView) -> cri::Container {
    let record = &view.record;
    cri::Container {
        id: view.id.to_string(),
        pod_sandbox_id: view.pod.to_string(),
        metadata: Some(cri::ContainerMetadata {
            name: record.spec.name.clone(),
            attempt: record.spec.attempt,
        }),
        image: Some(image_to_wire(&record.spec.image, &record.image)),
        image_ref: record.image.reference.clone(),
        state: state(&record.phase),
        created_at: record.created_at,
        labels: record.spec.labels.clone().into_iter().collect(),
        annotations: record.spec.annotations.clone().into_iter().collect(),
        image_id: record.image.id.clone(),
    }
}

/// A status; `log_directory` is the pod's.
#[must_use]
pub fn to_status(view: &ContainerView, log_directory: &str) -> cri::ContainerStatus {
    let record = &view.record;
    let spec = &record.spec;
    let exit = record.phase.exit();
    let logged = !log_directory.is_empty() && !spec.log_path.is_empty();
    let log_path = std::path::Path::new(log_directory).join(&spec.log_path);
    cri::ContainerStatus {
        id: view.id.to_string(),
        metadata: Some(cri::ContainerMetadata {
            name: spec.name.clone(),
            attempt: spec.attempt,
        }),
        state: state(&record.phase),
        created_at: record.created_at,
        started_at: record.phase.started_at(),
        finished_at: exit.map_or(0, |exit| exit.finished_at),
        exit_code: exit.map_or(0, |exit| exit.code),
        image: Some(image_to_wire(&spec.image, &record.image)),
        image_ref: record.image.reference.clone(),
        reason: exit
            .map(|exit| exit.reason.as_str().to_owned())
            .unwrap_or_default(),
        message: exit.map(|exit| exit.message.clone()).unwrap_or_default(),
        labels: spec.labels.clone().into_iter().collect(),
        annotations: spec.annotations.clone().into_iter().collect(),
        mounts: mounts_to_wire(&spec.mounts, &record.volumes),
        log_path: if logged {
            log_path.display().to_string()
        } else {
            String::new()
        },
        resources: Some(cri::ContainerResources {
            linux: Some(resources::to_wire(record.limits())),
            windows: None,
        }),
        image_id: record.image.id.clone(),
        user: record.user.as_ref().map(|user| cri::ContainerUser {
            linux: Some(cri::LinuxContainerUser {
                uid: i64::from(user.uid),
                gid: i64::from(user.gid),
                supplemental_groups: user.groups.iter().map(|&group| i64::from(group)).collect(),
            }),
        }),
        stop_signal: signal_to_wire(record.stop_signal) as i32,
    }
}

/// Mounts on the wire; `images` are those of the image volumes among them, in order.
fn mounts_to_wire(mounts: &[MountSpec], images: &[ResolvedImage]) -> Vec<cri::Mount> {
    let mut images = images.iter();
    let wire = mounts.iter().map(|mount| {
        let mut wire = mount_to_wire(mount);
        if let (Some(volume), Some(resolved)) = (
            &mount.image,
            mount.image.as_ref().and_then(|_| images.next()),
        ) {
            // The id, as the pull answered it: critest compares the two, and kubelets that do not read this
            // field yet report the same. ContainerStatus.image_ref, a repository digest, is another matter.
            wire.image = Some(cri::ImageSpec {
                image_ref: resolved.id.clone(),
                ..image_to_wire(&volume.image, resolved)
            });
            wire.image_sub_path.clone_from(&volume.sub_path);
        }
        wire
    });
    wire.collect()
}

fn mount_to_wire(mount: &MountSpec) -> cri::Mount {
    let ids = mount.ids.as_ref();
    cri::Mount {
        container_path: mount.container_path.clone(),
        host_path: mount.host_path.clone(),
        readonly: mount.readonly,
        selinux_relabel: mount.selinux_relabel,
        propagation: match mount.propagation {
            MountPropagation::Private => cri::MountPropagation::PropagationPrivate,
            MountPropagation::HostToContainer => cri::MountPropagation::PropagationHostToContainer,
            MountPropagation::Bidirectional => cri::MountPropagation::PropagationBidirectional,
        } as i32,
        recursive_read_only: mount.recursive_read_only,
        uid_mappings: ids.map_or_else(Vec::new, |ids| mappings_to_wire(&ids.uids)),
        gid_mappings: ids.map_or_else(Vec::new, |ids| mappings_to_wire(&ids.gids)),
        mount_options: mount
            .options
            .iter()
            .map(|option| {
                match option {
                    MountOption::NoExec => "noexec",
                    MountOption::NoDev => "nodev",
                    MountOption::NoSuid => "nosuid",
                }
                .to_owned()
            })
            .collect(),
        ..cri::Mount::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::failure::Class;
    use crate::domain::pod::spec::SecurityProfile;

    fn config() -> cri::ContainerConfig {
        cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata {
                name: "c".into(),
                attempt: 0,
            }),
            image: Some(cri::ImageSpec {
                image: "busybox".into(),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn every_signal_of_the_cri_has_a_number_and_comes_back() {
        for wire in 1..=65 {
            let number = stop_signal(wire).unwrap().unwrap();
            let back = signal_to_wire(number);
            assert_eq!(stop_signal(back as i32).unwrap(), Some(number), "{wire}");
        }
        assert_eq!(stop_signal(0).unwrap(), None);
        assert!(stop_signal(99).is_err());
    }

    #[test]
    fn apparmor_profiles_of_the_node_have_a_name_in_both_fields() {
        use cri::security_profile::ProfileType;
        let of_node = |name: &str| cri::SecurityProfile {
            profile_type: ProfileType::Localhost.into(),
            localhost_ref: name.to_owned(),
        };
        #[expect(deprecated, reason = "old kubelets still send it")]
        let asked = |new: Option<&str>, old: &str| {
            security(cri::LinuxContainerSecurityContext {
                apparmor: new.map(of_node),
                apparmor_profile: old.to_owned(),
                ..Default::default()
            })
            .map(|security| security.apparmor)
        };
        let web = SecurityProfile::Localhost("web".into());
        assert_eq!(asked(Some("web"), "localhost/other"), Ok(web.clone()));
        assert_eq!(asked(Some("localhost/web"), ""), Ok(web.clone()));
        assert_eq!(asked(None, "localhost/web"), Ok(web));
        for nameless in [
            asked(Some(""), ""),
            asked(Some("localhost/"), ""),
            asked(None, "localhost/"),
        ] {
            let refused = nameless.unwrap_err();
            assert_eq!(refused.class, Class::InvalidArgument);
            assert!(
                refused.message.contains("security_context.apparmor"),
                "{refused}"
            );
        }
    }

    #[test]
    fn cve_2024_40635_ids_that_do_not_fit_are_errors() {
        for value in [-1, 1 << 31, 1 << 32, i64::MAX] {
            assert!(id("f", value).is_err(), "{value}");
        }
        assert_eq!(id("f", i64::from(i32::MAX)).unwrap(), 2_147_483_647);
    }

    #[test]
    fn a_group_without_a_user_is_refused() {
        let refused = user(None, Some(cri::Int64Value { value: 5 }), String::new()).unwrap_err();
        assert!(refused.message.contains("run_as_group 5"), "{refused}");
    }

    #[test]
    fn cdi_devices_of_field_and_annotations_are_had_once() {
        let mut wire = config();
        wire.cdi_devices = vec![cri::CdiDevice {
            name: "v/c=d".into(),
        }];
        let asked = [
            ("cdi.k8s.io/b_1", "v/c=e"),
            ("cdi.k8s.io/a_1", "v/c=f,v/c=d"),
            ("cdi.k8s.iox", "nonsense"),
        ];
        wire.annotations = asked.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let names = spec(wire.clone()).unwrap().cdi_devices;
        let names: Vec<_> = names.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["v/c=d", "v/c=f", "v/c=e"]);
        wire.annotations
            .insert("cdi.k8s.io/c_1".into(), "v/c=a, v/c=b".into());
        let refused = spec(wire.clone()).unwrap_err();
        assert_eq!(refused.class, Class::InvalidArgument);
        let named = r#"config.annotations["cdi.k8s.io/c_1"] " v/c=b""#;
        assert!(refused.message.starts_with(named), "{refused}");
        wire.annotations.clear();
        wire.cdi_devices[0].name = "d".into();
        let refused = spec(wire).unwrap_err();
        assert!(
            refused.message.starts_with(r#"config.CDI_devices "d""#),
            "{refused}"
        );
    }
}
