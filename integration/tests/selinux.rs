//! SELinux: which contexts containers, their files and their volumes have. The VM lane runs these.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use axil_integration::build::{ContainerBuilder, PodBuilder};
use axil_integration::guard::Need;
use axil_integration::lab::Lab;
use axil_integration::node::Node;
use axil_proto::cri::SeLinuxOption;
use serde_json::Value;
use tonic::Code;

const PROCESS: &str = "system_u:system_r:container_t:";
const FILE: &str = "system_u:object_r:container_file_t:";

fn lab() -> Option<Lab> {
    Lab::open_needing(&[Need::Selinux])
}

fn options(kind: &str, level: &str) -> Option<SeLinuxOption> {
    Some(SeLinuxOption {
        r#type: kind.to_owned(),
        level: level.to_owned(),
        ..SeLinuxOption::default()
    })
}

fn pod(lab: &Lab, name: &str, options: Option<SeLinuxOption>) -> PodBuilder {
    lab.pod(name).with(|config| {
        let linux = config.linux.get_or_insert_default();
        linux
            .security_context
            .get_or_insert_default()
            .selinux_options = options;
    })
}

fn sleeper(image: &str, name: &str) -> ContainerBuilder {
    ContainerBuilder::new(name, image).shell("exec sleep 1000")
}

/// The context of a command in the container.
fn context(node: &Node, container: &str) -> String {
    let text = node.sh(container, "cat /proc/self/attr/current");
    text.trim_matches(['\0', '\n']).to_owned()
}

/// The label of a path, as somebody outside sees it.
fn label(path: &Path) -> String {
    let mut value = [0; 4096];
    let length = rustix::fs::getxattr(path, "security.selinux", &mut value).unwrap();
    let text = String::from_utf8(value[..length].to_vec()).unwrap();
    text.trim_end_matches('\0').to_owned()
}

/// A path of the container, seen from outside.
fn inside(node: &Node, container: &str, path: &str) -> PathBuf {
    let info = &node.container_status_verbose(container).unwrap().info["info"];
    let info: Value = serde_json::from_str(info).unwrap();
    PathBuf::from(format!(
        "/proc/{}/root{path}",
        info["pid"].as_i64().unwrap()
    ))
}

#[test]
fn privileged_selinux_keeps_pods_apart_and_containers_of_one_together() {
    let Some(lab) = lab() else { return };
    let (mut node, image) = lab.node_with_busybox();
    let one = node.up(&lab.pod("one")).unwrap();
    let other = node.up(&lab.pod("other")).unwrap();
    let a = node.run_in(&one, &sleeper(&image, "a")).unwrap();
    let b = node.run_in(&one, &sleeper(&image, "b")).unwrap();
    let c = node.run_in(&other, &sleeper(&image, "c")).unwrap();
    let of_a = context(&node, &a);
    let level = of_a.strip_prefix(PROCESS).unwrap().to_owned();
    assert!(level.starts_with("s0:c") && level.contains(','), "{level}");
    assert_eq!(context(&node, &b), of_a);
    let of_c = context(&node, &c);
    assert!(of_c.starts_with(PROCESS) && of_c != of_a, "{of_c}");
    // What they write, what the image brought, what is made for them.
    let _ = node.sh(&a, "echo x > /tmp/made; echo x > /dev/shm/made");
    for path in ["/tmp/made", "/etc/passwd", "/", "/dev/shm/made", "/dev"] {
        assert_eq!(
            label(&inside(&node, &a, path)),
            format!("{FILE}{level}"),
            "{path}"
        );
    }
    // Containers of other levels in the same pod may read it.
    assert_eq!(
        label(&inside(&node, &a, "/etc/resolv.conf")),
        format!("{FILE}s0")
    );
    node.kill9();
    node.launch(None).unwrap();
    assert_eq!(context(&node, &a), of_a);
    let late = node.run_in(&one, &sleeper(&image, "late")).unwrap();
    assert_eq!(context(&node, &late), of_a);
    lab.close(node);
}

