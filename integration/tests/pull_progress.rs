//! What an operator sees of pulls at work: on the control socket, by the command, in metrics.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead as _, BufReader};

use axil_integration::eventually::eventually;
use axil_integration::gated::{Gated, family};
use axil_integration::lab::Lab;
use axil_integration::node::Node;
use axil_integration::{http, metrics};
use serde_json::Value;

fn gauge(node: &Node, name: &str, labels: &[(&str, &str)]) -> f64 {
    let text = http::get("127.0.0.1", node.metrics_port(), "/metrics").unwrap();
    let samples = metrics::parse(&text.body).unwrap();
    metrics::sum(&samples, &format!("axil_image_pull_{name}"), labels)
}

fn pulls(node: &Node) -> Vec<Value> {
    let done = node.operate(&["pulls", "--json"], &[]);
    assert!(done.status.success(), "{}", done.text());
    let text = String::from_utf8(done.stdout).unwrap();
    let documents = text.lines().map(serde_json::from_str);
    documents.collect::<Result<_, _>>().unwrap()
}

#[test]
fn privileged_a_pull_shows_what_of_each_layer_is_here_and_unpacked() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node();
    let [left, right] = family();
    let (base, own) = (left.layers[0].clone(), left.layers[1].clone());
    let size = |digest: &str| left.blob(digest).len() as u64;
    let registry = Gated::start([left.clone(), right], &base, false).unwrap();
    assert_eq!(pulls(&node), Vec::<Value>::new());
    let reference = registry.reference("left");
    let pull = {
        let (client, reference) = (node.client(), reference.clone());
        std::thread::spawn(move || client.pull(&reference))
    };
    let seen = eventually("the upper layer is unpacked, the base is not there", || {
        let seen = pulls(&node).pop()?;
        (seen["layers"][1]["stage"] == "unpacked").then_some(seen)
    });
    assert_eq!(seen["image"], reference.as_str());
    assert_eq!(seen["step"], "layers");
    let layer = |at: usize, name: &str| seen["layers"][at][name].clone();
    assert_eq!(
        (layer(0, "digest"), layer(1, "digest")),
        (base.as_str().into(), own.as_str().into())
    );
    assert_eq!(
        (layer(0, "total"), layer(0, "fetched")),
        (size(&base).into(), 0.into())
    );
    assert_eq!(
        (layer(1, "total"), layer(1, "fetched")),
        (size(&own).into(), size(&own).into())
    );
    assert!(layer(1, "unpacked").as_u64() >= Some(300_000), "{seen}");
    assert_eq!(layer(0, "stage"), "waiting");

    let shown = |bytes: u64| f64::from(u32::try_from(bytes).unwrap());
    let close = |found: f64, expected: f64| (found - expected).abs() < 0.5;
    assert!(close(
        gauge(&node, "expected_bytes", &[]),
        shown(size(&base) + size(&own))
    ));
    assert!(close(gauge(&node, "fetched_bytes", &[]), shown(size(&own))));
    for stage in ["waiting", "unpacked"] {
        assert!(
            close(gauge(&node, "layers", &[("stage", stage)]), 1.0),
            "{stage}"
        );
    }

    // Who watches hears of it again and again; the table is for people.
    let mut watch = node.operate_on(&["pulls", "--watch", "--json"]);
    let mut lines = BufReader::new(watch.take_stdout().unwrap()).lines();
    for _ in 0..2 {
        let line: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(line[0]["image"], reference.as_str());
    }
    let table = node.operate(&["pulls"], &[]);
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(
        table.contains(&reference) && table.contains("unpacked"),
        "{table}"
    );

    registry.open();
    pull.join().unwrap().unwrap();
    let empty = lines.find(|line| line.as_deref().is_ok_and(|line| line == "[]"));
    assert!(empty.is_some(), "the watch ends before the pull");
    watch.kill();
    assert_eq!(pulls(&node), Vec::<Value>::new());
    for name in ["expected_bytes", "fetched_bytes", "layers"] {
        assert!(close(gauge(&node, name, &[]), 0.0), "{name}");
    }
    lab.close(node);
}

#[test]
fn privileged_without_a_daemon_nothing_is_pulled_and_the_command_says_so() {
    let Some(lab) = Lab::open() else { return };
    let mut node = lab.node();
    node.term();
    for arguments in [&["pulls"][..], &["pulls", "--watch"]] {
        let done = node.operate(arguments, &[]);
        assert!(!done.status.success());
        assert!(done.text().contains("no daemon"), "{}", done.text());
    }
    node.launch(None).unwrap();
    lab.close(node);
}
