//! Listens, reads one request per connection, and hands what it upgrades to a session.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue, UPGRADE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;

use super::line::Line;
use super::negotiate::{ACCEPTED_PROTOCOLS, Agreed, Refused, STREAM_PROTOCOL, Wire, negotiate};
use super::remote_command::Verb;
use super::tokens::Tokens;
use super::{Asked, base_url, port_forward, remote_command, websocket};
use crate::domain::failure::Failure;
use crate::engine::Engine;
use crate::engine::spawn::spawn;

/// Connections that have not sent their request yet; more wait in the kernel's queue.
const HANDSHAKES: usize = 256;

/// Sessions at once; a request beyond that is told to come back.
const SESSIONS: usize = 1024;

/// How long a client may take for TLS, and again for its request.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Largest head of a request.
pub(super) const MAX_HEAD: usize = 16 << 10;

/// A peer that vanished is noticed after the first plus three times the second.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(20));

type Answer = Response<Full<Bytes>>;

/// Gives out URLs, and serves them.
#[derive(Debug)]
pub struct Streaming {
    base: String,
    tokens: Tokens,
    idle: Duration,
    sessions: Arc<Semaphore>,
}

impl Streaming {
    /// Serves at `address`, with TLS or without; a session in which nothing moves for `idle` is ended.
    #[must_use]
    pub fn new(address: SocketAddr, tls: bool, idle: Duration) -> Self {
        Self {
            base: base_url(address, tls),
            tokens: Tokens::default(),
            idle,
            sessions: Arc::new(Semaphore::new(SESSIONS)),
        }
    }

    /// A URL that is good once, for a minute.
    ///
    /// # Errors
    /// `Exhausted` when too many wait to be used.
    pub fn url(&self, asked: Asked) -> Result<String, Failure> {
        let kind = asked.path();
        let token = self.tokens.issue(asked, Instant::now())?;
        Ok(format!("{}/{kind}/{token}", self.base))
    }

    /// Serves until the daemon ends.
    pub async fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        tls: Option<Arc<rustls::ServerConfig>>,
        engine: Engine,
    ) {
        let places = Arc::new(Semaphore::new(HANDSHAKES));
        let tls = tls.map(TlsAcceptor::from);
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(error = %error, "accept a streaming connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (streaming, tls, engine) = (Arc::clone(&self), tls.clone(), engine.clone());
            spawn("streaming connection", async move {
                if let Err(error) = streaming.connection(stream, tls, engine).await {
                    tracing::debug!(peer = %peer, error = %error, "a streaming connection broke");
                }
                drop(place);
            });
        }
    }

    /// One connection up to the upgrade.
    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        tls: Option<TlsAcceptor>,
        engine: Engine,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        watch_peer(&stream)?;
        let line = Arc::new(Line::watch(&stream)?);
        let Some(tls) = tls else {
            return self.request(stream, line, engine).await;
        };
        let stream = tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await??;
        self.request(stream, line, engine).await
    }

    async fn request<S>(
        self: Arc<Self>,
        stream: S,
        line: Arc<Line>,
        engine: Engine,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = service_fn(|request| {
            let answer = self.respond(request, &line, &engine);
            async move { Ok::<_, Infallible>(answer) }
        });
        http1()
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
            .await?;
        Ok(())
    }

    /// Redeems the token and begins the session.
    fn respond(&self, mut request: Request<Incoming>, line: &Arc<Line>, engine: &Engine) -> Answer {
        let path = request.uri().path().strip_prefix('/').unwrap_or_default();
        let (kind, token) = path.split_once('/').unwrap_or_default();
        let asked = self.tokens.redeem(token, Instant::now());
        let Some(asked) = asked.filter(|asked| asked.path() == kind) else {
            let unknown = "this URL is not known, was used, or is older than a minute\n";
            return say(StatusCode::NOT_FOUND, unknown);
        };
        let agreed = match negotiate(&request, &asked) {
            Ok(agreed) => agreed,
            Err(refused) => return refuse(&refused, &asked),
        };
        let Ok(place) = Arc::clone(&self.sessions).try_acquire_owned() else {
            let full = format!("{SESSIONS} streaming sessions are open; try again\n");
            return say(StatusCode::SERVICE_UNAVAILABLE, &full);
        };
        let answer = switch(&request, agreed);
        let session = Session {
            upgrade: hyper::upgrade::on(&mut request),
            line: Arc::clone(line),
            agreed,
            engine: engine.clone(),
            idle: self.idle,
            place,
        };
        spawn("streaming session", session.run(asked));
        answer
    }
}

