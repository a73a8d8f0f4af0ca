//! Volumes that are images, and what a mount may forbid.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use axil_integration::build::ContainerBuilder;
use axil_integration::images::{Compression, Entry, Image, Layer};
use axil_integration::lab::Lab;
use axil_proto::cri::{ImageSpec, Mount};
use serde_json::json;
use tonic::Code;

/// An image of files only: two layers, one of which hides something of the other.
fn files() -> Image {
    let layers = [
        Layer::new(Compression::Gzip)
            .dir("models")
            .text("models/weights", "heavy\n")
            .text("models/old", "gone\n")
            .text("readme", "read me\n")
            .symlink("models/latest", "weights")
            .symlink("out", "../../../../../../../etc")
            .symlink("absolute", "/models")
            .entry(
                "run",
                0o755,
                0,
                Entry::Text(b"#!/bin/sh\necho ran\n".to_vec()),
            ),
        Layer::new(Compression::Zstd)
            .text("models/.wh.old", "")
            .text("models/new", "new\n"),
    ];
    Image::build(&json!({}), &layers).unwrap()
}

#[test]
fn privileged_an_image_is_mounted_read_only_and_shared() {
    let Some(lab) = Lab::open() else { return };
    let (mut node, image) = lab.node_with_busybox();
    let name = lab.shelf().put("data/models", "1", &files());
    // The kubelet names the volume by the id that the pull answered.
    let id = node.pull(&name).unwrap();
    let pod = node.up(&lab.pod("volumes")).unwrap();
    let containers = ["one", "two"].map(|container| {
        let container = ContainerBuilder::new(container, &image)
            .shell("sleep 300")
            .image_volume(&id, "", "/data")
            .image_volume(&name, "models", "/models")
            .image_volume(&name, "models/latest", "/weights");
        node.run_in(&pod, &container).unwrap()
    });
    for container in &containers {
        for (script, expect) in [
            (
                "ls /data /data/models | xargs",
                "/data: absolute models out readme run /data/models: latest new weights",
            ),
            (
                "cat /data/readme /models/weights /weights",
                "read me\nheavy\nheavy",
            ),
            ("ls /models | xargs", "latest new weights"),
            ("/data/run", "ran"),
            ("touch /data/x 2>&1 | grep -c Read-only", "1"),
            ("echo x > /weights 2>/dev/null || echo refused", "refused"),
            (
                "grep -E ' (/data|/models|/weights) ' /proc/self/mounts | grep -c ' ro,.*nodev'",
                "3",
            ),
        ] {
            assert_eq!(node.sh(container, script), expect, "{script}");
        }
        let status = node.container_status(container).unwrap();
        let mount = |path: &str| {
            status
                .mounts
                .iter()
                .find(|m| m.container_path == path)
                .unwrap()
        };
        let told = mount("/models").image.clone().unwrap();
        assert_eq!(
            (told.image.as_str(), told.image_ref.as_str()),
            (&*name, &*id)
        );
        assert_eq!(mount("/models").image_sub_path, "models");
        assert_eq!(mount("/data").host_path, "");
    }
    // Neither the image nor the daemon has to be there for it.
    node.remove_image(&name).unwrap();
    node.kill9();
    node.launch(None).unwrap();
    assert_eq!(node.sh(&containers[1], "cat /weights"), "heavy");
    node.stop(&containers[0], 0).unwrap();
    node.remove(&containers[0]).unwrap();
    assert_eq!(
        node.sh(&containers[1], "cat /weights /data/readme"),
        "heavy\nread me"
    );
    lab.close(node);
}

#[test]
fn privileged_what_cannot_be_mounted_is_refused_and_leaves_nothing() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let name = lab.shelf().put("data/models", "1", &files());
    node.pull(&name).unwrap();
    let pod = node.up(&lab.pod("refused")).unwrap();
    let container = || ContainerBuilder::new("c", &image).shell("sleep 300");
    for (image, sub_path, words) in [
        (name.as_str(), "out", "leads out"),
        (&name, "out/passwd", "leads out"),
        (&name, "absolute", "leads out"),
        (&name, "models/old", "models/old"),
        (&name, "nowhere", "nowhere"),
        (&name, "readme/below", "readme/below"),
        ("nobody/pulled:1", "", "not on this node"),
    ] {
        let refused = container().image_volume(image, sub_path, "/data");
        let status = node.create_in(&pod, &refused).unwrap_err();
        // What the kubelet looks for.
        assert_eq!(status.code(), Code::Unknown, "{status}");
        let message = status.message();
        assert!(message.starts_with("ImageVolumeMountFailed: "), "{message}");
        assert!(message.contains(words), "{words}: {message}");
    }
    let refuse = |change: &dyn Fn(&mut Mount), field: &str| {
        let refused = container()
            .image_volume(&name, "", "/data")
            .with(|config| change(config.mounts.last_mut().unwrap()));
        let status = node.create_in(&pod, &refused).unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(field), "{field}: {status}");
    };
    refuse(
        &|mount| mount.image_sub_path = "/models".into(),
        "image_sub_path",
    );
    refuse(
        &|mount| mount.image_sub_path = "a/../..".into(),
        "image_sub_path",
    );
    refuse(
        &|mount| mount.image_sub_path = "a\0b".into(),
        "image_sub_path",
    );
    refuse(&|mount| mount.host_path = "/etc".into(), "host_path");
    refuse(&|mount| mount.propagation = 2, "propagation");
    refuse(&|mount| mount.readonly = false, "readonly");
    let part_of_nothing = |mount: &mut Mount| {
        mount.image = Some(ImageSpec::default());
        mount.image_sub_path = "models".into();
    };
    refuse(&part_of_nothing, "image_sub_path");
    refuse(
        &|mount| mount.mount_options = vec!["suid".into()],
        "mount_options",
    );
    refuse(&|mount| mount.container_path = "/".into(), "container_path");
    assert_eq!(node.containers(None).unwrap(), []);
    lab.close(node);
}

