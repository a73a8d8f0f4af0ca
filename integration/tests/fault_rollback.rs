//! Every step of every verb is made to fail, before and after it ran, by an error and by the death of the
//! daemon; the kubelet's next identical try must work, and nothing may be left behind.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use axil_integration::build::ContainerBuilder;
use axil_integration::children;
use axil_integration::cri::Answer;
use axil_integration::eventually::eventually;
use axil_integration::kernel::Place;
use axil_integration::lab::Lab;
use axil_integration::node::{Node, Pod};
use axil_proto::cri::{ContainerState, LinuxContainerResources};

const QUOTA: Place = Place {
    controller: "cpu",
    v1: ("cpu.cfs_quota_us", None),
    v2: ("cpu.max", None),
};

/// The steps of one verb, as the daemon lists them.
fn steps(lab: &Lab, verb: &str) -> Vec<String> {
    let axild = lab.binaries().axild();
    let text = children::read(axild.to_str().unwrap(), &["--list-steps"]).unwrap();
    let steps: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with(&format!("{verb}/")))
        .collect();
    assert!(!steps.is_empty(), "axild lists no step of {verb}: {text}");
    steps.into_iter().map(str::to_owned).collect()
}

/// What a verb works on: set up without a fault, before the daemon that has one.
struct Stage {
    pod: Option<Pod>,
    container: Option<String>,
    image: String,
}

impl Stage {
    fn set(lab: &Lab, node: &Node, verb: &str) -> Self {
        let image = lab.busybox();
        let mut stage = Self {
            pod: None,
            container: None,
            image,
        };
        if matches!(verb, "RunPodSandbox" | "PullImage") {
            return stage;
        }
        let pod = node.up(&lab.pod("stage").host_port(18080, 80)).unwrap();
        node.pull(&stage.image).unwrap();
        let container = Self::container(&stage.image);
        stage.container = match verb {
            "CreateContainer" => None,
            "StartContainer" => Some(node.create_in(&pod, &container).unwrap()),
            _ => Some(node.run_in(&pod, &container).unwrap()),
        };
        stage.pod = Some(pod);
        stage
    }

    fn container(image: &str) -> ContainerBuilder {
        ContainerBuilder::new("c", image)
            .shell("echo up; trap 'exit 0' TERM; while :; do sleep 0.1; done")
    }

    fn change() -> LinuxContainerResources {
        LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: 30_000,
            oom_score_adj: 300,
            ..LinuxContainerResources::default()
        }
    }

    /// The call under test; made again it is the kubelet's identical retry.
    fn act(&self, lab: &Lab, node: &Node, verb: &str) -> Answer<()> {
        let pod = self.pod.as_ref();
        let id = self.container.as_deref().unwrap_or_default();
        match verb {
            "RunPodSandbox" => node.up(&lab.pod("acted").host_port(18080, 80)).map(drop),
            "CreateContainer" => node
                .create_in(pod.unwrap(), &Self::container(&self.image))
                .map(drop),
            "StartContainer" => node.start(id),
            "StopPodSandbox" => node.stop_pod(&pod.unwrap().id),
            "RemovePodSandbox" => node.remove_pod(&pod.unwrap().id),
            "RemoveContainer" => node.remove(id),
            "UpdateContainerResources" => node.update(id, Self::change()),
            "PullImage" => node.pull(&self.image).map(drop),
            other => panic!("no act for {other}"),
        }
    }
}

/// Tries one fault at each step of a verb.
fn try_every_step(verb: &str, mode: &str) {
    let Some(lab) = Lab::open() else { return };
    let mut node = lab.node();
    for step in steps(&lab, verb) {
        let fault = format!("{step}={mode}");
        let stage = Stage::set(&lab, &node, verb);
        node.term();
        node.launch(Some(&fault)).unwrap();
        let failed = stage.act(&lab, &node, verb);
        let status = failed.expect_err(&format!("{fault} did not strike"));
        if mode.starts_with("kill") {
            node.wait_for_end();
        } else {
            assert!(
                status.message().contains("fault injected"),
                "{fault}: {status}"
            );
            assert_undone(&lab, &node, verb, &fault);
            node.term();
        }
        node.launch(None)
            .unwrap_or_else(|error| panic!("{fault}: {error:#}"));
        retry(&lab, &node, &stage, verb, &fault);
        node.empty()
            .unwrap_or_else(|error| panic!("{fault}: {error:#}"));
        let leaks = lab.leaks(&node);
        assert!(
            leaks.is_empty(),
            "{fault} left behind:\n  {}",
            leaks.join("\n  ")
        );
        // A shim that was never asked for its sandbox has nothing to tell of.
        let log = node.log();
        let warned = |line: &&str| line.contains("end by itself") && line.contains("not found");
        assert_eq!(log.lines().find(warned), None, "{fault}");
    }
    lab.close(node);
}

