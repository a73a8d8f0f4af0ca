//! Clients of the streaming server, written apart from it: SPDY/3.1 and WebSocket over blocking sockets.
//!
//! They speak as kubectl and crictl do, as far as tests need it, and can break off as those do not.

mod remote;
mod spdy;
mod websocket;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

pub use remote::{Channel, Ended, Event, Receiver, Remote, Sender, Streams};
pub use spdy::{Frame, Spdy};
pub use websocket::{Message, WebSocket};

/// How long a test waits for the server to say something.
const PATIENCE: Duration = Duration::from_secs(30);

/// Which wire a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// SPDY/3.1 after an upgrade.
    Spdy,
    /// WebSocket.
    WebSocket,
}

impl Wire {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Spdy, Self::WebSocket];
}

/// The answer to an upgrade request, and the connection behind it.
#[derive(Debug)]
pub struct Upgraded {
    /// Status code.
    pub status: u16,
    /// The head, as it came.
    pub head: String,
    /// The connection.
    pub socket: TcpStream,
}

/// Sends a request with these headers to a URL of the streaming server and reads the head of the answer.
///
/// # Errors
/// The server cannot be reached or says nothing that is HTTP.
pub fn request(url: &str, method: &str, headers: &[(&str, &str)]) -> Result<Upgraded> {
    let rest = url
        .strip_prefix("http://")
        .with_context(|| format!("parse {url}"))?;
    let (host, path) = rest
        .split_once('/')
        .with_context(|| format!("parse {url}"))?;
    let address: SocketAddr = host.parse().with_context(|| format!("parse {url}"))?;
    let mut socket =
        TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    let mut text = format!("{method} /{path} HTTP/1.1\r\nHost: {host}\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    socket
        .write_all(text.as_bytes())
        .context("send the request")?;
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        ensure!(head.len() < 64 << 10, "the head of the answer does not end");
        socket.read_exact(&mut byte).context("read the answer")?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).context("the answer is not text")?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .with_context(|| format!("no status in {head:?}"))?;
    Ok(Upgraded {
        status,
        head,
        socket,
    })
}

/// Upgrades to a wire with these protocols on offer.
///
/// # Errors
/// The server does not agree; the message has its answer.
pub fn upgrade(url: &str, wire: Wire, protocols: &[&str]) -> Result<TcpStream> {
    let offer = protocols.join(", ");
    let mut headers = vec![("Connection", "Upgrade")];
    let method = match wire {
        Wire::Spdy => {
            headers.push(("Upgrade", "SPDY/3.1"));
            headers.extend(protocols.iter().map(|p| ("X-Stream-Protocol-Version", *p)));
            "POST"
        }
        Wire::WebSocket => {
            headers.push(("Upgrade", "websocket"));
            headers.push(("Sec-WebSocket-Version", "13"));
            headers.push(("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="));
            headers.push(("Sec-WebSocket-Protocol", &offer));
            "GET"
        }
    };
    let answer = request(url, method, &headers)?;
    if answer.status != 101 {
        bail!("not upgraded: {}", answer.head);
    }
    // As Kubernetes' client looks at the first value of each.
    let name = if wire == Wire::Spdy {
        "spdy/3.1"
    } else {
        "websocket"
    };
    for (header, word) in [("connection:", "upgrade"), ("upgrade:", name)] {
        let head = answer.head.to_ascii_lowercase();
        let line = head.lines().find(|line| line.starts_with(header));
        let said = line.is_some_and(|line| line.contains(word));
        ensure!(said, "no {header} {word} in {}", answer.head);
    }
    if wire == Wire::WebSocket {
        // The example of RFC 6455, 1.3.
        let accept = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
        ensure!(answer.head.contains(accept), "wrong key in {}", answer.head);
    }
    Ok(answer.socket)
}

/// Ends a connection by a reset, as a process does that is killed with input unread.
///
/// # Errors
/// The socket does not take the option.
pub fn reset(socket: &TcpStream) -> Result<()> {
    rustix::net::sockopt::set_socket_linger(socket, Some(Duration::ZERO)).context("SO_LINGER")?;
    Ok(())
}
