//! Documents: manifests, indexes and configs, read whole into memory, verified, with bounds on
//! size and time.

use std::fmt;

use axil_snapshotter::Digest;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderName};
use http::{HeaderMap, HeaderValue, StatusCode};

use super::error::{Problem, RegistryError};
use super::exchange::{Ask, Exchange, content_length, header, read_limited};
use super::hosts::HostConfig;
use super::retry::Retry;
use super::source::{Host, Source};
use crate::domain::image::manifest::Descriptor;
use crate::domain::image::media::{ACCEPTED_MANIFESTS, MediaType, without_parameters};

/// The digest of a manifest as the registry states it.
const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// The question for one document.
pub(super) struct Question {
    /// Below the repository, e.g. `manifests/latest`.
    path: String,
    is_manifest: bool,
    /// A tag is asked for: only hosts that may resolve are.
    is_tag: bool,
    /// The digest the bytes must have.
    digest: Option<Digest>,
    /// The number of bytes, if a descriptor says it.
    size: Option<u64>,
    /// For errors.
    what: String,
}

impl Question {
    /// Asks for what the reference names; a digest goes before a tag.
    pub(super) fn reference(source: &Source) -> Self {
        let reference = source.reference();
        let name = match (reference.digest(), reference.tag()) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.unwrap_or_default().to_owned(),
        };
        Self {
            path: format!("manifests/{name}"),
            is_manifest: true,
            is_tag: reference.digest().is_none(),
            digest: reference.digest().cloned(),
            size: None,
            what: format!("manifest {reference}"),
        }
    }

    /// Asks for what a descriptor names: manifests and indexes where manifests are, all else
    /// among the blobs.
    pub(super) fn descriptor(source: &Source, descriptor: &Descriptor) -> Self {
        let is_manifest = matches!(
            MediaType::of(&descriptor.media_type),
            MediaType::Manifest(_) | MediaType::Index(_)
        );
        let kind = if is_manifest { "manifests" } else { "blobs" };
        Self {
            path: format!("{kind}/{}", descriptor.digest),
            is_manifest,
            is_tag: false,
            digest: Some(descriptor.digest.clone()),
            size: Some(descriptor.size),
            what: format!("{} of {}", descriptor.digest, source.reference()),
        }
    }

    /// Asks for the manifest or index under another tag of the repository.
    pub(super) fn tagged(source: &Source, tag: &str) -> Self {
        let name = source.reference().name();
        Self::of_the_moment(format!("manifests/{tag}"), format!("manifest {name}:{tag}"))
    }

    /// Asks for the index of what refers to a document of the repository.
    pub(super) fn referrers(source: &Source, digest: &Digest) -> Self {
        let what = format!("referrers of {}@{digest}", source.reference().name());
        Self::of_the_moment(format!("referrers/{digest}"), what)
    }

    /// For what may change: only hosts that say what tags mean are asked.
    fn of_the_moment(path: String, what: String) -> Self {
        Self {
            path,
            is_manifest: true,
            is_tag: true,
            digest: None,
            size: None,
            what,
        }
    }

    fn is_for(&self, host: &HostConfig) -> bool {
        if self.is_tag { host.resolve } else { host.pull }
    }
}

/// A document whose digest was verified.
pub(super) struct Verified {
    pub(super) digest: Digest,
    /// The content type without parameters, empty when there is none.
    pub(super) media_type: String,
    pub(super) bytes: Vec<u8>,
    /// The host that answered, as an index of the source.
    pub(super) host: usize,
    /// Hosts that were asked before and had no good answer.
    pub(super) failed: Vec<usize>,
}

impl fmt::Debug for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.digest, self.media_type)
    }
}

