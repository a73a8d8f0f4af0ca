//! A pod from RunPodSandbox to RemovePodSandbox, through the real socket.

use axil_integration::build::ContainerBuilder;
use axil_integration::lab::Lab;
use axil_proto::cri::{PodSandboxFilter, PodSandboxState, PodSandboxStateValue};
use serde_json::Value;
use tonic::Code;

#[test]
fn privileged_a_pod_runs_is_listed_and_goes() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node();
    let pod = node
        .up(&lab
            .pod("web")
            .label("tier", "front")
            .annotation("note", "kept"))
        .unwrap();
    let status = node.pod_status(&pod.id).unwrap();
    assert_eq!(status.state(), PodSandboxState::SandboxReady);
    assert_eq!(
        (status.metadata, status.labels),
        (pod.config.metadata.clone(), pod.config.labels)
    );
    assert_eq!(status.annotations, pod.config.annotations);
    assert!(
        status
            .network
            .unwrap()
            .ip
            .parse::<std::net::IpAddr>()
            .is_ok()
    );
    node.stop_pod(&pod.id).unwrap();
    assert_eq!(
        node.pod_status(&pod.id).unwrap().state(),
        PodSandboxState::SandboxNotready
    );
    node.remove_pod(&pod.id).unwrap();
    assert_eq!(node.pod_status(&pod.id).unwrap_err().code(), Code::NotFound);
    assert!(node.pods(None).unwrap().is_empty());
    lab.close(node);
}

#[test]
fn privileged_pods_are_filtered_by_id_state_and_label() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node();
    let one = node.up(&lab.pod("one").label("app", "a")).unwrap();
    let two = node.up(&lab.pod("two").label("app", "b")).unwrap();
    node.stop_pod(&two.id).unwrap();
    let ids = |filter: PodSandboxFilter| -> Vec<String> {
        node.pods(Some(filter))
            .unwrap()
            .into_iter()
            .map(|pod| pod.id)
            .collect()
    };
    let state = |state: PodSandboxState| PodSandboxFilter {
        state: Some(PodSandboxStateValue {
            state: state.into(),
        }),
        ..PodSandboxFilter::default()
    };
    assert_eq!(ids(state(PodSandboxState::SandboxReady)), [one.id.as_str()]);
    assert_eq!(
        ids(state(PodSandboxState::SandboxNotready)),
        [two.id.as_str()]
    );
    let id = one.id[..12].to_owned();
    assert_eq!(
        ids(PodSandboxFilter {
            id,
            ..Default::default()
        }),
        [one.id.as_str()]
    );
    let label_selector = [("app".to_owned(), "b".to_owned())].into();
    assert_eq!(
        ids(PodSandboxFilter {
            label_selector,
            ..Default::default()
        }),
        [two.id.as_str()]
    );
    lab.close(node);
}

#[test]
fn privileged_a_container_sees_what_the_pod_says() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let pod = lab
        .pod("seen")
        .sysctl("net.ipv4.ip_unprivileged_port_start", "77");
    let pod = node.up(&pod.sysctl("kernel.shm_rmid_forced", "1")).unwrap();
    let id = node
        .run_in(&pod, &ContainerBuilder::new("c", &image).shell("sleep 300"))
        .unwrap();
    assert_eq!(node.sh(&id, "hostname; cat /etc/hostname"), "seen\nseen");
    let resolv = node.sh(&id, "sort /etc/resolv.conf");
    assert_eq!(
        resolv,
        "nameserver 192.0.2.53\noptions ndots:5\nsearch example.test"
    );
    assert_eq!(
        node.sh(&id, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start"),
        "77"
    );
    assert_eq!(node.sh(&id, "cat /proc/sys/kernel/shm_rmid_forced"), "1");
    assert_eq!(
        node.sh(&id, "echo kept > /dev/shm/x; cat /dev/shm/x"),
        "kept"
    );
    lab.close(node);
}

#[test]
fn privileged_containers_of_a_pod_share_what_they_should() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let pod = node.up(&lab.pod("two")).unwrap();
    let one = node
        .run_in(
            &pod,
            &ContainerBuilder::new("one", &image).shell("sleep 300"),
        )
        .unwrap();
    let two = node
        .run_in(
            &pod,
            &ContainerBuilder::new("two", &image).shell("sleep 300"),
        )
        .unwrap();
    let namespace = |id: &str, kind: &str| node.sh(id, &format!("readlink /proc/self/ns/{kind}"));
    for kind in ["net", "ipc", "uts"] {
        assert_eq!(namespace(&one, kind), namespace(&two, kind), "{kind}");
    }
    for kind in ["pid", "mnt"] {
        assert_ne!(namespace(&one, kind), namespace(&two, kind), "{kind}");
    }
    node.sh(&one, "echo shared > /dev/shm/x");
    assert_eq!(node.sh(&two, "cat /dev/shm/x"), "shared");
    lab.close(node);
}

