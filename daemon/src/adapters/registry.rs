//! The distribution protocol: from a reference to verified documents and streams of blobs. Hosts
//! and mirrors come from containerd's `certs.d`; nothing is stored here.
//!
//! ```text
//! resolve -> source -+-> document    indexes, manifests, config: whole, verified, at most 4 MiB
//!                    +-> blob        layers: an ordered stream of parts that resume; the
//!                                    consumer verifies
//! ```
//!
//! Every wait has a bound. Every byte and header of a server is hostile. Credentials stay with the
//! registry they are for.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axil_snapshotter::Digest;
use http::HeaderValue;

use crate::domain::image::manifest::{Descriptor, DocumentRules, own_media_type};
use crate::domain::image::media::{MediaType, is_generic};
use crate::domain::image::reference::Reference;

mod auth;
mod blob;
mod challenge;
mod credentials;
mod document;
mod error;
mod exchange;
pub(crate) mod fuzzing;
mod hosts;
#[cfg(test)]
mod image;
mod origin;
mod redact;
mod retry;
mod slots;
mod source;
mod tls;
mod transport;

pub use blob::BlobStream;
pub use credentials::{Credentials, CredentialsError};
pub use error::{Cause, Problem, RegistryError};
pub use hosts::HostsError;
#[cfg(test)]
pub(crate) use image::FetchImageError;
pub use origin::UrlProblem;
pub use source::Source;
pub use transport::ProxyOptions;

use document::Question;
use exchange::Exchange;
use source::Host;
use transport::Clients;

/// The bounds and places of a [`Registry`].
#[derive(Debug, Clone)]
pub struct RegistryOptions {
    /// Roots of `certs.d` layouts, in the order to search them.
    pub hosts_dirs: Vec<PathBuf>,
    /// Longest time for name resolution, connection and TLS together; `dial_timeout` of a
    /// `hosts.toml` goes before it.
    pub connect_timeout: Duration,
    /// Longest time without an answer, or with less than 16 KiB of a blob.
    pub progress_timeout: Duration,
    /// Longest time for one try of a manifest, config or token.
    pub document_timeout: Duration,
    /// Further tries after the first, per request and host. A transfer that made 16 KiB of progress
    /// starts to count anew.
    pub max_retries: u32,
    /// The first pause between tries; later ones double, up to 10 s.
    pub retry_backoff: Duration,
    /// Longest pause that a server may ask for; the answer of one that asks for more is reported at
    /// once, so that the caller's own retry comes later.
    pub max_retry_after: Duration,
    /// Most redirects followed for one question.
    pub max_redirects: usize,
    /// Largest token response in bytes.
    pub max_token_bytes: u64,
    /// What is taken of documents.
    pub documents: DocumentRules,
    /// Blobs transferred from one host at once, and as many documents; 0 counts as 1.
    pub transfers_per_host: usize,
    /// How large blobs are fetched.
    pub ranges: RangeOptions,
    /// The value of the `User-Agent` header; one that is no header value is replaced by `axil`.
    pub user_agent: String,
    /// The proxies to reach registries by.
    pub proxy: ProxyOptions,
}

impl Default for RegistryOptions {
    fn default() -> Self {
        Self {
            hosts_dirs: vec![PathBuf::from("/etc/containerd/certs.d")],
            connect_timeout: Duration::from_secs(10),
            progress_timeout: Duration::from_secs(60),
            document_timeout: Duration::from_secs(30),
            max_retries: 4,
            retry_backoff: Duration::from_millis(250),
            max_retry_after: Duration::from_secs(30),
            max_redirects: 10,
            max_token_bytes: 256 << 10,
            documents: DocumentRules::default(),
            transfers_per_host: 8,
            ranges: RangeOptions::default(),
            user_agent: concat!("axil/", env!("CARGO_PKG_VERSION")).to_owned(),
            proxy: ProxyOptions::default(),
        }
    }
}

/// How large blobs are fetched from servers that serve ranges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeOptions {
    /// Parts of one blob in flight; 1 fetches blobs whole.
    pub per_blob: usize,
    /// Bytes of a part, at least 1.
    pub bytes: u64,
    /// Bytes to fetch from which parts are used.
    pub threshold: u64,
    /// Memory for parts that came before their turn, in bytes, over all blobs. Where it is used up,
    /// parts are fetched one after the other.
    pub buffer_bytes: u64,
}

impl Default for RangeOptions {
    fn default() -> Self {
        Self {
            per_blob: 4,
            bytes: 8 << 20,
            threshold: 32 << 20,
            buffer_bytes: 64 << 20,
        }
    }
}

/// What a reference means at the moment.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The digest of `bytes`, verified.
    pub digest: Digest,
    /// The content type without parameters; a generic one is replaced by the document's own
    /// `mediaType`, if it has one.
    pub media_type: String,
    /// The manifest or index, at most 4 MiB.
    pub bytes: Vec<u8>,
    /// The host that answered, with its port.
    pub mirror: String,
    /// Where to get what the document refers to.
    pub source: Source,
}

/// A client of all registries. Cheap to clone; clones share connections and tokens.
#[derive(Clone)]
pub struct Registry {
    exchange: Arc<Exchange>,
    clients: Arc<Clients>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry")
            .field("options", &self.exchange.options)
            .finish_non_exhaustive()
    }
}

impl Registry {
    /// Makes a client. Nothing is read and nobody asked until the first pull, so that it works on
    /// a machine without authorities, name servers or configuration.
    #[must_use]
    pub fn new(options: RegistryOptions) -> Self {
        let clients = Clients::new(options.connect_timeout, &options.proxy);
        let user_agent = HeaderValue::from_str(&options.user_agent)
            .unwrap_or_else(|_| HeaderValue::from_static("axil"));
        Self {
            exchange: Arc::new(Exchange::new(options, user_agent)),
            clients: Arc::new(clients),
        }
    }