impl Exchange {
    /// Asks the hosts of a source in their order until one answers well; what the last one says
    /// is the error.
    pub(super) async fn document(
        &self,
        source: &Source,
        question: &Question,
    ) -> Result<Verified, RegistryError> {
        let order = source.order(|host| question.is_for(host));
        let mut last = None;
        for (position, index) in order.iter().copied().enumerate() {
            let has_next = position + 1 < order.len();
            let host = source.host(index);
            match self.document_from(source, host, question, has_next).await {
                Ok((digest, media_type, bytes)) => {
                    return Ok(Verified {
                        digest,
                        media_type,
                        bytes,
                        host: index,
                        failed: order[..position].to_vec(),
                    });
                }
                Err(problem) => {
                    let error = RegistryError {
                        what: question.what.clone(),
                        host: host.config.origin.authority(),
                        problem,
                    };
                    if has_next {
                        tracing::debug!(error = %error, "a mirror failed, asking the next host");
                    }
                    last = Some(error);
                }
            }
        }
        Err(last.unwrap_or_else(|| RegistryError {
            what: question.what.clone(),
            host: source.reference().host().to_owned(),
            problem: Problem::NoHost {
                capability: if question.is_tag { "resolve" } else { "pull" },
            },
        }))
    }

    async fn document_from(
        &self,
        source: &Source,
        host: &Host,
        question: &Question,
        has_next: bool,
    ) -> Result<(Digest, String, Vec<u8>), Problem> {
        let mut retry = Retry::new(&self.options);
        // Order: before the clock of a try starts, which must not run while others are served.
        let _slot = self.slots.for_document(&host.config.origin).await;
        let wait = self.options.document_timeout;
        loop {
            let once = self.document_once(source, host, question);
            let problem = match tokio::time::timeout(wait, once).await {
                Ok(Ok(found)) => return Ok(found),
                Ok(Err(problem)) => problem,
                Err(_) => Problem::Timeout {
                    what: "document",
                    after: wait,
                },
            };
            let next_is_better = has_next && matches!(problem, Problem::Connect { .. });
            match retry.pause(&problem).filter(|_| !next_is_better) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Err(problem),
            }
        }
    }

    async fn document_once(
        &self,
        source: &Source,
        host: &Host,
        question: &Question,
    ) -> Result<(Digest, String, Vec<u8>), Problem> {
        let mut headers = HeaderMap::new();
        if question.is_manifest {
            headers.insert(ACCEPT, HeaderValue::from_static(ACCEPTED_MANIFESTS));
        }
        let ask = Ask {
            headers,
            wait: self.options.document_timeout,
        };
        let response = self
            .get(source, host, &question.path, &ask, &[StatusCode::OK])
            .await?;
        let media_type =
            without_parameters(header(response.headers(), CONTENT_TYPE).unwrap_or_default());
        let stated: Option<Digest> = header(response.headers(), DOCKER_CONTENT_DIGEST)
            .and_then(|digest| digest.parse().ok());
        let announced = content_length(response.headers());
        if let (Some(expected), Some(found)) = (question.size, announced)
            && expected != found
        {
            return Err(Problem::Size { expected, found });
        }
        let most = self.options.documents.max_document_bytes as u64;
        let limit = question.size.unwrap_or(most);
        if limit > most {
            return Err(Problem::TooLarge { limit: most });
        }
        let bytes = match (read_limited(response, limit).await, question.size) {
            (Err(Problem::TooLarge { limit }), Some(expected)) => {
                return Err(Problem::Size {
                    expected,
                    found: limit + 1,
                });
            }
            (read, _) => read?,
        };
        if let Some(expected) = question.size.filter(|size| *size != bytes.len() as u64) {
            return Err(Problem::Size {
                expected,
                found: bytes.len() as u64,
            });
        }
        let digest = verified(question.digest.as_ref().or(stated.as_ref()), &bytes)?;
        Ok((digest, media_type, bytes))
    }
}

/// Returns the digest of `bytes`, which must be the expected one; without one it is SHA-256.
fn verified(expected: Option<&Digest>, bytes: &[u8]) -> Result<Digest, Problem> {
    let Some(expected) = expected else {
        return Ok(Digest::sha256_of(bytes));
    };
    let found = Digest::of(expected.algorithm(), bytes);
    if found == *expected {
        return Ok(found);
    }
    Err(Problem::Digest {
        expected: expected.clone(),
        found,
    })
}
