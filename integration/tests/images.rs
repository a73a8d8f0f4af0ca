//! Images through real and lying registries: every form of reference, every way in, every lie refused.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use axil_integration::build::ContainerBuilder;
use axil_integration::guard::Need;
use axil_integration::images::{Compression, Entry, Image, Layer, busybox};
use axil_integration::lab::Lab;
use axil_integration::node::{Node, NodeOptions};
use axil_integration::registry::{Access, PASSWORD, RegistryOptions, USER};
use axil_integration::shelf::Fault;
use axil_proto::cri::AuthConfig;
use serde_json::json;
use tonic::Code;

const REAL: &[Need] = &[
    Need::Program("docker-registry"),
    Need::Program("skopeo"),
    Need::Program("openssl"),
    Need::Program("htpasswd"),
];

fn account(username: &str, password: &str) -> AuthConfig {
    AuthConfig {
        username: username.to_owned(),
        password: password.to_owned(),
        ..AuthConfig::default()
    }
}

/// A three-layer image whose layers are large enough to be cut in the middle.
fn large() -> Image {
    large_of(1)
}

/// The same with other bytes in each layer.
fn large_of(seed: u32) -> Image {
    let mut noise = seed;
    let mut random = Vec::new();
    for _ in 0..600_000 {
        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        random.push(noise.to_be_bytes()[0]);
    }
    let layers = [
        Layer::new(Compression::Gzip).text("small", &format!("small {seed}\n")),
        Layer::new(Compression::Zstd).entry("big", 0o644, 0, Entry::Text(random.clone())),
        Layer::new(Compression::Plain).entry("plain", 0o644, 0, Entry::Text(random)),
    ];
    Image::build(&json!({ "Cmd": ["/none"] }), &layers).unwrap()
}

/// No image is listed and nothing but partial downloads is stored.
fn assert_no_image(node: &Node) {
    assert_eq!(node.list_images().unwrap(), []);
    let snapshots = node.root().join("snapshots");
    let left: Vec<_> = walk(&snapshots)
        .into_iter()
        .filter(|path| path.contains("/fs/"))
        .collect();
    assert_eq!(left, Vec::<String>::new());
}

fn walk(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    entries
        .flatten()
        .flat_map(|entry| {
            let path = entry.path();
            let mut found = vec![path.to_string_lossy().into_owned()];
            if path.is_dir() && !path.is_symlink() {
                found.extend(walk(&path));
            }
            found
        })
        .collect()
}

#[test]
fn privileged_an_image_is_known_by_every_form_of_its_name() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node();
    let image = busybox::image().unwrap();
    let tagged = lab.shelf().put("team/app", "v1", &image);
    let by_digest = format!("{}/team/app@{}", lab.shelf().address(), image.manifest);
    let told = node.pull(&tagged).unwrap();
    node.pull(&by_digest).unwrap();
    let hex = image.config.trim_start_matches("sha256:");
    for name in [
        tagged.as_str(),
        &by_digest,
        &image.config,
        hex,
        &hex[..12],
        &told,
    ] {
        let known = node
            .image_status(name)
            .unwrap()
            .unwrap_or_else(|| panic!("{name} is unknown"));
        assert_eq!(known.id, image.config, "{name}");
        assert_eq!(
            (known.repo_tags, known.repo_digests),
            (vec![tagged.clone()], vec![by_digest.clone()])
        );
        assert!(known.size > 1_000_000, "{}", known.size);
    }
    assert_eq!(node.list_images().unwrap().len(), 1);
    lab.close(node);
}

#[test]
fn privileged_mirrors_serve_the_names_kubernetes_users_write() {
    let Some(lab) = Lab::open() else { return };
    let image = busybox::image().unwrap();
    for repository in ["pause", "library/busybox", "team/tool"] {
        lab.shelf().put(repository, "latest", &image);
        lab.shelf().put(repository, "1.2", &image);
    }
    for name in ["registry.k8s.io", "docker.io", "quay.io"] {
        lab.hosts()
            .mirror(name, &format!("http://{}", lab.shelf().address()))
            .unwrap();
    }
    let node = lab.node();
    for (written, tag) in [
        ("registry.k8s.io/pause:1.2", "registry.k8s.io/pause:1.2"),
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1.2", "docker.io/library/busybox:1.2"),
        ("team/tool", "docker.io/team/tool:latest"),
        ("docker.io/busybox", "docker.io/library/busybox:latest"),
        ("quay.io/team/tool:1.2", "quay.io/team/tool:1.2"),
    ] {
        node.pull(written)
            .unwrap_or_else(|status| panic!("{written}: {status}"));
        let known = node.image_status(written).unwrap().unwrap();
        assert!(
            known.repo_tags.iter().any(|have| have == tag),
            "{tag}: {:?}",
            known.repo_tags
        );
    }
    lab.close(node);
}

