//! Blobs and layers over the crate `axil-snapshotter`: the blocking store meets the async download.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use async_trait::async_trait;
use axil_proto::ids::ContainerId;
use axil_snapshotter::{
    ChainId, Compression, DamagedRecord, Depth, Digest, ErrorClass, LayerArchive, LayerCheck,
    LayerError, LayerRequest, Lease, Limits, Roots, SpoolLimits, StagedLayer, Store, Usage,
};
use tokio::sync::mpsc;

use super::archive;
use crate::domain::failure::{Class, Failure, chain};
use crate::domain::image::media::Compression as MediaCompression;
use crate::domain::usage::LayerUsage;
use crate::engine::lock;
use crate::engine::spawn::blocking;
use crate::pieces::{PieceReader, WAITING};
use crate::ports::images::{ArchivedImage, LayerJob, Layers, RemoteImage};
use crate::ports::{Answer, unix_nanos};

/// Largest document kept as a blob, in bytes.
const MAX_DOCUMENT: u64 = 4 << 20;

/// The store and who unpacks what.
#[derive(Debug)]
pub struct LayerStore {
    store: Arc<Store>,
    limits: Limits,
    claims: Mutex<BTreeMap<ChainId, Weak<tokio::sync::Mutex<()>>>>,
    /// When writable layers were measured last, nanoseconds since the epoch.
    measured_at: Arc<AtomicI64>,
}

impl LayerStore {
    /// Layers of this store, each within these limits.
    #[must_use]
    pub fn new(store: Arc<Store>, limits: Limits) -> Self {
        Self {
            store,
            limits,
            claims: Mutex::default(),
            measured_at: Arc::new(AtomicI64::new(unix_nanos())),
        }
    }

    /// Fetches and unpacks a layer from where an earlier attempt stopped; adds up what came.
    async fn unpack_once(
        &self,
        job: &LayerJob,
        remote: &dyn RemoteImage,
        received: &mut u64,
    ) -> Result<StagedLayer, Unpacking> {
        let request = LayerRequest {
            blob: job.layer.digest.clone(),
            size: job.layer.size,
            compression: match job.layer.compression {
                MediaCompression::None => Compression::None,
                MediaCompression::Gzip => Compression::Gzip,
                MediaCompression::Zstd => Compression::Zstd,
            },
            diff_id: job.diff_id.clone(),
            chain: job.chain.clone(),
            parent: job.parent.clone(),
            limits: self.limits,
            is_resumable: remote.is_remote(),
        };
        let store = Arc::clone(&self.store);
        let begin = move || store.begin_layer(request).map_err(failed);
        let ingest = blocking("begin a layer", begin).await?;
        let descriptor = job.layer.descriptor();
        let mut download = remote.blob(&descriptor, ingest.resume_offset()).await?;

        let (pieces, source) = mpsc::channel(WAITING);
        let unpack = tokio::task::spawn_blocking(move || ingest.unpack(PieceReader::new(source)));
        let mut broken = None;
        loop {
            let piece = match download.next().await {
                Ok(Some(piece)) => Ok(piece),
                Ok(None) => break,
                Err(failure) => {
                    broken = Some(failure.clone());
                    Err(io::Error::other(failure))
                }
            };
            let last = piece.is_err();
            *received += piece.as_ref().map_or(0, |piece| piece.len() as u64);
            // The unpacker ended early: its error tells why.
            if pieces.send(piece).await.is_err() || last {
                break;
            }
        }
        drop(pieces);
        match unpack.await {
            Ok(Ok(staged)) => Ok(staged),
            Ok(Err(error @ LayerError::Resumed { .. })) => Err(Unpacking::Resumed(failed(error))),
            // A download that broke is the cause, whatever the unpacker says of it.
            Ok(Err(error)) => Err(broken.unwrap_or_else(|| failed(error)).into()),
            Err(error) => Err(Failure::internal("unpack a layer", &error).into()),
        }
    }

    fn claim_of(&self, chain: &ChainId) -> Arc<tokio::sync::Mutex<()>> {
        let mut claims = lock(&self.claims);
        claims.retain(|_, claim| claim.strong_count() > 0);
        if let Some(claim) = claims.get(chain).and_then(Weak::upgrade) {
            return claim;
        }
        let claim = Arc::new(tokio::sync::Mutex::new(()));
        claims.insert(chain.clone(), Arc::downgrade(&claim));
        claim
    }
}

