//! Signatures made here, by keys and authorities of the test, good ones and every kind of bad one.

use std::path::PathBuf;

use bytes::Bytes;
use serde_json::{Value, json};

use super::*;
use crate::config::{IdentityConfig, SignerConfig};
use crate::domain::failure::{Class, KubeletError};
use crate::domain::image::manifest::Descriptor;
use crate::domain::image::signature::PAYLOAD;
use crate::ports::images::BlobStream;

mod sigstore;

use sigstore::{Key, Sigstore};

const ISSUER: &str = "https://accounts.test";
const SUBJECT: &str = "release@example.test";
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";

fn is_unsigned(failure: &Failure) -> bool {
    failure.known_as == Some(KubeletError::SignatureValidationFailed)
}

/// A repository with one image and what was put beside it.
struct Repository {
    digest: Digest,
    tags: BTreeMap<String, Vec<u8>>,
    referrers: Option<Vec<u8>>,
    blobs: BTreeMap<Digest, Vec<u8>>,
    is_down: bool,
}

impl Repository {
    fn new() -> Self {
        Self {
            digest: Digest::sha256_of(b"the manifest"),
            tags: BTreeMap::new(),
            referrers: None,
            blobs: BTreeMap::new(),
            is_down: false,
        }
    }

    fn add(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let digest = Digest::sha256_of(&bytes);
        let size = bytes.len();
        self.blobs.insert(digest.clone(), bytes);
        json!({ "mediaType": media_type, "digest": digest.to_string(), "size": size })
    }

    /// Puts payloads with their annotations where cosign puts them.
    fn payloads(&mut self, signed: Vec<(Vec<u8>, Value)>) {
        let mut layers = Vec::new();
        for (payload, annotations) in signed {
            let mut layer = self.add(PAYLOAD, payload);
            layer["annotations"] = annotations;
            layers.push(layer);
        }
        let manifest = json!({ "schemaVersion": 2, "layers": layers }).to_string();
        self.tags
            .insert(payload_tag(&self.digest), manifest.into_bytes());
    }

    /// Puts a bundle beside the image, in the list or under the tag that stands for it.
    fn bundle(&mut self, bundle: &Value, is_tagged: bool) {
        let layer = self.add(BUNDLE, bundle.to_string().into_bytes());
        let manifest = json!({ "schemaVersion": 2, "layers": [layer] }).to_string();
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let mut entry = self.add(media_type, manifest.into_bytes());
        entry["artifactType"] = BUNDLE.into();
        let index = json!({ "schemaVersion": 2, "manifests": [entry] }).to_string();
        match is_tagged {
            true => {
                let tag = referrers_tag(&self.digest);
                self.tags.insert(tag, index.into_bytes());
            }
            false => self.referrers = Some(index.into_bytes()),
        }
    }

    async fn check(&self, signers: &Signers, names: &[&str]) -> Result<String, Failure> {
        let names = names.iter().map(|&name| name.to_owned()).collect();
        let digests = std::slice::from_ref(&self.digest);
        signers.check(self, digests, &names).await
    }
}

#[async_trait]
impl RemoteImage for Repository {
    fn digest(&self) -> &Digest {
        &self.digest
    }

    fn media_type(&self) -> &'static str {
        ""
    }

    fn bytes(&self) -> &[u8] {
        &[]
    }

    async fn document(&self, descriptor: &Descriptor) -> Answer<Vec<u8>> {
        let known = self.blobs.get(&descriptor.digest).cloned();
        known.ok_or_else(|| Failure::not_found("no such blob"))
    }

    async fn tagged(&self, tag: &str) -> Answer<Option<Vec<u8>>> {
        match self.is_down {
            true => Err(Failure::new(Class::Unavailable, "down")),
            false => Ok(self.tags.get(tag).cloned()),
        }
    }

    async fn referrers(&self, _digest: &Digest) -> Answer<Option<Vec<u8>>> {
        Ok(self.referrers.clone())
    }

    async fn blob(&self, _: &Descriptor, _: u64) -> Answer<Box<dyn BlobStream>> {
        Ok(Box::new(Empty))
    }
}

struct Empty;

#[async_trait]
impl BlobStream for Empty {
    async fn next(&mut self) -> Answer<Option<Bytes>> {
        Ok(None)
    }
}

