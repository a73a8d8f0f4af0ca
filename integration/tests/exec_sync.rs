//! ExecSync: output, exit code, identity, a timeout that ends everything the command started.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use axil_integration::build::ContainerBuilder;
use axil_integration::children;
use axil_integration::eventually::eventually;
use axil_integration::faults::StandIn;
use axil_integration::lab::Lab;
use axil_integration::node::{Node, NodeOptions};
use tonic::Code;

/// A node with one pod and one idle container.
fn idle(lab: &Lab) -> (Node, String) {
    let (node, image) = lab.node_with_busybox();
    let pod = node.up(&lab.pod("exec")).unwrap();
    let container = ContainerBuilder::new("c", &image)
        .shell("sleep 300")
        .env("GIVEN", "yes");
    let id = node.run_in(&pod, &container).unwrap();
    (node, id)
}

#[test]
fn privileged_output_and_exit_code_come_back() {
    let Some(lab) = Lab::open() else { return };
    let (node, id) = idle(&lab);
    let done = node
        .exec(
            &id,
            &["/bin/sh", "-c", "echo out; echo err >&2; exit 5"],
            10,
        )
        .unwrap();
    assert_eq!(
        (done.stdout.as_slice(), done.stderr.as_slice()),
        (&b"out\n"[..], &b"err\n"[..])
    );
    assert_eq!(done.exit_code, 5);
    assert_eq!(node.sh(&id, "echo $GIVEN; cat; hostname"), "yes\nexec");
    assert_eq!(
        node.exec(&id, &["sh", "-c", "kill -9 $$"], 10)
            .unwrap()
            .exit_code,
        137
    );
    lab.close(node);
}

#[test]
fn privileged_a_timeout_ends_the_whole_tree() {
    let Some(lab) = Lab::open() else { return };
    let (node, id) = idle(&lab);
    let script = "trap '' TERM; setsid sleep 4711 & sleep 4712 & wait";
    let begun = Instant::now();
    let status = node.exec(&id, &["/bin/sh", "-c", script], 1).unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    assert!(
        status.message().contains("1s"),
        "the message names the limit: {status}"
    );
    assert!(
        begun.elapsed() < Duration::from_secs(8),
        "{:?}",
        begun.elapsed()
    );
    eventually("the command and its children are gone", || {
        let left = children::abandoned();
        left.iter()
            .all(|p| !p.command.contains("sleep 471"))
            .then_some(())
    });
    assert_eq!(node.sh(&id, "echo still here"), "still here");
    lab.close(node);
}

#[test]
fn privileged_a_command_that_times_out_while_it_is_started_is_told_so_and_ended() {
    let Some(lab) = Lab::open() else { return };
    let real = lab.binaries().runc_lite();
    let runtime = StandIn::runtime(&lab.unused("runtime"), "slow", &real).unwrap();
    let node = lab.node_with(NodeOptions {
        runtime: Some(runtime.path().to_owned()),
        ..NodeOptions::default()
    });
    let image = lab.busybox();
    node.pull(&image).unwrap();
    let pod = node.up(&lab.pod("exec")).unwrap();
    let container = ContainerBuilder::new("c", &image).shell("sleep 300");
    let id = node.run_in(&pod, &container).unwrap();
    runtime.set("slow-exec").unwrap();
    let status = node.exec(&id, &["sleep", "4714"], 1).unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    runtime.set("work").unwrap();
    // The answer came after the end: nothing is left that begins later.
    assert_eq!(
        node.sh(&id, "ps | grep '[s]leep 4714' || echo gone"),
        "gone"
    );
    lab.close(node);
}

#[test]
fn privileged_a_background_child_does_not_hold_the_answer() {
    let Some(lab) = Lab::open() else { return };
    let (node, id) = idle(&lab);
    let begun = Instant::now();
    let done = node
        .exec(&id, &["/bin/sh", "-c", "sleep 4713 & echo done"], 60)
        .unwrap();
    assert_eq!(done.stdout, b"done\n");
    assert!(
        begun.elapsed() < Duration::from_secs(15),
        "{:?}",
        begun.elapsed()
    );
    lab.close(node);
}

#[test]
fn privileged_output_is_bounded() {
    let Some(lab) = Lab::open() else { return };
    let (node, id) = idle(&lab);
    let script = "head -c 20000000 /dev/zero; echo small >&2";
    let done = node.exec(&id, &["/bin/sh", "-c", script], 60).unwrap();
    // The kubelet takes messages of at most 16 MiB.
    let size = done.stdout.len() + done.stderr.len();
    assert!(
        done.exit_code == 0 && (7 << 20..16 << 20).contains(&size),
        "{size} bytes"
    );
    assert_eq!(done.stderr, b"small\n");
    lab.close(node);
}

#[test]
fn privileged_many_at_once_do_not_mix() {
    let Some(lab) = Lab::open() else { return };
    let (node, id) = idle(&lab);
    std::thread::scope(|scope| {
        for number in 0..8 {
            let (client, id) = (node.client(), id.clone());
            scope.spawn(move || {
                for round in 0..4 {
                    let word = format!("{number}-{round}");
                    let done = client.exec(&id, &["echo", &word], 30).unwrap();
                    assert_eq!(done.stdout, format!("{word}\n").as_bytes());
                }
            });
        }
    });
    lab.close(node);
}

#[test]
fn privileged_what_cannot_be_run_is_told() {
    let Some(lab) = Lab::open() else { return };
    let (node, id) = idle(&lab);
    let status = node.exec(&id, &["/no/such/program"], 10).unwrap_err();
    assert!(status.message().contains("/no/such/program"), "{status}");
    let status = node.exec(&id, &[], 10).unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    node.stop(&id, 0).unwrap();
    let status = node.exec(&id, &["true"], 10).unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    lab.close(node);
}
