//! The threads that make a layer of a blob's bytes: inflate, then hash and apply. They are the work of the unpack
//! process (`worker.rs`), or of a thread of whoever has no such program.
//!
//! ```text
//! blob -> [inflate] -> [diff id, apply]
//! ```
//!
//! Inflating takes about as long as the rest. Who hashes bytes goes on with them at once, while they are in the
//! cache of its core.
//!
//! The border is bounded, so memory does not depend on the layer. A stage that fails leaves; its
//! neighbours see that and leave without an error of their own.

use std::io::{self, BufRead, Read};
use std::os::fd::OwnedFd;
use std::thread::{self, Scope, ScopedJoinHandle};

use super::apply::{Applied, Applier, Content};
use super::attributes::SetAttribute;
use super::channel::{CHUNK, ChunkReceiver, ChunkSender, Stopped, border, fill};
use super::inflate::{self, Compression};
use super::limits::Limits;
use super::skeleton::{Recorder, SKELETON};
use super::tar::{TarError, TarReader};
use super::{LayerError, LayerRequest};
use crate::content::digest::{Digest, Hasher};
use crate::error::PathError;

/// A stage's failure: its own, or `None` when it stopped because a neighbour did.
type Failure = Option<LayerError>;

impl From<Stopped> for Failure {
    fn from(_: Stopped) -> Self {
        None
    }
}

/// What the stages need to know of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Recipe {
    pub(crate) blob: Digest,
    pub(crate) compression: Compression,
    pub(crate) diff_id: Digest,
    pub(crate) limits: Limits,
}

impl From<&LayerRequest> for Recipe {
    fn from(request: &LayerRequest) -> Self {
        Self {
            blob: request.blob.clone(),
            compression: request.compression,
            diff_id: request.diff_id.clone(),
            limits: request.limits,
        }
    }
}

/// What came of a layer.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) applied: Applied,
    /// Size of the archive, if it can be made again.
    pub(crate) archive_bytes: Option<u64>,
}

/// Called with the number of inflated bytes so far.
pub(crate) type Progress<'a> = dyn Fn(u64) + Sync + 'a;

/// Makes a layer of the blob that `input` gives, in a snapshot directory with an empty directory `fs`. An error
/// of `input` of the kind `BrokenPipe` means that the cause is before it.
pub(crate) fn run(
    recipe: &Recipe,
    input: impl BufRead + Send,
    snapshot: OwnedFd,
    progress: &Progress<'_>,
    attributes: Box<dyn SetAttribute + '_>,
) -> Result<Outcome, LayerError> {
    let (to_apply, from_inflate) = border();
    let archive = Hashing {
        from: from_inflate,
        hasher: Hasher::new(recipe.diff_id.algorithm()),
        hashed: 0,
        total: 0,
        progress,
    };
    thread::scope(|scope| {
        let (stage, inflating) = spawn(scope, "inflate", move || inflate(recipe, input, to_apply))?;
        let applied = apply(recipe, archive, snapshot, attributes);
        let mut causes: Vec<LayerError> = Vec::new();
        let applied = match applied {
            Ok(applied) => Some(applied),
            Err(failure) => {
                causes.extend(failure);
                None
            }
        };
        match inflating.join() {
            Ok(Ok(())) => {}
            Ok(Err(failure)) => causes.extend(failure),
            Err(_) => {
                causes.push(LayerError::Thread {
                    stage,
                    reason: "panicked".to_owned(),
                });
            }
        }
        match (causes.into_iter().next(), applied) {
            (Some(cause), _) => Err(cause),
            (None, Some(applied)) => Ok(applied),
            (None, None) => Err(LayerError::Thread {
                stage: "apply",
                reason: "stopped without a cause".to_owned(),
            }),
        }
    })
}

type Stage<'scope> = (&'static str, ScopedJoinHandle<'scope, Result<(), Failure>>);

fn spawn<'scope>(
    scope: &'scope Scope<'scope, '_>,
    stage: &'static str,
    work: impl FnOnce() -> Result<(), Failure> + Send + 'scope,
) -> Result<Stage<'scope>, LayerError> {
    let handle = thread::Builder::new()
        .name(format!("unpack-{stage}"))
        .spawn_scoped(scope, work)
        .map_err(|error| LayerError::Thread {
            stage,
            reason: error.to_string(),
        })?;
    Ok((stage, handle))
}