fn payload(digest: &Digest) -> Vec<u8> {
    let image = json!({ "docker-manifest-digest": digest.to_string() });
    let identity = json!({ "docker-reference": "r.example/app" });
    let kind = "cosign container image signature";
    let critical = json!({ "identity": identity, "image": image, "type": kind });
    json!({ "critical": critical, "optional": null })
        .to_string()
        .into_bytes()
}

fn statement(digest: &Digest, predicate: &str) -> Vec<u8> {
    let subject = json!([{ "name": "r.example/app", "digest": { "sha256": digest.hex() } }]);
    let kind = "https://in-toto.io/Statement/v1";
    let text =
        json!({ "_type": kind, "subject": subject, "predicateType": predicate, "predicate": {} });
    text.to_string().into_bytes()
}

/// Files of signers, and the signers that read them.
struct Desk {
    dir: tempfile::TempDir,
    signers: BTreeMap<String, SignerConfig>,
}

impl Desk {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            signers: BTreeMap::new(),
        }
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn keyed(mut self, name: &str, keys: &[&Key]) -> Self {
        let write =
            |(at, key): (usize, &&Key)| self.file(&format!("{name}-{at}.pub"), &key.public_pem());
        let config = SignerConfig {
            keys: keys.iter().enumerate().map(write).collect(),
            ..SignerConfig::default()
        };
        self.signers.insert(name.to_owned(), config);
        self
    }

    fn keyless(mut self, name: &str, sigstore: &Sigstore, subjects: &[&str]) -> Self {
        let root = sigstore.trusted_root().to_string();
        let identity = |subject: &&str| IdentityConfig {
            issuer: ISSUER.to_owned(),
            subject: (*subject).to_owned(),
        };
        let config = SignerConfig {
            trusted_root: Some(self.file(&format!("{name}.json"), &root)),
            identities: subjects.iter().map(identity).collect(),
            ..SignerConfig::default()
        };
        self.signers.insert(name.to_owned(), config);
        self
    }

    fn load(&self) -> Result<Signers, LoadSignerError> {
        Signers::load(&PolicyConfig {
            default: "allow".to_owned(),
            rules: Vec::new(),
            signers: self.signers.clone(),
        })
    }

    fn open(&self) -> Signers {
        self.load().unwrap()
    }
}

fn signed_by(key: &Key, payload: Vec<u8>) -> (Vec<u8>, Value) {
    let signature = key.sign_base64(&payload);
    (
        payload,
        json!({ "dev.cosignproject.cosign/signature": signature }),
    )
}

fn refused(checked: Result<String, Failure>, words: &str) {
    let failure = checked.unwrap_err();
    assert!(is_unsigned(&failure), "{failure}");
    assert!(failure.message.contains(words), "{words}: {failure}");
}

#[tokio::test]
async fn a_payload_signed_by_a_known_key_is_a_signature() {
    let (ours, other) = (Key::new(), Key::new());
    let signers = Desk::new()
        .keyed("release", &[&other, &ours])
        .keyed("other", &[&other])
        .open();
    let mut repository = Repository::new();
    let good = payload(&repository.digest);
    // Anybody can put more beside it.
    let stranger = signed_by(&Key::new(), good.clone());
    repository.payloads(vec![stranger, signed_by(&ours, good)]);
    let endorsement = repository.check(&signers, &["release"]).await.unwrap();
    assert_eq!(signers.endorsement("release"), Some(endorsement.clone()));
    assert_ne!(signers.endorsement("other"), Some(endorsement));
    refused(repository.check(&signers, &["other"]).await, "another key");
    repository
        .check(&signers, &["other", "release"])
        .await
        .unwrap();
}

