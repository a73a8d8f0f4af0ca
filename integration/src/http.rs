//! Just enough HTTP/1.1 for tests: a client that reads one answer, and a server for small handlers.

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};

const TIMEOUT: Duration = Duration::from_secs(10);
const MAX_HEADER_LINE: u64 = 16 * 1024;

/// An answer received.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body as text.
    pub body: String,
}

/// Gets `path` from `host:port` and closes the connection.
///
/// # Errors
/// When nobody listens, or the answer is not HTTP.
pub fn get(host: &str, port: u16, path: &str) -> Result<Answer> {
    let ip: IpAddr = host
        .parse()
        .with_context(|| format!("parse the address {host:?}"))?;
    let address = SocketAddr::new(ip, port);
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)
        .with_context(|| format!("connect to {address}"))?;
    stream
        .set_read_timeout(Some(TIMEOUT))
        .context("set the read timeout")?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").context("send the request")?;
    let mut bytes = Vec::new();
    stream
        .read_to_end(&mut bytes)
        .with_context(|| format!("read from {address}"))?;
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text
        .split_once("\r\n\r\n")
        .with_context(|| format!("no HTTP answer: {text:?}"))?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.with_context(|| format!("no status in {head:?}"))?;
    Ok(Answer {
        status,
        body: body.to_owned(),
    })
}

/// A request a [`Server`] received.
#[derive(Debug)]
pub struct Request {
    /// `GET`, `HEAD`, …
    pub method: String,
    /// The path without the query.
    pub path: String,
    /// What follows the question mark, not decoded.
    pub query: String,
    /// Headers with lower-case names.
    pub headers: BTreeMap<String, String>,
    /// The client wants to use the connection again.
    persistent: bool,
}

/// What a handler answers.
#[derive(Debug, Default)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// Header lines; `content-length` is added when absent.
    pub headers: Vec<(String, String)>,
    /// The body; not sent for `HEAD`.
    pub body: Vec<u8>,
    /// Close the connection after so many bytes of the body.
    pub cut_after: Option<usize>,
    /// Send nothing more after so many bytes, but keep the connection for a minute.
    pub stall_after: Option<usize>,
    /// Send the body again and again until the client leaves, pausing before each time. No length is
    /// announced that was not given as a header.
    pub endless: Option<Duration>,
}

impl Reply {
    /// An answer with a body.
    #[must_use]
    pub fn new(status: u16, content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        let headers = vec![("content-type".to_owned(), content_type.to_owned())];
        Self {
            status,
            headers,
            body: body.into(),
            ..Self::default()
        }
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

/// A server on a free loopback port; one thread per connection, gone when dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
}

impl Server {
    /// Serves `handle` until dropped.
    ///
    /// # Errors
    /// When no port can be bound.
    pub fn start(handle: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Result<Self> {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("bind a loopback port")?;
        let address = listener.local_addr().context("read the bound address")?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let handle = Arc::new(handle);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let (handle, stopped) = (Arc::clone(&handle), Arc::clone(&stopped));
                thread::spawn(move || serve(&stream, &*handle, &stopped));
            }
        });
        Ok(Self { address, stop })
    }

    /// `127.0.0.1:PORT`.
    #[must_use]
    pub fn address(&self) -> String {
        self.address.to_string()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the accept loop so that it sees the flag.
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_millis(100));
    }
}

fn serve(stream: &TcpStream, handle: &dyn Fn(&Request) -> Reply, stopped: &AtomicBool) {
    let _ = stream.set_read_timeout(Some(Duration::from_secs(30)));
    let mut reader = BufReader::new(stream);
    while !stopped.load(Ordering::Relaxed) {
        let Some(request) = read_request(&mut reader) else {
            return;
        };
        let reply = handle(&request);
        match send(stream, &request, &reply) {
            Ok(true) => {}
            Ok(false) | Err(_) => return,
        }
    }
}

fn read_request(reader: &mut BufReader<&TcpStream>) -> Option<Request> {
    let first = read_line(reader)?;
    let mut words = first.split(' ');
    let method = words.next()?.to_owned();
    let target = words.next()?;
    let persistent = words.next() == Some("HTTP/1.1");
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut request = Request {
        method,
        path: path.to_owned(),
        query: query.to_owned(),
        headers: BTreeMap::new(),
        persistent,
    };
    loop {
        let line = read_line(reader)?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':')?;
        request
            .headers
            .insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length: u64 = request
        .headers
        .get("content-length")
        .map_or(Some(0), |v| v.parse().ok())?;
    io::copy(&mut reader.take(length.min(1 << 20)), &mut io::sink()).ok()?;
    Some(request)
}

fn read_line(reader: &mut BufReader<&TcpStream>) -> Option<String> {
    let mut line = String::new();
    let read = reader.take(MAX_HEADER_LINE).read_line(&mut line).ok()?;
    (read > 0).then(|| line.trim_end().to_owned())
}

/// Answers whether the connection can be used again.
fn send(mut stream: &TcpStream, request: &Request, reply: &Reply) -> io::Result<bool> {
    let mut head = format!("HTTP/1.1 {} Test\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let has_length = reply
        .headers
        .iter()
        .any(|(name, _)| name == "content-length");
    if !has_length && reply.endless.is_none() {
        head.push_str(&format!("content-length: {}\r\n", reply.body.len()));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())?;
    if request.method == "HEAD" {
        return Ok(request.persistent);
    }
    if let Some(pause) = reply.endless {
        loop {
            stream.write_all(&reply.body)?;
            stream.flush()?;
            thread::sleep(pause);
        }
    }
    let end = reply
        .cut_after
        .or(reply.stall_after)
        .unwrap_or(usize::MAX)
        .min(reply.body.len());
    stream.write_all(&reply.body[..end])?;
    stream.flush()?;
    if reply.stall_after.is_some() {
        // Bounded by the minute of the test that asked for it; the client gives up earlier.
        let mut rest = [0_u8; 1];
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let _ = stream.read(&mut rest);
        return Ok(false);
    }
    Ok(request.persistent && reply.cut_after.is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_reads_what_the_server_says() {
        let server = Server::start(|request| {
            Reply::new(
                200,
                "text/plain",
                format!("{} {}", request.path, request.query),
            )
        })
        .unwrap();
        let port = server.address.port();
        let answer = get("127.0.0.1", port, "/a?b=c").unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (200, "/a b=c"));
    }

    #[test]
    fn a_cut_reply_ends_early() {
        let server = Server::start(|_| Reply {
            cut_after: Some(3),
            ..Reply::new(200, "text/plain", "abcdef")
        })
        .unwrap();
        let answer = get("127.0.0.1", server.address.port(), "/").unwrap();
        assert_eq!(answer.body, "abc");
    }
}
