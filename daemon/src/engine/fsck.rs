//! Checks everything images are made of, and mends it: what is damaged goes, and of it only what an image needs
//! is pulled again. It runs beside pulls, removals and containers.

use std::collections::BTreeSet;
use std::sync::Arc;

use axil_snapshotter::{ChainId, DamagedRecord, Depth, Digest};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::images::{Images, parse_digest};
use super::{lock, spawn};
use crate::domain::failure::{Class, Failure, chain};
use crate::domain::image::config::ImageConfig;
use crate::domain::image::manifest::{Document, DocumentRules, own_media_type, parse_document};
use crate::domain::image::media::OCI_MANIFEST;
use crate::domain::image::stored::StoredImage;

/// What to check and whether to mend.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsckOptions {
    /// Layers in full: their content, owners, permissions, times and attributes.
    pub deep: bool,
    /// Mend what is found.
    pub repair: bool,
}

/// What became of something that is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Nothing was tried.
    Found,
    /// It is mended.
    Repaired,
    /// It is out of use, and the next pull of its image fetches it again.
    Pending,
    /// It could not be mended.
    Failed,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What it is: `blob`, `layer`, `image` or `stray`, and which.
    pub object: String,
    /// What is wrong with it.
    pub problem: String,
    /// What became of it.
    pub outcome: Outcome,
    /// Why it could not be mended, or what else there is to say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// The result of a check.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Nothing is wrong, or everything is mended.
    pub clean: bool,
    /// Layers were checked in full.
    pub deep: bool,
    /// Images looked at.
    pub images: u64,
    /// Documents compared with their digests.
    pub blobs: u64,
    /// Layers looked at.
    pub layers: u64,
    /// Bytes of layers compared with their diff ids.
    pub verified_bytes: u64,
    /// Layers that cannot be checked in full: pulled before there were skeletons, or too large for one.
    pub unverifiable: Vec<String>,
    /// Layers and documents that no image needs; a container or a pull may.
    pub unused: u64,
    /// What was removed as unfinished when the store was opened, as after a crash.
    pub swept: Vec<String>,
    /// Everything that is, or was, wrong.
    pub findings: Vec<Finding>,
}

/// News of a running check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Event {
    /// Something was looked at.
    Progress {
        /// What.
        what: String,
        /// How many things of its kind were looked at.
        done: u64,
        /// How many there are.
        of: u64,
    },
    /// The end.
    Report(Report),
}

/// Checks, and mends if asked. One check runs at a time.
///
/// # Errors
/// `FailedPrecondition` while another check runs; otherwise when the check cannot be made. What is wrong with the
/// store is in the report.
pub async fn fsck(
    images: &Arc<Images>,
    options: FsckOptions,
    events: &mpsc::Sender<Event>,
) -> Result<Report, Failure> {
    let Ok(_alone) = images.checking.try_lock() else {
        return Err(Failure::precondition(
            "another check of the store is running",
        ));
    };
    let mut check = Check {
        images,
        options,
        events,
        report: Report {
            deep: options.deep,
            swept: images.layers.swept(),
            ..Report::default()
        },
        bad_blobs: BTreeSet::new(),
        bad_layers: BTreeSet::new(),
    };
    check.strays().await?;
    check.blobs().await?;
    check.layers().await?;
    check.images().await?;
    if options.repair {
        check.mend_images().await;
    }
    // Layers that were kept from a collection only because they were being checked go now.
    images.collect().await?;
    let mut report = check.report;
    let mended = |finding: &Finding| finding.outcome == Outcome::Repaired;
    report.clean = report.findings.iter().all(mended);
    Ok(report)
}

struct Check<'a> {
    images: &'a Arc<Images>,
    options: FsckOptions,
    events: &'a mpsc::Sender<Event>,
    report: Report,
    bad_blobs: BTreeSet<String>,
    bad_layers: BTreeSet<String>,
}