#[test]
fn privileged_a_registry_with_passwords_serves_the_right_one() {
    let Some(lab) = Lab::open_needing(REAL) else {
        return;
    };
    let options = RegistryOptions {
        access: Access::Basic,
        tls: false,
    };
    let registry = lab.registry(options);
    let reference = registry
        .push(&busybox::image().unwrap(), "private/app", "1")
        .unwrap();
    let node = lab.node();
    for auth in [None, Some(account(USER, "wrong"))] {
        let status = node.pull_with(&reference, auth).unwrap_err();
        assert!(
            matches!(
                status.code(),
                Code::PermissionDenied | Code::Unauthenticated
            ),
            "{status}"
        );
        assert!(
            status.message().contains(&reference) && !status.message().contains("wrong"),
            "{status}"
        );
    }
    node.pull_with(&reference, Some(account(USER, PASSWORD)))
        .unwrap();
    assert!(!node.log().contains(PASSWORD), "a password is in the log");
    lab.close(node);
}

#[test]
fn privileged_a_registry_with_tokens_serves_whom_it_should() {
    let Some(lab) = Lab::open_needing(REAL) else {
        return;
    };
    let options = RegistryOptions {
        access: Access::Token,
        tls: false,
    };
    let registry = lab.registry(options);
    let reference = registry
        .push(&busybox::image().unwrap(), "private/app", "1")
        .unwrap();
    let node = lab.node();
    let stranger = account("stranger", "guess");
    let status = node.pull_with(&reference, Some(stranger)).unwrap_err();
    assert!(
        matches!(
            status.code(),
            Code::PermissionDenied | Code::Unauthenticated
        ),
        "{status}"
    );
    assert_no_image(&node);
    node.pull_with(&reference, Some(account(USER, PASSWORD)))
        .unwrap();
    lab.close(node);
}

#[test]
fn privileged_a_registry_over_https_is_trusted_by_its_authority() {
    let Some(lab) = Lab::open_needing(REAL) else {
        return;
    };
    let options = RegistryOptions {
        access: Access::Basic,
        tls: true,
    };
    let registry = lab.registry(options);
    let reference = registry
        .push(&busybox::image().unwrap(), "private/app", "1")
        .unwrap();
    let mut node = lab.node();
    let pull = |node: &Node| node.pull_with(&reference, Some(account(USER, PASSWORD)));
    let status = pull(&node).unwrap_err();
    assert!(status.message().contains(registry.address()), "{status}");
    assert_no_image(&node);
    lab.hosts()
        .trust(registry.address(), &registry.url(), &registry.authority())
        .unwrap();
    node.restart();
    pull(&node).unwrap();
    lab.close(node);
}

#[test]
fn privileged_bytes_that_do_not_match_their_digest_are_refused() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node();
    // What one lie left verified would not be fetched again for the next: an image for each.
    for (seed, part) in ["base", "middle", "config"].into_iter().enumerate() {
        let image = large_of(u32::try_from(seed).unwrap() + 2);
        let about = match part {
            "base" => &image.layers[0],
            "middle" => &image.layers[1],
            _ => &image.config,
        };
        let reference = lab.shelf().put("lies/app", part, &image);
        lie_about(&lab, about);
        let status = node.pull(&reference).expect_err(part);
        assert!(
            status.message().contains(about.as_str()),
            "{part}: {status}"
        );
        assert_no_image(&node);
        lab.shelf().behave();
        node.pull(&reference).unwrap();
        node.remove_image(&reference).unwrap();
    }
    let image = large();
    let reference = lab.shelf().put("lies/app", "manifest", &image);
    lie_about(&lab, &image.manifest);
    let by_digest = format!("{}/lies/app@{}", lab.shelf().address(), image.manifest);
    let status = node.pull(&by_digest).unwrap_err();
    assert!(status.message().contains(&image.manifest), "{status}");
    assert_no_image(&node);
    lab.shelf().behave();
    node.pull(&reference).unwrap();
    lab.close(node);
}