#[tokio::test]
async fn what_is_no_good_signature_of_this_image_is_refused() {
    let key = Key::new();
    let signers = Desk::new().keyed("release", &[&key]).open();
    let check = async |prepare: &dyn Fn(&mut Repository), words: &str| {
        let mut repository = Repository::new();
        prepare(&mut repository);
        refused(repository.check(&signers, &["release"]).await, words);
    };
    check(&|_| {}, "there is no signature of sha256:").await;
    let another = payload(&Digest::sha256_of(b"another"));
    check(
        &|r| r.payloads(vec![signed_by(&key, another.clone())]),
        "another image",
    )
    .await;
    check(
        &|r| {
            let (mut payload, annotations) = signed_by(&key, payload(&r.digest));
            payload.push(b' ');
            r.payloads(vec![(payload, annotations)]);
        },
        "another key",
    )
    .await;
    check(
        &|r| {
            let annotations = json!({ "dev.cosignproject.cosign/signature": "***" });
            r.payloads(vec![(payload(&r.digest), annotations)]);
        },
        "no base64",
    )
    .await;
    check(
        &|r| {
            r.tags.insert(payload_tag(&r.digest), b"[]".to_vec());
        },
        "manifest of signatures",
    )
    .await;
    check(&|r| r.referrers = Some(b"5".to_vec()), "index of referrers").await;
    // A signed report about an image is no signature of it.
    let sign = "https://sigstore.dev/cosign/sign/v1";
    for (digest, predicate, words) in [
        (
            b"the manifest".as_slice(),
            "https://slsa.dev/provenance/v1",
            "no signature of an image",
        ),
        (b"another", sign, "another image"),
    ] {
        let bundle = key.bundle(&statement(&Digest::sha256_of(digest), predicate));
        check(&|r| r.bundle(&bundle, false), words).await;
    }
    let good = statement(&Digest::sha256_of(b"the manifest"), sign);
    let bundle = Key::new().bundle(&good);
    check(&|r| r.bundle(&bundle, true), "another key").await;
    let mut swapped = key.bundle(&good);
    let other = key.bundle(&statement(&Digest::sha256_of(b"another"), sign));
    swapped["dsseEnvelope"]["payload"] = other["dsseEnvelope"]["payload"].clone();
    check(&|r| r.bundle(&swapped, false), "another image").await;
}

#[tokio::test]
async fn a_bundle_signed_by_a_known_key_is_a_signature_in_the_list_and_under_its_tag() {
    let key = Key::new();
    let signers = Desk::new().keyed("release", &[&key]).open();
    for is_tagged in [false, true] {
        let mut repository = Repository::new();
        let said = statement(&repository.digest, "https://sigstore.dev/cosign/sign/v1");
        repository.bundle(&key.bundle(&said), is_tagged);
        repository.check(&signers, &["release"]).await.unwrap();
    }
}

#[tokio::test]
async fn a_registry_that_does_not_answer_is_no_registry_without_signatures() {
    let key = Key::new();
    let signers = Desk::new().keyed("release", &[&key]).open();
    let mut repository = Repository::new();
    repository.is_down = true;
    let failure = repository.check(&signers, &["release"]).await.unwrap_err();
    assert_eq!(failure.class, Class::Unavailable);
}

#[tokio::test]
async fn a_signer_is_known_by_its_keys_and_not_by_its_name_alone() {
    let (one, two) = (Key::new(), Key::new());
    let first = Desk::new().keyed("release", &[&one]).open();
    let second = Desk::new().keyed("release", &[&two]).open();
    assert_ne!(first.endorsement("release"), second.endorsement("release"));
    assert_eq!(first.endorsement("nobody"), None);
}

#[test]
fn files_that_are_no_keys_are_refused_by_name() {
    let mut desk = Desk::new();
    let bad = desk.file(
        "bad.pub",
        "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
    );
    let root = desk.file("root.json", "{}");
    let absent = desk.dir.path().join("absent.pub");
    let identities = vec![IdentityConfig {
        issuer: ISSUER.to_owned(),
        subject: SUBJECT.to_owned(),
    }];
    for (config, words) in [
        (
            SignerConfig {
                keys: vec![bad],
                ..SignerConfig::default()
            },
            "bad.pub",
        ),
        (
            SignerConfig {
                keys: vec![absent],
                ..SignerConfig::default()
            },
            "absent.pub",
        ),
        (
            SignerConfig {
                trusted_root: Some(root),
                identities,
                ..SignerConfig::default()
            },
            "root.json",
        ),
    ] {
        desk.signers.insert("release".to_owned(), config);
        let error = desk.load().unwrap_err().to_string();
        assert!(
            error.contains(words) && error.contains("\"release\""),
            "{error}"
        );
    }
}

