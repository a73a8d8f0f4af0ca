//! Tests of the plan: what config.json is refused for, and what it becomes.

use serde_json::{Value, json};

use super::*;
use crate::plan::{CgroupPath, MountKind};
use crate::sys::MountAttributes;

/// A document that is accepted as it is.
fn good() -> Value {
    json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs"},
        "process": {"args": ["true"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
        "mounts": [],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "uts"}, {"type": "ipc"}],
            "resources": {"memory": {}, "cpu": {}}
        }
    })
}

fn plan_of(document: Value) -> Result<Plan, SpecError> {
    let mut warnings = Vec::new();
    plan(serde_json::from_value(document).unwrap(), &mut warnings)
}

/// Sets the value at a JSON pointer, whose parent exists.
fn with(pointer: &str, value: Value) -> Value {
    let mut document = good();
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    let parent = document.pointer_mut(parent).unwrap();
    parent
        .as_object_mut()
        .unwrap()
        .insert(name.to_owned(), value);
    document
}

/// The document with the change is refused, and the message names the field.
fn refused(pointer: &str, value: Value, field: &str) {
    let shown = value.to_string();
    match plan_of(with(pointer, value)) {
        Ok(_) => panic!("{pointer} = {shown} was accepted"),
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains(field), "{text:?} does not name {field}");
        }
    }
}

#[test]
fn the_good_document_is_good() {
    let plan = plan_of(good()).unwrap();
    assert_eq!(plan.devices.len(), 6);
    assert_eq!(plan.process.umask, 0o022);
    assert_eq!(plan.cgroup_path, CgroupPath::Relative(String::new()));
}

#[test]
fn bad_values_are_refused_by_name() {
    refused("/ociVersion", json!("2.0.0"), "ociVersion");
    refused("/ociVersion", json!(""), "ociVersion");
    refused("/root", json!(null), "root");
    refused("/root/path", json!(""), "root.path");
    refused("/process", json!(null), "process");
    refused("/process/args", json!([]), "process.args");
    refused("/process/args", json!(["a\0b"]), "process.args[0]");
    refused("/process/env", json!(["A=1", "novalue"]), "process.env[1]");
    refused("/process/env", json!(["=x"]), "process.env[0]");
    refused("/process/cwd", json!("relative"), "process.cwd");
    refused(
        "/process/user",
        json!({"uid": u32::MAX}),
        "process.user.uid",
    );
    refused(
        "/process/user",
        json!({"additionalGids": [1, u32::MAX]}),
        "additionalGids",
    );
    refused("/process/oomScoreAdj", json!(1001), "process.oomScoreAdj");
    refused(
        "/process/rlimits",
        json!([{"type": "RLIMIT_X", "hard": 1, "soft": 1}]),
        "rlimits[0]",
    );
    refused(
        "/process/rlimits",
        json!([{"type": "RLIMIT_NOFILE", "hard": 1, "soft": 2}]),
        "rlimits[0].soft",
    );
    refused(
        "/process/scheduler",
        json!({"policy": "SCHED_SOMETIMES"}),
        "process.scheduler.policy",
    );
    refused("/linux/namespaces", json!([{"type": "pid"}]), "mount");
    refused(
        "/linux/namespaces",
        json!([{"type": "mount"}, {"type": "mnt"}]),
        "namespaces[1].type",
    );
    refused(
        "/linux/namespaces",
        json!([{"type": "mount"}, {"type": "mount"}]),
        "namespaces[1]",
    );
    refused(
        "/linux/namespaces",
        json!([{"type": "mount"}, {"type": "user"}]),
        "linux.uidMappings",
    );
    refused(
        "/linux/namespaces",
        json!([{"type": "mount"}, {"type": "network", "path": "ns"}]),
        "namespaces[1].path",
    );
    refused("/linux/uidMappings", json!([{}]), "uidMappings");
    refused(
        "/linux/intelRdt",
        json!({"closID": "a/b"}),
        "linux.intelRdt.closID",
    );
    refused("/linux/netDevices", json!({"eth0": {}}), "netDevices");
    refused("/linux/cgroupsPath", json!("/a/../b"), "cgroupsPath");
    refused("/linux/cgroupsPath", json!("/"), "cgroupsPath");
    refused("/linux/maskedPaths", json!(["proc"]), "maskedPaths[0]");
    refused("/linux/readonlyPaths", json!(["/a/.."]), "readonlyPaths[0]");
    refused(
        "/linux/rootfsPropagation",
        json!("sideways"),
        "rootfsPropagation",
    );
    refused(
        "/linux/devices",
        json!([{"path": "x", "type": "c"}]),
        "devices[0].path",
    );
    refused(
        "/linux/devices",
        json!([{"path": "/dev/x", "type": "z"}]),
        "devices[0].type",
    );
    refused(
        "/linux/devices",
        json!([{"path": "/dev/x", "type": "c", "major": -1, "minor": 0}]),
        "devices[0].major",
    );
    refused(
        "/linux/resources/devices",
        json!([{"allow": true, "access": "rwx"}]),
        "resources.devices[0].access",
    );
    refused(
        "/linux/resources/memory",
        json!({"limit": 100, "swap": 50}),
        "memory.swap",
    );
    refused("/linux/resources/unified", json!({"../x": "1"}), "unified");
    refused(
        "/linux/resources/unified",
        json!({"cgroup.procs": "1"}),
        "unified",
    );
    refused(
        "/linux/personality",
        json!({"domain": "BSD"}),
        "personality.domain",
    );
    refused(
        "/hooks",
        json!({"prestart": [{"path": "x"}]}),
        "hooks.prestart[0].path",
    );
    refused(
        "/hooks",
        json!({"poststop": [{"path": "/x", "timeout": 0}]}),
        "hooks.poststop[0].timeout",
    );
}

