//! Layers on their way: each is fetched and unpacked once, for every pull that wants it. Who is allowed to want
//! it is settled before, by the manifest that each caller got for itself.
//!
//! The download runs with the source of the pull that began it. If that fails the others try theirs, going on
//! from what has come. A layer that is unpacked stays until the last of those pulls took it or gave up.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use axil_snapshotter::{ChainId, Digest, StagedLayer};
use bytes::Bytes;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::flights::{Flights, Rules, Ticket};
use super::images::Images;
use super::lock;
use super::progress::{LayerProgress, LayerStage};
use super::pull_image::{Intake, LEFT, until};
use super::share_layers::share_layers;
use super::steps::Steps;
use crate::domain::failure::{Class, Failure};
use crate::domain::image::config::ImageConfig;
use crate::domain::image::manifest::{Descriptor, DocumentRules, ImageManifest, LayerDescriptor};
use crate::ports::Answer;
use crate::ports::images::{BlobStream, LayerJob, Layers, RemoteImage};

/// By place in a stack and by blob: two images may name different blobs for one place, and then neither may get
/// what came of the other's without a check (`share_layers.rs`).
pub(super) type LayerFlights = Flights<(ChainId, Digest), Arc<UnpackedLayer>>;

/// How often layers are looked for. Again is only when another pull took layers out of use, or failed to store
/// what it took, between the fetch and the commit.
const ROUNDS: usize = 4;

/// Layers in flight; one that nobody wants any more stops at once, since its bytes are kept for the next pull.
pub(super) fn layer_flights() -> Arc<LayerFlights> {
    Flights::new(Rules {
        linger: Duration::ZERO,
        keeps: true,
    })
}

/// A layer that several pulls wait for.
pub(super) struct UnpackedLayer {
    /// Empty when the layer was in the store by then, and after one of the pulls put it there.
    staged: Mutex<Option<StagedLayer>>,
    /// Compressed bytes received.
    received: u64,
}

/// A layer this pull waited for, and its place among those who do.
pub(super) struct FetchedLayer {
    chain: ChainId,
    layer: Arc<UnpackedLayer>,
    /// Dropped last: then nobody has the layer any more.
    place: Ticket<Arc<UnpackedLayer>>,
}

impl FetchedLayer {
    /// Gives it up; when nobody else wants it, nothing of it is on disk afterwards.
    async fn leave(self) {
        drop(self.layer);
        self.place.leave().await;
    }
}

/// All layers of an image, in the store or ready to be put there.
pub(super) struct ReadyLayers {
    /// Lowest first.
    pub(super) staged: Vec<StagedLayer>,
    /// Compressed bytes that this pull received.
    pub(super) bytes: u64,
    /// Held until the layers are in the store.
    pub(super) fetched: Vec<FetchedLayer>,
    /// Nobody else changes these stacks while it is held.
    pub(super) claim: Box<dyn Send + Sync>,
    /// Where the layers are, for who watches.
    pub(super) progress: Vec<Arc<LayerProgress>>,
}

/// Makes every layer of an image ready. Others may fetch, store and condemn the same layers meanwhile, except
/// where the claim is held: while it is looked at which layers are here, and from the last such look on.
///
/// # Errors
/// The step that failed, or layers that came did not stay.
pub(super) async fn gather_layers(
    images: &Arc<Images>,
    intake: &Intake<'_>,
    manifest: &ImageManifest,
    config: &ImageConfig,
    steps: &mut Steps<'_>,
) -> Result<ReadyLayers, Failure> {
    let chains = ChainId::of(&config.diff_ids);
    let mut bytes = 0;
    for _ in 0..ROUNDS {
        let claim = images.layers.claim(&chains).await;
        let share = share_layers(images, manifest, &chains);
        steps.run("shared layers", share).await?;
        let jobs = layer_jobs(images, manifest, config, &chains);
        drop(claim);
        let progress = layers_of(images, manifest, &chains, &jobs);
        intake.entry.layers(progress.clone());
        let fetch = until(intake.stop, fetch_layers(images, intake.remote, jobs));
        let (fetched, received) = steps.run("layers", fetch).await?;
        bytes += received;
        let claim = images.layers.claim(&chains).await;
        // What others stored meanwhile may be of other blobs.
        let share = share_layers(images, manifest, &chains);
        steps.run("shared layers", share).await?;
        if let Some(staged) = take_staged(images, &chains, &fetched) {
            return Ok(ReadyLayers {
                staged,
                bytes,
                fetched,
                claim,
                progress,
            });
        }
    }
    let message = "layers of the image were taken away again and again while it was pulled";
    Err(Failure::new(Class::Unavailable, message))
}

