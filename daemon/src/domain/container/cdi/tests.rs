//! Names, choice among documents, and what is refused in one.

use serde_json::{Value, json};

use super::*;

fn document(value: Value) -> CdiDocument {
    let document: CdiDocument = serde_json::from_value(value).unwrap();
    document.check().unwrap();
    document
}

fn file(path: &str, priority: usize, device: &str, env: &str) -> DocumentFile {
    let document = document(json!({
        "cdiVersion": "0.6.0",
        "kind": "vendor.com/gpu",
        "containerEdits": {"env": ["ALL=1"]},
        "devices": [
            {"name": device, "containerEdits": {"env": [env]}},
            {"name": "other", "containerEdits": {"env": ["OTHER=1"]}},
        ],
    }));
    DocumentFile {
        path: path.into(),
        priority,
        document,
    }
}

fn names(texts: &[&str]) -> Vec<DeviceName> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn names_are_taken_as_the_specification_has_them() {
    for good in [
        "vendor.com/class=0",
        "v/c=d",
        "nvidia.com/gpu=GPU-1a:0",
        "V_-1/c.1=all",
    ] {
        let name: DeviceName = good.parse().unwrap();
        assert_eq!(name.to_string(), good);
    }
    let long = format!("v/c={}", "d".repeat(509));
    for bad in [
        "", "d", "v/c", "v/c=", "=d", "/c=d", "v/=d", "v=d", "v/c=d=e", "1v/c=d", "v/1c=d",
        "v./c=d", "v/c=-d", "v/c=d,", " v/c=d", "v/c=d\n", "v/c/e=d", "v/c=ä", "v/c=../x", &long,
    ] {
        assert!(bad.parse::<DeviceName>().is_err(), "{bad:?}");
    }
}

#[test]
fn a_later_directory_wins_and_what_is_for_all_devices_is_changed_once() {
    let files = [
        file("/etc/cdi/a.json", 0, "gpu0", "FROM=etc"),
        file("/run/cdi/b.json", 1, "gpu0", "FROM=run"),
    ];
    let edits = select(
        &files,
        &names(&["vendor.com/gpu=gpu0", "vendor.com/gpu=other"]),
    )
    .unwrap();
    assert_eq!(edits.env, ["ALL=1", "FROM=run", "OTHER=1"]);
}

#[test]
fn a_device_in_two_documents_of_one_directory_is_refused_and_one_in_none_too() {
    let files = [
        file("/etc/cdi/a.json", 0, "gpu0", "FROM=a"),
        file("/etc/cdi/b.json", 0, "gpu1", "FROM=b"),
    ];
    assert!(select(&files, &names(&["vendor.com/gpu=gpu1"])).is_ok());
    let error = select(
        &files,
        &names(&["vendor.com/gpu=gpu1", "vendor.com/gpu=other"]),
    );
    assert_eq!(
        error.unwrap_err().to_string(),
        "CDI device \"vendor.com/gpu=other\" is both in /etc/cdi/a.json and in /etc/cdi/b.json"
    );
    for unknown in ["vendor.com/gpu=gpu2", "vendor.com/nic=gpu0"] {
        let error = select(&files, &names(&[unknown])).unwrap_err();
        assert_eq!(
            error,
            SelectError::Unknown {
                name: unknown.parse().unwrap()
            }
        );
    }
}

/// A document that has this at a place of it; the error.
fn refusal(place: &str, value: Value) -> String {
    let mut whole = json!({
        "cdiVersion": "1.1.0",
        "kind": "v/c",
        "devices": [{"name": "d", "containerEdits": {"env": ["A=1"]}}],
        "containerEdits": {},
    });
    *whole.pointer_mut(place).unwrap() = value;
    match serde_json::from_value::<CdiDocument>(whole) {
        Ok(document) => document.check().unwrap_err().to_string(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn what_no_container_can_be_made_of_is_refused_with_field_and_value() {
    let edits = |edits: Value| refusal("/containerEdits", edits);
    let node = |more: Value| {
        let mut node = json!({"path": "/dev/x"});
        node.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        edits(json!({"deviceNodes": [node]}))
    };
    let device = |name: &str| json!({"name": name, "containerEdits": {"env": ["A=1"]}});
    let hook = |name: &str, path: &str| json!({"hooks": [{"hookName": name, "path": path}]});
    let mount =
        |host: &str, path: &str| json!({"mounts": [{"hostPath": host, "containerPath": path}]});
    let nets = |nets: &[(&str, &str)]| {
        let nets = nets
            .iter()
            .map(|(host, name)| json!({"hostInterfaceName": host, "name": name}));
        json!({"netDevices": nets.collect::<Vec<_>>()})
    };
    for (error, expected) in [
        (
            refusal("/cdiVersion", json!("1.2.0")),
            "cdiVersion \"1.2.0\"",
        ),
        (refusal("/kind", json!("v")), "kind \"v\""),
        (refusal("/devices", json!([])), "devices"),
        (
            refusal("/devices/0/name", json!("a b")),
            "devices.name \"a b\"",
        ),
        (
            refusal("/devices/0/containerEdits", json!({})),
            "devices.name \"d\": changes nothing",
        ),
        (
            refusal("/devices", json!([device("d"), device("d")])),
            "is there twice",
        ),
        (edits(json!({"envs": []})), "unknown field `envs`"),
        (edits(json!({"env": ["=x"]})), "env \"=x\""),
        (edits(json!({"env": ["x"]})), "env \"x\""),
        (
            edits(json!({"deviceNodes": [{"path": "dev"}]})),
            "deviceNodes.path \"dev\"",
        ),
        (
            edits(json!({"deviceNodes": [{"path": "/dev/../x"}]})),
            "deviceNodes.path",
        ),
        (
            node(json!({"permissions": "rwx"})),
            "deviceNodes.permissions \"rwx\"",
        ),
        (node(json!({"type": "d"})), "deviceNodes.type \"d\""),
        (node(json!({"hostPath": "x"})), "deviceNodes.hostPath \"x\""),
        (node(json!({"major": -1})), "-1"),
        (node(json!({"uid": 4_294_967_296_u64})), "4294967296"),
        (
            edits(hook("bogus", "/bin/true")),
            "hooks.hookName \"bogus\"",
        ),
        (edits(hook("poststop", "true")), "hooks.path \"true\""),
        (edits(mount("/a", "/")), "mounts.containerPath \"/\""),
        (edits(mount("a", "/a")), "mounts.hostPath \"a\""),
        (
            edits(json!({"intelRdt": {"closID": "../a"}})),
            "intelRdt.closID \"../a\"",
        ),
        (
            edits(nets(&[("a/b", "a")])),
            "netDevices.hostInterfaceName \"a/b\"",
        ),
        (
            edits(nets(&[("a", "x"), ("b", "x")])),
            "netDevices.name \"x\"",
        ),
        (edits(nets(&[("a", "0123456789abcdef")])), "netDevices.name"),
    ] {
        assert!(error.contains(expected), "{expected}: {error}");
    }
}
