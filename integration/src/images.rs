//! Container images made in the test: layers as lists of entries, deterministic to the byte.

pub mod busybox;
pub mod layer;
pub mod nginx;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

pub use layer::{Compression, Entry, Layer, Packed};

/// Media type of an OCI image manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of an OCI image configuration.
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// When every file of every image was made; fixed so that digests repeat.
pub const CREATED: u64 = 1_700_000_000;
const CREATED_TEXT: &str = "2023-11-14T22:13:20Z";

/// `sha256:<hex>` of some bytes.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// An image in memory: its blobs by digest.
#[derive(Debug, Clone)]
pub struct Image {
    /// Digest of the manifest: what a registry calls the image.
    pub manifest: String,
    /// Digest of the configuration: what the CRI calls the image's id.
    pub config: String,
    /// Digests of the layers, base first.
    pub layers: Vec<String>,
    /// Every blob with its media type.
    pub blobs: BTreeMap<String, (String, Vec<u8>)>,
}

impl Image {
    /// Builds an image; `config` is the `config` member of the OCI image configuration.
    ///
    /// # Errors
    /// When a file an entry names cannot be read.
    pub fn build(config: &Value, layers: &[Layer]) -> Result<Self> {
        let packed: Result<Vec<_>> = layers.iter().map(Layer::pack).collect();
        Ok(Self::of(config, packed?))
    }

    /// Builds an image of layers that are packed already.
    #[must_use]
    pub fn of(config: &Value, layers: Vec<Packed>) -> Self {
        let mut image = Self {
            manifest: String::new(),
            config: String::new(),
            layers: Vec::new(),
            blobs: BTreeMap::new(),
        };
        let mut diff_ids = Vec::new();
        let mut descriptors = Vec::new();
        for packed in layers {
            diff_ids.push(packed.diff_id);
            let descriptor = image.add(packed.media_type, packed.bytes);
            image.layers.push(text(&descriptor["digest"]));
            descriptors.push(descriptor);
        }
        let document = json!({
            "created": CREATED_TEXT,
            "architecture": architecture(),
            "os": "linux",
            "config": config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let descriptor = image.add(CONFIG, document.to_string().into_bytes());
        image.config = text(&descriptor["digest"]);
        let document = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor,
            "layers": descriptors,
        });
        image.manifest = text(&image.add(MANIFEST, document.to_string().into_bytes())["digest"]);
        image
    }

    /// The same image with annotations on its manifest.
    ///
    /// # Panics
    /// When the manifest is not one that [`Image::of`] made.
    #[must_use]
    pub fn annotated(mut self, annotations: &Value) -> Self {
        let (_, bytes) = self.blobs.remove(&self.manifest).expect("it has one");
        let mut document: Value = serde_json::from_slice(&bytes).expect("it is JSON");
        document["annotations"] = annotations.clone();
        self.manifest = text(&self.add(MANIFEST, document.to_string().into_bytes())["digest"]);
        self
    }

    fn add(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let name = digest(&bytes);
        let descriptor = json!({ "mediaType": media_type, "digest": name, "size": bytes.len() });
        self.blobs.insert(name, (media_type.to_owned(), bytes));
        descriptor
    }

    /// The bytes of one blob.
    ///
    /// # Panics
    /// When the image has no such blob.
    #[must_use]
    pub fn blob(&self, digest: &str) -> &[u8] {
        &self
            .blobs
            .get(digest)
            .unwrap_or_else(|| panic!("no blob {digest}"))
            .1
    }

    /// Bytes of all its blobs.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.blobs
            .values()
            .map(|(_, bytes)| bytes.len() as u64)
            .sum()
    }

    /// Writes the image as an OCI layout with one tag.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write_layout(&self, dir: &Path, tag: &str) -> Result<()> {
        let blobs = dir.join("blobs/sha256");
        fs::create_dir_all(&blobs).with_context(|| format!("create {}", blobs.display()))?;
        let write = |path: &Path, bytes: &[u8]| {
            fs::write(path, bytes).with_context(|| format!("write {}", path.display()))
        };
        for (name, (_, bytes)) in &self.blobs {
            write(&blobs.join(name.trim_start_matches("sha256:")), bytes)?;
        }
        let size = self.blob(&self.manifest).len();
        let index = json!({
            "schemaVersion": 2,
            "manifests": [{
                "mediaType": MANIFEST,
                "digest": self.manifest,
                "size": size,
                "annotations": { "org.opencontainers.image.ref.name": tag },
            }],
        });
        write(&dir.join("index.json"), index.to_string().as_bytes())?;
        write(
            &dir.join("oci-layout"),
            br#"{"imageLayoutVersion":"1.0.0"}"#,
        )
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// This machine's architecture in the words of Go, which images use.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_image_twice_has_the_same_digest() {
        let layer = || {
            Layer::new(Compression::Zstd)
                .dir("etc")
                .text("etc/motd", "hello\n")
        };
        let first = Image::build(&json!({}), &[layer()]).unwrap();
        let second = Image::build(&json!({}), &[layer()]).unwrap();
        assert_eq!(first.manifest, second.manifest);
        assert_eq!(first.blobs.len(), 3);
    }
}