/// Sends other bytes for a blob or manifest, more often than a daemon tries again by itself.
fn lie_about(lab: &Lab, digest: &str) {
    for _ in 0..8 {
        lab.shelf().misbehave(Fault::OtherBytes(digest.to_owned()));
    }
}

#[test]
fn privileged_an_interrupted_pull_goes_on_where_it_stopped() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node();
    let image = large();
    let reference = lab.shelf().put("cut/app", "1", &image);
    for after in [100_000, 200_000] {
        lab.shelf()
            .misbehave(Fault::Cut(image.layers[1].clone(), after));
    }
    // Either this pull goes on by itself or the kubelet's next one does.
    if node.pull(&reference).is_err() {
        lab.shelf().behave();
        node.pull(&reference).unwrap();
    }
    let requests = lab.shelf().requests();
    let asked: Vec<_> = requests
        .iter()
        .filter(|line| line.contains(&image.layers[1]))
        .collect();
    let resumed = asked
        .iter()
        .any(|line| line.contains("bytes=") && !line.contains("bytes=0-"));
    assert!(resumed, "nobody asked for the rest: {asked:?}");
    lab.close(node);
}

#[test]
fn privileged_a_killed_daemon_does_not_lose_what_was_pulled() {
    let Some(lab) = Lab::open() else { return };
    let mut node = lab.node();
    let image = lab.busybox();
    node.pull(&image).unwrap();
    let before = node.list_images().unwrap();
    node.kill9();
    node.launch(None).unwrap();
    assert_eq!(node.list_images().unwrap(), before);
    let pod = node.up(&lab.pod("after")).unwrap();
    let id = node
        .run_in(&pod, &ContainerBuilder::new("c", &image).shell("exit 4"))
        .unwrap();
    assert_eq!(node.exit_of(&id).exit_code, 4);
    lab.close(node);
}

#[test]
fn privileged_a_stalled_registry_is_given_up() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node_with(NodeOptions {
        progress_timeout: Some("2s"),
        ..NodeOptions::default()
    });
    let image = large();
    let reference = lab.shelf().put("slow/app", "1", &image);
    for _ in 0..32 {
        lab.shelf()
            .misbehave(Fault::Stall(image.layers[1].clone(), 1000));
    }
    let begun = std::time::Instant::now();
    let status = node.pull(&reference).unwrap_err();
    assert!(begun.elapsed().as_secs() < 60, "{:?}", begun.elapsed());
    assert_eq!(status.code(), Code::Unknown, "{status}");
    assert!(
        status.message().starts_with("RegistryUnavailable: "),
        "{status}"
    );
    lab.shelf().behave();
    node.pull(&reference).unwrap();
    lab.close(node);
}

#[test]
fn privileged_removing_an_image_frees_its_space() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node();
    let used = || {
        node.image_fs_info().unwrap().image_filesystems[0]
            .used_bytes
            .unwrap()
            .value
    };
    let empty = used();
    let reference = lab.shelf().put("space/app", "1", &large());
    node.pull(&reference).unwrap();
    let full = used();
    assert!(full > empty + 1_000_000, "{empty} → {full}");
    node.remove_image(&reference).unwrap();
    node.remove_image(&reference).unwrap();
    assert!(used() <= empty + 65_536, "{empty} → {full} → {}", used());
    assert_eq!(node.image_status(&reference).unwrap(), None);
    let point = node.image_fs_info().unwrap().image_filesystems[0]
        .fs_id
        .clone()
        .unwrap();
    assert!(
        Path::new(&point.mountpoint).starts_with(lab.dir()),
        "{}",
        point.mountpoint
    );
    lab.close(node);
}

#[test]
fn privileged_a_container_keeps_its_removed_image_running() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let pod = node.up(&lab.pod("kept")).unwrap();
    let id = node
        .run_in(&pod, &ContainerBuilder::new("c", &image).shell("sleep 300"))
        .unwrap();
    node.remove_image(&image).unwrap();
    assert_eq!(
        node.sh(&id, "cat /etc/passwd | head -1"),
        "root:x:0:0:root:/root:/bin/sh"
    );
    lab.close(node);
}

