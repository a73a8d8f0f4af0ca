//! A WebSocket client: whole messages, masked with zeros, which RFC 6455 allows.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use anyhow::{Context as _, Result, bail, ensure};

/// A message of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// A binary one.
    Binary(Vec<u8>),
    /// A text.
    Text(String),
    /// An answer to a ping.
    Pong(Vec<u8>),
    /// The server closes, with this code.
    Close(u16),
    /// The connection has ended.
    End,
}

/// A connection.
#[derive(Debug)]
pub struct WebSocket {
    socket: TcpStream,
}

impl WebSocket {
    /// Speaks over an upgraded connection.
    #[must_use]
    pub fn new(socket: TcpStream) -> Self {
        Self { socket }
    }

    /// The connection.
    #[must_use]
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Sends a binary message.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn binary(&mut self, bytes: &[u8]) -> Result<()> {
        send(&mut self.socket, 2, bytes)
    }

    /// Sends a frame with any opcode, the last of its message.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn frame(&mut self, opcode: u8, bytes: &[u8]) -> Result<()> {
        send(&mut self.socket, opcode, bytes)
    }

    /// The next message.
    ///
    /// # Errors
    /// The connection is broken or the server silent.
    pub fn receive(&mut self) -> Result<Message> {
        next(&mut self.socket)
    }
}

/// Sends one frame.
pub(super) fn send(socket: &mut TcpStream, opcode: u8, bytes: &[u8]) -> Result<()> {
    let mut frame = vec![0x80 | opcode];
    match (u8::try_from(bytes.len()), u16::try_from(bytes.len())) {
        (Ok(short), _) if short < 126 => frame.push(0x80 | short),
        (_, Ok(middle)) => {
            frame.push(0x80 | 126);
            frame.extend(middle.to_be_bytes());
        }
        _ => {
            frame.push(0x80 | 127);
            frame.extend(u64::try_from(bytes.len())?.to_be_bytes());
        }
    }
    frame.extend([0; 4]);
    frame.extend(bytes);
    socket.write_all(&frame).context("send a message")
}

/// Reads one message. The server sends each in one frame.
pub(super) fn next(socket: &mut TcpStream) -> Result<Message> {
    let mut head = [0; 2];
    match socket.read(&mut head[..1]).context("read a message")? {
        0 => return Ok(Message::End),
        _ => socket
            .read_exact(&mut head[1..])
            .context("read a message")?,
    }
    ensure!(head[0] & 0x80 != 0, "a fragment");
    ensure!(head[1] & 0x80 == 0, "a server masks nothing");
    let length = match head[1] {
        126 => {
            let mut bytes = [0; 2];
            socket.read_exact(&mut bytes)?;
            u64::from(u16::from_be_bytes(bytes))
        }
        127 => {
            let mut bytes = [0; 8];
            socket.read_exact(&mut bytes)?;
            u64::from_be_bytes(bytes)
        }
        short => u64::from(short),
    };
    ensure!(length <= 1 << 20, "a message of {length} bytes");
    let mut bytes = vec![0; usize::try_from(length)?];
    socket.read_exact(&mut bytes).context("read a message")?;
    Ok(match head[0] & 0x0f {
        1 => Message::Text(String::from_utf8(bytes).context("a text that is none")?),
        2 => Message::Binary(bytes),
        8 => {
            let code = bytes
                .first_chunk::<2>()
                .map(|code| u16::from_be_bytes(*code));
            Message::Close(code.unwrap_or_default())
        }
        10 => Message::Pong(bytes),
        other => bail!("a frame with opcode {other}"),
    })
}
