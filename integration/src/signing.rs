//! A key that signs images as cosign does, with openssl: the signature is an image of its own under a tag made of
//! the digest.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::children;
use crate::images::{CONFIG, Image, MANIFEST, digest};

/// The pair; its files are below a directory of the test.
#[derive(Debug)]
pub struct SigningKey {
    key: PathBuf,
    public: PathBuf,
}

impl SigningKey {
    /// Makes a pair of P-256, as `cosign generate-key-pair` does; `stem` is where its files begin.
    ///
    /// # Errors
    /// When openssl fails.
    pub fn make(stem: &Path) -> Result<Self> {
        let (key, public) = (stem.with_extension("key"), stem.with_extension("pub"));
        let path = |path: &Path| path.to_string_lossy().into_owned();
        let (k, p) = (path(&key), path(&public));
        let curve = "ec_paramgen_curve:P-256";
        children::read(
            "openssl",
            &["genpkey", "-algorithm", "EC", "-pkeyopt", curve, "-out", &k],
        )?;
        children::read("openssl", &["pkey", "-in", &k, "-pubout", "-out", &p])?;
        Ok(Self { key, public })
    }

    /// The file of the public key.
    #[must_use]
    pub fn public(&self) -> &Path {
        &self.public
    }

    /// The tag under which the signature of an image lies.
    #[must_use]
    pub fn tag(image: &Image) -> String {
        format!("{}.sig", image.manifest.replace(':', "-"))
    }

    /// Signs the digest of an image.
    ///
    /// # Errors
    /// When openssl fails.
    pub fn sign(&self, image: &Image) -> Result<Image> {
        let payload = json!({
            "critical": {
                "identity": { "docker-reference": "" },
                "image": { "docker-manifest-digest": image.manifest },
                "type": "cosign container image signature",
            },
            "optional": null,
        })
        .to_string()
        .into_bytes();
        let mut openssl = Command::new("openssl");
        openssl.args(["dgst", "-sha256", "-sign"]).arg(&self.key);
        let signature = children::output(&mut openssl, &payload)?;
        ensure!(signature.status.success(), "sign: {}", signature.text());

        let config = json!({
            "architecture": "",
            "os": "",
            "config": {},
            "rootfs": { "type": "layers", "diff_ids": [digest(&payload)] },
        })
        .to_string()
        .into_bytes();
        let media_type = "application/vnd.dev.cosign.simplesigning.v1+json";
        let annotations = json!({
            "dev.cosignproject.cosign/signature": STANDARD.encode(signature.stdout),
        });
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": { "mediaType": CONFIG, "digest": digest(&config), "size": config.len() },
            "layers": [{
                "mediaType": media_type,
                "digest": digest(&payload),
                "size": payload.len(),
                "annotations": annotations,
            }],
        })
        .to_string()
        .into_bytes();
        Ok(Image {
            manifest: digest(&manifest),
            config: digest(&config),
            layers: vec![digest(&payload)],
            blobs: [
                (MANIFEST, manifest),
                (CONFIG, config),
                (media_type, payload),
            ]
            .into_iter()
            .map(|(kind, bytes)| (digest(&bytes), (kind.to_owned(), bytes)))
            .collect(),
        })
    }
}
