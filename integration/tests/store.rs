//! The store over its life: checked, mended, filled from archives and emptied into them, killed in the middle,
//! and honest about the disk.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use axil_integration::build::ContainerBuilder;
use axil_integration::children;
use axil_integration::eventually::within;
use axil_integration::guard::Need;
use axil_integration::images::{Compression, Entry, Image, Layer, busybox};
use axil_integration::lab::Lab;
use axil_integration::node::Node;
use axil_integration::shelf::Fault;
use serde_json::{Value, json};

/// Bytes that do not compress.
fn noise(seed: u32, count: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(count).collect()
}

/// An image of three layers with some files each; images of one `base` share the lowest.
fn image(base: u32, seed: u32) -> Image {
    let files = |mut layer: Layer, seed: u32| {
        for number in 0..40 {
            let content = noise(seed * 100 + number, 2_000 + 997 * number as usize);
            let path = format!("data/{seed}/{number}");
            layer = layer
                .parents(&path)
                .entry(&path, 0o640, 7, Entry::Text(content));
        }
        layer
    };
    let layers = [
        files(Layer::new(Compression::Gzip), base),
        files(Layer::new(Compression::Zstd), seed + 1),
        files(Layer::new(Compression::Plain), seed + 2),
    ];
    Image::build(&json!({ "Cmd": ["/none"] }), &layers).unwrap()
}

fn assert_clean(node: &Node, when: &str) {
    let (code, report) = node.fsck(&["--deep"]);
    assert_eq!(code, 0, "{when}: {report:#}");
    assert_eq!(report["clean"], json!(true), "{when}: {report:#}");
    assert_eq!(report["unverifiable"], json!([]), "{when}");
}

/// The files of layers below a store, by the end of their path.
fn find(node: &Node, end: &str) -> PathBuf {
    let listed = children::read(
        "find",
        &[
            node.root().join("snapshots").to_str().unwrap(),
            "-path",
            &format!("*/fs/{end}"),
        ],
    );
    let listed = listed.unwrap();
    PathBuf::from(listed.lines().next().unwrap_or_else(|| panic!("no {end}")))
}

/// Changes one byte and nothing else about a file.
fn rot(path: &Path) {
    let time = fs::metadata(path).unwrap().modified().unwrap();
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_modified(time).unwrap();
}

fn findings(report: &Value) -> Vec<String> {
    let list = report["findings"].as_array().unwrap();
    list.iter()
        .map(|f| format!("{} {} [{}]", f["object"], f["problem"], f["outcome"]))
        .collect()
}

#[test]
fn privileged_a_rotten_layer_is_found_and_fetched_again_under_a_running_container() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node();
    let base = busybox::base(Compression::Gzip).unwrap();
    let top = Layer::new(Compression::Gzip).text("note", "as it came\n");
    let image = Image::build(&json!({ "Cmd": ["/bin/sh"] }), &[base, top]).unwrap();
    let name = lab.shelf().put("team/app", "1", &image);
    node.pull(&name).unwrap();
    let pod = node.up(&lab.pod("p")).unwrap();
    let busy = ContainerBuilder::new("busy", &name).command(&["/bin/sleep", "1000"]);
    let container = node.run_in(&pod, &busy).unwrap();
    assert_clean(&node, "fresh");

    rot(&find(&node, "note"));
    let (code, report) = node.fsck(&[]);
    assert_eq!(
        code, 0,
        "content is not looked at without --deep: {report:#}"
    );
    let (code, report) = node.fsck(&["--deep"]);
    assert_eq!(code, 4);
    let found = findings(&report);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].contains("note: content differs"), "{found:?}");
    assert!(found[1].contains("is damaged"), "{found:?}");
    assert!(node.image_status(&name).unwrap().is_some());

    // Only the broken layer is fetched.
    let before = lab.shelf().requests().len();
    let (code, report) = node.fsck(&["--deep", "--repair"]);
    assert_eq!(code, 1, "{report:#}");
    let asked = lab.shelf().requests().split_off(before);
    let of = |layer: &String| {
        asked
            .iter()
            .filter(|request| request.contains(layer))
            .count()
    };
    assert_eq!(
        image.layers.iter().map(of).collect::<Vec<_>>(),
        [0, 1],
        "{asked:?}"
    );
    assert_clean(&node, "repaired");
    // The container still runs on what it began with; the next one has the mended layer.
    assert_eq!(
        node.sh(&container, "cat /bin/busybox >/dev/null && echo up"),
        "up"
    );
    let fresh = ContainerBuilder::new("fresh", &name).command(&["/bin/sleep", "1000"]);
    let fresh = node.run_in(&pod, &fresh).unwrap();
    assert_eq!(node.sh(&fresh, "cat /note"), "as it came");
    assert!(node.sh(&container, "cat /note") != "as it came");
    lab.close(node);
}

