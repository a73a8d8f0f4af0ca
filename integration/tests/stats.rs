//! ContainerStats, PodSandboxStats and their lists, compared with what the kernel says past the daemon.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use axil_integration::build::ContainerBuilder;
use axil_integration::eventually::{eventually, within};
use axil_integration::kernel::{Cgroup, Place};
use axil_integration::lab::Lab;
use axil_integration::node::Node;
use axil_proto::cri::{
    ContainerStats, ContainerStatsFilter, PodSandboxStatsFilter, PsiStats, UInt64Value,
};
use tonic::Code;

/// How long until a writable layer was measured again and its figure is told.
const MEASURED: Duration = Duration::from_secs(40);

const CPU_NS: Place = Place {
    controller: "cpuacct",
    v1: ("cpuacct.usage", None),
    v2: ("cpu.stat", Some("usage_usec")),
};
const MEMORY: Place = Place {
    controller: "memory",
    v1: ("memory.usage_in_bytes", None),
    v2: ("memory.current", None),
};
const FAULTS: Place = Place {
    controller: "memory",
    v1: ("memory.stat", Some("total_pgfault")),
    v2: ("memory.stat", Some("pgfault")),
};

fn value(value: Option<UInt64Value>) -> u64 {
    value.expect("the field is set").value
}

/// CPU time in nanoseconds; cgroup v2 counts microseconds.
fn cpu_time(cgroup: &Cgroup) -> u64 {
    let unit = if std::path::Path::new("/sys/fs/cgroup/cpuacct").is_dir() {
        1
    } else {
        1000
    };
    cgroup.number(CPU_NS).unwrap() * unit
}

/// Asks until the answer is newer than this moment: the daemon keeps a reading for a second.
fn fresh(node: &Node, id: &str) -> ContainerStats {
    let before = node.container_stats(id).unwrap().cpu.unwrap().timestamp;
    eventually("a newer reading", || {
        let stats = node.container_stats(id).unwrap();
        (stats.cpu.unwrap().timestamp > before).then_some(stats)
    })
}

/// A container that fills 8 MiB of disk, then uses a fifth of a core for ever.
fn worker(image: &str) -> ContainerBuilder {
    let script = "head -c 8388608 /dev/zero > /filled; echo ready; while :; do :; done";
    ContainerBuilder::new("worker", image)
        .shell(script)
        .limits(|limits| {
            limits.cpu_period = 100_000;
            limits.cpu_quota = 20_000;
            limits.memory_limit_in_bytes = 64 << 20;
            limits.memory_swap_limit_in_bytes = 64 << 20;
        })
}

#[test]
fn privileged_a_containers_stats_are_the_kernels() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let pod = node.up(&lab.pod("p")).unwrap();
    let id = node.run_in(&pod, &worker(&image)).unwrap();
    eventually("it works", || {
        node.log_of(&pod, "worker").contains("ready").then_some(())
    });
    let cgroup = lab.cgroup_of(&pod.id, &id);
    let (cpu_before, faults_before) = (cpu_time(&cgroup), cgroup.number(FAULTS).unwrap());
    let stats = fresh(&node, &id);
    let (cpu_after, faults_after) = (cpu_time(&cgroup), cgroup.number(FAULTS).unwrap());

    let attributes = stats.attributes.unwrap();
    assert_eq!(
        (
            attributes.id.as_str(),
            attributes.metadata.unwrap().name.as_str()
        ),
        (id.as_str(), "worker")
    );
    assert_eq!(attributes.labels["io.kubernetes.container.name"], "worker");

    let cpu = stats.cpu.unwrap();
    let total = value(cpu.usage_core_nano_seconds);
    assert!(
        (cpu_before..=cpu_after).contains(&total),
        "{cpu_before} {total} {cpu_after}"
    );
    let rate = value(cpu.usage_nano_cores);
    assert!(
        (1..500_000_000).contains(&rate),
        "a fifth of a core is not {rate} nano cores"
    );

    let memory = stats.memory.unwrap();
    let (usage, working_set) = (value(memory.usage_bytes), value(memory.working_set_bytes));
    assert!(
        working_set <= usage && usage <= 64 << 20,
        "{working_set} {usage}"
    );
    let kernel = cgroup.number(MEMORY).unwrap();
    assert!(usage.abs_diff(kernel) < 16 << 20, "{usage} {kernel}");
    assert_eq!(value(memory.available_bytes), (64 << 20) - working_set);
    assert!(value(memory.rss_bytes) > 0);
    let faults = value(memory.page_faults);
    assert!(
        (faults_before..=faults_after).contains(&faults),
        "{faults_before} {faults} {faults_after}"
    );
    assert!(value(memory.major_page_faults) <= faults);

    let swap = stats.swap.unwrap();
    assert_eq!(
        (
            value(swap.swap_usage_bytes),
            value(swap.swap_available_bytes)
        ),
        (0, 0)
    );
    lab.close(node);
}

