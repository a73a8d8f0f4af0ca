//! Layers: from a compressed blob to a committed snapshot.
//!
//! `begin_layer` leases the layer, `LayerIngest::unpack` runs the pipeline of `pipeline.rs` into a
//! directory of its own, without looking at other layers, so that several layers unpack at once;
//! `commit_layers` settles what depends on the layers below (`settle.rs`), makes everything
//! durable with one syncfs, and writes the records that make the layers exist.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;

use rustix::fs::fchmod;

use self::apply::{Applied, ApplyError, IMPLIED_MODE};
use self::attributes::Direct;
use self::channel::border;
use self::inflate::Compression;
use self::limits::Limits;
use self::moves::{ASIDE, MOVES, MOVES_MAX};
use self::pipeline::{Outcome, Recipe};
use self::receive::receive;
use crate::confined::open_dir;
use crate::content::digest::Digest;
use crate::content::ingest::{self, Partial};
use crate::content::store::ContentError;
use crate::durable::{Prepared, sync_dir, write_unsynced};
use crate::error::{ErrorClass, PathError};
use crate::snapshot::chain::ChainId;
use crate::snapshot::kind::{LayerRecord, Record, SnapshotId};
use crate::store::{Growing, InFlight, Made, Shared, Store, make_new_dir, record_name};
use crate::tree::{Usage, measure, remove_tree};
use crate::worker::{WorkerError, session};

pub mod apply;
pub mod assemble;
pub(crate) mod attic;
pub(crate) mod attributes;
pub(crate) mod channel;
pub(crate) mod check;
pub(crate) mod compare;
pub(crate) mod entry;
pub(crate) mod header;
pub mod inflate;
pub mod limits;
pub(crate) mod moves;
pub(crate) mod pax;
pub(crate) mod pipeline;
pub(crate) mod receive;
pub(crate) mod settle;
pub(crate) mod skeleton;
pub(crate) mod sparse;
pub(crate) mod stack;
pub mod tar;
pub(crate) mod whiteout;

/// A layer to be pulled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerRequest {
    /// Digest of the compressed blob, from the manifest.
    pub blob: Digest,
    /// Size of the compressed blob in bytes, from the manifest.
    pub size: u64,
    /// How the blob is compressed, from its media type.
    pub compression: Compression,
    /// Digest of the inflated archive, from the configuration of the image.
    pub diff_id: Digest,
    /// Name of the layer with everything below it.
    pub chain: ChainId,
    /// The layer directly below; it may still be on its way.
    pub parent: Option<ChainId>,
    /// Bounds on what the layer may contain.
    pub limits: Limits,
    /// Whether what was received when the source fails is kept for another attempt.
    pub is_resumable: bool,
}

