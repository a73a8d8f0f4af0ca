//! Exec and Attach over SPDY: a stream for each of error, stdin, stdout, stderr and resize.

use std::collections::HashMap;
use std::io;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot};

use super::{Channel, Host, Inlets, Link, StreamsAsked, Transmit, Verb, words};
use crate::cri::streaming::negotiate::Protocol;
use crate::cri::streaming::spdy::{Frame, Headers, header, reset};
use crate::cri::streaming::spdy_link::{FrameReader, FrameWriter};
use crate::cri::streaming::status::Ended;

/// Answers the reader may have waiting: a client that asks more and reads nothing waits.
const ANSWERS: usize = 16;

/// Serves one session.
pub(in crate::cri::streaming) async fn serve<S>(
    host: &Host<'_>,
    verb: Verb,
    protocol: Protocol,
    io: S,
) where
    S: AsyncRead + AsyncWrite + Send,
{
    let (from, to) = tokio::io::split(io);
    let (answers, control) = mpsc::channel(ANSWERS);
    let (all_open, opened) = oneshot::channel();
    let awaited = expected(verb.streams(), protocol);
    let link = Link {
        transmit: Streams {
            writer: FrameWriter::new(to),
            open: HashMap::new(),
            last: 0,
            protocol,
        },
        control,
        opened,
    };
    super::serve(host, verb, link, |inlets| async move {
        let reader = Reader {
            frames: FrameReader::new(from),
            inlets,
            answers,
            awaited,
            all_open: Some(all_open),
            open: HashMap::new(),
            last: 0,
        };
        if let Err(error) = reader.run().await {
            tracing::debug!(error = %error, "a client is gone");
        }
    })
    .await;
}

/// The streams a client opens before anything begins.
fn expected(asked: StreamsAsked, protocol: Protocol) -> Vec<Channel> {
    let resizes = asked.terminal && protocol != Protocol::ChannelV2;
    [
        (Channel::Error, true),
        (Channel::Stdin, asked.stdin),
        (Channel::Stdout, asked.stdout),
        (Channel::Stderr, asked.stderr && !asked.terminal),
        (Channel::Resize, resizes),
    ]
    .into_iter()
    .filter_map(|(channel, wanted)| wanted.then_some(channel))
    .collect()
}

fn channel_of(headers: &Headers) -> Option<Channel> {
    match header(headers, "streamtype")? {
        "error" => Some(Channel::Error),
        "stdin" => Some(Channel::Stdin),
        "stdout" => Some(Channel::Stdout),
        "stderr" => Some(Channel::Stderr),
        "resize" => Some(Channel::Resize),
        _ => None,
    }
}

/// What the reader has the writer send.
enum Answer {
    /// The stream is taken.
    Open(u32, Channel),
    /// The client wants no more of this one.
    Cancelled(u32),
    /// As it is.
    Frame(Frame),
}

struct Reader<R> {
    frames: FrameReader<R>,
    inlets: Inlets,
    answers: mpsc::Sender<Answer>,
    /// Streams that are still to be opened.
    awaited: Vec<Channel>,
    all_open: Option<oneshot::Sender<()>>,
    open: HashMap<u32, Channel>,
    last: u32,
}

impl<S: AsyncRead + AsyncWrite> Reader<ReadHalf<S>> {
    /// Reads until the client hangs up or breaks the protocol.
    async fn run(mut self) -> io::Result<()> {
        while let Some(frame) = self.frames.next().await? {
            match frame {
                Frame::SynStream {
                    stream,
                    fin,
                    headers,
                } => self.opened(stream, fin, &headers).await?,
                Frame::Data { stream, fin, bytes } => self.received(stream, fin, bytes).await?,
                Frame::RstStream { stream, .. } => {
                    if self.open.remove(&stream) == Some(Channel::Stdin) {
                        self.inlets.end_stdin();
                    }
                    self.answer(Answer::Cancelled(stream)).await;
                }
                // The client's pings are odd; an even one would answer ours, and we send none.
                Frame::Ping { id } if id % 2 == 1 => {
                    self.answer(Answer::Frame(Frame::Ping { id })).await;
                }
                Frame::GoAway { .. } => return Ok(()),
                Frame::Headers { stream, fin, .. } => {
                    self.received(stream, fin, Bytes::new()).await?;
                }
                Frame::Ping { .. }
                | Frame::SynReply { .. }
                | Frame::Settings { .. }
                | Frame::WindowUpdate { .. } => {}
            }
        }
        Ok(())
    }

