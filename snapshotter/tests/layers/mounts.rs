//! Containers' snapshots: mounting, many layers, accounting, removal.

use std::fs;
use std::os::unix::fs::MetadataExt;

use axil_snapshotter::{ErrorClass, Mount, mount};

use crate::archive::{Archive, Head};
use crate::world::{World, can_run, lowers, names, stack_of};

#[test]
fn privileged_a_container_writes_without_changing_the_image() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let archive = Archive::new()
        .entry(
            &Head {
                mode: 0o750,
                uid: 42,
                ..Head::new("./", b'5')
            },
            b"",
        )
        .file("f", b"image")
        .finish();
    let top = world.pull(&[archive]).unwrap();
    let target = tempfile::tempdir().unwrap();
    let mounts = world.store.prepare("c1", Some(&top)).unwrap();
    assert_eq!(world.store.mounts("c1").unwrap(), mounts);
    let again = world.store.prepare("c1", Some(&top)).unwrap_err();
    assert_eq!(again.class(), ErrorClass::AlreadyExists);
    mount::mount_all(&mounts, target.path()).unwrap();
    let root = fs::metadata(target.path()).unwrap();
    assert_eq!((root.mode() & 0o7777, root.uid()), (0o750, 42));
    fs::write(target.path().join("f"), vec![1; 100_000]).unwrap();
    let usage = world.store.usage("c1").unwrap();
    assert!(usage.bytes >= 100_000 && usage.inodes == 2, "{usage:?}");
    assert!(mount::unmount(target.path()).unwrap());
    assert!(!mount::unmount(target.path()).unwrap());
    // The same snapshot mounts again, although it is volatile, with what was written.
    mount::mount_all(&mounts, target.path()).unwrap();
    assert_eq!(fs::read(target.path().join("f")).unwrap().len(), 100_000);
    mount::unmount(target.path()).unwrap();
    assert_eq!(fs::read(lowers(&mounts)[0].join("f")).unwrap(), b"image");
    // It survives a restart, and is gone when removed.
    let world = world.reopened();
    assert_eq!(world.store.active_keys(), ["c1"]);
    assert_eq!(world.store.mounts("c1").unwrap(), mounts);
    assert!(world.store.remove("c1").unwrap());
    assert!(!world.store.remove("c1").unwrap());
    assert_eq!(names(&world.root.join("snapshots")).len(), 2);
    assert_eq!(
        world.store.usage("c1").unwrap_err().class(),
        ErrorClass::NotFound
    );
}

#[test]
fn privileged_a_container_without_an_image_is_bound() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let target = tempfile::tempdir().unwrap();
    let mut mounts = world.store.prepare("scratch", None).unwrap();
    mount::mount_all(&mounts, target.path()).unwrap();
    fs::write(target.path().join("f"), "x").unwrap();
    assert!(mount::unmount(target.path()).unwrap());
    assert_eq!(world.store.usage("scratch").unwrap().inodes, 2);
    mounts[0].options = vec!["bind".into(), "ro".into()];
    mount::mount_all(&mounts, target.path()).unwrap();
    assert!(fs::write(target.path().join("f"), "y").is_err());
    assert!(mount::unmount(target.path()).unwrap());
}

#[test]
fn privileged_five_hundred_layers_mount() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let archives: Vec<Vec<u8>> = (0..501)
        .map(|i| {
            Archive::new()
                .file(&format!("f{i}"), b"x")
                .file("top", &[b'x'; 3])
                .finish()
        })
        .collect();
    let layers = stack_of(&archives);
    let staged = layers
        .iter()
        .map(|layer| world.stage(layer).unwrap())
        .collect();
    world.store.commit_layers(staged).unwrap();
    let seen = world.mounted(&layers[499].request.chain);
    assert_eq!(seen.len(), 1 + 500 + 1);
    let error = world
        .store
        .prepare("too-many", Some(&layers[500].request.chain))
        .unwrap_err();
    assert_eq!(error.class(), ErrorClass::InvalidArgument, "{error}");
    assert!(world.store.active_keys().is_empty());
}

#[test]
fn privileged_a_failed_mount_leaves_nothing_mounted() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let target = tempfile::tempdir().unwrap();
    let mut mounts = world.store.prepare("k", None).unwrap();
    mounts.push(Mount {
        source: "/nonexistent-axil".into(),
        ..mounts[0].clone()
    });
    let error = mount::mount_all(&mounts, target.path()).unwrap_err();
    assert_eq!(error.class(), ErrorClass::NotFound, "{error}");
    assert!(!mount::unmount(target.path()).unwrap());
}

#[test]
fn privileged_a_busy_mount_is_detached() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let target = tempfile::tempdir().unwrap();
    let top = world
        .pull(&[Archive::new().file("f", b"x").finish()])
        .unwrap();
    let mounts = world.store.prepare("k", Some(&top)).unwrap();
    mount::mount_all(&mounts, target.path()).unwrap();
    let held = fs::File::open(target.path().join("f")).unwrap();
    assert!(mount::unmount(target.path()).unwrap());
    assert!(fs::read_dir(target.path()).unwrap().next().is_none());
    drop(held);
    // A symbolic link is never unmounted through.
    let link = target.path().join("link");
    std::os::unix::fs::symlink("/proc", &link).unwrap();
    assert!(!mount::unmount(&link).unwrap());
}