/// Why a layer was not unpacked or not committed.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The chain id does not follow from the parent and the diff id.
    #[error("chain id {chain} does not follow from its parent and diff id; expected {expected}")]
    Chain {
        /// The chain id asked for.
        chain: ChainId,
        /// What it has to be.
        expected: ChainId,
    },
    /// Another caller is pulling this layer.
    #[error("layer {chain} is already being pulled")]
    Busy {
        /// Its name.
        chain: ChainId,
    },
    /// The layer is committed already.
    #[error("layer {chain} is already in the store")]
    AlreadyExists {
        /// Its name.
        chain: ChainId,
    },
    /// The layer below is neither committed nor earlier in the list.
    #[error("layer {chain}: its parent {parent} is not in the store")]
    ParentMissing {
        /// The layer.
        chain: ChainId,
        /// The missing one.
        parent: ChainId,
    },
    /// The source failed. What was received is kept for the next attempt.
    #[error("layer blob {blob}: transfer failed after {received} bytes")]
    Source {
        /// The blob.
        blob: Digest,
        /// Bytes kept.
        received: u64,
        /// What the source said.
        source: std::io::Error,
    },
    /// The source ended early. What was received is kept for the next attempt.
    #[error("layer blob {blob}: transfer ended after {received} of {size} bytes")]
    Truncated {
        /// The blob.
        blob: Digest,
        /// Bytes kept.
        received: u64,
        /// Bytes expected.
        size: u64,
    },
    /// The source gave more bytes than announced.
    #[error("layer blob {blob} is larger than the {size} bytes announced")]
    TooLarge {
        /// The blob.
        blob: Digest,
        /// Bytes expected.
        size: u64,
    },
    /// The blob is not what was asked for.
    #[error("layer blob {expected} has digest {found}")]
    BlobDigest {
        /// Digest asked for.
        expected: Digest,
        /// Digest received.
        found: Digest,
    },
    /// The content is wrong, but part of it came from an earlier attempt and may have changed
    /// since. That part is deleted now, so that another attempt decides.
    #[error("layer blob {blob} is wrong after resuming at byte {resumed}")]
    Resumed {
        /// The blob.
        blob: Digest,
        /// Bytes that came from an earlier attempt.
        resumed: u64,
        /// What is wrong.
        source: Box<LayerError>,
    },
    /// The inflated archive is not the one the configuration names.
    #[error("layer with diff id {expected} inflates to {found}")]
    DiffId {
        /// Diff id of the configuration.
        expected: Digest,
        /// Digest of the archive.
        found: Digest,
    },
    /// The blob is not valid compressed data.
    #[error("layer blob {blob} cannot be inflated as {compression:?}")]
    Inflate {
        /// The blob.
        blob: Digest,
        /// How it was said to be compressed.
        compression: Compression,
        /// What the decoder said.
        source: std::io::Error,
    },
    /// The archive could not be applied.
    #[error("cannot unpack layer {diff_id}")]
    Apply {
        /// Diff id of the layer.
        diff_id: Digest,
        /// Why.
        source: ApplyError,
    },
    /// A document of the image could not be kept.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// The unpack process did not do its work.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// A thread of the pipeline could not be started or panicked.
    #[error("unpack thread {stage} failed: {reason}")]
    Thread {
        /// Which one.
        stage: &'static str,
        /// Why.
        reason: String,
    },
    /// A system call failed.
    #[error(transparent)]
    Path(#[from] PathError),
}

impl LayerError {
    /// Returns the class.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Chain { .. }
            | Self::TooLarge { .. }
            | Self::BlobDigest { .. }
            | Self::DiffId { .. }
            | Self::Inflate { .. } => ErrorClass::InvalidArgument,
            Self::AlreadyExists { .. } => ErrorClass::AlreadyExists,
            Self::ParentMissing { .. } => ErrorClass::FailedPrecondition,
            Self::Busy { .. }
            | Self::Source { .. }
            | Self::Truncated { .. }
            | Self::Resumed { .. } => ErrorClass::Unavailable,
            Self::Apply { source, .. } => source.class(),
            Self::Worker(WorkerError::Stalled { .. }) => ErrorClass::Unavailable,
            Self::Thread { .. } | Self::Worker(_) => ErrorClass::Internal,
            Self::Content(error) => error.class(),
            Self::Path(error) => error.class(),
        }
    }

    /// Tells whether other bytes could have gone well: what is not the machine's or the source's doing.
    fn may_be_of_the_content(&self) -> bool {
        match self {
            Self::Worker(error) => !matches!(error, WorkerError::Start { .. }),
            // A limit of a layer as well as a full disk; the second try tells.
            error => matches!(
                error.class(),
                ErrorClass::InvalidArgument | ErrorClass::Exhausted
            ),
        }
    }

    /// Tells whether the compressed bytes received so far are worth keeping.
    fn keeps_partial(&self) -> bool {
        matches!(self, Self::Source { .. } | Self::Truncated { .. })
    }
}

/// A leased layer, ready to receive its blob. Dropping it gives the lease back and keeps what was
/// received before.
#[derive(Debug)]
pub struct LayerIngest {
    lease: LayerLease,
    partial: Partial,
}

