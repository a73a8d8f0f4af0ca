//! A container from CreateContainer to RemoveContainer: its exit, its end, its limits, its identity.

use std::fs;
use std::time::{Duration, Instant};

use axil_integration::build::ContainerBuilder;
use axil_integration::children;
use axil_integration::images::busybox;
use axil_integration::lab::Lab;
use axil_integration::leakcheck;
use axil_proto::cri::{ContainerFilter, ContainerState, ContainerStateValue, PodSandboxState};
use tonic::Code;

#[test]
fn privileged_exit_codes_and_reasons_are_exact() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let pod = node.up(&lab.pod("codes")).unwrap();
    for (name, script, code, reason) in [
        ("zero", "exit 0", 0, "Completed"),
        ("three", "exit 3", 3, "Error"),
        ("most", "exit 255", 255, "Error"),
        ("killed", "kill -9 $$", 137, "Error"),
        ("ended", "trap - TERM; kill -TERM $$; sleep 9", 143, "Error"),
    ] {
        // The first process of a PID namespace ignores signals it has no handler for: use a child.
        let script = format!("sh -c '{script}'; exit $?");
        let id = node
            .run_in(&pod, &ContainerBuilder::new(name, &image).shell(&script))
            .unwrap();
        let status = node.exit_of(&id);
        assert_eq!(
            (status.exit_code, status.reason.as_str()),
            (code, reason),
            "{name}"
        );
        let times = [status.created_at, status.started_at, status.finished_at];
        assert!(times.is_sorted() && times[0] > 0, "{name}: {times:?}");
        assert_eq!(status.image.unwrap().user_specified_image, image);
    }
    lab.close(node);
}

#[test]
fn privileged_stop_lets_a_container_end_by_itself() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let pod = node.up(&lab.pod("polite")).unwrap();
    let script = "trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.05; done";
    let id = node
        .run_in(&pod, &ContainerBuilder::new("c", &image).shell(script))
        .unwrap();
    axil_integration::eventually::eventually("it is ready", || {
        node.log_of(&pod, "c").contains("ready").then_some(())
    });
    let begun = Instant::now();
    node.stop(&id, 20).unwrap();
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "took {:?}",
        begun.elapsed()
    );
    assert_eq!(node.container_status(&id).unwrap().exit_code, 7);
    node.stop(&id, 20).unwrap();
    assert!(node.log_of(&pod, "c").contains("bye"));
    lab.close(node);
}

#[test]
fn privileged_stop_kills_the_whole_cgroup_after_the_grace() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let pod = node.up(&lab.pod("stubborn")).unwrap();
    let script =
        "trap '' TERM; setsid sh -c 'trap \"\" TERM; sleep 300' & while :; do sleep 1; done";
    let id = node
        .run_in(&pod, &ContainerBuilder::new("c", &image).shell(script))
        .unwrap();
    let begun = Instant::now();
    node.stop(&id, 1).unwrap();
    let took = begun.elapsed();
    assert!(
        took >= Duration::from_millis(900) && took < Duration::from_secs(10),
        "{took:?}"
    );
    let status = node.container_status(&id).unwrap();
    assert_eq!(
        (status.state(), status.exit_code),
        (ContainerState::ContainerExited, 137)
    );
    let left: Vec<_> = axil_integration::children::abandoned();
    assert!(
        left.iter().all(|p| !p.command.contains("sleep")),
        "{left:?}"
    );
    lab.close(node);
}

#[test]
fn privileged_a_container_is_restarted_as_the_kubelet_does() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let pod = node.up(&lab.pod("again")).unwrap();
    let container = ContainerBuilder::new("c", &image).shell("echo run; exit 1");
    for attempt in 0..3 {
        let id = node
            .run_in(&pod, &container.clone().attempt(attempt))
            .unwrap();
        let status = node.exit_of(&id);
        assert_eq!(
            (status.metadata.unwrap().attempt, status.exit_code),
            (attempt, 1)
        );
    }
    assert_eq!(node.log_of(&pod, "c").matches("stdout F run").count(), 3);
    lab.close(node);
}

