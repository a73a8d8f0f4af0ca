//! What an image is called: one identity in every answer, every name it is found by, what removes it, what pins
//! it, what it takes, and what a hostile image may say of itself.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use axil_integration::build::ContainerBuilder;
use axil_integration::images::{self, Compression, Image, Layer, busybox};
use axil_integration::lab::Lab;
use axil_integration::node::{Node, NodeOptions};
use serde_json::{Value, json};
use tonic::Code;

/// An image of one small file.
fn small(content: &str) -> Image {
    let layer = Layer::new(Compression::Gzip).text("file", content);
    Image::build(&json!({ "Cmd": ["/none"] }), &[layer]).unwrap()
}

/// The same image with other bytes for a configuration.
fn with_config(image: &Image, config: &[u8]) -> Image {
    let mut changed = image.clone();
    let (media_type, _) = changed.blobs.remove(&image.config).unwrap();
    let (manifest_type, manifest) = changed.blobs.remove(&image.manifest).unwrap();
    changed.config = images::digest(config);
    let mut manifest: Value = serde_json::from_slice(&manifest).unwrap();
    manifest["config"]["digest"] = json!(changed.config);
    manifest["config"]["size"] = json!(config.len());
    let manifest = manifest.to_string().into_bytes();
    changed.manifest = images::digest(&manifest);
    let blobs = [
        (changed.config.clone(), (media_type, config.to_vec())),
        (changed.manifest.clone(), (manifest_type, manifest)),
    ];
    changed.blobs.extend(blobs);
    changed
}

fn used(node: &Node) -> u64 {
    let info = node.image_fs_info().unwrap();
    info.image_filesystems[0].used_bytes.unwrap().value
}

#[test]
fn privileged_every_answer_tells_the_same_image() {
    let Some(lab) = Lab::open() else { return };
    let mut node = lab.node();
    let image = busybox::image().unwrap();
    let one = lab.shelf().put("one/app", "v1", &image);
    let two = lab.shelf().put("two/app", "v2", &image);
    let two_digest = format!("{}/two/app@{}", lab.shelf().address(), image.manifest);
    for name in [&one, &two, &format!("{two}@{}", image.manifest)] {
        assert_eq!(node.pull(name).unwrap(), image.config, "{name}");
    }
    let listed = node.list_images().unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].id, image.config);
    assert_eq!(listed[0].repo_tags, [one.clone(), two.clone()]);
    assert_eq!(listed[0].repo_digests.len(), 2);

    // The kubelet asks by id and says what the user wrote.
    let pod = node.up(&lab.pod("identity")).unwrap();
    let container = ContainerBuilder::new("c", &image.config)
        .shell("sleep 300")
        .with(|config| {
            let asked = config.image.as_mut().unwrap();
            asked.user_specified_image.clone_from(&two);
        });
    let id = node.run_in(&pod, &container).unwrap();
    for _ in 0..2 {
        let status = node.container_status(&id).unwrap();
        let entry = &node.containers(None).unwrap()[0];
        assert_eq!(status.image_id, image.config);
        assert_eq!(entry.image_id, image.config);
        assert_eq!(status.image_ref, two_digest);
        assert_eq!(entry.image_ref, two_digest);
        for spec in [status.image.unwrap(), entry.image.clone().unwrap()] {
            assert_eq!(
                (spec.image, spec.user_specified_image),
                (two.clone(), two.clone())
            );
        }
        node.restart();
    }
    lab.close(node);
}