/// An unpacked layer nobody can see yet. Dropping it removes its files; the compressed bytes stay
/// for another attempt until the commit of the layer begins to write to disk.
#[derive(Debug)]
pub struct StagedLayer {
    lease: LayerLease,
    directory: StagingDir,
    partial: String,
    applied: Applied,
    /// Size of the archive, if it can be made again.
    archive_bytes: Option<u64>,
    usage: Usage,
}

impl StagedLayer {
    /// Returns the name of the layer.
    #[must_use]
    pub fn chain(&self) -> &ChainId {
        &self.lease.request.chain
    }

    /// Returns what the unpacked files occupy.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.usage
    }
}

/// Keeps other callers and garbage collection away from a layer.
#[derive(Debug)]
struct LayerLease {
    shared: Arc<Shared>,
    request: LayerRequest,
}

impl Drop for LayerLease {
    fn drop(&mut self) {
        let key = (self.request.chain.clone(), self.request.blob.clone());
        // The layer came of another blob, or is here already: what was received of this one is of no use.
        if self.shared.index().layers.contains_key(&key.0) {
            // Ignored: garbage collection removes what is old.
            let _left = ingest::discard(&self.shared.ingest, &ingest::name_of(&key.0, &key.1));
        }
        // Order: last, so that nobody begins with a file that is about to go.
        self.shared.index().in_flight.remove(&key);
    }
}

/// A snapshot directory without a record; removed when dropped.
#[derive(Debug)]
struct StagingDir {
    shared: Arc<Shared>,
    id: SnapshotId,
    growing: Arc<Growing>,
    /// A record exists, or removal was tried.
    is_settled: bool,
}

impl StagingDir {
    fn new(shared: &Arc<Shared>) -> Result<(Self, OwnedFd), PathError> {
        let (id, dir, growing) = shared.new_snapshot_dir()?;
        let staging = Self {
            shared: shared.clone(),
            id,
            growing,
            is_settled: false,
        };
        let files = make_new_dir(&dir, "fs")?;
        // The root of the layer, should the archive not describe it. The directories above it
        // keep everybody out.
        fchmod(&files, IMPLIED_MODE)
            .map_err(|error| PathError::new("set mode of", format!("snapshots/{id}/fs"), error))?;
        Ok((staging, dir))
    }
}

impl Drop for StagingDir {
    fn drop(&mut self) {
        let _made = Made(&self.shared, self.id);
        if !self.is_settled
            && let Err(error) = self.shared.remove_snapshot_dir(self.id)
        {
            // Without a record it goes when the store is opened next; until then it is reported.
            let path = format!("snapshots/{}", self.id);
            self.shared
                .index()
                .report(path, format!("not removed: {}", error.source));
        }
    }
}

impl Store {
    /// Tells whether a layer is committed.
    #[must_use]
    pub fn has_layer(&self, chain: &ChainId) -> bool {
        self.shared.index().layers.contains_key(chain)
    }

    /// Returns what a committed layer occupies.
    #[must_use]
    pub fn layer_usage(&self, chain: &ChainId) -> Option<Usage> {
        self.shared
            .index()
            .layers
            .get(chain)
            .map(|layer| layer.usage)
    }

    /// Returns how many bytes of a layer that is made of `blob` are unpacked: of its archive while it is pulled, on
    /// disk once it is there, 0 before.
    #[must_use]
    pub fn unpacked_bytes(&self, chain: &ChainId, blob: &Digest) -> u64 {
        let index = self.shared.index();
        if let Some(layer) = index.layers.get(chain) {
            return layer.usage.bytes;
        }
        let layer = index.in_flight.get(&(chain.clone(), blob.clone()));
        let growing = layer.and_then(|layer| layer.growing.as_ref());
        growing.map_or(0, |growing| growing.usage().bytes)
    }

