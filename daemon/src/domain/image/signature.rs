//! Where signatures of an image lie in its repository and what they say. Whether they are good is checked
//! elsewhere; everything here came from a registry.
//!
//! Two ways are in use (cosign's documents SIGNATURE_SPEC and BUNDLE_SPEC, sigstore's bundle):
//!
//! ```text
//! tag sha256-HEX.sig       manifest; each layer is a payload that names the digest, its annotations sign it
//! referrers of the digest  manifests of type bundle, each with one layer, the bundle; where the registry has no
//!   or tag sha256-HEX      such list, an index under this tag is it
//! ```

use std::collections::BTreeMap;

use axil_snapshotter::Digest;
use serde::Deserialize;

use super::manifest::Descriptor;

/// Media type of a payload.
pub const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// Beginning of the media types of bundles, and of the types of the artifacts they are in.
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle";
/// What a statement that is a signature, and no report or the like, says of itself.
pub const SIGN_PREDICATE: &str = "https://sigstore.dev/cosign/sign/v1";
/// Type of a payload.
const PAYLOAD_TYPE: &str = "cosign container image signature";

/// Most signatures of an image that are looked at.
pub const MAX_SIGNATURES: usize = 32;
/// Largest payload or bundle, in bytes; bundles with certificates and proofs have some ten thousand.
pub const MAX_SIGNATURE_BYTES: u64 = 1 << 20;

/// The tag that has the payloads about a digest.
#[must_use]
pub fn payload_tag(digest: &Digest) -> String {
    format!("{}.sig", referrers_tag(digest))
}

/// The tag that stands in for the list of referrers (distribution specification, referrers tag schema).
#[must_use]
pub fn referrers_tag(digest: &Digest) -> String {
    format!("{}-{}", digest.algorithm(), digest.hex())
}

/// A payload and what its manifest says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedPayload {
    /// Where the payload is.
    pub payload: Descriptor,
    /// The signature of the payload's bytes, in base64.
    pub signature: String,
    /// The signer's certificate, PEM.
    pub certificate: Option<String>,
    /// What the transparency log said of the signature, JSON.
    pub log: Option<String>,
}

/// A document that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} cannot be used: {reason}")]
pub struct SignatureProblem {
    what: &'static str,
    reason: String,
}

impl SignatureProblem {
    fn new(what: &'static str, reason: impl ToString) -> Self {
        Self {
            what,
            reason: reason.to_string(),
        }
    }
}

#[derive(Deserialize)]
struct RawManifest {
    layers: Vec<RawDescriptor>,
}

#[derive(Deserialize)]
struct RawIndex {
    manifests: Vec<RawDescriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    artifact_type: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

impl RawDescriptor {
    fn descriptor(&self) -> Option<Descriptor> {
        Some(Descriptor {
            media_type: self.media_type.clone(),
            digest: self.digest.parse().ok()?,
            size: self.size,
        })
    }

    /// What lies in a blob and is not too long.
    fn blob(&self) -> Option<Descriptor> {
        self.descriptor()
            .filter(|descriptor| descriptor.size <= MAX_SIGNATURE_BYTES)
    }
}

/// The payloads of a manifest of signatures, at most [`MAX_SIGNATURES`]; what is something else is passed over.
///
/// # Errors
/// It is no manifest.
pub fn parse_payloads(manifest: &[u8]) -> Result<Vec<SignedPayload>, SignatureProblem> {
    let raw: RawManifest = serde_json::from_slice(manifest)
        .map_err(|error| SignatureProblem::new("a manifest of signatures", error))?;
    let payloads = raw.layers.into_iter().filter_map(|layer| {
        if layer.media_type != PAYLOAD {
            return None;
        }
        let payload = layer.blob()?;
        let mut annotations = layer.annotations;
        let mut take = |name: &str| {
            let value = annotations.remove(&format!("dev.{name}"));
            value.filter(|value| !value.is_empty())
        };
        Some(SignedPayload {
            payload,
            signature: take("cosignproject.cosign/signature")?,
            certificate: take("sigstore.cosign/certificate"),
            log: take("sigstore.cosign/bundle"),
        })
    });
    Ok(payloads.take(MAX_SIGNATURES).collect())
}

#[derive(Deserialize)]
struct RawPayload {
    critical: RawCritical,
}

#[derive(Deserialize)]
struct RawCritical {
    image: RawImage,
    r#type: String,
}

#[derive(Deserialize)]
struct RawImage {
    #[serde(rename = "docker-manifest-digest")]
    digest: String,
}

/// Checks that a payload is a signature's and about this digest.
///
/// # Errors
/// It is not.
pub fn check_payload(payload: &[u8], digest: &Digest) -> Result<(), SignatureProblem> {
    let refuse =
        |reason: &dyn ToString| SignatureProblem::new("a signed payload", reason.to_string());
    let raw: RawPayload = serde_json::from_slice(payload).map_err(|error| refuse(&error))?;
    if raw.critical.r#type != PAYLOAD_TYPE {
        return Err(refuse(&"it is no signature of an image"));
    }
    if raw.critical.image.digest != digest.to_string() {
        return Err(refuse(&"it is about another image"));
    }
    Ok(())
}