#[test]
fn privileged_what_cannot_be_fetched_waits_for_the_next_pull() {
    let Some(lab) = Lab::open() else { return };
    let mut node = lab.node();
    let image = image(1, 10);
    let name = lab.shelf().put("team/app", "1", &image);
    node.pull(&name).unwrap();
    rot(&find(&node, "data/11/39"));
    fs::remove_file(
        node.root()
            .join("content/blobs/sha256")
            .join(image.config.trim_start_matches("sha256:")),
    )
    .unwrap();
    lab.shelf()
        .misbehave(Fault::Status(image.manifest.clone(), 404));
    let (code, report) = node.fsck(&["--deep", "--repair"]);
    assert_eq!(code, 2, "{report:#}");
    // It is not listed, so the kubelet pulls it; over a restart too.
    assert_eq!(node.list_images().unwrap(), []);
    node.restart();
    assert_eq!(node.list_images().unwrap(), []);
    let listed = node.operate(&["images", "ls"], b"").text();
    assert!(listed.contains("(incomplete)"), "{listed}");
    let before = lab.shelf().requests().len();
    node.pull(&name).unwrap();
    let asked = lab.shelf().requests().split_off(before);
    let of = |layer: &String| {
        asked
            .iter()
            .filter(|request| request.contains(layer))
            .count()
    };
    assert_eq!(
        image.layers.iter().map(of).collect::<Vec<_>>(),
        [0, 1, 0],
        "{asked:?}"
    );
    assert_clean(&node, "pulled again");
    assert_eq!(node.list_images().unwrap()[0].repo_tags, [name]);
    lab.close(node);
}

#[test]
fn privileged_a_store_is_checked_without_a_daemon_too() {
    let Some(lab) = Lab::open() else { return };
    let mut node = lab.node();
    let name = lab.shelf().put("team/app", "1", &image(1, 10));
    node.pull(&name).unwrap();
    node.kill9();
    fs::create_dir_all(node.root().join("snapshots/900/fs/x")).unwrap();
    fs::write(node.root().join("images/junk.json"), "{").unwrap();
    let (code, report) = node.fsck(&["--deep"]);
    assert_eq!(code, 4, "{report:#}");
    assert_eq!(report["swept"], json!(["snapshots/900"]));
    assert_eq!(findings(&report).len(), 1, "{report:#}");
    assert_eq!(node.fsck(&["--repair"]).0, 1);
    assert_clean(&node, "repaired");
    node.launch(None).unwrap();
    assert_eq!(node.list_images().unwrap().len(), 1);
    // A daemon that holds the store and does not answer is not gone round.
    fs::remove_file(node.state().join("control.sock")).unwrap();
    let refused = node.operate(&["fsck"], b"");
    assert_eq!(refused.status.code(), Some(8), "{}", refused.text());
    assert!(refused.text().contains("in use by another process"));
    lab.close(node);
}

