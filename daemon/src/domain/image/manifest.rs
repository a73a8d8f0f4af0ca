//! Image manifests and indexes, OCI and Docker schema 2: hostile JSON in, checked values out.
//! Fetching them is the registry's part; unpacking layers is the snapshotter's.
//!
//! Embedded data, foreign URLs and annotations of descriptors are not even read, nor is the `subject`
//! by which a document refers to another one. The annotations of a manifest are kept to be shown, in
//! part: nothing decides by them.

use std::collections::{BTreeMap, BTreeSet};

use axil_snapshotter::{Digest, ParseDigestError};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::bounded::{List, Map};
use super::config::is_reserved;
use super::media::{self, Compression, Family, MediaType};
use super::reference::shown;
use crate::domain::failure::Class;

mod platform;
mod walk;

pub use platform::Platform;
pub use walk::{Step, Walk};

/// Largest manifest, index or config, in bytes (containerd's cap, CVE-2020-1702).
pub const MAX_DOCUMENT_BYTES: usize = 4 << 20;
/// Most layers of one image.
pub const MAX_LAYERS: usize = 512;
/// Most descriptors in all documents of one image together (GO-2026-6597).
pub const MAX_DESCRIPTORS: usize = 2048;
/// Largest compressed layer, and largest sum of the layers of an image, in bytes.
pub const MAX_LAYER_BYTES: u64 = 1 << 40;
/// Most descriptors of one document that are kept in memory, whatever the rules say of their number.
const MOST_DESCRIPTORS: usize = 65_536;
/// Most bytes of a manifest's annotations that are kept: they are in every list of images, which has
/// to fit into one message.
const MAX_ANNOTATION_BYTES: usize = 16 << 10;
/// What is taken of documents: the operator's limits (`[images]` of the configuration).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DocumentRules {
    /// Largest document in bytes, at most [`MAX_DOCUMENT_BYTES`].
    pub max_document_bytes: usize,
    /// Most layers of one image, at most [`MAX_LAYERS`].
    pub max_layers: usize,
    /// Largest compressed layer, and largest sum of an image's layers, in bytes, at most
    /// [`MAX_LAYER_BYTES`].
    pub max_layer_bytes: u64,
    /// Most descriptors in all documents of one image together, at most 65536.
    pub max_descriptors: usize,
    /// Most documents between a reference and its image.
    pub max_documents: usize,
    /// Deepest chain of documents: one less are indexes.
    pub max_depth: usize,
    /// Non-distributable layers are taken if the registry itself has them.
    pub nondistributable: bool,
}

impl DocumentRules {
    /// The rules for documents that were taken once, whatever the operator's limits were then.
    #[must_use]
    pub fn of_stored() -> Self {
        Self {
            nondistributable: true,
            ..Self::default()
        }
    }
}

impl Default for DocumentRules {
    fn default() -> Self {
        Self {
            max_document_bytes: MAX_DOCUMENT_BYTES,
            max_layers: MAX_LAYERS,
            max_layer_bytes: MAX_LAYER_BYTES,
            max_descriptors: MAX_DESCRIPTORS,
            max_documents: 32,
            max_depth: 4,
            nondistributable: false,
        }
    }
}

/// Most platforms that an error lists.
const SHOWN_PLATFORMS: usize = 16;

/// A reference to content by digest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Descriptor {
    /// What the content is, without parameters.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its exact size in bytes.
    pub size: u64,
}

/// A layer that can be unpacked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LayerDescriptor {
    /// The digest of the compressed bytes.
    pub digest: Digest,
    /// Their exact size in bytes.
    pub size: u64,
    /// How the tar archive is compressed.
    pub compression: Compression,
    /// The media type as written.
    pub media_type: String,
}

impl LayerDescriptor {
    /// Returns the layer as a plain descriptor.
    #[must_use]
    pub fn descriptor(&self) -> Descriptor {
        Descriptor {
            media_type: self.media_type.clone(),
            digest: self.digest.clone(),
            size: self.size,
        }
    }
}

/// A runnable image: its config and its layers, the base first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageManifest {
    /// The image config; its digest is the image id.
    pub config: Descriptor,
    /// At most [`MAX_LAYERS`] layers.
    pub layers: Vec<LayerDescriptor>,
    /// Annotations outside the namespaces of the platform, as far as they are kept.
    pub annotations: BTreeMap<String, String>,
}

impl ImageManifest {
    /// Returns the sum of the compressed layers and the config in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.layers.iter().map(|layer| layer.size).sum::<u64>() + self.config.size
    }
}

/// One entry of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexEntry {
    /// What the entry points to.
    pub descriptor: Descriptor,
    /// The platform the index claims for it.
    pub platform: Option<Platform>,
}