#[test]
fn versions_of_the_specification_are_told_apart() {
    for good in [
        "1.0.0",
        "1.0.2-dev",
        "1.1.0+dev",
        "1.2.1",
        "1.3.0",
        "1.3.1-rc.1+build.5",
    ] {
        let mut warnings = Vec::new();
        let document = serde_json::from_value(with("/ociVersion", json!(good))).unwrap();
        plan(document, &mut warnings).unwrap();
        assert!(warnings.is_empty(), "{good}: {warnings:?}");
    }
    let mut warnings = Vec::new();
    let document = serde_json::from_value(with("/ociVersion", json!("1.4.0"))).unwrap();
    plan(document, &mut warnings).unwrap();
    assert!(warnings[0].contains("newer than 1.3"), "{warnings:?}");
    for bad in [
        "",
        "1",
        "1.0",
        "1.x.0",
        "1.0.0.0",
        "01.0.0",
        "1.0.0-",
        "1.0.0+",
        "1.0.0-a..b",
        "v1.0.0",
        "0.9.0",
        "2.0.0",
        "1.0.0 ",
        "1.+1.0",
        "99999999999999999999.0.0",
    ] {
        refused("/ociVersion", json!(bad), "ociVersion");
    }
}

#[test]
fn a_key_that_comes_twice_is_refused() {
    let twice = [
        r#"{"ociVersion": "1.0.0", "ociVersion": "1.0.1"}"#,
        r#"{"annotations": {"a": "1", "a": "2"}}"#,
        r#"{"linux": {"sysctl": {"kernel.shmmax": "1", "kernel.shmmax": "2"}}}"#,
        r#"{"linux": {"netDevices": {"a": {}, "a": {}}}}"#,
        r#"{"linux": {"resources": {"unified": {"x": "1", "x": "2"}}}}"#,
    ];
    for text in twice {
        let error = serde_json::from_str::<Config>(text)
            .unwrap_err()
            .to_string();
        assert!(error.contains("duplicate"), "{error}");
    }
    refused("/annotations", json!({"": "x"}), "annotations");
}

#[test]
fn a_host_name_needs_a_uts_namespace() {
    assert!(plan_of(with("/hostname", json!("box"))).is_ok());
    refused("/hostname", json!("x".repeat(65)), "hostname");
    let mut shared = with("/hostname", json!("box"));
    shared["linux"]["namespaces"] = json!([{"type": "mount"}]);
    assert!(
        plan_of(shared)
            .unwrap_err()
            .to_string()
            .contains("hostname")
    );
}

