//! Images on this node: look-up, listing, removal, and pulls that join each other.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axil_proto::ids::ContainerId;
use axil_snapshotter::{ChainId, Digest, Roots, Usage};

use super::admission::Demand;
use super::fetch_layers::{LayerFlights, layer_flights};
use super::flights::{Flights, Rules};
use super::progress::{Progress, PullView};
use super::pull_image::{self, Order};
use super::{lock, spawn};
use crate::domain::failure::Failure;
use crate::domain::image::pinned::PinnedPatterns;
use crate::domain::image::policy::Policy;
use crate::domain::image::reference::{ImageKey, Reference, parse_image_key};
use crate::domain::image::stored::{ImageIndex, StoredImage};
use crate::domain::usage::LayerUsage;
use crate::metrics::Metrics;
use crate::ports::images::{ImageRecords, Layers, PullAuth, Registry, Signatures};

/// Images and the pulls in flight.
#[expect(missing_debug_implementations, reason = "trait objects")]
pub struct Images {
    pub(super) records: Arc<dyn ImageRecords>,
    pub(super) layers: Arc<dyn Layers>,
    pub(super) registry: Arc<dyn Registry>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) index: Mutex<ImageIndex>,
    /// Recorded images that lost a layer or a document. They are not listed, so that the kubelet pulls them
    /// again; what is left of them stays, so that only the rest is fetched.
    pub(super) broken: Mutex<ImageIndex>,
    /// Held by the one check that runs.
    pub(super) checking: tokio::sync::Mutex<()>,
    pub(super) downloads: usize,
    pinned: PinnedPatterns,
    /// What the operator allows.
    pub(super) policy: Policy,
    /// Who signs.
    pub(super) signatures: Arc<dyn Signatures>,
    /// Layers on their way, whoever wants them.
    pub(super) fetches: Arc<LayerFlights>,
    /// How far pulls are.
    pub(super) progress: Arc<Progress>,
    pulls: Arc<Flights<PullKey, Arc<StoredImage>>>,
}

/// How pulls are run.
#[derive(Debug, Clone)]
pub struct PullOptions {
    /// Layers of one image fetched at once, at least 1.
    pub downloads: usize,
    /// How long a pull goes on after its last caller left; who asks for the same within that time joins it.
    pub linger: Duration,
    /// What may be pulled, imported and used.
    pub policy: Policy,
}

/// Two pulls are the same when they ask for the same with the same credentials.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct PullKey {
    reference: String,
    auth: Option<Digest>,
    demand: Demand,
}

impl Images {
    /// No images; `load` reads the recorded ones. What matches `pinned` is not for garbage collection.
    #[must_use]
    pub fn new(
        records: Arc<dyn ImageRecords>,
        layers: Arc<dyn Layers>,
        registry: Arc<dyn Registry>,
        signatures: Arc<dyn Signatures>,
        metrics: Arc<Metrics>,
        options: PullOptions,
        pinned: PinnedPatterns,
    ) -> Self {
        Self {
            records,
            layers,
            registry,
            metrics,
            index: Mutex::default(),
            broken: Mutex::default(),
            checking: tokio::sync::Mutex::default(),
            downloads: options.downloads.max(1),
            pinned,
            policy: options.policy,
            signatures,
            fetches: layer_flights(),
            progress: Arc::default(),
            pulls: Flights::new(Rules {
                linger: options.linger,
                keeps: false,
            }),
        }
    }

    /// Reads the recorded images and deletes what an interrupted pull or removal left behind.
    ///
    /// # Errors
    /// The records cannot be read.
    pub async fn load(self: &Arc<Self>) -> Result<(), Failure> {
        let records = Arc::clone(&self.records);
        let images = spawn::blocking("load image records", move || records.load()).await?;
        for mut image in images {
            if self.is_complete(&image) {
                // An earlier axil counted otherwise, and a repaired layer may take another size.
                image.size_bytes = self.size_of(&image)?;
                lock(&self.index).put(image);
            } else {
                // A damaged image is fetched again rather than served in part.
                tracing::warn!(image.id = %image.id, "an image is not whole; it waits to be pulled again");
                lock(&self.broken).put(image);
            }
        }
        self.collect().await.map(|_| ())
    }

