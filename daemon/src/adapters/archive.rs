//! Images of an archive that was taken in, in the form in which images come from a registry: everything that
//! is checked of a pull is checked of an import.

use std::collections::BTreeMap;
use std::io::{BufReader, Read};
use std::sync::Arc;

use async_trait::async_trait;
use axil_snapshotter::content::digest::{Algorithm, Hasher};
use axil_snapshotter::{Compression, Digest, Spool, compression_of};
use bytes::Bytes;

use crate::domain::failure::{Class, Failure, chain};
use crate::domain::image::layout::{self, DockerImage};
use crate::domain::image::manifest::{
    Descriptor, Document, DocumentRules, MAX_DOCUMENT_BYTES, parse_document,
};
use crate::domain::image::media;
use crate::engine::spawn::blocking;
use crate::ports::Answer;
use crate::ports::images::{ArchivedImage, BlobStream, RemoteImage};

/// Bytes of a layer handed on at a time.
const PIECE: usize = 128 * 1024;

/// Finds the images of an archive. One with both lists is an OCI layout; docker's list names what the layout
/// does not.
pub(super) fn images_of(spool: &Arc<Spool>) -> Answer<Vec<ArchivedImage>> {
    let index = document(spool, layout::INDEX)?;
    let docker = document(spool, layout::DOCKER)?;
    let docker = match &docker {
        Some(bytes) => layout::parse_docker(bytes).map_err(|error| refused(&error))?,
        None => Vec::new(),
    };
    let is_layout = spool.size(layout::LAYOUT).is_some();
    match index {
        Some(bytes) if is_layout => {
            let images = layout::parse_index(&bytes).map_err(|error| refused(&error))?;
            images
                .into_iter()
                .map(|image| {
                    let bytes = blob(spool, &image.descriptor)?;
                    let mut names: Vec<String> = image.name.into_iter().collect();
                    if names.is_empty() {
                        names = docker_names(&image.descriptor, &bytes, &docker);
                    }
                    Ok(ArchivedImage {
                        names,
                        image: Arc::new(Archived {
                            spool: Arc::clone(spool),
                            top: image.descriptor,
                            bytes,
                            members: BTreeMap::new(),
                        }),
                    })
                })
                .collect()
        }
        _ if !docker.is_empty() => docker.iter().map(|image| of_docker(spool, image)).collect(),
        _ => Err(Failure::new(
            Class::InvalidArgument,
            "the archive is neither an OCI image layout (oci-layout, index.json) nor one of docker (manifest.json)",
        )),
    }
}

/// The names docker's list has for the image with this manifest: docker names a configuration by its digest.
fn docker_names(descriptor: &Descriptor, manifest: &[u8], docker: &[DockerImage]) -> Vec<String> {
    let Ok(Document::Manifest(manifest)) = parse_document(
        &descriptor.media_type,
        manifest,
        &DocumentRules::of_stored(),
    ) else {
        return Vec::new();
    };
    let hex = manifest.config.digest.hex();
    let is_its = |image: &&DockerImage| {
        let name = image.config.rsplit('/').next().unwrap_or_default();
        name.trim_end_matches(".json") == hex
    };
    let its = docker.iter().filter(is_its);
    its.flat_map(|image| image.names.clone()).collect()
}

/// An image of `docker save` has no manifest; it gets one of what the archive has.
fn of_docker(spool: &Arc<Spool>, image: &DockerImage) -> Answer<ArchivedImage> {
    let config = document(spool, &image.config)?.ok_or_else(|| missing(&image.config))?;
    let mut members = BTreeMap::new();
    let config_descriptor = Descriptor {
        media_type: media::OCI_CONFIG.to_owned(),
        digest: Digest::sha256_of(&config),
        size: config.len() as u64,
    };
    members.insert(config_descriptor.digest.clone(), image.config.clone());
    let mut layers = Vec::new();
    for name in &image.layers {
        let member = spool.open(name, 0).ok_or_else(|| missing(name))?;
        let failed = |error| Failure::io("read the archive", &error);
        let mut reader = BufReader::with_capacity(PIECE, member);
        let media_type = match compression_of(&mut reader).map_err(failed)? {
            Compression::None => "application/vnd.oci.image.layer.v1.tar",
            Compression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Compression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        };
        let mut hasher = Hasher::new(Algorithm::Sha256);
        let mut piece = vec![0; PIECE];
        let mut size = 0;
        loop {
            let amount = reader.read(&mut piece).map_err(failed)?;
            if amount == 0 {
                break;
            }
            hasher.update(&piece[..amount]);
            size += amount as u64;
        }
        let digest = hasher.finish();
        members.insert(digest.clone(), name.clone());
        layers.push(Descriptor {
            media_type: media_type.to_owned(),
            digest,
            size,
        });
    }
    let bytes = layout::write_manifest(&config_descriptor, &layers);
    Ok(ArchivedImage {
        names: image.names.clone(),
        image: Arc::new(Archived {
            spool: Arc::clone(spool),
            top: Descriptor {
                media_type: media::OCI_MANIFEST.to_owned(),
                digest: Digest::sha256_of(&bytes),
                size: bytes.len() as u64,
            },
            bytes,
            members,
        }),
    })
}

