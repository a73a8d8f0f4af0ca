//! Garbage collection against pulls, leases and containers.

use axil_snapshotter::{ChainId, Digest, ErrorClass, Roots, SnapshotError};

use crate::archive::Archive;
use crate::world::{Layer, World, can_run, names, stack_of};

fn roots(chains: &[&ChainId], blobs: &[&Digest]) -> Roots {
    Roots {
        blobs: blobs.iter().map(|blob| (*blob).clone()).collect(),
        chains: chains.iter().map(|chain| (*chain).clone()).collect(),
    }
}

#[test]
fn privileged_only_what_nothing_needs_is_removed() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let store = &world.store;
    let base = Archive::new().file("base", &[1; 50_000]).finish();
    let one = world
        .pull(&[base.clone(), Archive::new().file("one", b"1").finish()])
        .unwrap();
    let two = world
        .pull(&[base.clone(), Archive::new().file("two", b"2").finish()])
        .unwrap();
    let (kept, unused) = (Digest::sha256_of(b"kept"), Digest::sha256_of(b"unused"));
    store.put_blob(&kept, b"kept").unwrap();
    store.put_blob(&unused, b"unused").unwrap();
    // Two blobs; per layer its directory, the one of its files, a file, the skeleton and the record.
    assert_eq!(store.store_usage().unwrap().inodes, 2 + 3 * 5);

    let reclaimed = store.collect_garbage(&roots(&[&one], &[&kept])).unwrap();
    assert_eq!((reclaimed.blobs, reclaimed.layers), (1, 1));
    assert!(store.has_layer(&one) && !store.has_layer(&two));
    assert_eq!(
        store.read_blob(&kept, 100).unwrap().as_deref(),
        Some(&b"kept"[..])
    );
    assert_eq!(store.read_blob(&unused, 100).unwrap(), None);

    // A container keeps its layers, whatever the roots say.
    store.prepare("c", Some(&one)).unwrap();
    let reclaimed = store.collect_garbage(&Roots::default()).unwrap();
    assert_eq!((reclaimed.blobs, reclaimed.layers), (1, 0));
    store.remove("c").unwrap();
    let reclaimed = store.collect_garbage(&Roots::default()).unwrap();
    assert_eq!(reclaimed.layers, 2);
    assert!(reclaimed.usage.bytes >= 50_000, "{reclaimed:?}");
    assert_eq!(store.store_usage().unwrap().bytes, 0);
    world.assert_empty();
    let error = store.prepare("c", Some(&one)).unwrap_err();
    assert!(matches!(error, SnapshotError::LayerMissing { .. }));
    assert_eq!(error.class(), ErrorClass::FailedPrecondition);
    assert!(store.active_keys().is_empty());
}

#[test]
fn privileged_leases_and_layers_in_flight_are_kept() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let store = &world.store;
    let layers = stack_of(&[
        Archive::new().file("a", b"a").finish(),
        Archive::new().file("b", b"b").finish(),
        Archive::new().file("c", b"c").finish(),
    ]);
    let blob = Digest::sha256_of(b"manifest");
    store
        .commit_layers(vec![world.stage(&layers[0]).unwrap()])
        .unwrap();
    // The layer in flight keeps its parent, and its own files.
    let staged = world.stage(&layers[1]).unwrap();
    store.collect_garbage(&Roots::default()).unwrap();
    assert!(store.has_layer(&layers[0].request.chain));
    let lease = store.lease(roots(&[&layers[1].request.chain], &[&blob]));
    store.put_blob(&blob, b"manifest").unwrap();
    store.commit_layers(vec![staged]).unwrap();
    store.collect_garbage(&Roots::default()).unwrap();
    assert!(store.has_layer(&layers[1].request.chain) && store.has_blob(&blob));
    drop(lease);
    let reclaimed = store.collect_garbage(&Roots::default()).unwrap();
    assert_eq!((reclaimed.layers, reclaimed.blobs), (2, 1));
    world.assert_empty();
}

#[test]
fn privileged_partial_downloads_outlive_a_pause_but_not_for_ever() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let layer = Layer::new(None, &Archive::new().file("f", b"x").finish());
    let ingest = world.store.begin_layer(layer.request.clone()).unwrap();
    ingest.unpack(&layer.blob[..20]).map(|_| ()).unwrap_err();
    world.store.collect_garbage(&Roots::default()).unwrap();
    let dir = world.root.join("content/ingest");
    let [name] = &names(&dir)[..] else {
        panic!("expected one partial download")
    };
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(7200);
    let file = std::fs::File::options()
        .write(true)
        .open(dir.join(name))
        .unwrap();
    file.set_modified(old).unwrap();
    world
        .store
        .collect_garbage(&roots(&[], &[&layer.request.blob]))
        .unwrap();
    assert_eq!(names(&dir).len(), 1);
    let reclaimed = world.store.collect_garbage(&Roots::default()).unwrap();
    assert_eq!(reclaimed.blobs, 1);
    world.assert_empty();
}

#[test]
fn privileged_pulls_containers_and_collections_at_once() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let base = Archive::new().file("base", b"base").finish();
    let archives: Vec<Vec<Vec<u8>>> = (0..4)
        .map(|i| {
            vec![
                base.clone(),
                Archive::new().file(&format!("{i}"), b"x").finish(),
            ]
        })
        .collect();
    std::thread::scope(|scope| {
        for (i, archives) in archives.iter().enumerate() {
            let world = &world;
            scope.spawn(move || {
                for round in 0..25 {
                    let layers = stack_of(archives);
                    let kept = layers
                        .iter()
                        .map(|layer| layer.request.chain.clone())
                        .collect();
                    let lease = world.store.lease(Roots {
                        chains: kept,
                        ..Roots::default()
                    });
                    for layer in &layers {
                        // The base is wanted by all; whoever is not first waits for it.
                        loop {
                            if world.store.has_layer(&layer.request.chain) {
                                break;
                            }
                            match world.stage(layer) {
                                Ok(staged) => {
                                    world.store.commit_layers(vec![staged]).unwrap();
                                }
                                Err(error) => assert!(matches!(
                                    error.class(),
                                    ErrorClass::Unavailable | ErrorClass::AlreadyExists
                                )),
                            }
                            std::thread::yield_now();
                        }
                    }
                    let key = format!("{i}-{round}");
                    world
                        .store
                        .prepare(&key, Some(&layers[1].request.chain))
                        .unwrap();
                    drop(lease);
                    assert_eq!(world.store.mounts(&key).unwrap().len(), 1);
                    let mounts = world.store.mounts(&key).unwrap();
                    for dir in crate::world::lowers(&mounts) {
                        assert!(dir.is_dir());
                    }
                    world.store.remove(&key).unwrap();
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..100 {
                world.store.collect_garbage(&Roots::default()).unwrap();
            }
        });
    });
    world.store.collect_garbage(&Roots::default()).unwrap();
    world.assert_empty();
}