fn inflate(recipe: &Recipe, mut input: impl BufRead, next: ChunkSender) -> Result<(), Failure> {
    let failed = |source: std::io::Error| {
        // The input went away: the cause is before it.
        if source.kind() == std::io::ErrorKind::BrokenPipe {
            return None;
        }
        Some(LayerError::Inflate {
            blob: recipe.blob.clone(),
            compression: recipe.compression,
            source,
        })
    };
    let limit = recipe.limits.unpacked_bytes;
    let mut total = 0;
    let mut reader = inflate::reader(recipe.compression, &mut input, recipe.limits.zstd_window)
        .map_err(failed)?;
    loop {
        let mut buffer = next.buffer();
        let ended = fill(&mut *reader, &mut buffer, CHUNK).map_err(failed)?;
        total += buffer.len() as u64;
        if total > limit {
            let source = TarError::Limit {
                what: "unpacked bytes",
                limit,
            }
            .into();
            return Err(Some(LayerError::Apply {
                diff_id: recipe.diff_id.clone(),
                source,
            }));
        }
        next.send(buffer)?;
        if ended {
            break;
        }
    }
    drop(reader);
    // A decoder may be done before it saw the end of the stream. What is after the end of the compressed data is
    // an error in every decoder, so only the end itself is left; without it the blob is not whole.
    loop {
        let left = input.fill_buf().map_err(failed)?.len();
        if left == 0 {
            return Ok(next.end()?);
        }
        input.consume(left);
    }
}

/// The archive on its way to who applies it.
struct Hashing<'a> {
    from: ChunkReceiver,
    hasher: Hasher,
    /// Bytes of the current buffer that were hashed and not used yet.
    hashed: usize,
    total: u64,
    progress: &'a Progress<'a>,
}

impl Hashing<'_> {
    fn is_stopped(&self) -> bool {
        self.from.is_stopped()
    }
}

impl BufRead for Hashing<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let bytes = self.from.fill_buf()?;
        if self.hashed == 0 && !bytes.is_empty() {
            self.hasher.update(bytes);
            self.hashed = bytes.len();
            self.total += bytes.len() as u64;
            (self.progress)(self.total);
        }
        Ok(bytes)
    }

    fn consume(&mut self, amount: usize) {
        self.hashed -= amount;
        self.from.consume(amount);
    }
}

impl Read for Hashing<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let amount = self.fill_buf()?.read(out)?;
        self.consume(amount);
        Ok(amount)
    }
}

fn apply(
    recipe: &Recipe,
    archive: Hashing<'_>,
    snapshot: OwnedFd,
    attributes: Box<dyn SetAttribute + '_>,
) -> Result<Outcome, Failure> {
    let recorder = Recorder::writing(archive, &snapshot, recipe.limits.skeleton_bytes)
        .map_err(|source| LayerError::from(PathError::new("create", SKELETON, source)))?;
    let mut archive = TarReader::new(recorder, recipe.limits);
    let outcome = Applier::new(snapshot, recipe.limits, Content::Written)
        .map(|applier| applier.with_attributes(attributes))
        .and_then(|applier| applier.run(&mut archive));
    let mut recorder = archive.into_input();
    if recorder.input().is_stopped() {
        return Err(None);
    }
    let applied = outcome.map_err(|source| LayerError::Apply {
        diff_id: recipe.diff_id.clone(),
        source,
    })?;
    // What follows the archive belongs to the diff id, so it is read to the end.
    let finished = recorder.finish();
    if recorder.input().is_stopped() {
        return Err(None);
    }
    let archive_bytes =
        finished.map_err(|source| LayerError::from(PathError::new("write", SKELETON, source)))?;
    let found = recorder.into_input().hasher.finish();
    if found != recipe.diff_id {
        let expected = recipe.diff_id.clone();
        return Err(Some(LayerError::DiffId { expected, found }));
    }
    Ok(Outcome {
        applied,
        archive_bytes,
    })
}
