//! A snapshotter per runtime handler: containers made by different ones side by side, over a restart, to the end.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use axil_integration::build::ContainerBuilder;
use axil_integration::eventually::within;
use axil_integration::lab::Lab;
use axil_integration::node::{Node, NodeOptions, Pod};
use axil_proto::cri::FilesystemUsage;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// How long until a writable layer was measured again and its figure is told.
const MEASURED: Duration = Duration::from_secs(40);

/// What a container of these tests writes.
const WRITTEN: u64 = 4 << 20;

fn handler(lab: &Lab, name: &str, snapshotter: &str) -> String {
    let binary = lab.binaries().runc_lite();
    format!("[runtime.handlers.{name}]\nbinary = {binary:?}\nsnapshotter = \"{snapshotter}\"\n")
}

fn node_with(lab: &Lab, handlers: &str) -> anyhow::Result<Node> {
    let options = NodeOptions {
        tables: handlers.to_owned(),
        ..NodeOptions::default()
    };
    Node::start(lab.ground(), lab.binaries(), options)
}

/// Directories of layers, containers and views in the store.
fn snapshots(node: &Node) -> BTreeSet<String> {
    let entries = fs::read_dir(node.root().join("snapshots")).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

fn run(node: &Node, lab: &Lab, handler: &str, image: &str) -> (Pod, String) {
    let name = if handler.is_empty() { "plain" } else { handler };
    let config = lab.pod(name).build();
    let id = node.run_pod_with(handler, &config).unwrap();
    let pod = Pod { id, config };
    let script = format!("head -c {WRITTEN} /dev/zero > /written; sleep 1000");
    let container = ContainerBuilder::new("c", image)
        .shell(&script)
        .image_volume(image, "", "/image");
    let container = node.run_in(&pod, &container).unwrap();
    (pod, container)
}

/// The file system of the container's root, as the container sees it.
fn root_kind(node: &Node, container: &str) -> String {
    let script = "grep ' / ' /proc/mounts | tail -n 1 | cut -d ' ' -f 3";
    node.sh(container, script).trim().to_owned()
}

/// The container's writable layer, once what it wrote has been measured.
fn layer(node: &Node, container: &str) -> FilesystemUsage {
    within(MEASURED, "the layer is measured", || {
        let stats = node.container_stats(container).unwrap();
        let layer = stats.writable_layer?;
        let bytes = layer.used_bytes.as_ref()?.value;
        (bytes >= WRITTEN).then_some(layer)
    })
}

#[test]
fn privileged_a_copy_and_an_overlay_live_side_by_side_over_a_restart_and_leave_nothing() {
    let Some(lab) = Lab::open() else { return };
    let mut node = node_with(&lab, &handler(&lab, "other", "copy")).unwrap();
    let image = lab.busybox();
    node.pull(&image).unwrap();
    let before = snapshots(&node);
    let (plain_pod, plain) = run(&node, &lab, "", &image);
    let (copies_pod, copies) = run(&node, &lab, "other", &image);
    for _ in 0..2 {
        assert_eq!(root_kind(&node, &plain), "overlay");
        assert_ne!(root_kind(&node, &copies), "overlay");
        for container in [&plain, &copies] {
            assert_eq!(
                node.sh(container, "stat -c %s /written").trim(),
                WRITTEN.to_string()
            );
            assert_eq!(
                node.sh(
                    container,
                    "cmp /bin/busybox /image/bin/busybox && echo same"
                )
                .trim(),
                "same"
            );
        }
        node.kill9();
        node.launch(None).unwrap();
    }
    // An overlay holds what was written, a copy the image as well.
    let program: u64 = node
        .sh(&copies, "stat -L -c %s /bin/busybox")
        .trim()
        .parse()
        .unwrap();
    let bytes = |container: &str| layer(&node, container).used_bytes.unwrap().value;
    let (of_plain, of_copy) = (bytes(&plain), bytes(&copies));
    assert!(
        (WRITTEN..WRITTEN + (1 << 19)).contains(&of_plain),
        "{of_plain}"
    );
    assert!(
        (WRITTEN + program..WRITTEN + program + (1 << 21)).contains(&of_copy),
        "{of_copy}, of it the program {program}"
    );
    // What is made by the changed configuration; what was made before is removed all the same.
    let file = lab.dir().join("config.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("\"copy\"", "\"overlayfs\"")).unwrap();
    node.restart();
    let again = ContainerBuilder::new("d", &image).shell("sleep 1000");
    let again = node.run_in(&copies_pod, &again).unwrap();
    assert_eq!(root_kind(&node, &again), "overlay");
    assert_ne!(root_kind(&node, &copies), "overlay");
    for (pod, containers) in [
        (&plain_pod, vec![&plain]),
        (&copies_pod, vec![&copies, &again]),
    ] {
        for container in containers {
            node.stop(container, 0).unwrap();
            node.remove(container).unwrap();
        }
        node.stop_pod(&pod.id).unwrap();
        node.remove_pod(&pod.id).unwrap();
    }
    assert_eq!(snapshots(&node), before);
    lab.close(node);
}

#[test]
fn privileged_a_snapshotter_that_is_none_or_cannot_work_stops_the_start() {
    let Some(lab) = Lab::open() else { return };
    let refusal = |handlers: &str| {
        let error = node_with(&lab, handlers).map(drop).unwrap_err();
        format!("{error:#}")
    };
    let error = refusal(&handler(&lab, "odd", "zfs"));
    assert!(
        error.contains("runtime.handlers.odd.snapshotter = \"zfs\""),
        "{error}"
    );

    // A store on an overlay: it is none for the upper directory of another.
    let [lower, upper, work] = ["lower", "upper", "work"].map(|name| lab.dir().join(name));
    let root = lab.dir().join("root");
    for dir in [&lower, &upper, &work, &root] {
        fs::create_dir_all(dir).unwrap();
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.display(),
        upper.display(),
        work.display()
    );
    let overlay = Some("overlay");
    mount(
        overlay,
        &root,
        overlay,
        MsFlags::empty(),
        Some(options.as_str()),
    )
    .unwrap();
    let error = refusal(&handler(&lab, "lower", "overlayfs"));
    umount2(&root, MntFlags::MNT_DETACH).unwrap();
    assert!(
        error.contains("runtime.handlers.lower.snapshotter"),
        "{error}"
    );
    assert!(error.contains("use overlayfs in"), "{error}");
}
