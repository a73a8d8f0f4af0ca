//! Devices of the Container Device Interface in real containers: what they bring, by field and by annotation, and
//! what is refused.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use axil_integration::build::ContainerBuilder;
use axil_integration::lab::Lab;
use axil_integration::node::{Node, NodeOptions, Pod};
use axil_proto::cri::CdiDevice;
use serde_json::json;
use tonic::Code;

/// A node whose documents are read from two directories, the second before the first in rank.
fn node_with_documents(lab: &Lab) -> (Node, String, PathBuf, PathBuf) {
    let [first, second] = ["cdi-static", "cdi-dynamic"].map(|name| lab.dir().join(name));
    fs::create_dir(&first).expect("create a directory");
    let tables = format!("[cdi]\nspec_dirs = [{first:?}, {second:?}]\n");
    let node = lab.node_with(NodeOptions {
        tables,
        ..NodeOptions::default()
    });
    let image = lab.busybox();
    node.pull(&image).expect("pull busybox");
    (node, image, first, second)
}

fn asking(name: &str, image: &str, devices: &[&str]) -> ContainerBuilder {
    let devices = devices.iter().map(|&name| CdiDevice { name: name.into() });
    let devices: Vec<_> = devices.collect();
    ContainerBuilder::new(name, image)
        .shell("sleep 1000")
        .with(|config| config.cdi_devices = devices)
}

/// A hook that leaves a file, and a document with a device that has of everything.
fn write_device(lab: &Lab, dir: &Path) -> PathBuf {
    let told = lab.dir().join("hook.ran");
    let hook = lab.dir().join("hook.sh");
    let text = format!(
        "#!/bin/sh\ncat >/dev/null\necho \"$1 $CDI_HOOK\" >>{}\n",
        told.display()
    );
    fs::write(&hook, text).expect("write a file");
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).expect("write a file");
    let shared = lab.dir().join("libraries");
    fs::create_dir_all(&shared).expect("write a file");
    fs::write(shared.join("lib"), "of the vendor").expect("write a file");
    let document = json!({
        "cdiVersion": "0.7.0",
        "kind": "example.com/gpu",
        "containerEdits": {
            "env": ["ALL_GPUS=yes"],
            "mounts": [{
                "hostPath": shared,
                "containerPath": "/usr/lib/vendor",
                "options": ["ro", "nosuid", "nodev", "rbind", "rprivate"],
            }],
        },
        "devices": [{
            "name": "0",
            "containerEdits": {
                "env": ["GPU=0"],
                "deviceNodes": [
                    {"path": "/dev/gpu-zero", "hostPath": "/dev/zero"},
                    // The number of /dev/fuse: used by nobody here, and in no container's own rules.
                    {"path": "/dev/gpu0", "type": "c", "major": 10, "minor": 229, "permissions": "r", "fileMode": 438},
                    {"path": "/dev/gpu0-closed", "type": "c", "major": 10, "minor": 237, "permissions": "none"},
                ],
                "hooks": [{
                    "hookName": "createRuntime",
                    "path": hook,
                    "args": ["hook.sh", "created"],
                    "env": ["CDI_HOOK=0"],
                }],
                "additionalGids": [4321],
            },
        }],
    });
    fs::write(dir.join("gpu.json"), document.to_string()).expect("write a file");
    told
}

fn check_device(node: &Node, container: &str) {
    let sh = |script: &str| node.sh(container, script);
    assert_eq!(sh("echo $GPU $ALL_GPUS").trim(), "0 yes");
    assert_eq!(sh("cat /usr/lib/vendor/lib"), "of the vendor");
    assert_eq!(
        sh("echo x 2>/dev/null >/usr/lib/vendor/lib || echo no").trim(),
        "no"
    );
    assert_eq!(
        sh("head -c 3 /dev/gpu-zero | od -An -tx1").trim(),
        "00 00 00"
    );
    assert_eq!(sh("stat -c %a:%t:%T /dev/gpu0").trim(), "666:a:e5");
    // The cgroup refuses an open with EPERM; what else the driver says is not the question.
    let denied = |script: &str| {
        let said = sh(&format!("( {script} ) 2>&1 || true"));
        said.contains("Operation not permitted")
    };
    assert!(!denied("exec 3</dev/gpu0"));
    assert!(denied("exec 3>>/dev/gpu0"));
    assert!(denied("exec 3</dev/gpu0-closed"));
    assert!(denied("exec 3>>/dev/gpu0-closed"));
    assert!(sh("id -G").split_whitespace().any(|gid| gid == "4321"));
    let status = node
        .container_status(container)
        .expect("ask for a container");
    let user = status.user.and_then(|user| user.linux).expect("a user");
    assert!(user.supplemental_groups.contains(&4321), "{user:?}");
}

