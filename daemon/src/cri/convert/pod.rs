//! `PodSandboxConfig` to [`PodSpec`], and views to `PodSandbox` and `PodSandboxStatus`.

use std::net::IpAddr;

use axil_proto::cri;

use super::{need, resources};
use crate::domain::failure::{Class, Failure};
use crate::domain::pod::cgroup::CgroupDriver;
use crate::domain::pod::spec::{
    DnsSpec, NamespaceMode, NamespaceModes, PodMetadata, PodSecurity, PodSpec, PortMapping,
    PortProtocol, SecurityProfile,
};
use crate::domain::pod::user_namespace::{IdMapping, IdMappings, UserNamespace};
use crate::domain::selinux::SelinuxOptions;
use crate::engine::views::PodView;

/// Longest host name Linux takes, in bytes (`HOST_NAME_MAX`).
const MAX_HOSTNAME: usize = 64;

/// Most bytes of annotations or labels: twice what the API server lets a pod have.
const MAX_MAP: usize = 512 << 10;

/// Validates a pod's configuration.
///
/// # Errors
/// `InvalidArgument` naming the field and its value; `Unsupported` for what is not built.
#[expect(
    deprecated,
    reason = "old kubelets still send profiles in the old fields; the new ones win"
)]
pub fn spec(
    config: cri::PodSandboxConfig,
    runtime_handler: String,
    driver: CgroupDriver,
) -> Result<PodSpec, Failure> {
    let metadata = metadata(need("config.metadata", config.metadata)?)?;
    let linux = config.linux.unwrap_or_default();
    let security = linux.security_context.unwrap_or_default();
    let namespaces = namespaces(security.namespace_options.unwrap_or_default())?;
    if matches!(
        namespaces.network,
        NamespaceMode::Container | NamespaceMode::Target
    ) || matches!(
        namespaces.ipc,
        NamespaceMode::Container | NamespaceMode::Target
    ) || namespaces.pid == NamespaceMode::Target
    {
        let field = "config.linux.security_context.namespace_options";
        return Err(Failure::invalid(
            field,
            &namespaces,
            "a pod is POD or NODE, its PID also CONTAINER",
        ));
    }
    let host_network = namespaces.network == NamespaceMode::Node;
    if namespaces.user.ids().is_some() {
        for (field, mode) in [
            ("network", namespaces.network),
            ("pid", namespaces.pid),
            ("ipc", namespaces.ipc),
        ] {
            if mode == NamespaceMode::Node {
                let field = format!("config.linux.security_context.namespace_options.{field}");
                let why = "a pod with a user namespace cannot share it with the node";
                return Err(Failure::invalid(&field, "NODE", why));
            }
        }
    }
    check_map("config.labels", &config.labels)?;
    check_map("config.annotations", &config.annotations)?;
    check_hostname(&config.hostname, host_network)?;
    check_log_directory(&config.log_directory)?;
    let parent = &linux.cgroup_parent;
    if !parent.is_empty() {
        driver
            .check_parent(parent)
            .map_err(|why| Failure::invalid("config.linux.cgroup_parent", parent, why))?;
    }
    Ok(PodSpec {
        metadata,
        runtime_handler,
        hostname: if host_network {
            String::new()
        } else {
            config.hostname
        },
        log_directory: config.log_directory,
        dns: config.dns_config.map(dns).transpose()?,
        port_mappings: port_mappings(config.port_mappings, host_network)?,
        labels: config.labels.into_iter().collect(),
        annotations: config.annotations.into_iter().collect(),
        cgroup_parent: linux.cgroup_parent,
        sysctls: linux.sysctls.into_iter().collect(),
        namespaces,
        security: PodSecurity {
            privileged: security.privileged,
            seccomp: profile(
                "config.linux.security_context.seccomp",
                security.seccomp,
                &security.seccomp_profile_path,
            )?,
            selinux: selinux(security.selinux_options)?,
        },
        overhead: linux
            .overhead
            .map(|wire| resources::from_wire(Some(wire)))
            .transpose()?,
        resources: linux
            .resources
            .map(|wire| resources::from_wire(Some(wire)))
            .transpose()?,
    })
}

fn metadata(wire: cri::PodSandboxMetadata) -> Result<PodMetadata, Failure> {
    for (field, value) in [
        ("name", &wire.name),
        ("namespace", &wire.namespace),
        ("uid", &wire.uid),
    ] {
        let field = format!("config.metadata.{field}");
        if value.is_empty() {
            return Err(Failure::invalid(&field, value, "is empty"));
        }
        if value.len() > 253 || value.chars().any(char::is_control) {
            return Err(Failure::invalid(
                &field,
                value,
                "must be at most 253 printable characters",
            ));
        }
    }
    Ok(PodMetadata {
        name: wire.name,
        namespace: wire.namespace,
        uid: wire.uid,
        attempt: wire.attempt,
    })
}

