//! Runtime handlers: pods with an OCI runtime of the operator's choice beside the bundled one.

use std::fs;

use axil_integration::build::ContainerBuilder;
use axil_integration::guard::{Need, find_program};
use axil_integration::lab::Lab;
use axil_integration::node::{Node, NodeOptions, Pod};
use serde_json::Value;
use tonic::Code;

/// A lab and a node with Debian's runc as the handler `other`.
fn two_handlers() -> Option<(Lab, Node, String)> {
    let lab = Lab::open_needing(&[Need::Program("runc")])?;
    let runc = find_program("runc").expect("runc, which is there");
    let tables = format!(
        "[runtime.handlers.other]\nbinary = \"{}\"\nallowed_annotations = [\"example.com/*\"]\n",
        runc.display()
    );
    let node = lab.node_with(NodeOptions {
        tables,
        ..NodeOptions::default()
    });
    let image = lab.busybox();
    node.pull(&image).expect("pull busybox");
    Some((lab, node, image))
}

fn run(node: &Node, lab: &Lab, handler: &str, name: &str) -> Pod {
    let builder = lab
        .pod(name)
        .shared_pids()
        .annotation("example.com/allowed", "pod")
        .annotation("example.org/other", "x")
        .annotation("io.kubernetes.cri.sandbox-id", "forged");
    let config = builder.build();
    let id = node.run_pod_with(handler, &config).expect("run a pod");
    Pod { id, config }
}

/// The annotations in the container's OCI document.
fn annotations(node: &Node, container: &str) -> Value {
    let status = node.container_status_verbose(container);
    let info = status.expect("ask for a container").info;
    let info: Value = serde_json::from_str(&info["info"]).expect("info in JSON");
    info["runtimeSpec"]["annotations"].clone()
}

#[test]
fn privileged_each_pod_is_run_by_the_runtime_of_its_handler() {
    let Some((lab, mut node, image)) = two_handlers() else {
        return;
    };
    let names: Vec<_> = node.status(false).unwrap().runtime_handlers;
    let names: Vec<_> = names.iter().map(|handler| handler.name.as_str()).collect();
    assert_eq!(names, ["", "axil", "other"]);
    let unknown = node.run_pod_with("third", &lab.pod("third").build());
    let unknown = unknown.unwrap_err();
    assert_eq!(unknown.code(), Code::InvalidArgument);
    assert!(unknown.message().contains("\"other\""), "{unknown}");

    for (handler, root) in [("other", "runtimes/other"), ("axil", "runtime")] {
        let pod = run(&node, &lab, handler, handler);
        let status = node.pod_status(&pod.id).unwrap();
        assert_eq!(status.runtime_handler, handler);
        let container = ContainerBuilder::new("c", &image).shell("sleep 1000");
        let container = node.run_in(&pod, &container).unwrap();
        let root = node.state().join(root).join("k8s.io");
        for id in [&pod.id, &container] {
            assert!(root.join(id).exists(), "{handler}: no state of {id}");
        }
        node.restart();
        assert_eq!(node.sh(&container, "echo $((6*7))").trim(), "42");
        let told = annotations(&node, &container);
        assert_eq!(told["io.kubernetes.cri.sandbox-id"], pod.id.as_str());
        assert_eq!(told.get("example.org/other"), None);
        let allowed = told.get("example.com/allowed").and_then(Value::as_str);
        assert_eq!(allowed, (handler == "other").then_some("pod"));
        node.stop(&container, 0).unwrap();
        assert_eq!(node.exit_of(&container).exit_code, 137);
    }
    lab.close(node);
}

#[test]
fn privileged_a_pod_outlives_its_handler() {
    let Some((lab, mut node, image)) = two_handlers() else {
        return;
    };
    let pod = run(&node, &lab, "other", "orphan");
    let container = ContainerBuilder::new("c", &image).shell("sleep 1000");
    let first = node.run_in(&pod, &container).unwrap();
    let file = lab.dir().join("config.toml");
    let text = fs::read_to_string(&file).unwrap();
    let cut = text.find("[runtime.handlers.other]").unwrap();
    fs::write(&file, &text[..cut]).unwrap();
    node.restart();
    assert_eq!(node.sh(&first, "echo alive").trim(), "alive");
    let second = ContainerBuilder::new("d", &image).shell("true");
    let refused = node.create_in(&pod, &second).unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("\"other\""), "{refused}");
    node.stop(&first, 0).unwrap();
    node.remove(&first).unwrap();
    lab.close(node);
}

#[test]
fn privileged_a_handler_without_its_binary_stops_the_start() {
    let Some(lab) = Lab::open() else { return };
    let tables = "[runtime.handlers.gone]\nbinary = \"/no/such/runtime\"\n".to_owned();
    let options = NodeOptions {
        tables,
        ..NodeOptions::default()
    };
    let error = Node::start(lab.ground(), lab.binaries(), options).unwrap_err();
    let error = format!("{error:#}");
    let words = "runtime.handlers.gone.binary: /no/such/runtime is no file";
    assert!(error.contains(words), "{error}");
}