#[test]
fn privileged_a_container_runs_as_whom_it_should() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let pod = node.up(&lab.pod("users")).unwrap();
    let run = |name: &str, change: &dyn Fn(ContainerBuilder) -> ContainerBuilder| {
        let builder = change(ContainerBuilder::new(name, &image).shell("sleep 300"));
        let id = node.run_in(&pod, &builder).unwrap();
        let user = node
            .container_status(&id)
            .unwrap()
            .user
            .unwrap()
            .linux
            .unwrap();
        (node.sh(&id, "id -u; id -g; id -G").replace('\n', " "), user)
    };
    let (seen, user) = run("root", &|c| c);
    assert_eq!((seen.as_str(), user.uid), ("0 0 0", 0));
    let (seen, user) = run("name", &|c| c.user("app"));
    assert_eq!((user.uid, user.gid), (1000, 1000));
    assert!(
        seen.starts_with("1000 1000") && seen.contains("2000") && seen.contains(" 4"),
        "{seen}"
    );
    let (seen, _) = run("number", &|c| c.uid(4711));
    assert!(seen.starts_with("4711 0"), "{seen}");
    let (seen, user) = run("groups", &|c| {
        c.uid(1000)
            .secured(|s| s.supplemental_groups = vec![3000, 3001])
    });
    assert!(
        seen.contains("3000 3001") && user.supplemental_groups.contains(&3001),
        "{seen} {user:?}"
    );
    lab.close(node);
}

#[test]
fn privileged_the_image_gives_command_user_and_directory() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node();
    let image = busybox::image_of_user("app").unwrap();
    let image = lab.shelf().put("axil/defaults", "1", &image);
    node.pull(&image).unwrap();
    let pod = node.up(&lab.pod("defaults")).unwrap();
    let id = node
        .run_in(&pod, &ContainerBuilder::new("c", &image))
        .unwrap();
    assert_eq!(node.exit_of(&id).exit_code, 0);
    let log = node.log_of(&pod, "c");
    for expected in ["uid=1000(app)", "stdout F /srv", "stdout F from the image"] {
        assert!(log.contains(expected), "{expected:?} is not in {log}");
    }
    lab.close(node);
}

#[test]
fn privileged_environment_arguments_and_mounts_arrive() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let shared = lab.unused("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("in"), "from the node").unwrap();
    let pod = node.up(&lab.pod("given")).unwrap();
    let path = shared.to_str().unwrap();
    let container = ContainerBuilder::new("c", &image)
        .command(&["/bin/sh", "-c", "sleep 300; :", "zero", "one two"])
        .env("GREETING", "hello world")
        .mount(path, "/rw", false)
        .mount(path, "/ro", true)
        .with(|config| "/tmp".clone_into(&mut config.working_dir));
    let id = node.run_in(&pod, &container).unwrap();
    assert_eq!(
        node.sh(&id, "echo $GREETING $FROM_IMAGE; pwd"),
        "hello world yes\n/tmp"
    );
    assert_eq!(
        node.sh(
            &id,
            "cat /ro/in; echo out > /rw/out; touch /ro/no || echo refused"
        ),
        "from the noderefused"
    );
    assert_eq!(fs::read_to_string(shared.join("out")).unwrap(), "out\n");
    let arguments = node.sh(&id, "tr '\\0' '|' < /proc/1/cmdline");
    assert_eq!(arguments, "/bin/sh|-c|sleep 300; :|zero|one two|");
    assert_eq!(node.container_status(&id).unwrap().mounts.len(), 2);
    lab.close(node);
}

