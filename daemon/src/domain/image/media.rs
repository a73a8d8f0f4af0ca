//! Media types of image documents and layers: which ones axil takes and, for the others, what they
//! are, so that a refusal can say it.
//!
//! Sources: OCI image specification "Media Types", distribution's image manifest version 2
//! schema 2.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Docker image manifest, version 2 schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker manifest list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// OCI image config.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Docker image config.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// The manifest types to ask a registry for, as the value of an `Accept` header.
pub const ACCEPTED_MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json";

/// Which of the two vocabularies a document is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// OCI image specification.
    Oci,
    /// Docker's schema 2.
    Docker,
}

/// How the bytes of a layer's tar archive are compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// A plain tar archive.
    #[default]
    None,
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
}

impl Compression {
    /// The OCI media type of a layer that is compressed so.
    #[must_use]
    pub fn layer_type(self) -> &'static str {
        match self {
            Self::None => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

impl FromStr for Compression {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::None),
            "gzip" => Ok(Self::Gzip),
            "zstd" => Ok(Self::Zstd),
            _ => Err(format!("{text:?} is not one of none, gzip, zstd")),
        }
    }
}

/// What a media type says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MediaType {
    /// An image manifest.
    Manifest(Family),
    /// An image index or manifest list.
    Index(Family),
    /// An image config.
    Config,
    /// A layer that can be unpacked.
    Layer(Compression),
    /// A layer that its licence keeps out of registries, as it was written before 2023; some hold it
    /// anyway. It can be unpacked.
    Foreign(Compression),
    /// A type that is known and not taken; the text says why.
    Refused(&'static str),
    /// Anything else.
    Other,
}

impl MediaType {
    /// Classifies `text`, a media type without parameters. Comparison is exact: the registered
    /// names are lower case.
    #[must_use]
    pub fn of(text: &str) -> Self {
        match text {
            OCI_MANIFEST => Self::Manifest(Family::Oci),
            DOCKER_MANIFEST => Self::Manifest(Family::Docker),
            OCI_INDEX => Self::Index(Family::Oci),
            DOCKER_LIST => Self::Index(Family::Docker),
            OCI_CONFIG | DOCKER_CONFIG => Self::Config,
            "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.docker.image.rootfs.diff.tar" => Self::Layer(Compression::None),
            "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip" => Self::Layer(Compression::Gzip),
            "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Self::Layer(Compression::Zstd),
            "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar" => {
                Self::Foreign(Compression::None)
            }
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => {
                Self::Foreign(Compression::Gzip)
            }
            "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd" => {
                Self::Foreign(Compression::Zstd)
            }
            "application/vnd.docker.distribution.manifest.v1+json"
            | "application/vnd.docker.distribution.manifest.v1+prettyjws" => {
                Self::Refused("a schema 1 manifest; push the image again with a current tool")
            }
            _ => refused(text).map_or(Self::Other, Self::Refused),
        }
    }
}

/// Names families of types that axil knows and does not take.
fn refused(text: &str) -> Option<&'static str> {
    if text.ends_with("+encrypted") || text.contains(".encrypted") {
        Some("an encrypted layer")
    } else if text.contains(".nondistributable.") || text.contains(".foreign.") {
        Some("a layer that lives outside the registry")
    } else if text.contains("erofs") || text.contains("squashfs") || text.contains("ext4") {
        // The kernel would parse a file system made by a stranger (CVE-2023-30549 class).
        Some("a file system image, which is never mounted")
    } else if text.contains("nydus") || text.contains("overlaybd") {
        Some("a layer format of another snapshotter")
    } else {
        None
    }
}

/// Returns the media type of a `Content-Type` value: without parameters, in lower case.
#[must_use]
pub fn without_parameters(content_type: &str) -> String {
    content_type
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase()
}

/// Tells whether a `Content-Type` says nothing about the document, as static file servers send.
#[must_use]
pub fn is_generic(media_type: &str) -> bool {
    matches!(
        media_type,
        "" | "application/json" | "application/octet-stream" | "binary/octet-stream" | "text/plain"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_accepted_type_is_a_document() {
        for text in ACCEPTED_MANIFESTS.split(", ") {
            assert!(
                matches!(
                    MediaType::of(text),
                    MediaType::Manifest(_) | MediaType::Index(_)
                ),
                "{text}"
            );
        }
    }

    #[test]
    fn dangerous_layers_are_named() {
        for text in [
            "application/vnd.oci.image.layer.v1.erofs",
            "application/vnd.erofs.layer.v1",
            "application/vnd.oci.image.layer.squashfs",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip+encrypted",
            "application/vnd.docker.image.rootfs.foreign.diff.tar.xz",
            "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
        ] {
            assert!(
                matches!(MediaType::of(text), MediaType::Refused(_)),
                "{text}"
            );
        }
        assert_eq!(
            MediaType::of("application/vnd.oci.image.layer.v1.TAR"),
            MediaType::Other
        );
    }

    #[test]
    fn parameters_are_dropped() {
        assert_eq!(
            without_parameters(" Application/JSON; charset=utf-8"),
            "application/json"
        );
        assert!(is_generic(&without_parameters("text/plain;x")));
    }
}