/// Converts SELinux options.
///
/// # Errors
/// `InvalidArgument` naming the part.
pub fn selinux(options: Option<cri::SeLinuxOption>) -> Result<Option<SelinuxOptions>, Failure> {
    let Some(wire) = options else { return Ok(None) };
    let options = SelinuxOptions {
        user: wire.user,
        role: wire.role,
        kind: wire.r#type,
        level: wire.level,
    };
    options.checked()
}

/// Bounds labels or annotations.
///
/// # Errors
/// `InvalidArgument` naming the field.
pub fn check_map(
    field: &str,
    map: &std::collections::HashMap<String, String>,
) -> Result<(), Failure> {
    let bytes: usize = map.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > MAX_MAP {
        return Err(Failure::invalid(
            field,
            bytes,
            format!("has more than {MAX_MAP} bytes"),
        ));
    }
    Ok(())
}

fn check_hostname(name: &str, host_network: bool) -> Result<(), Failure> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if host_network || (name.len() <= MAX_HOSTNAME && name.chars().all(plain)) {
        return Ok(());
    }
    Err(Failure::invalid(
        "config.hostname",
        name,
        "must be at most 64 of A-Z a-z 0-9 - . _",
    ))
}

fn check_log_directory(path: &str) -> Result<(), Failure> {
    let inside = path.split('/').all(|part| part != "..");
    if path.is_empty() || (path.starts_with('/') && inside && !path.contains('\0')) {
        return Ok(());
    }
    Err(Failure::invalid(
        "config.log_directory",
        path,
        "must be an absolute path without ..",
    ))
}

fn dns(wire: cri::DnsConfig) -> Result<DnsSpec, Failure> {
    for value in wire
        .servers
        .iter()
        .chain(&wire.searches)
        .chain(&wire.options)
    {
        // Each becomes part of a line of resolv.conf.
        if value.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(Failure::invalid(
                "config.dns_config",
                value,
                "has white space in it",
            ));
        }
    }
    Ok(DnsSpec {
        servers: wire.servers,
        searches: wire.searches,
        options: wire.options,
    })
}

/// Converts namespace options.
///
/// # Errors
/// `InvalidArgument`, naming the option.
pub fn namespaces(wire: cri::NamespaceOption) -> Result<NamespaceModes, Failure> {
    Ok(NamespaceModes {
        network: mode("network", wire.network)?,
        pid: mode("pid", wire.pid)?,
        ipc: mode("ipc", wire.ipc)?,
        target_id: wire.target_id,
        user: user_namespace(wire.userns_options)?,
    })
}

fn user_namespace(wire: Option<cri::UserNamespace>) -> Result<UserNamespace, Failure> {
    let Some(wire) = wire else {
        return Ok(UserNamespace::Unset);
    };
    let field = "namespace_options.userns_options";
    match cri::NamespaceMode::try_from(wire.mode) {
        Ok(cri::NamespaceMode::Pod) => {
            let ids = IdMappings {
                uids: mappings(&wire.uids),
                gids: mappings(&wire.gids),
            };
            ids.check_namespace().map_err(|error| {
                Failure::new(Class::InvalidArgument, format!("{field}.{error}"))
            })?;
            Ok(UserNamespace::Pod(ids))
        }
        Ok(cri::NamespaceMode::Node) if wire.uids.is_empty() && wire.gids.is_empty() => {
            Ok(UserNamespace::Node)
        }
        Ok(cri::NamespaceMode::Node) => {
            let why = "the node's user namespace takes no mappings";
            Err(Failure::invalid(&format!("{field}.uids"), wire.uids, why))
        }
        Ok(cri::NamespaceMode::Container | cri::NamespaceMode::Target) | Err(_) => {
            let field = format!("{field}.mode");
            Err(Failure::invalid(&field, wire.mode, "must be POD or NODE"))
        }
    }
}

/// Runs of ids, not checked yet.
#[must_use]
pub fn mappings(wire: &[cri::IdMapping]) -> Vec<IdMapping> {
    let run = |wire: &cri::IdMapping| IdMapping {
        container: wire.container_id,
        host: wire.host_id,
        length: wire.length,
    };
    wire.iter().map(run).collect()
}

/// Runs of ids on the wire.
#[must_use]
pub fn mappings_to_wire(runs: &[IdMapping]) -> Vec<cri::IdMapping> {
    let run = |run: &IdMapping| cri::IdMapping {
        host_id: run.host,
        container_id: run.container,
        length: run.length,
    };
    runs.iter().map(run).collect()
}