    /// Leases a layer for pulling. The parent may be on its way as well.
    ///
    /// # Errors
    /// `InvalidArgument` when the chain id does not fit, `AlreadyExists` when the layer is
    /// committed, `Unavailable` when somebody else is pulling it from the same blob.
    pub fn begin_layer(&self, request: LayerRequest) -> Result<LayerIngest, LayerError> {
        let expected = match &request.parent {
            Some(parent) => parent.extend(&request.diff_id),
            None => ChainId::first(&request.diff_id),
        };
        let chain = request.chain.clone();
        if chain != expected {
            return Err(LayerError::Chain { chain, expected });
        }
        {
            let mut index = self.shared.index();
            if index.layers.contains_key(&chain) {
                return Err(LayerError::AlreadyExists { chain });
            }
            let key = (chain.clone(), request.blob.clone());
            if index.in_flight.contains_key(&key) {
                return Err(LayerError::Busy { chain });
            }
            let kept = InFlight {
                parent: request.parent.clone(),
                growing: None,
            };
            index.in_flight.insert(key, kept);
        }
        let lease = LayerLease {
            shared: self.shared.clone(),
            request,
        };
        let request = &lease.request;
        let partial = if request.is_resumable {
            Partial::open(&self.shared.ingest, &chain, &request.blob, request.size)?
        } else {
            let failed = |source| PathError::new("open", "content/ingest", source);
            Partial::unnamed(self.unnamed_file().map_err(failed)?)
        };
        Ok(LayerIngest { lease, partial })
    }

    /// Makes unpacked layers visible. The list is in chain order; each parent is committed or earlier in the
    /// list.
    ///
    /// # Errors
    /// As [`Store::commit_image`].
    pub fn commit_layers(&self, staged: Vec<StagedLayer>) -> Result<(), LayerError> {
        self.commit_image(staged, &[])
    }

    /// Makes unpacked layers and the documents of their image visible, all or none of those that fail before
    /// anything is visible. One sync makes everything durable, also of others who commit at the same moment.
    /// The list of layers is in chain order; each parent is committed or earlier in the list.
    ///
    /// # Errors
    /// `FailedPrecondition` when a parent is missing, `InvalidArgument` when a layer refers to
    /// files no layer below has or a document has another digest, `Exhausted` on a full disk. Layers that were
    /// not committed are removed.
    pub fn commit_image(
        &self,
        staged: Vec<StagedLayer>,
        documents: &[(Digest, Vec<u8>)],
    ) -> Result<(), LayerError> {
        let stacks = self.stacks_below(&staged)?;
        let mut staged = staged;
        let mut settling = staged.iter_mut().zip(stacks);
        if let Err(error) = settling.try_for_each(|(layer, below)| layer.settle(below)) {
            // Layers that do not fit together never will.
            if error.class() == ErrorClass::InvalidArgument {
                self.discard_received(&staged)?;
            }
            return Err(error);
        }
        let mut blobs = Vec::new();
        for (digest, bytes) in documents {
            blobs.extend(self.prepare_blob(digest, bytes)?);
        }
        if staged.is_empty() && blobs.is_empty() {
            return Ok(());
        }
        let failed = |what| move |source| PathError::new(what, "snapshots", source);
        let mut records = Vec::new();
        for layer in &staged {
            let record = layer.record();
            let name = record_name(record.id);
            let bytes = Record::Layer(record.clone()).to_json();
            let prepared = Prepared::write(&self.shared.meta, &name, &bytes).map_err(|source| {
                PathError::new("write", format!("snapshots/meta/{name}"), source)
            })?;
            records.push((prepared, record));
        }
        // Order: before the sync, which would write them to disk for nothing. From here on only a failing disk
        // or a kill in the middle of the sync makes them missed, and then the layers are fetched again.
        self.discard_received(&staged)?;
        // Order: all data first, then the names, then the directories that hold the names.
        self.shared.sync_all().map_err(failed("sync"))?;
        self.publish_blobs(blobs)?;
        let mut recorded = Vec::new();
        let mut outcome = Ok(());
        for (mut layer, (mut prepared, record)) in staged.into_iter().zip(records) {
            if let Err(source) = prepared.publish() {
                let path = format!("snapshots/meta/{}", record_name(record.id));
                outcome = Err(PathError::new("write", path, source).into());
                // Those above it have no parent now; they are dropped with it.
                break;
            }
            layer.directory.is_settled = true;
            recorded.push((layer, record));
        }
        if !recorded.is_empty() {
            sync_dir(&self.shared.meta).map_err(failed("sync directory"))?;
        }
        for (_layer, record) in recorded {
            let mut index = self.shared.index();
            index.layers.insert(record.chain.clone(), record);
        }
        outcome
    }