#[test]
fn privileged_an_image_goes_out_and_comes_back_the_same() {
    let Some(lab) = Lab::open_needing(&[Need::Program("skopeo")]) else {
        return;
    };
    let mut node = lab.node();
    let (name, other) = (
        lab.shelf().put("team/app", "1", &image(1, 10)),
        lab.shelf().put("team/other", "2", &image(1, 20)),
    );
    let id = node.pull(&name).unwrap();
    node.pull(&other).unwrap();
    let out = node.operate(&["images", "export", &name, &other], b"");
    assert!(out.status.success(), "{}", out.text());
    let archive = lab.dir().join("images.tar");
    fs::write(&archive, &out.stdout).unwrap();
    // To a directory it is a layout.
    let layout = lab.dir().join("layout");
    let target = format!("{}/", layout.display());
    let done = node.operate(&["images", "export", "--output", &target, &name], b"");
    assert!(done.status.success(), "{}", done.text());

    // Another implementation reads all of it, and agrees on what the image is.
    for source in [
        format!("docker-archive:{}:{name}", archive.display()),
        format!("oci-archive:{}:{name}", archive.display()),
        format!("oci:{}:{name}", layout.display()),
    ] {
        let copy = lab.unused("copy");
        let target = format!("dir:{}", copy.display());
        children::read(
            "skopeo",
            &["copy", "--insecure-policy", "-q", &source, &target],
        )
        .unwrap_or_else(|error| panic!("{source}: {error:#}"));
        let manifest: Value =
            serde_json::from_slice(&fs::read(copy.join("manifest.json")).unwrap()).unwrap();
        assert_eq!(manifest["config"]["digest"], json!(id), "{source}");
    }

    node.empty().unwrap();
    let imported = node.operate(&["images", "import"], &out.stdout);
    assert!(imported.status.success(), "{}", imported.text());
    assert_eq!(node.image_status(&name).unwrap().unwrap().id, id);
    assert_eq!(node.list_images().unwrap().len(), 2);
    assert_clean(&node, "imported");
    let again = node.operate(&["images", "export", &name, &other], b"");
    assert!(
        again.stdout == out.stdout,
        "the archive is the same, byte by byte"
    );

    // Also without a daemon, from a directory, under another name, and by what docker writes.
    node.kill9();
    let removed = node.operate(&["images", "rm", &name, &other], b"");
    assert!(removed.status.success(), "{}", removed.text());
    let source = layout.to_str().unwrap();
    let done = node.operate(
        &["images", "import", "--name", "registry.example/x:9", source],
        b"",
    );
    assert!(done.status.success(), "{}", done.text());
    let docker = lab.dir().join("docker.tar");
    let target = format!("docker-archive:{}:docker.example/y:1", docker.display());
    let source = format!("oci:{}:{name}", layout.display());
    children::read(
        "skopeo",
        &["copy", "--insecure-policy", "-q", &source, &target],
    )
    .unwrap();
    let done = node.operate(&["images", "import", docker.to_str().unwrap()], b"");
    assert!(done.status.success(), "{}", done.text());
    node.launch(None).unwrap();
    let images = node.list_images().unwrap();
    assert_eq!(images.len(), 1, "{images:?}");
    assert_eq!(images[0].id, id);
    assert_eq!(
        images[0].repo_tags,
        ["docker.example/y:1", "registry.example/x:9"]
    );
    assert_clean(&node, "imported without a daemon");
    lab.close(node);
}

#[test]
fn privileged_exported_layers_can_be_compressed() {
    let Some(lab) = Lab::open_needing(&[Need::Program("skopeo")]) else {
        return;
    };
    let node = lab.node();
    let name = lab.shelf().put("team/app", "1", &image(1, 10));
    let id = node.pull(&name).unwrap();
    let plain = node.operate(&["images", "export", &name], b"").stdout.len();
    for compress in ["gzip", "zstd"] {
        let export = || {
            let done = node.operate(&["images", "export", "--compress", compress, &name], b"");
            assert!(done.status.success(), "{}", done.text());
            done.stdout
        };
        let out = export();
        assert!(out.len() < plain, "{compress}: {} of {plain}", out.len());
        assert!(export() == out, "{compress}: twice the same");
        let archive = lab.unused("images.tar");
        fs::write(&archive, &out).unwrap();
        // Another implementation checks every digest on the way.
        let copy = lab.unused("copy");
        let source = format!("oci-archive:{}:{name}", archive.display());
        let target = format!("dir:{}", copy.display());
        children::read(
            "skopeo",
            &["copy", "--insecure-policy", "-q", &source, &target],
        )
        .unwrap();
        let manifest = fs::read(copy.join("manifest.json")).unwrap();
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        assert_eq!(manifest["config"]["digest"], json!(id));
        for layer in manifest["layers"].as_array().unwrap() {
            let media_type = layer["mediaType"].as_str().unwrap();
            assert!(
                media_type.ends_with(&format!("tar+{compress}")),
                "{media_type}"
            );
        }
        node.remove_image(&name).unwrap();
        let done = node.operate(&["images", "import"], &out);
        assert!(done.status.success(), "{}", done.text());
        assert_eq!(node.image_status(&name).unwrap().unwrap().id, id);
    }
    let done = node.operate(&["images", "export", "--compress", "xz", &name], b"");
    assert!(
        !done.status.success() && done.text().contains("xz"),
        "{}",
        done.text()
    );
    lab.close(node);
}