/// An upgrade that is under way.
struct Session {
    upgrade: OnUpgrade,
    line: Arc<Line>,
    agreed: Agreed,
    engine: Engine,
    idle: Duration,
    place: OwnedSemaphorePermit,
}

impl Session {
    async fn run(self, asked: Asked) {
        let kind = asked.path();
        let _counted = self.engine.shared.metrics.session_begins(kind);
        // Bounded: hyper upgrades or gives up when the connection does.
        let io = match self.upgrade.await {
            Ok(upgraded) => TokioIo::new(upgraded),
            Err(error) => {
                tracing::debug!(kind, error = %error, "an upgrade failed");
                return;
            }
        };
        let Agreed { wire, protocol } = self.agreed;
        tracing::debug!(
            kind,
            protocol = protocol.name(),
            "a streaming session begins"
        );
        let verb = match asked {
            Asked::Exec(options) => Verb::Exec(options),
            Asked::Attach(options) => Verb::Attach(options),
            Asked::PortForward(options) => {
                let host = port_forward::Host {
                    engine: &self.engine,
                    idle: self.idle,
                    line: &self.line,
                };
                port_forward::serve(&host, &options, self.agreed, io).await;
                tracing::debug!(kind, "a streaming session ended");
                return;
            }
        };
        let host = remote_command::Host {
            engine: &self.engine,
            idle: self.idle,
            line: &self.line,
        };
        match wire {
            Wire::Spdy => remote_command::over_spdy::serve(&host, verb, protocol, io).await,
            Wire::WebSocket => {
                remote_command::over_websocket::serve(&host, verb, protocol, io).await;
            }
        }
        drop(self.place);
        tracing::debug!(kind, "a streaming session ended");
    }
}

/// The bounds of a request.
pub(super) fn http1() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HANDSHAKE)
        .max_buf_size(MAX_HEAD);
    builder
}

/// Makes the kernel notice a peer that is gone without a word.
fn watch_peer(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE.0)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE.1)?;
    // No TCP_USER_TIMEOUT: it would also end a client that is well and takes nothing for a while (`| less`).
    Ok(sockopt::set_tcp_keepcnt(stream, 3)?)
}

/// 101, with what was agreed.
pub(super) fn switch(request: &Request<Incoming>, agreed: Agreed) -> Answer {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    let name = HeaderValue::from_static(agreed.protocol.name());
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    match agreed.wire {
        Wire::Spdy => {
            headers.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
            headers.insert(STREAM_PROTOCOL, name);
        }
        Wire::WebSocket => {
            headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
            headers.insert(hyper::header::SEC_WEBSOCKET_PROTOCOL, name);
            let key = request.headers().get(hyper::header::SEC_WEBSOCKET_KEY);
            if let Some(accept) = key.and_then(|key| websocket::accept(key.as_bytes())) {
                headers.insert(hyper::header::SEC_WEBSOCKET_ACCEPT, accept);
            }
        }
    }
    response
}

pub(super) fn refuse(refused: &Refused, asked: &Asked) -> Answer {
    let mut response = say(refused.status, &format!("{}\n", refused.message));
    if refused.status == StatusCode::FORBIDDEN {
        let names = super::negotiate::supported_names(asked, Wire::Spdy);
        if let Ok(names) = HeaderValue::from_str(&names) {
            response.headers_mut().insert(ACCEPTED_PROTOCOLS, names);
        }
    }
    response
}

fn say(status: StatusCode, text: &str) -> Answer {
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(text.as_bytes())));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    // A token is good once, so nobody has a second request to make. Said here and not to the library, which
    // would write it over the `Upgrade` of the other answers.
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(CONNECTION, close);
    response
}
