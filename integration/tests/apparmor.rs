//! AppArmor: which profile confines a container, and that it bites. The VM lane runs these.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write as _;
use std::process::{Command, Stdio};

use axil_integration::build::{ContainerBuilder, PodBuilder};
use axil_integration::guard::{Need, find_program};
use axil_integration::lab::Lab;
use axil_integration::node::Node;
use axil_proto::cri::{SecurityProfile, security_profile::ProfileType};
use tonic::Code;

/// The profile of containers that ask for none.
const DEFAULT: &str = "axil-default (enforce)\n";

fn lab() -> Option<Lab> {
    Lab::open_needing(&[Need::AppArmor])
}

fn profile(kind: ProfileType, name: &str) -> Option<SecurityProfile> {
    Some(SecurityProfile {
        profile_type: kind.into(),
        localhost_ref: name.to_owned(),
    })
}

/// A container that could mount if AppArmor let it.
fn container(image: &str, name: &str, asked: Option<SecurityProfile>) -> ContainerBuilder {
    ContainerBuilder::new(name, image)
        .shell("exec sleep 1000")
        .capabilities(&["SYS_ADMIN"], &[])
        .secured(|security| {
            security.seccomp = profile(ProfileType::Unconfined, "");
            security.apparmor = asked;
        })
}

/// The profile of a command in the container, and whether it can mount.
fn seen(node: &Node, container: &str) -> (String, bool) {
    let current = ["cat", "/proc/self/attr/apparmor/current"];
    let current = node.exec(container, &current, 60).unwrap();
    let mount = ["mount", "-t", "tmpfs", "none", "/tmp"];
    let mounted = node.exec(container, &mount, 60).unwrap();
    (
        String::from_utf8(current.stdout).unwrap(),
        mounted.exit_code == 0,
    )
}

fn privileged_pod(lab: &Lab) -> PodBuilder {
    lab.pod("privileged").with(|config| {
        let linux = config.linux.get_or_insert_default();
        let security = linux.security_context.get_or_insert_default();
        security.privileged = true;
    })
}

/// A profile of the node, unloaded when dropped.
struct Loaded(String);

impl Loaded {
    fn new(tag: &str) -> Self {
        let loaded = Self(format!("axil-test-{tag}-{}", std::process::id()));
        let text = format!(
            "profile {} {{ file, network, capability, signal, ptrace, mount, }}",
            loaded.0
        );
        parser("--replace", &text);
        loaded
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        parser("--remove", &format!("profile {} {{ }}", self.0));
    }
}

fn parser(verb: &str, text: &str) {
    let mut child = Command::new(find_program("apparmor_parser").unwrap())
        .args([verb, "--skip-cache"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    assert!(child.wait().unwrap().success(), "{verb} {text}");
}

#[test]
fn privileged_apparmor_confines_containers_by_default() {
    let Some(lab) = lab() else { return };
    let (node, image) = lab.node_with_busybox();
    let pod = node.up(&lab.pod("p")).unwrap();
    for (name, asked) in [
        ("unset", None),
        ("default", profile(ProfileType::RuntimeDefault, "")),
    ] {
        let id = node.run_in(&pod, &container(&image, name, asked)).unwrap();
        assert_eq!(seen(&node, &id), (DEFAULT.to_owned(), false), "{name}");
        // Within the profile processes may signal each other, and so may the runtime from outside.
        let script = "sleep 100 & kill -TERM $! && wait $!; test $? = 143";
        let killed = node.exec(&id, &["sh", "-c", script], 60).unwrap();
        assert_eq!(killed.exit_code, 0, "{name}");
        node.stop(&id, 5).unwrap();
    }
    lab.close(node);
}

#[test]
fn privileged_apparmor_profiles_of_the_node_and_none_at_all() {
    let Some(lab) = lab() else { return };
    let (node, image) = lab.node_with_busybox();
    let pod = node.up(&lab.pod("p")).unwrap();
    let of_node = Loaded::new("node");
    let asked = profile(ProfileType::Localhost, &of_node.0);
    let id = node
        .run_in(&pod, &container(&image, "node", asked))
        .unwrap();
    assert_eq!(
        seen(&node, &id),
        (format!("{} (enforce)\n", of_node.0), true)
    );
    let asked = profile(ProfileType::Unconfined, "");
    let id = node
        .run_in(&pod, &container(&image, "none", asked))
        .unwrap();
    assert_eq!(seen(&node, &id), ("unconfined\n".to_owned(), true));
    let privileged = container(&image, "privileged", None).secured(|security| {
        security.privileged = true;
    });
    let pod = node.up(&privileged_pod(&lab)).unwrap();
    let id = node.run_in(&pod, &privileged).unwrap();
    assert_eq!(seen(&node, &id), ("unconfined\n".to_owned(), true));
    lab.close(node);
}

#[test]
fn privileged_a_container_of_an_unloaded_profile_is_not_made() {
    let Some(lab) = lab() else { return };
    let (node, image) = lab.node_with_busybox();
    let pod = node.up(&lab.pod("p")).unwrap();
    let asked = profile(ProfileType::Localhost, "axil-test-nowhere");
    let refused = node.create_in(&pod, &container(&image, "c", asked));
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains("axil-test-nowhere"), "{refused}");
    assert!(node.containers(None).unwrap().is_empty());
    lab.close(node);
}