#[test]
fn only_namespaced_sysctls_pass() {
    let sysctl = |name: &str| plan_of(with("/linux/sysctl", json!({name: "1"})));
    assert_eq!(
        sysctl("kernel.shm_rmid_forced").unwrap().sysctls,
        [("kernel/shm_rmid_forced".to_owned(), "1".to_owned())]
    );
    assert!(sysctl("fs.mqueue.msg_max").is_ok());
    for bad in [
        "kernel.core_pattern",
        "vm.swappiness",
        "net.ipv4.ip_forward",
        "kernel.shmmax/../x",
    ] {
        assert!(sysctl(bad).is_err(), "{bad}");
    }
    let mut networked = with(
        "/linux/sysctl",
        json!({"net/ipv4/conf/eth0.1/forwarding": "1"}),
    );
    networked["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "network"}]);
    assert_eq!(
        plan_of(networked).unwrap().sysctls[0].0,
        "net/ipv4/conf/eth0.1/forwarding"
    );
    assert_eq!(
        sysctl_path("net.ipv4.conf.eth0/1.forwarding"),
        "net/ipv4/conf/eth0.1/forwarding"
    );
}

fn mount(value: Value) -> Result<crate::plan::MountPlan, SpecError> {
    plan_of(with("/mounts", json!([value]))).map(|mut plan| plan.mounts.remove(0))
}

#[test]
fn mount_options_become_attributes() {
    let planned = mount(json!({
        "destination": "/a/../b/", "source": "/src", "type": "none",
        "options": ["rbind", "ro", "nosuid", "noatime", "rro", "rslave", "private"]
    }))
    .unwrap();
    assert_eq!(planned.destination, "/b");
    assert_eq!(
        planned.kind,
        MountKind::Bind {
            source: "/src".into(),
            recursive: true,
            replaces: true,
        }
    );
    assert_eq!(
        planned.attributes.set,
        MountAttributes::RDONLY | MountAttributes::NOSUID | MountAttributes::NOATIME
    );
    assert_eq!(planned.attributes.clear, MountAttributes::ATIME_MASK);
    assert_eq!(planned.recursive_attributes.set, MountAttributes::RDONLY);
    assert_eq!(planned.propagation.len(), 2);
    assert!(planned.propagation[0].recursive && !planned.propagation[1].recursive);

    // `rslave` is no attribute. `atime` takes back, it does not choose.
    for (options, replaces, clear) in [
        (json!(["bind", "rslave"]), false, 0),
        (json!(["noatime", "bind", "atime"]), true, 0),
        (
            json!(["relatime", "bind", "atime"]),
            true,
            MountAttributes::ATIME_MASK,
        ),
    ] {
        let planned =
            mount(json!({"destination": "/b", "source": "/src", "options": options})).unwrap();
        assert_eq!(planned.attributes.clear, clear, "{options}");
        assert!(
            matches!(planned.kind, MountKind::Bind { replaces: found, .. } if found == replaces)
        );
    }

    let planned = mount(json!({
        "destination": "/t", "type": "tmpfs", "source": "tmpfs",
        "options": ["ro", "rw", "size=64k", "noswap", "relatime"]
    }))
    .unwrap();
    assert_eq!(planned.attributes.set, 0);
    let MountKind::New { parameters, .. } = planned.kind else {
        panic!()
    };
    assert_eq!(
        parameters,
        [
            ("size".to_owned(), Some("64k".to_owned())),
            ("noswap".to_owned(), None)
        ]
    );
}

#[test]
fn options_of_the_file_system_are_told_from_those_of_the_mount() {
    let planned = |options: Value| {
        let entry = json!({"destination": "/t", "type": "tmpfs", "options": options});
        match mount(entry).unwrap().kind {
            MountKind::New {
                parameters,
                copy_up,
                by_mount2,
                ..
            } => (parameters, copy_up, by_mount2),
            other => panic!("{other:?}"),
        }
    };
    let flag = |key: &str| (key.to_owned(), None);
    let pair = |key: &str, value: &str| (key.to_owned(), Some(value.to_owned()));
    let (parameters, copy_up, by_mount2) = planned(json!([
        "size=64k,mode=755",
        "sync",
        "tmpcopyup",
        "silent",
        "x-why",
        "noauto"
    ]));
    assert_eq!(
        parameters,
        [pair("size", "64k"), pair("mode", "755"), flag("sync")]
    );
    assert!(copy_up && by_mount2.is_none());
    let (parameters, _, _) = planned(json!([
        "lowerdir=a\\,b:c",
        "context=\"u:r:t:s0:c1,c2\"",
        "rootcontext=x"
    ]));
    assert_eq!(
        parameters,
        [
            pair("lowerdir", "a\\,b:c"),
            pair("context", "\"u:r:t:s0:c1,c2\""),
            pair("rootcontext", "x")
        ]
    );
    assert!(planned(json!(["iversion"])).2.unwrap().inode_versions);
    assert!(planned(json!(["iversion", "noiversion"])).2.is_none());
    let long = format!("lowerdir={}", "x".repeat(256));
    assert!(!planned(json!([long])).2.unwrap().inode_versions);
    let remount = json!({"destination": "/t", "options": ["remount", "size=1m", "nosuid"]});
    let kind = mount(remount).unwrap().kind;
    let parameters = vec![pair("size", "1m")];
    assert_eq!(kind, MountKind::Remount { parameters });
}

#[test]
fn new_file_systems_get_the_label_of_the_container() {
    let mut document = with(
        "/mounts",
        json!([{"destination": "/t", "type": "tmpfs"}, {"destination": "/proc", "type": "proc"}]),
    );
    document["linux"]["mountLabel"] = json!("u:r:t:s0:c1,c2");
    let plan = plan_of(document).unwrap();
    let label = Some("u:r:t:s0:c1,c2".to_owned());
    for (mount, expect) in plan
        .mounts
        .iter()
        .zip([vec![("context".to_owned(), label)], Vec::new()])
    {
        let MountKind::New { parameters, .. } = &mount.kind else {
            panic!()
        };
        assert_eq!(*parameters, expect);
    }
}

#[test]
fn a_path_to_hide_is_hidden_once() {
    let masked = json!(["/a", "/a/", "/b", "/a"]);
    assert_eq!(
        plan_of(with("/linux/maskedPaths", masked))
            .unwrap()
            .masked_paths,
        ["/a", "/b"]
    );
}

#[test]
fn mounts_that_cannot_be_right_are_refused() {
    for (value, field) in [
        (
            json!({"destination": "", "type": "tmpfs"}),
            "mounts[0].destination",
        ),
        (
            json!({"destination": "/..", "type": "tmpfs"}),
            "mounts[0].destination",
        ),
        (json!({"destination": "/x"}), "mounts[0].type"),
        (
            json!({"destination": "/x", "options": ["bind"]}),
            "mounts[0].source",
        ),
        (
            json!({"destination": "/proc", "type": "tmpfs"}),
            "mounts[0].type",
        ),
        (
            json!({"destination": "/proc/self", "type": "tmpfs"}),
            "mounts[0].type",
        ),
        (
            json!({"destination": "/x", "type": "tmpfs", "options": ["idmap"]}),
            "mounts[0].options",
        ),
        (
            json!({"destination": "/x", "type": "mqueue", "options": ["tmpcopyup"]}),
            "mounts[0].options: \"tmpcopyup\"",
        ),
        (
            json!({"destination": "/x", "type": "overlay",
                   "options": [format!("lowerdir={}", "x".repeat(5000))]}),
            "are 5009 bytes together",
        ),
        (
            json!({"destination": "/x", "type": "tmpfs",
                   "options": ["remount", format!("size={}", "1".repeat(300))]}),
            "a remount takes 255",
        ),
        (
            json!({"destination": "/x", "type": "bind", "source": "/y", "uidMappings": [{}]}),
            "uidMappings",
        ),
    ] {
        let shown = value.to_string();
        let text = mount(value).map(|_| ()).unwrap_err().to_string();
        assert!(text.contains(field), "{shown}: {text}");
    }
}

#[test]
fn capabilities_are_masks_and_unknown_names_are_refused() {
    let document = with(
        "/process/capabilities",
        json!({"bounding": ["CAP_CHOWN", "cap_kill"], "effective": ["SYS_ADMIN"]}),
    );
    let sets = plan_of(document).unwrap().process.capabilities.unwrap();
    assert_eq!(
        (sets.bounding, sets.effective, sets.inheritable),
        (0b10_0001, 1 << 21, 0)
    );
    for set in [
        "bounding",
        "effective",
        "inheritable",
        "permitted",
        "ambient",
    ] {
        let value = json!({set: ["CAP_CHOWN", "CAP_FROM_THE_FUTURE"]});
        let document = with("/process/capabilities", value);
        let text = plan_of(document).unwrap_err().to_string();
        let field = format!("process.capabilities.{set}[1]: \"CAP_FROM_THE_FUTURE\"");
        assert!(text.contains(&field), "{text}");
    }
}

#[test]
fn a_device_of_the_document_replaces_the_default_one() {
    let document = with(
        "/linux/devices",
        json!([{"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600, "uid": 5},
               {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}]),
    );
    let devices = plan_of(document).unwrap().devices;
    assert_eq!(devices.len(), 7);
    assert_eq!((devices[0].mode, devices[0].uid), (0o600, 5));
}

#[test]
fn paths_are_cleaned_by_text() {
    for (path, clean) in [
        ("/a//b/./c/", "/a/b/c"),
        ("a/../..", "/"),
        ("", "/"),
        ("/../x", "/x"),
    ] {
        assert_eq!(clean_path(path), clean);
    }
}

/// The good document with a user namespace to make.
fn in_user_namespace() -> Value {
    let mut document = good();
    let range = json!([{"containerID": 0, "hostID": 100_000, "size": 1000}]);
    let linux = document["linux"].as_object_mut().unwrap();
    linux.insert("uidMappings".to_owned(), range.clone());
    linux.insert("gidMappings".to_owned(), range);
    let namespaces = linux["namespaces"].as_array_mut().unwrap();
    namespaces.push(json!({"type": "user"}));
    document
}

#[track_caller]
fn refusal(document: Value) -> String {
    plan_of(document).unwrap_err().to_string()
}

#[test]
fn user_namespaces_come_with_both_kinds_of_ids() {
    let plan = plan_of(in_user_namespace()).unwrap();
    assert_eq!(plan.id_mappings.host_uid(999), Some(100_999));
    for kind in ["uidMappings", "gidMappings"] {
        for empty in [json!([]), json!(null)] {
            let mut document = in_user_namespace();
            document["linux"][kind] = empty;
            assert!(refusal(document).contains(&format!("linux.{kind}")));
        }
    }
    let mut stray = in_user_namespace();
    stray["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "pid"}]);
    assert!(refusal(stray).contains("need a user namespace"));
    let mut joined = in_user_namespace();
    joined["linux"]["namespaces"] =
        json!([{"type": "mount"}, {"type": "user", "path": "/proc/1/ns/user"}]);
    joined["linux"]["uidMappings"] = json!(null);
    joined["linux"]["gidMappings"] = json!(null);
    assert!(plan_of(joined).unwrap().id_mappings.is_empty());
}

#[test]
fn ids_that_are_not_mapped_are_refused_by_name() {
    for (user, field) in [
        (json!({"uid": 1000}), "process.user.uid"),
        (json!({"gid": 1000}), "process.user.gid"),
        (
            json!({"additionalGids": [5, 1000]}),
            "process.user.additionalGids",
        ),
    ] {
        let mut document = in_user_namespace();
        document["process"]["user"] = user;
        assert!(refusal(document).contains(field));
    }
    for option in ["gid=1000", "uid=4000"] {
        let mut document = in_user_namespace();
        document["mounts"] =
            json!([{"destination": "/dev/pts", "type": "devpts", "options": [option]}]);
        let text = refusal(document);
        assert!(
            text.contains("mounts[0].options") && text.contains(option),
            "{text}"
        );
    }
}

#[test]
fn time_offsets_need_a_new_time_namespace() {
    let offsets =
        json!({"monotonic": {"secs": 7881, "nanosecs": 2_718_281}, "boottime": {"secs": -1}});
    let mut document = good();
    document["linux"]["timeOffsets"] = offsets.clone();
    assert!(refusal(document.clone()).contains("needs a time namespace"));
    let namespaces = document["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.push(json!({"type": "time"}));
    assert_eq!(plan_of(document.clone()).unwrap().time_offsets.len(), 2);
    document["linux"]["timeOffsets"] = json!(null);
    assert!(plan_of(document.clone()).unwrap().time_offsets.is_empty());
    document["linux"]["timeOffsets"] = json!({"realtime": {"secs": 1}});
    assert!(refusal(document.clone()).contains("realtime"));
    document["linux"]["timeOffsets"] = json!({"boottime": {"nanosecs": 1_000_000_000}});
    assert!(refusal(document.clone()).contains("nanosecs"));
    document["linux"]["timeOffsets"] = offsets;
    document["linux"]["namespaces"] =
        json!([{"type": "mount"}, {"type": "time", "path": "/proc/1/ns/time"}]);
    assert!(refusal(document).contains("has its own"));
}

#[test]
fn mapped_mounts_are_binds_with_both_kinds_of_ids() {
    let range = json!([{"containerID": 0, "hostID": 100_000, "size": 10}]);
    let mount = |extra: Value| {
        let mut mount = json!({"destination": "/x", "source": "/y", "options": ["rbind"]});
        for (key, value) in extra.as_object().unwrap() {
            mount[key] = value.clone();
        }
        mount
    };
    let both = json!({"uidMappings": range, "gidMappings": range});
    let planned = plan_of(with("/mounts", json!([mount(both.clone())]))).unwrap();
    let idmap = planned.mounts[0].idmap.as_ref().unwrap();
    assert!(!idmap.recursive && idmap.mappings.is_some());
    let recursive =
        json!({"options": ["rbind", "ridmap"], "uidMappings": range, "gidMappings": range});
    let planned = plan_of(with("/mounts", json!([mount(recursive)]))).unwrap();
    assert!(planned.mounts[0].idmap.as_ref().unwrap().recursive);
    refused(
        "/mounts",
        json!([mount(json!({"uidMappings": range}))]),
        "mounts[0].gidMappings",
    );
    refused(
        "/mounts",
        json!([mount(json!({"gidMappings": range}))]),
        "mounts[0].uidMappings",
    );
    refused(
        "/mounts",
        json!([mount(json!({"options": ["bind", "idmap"]}))]),
        "needs mappings",
    );
    let tmpfs =
        json!({"destination": "/x", "type": "tmpfs", "uidMappings": range, "gidMappings": range});
    refused("/mounts", json!([tmpfs]), "bind mounts only");
    let mut implied = in_user_namespace();
    implied["mounts"] = json!([mount(json!({"options": ["bind", "ridmap"]}))]);
    let planned = plan_of(implied).unwrap();
    assert_eq!(planned.mounts[0].idmap.as_ref().unwrap().mappings, None);
}

#[test]
fn of_two_equal_paths_the_last_device_and_the_first_mask_stay() {
    let device =
        |path: &str, minor: u32| json!({"path": path, "type": "c", "major": 1, "minor": minor});
    let devices = json!([
        device("/dev/x", 1),
        device("/dev/null", 7),
        device("/dev//x", 2)
    ]);
    let mut document = with("/linux/devices", devices);
    document["linux"]["maskedPaths"] = json!(["/proc/b", "/proc/a", "/proc//b"]);
    let plan = plan_of(document).unwrap();
    assert_eq!(plan.masked_paths, ["/proc/b", "/proc/a"]);
    let numbers: Vec<(&str, u32)> = plan
        .devices
        .iter()
        .map(|device| (device.path.as_str(), device.minor))
        .filter(|(path, _)| matches!(*path, "/dev/x" | "/dev/null"))
        .collect();
    assert_eq!(numbers, [("/dev/null", 7), ("/dev/x", 2)]);
}

#[test]
fn more_device_rules_than_can_be_compared_are_refused() {
    let rules = |count: usize| vec![json!({"allow": true, "type": "c", "access": "r"}); count];
    assert!(plan_of(with("/linux/resources", json!({"devices": rules(4096)}))).is_ok());
    refused(
        "/linux/resources",
        json!({"devices": rules(4097)}),
        "linux.resources.devices",
    );
}
