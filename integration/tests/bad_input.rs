//! Wrong requests and broken surroundings: the right code, a message that names the value, nothing left.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use axil_integration::build::ContainerBuilder;
use axil_integration::cri::Answer;
use axil_integration::faults::StandIn;
use axil_integration::images::{Compression, Entry, Image, Layer};
use axil_integration::lab::Lab;
use axil_integration::node::NodeOptions;
use axil_proto::cri::{ContainerState, Mount, PodSandboxConfig};
use nix::mount::{MsFlags, mount};
use serde_json::json;
use tonic::{Code, Status};

/// The call failed with one of `codes` and a message that has every word.
#[track_caller]
fn refused<T: std::fmt::Debug>(answer: Answer<T>, codes: &[Code], words: &[&str]) -> Status {
    let status = answer.unwrap_err();
    assert!(
        codes.contains(&status.code()),
        "{:?} is none of {codes:?}: {status}",
        status.code()
    );
    for word in words {
        assert!(
            status.message().contains(word),
            "{word:?} is not in {:?}",
            status.message()
        );
    }
    status
}

#[test]
fn privileged_images_that_cannot_be_had() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let address = lab.shelf().address();
    let missing = format!("{address}/no/such:1");
    refused(node.pull(&missing), &[Code::NotFound], &[&missing]);
    let digest = format!("{address}/axil/busybox@sha256:{}", "1".repeat(64));
    refused(node.pull(&digest), &[Code::NotFound], &[&digest]);
    for bad in [
        "",
        "app/UPPER",
        "a b",
        "x:y:z",
        "x@sha256:short",
        "../../etc/passwd",
        "-x",
        "a//b",
    ] {
        let words: &[&str] = if bad.is_empty() { &[] } else { &[bad] };
        refused(node.pull(bad), &[Code::InvalidArgument], words);
    }
    refused(
        node.pull("127.0.0.1:9/x:1"),
        &[Code::Unknown],
        &["RegistryUnavailable: ", "127.0.0.1:9"],
    );
    let pod = node.up(&lab.pod("p")).unwrap();
    let absent = ContainerBuilder::new("c", "example.test/not/pulled:1").shell("exit 0");
    refused(
        node.create_in(&pod, &absent),
        &[Code::NotFound],
        &["example.test/not/pulled:1"],
    );
    assert_eq!(
        node.image_status("example.test/not/pulled:1").unwrap(),
        None
    );
    node.run_in(&pod, &ContainerBuilder::new("c", &image).shell("exit 0"))
        .unwrap();
    lab.close(node);
}

#[test]
fn privileged_a_full_disk_is_told_and_nothing_is_kept() {
    let Some(lab) = Lab::open() else { return };
    let root = lab.dir().join("root");
    std::fs::create_dir(&root).unwrap();
    mount(
        Some("tmpfs"),
        &root,
        Some("tmpfs"),
        MsFlags::empty(),
        Some("size=6m"),
    )
    .unwrap();
    let node = lab.node();
    let big = Layer::new(Compression::Gzip).entry("big", 0o644, 0, Entry::Text(vec![7; 12 << 20]));
    let big = lab
        .shelf()
        .put("too/big", "1", &Image::build(&json!({}), &[big]).unwrap());
    refused(node.pull(&big), &[Code::ResourceExhausted], &[&big]);
    assert_eq!(node.list_images().unwrap(), []);
    let small = lab.busybox();
    node.pull(&small).unwrap();
    node.empty().unwrap();
    let leaks: Vec<_> = lab.leaks(&node);
    let ours = format!("mount {}", root.display());
    assert!(leaks.iter().all(|leak| *leak == ours), "{leaks:?}");
}

#[test]
fn privileged_pods_that_cannot_be() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node();
    let invalid = &[Code::InvalidArgument];
    let nameless = lab.pod("x").with(|config| config.metadata = None);
    refused(node.up(&nameless), invalid, &["metadata"]);
    let unnamed = lab.pod("x").with(|config| {
        config.metadata.as_mut().unwrap().name.clear();
    });
    refused(node.up(&unnamed), invalid, &["name"]);
    let handler = node.run_pod_with("no-such-handler", &lab.pod("x").build());
    refused(
        handler,
        &[Code::InvalidArgument, Code::NotFound],
        &["no-such-handler"],
    );
    for (key, value) in [("kernel.panic", "1"), ("net.ipv4.ip_forward", "no-number")] {
        let answer = node.up(&lab.pod("x").sysctl(key, value));
        refused(answer, &[Code::InvalidArgument, Code::Internal], &[key]);
    }
    refused(
        node.up(&lab.pod("x").host_port(70_000, 80)),
        invalid,
        &["70000"],
    );
    let parent = lab.pod("x").cgroup_parent("/../../escape");
    refused(node.up(&parent), invalid, &["/../../escape"]);
    refused(
        node.run_pod(&PodSandboxConfig::default()),
        invalid,
        &["metadata"],
    );
    assert!(node.pods(None).unwrap().is_empty());
    lab.assert_clean(&node);
    node.up(&lab.pod("x")).unwrap();
    lab.close(node);
}

