//! PullImage: resolve, manifest, config, layers, commit, record.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;

use axil_snapshotter::{ChainId, Digest, Roots};
use tokio_util::sync::CancellationToken;

use super::admission::Demand;
use super::fetch_layers::gather_layers;
use super::images::Images;
use super::progress::{LayerStage, PullEntry};
use super::steps::Steps;
use super::{lock, spawn};
use crate::domain::failure::{Class, Failure, KubeletError, chain};
use crate::domain::image::config::ImageConfig;
use crate::domain::image::manifest::{ImageManifest, Platform, Step, Walk};
use crate::domain::image::reference::Reference;
use crate::domain::image::stored::{IMAGE_RECORD_VERSION, StoredConfig, StoredImage};
use crate::ports::images::{PullAuth, RemoteImage};

/// What a pull is to get, with what, and under which condition.
pub(super) struct Order {
    pub(super) reference: Reference,
    pub(super) auth: Option<PullAuth>,
    pub(super) demand: Demand,
}

/// Why a pull that nobody waits for ends; only the log tells it.
pub(super) const LEFT: &str = "nobody waits for it any more";

/// Pulls an image. What a failed pull fetched of a layer is kept for the next one; nothing else is. `stop` ends it
/// while it waits for a registry; what is on disk by then is recorded.
///
/// Whatever others fetch, this caller asks the registry for manifest and configuration with its own credentials
/// before it shares their layers.
///
/// # Errors
/// The step that failed.
pub(super) async fn pull_image(
    images: &Arc<Images>,
    order: &Order,
    stop: &CancellationToken,
) -> Result<Arc<StoredImage>, Failure> {
    let reference = &order.reference;
    let entry = images.progress.begin(reference.to_string());
    let mut steps = Steps::begin("PullImage").telling(|step| entry.step(step));
    let _in_flight = images.metrics.pull_begins();
    let result = sequence(images, order, stop, &entry, &mut steps).await;
    match result {
        Ok((image, bytes)) => {
            images.metrics.pull_ended(true, bytes);
            tracing::info!(image.r#ref = %reference, image.id = %image.id, bytes, "image is pulled");
            Ok(image)
        }
        Err(failure) => {
            images.metrics.pull_ended(false, 0);
            // What was fetched and is not referenced goes; partly fetched layers stay for a retry.
            if let Err(failure) = images.collect().await {
                tracing::error!(error = %failure, "after a failed pull");
            }
            Err(failure.during(format!("pull {reference}")))
        }
    }
}

async fn sequence(
    images: &Arc<Images>,
    order: &Order,
    stop: &CancellationToken,
    entry: &PullEntry,
    steps: &mut Steps<'_>,
) -> Result<(Arc<StoredImage>, u64), Failure> {
    let reference = &order.reference;
    let resolve = images.registry.resolve(reference, order.auth.as_ref());
    let resolve = until(stop, resolve);
    let remote = steps.run("resolve", resolve).await?;
    let remote: Arc<dyn RemoteImage> = Arc::from(remote);
    let names = Names::of(reference, remote.digest());
    let intake = Intake {
        remote: &remote,
        names: &names,
        demand: &order.demand,
        entry,
        stop,
    };
    take_in(images, &intake, steps).await
}

/// What is to be taken in, under which names and condition, and who hears of it.
pub(super) struct Intake<'a> {
    pub(super) remote: &'a Arc<dyn RemoteImage>,
    pub(super) names: &'a Names,
    pub(super) demand: &'a Demand,
    pub(super) entry: &'a PullEntry,
    pub(super) stop: &'a CancellationToken,
}

/// Runs a step that waits for somebody else until it is told to stop.
pub(super) async fn until<T>(
    stop: &CancellationToken,
    step: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    tokio::select! {
        result = step => result,
        () = stop.cancelled() => Err(Failure::new(Class::Unavailable, LEFT)),
    }
}