/// A parsed document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// An image manifest.
    Manifest(ImageManifest),
    /// An index; at most [`MAX_DESCRIPTORS`] entries.
    Index(Vec<IndexEntry>),
}

impl Document {
    /// Returns how many descriptors the document has.
    fn descriptors(&self) -> usize {
        match self {
            Self::Manifest(manifest) => manifest.layers.len() + 1,
            Self::Index(entries) => entries.len(),
        }
    }
}

/// Parses a manifest or index under `rules`. `content_type` is what the registry (or the parent's
/// descriptor) says of the bytes; a generic or empty one leaves the decision to the document's own
/// `mediaType`.
///
/// # Errors
/// A document that can be read in two ways, a schema 1 manifest, an OCI artifact, a layer that
/// cannot be unpacked, a value out of its limits: each names the field.
pub fn parse_document(
    content_type: &str,
    bytes: &[u8],
    rules: &DocumentRules,
) -> Result<Document, ManifestError> {
    if bytes.len() > rules.max_document_bytes {
        return Err(ManifestError::TooLarge {
            field: "document".into(),
            found: bytes.len() as u64,
            limit: rules.max_document_bytes as u64,
        });
    }
    let content_type = media::without_parameters(content_type);
    if let MediaType::Refused(reason) = MediaType::of(&content_type) {
        return Err(refused("content type", &content_type, reason));
    }
    let text = std::str::from_utf8(bytes).map_err(|source| ManifestError::Utf8 { source })?;
    let raw: RawDocument =
        serde_json::from_str(text).map_err(|source| ManifestError::Json { source })?;
    raw.check(&content_type, rules)
}

/// Returns what a document itself says it is, for a server whose content type says nothing. The
/// rest of the document is not checked.
#[must_use]
pub fn own_media_type(bytes: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Stated {
        #[serde(rename = "mediaType")]
        media_type: String,
    }
    let stated: Stated = serde_json::from_slice(bytes).ok()?;
    Some(stated.media_type)
}

/// Every field that decides what a document is, of both manifests and indexes, so that a document
/// with the fields of both is seen (CVE-2021-41190). A repeated field is an error of the parser.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: Option<u64>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<RawDescriptor>,
    layers: Option<List<RawDescriptor, MOST_DESCRIPTORS>>,
    manifests: Option<List<RawDescriptor, MOST_DESCRIPTORS>>,
    fs_layers: Option<IgnoredAny>,
    blobs: Option<IgnoredAny>,
    annotations: Option<Map<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    #[serde(default)]
    digest: String,
    size: Option<i64>,
    platform: Option<RawPlatform>,
}

#[derive(Deserialize)]
struct RawPlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    variant: Option<String>,
}

impl RawDocument {
    fn check(self, content_type: &str, rules: &DocumentRules) -> Result<Document, ManifestError> {
        if self.schema_version == Some(1) || self.fs_layers.is_some() {
            let MediaType::Refused(reason) =
                MediaType::of("application/vnd.docker.distribution.manifest.v1+json")
            else {
                unreachable!("schema 1 is a refused type");
            };
            return Err(refused("schemaVersion", "1", reason));
        }
        let kind = self.kind(content_type)?;
        if self.schema_version != Some(2) {
            return Err(ManifestError::Ambiguous {
                reason: "schemaVersion is not 2".into(),
            });
        }
        match kind {
            MediaType::Index(_) => self.into_index(rules),
            _ => self.into_manifest(rules),
        }
    }

    /// Decides between manifest and index; every hint present must agree.
    fn kind(&self, content_type: &str) -> Result<MediaType, ManifestError> {
        let own = self.media_type.as_deref().filter(|own| !own.is_empty());
        let stated = match own {
            Some(own) if !media::is_generic(content_type) && own != content_type => {
                return Err(ManifestError::Ambiguous {
                    reason: format!(
                        "mediaType \"{}\" differs from the content type \"{}\"",
                        shown(own),
                        shown(content_type)
                    ),
                });
            }
            Some(own) => own,
            None if !media::is_generic(content_type) => content_type,
            None => {
                return Err(ManifestError::Ambiguous {
                    reason: "neither mediaType nor the content type says what it is".into(),
                });
            }
        };
        let kind = MediaType::of(stated);
        let is_index = match kind {
            MediaType::Manifest(_) => false,
            MediaType::Index(_) => true,
            MediaType::Refused(reason) => return Err(refused("mediaType", stated, reason)),
            MediaType::Config | MediaType::Layer(_) | MediaType::Foreign(_) | MediaType::Other => {
                return Err(refused("mediaType", stated, "no image manifest or index"));
            }
        };
        // Docker's schema demands the field; only OCI documents may leave it out.
        let docker = matches!(
            kind,
            MediaType::Manifest(Family::Docker) | MediaType::Index(Family::Docker)
        );
        let foreign = if is_index {
            self.config.is_some() || self.layers.is_some()
        } else {
            self.manifests.is_some()
        };
        let reason = if docker && own.is_none() {
            "mediaType is missing"
        } else if foreign {
            "it has the fields of a manifest and of an index"
        } else if self.blobs.is_some() {
            "it has the field \"blobs\" of an artifact manifest"
        } else {
            return Ok(kind);
        };
        Err(ManifestError::Ambiguous {
            reason: reason.into(),
        })
    }

