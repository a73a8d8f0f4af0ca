//! What a container may do: capabilities, devices, seccomp, AppArmor, SELinux.

use super::*;

#[test]
fn privileged_containers_see_the_host_and_need_a_privileged_pod() {
    let mut fixture = Fixture::privileged();
    fixture.host.all_devices = vec![device("/dev/fuse", "rwm"), device("/dev/kvm", "rwm")];
    fixture.devices = vec![HostDevice {
        gid: 99,
        ..device("/dev/kvm", "rw")
    }];
    fixture.host.cgroup2_options = texts(&["nsdelegate"]);
    fixture.container.security.masked_paths = texts(&["/proc/kcore"]);
    fixture.container.security.seccomp = SecurityProfile::RuntimeDefault;
    let spec = fixture.document().unwrap().spec;
    assert_eq!(spec.process.capabilities.bounding.len(), 4);
    assert!(spec.linux.seccomp.is_none() && spec.linux.masked_paths.is_empty());
    assert_eq!(spec.linux.resources.devices, [DeviceRule::all(true)]);
    let devices: Vec<_> = spec
        .linux
        .devices
        .iter()
        .map(|node| (node.path.as_str(), node.gid, node.file_mode))
        .collect();
    assert_eq!(devices, [("/dev/fuse", 44, 0o666), ("/dev/kvm", 99, 0o666)]);
    assert!(
        spec.linux
            .namespaces
            .iter()
            .all(|namespace| namespace.kind != "cgroup")
    );
    assert_eq!(fixture.options("/sys"), "nosuid,noexec,nodev,rw");
    assert_eq!(
        fixture.options("/sys/fs/cgroup"),
        "nosuid,noexec,nodev,relatime,rw,nsdelegate"
    );
    fixture.pod.security.privileged = false;
    assert_eq!(
        fixture.refusal(),
        "no privileged container allowed: pod \"web\" is not privileged"
    );
}

#[test]
fn devices_are_made_and_allowed_with_their_permissions() {
    let mut fixture = Fixture::new();
    fixture.host.all_devices = vec![device("/dev/kvm", "rwm")];
    fixture.devices = vec![device("/dev/fuse", "rw")];
    let linux = fixture.document().unwrap().spec.linux;
    assert_eq!(linux.devices.len(), 1);
    let rule = linux.resources.devices.last().unwrap();
    assert_eq!(
        (rule.allow, rule.major, rule.minor, rule.access.as_str()),
        (true, Some(10), Some(229), "rw")
    );
    for permissions in ["", "x", "rwmr", "RW"] {
        fixture.devices = vec![device("/dev/fuse", permissions)];
        assert!(
            fixture
                .refusal()
                .contains(&format!("permissions {permissions:?}"))
        );
    }
    fixture.devices = vec![device("dev/fuse", "r")];
    assert!(fixture.refusal().starts_with("devices.container_path"));
}

#[test]
fn cve_2023_2431_seccomp_is_what_was_asked_for_or_an_error() {
    let mut fixture = Fixture::new();
    let seccomp = |fixture: &Fixture| {
        fixture
            .document()
            .map(|document| document.spec.linux.seccomp)
    };
    for profile in [SecurityProfile::Unset, SecurityProfile::Unconfined] {
        fixture.container.security.seccomp = profile;
        assert_eq!(seccomp(&fixture), Ok(None));
    }
    fixture.container.security.seccomp = SecurityProfile::RuntimeDefault;
    let default = seccomp(&fixture).unwrap().unwrap();
    assert!(
        default.syscalls[0].names.contains(&"chroot".to_owned()),
        "by the container's capabilities"
    );
    assert!(
        !default.syscalls[0].names.contains(&"mount".to_owned()),
        "not by the host's"
    );
    fixture.container.security.seccomp = SecurityProfile::Localhost("/profiles/a.json".into());
    assert!(fixture.refusal().contains("\"/profiles/a.json\""));
    fixture.profile = Some(default.clone());
    assert_eq!(seccomp(&fixture), Ok(Some(default)));
    fixture.host.seccomp = false;
    assert_eq!(
        fixture.document().unwrap_err(),
        OciError::SeccompUnsupported
    );
}

