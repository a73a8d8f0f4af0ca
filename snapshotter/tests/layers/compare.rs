//! Images as umoci unpacks them, against ours as they are mounted.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use axil_snapshotter::Digest;

use crate::archive::{Archive, Head};
use crate::world::{Layer, World, can_run, see, stack_of};

/// Unpacks the layers with umoci, or says why not.
fn umoci(layers: &[Layer], dir: &Path) -> Option<BTreeMap<String, String>> {
    let blobs = dir.join("image/blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        let digest = Digest::sha256_of(bytes);
        fs::write(blobs.join(digest.hex()), bytes).unwrap();
        digest.to_string()
    };
    let diffs: Vec<_> = layers
        .iter()
        .map(|layer| layer.request.diff_id.to_string())
        .collect();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": diffs},
    })
    .to_string();
    let descriptors: Vec<_> = layers
        .iter()
        .map(|layer| {
            serde_json::json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": put(&layer.blob), "size": layer.blob.len(),
            })
        })
        .collect();
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": put(config.as_bytes()), "size": config.len(),
        },
        "layers": descriptors,
    })
    .to_string();
    let index = serde_json::json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": put(manifest.as_bytes()), "size": manifest.len(),
            "annotations": {"org.opencontainers.image.ref.name": "t"},
        }],
    });
    fs::write(dir.join("image/index.json"), index.to_string()).unwrap();
    fs::write(
        dir.join("image/oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .unwrap();
    let output = Command::new("umoci")
        .args(["raw", "unpack", "--image"])
        .arg(format!("{}:t", dir.join("image").display()))
        .arg(dir.join("rootfs"))
        .output();
    match output {
        Ok(output) => {
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{error}");
            Some(see(&dir.join("rootfs")))
        }
        Err(error) => {
            assert_ne!(
                std::env::var("AXIL_TEST_REQUIRE").as_deref(),
                Ok("1"),
                "umoci: {error}"
            );
            println!("skipped: umoci: {error}");
            None
        }
    }
}

pub(crate) fn assert_same(archives: &[Vec<u8>], what: &str) {
    let layers = stack_of(archives);
    let dir = tempfile::tempdir().unwrap();
    let Some(theirs) = umoci(&layers, dir.path()) else {
        return;
    };
    let world = World::new();
    let ours = world.mounted(&world.pull(archives).unwrap());
    let differ = |a: &BTreeMap<String, String>, b: &BTreeMap<String, String>| -> Vec<String> {
        a.iter()
            .filter(|(k, v)| b.get(*k) != Some(v))
            .map(|(k, v)| format!("{k}: {v}"))
            .collect()
    };
    let (only_ours, only_theirs) = (differ(&ours, &theirs), differ(&theirs, &ours));
    assert!(
        only_ours.is_empty() && only_theirs.is_empty(),
        "{what}\nours:   {only_ours:#?}\ntheirs: {only_theirs:#?}"
    );
}

#[test]
fn privileged_an_image_with_everything_looks_as_umoci_unpacks_it() {
    if !can_run() {
        return;
    }
    let long = format!("long/{}/{}", "d".repeat(120), "n".repeat(200));
    let base = Archive::new()
        .node(Head {
            mode: 0o755,
            ..Head::new("./", b'5')
        })
        .dir("usr/")
        .dir("usr/bin/")
        .symlink("bin", "usr/bin")
        .entry(
            &Head {
                mode: 0o4755,
                uid: 1,
                gid: 2,
                size: 3,
                ..Head::new("usr/bin/su", b'0')
            },
            b"su\n",
        )
        .hard_link("usr/bin/sg", "usr/bin/su")
        .node(Head {
            mode: 0o1777,
            ..Head::new("tmp", b'5')
        })
        .node(Head {
            device: (1, 3),
            mode: 0o666,
            ..Head::new("dev/null", b'3')
        })
        .node(Head {
            device: (7, 300),
            mode: 0o660,
            gid: 6,
            ..Head::new("dev/loop", b'4')
        })
        .node(Head {
            mode: 0o600,
            uid: 9,
            ..Head::new("run/fifo", b'6')
        })
        .pax(&[
            ("path", long.as_bytes()),
            ("mtime", b"1600000000.123456789"),
            ("uid", b"3000000"),
        ])
        .file("short", b"long")
        .pax(&[
            ("SCHILY.xattr.user.a", b"1"),
            ("SCHILY.xattr.user.b", b"\x00\xff"),
        ])
        .file("attributes", b"x")
        .file("etc/keep", b"1")
        .file("etc/remove", b"2")
        .file("opt/a/b/c", b"3")
        .finish();
    let middle = Archive::new()
        .file("etc/.wh.remove", b"")
        .file("opt/a/.wh..wh..opq", b"")
        .file("opt/a/new", b"4")
        .file("bin/through-the-link", b"5")
        .node(Head {
            link: b"../usr".to_vec(),
            uid: 4,
            ..Head::new("etc/link", b'2')
        })
        .finish();
    let top = Archive::new()
        .file(".wh.tmp", b"")
        .file("usr/bin/.wh.sg", b"")
        .file("opt", b"now a file")
        .file("attributes/now", b"a directory")
        .finish();
    // umoci cannot put a directory where a lower layer has a file without an entry for it.
    let top = {
        let mut described = Archive::new().dir("attributes").unfinished();
        described.extend_from_slice(&top);
        described
    };
    assert_same(&[base, middle, top], "everything");
}

/// Layers made at random from a few names, so that they meet.
#[test]
fn privileged_random_images_look_as_umoci_unpacks_them() {
    if !can_run() {
        return;
    }
    let images = std::env::var("AXIL_TEST_ARCHIVES").map_or(40, |text| text.parse().unwrap());
    for seed in 1..=images {
        let mut state = u64::wrapping_mul(seed, 0x9e37_79b9_7f4a_7c15);
        let mut pick = |n: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % n
        };
        let mut archives = Vec::new();
        let mut known: Vec<String> = Vec::new();
        for layer in 0..3_u64 {
            let mut archive = Archive::new();
            let mut here: Vec<String> = Vec::new();
            for step in 0..12_u64 {
                let top = ["a", "b", "c"][usize::try_from(pick(3)).unwrap()];
                let below = ["x", "y", "z"][usize::try_from(pick(3)).unwrap()];
                let directory = format!("d{top}");
                let path = format!("{directory}/{below}");
                // Only what has the same meaning for everybody: a name once per layer.
                if here.contains(&path) {
                    continue;
                }
                here.push(path.clone());
                let head = Head {
                    mode: 0o600 + pick(0o200),
                    uid: pick(5),
                    gid: pick(5),
                    mtime: 1000 + pick(1000),
                    ..Head::new(&path, b'0')
                };
                archive = match pick(7) {
                    0 if layer > 0 && known.contains(&path) => {
                        archive.file(&format!("{directory}/.wh.{below}"), b"")
                    }
                    1 => archive
                        .entry(&Head { kind: b'5', ..head }, b"")
                        .file(&format!("{path}/in"), b"i"),
                    2 => archive.node(Head {
                        kind: b'2',
                        link: b"../q".to_vec(),
                        ..head
                    }),
                    3 => archive.entry(&Head { kind: b'6', ..head }, b""),
                    _ => {
                        let content = format!("{seed} {layer} {step}");
                        let head = Head {
                            size: content.len() as u64,
                            ..head
                        };
                        archive.entry(&head, content.as_bytes())
                    }
                };
                known.push(path);
            }
            archives.push(archive.finish());
        }
        assert_same(&archives, &format!("seed {seed}"));
    }
}
