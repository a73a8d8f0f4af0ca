//! An image in memory and the answers of an honest registry for it.

use std::time::Duration;

use axil_snapshotter::Digest;
use serde_json::json;

use super::super::{Credentials, Registry, RegistryError, RegistryOptions, Source};
use super::server::{Reply, Seen, Server, reply};
use crate::domain::image::manifest::Descriptor;
use crate::domain::image::media::{OCI_CONFIG, OCI_INDEX, OCI_MANIFEST};
use crate::domain::image::reference::Reference;
use crate::ports::images::PullAuth;

/// A platform no machine of the tests has.
pub(super) const ELSEWHERE: &str = "riscv64";

#[derive(Clone)]
pub(super) struct Image {
    pub(super) layer: Vec<u8>,
    pub(super) config: Vec<u8>,
    pub(super) manifest: Vec<u8>,
    pub(super) index: Vec<u8>,
}

impl Image {
    /// An image with one layer of `size` bytes behind an index.
    pub(super) fn new(size: usize) -> Self {
        let layer: Vec<u8> = (0..size)
            .map(|n| u8::try_from(n * 7 % 251).unwrap())
            .collect();
        let config = json!({
            "os": "linux",
            "config": {"User": "1000", "Labels": {"io.kubernetes.x": "y"}},
            "rootfs": {"type": "layers", "diff_ids": [Digest::sha256_of(&layer).to_string()]},
        });
        let config = config.to_string().into_bytes();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor(OCI_CONFIG, &config),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
        });
        let manifest = manifest.to_string().into_bytes();
        let mut here = descriptor(OCI_MANIFEST, &manifest);
        let platform = crate::domain::image::manifest::Platform::host();
        here["platform"] = json!({"os": "linux", "architecture": platform.architecture});
        let mut there = descriptor(OCI_MANIFEST, b"another");
        there["platform"] = json!({"os": "linux", "architecture": ELSEWHERE});
        let index = json!({
            "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [there, here],
        });
        Self {
            layer,
            config,
            manifest,
            index: index.to_string().into_bytes(),
        }
    }

    pub(super) fn layer_descriptor(&self) -> Descriptor {
        Descriptor {
            media_type: "application/vnd.oci.image.layer.v1.tar".into(),
            digest: Digest::sha256_of(&self.layer),
            size: self.layer.len() as u64,
        }
    }

    /// The answer of an honest registry that does ranges.
    pub(super) fn answer(&self, seen: &Seen) -> Reply {
        let path = seen.path.split('?').next().unwrap_or_default();
        let name = path.rsplit('/').next().unwrap_or_default();
        if path.contains("/manifests/") {
            let found = if name == "latest" || name == digest_text(&self.index) {
                Some((OCI_INDEX, &self.index))
            } else if name == digest_text(&self.manifest) {
                Some((OCI_MANIFEST, &self.manifest))
            } else {
                None
            };
            if let Some((media_type, body)) = found {
                return reply(200, &[("content-type", media_type)], body);
            }
        }
        if path.contains("/blobs/") {
            for body in [&self.layer, &self.config] {
                if name == digest_text(body) {
                    return ranged(body, seen);
                }
            }
        }
        let body = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#;
        reply(404, &[("content-type", "application/json")], body)
    }
}

pub(super) fn digest_text(bytes: &[u8]) -> String {
    Digest::sha256_of(bytes).to_string()
}

pub(super) fn descriptor(media_type: &str, bytes: &[u8]) -> serde_json::Value {
    json!({"mediaType": media_type, "digest": digest_text(bytes), "size": bytes.len()})
}

/// Answers with a body or the range of it that was asked for.
pub(super) fn ranged(body: &[u8], seen: &Seen) -> Reply {
    let Some(start) = seen.range_start() else {
        return reply(200, &[], body);
    };
    let end = seen.range().map_or(body.len(), |range| range.end);
    let range = format!("bytes {start}-{}/{}", end - 1, body.len());
    reply(206, &[("content-range", &range)], &body[start..end])
}

/// Short bounds, no configuration.
pub(super) fn options() -> RegistryOptions {
    RegistryOptions {
        hosts_dirs: Vec::new(),
        connect_timeout: Duration::from_secs(5),
        progress_timeout: Duration::from_millis(500),
        document_timeout: Duration::from_secs(3),
        max_retries: 2,
        retry_backoff: Duration::from_millis(5),
        ..RegistryOptions::default()
    }
}

pub(super) fn registry() -> Registry {
    Registry::new(options())
}

pub(super) fn reference(server: &Server) -> Reference {
    Reference::parse(&format!("{}/team/app", server.host())).unwrap()
}

pub(super) fn basic(username: &str, password: &str) -> Credentials {
    let auth = PullAuth {
        username: username.into(),
        password: password.into(),
        ..PullAuth::default()
    };
    Credentials::from_pull_auth(&auth).unwrap().unwrap()
}

pub(super) async fn source(registry: &Registry, server: &Server) -> Source {
    registry.source(&reference(server), None).await.unwrap()
}

/// Reads a blob to its end.
pub(super) async fn read(
    registry: &Registry,
    source: &Source,
    descriptor: &Descriptor,
    offset: u64,
) -> Result<Vec<u8>, RegistryError> {
    let mut stream = registry.blob(source, descriptor, offset).await?;
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.next().await? {
        assert!(!chunk.is_empty());
        bytes.extend_from_slice(&chunk);
    }
    assert_eq!(stream.position(), descriptor.size);
    Ok(bytes)
}
