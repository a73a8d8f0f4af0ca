//! SPDY frames over a connection: reading and writing them one by one.

use std::io;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::spdy::{Decoder, Encoder, Frame};

/// Bytes read at a time.
const CHUNK: usize = 16 << 10;

/// The receiving half.
#[derive(Debug)]
pub(super) struct FrameReader<R> {
    io: R,
    decoder: Decoder,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(super) fn new(io: R) -> Self {
        Self {
            io,
            decoder: Decoder::default(),
            buffer: BytesMut::new(),
        }
    }

    /// The next frame; `None` when the peer has closed. May be cancelled: what was read is in `self`.
    pub(super) async fn next(&mut self) -> io::Result<Option<Frame>> {
        loop {
            let frame = self.decoder.decode(&mut self.buffer);
            let frame = frame.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            if frame.is_some() {
                return Ok(frame);
            }
            self.buffer.reserve(CHUNK);
            if self.io.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }
}

/// The sending half. Its methods must not be cancelled: a part of a frame may be out then.
#[derive(Debug)]
pub(super) struct FrameWriter<W> {
    io: W,
    encoder: Encoder,
    buffer: BytesMut,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    pub(super) fn new(io: W) -> Self {
        Self {
            io,
            encoder: Encoder::default(),
            buffer: BytesMut::new(),
        }
    }

    /// Sends one frame.
    pub(super) async fn send(&mut self, frame: &Frame) -> io::Result<()> {
        self.buffer.clear();
        let encoded = self.encoder.encode(frame, &mut self.buffer);
        encoded.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        self.io.write_all(&self.buffer).await?;
        self.io.flush().await
    }

    /// Says that no stream is taken any more, and ends this half of the connection.
    pub(super) async fn close(&mut self, last_stream: u32) -> io::Result<()> {
        let code = 0;
        self.send(&Frame::GoAway { last_stream, code }).await?;
        self.io.shutdown().await
    }
}