impl Check<'_> {
    async fn progress(&self, what: &str, done: usize, of: usize) {
        let event = Event::Progress {
            what: what.to_owned(),
            done: done as u64,
            of: of as u64,
        };
        // Ignored: whoever asked may have gone; the check goes on to its end.
        let _gone = self.events.send(event).await;
    }

    fn found(&mut self, object: String, problem: String) -> usize {
        tracing::warn!(object, problem, "fsck");
        self.report.findings.push(Finding {
            object,
            problem,
            outcome: Outcome::Found,
            note: String::new(),
        });
        self.report.findings.len() - 1
    }

    fn settle(&mut self, at: usize, done: Result<(), Failure>) {
        let finding = &mut self.report.findings[at];
        match done {
            Ok(()) => finding.outcome = Outcome::Repaired,
            Err(failure) => {
                finding.outcome = Outcome::Failed;
                finding.note = failure.to_string();
            }
        }
    }

    async fn strays(&mut self) -> Result<(), Failure> {
        let images = Arc::clone(self.images);
        for stray in images.layers.strays().await? {
            let at = self.found(format!("stray {}", stray.path), stray.reason.clone());
            if self.options.repair {
                let done = images.layers.discard(&stray).await;
                self.settle(at, done);
            }
        }
        let records = Arc::clone(&images.records);
        let damaged = spawn::blocking("check image records", move || records.damaged()).await?;
        for record in damaged {
            let at = self.found(format!("stray {}", record.path), record.reason.clone());
            if self.options.repair {
                let done = discard_record(&images, record).await;
                self.settle(at, done);
            }
        }
        Ok(())
    }

    async fn blobs(&mut self) -> Result<(), Failure> {
        let blobs = self.images.layers.blobs();
        for (position, digest) in blobs.iter().enumerate() {
            self.progress("blobs", position + 1, blobs.len()).await;
            self.report.blobs += 1;
            let Some(problem) = self.images.layers.check_blob(digest).await? else {
                continue;
            };
            let at = self.found(format!("blob {digest}"), problem);
            self.bad_blobs.insert(digest.to_string());
            if self.options.repair {
                let done = self.images.layers.drop_blob(digest).await;
                self.settle(at, done);
            }
        }
        Ok(())
    }

    async fn layers(&mut self) -> Result<(), Failure> {
        let layers = self.images.layers.layers();
        let depth = if self.options.deep {
            Depth::Deep
        } else {
            Depth::Shallow
        };
        let mut bad = Vec::new();
        for (position, layer) in layers.iter().enumerate() {
            self.progress("layers", position + 1, layers.len()).await;
            self.report.layers += 1;
            let check = match self.images.layers.check_layer(layer, depth).await {
                Ok(check) => check,
                // As on a full disk: it says nothing of the layer, and the others are looked at all the same.
                Err(failure) => {
                    self.found(
                        format!("layer {layer}"),
                        format!("cannot be checked: {failure}"),
                    );
                    continue;
                }
            };
            self.report.verified_bytes += check.verified_bytes;
            if check.is_unverifiable {
                self.report.unverifiable.push(layer.to_string());
            }
            if check.is_clean() {
                continue;
            }
            let mut problem = check.problems.join("; ");
            let named = check.problems.len() as u64;
            if check.count > named {
                problem.push_str(&format!("; and {} more", check.count - named));
            }
            bad.push((self.found(format!("layer {layer}"), problem), layer));
            self.bad_layers.insert(layer.to_string());
        }
        // Order: a layer can only be checked while the one below it is there.
        for (at, layer) in bad {
            if self.options.repair {
                let done = self.images.layers.condemn(layer).await;
                self.settle(at, done);
            }
        }
        Ok(())
    }

    /// Records, manifests, configurations and layers have to agree.
    async fn images(&mut self) -> Result<(), Failure> {
        let listed = self.images.all();
        let (mut blobs, mut chains) = (BTreeSet::new(), BTreeSet::new());
        for image in listed.iter().chain(&self.images.incomplete()) {
            blobs.extend([image.id.clone(), image.manifest.clone()]);
            chains.extend(image.chains.iter().cloned());
        }
        let spare_blobs = self
            .images
            .layers
            .blobs()
            .into_iter()
            .map(|d| d.to_string());
        let spare_layers = self
            .images
            .layers
            .layers()
            .into_iter()
            .map(|c| c.to_string());
        let unused = spare_blobs.filter(|blob| !blobs.contains(blob)).count()
            + spare_layers.filter(|layer| !chains.contains(layer)).count();
        self.report.unused = unused as u64;

        for image in self.images.incomplete() {
            self.report.images += 1;
            self.found(format!("image {}", image.id), self.lack_of(&image));
        }
        for image in listed {
            self.report.images += 1;
            let Some(problem) = self.problem_of(&image).await? else {
                continue;
            };
            // It may have been removed since, with all it had.
            if lock(&self.images.index).get(&image.id).is_some() {
                self.found(format!("image {}", image.id), problem);
            }
            if self.options.repair {
                self.images.set_aside(&image);
            }
        }
        Ok(())
    }

    fn lack_of(&self, image: &StoredImage) -> String {
        let layers = &self.images.layers;
        let lost = image
            .chains
            .iter()
            .filter(|chain| !layers.has(chain))
            .count();
        if lost > 0 {
            return format!("lacks {lost} of {} layers", image.chains.len());
        }
        "lacks its manifest or its configuration".to_owned()
    }

    async fn problem_of(&self, image: &StoredImage) -> Result<Option<String>, Failure> {
        let is_bad = |chain: &String| self.bad_layers.contains(chain);
        if !self.images.is_complete(image) {
            return Ok(Some(self.lack_of(image)));
        }
        if let Some(layer) = image.chains.iter().find(|chain| is_bad(chain)) {
            return Ok(Some(format!("its layer {layer} is damaged")));
        }
        for blob in [&image.id, &image.manifest] {
            if self.bad_blobs.contains(blob) {
                return Ok(Some(format!("its document {blob} is damaged")));
            }
        }
        let (manifest, config) = (
            self.images
                .layers
                .read_blob(&parse_digest(&image.manifest)?)
                .await?,
            self.images
                .layers
                .read_blob(&parse_digest(&image.id)?)
                .await?,
        );
        let (Some(manifest), Some(config)) = (manifest, config) else {
            return Ok(Some(self.lack_of(image)));
        };
        Ok(disagreement(image, &manifest, &config))
    }

    /// Pulls images that are not whole again, by a name that says exactly which image it is.
    async fn mend_images(&mut self) {
        for image in self.images.incomplete() {
            let object = format!("image {}", image.id);
            let Some(at) = self.report.findings.iter().position(|f| f.object == object) else {
                continue;
            };
            self.progress(&format!("pull {}", image.reference()), 0, 1)
                .await;
            let pulled = match image.repo_digests.first() {
                None => Err(Failure::not_found(
                    "it came from no registry; import it again or pull it by its name",
                )),
                Some(name) => self.images.pull(name, None, None).await.and_then(|pulled| {
                    if pulled.id == image.id {
                        return Ok(());
                    }
                    let message = format!("{name} is now image {}", pulled.id);
                    Err(Failure::new(Class::DataLoss, message))
                }),
            };
            let finding = &mut self.report.findings[at];
            match pulled {
                Ok(()) => finding.outcome = Outcome::Repaired,
                Err(failure) => {
                    finding.outcome = Outcome::Pending;
                    finding.note = failure.to_string();
                }
            }
        }
    }
}

