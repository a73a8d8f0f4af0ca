//! Pulls at the same time: what they share is fetched once, each caller proves that it may have it, and one that
//! leaves takes nothing from the others.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::thread::JoinHandle;
use std::time::Duration;

use axil_integration::eventually::eventually;
use axil_integration::gated::{ACCOUNTS, Gated, account, family, header, twins};
use axil_integration::http;
use axil_integration::lab::Lab;
use axil_integration::metrics;
use axil_integration::node::{Node, NodeOptions};
use axil_proto::cri::AuthConfig;
use tonic::{Code, Status};

fn pull(
    node: &Node,
    reference: String,
    auth: Option<AuthConfig>,
    deadline: Duration,
) -> JoinHandle<Result<String, Status>> {
    let client = node.client().with_deadline(deadline);
    std::thread::spawn(move || client.pull_with(&reference, auth))
}

const LONG: Duration = Duration::from_secs(60);

fn in_flight(node: &Node) -> f64 {
    let text = http::get("127.0.0.1", node.metrics_port(), "/metrics").unwrap();
    let samples = metrics::parse(&text.body).unwrap();
    metrics::sum(&samples, "axil_image_pulls_in_flight", &[])
}

#[test]
fn privileged_a_layer_of_two_images_is_fetched_once_while_their_own_layers_come_beside_it() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node();
    let [left, right] = family();
    let base = left.layers[0].clone();
    assert_eq!(base, right.layers[0]);
    let registry = Gated::start([left.clone(), right.clone()], &base, false).unwrap();
    let pulls = [
        pull(&node, registry.reference("left"), None, LONG),
        pull(&node, registry.reference("right"), None, LONG),
    ];
    for digest in [&base, &left.layers[1], &right.layers[1]] {
        registry.wait_for(digest);
    }
    registry.open();
    let ids = pulls.map(|pull| pull.join().unwrap().unwrap());
    assert_eq!(ids, [left.config, right.config]);
    assert_eq!(registry.asked(&base).len(), 1);
    let (code, report) = node.fsck(&["--deep"]);
    assert_eq!(code, 0, "{report}");
    lab.close(node);
}

#[test]
fn privileged_one_layer_packed_in_two_ways_is_not_shared_on_the_word_of_a_blob() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node();
    let [left, right] = twins();
    assert_eq!(left.config, right.config);
    let (first, second) = (left.layers[0].clone(), right.layers[0].clone());
    let registry = Gated::start([left.clone(), right], &first, false).unwrap();
    let slow = pull(&node, registry.reference("left"), None, LONG);
    registry.wait_for(&first);
    // It has a blob of its own for the same place and neither waits for the other's nor takes it.
    let quick = pull(&node, registry.reference("right"), None, LONG);
    assert_eq!(quick.join().unwrap().unwrap(), left.config);
    assert_eq!(registry.asked(&second).len(), 1);
    registry.open();
    assert_eq!(slow.join().unwrap().unwrap(), left.config);
    let (code, report) = node.fsck(&["--deep"]);
    assert_eq!(code, 0, "{report}");
    lab.close(node);
}

#[test]
fn privileged_a_caller_gets_of_anothers_pull_only_what_its_own_account_may_have() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node();
    let images = family();
    let (base, config) = (images[0].layers[0].clone(), images[0].config.clone());
    let registry = Gated::start(images, &base, true).unwrap();
    let reference = registry.reference("left");
    let first = pull(&node, reference.clone(), account(ACCOUNTS[0]), LONG);
    registry.wait_for(&base);
    // While it is on its way: neither nobody nor a stranger joins it, and neither waits for it.
    for auth in [None, account(("one", "a guess"))] {
        let status = node.pull_with(&reference, auth).unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    }
    let second = pull(&node, reference.clone(), account(ACCOUNTS[1]), LONG);
    let asks = |of: &str| registry.asked(of).contains(&Some(header(ACCOUNTS[1])));
    eventually("the second account asks for itself", || {
        asks(&config).then_some(())
    });
    registry.open();
    for pull in [first, second] {
        assert_eq!(pull.join().unwrap().unwrap(), config);
    }
    let with_account = |of: &str| registry.asked(of).into_iter().flatten().count();
    assert_eq!(with_account(&base), 1, "{:?}", registry.asked(&base));
    // And when it is here: the registry is asked all the same.
    let status = node.pull(&reference).unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    node.pull_with(&reference, account(ACCOUNTS[1])).unwrap();
    lab.close(node);
}

#[test]
fn privileged_a_caller_that_gives_up_leaves_the_pull_to_the_others() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node_with(NodeOptions {
        images: vec!["abandoned_pull_timeout = \"100ms\"".to_owned()],
        ..NodeOptions::default()
    });
    let images = family();
    let (base, config) = (images[0].layers[0].clone(), images[0].config.clone());
    let registry = Gated::start(images, &base, false).unwrap();
    let reference = registry.reference("left");
    let soon = Duration::from_millis(800);
    let first = pull(&node, reference.clone(), None, soon);
    registry.wait_for(&base);
    let others = [(); 2].map(|()| pull(&node, reference.clone(), None, LONG));
    // The one who began it leaves, and a while passes in which nothing may stop.
    let status = first.join().unwrap().unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    let status = node
        .client()
        .with_deadline(soon)
        .pull(&reference)
        .unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    registry.open();
    for pull in others {
        assert_eq!(pull.join().unwrap().unwrap(), config);
    }
    assert_eq!(registry.asked(&base).len(), 1);
    lab.close(node);
}

#[test]
fn privileged_a_pull_that_nobody_waits_for_stops_and_the_next_one_works() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node_with(NodeOptions {
        images: vec!["abandoned_pull_timeout = \"200ms\"".to_owned()],
        ..NodeOptions::default()
    });
    let images = family();
    let (base, config) = (images[0].layers[0].clone(), images[0].config.clone());
    let registry = Gated::start(images, &base, false).unwrap();
    let reference = registry.reference("left");
    let client = node.client().with_deadline(Duration::from_millis(500));
    let status = client.pull(&reference).unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    // Only now the daemon hears of it: the client's end of the connection runs while it is waited for.
    drop(client);
    assert_eq!(registry.asked(&base).len(), 1);
    // The registry still holds its answer back: the daemon has to let go by itself.
    eventually("no pull in flight", || {
        (in_flight(&node) == 0.0).then_some(())
    });
    assert_eq!(node.list_images().unwrap(), []);
    registry.open();
    assert_eq!(node.pull(&reference).unwrap(), config);
    lab.close(node);
}
