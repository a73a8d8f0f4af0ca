//! What is there after a crash, and after somebody damaged the store.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use axil_snapshotter::{Compression, ContentError, Digest, ErrorClass, OpenError, Store};

use crate::archive::Archive;
use crate::world::{Layer, World, can_run, names};

#[test]
fn privileged_unfinished_things_go_and_finished_ones_stay() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let top = world
        .pull(&[Archive::new().file("f", b"x").finish()])
        .unwrap();
    world.store.prepare("c", Some(&top)).unwrap();
    world.store.prepare("half-removed", Some(&top)).unwrap();
    let snapshots = world.root.join("snapshots");
    // As a crash leaves them: an unpack directory, temporary files, a removal half way.
    fs::create_dir_all(snapshots.join("77/fs/deep")).unwrap();
    fs::write(snapshots.join("meta/.tmp-1-9.json"), "{").unwrap();
    fs::write(world.root.join("content/blobs/sha256/.tmp-3-x"), "x").unwrap();
    fs::rename(
        snapshots.join("meta/3.json"),
        snapshots.join("meta/3.removing"),
    )
    .unwrap();
    let world = world.reopened();
    assert_eq!(names(&snapshots), ["1", "2", "meta"]);
    assert_eq!(names(&snapshots.join("meta")), ["1.json", "2.json"]);
    assert!(names(&world.root.join("content/blobs/sha256")).is_empty());
    assert!(world.store.has_layer(&top));
    assert_eq!(world.store.active_keys(), ["c"]);
    assert!(world.store.damaged().is_empty());
    // Numbers are not used twice, even those of what was swept.
    let mounts = world.store.prepare("next", Some(&top)).unwrap();
    assert!(
        mounts[0]
            .options
            .iter()
            .any(|option| option.ends_with("/snapshots/78/fs"))
    );
}

#[test]
fn privileged_partial_downloads_do_not_survive_a_boot() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let archive = Archive::new().file("f", &[7; 100_000]).finish();
    let layer = Layer::compressed(None, &archive, Compression::None);
    let received = |world: &World| {
        let ingest = world.store.begin_layer(layer.request.clone()).unwrap();
        ingest.resume_offset()
    };
    let half = &layer.blob[..50_000];
    let cut = world
        .store
        .begin_layer(layer.request.clone())
        .unwrap()
        .unpack(half);
    assert_eq!(cut.unwrap_err().class(), ErrorClass::Unavailable);
    let world = world.reopened();
    assert_eq!(
        received(&world),
        50_000,
        "the process ended, the machine did not"
    );
    assert!(world.store.swept().is_empty());
    // As a power cut may leave it: the length is there, the bytes are not.
    let part = world.root.join("content/ingest");
    let part = part.join(&names(&part)[0]);
    fs::write(&part, vec![0; 50_000]).unwrap();
    fs::write(world.root.join("content/boot"), "another boot\n").unwrap();
    let world = world.reopened();
    assert_eq!(world.store.swept().len(), 1);
    assert_eq!(received(&world), 0);
    let staged = world.stage(&layer).unwrap();
    world.store.commit_layers(vec![staged]).unwrap();
}

#[test]
fn privileged_writable_layers_are_measured_and_the_sizes_known_at_the_next_start() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let chain = world
        .pull(&[Archive::new().file("f", b"x").finish()])
        .unwrap();
    world.store.prepare("c", Some(&chain)).unwrap();
    let fresh = world.store.actives_usage();
    assert_eq!(fresh.inodes, 4, "three directories and the record");
    let mounts = world.store.mounts("c").unwrap();
    let upper = mounts[0]
        .options
        .iter()
        .find_map(|option| option.strip_prefix("upperdir="));
    fs::write(
        std::path::Path::new(upper.unwrap()).join("big"),
        vec![1; 1 << 20],
    )
    .unwrap();
    assert_eq!(world.store.actives_usage(), fresh);
    world.store.measure_actives().unwrap();
    let grown = world.store.actives_usage();
    assert_eq!(grown.inodes, 5);
    assert!(grown.bytes >= fresh.bytes + (1 << 20), "{grown:?}");
    let world = world.reopened();
    assert_eq!(world.store.actives_usage(), grown);
    // What cannot be read costs an answer its precision, not the start.
    fs::write(world.root.join("measured"), "{").unwrap();
    let world = world.reopened();
    world.store.measure_actives().unwrap();
    assert_eq!(world.store.actives_usage(), grown);
    world.store.remove("c").unwrap();
    assert_eq!(world.store.actives_usage().bytes, 0);
}

