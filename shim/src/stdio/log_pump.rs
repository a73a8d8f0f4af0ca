//! Writes the output streams of one container to its log and to who is attached, by one task, in the order it
//! reads them.
//!
//! When the file system refuses (a full disk), the task stops reading, so that only this container
//! waits once its pipe is full, and tries again until there is space. Writes go to the page cache
//! directly from the event loop: a thread per shim for them would cost more memory than the shim.

use std::future::pending;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant, SystemTime};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

use super::cri_log::{LineEncoder, Stream};
use super::log_file::LogFile;
use super::pipe::{CHUNK, Read, read_some};
use super::tap::{Tap, Taps};
use super::{DRAIN_TIMEOUT, StdioError};
use crate::clock::{RFC3339_LENGTH, rfc3339};
use crate::log;

/// Entries are written when there are this many bytes of them.
const BATCH: usize = 64 * 1024;

/// The pauses between tries to write to a full disk.
const RETRY_FIRST: Duration = Duration::from_millis(20);
const RETRY_LAST: Duration = Duration::from_secs(1);

/// Waiting commands: an exit, a deletion, a rotation and some to spare; senders wait beyond that.
const COMMANDS: usize = 4;

enum Command {
    Drain(oneshot::Sender<()>),
    Finish(oneshot::Sender<()>),
    Reopen(oneshot::Sender<Result<(), StdioError>>),
    Tap(Tap, oneshot::Sender<Result<(), StdioError>>),
    Untap(oneshot::Sender<()>),
}

/// Controls a log pump; it stops when the last one is dropped.
#[derive(Debug, Clone)]
pub struct LogPumpHandle(mpsc::Sender<Command>);

impl LogPumpHandle {
    /// Waits until what the process wrote is in the log, an unfinished line included.
    pub async fn drain(&self) {
        let _ = self.ask(Command::Drain).await;
    }

    /// As [`Self::drain`], then ends. On a full disk it gives up after a short while.
    pub async fn finish(&self) {
        let _ = self.ask(Command::Finish).await;
    }

    /// Opens the log again at its path.
    ///
    /// # Errors
    /// It cannot be opened; the old file stays in use.
    pub async fn reopen(&self) -> Result<(), StdioError> {
        // The task lives until the container is deleted; then there is nothing to rotate.
        self.ask(Command::Reopen).await.unwrap_or(Ok(()))
    }

    /// Copies the output to a client as well.
    ///
    /// # Errors
    /// Too many clients are attached.
    pub(crate) async fn tap(&self, tap: Tap) -> Result<(), StdioError> {
        self.ask(|done| Command::Tap(tap, done))
            .await
            .unwrap_or(Ok(()))
    }

    /// Ends the copies of all clients.
    pub async fn untap(&self) {
        let _ = self.ask(Command::Untap).await;
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (sender, receiver) = oneshot::channel();
        self.0.send(command(sender)).await.ok()?;
        receiver.await.ok()
    }
}

/// Starts copying `streams`, stdout and stderr or a terminal, to `file`, or to nowhere but attached clients.
pub fn spawn(
    file: Option<LogFile>,
    streams: [Option<AsyncFd<OwnedFd>>; 2],
    terminal: bool,
) -> LogPumpHandle {
    let (sender, receiver) = mpsc::channel(COMMANDS);
    let pump = LogPump {
        file,
        taps: Taps::default(),
        streams,
        encoders: [
            LineEncoder::new(Stream::Stdout).of_terminal(terminal),
            LineEncoder::new(Stream::Stderr),
        ],
        input: Vec::new(),
        unread: 0..0,
        from: 0,
        entries: Vec::new(),
        retry: None,
        failures: 0,
    };
    tokio::spawn(pump.run(receiver));
    LogPumpHandle(sender)
}

/// Whether the event loop has reported input; when not, a read finds out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Readiness {
    Reported,
    Unknown,
}

struct LogPump {
    file: Option<LogFile>,
    taps: Taps,
    streams: [Option<AsyncFd<OwnedFd>>; 2],
    encoders: [LineEncoder; 2],
    /// What was read from stream `from`; `unread` of it is not yet encoded.
    input: Vec<u8>,
    unread: std::ops::Range<usize>,
    from: usize,
    entries: Vec<u8>,
    /// The pause before the next try, while the file system refuses.
    retry: Option<Duration>,
    failures: u64,
}