    /// Deletes the compressed bytes of unpacked layers.
    fn discard_received(&self, staged: &[StagedLayer]) -> Result<(), PathError> {
        let mut received = staged.iter().map(|layer| &layer.partial);
        received.try_for_each(|name| ingest::discard(&self.shared.ingest, name))
    }

    /// Returns for each layer the directories below it, top first.
    fn stacks_below(&self, staged: &[StagedLayer]) -> Result<Vec<Vec<SnapshotId>>, LayerError> {
        let index = self.shared.index();
        let mut stacks: Vec<Vec<SnapshotId>> = Vec::new();
        for (position, layer) in staged.iter().enumerate() {
            let request = &layer.lease.request;
            let Some(parent) = &request.parent else {
                stacks.push(Vec::new());
                continue;
            };
            let earlier = staged[..position]
                .iter()
                .position(|other| other.chain() == parent);
            let stack = if let Some(earlier) = earlier {
                let mut stack = vec![staged[earlier].directory.id];
                if !staged[earlier].applied.opaque_root {
                    stack.extend(&stacks[earlier]);
                }
                stack
            } else {
                index
                    .lowers(parent)
                    .map_err(|missing| LayerError::ParentMissing {
                        chain: request.chain.clone(),
                        parent: missing,
                    })?
            };
            stacks.push(stack);
        }
        Ok(stacks)
    }
}

impl LayerIngest {
    /// Returns how many bytes of the blob are here from an interrupted pull. The source given to
    /// [`Self::unpack`] starts at this offset.
    #[must_use]
    pub fn resume_offset(&self) -> u64 {
        self.partial.length()
    }

    /// Reads the rest of the blob from `source` to its end and unpacks the layer while it comes
    /// in. Both digests and the size are checked. The source has to bound its own waits.
    ///
    /// # Errors
    /// `Unavailable` when the source failed or ended early (what came is kept), `InvalidArgument`
    /// for a wrong digest or a bad archive, `Exhausted` for a full disk or a limit. Nothing of
    /// the unpacked files stays.
    pub fn unpack(self, source: impl std::io::Read + Send) -> Result<StagedLayer, LayerError> {
        let Self { lease, mut partial } = self;
        let shared = lease.shared.clone();
        let name = partial.name.clone();
        let resumed = partial.length();
        let (directory, snapshot) = StagingDir::new(&shared)?;
        let key = (lease.request.chain.clone(), lease.request.blob.clone());
        if let Some(layer) = shared.index().in_flight.get_mut(&key) {
            layer.growing = Some(Arc::clone(&directory.growing));
        }
        let keep = snapshot
            .try_clone()
            .map_err(|source| PathError::new("open", "snapshots", source));
        let unpacked = keep.map_err(LayerError::from).and_then(|place| {
            let Outcome {
                applied,
                archive_bytes,
            } = make(&lease, &mut partial, source, place, &directory.growing)?;
            let usage = measure(snapshot)
                .map_err(|source| PathError::new("measure", "the unpacked layer", source))?;
            directory.growing.set(usage);
            Ok((applied, archive_bytes, usage))
        });
        match unpacked {
            Ok((applied, archive_bytes, usage)) => Ok(StagedLayer {
                lease,
                directory,
                partial: name,
                applied,
                archive_bytes,
                usage,
            }),
            Err(error) => {
                if !error.keeps_partial() || partial.length() == 0 {
                    ingest::discard(&shared.ingest, &name)?;
                }
                if resumed > 0 && error.may_be_of_the_content() {
                    let blob = lease.request.blob.clone();
                    return Err(LayerError::Resumed {
                        blob,
                        resumed,
                        source: Box::new(error),
                    });
                }
                Err(error)
            }
        }
    }
}

