//! The first stage of an unpack, always in the process that was asked for it: bytes of the blob are received,
//! kept for another attempt, hashed, and passed on.

use std::io::Read;

use super::LayerError;
use super::LayerRequest;
use super::channel::{CHUNK, ChunkSender, Stopped, fill};
use crate::content::digest::Hasher;
use crate::content::ingest::Partial;
use crate::error::PathError;

/// Received bytes are passed on in pieces of at least this size, unless the source ends.
const RECEIVE: usize = 64 * 1024;

/// Where received bytes go.
pub(crate) trait Sink {
    /// Returns a buffer to fill; what it holds is of no interest.
    fn buffer(&mut self) -> Vec<u8>;

    /// Takes a filled buffer, waiting while the next stage is behind.
    fn send(&mut self, bytes: Vec<u8>) -> Result<(), Stopped>;
}

impl Sink for ChunkSender {
    fn buffer(&mut self) -> Vec<u8> {
        ChunkSender::buffer(self)
    }

    fn send(&mut self, bytes: Vec<u8>) -> Result<(), Stopped> {
        ChunkSender::send(self, bytes)
    }
}

/// Replays what is on disk, then receives the rest.
/// Fails with `None` when the next stage went away.
pub(crate) fn receive(
    request: &LayerRequest,
    partial: &mut Partial,
    mut source: impl Read,
    next: &mut dyn Sink,
) -> Result<(), Option<LayerError>> {
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
    Ok(())
}
