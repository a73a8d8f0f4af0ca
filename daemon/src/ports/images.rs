//! What the image side of the engine needs: a registry, a layer store, records.

use std::collections::BTreeSet;
use std::fmt;
use std::io::Read;
use std::sync::Arc;

use async_trait::async_trait;
use axil_proto::ids::ContainerId;
use axil_snapshotter::{
    ChainId, DamagedRecord, Depth, Digest, LayerArchive, LayerCheck, Lease, Roots, StagedLayer,
    Usage,
};
use bytes::Bytes;

use super::Answer;
use crate::domain::image::manifest::{Descriptor, DocumentRules, LayerDescriptor};
use crate::domain::image::reference::Reference;
use crate::domain::image::stored::StoredImage;
use crate::domain::usage::LayerUsage;

/// Durable records of images.
pub trait ImageRecords: Send + Sync {
    /// Writes or replaces a record; durable when it returns.
    fn put(&self, image: &StoredImage) -> Answer<()>;
    /// Deletes a record; none is success.
    fn delete(&self, id: &str) -> Answer<()>;
    /// Everything recorded; damaged records are named in the log and left where they are.
    fn load(&self) -> Answer<Vec<StoredImage>>;
    /// Records that cannot be read, with the reason.
    fn damaged(&self) -> Answer<Vec<DamagedRecord>>;
    /// Deletes a record that cannot be read.
    fn discard(&self, record: &DamagedRecord) -> Answer<()>;
}

/// Credentials of one pull, as the CRI gives them.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct PullAuth {
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
    /// Base64 of `user:password`.
    pub auth: String,
    /// Registry the credentials are for; empty is the reference's own.
    pub server_address: String,
    /// OAuth2 refresh token.
    pub identity_token: String,
    /// Bearer token.
    pub registry_token: String,
}

impl PullAuth {
    /// Tells credentials apart without keeping them.
    #[must_use]
    pub fn fingerprint(&self) -> Vec<u8> {
        let fields = [
            &self.username,
            &self.password,
            &self.auth,
            &self.server_address,
            &self.identity_token,
            &self.registry_token,
        ];
        let mut bytes = Vec::new();
        for field in fields {
            bytes.extend_from_slice(&field.len().to_le_bytes());
            bytes.extend_from_slice(field.as_bytes());
        }
        bytes
    }
}

impl fmt::Debug for PullAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PullAuth")
            .field("server_address", &self.server_address)
            .finish_non_exhaustive()
    }
}

/// Registries.
#[async_trait]
pub trait Registry: Send + Sync {
    /// Finds what a reference names; its document is verified.
    async fn resolve(
        &self,
        reference: &Reference,
        auth: Option<&PullAuth>,
    ) -> Answer<Box<dyn RemoteImage>>;
}

/// What a reference named, at the registry that answered.
#[async_trait]
pub trait RemoteImage: Send + Sync {
    /// Digest of the document the reference names: what users pin.
    fn digest(&self) -> &Digest;
    /// The document's media type as the registry states it.
    fn media_type(&self) -> &str;
    /// The document.
    fn bytes(&self) -> &[u8];
    /// Whether what was received of a layer is worth keeping when it breaks off.
    fn is_remote(&self) -> bool {
        true
    }
    /// What is taken of the image's documents.
    fn rules(&self) -> DocumentRules {
        DocumentRules::default()
    }
    /// Fetches a manifest or a configuration; size and digest are verified.
    async fn document(&self, descriptor: &Descriptor) -> Answer<Vec<u8>>;
    /// The manifest or index under another tag of the same repository; none when it has no such tag.
    async fn tagged(&self, _tag: &str) -> Answer<Option<Vec<u8>>> {
        Ok(None)
    }
    /// The index of what refers to a document of the repository; none where there is no such list.
    async fn referrers(&self, _digest: &Digest) -> Answer<Option<Vec<u8>>> {
        Ok(None)
    }
    /// Streams a blob from `offset`; the size is verified, the digest is the consumer's to check.
    async fn blob(&self, descriptor: &Descriptor, offset: u64) -> Answer<Box<dyn BlobStream>>;
}

/// Signatures of images, as the operator's policy names those who sign.
#[async_trait]
pub trait Signatures: Send + Sync {
    /// Looks in the image's repository for a good signature of one of `signers` on one of `digests`; answers what
    /// to remember of it. Anything else than a good signature is a failure.
    async fn check(
        &self,
        image: &dyn RemoteImage,
        digests: &[Digest],
        signers: &BTreeSet<String>,
    ) -> Answer<String>;
    /// What is remembered of a signature of this signer, as it is configured now.
    fn endorsement(&self, signer: &str) -> Option<String>;
}

/// The bytes of a blob.
#[async_trait]
pub trait BlobStream: Send {
    /// The next piece, or none at the end.
    async fn next(&mut self) -> Answer<Option<Bytes>>;
}