    async fn opened(&mut self, stream: u32, fin: bool, headers: &Headers) -> io::Result<()> {
        // Ids are odd and grow (SPDY/3, 2.3.2); a second use of one is an attack or a defect.
        if stream.is_multiple_of(2) || stream <= self.last {
            let message = format!("SYN_STREAM with id {stream} after {}", self.last);
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        self.last = stream;
        let channel = channel_of(headers);
        let place = channel.and_then(|c| self.awaited.iter().position(|awaited| *awaited == c));
        let (Some(channel), Some(place)) = (channel, place) else {
            let code = reset::REFUSED_STREAM;
            let refusal = Frame::RstStream { stream, code };
            self.answer(Answer::Frame(refusal)).await;
            return Ok(());
        };
        self.awaited.swap_remove(place);
        self.open.insert(stream, channel);
        self.answer(Answer::Open(stream, channel)).await;
        if fin {
            self.ended(stream);
        }
        if self.awaited.is_empty()
            && let Some(all_open) = self.all_open.take()
        {
            // Ignored: a session that has ended needs no start.
            let _over = all_open.send(());
        }
        Ok(())
    }

    async fn received(&mut self, stream: u32, fin: bool, bytes: Bytes) -> io::Result<()> {
        match self.open.get(&stream) {
            Some(Channel::Stdin) => self.inlets.stdin(bytes).await?,
            Some(Channel::Resize) => self.inlets.resize(&bytes),
            // Nothing is expected there, and the bytes of a stream that was refused may be under way.
            Some(Channel::Stdout | Channel::Stderr | Channel::Error) | None => {}
        }
        if fin {
            self.ended(stream);
        }
        Ok(())
    }

    /// The client's half of a stream has ended.
    fn ended(&mut self, stream: u32) {
        if self.open.get(&stream) == Some(&Channel::Stdin) {
            self.inlets.end_stdin();
        }
    }

    async fn answer(&mut self, answer: Answer) {
        // Ignored: a writer that has ended has nothing to answer.
        let _over = self.answers.send(answer).await;
    }
}

/// The streams as the writer knows them.
struct Streams<W> {
    writer: FrameWriter<W>,
    open: HashMap<Channel, u32>,
    last: u32,
    protocol: Protocol,
}

impl<S: AsyncRead + AsyncWrite + Send> Transmit for Streams<WriteHalf<S>> {
    type Control = Answer;

    async fn control(&mut self, control: Answer) -> io::Result<()> {
        match control {
            Answer::Open(stream, channel) => {
                self.open.insert(channel, stream);
                self.last = stream;
                let reply = Frame::SynReply {
                    stream,
                    fin: false,
                    headers: Headers::new(),
                };
                self.writer.send(&reply).await
            }
            Answer::Cancelled(stream) => {
                self.open.retain(|_, open| *open != stream);
                Ok(())
            }
            Answer::Frame(frame) => self.writer.send(&frame).await,
        }
    }

    async fn output(&mut self, channel: Channel, bytes: Bytes) -> io::Result<()> {
        let Some(&stream) = self.open.get(&channel) else {
            return Ok(());
        };
        let fin = false;
        self.writer.send(&Frame::Data { stream, fin, bytes }).await
    }

    async fn end(&mut self, channel: Channel) -> io::Result<()> {
        let Some(stream) = self.open.remove(&channel) else {
            return Ok(());
        };
        let frame = Frame::Data {
            stream,
            fin: true,
            bytes: Bytes::new(),
        };
        self.writer.send(&frame).await
    }

    async fn finish(&mut self, ended: &Ended) -> io::Result<()> {
        if let Some(stream) = self.open.remove(&Channel::Error) {
            let frame = Frame::Data {
                stream,
                fin: true,
                bytes: words(self.protocol, ended),
            };
            self.writer.send(&frame).await?;
        }
        for channel in [Channel::Stdin, Channel::Resize] {
            self.end(channel).await?;
        }
        self.writer.close(self.last).await
    }
}
