//! Pods with a user namespace of their own: root inside is nobody outside, and everything belongs to whom it should.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use axil_integration::build::{ContainerBuilder, PodBuilder};
use axil_integration::eventually::eventually;
use axil_integration::images::{Compression, Entry, Image, Layer, busybox};
use axil_integration::lab::Lab;
use axil_integration::leakcheck;
use axil_integration::node::{Node, NodeOptions};
use axil_proto::cri::{IdMapping, NamespaceMode, NamespaceOption, UserNamespace};
use serde_json::{Value, json};
use tonic::Code;

/// Where the users of the tests' pods begin on the node.
const ROOT: u32 = 200_000;

fn mapping(container: u32, host: u32, length: u32) -> IdMapping {
    IdMapping {
        host_id: host,
        container_id: container,
        length,
    }
}

fn of_pod(host: u32) -> UserNamespace {
    UserNamespace {
        mode: NamespaceMode::Pod.into(),
        uids: vec![mapping(0, host, 65_536)],
        gids: vec![mapping(0, host, 65_536)],
    }
}

fn namespaces(pod: PodBuilder, change: impl FnOnce(&mut NamespaceOption)) -> PodBuilder {
    pod.with(|config| {
        let linux = config.linux.get_or_insert_default();
        let security = linux.security_context.get_or_insert_default();
        change(security.namespace_options.get_or_insert_default());
    })
}

/// A pod of the lab with a user namespace.
fn pod(lab: &Lab, name: &str) -> PodBuilder {
    namespaces(lab.pod(name), |options| {
        options.userns_options = Some(of_pod(ROOT));
    })
}

/// Whether the node says that it can.
fn advertised(node: &Node) -> bool {
    let handlers = node.status(false).unwrap().runtime_handlers;
    handlers
        .iter()
        .all(|handler| handler.features.is_some_and(|f| f.user_namespaces))
}

fn pid_of(node: &Node, container: &str) -> i64 {
    let info = &node.container_status_verbose(container).unwrap().info["info"];
    let info: Value = serde_json::from_str(info).unwrap();
    info["pid"].as_i64().unwrap()
}

/// An image with files of several users, on busybox.
fn owned() -> Image {
    let layers = [
        busybox::base(Compression::Gzip).unwrap(),
        Layer::new(Compression::Gzip)
            .entry("srv/of-app", 0o640, 1000, Entry::Text(b"app\n".to_vec()))
            .entry("srv/suid", 0o4755, 0, Entry::Text(b"x".to_vec())),
        Layer::new(Compression::Zstd).entry(
            "srv/of-root",
            0o600,
            0,
            Entry::Text(b"root\n".to_vec()),
        ),
    ];
    Image::build(&json!({ "Env": ["PATH=/bin"] }), &layers).unwrap()
}

