//! A client of exec and attach, over either wire.

use std::net::TcpStream;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::spdy::{self, Frame, Spdy};
use super::websocket::{self, Message};
use super::{Wire, reset, upgrade};

/// The streams of a session; the numbers are WebSocket's channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// To the process.
    Stdin = 0,
    /// From the process.
    Stdout = 1,
    /// From the process.
    Stderr = 2,
    /// How it ended.
    Error = 3,
    /// Sizes of the terminal.
    Resize = 4,
}

impl Channel {
    const ALL: [Self; 5] = [
        Self::Error,
        Self::Stdin,
        Self::Stdout,
        Self::Stderr,
        Self::Resize,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Stdin => "stdin",
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Error => "error",
            Self::Resize => "resize",
        }
    }
}

/// Which streams a session has.
#[derive(Debug, Clone, Copy, Default)]
pub struct Streams {
    /// Input.
    pub stdin: bool,
    /// A terminal, and so no standard error.
    pub tty: bool,
}

impl Streams {
    fn has(self, channel: Channel) -> bool {
        match channel {
            Channel::Stdin => self.stdin,
            Channel::Stdout | Channel::Error => true,
            Channel::Stderr => !self.tty,
            Channel::Resize => self.tty,
        }
    }
}

/// What the server says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Bytes of a stream.
    Bytes(Channel, Vec<u8>),
    /// It has closed.
    End,
}

/// A session, whole.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// What came on the error stream.
    pub status: Value,
}

impl Ended {
    /// Standard output, trimmed.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim().to_owned()
    }

    /// The exit code in the status; `None` when the session failed otherwise.
    #[must_use]
    pub fn exit_code(&self) -> Option<i32> {
        if self.status["status"] == "Success" {
            return Some(0);
        }
        let cause = &self.status["details"]["causes"][0];
        (cause["reason"] == "ExitCode").then(|| cause["message"].as_str()?.parse().ok())?
    }
}

/// A session of exec or attach.
#[derive(Debug)]
pub struct Remote {
    /// To the server; may be used by another thread.
    pub sender: Sender,
    /// From the server.
    pub receiver: Receiver,
}

/// The sending half.
#[derive(Debug)]
pub struct Sender {
    socket: TcpStream,
    wire: Wire,
    streams: Vec<(Channel, u32)>,
}

/// The receiving half.
#[derive(Debug)]
pub struct Receiver {
    socket: TcpStream,
    wire: Wire,
    streams: Vec<(Channel, u32)>,
}

impl Remote {
    /// Opens a session at a URL.
    ///
    /// # Errors
    /// The server does not upgrade or take a stream.
    pub fn open(url: &str, wire: Wire, streams: Streams) -> Result<Self> {
        let protocols = match wire {
            Wire::Spdy => ["v4.channel.k8s.io", "v3.channel.k8s.io"],
            Wire::WebSocket => ["v5.channel.k8s.io", "v4.channel.k8s.io"],
        };
        let socket = upgrade(url, wire, &protocols)?;
        let mut opened = Vec::new();
        let socket = match wire {
            Wire::WebSocket => socket,
            Wire::Spdy => {
                let mut spdy = Spdy::new(socket);
                for channel in Channel::ALL.into_iter().filter(|c| streams.has(*c)) {
                    let stream = spdy.open(&[("streamtype", channel.name())])?;
                    match spdy.receive()? {
                        Frame::Reply(taken) if taken == stream => opened.push((channel, stream)),
                        other => bail!("{channel:?}: {other:?}"),
                    }
                }
                spdy.socket().try_clone().context("share the socket")?
            }
        };
        let share = || socket.try_clone().context("share the socket");
        Ok(Self {
            sender: Sender {
                socket: share()?,
                wire,
                streams: opened.clone(),
            },
            receiver: Receiver {
                socket: share()?,
                wire,
                streams: opened,
            },
        })
    }

    /// Reads to the end.
    ///
    /// # Errors
    /// The connection breaks, or nothing comes any more.
    pub fn finish(mut self) -> Result<Ended> {
        self.receiver.finish()
    }

    /// Breaks the connection off.
    ///
    /// # Errors
    /// The socket does not take the option.
    pub fn reset(self) -> Result<()> {
        reset(&self.sender.socket)
    }
}

