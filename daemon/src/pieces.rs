//! Streams of bytes between async code and blocking code, in pieces through a bounded channel.

use std::io::{self, Read, Write};

use bytes::Bytes;
use tokio::sync::mpsc;

/// Pieces that wait in a channel: with pieces of some tens of KiB a few MiB at most.
pub const WAITING: usize = 64;
/// Size of a piece that is written.
const PIECE: usize = 128 * 1024;

/// A piece, or why there are no more.
pub type Piece = io::Result<Bytes>;

/// The pieces of a channel as a blocking reader; the channel's end is the end of the stream.
#[derive(Debug)]
pub struct PieceReader {
    pieces: mpsc::Receiver<Piece>,
    piece: Bytes,
}

impl PieceReader {
    /// Reads from this channel.
    #[must_use]
    pub fn new(pieces: mpsc::Receiver<Piece>) -> Self {
        Self {
            pieces,
            piece: Bytes::new(),
        }
    }
}

impl Read for PieceReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                None => return Ok(0),
                Some(piece) => self.piece = piece?,
            }
        }
        let count = buffer.len().min(self.piece.len());
        buffer[..count].copy_from_slice(&self.piece.split_to(count));
        Ok(count)
    }
}

/// A blocking writer into a channel.
#[derive(Debug)]
pub struct PieceWriter {
    pieces: mpsc::Sender<Piece>,
    piece: Vec<u8>,
}

impl PieceWriter {
    /// Writes to this channel.
    #[must_use]
    pub fn new(pieces: mpsc::Sender<Piece>) -> Self {
        Self {
            pieces,
            piece: Vec::new(),
        }
    }

    fn send(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = Bytes::from(std::mem::take(&mut self.piece));
        self.pieces
            .blocking_send(Ok(piece))
            .map_err(|_gone| io::Error::from(io::ErrorKind::BrokenPipe))
    }
}

impl Write for PieceWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let amount = bytes.len().min(PIECE - self.piece.len());
        self.piece.extend_from_slice(&bytes[..amount]);
        if self.piece.len() == PIECE {
            self.send()?;
        }
        Ok(amount)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let (sender, receiver) = mpsc::channel(2);
        let content: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
        let written = content.clone();
        let writer = std::thread::spawn(move || {
            let mut writer = PieceWriter::new(sender);
            writer.write_all(&written)?;
            writer.flush()
        });
        let mut read = Vec::new();
        PieceReader::new(receiver).read_to_end(&mut read).unwrap();
        writer.join().unwrap().unwrap();
        assert!(read == content);
    }

    #[test]
    fn who_writes_learns_that_nobody_reads() {
        let (sender, receiver) = mpsc::channel(1);
        drop(receiver);
        let mut writer = PieceWriter::new(sender);
        let error = writer.write_all(&[0; 2 * PIECE]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
