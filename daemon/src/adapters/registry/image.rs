//! For tests of the client: a whole image's documents in one call. The daemon walks them itself, step by
//! step (`engine/pull_image.rs`).

use axil_snapshotter::Digest;

use super::credentials::Credentials;
use super::error::RegistryError;
use super::source::Source;
use super::{Registry, Resolved};
use crate::domain::failure::Class;
use crate::domain::image::config::{ImageConfig, ImageConfigError};
use crate::domain::image::manifest::{
    Descriptor, ImageManifest, ManifestError, Platform, Step, Walk,
};
use crate::domain::image::reference::Reference;

/// A verified document as the registry has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchedDocument {
    /// Media type, digest and size.
    pub descriptor: Descriptor,
    /// The bytes, which have that digest.
    pub bytes: Vec<u8>,
}

/// Everything about an image but its layers.
#[derive(Debug, Clone)]
pub struct FetchedImage {
    /// Where to get the layers.
    pub source: Source,
    /// What the reference resolved to, an index or the manifest: the repo digest.
    pub digest: Digest,
    /// The digest of the manifest for the platform.
    pub manifest_digest: Digest,
    /// The manifest; `manifest.config.digest` is the image id.
    pub manifest: ImageManifest,
    /// The config.
    pub config: ImageConfig,
    /// Indexes, manifest and config in the order they were fetched.
    pub documents: Vec<FetchedDocument>,
    /// The host that resolved the reference, with its port.
    pub mirror: String,
}

impl Registry {
    /// Fetches and checks the documents of the image that `reference` names, for `platform`.
    ///
    /// # Errors
    /// What the registry, the documents and the config can be wrong about.
    pub async fn image(
        &self,
        reference: &Reference,
        credentials: Option<&Credentials>,
        platform: &Platform,
    ) -> Result<FetchedImage, FetchImageError> {
        let Resolved {
            digest,
            media_type,
            bytes,
            mirror,
            source,
        } = self.resolve(reference, credentials).await?;
        let mut walk = Walk::new(platform.clone(), self.exchange.options.documents.clone());
        let mut documents = vec![FetchedDocument {
            descriptor: Descriptor {
                media_type,
                digest: digest.clone(),
                size: bytes.len() as u64,
            },
            bytes,
        }];
        let refuse = |error| FetchImageError::manifest(reference, error);
        let (manifest_digest, manifest) = loop {
            let last = &documents[documents.len() - 1];
            let Descriptor {
                digest, media_type, ..
            } = &last.descriptor;
            match walk
                .accept(digest, media_type, &last.bytes)
                .map_err(refuse)?
            {
                Step::Image { digest, manifest } => break (digest, manifest),
                Step::Fetch(descriptor) => {
                    let bytes = self.document(&source, &descriptor).await?;
                    documents.push(FetchedDocument { descriptor, bytes });
                }
            }
        };
        let bytes = self.document(&source, &manifest.config).await?;
        let config = ImageConfig::parse(&bytes, manifest.layers.len())
            .and_then(|config| config.check_platform(platform).map(|()| config))
            .map_err(|source| FetchImageError::Config {
                reference: reference.to_string(),
                source,
            })?;
        if config.dropped_labels > 0 {
            tracing::warn!(
                image.ref = %reference,
                count = config.dropped_labels,
                "dropped labels of reserved namespaces from an image"
            );
        }
        documents.push(FetchedDocument {
            descriptor: manifest.config.clone(),
            bytes,
        });
        Ok(FetchedImage {
            source,
            digest,
            manifest_digest,
            manifest,
            config,
            documents,
            mirror,
        })
    }
}

/// Why the documents of an image cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum FetchImageError {
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A manifest or index.
    #[error("image {reference}: {source}")]
    Manifest {
        /// The reference.
        reference: String,
        /// What is wrong with the document.
        source: ManifestError,
    },
    /// The config.
    #[error("image {reference}: {source}")]
    Config {
        /// The reference.
        reference: String,
        /// What is wrong with the config.
        source: ImageConfigError,
    },
}

impl FetchImageError {
    fn manifest(reference: &Reference, source: ManifestError) -> Self {
        Self::Manifest {
            reference: reference.to_string(),
            source,
        }
    }

    /// Returns the class of the error.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Registry(error) => error.class(),
            Self::Manifest { source, .. } => source.class(),
            Self::Config { source, .. } => source.class(),
        }
    }
}
