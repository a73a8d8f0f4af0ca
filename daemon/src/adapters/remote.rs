//! `ports::images::Registry` over the distribution client in `adapters/registry`.

use async_trait::async_trait;
use axil_snapshotter::Digest;
use bytes::Bytes;

use super::registry::{
    self, Credentials, ProxyOptions, RangeOptions, RegistryError, RegistryOptions, Resolved,
};
use crate::config::ImageConfig;
use crate::domain::failure::{Class, Failure, KubeletError, chain};
use crate::domain::image::manifest::{Descriptor, DocumentRules, MAX_DOCUMENT_BYTES};
use crate::domain::image::reference::Reference;
use crate::ports::Answer;
use crate::ports::images::{BlobStream, PullAuth, Registry, RemoteImage};

/// Registries as configured.
#[derive(Debug)]
pub struct Registries {
    client: registry::Registry,
}

impl Registries {
    /// A client; nothing is read and nobody asked until the first pull.
    #[must_use]
    pub fn open(config: &ImageConfig) -> Self {
        // The variables every program of the field honours; lower case goes first, as in curl.
        let variable = |lower: &str, upper: &str| {
            std::env::var(lower)
                .or_else(|_| std::env::var(upper))
                .unwrap_or_default()
        };
        let options = RegistryOptions {
            hosts_dirs: config.hosts_dirs.clone(),
            connect_timeout: config.connect_timeout,
            progress_timeout: config.progress_timeout,
            document_timeout: config.document_timeout,
            max_retries: config.max_retries,
            retry_backoff: config.retry_backoff,
            max_retry_after: config.max_retry_after,
            max_redirects: config.max_redirects,
            max_token_bytes: config.max_token_size,
            documents: DocumentRules {
                // At most 4 MiB: the table of keys says so.
                max_document_bytes: usize::try_from(config.max_document_size)
                    .unwrap_or(MAX_DOCUMENT_BYTES),
                max_layers: config.max_layers,
                max_layer_bytes: config.max_layer_size,
                max_descriptors: config.max_descriptors,
                max_documents: config.max_documents,
                max_depth: config.max_index_depth,
                nondistributable: config.allow_nondistributable,
            },
            transfers_per_host: config.max_transfers_per_host,
            ranges: RangeOptions {
                per_blob: config.ranges_per_layer,
                bytes: config.range_size,
                threshold: config.range_threshold,
                buffer_bytes: config.download_buffer,
            },
            proxy: ProxyOptions {
                http: variable("http_proxy", "HTTP_PROXY"),
                https: variable("https_proxy", "HTTPS_PROXY"),
                no_proxy: variable("no_proxy", "NO_PROXY"),
            },
            ..RegistryOptions::default()
        };
        for variable in options.proxy.unusable() {
            tracing::error!(
                variable,
                "is no URL of a proxy; registries are asked directly"
            );
        }
        Self {
            client: registry::Registry::new(options),
        }
    }
}

fn failure(error: &RegistryError) -> Failure {
    let failure = Failure::new(error.class(), chain(error));
    match failure.class {
        // The caller has to tell a registry's silence from its own deadline.
        Class::Unavailable | Class::DeadlineExceeded => {
            failure.known_as(KubeletError::RegistryUnavailable)
        }
        _ => failure,
    }
}

#[async_trait]
impl Registry for Registries {
    async fn resolve(
        &self,
        reference: &Reference,
        auth: Option<&PullAuth>,
    ) -> Answer<Box<dyn RemoteImage>> {
        let credentials = match auth {
            None => None,
            Some(auth) => Credentials::from_pull_auth(auth)
                .map_err(|error| Failure::new(Class::InvalidArgument, chain(&error)))?,
        };
        let resolved = self.client.resolve(reference, credentials.as_ref()).await;
        let resolved = resolved.map_err(|error| failure(&error))?;
        Ok(Box::new(Remote {
            client: self.client.clone(),
            resolved,
        }))
    }
}

/// A resolved reference and where it was found.
struct Remote {
    client: registry::Registry,
    resolved: Resolved,
}

#[async_trait]
impl RemoteImage for Remote {
    fn digest(&self) -> &Digest {
        &self.resolved.digest
    }

    fn media_type(&self) -> &str {
        &self.resolved.media_type
    }

    fn bytes(&self) -> &[u8] {
        &self.resolved.bytes
    }

    fn rules(&self) -> DocumentRules {
        self.client.document_rules().clone()
    }

    async fn document(&self, descriptor: &Descriptor) -> Answer<Vec<u8>> {
        let document = self
            .client
            .document(&self.resolved.source, descriptor)
            .await;
        document.map_err(|error| failure(&error))
    }

    async fn tagged(&self, tag: &str) -> Answer<Option<Vec<u8>>> {
        let found = self.client.tagged(&self.resolved.source, tag).await;
        match found.map_err(|error| failure(&error)) {
            Err(failure) if failure.class == Class::NotFound => Ok(None),
            found => found.map(Some),
        }
    }

    async fn referrers(&self, digest: &Digest) -> Answer<Option<Vec<u8>>> {
        let source = &self.resolved.source;
        let found = self.client.referrers(source, digest).await;
        match found.map_err(|error| failure(&error)) {
            // What registries say that know nothing of referrers.
            Err(failure)
                if matches!(
                    failure.class,
                    Class::NotFound | Class::InvalidArgument | Class::Unsupported
                ) =>
            {
                Ok(None)
            }
            found => found.map(Some),
        }
    }

    async fn blob(&self, descriptor: &Descriptor, offset: u64) -> Answer<Box<dyn BlobStream>> {
        let blob = self
            .client
            .blob(&self.resolved.source, descriptor, offset)
            .await;
        Ok(Box::new(Download(blob.map_err(|error| failure(&error))?)))
    }
}

struct Download(registry::BlobStream);

#[async_trait]
impl BlobStream for Download {
    async fn next(&mut self) -> Answer<Option<Bytes>> {
        self.0.next().await.map_err(|error| failure(&error))
    }
}