#[test]
fn privileged_whatever_it_was_pulled_by_an_image_is_the_same_everywhere() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node();
    let image = busybox::image().unwrap();
    let tag = lab.shelf().put("same/app", "v1", &image);
    let by_digest = format!("{}/same/app@{}", lab.shelf().address(), image.manifest);
    let both = format!("{tag}@{}", image.manifest);
    let empty = used(&node);
    let pod = node.up(&lab.pod("same")).unwrap();
    for pulled in [&tag, &by_digest, &both] {
        // A name with a digest gives the digest only: nobody looked whether the tag means it.
        let tagged = pulled == &tag;
        let mut names = vec![by_digest.clone(), both.clone(), image.config.clone()];
        names.extend(tagged.then(|| tag.clone()));
        for removed_by in names.clone() {
            assert_eq!(node.pull(pulled).unwrap(), image.config, "{pulled}");
            let listed = node.list_images().unwrap();
            assert_eq!(listed.len(), 1, "{pulled}");
            assert_eq!(listed[0].id, image.config);
            assert_eq!(listed[0].repo_digests, std::slice::from_ref(&by_digest));
            let tags = if tagged {
                vec![tag.clone()]
            } else {
                Vec::new()
            };
            assert_eq!(listed[0].repo_tags, tags);
            for name in &names {
                assert_eq!(
                    node.image_status(name).unwrap().as_ref(),
                    Some(&listed[0]),
                    "{pulled}: {name}"
                );
                let container = ContainerBuilder::new("c", name).shell("true");
                let id = node.run_in(&pod, &container).unwrap();
                let status = node.container_status(&id).unwrap();
                let entry = node.containers(None).unwrap().remove(0);
                assert_eq!(
                    [&status.image_id, &entry.image_id],
                    [&image.config, &image.config]
                );
                assert_eq!(
                    [&status.image_ref, &entry.image_ref],
                    [&by_digest, &by_digest]
                );
                let shown = if tagged { &tag } else { name };
                assert_eq!(&status.image.unwrap().image, shown);
                assert_eq!(&entry.image.unwrap().image, shown);
                node.exit_of(&id);
                node.remove(&id).unwrap();
            }
            if !tagged {
                assert_eq!(node.image_status(&tag).unwrap(), None);
            }
            node.remove_image(&removed_by).unwrap();
            for name in names.iter().chain([&tag]) {
                assert_eq!(
                    node.image_status(name).unwrap(),
                    None,
                    "{removed_by}: {name}"
                );
            }
            assert_eq!(node.list_images().unwrap(), [], "{removed_by}");
            assert_eq!(used(&node), empty, "{removed_by}");
        }
    }
    lab.close(node);
}

#[test]
fn privileged_an_image_is_found_by_tag_digest_id_and_short_id() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node();
    // Of seventeen ids two begin with the same digit.
    let mut by_digit = BTreeMap::new();
    let (one, other) = (0..17)
        .find_map(|n| {
            let image = small(&n.to_string());
            let digit = image.config["sha256:".len()..][..1].to_owned();
            by_digit
                .insert(digit, image.clone())
                .map(|other| (image, other))
        })
        .unwrap();
    let tag = lab.shelf().put("names/one", "v1", &one);
    lab.shelf().put("names/other", "v1", &other);
    node.pull(&tag).unwrap();
    let by_digest = format!("{}/names/one@{}", lab.shelf().address(), one.manifest);
    let hex = one.config.strip_prefix("sha256:").unwrap();
    let names = [
        tag.clone(),
        by_digest,
        format!("{tag}@{}", one.manifest),
        one.config.clone(),
        hex.to_owned(),
        hex[..12].to_owned(),
        hex[..6].to_owned(),
        format!("sha256:{}", &hex[..13]),
        format!("sha256:{}", &hex[..1]),
    ];
    for name in &names {
        let found = node.image_status(name).unwrap();
        assert_eq!(
            found.map(|image| image.id),
            Some(one.config.clone()),
            "{name}"
        );
    }
    // The digest decides, whatever the tag: nothing was pulled under the other one.
    let other_digest = format!("{tag}@{}", other.manifest);
    for name in [
        other_digest.as_str(),
        &hex[..5],
        &other.manifest,
        "nobody/knows:1",
    ] {
        assert_eq!(node.image_status(name).unwrap(), None, "{name}");
    }
    node.pull(&format!("{}/names/other:v1", lab.shelf().address()))
        .unwrap();
    let ambiguous = format!("sha256:{}", &hex[..1]);
    let status = node.image_status(&ambiguous).unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    let status = node.remove_image(&ambiguous).unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert_eq!(node.list_images().unwrap().len(), 2);
    lab.close(node);
}

