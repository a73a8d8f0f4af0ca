//! A full disk, on a small tmpfs in a private mount namespace.

use std::fs;

use axil_snapshotter::{Compression, Digest, ErrorClass, Roots, Store};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::archive::Archive;
use crate::world::{Layer, can_run, names};

/// A tmpfs that goes away with the test.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(options: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        mount(
            Some("axil-test"),
            dir.path(),
            Some("tmpfs"),
            MsFlags::empty(),
            Some(options),
        )
        .unwrap();
        Self(dir)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(self.0.path(), MntFlags::MNT_DETACH);
    }
}

#[test]
fn privileged_a_full_disk_is_an_error_that_leaves_nothing() {
    if !can_run() {
        return;
    }
    let disk = SmallDisk::new("size=8m");
    let root = disk.0.path().join("store");
    let store = Store::open(&root).unwrap();
    let archive = Archive::new().file("big", &vec![b'x'; 32 << 20]).finish();
    // Small compressed, large unpacked; then large compressed.
    for compression in [Compression::Gzip, Compression::None] {
        let layer = Layer::compressed(None, &archive, compression);
        let ingest = store.begin_layer(layer.request.clone()).unwrap();
        let error = ingest.unpack(&layer.blob[..]).map(|_| ()).unwrap_err();
        assert_eq!(error.class(), ErrorClass::Exhausted, "{error}");
        assert_eq!(names(&root.join("snapshots")), ["meta"]);
        assert!(names(&root.join("content/ingest")).is_empty());
    }
    let small = Layer::new(None, &Archive::new().file("small", b"x").finish());
    let staged = store
        .begin_layer(small.request.clone())
        .unwrap()
        .unpack(&small.blob[..])
        .unwrap();
    store.commit_layers(vec![staged]).unwrap();
    store.prepare("before", Some(&small.request.chain)).unwrap();

    // With nothing left, what exists can be removed, and the next pull works.
    fs::write(disk.0.path().join("filler"), vec![1; 16 << 20]).unwrap_err();
    let document = vec![b'd'; 8192];
    let digest = Digest::sha256_of(&document);
    assert_eq!(
        store.put_blob(&digest, &document).unwrap_err().class(),
        ErrorClass::Exhausted
    );
    assert!(names(&root.join("content/blobs/sha256")).is_empty());
    let error = store
        .prepare("during", Some(&small.request.chain))
        .unwrap_err();
    assert_eq!(error.class(), ErrorClass::Exhausted, "{error}");
    assert_eq!(store.active_keys(), ["before"]);
    assert!(store.remove("before").unwrap());
    assert_eq!(store.collect_garbage(&Roots::default()).unwrap().layers, 1);
    assert_eq!(names(&root.join("snapshots")), ["meta"]);
    fs::remove_file(disk.0.path().join("filler")).unwrap();
    let staged = store
        .begin_layer(small.request.clone())
        .unwrap()
        .unpack(&small.blob[..])
        .unwrap();
    store.commit_layers(vec![staged]).unwrap();
    assert!(store.damaged().is_empty());
}

#[test]
fn privileged_a_disk_without_inodes_is_an_error_that_leaves_nothing() {
    if !can_run() {
        return;
    }
    let disk = SmallDisk::new("nr_inodes=100");
    let root = disk.0.path().join("store");
    let store = Store::open(&root).unwrap();
    let archive = (0..200).fold(Archive::new(), |archive, i| {
        archive.file(&format!("f{i}"), b"")
    });
    let layer = Layer::new(None, &archive.finish());
    let ingest = store.begin_layer(layer.request.clone()).unwrap();
    let error = ingest.unpack(&layer.blob[..]).map(|_| ()).unwrap_err();
    assert_eq!(error.class(), ErrorClass::Exhausted, "{error}");
    assert_eq!(names(&root.join("snapshots")), ["meta"]);
}
