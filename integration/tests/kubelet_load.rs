//! Many pods, many callers, deadlines that are too short: nothing is lost, and no identical retry is refused.

use std::env;
use std::time::Duration;

use axil_integration::kubelet_load::{Load, Place, run};
use axil_integration::lab::Lab;
use axil_integration::say;

/// A number of the environment, for longer runs than those of every landing.
fn asked(name: &str, default: u64) -> u64 {
    match env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name}={text}: no number")),
        Err(_) => default,
    }
}

#[test]
fn privileged_a_kubelet_in_a_hurry_loses_nothing() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let load = Load {
        pods: usize::try_from(asked("AXIL_TEST_LOAD_PODS", 6)).unwrap(),
        time: Duration::from_secs(asked("AXIL_TEST_LOAD_SECONDS", 8)),
        workers: 6,
        seed: asked("AXIL_TEST_LOAD_SEED", 1),
    };
    let place = Place {
        socket: node.socket(),
        pid: node.pid(),
        image,
        logs: lab.dir().join("logs"),
    };
    let report = run(&place, &load).unwrap();
    say::out(report.text());
    let problems = report.problems.iter().take(20).cloned();
    assert!(
        report.problems.is_empty(),
        "{}",
        problems.collect::<Vec<_>>().join("\n")
    );
    assert!(report.pods > 0 && report.containers > 0 && !report.lists.is_empty());
    lab.close(node);
}
