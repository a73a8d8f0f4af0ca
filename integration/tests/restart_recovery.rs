//! The daemon ends, by SIGKILL or SIGTERM, and comes back: every pod is told truthfully.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::thread;
use std::time::{Duration, Instant};

use axil_integration::build::ContainerBuilder;
use axil_integration::eventually::eventually;
use axil_integration::lab::Lab;
use axil_integration::node::{Node, Pod};
use axil_proto::cri::{ContainerState, PodSandboxState};

const PODS: usize = 20;
const EXITING: usize = 5;

/// A pod whose container counts, and exits with `code` when the file `/gate/<name>` appears.
fn counting(lab: &Lab, node: &Node, image: &str, name: &str, code: usize) -> (Pod, String) {
    let gate = lab.dir().join("gate");
    std::fs::create_dir_all(&gate).unwrap();
    let script = format!(
        "i=0; while :; do echo line $i; i=$((i+1)); [ -e /gate/{name} ] && exit {code}; usleep 20000; done"
    );
    let pod = node.up(&lab.pod(name)).unwrap();
    let container = ContainerBuilder::new("c", image).shell(&script);
    let container = container.mount(gate.to_str().unwrap(), "/gate", true);
    let id = node.run_in(&pod, &container).unwrap();
    (pod, id)
}

/// The numbers a container counted, from its log; they must have no gap.
fn counted(node: &Node, pod: &Pod) -> usize {
    let log = node.log_of(pod, "c");
    let complete = log.rsplit_once('\n').map_or("", |(lines, _)| lines);
    for (expected, line) in complete.lines().enumerate() {
        assert!(
            line.ends_with(&format!("stdout F line {expected}")),
            "line {expected}: {line:?}"
        );
    }
    complete.lines().count()
}

#[test]
fn privileged_twenty_pods_survive_kill_9_and_five_exits_are_told_exactly() {
    let Some(lab) = Lab::open() else { return };
    let (mut node, image) = lab.node_with_busybox();
    let pods: Vec<_> = (0..PODS)
        .map(|n| counting(&lab, &node, &image, &format!("p{n}"), 40 + n))
        .collect();
    node.kill9();
    for n in 0..EXITING {
        std::fs::write(lab.dir().join("gate").join(format!("p{n}")), "").unwrap();
    }
    // While the daemon is down the shims see the exits; the records say so.
    for (pod, id) in &pods[..EXITING] {
        let record = node
            .state()
            .join(format!("pods/{}/containers/{id}/exit.json", pod.id));
        eventually("the shim records the exit", || {
            record.exists().then_some(())
        });
    }
    let at_kill: Vec<_> = pods.iter().map(|(pod, _)| counted(&node, pod)).collect();
    node.launch(None).unwrap();

    assert_eq!(node.pods(None).unwrap().len(), PODS);
    assert_eq!(node.containers(None).unwrap().len(), PODS);
    for (n, (pod, id)) in pods.iter().enumerate() {
        assert_eq!(
            node.pod_status(&pod.id).unwrap().state(),
            PodSandboxState::SandboxReady,
            "p{n}"
        );
        let status = node.container_status(id).unwrap();
        if n < EXITING {
            assert_eq!(status.state(), ContainerState::ContainerExited, "p{n}");
            let code = i32::try_from(40 + n).unwrap();
            assert_eq!(
                (status.exit_code, status.reason.as_str()),
                (code, "Error"),
                "p{n}"
            );
            assert!(status.finished_at > status.started_at, "p{n}: {status:?}");
        } else {
            assert_eq!(status.state(), ContainerState::ContainerRunning, "p{n}");
            assert_eq!(node.sh(id, "hostname"), format!("p{n}"));
        }
    }
    for (n, (pod, _)) in pods.iter().enumerate().skip(EXITING) {
        eventually("the log goes on", || {
            (counted(&node, pod) > at_kill[n]).then_some(())
        });
    }
    let still = &pods[PODS - 1];
    node.stop(&still.1, 0).unwrap();
    assert_eq!(node.container_status(&still.1).unwrap().exit_code, 137);
    lab.close(node);
}

/// A child that was cloned and has not done its exec yet holds the lock of a daemon that was killed.
#[test]
fn privileged_a_lock_that_outlives_the_daemon_is_waited_for() {
    let Some(lab) = Lab::open() else { return };
    let mut node = lab.node();
    node.kill9();
    let lock = std::fs::File::open(node.state().join("lock")).unwrap();
    lock.lock().unwrap();
    let (before, hold) = (Instant::now(), Duration::from_secs(1));
    let held = thread::spawn(move || {
        thread::sleep(hold);
        drop(lock);
    });
    node.launch(None).unwrap();
    assert!(before.elapsed() >= hold, "two had the lock");
    held.join().unwrap();
    lab.close(node);
}

