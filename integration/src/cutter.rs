//! A wire that breaks: carries connections to a server and cuts every one of them after a random number of
//! bytes of the answer. It counts what it carried.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// The wire; gone when dropped.
#[derive(Debug)]
pub struct Cutter {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    to: SocketAddr,
    cuts: Range<u64>,
    noise: AtomicU64,
    carried: AtomicU64,
    connections: AtomicU64,
    /// Connections of now.
    open: AtomicU64,
    stop: AtomicBool,
}

/// How long a quiet connection goes without a look at whether to stop.
const LOOK: Duration = Duration::from_millis(50);

impl Cutter {
    /// Carries connections to `to`, each until a number of bytes in `cuts` came back. The same `seed` gives the
    /// same numbers.
    ///
    /// # Errors
    /// When `to` is no address or no port can be bound.
    pub fn start(to: &str, cuts: Range<u64>, seed: u64) -> Result<Self> {
        let to = to
            .parse()
            .with_context(|| format!("parse the address {to:?}"))?;
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("bind a loopback port")?;
        let address = listener.local_addr().context("read the bound address")?;
        let shared = Arc::new(Shared {
            to,
            cuts,
            noise: AtomicU64::new(seed),
            carried: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            open: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        });
        let serving = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if serving.stop.load(Ordering::Relaxed) {
                    return;
                }
                let shared = Arc::clone(&serving);
                shared.open.fetch_add(1, Ordering::Relaxed);
                thread::spawn(move || {
                    shared.carry(stream);
                    shared.open.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
        Ok(Self { address, shared })
    }

    /// `127.0.0.1:PORT`.
    #[must_use]
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Bytes that came back from the server so far.
    #[must_use]
    pub fn carried(&self) -> u64 {
        self.shared.carried.load(Ordering::Relaxed)
    }

    /// Connections so far.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }
}

impl Drop for Cutter {
    /// Ends every connection: those that clients keep for later too.
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // Wakes the accept loop so that it sees the flag.
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_millis(100));
        let until = Instant::now() + Duration::from_secs(5);
        while self.shared.open.load(Ordering::Relaxed) > 0 && Instant::now() < until {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Shared {
    /// A number in `cuts` (splitmix64).
    fn cut(&self) -> u64 {
        let step = 0x9e37_79b9_7f4a_7c15;
        let mut z = self
            .noise
            .fetch_add(step, Ordering::Relaxed)
            .wrapping_add(step);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let width = self.cuts.end.saturating_sub(self.cuts.start).max(1);
        self.cuts.start + (z ^ (z >> 31)) % width
    }

    fn carry(&self, client: TcpStream) {
        self.connections.fetch_add(1, Ordering::Relaxed);
        let Ok(server) = TcpStream::connect(self.to) else {
            return;
        };
        let (Ok(mut from), Ok(mut to)) = (client.try_clone(), server.try_clone()) else {
            return;
        };
        if server.set_read_timeout(Some(LOOK)).is_err() {
            return;
        }
        // Ends when either side is shut down below.
        let up = thread::spawn(move || std::io::copy(&mut from, &mut to));
        let mut left = self.cut();
        let (mut server, mut client) = (server, client);
        let mut buffer = [0_u8; 16 * 1024];
        while left > 0 {
            let most = buffer
                .len()
                .min(usize::try_from(left).unwrap_or(usize::MAX));
            let count = match server.read(&mut buffer[..most]) {
                Ok(count @ 1..) => count,
                Err(error)
                    if error.kind() == ErrorKind::WouldBlock
                        && !self.stop.load(Ordering::Relaxed) =>
                {
                    continue;
                }
                Ok(_) | Err(_) => break,
            };
            if client.write_all(&buffer[..count]).is_err() {
                break;
            }
            left -= count as u64;
            self.carried.fetch_add(count as u64, Ordering::Relaxed);
        }
        let _ = client.shutdown(Shutdown::Both);
        let _ = server.shutdown(Shutdown::Both);
        let _ = up.join();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{self, Reply, Server};

    #[test]
    fn a_connection_ends_where_it_is_cut() {
        let server = Server::start(|_| Reply::new(200, "text/plain", "x".repeat(5000))).unwrap();
        let cutter = Cutter::start(&server.address(), 1000..1001, 1).unwrap();
        let port = cutter
            .address()
            .rsplit_once(':')
            .unwrap()
            .1
            .parse()
            .unwrap();
        let answer = http::get("127.0.0.1", port, "/").unwrap();
        assert!(answer.body.len() < 1000);
        assert_eq!((cutter.carried(), cutter.connections()), (1000, 1));
    }

    #[test]
    fn cuts_are_in_their_range_and_repeat() {
        let cuts = |seed| {
            let cutter = Cutter::start("127.0.0.1:1", 10..20, seed).unwrap();
            (0..100).map(|_| cutter.shared.cut()).collect::<Vec<_>>()
        };
        let first = cuts(7);
        assert!(first.iter().all(|cut| (10..20).contains(cut)));
        assert_eq!(first, cuts(7));
        assert_ne!(first, cuts(8));
    }
}
