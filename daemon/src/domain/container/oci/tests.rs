//! Whole documents from whole requests: the process here, mounts and confinement below.

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::domain::container::cdi::{CdiNode, HookEdit, MountEdit};
use crate::domain::container::seccomp::Arch;
use crate::domain::container::spec::{
    ContainerSecurity, ContainerSpec, GroupsPolicy, ImageSpec, ImageVolume, MountOption,
    MountPropagation, MountSpec, UserRequest,
};
use crate::domain::container::user::ResolvedUser;
use crate::domain::failure::Failure;
use crate::domain::pod::spec::{NamespaceModes, PodMetadata, PodSecurity};
use crate::domain::resources::LinuxResources;
use crate::domain::runtime_handler::AnnotationPatterns;
use crate::domain::selinux::{Contexts, Labels, Selinux};

mod confinement;
mod mounts;

/// A pod as the kubelet asks for one.
pub(super) fn pod() -> PodSpec {
    PodSpec {
        metadata: PodMetadata {
            name: "web".into(),
            namespace: "default".into(),
            uid: "6b1e".into(),
            attempt: 0,
        },
        runtime_handler: String::new(),
        hostname: "web".into(),
        log_directory: String::new(),
        dns: None,
        port_mappings: Vec::new(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::from([("org.systemd.property.KillMode".into(), "none".into())]),
        cgroup_parent: String::new(),
        sysctls: BTreeMap::new(),
        namespaces: NamespaceModes::default(),
        security: PodSecurity::default(),
        overhead: None,
        resources: None,
    }
}

fn container() -> ContainerSpec {
    ContainerSpec {
        name: "nginx".into(),
        attempt: 0,
        image: ImageSpec {
            image: "sha256:1234".into(),
            ..ImageSpec::default()
        },
        command: Vec::new(),
        args: Vec::new(),
        working_dir: String::new(),
        envs: Vec::new(),
        mounts: Vec::new(),
        devices: Vec::new(),
        cdi_devices: Vec::new(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::from([("run.oci.keep_original_groups".into(), "1".into())]),
        log_path: String::new(),
        stdin: false,
        stdin_once: false,
        tty: false,
        stop_signal: None,
        resources: LinuxResources::default(),
        security: ContainerSecurity {
            user: UserRequest::Image,
            groups_policy: GroupsPolicy::Merge,
            ..ContainerSecurity::default()
        },
    }
}

fn volume(container_path: &str) -> MountSpec {
    MountSpec {
        container_path: container_path.into(),
        host_path: "/var/lib/volume".into(),
        image: None,
        readonly: false,
        recursive_read_only: false,
        selinux_relabel: false,
        propagation: MountPropagation::Private,
        ids: None,
        options: BTreeSet::new(),
    }
}

fn device(path: &str, permissions: &str) -> HostDevice {
    HostDevice {
        container_path: path.into(),
        kind: DeviceKind::Char,
        major: 10,
        minor: 229,
        mode: 0o20_666,
        uid: 0,
        gid: 44,
        permissions: permissions.into(),
    }
}

/// Everything an input borrows.
struct Fixture {
    pod: PodSpec,
    container: ContainerSpec,
    image: ImageDefaults,
    user: ResolvedUser,
    namespaces: NamespacePaths,
    pid: PidNamespace,
    files: PodFiles,
    image_volumes: Vec<PathBuf>,
    devices: Vec<HostDevice>,
    injection: Injection,
    host: HostFacts,
    profile: Option<Seccomp>,
    labels: Option<Labels>,
    annotations: AnnotationPatterns,
}

impl Fixture {
    fn new() -> Self {
        let caps = ["CAP_CHOWN", "CAP_KILL", "CAP_SYS_ADMIN", "CAP_SYS_CHROOT"];
        Self {
            pod: pod(),
            container: container(),
            image: ImageDefaults {
                entrypoint: vec!["/entry".into()],
                cmd: vec!["nginx".into(), "-g".into()],
                ..ImageDefaults::default()
            },
            user: ResolvedUser {
                uid: 101,
                gid: 102,
                additional_gids: vec![7, 102],
                home: Some("/home/nginx".into()),
                name: Some("nginx".into()),
            },
            namespaces: NamespacePaths {
                user: None,
                net: Some("/run/ns/net".into()),
                ipc: Some("/run/ns/ipc".into()),
                uts: Some("/run/ns/uts".into()),
            },
            pid: PidNamespace::Own,
            files: PodFiles {
                resolv_conf: Some("/run/pod/resolv.conf".into()),
                hostname: Some("/run/pod/hostname".into()),
                hosts: None,
                shm: Some("/run/pod/shm".into()),
            },
            image_volumes: Vec::new(),
            devices: Vec::new(),
            injection: Injection::default(),
            host: HostFacts {
                arch: Arch::X86_64,
                hostname: "node-1".into(),
                cgroup_v2: true,
                swap: true,
                seccomp: true,
                oom_score_adj_floor: -1000,
                bounding_capabilities: caps.iter().map(|&name| name.to_owned()).collect(),
                ..HostFacts::default()
            },
            profile: None,
            labels: None,
            annotations: AnnotationPatterns::default(),
        }
    }

    fn document(&self) -> Result<Document, OciError> {
        container_document(&ContainerInput {
            pod: &self.pod,
            pod_id: "pod-1",
            container: &self.container,
            image: &self.image,
            user: &self.user,
            namespaces: &self.namespaces,
            pid: &self.pid,
            cgroups_path: "/kubepods/pod6b1e/c1",
            pids_limit: None,
            files: &self.files,
            image_volumes: &self.image_volumes,
            devices: &self.devices,
            labels: self.labels.as_ref(),
            injection: &self.injection,
            host: &self.host,
            seccomp_profile: self.profile.as_ref(),
            annotations: &self.annotations,
        })
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.document().unwrap().to_json()).unwrap()
    }

    fn refusal(&self) -> String {
        self.document().unwrap_err().to_string()
    }

    fn destinations(&self) -> Vec<String> {
        self.document()
            .unwrap()
            .spec
            .mounts
            .into_iter()
            .map(|mount| mount.destination)
            .collect()
    }

    fn options(&self, destination: &str) -> String {
        let mounts = self.document().unwrap().spec.mounts;
        let found: Vec<_> = mounts
            .iter()
            .filter(|mount| mount.destination == destination)
            .collect();
        assert_eq!(found.len(), 1, "{destination} in {mounts:?}");
        found[0].options.join(",")
    }

    fn privileged() -> Self {
        let mut fixture = Self::new();
        fixture.pod.security.privileged = true;
        fixture.container.security.privileged = true;
        fixture
    }
}

fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(|&text| text.to_owned()).collect()
}