    /// Asks for the manifest or index that `reference` names.
    ///
    /// # Errors
    /// See [`RegistryError::class`]; `DataLoss` when the bytes do not have the reference's (or the
    /// registry's stated) digest.
    pub async fn resolve(
        &self,
        reference: &Reference,
        credentials: Option<&Credentials>,
    ) -> Result<Resolved, RegistryError> {
        let source = self.source(reference, credentials).await?;
        let question = Question::reference(&source);
        let found = self.exchange.document(&source, &question).await?;
        let media_type = match is_generic(&found.media_type) {
            true => own_media_type(&found.bytes).unwrap_or(found.media_type),
            false => found.media_type,
        };
        Ok(Resolved {
            digest: found.digest,
            media_type,
            bytes: found.bytes,
            mirror: source.host(found.host).config.origin.authority(),
            source: source.after_failures(found.failed),
        })
    }

    /// Fetches a nested index, a manifest or a config.
    ///
    /// # Errors
    /// See [`RegistryError::class`]; `DataLoss` when size or digest differ from the descriptor, or
    /// the content type contradicts it.
    pub async fn document(
        &self,
        source: &Source,
        descriptor: &Descriptor,
    ) -> Result<Vec<u8>, RegistryError> {
        let question = Question::descriptor(source, descriptor);
        let found = self.exchange.document(source, &question).await?;
        let is_manifest = matches!(
            MediaType::of(&descriptor.media_type),
            MediaType::Manifest(_) | MediaType::Index(_)
        );
        if is_manifest
            && !is_generic(&found.media_type)
            && found.media_type != descriptor.media_type
        {
            return Err(RegistryError {
                what: format!("{} of {}", descriptor.digest, source.reference()),
                host: source.host(found.host).config.origin.authority(),
                problem: Problem::ContentType {
                    expected: redact::shown(&descriptor.media_type),
                    found: redact::shown(&found.media_type),
                },
            });
        }
        Ok(found.bytes)
    }

    /// Asks for the manifest or index under another tag of the repository, with the source's credentials.
    ///
    /// # Errors
    /// As [`Registry::resolve`].
    pub async fn tagged(&self, source: &Source, tag: &str) -> Result<Vec<u8>, RegistryError> {
        let question = Question::tagged(source, tag);
        Ok(self.exchange.document(source, &question).await?.bytes)
    }

    /// Asks for the index of what refers to a document of the repository; its first page.
    ///
    /// # Errors
    /// As [`Registry::resolve`]; registries without such lists answer `NotFound`, `InvalidArgument` or
    /// `Unsupported`.
    pub async fn referrers(
        &self,
        source: &Source,
        digest: &Digest,
    ) -> Result<Vec<u8>, RegistryError> {
        let question = Question::referrers(source, digest);
        Ok(self.exchange.document(source, &question).await?.bytes)
    }

    /// What is taken of documents.
    #[must_use]
    pub fn document_rules(&self) -> &DocumentRules {
        &self.exchange.options.documents
    }

    /// Opens a blob of `descriptor.size` bytes at `offset`. Returns once a host has answered, and
    /// waits for its turn before. Whoever holds a stream keeps others of the same host waiting, so
    /// it must read on without waiting for another blob.
    ///
    /// # Errors
    /// See [`RegistryError::class`].
    pub async fn blob(
        &self,
        source: &Source,
        descriptor: &Descriptor,
        offset: u64,
    ) -> Result<BlobStream, RegistryError> {
        let exchange = Arc::clone(&self.exchange);
        let Descriptor { digest, size, .. } = descriptor;
        BlobStream::open(exchange, source, digest, *size, offset).await
    }

    /// Reads the configuration of the reference's host and decides about the credentials. Without
    /// asking anybody.
    ///
    /// # Errors
    /// `FailedPrecondition` when a file of the configuration cannot be used.
    pub async fn source(
        &self,
        reference: &Reference,
        credentials: Option<&Credentials>,
    ) -> Result<Source, RegistryError> {
        let refuse = |source| RegistryError {
            what: format!("configuration for {reference}"),
            host: reference.host().to_owned(),
            problem: Problem::Hosts { source },
        };
        let clients = Arc::clone(&self.clients);
        let roots = self.exchange.options.hosts_dirs.clone();
        let host = reference.host().to_owned();
        // Reads files, and the machine's authorities the first time.
        let loading = tokio::task::spawn_blocking(move || {
            let with_clients = |config| {
                let clients = clients.of(&config)?;
                Ok(Host { config, clients })
            };
            hosts::load(&roots, &host)?
                .into_iter()
                .map(with_clients)
                .collect::<Result<Vec<_>, HostsError>>()
        });
        let hosts = match loading
            .await
            .map_err(tokio::task::JoinError::try_into_panic)
        {
            Ok(loaded) => loaded.map_err(refuse)?,
            Err(Ok(panic)) => std::panic::resume_unwind(panic),
            // The runtime is going down.
            Err(Err(cancelled)) => {
                return Err(RegistryError {
                    what: format!("configuration for {reference}"),
                    host: reference.host().to_owned(),
                    problem: Problem::Transport {
                        source: cancelled.into(),
                    },
                });
            }
        };
        let credentials = credentials.filter(|credentials| {
            let belong = credentials.belong_to(reference.host());
            if !belong {
                tracing::debug!(
                    image.ref = %reference,
                    "the credentials name another registry and are not sent"
                );
            }
            belong
        });
        Ok(Source::new(reference.clone(), credentials.cloned(), hosts))
    }
}

#[cfg(test)]
mod tests;