/// Every layer of an image, to be watched.
fn layers_of(
    images: &Images,
    manifest: &ImageManifest,
    chains: &[ChainId],
    jobs: &VecDeque<LayerJob>,
) -> Vec<Arc<LayerProgress>> {
    let watch = |(layer, chain): (&LayerDescriptor, &ChainId)| {
        let progress = progress_of(images, chain, layer);
        if !jobs.iter().any(|job| job.chain == *chain) {
            progress.enter(LayerStage::Stored);
        }
        progress
    };
    manifest.layers.iter().zip(chains).map(watch).collect()
}

fn progress_of(images: &Images, chain: &ChainId, layer: &LayerDescriptor) -> Arc<LayerProgress> {
    let gauges = images.metrics.layers();
    images
        .progress
        .layer(chain, &layer.digest, layer.size, gauges)
}

/// The layers that are not on disk yet.
fn layer_jobs(
    images: &Images,
    manifest: &ImageManifest,
    config: &ImageConfig,
    chains: &[ChainId],
) -> VecDeque<LayerJob> {
    let mut parent = None;
    let mut jobs = VecDeque::new();
    for ((layer, diff_id), chain) in manifest.layers.iter().zip(&config.diff_ids).zip(chains) {
        if !images.layers.has(&chain.to_string()) {
            jobs.push_back(LayerJob {
                layer: layer.clone(),
                diff_id: diff_id.clone(),
                chain: chain.clone(),
                parent: parent.clone(),
            });
        }
        parent = Some(chain.clone());
    }
    jobs
}

/// Fetches and unpacks layers, several at once; answers them lowest first, with the bytes that this pull received.
async fn fetch_layers(
    images: &Arc<Images>,
    remote: &Arc<dyn RemoteImage>,
    mut jobs: VecDeque<LayerJob>,
) -> Result<(Vec<FetchedLayer>, u64), Failure> {
    let mut done: Vec<Option<FetchedLayer>> = Vec::new();
    done.resize_with(jobs.len(), || None);
    let mut running = JoinSet::new();
    let (mut next, mut bytes, mut failed) = (0usize, 0u64, None);
    loop {
        while running.len() < images.downloads
            && failed.is_none()
            && let Some(job) = jobs.pop_front()
        {
            let (images, remote) = (Arc::clone(images), Arc::clone(remote));
            let at = next;
            next += 1;
            running.spawn(async move {
                let what = format!("layer {}", job.layer.digest);
                let result = fetch_layer(&images, &remote, &job).await;
                (at, result.map_err(|failure| failure.during(what)))
            });
        }
        match running.join_next().await {
            None => break,
            Some(Ok((at, Ok((fetched, received))))) => {
                done[at] = Some(fetched);
                bytes += received;
            }
            // The others go on to their end: what they fetched is kept for the retry.
            Some(Ok((_, Err(failure)))) => failed = failed.or(Some(failure)),
            Some(Err(error)) => {
                failed = failed.or(Some(Failure::internal("unpack a layer", &error)));
            }
        }
    }
    let fetched = done.into_iter().flatten();
    let Some(failure) = failed else {
        return Ok((fetched.collect(), bytes));
    };
    for layer in fetched {
        layer.leave().await;
    }
    Err(failure)
}

