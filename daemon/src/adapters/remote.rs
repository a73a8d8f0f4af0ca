//! `ports::images::Registry` over the distribution client in `adapters/registry`.

use async_trait::async_trait;
use axil_snapshotter::Digest;
use bytes::Bytes;

use super::registry::{self, Credentials, ProxyOptions, RegistryError, RegistryOptions, Resolved};
use crate::config::ImageConfig;
use crate::domain::failure::{Class, Failure, chain};
use crate::domain::image::manifest::Descriptor;
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
            progress_timeout: config.progress_timeout,
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
    Failure::new(error.class(), chain(error))
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

    async fn document(&self, descriptor: &Descriptor) -> Answer<Vec<u8>> {
        let document = self
            .client
            .document(&self.resolved.source, descriptor)
            .await;
        document.map_err(|error| failure(&error))
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
