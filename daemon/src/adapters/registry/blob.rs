//! A blob as an ordered stream of chunks. A large one is fetched in parts, several at once, where
//! the host serves ranges: the part whose turn it is goes straight to the consumer, later ones wait
//! in reserved memory.
//!
//! ```text
//! bytes   0 ........ position ...... end of the part in turn ...... planned ............ size
//!         handed out         streamed                       fetched early       not begun
//! ```
//!
//! The digest over the whole is the consumer's check; size, order and ranges are checked here.

use std::collections::VecDeque;
use std::sync::Arc;

use axil_snapshotter::Digest;
use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::error::{Problem, RegistryError};
use super::exchange::Exchange;
use super::slots::Buffer;
use super::source::Source;
use crate::engine::spawn::spawn;

mod part;

use part::{Blob, Part};

/// Early chunks are gathered up to this size: a host that sends single bytes costs no more memory
/// than was reserved.
const GATHERED_BYTES: usize = 16 << 10;

/// The bytes of a blob from an offset to its end, exactly.
#[derive(Debug)]
pub struct BlobStream {
    blob: Arc<Blob>,
    /// The offset of the next byte to hand out.
    position: u64,
    turn: Turn,
    early: VecDeque<Early>,
    /// Where the next part to begin starts; the blob's size when there is none.
    planned: u64,
}

/// Where the next chunk comes from.
#[derive(Debug)]
enum Turn {
    Streamed(Box<Part>),
    Early(Early),
}

/// A part that was begun before its turn. Dropping it ends its transfer.
#[derive(Debug)]
struct Early {
    end: u64,
    chunks: mpsc::Receiver<Result<Bytes, RegistryError>>,
    transfer: AbortHandle,
    _memory: Buffer,
}

impl Drop for Early {
    fn drop(&mut self) {
        self.transfer.abort();
    }
}

impl BlobStream {
    pub(super) async fn open(
        exchange: Arc<Exchange>,
        source: &Source,
        digest: &Digest,
        size: u64,
        offset: u64,
    ) -> Result<Self, RegistryError> {
        let blob = Arc::new(Blob {
            exchange,
            source: source.clone(),
            digest: digest.clone(),
            size,
        });
        if offset > size {
            return Err(blob.error(None, Problem::Offset { offset, size }));
        }
        if blob.hosts().is_empty() {
            let capability = "pull";
            return Err(blob.error(None, Problem::NoHost { capability }));
        }
        let ranges = &blob.exchange.options.ranges;
        let left = size - offset;
        let in_parts = ranges.per_blob > 1 && left >= ranges.threshold && left > ranges.bytes;
        let end = match in_parts {
            true => offset + ranges.bytes,
            false => size,
        };
        let mut part = Part::in_turn(Arc::clone(&blob), offset, end);
        if offset < size {
            part.connect().await?;
        }
        Ok(Self {
            position: offset,
            planned: part.end(),
            turn: Turn::Streamed(Box::new(part)),
            early: VecDeque::new(),
            blob,
        })
    }

    /// Returns the next chunk, never empty, and `None` at the end of the blob. Not to be called
    /// again after an error.
    ///
    /// # Errors
    /// Everything that no retry and no other host could mend.
    pub async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        loop {
            self.begin_early();
            let chunk = match &mut self.turn {
                Turn::Streamed(part) => {
                    let chunk = part.next().await?;
                    if part.end() > self.planned {
                        // The host serves no ranges after all: this is the rest of the blob.
                        self.planned = part.end();
                        self.early.clear();
                    }
                    chunk
                }
                Turn::Early(early) => match early.chunks.recv().await {
                    Some(Ok(chunk)) => Some(chunk),
                    None if self.position == early.end => None,
                    failed => {
                        self.go_on_in_one(failed.and_then(Result::err).as_ref());
                        continue;
                    }
                },
            };
            if let Some(chunk) = chunk {
                self.position += chunk.len() as u64;
                return Ok(Some(chunk));
            }
            if self.position >= self.blob.size {
                return Ok(None);
            }
            self.turn = match self.early.pop_front() {
                Some(early) => Turn::Early(early),
                None => {
                    let end = self.end_of_part(self.position);
                    self.planned = end;
                    let blob = Arc::clone(&self.blob);
                    Turn::Streamed(Box::new(Part::in_turn(blob, self.position, end)))
                }
            };
        }
    }

    /// Returns the offset of the next chunk in the blob.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    fn end_of_part(&self, start: u64) -> u64 {
        let bytes = self.blob.exchange.options.ranges.bytes.max(1);
        start.saturating_add(bytes).min(self.blob.size)
    }

    /// Begins later parts while there are slots and memory that nobody else waits for.
    fn begin_early(&mut self) {
        let ranges = &self.blob.exchange.options.ranges;
        while self.planned < self.blob.size && self.early.len() + 1 < ranges.per_blob {
            let (start, end) = (self.planned, self.end_of_part(self.planned));
            let slots = &self.blob.exchange.slots;
            let slot = self
                .blob
                .first_origin()
                .and_then(|origin| slots.try_for_transfer(origin));
            let memory = slots.try_buffer(end - start);
            let (Some(slot), Some(memory)) = (slot, memory) else {
                return;
            };
            let part = Part::early(Arc::clone(&self.blob), start, end, slot);
            // All chunks of the part have room: its transfer ends whatever the consumer does.
            let room = usize::try_from(end - start).unwrap_or(usize::MAX) / GATHERED_BYTES + 2;
            let (sender, chunks) = mpsc::channel(room);
            let transfer = spawn("part of a blob", fetch(part, sender)).abort_handle();
            self.early.push_back(Early {
                end,
                chunks,
                transfer,
                _memory: memory,
            });
            self.planned = end;
        }
    }

    /// Leaves parts: a host may dislike several transfers at once, and one may still work.
    fn go_on_in_one(&mut self, error: Option<&RegistryError>) {
        let error = error.map(ToString::to_string);
        tracing::debug!(error, "a part of a blob failed, fetching the rest in one");
        self.early.clear();
        self.planned = self.blob.size;
        let blob = Arc::clone(&self.blob);
        let rest = Part::in_turn(blob, self.position, self.planned);
        self.turn = Turn::Streamed(Box::new(rest));
    }
}

/// Fetches a part whole; ends early when nobody wants it any more.
async fn fetch(mut part: Part, chunks: mpsc::Sender<Result<Bytes, RegistryError>>) {
    let mut gathered = BytesMut::new();
    loop {
        match part.next().await {
            Ok(Some(chunk)) if chunk.len() >= GATHERED_BYTES && gathered.is_empty() => {
                if chunks.send(Ok(chunk)).await.is_err() {
                    return;
                }
            }
            Ok(Some(chunk)) => {
                gathered.extend_from_slice(&chunk);
                if gathered.len() >= GATHERED_BYTES {
                    let full = gathered.split().freeze();
                    if chunks.send(Ok(full)).await.is_err() {
                        return;
                    }
                }
            }
            ended => {
                if !gathered.is_empty() && chunks.send(Ok(gathered.freeze())).await.is_err() {
                    return;
                }
                if let Err(error) = ended {
                    // Ignored: nobody wants it any more.
                    let _ = chunks.send(Err(error)).await;
                }
                return;
            }
        }
    }
}