#[test]
fn apparmor_is_applied_where_it_is_on() {
    let mut fixture = Fixture::new();
    let profile = |fixture: &Fixture, asked: SecurityProfile| {
        let mut container = fixture.container.clone();
        container.security.apparmor = asked;
        let fixture = Fixture {
            container,
            host: fixture.host.clone(),
            ..Fixture::new()
        };
        fixture
            .document()
            .map(|document| document.spec.process.apparmor_profile)
    };
    use SecurityProfile::{Localhost, RuntimeDefault, Unconfined, Unset};
    for asked in [Unset, RuntimeDefault, Unconfined] {
        assert_eq!(profile(&fixture, asked), Ok(None));
    }
    assert!(
        profile(&fixture, Localhost("p".into()))
            .unwrap_err()
            .to_string()
            .contains("\"p\"")
    );
    fixture.host.apparmor = true;
    assert_eq!(profile(&fixture, Unset), Ok(None));
    assert_eq!(
        profile(&fixture, RuntimeDefault),
        Err(OciError::AppArmorDefault)
    );
    fixture.host.apparmor_default = Some("axil-default".into());
    assert_eq!(profile(&fixture, Unset), Ok(Some("axil-default".into())));
    assert_eq!(
        profile(&fixture, RuntimeDefault),
        Ok(Some("axil-default".into()))
    );
    assert_eq!(profile(&fixture, Unconfined), Ok(Some("unconfined".into())));
    assert_eq!(
        profile(&fixture, Localhost("p".into())),
        Ok(Some("p".into()))
    );
}

#[test]
fn selinux_contexts_are_those_of_the_container() {
    let mut fixture = Fixture::new();
    let document = fixture.json();
    assert!(document["process"].get("selinuxLabel").is_none());
    assert!(document["linux"].get("mountLabel").is_none());
    let text = "process = \"u:r:c_t:s0\"\nfile = \"u:object_r:f_t:s0\"\n";
    let on = Selinux::On(Contexts::parse(text).unwrap());
    fixture.labels = on.labels(None, Some("s0:c1,c2")).unwrap();
    let document = fixture.json();
    assert_eq!(document["process"]["selinuxLabel"], "u:r:c_t:s0:c1,c2");
    assert_eq!(document["linux"]["mountLabel"], "u:object_r:f_t:s0:c1,c2");
    // Nothing confines a privileged one.
    let labels = fixture.labels.take();
    let mut fixture = Fixture::privileged();
    fixture.labels = labels;
    let document = fixture.json();
    assert!(document["process"].get("selinuxLabel").is_none());
    assert_eq!(document["linux"]["mountLabel"], "u:object_r:f_t:s0:c1,c2");
}

#[test]
fn a_pod_with_a_user_namespace_gives_it_to_its_containers() {
    use crate::domain::pod::user_namespace::{IdMapping, IdMappings, UserNamespace};
    let ids = |host| {
        let run = IdMapping {
            container: 0,
            host,
            length: 1000,
        };
        UserNamespace::Pod(IdMappings {
            uids: vec![run],
            gids: vec![run],
        })
    };
    let mut fixture = Fixture::new();
    fixture.pod.namespaces.user = ids(65536);
    fixture.namespaces.user = Some("/run/ns/user".into());
    let json = fixture.json();
    let namespaces = &json["linux"]["namespaces"];
    assert_eq!(
        namespaces[0],
        json!({"type": "user", "path": "/run/ns/user"})
    );
    let run = json!([{"containerID": 0, "hostID": 65536, "size": 1000}]);
    assert_eq!(json["linux"]["uidMappings"], run);
    assert_eq!(json["linux"]["gidMappings"], run);

    fixture.container.security.namespaces.user = ids(65536);
    assert!(fixture.document().is_ok());
    fixture.container.security.namespaces.user = ids(70000);
    assert!(fixture.refusal().contains("userns_options"));
    fixture.container.security.namespaces.user = UserNamespace::Node;
    assert!(fixture.refusal().contains("userns_options"));
    fixture.container.security.namespaces.user = UserNamespace::Unset;
    fixture.user.uid = 1000;
    assert!(fixture.refusal().contains("user 1000"));
    fixture.user.uid = 5;
    fixture.user.additional_gids = vec![7, 5000];
    assert!(fixture.refusal().contains("group 5000"));
    fixture.pod.namespaces.user = UserNamespace::Node;
    fixture.container.security.namespaces.user = ids(65536);
    assert!(fixture.refusal().contains("userns_options"));
}

