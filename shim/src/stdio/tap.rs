//! Copies of a container's output for clients that are attached. A client that does not keep up loses its
//! copy: it must hold up neither the container nor the log nor other clients.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::pipe::fcntl_setpipe_size;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::{StdioError, Target};
use crate::log;
use crate::sys::descriptor::watch;

/// Most clients of one container.
const MOST: usize = 64;

/// Capacity asked for a client's FIFO, in bytes: what it may be behind. The kernel allocates pages only as
/// they are filled.
const CAPACITY: usize = 1 << 20;

/// One client: the writing ends of its FIFOs.
#[derive(Debug)]
pub(crate) struct Tap([Option<OwnedFd>; 2]);

impl Tap {
    /// Opens the FIFOs at these paths; their reading ends are open. An empty path wants nothing.
    ///
    /// # Errors
    /// One is no FIFO, or nobody has it open.
    pub(crate) fn open(stdout: &str, stderr: &str) -> Result<Self, StdioError> {
        Ok(Self([open("stdout", stdout)?, open("stderr", stderr)?]))
    }
}

fn open(field: &'static str, text: &str) -> Result<Option<OwnedFd>, StdioError> {
    let path = match Target::parse(field, text)? {
        Target::Null => return Ok(None),
        Target::Fifo(path) => path,
        Target::File(_) | Target::CriLog(_) => return Err(no_fifo(field, text)),
    };
    let failed = |errno: rustix::io::Errno, path: PathBuf| StdioError::Open {
        field,
        path,
        source: errno.into(),
    };
    // Without a reader this fails at once; and once the reader is gone, so does writing.
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fifo = rustix::fs::open(&path, flags, Mode::empty());
    let fifo = fifo.map_err(|errno| failed(errno, path.clone()))?;
    let stat = rustix::fs::fstat(&fifo).map_err(|errno| failed(errno, path.clone()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Fifo {
        return Err(no_fifo(field, text));
    }
    // Best effort: with less, clients are dropped sooner.
    let _ = fcntl_setpipe_size(&fifo, CAPACITY);
    Ok(Some(fifo))
}

fn no_fifo(field: &'static str, text: &str) -> StdioError {
    StdioError::Target {
        field,
        reason: "must be a FIFO",
        value: text.to_owned(),
    }
}

impl Tap {
    fn fifos(&self) -> impl Iterator<Item = &OwnedFd> {
        self.0.iter().flatten()
    }

    /// Whether the client has closed one of its reading ends.
    fn is_left(&self) -> bool {
        let now = Timespec::default();
        self.fifos().any(|fifo| {
            let mut asked = [PollFd::new(fifo, PollFlags::empty())];
            let count = poll(&mut asked, Some(&now));
            count.is_ok_and(|count| count > 0) && asked[0].revents().contains(PollFlags::ERR)
        })
    }
}

/// All clients of one container.
#[derive(Debug, Default)]
pub(super) struct Taps {
    clients: Vec<Tap>,
    /// An epoll that reports clients who left: one descriptor of the event loop for all of them, and no wake-up
    /// for each piece they read. Made with the first client.
    left: Option<AsyncFd<OwnedFd>>,
}

impl Taps {
    /// # Errors
    /// There are too many, or the kernel does not watch one more.
    pub(super) fn add(&mut self, tap: Tap) -> Result<(), StdioError> {
        self.prune();
        if self.clients.len() >= MOST {
            return Err(StdioError::Crowded { limit: MOST });
        }
        self.watch(&tap).map_err(|source| StdioError::Open {
            field: "stdout",
            path: PathBuf::from("epoll"),
            source,
        })?;
        self.clients.push(tap);
        Ok(())
    }

    fn watch(&mut self, tap: &Tap) -> std::io::Result<()> {
        let left = match &self.left {
            Some(left) => left,
            None => {
                let made = watch(epoll::create(CreateFlags::CLOEXEC)?, Interest::READABLE)?;
                self.left.insert(made)
            }
        };
        for fifo in tap.fifos() {
            // Closing the descriptor takes it back.
            epoll::add(left.get_ref(), fifo, EventData::new_u64(0), EventFlags::ERR)?;
        }
        Ok(())
    }

    /// Returns when a client has left. May be cancelled.
    pub(super) async fn left(&self) {
        let Some(left) = &self.left else {
            return std::future::pending().await;
        };
        if let Ok(mut guard) = left.readable().await {
            // Order: forgotten before the clients are looked at, so that who leaves later is reported again.
            guard.clear_ready();
        }
    }

    /// Forgets clients that left.
    pub(super) fn prune(&mut self) {
        self.clients.retain(|tap| !tap.is_left());
    }

    /// Gives what was read from a stream, 0 stdout or 1 stderr, to each client.
    pub(super) fn copy(&mut self, stream: usize, bytes: &[u8]) {
        self.clients.retain(|tap| {
            let Some(fifo) = &tap.0[stream] else {
                return true;
            };
            match rustix::io::write(fifo, bytes) {
                Ok(count) if count == bytes.len() => true,
                Ok(_) | Err(rustix::io::Errno::AGAIN) => {
                    log::warn(format_args!("a client that is attached does not keep up"));
                    false
                }
                // It went away.
                Err(_) => false,
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read as _;
    use std::os::unix::fs::OpenOptionsExt as _;

    use super::*;

    struct Client {
        path: String,
        reader: File,
    }

    fn client(dir: &tempfile::TempDir, name: &str) -> Client {
        let path = dir.path().join(name);
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, Mode::RWXU).unwrap();
        let flags = crate::log::flags(OFlags::NONBLOCK);
        let reader = File::options()
            .read(true)
            .custom_flags(flags)
            .open(&path)
            .unwrap();
        Client {
            path: path.display().to_string(),
            reader,
        }
    }

    fn read(client: &mut Client) -> Vec<u8> {
        let mut bytes = Vec::new();
        // Ends with WouldBlock while there is a writer.
        let _ = client.reader.read_to_end(&mut bytes);
        bytes
    }

    #[tokio::test]
    async fn a_slow_client_is_dropped_and_the_others_miss_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (mut fast, slow) = (client(&dir, "fast"), client(&dir, "slow"));
        let mut taps = Taps::default();
        taps.add(Tap::open(&fast.path, "").unwrap()).unwrap();
        taps.add(Tap::open(&slow.path, "").unwrap()).unwrap();
        let mut received = 0;
        let chunk = vec![7; 16 << 10];
        let chunks = 3 * CAPACITY / chunk.len();
        for _ in 0..chunks {
            taps.copy(0, &chunk);
            received += read(&mut fast).len();
        }
        assert_eq!(received, chunks * chunk.len());
        assert_eq!(taps.clients.len(), 1);
        drop(slow);
    }

    #[tokio::test]
    async fn clients_come_and_go_up_to_a_limit() {
        let dir = tempfile::tempdir().unwrap();
        let mut taps = Taps::default();
        let clients: Vec<Client> = (0..MOST).map(|n| client(&dir, &n.to_string())).collect();
        for client in &clients {
            taps.add(Tap::open(&client.path, "").unwrap()).unwrap();
        }
        let more = client(&dir, "more");
        let refused = taps.add(Tap::open(&more.path, "").unwrap()).unwrap_err();
        assert!(refused.to_string().contains("64"), "{refused}");
        drop(clients);
        taps.copy(1, b"to nobody");
        assert_eq!(taps.clients.len(), MOST, "stderr is not theirs");
        taps.copy(0, b"to those who left");
        assert!(taps.clients.is_empty());
    }

    #[tokio::test]
    async fn a_client_that_leaves_is_noticed_without_output() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (client(&dir, "one"), client(&dir, "two"));
        let mut taps = Taps::default();
        for client in [&one, &two] {
            taps.add(Tap::open(&client.path, "").unwrap()).unwrap();
        }
        taps.copy(0, b"output wakes nobody");
        for (left, leaves) in [one, two].into_iter().enumerate() {
            let nobody = tokio::task::unconstrained(async {
                tokio::select! {
                    biased;
                    () = taps.left() => false,
                    () = tokio::task::yield_now() => true,
                }
            });
            assert!(nobody.await, "all others are there");
            drop(leaves);
            taps.left().await;
            taps.prune();
            assert_eq!(taps.clients.len(), 1 - left);
        }
    }

    #[test]
    fn what_is_no_fifo_with_a_reader_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = client(&dir, "fifo").path;
        assert!(Tap::open(&fifo, "").is_err(), "its reader is gone");
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(Tap::open("", &file.display().to_string()).is_err());
        assert!(Tap::open("cri-log:none", "").is_err());
        assert!(Tap::open("relative", "").is_err());
    }
}