#[test]
fn privileged_hostile_archives_are_refused_and_leave_nothing() {
    let Some(lab) = Lab::open() else { return };
    let node = lab.node();
    let good = lab.dir().join("good");
    let image = image(1, 10);
    image.write_layout(&good, "registry.example/a:1").unwrap();
    let blob = |digest: &str| format!("blobs/sha256/{}", digest.trim_start_matches("sha256:"));
    type Spoil<'a> = Box<dyn Fn(&Path) + 'a>;
    let cases: Vec<(&str, Spoil<'_>)> = vec![
        (
            "has digest",
            Box::new(|dir| rot(&dir.join(blob(&image.layers[2])))),
        ),
        (
            "neither an OCI image layout",
            Box::new(|dir| {
                fs::remove_file(dir.join("oci-layout")).unwrap();
            }),
        ),
        (
            "has no file",
            Box::new(|dir| {
                fs::remove_file(dir.join(blob(&image.layers[1]))).unwrap();
            }),
        ),
        (
            "another digest",
            Box::new(|dir| rot(&dir.join(blob(&image.config)))),
        ),
        (
            "another digest",
            Box::new(|dir| rot(&dir.join(blob(&image.manifest)))),
        ),
        (
            "bytes, its descriptor says",
            Box::new(|dir| {
                let path = dir.join(blob(&image.layers[0]));
                let half = fs::read(&path).unwrap();
                fs::write(&path, &half[..half.len() / 2]).unwrap();
            }),
        ),
        (
            "image name",
            Box::new(|dir| {
                let path = dir.join("index.json");
                let text = fs::read_to_string(&path).unwrap();
                fs::write(&path, text.replace("registry.example/a:1", "../../etc:x")).unwrap();
            }),
        ),
        (
            "manifests[0].digest",
            Box::new(|dir| {
                let path = dir.join("index.json");
                let text = fs::read_to_string(&path).unwrap();
                fs::write(&path, text.replace("sha256:", "sha256:../")).unwrap();
            }),
        ),
    ];
    let before = lab.dir().read_dir().unwrap().count();
    for (reason, spoil) in cases {
        let bad = lab.dir().join("bad");
        image.write_layout(&bad, "registry.example/a:1").unwrap();
        spoil(&bad);
        let done = node.operate(&["images", "import", bad.to_str().unwrap()], b"");
        assert_eq!(done.status.code(), Some(8), "{reason}");
        assert!(done.text().contains(reason), "{reason}: {}", done.text());
        fs::remove_dir_all(&bad).unwrap();
    }
    // Names that lead out, devices, things that are there twice, and what is no archive at all.
    let mut archives = vec![(b"not a tar archive at all".repeat(60), "tar header")];
    for (name, kind, link, reason) in [
        ("../escape", b'0', "", "leads out"),
        ("node", b'3', "", "is a device"),
        ("link", b'2', "../../../etc/passwd", "leads out"),
        ("index.json", b'0', "", "is there twice"),
    ] {
        let mut tar = Vec::new();
        for _ in 0..2 {
            let mut header = tar_header(name, kind, link);
            header.extend_from_slice(&[b'x'; 512]);
            tar.extend(header);
        }
        archives.push((tar, reason));
    }
    for (archive, reason) in archives {
        let done = node.operate(&["images", "import", "-"], &archive);
        assert_eq!(done.status.code(), Some(8), "{reason}: {}", done.text());
        assert!(done.text().contains(reason), "{reason}: {}", done.text());
    }
    assert_eq!(lab.dir().read_dir().unwrap().count(), before);
    assert_eq!(node.list_images().unwrap(), []);
    assert_clean(&node, "after all");
    let (_, report) = node.fsck(&[]);
    assert_eq!(report["layers"], json!(0), "{report:#}");
    lab.close(node);
}

/// A ustar header of a file with one block of content, or of something without.
fn tar_header(name: &str, kind: u8, link: &str) -> Vec<u8> {
    let mut block = vec![0_u8; 512];
    let mut put = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
    put(0, name.as_bytes());
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(
        124,
        if kind == b'0' {
            b"00000001000\0"
        } else {
            b"00000000000\0"
        },
    );
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, &[kind]);
    put(157, link.as_bytes());
    put(257, b"ustar\x0000");
    put(329, b"0000001\0");
    put(337, b"0000003\0");
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// Bytes and inodes that a tree takes, as du(1) counts them.
fn du(dir: &Path) -> (u64, u64) {
    let read = |options: &[&str]| -> u64 {
        let arguments = [options, &[dir.to_str().unwrap()]].concat();
        let text = children::read("du", &arguments).unwrap();
        text.split_whitespace().next().unwrap().parse().unwrap()
    };
    (read(&["-s", "--block-size=1"]), read(&["-s", "--inodes"]))
}

