//! Copies a FIFO to the input of a process.
//!
//! The shim keeps a writing end of the FIFO open, so that a client that goes away and comes back
//! does not end the input; `CloseIO` gives that end up.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use super::pipe::{CHUNK, Read, read_some};
use super::{StdioError, open_fifo};
use crate::log;
use crate::sys::descriptor;

/// Both ends of an input FIFO.
#[derive(Debug)]
pub struct StdinSource {
    reader: AsyncFd<OwnedFd>,
    keeper: OwnedFd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
enum Wish {
    Copy,
    Close,
    Stop,
}

/// Controls the copying; it stops when the last one is dropped.
#[derive(Debug, Clone)]
pub struct StdinHandle(Arc<watch::Sender<Wish>>);

impl StdinHandle {
    /// Ends the input once the FIFO has no other writer and is empty.
    pub fn close(&self) {
        self.raise(Wish::Close);
    }

    /// Ends the copying at once.
    pub fn stop(&self) {
        self.raise(Wish::Stop);
    }

    fn raise(&self, wish: Wish) {
        self.0.send_if_modified(|now| {
            let raised = wish > *now;
            if raised {
                *now = wish;
            }
            raised
        });
    }
}

/// Opens both ends of the FIFO at `path`.
///
/// # Errors
/// It cannot be opened or is no FIFO.
pub fn open(path: PathBuf) -> Result<StdinSource, StdioError> {
    let keeper = open_fifo("stdin", &path)?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let reader = rustix::fs::open(&path, flags, Mode::empty());
    reader
        .map_err(io::Error::from)
        .and_then(|fd| descriptor::watch(fd, Interest::READABLE))
        .map(|reader| StdinSource { reader, keeper })
        .map_err(|source| StdioError::Open {
            field: "stdin",
            path,
            source,
        })
}

/// Starts copying from `source` to `sink`, the process's input.
pub fn spawn(source: StdinSource, sink: AsyncFd<OwnedFd>) -> StdinHandle {
    let (sender, wishes) = watch::channel(Wish::Copy);
    tokio::spawn(run(source, sink, wishes));
    StdinHandle(Arc::new(sender))
}

async fn run(source: StdinSource, sink: AsyncFd<OwnedFd>, mut wishes: watch::Receiver<Wish>) {
    let StdinSource { reader, keeper } = source;
    let mut keeper = Some(keeper);
    let copying = copy(&reader, &sink);
    tokio::pin!(copying);
    loop {
        tokio::select! {
            biased;
            changed = wishes.changed() => {
                let wish = *wishes.borrow_and_update();
                if changed.is_err() || wish == Wish::Stop {
                    return;
                }
                if wish == Wish::Close {
                    drop(keeper.take());
                }
            }
            // Polled again after a wish, so nothing is lost by the cancellation of the branch.
            result = &mut copying => {
                if let Err(error) = result {
                    log::debug(format_args!("copy input: {error}"));
                }
                return;
            }
        }
    }
}

async fn copy(reader: &AsyncFd<OwnedFd>, sink: &AsyncFd<OwnedFd>) -> io::Result<()> {
    loop {
        // A FIFO without a writer yet reads as ended, so it is read only when epoll reports it.
        let mut ready = reader.readable().await?;
        let mut buffer = vec![0; CHUNK];
        loop {
            match read_some(reader.get_ref(), &mut buffer)? {
                Read::End => return Ok(()),
                Read::Empty => break,
                Read::Bytes(count) => write_all(sink, &buffer[..count]).await?,
            }
        }
        ready.clear_ready();
    }
}

async fn write_all(sink: &AsyncFd<OwnedFd>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let mut ready = sink.writable().await?;
        match ready.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), bytes)?)) {
            Ok(written) => bytes = bytes.get(written?..).unwrap_or_default(),
            Err(_would_block) => {}
        }
    }
    Ok(())
}
