//! Checking layers: whole ones are clean whatever their archives did, and every damage is found.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use axil_snapshotter::{ChainId, Depth, Roots};
use proptest::prelude::*;

use crate::archive::{Archive, GNU, Head};
use crate::world::{Layer, World, can_run, see, stack_of};

fn assert_clean(world: &World, what: &str) {
    for chain in world.store.layers() {
        let check = world.store.check_layer(&chain, Depth::Deep).unwrap();
        assert!(check.is_clean(), "{what}: {:#?}", check.problems);
        assert!(!check.is_unverifiable, "{what}");
        assert!(check.verified_bytes >= 1024, "{what}");
    }
    assert_eq!(world.store.orphans().unwrap(), [], "{what}");
}

fn dir_of(world: &World, chain: &ChainId) -> std::path::PathBuf {
    world.files_of(chain).parent().unwrap().to_owned()
}

/// Archives that replace what they made themselves, in every way there is.
fn quarrelsome() -> Archive {
    Archive::new()
        .file("f", b"first")
        .file("f", b"second, longer")
        .hard_link("g", "f")
        .file("f", b"third")
        .dir("d")
        .file("d/x", b"in a directory that goes")
        .file("d/deep/y", b"deeper in it")
        .file("d", b"a file now")
        .dir("d")
        .file("d/x", b"in a new directory")
        .symlink("l", "d")
        .file("l/through", b"through a link")
        .file("l", b"no link any more")
        .file("empty", b"")
        .file("empty", b"not empty")
        .file("empty", b"")
        .file("twice", &[7; 70_000])
        .file("twice", &[8; 300_000])
}

#[test]
fn privileged_a_layer_that_replaces_its_own_entries_can_be_made_again() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let archive = quarrelsome().finish();
    let chain = world.pull(&[archive]).unwrap();
    assert_clean(&world, "fresh");
    let aside = dir_of(&world, &chain).join("aside");
    assert!(fs::read_dir(&aside).unwrap().count() >= 6);
    let world = world.reopened();
    assert_clean(&world, "reopened");
    // What was set aside is part of the archive: damage there is damage.
    fs::write(aside.join("0"), b"fIrst").unwrap();
    let check = world.store.check_layer(&chain, Depth::Deep).unwrap();
    assert_eq!(check.problems, ["f: content differs from the archive"]);
}

#[test]
fn privileged_layers_that_meet_the_ones_below_can_be_made_again() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let base = Archive::new()
        .dir("usr")
        .dir("usr/bin")
        .file("usr/bin/tool", b"old tool")
        .file("usr/bin/other", b"other")
        .symlink("bin", "usr/bin")
        .symlink("lib", "usr/lib")
        .symlink("lost", "nowhere")
        .finish();
    let middle = Archive::new()
        // Through links of the layer below; both names of one file; a directory against a file.
        .file("bin/tool", b"new tool by the link")
        .file("usr/bin/tool", b"new tool by its path")
        .file("bin/sub/s", b"deep")
        .file("usr/bin/sub", b"not a directory")
        .file("lost/f", b"no way through")
        .hard_link("linked", "usr/bin/other")
        .file("implied/deep/f", b"x")
        .finish();
    let top = Archive::new()
        .file(".wh.linked", b"")
        .file("usr/.wh..wh..opq", b"")
        .file("usr/new", b"new")
        .file(".wh.with-content", b"a marker with content")
        .finish();
    world
        .pull(&[base.clone(), middle.clone(), top.clone()])
        .unwrap();
    assert_clean(&world, "stack");
    // A second store makes the same trees, times of directories nobody described included.
    let again = World::new();
    let chain = again.pull(&[base, middle, top]).unwrap();
    let stat = |world: &World| {
        let below = world.mounted(&chain);
        (below, world.store.layers())
    };
    assert_eq!(stat(&world), stat(&again));
    assert_clean(&again, "again");
    let implied = |world: &World| {
        let second = &world.store.layers()[1];
        let meta = fs::metadata(world.files_of(second).join("implied/deep")).unwrap();
        (meta.mtime(), meta.mtime_nsec())
    };
    assert_eq!(implied(&world), (0, 0));
}

#[test]
fn privileged_sparse_long_and_trailing_bytes_can_be_made_again() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let mut sparse = Head {
        size: 1024,
        magic: GNU,
        ..Head::new("sparse", b'S')
    }
    .block();
    // Two segments of 512 bytes with a hole before, between and after them.
    for (at, value) in [
        (386, 4096),
        (398, 512),
        (410, 1 << 20),
        (422, 512),
        (483, 2 << 20),
    ] {
        sparse[at..at + 11].copy_from_slice(format!("{value:011o}").as_bytes());
    }
    crate::archive::seal(&mut sparse);
    let archive = Archive::new()
        .raw(&sparse)
        .raw(&[5; 1024])
        .pax(&[
            ("path", "n".repeat(200).as_bytes()),
            ("mtime", b"1600000000.123456789"),
            ("SCHILY.xattr.user.note", b"\0\xffbytes"),
        ])
        .file("short", b"long name")
        .file("zeros", &vec![0; 1 << 20])
        .finish();
    let archive = [archive, b"what follows the end".to_vec(), vec![0; 9000]].concat();
    let chain = world.pull(&[archive]).unwrap();
    assert_clean(&world, "sparse");
    let meta = fs::metadata(world.files_of(&chain).join("sparse")).unwrap();
    assert_eq!(meta.len(), 2 << 20);
}