#[test]
fn privileged_sigterm_leaves_pods_running() {
    let Some(lab) = Lab::open() else { return };
    let (mut node, image) = lab.node_with_busybox();
    let (pod, id) = counting(&lab, &node, &image, "steady", 9);
    let before = node.container_status(&id).unwrap();
    assert!(node.term().unwrap().success());
    let seen = counted(&node, &pod);
    eventually("it counts without the daemon", || {
        (counted(&node, &pod) > seen + 5).then_some(())
    });
    node.launch(None).unwrap();
    assert_eq!(node.container_status(&id).unwrap(), before);
    assert_eq!(node.sh(&id, "echo here"), "here");
    std::fs::write(lab.dir().join("gate/steady"), "").unwrap();
    assert_eq!(node.exit_of(&id).exit_code, 9);
    lab.close(node);
}

#[test]
fn privileged_restarts_in_a_row_change_nothing() {
    let Some(lab) = Lab::open() else { return };
    let (mut node, image) = lab.node_with_busybox();
    let (pod, running) = counting(&lab, &node, &image, "steady", 9);
    let created = node
        .create_in(
            &pod,
            &ContainerBuilder::new("later", &image).shell("exit 6"),
        )
        .unwrap();
    let ended = node
        .run_in(
            &pod,
            &ContainerBuilder::new("ended", &image).shell("exit 5"),
        )
        .unwrap();
    node.exit_of(&ended);
    let look = |node: &Node| {
        let mut all = node.containers(None).unwrap();
        all.sort_by(|a, b| a.id.cmp(&b.id));
        (
            all,
            node.pod_status(&pod.id).unwrap(),
            node.container_status(&ended).unwrap(),
        )
    };
    let before = look(&node);
    for _ in 0..4 {
        node.kill9();
        node.launch(None).unwrap();
        assert_eq!(look(&node), before);
    }
    node.start(&created).unwrap();
    assert_eq!(node.exit_of(&created).exit_code, 6);
    assert_eq!(node.sh(&running, "echo here"), "here");
    lab.close(node);
}

#[test]
fn privileged_a_shim_that_died_while_the_daemon_was_down_is_told() {
    let Some(lab) = Lab::open() else { return };
    let (mut node, image) = lab.node_with_busybox();
    let (pod, id) = counting(&lab, &node, &image, "orphan", 9);
    node.kill9();
    let shims: Vec<_> = axil_integration::children::abandoned()
        .into_iter()
        .filter(|p| p.command.contains("containerd-shim-axil-v1"))
        .collect();
    assert_eq!(shims.len(), 1, "{shims:?}");
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(shims[0].pid),
        nix::sys::signal::SIGKILL,
    )
    .unwrap();
    thread::sleep(Duration::from_millis(50));
    node.launch(None).unwrap();
    assert_eq!(
        node.pod_status(&pod.id).unwrap().state(),
        PodSandboxState::SandboxNotready
    );
    let status = node.container_status(&id).unwrap();
    assert_ne!(
        status.state(),
        ContainerState::ContainerRunning,
        "{status:?}"
    );
    node.stop_pod(&pod.id).unwrap();
    node.remove_pod(&pod.id).unwrap();
    lab.close(node);
}

#[test]
fn privileged_a_shim_that_dies_takes_only_its_pod_along() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let (lost, lost_id) = counting(&lab, &node, &image, "lost", 9);
    let shim = axil_integration::children::abandoned()
        .into_iter()
        .find(|p| p.command.contains("containerd-shim-axil-v1"))
        .unwrap();
    let (kept, kept_id) = counting(&lab, &node, &image, "kept", 9);
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(shim.pid),
        nix::sys::signal::SIGKILL,
    )
    .unwrap();
    eventually("the pod is told as not ready", || {
        let status = node.pod_status(&lost.id).unwrap();
        (status.state() == PodSandboxState::SandboxNotready).then_some(())
    });
    eventually("its container is told as not running", || {
        let status = node.container_status(&lost_id).unwrap();
        (status.state() != ContainerState::ContainerRunning).then_some(())
    });
    assert_eq!(
        node.pod_status(&kept.id).unwrap().state(),
        PodSandboxState::SandboxReady
    );
    assert_eq!(node.sh(&kept_id, "echo here"), "here");
    lab.close(node);
}