fn mode(field: &str, number: i32) -> Result<NamespaceMode, Failure> {
    match cri::NamespaceMode::try_from(number) {
        Ok(cri::NamespaceMode::Pod) => Ok(NamespaceMode::Pod),
        Ok(cri::NamespaceMode::Container) => Ok(NamespaceMode::Container),
        Ok(cri::NamespaceMode::Node) => Ok(NamespaceMode::Node),
        Ok(cri::NamespaceMode::Target) => Ok(NamespaceMode::Target),
        Err(_) => Err(Failure::invalid(
            &format!("namespace_options.{field}"),
            number,
            "is no namespace mode",
        )),
    }
}

/// Namespace options on the wire.
#[must_use]
pub fn namespaces_to_wire(modes: &NamespaceModes) -> cri::NamespaceOption {
    let number = |mode: NamespaceMode| match mode {
        NamespaceMode::Pod => cri::NamespaceMode::Pod,
        NamespaceMode::Container => cri::NamespaceMode::Container,
        NamespaceMode::Node => cri::NamespaceMode::Node,
        NamespaceMode::Target => cri::NamespaceMode::Target,
    } as i32;
    cri::NamespaceOption {
        network: number(modes.network),
        pid: number(modes.pid),
        ipc: number(modes.ipc),
        target_id: modes.target_id.clone(),
        userns_options: match &modes.user {
            UserNamespace::Unset => None,
            UserNamespace::Node => Some(cri::UserNamespace {
                mode: cri::NamespaceMode::Node as i32,
                ..cri::UserNamespace::default()
            }),
            UserNamespace::Pod(ids) => Some(cri::UserNamespace {
                mode: cri::NamespaceMode::Pod as i32,
                uids: mappings_to_wire(&ids.uids),
                gids: mappings_to_wire(&ids.gids),
            }),
        },
    }
}

/// Converts a profile; `deprecated` is the old textual form, used when the new one is absent.
///
/// # Errors
/// `InvalidArgument`: a localhost profile without a name would run unconfined (CVE-2023-2431).
pub fn profile(
    field: &str,
    wire: Option<cri::SecurityProfile>,
    deprecated: &str,
) -> Result<SecurityProfile, Failure> {
    use cri::security_profile::ProfileType;
    let localhost = |name: &str| {
        if name.is_empty() {
            return Err(Failure::invalid(
                field,
                name,
                "a localhost profile needs a name",
            ));
        }
        Ok(SecurityProfile::Localhost(name.to_owned()))
    };
    match wire {
        Some(profile) => match ProfileType::try_from(profile.profile_type) {
            Ok(ProfileType::RuntimeDefault) => Ok(SecurityProfile::RuntimeDefault),
            Ok(ProfileType::Unconfined) => Ok(SecurityProfile::Unconfined),
            Ok(ProfileType::Localhost) => localhost(&profile.localhost_ref),
            Err(_) => Err(Failure::invalid(
                field,
                profile.profile_type,
                "is no profile type",
            )),
        },
        None => match deprecated {
            "" => Ok(SecurityProfile::Unset),
            "runtime/default" | "docker/default" => Ok(SecurityProfile::RuntimeDefault),
            "unconfined" => Ok(SecurityProfile::Unconfined),
            other => match other.strip_prefix("localhost/") {
                Some(name) => localhost(name),
                None => Err(Failure::invalid(field, other, "is no profile")),
            },
        },
    }
}

fn port_mappings(
    wire: Vec<cri::PortMapping>,
    host_network: bool,
) -> Result<Vec<PortMapping>, Failure> {
    let mut mappings = Vec::new();
    for mapping in wire {
        // Host port 0 publishes nothing (CRI, `PortMapping.host_port`).
        if mapping.host_port == 0 || host_network {
            continue;
        }
        let port = |field: &str, number: i32| {
            u16::try_from(number)
                .ok()
                .filter(|&port| port > 0)
                .ok_or_else(|| {
                    let field = format!("config.port_mappings.{field}");
                    Failure::invalid(&field, number, "must be 1 to 65535")
                })
        };
        let field = "config.port_mappings.host_ip";
        let host_ip = match mapping.host_ip.as_str() {
            "" => None,
            text => Some(
                text.parse::<IpAddr>()
                    .map_err(|error| Failure::invalid(field, text, error))?,
            ),
        };
        mappings.push(PortMapping {
            protocol: match cri::Protocol::try_from(mapping.protocol) {
                Ok(cri::Protocol::Tcp) => PortProtocol::Tcp,
                Ok(cri::Protocol::Udp) => PortProtocol::Udp,
                Ok(cri::Protocol::Sctp) => PortProtocol::Sctp,
                Err(_) => {
                    let field = "config.port_mappings.protocol";
                    return Err(Failure::invalid(field, mapping.protocol, "is no protocol"));
                }
            },
            container_port: port("container_port", mapping.container_port)?,
            host_port: port("host_port", mapping.host_port)?,
            host_ip: host_ip.filter(|ip| !ip.is_unspecified()),
        });
    }
    Ok(mappings)
}

