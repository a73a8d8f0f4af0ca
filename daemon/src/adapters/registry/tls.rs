//! TLS settings of one server: the machine's authorities plus the configured ones, client
//! certificates, and verification switched off where the operator says so. How a server's
//! certificate is judged is `verifier`'s part, which client certificate it is shown `client_auth`'s.

use std::io::{self, Read as _};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore};

use super::hosts::{HostsError, TlsFiles};

mod client_auth;
mod verifier;

use client_auth::ByIssuer;
use verifier::{Listed, Unverified};

/// Largest PEM file, in bytes.
const MAX_PEM_BYTES: u64 = 4 << 20;

/// The contents of the files of [`TlsFiles`], so that a changed file makes a new client.
#[derive(Debug, Default)]
pub(super) struct TlsContents {
    authorities: Vec<(std::path::PathBuf, Vec<u8>)>,
    /// Certificate and key.
    clients: Vec<(std::path::PathBuf, Vec<u8>, Vec<u8>)>,
    skip_verify: bool,
}

impl TlsContents {
    /// Reads the files. Blocking.
    pub(super) fn read(files: &TlsFiles) -> Result<Self, HostsError> {
        let authorities = files.authorities.iter();
        let clients = files.clients.iter();
        Ok(Self {
            authorities: authorities
                .map(|path| Ok((path.clone(), read(path)?)))
                .collect::<Result<_, HostsError>>()?,
            clients: clients
                .map(|(cert, key)| Ok((cert.clone(), read(cert)?, read(key)?)))
                .collect::<Result<_, HostsError>>()?,
            skip_verify: files.skip_verify,
        })
    }

    /// Returns the same settings without client certificates, for servers that the operator did
    /// not name.
    pub(super) fn without_clients(&self) -> Self {
        Self {
            authorities: self.authorities.clone(),
            clients: Vec::new(),
            skip_verify: self.skip_verify,
        }
    }

    /// Appends everything that tells these settings from others.
    pub(super) fn identify(&self, out: &mut Vec<u8>) {
        let mut push = |bytes: &[u8]| {
            out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
            out.extend_from_slice(bytes);
        };
        push(&[u8::from(self.skip_verify)]);
        for (_, pem) in &self.authorities {
            push(b"ca");
            push(pem);
        }
        for (_, cert, key) in &self.clients {
            push(b"client");
            push(cert);
            push(key);
        }
    }

    /// Builds the client side of TLS. Blocking: may read the machine's authorities.
    pub(super) fn client_config(&self, roots: &SystemRoots) -> Result<ClientConfig, HostsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("ring supports the default versions");
        let builder = if self.skip_verify {
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Unverified(Arc::clone(&provider))))
        } else {
            let mut store = RootCertStore::clone(&roots.get());
            let mut listed = Vec::new();
            for (path, pem) in &self.authorities {
                for certificate in certificates(path, pem)? {
                    store
                        .add(certificate.clone())
                        .map_err(|error| refuse(path, &error))?;
                    listed.push(certificate);
                }
            }
            match self.authorities.first() {
                None => builder.with_root_certificates(store),
                Some((path, _)) => {
                    let chains = WebPkiServerVerifier::builder_with_provider(
                        store.into(),
                        Arc::clone(&provider),
                    )
                    .build()
                    .map_err(|error| refuse(path, &error))?;
                    builder
                        .dangerous()
                        .with_custom_certificate_verifier(Arc::new(Listed::new(chains, listed)))
                }
            }
        };
        if self.clients.is_empty() {
            return Ok(builder.with_no_client_auth());
        }
        let mut shown = ByIssuer::new();
        for (path, cert, key) in &self.clients {
            let chain = certificates(path, cert)?;
            let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| refuse(path, &error))?;
            CertifiedKey::from_der(chain, key, &provider)
                .and_then(|certified| shown.add(certified))
                .map_err(|error| refuse(path, &error))?;
        }
        Ok(builder.with_client_cert_resolver(Arc::new(shown)))
    }
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, HostsError> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| refuse(path, &error))?;
    if found.is_empty() {
        return Err(HostsError::Certificate {
            path: path.to_owned(),
            reason: "it has no certificate in PEM form".into(),
        });
    }
    Ok(found)
}

fn refuse(path: &Path, error: &dyn std::error::Error) -> HostsError {
    HostsError::Certificate {
        path: path.to_owned(),
        reason: error.to_string(),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, HostsError> {
    let refuse = |source| HostsError::Read {
        path: path.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .map_err(refuse)?
        .take(MAX_PEM_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(refuse)?;
    if bytes.len() as u64 > MAX_PEM_BYTES {
        return Err(refuse(io::ErrorKind::FileTooLarge.into()));
    }
    Ok(bytes)
}

/// The authorities the machine trusts, read once, when TLS is first needed. A machine without any
/// still serves plain and own-authority registries.
#[derive(Debug, Default)]
pub(super) struct SystemRoots(OnceLock<Arc<RootCertStore>>);

impl SystemRoots {
    fn get(&self) -> Arc<RootCertStore> {
        if let Some(roots) = self.0.get() {
            return Arc::clone(roots);
        }
        let loaded = rustls_native_certs::load_native_certs();
        for error in &loaded.errors {
            tracing::debug!(error = %error, "a trusted certificate of this machine is unusable");
        }
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(loaded.certs);
        let store = Arc::new(store);
        if store.is_empty() {
            // Not kept: the package with the authorities may be installed later.
            tracing::warn!(
                "this machine has no trusted certificates; TLS registries need a \"ca\" in hosts.toml"
            );
            return store;
        }
        Arc::clone(self.0.get_or_init(|| store))
    }
}
