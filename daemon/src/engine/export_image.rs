//! Writes images as one tar archive that is both an OCI layout and what `docker load` reads. Layers are written
//! without compression: their digests are then the diff ids, which are verified on the way.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::sync::Arc;

use axil_snapshotter::content::digest::Hasher;
use axil_snapshotter::{ChainId, Digest};

use super::images::{Images, parse_digest};
use super::spawn;
use crate::domain::failure::{Class, Failure, chain};
use crate::domain::image::config::ImageConfig;
use crate::domain::image::layout::{self, DockerImage, blob_path};
use crate::domain::image::manifest::Descriptor;
use crate::domain::image::media;

/// Media type of a layer without compression.
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// What will be written: everything is here and its size is known.
pub struct Export {
    images: Arc<Images>,
    index: Vec<(Descriptor, Vec<String>)>,
    docker: Vec<DockerImage>,
    documents: BTreeMap<Digest, Vec<u8>>,
    /// Diff id to its layer.
    layers: BTreeMap<Digest, ChainId>,
}

impl std::fmt::Debug for Export {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Export").finish_non_exhaustive()
    }
}

/// Plans the export of images. An image named by a tag has that name in the archive, otherwise all it has.
///
/// # Errors
/// `NotFound` for an unknown image, `FailedPrecondition` for a layer whose archive cannot be made again.
pub async fn plan_export(images: &Arc<Images>, texts: &[String]) -> Result<Export, Failure> {
    let mut export = Export {
        images: Arc::clone(images),
        index: Vec::new(),
        docker: Vec::new(),
        documents: BTreeMap::new(),
        layers: BTreeMap::new(),
    };
    let mut names: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for text in texts {
        let found = images.find(text)?;
        let image =
            found.ok_or_else(|| Failure::not_found(format!("image {text:?} is not here")))?;
        let named = crate::domain::image::reference::Reference::parse(text)
            .map(|reference| super::images::name_of(&reference))
            .ok()
            .filter(|name| image.repo_tags.contains(name));
        let known = names.entry(image.id.clone()).or_default();
        match named {
            Some(name) => known.push(name),
            None => known.extend(image.repo_tags.iter().cloned()),
        }
        known.sort();
        known.dedup();
    }
    for (id, names) in names {
        export.add(&id, names).await?;
    }
    Ok(export)
}

impl Export {
    async fn add(&mut self, id: &str, names: Vec<String>) -> Result<(), Failure> {
        let digest = parse_digest(id)?;
        let config = self.images.layers.read_blob(&digest).await?;
        let config =
            config.ok_or_else(|| Failure::not_found(format!("the configuration {id} is gone")))?;
        let parsed = ImageConfig::parse_any(&config)
            .map_err(|error| Failure::new(error.class(), chain(&error)))?;
        let mut layers = Vec::new();
        for (diff_id, chain) in parsed.diff_ids.iter().zip(ChainId::of(&parsed.diff_ids)) {
            let images = Arc::clone(&self.images);
            let wanted = chain.clone();
            let opened =
                spawn::blocking("open a layer", move || images.layers.open_archive(&wanted));
            let archive = opened.await?.ok_or_else(|| {
                Failure::precondition(format!(
                    "the archive of layer {chain} cannot be made again; pull the image again"
                ))
            })?;
            layers.push(Descriptor {
                media_type: LAYER.to_owned(),
                digest: diff_id.clone(),
                size: archive.size(),
            });
            self.layers.insert(diff_id.clone(), chain);
        }
        let described = Descriptor {
            media_type: media::OCI_CONFIG.to_owned(),
            digest: digest.clone(),
            size: config.len() as u64,
        };
        let manifest = layout::write_manifest(&described, &layers);
        let manifest_digest = Digest::sha256_of(&manifest);
        self.docker.push(DockerImage {
            config: blob_path(&digest),
            names: names.clone(),
            layers: layers
                .iter()
                .map(|layer| blob_path(&layer.digest))
                .collect(),
        });
        self.index.push((
            Descriptor {
                media_type: media::OCI_MANIFEST.to_owned(),
                digest: manifest_digest.clone(),
                size: manifest.len() as u64,
            },
            names,
        ));
        self.documents.insert(digest, config);
        self.documents.insert(manifest_digest, manifest);
        Ok(())
    }

    /// Writes the archive; blocking.
    ///
    /// # Errors
    /// As `out`, or a layer that is damaged or was removed meanwhile. What was written then is no archive.
    pub fn write(&self, out: impl Write) -> io::Result<()> {
        let mut tar = tar::Builder::new(out);
        let version = br#"{"imageLayoutVersion":"1.0.0"}"#;
        append(&mut tar, layout::LAYOUT, version.len() as u64, &version[..])?;
        for (name, bytes) in [
            (layout::INDEX, layout::write_index(&self.index)),
            (layout::DOCKER, layout::write_docker(&self.docker)),
        ] {
            append(&mut tar, name, bytes.len() as u64, &bytes[..])?;
        }
        for (digest, bytes) in &self.documents {
            append(&mut tar, &blob_path(digest), bytes.len() as u64, &bytes[..])?;
        }
        for (diff_id, layer) in &self.layers {
            let opened = self.images.layers.open_archive(layer);
            let archive = opened.map_err(io::Error::other)?.ok_or_else(|| {
                io::Error::other(format!("layer {layer} was removed while it was exported"))
            })?;
            let size = archive.size();
            let mut hashed = Hashed {
                input: archive,
                hasher: Hasher::new(diff_id.algorithm()),
            };
            append(&mut tar, &blob_path(diff_id), size, &mut hashed)?;
            let found = hashed.hasher.finish();
            if found != *diff_id {
                let message =
                    format!("layer {layer} is damaged; axild fsck --deep --repair mends it");
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
        }
        tar.into_inner()?.flush()
    }
}

fn append(
    tar: &mut tar::Builder<impl Write>,
    name: &str,
    size: u64,
    content: impl Read,
) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(size);
    header.set_mode(0o644);
    tar.append_data(&mut header, name, content.take(size))
}

struct Hashed<R> {
    input: R,
    hasher: Hasher,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let amount = self.input.read(out)?;
        self.hasher.update(&out[..amount]);
        Ok(amount)
    }
}

/// What went wrong with an export, as it is told.
#[must_use]
pub fn export_failure(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::InvalidData => Failure::new(Class::DataLoss, error.to_string()),
        _ => Failure::io("export", error),
    }
}