#[tokio::test]
async fn keyless_bundles_are_good_for_the_identities_named_and_no_others() {
    let sigstore = Sigstore::new();
    let signers = Desk::new()
        .keyless("release", &sigstore, &["somebody@example.test", SUBJECT])
        .keyless("others", &sigstore, &["somebody@example.test"])
        .keyless("elsewhere", &Sigstore::new(), &[SUBJECT])
        .open();
    let mut repository = Repository::new();
    let said = statement(&repository.digest, "https://sigstore.dev/cosign/sign/v1");
    repository.bundle(&sigstore.bundle(ISSUER, SUBJECT, &said), false);
    repository.check(&signers, &["release"]).await.unwrap();
    refused(repository.check(&signers, &["others"]).await, "others");
    refused(
        repository.check(&signers, &["elsewhere"]).await,
        "elsewhere",
    );
    let mut repository = Repository::new();
    repository.bundle(&sigstore.bundle("https://evil.test", SUBJECT, &said), false);
    refused(repository.check(&signers, &["release"]).await, "issuer");
}

#[tokio::test]
async fn keyless_payloads_of_older_tools_are_good_too() {
    let sigstore = Sigstore::new();
    let signers = Desk::new()
        .keyless("release", &sigstore, &[SUBJECT])
        .keyless("elsewhere", &Sigstore::new(), &[SUBJECT])
        .open();
    let mut repository = Repository::new();
    let said = payload(&repository.digest);
    let annotations = sigstore.annotations(ISSUER, SUBJECT, &said);
    repository.payloads(vec![(said.clone(), annotations.clone())]);
    repository.check(&signers, &["release"]).await.unwrap();
    refused(
        repository.check(&signers, &["elsewhere"]).await,
        "elsewhere",
    );
    // Without the log's word nobody knows when it was signed.
    let mut silent = annotations.clone();
    silent
        .as_object_mut()
        .unwrap()
        .remove("dev.sigstore.cosign/bundle");
    repository.payloads(vec![(said.clone(), silent)]);
    refused(
        repository.check(&signers, &["release"]).await,
        "no entry of a log",
    );
    // The log's word about another signature.
    let other = sigstore.annotations(ISSUER, SUBJECT, b"something else");
    let mut mixed = annotations;
    mixed["dev.sigstore.cosign/bundle"] = other["dev.sigstore.cosign/bundle"].clone();
    repository.payloads(vec![(said, mixed)]);
    refused(repository.check(&signers, &["release"]).await, "release");
}

#[tokio::test]
async fn keyless_bundles_that_were_tampered_with_are_refused() {
    let sigstore = Sigstore::new();
    let signers = Desk::new().keyless("release", &sigstore, &[SUBJECT]).open();
    let digest = Digest::sha256_of(b"the manifest");
    let said = statement(&digest, "https://sigstore.dev/cosign/sign/v1");
    let good = sigstore.bundle(ISSUER, SUBJECT, &said);
    let entry = |bundle: &mut Value| bundle["verificationMaterial"]["tlogEntries"][0].take();
    type Tamper<'a> = &'a dyn Fn(&mut Value);
    let tampers: [(&str, Tamper<'_>); 6] = [
        ("no entry of the log", &|b| {
            b["verificationMaterial"]["tlogEntries"] = json!([]);
        }),
        ("no proof", &|b| {
            let mut one = entry(b);
            one.as_object_mut().unwrap().remove("inclusionProof");
            b["verificationMaterial"]["tlogEntries"] = json!([one]);
        }),
        ("another time", &|b| {
            b["verificationMaterial"]["tlogEntries"][0]["integratedTime"] = "1700000000".into();
        }),
        ("another log", &|b| {
            let of_another = Sigstore::new().bundle(ISSUER, SUBJECT, &said);
            let tlog = of_another["verificationMaterial"]["tlogEntries"].clone();
            b["verificationMaterial"]["tlogEntries"] = tlog;
        }),
        ("another certificate of the same authority", &|b| {
            let other = sigstore.bundle(ISSUER, SUBJECT, &said);
            b["verificationMaterial"]["certificate"] =
                other["verificationMaterial"]["certificate"].clone();
        }),
        ("a certificate without the timestamp of its log", &|b| {
            *b = sigstore.bundle_without_sct(ISSUER, SUBJECT, &said);
        }),
    ];
    for (what, tamper) in tampers {
        let mut bundle = good.clone();
        tamper(&mut bundle);
        let mut repository = Repository::new();
        repository.bundle(&bundle, false);
        let checked = repository.check(&signers, &["release"]).await;
        let failure = checked.expect_err(what);
        assert!(is_unsigned(&failure), "{what}: {failure}");
    }
    let mut repository = Repository::new();
    repository.bundle(&good, false);
    repository.check(&signers, &["release"]).await.unwrap();
}