#[test]
fn privileged_layers_are_applied_as_their_authors_meant() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node();
    let base = busybox::base(Compression::Gzip).unwrap();
    let layers = [
        base,
        Layer::new(Compression::Zstd)
            .dir("data")
            .text("data/gone", "1")
            .text("data/kept", "2")
            .dir("opaque")
            .text("opaque/old", "3")
            .entry(
                "data/hard",
                0o644,
                0,
                Entry::Hardlink("data/kept".to_owned()),
            )
            .entry("data/owned", 0o640, 1000, Entry::Text(b"4".to_vec()))
            .entry("data/suid", 0o4755, 0, Entry::Text(b"5".to_vec())),
        Layer::new(Compression::Gzip)
            .dir("data")
            .text("data/.wh.gone", "")
            .dir("opaque")
            .text("opaque/.wh..wh..opq", "")
            .text("opaque/new", "6"),
    ];
    let image = Image::build(&json!({ "Env": ["PATH=/bin"] }), &layers).unwrap();
    let image = lab.shelf().put("layers/app", "1", &image);
    node.pull(&image).unwrap();
    let pod = node.up(&lab.pod("layers")).unwrap();
    let id = node
        .run_in(&pod, &ContainerBuilder::new("c", &image).shell("sleep 300"))
        .unwrap();
    assert_eq!(
        node.sh(&id, "ls /data /opaque | xargs"),
        "/data: hard kept owned suid /opaque: new"
    );
    assert_eq!(
        node.sh(&id, "stat -c %a:%u /data/owned /data/suid | xargs"),
        "640:1000 4755:0"
    );
    assert_eq!(
        node.sh(&id, "stat -c %i /data/hard /data/kept | uniq | wc -l"),
        "1"
    );
    lab.close(node);
}

#[test]
fn privileged_hostile_layers_stay_in_their_root() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node();
    let target = lab.unused("outside");
    std::fs::create_dir(&target).unwrap();
    let out = target.to_str().unwrap();
    let layer = Layer::new(Compression::Gzip)
        .symlink("escape", out)
        .text("escape/written", "through a link")
        .symlink("up", "../../../../../../../..")
        .text(&format!("up{out}/climbed"), "through dots");
    let image = Image::build(&json!({}), &[layer]).unwrap();
    let reference = lab.shelf().put("hostile/app", "1", &image);
    // Refusing and confining are both right; writing outside is not.
    let _either = node.pull(&reference);
    assert_eq!(std::fs::read_dir(&target).unwrap().count(), 0);
    lab.close(node);
}

#[test]
fn privileged_an_index_gives_the_image_of_this_machine() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node();
    let image = busybox::image().unwrap();
    lab.shelf().put("multi/app", "native", &image);
    let entry = |architecture: &str, digest: &str, size: usize| {
        json!({
            "mediaType": axil_integration::images::MANIFEST, "digest": digest, "size": size,
            "platform": { "os": "linux", "architecture": architecture },
        })
    };
    let size = image.blob(&image.manifest).len();
    let strange = format!("sha256:{}", "0".repeat(64));
    let native = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    for (tag, entries) in [
        (
            "both",
            vec![
                entry("s390x", &strange, 10),
                entry(native, &image.manifest, size),
            ],
        ),
        ("foreign", vec![entry("s390x", &strange, 10)]),
    ] {
        let media_type = "application/vnd.oci.image.index.v1+json";
        let index = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": entries });
        lab.shelf()
            .put_manifest("multi/app", tag, media_type, index.to_string().as_bytes());
    }
    let name = |tag: &str| format!("{}/multi/app:{tag}", lab.shelf().address());
    node.pull(&name("both")).unwrap();
    assert_eq!(
        node.image_status(&name("both")).unwrap().unwrap().id,
        image.config
    );
    let status = node.pull(&name("foreign")).unwrap_err();
    assert!(status.message().contains(native), "{status}");
    lab.close(node);
}

#[test]
fn privileged_two_pulls_of_one_image_fetch_it_once() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node();
    let image = large();
    let reference = lab.shelf().put("once/app", "1", &image);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let (client, reference) = (node.client(), reference.clone());
            scope.spawn(move || client.pull(&reference).unwrap());
        }
    });
    let requests = lab.shelf().requests();
    let asked = requests
        .iter()
        .filter(|line| line.starts_with("GET") && line.contains(&image.layers[1]));
    assert_eq!(asked.count(), 1, "{requests:?}");
    lab.close(node);
}
