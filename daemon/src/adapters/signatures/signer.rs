//! One who signs: some public keys, or people whom a certificate authority vouches for. The cryptography is the
//! sigstore-verify crate's.

use std::fmt;
use std::path::{Path, PathBuf};

use axil_snapshotter::{Algorithm, Digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sigstore_verify::crypto::{SigningScheme, VerificationKey};
use sigstore_verify::trust_root::TrustedRoot;
use sigstore_verify::types::{
    Bundle, DerPublicKey, DsseEnvelope, Sha256Hash, SignatureBytes, SignatureContent,
};
use sigstore_verify::{VerificationPolicy, Verifier};

use crate::config::{IdentityConfig, SignerConfig};
use crate::domain::image::signature::{SIGN_PREDICATE, SignedPayload};

/// Largest key or trusted root, in bytes; the public good instance's root has some ten thousand.
const MAX_FILE: u64 = 4 << 20;

/// A signer that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("configuration key images.policy.signers: {name:?}: {}: {reason}", path.display())]
pub struct LoadSignerError {
    name: String,
    path: PathBuf,
    reason: String,
}

/// One who signs.
pub(super) struct Signer {
    kind: Kind,
    /// Of everything that makes a signature good: another key is another signer.
    fingerprint: Digest,
}

enum Kind {
    Keys(Vec<VerificationKey>),
    Keyless {
        verifier: Box<Verifier>,
        identities: Vec<IdentityConfig>,
    },
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer")
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}

impl Signer {
    pub(super) fn load(name: &str, config: &SignerConfig) -> Result<Self, LoadSignerError> {
        let refuse = |path: &Path, reason: String| LoadSignerError {
            name: name.to_owned(),
            path: path.to_owned(),
            reason,
        };
        let mut identified = Vec::new();
        let kind = match &config.trusted_root {
            Some(path) => {
                let text = read(path).map_err(|reason| refuse(path, reason))?;
                let root = TrustedRoot::from_json(&text)
                    .map_err(|error| refuse(path, error.to_string()))?;
                let verifier =
                    Verifier::new(&root).map_err(|error| refuse(path, error.to_string()))?;
                identified.push(text);
                for identity in &config.identities {
                    identified.push(format!("{}\n{}", identity.issuer, identity.subject));
                }
                Kind::Keyless {
                    verifier: Box::new(verifier),
                    identities: config.identities.clone(),
                }
            }
            None => {
                let mut keys = Vec::new();
                for path in &config.keys {
                    let pem = read(path).map_err(|reason| refuse(path, reason))?;
                    keys.extend(keys_of(&pem).map_err(|reason| refuse(path, reason))?);
                    identified.push(pem);
                }
                Kind::Keys(keys)
            }
        };
        let mut bytes = Vec::new();
        for part in identified {
            bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
            bytes.extend_from_slice(part.as_bytes());
        }
        Ok(Self {
            kind,
            fingerprint: Digest::sha256_of(&bytes),
        })
    }

    pub(super) fn endorsement(&self, name: &str) -> String {
        format!("{name} {}", self.fingerprint)
    }

    /// Checks the signature of a payload whose content is known to be about the image.
    pub(super) fn check_payload(
        &self,
        payload: &[u8],
        signed: &SignedPayload,
    ) -> Result<(), String> {
        match &self.kind {
            Kind::Keys(keys) => {
                let signature = STANDARD.decode(&signed.signature);
                let signature = signature.map_err(|_| "the signature is no base64".to_owned())?;
                any_key(keys, payload, &SignatureBytes::new(signature))
            }
            Kind::Keyless {
                verifier,
                identities,
            } => {
                let bundle = bundle_of(payload, signed)?;
                let bundle = Bundle::from_json(&bundle.to_string()).map_err(|e| e.to_string())?;
                any_identity(identities, |policy| {
                    let checked = verifier.verify(payload, &bundle, policy);
                    checked.map(drop).map_err(|error| error.to_string())
                })
            }
        }
    }

    /// Checks a bundle, and that it says that this image is signed.
    pub(super) fn check_bundle(&self, bundle: &[u8], digest: &Digest) -> Result<(), String> {
        let text = std::str::from_utf8(bundle).map_err(|_| "the bundle is no text".to_owned())?;
        let bundle = Bundle::from_json(text).map_err(|error| error.to_string())?;
        let SignatureContent::DsseEnvelope(envelope) = &bundle.content else {
            return Err("the bundle has no statement about an image".to_owned());
        };
        check_statement(envelope, digest)?;
        match &self.kind {
            Kind::Keys(keys) => any_key(keys, &envelope.pae(), &envelope.signature.sig),
            Kind::Keyless {
                verifier,
                identities,
            } => {
                let artifact = Sha256Hash::from_hex(digest.hex()).map_err(|e| e.to_string())?;
                any_identity(identities, |policy| {
                    let checked = verifier.verify(artifact, &bundle, policy);
                    checked.map(drop).map_err(|error| error.to_string())
                })
            }
        }
    }
}

fn read(path: &Path) -> Result<String, String> {
    use std::io::Read as _;
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    let read = file.take(MAX_FILE + 1).read_to_string(&mut text);
    let length = read.map_err(|error| error.to_string())?;
    match length as u64 > MAX_FILE {
        true => Err(format!("it is longer than {MAX_FILE} bytes")),
        false => Ok(text),
    }
}

/// Ways to sign that count. cosign signs with SHA-256 whatever its key is; others take the longer hash.
const SCHEMES: [SigningScheme; 5] = [
    SigningScheme::EcdsaP256Sha256,
    SigningScheme::EcdsaP384Sha256,
    SigningScheme::EcdsaP384Sha384,
    SigningScheme::Ed25519,
    SigningScheme::RsaPkcs1Sha256,
];

/// Reads a public key, once for each way to sign with it.
fn keys_of(pem: &str) -> Result<Vec<VerificationKey>, String> {
    let key = DerPublicKey::from_pem(pem).map_err(|error| error.to_string())?;
    let with = |scheme| VerificationKey::from_spki_with_scheme(&key, scheme).ok();
    let keys: Vec<_> = SCHEMES.into_iter().filter_map(with).collect();
    match keys.is_empty() {
        true => Err("it is no key of P-256, P-384, Ed25519 or RSA".to_owned()),
        false => Ok(keys),
    }
}

fn any_key(
    keys: &[VerificationKey],
    signed: &[u8],
    signature: &SignatureBytes,
) -> Result<(), String> {
    let is_good = |key: &VerificationKey| key.verify(signed, signature).is_ok();
    match keys.iter().any(is_good) {
        true => Ok(()),
        false => Err("it is of another key".to_owned()),
    }
}

fn any_identity(
    identities: &[IdentityConfig],
    check: impl Fn(&VerificationPolicy) -> Result<(), String>,
) -> Result<(), String> {
    let mut last = "there is no identity".to_owned();
    for identity in identities {
        let policy = VerificationPolicy::new(&identity.subject, &identity.issuer);
        match check(&policy) {
            Ok(()) => return Ok(()),
            Err(reason) => last = reason,
        }
    }
    Err(last)
}

/// Checks that a statement is a signature, and no report about an image, and that it is about this image.
fn check_statement(envelope: &DsseEnvelope, digest: &Digest) -> Result<(), String> {
    if digest.algorithm() != Algorithm::Sha256 {
        return Err(format!(
            "statements about {} are not read",
            digest.algorithm()
        ));
    }
    if envelope.payload_type != "application/vnd.in-toto+json" {
        return Err("the bundle has no in-toto statement".to_owned());
    }
    let payload = envelope.payload.as_bytes();
    let statement: Value = serde_json::from_slice(payload).map_err(|error| error.to_string())?;
    if statement["predicateType"] != SIGN_PREDICATE {
        return Err("the statement is no signature of an image".to_owned());
    }
    let subjects = statement["subject"]
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    let is_it = |subject: &Value| subject["digest"]["sha256"] == digest.hex();
    match subjects.iter().any(is_it) {
        true => Ok(()),
        false => Err("the statement is about another image".to_owned()),
    }
}

/// Writes an older keyless signature, whose parts are annotations, as the bundle it would be today: version 0.1,
/// the one that has the log's promise and no proof.
fn bundle_of(payload: &[u8], signed: &SignedPayload) -> Result<Value, String> {
    let (Some(certificate), Some(log)) = (&signed.certificate, &signed.log) else {
        return Err("it has no certificate or no entry of a log".to_owned());
    };
    let log: Value = serde_json::from_str(log).map_err(|error| error.to_string())?;
    let entry = &log["Payload"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let number = |value: &Value| value.as_i64().unwrap_or_default().to_string();
    let body = STANDARD.decode(text(&entry["body"]));
    let body = body.map_err(|_| "the log's entry is no base64".to_owned())?;
    let body: Value = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
    let log_id = hex::decode(text(&entry["logID"])).map_err(|error| error.to_string())?;
    Ok(json!({
        "mediaType": "application/vnd.dev.sigstore.bundle+json;version=0.1",
        "verificationMaterial": {
            "x509CertificateChain": { "certificates": [{ "rawBytes": certificate_body(certificate)? }] },
            "tlogEntries": [{
                "logIndex": number(&entry["logIndex"]),
                "logId": { "keyId": STANDARD.encode(log_id) },
                "kindVersion": { "kind": body["kind"], "version": body["apiVersion"] },
                "integratedTime": number(&entry["integratedTime"]),
                "inclusionPromise": { "signedEntryTimestamp": log["SignedEntryTimestamp"] },
                "canonicalizedBody": entry["body"],
            }],
        },
        "messageSignature": {
            "messageDigest": {
                "algorithm": "SHA2_256",
                "digest": STANDARD.encode(hex::decode(Digest::sha256_of(payload).hex()).unwrap_or_default()),
            },
            "signature": signed.signature,
        },
    }))
}

/// The base64 of the first certificate of a PEM text.
fn certificate_body(pem: &str) -> Result<String, String> {
    let begin = "-----BEGIN CERTIFICATE-----";
    let rest = pem.split_once(begin).map(|(_, rest)| rest);
    let body = rest.and_then(|rest| rest.split_once("-----END CERTIFICATE-----"));
    let (body, _) = body.ok_or_else(|| "the certificate is no PEM".to_owned())?;
    Ok(body.split_whitespace().collect())
}