#[test]
fn privileged_one_name_removes_all_names_of_an_image() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node();
    let image = small("many names");
    let hex = image.config.strip_prefix("sha256:").unwrap();
    let names: Vec<String> = [("a/app", "1"), ("a/app", "2"), ("b/app", "1")]
        .map(|(repository, tag)| lab.shelf().put(repository, tag, &image))
        .into();
    let by_digest = format!("{}/b/app@{}", lab.shelf().address(), image.manifest);
    for gone_by in [&names[1], &by_digest, &image.config, &hex[..12].to_owned()] {
        for name in &names {
            node.pull(name).unwrap();
        }
        node.remove_image(gone_by).unwrap();
        assert_eq!(node.list_images().unwrap(), [], "{gone_by}");
        for name in names.iter().chain([&by_digest, &image.config]) {
            assert_eq!(node.image_status(name).unwrap(), None, "{name}");
            node.remove_image(name).unwrap();
        }
    }
    lab.close(node);
}

#[test]
fn privileged_pinned_images_are_told_and_kept_from_a_slip() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node_with(NodeOptions {
        images: vec!["pinned = [\"*/base/*\"]".to_owned()],
        ..NodeOptions::default()
    });
    let (base, app) = (small("base"), small("app"));
    let base_name = lab.shelf().put("base/image", "1", &base);
    let app_name = lab.shelf().put("team/app", "1", &app);
    for name in [&base_name, &app_name] {
        node.pull(name).unwrap();
    }
    let pinned = |name: &str| node.image_status(name).unwrap().unwrap().pinned;
    assert!(pinned(&base_name) && pinned(&base.config));
    assert!(!pinned(&app_name));
    let listed = node.operate(&["images", "ls"], b"").text();
    assert_eq!(listed.matches("(pinned)").count(), 1, "{listed}");

    for name in [&base_name, &base.config] {
        let done = node.operate(&["images", "rm", name], b"");
        assert!(!done.status.success());
        assert!(done.text().contains("images.pinned"), "{}", done.text());
    }
    assert!(pinned(&base_name));
    assert!(
        node.operate(&["images", "rm", &app_name], b"")
            .status
            .success()
    );
    let done = node.operate(&["images", "rm", "--force", &base_name], b"");
    assert!(done.status.success(), "{}", done.text());
    assert_eq!(node.list_images().unwrap(), []);
    // The CRI recommends only: who asks for the removal gets it.
    node.pull(&base_name).unwrap();
    node.remove_image(&base_name).unwrap();
    assert_eq!(node.list_images().unwrap(), []);
    lab.close(node);
}

#[test]
fn privileged_the_size_of_an_image_is_what_its_removal_frees() {
    let Some(lab) = Lab::open() else { return };
    let mut node = lab.node();
    let empty = used(&node);
    let layers = ["first", "second"].map(|name| {
        Layer::new(Compression::Gzip)
            .text(name, &"x".repeat(300_000))
            .dir("d")
    });
    let image = Image::build(&json!({}), &layers).unwrap();
    let name = lab.shelf().put("size/app", "1", &image);
    node.pull(&name).unwrap();
    let told = |node: &Node| node.image_status(&name).unwrap().unwrap().size;
    assert!(told(&node) > 600_000, "{}", told(&node));
    assert_eq!(used(&node) - empty, told(&node));
    let before = told(&node);
    node.restart();
    assert_eq!(told(&node), before);
    assert_eq!(used(&node) - empty, before);
    node.remove_image(&name).unwrap();
    assert_eq!(used(&node), empty);
    lab.close(node);
}

