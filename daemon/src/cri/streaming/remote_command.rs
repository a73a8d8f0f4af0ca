//! A session of Exec or Attach over either wire: what both have in common.
//!
//! One task per session. The reader feeds input and sizes, the verb runs the process, the writer sends output
//! and, when all of it is out, how the session ended. Every queue between them is short, so that a process
//! waits for its client and a client for its process.

pub(super) mod over_spdy;
pub(super) mod over_websocket;

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot, watch};

use super::activity::Activity;
use super::line::Line;
use super::spdy::MAX_PIECE;
use super::status::{self, Ended};
use super::{CREATION, Idle, LINGER, WAITING};
use crate::domain::failure::{Class, Failure};
use crate::engine::Engine;
use crate::engine::attach::AttachOptions;
use crate::engine::exec::ExecOptions;
use crate::engine::session::{Session, StreamsAsked, TerminalSize, is_gone};

/// Most bytes of a size that is not complete yet.
const MAX_SIZE_TEXT: usize = 1024;

/// What a session is for.
#[derive(Debug)]
pub(super) enum Verb {
    Exec(ExecOptions),
    Attach(AttachOptions),
}

impl Verb {
    fn streams(&self) -> StreamsAsked {
        match self {
            Self::Exec(options) => options.streams,
            Self::Attach(options) => options.streams,
        }
    }
}

/// Where sessions run.
pub(super) struct Host<'a> {
    pub(super) engine: &'a Engine,
    pub(super) idle: Duration,
    pub(super) line: &'a Arc<Line>,
}

/// The streams of a session. The numbers are WebSocket's channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Channel {
    Stdin = 0,
    Stdout = 1,
    Stderr = 2,
    Error = 3,
    Resize = 4,
}

/// The sending half of a wire. Its methods are not cancelled.
pub(super) trait Transmit {
    /// What its reader has it send in between.
    type Control;
    /// Serves the reader.
    fn control(&mut self, control: Self::Control) -> impl Future<Output = io::Result<()>> + Send;
    /// Sends output; at most [`MAX_PIECE`] bytes.
    fn output(
        &mut self,
        channel: Channel,
        bytes: Bytes,
    ) -> impl Future<Output = io::Result<()>> + Send;
    /// Ends an output.
    fn end(&mut self, channel: Channel) -> impl Future<Output = io::Result<()>> + Send;
    /// Says how the session ended, and ends this half of the connection.
    fn finish(&mut self, ended: &Ended) -> impl Future<Output = io::Result<()>> + Send;
}

/// What a wire has besides its reader.
pub(super) struct Link<T: Transmit> {
    pub(super) transmit: T,
    pub(super) control: mpsc::Receiver<T::Control>,
    /// Told when the client has opened all its streams.
    pub(super) opened: oneshot::Receiver<()>,
}

/// Where a reader puts what comes in.
#[derive(Debug)]
pub(super) struct Inlets {
    stdin: Option<mpsc::Sender<Bytes>>,
    resize: Option<watch::Sender<Option<TerminalSize>>>,
    size_text: Vec<u8>,
    idle: Idle,
    line: Arc<Line>,
}