/// What has to hold in such a pod, whoever makes the root file system.
fn check(lab: &Lab, node: &Node) {
    assert!(advertised(node), "{}", node.log());
    let image = lab.shelf().put("users/owned", "1", &owned());
    node.pull(&image).unwrap();
    let volume = lab.unused("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("of-root"), "volume\n").unwrap();
    fs::set_permissions(volume.join("of-root"), fs::Permissions::from_mode(0o600)).unwrap();

    let pod = node.up(&pod(lab, "users")).unwrap();
    let container = ContainerBuilder::new("c", &image)
        .shell("echo started > /dev/stdout; echo wrong > /dev/stderr; sleep 300")
        .mount(volume.to_str().unwrap(), "/volume", false)
        .image_volume(&image, "srv", "/image")
        .with(|config| {
            config.mounts[0].uid_mappings = vec![mapping(0, ROOT, 65_536)];
            config.mounts[0].gid_mappings = vec![mapping(0, ROOT, 65_536)];
        })
        .capabilities(&["NET_ADMIN"], &[]);
    let id = node.run_in(&pod, &container).unwrap();
    let sh = |script: &str| node.sh(&id, script);
    let one_space = |text: String| text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(
        one_space(sh("cat /proc/self/uid_map")),
        format!("0 {ROOT} 65536")
    );
    assert_eq!(
        one_space(sh("cat /proc/self/gid_map")),
        format!("0 {ROOT} 65536")
    );
    for (script, expect) in [
        ("id -u", "0"),
        ("stat -c %u:%g / /bin/busybox /srv/of-root | uniq", "0:0"),
        (
            "stat -c %u:%a /srv/of-app /srv/suid | xargs",
            "1000:640 0:4755",
        ),
        ("cat /srv/of-root /srv/of-app", "root\napp"),
        ("echo more >> /srv/of-app && stat -c %u /srv/of-app", "1000"),
        ("touch /new && chown 33 /new && stat -c %u:%g /new", "33:0"),
        ("mkdir /tmp/d && rm -r /tmp/d /srv/of-root && echo ok", "ok"),
        ("stat -c %u:%a /volume/of-root", "0:600"),
        (
            "cat /volume/of-root && touch /volume/new && chown 5 /volume/new",
            "volume",
        ),
        ("stat -c %u /image/of-app /image/of-root | xargs", "1000 0"),
        ("cat /image/of-root", "root"),
        (
            "stat -c %u /etc/resolv.conf /etc/hostname /dev/shm | xargs",
            "0 0 0",
        ),
        ("touch /dev/shm/x && echo ok", "ok"),
        ("stat -L -c %u /proc/1/fd/1 /proc/1/fd/2 | xargs", "0 0"),
        ("hostname", "users"),
        ("ip link set lo down && ip link set lo up && echo ok", "ok"),
        ("ls /sys/class/net | xargs", "eth0 lo"),
        (
            "mount -t tmpfs none /tmp 2>/dev/null || echo refused",
            "refused",
        ),
    ] {
        assert_eq!(sh(script), expect, "{script}");
    }
    // Outside it is nobody, on disk as well.
    let process = fs::metadata(format!("/proc/{}", pid_of(node, &id))).unwrap();
    assert_eq!((process.uid(), process.gid()), (ROOT, ROOT));
    assert_eq!(fs::metadata(volume.join("new")).unwrap().uid(), 5);
    let log = node.log_of(&pod, "c");
    assert!(log.contains("stdout F started") && log.contains("stderr F wrong"));
    let status = node.container_status(&id).unwrap();
    assert_eq!(status.mounts[0].uid_mappings, [mapping(0, ROOT, 65_536)]);
    let told = node
        .pod_status(&pod.id)
        .unwrap()
        .linux
        .unwrap()
        .namespaces
        .unwrap();
    assert_eq!(told.options.unwrap().userns_options, Some(of_pod(ROOT)));

    // A user of the image, who is another one outside as well.
    let app = ContainerBuilder::new("app", &image)
        .shell("echo started > /dev/stdout; sleep 300")
        .uid(1000);
    let app = node.run_in(&pod, &app).unwrap();
    eventually("a user of the pod writes to its log", || {
        let log = node.log_of(&pod, "app");
        log.contains("stdout F started").then_some(())
    });
    assert_eq!(node.sh(&app, "stat -L -c %u /proc/1/fd/1"), "1000");
    let process = fs::metadata(format!("/proc/{}", pid_of(node, &app))).unwrap();
    assert_eq!(process.uid(), ROOT + 1000);
    // Both are in the pod's namespace; so is the network's owner.
    let link = |id: &str, kind: &str| {
        fs::read_link(format!("/proc/{}/ns/{kind}", pid_of(node, id))).unwrap()
    };
    for kind in ["user", "net", "ipc", "uts"] {
        assert_eq!(link(&id, kind), link(&app, kind));
        assert_ne!(
            link(&id, kind),
            fs::read_link(format!("/proc/self/ns/{kind}")).unwrap()
        );
    }
}

#[test]
fn privileged_a_pod_has_users_of_its_own() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node();
    check(&lab, &node);
    lab.close(node);
}