#[test]
fn privileged_containers_that_cannot_be() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let pod = node.up(&lab.pod("p")).unwrap();
    let base = || ContainerBuilder::new("c", &image).shell("exit 0");
    let invalid = &[Code::InvalidArgument];
    refused(
        node.create_in(&pod, &base().user("nobody-here")),
        invalid,
        &["nobody-here"],
    );
    let gone = base().mount("/no/such/source", "/x", false);
    refused(
        node.create_in(&pod, &gone),
        &[Code::InvalidArgument, Code::NotFound],
        &["/no/such/source"],
    );
    let out = base().with(|config| "../../out.log".clone_into(&mut config.log_path));
    refused(node.create_in(&pod, &out), invalid, &["../../out.log"]);
    let capability = base().capabilities(&["NO_SUCH_CAP"], &[]);
    refused(node.create_in(&pod, &capability), invalid, &["NO_SUCH_CAP"]);
    let relative = base().with(|config| {
        config.mounts.push(Mount {
            container_path: String::new(),
            host_path: "/tmp".to_owned(),
            ..Mount::default()
        });
    });
    refused(
        node.create_in(&pod, &relative),
        invalid,
        &["container_path"],
    );
    let nameless = base().with(|config| config.metadata = None);
    refused(node.create_in(&pod, &nameless), invalid, &["metadata"]);
    let negative = base().limits(|limits| limits.memory_limit_in_bytes = -5);
    refused(node.create_in(&pod, &negative), invalid, &["-5"]);
    assert!(node.containers(None).unwrap().is_empty());
    let id = node.run_in(&pod, &base()).unwrap();
    assert_eq!(node.exit_of(&id).exit_code, 0);
    lab.close(node);
}

#[test]
fn privileged_commands_that_do_not_exist() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let pod = node.up(&lab.pod("p")).unwrap();
    for (attempt, command) in ["/no/such/command", "nothing-like-it", "/etc/passwd"]
        .iter()
        .enumerate()
    {
        let container = ContainerBuilder::new("c", &image).command(&[command]);
        let container = container.attempt(u32::try_from(attempt).unwrap());
        let codes = &[
            Code::InvalidArgument,
            Code::NotFound,
            Code::FailedPrecondition,
        ];
        match node.create_in(&pod, &container) {
            Err(status) => {
                refused(Err::<(), _>(status), codes, &[command]);
            }
            Ok(id) => {
                refused(node.start(&id), codes, &[command]);
                let status = node.container_status(&id).unwrap();
                assert_eq!(
                    status.state(),
                    ContainerState::ContainerExited,
                    "{status:?}"
                );
                assert!((126..=128).contains(&status.exit_code), "{status:?}");
                assert!(
                    status.message.contains(command) && !status.reason.is_empty(),
                    "{status:?}"
                );
                node.remove(&id).unwrap();
            }
        }
    }
    lab.close(node);
}

#[test]
fn privileged_unknown_ids() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node();
    for id in ["no-such-id", "../../etc", "f".repeat(64).as_str()] {
        node.stop_pod(id).unwrap();
        node.remove_pod(id).unwrap();
        node.stop(id, 1).unwrap();
        node.remove(id).unwrap();
        let missing = &[Code::NotFound];
        refused(node.pod_status(id), missing, &[id]);
        refused(node.container_status(id), missing, &[id]);
        refused(node.start(id), missing, &[id]);
        refused(node.exec(id, &["true"], 1), missing, &[id]);
        refused(node.reopen_log(id), missing, &[id]);
        let container = ContainerBuilder::new("c", "x").build();
        refused(
            node.create(id, &container, &lab.pod("p").build()),
            missing,
            &[id],
        );
    }
    node.remove_image("example.test/none:1").unwrap();
    refused(
        node.pod_status(""),
        &[Code::InvalidArgument],
        &["pod_sandbox_id"],
    );
    refused(
        node.container_status(""),
        &[Code::InvalidArgument],
        &["container_id"],
    );
    lab.close(node);
}

