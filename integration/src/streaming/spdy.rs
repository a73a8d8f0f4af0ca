//! A SPDY/3.1 client: what it sends is deflated without the dictionary, which zlib allows; headers of the
//! server are not looked at.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use anyhow::{Context as _, Result, bail, ensure};
use flate2::{Compress, Compression, FlushCompress};

/// A frame of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Bytes of a stream, and whether they are the last.
    Bytes(u32, Vec<u8>, bool),
    /// The stream is taken.
    Reply(u32),
    /// The stream is ended, with this code.
    Reset(u32, u32),
    /// An answer to a ping.
    Ping(u32),
    /// No more streams are taken.
    GoAway,
    /// The server has closed.
    End,
}

/// A connection.
#[derive(Debug)]
pub struct Spdy {
    socket: TcpStream,
    zlib: Compress,
    next: u32,
}

impl Spdy {
    /// Speaks over an upgraded connection.
    #[must_use]
    pub fn new(socket: TcpStream) -> Self {
        Self {
            socket,
            zlib: Compress::new(Compression::fast(), true),
            next: 1,
        }
    }

    /// The connection.
    #[must_use]
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Opens a stream and answers its number.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn open(&mut self, headers: &[(&str, &str)]) -> Result<u32> {
        let stream = self.next;
        self.next += 2;
        let mut text = number(headers.len());
        for part in headers.iter().flat_map(|(name, value)| [name, value]) {
            text.extend(number(part.len()));
            text.extend(part.as_bytes());
        }
        let mut block = Vec::with_capacity(text.len() + 1024);
        self.zlib
            .compress_vec(&text, &mut block, FlushCompress::Sync)?;
        let mut payload = stream.to_be_bytes().to_vec();
        payload.extend([0; 6]);
        payload.extend(block);
        self.control(1, &payload)?;
        Ok(stream)
    }

    /// Sends bytes of a stream; with `fin` they are the last.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn send(&mut self, stream: u32, bytes: &[u8], fin: bool) -> Result<()> {
        send(&mut self.socket, stream, bytes, fin)
    }

    /// Ends a stream both ways.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn reset(&mut self, stream: u32) -> Result<()> {
        let mut payload = stream.to_be_bytes().to_vec();
        payload.extend(5u32.to_be_bytes());
        self.control(3, &payload)
    }

    /// Asks for an answer.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn ping(&mut self, id: u32) -> Result<()> {
        self.control(6, &id.to_be_bytes())
    }

    /// Sends a control frame with any payload.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn control(&mut self, kind: u16, payload: &[u8]) -> Result<()> {
        let mut frame = vec![0x80, 3];
        frame.extend(kind.to_be_bytes());
        frame.extend(number(payload.len()));
        frame.extend(payload);
        self.socket.write_all(&frame).context("send a frame")
    }

    /// The next frame that means something.
    ///
    /// # Errors
    /// The connection is broken or the server silent.
    pub fn receive(&mut self) -> Result<Frame> {
        next(&mut self.socket)
    }
}

/// Sends bytes of a stream.
pub(super) fn send(socket: &mut TcpStream, stream: u32, bytes: &[u8], fin: bool) -> Result<()> {
    let mut frame = stream.to_be_bytes().to_vec();
    let mut length = number(bytes.len());
    length[0] = u8::from(fin);
    frame.extend(length);
    frame.extend(bytes);
    socket.write_all(&frame).context("send bytes")
}

/// Reads the next frame that means something.
pub(super) fn next(socket: &mut TcpStream) -> Result<Frame> {
    loop {
        let mut head = [0; 8];
        match socket.read(&mut head[..1]).context("read a frame")? {
            0 => return Ok(Frame::End),
            _ => socket.read_exact(&mut head[1..]).context("read a frame")?,
        }
        let [a, b, c, d, flags, length @ ..] = head;
        let length = u32::from_be_bytes([0, length[0], length[1], length[2]]);
        ensure!(length <= 1 << 20, "a frame of {length} bytes");
        let mut payload = vec![0; usize::try_from(length)?];
        socket.read_exact(&mut payload).context("read a payload")?;
        if a & 0x80 == 0 {
            let stream = u32::from_be_bytes([a, b, c, d]);
            return Ok(Frame::Bytes(stream, payload, flags & 1 != 0));
        }
        ensure!((a, b) == (0x80, 3), "SPDY version {}", b);
        let word = |at: usize| -> Result<u32> {
            let bytes = payload.get(at..at + 4).context("a short payload")?;
            Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
        };
        match u16::from_be_bytes([c, d]) {
            2 => return Ok(Frame::Reply(word(0)?)),
            3 => return Ok(Frame::Reset(word(0)?, word(4)?)),
            6 => return Ok(Frame::Ping(word(0)?)),
            7 => return Ok(Frame::GoAway),
            4 | 9 => {}
            other => bail!("a frame of type {other}"),
        }
    }
}

fn number(value: usize) -> Vec<u8> {
    u32::try_from(value)
        .unwrap_or(u32::MAX)
        .to_be_bytes()
        .to_vec()
}
