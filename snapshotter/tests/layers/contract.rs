//! What every snapshotter has to do: the same list runs on each.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use axil_snapshotter::{ChainId, Choice, ErrorClass, Roots, Store, StoreOptions, mount};

use crate::archive::{Archive, Head};
use crate::world::{can_run, open, see, stack_of};

const ALL: [Choice; 2] = [Choice::Overlayfs, Choice::Copy];

/// A store that already has an image, with one of the snapshotters.
fn store_with(choice: Choice, root: &Path, archives: &[Vec<u8>]) -> (Store, ChainId) {
    let layers = stack_of(archives);
    let chain = layers.last().unwrap().request.chain.clone();
    let store = open(root);
    let staged = layers.iter().map(|layer| {
        let ingest = store.begin_layer(layer.request.clone()).unwrap();
        ingest.unpack(&layer.blob[..]).unwrap()
    });
    store.commit_layers(staged.collect()).unwrap();
    drop(store);
    (again(choice, root), chain)
}

/// Such a store with [`image`] in a directory of its own.
struct Place {
    root: PathBuf,
    store: Store,
    chain: ChainId,
    _tmp: tempfile::TempDir,
}

impl Place {
    fn new(choice: Choice) -> Self {
        let tmp = tempfile::tempdir().unwrap();
        let root = tmp.path().join("s");
        let (store, chain) = store_with(choice, &root, &image());
        Self {
            root,
            store,
            chain,
            _tmp: tmp,
        }
    }
}

fn again(choice: Choice, root: &Path) -> Store {
    let options = StoreOptions {
        snapshotter: choice,
        ..StoreOptions::default()
    };
    Store::open_with(root, options).unwrap()
}

/// Mounts a container, looks at it, and takes the mount away.
fn with_mounted<T>(store: &Store, key: &str, look: impl FnOnce(&Path) -> T) -> T {
    let target = tempfile::tempdir().unwrap();
    mount::mount_all(&store.mounts(key).unwrap(), target.path()).unwrap();
    let seen = look(target.path());
    assert!(mount::unmount(target.path()).unwrap());
    seen
}

/// Layers in which everything meets everything.
fn image() -> Vec<Vec<u8>> {
    let base = Archive::new()
        .node(Head {
            mode: 0o751,
            uid: 3,
            ..Head::new("./", b'5')
        })
        .file("keep", b"1")
        .file("removed", b"2")
        .file("dir/below", b"3")
        .file("dir/over", b"4")
        .file("hidden/a", b"5")
        .file("file-then-dir", b"6")
        .file("dir-then-file/x", b"7")
        .file("linked", b"8")
        .hard_link("linked-too", "linked")
        .symlink("link", "keep")
        .node(Head {
            mode: 0o4755,
            uid: 9,
            gid: 8,
            ..Head::new("su", b'0')
        })
        .node(Head {
            device: (1, 3),
            ..Head::new("null", b'3')
        })
        .node(Head {
            mode: 0o600,
            ..Head::new("fifo", b'6')
        })
        .pax(&[
            ("SCHILY.xattr.user.note", b"\0x"),
            ("SCHILY.xattr.trusted.note", b"y"),
        ])
        .file("attributes", b"9");
    let middle = Archive::new()
        .file(".wh.removed", b"")
        .file("dir/over", b"new")
        .file("hidden/.wh..wh..opq", b"")
        .file("hidden/b", b"10")
        .file("file-then-dir/inside", b"11")
        .file(".wh.dir-then-file", b"")
        .file("linked-too", b"no longer");
    let top = Archive::new()
        .file("dir-then-file", b"12")
        .file("removed", b"is back")
        .hard_link("second-name", "keep")
        .node(Head {
            mode: 0o700,
            uid: 5,
            ..Head::new("dir", b'5')
        });
    [base, middle, top].map(Archive::finish).to_vec()
}

#[test]
fn privileged_every_snapshotter_shows_the_same_image() {
    if !can_run() {
        return;
    }
    let seen = ALL.map(|choice| {
        let Place {
            store, chain, _tmp, ..
        } = Place::new(choice);
        store.prepare("c", Some(&chain)).unwrap();
        with_mounted(&store, "c", |root| {
            let times: Vec<_> = ["", "dir", "hidden", "file-then-dir"]
                .map(|name| fs::metadata(root.join(name)).unwrap().mtime())
                .to_vec();
            (see(root), times)
        })
    });
    assert!(seen[0].0.len() > 15, "{:?}", seen[0]);
    assert_eq!(seen[0], seen[1]);
}