/// Receives a blob and makes a layer of it, in a process of its own or in threads of this one.
fn make(
    lease: &LayerLease,
    partial: &mut Partial,
    source: impl std::io::Read + Send,
    place: OwnedFd,
    growing: &Growing,
) -> Result<Outcome, LayerError> {
    let request = &lease.request;
    let recipe = Recipe::from(request);
    if let Some(worker) = &lease.shared.worker {
        return session::unpack(worker, &recipe, &place, growing, |sink| {
            receive(request, partial, source, sink)
        });
    }
    let (mut to_inflate, from_receive) = border();
    thread::scope(|scope| {
        let receiving = scope.spawn(move || {
            receive(request, partial, source, &mut to_inflate)?;
            Ok(to_inflate.end()?)
        });
        let progress = |total| growing.set_bytes(total);
        let made = pipeline::run(&recipe, from_receive, place, &progress, Box::new(Direct));
        let received: Result<(), Option<LayerError>> = receiving.join().unwrap_or_else(|_| {
            let reason = "panicked".to_owned();
            let stage = "receive";
            Err(Some(LayerError::Thread { stage, reason }))
        });
        match received {
            // What is wrong with the bytes themselves comes first.
            Err(Some(error)) => Err(error),
            Ok(()) | Err(None) => made,
        }
    })
}

impl StagedLayer {
    /// Completes the layer with what only the layers below know.
    fn settle(&mut self, below: Vec<SnapshotId>) -> Result<(), LayerError> {
        let shared = &self.lease.shared;
        let id = self.directory.id;
        let pending = std::mem::take(&mut self.applied.pending);
        let below = if self.applied.opaque_root {
            Vec::new()
        } else {
            below
        };
        let moves = std::mem::take(&mut self.applied.moves);
        let settled =
            settle::settle(&shared.snapshots, id, below, pending, moves).map_err(|source| {
                LayerError::Apply {
                    diff_id: self.lease.request.diff_id.clone(),
                    source,
                }
            })?;
        let is_plain = settled.moves.is_empty();
        if !is_plain {
            self.keep_moves(&settled.moves)?;
        }
        if settled.grown || !is_plain {
            let snapshot = open_dir(&shared.snapshots, id.to_string().as_bytes());
            self.usage = snapshot
                .and_then(measure)
                .map_err(|source| PathError::new("measure", format!("snapshots/{id}"), source))?;
        }
        Ok(())
    }

    /// Writes where content went, or drops what was set aside if nothing can be made of it.
    fn keep_moves(&self, moves: &[moves::Move]) -> Result<(), PathError> {
        let id = self.directory.id;
        let failed = |source| PathError::new("write", format!("snapshots/{id}/{MOVES}"), source);
        let snapshot =
            open_dir(&self.lease.shared.snapshots, id.to_string().as_bytes()).map_err(failed)?;
        let document = moves::to_json(moves);
        if self.archive_bytes.is_some() && document.len() as u64 <= MOVES_MAX {
            // The one sync of the commit makes it durable.
            return write_unsynced(&snapshot, MOVES, &document).map_err(failed);
        }
        remove_tree(&snapshot, ASIDE.as_bytes())
            .map(drop)
            .map_err(failed)
    }

    fn record(&self) -> LayerRecord {
        let request = &self.lease.request;
        LayerRecord {
            id: self.directory.id,
            chain: request.chain.clone(),
            parent: request.parent.clone(),
            diff_id: request.diff_id.clone(),
            blob: request.blob.clone(),
            usage: self.usage,
            opaque_root: self.applied.opaque_root,
            archive_bytes: self.archive_bytes,
        }
    }
}