#[test]
fn privileged_a_shared_process_namespace_outlives_its_containers() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let pod = node.up(&lab.pod("pids").shared_pids()).unwrap();
    let container = |name: &str, script: &str| {
        ContainerBuilder::new(name, &image)
            .shell(script)
            .secured(|security| {
                security.namespace_options.as_mut().unwrap().pid = 0;
            })
    };
    let first = node.run_in(&pod, &container("first", "exit 0")).unwrap();
    node.exit_of(&first);
    let second = node
        .run_in(&pod, &container("second", "sleep 299"))
        .unwrap();
    let third = node.run_in(&pod, &container("third", "sleep 298")).unwrap();
    let seen = node.sh(&third, "ps -o args");
    assert!(
        seen.contains("sleep 299") && seen.contains("sleep 298"),
        "{seen}"
    );
    assert_ne!(node.sh(&second, "echo $$"), "1");
    lab.close(node);
}

#[test]
fn privileged_a_pod_on_the_network_of_the_node_has_no_address_of_its_own() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let pod = node.up(&lab.pod("host").host_network()).unwrap();
    let container = ContainerBuilder::new("c", &image)
        .shell("sleep 300")
        .secured(|security| {
            security.namespace_options.as_mut().unwrap().network = 2;
        });
    let id = node.run_in(&pod, &container).unwrap();
    let ours = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    assert_eq!(
        node.sh(&id, "readlink /proc/self/ns/net"),
        ours.to_string_lossy()
    );
    assert_eq!(
        node.pod_status(&pod.id)
            .unwrap()
            .network
            .unwrap_or_default()
            .ip,
        ""
    );
    lab.close(node);
}

#[test]
fn privileged_the_verbose_status_tells_where_time_went() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node();
    let pod = node.up(&lab.pod("timed")).unwrap();
    let answer = node.pod_status_verbose(&pod.id).unwrap();
    // crictl shows the entries that are objects as JSON, and others as a string.
    for (key, text) in &answer.info {
        let entry: Value = serde_json::from_str(text).unwrap();
        assert!(entry.is_object(), "{key}: {text}");
    }
    let timeline: Value = serde_json::from_str(&answer.info["timeline"]).unwrap();
    let timeline = timeline["steps"].as_array().unwrap();
    let steps: Vec<_> = timeline
        .iter()
        .map(|step| step["step"].as_str().unwrap())
        .collect();
    for step in [
        "RunPodSandbox/record",
        "RunPodSandbox/network",
        "RunPodSandbox/shim",
    ] {
        assert!(steps.contains(&step), "{step} is not in {steps:?}");
    }
    assert!(
        timeline.iter().all(|step| step["took_us"].is_u64()),
        "{timeline:?}"
    );
    lab.close(node);
}

#[test]
fn privileged_removing_a_running_pod_ends_everything_in_it() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let pod = node.up(&lab.pod("busy").host_port(18080, 80)).unwrap();
    let script = "setsid sleep 300 & trap '' TERM; sleep 300 & wait; sleep 300";
    node.run_in(&pod, &ContainerBuilder::new("c", &image).shell(script))
        .unwrap();
    node.remove_pod(&pod.id).unwrap();
    assert!(node.containers(None).unwrap().is_empty());
    lab.close(node);
}

#[test]
fn privileged_a_pod_below_the_cgroup_the_kubelet_named() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    // The kubelet gives the whole path below the root of cgroups, of slices with systemd.
    let ground = lab.ground();
    let (top, parent, pods) = match ground.slice() {
        None => {
            let top = format!("{}/kubepods", ground.cgroup());
            (top.clone(), format!("{top}/burstable/pod1"), None)
        }
        Some(slice) => {
            let pods = format!("{}-kubepods", slice.trim_end_matches(".slice"));
            let top = format!("/{slice}/{pods}.slice");
            let parent = format!("{top}/{pods}-pod1.slice");
            (top, parent, Some(pods))
        }
    };
    let pod = node.up(&lab.pod("placed").cgroup_parent(&parent)).unwrap();
    let id = node
        .run_in(&pod, &ContainerBuilder::new("c", &image).shell("sleep 300"))
        .unwrap();
    let placed = lab.cgroup_of(&pod.id, &id);
    let found = axil_integration::leakcheck::find_cgroups(&parent, placed.name());
    assert!(
        !found.is_empty(),
        "no cgroup of the container below {parent}"
    );
    node.empty().unwrap();
    assert!(axil_integration::leakcheck::find_cgroups(&parent, placed.name()).is_empty());
    // The parent is the kubelet's; removing it here is what the kubelet would do.
    match pods {
        None => axil_integration::leakcheck::remove_cgroups(&top),
        Some(pods) => {
            let stopped = std::process::Command::new("systemctl")
                .args(["--quiet", "stop", &format!("{pods}.slice")])
                .status();
            assert!(stopped.unwrap().success());
        }
    }
    lab.close(node);
}
