//! HTTP/1.1 connections: TLS, keep-alive, and a bound on every step up to the head of the answer.
//! What is below TLS (TCP, proxies) is `link`'s part.

use std::collections::HashMap;
use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axil_snapshotter::Digest;
use bytes::Bytes;
use http::header::PROXY_AUTHORIZATION;
use http::{Request, Response, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::Client as PooledClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tower_service::Service;

use super::error::{Cause, Problem};
use super::hosts::{HostConfig, HostsError};
use super::tls::{SystemRoots, TlsContents};

mod link;

pub use link::ProxyOptions;
use link::{Link, Links, Proxies};

/// How long an unused connection is kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// Unused connections kept per host: the layers of one image in flight, and some.
const MAX_IDLE: usize = 8;
/// Largest read buffer, which also bounds the head of an answer, in bytes.
const MAX_BUFFER_BYTES: usize = 256 << 10;
/// Most clients kept, one per distinct TLS setting.
const MAX_CLIENTS: usize = 32;

type Connecting<T> = Pin<Box<dyn Future<Output = Result<T, Cause>> + Send>>;

/// An HTTP client with one TLS setting and its own pool of connections.
#[derive(Debug, Clone)]
pub(super) struct Client {
    pooled: PooledClient<Bounded, Full<Bytes>>,
    proxies: Proxies,
}

impl Client {
    /// Sends a request and waits at most `wait` for the head of the answer.
    pub(super) async fn send(
        &self,
        mut request: Request<Full<Bytes>>,
        wait: Duration,
    ) -> Result<Response<Incoming>, Problem> {
        // A plain request goes to its proxy as it is, and the proxy wants to know who asks.
        if let Some(account) = self.proxies.account_for_plain(request.uri()) {
            request.headers_mut().insert(PROXY_AUTHORIZATION, account);
        }
        match tokio::time::timeout(wait, self.pooled.request(request)).await {
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
    connector: HttpsConnector<Links>,
    wait: Duration,
}

impl Service<Uri> for Bounded {
    type Response = MaybeHttpsStream<Link>;
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
    proxies: Proxies,
    roots: SystemRoots,
    kept: Mutex<HashMap<(Digest, Duration), Client>>,
}

impl Clients {
    pub(super) fn new(connect_timeout: Duration, proxy: &ProxyOptions) -> Self {
        Self {
            connect_timeout,
            proxies: Proxies::new(proxy),
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
        // A proxy is no registry: only the machine's authorities vouch for it.
        let to_proxy = TlsContents::default().client_config(&self.roots)?;
        let links = Links::new(tcp, to_proxy, self.proxies.clone());
        let tls = contents.client_config(&self.roots)?;
        let connector = Bounded {
            connector: HttpsConnector::from((links, tls)),
            wait,
        };
        let pooled = PooledClient::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(MAX_IDLE)
            .http1_max_buf_size(MAX_BUFFER_BYTES)
            .build(connector);
        Ok(Client {
            pooled,
            proxies: self.proxies.clone(),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(Digest, Duration), Client>> {
        // A map of finished values is never left half changed.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