#[test]
fn privileged_the_disk_is_accounted_for_as_du_counts_it_and_free_after_a_removal() {
    let Some(lab) = Lab::open() else { return };
    let mut node = lab.node();
    let used = |node: &Node| {
        let filesystem = node.image_fs_info().unwrap().image_filesystems.remove(0);
        (
            filesystem.used_bytes.unwrap().value,
            filesystem.inodes_used.unwrap().value,
        )
    };
    let measured = |node: &Node| {
        let (content, snapshots) = (
            du(&node.root().join("content")),
            du(&node.root().join("snapshots")),
        );
        (content.0 + snapshots.0, content.1 + snapshots.1)
    };
    assert_eq!(used(&node), (0, 0));
    let empty = measured(&node);
    let names = [10, 20].map(|seed| {
        let name = format!("team/app-{seed}");
        let name = lab.shelf().put(&name, "1", &image(1, seed));
        node.pull(&name).unwrap();
        name
    });
    let agree = |node: &Node, when: &str| {
        let (told, seen) = (used(node), measured(node));
        assert_eq!(told.1 + empty.1, seen.1, "inodes {when}");
        // Directories of the store itself may have grown by a block.
        let difference = (told.0 + empty.0).abs_diff(seen.0);
        assert!(
            difference <= 64 << 10,
            "{when}: {told:?} {seen:?} {empty:?}"
        );
    };
    agree(&node, "after two pulls");
    node.kill9();
    node.launch(None).unwrap();
    agree(&node, "at once after a start");
    node.remove_image(&names[0]).unwrap();
    agree(&node, "after a removal");
    node.remove_image(&names[1]).unwrap();
    assert_eq!(used(&node), (0, 0));
    let left = measured(&node);
    assert_eq!(left.1, empty.1, "everything is gone when the call returns");
    lab.close(node);
}

#[test]
fn privileged_writable_layers_are_told_of_at_once_when_the_daemon_comes_back() {
    let Some(lab) = Lab::open() else { return };
    let (mut node, image) = lab.node_with_busybox();
    let used = |node: &Node| {
        let told = node
            .image_fs_info()
            .unwrap()
            .container_filesystems
            .remove(0);
        told.used_bytes.unwrap().value
    };
    assert_eq!(used(&node), 0);
    let pod = node.up(&lab.pod("p")).unwrap();
    let busy = ContainerBuilder::new("busy", &image).command(&["/bin/sleep", "1000"]);
    let container = node.run_in(&pod, &busy).unwrap();
    node.sh(
        &container,
        "dd if=/dev/urandom of=/big bs=1M count=5 2>/dev/null",
    );
    within(
        Duration::from_secs(60),
        "the writable layer is measured",
        || (used(&node) > 5 << 20).then_some(()),
    );
    let told = used(&node);
    assert!(told < 6 << 20, "{told}");
    node.kill9();
    node.launch(None).unwrap();
    assert_eq!(used(&node), told);
    lab.close(node);
}

/// Kills of the everyday form; `AXIL_TEST_KILLS` asks for more.
const KILLS: u32 = 12;

#[test]
fn privileged_a_daemon_killed_in_pulls_and_removals_leaves_a_clean_store() {
    let Some(lab) = Lab::open() else { return };
    let kills = std::env::var("AXIL_TEST_KILLS").ok();
    let kills: u32 = kills.map_or(KILLS, |text| text.parse().unwrap());
    let mut node = lab.node();
    let names = [10, 20, 30].map(|seed| {
        let name = format!("team/app-{seed}");
        lab.shelf().put(&name, "1", &image(1, seed))
    });
    for round in 0..kills {
        let work = {
            let (pull, remove) = (
                names[round as usize % names.len()].clone(),
                names[(round as usize + 1) % names.len()].clone(),
            );
            let (first, second) = (node.client(), node.client());
            [
                thread::spawn(move || first.pull(&pull).map(|_| ())),
                thread::spawn(move || second.remove_image(&remove)),
            ]
        };
        // From at once to longer than the whole takes, by a sequence without a pattern.
        let pause = u64::from(noise(round, 8)[7]) * 3;
        thread::sleep(Duration::from_millis(pause));
        node.kill9();
        for work in work {
            // Ignored: most calls are cut.
            let _cut = work.join().unwrap();
        }
        assert_clean(&node, &format!("kill {round} after {pause} ms"));
        node.launch(None).unwrap();
        let name = &names[round as usize % names.len()];
        node.pull(name)
            .unwrap_or_else(|status| panic!("pull after kill {round}: {status}"));
    }
    assert_clean(&node, "after all kills");
    for name in &names {
        node.remove_image(name).unwrap();
    }
    let (_, report) = node.fsck(&["--deep"]);
    assert_eq!(
        (&report["layers"], &report["blobs"], &report["unused"]),
        (&json!(0), &json!(0), &json!(0)),
        "{report:#}"
    );
    // Partly received layers stay for an hour, for the next pull; nothing else does.
    for entry in fs::read_dir(node.root().join("content/ingest")).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(path.extension().unwrap(), "part", "{}", path.display());
        fs::remove_file(path).unwrap();
    }
    lab.close(node);
}
