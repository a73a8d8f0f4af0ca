//! Connections to the loopback of a pod.
//!
//! A socket belongs to the network namespace it was made in, whoever uses it. So a thread of its own enters the
//! pod's namespace, makes the sockets and ends; connecting and copying are ordinary work of the reactor.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use tokio::net::{TcpSocket, TcpStream};

use crate::domain::failure::{Class, Failure};
use crate::engine::spawn::blocking;
use crate::ports::Answer;

/// How long a connection may take; on loopback the kernel answers at once, unless a backlog is full.
const CONNECT: Duration = Duration::from_secs(10);

/// A socket of each family, if the kernel has it.
type Sockets = [Result<OwnedFd, io::Error>; 2];

/// Connects to `port` in the namespace pinned at `netns`, or in the node's.
pub(super) async fn dial(netns: Option<&Path>, port: u16) -> Answer<TcpStream> {
    let sockets = match netns {
        Some(netns) => sockets_in(netns.to_owned()).await?,
        None => sockets(),
    };
    let addresses = [
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
    ];
    let mut refusals = Vec::new();
    for (socket, ip) in sockets.into_iter().zip(addresses) {
        let address = SocketAddr::new(ip, port);
        match connect(socket, address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => refusals.push(format!("connect to {address}: {error}")),
        }
    }
    Err(Failure::new(Class::Unavailable, refusals.join("; ")))
}

async fn connect(socket: Result<OwnedFd, io::Error>, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::from_std_stream(std::net::TcpStream::from(socket?));
    let connected = tokio::time::timeout(CONNECT, socket.connect(address)).await;
    let stream = connected.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn sockets_in(netns: PathBuf) -> Answer<Sockets> {
    blocking("make sockets in a pod", move || {
        let file = File::open(&netns)
            .map_err(|error| Failure::io(format!("open {}", netns.display()), &error))?;
        // The thread ends in the pod's namespace, so it must not be one of a pool.
        let thread = std::thread::Builder::new().name("dial".to_owned());
        let work = thread.spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET).map_err(|errno| {
                Failure::io(format!("enter {}", netns.display()), &errno.into())
            })?;
            Ok(sockets())
        });
        let work = work.map_err(|error| Failure::io("start a thread", &error))?;
        work.join().unwrap_or_else(|_| {
            Err(Failure::new(
                Class::Internal,
                "the thread that makes sockets panicked",
            ))
        })
    })
    .await
}

fn sockets() -> Sockets {
    [AddressFamily::INET, AddressFamily::INET6].map(|family| {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        Ok(socket_with(family, SocketType::STREAM, flags, None)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_node_is_dialled_by_ipv4_then_ipv6() {
        for ip in ["127.0.0.1", "::1"] {
            let listener = std::net::TcpListener::bind((ip, 0)).unwrap();
            let address = listener.local_addr().unwrap();
            let stream = dial(None, address.port()).await.unwrap();
            assert_eq!(stream.peer_addr().unwrap(), address);
        }
    }

    #[tokio::test]
    async fn a_port_nobody_listens_at_is_named_with_both_addresses() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let failure = dial(None, port).await.unwrap_err();
        assert_eq!(failure.class, Class::Unavailable);
        for part in [format!("127.0.0.1:{port}"), format!("[::1]:{port}")] {
            assert!(failure.message.contains(&part), "{failure}");
        }
        let missing = dial(Some(Path::new("/nonexistent/net")), 1).await;
        assert!(missing.unwrap_err().message.contains("/nonexistent/net"));
    }
}