    fn into_index(self, rules: &DocumentRules) -> Result<Document, ManifestError> {
        let raw = self.manifests.ok_or(ManifestError::Missing {
            field: "manifests".into(),
        })?;
        limit("manifests", raw.count, rules.max_descriptors)?;
        let mut entries = Vec::with_capacity(raw.kept.len());
        for (index, mut raw) in raw.kept.into_iter().enumerate() {
            let platform = raw.platform.take().map(Platform::from);
            let descriptor = raw.check(&format!("manifests[{index}]"), MAX_LAYER_BYTES)?;
            entries.push(IndexEntry {
                descriptor,
                platform,
            });
        }
        Ok(Document::Index(entries))
    }

    fn into_manifest(self, rules: &DocumentRules) -> Result<Document, ManifestError> {
        let missing = |field: &str| ManifestError::Missing {
            field: field.into(),
        };
        let config = self.config.ok_or_else(|| missing("config"))?;
        let config = config.check("config", rules.max_document_bytes as u64)?;
        if MediaType::of(&config.media_type) != MediaType::Config {
            // The image specification, "Guidelines for Artifact Usage": with an empty config the
            // field artifactType says what it is.
            let (field, media_type) = match self.artifact_type.as_deref() {
                Some(artifact) if !artifact.is_empty() => ("artifactType", artifact),
                _ => ("config.mediaType", config.media_type.as_str()),
            };
            return Err(refused(field, media_type, "an OCI artifact, not an image"));
        }
        let raw = self.layers.ok_or_else(|| missing("layers"))?;
        limit("layers", raw.count, rules.max_layers)?;
        let mut layers = Vec::with_capacity(raw.kept.len());
        let mut total = 0u64;
        for (index, raw) in raw.kept.into_iter().enumerate() {
            let field = format!("layers[{index}]");
            let layer = raw.check(&field, rules.max_layer_bytes)?;
            total = total.saturating_add(layer.size);
            layers.push(layer.into_layer(&field, rules)?);
        }
        if total > rules.max_layer_bytes {
            return Err(ManifestError::TooLarge {
                field: "sum of layers".into(),
                found: total,
                limit: rules.max_layer_bytes,
            });
        }
        Ok(Document::Manifest(ImageManifest {
            config,
            layers,
            annotations: shown_annotations(self.annotations.unwrap_or_default().kept),
        }))
    }
}

/// What is kept of annotations: those of nobody's namespace that fit, in the order of their keys.
fn shown_annotations(all: BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut room = MAX_ANNOTATION_BYTES;
    let fits = |(key, value): &(String, String)| {
        let bytes = key.len() + value.len();
        let fits = !is_reserved(key) && bytes <= room;
        room -= if fits { bytes } else { 0 };
        fits
    };
    all.into_iter().filter(fits).collect()
}

impl RawDescriptor {
    fn check(self, field: &str, max_bytes: u64) -> Result<Descriptor, ManifestError> {
        let digest = self
            .digest
            .parse()
            .map_err(|source| ManifestError::Digest {
                field: format!("{field}.digest"),
                source,
            })?;
        let size = self.size.ok_or_else(|| ManifestError::Missing {
            field: format!("{field}.size"),
        })?;
        let size = u64::try_from(size).map_err(|_| ManifestError::NegativeSize {
            field: format!("{field}.size"),
            size,
        })?;
        if size > max_bytes {
            return Err(ManifestError::TooLarge {
                field: format!("{field}.size"),
                found: size,
                limit: max_bytes,
            });
        }
        Ok(Descriptor {
            media_type: self.media_type,
            digest,
            size,
        })
    }
}

