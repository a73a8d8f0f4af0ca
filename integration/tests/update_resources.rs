//! UpdateContainerResources and its kin: limits change while the container runs, all or none, and stay changed.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use axil_integration::build::ContainerBuilder;
use axil_integration::eventually::eventually;
use axil_integration::kernel::{Cgroup, Place};
use axil_integration::lab::Lab;
use axil_integration::node::{Node, Pod};
use axil_proto::cri::{HugepageLimit, LinuxContainerResources};
use tonic::Code;

const LIMIT: Place = Place {
    controller: "memory",
    v1: ("memory.limit_in_bytes", None),
    v2: ("memory.max", None),
};
const QUOTA: Place = Place {
    controller: "cpu",
    v1: ("cpu.cfs_quota_us", None),
    v2: ("cpu.max", None),
};
const MIB: i64 = 1 << 20;

/// Asks for something.
type Change = fn(&mut LinuxContainerResources);

/// Memory with swap: what cgroup v1 has in one file, v2 in two.
fn memory_and_swap(cgroup: &Cgroup) -> u64 {
    let place = Place {
        controller: "memory",
        v1: ("memory.memsw.limit_in_bytes", None),
        v2: ("memory.swap.max", None),
    };
    let number = cgroup.number(place).unwrap();
    if std::path::Path::new("/sys/fs/cgroup/memory").is_dir() {
        number
    } else {
        number + cgroup.number(LIMIT).unwrap()
    }
}

fn linux(change: impl FnOnce(&mut LinuxContainerResources)) -> LinuxContainerResources {
    let mut resources = LinuxContainerResources::default();
    change(&mut resources);
    resources
}

fn told(node: &Node, id: &str) -> LinuxContainerResources {
    let status = node.container_status(id).unwrap();
    status.resources.unwrap().linux.unwrap()
}

/// A sleeper with half a core and 64 MiB without swap.
fn sleeper(image: &str) -> ContainerBuilder {
    ContainerBuilder::new("c", image)
        .shell("sleep 300 & sleep 300; true")
        .limits(|limits| {
            limits.cpu_period = 100_000;
            limits.cpu_quota = 50_000;
            limits.memory_limit_in_bytes = 64 * MIB;
            limits.memory_swap_limit_in_bytes = 64 * MIB;
            limits.oom_score_adj = 200;
        })
}

/// `oom_score_adj` of every process of a container.
fn oom_scores(node: &Node, id: &str, count: usize) -> Vec<String> {
    eventually("every process is there", || {
        let text = node.sh(id, "cat /proc/[0-9]*/oom_score_adj");
        let scores: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        (scores.len() >= count).then_some(scores)
    })
}

fn running(lab: &Lab, node: &Node, image: &str) -> (Pod, String, Cgroup) {
    let pod = node.up(&lab.pod("p")).unwrap();
    let id = node.run_in(&pod, &sleeper(image)).unwrap();
    let cgroup = lab.cgroup_of(&pod.id, &id);
    (pod, id, cgroup)
}

#[test]
fn privileged_limits_change_under_a_running_container_and_outlive_the_daemon() {
    let Some(lab) = Lab::open() else { return };
    let (mut node, image) = lab.node_with_busybox();
    let (pod, id, cgroup) = running(&lab, &node, &image);
    assert_eq!(cgroup.number(QUOTA), Some(50_000));

    node.update(&id, linux(|l| l.cpu_quota = 20_000)).unwrap();
    assert_eq!(cgroup.number(QUOTA), Some(20_000));
    assert_eq!(told(&node, &id).cpu_quota, 20_000);
    assert_eq!(told(&node, &id).memory_limit_in_bytes, 64 * MIB);

    // Up and down, without and with swap: the two limits go in the order that the kernel takes.
    for (limit, swap) in [(128, 0), (32, 0), (96, 160), (48, 48)] {
        let change = linux(|l| {
            l.memory_limit_in_bytes = limit * MIB;
            l.memory_swap_limit_in_bytes = swap * MIB;
        });
        node.update(&id, change).unwrap();
        let both = if swap == 0 { limit } else { swap };
        assert_eq!(cgroup.number(LIMIT), u64::try_from(limit * MIB).ok());
        assert_eq!(memory_and_swap(&cgroup), u64::try_from(both * MIB).unwrap());
        let resources = told(&node, &id);
        assert_eq!(
            (
                resources.memory_limit_in_bytes,
                resources.memory_swap_limit_in_bytes
            ),
            (limit * MIB, both * MIB)
        );
    }

    node.update(&id, linux(|l| l.oom_score_adj = 500)).unwrap();
    // The shell, its two sleepers, and the look itself.
    let scores = oom_scores(&node, &id, 4);
    assert!(scores.iter().all(|score| score == "500"), "{scores:?}");
    assert_eq!(told(&node, &id).oom_score_adj, 500);

    let before = told(&node, &id);
    node.kill9();
    node.launch(None).unwrap();
    assert_eq!(told(&node, &id), before);
    assert_eq!(cgroup.number(QUOTA), Some(20_000));
    // The container is still the one that was asked for: the same request again is a retry.
    let again = node.create_in(&pod, &sleeper(&image)).unwrap_err();
    assert_eq!(again.code(), Code::AlreadyExists);
    assert!(
        !again.message().contains("another configuration"),
        "{again}"
    );
    lab.close(node);
}