#[test]
fn privileged_a_view_shows_the_image_and_takes_no_writes() {
    if !can_run() {
        return;
    }
    for choice in ALL {
        let tmp = tempfile::tempdir().unwrap();
        let root = tmp.path().join("s");
        // One layer alone as well: overlayfs takes no fewer than two, and its whiteouts must not be seen.
        let marked = Archive::new()
            .file("kept", b"x")
            .file(".wh.gone", b"")
            .finish();
        for archives in [image(), vec![marked]] {
            let (store, chain) = store_with(choice, &root, &archives);
            store.prepare("container", Some(&chain)).unwrap();
            let expected = with_mounted(&store, "container", see);
            let mounts = store.view("view", Some(&chain)).unwrap();
            assert_eq!(store.mounts("view").unwrap(), mounts);
            // It holds its layers, also after a restart.
            drop(store);
            let store = again(choice, &root);
            store.collect_garbage(&Roots::default()).unwrap();
            with_mounted(&store, "view", |root| {
                assert_eq!(see(root), expected, "{choice:?}");
                assert!(!root.join("gone").exists() && !root.join(".wh.gone").exists());
                for write in [
                    fs::write(root.join("new"), "x"),
                    fs::remove_file(root.join("kept")),
                ] {
                    assert_eq!(
                        write.unwrap_err().kind(),
                        std::io::ErrorKind::ReadOnlyFilesystem
                    );
                }
            });
            for key in ["view", "container"] {
                assert!(store.remove(key).unwrap());
            }
            store.collect_garbage(&Roots::default()).unwrap();
            assert_eq!(store.layers(), []);
        }
        let store = again(choice, &root);
        store.view("nothing", None).unwrap();
        with_mounted(&store, "nothing", |root| {
            assert_eq!(fs::read_dir(root).unwrap().count(), 0);
            assert!(fs::write(root.join("new"), "x").is_err());
        });
    }
}

#[test]
fn privileged_with_every_snapshotter_a_container_changes_itself_only() {
    if !can_run() {
        return;
    }
    for choice in ALL {
        let Place {
            root,
            store,
            chain,
            _tmp,
        } = Place::new(choice);
        for key in ["a", "b"] {
            store.prepare(key, Some(&chain)).unwrap();
        }
        let before = with_mounted(&store, "b", see);
        with_mounted(&store, "a", |root| {
            fs::write(root.join("keep"), "changed").unwrap();
            fs::write(root.join("linked"), "changed").unwrap();
            fs::remove_file(root.join("su")).unwrap();
            fs::remove_dir_all(root.join("dir")).unwrap();
            fs::create_dir(root.join("new")).unwrap();
        });
        assert_eq!(with_mounted(&store, "b", see), before, "{choice:?}");
        // What was written is there after the store was opened again.
        drop(store);
        let store = again(choice, &root);
        let after = with_mounted(&store, "a", see);
        assert!(
            after.contains_key("new") && !after.contains_key("dir"),
            "{choice:?}"
        );
        // And goes when the container goes; the image stays.
        assert!(store.remove("a").unwrap() && !store.remove("a").unwrap());
        store.prepare("a", Some(&chain)).unwrap();
        assert_eq!(with_mounted(&store, "a", see), before, "{choice:?}");
    }
}

#[test]
fn privileged_with_every_snapshotter_errors_leave_nothing() {
    if !can_run() {
        return;
    }
    for choice in ALL {
        let Place {
            root,
            store,
            chain,
            _tmp,
        } = Place::new(choice);
        let count = || fs::read_dir(root.join("snapshots")).unwrap().count();
        let before = count();
        store.prepare("c", Some(&chain)).unwrap();
        let error = store.prepare("c", Some(&chain)).unwrap_err();
        assert_eq!(error.class(), ErrorClass::AlreadyExists);
        let missing = chain.extend(&axil_snapshotter::Digest::sha256_of(b"missing"));
        let error = store.prepare("d", Some(&missing)).unwrap_err();
        assert_eq!(error.class(), ErrorClass::FailedPrecondition);
        assert_eq!(store.active_keys(), ["c"]);
        assert!(store.usage("c").unwrap().inodes > 0);
        store.remove("c").unwrap();
        assert_eq!(count(), before, "{choice:?}");
        // Without an image there is an empty root.
        store.prepare("empty", None).unwrap();
        let seen = with_mounted(&store, "empty", see);
        assert_eq!(seen.len(), 1, "{seen:?}");
        assert!(seen[""].starts_with("40755 0:0"), "{seen:?}");
    }
}

