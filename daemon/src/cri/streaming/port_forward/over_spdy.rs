//! Forwarding over SPDY: a pair of streams for each connection, one for bytes and one for what goes wrong.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadHalf};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Host;
use super::connections::{Gone, Said, forward};
use crate::cri::streaming::activity::Activity;
use crate::cri::streaming::line::Line;
use crate::cri::streaming::spdy::{Frame, Headers, header, reset};
use crate::cri::streaming::spdy_link::{FrameReader, FrameWriter};
use crate::cri::streaming::{CREATION, Idle, LINGER, MAX_STREAMS, WAITING};
use crate::engine::Engine;

/// Frames that wait for the connection, each at most 32 KiB.
const FRAMES: usize = 16;

/// Serves one session.
pub(super) async fn serve<S>(host: &Host<'_>, pod: &str, io: S)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let limit = host.idle;
    let idle: Idle = Arc::new(Activity::new());
    let (from, to) = tokio::io::split(io);
    let (frames, mut queue) = mpsc::channel::<Frame>(FRAMES);
    let writer = async move {
        let mut writer = FrameWriter::new(to);
        let mut last = 0;
        while let Some(frame) = queue.recv().await {
            if let Frame::SynReply { stream, .. } = &frame {
                last = *stream;
            }
            writer.send(&frame).await?;
        }
        writer.close(last).await
    };
    let session = Session {
        engine: host.engine.clone(),
        line: Arc::clone(host.line),
        pod: pod.to_owned(),
        reader: FrameReader::new(from),
        frames,
        idle: Arc::clone(&idle),
        halves: HashMap::new(),
        inputs: HashMap::new(),
        early: HashMap::new(),
        connections: JoinSet::new(),
        last: 0,
    };
    let reading = async {
        tokio::select! {
            result = session.run() => result,
            () = idle.idle(limit) => {
                tracing::info!(?limit, "a port-forward session in which nothing moves is ended");
                Ok(())
            }
        }
    };
    tokio::pin!(reading, writer);
    let ended = tokio::select! {
        // The session's connections end with it: their sockets close, and the queue as well.
        result = &mut reading => match result {
            Ok(()) => tokio::time::timeout(LINGER, writer).await.unwrap_or(Ok(())),
            Err(error) => Err(error),
        },
        result = &mut writer => result,
    };
    if let Err(error) = ended {
        tracing::debug!(error = %error, "a port-forward session broke");
    }
}

/// A connection of which one stream is open.
struct Half {
    stream: u32,
    is_error: bool,
    port: u16,
    since: Instant,
}

struct Session<R> {
    engine: Engine,
    line: Arc<Line>,
    pod: String,
    reader: FrameReader<R>,
    frames: mpsc::Sender<Frame>,
    idle: Idle,
    /// By the client's id of the connection.
    halves: HashMap<String, Half>,
    /// Where the bytes of a stream go.
    inputs: HashMap<u32, mpsc::Sender<Bytes>>,
    /// What came in for a stream whose other half is not there yet.
    early: HashMap<u32, mpsc::Receiver<Bytes>>,
    connections: JoinSet<()>,
    last: u32,
}

impl<S: AsyncRead + AsyncWrite> Session<ReadHalf<S>> {
    /// Reads until the client hangs up or breaks the protocol. Dropping it ends the connections.
    async fn run(mut self) -> io::Result<()> {
        while let Some(frame) = self.reader.next().await? {
            match frame {
                Frame::SynStream {
                    stream,
                    fin,
                    headers,
                } => self.opened(stream, fin, &headers).await?,
                Frame::Data { stream, fin, bytes } => {
                    if let Some(input) = self.inputs.get(&stream)
                        && !bytes.is_empty()
                        && !self.line.pass(input, bytes).await?
                    {
                        // The connection is over; what is still under way for it is not wanted.
                        self.inputs.remove(&stream);
                    }
                    if fin {
                        self.inputs.remove(&stream);
                    }
                }
                Frame::RstStream { stream, .. }
                | Frame::Headers {
                    stream, fin: true, ..
                } => {
                    self.inputs.remove(&stream);
                }
                Frame::Ping { id } if id % 2 == 1 => self.send(Frame::Ping { id }).await?,
                Frame::GoAway { .. } => return Ok(()),
                Frame::Ping { .. }
                | Frame::Headers { .. }
                | Frame::SynReply { .. }
                | Frame::Settings { .. }
                | Frame::WindowUpdate { .. } => {}
            }
        }
        Ok(())
    }

    async fn send(&mut self, frame: Frame) -> io::Result<()> {
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        self.frames.send(frame).await.map_err(gone)
    }

    async fn refuse(&mut self, stream: u32, code: u32) -> io::Result<()> {
        self.send(Frame::RstStream { stream, code }).await
    }

