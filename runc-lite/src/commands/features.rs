//! `features`: what this runtime can do, in the form of the OCI specification ("Features Structure").

use std::collections::BTreeMap;

use serde::Serialize;

use super::{CommandError, OCI_VERSION, print};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Features {
    oci_version_min: &'static str,
    oci_version_max: &'static str,
    hooks: [&'static str; 6],
    mount_options: Vec<String>,
    linux: Linux,
    annotations: BTreeMap<&'static str, &'static str>,
    potentially_unsafe_config_annotations: [&'static str; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Linux {
    namespaces: [&'static str; 8],
    capabilities: Vec<&'static str>,
    cgroup: Cgroup,
    seccomp: Seccomp,
    apparmor: Switch,
    selinux: Switch,
    memory_policy: MemoryPolicy,
    intel_rdt: IntelRdt,
    net_devices: Switch,
    mount_extensions: MountExtensions,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Cgroup {
    v1: bool,
    v2: bool,
    systemd: bool,
    systemd_user: bool,
    rdma: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Seccomp {
    enabled: bool,
    actions: [&'static str; 9],
    operators: [&'static str; 7],
    archs: Vec<&'static str>,
    known_flags: [&'static str; 4],
    supported_flags: Vec<&'static str>,
}

#[derive(Serialize)]
struct MemoryPolicy {
    modes: Vec<&'static str>,
    flags: Vec<&'static str>,
}

#[derive(Serialize)]
struct IntelRdt {
    enabled: bool,
    schemata: bool,
    monitoring: bool,
}

#[derive(Serialize)]
struct Switch {
    enabled: bool,
}

#[derive(Serialize)]
struct MountExtensions {
    idmap: Switch,
}

pub(super) fn run(parser: &mut lexopt::Parser) -> Result<(), CommandError> {
    if let Some(argument) = parser.next()? {
        return Err(argument.unexpected().into());
    }
    let text = serde_json::to_string_pretty(&features())
        .map_err(|e| super::io_error("print", "the features", e.into()))?;
    print(&format!("{text}\n"))
}

fn features() -> Features {
    let flags = [
        "SECCOMP_FILTER_FLAG_LOG",
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
        "SECCOMP_FILTER_FLAG_TSYNC",
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
    ];
    let supported = if crate::seccomp::supports_wait_killable() {
        flags.as_slice()
    } else {
        &flags[..3]
    };
    let archs = if cfg!(target_arch = "x86_64") {
        vec!["SCMP_ARCH_X32", "SCMP_ARCH_X86", "SCMP_ARCH_X86_64"]
    } else {
        vec!["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]
    };
    Features {
        oci_version_min: "1.0.0",
        oci_version_max: OCI_VERSION,
        hooks: [
            "prestart",
            "createRuntime",
            "createContainer",
            "startContainer",
            "poststart",
            "poststop",
        ],
        mount_options: crate::spec::known_mount_options(),
        linux: Linux {
            namespaces: [
                "cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts",
            ],
            capabilities: crate::spec::CAPABILITY_NAMES.to_vec(),
            cgroup: Cgroup {
                v1: true,
                v2: true,
                systemd: true,
                systemd_user: true,
                rdma: true,
            },
            seccomp: Seccomp {
                enabled: true,
                actions: [
                    "SCMP_ACT_ALLOW",
                    "SCMP_ACT_ERRNO",
                    "SCMP_ACT_KILL",
                    "SCMP_ACT_KILL_PROCESS",
                    "SCMP_ACT_KILL_THREAD",
                    "SCMP_ACT_LOG",
                    "SCMP_ACT_NOTIFY",
                    "SCMP_ACT_TRACE",
                    "SCMP_ACT_TRAP",
                ],
                operators: [
                    "SCMP_CMP_EQ",
                    "SCMP_CMP_GE",
                    "SCMP_CMP_GT",
                    "SCMP_CMP_LE",
                    "SCMP_CMP_LT",
                    "SCMP_CMP_MASKED_EQ",
                    "SCMP_CMP_NE",
                ],
                archs,
                known_flags: flags,
                supported_flags: supported.to_vec(),
            },
            apparmor: Switch { enabled: true },
            selinux: Switch { enabled: true },
            memory_policy: MemoryPolicy {
                modes: crate::spec::memory_policy_modes(),
                flags: crate::spec::memory_policy_flags(),
            },
            intel_rdt: IntelRdt {
                enabled: true,
                schemata: true,
                monitoring: true,
            },
            net_devices: Switch { enabled: true },
            mount_extensions: MountExtensions {
                idmap: Switch { enabled: true },
            },
        },
        annotations: BTreeMap::from([("runc-lite.version", env!("CARGO_PKG_VERSION"))]),
        // Properties of the unit that the systemd driver makes.
        potentially_unsafe_config_annotations: ["org.systemd.property."],
    }
}