#[test]
fn ids_of_a_volume_are_mapped_with_what_is_below() {
    use crate::domain::pod::user_namespace::{IdMapping, IdMappings};
    let run = IdMapping {
        container: 0,
        host: 65536,
        length: 65536,
    };
    let mut fixture = Fixture::new();
    fixture.container.mounts = vec![MountSpec {
        ids: Some(IdMappings {
            uids: vec![run],
            gids: vec![run],
        }),
        ..volume("/data")
    }];
    let json = fixture.json();
    let mounts = json["mounts"].as_array().unwrap();
    let mount = mounts
        .iter()
        .find(|mount| mount["destination"] == "/data")
        .unwrap();
    assert_eq!(
        mount["options"],
        json!(["rbind", "rprivate", "rw", "ridmap"])
    );
    assert_eq!(mount["uidMappings"][0]["hostID"], 65536);
    assert_eq!(mount["gidMappings"][0]["size"], 65536);
    let proc = mounts
        .iter()
        .find(|mount| mount["destination"] == "/proc")
        .unwrap();
    assert!(proc.get("uidMappings").is_none());
}

#[test]
fn what_cdi_devices_change_is_in_the_document_with_its_device_rules() {
    let mut fixture = Fixture::new();
    fixture.devices = vec![device("/dev/kvm", "rw")];
    fixture.container.envs = vec![("GPU".into(), b"no".to_vec())];
    fixture.container.mounts = vec![volume("/usr/lib/gpu")];
    let node = |path: &str, kind, access: &str, uid| CdiNode {
        path: path.into(),
        kind,
        major: 195,
        minor: 7,
        mode: 0o660,
        uid,
        gid: None,
        access: access.into(),
    };
    fixture.injection = Injection {
        env: vec!["GPU=a=b".into()],
        nodes: vec![
            node("/dev/kvm", DeviceKind::Char, "r", Some(0)),
            node("/dev/gpu-none", DeviceKind::Block, "", None),
            node("/dev/gpu-pipe", DeviceKind::Fifo, "rwm", None),
        ],
        mounts: vec![MountEdit {
            host_path: "/opt/gpu".into(),
            container_path: "/usr/lib/gpu/".into(),
            kind: None,
            options: vec!["ro".into()],
        }],
        hooks: vec![HookEdit {
            hook_name: "createContainer".into(),
            path: "/bin/hook".into(),
            args: vec!["hook".into()],
            env: Vec::new(),
            timeout: Some(3),
        }],
        additional_gids: vec![0, 44, 7, 44],
        ..Injection::default()
    };
    let json = fixture.json();
    let env = json["process"]["env"].as_array().unwrap();
    assert!(env.contains(&"GPU=a=b".into()) && !env.contains(&"GPU=no".into()));
    assert_eq!(
        json["process"]["user"]["additionalGids"],
        json!([7, 102, 44])
    );
    assert_eq!(
        json["hooks"],
        json!({"createContainer": [{"path": "/bin/hook", "args": ["hook"], "timeout": 3}]})
    );
    let nodes: Vec<_> = json["linux"]["devices"].as_array().unwrap().clone();
    let nodes: Vec<_> = nodes
        .iter()
        .map(|node| {
            format!(
                "{} {} {} {}",
                node["path"], node["type"], node["major"], node["uid"]
            )
        })
        .collect();
    assert_eq!(
        nodes,
        [
            r#""/dev/gpu-none" "b" 195 101"#,
            r#""/dev/gpu-pipe" "p" 195 101"#,
            r#""/dev/kvm" "c" 195 0"#,
        ]
    );
    let rules = json["linux"]["resources"]["devices"].as_array().unwrap();
    let of_cdi: Vec<_> = rules.iter().filter(|rule| rule["major"] == 195).collect();
    let allowed = json!({"allow": true, "type": "c", "major": 195, "minor": 7, "access": "r"});
    assert_eq!(of_cdi, [&allowed]);
    let mounts = json["mounts"].as_array().unwrap();
    let at = mounts
        .iter()
        .filter(|mount| mount["destination"] == "/usr/lib/gpu");
    let mount = json!({"destination": "/usr/lib/gpu", "type": "bind", "source": "/opt/gpu",
        "options": ["ro", "rbind"]});
    assert_eq!(at.collect::<Vec<_>>(), [&mount]);
    assert_eq!(json["ociVersion"], "1.1.0");

    fixture.injection = Injection {
        net_devices: BTreeMap::from([("eth7".into(), "data".into())]),
        intel_rdt: Some(IntelRdt {
            clos_id: Some("gold".into()),
            ..IntelRdt::default()
        }),
        ..Injection::default()
    };
    let json = fixture.json();
    assert_eq!(
        json["linux"]["netDevices"],
        json!({"eth7": {"name": "data"}})
    );
    assert_eq!(json["linux"]["intelRdt"], json!({"closID": "gold"}));
    assert_eq!(json["ociVersion"], "1.3.0");
}
