//! The bounded buffers between the threads of the unpack pipeline, readable as a stream.
//!
//! A stage that ends well sends [`Message::End`]; a stage that fails just goes away, which the
//! next one sees as "stopped" and ends quietly, so that only the cause is reported.

use std::io::{self, BufRead, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Size of one buffer.
pub(crate) const CHUNK: usize = 256 * 1024;
/// Buffers between two stages: enough to ride out one slow write, 1 MiB per border.
const DEPTH: usize = 4;

/// What travels between stages.
#[derive(Debug)]
pub(crate) enum Message {
    Bytes(Vec<u8>),
    End,
}

/// The receiving stage is gone.
#[derive(Debug)]
pub(crate) struct Stopped;

/// The sending side of a border.
#[derive(Debug)]
pub(crate) struct ChunkSender {
    to: SyncSender<Message>,
    /// Used buffers coming back.
    empties: Receiver<Vec<u8>>,
}

/// The receiving side of a border.
#[derive(Debug)]
pub(crate) struct ChunkReceiver {
    from: Receiver<Message>,
    empties: SyncSender<Vec<u8>>,
    current: Vec<u8>,
    position: usize,
    ended: bool,
    stopped: bool,
}

/// Makes a border between two stages.
pub(crate) fn border() -> (ChunkSender, ChunkReceiver) {
    let (to, from) = sync_channel(DEPTH);
    let (give_back, empties) = sync_channel(DEPTH + 2);
    let receiver = ChunkReceiver {
        from,
        empties: give_back,
        current: Vec::new(),
        position: 0,
        ended: false,
        stopped: false,
    };
    (ChunkSender { to, empties }, receiver)
}

impl ChunkSender {
    /// Returns a buffer to fill; what it holds is of no interest.
    pub(crate) fn buffer(&self) -> Vec<u8> {
        self.empties.try_recv().unwrap_or_default()
    }

    /// Passes a buffer on, waiting while the next stage is behind.
    pub(crate) fn send(&self, bytes: Vec<u8>) -> Result<(), Stopped> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.to.send(Message::Bytes(bytes)).map_err(|_| Stopped)
    }

    /// Tells the next stage that the stream is complete.
    pub(crate) fn end(self) -> Result<(), Stopped> {
        self.to.send(Message::End).map_err(|_| Stopped)
    }
}

impl ChunkReceiver {
    /// Returns the next whole buffer, or `None` at the end of a complete stream.
    fn next(&mut self) -> Result<Option<Vec<u8>>, Stopped> {
        match self.from.recv() {
            Ok(Message::Bytes(bytes)) => Ok(Some(bytes)),
            Ok(Message::End) => {
                self.ended = true;
                Ok(None)
            }
            Err(_) => {
                self.stopped = true;
                Err(Stopped)
            }
        }
    }

    /// Gives a used buffer back to the sender.
    fn recycle(&self, buffer: Vec<u8>) {
        // A full return lane only means that the buffer is freed instead.
        let _ = self.empties.try_send(buffer);
    }

    /// Tells whether the sender went away without completing the stream.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped
    }
}

impl BufRead for ChunkReceiver {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.position == self.current.len() && !self.ended {
            let used = std::mem::take(&mut self.current);
            if used.capacity() > 0 {
                self.recycle(used);
            }
            self.position = 0;
            match self.next() {
                Ok(bytes) => self.current = bytes.unwrap_or_default(),
                Err(Stopped) => return Err(io::Error::from(io::ErrorKind::BrokenPipe)),
            }
        }
        Ok(&self.current[self.position..])
    }

    fn consume(&mut self, amount: usize) {
        self.position += amount;
    }
}

impl Read for ChunkReceiver {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let amount = available.len().min(out.len());
        out[..amount].copy_from_slice(&available[..amount]);
        self.consume(amount);
        Ok(amount)
    }
}

/// Reads into a buffer, from its start, until it holds `target` bytes or the source ends; returns whether it
/// ended.
pub(crate) fn fill(source: &mut dyn Read, buffer: &mut Vec<u8>, target: usize) -> io::Result<bool> {
    let mut filled = 0;
    // A used buffer has its length already, and nothing is written twice.
    buffer.resize(target, 0);
    let outcome = loop {
        if filled == target {
            break Ok(false);
        }
        match source.read(&mut buffer[filled..]) {
            Ok(0) => break Ok(true),
            Ok(amount) => filled += amount,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => break Err(error),
        }
    };
    // What was read before an error counts: it is kept for the next attempt.
    buffer.truncate(filled);
    outcome
}