#[test]
fn privileged_a_container_of_one_snapshotter_mounts_under_another() {
    if !can_run() {
        return;
    }
    let Place {
        root,
        store,
        chain,
        _tmp,
    } = Place::new(Choice::Overlayfs);
    store.prepare("overlaid", Some(&chain)).unwrap();
    drop(store);
    let store = again(Choice::Copy, &root);
    store.prepare("copied", Some(&chain)).unwrap();
    drop(store);
    let store = again(Choice::Overlayfs, &root);
    let copied = with_mounted(&store, "copied", see);
    assert_eq!(with_mounted(&store, "overlaid", see), copied);
    // A copy does not need its layers, so an image can go from under it.
    store.remove("overlaid").unwrap();
    store.collect_garbage(&Roots::default()).unwrap();
    assert_eq!(with_mounted(&store, "copied", see), copied);
}

#[test]
fn privileged_a_copied_container_keeps_holes() {
    if !can_run() {
        return;
    }
    let head = Head {
        size: 64 << 20,
        ..Head::new("holes", b'0')
    };
    let mut content = vec![0; 64 << 20];
    content[40 << 20..(40 << 20) + 9].copy_from_slice(b"in it all");
    let tmp = tempfile::tempdir().unwrap();
    let archive = Archive::new().entry(&head, &content).finish();
    let (store, chain) = store_with(Choice::Copy, &tmp.path().join("s"), &[archive]);
    store.prepare("c", Some(&chain)).unwrap();
    assert!(
        store.usage("c").unwrap().bytes < 4 << 20,
        "{:?}",
        store.usage("c")
    );
    with_mounted(&store, "c", |root| {
        let file = fs::File::open(root.join("holes")).unwrap();
        let mut found = [0; 9];
        file.read_exact_at(&mut found, 40 << 20).unwrap();
        assert_eq!(&found, b"in it all");
        assert_eq!(file.metadata().unwrap().len(), 64 << 20);
    });
}

#[test]
fn privileged_the_probe_chooses_and_says_why() {
    if !can_run() {
        return;
    }
    let tmp = tempfile::tempdir().unwrap();
    let store = open(&tmp.path().join("s"));
    assert_eq!(store.snapshotter(), ("overlayfs", "a trial mount worked"));
    // Overlayfs on overlayfs works as a lower layer only.
    let target = tempfile::tempdir().unwrap();
    let (lower, upper, work) = (
        tmp.path().join("l"),
        tmp.path().join("u"),
        tmp.path().join("w"),
    );
    for dir in [&lower, &upper, &work] {
        fs::create_dir(dir).unwrap();
    }
    let overlay = axil_snapshotter::Mount {
        kind: "overlay".to_owned(),
        source: "overlay".to_owned(),
        target: None,
        options: vec![
            format!("lowerdir={}", lower.display()),
            format!("upperdir={}", upper.display()),
            format!("workdir={}", work.display()),
        ],
    };
    mount::mount_all(&[overlay], target.path()).unwrap();
    let inner = target.path().join("s");
    let on_overlay = Store::open(&inner).unwrap();
    let (name, reason) = on_overlay.snapshotter();
    assert_eq!(name, "copy", "{reason}");
    assert!(
        reason.starts_with("overlayfs does not work here: "),
        "{reason}"
    );
    drop(on_overlay);
    let options = StoreOptions {
        snapshotter: Choice::Overlayfs,
        ..StoreOptions::default()
    };
    let error = Store::open_with(&inner, options).unwrap_err();
    assert!(error.to_string().contains("use overlayfs in"), "{error}");
    assert!(!inner.join("probe").exists());
    mount::unmount(target.path()).unwrap();
}