impl LogPump {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        loop {
            let retry = self.retry;
            // All branches may be cancelled: what was read is in `self` before any await.
            tokio::select! {
                biased;
                command = commands.recv() => match command {
                    Some(Command::Drain(done)) => {
                        self.drain().await;
                        let _ = done.send(());
                    }
                    Some(Command::Reopen(done)) => {
                        let _ = done.send(self.reopen());
                    }
                    Some(Command::Tap(tap, done)) => {
                        let _ = done.send(self.taps.add(tap));
                    }
                    Some(Command::Untap(done)) => {
                        self.taps = Taps::default();
                        let _ = done.send(());
                    }
                    Some(Command::Finish(done)) => {
                        self.finish().await;
                        let _ = done.send(());
                        return;
                    }
                    None => return self.finish().await,
                },
                () = self.taps.left() => self.taps.prune(),
                () = pause(retry), if retry.is_some() => self.write(),
                stream = readable(&self.streams), if retry.is_none() => {
                    self.take(stream, Readiness::Reported);
                }
            }
        }
    }

    /// Reads once from `stream` and writes what that gives.
    fn take(&mut self, stream: usize, readiness: Readiness) -> Read {
        let read = self.read(stream, readiness);
        self.encode();
        if read == Read::Empty {
            // Idle: a quiet container holds no buffers.
            self.input = Vec::new();
            if self.entries.is_empty() {
                self.entries = Vec::new();
            }
        }
        read
    }

    fn read(&mut self, stream: usize, readiness: Readiness) -> Read {
        if !self.unread.is_empty() || self.retry.is_some() {
            // Still to be encoded: it comes first.
            return Read::Bytes(0);
        }
        let Some(source) = &self.streams[stream] else {
            return Read::End;
        };
        self.input.resize(CHUNK, 0);
        let input = &mut self.input;
        let read = match readiness {
            Readiness::Unknown => read_some(source.get_ref(), input),
            // An empty pipe clears the readiness, so that the next wait is for new input.
            Readiness::Reported => {
                source.try_io(Interest::READABLE, |fd| match read_some(fd, input)? {
                    Read::Empty => Err(io::ErrorKind::WouldBlock.into()),
                    read => Ok(read),
                })
            }
        };
        let read = match read {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Read::Empty,
            Err(error) => {
                log::error(format_args!("read output: {error}"));
                Read::End
            }
        };
        match read {
            Read::Bytes(count) => {
                self.taps.copy(stream, &self.input[..count]);
                if self.file.is_some() {
                    self.unread = 0..count;
                    self.from = stream;
                }
            }
            Read::Empty => {}
            Read::End => {
                self.streams[stream] = None;
                self.encoders[stream].flush(&now(), &mut self.entries);
                self.write();
            }
        }
        read
    }

    /// Encodes and writes what was read, until that is done or the file system refuses.
    fn encode(&mut self) {
        let time = now();
        while !self.unread.is_empty() && self.retry.is_none() {
            let input = &self.input[self.unread.clone()];
            let encoder = &mut self.encoders[self.from];
            self.unread.start += encoder.encode(input, &time, &mut self.entries, BATCH);
            self.write();
        }
    }

    fn write(&mut self) {
        let Some(file) = &mut self.file else { return };
        match file.write(&mut self.entries) {
            Ok(()) => {
                if self.retry.take().is_some() {
                    let path = file.path();
                    log::warn(format_args!(
                        "log {path:?} is written again after {} refusals",
                        self.failures
                    ));
                    self.failures = 0;
                    self.encode();
                }
            }
            Err(error) => {
                self.failures += 1;
                if self.retry.is_none() {
                    let path = file.path();
                    log::error(format_args!("write log {path:?}, trying again: {error}"));
                }
                let next = self.retry.map_or(RETRY_FIRST, |pause| pause * 2);
                self.retry = Some(next.min(RETRY_LAST));
            }
        }
    }

    /// Empties the pipes as far as they are filled now, and flushes unfinished lines.
    async fn drain(&mut self) {
        let deadline = Instant::now() + DRAIN_TIMEOUT;
        for stream in 0..self.streams.len() {
            while let Read::Bytes(_) = self.take(stream, Readiness::Unknown) {
                if self.retry.is_some() || Instant::now() > deadline {
                    return;
                }
                tokio::task::yield_now().await;
            }
        }
        for encoder in &mut self.encoders {
            encoder.flush(&now(), &mut self.entries);
        }
        self.write();
    }

    async fn finish(&mut self) {
        let deadline = Instant::now() + DRAIN_TIMEOUT;
        loop {
            self.drain().await;
            let Some(retry) = self.retry else { return };
            if Instant::now() + retry > deadline {
                let path = self.file.as_ref().map(LogFile::path);
                let lost = self.entries.len();
                log::error(format_args!("log {path:?}: {lost} bytes and more are lost"));
                return;
            }
            tokio::time::sleep(retry).await;
            self.write();
        }
    }

    fn reopen(&mut self) -> Result<(), StdioError> {
        if !self.entries.is_empty() {
            // Best effort: what does not fit into the old file goes to the new one.
            self.write();
        }
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        file.reopen().map_err(|source| StdioError::Open {
            field: "log",
            path: file.path().to_owned(),
            source,
        })?;
        if self.retry.is_some() {
            self.write();
        }
        Ok(())
    }
}

fn now() -> [u8; RFC3339_LENGTH] {
    rfc3339(SystemTime::now())
}

async fn pause(duration: Option<Duration>) {
    match duration {
        Some(duration) => tokio::time::sleep(duration).await,
        None => pending().await,
    }
}

/// Waits for a stream that may have something.
async fn readable(streams: &[Option<AsyncFd<OwnedFd>>; 2]) -> usize {
    async fn one(stream: Option<&AsyncFd<OwnedFd>>) {
        match stream {
            // Only a runtime that is shutting down fails here.
            Some(fd) if fd.readable().await.is_ok() => {}
            _ => pending().await,
        }
    }
    tokio::select! {
        () = one(streams[0].as_ref()) => 0,
        () = one(streams[1].as_ref()) => 1,
    }
}