    fn size_of(&self, image: &StoredImage) -> Result<u64, Failure> {
        let chains = image.chains.iter().map(|chain| parse_digest(chain));
        let chains = chains.map(|digest| digest.map(ChainId::from));
        let chains: Vec<ChainId> = chains.collect::<Result<_, _>>()?;
        let documents = [&parse_digest(&image.id)?, &parse_digest(&image.manifest)?];
        Ok(self.layers.size_of(&chains, &documents))
    }

    /// Whether every layer and document of an image is here.
    pub(super) fn is_complete(&self, image: &StoredImage) -> bool {
        let documents = [&image.id, &image.manifest];
        let has = |text: &&String| {
            text.parse()
                .is_ok_and(|digest| self.layers.has_blob(&digest))
        };
        image.chains.iter().all(|chain| self.layers.has(chain)) && documents.iter().all(has)
    }

    /// Whether an image, whole or not, has this name.
    ///
    /// # Errors
    /// `InvalidArgument` when `text` names no image or several.
    pub fn is_known(&self, text: &str) -> Result<bool, Failure> {
        Ok(self.find(text)?.is_some() || find_in(&lock(&self.broken), text)?.is_some())
    }

    /// Takes an image that is not whole out of the list; the next pull completes it.
    pub(super) fn set_aside(&self, image: &StoredImage) {
        if lock(&self.index).remove(&image.id).is_some() {
            lock(&self.broken).put(image.clone());
        }
    }

    /// Recorded images that are not whole and wait to be pulled again.
    #[must_use]
    pub fn incomplete(&self) -> Vec<Arc<StoredImage>> {
        lock(&self.broken).all()
    }