#[test]
fn privileged_a_daemon_killed_while_it_mounts_leaves_nothing() {
    let Some(lab) = Lab::open() else { return };
    for fault in [
        "volumes=kill-after",
        "document=kill",
        "task=kill",
        "created=kill",
    ] {
        let (mut node, image) = lab.node_with_busybox();
        let name = lab.shelf().put("data/models", "1", &files());
        node.pull(&name).unwrap();
        node.term();
        node.launch(Some(&format!("CreateContainer/{fault}")))
            .unwrap();
        let pod = node.up(&lab.pod("killed")).unwrap();
        let container = ContainerBuilder::new("c", &image)
            .shell("sleep 300")
            .image_volume(&name, "", "/data")
            .image_volume(&name, "models", "/models");
        assert!(node.create_in(&pod, &container).is_err());
        node.wait_for_end();
        node.launch(None).unwrap();
        assert_eq!(node.containers(None).unwrap(), [], "{fault}");
        let again = node.run_in(&pod, &container).unwrap();
        assert_eq!(node.sh(&again, "cat /models/weights"), "heavy");
        node.empty().unwrap();
        lab.assert_clean(&node);
        node.term();
    }
}

#[test]
fn privileged_a_mount_forbids_what_it_is_told_to() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    assert!(node.status(false).unwrap().features.unwrap().mount_options);
    let dir = lab.unused("volume");
    std::fs::create_dir(&dir).unwrap();
    std::fs::copy("/bin/true", dir.join("program")).unwrap();
    let name = lab.shelf().put("data/models", "1", &files());
    node.pull(&name).unwrap();
    let pod = node.up(&lab.pod("options")).unwrap();
    let container = ContainerBuilder::new("c", &image)
        .shell("sleep 300")
        .mount(dir.to_str().unwrap(), "/forbidden", false)
        .mount(dir.to_str().unwrap(), "/allowed", false)
        .image_volume(&name, "", "/image")
        .with(|config| {
            let all = ["noexec", "nosuid", "nodev"].map(str::to_owned).to_vec();
            config.mounts[0].mount_options.clone_from(&all);
            config.mounts[2].mount_options = all;
        });
    let id = node.run_in(&pod, &container).unwrap();
    let options = node.sh(&id, "grep ' /forbidden ' /proc/self/mounts");
    for option in ["noexec", "nosuid", "nodev", "rw"] {
        assert!(options.contains(option), "{option}: {options}");
    }
    let allowed = node.sh(&id, "grep ' /allowed ' /proc/self/mounts");
    assert!(!allowed.contains("noexec"), "{allowed}");
    assert_eq!(
        node.sh(&id, "/image/run 2>/dev/null || echo refused"),
        "refused"
    );
    assert_eq!(
        node.sh(&id, "touch /forbidden/x && echo written"),
        "written"
    );
    let status = node.container_status(&id).unwrap();
    assert_eq!(
        status.mounts[0].mount_options,
        ["noexec", "nodev", "nosuid"]
    );
    lab.close(node);
}

#[test]
fn privileged_an_artifact_is_refused_as_what_it_is() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node();
    let image = files();
    lab.shelf().put("data/artifact", "image", &image);
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": axil_integration::images::MANIFEST,
        "artifactType": "application/vnd.example.model",
        "config": { "mediaType": "application/vnd.oci.empty.v1+json", "size": 2,
                    "digest": axil_integration::images::digest(b"{}") },
        "layers": [],
    });
    let name = lab.shelf().put_manifest(
        "data/artifact",
        "1",
        axil_integration::images::MANIFEST,
        manifest.to_string().as_bytes(),
    );
    let status = node.pull(&name).unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented, "{status}");
    assert!(status.message().contains("artifact"), "{status}");
    lab.close(node);
}