    async fn opened(&mut self, stream: u32, fin: bool, headers: &Headers) -> io::Result<()> {
        if stream.is_multiple_of(2) || stream <= self.last {
            let message = format!("SYN_STREAM with id {stream} after {}", self.last);
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        self.last = stream;
        self.tidy().await?;
        let Some(half) = read_half(stream, headers) else {
            return self.refuse(stream, reset::PROTOCOL_ERROR).await;
        };
        let open = self.connections.len() + self.halves.len();
        if open * 2 >= usize::try_from(MAX_STREAMS).unwrap_or(usize::MAX) {
            return self.refuse(stream, reset::REFUSED_STREAM).await;
        }
        let id = request_id(&half, headers);
        let reply = Frame::SynReply {
            stream,
            fin: false,
            headers: Headers::new(),
        };
        self.send(reply).await?;
        let (input, from) = mpsc::channel(WAITING);
        if !half.is_error && !fin {
            self.inputs.insert(stream, input);
        }
        match self.halves.remove(&id) {
            None => {
                // Bytes that come before the other stream does wait in the queue.
                if !half.is_error {
                    self.early.insert(stream, from);
                }
                self.halves.insert(id, half);
                Ok(())
            }
            Some(other) if other.is_error != half.is_error && other.port == half.port => {
                let (data, error) = if half.is_error {
                    (other.stream, stream)
                } else {
                    (stream, other.stream)
                };
                let from = if half.is_error {
                    self.early.remove(&data).unwrap_or(from)
                } else {
                    from
                };
                self.begin(half.port, data, error, from);
                Ok(())
            }
            Some(other) => {
                self.inputs.remove(&stream);
                self.refuse(other.stream, reset::PROTOCOL_ERROR).await?;
                self.refuse(stream, reset::PROTOCOL_ERROR).await
            }
        }
    }

    /// Forgets connections that are over, and halves whose other half does not come.
    async fn tidy(&mut self) -> io::Result<()> {
        while self.connections.try_join_next().is_some() {}
        let late = |half: &Half| half.since.elapsed() > CREATION;
        let old: Vec<u32> = self
            .halves
            .values()
            .filter(|h| late(h))
            .map(|h| h.stream)
            .collect();
        self.halves.retain(|_, half| !late(half));
        for stream in old {
            self.inputs.remove(&stream);
            self.early.remove(&stream);
            self.refuse(stream, reset::CANCEL).await?;
        }
        self.inputs.retain(|_, input| !input.is_closed());
        Ok(())
    }

    fn begin(&mut self, port: u16, data: u32, error: u32, from: mpsc::Receiver<Bytes>) {
        let (engine, pod) = (self.engine.clone(), self.pod.clone());
        let (frames, idle) = (self.frames.clone(), Arc::clone(&self.idle));
        self.connections.spawn(async move {
            let say = |said| say(&frames, data, error, said);
            forward(&engine, &pod, port, from, &idle, say).await;
        });
    }
}

/// Sends what a connection says on its two streams.
async fn say(frames: &mpsc::Sender<Frame>, data: u32, error: u32, said: Said) -> Result<(), Gone> {
    let frame = |stream, fin, bytes| Frame::Data { stream, fin, bytes };
    let out = match said {
        Said::Bytes(bytes) => vec![frame(data, false, bytes)],
        Said::End => vec![frame(data, true, Bytes::new())],
        // Order: a client looks at the error stream when the other one has ended.
        Said::Over(None) => vec![frame(error, true, Bytes::new())],
        Said::Over(Some(problem)) => vec![
            frame(error, true, Bytes::from(problem)),
            frame(data, true, Bytes::new()),
        ],
    };
    for frame in out {
        frames.send(frame).await.map_err(|_| Gone)?;
    }
    Ok(())
}

fn read_half(stream: u32, headers: &Headers) -> Option<Half> {
    let is_error = match header(headers, "streamtype")? {
        "error" => true,
        "data" => false,
        _ => return None,
    };
    let port = header(headers, "port")?
        .parse()
        .ok()
        .filter(|&port| port > 0)?;
    let since = Instant::now();
    Some(Half {
        stream,
        is_error,
        port,
        since,
    })
}

/// What pairs two streams. Old clients send nothing; they open the error stream right before the other.
fn request_id(half: &Half, headers: &Headers) -> String {
    match header(headers, "requestid") {
        Some(id) => id.to_owned(),
        None if half.is_error => format!("stream {}", half.stream),
        None => format!("stream {}", half.stream.saturating_sub(2)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> Headers {
        let pairs = pairs.iter();
        pairs
            .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
            .collect()
    }

    #[test]
    fn streams_without_a_request_id_pair_by_their_numbers() {
        let error = headers(&[("streamtype", "error"), ("port", "80")]);
        let bytes = headers(&[("streamtype", "data"), ("port", "80")]);
        let first = read_half(3, &error).unwrap();
        let second = read_half(5, &bytes).unwrap();
        assert_eq!(request_id(&first, &error), request_id(&second, &bytes));
    }

    #[test]
    fn ports_are_numbers_from_1_to_65535() {
        for port in ["0", "65536", "-1", "", "http", "1e3"] {
            let headers = headers(&[("streamtype", "data"), ("port", port)]);
            assert!(read_half(1, &headers).is_none(), "{port}");
        }
        let headers = headers(&[("streamtype", "data"), ("port", "65535")]);
        assert_eq!(read_half(1, &headers).unwrap().port, 65535);
    }
}