/// The manifests of an index of referrers that may have bundles, at most [`MAX_SIGNATURES`].
///
/// # Errors
/// It is no index.
pub fn parse_referrers(index: &[u8]) -> Result<Vec<Descriptor>, SignatureProblem> {
    let raw: RawIndex = serde_json::from_slice(index)
        .map_err(|error| SignatureProblem::new("an index of referrers", error))?;
    let is_bundle = |entry: &RawDescriptor| {
        // Some registries leave the type out.
        entry.artifact_type.is_empty() || entry.artifact_type.starts_with(BUNDLE)
    };
    let entries = raw.manifests.iter().filter(|entry| is_bundle(entry));
    let found = entries.filter_map(RawDescriptor::blob);
    Ok(found.take(MAX_SIGNATURES).collect())
}

/// The bundle that a referring manifest has; none when it has something else.
///
/// # Errors
/// It is no manifest.
pub fn parse_bundle_manifest(manifest: &[u8]) -> Result<Option<Descriptor>, SignatureProblem> {
    let raw: RawManifest = serde_json::from_slice(manifest)
        .map_err(|error| SignatureProblem::new("a manifest of a bundle", error))?;
    let bundle = raw.layers.first();
    let bundle = bundle.filter(|layer| layer.media_type.starts_with(BUNDLE));
    Ok(bundle.and_then(RawDescriptor::blob))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn digest() -> Digest {
        Digest::sha256_of(b"manifest")
    }

    #[test]
    fn tags_are_those_of_the_field() {
        let hex = digest().hex().to_owned();
        assert_eq!(payload_tag(&digest()), format!("sha256-{hex}.sig"));
        assert_eq!(referrers_tag(&digest()), format!("sha256-{hex}"));
    }

    #[test]
    fn payloads_are_found_with_their_annotations() {
        let layer = |annotations: serde_json::Value, media_type: &str, size: u64| {
            let digest = Digest::sha256_of(b"payload").to_string();
            json!({ "mediaType": media_type, "digest": digest, "size": size, "annotations": annotations })
        };
        let signed = json!({
            "dev.cosignproject.cosign/signature": "c2ln",
            "dev.sigstore.cosign/certificate": "pem",
            "dev.sigstore.cosign/bundle": "",
        });
        let manifest = json!({ "layers": [
            layer(signed.clone(), PAYLOAD, 10),
            layer(json!({}), PAYLOAD, 10),
            layer(signed.clone(), "application/x", 10),
            layer(signed, PAYLOAD, MAX_SIGNATURE_BYTES + 1),
        ]});
        let found = parse_payloads(manifest.to_string().as_bytes()).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].signature, "c2ln");
        assert_eq!(found[0].certificate.as_deref(), Some("pem"));
        assert_eq!(found[0].log, None);
        for bad in ["", "[]", "{\"layers\":5}", "{\"layers\":[{\"size\":-1}]}"] {
            assert!(parse_payloads(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_payload_is_about_one_image() {
        let payload = |digest: &str, kind: &str| {
            let image = json!({ "docker-manifest-digest": digest });
            json!({ "critical": { "image": image, "type": kind, "identity": {} }, "optional": null }).to_string()
        };
        let good = payload(&digest().to_string(), PAYLOAD_TYPE);
        check_payload(good.as_bytes(), &digest()).unwrap();
        let other = payload(&Digest::sha256_of(b"other").to_string(), PAYLOAD_TYPE);
        let typed = payload(&digest().to_string(), "atomic container signature");
        for bad in [other.as_str(), typed.as_str(), "{}", "", "null"] {
            assert!(check_payload(bad.as_bytes(), &digest()).is_err(), "{bad}");
        }
    }

    #[test]
    fn bundles_are_found_among_other_referrers() {
        let entry = |kind: &str| {
            let digest = Digest::sha256_of(kind.as_bytes()).to_string();
            json!({ "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 5,
                    "artifactType": kind })
        };
        let bundle = "application/vnd.dev.sigstore.bundle.v0.3+json";
        let index = json!({ "manifests": [entry("application/x.sbom"), entry(bundle), entry("")] });
        let found = parse_referrers(index.to_string().as_bytes()).unwrap();
        assert_eq!(found.len(), 2);
        let many: Vec<_> = (0..1000).map(|_| entry(bundle)).collect();
        let index = json!({ "manifests": many });
        let found = parse_referrers(index.to_string().as_bytes()).unwrap();
        assert_eq!(found.len(), MAX_SIGNATURES);
        let manifest = |kind: &str| {
            let digest = digest().to_string();
            json!({ "layers": [{ "mediaType": kind, "digest": digest, "size": 5 }] }).to_string()
        };
        assert!(
            parse_bundle_manifest(manifest(bundle).as_bytes())
                .unwrap()
                .is_some()
        );
        assert!(
            parse_bundle_manifest(manifest("application/x").as_bytes())
                .unwrap()
                .is_none()
        );
    }
}
