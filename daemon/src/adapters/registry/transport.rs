//! HTTP/1.1 connections: TCP or a proxy's tunnel, TLS, keep-alive, and a bound on every step up to
//! the head of the answer.

use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axil_snapshotter::Digest;
use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::Client as PooledClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tower_service::Service;

use super::error::{Cause, Problem};
use super::hosts::{HostConfig, HostsError};
use super::origin::is_loopback;
use super::redact::scrubbed;
use super::tls::{SystemRoots, TlsContents};

/// How long an unused connection is kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// Unused connections kept per host: the layers of one image in flight, and some.
const MAX_IDLE: usize = 8;
/// Largest read buffer, which also bounds the head of an answer, in bytes.
const MAX_BUFFER_BYTES: usize = 256 << 10;
/// Most clients kept, one per distinct TLS setting.
const MAX_CLIENTS: usize = 32;

/// Which proxy serves https registries; empty texts mean none.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ProxyOptions {
    /// URL of the proxy, as in the variable `HTTPS_PROXY`; may carry credentials.
    pub https: String,
    /// Hosts that are reached directly, as in the variable `NO_PROXY`.
    pub no_proxy: String,
}

impl fmt::Debug for ProxyOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyOptions")
            .field("https", &scrubbed(&self.https, &[]))
            .field("no_proxy", &self.no_proxy)
            .finish()
    }
}

type Stream = TokioIo<TcpStream>;
type Connecting<T> = Pin<Box<dyn Future<Output = Result<T, Cause>> + Send>>;

/// An HTTP client with one TLS setting and its own pool of connections.
#[derive(Debug, Clone)]
pub(super) struct Client(PooledClient<Bounded, Full<Bytes>>);

impl Client {
    /// Sends a request and waits at most `wait` for the head of the answer.
    pub(super) async fn send(
        &self,
        request: Request<Full<Bytes>>,
        wait: Duration,
    ) -> Result<Response<Incoming>, Problem> {
        match tokio::time::timeout(wait, self.0.request(request)).await {
            Err(_) => Err(Problem::Timeout {
                what: "answer",
                after: wait,
            }),
            Ok(Err(error)) => Err(classified(error)),
            Ok(Ok(response)) => Ok(response),
        }
    }
}

/// Tells a failed connection from a failed handshake and from a broken exchange.
fn classified(error: hyper_util::client::legacy::Error) -> Problem {
    if !error.is_connect() {
        return Problem::Transport {
            source: error.into(),
        };
    }
    if let Some(timed_out) = find::<ConnectTimeout>(&error) {
        return Problem::Timeout {
            what: "connection",
            after: timed_out.after,
        };
    }
    let source: Cause = error.into();
    if find::<rustls::Error>(source.as_ref()).is_some() {
        return Problem::Tls { source };
    }
    Problem::Connect { source }
}

/// Finds an error of type `E` among the sources, also inside I/O errors.
fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        let io = error.downcast_ref::<std::io::Error>();
        next = match io.and_then(std::io::Error::get_ref) {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    None
}

/// A connector with a bound on name resolution, connection, tunnel and handshake together.
#[derive(Clone)]
struct Bounded {
    connector: HttpsConnector<Direct>,
    wait: Duration,
}

impl Service<Uri> for Bounded {
    type Response = MaybeHttpsStream<Stream>;
    type Error = Cause;
    type Future = Connecting<Self::Response>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Cause>> {
        self.connector.poll_ready(context)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.connector.call(uri);
        let after = self.wait;
        Box::pin(async move {
            match tokio::time::timeout(after, connecting).await {
                Ok(connected) => connected,
                Err(_) => Err(ConnectTimeout { after }.into()),
            }
        })
    }
}

/// The time for a connection is over.
#[derive(Debug, thiserror::Error)]
#[error("no connection within {} ms", .after.as_millis())]
struct ConnectTimeout {
    after: Duration,
}

/// TCP to the server itself, or through the proxy's tunnel where one is configured for it.
#[derive(Clone)]
struct Direct {
    tcp: HttpConnector,
    proxy: Arc<Matcher>,
}

impl Service<Uri> for Direct {
    type Response = Stream;
    type Error = Cause;
    type Future = Connecting<Stream>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Cause>> {
        self.tcp.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let local = uri.host().is_none_or(is_loopback);
        let proxied = uri.scheme_str() == Some("https") && !local;
        match self.proxy.intercept(&uri).filter(|_| proxied) {
            None => {
                let connecting = self.tcp.call(uri);
                Box::pin(async move { connecting.await.map_err(Into::into) })
            }
            Some(proxy) => {
                let mut tunnel = Tunnel::new(proxy.uri().clone(), self.tcp.clone());
                if let Some(auth) = proxy.basic_auth() {
                    tunnel = tunnel.with_auth(auth.clone());
                }
                let connecting = tunnel.call(uri);
                Box::pin(async move { connecting.await.map_err(Into::into) })
            }
        }
    }
}

/// The two clients of a configured host.
#[derive(Debug, Clone)]
pub(super) struct HostClients {
    /// For the host itself.
    pub(super) own: Client,
    /// For other servers it names (redirects, token realms): never with its client certificate.
    pub(super) elsewhere: Client,
}

/// The clients in use, by their settings, so that connections outlive one pull.
pub(super) struct Clients {
    connect_timeout: Duration,
    proxy: Arc<Matcher>,
    roots: SystemRoots,
    kept: Mutex<HashMap<(Digest, Duration), Client>>,
}

impl Clients {
    pub(super) fn new(connect_timeout: Duration, proxy: &ProxyOptions) -> Self {
        let proxy = Matcher::builder()
            .https(proxy.https.clone())
            .no(proxy.no_proxy.clone())
            .build();
        Self {
            connect_timeout,
            proxy: Arc::new(proxy),
            roots: SystemRoots::default(),
            kept: Mutex::new(HashMap::new()),
        }
    }

    /// Returns the clients for a host. Blocking: reads certificates and keys.
    pub(super) fn of(&self, host: &HostConfig) -> Result<HostClients, HostsError> {
        let contents = TlsContents::read(&host.tls)?;
        let wait = host.dial_timeout.unwrap_or(self.connect_timeout);
        Ok(HostClients {
            own: self.client(&contents, wait)?,
            elsewhere: self.client(&contents.without_clients(), wait)?,
        })
    }

    fn client(&self, contents: &TlsContents, wait: Duration) -> Result<Client, HostsError> {
        let mut identity = Vec::new();
        contents.identify(&mut identity);
        let key = (Digest::sha256_of(&identity), wait);
        if let Some(client) = self.lock().get(&key) {
            return Ok(client.clone());
        }
        let client = self.build(contents, wait)?;
        let mut kept = self.lock();
        if kept.len() >= MAX_CLIENTS {
            // Only after many edits of certificates; pulls in flight hold their own clone.
            kept.clear();
        }
        Ok(kept.entry(key).or_insert(client).clone())
    }

    fn build(&self, contents: &TlsContents, wait: Duration) -> Result<Client, HostsError> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(Duration::from_secs(30)));
        tcp.set_connect_timeout(Some(wait));
        let direct = Direct {
            tcp,
            proxy: Arc::clone(&self.proxy),
        };
        let tls = contents.client_config(&self.roots)?;
        let connector = Bounded {
            connector: HttpsConnector::from((direct, tls)),
            wait,
        };
        let client = PooledClient::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(MAX_IDLE)
            .http1_max_buf_size(MAX_BUFFER_BYTES)
            .build(connector);
        Ok(Client(client))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(Digest, Duration), Client>> {
        // A map of finished values is never left half changed.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
