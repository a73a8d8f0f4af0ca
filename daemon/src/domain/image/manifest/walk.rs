//! The way from the document a reference names to the one manifest for this machine, as a pure
//! sequence of steps: the caller fetches what a step asks for. Depth, number of documents, number
//! of descriptors and bytes are bounded over the whole walk; no digest is asked for twice.

use std::collections::BTreeSet;

use axil_snapshotter::Digest;

use super::super::media::MediaType;
use super::{
    Descriptor, Document, DocumentRules, ImageManifest, IndexEntry, ManifestError, Platform, limit,
    listed, parse_document,
};

/// Most bytes of all documents of one walk, in documents of the largest size: an index, a nested
/// one, and two to choose from.
const MAX_WALK_DOCUMENTS: u64 = 4;

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Fetch this document, at most as large as the rules allow, and hand it to [`Walk::accept`].
    Fetch(Descriptor),
    /// The walk is over: this is the image.
    Image {
        /// The digest of the manifest.
        digest: Digest,
        /// The manifest.
        manifest: ImageManifest,
    },
}

/// The state of one walk.
#[derive(Debug)]
pub struct Walk {
    platform: Platform,
    rules: DocumentRules,
    depth: usize,
    documents: usize,
    descriptors: usize,
    bytes: u64,
    /// Candidates with their depth, the best last.
    pending: Vec<(usize, Descriptor)>,
    seen: BTreeSet<Digest>,
    available: BTreeSet<String>,
}

impl Walk {
    /// Starts a walk for `platform` under `rules`; the first document to accept is the one the
    /// reference names.
    #[must_use]
    pub fn new(platform: Platform, rules: DocumentRules) -> Self {
        Self {
            platform,
            rules,
            depth: 1,
            documents: 0,
            descriptors: 0,
            bytes: 0,
            pending: Vec::new(),
            seen: BTreeSet::new(),
            available: BTreeSet::new(),
        }
    }

    /// Takes a document whose bytes were checked against `digest` and says what to do next.
    ///
    /// # Errors
    /// Whatever [`parse_document`] refuses, a walk over its limits, and an image without a
    /// manifest for the platform.
    pub fn accept(
        &mut self,
        digest: &Digest,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<Step, ManifestError> {
        self.documents += 1;
        limit("documents", self.documents, self.rules.max_documents)?;
        self.bytes = self.bytes.saturating_add(bytes.len() as u64);
        let max_bytes = self.rules.max_document_bytes as u64 * MAX_WALK_DOCUMENTS;
        if self.bytes > max_bytes {
            return Err(ManifestError::TooLarge {
                field: "documents".into(),
                found: self.bytes,
                limit: max_bytes,
            });
        }
        self.seen.insert(digest.clone());
        let document = parse_document(media_type, bytes, &self.rules)?;
        self.descriptors += document.descriptors();
        limit("descriptors", self.descriptors, self.rules.max_descriptors)?;
        match document {
            Document::Manifest(manifest) => Ok(Step::Image {
                digest: digest.clone(),
                manifest,
            }),
            Document::Index(entries) => {
                self.queue(entries);
                self.next()
            }
        }
    }

    fn queue(&mut self, entries: Vec<IndexEntry>) {
        let mut ranked = Vec::new();
        for entry in entries {
            if let Some(platform) = &entry.platform {
                self.available.insert(platform.to_string());
            }
            if let Some(rank) = self.rank(&entry) {
                ranked.push((rank, entry.descriptor));
            }
        }
        // Stable: of equals the first listed wins, as the index specification says.
        ranked.sort_by_key(|(rank, _)| *rank);
        let depth = self.depth + 1;
        let best_last = ranked.into_iter().rev();
        self.pending
            .extend(best_last.map(|(_, descriptor)| (depth, descriptor)));
    }

    /// Ranks manifests for this platform before indexes, and both before what states no platform.
    fn rank(&self, entry: &IndexEntry) -> Option<(u8, u32)> {
        let distance = match &entry.platform {
            Some(platform) => Some(self.platform.distance(platform)?),
            None => None,
        };
        match (MediaType::of(&entry.descriptor.media_type), distance) {
            (MediaType::Manifest(_), Some(distance)) => Some((0, distance)),
            (MediaType::Index(_), Some(distance)) => Some((1, distance)),
            (MediaType::Index(_), None) => Some((2, 0)),
            (MediaType::Manifest(_), None) => Some((3, 0)),
            (
                MediaType::Config
                | MediaType::Layer(_)
                | MediaType::Foreign(_)
                | MediaType::Refused(_)
                | MediaType::Other,
                _,
            ) => None,
        }
    }

    fn next(&mut self) -> Result<Step, ManifestError> {
        while let Some((depth, descriptor)) = self.pending.pop() {
            if self.seen.contains(&descriptor.digest) {
                continue;
            }
            if depth > self.rules.max_depth {
                let limit = self.rules.max_depth;
                return Err(ManifestError::TooDeep { limit });
            }
            let max_bytes = self.rules.max_document_bytes as u64;
            if descriptor.size > max_bytes {
                return Err(ManifestError::TooLarge {
                    field: format!("manifests: {}", descriptor.digest),
                    found: descriptor.size,
                    limit: max_bytes,
                });
            }
            self.depth = depth;
            return Ok(Step::Fetch(descriptor));
        }
        Err(ManifestError::NoPlatform {
            wanted: self.platform.clone(),
            available: listed(&self.available),
        })
    }
}
