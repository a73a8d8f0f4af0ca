//! What a connection runs over: TCP to the server, or a proxy by the variables every program of the
//! field honours (`http_proxy`, `https_proxy`, `no_proxy`). Proxies may be plain, TLS or SOCKS 5.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{HeaderValue, Uri};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tower_service::Service;

use super::Connecting;
use crate::adapters::registry::error::Cause;
use crate::adapters::registry::origin::is_loopback;
use crate::adapters::registry::redact::scrubbed;

/// Which proxies serve registries; empty texts mean none.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ProxyOptions {
    /// URL of the proxy for plain registries, as in `http_proxy`; may carry credentials.
    pub http: String,
    /// URL of the proxy for https registries, as in `https_proxy`; may carry credentials.
    pub https: String,
    /// Hosts, domains, addresses and networks that are reached directly, as in `no_proxy`.
    pub no_proxy: String,
}

impl ProxyOptions {
    /// Returns the schemes whose proxy is set to something that is no URL of a proxy.
    #[must_use]
    pub fn unusable(&self) -> Vec<&'static str> {
        let everywhere = Matcher::builder()
            .http(self.http.clone())
            .https(self.https.clone())
            .build();
        let usable = |uri: &'static str| {
            let proxy = everywhere.intercept(&Uri::from_static(uri));
            proxy.is_some_and(|proxy| Kind::of(&proxy).is_some())
        };
        let mut found = Vec::new();
        if !self.http.is_empty() && !usable("http://registry.invalid/") {
            found.push("http_proxy");
        }
        if !self.https.is_empty() && !usable("https://registry.invalid/") {
            found.push("https_proxy");
        }
        found
    }
}

impl fmt::Debug for ProxyOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyOptions")
            .field("http", &scrubbed(&self.http, &[]))
            .field("https", &scrubbed(&self.https, &[]))
            .field("no_proxy", &self.no_proxy)
            .finish()
    }
}

/// How a proxy is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// HTTP, over TCP or TLS.
    Http,
    /// SOCKS 5; the proxy resolves names.
    Socks,
}

impl Kind {
    fn of(proxy: &Intercept) -> Option<Self> {
        match proxy.uri().scheme_str() {
            Some("http" | "https") => Some(Self::Http),
            Some("socks5" | "socks5h") => Some(Self::Socks),
            _ => None,
        }
    }
}

/// The proxies and who is reached without.
#[derive(Debug, Clone)]
pub(super) struct Proxies(Arc<Matcher>);

impl Proxies {
    pub(super) fn new(options: &ProxyOptions) -> Self {
        let matcher = Matcher::builder()
            .http(options.http.clone())
            .https(options.https.clone())
            .no(options.no_proxy.clone())
            .build();
        Self(Arc::new(matcher))
    }

    /// Returns the proxy for `uri`; this machine is always reached directly, as in Go.
    fn of(&self, uri: &Uri) -> Option<(Kind, Intercept)> {
        if uri.host().is_none_or(is_loopback) {
            return None;
        }
        let proxy = self.0.intercept(uri)?;
        Some((Kind::of(&proxy)?, proxy))
    }

    /// Returns the value of `Proxy-Authorization` for a plain request that goes to a proxy.
    pub(super) fn account_for_plain(&self, uri: &Uri) -> Option<HeaderValue> {
        match self.of(uri)? {
            (Kind::Http, proxy) if uri.scheme_str() == Some("http") => {
                let mut account = proxy.basic_auth()?.clone();
                account.set_sensitive(true);
                Some(account)
            }
            _ => None,
        }
    }
}

type Tcp = TokioIo<TcpStream>;
type ToProxy = HttpsConnector<HttpConnector>;

/// Makes links.
#[derive(Clone)]
pub(super) struct Links {
    tcp: HttpConnector,
    to_proxy: ToProxy,
    proxies: Proxies,
}

impl Links {
    /// `to_proxy` is the TLS with a proxy itself.
    pub(super) fn new(tcp: HttpConnector, to_proxy: ClientConfig, proxies: Proxies) -> Self {
        Self {
            to_proxy: HttpsConnector::from((tcp.clone(), to_proxy)),
            tcp,
            proxies,
        }
    }
}