#[test]
fn privileged_damaged_records_are_reported_and_the_rest_works() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let base = Archive::new().file("base", b"x").finish();
    let top = world
        .pull(&[base.clone(), Archive::new().file("top", b"x").finish()])
        .unwrap();
    let other = world
        .pull(&[Archive::new().file("other", b"x").finish()])
        .unwrap();
    let mounts = world.store.prepare("c", Some(&top)).unwrap();
    let meta = world.root.join("snapshots/meta");
    fs::write(meta.join("1.json"), b"").unwrap();
    fs::write(meta.join("junk"), b"").unwrap();
    fs::remove_dir_all(world.root.join("snapshots/3")).unwrap();
    let world = world.reopened();
    let damaged: Vec<String> = world
        .store
        .damaged()
        .into_iter()
        .map(|record| record.path)
        .collect();
    assert_eq!(damaged.len(), 3, "{damaged:?}");
    assert!(!world.store.has_layer(&other));
    // The container on the damaged layer still has all its directories.
    assert_eq!(world.store.mounts("c").unwrap(), mounts);
    assert!(world.root.join("snapshots/1/fs/base").exists());
    // A new container has to wait until the layer was fetched again.
    let error = world.store.prepare("d", Some(&top)).unwrap_err();
    assert_eq!(error.class(), ErrorClass::FailedPrecondition);
    world.pull(&[base]).unwrap();
    assert!(world.mounted(&top).contains_key("base"));
    // The operator can have the rest deleted, but not from under the container.
    for record in world.store.damaged() {
        let outcome = world.store.discard_damaged(&record);
        let in_use = record.path == "snapshots/meta/1.json";
        assert_eq!(outcome.is_err(), in_use, "{record:?}: {outcome:?}");
    }
    world.store.remove("c").unwrap();
    for record in world.store.damaged() {
        assert!(world.store.discard_damaged(&record).unwrap());
    }
    assert!(world.store.damaged().is_empty());
    assert!(!world.root.join("snapshots/1").exists() && !meta.join("junk").exists());
}

#[test]
fn privileged_a_store_has_one_owner_and_is_private() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let error = Store::open(&world.root).unwrap_err();
    assert!(matches!(error, OpenError::InUse { .. }));
    assert_eq!(error.class(), ErrorClass::Unavailable);
    for dir in [
        "",
        "content",
        "content/blobs/sha256",
        "snapshots",
        "snapshots/meta",
    ] {
        let mode = fs::metadata(world.root.join(dir))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o700, "{dir}");
    }
    for path in ["relative", "/tmp/a:b", "/tmp/a,b"] {
        let error = Store::open(path.as_ref()).unwrap_err();
        assert_eq!(error.class(), ErrorClass::InvalidArgument, "{error}");
    }
}

#[test]
fn privileged_blobs_are_checked_on_the_way_in_and_out() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let store = &world.store;
    let digest = Digest::sha256_of(b"document");
    assert_eq!(
        store.put_blob(&digest, b"other").unwrap_err().class(),
        ErrorClass::InvalidArgument
    );
    assert_eq!(store.read_blob(&digest, 100).unwrap(), None);
    store.put_blob(&digest, b"document").unwrap();
    store.put_blob(&digest, b"document").unwrap();
    assert_eq!(
        store.read_blob(&digest, 8).unwrap().as_deref(),
        Some(&b"document"[..])
    );
    assert!(matches!(
        store.read_blob(&digest, 7),
        Err(ContentError::TooLarge { .. })
    ));
    let world = world.reopened();
    let store = &world.store;
    assert!(store.has_blob(&digest));
    fs::write(
        world.root.join("content/blobs/sha256").join(digest.hex()),
        "documenT",
    )
    .unwrap();
    assert!(matches!(
        store.read_blob(&digest, 100),
        Err(ContentError::Damaged { .. })
    ));
    // It is gone, so that it is fetched again.
    assert_eq!(store.read_blob(&digest, 100).unwrap(), None);
    assert_eq!(store.damaged().len(), 1);
    store.put_blob(&digest, b"document").unwrap();
    assert!(store.remove_blob(&digest).unwrap());
    assert!(!store.remove_blob(&digest).unwrap());
}