/// Why a layer did not come.
enum Unpacking {
    /// What an earlier attempt left is part of it and may be the cause; it is thrown away.
    Resumed(Failure),
    Failed(Failure),
}

impl From<Failure> for Unpacking {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// The class of a store's error in the daemon's terms.
pub(super) fn class(class: ErrorClass) -> Class {
    match class {
        ErrorClass::InvalidArgument => Class::DataLoss,
        ErrorClass::NotFound => Class::NotFound,
        ErrorClass::AlreadyExists => Class::AlreadyExists,
        ErrorClass::FailedPrecondition => Class::FailedPrecondition,
        ErrorClass::Unavailable => Class::Unavailable,
        ErrorClass::Exhausted => Class::Exhausted,
        ErrorClass::Internal => Class::Internal,
    }
}

/// A recorded chain id.
pub(super) fn parse_chain(text: &str) -> Answer<ChainId> {
    let digest: Result<Digest, _> = text.parse();
    digest
        .map(ChainId::from)
        .map_err(|error| Failure::internal("a recorded chain id", &error))
}

/// Turns an error of the store into a failure.
fn failed<E: StoreError>(error: E) -> Failure {
    Failure::new(class(error.class()), chain(&error))
}

/// The errors of the store, which all have a class.
trait StoreError: std::error::Error + 'static {
    fn class(&self) -> ErrorClass;
}

macro_rules! store_errors {
    ($($name:ty),*) => {
        $(impl StoreError for $name {
            fn class(&self) -> ErrorClass {
                <$name>::class(self)
            }
        })*
    };
}

store_errors!(
    axil_snapshotter::ContentError,
    axil_snapshotter::DiscardError,
    axil_snapshotter::GcError,
    axil_snapshotter::LayerError,
    axil_snapshotter::PathError,
    axil_snapshotter::SpoolError
);

#[async_trait]
impl Layers for LayerStore {
    fn has(&self, chain: &str) -> bool {
        parse_chain(chain).is_ok_and(|chain| self.store.has_layer(&chain))
    }

    fn lease(&self, roots: Roots) -> Lease {
        self.store.lease(roots)
    }

    async fn claim(&self, chains: &[ChainId]) -> Box<dyn Send + Sync> {
        // Order: lowest first. Stacks that share layers share their lowest ones, so two pulls can
        // never wait for each other.
        let mut held = Vec::new();
        for chain in chains {
            held.push(self.claim_of(chain).lock_owned().await);
        }
        Box::new(held)
    }

    async fn unpack(&self, job: LayerJob, remote: &dyn RemoteImage) -> Answer<(StagedLayer, u64)> {
        let mut received = 0;
        let staged = match self.unpack_once(&job, remote, &mut received).await {
            // What an earlier attempt left may have come from somebody who lied; it is gone now, so that this
            // source alone decides.
            Err(Unpacking::Resumed(failure)) => {
                tracing::info!(digest = %job.layer.digest, error = %failure, "a layer starts over");
                self.unpack_once(&job, remote, &mut received).await
            }
            result => result,
        };
        match staged {
            Ok(staged) => Ok((staged, received)),
            Err(Unpacking::Failed(failure) | Unpacking::Resumed(failure)) => Err(failure),
        }
    }

    fn unpacked_bytes(&self, chain: &ChainId, blob: &Digest) -> u64 {
        self.store.unpacked_bytes(chain, blob)
    }

    async fn commit(
        &self,
        staged: Vec<StagedLayer>,
        documents: Vec<(Digest, Vec<u8>)>,
    ) -> Answer<()> {
        let store = Arc::clone(&self.store);
        blocking("commit an image", move || {
            store.commit_image(staged, &documents).map_err(failed)
        })
        .await
    }

    fn has_blob(&self, digest: &Digest) -> bool {
        self.store.has_blob(digest)
    }

    async fn read_blob(&self, digest: &Digest) -> Answer<Option<Vec<u8>>> {
        let (store, digest) = (Arc::clone(&self.store), digest.clone());
        let read = move || store.read_blob(&digest, MAX_DOCUMENT).map_err(failed);
        blocking("read a blob", read).await
    }

    async fn collect(&self, roots: Roots) -> Answer<u64> {
        let store = Arc::clone(&self.store);
        let collect = move || store.collect_garbage(&roots).map_err(failed);
        Ok(blocking("collect garbage", collect).await?.usage.bytes)
    }