#[test]
fn privileged_pressure_is_told_where_the_kernel_counts_it() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let pod = node.up(&lab.pod("p")).unwrap();
    let id = node.run_in(&pod, &worker(&image)).unwrap();
    let cgroup = lab.cgroup_of(&pod.id, &id);
    let waited = |psi: &PsiStats| psi.some.unwrap().total;
    let total = |file: &str| {
        let text = cgroup.unified(file)?;
        let total = text.lines().next()?.rsplit_once("total=")?.1.parse::<u64>();
        Some(total.unwrap() * 1000)
    };
    let Some(before) = total("cpu.pressure") else {
        // Without pressure files nothing is told.
        let stats = fresh(&node, &id);
        assert_eq!(
            (stats.cpu.unwrap().psi, stats.memory.unwrap().psi, stats.io),
            (None, None, None)
        );
        return lab.close(node);
    };
    let stats = fresh(&node, &id);
    let after = total("cpu.pressure").unwrap();
    let told = waited(stats.cpu.as_ref().unwrap().psi.as_ref().unwrap());
    assert!((before..=after).contains(&told), "{before} {told} {after}");
    assert!(stats.memory.unwrap().psi.is_some() && stats.io.unwrap().psi.is_some());
    lab.close(node);
}

#[test]
fn privileged_a_writable_layer_is_measured_alive_and_ended() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let pod = node.up(&lab.pod("p")).unwrap();
    // The directories that every layer has are told by one that nothing was written to.
    let plain = ContainerBuilder::new("plain", &image).command(&["true"]);
    let plain = node.run_in(&pod, &plain).unwrap();
    node.exit_of(&plain);
    let container = ContainerBuilder::new("c", &image);
    let script = "head -c 8388608 /dev/zero > /filled; mkdir /d; touch /d/1 /d/2 /d/3";
    let id = node.run_in(&pod, &container.shell(script)).unwrap();
    assert_eq!(node.exit_of(&id).exit_code, 0);
    let layer = within(MEASURED, "the layer is measured", || {
        let layer = node.container_stats(&id).unwrap().writable_layer.unwrap();
        (value(layer.used_bytes) >= 8 << 20).then_some(layer)
    });
    assert!(value(layer.used_bytes) < 9 << 20, "{layer:?}");
    let plain = node
        .container_stats(&plain)
        .unwrap()
        .writable_layer
        .unwrap();
    // A file, a directory and three files in it.
    assert_eq!(
        value(layer.inodes_used),
        value(plain.inodes_used) + 5,
        "{layer:?} {plain:?}"
    );
    let mountpoint = node
        .image_fs_info()
        .unwrap()
        .container_filesystems
        .remove(0);
    assert_eq!(layer.fs_id, mountpoint.fs_id);
    // Nothing else is left of a container that ended.
    let stats = node.container_stats(&id).unwrap();
    assert_eq!(
        (stats.cpu, stats.memory, stats.swap, stats.io),
        (None, None, None, None)
    );
    lab.close(node);
}

