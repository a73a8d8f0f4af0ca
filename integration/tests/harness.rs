//! The harness proves itself: namespaces are private, registries check accounts, images are what they
//! seem, and the leak check finds what is planted. No daemon is started here.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::process::Command;

use axil_integration::children::{self, Running};
use axil_integration::guard::{Need, ready};
use axil_integration::images::{Image, busybox, nginx};
use axil_integration::isolate::isolate;
use axil_integration::lab::Ground;
use axil_integration::leakcheck::{Snapshot, look};
use axil_integration::registry::{Access, PASSWORD, Registry, RegistryOptions, USER};

const ROOT: &[Need] = &[Need::Root, Need::Program("ip"), Need::Program("nft")];
const REGISTRY: &[Need] = &[
    Need::Root,
    Need::Program("docker-registry"),
    Need::Program("skopeo"),
    Need::Program("busybox"),
    Need::Program("htpasswd"),
    Need::Program("openssl"),
];

fn ground() -> Ground {
    isolate().unwrap();
    children::adopt_orphans().unwrap();
    Ground::claim("h").unwrap()
}

#[test]
fn privileged_isolation_hides_the_machine() {
    if !ready(ROOT) {
        return;
    }
    isolate().unwrap();
    let links = children::read("ip", &["-oneline", "link"]).unwrap();
    assert_eq!(links.lines().count(), 1, "only loopback: {links}");
    assert!(links.contains("UP"), "{links}");
    assert!(Path::new("/sys/class/net/lo").exists());
    assert_eq!(
        fs::read_dir("/sys/class/net").unwrap().count(),
        1,
        "sysfs is of this namespace"
    );
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    assert!(
        mounts.contains(" - cgroup"),
        "the cgroup mounts are there: {mounts}"
    );
    let root = mounts
        .lines()
        .find(|line| line.split(' ').nth(4) == Some("/"))
        .unwrap();
    assert!(root.contains("shared:"), "the root is shared: {root}");
}

#[test]
fn privileged_leak_check_finds_what_is_planted() {
    if !ready(ROOT) {
        return;
    }
    let ground = ground();
    let before = Snapshot::take(&ground).unwrap();
    assert_eq!(look(&ground, &before, None), Vec::<String>::new());
    let point = ground.dir().join("mnt");
    fs::create_dir(&point).unwrap();
    let point = point.to_str().unwrap();
    let cgroup = format!("/sys/fs/cgroup/unified{}/pod", ground.cgroup());
    let cgroup_made = fs::create_dir_all(&cgroup).is_ok();
    for command in [
        format!("mount -t tmpfs none {point}"),
        "ip link add leak0 type veth peer name leak1".to_owned(),
        "nft add table inet axil && nft add set inet axil ports '{ type inet_service; elements = { 80 }; }'"
            .to_owned(),
        // Abandoned: its parent, the shell, ends at once.
        "setsid sleep 300 </dev/null >/dev/null 2>&1 &".to_owned(),
    ] {
        let done = children::run("sh", &["-c", &command]).unwrap();
        assert!(done.status.success(), "{command}: {}", done.text());
    }
    let leaks = look(&ground, &before, None).join("\n");
    for expected in [
        "mount /tmp/axil-h",
        "link leak0",
        "link leak1",
        "nft element of inet axil ports: 80",
        "sleep 300",
    ] {
        assert!(leaks.contains(expected), "{expected:?} is not in:\n{leaks}");
    }
    assert!(!cgroup_made || leaks.contains(&cgroup), "{leaks}");
    let dir = ground.dir().to_owned();
    drop(ground);
    assert!(!dir.exists() && !Path::new(&cgroup).exists());
    assert!(children::descendants().is_empty());
}

#[test]
fn privileged_registry_serves_whom_it_should() {
    if !ready(REGISTRY) {
        return;
    }
    let ground = ground();
    let image = busybox::image().unwrap();
    for (access, tls) in [
        (Access::Anonymous, false),
        (Access::Anonymous, true),
        (Access::Basic, false),
        (Access::Token, true),
    ] {
        let dir = ground.dir().join(format!("{access:?}-{tls}"));
        let registry = Registry::start(&dir, RegistryOptions { access, tls }).unwrap();
        let reference = registry.push(&image, "team/app", "1").unwrap();
        let inspect = |creds: bool| {
            let mut skopeo = Command::new("skopeo");
            skopeo.args(["inspect", "--raw", "--tls-verify=false"]);
            if creds {
                skopeo.arg(format!("--creds={USER}:{PASSWORD}"));
            }
            skopeo.arg(format!("docker://{reference}"));
            children::output(&mut skopeo, &[]).unwrap()
        };
        let seen = inspect(access != Access::Anonymous);
        assert_eq!(
            axil_integration::images::digest(&seen.stdout),
            image.manifest,
            "{}",
            seen.text()
        );
        if access != Access::Anonymous {
            assert!(
                !inspect(false).status.success(),
                "{access:?} lets strangers in"
            );
        }
    }
}

#[test]
fn privileged_nginx_image_runs_in_a_chroot() {
    if !ready(REGISTRY)
        || !ready(&[
            Need::Program("nginx"),
            Need::Program("umoci"),
            Need::Program("chroot"),
        ])
    {
        return;
    }
    let ground = ground();
    let image = nginx::image().unwrap();
    assert!(image.layers.len() >= 5, "{} layers", image.layers.len());
    let root = unpack(&ground, &image);
    let done = children::run(
        "chroot",
        &[&root, "/bin/sh", "-c", "mknod /dev/null c 1 3; nginx -t"],
    )
    .unwrap();
    assert!(done.status.success(), "{}", done.text());
}

/// Applies the layers with the tools of the machine: a second opinion on what the image holds.
fn unpack(ground: &Ground, image: &Image) -> String {
    let root = ground.dir().join("rootfs");
    fs::create_dir(&root).unwrap();
    for name in &image.layers {
        let (media_type, bytes) = &image.blobs[name];
        let packer = if media_type.ends_with("zstd") {
            zstd::decode_all(bytes.as_slice()).unwrap()
        } else {
            let mut plain = Vec::new();
            std::io::copy(
                &mut flate2::read::GzDecoder::new(bytes.as_slice()),
                &mut plain,
            )
            .unwrap();
            plain
        };
        let mut tar = Command::new("tar");
        tar.arg("-xf").arg("-").arg("-C").arg(&root);
        let done = children::output(&mut tar, &packer).unwrap();
        assert!(done.status.success(), "{}", done.text());
    }
    root.to_str().unwrap().to_owned()
}

#[test]
fn privileged_a_dropped_process_is_gone() {
    if !ready(ROOT) {
        return;
    }
    let _ground = ground();
    let process = Running::start(Command::new("sleep").arg("300")).unwrap();
    let pid = process.pid();
    assert!(children::descendants().iter().any(|p| p.pid == pid));
    assert!(children::abandoned().is_empty());
    drop(process);
    assert!(children::descendants().iter().all(|p| p.pid != pid));
}
