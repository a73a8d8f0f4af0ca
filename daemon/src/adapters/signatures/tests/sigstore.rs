//! What sigstore is made of, by keys of the test: a certificate authority that vouches for people, the log of its
//! certificates, and the log of signatures.

use axil_snapshotter::Digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData as _, SanType, SerialNumber, SigningKey as _,
};
use serde_json::{Value, json};

const INTOTO: &str = "application/vnd.in-toto+json";
/// Fulcio's extension for the issuer of an identity, as DER text (sigstore's OID registry).
const ISSUER_OID: [u64; 9] = [1, 3, 6, 1, 4, 1, 57264, 1, 8];
/// Signed certificate timestamps in a certificate (RFC 6962, 3.3).
const SCT_OID: [u64; 10] = [1, 3, 6, 1, 4, 1, 11129, 2, 4, 2];

fn sha256(bytes: &[u8]) -> Vec<u8> {
    hex::decode(Digest::sha256_of(bytes).hex()).unwrap()
}

fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

fn now() -> u64 {
    let now = std::time::SystemTime::now();
    now.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

/// A pair of P-256.
pub(super) struct Key(KeyPair);

impl Key {
    pub(super) fn new() -> Self {
        Self(KeyPair::generate().unwrap())
    }

    pub(super) fn public_pem(&self) -> String {
        self.0.public_key_pem()
    }

    fn public_der(&self) -> Vec<u8> {
        self.0.subject_public_key_info()
    }

    /// What logs call the key.
    fn id(&self) -> Vec<u8> {
        sha256(&self.public_der())
    }

    fn sign(&self, bytes: &[u8]) -> Vec<u8> {
        self.0.sign(bytes).unwrap()
    }

    pub(super) fn sign_base64(&self, bytes: &[u8]) -> String {
        base64(&self.sign(bytes))
    }

    fn envelope(&self, statement: &[u8]) -> Value {
        let mut signed =
            format!("DSSEv1 {} {INTOTO} {} ", INTOTO.len(), statement.len()).into_bytes();
        signed.extend_from_slice(statement);
        json!({
            "payload": base64(statement),
            "payloadType": INTOTO,
            "signatures": [{ "sig": self.sign_base64(&signed) }],
        })
    }

    /// A bundle by this key alone, as cosign makes it without a log.
    pub(super) fn bundle(&self, statement: &[u8]) -> Value {
        json!({
            "mediaType": super::BUNDLE,
            "verificationMaterial": { "publicKey": { "hint": base64(&self.id()) } },
            "dsseEnvelope": self.envelope(statement),
        })
    }
}

/// The authority and the logs.
pub(super) struct Sigstore {
    authority: Issuer<'static, KeyPair>,
    authority_der: Vec<u8>,
    authority_spki: Vec<u8>,
    certificates: Key,
    signatures: Key,
}

impl Sigstore {
    pub(super) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "authority of the test");
        let certificate = params.self_signed(&key).unwrap();
        Self {
            authority_der: certificate.der().to_vec(),
            authority_spki: key.subject_public_key_info(),
            authority: Issuer::new(params, key),
            certificates: Key::new(),
            signatures: Key::new(),
        }
    }

    pub(super) fn trusted_root(&self) -> Value {
        let valid = json!({ "start": "2020-01-01T00:00:00Z" });
        let log = |key: &Key, name: &str| {
            let public = json!({
                "rawBytes": base64(&key.public_der()),
                "keyDetails": "PKIX_ECDSA_P256_SHA_256",
                "validFor": valid,
            });
            json!({
                "baseUrl": format!("https://{name}.test"),
                "hashAlgorithm": "SHA2_256",
                "publicKey": public,
                "logId": { "keyId": base64(&key.id()) },
            })
        };
        let chain = json!({ "certificates": [{ "rawBytes": base64(&self.authority_der) }] });
        json!({
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [log(&self.signatures, "rekor")],
            "certificateAuthorities": [{
                "subject": { "organization": "test", "commonName": "authority of the test" },
                "uri": "https://fulcio.test",
                "certChain": chain,
                "validFor": valid,
            }],
            "ctlogs": [log(&self.certificates, "ctfe")],
        })
    }

    /// A certificate of `subject` as `issuer` knows it, valid for ten minutes around now.
    fn certificate(&self, key: &Key, issuer: &str, subject: &str, has_sct: bool) -> Vec<u8> {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names = vec![SanType::Rfc822Name(subject.try_into().unwrap())];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.serial_number = Some(SerialNumber::from(key.id()[..8].to_vec()));
        let seconds = i64::try_from(now()).unwrap();
        let at = |offset: i64| time::OffsetDateTime::from_unix_timestamp(seconds + offset).unwrap();
        (params.not_before, params.not_after) = (at(-300), at(300));
        let text = der(0x0c, issuer.as_bytes());
        let extension = CustomExtension::from_oid_content(&ISSUER_OID, text);
        params.custom_extensions.push(extension);
        let plain = params.signed_by(&key.0, &self.authority).unwrap();
        if !has_sct {
            return plain.der().to_vec();
        }
        let sct = self.timestamp(first_element(plain.der()));
        let mut list = u16::try_from(sct.len() + 2).unwrap().to_be_bytes().to_vec();
        list.extend(u16::try_from(sct.len()).unwrap().to_be_bytes());
        list.extend(sct);
        // Order: last, so that the certificate without it is the one that was logged.
        let extension = CustomExtension::from_oid_content(&SCT_OID, der(0x04, &list));
        params.custom_extensions.push(extension);
        let logged = params.signed_by(&key.0, &self.authority).unwrap();
        logged.der().to_vec()
    }

    /// The certificate log's promise (RFC 6962, 3.2) about what a certificate says.
    fn timestamp(&self, certificate: &[u8]) -> Vec<u8> {
        let millis = (now() * 1000).to_be_bytes();
        let mut signed = vec![0, 0];
        signed.extend(millis);
        signed.extend([0, 1]);
        signed.extend(sha256(&self.authority_spki));
        signed.extend(&u32::try_from(certificate.len()).unwrap().to_be_bytes()[1..]);
        signed.extend(certificate);
        signed.extend([0, 0]);
        let signature = self.certificates.sign(&signed);
        let mut sct = vec![0];
        sct.extend(self.certificates.id());
        sct.extend(millis);
        // No extensions; SHA-256 with ECDSA.
        sct.extend([0, 0, 4, 3]);
        sct.extend(u16::try_from(signature.len()).unwrap().to_be_bytes());
        sct.extend(signature);
        sct
    }

    /// The signature log's promise: its signature of the entry in canonical JSON (RFC 8785: sorted, no spaces).
    fn promise(&self, body: &str, time: u64) -> String {
        let log = hex::encode(self.signatures.id());
        let entry = format!(
            "{{\"body\":\"{}\",\"integratedTime\":{time},\"logID\":\"{log}\",\"logIndex\":0}}",
            base64(body.as_bytes())
        );
        self.signatures.sign_base64(entry.as_bytes())
    }

    /// An entry of the signature log, the only one of its tree.
    fn entry(&self, kind: &str, body: &str) -> Value {
        let time = now();
        // RFC 6962, 2.1: a leaf is hashed after a zero; a tree of one leaf is its hash.
        let mut leaf = vec![0];
        leaf.extend(body.as_bytes());
        let root = sha256(&leaf);
        let note = format!("rekor.test - 1\n1\n{}\n", base64(&root));
        let mut signature = self.signatures.id()[..4].to_vec();
        signature.extend(self.signatures.sign(note.as_bytes()));
        let checkpoint = format!("{note}\n— rekor.test {}\n", base64(&signature));
        json!({
            "logIndex": "0",
            "logId": { "keyId": base64(&self.signatures.id()) },
            "kindVersion": { "kind": kind, "version": "0.0.1" },
            "integratedTime": time.to_string(),
            "inclusionPromise": { "signedEntryTimestamp": self.promise(body, time) },
            "inclusionProof": {
                "logIndex": "0",
                "rootHash": base64(&root),
                "treeSize": "1",
                "hashes": [],
                "checkpoint": { "envelope": checkpoint },
            },
            "canonicalizedBody": base64(body.as_bytes()),
        })
    }

    /// A bundle as cosign makes it today: a signed statement, a certificate, an entry of the log.
    pub(super) fn bundle(&self, issuer: &str, subject: &str, statement: &[u8]) -> Value {
        self.bundle_with(issuer, subject, statement, true)
    }

    pub(super) fn bundle_without_sct(
        &self,
        issuer: &str,
        subject: &str,
        statement: &[u8],
    ) -> Value {
        self.bundle_with(issuer, subject, statement, false)
    }

    fn bundle_with(&self, issuer: &str, subject: &str, statement: &[u8], has_sct: bool) -> Value {
        let key = Key::new();
        let certificate = self.certificate(&key, issuer, subject, has_sct);
        let envelope = key.envelope(statement);
        let signature = envelope["signatures"][0]["sig"].as_str().unwrap();
        let hash = |bytes: &[u8]| {
            let value = Digest::sha256_of(bytes).hex().to_owned();
            json!({ "algorithm": "sha256", "value": value })
        };
        let body = json!({
            "apiVersion": "0.0.1",
            "kind": "dsse",
            "spec": {
                "envelopeHash": hash(envelope.to_string().as_bytes()),
                "payloadHash": hash(statement),
                "signatures": [{
                    "signature": signature,
                    "verifier": base64(pem("CERTIFICATE", &certificate).as_bytes()),
                }],
            },
        });
        json!({
            "mediaType": super::BUNDLE,
            "verificationMaterial": {
                "certificate": { "rawBytes": base64(&certificate) },
                "tlogEntries": [self.entry("dsse", &body.to_string())],
            },
            "dsseEnvelope": envelope,
        })
    }

    /// The annotations older tools sign a payload with.
    pub(super) fn annotations(&self, issuer: &str, subject: &str, payload: &[u8]) -> Value {
        let key = Key::new();
        let certificate = pem(
            "CERTIFICATE",
            &self.certificate(&key, issuer, subject, true),
        );
        let signature = key.sign_base64(payload);
        let public = json!({ "content": base64(certificate.as_bytes()) });
        let hash = json!({ "algorithm": "sha256", "value": Digest::sha256_of(payload).hex() });
        let body = json!({
            "apiVersion": "0.0.1",
            "kind": "hashedrekord",
            "spec": {
                "data": { "hash": hash },
                "signature": { "content": signature, "publicKey": public },
            },
        })
        .to_string();
        let time = now();
        let log = json!({
            "SignedEntryTimestamp": self.promise(&body, time),
            "Payload": {
                "body": base64(body.as_bytes()),
                "integratedTime": time,
                "logIndex": 0,
                "logID": hex::encode(self.signatures.id()),
            },
        });
        json!({
            "dev.cosignproject.cosign/signature": signature,
            "dev.sigstore.cosign/certificate": certificate,
            "dev.sigstore.cosign/bundle": log.to_string(),
        })
    }
}

fn pem(kind: &str, der: &[u8]) -> String {
    let text = base64(der);
    let lines: Vec<&str> = text
        .as_bytes()
        .chunks(64)
        .map(|line| std::str::from_utf8(line).unwrap())
        .collect();
    format!(
        "-----BEGIN {kind}-----\n{}\n-----END {kind}-----\n",
        lines.join("\n")
    )
}

/// A DER element.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    let length = content.len();
    if length < 128 {
        out.push(u8::try_from(length).unwrap());
    } else {
        let bytes = u16::try_from(length).unwrap().to_be_bytes();
        out.extend([0x82, bytes[0], bytes[1]]);
    }
    out.extend(content);
    out
}

/// The first element inside a DER element: of a certificate, what is signed.
fn first_element(der: &[u8]) -> &[u8] {
    let (start, _) = header(der);
    let inner = &der[start..];
    let (head, length) = header(inner);
    &inner[..head + length]
}

/// Bytes of an element's header, and of its content.
fn header(der: &[u8]) -> (usize, usize) {
    match der[1] {
        short if short < 128 => (2, usize::from(short)),
        0x81 => (3, usize::from(der[2])),
        _ => (4, usize::from(u16::from_be_bytes([der[2], der[3]]))),
    }
}