/// One layer to fetch and unpack.
#[derive(Debug, Clone)]
pub struct LayerJob {
    /// Compressed bytes.
    pub layer: LayerDescriptor,
    /// Digest of the unpacked tar.
    pub diff_id: Digest,
    /// Name of the stack up to this layer.
    pub chain: ChainId,
    /// Name of the stack below.
    pub parent: Option<ChainId>,
}

/// Blobs and layers on disk.
#[async_trait]
pub trait Layers: Send + Sync {
    /// Whether a stack of layers, named in text form, is on disk.
    fn has(&self, chain: &str) -> bool;
    /// Keeps these from being collected until the lease is dropped.
    fn lease(&self, roots: Roots) -> Lease;
    /// Waits until nobody else unpacks these stacks; the claim is dropped with the result.
    async fn claim(&self, chains: &[ChainId]) -> Box<dyn Send + Sync>;
    /// Fetches and unpacks a layer, going on where an interrupted pull stopped; answers it with the
    /// compressed bytes received now.
    async fn unpack(&self, job: LayerJob, remote: &dyn RemoteImage) -> Answer<(StagedLayer, u64)>;
    /// Bytes of a layer that are unpacked: of its archive while it is on its way, on disk once it is there.
    fn unpacked_bytes(&self, chain: &ChainId, blob: &Digest) -> u64;
    /// Makes unpacked layers, lowest first, and documents durable and visible.
    async fn commit(
        &self,
        staged: Vec<StagedLayer>,
        documents: Vec<(Digest, Vec<u8>)>,
    ) -> Answer<()>;
    /// Whether a document is kept.
    fn has_blob(&self, digest: &Digest) -> bool;
    /// A document that was kept.
    async fn read_blob(&self, digest: &Digest) -> Answer<Option<Vec<u8>>>;
    /// Deletes everything that neither `roots`, nor a lease, nor a container needs; answers the bytes.
    async fn collect(&self, roots: Roots) -> Answer<u64>;
    /// Bytes of these layers and documents with their records: what removing them frees.
    fn size_of(&self, chains: &[ChainId], documents: &[&Digest]) -> u64;
    /// Bytes and inodes of everything but the writable layers of containers.
    async fn usage(&self) -> Answer<Usage>;
    /// Bytes and inodes of the writable layers of containers, as they were measured last.
    fn containers_usage(&self) -> Usage;
    /// Bytes and inodes of one container's writable layer, as it was measured last.
    fn container_usage(&self, container: &ContainerId) -> Option<LayerUsage>;
    /// Measures the writable layers of containers.
    async fn measure_containers(&self) -> Answer<()>;
    /// Reads an archive of images to its end and finds what is in it.
    async fn read_archive(&self, source: Box<dyn Read + Send>) -> Answer<Vec<ArchivedImage>>;
    /// The archive of a committed layer, uncompressed; none when it cannot be made again.
    fn open_archive(&self, chain: &ChainId) -> Answer<Option<LayerArchive>>;
    /// Every layer, each after the one below it.
    fn layers(&self) -> Vec<ChainId>;
    /// Every document.
    fn blobs(&self) -> Vec<Digest>;
    /// What the store removed as unfinished when it was opened.
    fn swept(&self) -> Vec<String>;
    /// Compares a document with its digest; says what is wrong.
    async fn check_blob(&self, digest: &Digest) -> Answer<Option<String>>;
    /// Checks a layer.
    async fn check_layer(&self, chain: &ChainId, depth: Depth) -> Answer<LayerCheck>;
    /// Whether an image that names this blob for a layer may have the layer, without a look at it.
    fn is_proven(&self, chain: &ChainId, blob: &Digest) -> bool;
    /// Checks a layer completely, so that images may have it that name another blob; answers whether it holds.
    async fn prove(&self, chain: &ChainId) -> Answer<bool>;
    /// Takes a layer and every layer on it out of use; answers which were.
    async fn condemn_stacks(&self, chain: &ChainId) -> Answer<Vec<ChainId>>;
    /// What cannot be used, and what belongs to nothing.
    async fn strays(&self) -> Answer<Vec<DamagedRecord>>;
    /// Deletes one of those.
    async fn discard(&self, stray: &DamagedRecord) -> Answer<()>;
    /// Deletes a document.
    async fn drop_blob(&self, digest: &Digest) -> Answer<()>;
    /// Takes a layer out of use; its files stay as long as a container is on them.
    async fn condemn(&self, chain: &ChainId) -> Answer<()>;
}

/// One image of an archive.
#[expect(missing_debug_implementations, reason = "a trait object")]
pub struct ArchivedImage {
    /// Names the archive gives it, as written there.
    pub names: Vec<String>,
    /// Its documents and layers.
    pub image: Arc<dyn RemoteImage>,
}