async fn discard_record(images: &Images, record: DamagedRecord) -> Result<(), Failure> {
    let records = Arc::clone(&images.records);
    spawn::blocking("discard an image record", move || records.discard(&record)).await
}

/// What the record of an image and its documents say differently.
fn disagreement(image: &StoredImage, manifest: &[u8], config: &[u8]) -> Option<String> {
    // What a document is was the registry's to say when it was pulled, if it does not say it itself.
    let media_type = own_media_type(manifest).unwrap_or_else(|| OCI_MANIFEST.to_owned());
    let manifest = match parse_document(&media_type, manifest, &DocumentRules::of_stored()) {
        Ok(Document::Manifest(manifest)) => manifest,
        Ok(Document::Index(_)) => return Some("its manifest is an index".to_owned()),
        Err(error) => return Some(format!("its manifest: {}", chain(&error))),
    };
    if manifest.config.digest.to_string() != image.id {
        return Some("its manifest names another configuration".to_owned());
    }
    let config = match ImageConfig::parse(config, manifest.layers.len()) {
        Ok(config) => config,
        Err(error) => return Some(format!("its configuration: {}", chain(&error))),
    };
    let chains = ChainId::of(&config.diff_ids);
    let chains: Vec<String> = chains.iter().map(ToString::to_string).collect();
    if chains != image.chains || image.chain.as_ref() != image.chains.last() {
        return Some("its record and its configuration name different layers".to_owned());
    }
    let is_name = |name: &String| crate::domain::image::reference::Reference::parse(name).is_ok();
    let mut names = image.repo_tags.iter().chain(&image.repo_digests);
    if !names.all(is_name) {
        return Some("its record has a name that is none".to_owned());
    }
    let _digest: Digest = image.id.parse().ok()?;
    None
}