#[test]
fn privileged_capabilities_and_privileges_are_confined() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let pod = lab.pod("confined").with(|config| {
        let linux = config.linux.as_mut().unwrap();
        linux.security_context.as_mut().unwrap().privileged = true;
    });
    let pod = node.up(&pod).unwrap();
    let run = |name: &str, change: &dyn Fn(ContainerBuilder) -> ContainerBuilder| {
        let builder = change(ContainerBuilder::new(name, &image).shell("sleep 300"));
        node.run_in(&pod, &builder).unwrap()
    };
    let word = |id: &str, key: &str| {
        node.sh(id, &format!("grep {key}: /proc/1/status"))
            .split_whitespace()
            .nth(1)
            .unwrap()
            .to_owned()
    };
    let default = run("default", &|c| c);
    // The fourteen capabilities containers have by default.
    assert_eq!(word(&default, "CapEff"), "00000000a80425fb");
    assert_eq!(word(&default, "Seccomp"), "2");
    assert_eq!(node.sh(&default, "head -c 1 /proc/kcore | wc -c"), "0");
    assert_eq!(
        node.sh(&default, "echo 1 > /proc/sysrq-trigger || echo refused"),
        "refused"
    );
    assert_eq!(
        node.sh(&default, "mount -t tmpfs none /tmp || echo refused"),
        "refused"
    );
    let fewer = run("fewer", &|c| c.capabilities(&[], &["ALL"]));
    assert_eq!(word(&fewer, "CapEff"), "0000000000000000");
    let more = run("more", &|c| c.capabilities(&["NET_ADMIN"], &[]));
    assert_eq!(word(&more, "CapEff"), "00000000a80435fb");
    let fixed = run("fixed", &|c| {
        c.secured(|s| {
            s.readonly_rootfs = true;
            s.no_new_privs = true;
        })
    });
    assert_eq!(word(&fixed, "NoNewPrivs"), "1");
    assert_eq!(node.sh(&fixed, "touch /x || echo refused"), "refused");
    let free = run("free", &|c| {
        c.secured(|s| {
            s.privileged = true;
            s.seccomp = None;
        })
    });
    assert_eq!(word(&free, "Seccomp"), "0");
    assert_eq!(
        node.sh(&free, "mount -t tmpfs none /tmp && echo allowed"),
        "allowed"
    );
    lab.close(node);
}

#[test]
fn privileged_limits_reach_the_cgroup() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let pod = node.up(&lab.pod("limited")).unwrap();
    let container = ContainerBuilder::new("c", &image)
        .shell("sleep 300")
        .limits(|limits| {
            limits.cpu_quota = 25_000;
            limits.cpu_period = 100_000;
            limits.cpu_shares = 512;
            limits.memory_limit_in_bytes = 64 << 20;
            limits.oom_score_adj = 500;
        });
    let id = node.run_in(&pod, &container).unwrap();
    let dirs = leakcheck::find_cgroups(lab.ground().cgroup(), lab.cgroup_of(&pod.id, &id).name());
    let value = |names: &[&str]| {
        let read = |name: &&str| {
            dirs.iter()
                .find_map(|dir| fs::read_to_string(dir.join(name)).ok())
        };
        names
            .iter()
            .find_map(read)
            .unwrap_or_else(|| panic!("none of {names:?} in {dirs:?}"))
    };
    assert_eq!(
        value(&["memory.max", "memory.limit_in_bytes"]).trim(),
        "67108864"
    );
    assert!(value(&["cpu.max", "cpu.cfs_quota_us"]).starts_with("25000"));
    assert!(["20\n", "512\n", "59\n"].contains(&value(&["cpu.weight", "cpu.shares"]).as_str()));
    assert_eq!(node.sh(&id, "cat /proc/1/oom_score_adj"), "500");
    let told = node
        .container_status(&id)
        .unwrap()
        .resources
        .unwrap()
        .linux
        .unwrap();
    assert_eq!(
        (told.memory_limit_in_bytes, told.cpu_quota),
        (64 << 20, 25_000)
    );
    lab.close(node);
}

#[test]
fn privileged_out_of_memory_is_told() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let pod = node.up(&lab.pod("hungry")).unwrap();
    let container = ContainerBuilder::new("c", &image)
        .shell("x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done")
        .limits(|limits| limits.memory_limit_in_bytes = 24 << 20);
    let id = node.run_in(&pod, &container).unwrap();
    let status = node.exit_of(&id);
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (137, "OOMKilled")
    );
    lab.close(node);
}