#[test]
fn privileged_what_the_kernel_refuses_changes_nothing() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let pod = node.up(&lab.pod("p")).unwrap();
    let script = "x=$(head -c 20000000 /dev/zero | tr '\\0' x); echo ready; sleep 300; echo $x";
    let hog = sleeper(&image).shell(script);
    let id = node.run_in(&pod, &hog).unwrap();
    eventually("it has its memory", || {
        node.log_of(&pod, "c").contains("ready").then_some(())
    });
    let cgroup = lab.cgroup_of(&pod.id, &id);
    let before = told(&node, &id);
    // A limit below what is used: cgroup v1 refuses it, v2 takes it and makes room, by ending processes if need be.
    let v1 = Path::new("/sys/fs/cgroup/memory").exists();
    let change = linux(|l| {
        l.cpu_quota = 10_000;
        l.oom_score_adj = 700;
        if v1 {
            l.memory_limit_in_bytes = 4 * MIB;
            l.memory_swap_limit_in_bytes = 4 * MIB;
        } else {
            l.cpuset_cpus = "1000".to_owned();
        }
    });
    let refused = node.update(&id, change).unwrap_err();
    let named = if v1 { "linux.memory_" } else { "cpuset_cpus" };
    assert!(refused.message().contains(named), "{refused}");
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert_eq!(told(&node, &id), before);
    assert_eq!(cgroup.number(LIMIT), u64::try_from(64 * MIB).ok());
    assert_eq!(cgroup.number(QUOTA), Some(50_000));
    let scores = oom_scores(&node, &id, 3);
    assert!(!scores.iter().any(|score| score == "700"), "{scores:?}");
    assert_eq!(node.sh(&id, "echo alive"), "alive");
    // What is possible is done afterwards as if nothing had been.
    node.update(&id, linux(|l| l.cpu_quota = 10_000)).unwrap();
    assert_eq!(cgroup.number(QUOTA), Some(10_000));
    lab.close(node);
}

#[test]
fn privileged_wrong_limits_are_refused_by_name() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let (_pod, id, cgroup) = running(&lab, &node, &image);
    let refusals: [(&str, Change); 8] = [
        ("linux.cpu_shares", |l| l.cpu_shares = -1),
        ("cpu_quota", |l| l.cpu_quota = 1),
        ("linux.memory_limit_in_bytes", |l| {
            l.memory_limit_in_bytes = -5;
        }),
        ("memory_swap_limit_in_bytes", |l| {
            l.memory_swap_limit_in_bytes = MIB;
        }),
        ("linux.oom_score_adj", |l| l.oom_score_adj = 1001),
        ("cpuset_cpus", |l| l.cpuset_cpus = "all".into()),
        ("cpuset_cpus", |l| l.cpuset_cpus = "99999".into()),
        ("unified", |l| {
            l.unified.insert("cgroup.kill".into(), "1".into());
        }),
    ];
    for (field, change) in refusals {
        let refused = node.update(&id, linux(change)).unwrap_err();
        assert!(refused.message().contains(field), "{field}: {refused}");
        let codes = [
            Code::InvalidArgument,
            Code::FailedPrecondition,
            Code::Unimplemented,
        ];
        assert!(codes.contains(&refused.code()), "{field}: {refused}");
    }
    assert_eq!(cgroup.number(QUOTA), Some(50_000));
    // The kubelet sends a zero limit for every page size, whatever the host can limit.
    let zero = linux(|l| {
        l.hugepage_limits = ["2MB", "1GB", "64KB"].map(zero_pages).to_vec();
    });
    node.update(&id, zero).unwrap();
    assert_eq!(
        node.update("unknown", linux(|_| {})).unwrap_err().code(),
        Code::NotFound
    );
    node.stop(&id, 0).unwrap();
    let ended = node
        .update(&id, linux(|l| l.cpu_quota = 20_000))
        .unwrap_err();
    assert_eq!(ended.code(), Code::FailedPrecondition, "{ended}");
    lab.close(node);
}