    fn size_of(&self, chains: &[ChainId], documents: &[&Digest]) -> u64 {
        self.store.size_of(chains, documents)
    }

    async fn usage(&self) -> Answer<Usage> {
        let store = Arc::clone(&self.store);
        blocking("measure the store", move || {
            store.store_usage().map_err(failed)
        })
        .await
    }

    fn containers_usage(&self) -> Usage {
        self.store.actives_usage()
    }

    fn container_usage(&self, container: &ContainerId) -> Option<LayerUsage> {
        let usage = self.store.active_usage(container.as_str())?;
        Some(LayerUsage {
            measured_at: self.measured_at.load(Ordering::Relaxed),
            bytes: usage.bytes,
            inodes: usage.inodes,
        })
    }

    async fn measure_containers(&self) -> Answer<()> {
        let (store, measured_at) = (Arc::clone(&self.store), Arc::clone(&self.measured_at));
        blocking("measure writable layers", move || {
            let now = unix_nanos();
            store.measure_actives().map_err(failed)?;
            measured_at.store(now, Ordering::Relaxed);
            Ok(())
        })
        .await
    }

    async fn read_archive(&self, source: Box<dyn Read + Send>) -> Answer<Vec<ArchivedImage>> {
        let store = Arc::clone(&self.store);
        blocking("read an archive of images", move || {
            let spool = store
                .spool(source, &SpoolLimits::default())
                .map_err(failed)?;
            archive::images_of(&Arc::new(spool))
        })
        .await
    }

    fn open_archive(&self, chain: &ChainId) -> Answer<Option<LayerArchive>> {
        self.store.open_archive(chain).map_err(failed)
    }

    fn layers(&self) -> Vec<ChainId> {
        self.store.layers()
    }

    fn blobs(&self) -> Vec<Digest> {
        self.store.blobs()
    }

    fn swept(&self) -> Vec<String> {
        self.store.swept()
    }

    async fn check_blob(&self, digest: &Digest) -> Answer<Option<String>> {
        let (store, digest) = (Arc::clone(&self.store), digest.clone());
        blocking("check a blob", move || {
            store.check_blob(&digest).map_err(failed)
        })
        .await
    }

    async fn check_layer(&self, chain: &ChainId, depth: Depth) -> Answer<LayerCheck> {
        let (store, chain) = (Arc::clone(&self.store), chain.clone());
        blocking("check a layer", move || {
            store.check_layer(&chain, depth).map_err(failed)
        })
        .await
    }

    fn is_proven(&self, chain: &ChainId, blob: &Digest) -> bool {
        self.store.is_proven(chain, blob)
    }

    async fn prove(&self, chain: &ChainId) -> Answer<bool> {
        let (store, chain) = (Arc::clone(&self.store), chain.clone());
        blocking("check a layer", move || {
            store.prove_layer(&chain).map_err(failed)
        })
        .await
    }

    async fn condemn_stacks(&self, chain: &ChainId) -> Answer<Vec<ChainId>> {
        let (store, chain) = (Arc::clone(&self.store), chain.clone());
        blocking("condemn layers", move || {
            store.condemn_stacks(&chain).map_err(failed)
        })
        .await
    }

    async fn strays(&self) -> Answer<Vec<DamagedRecord>> {
        let store = Arc::clone(&self.store);
        blocking("look for strays", move || {
            let mut strays = store.damaged();
            strays.extend(store.orphans().map_err(failed)?);
            Ok(strays)
        })
        .await
    }

    async fn discard(&self, stray: &DamagedRecord) -> Answer<()> {
        let (store, stray) = (Arc::clone(&self.store), stray.clone());
        blocking("discard a stray", move || {
            if !store.discard_damaged(&stray).map_err(failed)? {
                store.remove_orphan(&stray).map_err(failed)?;
            }
            Ok(())
        })
        .await
    }

    async fn drop_blob(&self, digest: &Digest) -> Answer<()> {
        let (store, digest) = (Arc::clone(&self.store), digest.clone());
        blocking("drop a blob", move || {
            store.remove_blob(&digest).map(drop).map_err(failed)
        })
        .await
    }

    async fn condemn(&self, chain: &ChainId) -> Answer<()> {
        let (store, chain) = (Arc::clone(&self.store), chain.clone());
        blocking("condemn a layer", move || {
            store.condemn_layer(&chain).map(drop).map_err(failed)
        })
        .await
    }
}
