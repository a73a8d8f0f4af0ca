//! A server that sends exactly the bytes a test tells it to, and remembers what it was asked.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// A request as it arrived.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) method: String,
    /// With the query.
    pub(super) path: String,
    /// Names are lower case.
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: String,
}

impl Seen {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The bytes asked for by a range request with an end, as `start..end`.
    pub(super) fn range(&self) -> Option<std::ops::Range<usize>> {
        let (start, last) = self
            .header("range")?
            .strip_prefix("bytes=")?
            .split_once('-')?;
        Some(start.parse().ok()?..last.parse::<usize>().ok()? + 1)
    }

    /// The first byte asked for by a range request.
    pub(super) fn range_start(&self) -> Option<usize> {
        let range = self.header("range")?.strip_prefix("bytes=")?;
        range.split('-').next()?.parse().ok()
    }
}

/// What a server does with a connection after a request.
#[derive(Debug, Clone)]
pub(super) enum Act {
    Send(Vec<u8>),
    Pause(Duration),
    /// Sends the bytes again and again until the peer is gone.
    Forever(Vec<u8>, Duration),
    /// Waits for the next request on the same connection; otherwise it is closed.
    KeepAlive,
}

pub(super) type Reply = Vec<Act>;

/// A complete answer with a length, on a connection that stays.
pub(super) fn reply(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Reply {
    let mut bytes = head(status, headers, Some(body.len()));
    bytes.extend_from_slice(body);
    vec![Act::Send(bytes), Act::KeepAlive]
}

/// The head of an answer.
pub(super) fn head(status: u16, headers: &[(&str, &str)], length: Option<usize>) -> Vec<u8> {
    let mut text = format!("HTTP/1.1 {status} X\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    if let Some(length) = length {
        text.push_str(&format!("content-length: {length}\r\n"));
    }
    text.push_str("\r\n");
    text.into_bytes()
}

type Handler = dyn Fn(&Seen, usize) -> Reply + Send + Sync;

/// The server; it ends with the value.
pub(super) struct Server {
    pub(super) port: u16,
    pub(super) connections: Arc<AtomicUsize>,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// Starts a plain server. The handler also gets how many requests for the same path (without
    /// query) came before.
    pub(super) async fn start(
        handler: impl Fn(&Seen, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::start_with(None, handler).await
    }

    pub(super) async fn start_with(
        tls: Option<TlsAcceptor>,
        handler: impl Fn(&Seen, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let connections = Arc::new(AtomicUsize::new(0));
        let handler: Arc<Handler> = Arc::new(handler);
        let (log, count) = (Arc::clone(&seen), Arc::clone(&connections));
        let task = tokio::spawn(async move {
            let mut tasks = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let (log, handler, tls) = (Arc::clone(&log), Arc::clone(&handler), tls.clone());
                tasks.spawn(async move {
                    match tls {
                        None => serve(stream, &log, &*handler).await,
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => serve(stream, &log, &*handler).await,
                            Err(_) => None,
                        },
                    }
                });
            }
        });
        Self {
            port,
            connections,
            seen,
            task,
        }
    }

    /// The host for a reference.
    pub(super) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.host())
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Requests whose path starts with `prefix`.
    pub(super) fn seen_at(&self, prefix: &str) -> Vec<Seen> {
        let mut seen = self.seen();
        seen.retain(|request| request.path.starts_with(prefix));
        seen
    }
}

/// Serves one connection; `None` when the peer is gone or the handler closes.
async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    log: &Mutex<Vec<Seen>>,
    handler: &Handler,
) -> Option<()> {
    loop {
        let request = read_request(&mut stream).await?;
        let reply = {
            let mut log = log.lock().unwrap();
            let bare = |path: &str| path.split('?').next().unwrap_or_default().to_owned();
            let same = log
                .iter()
                .filter(|seen| bare(&seen.path) == bare(&request.path));
            let before = same.count();
            log.push(request.clone());
            handler(&request, before)
        };
        let mut stays = false;
        for act in reply {
            match act {
                Act::Send(bytes) => stream.write_all(&bytes).await.ok()?,
                Act::Pause(pause) => {
                    stream.flush().await.ok()?;
                    tokio::time::sleep(pause).await;
                }
                Act::Forever(bytes, pause) => loop {
                    stream.write_all(&bytes).await.ok()?;
                    stream.flush().await.ok()?;
                    tokio::time::sleep(pause).await;
                },
                Act::KeepAlive => stays = true,
            }
        }
        stream.flush().await.ok()?;
        if !stays {
            stream.shutdown().await.ok()?;
            return None;
        }
    }
}

async fn read_request<S: AsyncRead + Unpin>(stream: &mut S) -> Option<Seen> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(stream.read_u8().await.ok()?);
    }
    let text = String::from_utf8(bytes).unwrap();
    let mut lines = text.trim_end().split("\r\n");
    let mut words = lines.next().unwrap().split(' ');
    let method = words.next().unwrap().to_owned();
    let path = words.next().unwrap().to_owned();
    let headers: BTreeMap<_, _> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length = headers
        .get("content-length")
        .map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some(Seen {
        method,
        path,
        headers,
        body: String::from_utf8(body).unwrap(),
    })
}

/// A proxy that tunnels every CONNECT to one local port, whatever name was asked for.
pub(super) async fn connect_proxy(to: u16) -> (u16, Arc<Mutex<Vec<String>>>, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let heads = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&heads);
    let task = tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(client.read_u8().await.unwrap());
            }
            log.lock().unwrap().push(String::from_utf8(head).unwrap());
            client
                .write_all(b"HTTP/1.1 200 Connected\r\n\r\n")
                .await
                .unwrap();
            let mut server = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
            tokio::spawn(async move {
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    (port, heads, task)
}

/// A SOCKS 5 proxy without authentication (RFC 1928) that connects every name to one local port.
pub(super) async fn socks_proxy(to: u16) -> (u16, Arc<Mutex<Vec<String>>>, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&asked);
    let task = tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut greeting = [0; 2];
            client.read_exact(&mut greeting).await.unwrap();
            let mut methods = vec![0; usize::from(greeting[1])];
            client.read_exact(&mut methods).await.unwrap();
            client.write_all(&[5, 0]).await.unwrap();
            let mut request = [0; 5];
            client.read_exact(&mut request).await.unwrap();
            assert_eq!(request[3], 3, "a name is asked for");
            let mut name = vec![0; usize::from(request[4])];
            client.read_exact(&mut name).await.unwrap();
            let name = String::from_utf8(name).unwrap();
            let number = client.read_u16().await.unwrap();
            log.lock().unwrap().push(format!("{name}:{number}"));
            client
                .write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0])
                .await
                .unwrap();
            let mut server = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
            tokio::spawn(async move {
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    (port, asked, task)
}