/// The names an image gets with what is stored now, in canonical form.
#[derive(Debug, Default)]
pub(super) struct Names {
    pub(super) tags: BTreeSet<String>,
    pub(super) digests: BTreeSet<String>,
}

impl Names {
    fn of(reference: &Reference, top: &Digest) -> Self {
        let mut names = Self::default();
        names.digests.insert(format!("{}@{top}", reference.name()));
        if reference.digest().is_none() {
            names.tags.insert(reference.stored_name());
        }
        names
    }
}

/// Stores an image, wherever it comes from, and records it under its names.
pub(super) async fn take_in(
    images: &Arc<Images>,
    intake: &Intake<'_>,
    steps: &mut Steps<'_>,
) -> Result<(Arc<StoredImage>, u64), Failure> {
    let Intake {
        remote,
        names,
        demand,
        stop,
        ..
    } = *intake;
    let manifest = until(stop, choose_manifest(remote.as_ref()));
    let (manifest, manifest_digest, manifest_bytes) = steps.run("manifest", manifest).await?;
    let signature = until(
        stop,
        check_signature(images, remote.as_ref(), &manifest_digest, demand),
    );
    let endorsement = steps.run("signature", signature).await?;
    let config = until(stop, fetch_config(remote.as_ref(), &manifest));
    let (config, config_bytes) = steps.run("config", config).await?;

    let id = manifest.config.digest.clone();
    let chains = ChainId::of(&config.diff_ids);
    let roots = Roots {
        blobs: BTreeSet::from([id.clone(), manifest_digest.clone()]),
        chains: chains.iter().cloned().collect(),
    };
    let lease = images.layers.lease(roots);
    let ready = gather_layers(images, intake, &manifest, &config, steps).await?;
    let documents = vec![
        (manifest_digest.clone(), manifest_bytes),
        (id.clone(), config_bytes),
    ];
    steps
        .run("commit", images.layers.commit(ready.staged, documents))
        .await?;
    for layer in ready.progress {
        layer.enter(LayerStage::Stored);
    }
    drop(ready.fetched);

    let record = async {
        let image = StoredImage {
            version: IMAGE_RECORD_VERSION,
            id: id.to_string(),
            manifest: manifest_digest.to_string(),
            repo_tags: BTreeSet::new(),
            repo_digests: BTreeSet::new(),
            size_bytes: images.layers.size_of(&chains, &[&id, &manifest_digest]),
            chain: chains.last().map(ToString::to_string),
            chains: chains.iter().map(ToString::to_string).collect(),
            annotations: manifest.annotations.clone(),
            config: StoredConfig {
                user: config.user.clone(),
                env: config.env.clone(),
                entrypoint: config.entrypoint.clone(),
                cmd: config.cmd.clone(),
                working_dir: config.working_dir.clone(),
                stop_signal: config.stop_signal.clone(),
            },
            endorsements: endorsement.into_iter().collect(),
        };
        record_image(images, image, names).await
    };
    let image = steps.run("record", record).await?;
    // Order: whoever takes layers out of use looks at the recorded images next, so this one is recorded first.
    drop(ready.claim);
    drop(lease);
    Ok((image, ready.bytes))
}

/// Follows indexes down to this platform's manifest.
async fn choose_manifest(
    remote: &dyn RemoteImage,
) -> Result<(ImageManifest, Digest, Vec<u8>), Failure> {
    let mut walk = Walk::new(Platform::host(), remote.rules());
    let mut digest = remote.digest().clone();
    let mut media_type = remote.media_type().to_owned();
    let mut bytes = remote.bytes().to_vec();
    loop {
        let step = walk.accept(&digest, &media_type, &bytes);
        match step.map_err(|error| Failure::new(error.class(), chain(&error)))? {
            Step::Image { digest, manifest } => return Ok((manifest, digest, bytes)),
            Step::Fetch(descriptor) => {
                bytes = remote.document(&descriptor).await?;
                media_type.clone_from(&descriptor.media_type);
                digest = descriptor.digest;
            }
        }
    }
}

