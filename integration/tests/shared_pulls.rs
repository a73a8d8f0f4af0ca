//! Pulls at the same time: what they share is fetched once, each caller proves that it may have it, and one that
//! leaves takes nothing from the others.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use axil_integration::eventually::eventually;
use axil_integration::hostile::{challenge, honest};
use axil_integration::http::{self, Request, Server};
use axil_integration::images::{Compression, Entry, Image, Layer};
use axil_integration::lab::Lab;
use axil_integration::metrics;
use axil_integration::node::{Node, NodeOptions};
use axil_proto::cri::AuthConfig;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use tonic::{Code, Status};

const ACCOUNTS: [(&str, &str); 2] = [("one", "first secret"), ("two", "second secret")];

fn account((username, password): (&str, &str)) -> Option<AuthConfig> {
    Some(AuthConfig {
        username: username.to_owned(),
        password: password.to_owned(),
        ..AuthConfig::default()
    })
}

fn header((username, password): (&str, &str)) -> String {
    format!(
        "Basic {}",
        STANDARD.encode(format!("{username}:{password}"))
    )
}

/// Bytes that do not compress.
fn noise(seed: u64) -> Vec<u8> {
    let mut state = seed;
    let next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(300_000).collect()
}

fn layer(name: &str, seed: u64) -> Layer {
    Layer::new(Compression::Gzip).entry(name, 0o644, 0, Entry::Text(noise(seed)))
}

/// Two images on one base.
fn family() -> [Image; 2] {
    ["left", "right"].map(|name| {
        let own = layer(name, 7 + name.len() as u64);
        Image::build(&json!({}), &[layer("base", 1), own]).unwrap()
    })
}

#[derive(Default)]
struct State {
    is_open: bool,
    requests: Vec<(String, Option<String>)>,
}

/// A registry whose answer to requests for one blob waits until the test opens the gate.
struct Gated {
    server: Server,
    state: Arc<(Mutex<State>, Condvar)>,
}

impl Gated {
    /// Serves an image in each of the repositories `left` and `right`; with accounts to those who have one only.
    fn start(images: [Image; 2], held: &str, has_accounts: bool) -> Self {
        let state: Arc<(Mutex<State>, Condvar)> = Arc::default();
        let (served, held) = (Arc::clone(&state), held.to_owned());
        let server = Server::start(move |request: &Request| {
            let authorization = request.headers.get("authorization").cloned();
            let is_known = |line: &String| ACCOUNTS.map(header).contains(line);
            let (lock, opened) = &*served;
            let mut state = lock.lock().unwrap_or_else(PoisonError::into_inner);
            state
                .requests
                .push((request.path.clone(), authorization.clone()));
            if has_accounts && !authorization.as_ref().is_some_and(is_known) {
                return challenge("Basic realm=\"here\"");
            }
            if request.path.contains(&held) {
                let wait = Duration::from_secs(60);
                let waiting = opened.wait_timeout_while(state, wait, |state| !state.is_open);
                drop(waiting);
            } else {
                drop(state);
            }
            let [left, right] = &images;
            let is_left = request.path.starts_with("/v2/left/");
            honest(if is_left { left } else { right }, request)
        })
        .unwrap();
        Self { server, state }
    }

    fn reference(&self, repository: &str) -> String {
        format!("{}/{repository}:1", self.server.address())
    }

    fn open(&self) {
        let (lock, opened) = &*self.state;
        lock.lock().unwrap_or_else(PoisonError::into_inner).is_open = true;
        opened.notify_all();
    }

    /// The authorizations of the requests whose path has this part, answered with a challenge or not.
    fn asked(&self, part: &str) -> Vec<Option<String>> {
        let (lock, _) = &*self.state;
        let state = lock.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |(path, _): &&(String, Option<String>)| path.contains(part);
        let found = state.requests.iter().filter(fits);
        found
            .map(|(_, authorization)| authorization.clone())
            .collect()
    }

    fn wait_for(&self, part: &str) {
        eventually(&format!("a request for {part}"), || {
            (!self.asked(part).is_empty()).then_some(())
        });
    }
}

impl Drop for Gated {
    fn drop(&mut self) {
        self.open();
    }
}

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
    let registry = Gated::start([left.clone(), right.clone()], &base, false);
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
    let [left, right] = [Compression::Gzip, Compression::Zstd].map(|compression| {
        let layer = Layer::new(compression).entry("base", 0o644, 0, Entry::Text(noise(1)));
        Image::build(&json!({}), &[layer]).unwrap()
    });
    assert_eq!(left.config, right.config);
    let (first, second) = (left.layers[0].clone(), right.layers[0].clone());
    let registry = Gated::start([left.clone(), right], &first, false);
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
    let registry = Gated::start(images, &base, true);
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
    let registry = Gated::start(images, &base, false);
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
    let registry = Gated::start(images, &base, false);
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
