//! The threads of one unpack: receive and hash, inflate, hash again, apply.
//!
//! ```text
//! source -> [receive: tee to disk, blob digest] -> [inflate] -> [diff id] -> [apply]
//! ```
//!
//! Borders are bounded, so memory does not depend on the layer. A stage that fails leaves; its
//! neighbours see that and leave without an error of their own.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::thread::{self, Scope, ScopedJoinHandle};

use super::apply::{Applied, Applier, Content};
use super::channel::{CHUNK, ChunkReceiver, ChunkSender, Stopped, border, fill};
use super::inflate;
use super::skeleton::{Recorder, SKELETON};
use super::tar::{TarError, TarReader};
use super::{LayerError, LayerRequest};
use crate::content::digest::Hasher;
use crate::content::ingest::Partial;
use crate::error::PathError;
use crate::store::Growing;

/// Received bytes are passed on in pieces of at least this size, unless the source ends.
const RECEIVE: usize = 64 * 1024;

/// A stage's failure: its own, or `None` when it stopped because a neighbour did.
type Failure = Option<LayerError>;

impl From<Stopped> for Failure {
    fn from(_: Stopped) -> Self {
        None
    }
}

/// Runs the pipeline to its end, in a snapshot directory with an empty directory `fs`. Answers what was
/// applied, and the size of the archive if it can be made again.
pub(crate) fn run(
    request: &LayerRequest,
    partial: &mut Partial,
    source: impl Read + Send,
    snapshot: OwnedFd,
    growing: &Growing,
) -> Result<(Applied, Option<u64>), LayerError> {
    let (to_inflate, from_receive) = border();
    let (to_hash, from_inflate) = border();
    let (to_apply, from_hash) = border();
    thread::scope(|scope| {
        let stages = [
            spawn(scope, "receive", move || {
                receive(request, partial, source, to_inflate)
            })?,
            spawn(scope, "inflate", move || {
                inflate(request, from_receive, to_hash)
            })?,
            spawn(scope, "hash", move || {
                hash(request, from_inflate, to_apply, growing)
            })?,
        ];
        let applied = apply(request, from_hash, snapshot);
        let mut causes: Vec<LayerError> = Vec::new();
        let applied = match applied {
            Ok(applied) => Some(applied),
            Err(failure) => {
                causes.extend(failure);
                None
            }
        };
        for (stage, handle) in stages {
            match handle.join() {
                Ok(Ok(())) => {}
                Ok(Err(failure)) => causes.extend(failure),
                Err(_) => {
                    causes.push(LayerError::Thread {
                        stage,
                        reason: "panicked".to_owned(),
                    });
                }
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

/// Replays what is on disk, then receives the rest.
fn receive(
    request: &LayerRequest,
    partial: &mut Partial,
    mut source: impl Read,
    next: ChunkSender,
) -> Result<(), Failure> {
    let resumed = partial.length();
    let mut hasher = Hasher::new(request.blob.algorithm());
    let mut left = resumed;
    while left > 0 {
        let mut buffer = next.buffer();
        let target = CHUNK.min(usize::try_from(left).unwrap_or(CHUNK));
        let name = partial.name.clone();
        let failed = |source| PathError::new("read partial download", &name, source);
        // Positioned once; later reads continue where the last one ended.
        let file = if left == resumed {
            partial.replay()
        } else {
            Ok(partial.file())
        };
        let ended = fill(file.map_err(LayerError::from)?, &mut buffer, target)
            .map_err(|source| LayerError::from(failed(source)))?;
        if ended {
            let error = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
            return Err(Some(failed(error).into()));
        }
        hasher.update(&buffer);
        left -= buffer.len() as u64;
        next.send(buffer)?;
    }
    loop {
        let mut buffer = next.buffer();
        let outcome = fill(&mut source, &mut buffer, RECEIVE);
        if partial.length() + buffer.len() as u64 > request.size {
            let blob = request.blob.clone();
            return Err(Some(LayerError::TooLarge {
                blob,
                size: request.size,
            }));
        }
        partial.append(&buffer).map_err(LayerError::from)?;
        let ended = outcome.map_err(|source| LayerError::Source {
            blob: request.blob.clone(),
            received: partial.length(),
            source,
        })?;
        hasher.update(&buffer);
        next.send(buffer)?;
        if ended {
            break;
        }
    }
    if partial.length() < request.size {
        let (blob, received) = (request.blob.clone(), partial.length());
        return Err(Some(LayerError::Truncated {
            blob,
            received,
            size: request.size,
        }));
    }
    let found = hasher.finish();
    if found != request.blob {
        let expected = request.blob.clone();
        return Err(Some(LayerError::BlobDigest { expected, found }));
    }
    Ok(next.end()?)
}

fn inflate(
    request: &LayerRequest,
    mut from: ChunkReceiver,
    next: ChunkSender,
) -> Result<(), Failure> {
    let failed = |source| LayerError::Inflate {
        blob: request.blob.clone(),
        compression: request.compression,
        source,
    };
    let limit = request.limits.unpacked_bytes;
    let mut total = 0;
    let outcome = (|| -> Result<(), Failure> {
        let mut reader = inflate::reader(request.compression, &mut from).map_err(failed)?;
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
                    diff_id: request.diff_id.clone(),
                    source,
                }));
            }
            next.send(buffer)?;
            if ended {
                return Ok(());
            }
        }
    })();
    match outcome {
        // The decoder failed because its input went away: the cause is before it.
        Err(_) if from.is_stopped() => Err(None),
        Err(failure) => Err(failure),
        Ok(()) => {
            // A decoder may be done before it saw the end of the stream. What is after the end of
            // the compressed data is an error in every decoder, so only the end marker is left.
            while let Some(buffer) = from.next_buffered()? {
                from.recycle(buffer);
            }
            Ok(next.end()?)
        }
    }
}

fn hash(
    request: &LayerRequest,
    mut from: ChunkReceiver,
    next: ChunkSender,
    growing: &Growing,
) -> Result<(), Failure> {
    let mut hasher = Hasher::new(request.diff_id.algorithm());
    while let Some(bytes) = from.next()? {
        hasher.update(&bytes);
        growing.add_bytes(bytes.len() as u64);
        next.send(bytes)?;
        if let Some(empty) = next.take_empty() {
            from.recycle(empty);
        }
    }
    let found = hasher.finish();
    if found != request.diff_id {
        let expected = request.diff_id.clone();
        return Err(Some(LayerError::DiffId { expected, found }));
    }
    Ok(next.end()?)
}

fn apply(
    request: &LayerRequest,
    from: ChunkReceiver,
    snapshot: OwnedFd,
) -> Result<(Applied, Option<u64>), Failure> {
    let recorder = Recorder::writing(from, &snapshot, request.limits.skeleton_bytes)
        .map_err(|source| LayerError::from(PathError::new("create", SKELETON, source)))?;
    let mut archive = TarReader::new(recorder, request.limits);
    let outcome = Applier::new(snapshot, request.limits, Content::Written)
        .and_then(|applier| applier.run(&mut archive));
    let mut recorder = archive.into_input();
    if recorder.input().is_stopped() {
        return Err(None);
    }
    let applied = outcome.map_err(|source| LayerError::Apply {
        diff_id: request.diff_id.clone(),
        source,
    })?;
    // What follows the archive belongs to the diff id, so it is read to the end.
    match recorder.finish() {
        Ok(archive_bytes) => Ok((applied, archive_bytes)),
        Err(_) if recorder.input().is_stopped() => Err(None),
        Err(source) => Err(Some(PathError::new("write", SKELETON, source).into())),
    }
}