impl Sender {
    fn stream(&self, channel: Channel) -> Result<u32> {
        let found = self.streams.iter().find(|(known, _)| *known == channel);
        found
            .map(|(_, stream)| *stream)
            .with_context(|| format!("no {channel:?}"))
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn send(&mut self, channel: Channel, bytes: &[u8]) -> Result<()> {
        match self.wire {
            Wire::Spdy => {
                let stream = self.stream(channel)?;
                spdy::send(&mut self.socket, stream, bytes, false)
            }
            Wire::WebSocket => {
                let message = [&[channel as u8], bytes].concat();
                websocket::send(&mut self.socket, 2, &message)
            }
        }
    }

    /// Ends the input.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn end_stdin(&mut self) -> Result<()> {
        match self.wire {
            Wire::Spdy => {
                let stream = self.stream(Channel::Stdin)?;
                spdy::send(&mut self.socket, stream, &[], true)
            }
            Wire::WebSocket => websocket::send(&mut self.socket, 2, &[255, 0]),
        }
    }

    /// Sets the size of the terminal.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn resize(&mut self, columns: u16, rows: u16) -> Result<()> {
        let size = format!("{{\"Width\":{columns},\"Height\":{rows}}}\n");
        self.send(Channel::Resize, size.as_bytes())
    }
}

impl Receiver {
    /// What comes next.
    ///
    /// # Errors
    /// The connection breaks, or nothing comes any more.
    pub fn receive(&mut self) -> Result<Event> {
        loop {
            match self.wire {
                Wire::Spdy => match spdy::next(&mut self.socket)? {
                    Frame::Bytes(stream, bytes, _) => {
                        let known = self.streams.iter().find(|(_, known)| *known == stream);
                        let channel = known.context("bytes of an unknown stream")?.0;
                        return Ok(Event::Bytes(channel, bytes));
                    }
                    Frame::End => return Ok(Event::End),
                    Frame::GoAway | Frame::Ping(_) => {}
                    other => bail!("{other:?}"),
                },
                Wire::WebSocket => match websocket::next(&mut self.socket)? {
                    Message::Binary(mut bytes) if !bytes.is_empty() => {
                        let payload = bytes.split_off(1);
                        let channel = Channel::ALL.into_iter().find(|c| *c as u8 == bytes[0]);
                        let channel = channel.context("bytes of an unknown channel")?;
                        return Ok(Event::Bytes(channel, payload));
                    }
                    Message::Close(1000) => {
                        // The server waits for the same.
                        websocket::send(&mut self.socket, 8, &1000u16.to_be_bytes())?;
                    }
                    Message::End => return Ok(Event::End),
                    Message::Pong(_) => {}
                    other => bail!("{other:?}"),
                },
            }
        }
    }

    /// Reads until standard output holds `text`; answers all of it. What comes of standard error meanwhile is passed
    /// over.
    ///
    /// # Errors
    /// The session ends before.
    pub fn until(&mut self, text: &str) -> Result<String> {
        let mut seen = Vec::new();
        loop {
            match self.receive()? {
                Event::Bytes(Channel::Stdout, bytes) => seen.extend(bytes),
                Event::Bytes(Channel::Stderr, _) => {}
                // A stream that ended.
                Event::Bytes(_, bytes) if bytes.is_empty() => {}
                Event::Bytes(channel, bytes) => {
                    bail!("{channel:?}: {}", String::from_utf8_lossy(&bytes))
                }
                Event::End => bail!("ended after {:?}", String::from_utf8_lossy(&seen)),
            }
            let seen = String::from_utf8_lossy(&seen);
            if seen.contains(text) {
                return Ok(seen.into_owned());
            }
        }
    }

    /// Reads to the end.
    ///
    /// # Errors
    /// The connection breaks, or nothing comes any more.
    pub fn finish(&mut self) -> Result<Ended> {
        let mut ended = Ended::default();
        let mut status = Vec::new();
        loop {
            match self.receive()? {
                Event::Bytes(Channel::Stdout, bytes) => ended.stdout.extend(bytes),
                Event::Bytes(Channel::Stderr, bytes) => ended.stderr.extend(bytes),
                Event::Bytes(Channel::Error, bytes) => status.extend(bytes),
                // A stream that ended.
                Event::Bytes(_, bytes) if bytes.is_empty() => {}
                Event::Bytes(channel, _) => bail!("bytes on {channel:?}"),
                Event::End => break,
            }
        }
        ended.status = serde_json::from_slice(&status)
            .with_context(|| format!("status {:?}", String::from_utf8_lossy(&status)))?;
        Ok(ended)
    }
}
