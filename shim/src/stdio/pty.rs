//! Terminals: the socket through which the runtime hands over the master, and its size.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};

/// How long to wait for the terminal after the runtime has succeeded; it has sent it by then.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(5);

static NEXT: AtomicU64 = AtomicU64::new(0);

/// A console socket; removed when dropped.
#[derive(Debug)]
pub struct Console {
    path: PathBuf,
    listener: UnixListener,
}

impl Console {
    /// Listens at a new path in `directory`, which is private and has a short name: a socket's path
    /// has 108 bytes.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn listen(directory: &Path) -> io::Result<Self> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = directory.join(format!("pty-{}-{number}.sock", std::process::id()));
        // A left-over of a dead shim with the same pid.
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path)?;
        let console = Self { path, listener };
        std::fs::set_permissions(&console.path, std::fs::Permissions::from_mode(0o600))?;
        Ok(console)
    }

    /// The path for the runtime's `--console-socket`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Receives the master of the terminal.
    ///
    /// # Errors
    /// It does not come in time, or something else comes.
    pub async fn receive(&self) -> io::Result<OwnedFd> {
        let receive = async {
            let (stream, _) = self.listener.accept().await?;
            receive_descriptor(&stream).await
        };
        match tokio::time::timeout(RECEIVE_TIMEOUT, receive).await {
            Ok(result) => result,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn receive_descriptor(stream: &UnixStream) -> io::Result<OwnedFd> {
    stream
        .async_io(Interest::READABLE, || {
            // The runtime sends the terminal's name along; it is not needed.
            let mut name = [0; 4096];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut slices = [IoSliceMut::new(&mut name)];
            recvmsg(stream, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC)?;
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(mut descriptors) = message
                    && let Some(master) = descriptors.next()
                {
                    return Ok(master);
                }
            }
            Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the message holds no descriptor",
            ))
        })
        .await
}

/// Sets the size of a terminal, in characters.
///
/// # Errors
/// It is no terminal.
pub fn resize(terminal: BorrowedFd<'_>, columns: u16, rows: u16) -> io::Result<()> {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(tcsetwinsize(terminal, size)?)
}