#[test]
fn privileged_a_pods_stats_have_its_network_processes_and_containers() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let pod = node.up(&lab.pod("p").label("app", "web")).unwrap();
    let empty = node.pod_stats(&pod.id).unwrap().linux.unwrap();
    assert_eq!(value(empty.process.unwrap().process_count), 0);
    assert_eq!(value(empty.cpu.unwrap().usage_core_nano_seconds), 0);
    let script = "sleep 300 & sleep 300 & sleep 300";
    let one = node
        .run_in(&pod, &ContainerBuilder::new("one", &image).shell(script))
        .unwrap();
    let sleeper = ContainerBuilder::new("two", &image).command(&["sleep", "300"]);
    let two = node.run_in(&pod, &sleeper).unwrap();
    let ended = ContainerBuilder::new("ended", &image).command(&["true"]);
    let ended = node.run_in(&pod, &ended).unwrap();
    node.exit_of(&ended);
    node.sh(
        &one,
        "ping -c 3 -W 1 127.0.0.1 >/dev/null; ping -c 1 -W 1 198.51.100.1 >/dev/null || true",
    );

    let linux = eventually("four processes are counted", || {
        let linux = node.pod_stats(&pod.id).unwrap().linux.unwrap();
        (value(linux.process.unwrap().process_count) == 4).then_some(linux)
    });
    let mut containers: Vec<_> = linux
        .containers
        .iter()
        .map(|c| c.attributes.as_ref().unwrap().id.clone())
        .collect();
    containers.sort();
    let mut wanted = vec![one.clone(), two.clone()];
    wanted.sort();
    assert_eq!(containers, wanted);
    let sum: u64 = linux
        .containers
        .iter()
        .map(|c| value(c.cpu.as_ref().unwrap().usage_core_nano_seconds))
        .sum();
    assert!(sum > 0);
    assert!(value(linux.memory.unwrap().usage_bytes) > 0);

    let counters = |way: usize| {
        let line = node.sh(&two, "grep eth0: /proc/net/dev");
        let words: Vec<&str> = line.split(':').nth(1).unwrap().split_whitespace().collect();
        words[way].parse::<u64>().unwrap()
    };
    let sent_before = counters(8);
    let network = eventually("a newer reading of the network", || {
        let network = node.pod_stats(&pod.id).unwrap().linux.unwrap().network?;
        (value(network.default_interface.as_ref()?.tx_bytes) >= sent_before).then_some(network)
    });
    let eth0 = network.default_interface.unwrap();
    assert_eq!(eth0.name, "eth0");
    let sent = value(eth0.tx_bytes);
    assert!(
        (sent_before..=counters(8)).contains(&sent),
        "{sent_before} {sent}"
    );
    assert!(
        network.interfaces.iter().all(|one| one.name != "lo"),
        "{:?}",
        network.interfaces
    );

    let shared = node.up(&lab.pod("shared").host_network()).unwrap();
    let of_node = node.pod_stats(&shared.id).unwrap().linux.unwrap();
    assert_eq!(of_node.network, None);
    node.stop_pod(&shared.id).unwrap();
    let stopped = node.pod_stats(&shared.id).unwrap().linux.unwrap();
    assert_eq!(
        (stopped.cpu, stopped.memory, stopped.process),
        (None, None, None)
    );
    let listed = node.pod_stats_list(None).unwrap();
    assert_eq!(listed.len(), 1, "a stopped pod is listed: {listed:?}");
    lab.close(node);
}

#[test]
fn privileged_stats_are_filtered_by_id_pod_and_labels() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let mut made = Vec::new();
    for name in ["a", "b"] {
        let pod = node.up(&lab.pod(name).label("app", name)).unwrap();
        for container in ["one", "two"] {
            let builder = ContainerBuilder::new(container, &image).command(&["sleep", "300"]);
            made.push((pod.id.clone(), node.run_in(&pod, &builder).unwrap()));
        }
    }
    let containers = |filter: ContainerStatsFilter| {
        let stats = node.container_stats_list(Some(filter)).unwrap();
        let mut ids: Vec<_> = stats
            .into_iter()
            .map(|s| s.attributes.unwrap().id)
            .collect();
        ids.sort();
        ids
    };
    let sorted = |mut ids: Vec<String>| {
        ids.sort();
        ids
    };
    let all: Vec<String> = made.iter().map(|(_, id)| id.clone()).collect();
    assert_eq!(containers(ContainerStatsFilter::default()), sorted(all));
    let of_pod = ContainerStatsFilter {
        pod_sandbox_id: made[0].0.clone(),
        ..Default::default()
    };
    assert_eq!(
        containers(of_pod),
        sorted(vec![made[0].1.clone(), made[1].1.clone()])
    );
    let by_prefix = ContainerStatsFilter {
        id: made[2].1[..13].to_owned(),
        ..Default::default()
    };
    assert_eq!(containers(by_prefix), [made[2].1.clone()]);
    let label = ("io.kubernetes.container.name".to_owned(), "two".to_owned());
    let by_label = ContainerStatsFilter {
        pod_sandbox_id: made[2].0.clone(),
        label_selector: [label].into(),
        ..Default::default()
    };
    assert_eq!(containers(by_label), [made[3].1.clone()]);
    let pods = |filter: PodSandboxStatsFilter| {
        let stats = node.pod_stats_list(Some(filter)).unwrap();
        let ids = stats.into_iter().map(|s| s.attributes.unwrap().id);
        ids.collect::<Vec<_>>()
    };
    let by_label = PodSandboxStatsFilter {
        label_selector: [("app".to_owned(), "b".to_owned())].into(),
        ..Default::default()
    };
    assert_eq!(pods(by_label), [made[2].0.clone()]);
    let by_id = PodSandboxStatsFilter {
        id: made[0].0[..13].to_owned(),
        ..Default::default()
    };
    assert_eq!(pods(by_id), [made[0].0.clone()]);
    for code in [
        node.container_stats("unknown").unwrap_err().code(),
        node.pod_stats("unknown").unwrap_err().code(),
    ] {
        assert_eq!(code, Code::NotFound);
    }
    lab.close(node);
}
