//! Copies one output stream of a process to a FIFO or a file, until its end or until told to stop.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

use crate::log;

/// Bytes copied at a time. Allocated while there is something to copy.
pub const CHUNK: usize = 16 * 1024;

/// How long draining waits for a reader that takes nothing.
const STALL_TIMEOUT: Duration = Duration::from_secs(2);

/// How long draining goes on while something moves: a process that was left behind may write without
/// end.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

/// Waiting commands of one pump: an exit, a deletion and some to spare; senders wait beyond that.
const COMMANDS: usize = 4;

/// Where the bytes go.
#[derive(Debug)]
pub enum Sink {
    /// A FIFO, which may be full.
    Fifo(AsyncFd<OwnedFd>),
    /// A regular file or a device that never waits.
    File(File),
}

enum Command {
    Drain(oneshot::Sender<()>),
    Finish(oneshot::Sender<()>),
}

/// Controls a pump; it stops when the last one is dropped.
#[derive(Debug, Clone)]
pub struct PumpHandle(mpsc::Sender<Command>);

impl PumpHandle {
    /// Waits until what is in the pipe now is passed on, or its reader takes nothing.
    pub async fn drain(&self) {
        self.ask(Command::Drain).await;
    }

    /// As [`Self::drain`], then ends.
    pub async fn finish(&self) {
        self.ask(Command::Finish).await;
    }

    async fn ask(&self, command: impl FnOnce(oneshot::Sender<()>) -> Command) {
        let (sender, receiver) = oneshot::channel();
        // A pump that has ended has passed on everything.
        if self.0.send(command(sender)).await.is_ok() {
            let _ = receiver.await;
        }
    }
}

/// Starts copying from `source` to `sink`.
pub fn spawn(source: AsyncFd<OwnedFd>, sink: Sink) -> PumpHandle {
    let (sender, receiver) = mpsc::channel(COMMANDS);
    let pump = Pump {
        source,
        sink,
        buffer: Vec::new(),
        filled: 0..0,
    };
    tokio::spawn(pump.run(receiver));
    PumpHandle(sender)
}

/// What one step of copying came to.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Something moved.
    Progress,
    /// The source has nothing now.
    Empty,
    /// The source has ended, or the sink is broken.
    End,
}

struct Pump {
    source: AsyncFd<OwnedFd>,
    sink: Sink,
    buffer: Vec<u8>,
    filled: std::ops::Range<usize>,
}

impl Pump {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        loop {
            // Both branches may be cancelled: a step keeps its state in `self`.
            tokio::select! {
                biased;
                command = commands.recv() => match command {
                    None => return,
                    Some(Command::Drain(done)) => {
                        let ended = self.drain().await;
                        let _ = done.send(());
                        if ended {
                            return;
                        }
                    }
                    Some(Command::Finish(done)) => {
                        self.drain().await;
                        // Order: the reader sees the end of the stream before anyone hears of it.
                        drop(self);
                        let _ = done.send(());
                        return;
                    }
                },
                step = self.step() => match step {
                    Ok(Step::End) => return,
                    Ok(_) => {}
                    Err(error) => {
                        log::warn(format_args!("copy output: {error}"));
                        return;
                    }
                },
            }
        }
    }

    /// Copies until the source is empty. Answers whether it has ended.
    async fn drain(&mut self) -> bool {
        let deadline = Instant::now() + DRAIN_LIMIT;
        loop {
            let step = if self.filled.is_empty() {
                if Instant::now() > deadline {
                    return false;
                }
                self.fill()
            } else {
                match tokio::time::timeout(STALL_TIMEOUT, self.flush()).await {
                    Ok(result) => result,
                    // Nobody reads: this much is given up waiting for, not lost.
                    Err(_) => return false,
                }
            };
            match step {
                Ok(Step::Progress) => {}
                Ok(Step::Empty) => return false,
                Ok(Step::End) | Err(_) => return true,
            }
        }
    }

    async fn step(&mut self) -> io::Result<Step> {
        if !self.filled.is_empty() {
            return self.flush().await;
        }
        let mut ready = self.source.readable().await?;
        let step = read_chunk(self.source.get_ref(), &mut self.buffer, &mut self.filled);
        if matches!(step, Ok(Step::Empty)) {
            ready.clear_ready();
            self.buffer = Vec::new();
        }
        step
    }

    fn fill(&mut self) -> io::Result<Step> {
        read_chunk(self.source.get_ref(), &mut self.buffer, &mut self.filled)
    }

    async fn flush(&mut self) -> io::Result<Step> {
        let bytes = &self.buffer[self.filled.clone()];
        let written = match &mut self.sink {
            Sink::File(file) => io::Write::write(file, bytes)?,
            Sink::Fifo(fifo) => loop {
                let mut ready = fifo.writable().await?;
                match ready.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), bytes)?)) {
                    Ok(result) => break result?,
                    Err(_would_block) => {}
                }
            },
        };
        self.filled.start = self
            .filled
            .end
            .min(self.filled.start.saturating_add(written));
        Ok(Step::Progress)
    }
}

fn read_chunk(
    source: &OwnedFd,
    buffer: &mut Vec<u8>,
    filled: &mut std::ops::Range<usize>,
) -> io::Result<Step> {
    buffer.resize(CHUNK, 0);
    match read_some(source, buffer)? {
        Read::Bytes(count) => {
            *filled = 0..count;
            Ok(Step::Progress)
        }
        Read::Empty => Ok(Step::Empty),
        Read::End => Ok(Step::End),
    }
}

/// What a read came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Read {
    Bytes(usize),
    Empty,
    End,
}

/// Reads from a non-blocking pipe or terminal.
pub(crate) fn read_some(source: &OwnedFd, buffer: &mut [u8]) -> io::Result<Read> {
    loop {
        return match rustix::io::read(source, &mut *buffer) {
            // A terminal whose other side is closed answers EIO.
            Ok(0) | Err(rustix::io::Errno::IO) => Ok(Read::End),
            Ok(count) => Ok(Read::Bytes(count)),
            Err(rustix::io::Errno::AGAIN) => Ok(Read::Empty),
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => Err(error.into()),
        };
    }
}
