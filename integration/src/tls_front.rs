//! TLS in front of a plain server of the test: takes connections with a certificate and passes on what they carry.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::thread;

use anyhow::{Context as _, Result};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

/// The front; gone when dropped.
#[derive(Debug)]
pub struct TlsFront {
    address: SocketAddr,
    _stop: oneshot::Sender<()>,
}

impl TlsFront {
    /// Passes connections on to `to`, with `certificate` and `key` (both PEM).
    ///
    /// # Errors
    /// When the files cannot be used or no port can be bound.
    pub fn start(to: &str, certificate: &Path, key: &Path) -> Result<Self> {
        let to: SocketAddr = to
            .parse()
            .with_context(|| format!("parse the address {to:?}"))?;
        let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(certificate)
            .with_context(|| format!("read {}", certificate.display()))?
            .collect();
        let chain = chain.with_context(|| format!("read {}", certificate.display()))?;
        let key =
            PrivateKeyDer::from_pem_file(key).with_context(|| format!("read {}", key.display()))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .context("choose versions of TLS")?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .context("use the certificate")?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let reactor = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start a reactor")?;
        let listener = reactor
            .block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
            .context("bind a loopback port")?;
        let address = listener.local_addr().context("read the bound address")?;
        let (stop, stopped) = oneshot::channel::<()>();
        thread::spawn(move || {
            reactor.block_on(async {
                tokio::select! {
                    () = serve(&listener, &acceptor, to) => {}
                    _ = stopped => {}
                }
            });
        });
        Ok(Self {
            address,
            _stop: stop,
        })
    }

    /// `127.0.0.1:PORT`.
    #[must_use]
    pub fn address(&self) -> String {
        self.address.to_string()
    }
}

async fn serve(listener: &TcpListener, acceptor: &TlsAcceptor, to: SocketAddr) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            // Ignored: a client that breaks off, as tests of refused certificates do.
            let _broken = pass(acceptor, stream, to).await;
        });
    }
}

async fn pass(acceptor: TlsAcceptor, stream: TcpStream, to: SocketAddr) -> Result<()> {
    let mut client = acceptor.accept(stream).await.context("agree on TLS")?;
    let mut server = TcpStream::connect(to).await.context("connect")?;
    tokio::io::copy_bidirectional(&mut client, &mut server)
        .await
        .context("pass on")?;
    Ok(())
}