fn refused(error: &layout::LayoutError) -> Failure {
    Failure::new(Class::InvalidArgument, chain(error))
}

fn missing(name: &str) -> Failure {
    let name = layout::shown_name(name);
    Failure::new(
        Class::InvalidArgument,
        format!("the archive has no file \"{name}\""),
    )
}

/// Reads a small member.
fn document(spool: &Spool, name: &str) -> Answer<Option<Vec<u8>>> {
    spool
        .read(name, MAX_DOCUMENT_BYTES as u64)
        .map_err(|error| {
            let name = layout::shown_name(name);
            let message = format!("archive member \"{name}\": {error}");
            match error.kind() {
                std::io::ErrorKind::FileTooLarge => Failure::new(Class::Exhausted, message),
                _ => Failure::io(message, &error),
            }
        })
}

/// Reads and checks a document of a layout.
fn blob(spool: &Spool, descriptor: &Descriptor) -> Answer<Vec<u8>> {
    let path = layout::blob_path(&descriptor.digest);
    checked(
        descriptor,
        document(spool, &path)?.ok_or_else(|| missing(&path))?,
    )
}

fn checked(descriptor: &Descriptor, bytes: Vec<u8>) -> Answer<Vec<u8>> {
    if bytes.len() as u64 != descriptor.size {
        let message = format!(
            "archive: {} has {} bytes, its descriptor says {}",
            descriptor.digest,
            bytes.len(),
            descriptor.size
        );
        return Err(Failure::new(Class::DataLoss, message));
    }
    if !descriptor.digest.matches(&bytes) {
        let message = format!(
            "archive: the content of {} has another digest",
            descriptor.digest
        );
        return Err(Failure::new(Class::DataLoss, message));
    }
    Ok(bytes)
}

/// One image of an archive.
struct Archived {
    spool: Arc<Spool>,
    top: Descriptor,
    bytes: Vec<u8>,
    /// Members that do not lie where a layout has them.
    members: BTreeMap<Digest, String>,
}

impl Archived {
    fn member(&self, digest: &Digest) -> String {
        let known = self.members.get(digest).cloned();
        known.unwrap_or_else(|| layout::blob_path(digest))
    }
}

#[async_trait]
impl RemoteImage for Archived {
    fn digest(&self) -> &Digest {
        &self.top.digest
    }

    fn media_type(&self) -> &str {
        &self.top.media_type
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn is_remote(&self) -> bool {
        false
    }

    async fn document(&self, descriptor: &Descriptor) -> Answer<Vec<u8>> {
        let (spool, name) = (Arc::clone(&self.spool), self.member(&descriptor.digest));
        let bytes = blocking("read the archive", move || {
            document(&spool, &name)?.ok_or_else(|| missing(&name))
        });
        checked(descriptor, bytes.await?)
    }

    async fn blob(&self, descriptor: &Descriptor, offset: u64) -> Answer<Box<dyn BlobStream>> {
        let name = self.member(&descriptor.digest);
        let size = self.spool.size(&name).ok_or_else(|| missing(&name))?;
        if size != descriptor.size {
            let message = format!(
                "archive: {} has {size} bytes, its descriptor says {}",
                descriptor.digest, descriptor.size
            );
            return Err(Failure::new(Class::DataLoss, message));
        }
        let member = self
            .spool
            .open(&name, offset)
            .ok_or_else(|| missing(&name))?;
        Ok(Box::new(Pieces {
            member: Some(member),
        }))
    }
}

/// A member in pieces.
struct Pieces {
    member: Option<axil_snapshotter::content::spool::Member>,
}

#[async_trait]
impl BlobStream for Pieces {
    async fn next(&mut self) -> Answer<Option<Bytes>> {
        let Some(mut member) = self.member.take() else {
            return Ok(None);
        };
        let (member, piece) = blocking("read the archive", move || {
            let mut piece = vec![0; PIECE];
            let amount = member
                .read(&mut piece)
                .map_err(|error| Failure::io("read the archive", &error))?;
            piece.truncate(amount);
            Ok((member, piece))
        })
        .await?;
        if piece.is_empty() {
            return Ok(None);
        }
        self.member = Some(member);
        Ok(Some(Bytes::from(piece)))
    }
}