    /// Every image.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<StoredImage>> {
        lock(&self.index).all()
    }

    /// Whether the operator pinned an image.
    #[must_use]
    pub fn is_pinned(&self, image: &StoredImage) -> bool {
        self.pinned.holds(image)
    }

    /// Whether `text` names a pinned image, whole or not.
    ///
    /// # Errors
    /// `InvalidArgument` when `text` names no image or several.
    pub fn names_pinned(&self, text: &str) -> Result<bool, Failure> {
        let found = match self.find(text)? {
            Some(image) => Some(image),
            None => find_in(&lock(&self.broken), text)?,
        };
        Ok(found.is_some_and(|image| self.is_pinned(&image)))
    }

    /// An image by reference, id, or a prefix of its id.
    ///
    /// # Errors
    /// `InvalidArgument` when `text` names no image or several.
    pub fn find(&self, text: &str) -> Result<Option<Arc<StoredImage>>, Failure> {
        find_in(&lock(&self.index), text)
    }

    /// Pulls an image, or joins the pull of the same with the same credentials. A pull outlives a caller that
    /// vanished for as long as another one waits, and a little longer, for the one that comes back. `namespace` is
    /// that of the pod it is for, if it is for one.
    ///
    /// # Errors
    /// The step that failed.
    pub async fn pull(
        self: &Arc<Self>,
        text: &str,
        auth: Option<PullAuth>,
        namespace: Option<&str>,
    ) -> Result<Arc<StoredImage>, Failure> {
        let reference =
            Reference::parse(text).map_err(|error| Failure::invalid("image", text, error))?;
        let demand = self.admit_pull(&reference, namespace)?;
        let key = PullKey {
            reference: reference.to_string(),
            auth: auth
                .as_ref()
                .map(|auth| Digest::sha256_of(&auth.fingerprint())),
            demand: demand.clone(),
        };
        let images = Arc::clone(self);
        let work = |stop| async move {
            let order = Order {
                reference,
                auth,
                demand,
            };
            pull_image::pull_image(&images, &order, &stop).await
        };
        self.pulls.join(key, work).await.outcome().await
    }

    /// How far the pulls at work are, the one that began first first.
    #[must_use]
    pub fn pulls(&self) -> Vec<PullView> {
        self.progress.view(self.layers.as_ref())
    }

    /// Removes an image with all its names, and frees its space; success when it is unknown.
    ///
    /// # Errors
    /// `InvalidArgument` for a bad name, or its record or layers cannot be deleted.
    pub async fn remove(self: &Arc<Self>, text: &str) -> Result<(), Failure> {
        let found = self.find(text)?;
        let Some(image) = found.map_or_else(
            || find_in(&lock(&self.broken), text),
            |image| Ok(Some(image)),
        )?
        else {
            return Ok(());
        };
        let (records, id) = (Arc::clone(&self.records), image.id.clone());
        spawn::blocking("delete an image record", move || records.delete(&id)).await?;
        lock(&self.index).remove(&image.id);
        lock(&self.broken).remove(&image.id);
        let freed = self.collect().await?;
        tracing::info!(image.id = %image.id, freed_bytes = freed, "image is removed");
        Ok(())
    }

    /// Frees the layers of images that were removed while a container, which is gone now, used them.
    ///
    /// # Errors
    /// The layers cannot be deleted.
    pub(super) async fn collect_unless_kept(&self, images: &[String]) -> Result<(), Failure> {
        let kept = images.iter().all(|id| lock(&self.index).get(id).is_some());
        if kept {
            return Ok(());
        }
        self.collect().await.map(|_| ())
    }

    /// Deletes every blob and layer that no image, pull or container needs; answers the bytes freed.
    pub(super) async fn collect(&self) -> Result<u64, Failure> {
        let mut roots = Roots {
            blobs: BTreeSet::new(),
            chains: BTreeSet::new(),
        };
        for image in self.all().into_iter().chain(self.incomplete()) {
            for blob in [&image.id, &image.manifest] {
                roots.blobs.insert(parse_digest(blob)?);
            }
            for chain in &image.chains {
                roots.chains.insert(ChainId::from(parse_digest(chain)?));
            }
        }
        self.layers.collect(roots).await
    }

    /// Bytes and inodes of everything the store holds.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn usage(&self) -> Result<Usage, Failure> {
        self.layers.usage().await
    }

    /// Bytes and inodes of the writable layers of containers, as they were measured last.
    #[must_use]
    pub fn containers_usage(&self) -> Usage {
        self.layers.containers_usage()
    }

    /// Bytes and inodes of one container's writable layer, as it was measured last.
    #[must_use]
    pub fn container_usage(&self, container: &ContainerId) -> Option<LayerUsage> {
        self.layers.container_usage(container)
    }

    /// Measures the writable layers of containers.
    ///
    /// # Errors
    /// One cannot be read.
    pub async fn measure_containers(&self) -> Result<(), Failure> {
        self.layers.measure_containers().await
    }

    /// Manifest and configuration of an image as they were pulled; empty when they are not there.
    ///
    /// # Errors
    /// One is damaged.
    pub async fn documents(&self, image: &StoredImage) -> Result<(Vec<u8>, Vec<u8>), Failure> {
        let mut documents = [Vec::new(), Vec::new()];
        for (document, digest) in documents.iter_mut().zip([&image.manifest, &image.id]) {
            let read = self.layers.read_blob(&parse_digest(digest)?).await?;
            *document = read.unwrap_or_default();
        }
        let [manifest, config] = documents;
        Ok((manifest, config))
    }
}

/// An image of an index by reference, id, or a prefix of its id.
fn find_in(index: &ImageIndex, text: &str) -> Result<Option<Arc<StoredImage>>, Failure> {
    let key = parse_image_key(text).map_err(|error| Failure::invalid("image", text, error))?;
    let prefix = |hex: &str| {
        index
            .by_id_prefix(hex)
            .map_err(|error| Failure::invalid("image", text, error))
    };
    match key {
        ImageKey::Id(digest) => Ok(index.get(&digest.to_string())),
        ImageKey::IdPrefix(hex) => prefix(&hex),
        ImageKey::Reference {
            reference,
            id_prefix,
        } => match (index.by_name(&reference.stored_name()), id_prefix) {
            (None, Some(hex)) => prefix(&hex),
            (found, _) => Ok(found),
        },
    }
}

pub(super) fn parse_digest(text: &str) -> Result<Digest, Failure> {
    text.parse()
        .map_err(|error| Failure::internal("a recorded digest", &error))
}