/// Waits for a layer, fetching it unless another pull does.
async fn fetch_layer(
    images: &Arc<Images>,
    remote: &Arc<dyn RemoteImage>,
    job: &LayerJob,
) -> Result<(FetchedLayer, u64), Failure> {
    let key = (job.chain.clone(), job.layer.digest.clone());
    loop {
        let (layers, remote, wanted) =
            (Arc::clone(&images.layers), Arc::clone(remote), job.clone());
        let progress = progress_of(images, &job.chain, &job.layer);
        let watched = |stop| Watched {
            remote,
            stop,
            progress,
        };
        let work = |stop| unpack(layers, wanted, watched(stop));
        let place = images.fetches.join(key.clone(), work).await;
        match place.outcome().await {
            Ok(layer) => {
                let received = if place.is_first { layer.received } else { 0 };
                let fetched = FetchedLayer {
                    chain: job.chain.clone(),
                    layer,
                    place,
                };
                return Ok((fetched, received));
            }
            Err(failure) if place.is_first => return Err(failure),
            // It failed with another pull's credentials, or at a mirror that this one does not have. Each round
            // ends one pull's try, so that this one's turn comes.
            Err(failure) => tracing::debug!(
                digest = %job.layer.digest, error = %failure,
                "a layer another pull fetched did not come; this one fetches it"
            ),
        }
    }
}

async fn unpack(
    layers: Arc<dyn Layers>,
    job: LayerJob,
    source: Watched,
) -> Result<Arc<UnpackedLayer>, Failure> {
    // Somebody may have put it into the store since it was looked for.
    let (staged, received) = if layers.has(&job.chain.to_string()) {
        (None, 0)
    } else {
        let (staged, received) = layers.unpack(job, &source).await?;
        (Some(staged), received)
    };
    source.progress.enter(LayerStage::Unpacked);
    Ok(Arc::new(UnpackedLayer {
        staged: Mutex::new(staged),
        received,
    }))
}

/// Takes what is not in the store yet, lowest first; nothing when a layer is neither there nor among those that
/// came. The caller has the claim on all layers of the image, so that nobody else takes or stores them meanwhile.
fn take_staged(
    images: &Images,
    chains: &[ChainId],
    fetched: &[FetchedLayer],
) -> Option<Vec<StagedLayer>> {
    let missing = |chain: &&ChainId| !images.layers.has(&chain.to_string());
    let mut places = Vec::new();
    for chain in chains.iter().filter(missing) {
        let came = fetched.iter().find(|fetched| fetched.chain == *chain)?;
        lock(&came.layer.staged).as_ref()?;
        places.push(came);
    }
    let take = |came: &FetchedLayer| lock(&came.layer.staged).take();
    places.into_iter().map(take).collect()
}

/// A source that tells how far it is, and whose waits end when nobody wants the layer any more.
struct Watched {
    remote: Arc<dyn RemoteImage>,
    stop: CancellationToken,
    progress: Arc<LayerProgress>,
}

fn left<T>() -> Answer<T> {
    Err(Failure::new(Class::Unavailable, LEFT))
}

#[async_trait]
impl RemoteImage for Watched {
    fn digest(&self) -> &Digest {
        self.remote.digest()
    }

    fn media_type(&self) -> &str {
        self.remote.media_type()
    }

    fn bytes(&self) -> &[u8] {
        self.remote.bytes()
    }

    fn is_remote(&self) -> bool {
        self.remote.is_remote()
    }

    fn rules(&self) -> DocumentRules {
        self.remote.rules()
    }

    async fn document(&self, descriptor: &Descriptor) -> Answer<Vec<u8>> {
        self.remote.document(descriptor).await
    }

    async fn blob(&self, descriptor: &Descriptor, offset: u64) -> Answer<Box<dyn BlobStream>> {
        let stream = tokio::select! {
            opened = self.remote.blob(descriptor, offset) => opened?,
            () = self.stop.cancelled() => return left(),
        };
        self.progress.begins_at(offset);
        Ok(Box::new(WatchedStream {
            stream,
            stop: self.stop.clone(),
            progress: Arc::clone(&self.progress),
        }))
    }
}

struct WatchedStream {
    stream: Box<dyn BlobStream>,
    stop: CancellationToken,
    progress: Arc<LayerProgress>,
}

#[async_trait]
impl BlobStream for WatchedStream {
    async fn next(&mut self) -> Answer<Option<Bytes>> {
        let piece = tokio::select! {
            piece = self.stream.next() => piece?,
            () = self.stop.cancelled() => return left(),
        };
        match &piece {
            Some(piece) => self.progress.received(piece.len() as u64),
            None => self.progress.enter(LayerStage::Unpacking),
        }
        Ok(piece)
    }
}