fn zero_pages(size: &str) -> HugepageLimit {
    HugepageLimit {
        page_size: size.to_owned(),
        limit: 0,
    }
}

#[test]
fn privileged_a_created_container_starts_with_the_limits_it_was_changed_to() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let pod = node.up(&lab.pod("p")).unwrap();
    let id = node.create_in(&pod, &sleeper(&image)).unwrap();
    node.update(&id, linux(|l| l.cpu_quota = 30_000)).unwrap();
    node.start(&id).unwrap();
    assert_eq!(lab.cgroup_of(&pod.id, &id).number(QUOTA), Some(30_000));
    assert_eq!(told(&node, &id).cpu_quota, 30_000);
    lab.close(node);
}

#[test]
fn privileged_a_daemon_that_dies_in_an_update_finishes_it() {
    let Some(lab) = Lab::open() else { return };
    let (mut node, image) = lab.node_with_busybox();
    let (_pod, id, cgroup) = running(&lab, &node, &image);
    for (fault, quota) in [
        ("UpdateContainerResources/cgroups=kill", 30_000),
        ("UpdateContainerResources/cgroups=kill-after", 40_000),
    ] {
        node.term();
        node.launch(Some(fault)).unwrap();
        node.update(&id, linux(|l| l.cpu_quota = quota))
            .unwrap_err();
        node.wait_for_end();
        node.launch(None).unwrap();
        eventually(&format!("{fault}: the update is done again"), || {
            (told(&node, &id).cpu_quota == quota).then_some(())
        });
        assert_eq!(cgroup.number(QUOTA), u64::try_from(quota).ok(), "{fault}");
    }
    lab.close(node);
}

#[test]
fn privileged_a_pods_resources_are_recorded_and_shown() {
    let Some(lab) = Lab::open() else { return };
    let (mut node, _image) = lab.node_with_busybox();
    let pod = node.up(&lab.pod("p")).unwrap();
    let shown = |node: &Node| {
        let info = node.pod_status_verbose(&pod.id).unwrap().info["info"].clone();
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        info["resources"].clone()
    };
    assert_eq!(shown(&node)["resources"], serde_json::Value::Null);
    let resources = linux(|l| l.memory_limit_in_bytes = 64 * MIB);
    node.update_pod(&pod.id, None, Some(resources)).unwrap();
    let overhead = linux(|l| l.cpu_quota = 5000);
    node.update_pod(&pod.id, Some(overhead), None).unwrap();
    node.kill9();
    node.launch(None).unwrap();
    let now = shown(&node);
    assert_eq!(now["resources"]["memory_limit_bytes"], 64 * MIB);
    assert_eq!(now["overhead"]["cpu_quota_us"], 5000);
    let wrong = linux(|l| l.cpu_period = -1);
    let refused = node.update_pod(&pod.id, Some(wrong), None).unwrap_err();
    assert!(
        refused.message().contains("overhead.cpu_period"),
        "{refused}"
    );
    let unknown = node.update_pod("unknown", None, None).unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    // The same request again is still this pod.
    assert_eq!(node.run_pod(&pod.config).unwrap(), pod.id);
    lab.close(node);
}

#[test]
fn privileged_the_pod_cidr_is_noted_and_checked() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node();
    node.update_runtime_config("10.244.3.0/24").unwrap();
    node.update_runtime_config("10.244.3.0/24,fd00:10:244:3::/64")
        .unwrap();
    node.update_runtime_config("").unwrap();
    for wrong in ["10.244.3.0", "10.244.3.0/24,", "pods/24"] {
        let refused = node.update_runtime_config(wrong).unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{wrong}: {refused}");
        assert!(refused.message().contains("pod_cidr"), "{refused}");
    }
    lab.close(node);
}
