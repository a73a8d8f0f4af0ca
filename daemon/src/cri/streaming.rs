//! The streaming server: Exec, Attach and PortForward as clients of the CRI use them.
//!
//! ```text
//!  kubelet -- Exec (gRPC) --> runtime_service -- tokens: a URL for one use -->
//!          -- GET or POST URL, Upgrade --> server -- negotiate --> remote_command or port_forward
//!                                                    over spdy or websocket --> engine
//! ```
//!
//! It is the second half of three CRI calls and so a part of `cri`: it knows wire formats and calls the engine,
//! which knows processes, pods and none of this.

mod activity;
pub(crate) mod fuzzing;
mod line;
mod negotiate;
mod port_forward;
mod remote_command;
mod server;
pub mod spdy;
mod spdy_link;
mod status;
mod tls;
mod tokens;
mod websocket;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

pub use server::Streaming;
pub use tls::{TlsError, server_config};

use crate::engine::attach::AttachOptions;
use crate::engine::exec::ExecOptions;
use crate::engine::port_forward::PortForwardOptions;

/// Streams one connection may have open at once: some hundred forwarded connections.
pub(crate) const MAX_STREAMS: u32 = 1024;

/// How long the streams of a session may take to be opened (the kubelet's library: 30 s).
const CREATION: Duration = Duration::from_secs(30);

/// How long a client may take to hang up after it was told how a session ended.
const LINGER: Duration = Duration::from_secs(10);

/// Pieces waiting between a connection and a process, each at most [`spdy::MAX_PIECE`]: 256 KiB a stream.
const WAITING: usize = 8;

/// What a URL is for.
#[derive(Debug, Clone)]
pub enum Asked {
    /// A command in a container.
    Exec(ExecOptions),
    /// The streams of a container.
    Attach(AttachOptions),
    /// Connections to ports of a pod.
    PortForward(PortForwardOptions),
}

impl Asked {
    /// First part of the URL's path.
    fn path(&self) -> &'static str {
        match self {
            Self::Exec(_) => "exec",
            Self::Attach(_) => "attach",
            Self::PortForward(_) => "portforward",
        }
    }
}

/// The URL below which this listener is reached from the node itself.
fn base_url(address: SocketAddr, tls: bool) -> String {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    let scheme = if tls { "https" } else { "http" };
    format!("{scheme}://{}", SocketAddr::new(ip, address.port()))
}

/// Whether a session is over because nothing moved.
type Idle = Arc<activity::Activity>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_can_be_reached_from_the_node() {
        for (address, tls, url) in [
            ("127.0.0.1:80", false, "http://127.0.0.1:80"),
            ("0.0.0.0:443", true, "https://127.0.0.1:443"),
            ("[::]:1", false, "http://[::1]:1"),
            ("[fd00::1]:9", false, "http://[fd00::1]:9"),
        ] {
            assert_eq!(base_url(address.parse().unwrap(), tls), url);
        }
    }
}