/// Who reports the death of one container is neither charged for it nor next in line.
#[test]
fn privileged_cve_2019_14891_out_of_memory_ends_the_container_and_not_its_shim() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let pod = node.up(&lab.pod("mixed")).unwrap();
    let calm = ContainerBuilder::new("calm", &image).shell("sleep 300");
    let calm = node.run_in(&pod, &calm).unwrap();
    let shims = || {
        let all = children::abandoned().into_iter();
        let shims = all.filter(|process| process.command.contains("containerd-shim-axil-v1"));
        shims.map(|process| process.pid).collect::<Vec<_>>()
    };
    let before = shims();
    let &[shim] = &before[..] else {
        panic!("{before:?}")
    };
    let hungry = ContainerBuilder::new("hungry", &image)
        .shell("echo begun; sleep 2; x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done")
        .limits(|limits| {
            limits.memory_limit_in_bytes = 24 << 20;
            limits.oom_score_adj = 500;
        });
    let hungry = node.run_in(&pod, &hungry).unwrap();
    let read = |name: &str| fs::read_to_string(format!("/proc/{shim}/{name}")).unwrap();
    let cgroups = read("cgroup");
    assert!(!cgroups.contains(&hungry), "{cgroups}");
    assert!(!cgroups.contains(&calm), "{cgroups}");
    let score: i32 = read("oom_score_adj").trim().parse().unwrap();
    assert!(score < 500, "{score}");
    let status = node.exit_of(&hungry);
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (137, "OOMKilled")
    );
    assert_eq!(shims(), before);
    assert_eq!(
        node.pod_status(&pod.id).unwrap().state(),
        PodSandboxState::SandboxReady
    );
    assert_eq!(node.sh(&calm, "echo here"), "here");
    assert!(node.log_of(&pod, "hungry").contains("begun"));
    lab.close(node);
}

#[test]
fn privileged_containers_are_filtered_by_id_state_pod_and_label() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let (one, two) = (
        node.up(&lab.pod("one")).unwrap(),
        node.up(&lab.pod("two")).unwrap(),
    );
    let container = ContainerBuilder::new("c", &image).shell("sleep 300");
    let created = node.create_in(&one, &container).unwrap();
    let running = node
        .run_in(
            &two,
            &container.clone().with(|c| {
                c.labels.insert("app".to_owned(), "x".to_owned());
            }),
        )
        .unwrap();
    let ids = |filter: ContainerFilter| -> Vec<String> {
        node.containers(Some(filter))
            .unwrap()
            .into_iter()
            .map(|c| c.id)
            .collect()
    };
    let state = |state: ContainerState| ContainerFilter {
        state: Some(ContainerStateValue {
            state: state.into(),
        }),
        ..ContainerFilter::default()
    };
    assert_eq!(
        ids(state(ContainerState::ContainerCreated)),
        [created.as_str()]
    );
    assert_eq!(
        ids(state(ContainerState::ContainerRunning)),
        [running.as_str()]
    );
    let pod_sandbox_id = one.id.clone();
    assert_eq!(
        ids(ContainerFilter {
            pod_sandbox_id,
            ..Default::default()
        }),
        [created.as_str()]
    );
    let label_selector = [("app".to_owned(), "x".to_owned())].into();
    assert_eq!(
        ids(ContainerFilter {
            label_selector,
            ..Default::default()
        }),
        [running.as_str()]
    );
    assert_eq!(
        ids(ContainerFilter {
            id: created.clone(),
            ..Default::default()
        }),
        [created.as_str()]
    );
    lab.close(node);
}

#[test]
fn privileged_a_running_container_can_be_removed() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let pod = node.up(&lab.pod("gone")).unwrap();
    let id = node
        .run_in(&pod, &ContainerBuilder::new("c", &image).shell("sleep 300"))
        .unwrap();
    node.remove(&id).unwrap();
    assert_eq!(
        node.container_status(&id).unwrap_err().code(),
        Code::NotFound
    );
    let again = ContainerBuilder::new("c", &image).shell("exit 0");
    let id = node.run_in(&pod, &again).unwrap();
    assert_eq!(node.exit_of(&id).exit_code, 0);
    lab.close(node);
}
