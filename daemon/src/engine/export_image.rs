//! Writes images as one tar archive that is both an OCI layout and what `docker load` reads. Layers are written
//! without compression, so that their digests are the diff ids, or compressed anew: then each is compressed twice,
//! first for its digest and size, which stand before it in the archive. Diff ids are verified on the way.

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
use crate::domain::image::media::{self, Compression};

/// What will be written: everything is here and its size is known.
pub struct Export {
    images: Arc<Images>,
    index: Vec<(Descriptor, Vec<String>)>,
    docker: Vec<DockerImage>,
    documents: BTreeMap<Digest, Vec<u8>>,
    /// Layers by the digest they have in the archive.
    layers: BTreeMap<Digest, Layer>,
}

/// A layer as it will be written.
#[derive(Debug, Clone)]
struct Layer {
    chain: ChainId,
    diff_id: Digest,
    compression: Compression,
    digest: Digest,
    size: u64,
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
pub async fn plan_export(
    images: &Arc<Images>,
    texts: &[String],
    compression: Compression,
) -> Result<Export, Failure> {
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
            .map(|reference| reference.stored_name())
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
        export.add(&id, names, compression).await?;
    }
    Ok(export)
}

impl Export {
    async fn add(
        &mut self,
        id: &str,
        names: Vec<String>,
        compression: Compression,
    ) -> Result<(), Failure> {
        let digest = parse_digest(id)?;
        let config = self.images.layers.read_blob(&digest).await?;
        let config =
            config.ok_or_else(|| Failure::not_found(format!("the configuration {id} is gone")))?;
        let parsed = ImageConfig::parse_any(&config)
            .map_err(|error| Failure::new(error.class(), chain(&error)))?;
        let mut layers = Vec::new();
        for (diff_id, chain) in parsed.diff_ids.iter().zip(ChainId::of(&parsed.diff_ids)) {
            let layer = match self.layers.values().find(|layer| layer.chain == chain) {
                // Another image has it as well.
                Some(layer) => layer.clone(),
                None => {
                    let (images, diff_id) = (Arc::clone(&self.images), diff_id.clone());
                    let plan = move || Layer::plan(&images, chain, diff_id, compression);
                    spawn::blocking("measure a layer", plan).await?
                }
            };
            layers.push(Descriptor {
                media_type: compression.layer_type().to_owned(),
                digest: layer.digest.clone(),
                size: layer.size,
            });
            self.layers.insert(layer.digest.clone(), layer);
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
        for layer in self.layers.values() {
            let mut input = layer.open(&self.images)?;
            append(&mut tar, &blob_path(&layer.digest), layer.size, &mut input)?;
            let (found, size) = input.end()?;
            if found != layer.digest || size != layer.size {
                return Err(damaged(&layer.chain));
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

impl Layer {
    /// Finds out what a layer will be in the archive; blocking.
    fn plan(
        images: &Images,
        chain: ChainId,
        diff_id: Digest,
        compression: Compression,
    ) -> Result<Self, Failure> {
        let archive = images.layers.open_archive(&chain)?.ok_or_else(|| {
            Failure::precondition(format!(
                "the archive of layer {chain} cannot be made again; pull the image again"
            ))
        })?;
        let mut layer = Self {
            chain,
            digest: diff_id.clone(),
            size: archive.size(),
            diff_id,
            compression,
        };
        if compression != Compression::None {
            let packed = layer.open(images).and_then(Packed::end);
            (layer.digest, layer.size) = packed.map_err(|error| export_failure(&error))?;
        }
        Ok(layer)
    }

    /// The layer as it is in the archive.
    fn open(&self, images: &Images) -> io::Result<Packed> {
        let opened = images.layers.open_archive(&self.chain);
        let archive = opened.map_err(io::Error::other)?.ok_or_else(|| {
            let chain = &self.chain;
            io::Error::other(format!("layer {chain} was removed while it was exported"))
        })?;
        let verified = Verified {
            input: archive,
            hasher: Some(Hasher::new(self.diff_id.algorithm())),
            diff_id: self.diff_id.clone(),
            chain: self.chain.clone(),
        };
        let compression = match self.compression {
            Compression::None => axil_snapshotter::Compression::None,
            Compression::Gzip => axil_snapshotter::Compression::Gzip,
            Compression::Zstd => axil_snapshotter::Compression::Zstd,
        };
        Ok(Packed {
            input: axil_snapshotter::compress(verified, compression)?,
            hasher: Hasher::new(self.digest.algorithm()),
            size: 0,
        })
    }
}

fn damaged(layer: &ChainId) -> io::Error {
    let message = format!("layer {layer} is damaged; axild fsck --deep --repair mends it");
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// The archive of a layer, which is an error at its end when it is not what the diff id says.
struct Verified<R> {
    input: R,
    hasher: Option<Hasher>,
    diff_id: Digest,
    chain: ChainId,
}

impl<R: Read> Read for Verified<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let amount = self.input.read(out)?;
        if amount > 0 {
            if let Some(hasher) = &mut self.hasher {
                hasher.update(&out[..amount]);
            }
        } else if !out.is_empty()
            && let Some(hasher) = self.hasher.take()
            && hasher.finish() != self.diff_id
        {
            return Err(damaged(&self.chain));
        }
        Ok(amount)
    }
}

/// What is written of a layer, with its digest and size.
struct Packed {
    input: Box<dyn Read>,
    hasher: Hasher,
    size: u64,
}

impl Packed {
    /// Reads what is left and answers digest and size of the whole.
    fn end(mut self) -> io::Result<(Digest, u64)> {
        io::copy(&mut self, &mut io::sink())?;
        Ok((self.hasher.finish(), self.size))
    }
}

impl Read for Packed {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let amount = self.input.read(out)?;
        self.hasher.update(&out[..amount]);
        self.size += amount as u64;
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
