//! The metrics endpoint, read as Prometheus reads it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use axil_integration::build::ContainerBuilder;
use axil_integration::http;
use axil_integration::lab::Lab;
use axil_integration::metrics::{Sample, parse, sum};
use axil_integration::node::Node;

fn scrape(node: &Node) -> Vec<Sample> {
    let answer = http::get("127.0.0.1", node.metrics_port(), "/metrics").unwrap();
    assert_eq!(answer.status, 200);
    parse(&answer.body).unwrap()
}

fn count(samples: &[Sample], name: &str, labels: &[(&str, &str)]) -> i64 {
    let value = sum(samples, name, labels);
    format!("{value:.0}").parse().unwrap()
}

#[test]
fn privileged_calls_pods_containers_and_pulls_are_counted() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node();
    let before = scrape(&node);
    let (image, missing) = (
        lab.busybox(),
        format!("{}/no/such:1", lab.shelf().address()),
    );
    node.pull(&image).unwrap();
    node.pull(&missing).unwrap_err();
    let pod = node.up(&lab.pod("p")).unwrap();
    node.run_in(&pod, &ContainerBuilder::new("c", &image).shell("sleep 300"))
        .unwrap();
    node.pod_status("unknown").unwrap_err();
    let after = scrape(&node);
    let grown = |name: &str, labels: &[(&str, &str)]| {
        count(&after, name, labels) - count(&before, name, labels)
    };
    let calls = |method: &str, code: &str| {
        grown(
            "axil_cri_calls_total",
            &[("method", method), ("code", code)],
        )
    };
    assert_eq!(calls("RunPodSandbox", "OK"), 1);
    assert_eq!(calls("StartContainer", "OK"), 1);
    assert_eq!(
        calls("PodSandboxStatus", "NOT_FOUND") + calls("PodSandboxStatus", "NotFound"),
        1
    );
    assert_eq!(
        grown(
            "axil_cri_call_duration_seconds_count",
            &[("method", "RunPodSandbox")]
        ),
        1
    );
    assert_eq!(grown("axil_pods", &[]), 1);
    assert_eq!(grown("axil_containers", &[]), 1);
    assert_eq!(grown("axil_image_pulls_total", &[]), 2);
    assert!(grown("axil_image_pulled_bytes_total", &[]) > 500_000);
    node.empty().unwrap();
    let empty = scrape(&node);
    assert_eq!(
        (
            count(&empty, "axil_pods", &[]),
            count(&empty, "axil_containers", &[])
        ),
        (0, 0)
    );
    lab.close(node);
}

#[test]
fn privileged_only_metrics_are_served_there() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node();
    assert_eq!(
        http::get("127.0.0.1", node.metrics_port(), "/")
            .unwrap()
            .status,
        404
    );
    lab.close(node);
}