/// Looks for the signature that the policy wants; answers what to remember of it.
async fn check_signature(
    images: &Images,
    remote: &dyn RemoteImage,
    manifest: &Digest,
    demand: &Demand,
) -> Result<Option<String>, Failure> {
    if demand.signers.is_empty() {
        return Ok(None);
    }
    // Signed is the whole index, or each of its images.
    let mut digests = vec![remote.digest().clone()];
    if manifest != remote.digest() {
        digests.push(manifest.clone());
    }
    let checked = images
        .signatures
        .check(remote, &digests, &demand.signers)
        .await;
    checked.map(Some).map_err(|failure| {
        let failure = failure.during(demand.wish());
        match failure.known_as {
            Some(KubeletError::SignatureValidationFailed) => images.count("pull", failure),
            _ => failure,
        }
    })
}

async fn fetch_config(
    remote: &dyn RemoteImage,
    manifest: &ImageManifest,
) -> Result<(ImageConfig, Vec<u8>), Failure> {
    let bytes = remote.document(&manifest.config).await?;
    let config = ImageConfig::parse(&bytes, manifest.layers.len())
        .map_err(|error| Failure::new(error.class(), chain(&error)))?;
    config
        .check_platform(&Platform::host())
        .map_err(|error| Failure::new(error.class(), chain(&error)))?;
    if config.dropped_labels > 0 {
        tracing::warn!(
            count = config.dropped_labels,
            "labels in reserved namespaces are dropped"
        );
    }
    Ok((config, bytes))
}

/// Records an image under the names of this pull and those it had.
async fn record_image(
    images: &Arc<Images>,
    mut image: StoredImage,
    names: &Names,
) -> Result<Arc<StoredImage>, Failure> {
    let known = lock(&images.index).get(&image.id);
    let known = known.or_else(|| lock(&images.broken).get(&image.id));
    if let Some(known) = known {
        image.repo_tags.clone_from(&known.repo_tags);
        image.repo_digests.clone_from(&known.repo_digests);
        // They are about the bytes the id is the digest of, whatever the name.
        image
            .endorsements
            .extend(known.endorsements.iter().cloned());
    }
    image.repo_digests.extend(names.digests.iter().cloned());
    image.repo_tags.extend(names.tags.iter().cloned());
    let records = Arc::clone(&images.records);
    let written = image.clone();
    spawn::blocking("write an image record", move || records.put(&written)).await?;
    let id = image.id.clone();
    let changed = lock(&images.index).put(image);
    lock(&images.broken).remove(&id);
    release_names(images, names).await?;
    for other in changed {
        let records = Arc::clone(&images.records);
        spawn::blocking("write an image record", move || records.put(&other)).await?;
    }
    lock(&images.index)
        .get(&id)
        .ok_or_else(|| Failure::new(Class::Internal, format!("image {id} vanished as it came")))
}

/// Takes tags that mean another image now from images that wait to be pulled again; one that nobody can ask for
/// any more goes, unless it is pinned by its digest or id.
async fn release_names(images: &Arc<Images>, names: &Names) -> Result<(), Failure> {
    let waiting = lock(&images.broken).all();
    for image in waiting {
        let mut less = StoredImage::clone(&image);
        less.repo_tags.retain(|tag| !names.tags.contains(tag));
        if less.repo_tags.len() == image.repo_tags.len() {
            continue;
        }
        let records = Arc::clone(&images.records);
        if less.repo_tags.is_empty() && !images.is_pinned(&less) {
            let id = less.id.clone();
            spawn::blocking("delete an image record", move || records.delete(&id)).await?;
            lock(&images.broken).remove(&image.id);
        } else {
            let written = less.clone();
            spawn::blocking("write an image record", move || records.put(&written)).await?;
            lock(&images.broken).put(less);
        }
    }
    Ok(())
}