#[test]
fn privileged_a_device_brings_variables_nodes_mounts_hooks_and_groups() {
    let Some(lab) = Lab::open() else { return };
    let (mut node, image, dir, _) = node_with_documents(&lab);
    let pod = node.up(&lab.pod("cdi")).unwrap();
    // Written after the start: documents are read at each creation.
    let told = write_device(&lab, &dir);
    let by_field = node
        .run_in(&pod, &asking("field", &image, &["example.com/gpu=0"]))
        .unwrap();
    check_device(&node, &by_field);
    assert_eq!(fs::read_to_string(&told).unwrap(), "created 0\n");

    let annotated = asking("annotated", &image, &[]).with(|config| {
        let value = "example.com/gpu=0".to_owned();
        config
            .annotations
            .insert("cdi.k8s.io/plugin_gpu0".into(), value);
    });
    let by_annotation = node.run_in(&pod, &annotated).unwrap();
    check_device(&node, &by_annotation);
    assert_eq!(fs::read_to_string(&told).unwrap(), "created 0\n".repeat(2));

    // A container has what it got: the document's end and the daemon's change nothing.
    fs::remove_file(dir.join("gpu.json")).unwrap();
    node.restart();
    check_device(&node, &by_field);
    lab.close(node);
}

#[test]
fn privileged_a_later_directory_and_a_change_of_a_document_count_at_once() {
    let Some(lab) = Lab::open() else { return };
    let (node, image, first, second) = node_with_documents(&lab);
    let pod = node.up(&lab.pod("reload")).unwrap();
    let write = |dir: &Path, value: &str| {
        let text = format!(
            "cdiVersion: \"0.6.0\"\nkind: example.com/nic\ndevices:\n- name: a\n  containerEdits:\n    env:\n    - FROM={value}\n"
        );
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join("nic.yaml"), text).unwrap();
    };
    let seen = |name: &str| {
        let container = node
            .run_in(&pod, &asking(name, &image, &["example.com/nic=a"]))
            .unwrap();
        node.sh(&container, "echo $FROM").trim().to_owned()
    };
    write(&first, "static");
    assert_eq!(seen("one"), "static");
    write(&first, "changed");
    assert_eq!(seen("two"), "changed");
    write(&second, "dynamic");
    assert_eq!(seen("three"), "dynamic");
    lab.close(node);
}

/// Refused, and nothing is left of it: the same name is free.
fn refused(node: &Node, pod: &Pod, container: &ContainerBuilder, code: Code, words: &[&str]) {
    let error = node.create_in(pod, container).expect_err("a refusal");
    assert_eq!(error.code(), code, "{error}");
    for word in words {
        assert!(error.message().contains(word), "{word}: {error}");
    }
    assert!(node.containers(None).expect("list containers").is_empty());
}

#[test]
fn privileged_what_cannot_be_had_is_refused_by_name_and_nothing_is_left() {
    let Some(lab) = Lab::open() else { return };
    let (node, image, dir, _) = node_with_documents(&lab);
    let pod = node.up(&lab.pod("refused")).unwrap();
    let try_for = |device: &str, code, words: &[&str]| {
        refused(&node, &pod, &asking("c", &image, &[device]), code, words);
    };
    for bad in [
        "gpu0",
        "example.com/gpu",
        "/dev/null",
        "example.com/gpu=../0",
        "",
    ] {
        try_for(
            bad,
            Code::InvalidArgument,
            &["config.CDI_devices", &format!("{bad:?}")],
        );
    }
    let annotated = asking("c", &image, &[]).with(|config| {
        let value = "example.com/gpu=0,nonsense".to_owned();
        config
            .annotations
            .insert("cdi.k8s.io/plugin_gpu0".into(), value);
    });
    let words = [
        "config.annotations[\"cdi.k8s.io/plugin_gpu0\"]",
        "\"nonsense\"",
    ];
    refused(&node, &pod, &annotated, Code::InvalidArgument, &words);

    let directory = dir.display().to_string();
    try_for(
        "example.com/gpu=0",
        Code::NotFound,
        &["\"example.com/gpu=0\"", &directory],
    );
    write_device(&lab, &dir);
    try_for(
        "example.com/gpu=1",
        Code::NotFound,
        &["\"example.com/gpu=1\""],
    );
    fs::copy(dir.join("gpu.json"), dir.join("twice.json")).unwrap();
    let both = ["\"example.com/gpu=0\"", "gpu.json", "twice.json"];
    try_for("example.com/gpu=0", Code::FailedPrecondition, &both);
    fs::remove_file(dir.join("twice.json")).unwrap();
    let malformed = r#"{"cdiVersion": "0.6.0", "kind": "example.com/bad", "devices":
        [{"name": "d", "containerEdits": {"deviceNodes": [{"path": "/dev/x", "permissions": "all"}]}}]}"#;
    fs::write(dir.join("bad.json"), malformed).unwrap();
    let words = [
        "\"example.com/bad=d\"",
        "bad.json",
        "deviceNodes.permissions \"all\"",
    ];
    try_for("example.com/bad=d", Code::FailedPrecondition, &words);
    let gone = malformed.replace("all", "rw");
    fs::write(
        dir.join("bad.json"),
        gone.replace("/dev/x", "/dev/axil-is-not-there"),
    )
    .unwrap();
    let words = [
        "example.com/bad=d",
        "deviceNodes.hostPath \"/dev/axil-is-not-there\"",
    ];
    try_for("example.com/bad=d", Code::FailedPrecondition, &words);

    let container = node
        .run_in(&pod, &asking("c", &image, &["example.com/gpu=0"]))
        .unwrap();
    check_device(&node, &container);
    lab.close(node);
}