#[test]
fn privileged_without_overlayfs_a_pod_has_users_of_its_own() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node_with(NodeOptions {
        images: vec!["snapshotter = \"copy\"".to_owned()],
        ..NodeOptions::default()
    });
    check(&lab, &node);
    lab.close(node);
}

#[test]
fn privileged_a_shared_process_namespace_belongs_to_the_pods_users() {
    let Some(lab) = Lab::open() else { return };
    let (mut node, image) = lab.node_with_busybox();
    let pod = node.up(&pod(&lab, "shared").shared_pids()).unwrap();
    let container = |name: &str| {
        ContainerBuilder::new(name, &image)
            .shell("sleep 300")
            .secured(|security| {
                security.namespace_options.as_mut().unwrap().pid = NamespaceMode::Pod.into();
            })
    };
    let one = node.run_in(&pod, &container("one")).unwrap();
    assert_eq!(node.sh(&one, "ps | grep -c '[/]pause'"), "1");
    // The pod outlives the daemon, and takes another container of the same users.
    node.kill9();
    node.launch(None).unwrap();
    let two = node.run_in(&pod, &container("two")).unwrap();
    assert_eq!(node.sh(&two, "ps | grep -c '[s]leep 300'"), "2");
    assert_eq!(node.sh(&one, "stat -c %u /proc/1 && id -u"), "65535\n0");
    lab.close(node);
}

#[test]
fn privileged_cve_2025_47291_a_pod_with_users_of_its_own_stays_below_its_cgroup_parent() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let parent = format!("{}/kubepods/pod1", lab.ground().cgroup());
    let pod = node
        .up(&pod(&lab, "placed").cgroup_parent(&parent))
        .unwrap();
    let limit = 48 << 20;
    let container = ContainerBuilder::new("c", &image)
        .shell("sleep 300")
        .limits(|limits| limits.memory_limit_in_bytes = limit);
    let id = node.run_in(&pod, &container).unwrap();
    let cgroups = leakcheck::find_cgroups(&parent, &id);
    let of = |name: &str| {
        let files = cgroups.iter().map(|cgroup| cgroup.join(name));
        files
            .filter_map(|file| fs::read_to_string(file).ok())
            .next()
    };
    let bound = of("memory.max").or_else(|| of("memory.limit_in_bytes"));
    assert_eq!(bound.unwrap().trim(), limit.to_string());
    // Every process of the container is there, and what it makes stays there.
    let pid = pid_of(&node, &id).to_string();
    for cgroup in &cgroups {
        let members = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap();
        assert!(
            members.lines().any(|line| line == pid),
            "{cgroup:?}: {members}"
        );
    }
    let escape = "mkdir /sys/fs/cgroup/escape 2>&1 || mkdir /sys/fs/cgroup/memory/escape 2>&1";
    assert!(
        node.sh(&id, &format!("{escape}; true"))
            .contains("can't create")
    );
    node.empty().unwrap();
    leakcheck::remove_cgroups(&format!("{}/kubepods", lab.ground().cgroup()));
    lab.close(node);
}

