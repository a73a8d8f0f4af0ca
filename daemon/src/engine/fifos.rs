//! FIFOs between the shim and a verb: made in a bundle, open at both ends, gone from the directory soon.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};

use crate::domain::failure::Failure;

/// Bytes passed on at once.
const CHUNK: usize = 32 << 10;

/// A FIFO's name in a directory; removed when dropped, which does not disturb who has it open.
#[derive(Debug)]
pub(super) struct Fifo(PathBuf);

impl Fifo {
    /// Makes a FIFO.
    pub(super) fn make(path: PathBuf) -> Result<Self, Failure> {
        make(&path)?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Opens the reading end, whether or not somebody writes.
    pub(super) fn receiver(&self) -> Result<pipe::Receiver, Failure> {
        let open = pipe::OpenOptions::new().open_receiver(&self.0);
        open.map_err(|error| self.failed(&error))
    }

    /// Opens the writing end; somebody must have the other one open.
    pub(super) fn sender(&self) -> Result<pipe::Sender, Failure> {
        sender(&self.0).map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &std::io::Error) -> Failure {
        Failure::io(format!("open the FIFO {}", self.0.display()), error)
    }
}

impl Drop for Fifo {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.0.display(), error = %error, "a FIFO stays");
        }
    }
}

/// Makes a FIFO for this process's user alone.
pub(super) fn make(path: &Path) -> Result<(), Failure> {
    use nix::sys::stat::Mode;
    nix::unistd::mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR)
        .map_err(|errno| Failure::io(format!("make the FIFO {}", path.display()), &errno.into()))
}

/// Opens the writing end of a FIFO; fails with `ENXIO` when nobody reads.
pub(super) fn sender(path: &Path) -> std::io::Result<pipe::Sender> {
    pipe::OpenOptions::new().open_sender(path)
}

/// Passes output on until its end. Once `exited` is true the end is also when nothing comes for `drain`: a
/// process left in the background may hold the stream. A client that is gone is read for all the same, so that
/// the process is not stopped by a full pipe.
pub(super) async fn pass_output(
    fifo: pipe::Receiver,
    sink: mpsc::Sender<Bytes>,
    mut exited: watch::Receiver<bool>,
    drain: Duration,
) {
    loop {
        let over = *exited.borrow_and_update();
        let ready = if over {
            match tokio::time::timeout(drain, fifo.readable()).await {
                Ok(ready) => ready,
                Err(_) => return,
            }
        } else {
            tokio::select! {
                ready = fifo.readable() => ready,
                // A verb that is gone has nobody to pass anything on to.
                changed = exited.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
            }
        };
        if ready.is_err() {
            return;
        }
        // Allocated when there is something: an idle session holds no buffer.
        let mut buffer = BytesMut::with_capacity(CHUNK);
        match fifo.try_read_buf(&mut buffer) {
            Ok(0) => return,
            Ok(_) => {
                // Ignored: see above.
                let _gone = sink.send(buffer.freeze()).await;
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::debug!(error = %error, "read a FIFO");
                return;
            }
        }
    }
}

/// Whose end of an input came first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InputEnd {
    /// The client has no more.
    Client,
    /// Nobody reads it.
    Process,
}

/// Passes input on until the client has no more, or nobody reads.
pub(super) async fn pass_input(
    mut fifo: pipe::Sender,
    input: &mut mpsc::Receiver<Bytes>,
) -> InputEnd {
    while let Some(bytes) = input.recv().await {
        if let Err(error) = fifo.write_all(&bytes).await {
            tracing::debug!(error = %error, "write a FIFO");
            return InputEnd::Process;
        }
    }
    InputEnd::Client
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn output_ends_with_the_writers_or_when_nothing_comes_after_the_exit() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = Fifo::make(dir.path().join("out")).unwrap();
        let receiver = fifo.receiver().unwrap();
        let mut writer = fifo.sender().unwrap();
        let (sink, mut output) = mpsc::channel(8);
        let (exit, exited) = watch::channel(false);
        let pass = tokio::spawn(pass_output(
            receiver,
            sink,
            exited,
            Duration::from_millis(50),
        ));
        writer.write_all(b"one").await.unwrap();
        assert_eq!(output.recv().await.unwrap(), "one");
        exit.send_replace(true);
        // The writer is still there.
        assert!(output.recv().await.is_none());
        pass.await.unwrap();
        drop(writer);
        let path = fifo.path().to_owned();
        assert!(path.exists());
        drop(fifo);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_client_that_is_gone_does_not_stop_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = Fifo::make(dir.path().join("out")).unwrap();
        let receiver = fifo.receiver().unwrap();
        let mut writer = fifo.sender().unwrap();
        let (sink, output) = mpsc::channel(1);
        drop(output);
        let (_exit, exited) = watch::channel(false);
        let pass = tokio::spawn(pass_output(receiver, sink, exited, Duration::from_secs(1)));
        // Far more than a pipe holds.
        for _ in 0..64 {
            writer.write_all(&[0; 64 << 10]).await.unwrap();
        }
        drop(writer);
        pass.await.unwrap();
    }
}