#[test]
fn privileged_stop_and_remove_can_be_repeated() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let pod = node.up(&lab.pod("p")).unwrap();
    let id = node
        .run_in(&pod, &ContainerBuilder::new("c", &image).shell("sleep 300"))
        .unwrap();
    for _ in 0..2 {
        node.stop(&id, 0).unwrap();
    }
    let codes = &[Code::FailedPrecondition];
    refused(node.start(&id), codes, &[&id]);
    for _ in 0..2 {
        node.remove(&id).unwrap();
    }
    for _ in 0..2 {
        node.stop_pod(&pod.id).unwrap();
    }
    refused(
        node.create_in(&pod, &ContainerBuilder::new("d", &image)),
        codes,
        &[&pod.id],
    );
    for _ in 0..2 {
        node.remove_pod(&pod.id).unwrap();
        node.stop_pod(&pod.id).unwrap();
    }
    lab.close(node);
}

#[test]
fn privileged_a_taken_name_is_refused_and_an_identical_retry_joins() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let pod = node.up(&lab.pod("p")).unwrap();
    assert_eq!(node.up(&lab.pod("p")).unwrap().id, pod.id);
    let other = lab.pod("p").label("changed", "yes");
    refused(
        node.up(&other),
        &[Code::AlreadyExists],
        &["default/p", &pod.id],
    );
    let container = ContainerBuilder::new("c", &image).shell("sleep 300");
    let id = node.create_in(&pod, &container).unwrap();
    assert_eq!(node.create_in(&pod, &container).unwrap(), id);
    let other = container.clone().env("CHANGED", "yes");
    refused(
        node.create_in(&pod, &other),
        &[Code::AlreadyExists],
        &["c", &id],
    );
    assert_eq!(node.pods(None).unwrap().len(), 1);
    assert_eq!(node.containers(None).unwrap().len(), 1);
    lab.close(node);
}

#[test]
fn privileged_many_identical_requests_make_one_pod() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let config = lab.pod("one").build();
    let container = ContainerBuilder::new("c", &image)
        .shell("sleep 300")
        .build();
    let ids: Vec<_> = std::thread::scope(|scope| {
        let asked: Vec<_> = (0..12)
            .map(|_| {
                let (client, config, container) = (node.client(), &config, &container);
                scope.spawn(move || {
                    let pod = client.run_pod(config).unwrap();
                    let id = client.create(&pod, container, config).unwrap();
                    (pod, id)
                })
            })
            .collect();
        asked
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert!(ids.iter().all(|pair| *pair == ids[0]), "{ids:?}");
    assert_eq!(
        (
            node.pods(None).unwrap().len(),
            node.containers(None).unwrap().len()
        ),
        (1, 1)
    );
    lab.close(node);
}

#[test]
fn privileged_a_caller_that_gives_up_is_joined_by_its_retry() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node();
    let hasty = node
        .client()
        .with_deadline(std::time::Duration::from_millis(2));
    let config = lab.pod("slow").build();
    let _gave_up = hasty.run_pod(&config);
    drop(hasty);
    let id = node.run_pod(&config).unwrap();
    let pods = node.pods(None).unwrap();
    assert_eq!(
        pods.iter().map(|pod| pod.id.as_str()).collect::<Vec<_>>(),
        [id.as_str()]
    );
    lab.close(node);
}

#[test]
fn privileged_a_shim_that_cannot_start_leaves_nothing() {
    let Some(lab) = Lab::open() else { return };
    let shim = StandIn::shim(&lab.unused("shim"), "containerd-shim-test-v1").unwrap();
    shim.set("fail").unwrap();
    let options = NodeOptions {
        shim: Some(shim.path().to_owned()),
        ..NodeOptions::default()
    };
    let node = lab.node_with(options);
    let answer = node.up(&lab.pod("p").host_port(18080, 80));
    refused(
        answer,
        &[Code::Internal, Code::Unavailable],
        &["the shim was told to fail"],
    );
    assert!(node.pods(None).unwrap().is_empty());
    lab.close(node);
}