#[test]
fn privileged_ids_that_cannot_be_are_refused_by_field() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let refuse = |change: &dyn Fn(&mut NamespaceOption), words: &str| {
        let asked = namespaces(pod(&lab, "refused"), change);
        let status = node.up(&asked).unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(words), "{words}: {status}");
    };
    let ids = |options: &mut NamespaceOption, uids: Vec<IdMapping>| {
        options.userns_options.as_mut().unwrap().uids = uids;
    };
    refuse(&|o| ids(o, vec![]), "userns_options.uids: is empty");
    refuse(&|o| ids(o, vec![mapping(0, ROOT, 0)]), "uids[0].length");
    refuse(&|o| ids(o, vec![mapping(1, ROOT, 5)]), "id 0 of the pod");
    refuse(&|o| ids(o, vec![mapping(0, 0, 5)]), "id 0 of the node");
    refuse(
        &|o| ids(o, vec![mapping(0, u32::MAX, 5)]),
        "uids[0].host_id",
    );
    let two = vec![mapping(0, ROOT, 5), mapping(5, ROOT + 5, 5)];
    refuse(&|o| ids(o, two.clone()), "more than one");
    let overlap = vec![mapping(0, ROOT, 5), mapping(5, ROOT + 4, 5)];
    refuse(&|o| ids(o, overlap.clone()), "overlaps");
    refuse(&|o| o.userns_options.as_mut().unwrap().gids.clear(), "gids");
    for mode in [NamespaceMode::Container, NamespaceMode::Target] {
        refuse(
            &|o| o.userns_options.as_mut().unwrap().mode = mode.into(),
            "mode",
        );
    }
    refuse(
        &|o| o.userns_options.as_mut().unwrap().mode = NamespaceMode::Node.into(),
        "takes no mappings",
    );
    refuse(&|o| o.network = NamespaceMode::Node.into(), "network");
    refuse(&|o| o.pid = NamespaceMode::Node.into(), "pid");
    refuse(&|o| o.ipc = NamespaceMode::Node.into(), "ipc");
    assert_eq!(node.pods(None).unwrap(), []);

    let pod = node.up(&pod(&lab, "users")).unwrap();
    let with = |userns: UserNamespace| {
        ContainerBuilder::new("c", &image)
            .shell("true")
            .secured(|security| {
                let options = security.namespace_options.as_mut().unwrap();
                options.userns_options = Some(userns);
            })
    };
    let node_users = UserNamespace {
        mode: NamespaceMode::Node.into(),
        ..UserNamespace::default()
    };
    for other in [of_pod(ROOT + 65_536), node_users] {
        let status = node.create_in(&pod, &with(other)).unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains("userns_options"), "{status}");
    }
    let outside = ContainerBuilder::new("c", &image).shell("true").uid(70_000);
    let status = node.create_in(&pod, &outside).unwrap_err();
    assert!(status.message().contains("user 70000"), "{status}");
    let bad = ContainerBuilder::new("c", &image)
        .shell("true")
        .mount("/tmp", "/data", true)
        .with(|config| config.mounts[0].uid_mappings = vec![mapping(0, ROOT, 5)]);
    let status = node.create_in(&pod, &bad).unwrap_err();
    assert!(status.message().contains("gids"), "{status}");
    let same = node.run_in(&pod, &with(of_pod(ROOT))).unwrap();
    assert_eq!(node.exit_of(&same).exit_code, 0);
    lab.close(node);
}

#[test]
fn privileged_a_daemon_killed_in_between_leaves_no_namespace() {
    let Some(lab) = Lab::open() else { return };
    for fault in [
        "RunPodSandbox/namespaces=kill",
        "RunPodSandbox/namespaces=kill-after",
        "RunPodSandbox/ready=error",
        "CreateContainer/rootfs=kill-after",
        "CreateContainer/document=error-after",
    ] {
        let (mut node, image) = lab.node_with_busybox();
        node.term();
        node.launch(Some(fault)).unwrap();
        let container = ContainerBuilder::new("c", &image)
            .shell("sleep 300")
            .image_volume(&image, "etc", "/etc-of-image");
        let up = node.up(&pod(&lab, "faults"));
        let failed = up.and_then(|pod| node.run_in(&pod, &container));
        assert!(failed.is_err(), "{fault}");
        if fault.contains("kill") {
            node.wait_for_end();
            node.launch(None).unwrap();
        } else {
            node.restart();
        }
        let pod = node.up(&pod(&lab, "faults")).unwrap();
        let id = node.run_in(&pod, &container).unwrap();
        assert_eq!(
            node.sh(&id, "stat -c %u / /etc-of-image/passwd | xargs"),
            "0 0",
            "{fault}"
        );
        node.empty().unwrap();
        lab.assert_clean(&node);
        node.term();
    }
}