impl Inlets {
    /// Waits until the process has room for it. A process that reads no more loses it.
    ///
    /// # Errors
    /// The client is gone before there was room.
    pub(super) async fn stdin(&mut self, mut bytes: Bytes) -> io::Result<()> {
        self.idle.touch();
        let Some(stdin) = &self.stdin else {
            return Ok(());
        };
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(MAX_PIECE));
            if !self.line.pass(stdin, piece).await? {
                self.stdin = None;
                break;
            }
        }
        Ok(())
    }

    /// The client has no more input.
    pub(super) fn end_stdin(&mut self) {
        self.stdin = None;
    }

    /// A stream of JSON objects; only the newest size counts.
    pub(super) fn resize(&mut self, bytes: &[u8]) {
        self.idle.touch();
        let Some(resize) = &self.resize else { return };
        self.size_text.extend_from_slice(bytes);
        let (size, rest) = newest_size(&self.size_text);
        self.size_text.drain(..rest);
        // What is no size and grows is given up.
        if self.size_text.len() > MAX_SIZE_TEXT {
            self.size_text.clear();
        }
        if size.is_some() {
            resize.send_replace(size);
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SizeText {
    width: u16,
    height: u16,
}

/// The last complete size, and how many bytes are done with.
pub(super) fn newest_size(text: &[u8]) -> (Option<TerminalSize>, usize) {
    let mut newest = None;
    let mut sizes = serde_json::Deserializer::from_slice(text).into_iter::<SizeText>();
    let mut done = 0;
    while let Some(size) = sizes.next() {
        match size {
            Ok(SizeText { width, height }) => {
                newest = Some(TerminalSize {
                    columns: width,
                    rows: height,
                });
                done = sizes.byte_offset();
            }
            // The rest comes with the next piece.
            Err(error) if error.is_eof() => return (newest, done),
            Err(_) => return (newest, text.len()),
        }
    }
    (newest, text.len())
}

/// Runs a session to its end. `read` reads the wire until the client is gone.
pub(super) async fn serve<T, R>(
    host: &Host<'_>,
    verb: Verb,
    link: Link<T>,
    read: impl FnOnce(Inlets) -> R,
) where
    T: Transmit,
    R: Future<Output = ()>,
{
    let asked = verb.streams();
    let idle: Idle = Arc::new(Activity::new());
    let (gone, gone_seen) = watch::channel(false);
    let (stdin, input) = queue(asked.stdin);
    let (stdout, out) = queue(asked.stdout);
    let (stderr, err) = queue(asked.stderr && !asked.terminal);
    let (resize, sizes) = watch::channel(None);
    let reader = read(Inlets {
        stdin,
        resize: asked.terminal.then_some(resize),
        size_text: Vec::new(),
        idle: Arc::clone(&idle),
        line: Arc::clone(host.line),
    });
    let session = Session {
        stdin: input,
        stdout,
        stderr,
        resize: asked.terminal.then_some(sizes),
        gone: gone_seen,
    };
    let Link {
        transmit,
        control,
        opened,
    } = link;
    let (tell, ended) = oneshot::channel();
    let work = async {
        let ended = run(host.engine, &verb, opened, session).await;
        // Ignored: a writer whose client is gone has no use for it.
        let _unheard = tell.send(ended);
    };
    let writer = Writer {
        transmit,
        control,
        outputs: [(Channel::Stdout, out), (Channel::Stderr, err)],
        idle: Arc::clone(&idle),
    };
    let left = gone.subscribe();
    let writing = async {
        tokio::select! {
            written = writer.run(ended) => if let Err(error) = written {
                tracing::debug!(error = %error, "a client is gone");
                gone.send_replace(true);
            },
            // A client that is gone, or reads nothing for too long, must not hold what it does not take.
            () = is_gone(left) => {}
        }
    };
    let session = async { tokio::join!(work, writing) };
    tokio::pin!(session, reader);
    let over = tokio::select! {
        _done = &mut session => true,
        () = &mut reader => false,
        () = idle.idle(host.idle) => {
            tracing::info!(limit = ?host.idle, "a streaming session in which nothing moves is ended");
            false
        }
    };
    if over {
        // Order: reading until the client hangs up. Closing with input unread would reset the connection
        // and take output with it that the client has not read yet.
        let _silent = tokio::time::timeout(LINGER, reader).await;
    } else {
        gone.send_replace(true);
        // Bounded: the verb ends what it began when its client is gone.
        session.await;
    }
}

/// A queue, if the stream is asked for.
fn queue(wanted: bool) -> (Option<mpsc::Sender<Bytes>>, Option<mpsc::Receiver<Bytes>>) {
    if wanted {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Some(sender), Some(receiver))
    } else {
        (None, None)
    }
}

async fn run(
    engine: &Engine,
    verb: &Verb,
    opened: oneshot::Receiver<()>,
    session: Session,
) -> Ended {
    if !matches!(tokio::time::timeout(CREATION, opened).await, Ok(Ok(()))) {
        return Err(Failure::new(
            Class::DeadlineExceeded,
            format!("the client has not opened its streams within {CREATION:?}"),
        ));
    }
    match verb {
        Verb::Exec(options) => engine.exec(options, session).await,
        Verb::Attach(options) => engine.attach(options, session).await.map(|()| 0),
    }
}

/// Sends what there is to send, then how it ended.
struct Writer<T: Transmit> {
    transmit: T,
    control: mpsc::Receiver<T::Control>,
    outputs: [(Channel, Option<mpsc::Receiver<Bytes>>); 2],
    idle: Idle,
}

impl<T: Transmit> Writer<T> {
    async fn run(mut self, mut ended: oneshot::Receiver<Ended>) -> io::Result<()> {
        let mut result: Option<Ended> = None;
        let [(_, out), (_, err)] = &mut self.outputs;
        loop {
            if let (None, None, Some(result)) = (&out, &err, &result) {
                return self.transmit.finish(result).await;
            }
            // Each branch only receives, which may be cancelled; what it received is sent below.
            let (channel, piece) = tokio::select! {
                biased;
                Some(control) = self.control.recv() => {
                    self.transmit.control(control).await?;
                    continue;
                }
                piece = receive(out) => (Channel::Stdout, piece),
                piece = receive(err) => (Channel::Stderr, piece),
                told = &mut ended, if result.is_none() => {
                    let vanished = |_| Err(Failure::new(Class::Internal, "the session vanished"));
                    result = Some(told.unwrap_or_else(vanished));
                    continue;
                }
            };
            match piece {
                Some(bytes) => {
                    self.idle.touch();
                    self.transmit.output(channel, bytes).await?;
                }
                None => {
                    match channel {
                        Channel::Stdout => *out = None,
                        _ => *err = None,
                    }
                    self.transmit.end(channel).await?;
                }
            }
        }
    }
}

/// The next piece; never, when there is no such stream.
async fn receive(queue: &mut Option<mpsc::Receiver<Bytes>>) -> Option<Bytes> {
    match queue {
        Some(queue) => queue.recv().await,
        None => std::future::pending().await,
    }
}

/// How a session ended, as this version of the protocol writes it.
fn words(protocol: super::negotiate::Protocol, ended: &Ended) -> Bytes {
    use super::negotiate::Protocol::{ChannelV2, ChannelV3};
    match protocol {
        ChannelV2 | ChannelV3 => status::text(ended),
        _ => status::json(ended),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_size_counts_and_a_torn_one_waits() {
        let size = |columns, rows| Some(TerminalSize { columns, rows });
        for (text, expect) in [
            ("{\"Width\":80,\"Height\":24}\n", (size(80, 24), 25)),
            (
                "{\"Width\":80,\"Height\":24}{\"Width\":81,\"Height\":25}",
                (size(81, 25), 48),
            ),
            ("{\"Width\":80,\"Hei", (None, 0)),
            ("{\"Width\":80,\"Height\":24}{\"Wi", (size(80, 24), 24)),
            ("{\"Width\":70000,\"Height\":24}", (None, 27)),
            ("what?", (None, 5)),
            ("", (None, 0)),
        ] {
            assert_eq!(newest_size(text.as_bytes()), expect, "{text}");
        }
    }

    #[tokio::test]
    async fn input_comes_in_pieces_and_a_stream_of_nonsense_sizes_is_bounded() {
        let (_client, server) = crate::cri::streaming::line::tests::pair().await;
        let (stdin, mut input) = queue(true);
        let (resize, sizes) = watch::channel(None);
        let mut inlets = Inlets {
            stdin,
            resize: Some(resize),
            size_text: Vec::new(),
            idle: Arc::new(Activity::new()),
            line: Arc::new(Line::watch(&server).unwrap()),
        };
        let input_bytes = Bytes::from(vec![1; MAX_PIECE + 1]);
        inlets.stdin(input_bytes).await.unwrap();
        let mut input = input.take().unwrap();
        assert_eq!(input.recv().await.unwrap().len(), MAX_PIECE);
        assert_eq!(input.recv().await.unwrap().len(), 1);
        for _ in 0..1000 {
            inlets.resize(b"{\"Width\":   ");
            assert!(inlets.size_text.len() <= MAX_SIZE_TEXT);
        }
        inlets.size_text.clear();
        inlets.resize(b"{\"Width\":1,");
        inlets.resize(b"\"Height\":2}");
        let expect = TerminalSize {
            columns: 1,
            rows: 2,
        };
        assert_eq!(*sizes.borrow(), Some(expect));
    }
}