#[test]
fn privileged_users_annotations_and_documents_are_told() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node();
    let layer = || Layer::new(Compression::Plain).text("file", "x");
    for (n, (user, uid, username)) in [
        ("", Some(0), ""),
        ("1000", Some(1000), ""),
        ("1000:33", Some(1000), ""),
        ("www-data", None, "www-data"),
    ]
    .into_iter()
    .enumerate()
    {
        let config = json!({ "User": user, "Labels": { "maintainer": "me" } });
        let image = Image::build(&config, &[layer()]).unwrap();
        let name = lab.shelf().put("users/app", &n.to_string(), &image);
        node.pull(&name).unwrap();
        let answer = node.image_status_verbose(&name).unwrap();
        let told = answer.image.unwrap();
        assert_eq!(told.uid.map(|uid| uid.value), uid, "{user:?}");
        assert_eq!(told.username, username);
        assert!(!told.spec.unwrap().image.is_empty());
        let info: Value = serde_json::from_str(&answer.info["info"]).unwrap();
        assert_eq!(info["imageSpec"]["config"]["Labels"]["maintainer"], "me");
        assert_eq!(info["manifest"]["config"]["digest"], image.config);
        assert!(info["chainID"].is_string());
    }
    let image = small("annotated");
    let mut manifest: Value = serde_json::from_slice(image.blob(&image.manifest)).unwrap();
    manifest["annotations"] = json!({
        "org.opencontainers.image.title": "a title",
        "io.kubernetes.cri-o.Devices": "/dev/kmsg",
        "z.large": "x".repeat(1 << 20),
    });
    lab.shelf().put("users/app", "annotated", &image);
    let text = manifest.to_string();
    lab.shelf()
        .put_manifest("users/app", "annotated", images::MANIFEST, text.as_bytes());
    let name = format!("{}/users/app:annotated", lab.shelf().address());
    node.pull(&name).unwrap();
    let annotations = node
        .image_status(&name)
        .unwrap()
        .unwrap()
        .spec
        .unwrap()
        .annotations;
    assert_eq!(annotations.len(), 1, "{:?}", annotations.keys());
    assert_eq!(annotations["org.opencontainers.image.title"], "a title");
    lab.close(node);
}

#[test]
fn privileged_poisoned_configurations_are_refused_and_lists_stay_small() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node();
    let good = small("poison");
    let document: Value = serde_json::from_slice(good.blob(&good.config)).unwrap();
    let config = |config: Value| {
        let mut poisoned = document.clone();
        poisoned["config"] = config;
        poisoned.to_string().into_bytes()
    };
    let mut binary = config(json!({ "Labels": { "a": "MARK" } }));
    let at = binary.windows(4).position(|four| four == b"MARK").unwrap();
    binary[at] = 0xff;
    let many: Vec<String> = vec![String::new(); 1_000_000];
    for (n, (poison, words)) in [
        (
            config(json!({ "User": "x".repeat(3 << 20) })),
            "config.User",
        ),
        (
            config(json!({ "User": "root\u{1b}]0;x\u{7}" })),
            "config.User",
        ),
        (
            config(json!({ "Labels": { "a": "x".repeat(3 << 20) } })),
            "config.Labels",
        ),
        (config(json!({ "Env": many })), "config.Env"),
        (
            config(json!({ "StopSignal": "\n".repeat(70) })),
            "config.StopSignal",
        ),
        (binary, "UTF-8"),
    ]
    .into_iter()
    .enumerate()
    {
        let name = lab
            .shelf()
            .put("poison/app", &n.to_string(), &with_config(&good, &poison));
        let status = node.pull(&name).unwrap_err();
        assert!(status.message().contains(words), "{words}: {status}");
        assert!(status.message().len() < 2000);
        assert!(!status.message().contains('\u{1b}'), "{status:?}");
        assert_eq!(node.image_status(&name).unwrap(), None);
    }
    assert_eq!(node.list_images().unwrap(), []);
    // The same image without poison is fetched, although its layers were seen before.
    let name = lab.shelf().put("poison/app", "good", &good);
    node.pull(&name).unwrap();
    lab.close(node);
}