#[test]
fn privileged_a_shim_that_hangs_is_given_up() {
    let Some(lab) = Lab::open() else { return };
    let shim = StandIn::shim(&lab.unused("shim"), "containerd-shim-test-v1").unwrap();
    shim.set("hang").unwrap();
    let options = NodeOptions {
        shim: Some(shim.path().to_owned()),
        ..NodeOptions::default()
    };
    let node = lab.node_with(options);
    refused(node.up(&lab.pod("p")), &[Code::DeadlineExceeded], &["shim"]);
    assert!(node.pods(None).unwrap().is_empty());
    lab.close(node);
}

#[test]
fn privileged_an_oci_runtime_that_fails_is_told_and_undone() {
    let Some(lab) = Lab::open() else { return };
    let real = lab.binaries().runc_lite();
    let runtime = StandIn::runtime(&lab.unused("runtime"), "faulty", &real).unwrap();
    let options = NodeOptions {
        runtime: Some(runtime.path().to_owned()),
        ..NodeOptions::default()
    };
    let node = lab.node_with(options);
    let image = lab.busybox();
    node.pull(&image).unwrap();
    let pod = node.up(&lab.pod("p")).unwrap();
    let container = ContainerBuilder::new("c", &image).shell("exit 3");
    runtime.set("create").unwrap();
    refused(
        node.create_in(&pod, &container),
        &[Code::Internal],
        &["the runtime was told to fail"],
    );
    assert!(node.containers(None).unwrap().is_empty());
    runtime.set("start").unwrap();
    let id = node.create_in(&pod, &container).unwrap();
    refused(
        node.start(&id),
        &[Code::Internal],
        &["the runtime was told to fail"],
    );
    assert_ne!(
        node.container_status(&id).unwrap().state(),
        ContainerState::ContainerRunning
    );
    runtime.set("work").unwrap();
    node.remove(&id).unwrap();
    let id = node.run_in(&pod, &container.attempt(1)).unwrap();
    assert_eq!(node.exit_of(&id).exit_code, 3);
    lab.close(node);
}

#[test]
fn privileged_a_second_daemon_on_the_same_directories_is_refused() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node();
    let axild = lab.binaries().axild();
    let config = lab.dir().join("config.toml");
    let mut second = std::process::Command::new(&axild);
    second.arg("--config").arg(&config);
    let mut second = axil_integration::children::Running::start(&mut second).unwrap();
    let status = second
        .wait(std::time::Duration::from_secs(15))
        .expect("it ends by itself");
    assert!(!status.success());
    assert!(Path::new(&node.socket()).exists() && node.version().is_ok());
    lab.close(node);
}

#[test]
fn privileged_cve_2021_43816_a_volume_in_place_of_a_file_of_the_pod_keeps_its_label() {
    const LABEL: &str = "security.selinux";
    const VALUE: &[u8] = b"system_u:object_r:shadow_t:s0\0";
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let pod = node.up(&lab.pod("labels")).unwrap();
    let dir = lab.unused("files");
    std::fs::create_dir(&dir).unwrap();
    let mut mine = ContainerBuilder::new("mine", &image).shell("sleep 300");
    for name in ["hosts", "hostname", "resolv.conf"] {
        let file = dir.join(name);
        std::fs::write(&file, format!("my {name}\n")).unwrap();
        rustix::fs::setxattr(&file, LABEL, VALUE, rustix::fs::XattrFlags::empty()).unwrap();
        mine = mine.mount(file.to_str().unwrap(), &format!("/etc/{name}"), true);
    }
    let mine = mine.with(|config| {
        for mount in &mut config.mounts {
            mount.selinux_relabel = true;
        }
    });
    let others = ContainerBuilder::new("others", &image).shell("sleep 300");
    let mine = node.run_in(&pod, &mine).unwrap();
    let others = node.run_in(&pod, &others).unwrap();
    for name in ["hosts", "hostname", "resolv.conf"] {
        assert_eq!(
            node.sh(&mine, &format!("cat /etc/{name}")),
            format!("my {name}")
        );
        let count = format!("grep -c ' /etc/{name} ' /proc/self/mounts");
        assert_eq!(node.sh(&mine, &count), "1", "{name}: nothing of the pod's");
        let mut label = [0; 256];
        let length = rustix::fs::getxattr(dir.join(name), LABEL, &mut label).unwrap();
        assert_eq!(&label[..length], VALUE, "{name}");
    }
    // The pod's own files are as they were, for who has no other.
    assert_eq!(node.sh(&others, "cat /etc/hostname"), "labels");
    assert!(!node.sh(&others, "cat /etc/resolv.conf").contains("my "));
    lab.close(node);
}