impl Descriptor {
    fn into_layer(
        self,
        field: &str,
        rules: &DocumentRules,
    ) -> Result<LayerDescriptor, ManifestError> {
        let field = format!("{field}.mediaType");
        let compression = match MediaType::of(&self.media_type) {
            MediaType::Layer(compression) => compression,
            MediaType::Foreign(compression) if rules.nondistributable => compression,
            MediaType::Foreign(_) => {
                let reason = "a non-distributable layer, which images.allow_nondistributable \
                              would take from the registry";
                return Err(refused(&field, &self.media_type, reason));
            }
            MediaType::Refused(reason) => return Err(refused(&field, &self.media_type, reason)),
            MediaType::Manifest(_) | MediaType::Index(_) | MediaType::Config | MediaType::Other => {
                return Err(refused(&field, &self.media_type, "no known layer type"));
            }
        };
        Ok(LayerDescriptor {
            digest: self.digest,
            size: self.size,
            compression,
            media_type: self.media_type,
        })
    }
}

fn refused(field: &str, media_type: &str, reason: &'static str) -> ManifestError {
    ManifestError::Unsupported {
        field: field.to_owned(),
        media_type: shown(media_type),
        reason,
    }
}

fn limit(field: &str, found: usize, limit: usize) -> Result<(), ManifestError> {
    if found <= limit {
        return Ok(());
    }
    Err(ManifestError::TooMany {
        field: field.to_owned(),
        found,
        limit,
    })
}

/// Lists platforms for an error, bounded.
fn listed(platforms: &BTreeSet<String>) -> String {
    if platforms.is_empty() {
        return "nothing for any platform".into();
    }
    let shown: Vec<_> = platforms.iter().take(SHOWN_PLATFORMS).cloned().collect();
    let more = platforms.len().saturating_sub(SHOWN_PLATFORMS);
    match more {
        0 => shown.join(", "),
        _ => format!("{} and {more} more", shown.join(", ")),
    }
}

/// Why a document is not taken. Values of the document are cut and escaped.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is not JSON, or a field has the wrong type or occurs twice.
    #[error("image document is not valid: {source}")]
    Json {
        /// The parser's error, with line and column.
        source: serde_json::Error,
    },
    /// It is not UTF-8.
    #[error("image document is not UTF-8: {source}")]
    Utf8 {
        /// Where.
        source: std::str::Utf8Error,
    },
    /// It can be read in more than one way.
    #[error("image document is ambiguous: {reason}")]
    Ambiguous {
        /// The contradiction.
        reason: String,
    },
    /// A required field is missing.
    #[error("image document has no field \"{field}\"")]
    Missing {
        /// The path of the field.
        field: String,
    },
    /// A digest is not valid.
    #[error("image document, field \"{field}\": {source}")]
    Digest {
        /// The path of the field.
        field: String,
        /// What is wrong with the digest.
        source: ParseDigestError,
    },
    /// A size is below zero.
    #[error("image document, field \"{field}\": size {size} is negative")]
    NegativeSize {
        /// The path of the field.
        field: String,
        /// The refused size.
        size: i64,
    },
    /// Something has more bytes than its limit.
    #[error("image document, field \"{field}\": {found} bytes, the limit is {limit}")]
    TooLarge {
        /// The path of the field.
        field: String,
        /// Bytes found.
        found: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// A list is longer than its limit.
    #[error("image document, field \"{field}\": {found} entries, the limit is {limit}")]
    TooMany {
        /// The path of the field.
        field: String,
        /// Entries found.
        found: usize,
        /// Entries allowed.
        limit: usize,
    },
    /// A media type is known and refused, or unknown.
    #[error("image document, field \"{field}\": \"{media_type}\" is not supported: {reason}")]
    Unsupported {
        /// The path of the field.
        field: String,
        /// The refused media type.
        media_type: String,
        /// What it is.
        reason: &'static str,
    },
    /// Indexes point to indexes too deeply.
    #[error("image index nests deeper than {limit} levels")]
    TooDeep {
        /// Levels allowed.
        limit: usize,
    },
    /// No entry of the index fits this machine.
    #[error("no matching platform: the image has no manifest for {wanted}, it has {available}")]
    NoPlatform {
        /// The platform asked for.
        wanted: Platform,
        /// The platforms of the index.
        available: String,
    },
}

impl ManifestError {
    /// Returns the class of the error.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Json { .. }
            | Self::Utf8 { .. }
            | Self::Ambiguous { .. }
            | Self::Missing { .. }
            | Self::Digest { .. }
            | Self::NegativeSize { .. } => Class::InvalidArgument,
            Self::TooLarge { .. } | Self::TooMany { .. } | Self::TooDeep { .. } => Class::Exhausted,
            Self::Unsupported { .. } => Class::Unsupported,
            Self::NoPlatform { .. } => Class::NotFound,
        }
    }
}

#[cfg(test)]
mod tests;