#[test]
fn privileged_every_damage_is_found_and_named() {
    if !can_run() {
        return;
    }
    type Damage = (&'static str, fn(&Path));
    let damages: [Damage; 16] = [
        ("file: content differs", |dir| {
            let path = dir.join("fs/file");
            let time = fs::metadata(&path).unwrap().modified().unwrap();
            fs::write(&path, b"contenT").unwrap();
            let file = fs::File::options().write(true).open(&path).unwrap();
            file.set_modified(time).unwrap();
        }),
        ("file: is shorter", |dir| {
            fs::write(dir.join("fs/file"), b"").unwrap();
        }),
        ("file: size differ", |dir| {
            fs::write(dir.join("fs/file"), b"content and more").unwrap();
        }),
        ("file: permissions differ", |dir| {
            let mode = fs::Permissions::from_mode(0o666);
            fs::set_permissions(dir.join("fs/file"), mode).unwrap();
        }),
        ("file: owner differ", |dir| {
            std::os::unix::fs::chown(dir.join("fs/file"), Some(7), None).unwrap();
        }),
        ("file: time differ", |dir| {
            let file = fs::File::open(dir.join("fs/file")).unwrap();
            file.set_modified(std::time::SystemTime::UNIX_EPOCH)
                .unwrap();
        }),
        ("dir: time differ", |dir| {
            let file = fs::File::open(dir.join("fs/dir")).unwrap();
            file.set_modified(std::time::SystemTime::UNIX_EPOCH)
                .unwrap();
        }),
        ("file: extended attributes differ", |dir| {
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::setxattr(dir.join("fs/file"), "user.note", b"bad", flags).unwrap();
        }),
        ("dir: extended attributes differ", |dir| {
            let flags = rustix::fs::XattrFlags::empty();
            let opaque = "trusted.overlay.opaque";
            rustix::fs::setxattr(dir.join("fs/dir"), opaque, b"y", flags).unwrap();
        }),
        ("link: has another target", |dir| {
            fs::remove_file(dir.join("fs/link")).unwrap();
            symlink("filE", dir.join("fs/link")).unwrap();
        }),
        ("files, its record says", |dir| {
            fs::write(dir.join("fs/dir/more"), b"").unwrap();
        }),
        ("file: is missing", |dir| {
            fs::remove_file(dir.join("fs/file")).unwrap();
        }),
        ("renamed: is not in the archive", |dir| {
            fs::rename(dir.join("fs/file"), dir.join("fs/renamed")).unwrap();
        }),
        ("hard: is a link to another file", |dir| {
            fs::remove_file(dir.join("fs/hard")).unwrap();
            fs::hard_link(dir.join("fs/pair"), dir.join("fs/hard")).unwrap();
            fs::remove_file(dir.join("fs/twin")).unwrap();
            fs::hard_link(dir.join("fs/file"), dir.join("fs/twin")).unwrap();
        }),
        ("skeleton", |dir| {
            let path = dir.join("skeleton");
            let mut bytes = fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x10;
            fs::write(&path, bytes).unwrap();
        }),
        ("its directory has a stray", |dir| {
            fs::write(dir.join("stray"), b"").unwrap();
        }),
    ];
    for (expected, damage) in damages {
        let world = World::new();
        let archive = Archive::new()
            .pax(&[("SCHILY.xattr.user.note", b"good")])
            .file("file", b"content")
            .hard_link("hard", "file")
            .file("pair", b"content")
            .hard_link("twin", "pair")
            .dir("dir")
            .symlink("link", "file");
        let chain = world.pull(&[archive.finish()]).unwrap();
        assert_clean(&world, expected);
        damage(&dir_of(&world, &chain));
        let check = world.store.check_layer(&chain, Depth::Deep).unwrap();
        let named = check
            .problems
            .iter()
            .any(|problem| problem.contains(expected));
        assert!(named, "{expected}: {:#?}", check.problems);
        // The check left nothing behind.
        assert_eq!(world.store.orphans().unwrap(), []);
    }
}

#[test]
fn privileged_a_lost_skeleton_is_damage_and_one_that_never_was_is_not() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let chain = world
        .pull(&[Archive::new().file("f", b"x").finish()])
        .unwrap();
    let mut small = Layer::new(None, &Archive::new().file("g", &[1; 4000]).finish());
    small.request.limits.skeleton_bytes = 10;
    let staged = world.stage(&small).unwrap();
    world.store.commit_layers(vec![staged]).unwrap();
    let other = small.request.chain;
    let check = world.store.check_layer(&other, Depth::Deep).unwrap();
    assert!(check.is_unverifiable && check.is_clean(), "{check:?}");
    assert!(!dir_of(&world, &other).join("skeleton").exists());
    fs::remove_file(dir_of(&world, &chain).join("skeleton")).unwrap();
    let check = world.store.check_layer(&chain, Depth::Deep).unwrap();
    assert!(!check.is_unverifiable && !check.is_clean(), "{check:?}");
}