#[test]
fn privileged_selinux_options_of_pods_and_containers() {
    let Some(lab) = lab() else { return };
    let (node, image) = lab.node_with_busybox();
    let level = options("", "s0:c100,c200");
    let p = node.up(&pod(&lab, "level", level)).unwrap();
    let a = node.run_in(&p, &sleeper(&image, "a")).unwrap();
    assert_eq!(context(&node, &a), format!("{PROCESS}s0:c100,c200"));
    // A part of its own, and the pod's level.
    let own = sleeper(&image, "b").secured(|security| {
        security.selinux_options = options("container_engine_t", "");
    });
    let b = node.run_in(&p, &own).unwrap();
    assert_eq!(
        context(&node, &b),
        "system_u:system_r:container_engine_t:s0:c100,c200"
    );
    let unknown = sleeper(&image, "c").secured(|security| {
        security.selinux_options = options("axil_unknown_t", "");
    });
    let refused = node.create_in(&p, &unknown).unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains("axil_unknown_t"), "{refused}");
    let refused = node
        .up(&pod(&lab, "unknown", options("", "s9:c1")))
        .unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert_eq!(node.pods(None).unwrap().len(), 1);
    // Nothing confines a privileged container, and its files are the pod's.
    let privileged = pod(&lab, "privileged", None).with(|config| {
        let linux = config.linux.get_or_insert_default();
        linux.security_context.get_or_insert_default().privileged = true;
    });
    let p = node.up(&privileged).unwrap();
    let all = sleeper(&image, "all").secured(|security| security.privileged = true);
    let all = node.run_in(&p, &all).unwrap();
    assert!(!context(&node, &all).contains(":container_t:"));
    lab.close(node);
}

#[test]
fn privileged_selinux_relabels_volumes_that_ask_for_it() {
    let Some(lab) = lab() else { return };
    let (node, image) = lab.node_with_busybox();
    let p = node
        .up(&pod(&lab, "volumes", options("", "s0:c1,c2")))
        .unwrap();
    let dir = lab.unused("volume");
    let (mine, theirs) = (dir.join("mine"), dir.join("theirs"));
    for volume in [&mine, &theirs] {
        fs::create_dir_all(volume.join("below")).unwrap();
        fs::write(volume.join("below/file"), "x").unwrap();
    }
    let before = label(&theirs);
    let mount = |name: &str, path: &Path, relabel: bool| {
        let container = sleeper(&image, name).mount(path.to_str().unwrap(), "/v", false);
        container.with(|config| {
            for mount in &mut config.mounts {
                mount.selinux_relabel = relabel;
            }
        })
    };
    let _ = node.run_in(&p, &mount("a", &mine, true)).unwrap();
    let _ = node.run_in(&p, &mount("b", &theirs, false)).unwrap();
    for path in [mine.clone(), mine.join("below"), mine.join("below/file")] {
        assert_eq!(label(&path), format!("{FILE}s0:c1,c2"));
    }
    assert_eq!(label(&theirs), before);
    let etc = label(Path::new("/etc"));
    let refused = node
        .create_in(&p, &mount("c", Path::new("/etc"), true))
        .unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(
        refused.message().contains("mounts.host_path \"/etc\""),
        "{refused}"
    );
    assert_eq!(label(Path::new("/etc")), etc);
    lab.close(node);
}

#[test]
fn privileged_selinux_options_are_refused_where_it_is_off() {
    let Some(lab) = Lab::open() else { return };
    if Path::new("/sys/fs/selinux/enforce").exists() {
        println!("skipped: SELinux is active");
        return;
    }
    let (node, image) = lab.node_with_busybox();
    let refused = node
        .up(&pod(&lab, "p", options("", "s0:c1,c2")))
        .unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains("selinux_options"), "{refused}");
    assert!(node.pods(None).unwrap().is_empty());
    let p = node.up(&lab.pod("p")).unwrap();
    let asked = sleeper(&image, "c").secured(|security| {
        security.selinux_options = options("spc_t", "");
    });
    let refused = node.create_in(&p, &asked).unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(node.containers(None).unwrap().is_empty());
    // Options without a part ask for nothing.
    let nothing = sleeper(&image, "d").secured(|security| {
        security.selinux_options = options("", "");
    });
    let _ = node.run_in(&p, &nothing).unwrap();
    lab.close(node);
}
