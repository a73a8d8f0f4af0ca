//! From the source to the store: interruption and resumption, digests, leases, parallel layers.

use std::io::{self, Read};
use std::sync::Barrier;

use axil_snapshotter::{Compression, Digest, ErrorClass, LayerError};

use crate::archive::Archive;
use crate::world::{Layer, World, can_run, names, stack_of};

/// Gives some bytes, then fails.
struct Breaks<'a>(&'a [u8]);

impl Read for Breaks<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.0.is_empty() {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        self.0.read(out)
    }
}

fn noise(length: usize, mut seed: u64) -> Vec<u8> {
    (0..length)
        .map(|_| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            seed.to_be_bytes()[0]
        })
        .collect()
}

#[test]
fn privileged_an_interrupted_pull_resumes_where_it_was() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let layer = Layer::new(
        None,
        &Archive::new().file("f", &noise(2_000_000, 1)).finish(),
    );
    let half = layer.blob.len() / 2;
    let ingest = world.store.begin_layer(layer.request.clone()).unwrap();
    assert_eq!(ingest.resume_offset(), 0);
    let error = ingest
        .unpack(Breaks(&layer.blob[..half]))
        .map(|_| ())
        .unwrap_err();
    assert_eq!(error.class(), ErrorClass::Unavailable, "{error}");
    assert_eq!(names(&world.root.join("snapshots")), ["meta"]);

    // A restart in between keeps what came.
    let world = world.reopened();
    let ingest = world.store.begin_layer(layer.request.clone()).unwrap();
    assert_eq!(ingest.resume_offset(), half as u64);
    // An early end is an interruption too.
    let error = ingest
        .unpack(&layer.blob[half..half + 1000])
        .map(|_| ())
        .unwrap_err();
    assert!(matches!(error, LayerError::Truncated { .. }), "{error}");

    let ingest = world.store.begin_layer(layer.request.clone()).unwrap();
    assert_eq!(ingest.resume_offset(), half as u64 + 1000);
    let staged = ingest.unpack(&layer.blob[half + 1000..]).unwrap();
    // Until the layer is committed another attempt needs no transfer at all.
    drop(staged);
    let ingest = world.store.begin_layer(layer.request.clone()).unwrap();
    assert_eq!(ingest.resume_offset(), layer.request.size);
    let staged = ingest.unpack(io::empty()).unwrap();
    world.store.commit_layers(vec![staged]).unwrap();
    assert!(world.store.has_layer(&layer.request.chain));
    assert!(names(&world.root.join("content/ingest")).is_empty());
}

#[test]
fn privileged_wrong_bytes_leave_nothing() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let archive = Archive::new().file("f", &noise(500_000, 2)).finish();
    let good = Layer::compressed(None, &archive, Compression::None);

    let mut swapped = good.clone();
    swapped.blob[300_000] ^= 1;
    let error = world.stage(&swapped).map(|_| ()).unwrap_err();
    assert!(matches!(error, LayerError::BlobDigest { .. }), "{error}");
    world.assert_empty();

    let mut longer = good.clone();
    longer.blob.push(0);
    let error = world.stage(&longer).map(|_| ()).unwrap_err();
    assert!(matches!(error, LayerError::TooLarge { .. }), "{error}");
    world.assert_empty();

    let other = Archive::new().file("g", b"").finish();
    let mut wrong_diff = Layer::new(None, &other);
    wrong_diff.request.diff_id = good.request.diff_id.clone();
    wrong_diff.request.chain = good.request.chain.clone();
    let error = world.stage(&wrong_diff).map(|_| ()).unwrap_err();
    assert!(matches!(error, LayerError::DiffId { .. }), "{error}");
    world.assert_empty();

    // A resumed range that continues with other bytes: what was kept goes, and it says so.
    let error = world.store.begin_layer(good.request.clone()).unwrap();
    error
        .unpack(Breaks(&good.blob[..100_000]))
        .map(|_| ())
        .unwrap_err();
    let ingest = world.store.begin_layer(good.request.clone()).unwrap();
    let error = ingest
        .unpack(&swapped.blob[100_000..])
        .map(|_| ())
        .unwrap_err();
    assert!(
        matches!(
            error,
            LayerError::Resumed {
                resumed: 100_000,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(error.class(), ErrorClass::Unavailable);
    world.assert_empty();
    assert!(world.stage(&good).is_ok());
}

#[test]
fn privileged_bytes_after_the_archive_belong_to_the_diff_id() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let mut archive = Archive::new().file("f", b"x").finish();
    archive.extend_from_slice(&noise(1_000_000, 3));
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let layer = Layer::compressed(None, &archive, compression);
        drop(world.stage(&layer).unwrap());
    }
}

#[test]
fn privileged_a_layer_has_one_puller_at_a_time() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let layer = Layer::new(None, &Archive::new().file("f", b"x").finish());
    let first = world.store.begin_layer(layer.request.clone()).unwrap();
    let error = world
        .store
        .begin_layer(layer.request.clone())
        .map(|_| ())
        .unwrap_err();
    assert!(matches!(error, LayerError::Busy { .. }), "{error}");
    drop(first);
    let staged = world.stage(&layer).unwrap();
    assert!(matches!(world.stage(&layer), Err(LayerError::Busy { .. })));
    world.store.commit_layers(vec![staged]).unwrap();
    let error = world.stage(&layer).map(|_| ()).unwrap_err();
    assert_eq!(error.class(), ErrorClass::AlreadyExists);
}

#[test]
fn privileged_layers_unpack_side_by_side() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let archives: Vec<Vec<u8>> = (0..6_u32)
        .map(|i| {
            (0..200_u64)
                .fold(Archive::new().dir("shared"), |archive, n| {
                    archive.file(
                        &format!("shared/{i}/{n}"),
                        &noise(2000, n + 1000 * u64::from(i)),
                    )
                })
                .file("shared/top", i.to_string().as_bytes())
                .finish()
        })
        .collect();
    let layers = stack_of(&archives);
    let start = Barrier::new(layers.len());
    let staged = std::thread::scope(|scope| {
        let pulls: Vec<_> = layers
            .iter()
            .map(|layer| {
                let (world, start) = (&world, &start);
                scope.spawn(move || {
                    start.wait();
                    world.stage(layer).unwrap()
                })
            })
            .collect();
        pulls
            .into_iter()
            .map(|pull| pull.join().unwrap())
            .collect::<Vec<_>>()
    });
    world.store.commit_layers(staged).unwrap();
    let seen = world.mounted(&layers[5].request.chain);
    assert_eq!(seen.len(), 1 + 1 + 6 + 6 * 200 + 1);
    assert!(seen["shared/top"].contains(&Digest::sha256_of(b"5").to_string()));
}

#[test]
fn privileged_requests_that_do_not_fit_are_refused() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let layers = stack_of(&[
        Archive::new().file("a", b"").finish(),
        Archive::new().file("b", b"").finish(),
    ]);
    let mut wrong = layers[1].request.clone();
    wrong.parent = None;
    assert!(matches!(
        world.store.begin_layer(wrong),
        Err(LayerError::Chain { .. })
    ));
    // Without its parent the layer is not committed and not kept.
    let staged = world.stage(&layers[1]).unwrap();
    let error = world.store.commit_layers(vec![staged]).unwrap_err();
    assert_eq!(error.class(), ErrorClass::FailedPrecondition, "{error}");
    assert!(!world.store.has_layer(&layers[1].request.chain));
    assert_eq!(names(&world.root.join("snapshots")), ["meta"]);
}