#[test]
fn privileged_a_condemned_layer_is_fetched_again_under_a_running_container() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let archives = [
        Archive::new().file("base", b"content").finish(),
        Archive::new().file("top", b"content").finish(),
    ];
    let chain = world.pull(&archives).unwrap();
    let before = world.mounted(&chain);
    let mounts = world.store.prepare("c", Some(&chain)).unwrap();
    let base = world.store.layers()[0].clone();
    let old = dir_of(&world, &base);
    fs::write(old.join("fs/base"), b"CONTENT").unwrap();
    assert!(world.store.condemn_layer(&base).unwrap());
    assert!(!world.store.has_layer(&base));
    let check = world.store.check_layer(&chain, Depth::Deep).unwrap();
    assert_eq!(check.lacks, Some(base));
    assert!(check.is_clean(), "{check:?}");
    // A restart in between changes nothing.
    let world = world.reopened();
    let mut roots = Roots::default();
    roots.chains.insert(chain.clone());
    world.store.collect_garbage(&roots).unwrap();
    assert!(old.exists(), "a container is on it");
    world.pull(&archives).unwrap();
    assert_clean(&world, "pulled again");
    assert_eq!(world.mounted(&chain), before);
    assert_eq!(world.store.mounts("c").unwrap(), mounts);
    let usage = world.store.store_usage().unwrap();
    world.store.remove("c").unwrap();
    world.store.collect_garbage(&roots).unwrap();
    assert!(!old.exists());
    assert!(world.store.store_usage().unwrap().bytes < usage.bytes);
    assert!(world.store.damaged().is_empty());
}

#[test]
fn privileged_orphans_are_named_and_removed_and_work_in_progress_is_not() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let layer = Layer::new(None, &Archive::new().file("f", b"x").finish());
    let staged = world.stage(&layer).unwrap();
    assert_eq!(world.store.orphans().unwrap(), []);
    fs::create_dir_all(world.root.join("snapshots/0/fs/deep")).unwrap();
    fs::write(world.root.join("snapshots/junk"), b"").unwrap();
    fs::write(world.root.join("content/ingest/junk"), b"").unwrap();
    let orphans = world.store.orphans().unwrap();
    let mut paths: Vec<_> = orphans.iter().map(|orphan| orphan.path.as_str()).collect();
    paths.sort_unstable();
    assert_eq!(
        paths,
        ["content/ingest/junk", "snapshots/0", "snapshots/junk"]
    );
    for orphan in &orphans {
        assert!(world.store.remove_orphan(orphan).unwrap());
    }
    assert_eq!(world.store.orphans().unwrap(), []);
    world.store.commit_layers(vec![staged]).unwrap();
    assert_clean(&world, "after all");
}

/// One entry of a random archive, over few names so that they meet.
fn entry() -> impl Strategy<Value = (u8, u8, u8, Vec<u8>)> {
    (
        0..6_u8,
        0..6_u8,
        0..6_u8,
        proptest::collection::vec(any::<u8>(), 0..600),
    )
}

fn random(entries: &[(u8, u8, u8, Vec<u8>)]) -> Vec<u8> {
    const NAMES: [&str; 6] = ["a", "b", "a/b", "a/b/c", "b/a", "c"];
    let mut archive = Archive::new();
    for (kind, name, other, content) in entries {
        let (name, other) = (NAMES[usize::from(*name)], NAMES[usize::from(*other)]);
        archive = match kind {
            0 | 1 => archive.file(name, content),
            2 => archive.dir(name),
            3 => archive.symlink(name, other),
            4 => archive.hard_link(name, other),
            _ => {
                let (dir, name) = name.rsplit_once('/').unwrap_or((".", name));
                archive.file(&format!("{dir}/.wh.{name}"), b"")
            }
        };
    }
    archive.finish()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn privileged_whatever_can_be_pulled_can_be_made_again(
        base in proptest::collection::vec(entry(), 1..10),
        top in proptest::collection::vec(entry(), 1..10),
    ) {
        if can_run() {
            let world = World::new();
            // Archives that contradict themselves are refused; the rest has to be clean.
            let archives = [random(&base), random(&top)];
            for layer in stack_of(&archives) {
                let committed = world.stage(&layer)
                    .and_then(|staged| world.store.commit_layers(vec![staged]));
                if committed.is_err() {
                    break;
                }
            }
            assert_clean(&world, "random");
            let before: Vec<_> = world.store.layers().iter()
                .map(|chain| see(&world.files_of(chain))).collect();
            let world = world.reopened();
            assert_clean(&world, "random, reopened");
            let after: Vec<_> = world.store.layers().iter()
                .map(|chain| see(&world.files_of(chain))).collect();
            prop_assert_eq!(before, after);
        }
    }
}
