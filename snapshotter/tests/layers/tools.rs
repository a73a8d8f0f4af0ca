//! Archives written by GNU tar, in every notation it has for long names, attributes and holes.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use axil_snapshotter::Compression;

use crate::world::{Layer, World, can_run, see};

/// Packs a directory with GNU tar.
fn pack(dir: &Path, options: &[&str]) -> Vec<u8> {
    let output = Command::new("tar")
        .args(["--create", "--file=-", "--numeric-owner"])
        .args(options)
        .arg("--directory")
        .arg(dir)
        .arg(".")
        .output()
        .expect("tar is on every machine that has a package manager");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "tar {options:?}: {error}");
    output.stdout
}

#[test]
fn privileged_archives_of_gnu_tar_come_out_as_they_went_in() {
    if !can_run() {
        return;
    }
    let source = tempfile::tempdir().unwrap();
    let root = source.path();
    fs::set_permissions(root, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let deep = root.join("long".repeat(30)).join("name".repeat(40));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("f"), "content").unwrap();
    fs::hard_link(deep.join("f"), root.join("hard")).unwrap();
    std::os::unix::fs::symlink("target/".repeat(50), root.join("soft")).unwrap();
    std::os::unix::fs::chown(root.join("hard"), Some(3_000_000), Some(70_000)).unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(root.join("hard"), "user.note", b"\0\xff=\n", flags).unwrap();
    // Holes at the start, between more runs than one header holds, and at the end.
    let mut holes = fs::File::create(root.join("holes")).unwrap();
    for run in 1..30_u64 {
        holes.seek(SeekFrom::Start(run * 200_000)).unwrap();
        holes
            .write_all(&vec![u8::try_from(run).unwrap(); 5000])
            .unwrap();
    }
    holes.set_len(30 * 200_000).unwrap();
    for options in [
        &["--format=gnu"][..],
        &["--format=gnu", "--sparse"],
        &[
            "--format=posix",
            "--xattrs",
            "--sparse",
            "--sparse-version=1.0",
        ],
        &[
            "--format=posix",
            "--xattrs",
            "--sparse",
            "--sparse-version=0.1",
        ],
        &[
            "--format=posix",
            "--xattrs",
            "--sparse",
            "--sparse-version=0.0",
        ],
    ] {
        let archive = pack(root, options);
        let world = World::new();
        let layer = Layer::compressed(None, &archive, Compression::Zstd);
        world
            .store
            .commit_layers(vec![world.stage(&layer).unwrap()])
            .unwrap();
        let files = world.files_of(&layer.request.chain);
        let (mut expected, mut found) = (see(root), see(&files));
        if options[0] == "--format=gnu" {
            // This format has whole seconds and, no attributes.
            for seen in [&mut expected, &mut found] {
                for text in seen.values_mut() {
                    *text = without_fractions(text);
                }
            }
        }
        assert_eq!(found, expected, "{options:?}");
        if options.contains(&"--sparse") {
            assert!(fs::metadata(files.join("holes")).unwrap().blocks() * 512 < 1_000_000);
        }
    }
}

fn without_fractions(text: &str) -> String {
    text.split(' ')
        .filter(|word| !word.starts_with("user."))
        .map(|word| match word.split_once('.') {
            Some((seconds, fraction)) if fraction.len() == 9 => seconds,
            _ => word,
        })
        .collect::<Vec<_>>()
        .join(" ")
}