/// A verb that makes something left nothing visible when it failed.
fn assert_undone(lab: &Lab, node: &Node, verb: &str, fault: &str) {
    match verb {
        "RunPodSandbox" => {
            assert_eq!(node.pods(None).unwrap(), [], "{fault}");
            let leaks = lab.leaks(node);
            assert!(
                leaks.is_empty(),
                "{fault}, before the retry:\n  {}",
                leaks.join("\n  ")
            );
        }
        "CreateContainer" => {
            assert_eq!(node.containers(None).unwrap(), [], "{fault}");
            let mounts = axil_integration::leakcheck::mounts_below(lab.dir());
            assert!(
                mounts.iter().all(|m| !m.contains("/containers/")),
                "{fault}: {mounts:?}"
            );
        }
        "UpdateContainerResources" => {
            let containers = node.containers(None).unwrap();
            let status = node.container_status(&containers[0].id).unwrap();
            let resources = status.resources.unwrap().linux.unwrap();
            assert_eq!(resources, LinuxContainerResources::default(), "{fault}");
            let score = node.sh(&containers[0].id, "cat /proc/1/oom_score_adj");
            assert_eq!(score, "0", "{fault}");
            let cgroup = lab.cgroup_of(&containers[0].pod_sandbox_id, &containers[0].id);
            // Unlimited is no number.
            assert_eq!(cgroup.number(QUOTA), None, "{fault}");
        }
        // The record is what makes an image: after it was written the image is whole.
        "PullImage" if fault == "PullImage/record=error-after" => {}
        "PullImage" => assert_eq!(node.list_images().unwrap(), [], "{fault}"),
        _ => {}
    }
}

fn retry(lab: &Lab, node: &Node, stage: &Stage, verb: &str, fault: &str) {
    let again = |what: &str| -> ! { panic!("{fault}: the retry failed: {what}") };
    if verb == "StartContainer" {
        return restart(node, stage, fault);
    }
    stage
        .act(lab, node, verb)
        .unwrap_or_else(|status| again(&status.to_string()));
    let (pods, containers) = (node.pods(None).unwrap(), node.containers(None).unwrap());
    match verb {
        "RunPodSandbox" => assert_eq!(pods.len(), 1, "{fault}"),
        "CreateContainer" => {
            assert_eq!(containers.len(), 1, "{fault}");
            node.start(&containers[0].id)
                .unwrap_or_else(|status| again(&status.to_string()));
        }
        "RemovePodSandbox" => assert_eq!((pods.len(), containers.len()), (0, 0), "{fault}"),
        "RemoveContainer" => assert_eq!(containers, [], "{fault}"),
        "UpdateContainerResources" => {
            let status = node.container_status(&containers[0].id).unwrap();
            let resources = status.resources.unwrap().linux.unwrap();
            assert_eq!(resources, Stage::change(), "{fault}");
        }
        _ => {}
    }
}

/// After a failed start the kubelet starts again, or, when the container counts as ended, makes a new one.
fn restart(node: &Node, stage: &Stage, fault: &str) {
    let id = stage.container.as_deref().unwrap();
    let status = node.container_status(id).unwrap();
    let id = match status.state() {
        ContainerState::ContainerCreated => {
            node.start(id)
                .unwrap_or_else(|status| panic!("{fault}: {status}"));
            id.to_owned()
        }
        ContainerState::ContainerRunning => id.to_owned(),
        ContainerState::ContainerExited | ContainerState::ContainerUnknown => {
            let container = Stage::container(&stage.image).attempt(1);
            node.run_in(stage.pod.as_ref().unwrap(), &container)
                .unwrap_or_else(|status| panic!("{fault}: {status}"))
        }
    };
    eventually(&format!("{fault}: the container runs"), || {
        let status = node.container_status(&id).ok()?;
        (status.state() == ContainerState::ContainerRunning).then_some(())
    });
}

macro_rules! faults {
    ($($verb:literal: $error:ident, $error_after:ident, $kill:ident, $kill_after:ident;)*) => {$(
        #[test]
        fn $error() {
            try_every_step($verb, "error");
        }

        #[test]
        fn $error_after() {
            try_every_step($verb, "error-after");
        }

        #[test]
        fn $kill() {
            try_every_step($verb, "kill");
        }

        #[test]
        fn $kill_after() {
            try_every_step($verb, "kill-after");
        }
    )*};
}

faults! {
    "RunPodSandbox": privileged_run_pod_fails, privileged_run_pod_fails_after,
        privileged_run_pod_dies, privileged_run_pod_dies_after;
    "CreateContainer": privileged_create_fails, privileged_create_fails_after,
        privileged_create_dies, privileged_create_dies_after;
    "StartContainer": privileged_start_fails, privileged_start_fails_after,
        privileged_start_dies, privileged_start_dies_after;
    "PullImage": privileged_pull_fails, privileged_pull_fails_after,
        privileged_pull_dies, privileged_pull_dies_after;
    "StopPodSandbox": privileged_stop_pod_fails, privileged_stop_pod_fails_after,
        privileged_stop_pod_dies, privileged_stop_pod_dies_after;
    "RemovePodSandbox": privileged_remove_pod_fails, privileged_remove_pod_fails_after,
        privileged_remove_pod_dies, privileged_remove_pod_dies_after;
    "RemoveContainer": privileged_remove_fails, privileged_remove_fails_after,
        privileged_remove_dies, privileged_remove_dies_after;
    "UpdateContainerResources": privileged_update_fails, privileged_update_fails_after,
        privileged_update_dies, privileged_update_dies_after;
}