pub(super) fn metadata_to_wire(metadata: &PodMetadata) -> cri::PodSandboxMetadata {
    cri::PodSandboxMetadata {
        name: metadata.name.clone(),
        uid: metadata.uid.clone(),
        namespace: metadata.namespace.clone(),
        attempt: metadata.attempt,
    }
}

fn state(view: &PodView) -> i32 {
    if view.record.phase.is_ready() {
        cri::PodSandboxState::SandboxReady as i32
    } else {
        cri::PodSandboxState::SandboxNotready as i32
    }
}

/// A list entry.
#[must_use]
pub fn to_list(view: &PodView) -> cri::PodSandbox {
    let spec = &view.record.spec;
    cri::PodSandbox {
        id: view.id.to_string(),
        metadata: Some(metadata_to_wire(&spec.metadata)),
        state: state(view),
        created_at: view.record.created_at,
        labels: spec.labels.clone().into_iter().collect(),
        annotations: spec.annotations.clone().into_iter().collect(),
        runtime_handler: spec.runtime_handler.clone(),
    }
}

/// The CRI state of a pod.
#[must_use]
pub fn state_of(view: &PodView) -> i32 {
    state(view)
}

/// A status.
#[must_use]
pub fn to_status(view: &PodView) -> cri::PodSandboxStatus {
    let spec = &view.record.spec;
    let ips = view
        .record
        .phase
        .sandbox()
        .map(|sandbox| sandbox.ips.as_slice())
        .unwrap_or_default();
    let text = |ip: &IpAddr| ip.to_string();
    cri::PodSandboxStatus {
        id: view.id.to_string(),
        metadata: Some(metadata_to_wire(&spec.metadata)),
        state: state(view),
        created_at: view.record.created_at,
        network: Some(cri::PodSandboxNetworkStatus {
            ip: ips.first().map(text).unwrap_or_default(),
            additional_ips: ips
                .iter()
                .skip(1)
                .map(|ip| cri::PodIp { ip: text(ip) })
                .collect(),
        }),
        linux: Some(cri::LinuxPodSandboxStatus {
            namespaces: Some(cri::Namespace {
                options: Some(namespaces_to_wire(&spec.namespaces)),
            }),
        }),
        labels: spec.labels.clone().into_iter().collect(),
        annotations: spec.annotations.clone().into_iter().collect(),
        runtime_handler: spec.runtime_handler.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> cri::PodSandboxConfig {
        cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: "web".into(),
                uid: "u1".into(),
                namespace: "default".into(),
                attempt: 0,
            }),
            ..cri::PodSandboxConfig::default()
        }
    }

    #[track_caller]
    fn refused(change: impl FnOnce(&mut cri::PodSandboxConfig), names: &str) {
        let mut wire = config();
        change(&mut wire);
        let failure = spec(wire, String::new(), CgroupDriver::Cgroupfs).unwrap_err();
        assert!(failure.message.contains(names), "{failure}");
    }

    #[test]
    fn the_plainest_pod_is_taken() {
        let spec = spec(config(), String::new(), CgroupDriver::Cgroupfs).unwrap();
        assert!(spec.shares_pid(), "POD is the CRI's zero value");
        assert!(!spec.host_network());
    }

    #[test]
    fn bad_fields_are_named() {
        refused(|c| c.metadata = None, "config.metadata");
        refused(
            |c| c.metadata.as_mut().unwrap().uid.clear(),
            "config.metadata.uid",
        );
        refused(|c| c.hostname = "a b".into(), "config.hostname \"a b\"");
        refused(|c| c.log_directory = "/a/../b".into(), "/a/../b");
        refused(
            |c| {
                c.linux = Some(cri::LinuxPodSandboxConfig {
                    cgroup_parent: "kubepods.slice".into(),
                    ..Default::default()
                });
            },
            "kubepods.slice",
        );
        refused(
            |c| {
                c.dns_config = Some(cri::DnsConfig {
                    servers: vec!["1\nx".into()],
                    ..Default::default()
                });
            },
            "dns_config",
        );
        refused(
            |c| {
                c.port_mappings = vec![cri::PortMapping {
                    host_port: 70000,
                    container_port: 1,
                    ..Default::default()
                }];
            },
            "host_port 70000",
        );
    }

    #[test]
    fn cve_2023_2431_a_localhost_profile_needs_a_name() {
        let wire = cri::SecurityProfile {
            profile_type: 2,
            localhost_ref: String::new(),
        };
        assert!(profile("seccomp", Some(wire), "").is_err());
        assert!(profile("seccomp", None, "localhost/").is_err());
    }
}