impl Service<Uri> for Links {
    type Response = Link;
    type Error = Cause;
    type Future = Connecting<Link>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Cause>> {
        self.tcp.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let Some((kind, proxy)) = self.proxies.of(&uri) else {
            let connecting = self.tcp.call(uri);
            return Box::pin(async move { Ok(Link::to_server(connecting.await?)) });
        };
        match kind {
            Kind::Socks => {
                let mut socks = SocksV5::new(proxy.uri().clone(), self.tcp.clone());
                if let Some((user, password)) = proxy.raw_auth() {
                    socks = socks.with_auth(user.to_owned(), password.to_owned());
                }
                let connecting = socks.call(uri);
                Box::pin(async move { Ok(Link::to_server(connecting.await?)) })
            }
            Kind::Http if uri.scheme_str() == Some("https") => {
                let mut tunnel = Tunnel::new(proxy.uri().clone(), self.to_proxy.clone());
                if let Some(auth) = proxy.basic_auth() {
                    tunnel = tunnel.with_auth(auth.clone());
                }
                let connecting = tunnel.call(uri);
                Box::pin(async move {
                    Ok(Link {
                        stream: connecting.await?,
                        is_proxied: false,
                    })
                })
            }
            Kind::Http => {
                let connecting = self.to_proxy.call(proxy.uri().clone());
                Box::pin(async move {
                    Ok(Link {
                        stream: connecting.await?,
                        is_proxied: true,
                    })
                })
            }
        }
    }
}

/// A stream to a server, or to a proxy that wants whole URLs.
#[derive(Debug)]
pub(super) struct Link {
    stream: MaybeHttpsStream<Tcp>,
    is_proxied: bool,
}

impl Link {
    fn to_server(stream: Tcp) -> Self {
        Self {
            stream: MaybeHttpsStream::Http(stream),
            is_proxied: false,
        }
    }
}

impl Connection for Link {
    fn connected(&self) -> Connected {
        self.stream.connected().proxy(self.is_proxied)
    }
}

impl Read for Link {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl Write for Link {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_chosen_as_the_variables_say() {
        let options = ProxyOptions {
            http: "http://me:pw@plain.proxy:3128".into(),
            https: "socks5h://socks.proxy:1080".into(),
            no_proxy: "direct.test,10.0.0.0/8,.inner.test".into(),
        };
        assert!(options.unusable().is_empty());
        let proxies = Proxies::new(&options);
        let check = |uri: &str, expected: Option<(Kind, &str)>| {
            let found = proxies.of(&uri.parse().unwrap());
            let found = found.map(|(kind, proxy)| (kind, proxy.uri().host().unwrap().to_owned()));
            let found = found.as_ref().map(|(kind, host)| (*kind, host.as_str()));
            assert_eq!(found, expected, "{uri}");
        };
        check("http://r.test:5000/v2/", Some((Kind::Http, "plain.proxy")));
        check("https://r.test/v2/", Some((Kind::Socks, "socks.proxy")));
        for direct in [
            "http://direct.test/",
            "https://10.1.2.3/",
            "https://a.inner.test/",
            "http://localhost:5000/",
            "http://127.0.0.1:5000/",
            "http://[::1]:5000/",
        ] {
            check(direct, None);
        }
        let account = |uri: &str| proxies.account_for_plain(&uri.parse().unwrap());
        assert_eq!(account("http://r.test/").unwrap(), "Basic bWU6cHc=");
        assert_eq!(account("https://r.test/"), None);
        assert_eq!(account("http://direct.test/"), None);
    }

    #[test]
    fn proxies_that_cannot_be_are_named() {
        let options = ProxyOptions {
            http: "ftp://proxy".into(),
            https: "::".into(),
            no_proxy: "*".into(),
        };
        assert_eq!(options.unusable(), ["http_proxy", "https_proxy"]);
        assert!(ProxyOptions::default().unusable().is_empty());
    }
}