#[test]
fn a_plain_container_is_exactly_this() {
    let mut fixture = Fixture::new();
    fixture.container.security.masked_paths = texts(&["/proc/kcore"]);
    fixture.container.security.readonly_paths = texts(&["/proc/sys"]);
    fixture.container.security.no_new_privs = true;
    fixture.container.resources.cpu_shares = 100;
    let kernel = ["nosuid", "noexec", "nodev"];
    let caps = ["CAP_CHOWN", "CAP_KILL", "CAP_SYS_CHROOT"];
    let rule = |major: u32, minor: Option<u32>| match minor {
        Some(minor) => {
            json!({"allow": true, "type": "c", "major": major, "minor": minor, "access": "rwm"})
        }
        None => json!({"allow": true, "type": "c", "major": major, "access": "rwm"}),
    };
    assert_eq!(
        fixture.json(),
        json!({
            "ociVersion": "1.1.0",
            "root": {"path": "rootfs", "readonly": false},
            "process": {
                "terminal": false,
                "user": {"uid": 101, "gid": 102, "additionalGids": [7, 102]},
                "args": ["/entry", "nginx", "-g"],
                "env": [
                    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                    "HOSTNAME=web",
                    "HOME=/home/nginx",
                ],
                "cwd": "/",
                "capabilities": {
                    "bounding": caps, "effective": caps, "permitted": caps, "inheritable": [], "ambient": [],
                },
                "noNewPrivileges": true,
                "oomScoreAdj": 0,
            },
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc", "options": kernel},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                 "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
                {"destination": "/sys", "type": "sysfs", "source": "sysfs",
                 "options": ["nosuid", "noexec", "nodev", "ro"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                 "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
                {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": kernel},
                {"destination": "/dev/shm", "type": "bind", "source": "/run/pod/shm",
                 "options": ["rbind", "rprivate", "rw"]},
                {"destination": "/etc/hostname", "type": "bind", "source": "/run/pod/hostname",
                 "options": ["rbind", "rprivate", "rw"]},
                {"destination": "/etc/resolv.conf", "type": "bind", "source": "/run/pod/resolv.conf",
                 "options": ["rbind", "rprivate", "rw"]},
                {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                 "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
            ],
            "annotations": {
                "io.kubernetes.cri.container-name": "nginx",
                "io.kubernetes.cri.container-type": "container",
                "io.kubernetes.cri.sandbox-id": "pod-1",
                "io.kubernetes.cri.sandbox-name": "web",
                "io.kubernetes.cri.sandbox-namespace": "default",
                "io.kubernetes.cri.sandbox-uid": "6b1e",
            },
            "linux": {
                "cgroupsPath": "/kubepods/pod6b1e/c1",
                "resources": {
                    "devices": [
                        {"allow": false, "access": "rwm"},
                        {"allow": true, "type": "c", "access": "m"},
                        {"allow": true, "type": "b", "access": "m"},
                        rule(1, Some(3)), rule(1, Some(5)), rule(1, Some(7)), rule(1, Some(8)),
                        rule(1, Some(9)), rule(5, Some(0)), rule(5, Some(1)), rule(5, Some(2)),
                        rule(136, None),
                    ],
                    "cpu": {"shares": 100},
                },
                "namespaces": [
                    {"type": "network", "path": "/run/ns/net"},
                    {"type": "ipc", "path": "/run/ns/ipc"},
                    {"type": "uts", "path": "/run/ns/uts"},
                    {"type": "pid"},
                    {"type": "mount"},
                    {"type": "cgroup"},
                ],
                "maskedPaths": ["/proc/kcore"],
                "readonlyPaths": ["/proc/sys"],
            },
        })
    );
}

#[test]
fn equal_inputs_are_equal_bytes() {
    let (one, two) = (Fixture::new(), Fixture::new());
    assert_eq!(
        one.document().unwrap().to_json(),
        two.document().unwrap().to_json()
    );
}

#[test]
fn command_and_arguments_as_kubernetes_documents_them() {
    for (command, args, expect) in [
        (vec![], vec![], vec!["/entry", "nginx", "-g"]),
        (vec!["/cmd"], vec![], vec!["/cmd"]),
        (vec![], vec!["a"], vec!["/entry", "a"]),
        (vec!["/cmd"], vec!["a"], vec!["/cmd", "a"]),
    ] {
        let mut fixture = Fixture::new();
        (fixture.container.command, fixture.container.args) = (texts(&command), texts(&args));
        assert_eq!(fixture.document().unwrap().spec.process.args, expect);
    }
    let mut fixture = Fixture::new();
    fixture.image.entrypoint = texts(&[""]);
    assert_eq!(
        fixture.document().unwrap().spec.process.args,
        ["nginx", "-g"]
    );
    fixture.image.cmd.clear();
    assert!(
        fixture
            .refusal()
            .starts_with("no command specified: image \"sha256:1234\"")
    );
    fixture.container.image.user_specified_image = "nginx:1".into();
    assert!(fixture.refusal().contains("\"nginx:1\""));
    fixture.container.command = texts(&["sh", "-c", "a\0b"]);
    assert_eq!(
        fixture.refusal(),
        "argument 2 of the command has a NUL byte"
    );
}

#[test]
fn environment_is_default_then_image_then_request() {
    let mut fixture = Fixture::new();
    fixture.container.tty = true;
    fixture.image.env = texts(&["PATH=/bin", "A=1", "B=x=y", "C=1", "C", "HOME=/img"]);
    fixture.container.envs = vec![
        ("A".into(), b"2".to_vec()),
        ("D".into(), b"".to_vec()),
        ("A".into(), b"3\n".to_vec()),
    ];
    assert_eq!(
        fixture.document().unwrap().spec.process.env,
        [
            "PATH=/bin",
            "TERM=xterm",
            "HOSTNAME=web",
            "A=3\n",
            "B=x=y",
            "HOME=/img",
            "D="
        ]
    );
    fixture.pod.hostname.clear();
    assert!(
        fixture
            .document()
            .unwrap()
            .spec
            .process
            .env
            .contains(&"HOSTNAME=node-1".to_owned())
    );
    (fixture.image.env, fixture.user.home) = (Vec::new(), None);
    assert!(
        fixture
            .document()
            .unwrap()
            .spec
            .process
            .env
            .contains(&"HOME=/".to_owned())
    );
}

#[test]
fn cve_2022_4318_variables_that_cannot_be_are_refused_by_name() {
    for (name, value) in [
        ("HOME", b"/root\nevil:x:0:0::/:/bin/sh".as_slice()),
        ("HOME", b"/\r"),
        ("KEY", b"a\0b"),
        ("KEY", b"\xff"),
        ("A=B", b""),
        ("N\0", b""),
        ("", b""),
    ] {
        let mut fixture = Fixture::new();
        fixture.container.envs = vec![(name.into(), value.to_vec())];
        assert!(
            fixture
                .refusal()
                .starts_with(&format!("environment variable {name:?}: ")),
            "{name:?}"
        );
        if let Ok(value) = str::from_utf8(value)
            && name == "HOME"
        {
            let mut fixture = Fixture::new();
            fixture.image.env = vec![format!("HOME={value}")];
            assert!(
                fixture
                    .refusal()
                    .starts_with("environment variable \"HOME\"")
            );
        }
    }
}

#[test]
fn working_directory_of_the_request_then_the_image() {
    let mut fixture = Fixture::new();
    fixture.image.working_dir = "/app/".into();
    assert_eq!(fixture.document().unwrap().spec.process.cwd, "/app");
    fixture.container.working_dir = "/srv".into();
    assert_eq!(fixture.document().unwrap().spec.process.cwd, "/srv");
    fixture.container.working_dir = "srv".into();
    assert_eq!(
        fixture.refusal(),
        "working_dir \"srv\": not an absolute path"
    );
    (fixture.container.working_dir, fixture.image.working_dir) =
        (String::new(), "/proc/self/fd/7/..".into());
    assert!(fixture.refusal().starts_with("WORKDIR of the image"));
}

#[test]
fn namespaces_follow_the_pod_and_host_ones_are_not_named() {
    let kinds = |fixture: &Fixture| -> Vec<String> {
        let namespaces = fixture.document().unwrap().spec.linux.namespaces;
        namespaces
            .into_iter()
            .map(|namespace| format!("{}:{}", namespace.kind, namespace.path.unwrap_or_default()))
            .collect()
    };
    let mut fixture = Fixture::new();
    fixture.namespaces = NamespacePaths::default();
    (fixture.pid, fixture.host.cgroup_v2) = (PidNamespace::Host, false);
    assert_eq!(kinds(&fixture), ["mount:"]);
    fixture.pid = PidNamespace::Join(PathBuf::from("/proc/77/ns/pid"));
    assert_eq!(kinds(&fixture), ["pid:/proc/77/ns/pid", "mount:"]);
    assert!(
        fixture.json().get("hostname").is_none(),
        "a joined host name is never set again"
    );
}

#[test]
fn the_sandbox_process_is_small_and_powerless() {
    let fixture = Fixture::new();
    let document = sandbox_document(&SandboxInput {
        pod: &fixture.pod,
        pod_id: "pod-1",
        runtime_binary: Path::new("/usr/libexec/axil/runc-lite"),
        namespaces: &fixture.namespaces,
        cgroups_path: "/kubepods/pod6b1e/pod-1",
        host: &fixture.host,
    })
    .unwrap();
    let spec = &document.spec;
    assert_eq!(spec.process.args, ["/pause"]);
    assert_eq!(
        (spec.process.user.uid, spec.process.user.gid),
        (65535, 65535)
    );
    assert_eq!(spec.process.capabilities, ProcessCapabilities::default());
    assert!(spec.process.no_new_privileges && spec.root.readonly && spec.linux.seccomp.is_some());
    assert_eq!(spec.process.oom_score_adj, -998);
    assert_eq!(
        spec.annotations["io.kubernetes.cri.container-type"],
        "sandbox"
    );
    let pause = spec.mounts.last().unwrap();
    assert_eq!(
        (pause.destination.as_str(), pause.source.as_str()),
        ("/pause", "/usr/libexec/axil/runc-lite")
    );
    let json: Value = serde_json::from_slice(&document.to_json()).unwrap();
    assert_eq!(json["linux"]["namespaces"][3], json!({"type": "pid"}));
    assert!(
        json["process"]["capabilities"]["bounding"]
            .as_array()
            .unwrap()
            .is_empty()
    );
}

proptest! {
    /// Whatever image and request say, the environment has each name once, as text, and the request wins.
    #[test]
    fn environment_has_each_name_once(
        image in prop::collection::vec("[A-C]{0,2}=?[a-z\u{e4}\n]{0,3}", 0..8),
        request in prop::collection::vec(("[A-C]{1,2}", "[a-z\n]{0,3}"), 0..8),
    ) {
        let mut fixture = Fixture::new();
        let nameless = image.iter().any(|entry| entry.starts_with('='));
        fixture.image.env = image;
        fixture.container.envs =
            request.iter().map(|(name, value)| (name.clone(), value.clone().into_bytes())).collect();
        match fixture.document() {
            Err(error) => prop_assert!(nameless, "{}", error),
            Ok(document) => {
                let env = document.spec.process.env;
                let names: BTreeSet<_> = env.iter().map(|entry| entry.split_once('=').unwrap().0).collect();
                prop_assert_eq!(names.len(), env.len());
                let last: BTreeMap<_, _> = request.into_iter().collect();
                for (name, value) in last {
                    let entry = format!("{name}={value}");
                    prop_assert!(env.contains(&entry), "{}", entry);
                }
            }
        }
    }
}
