//! What is kept of a pulled image: its record, and the look-up of images by what people call them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Version of the record's format; a reader refuses a newer one.
pub const IMAGE_RECORD_VERSION: u32 = 1;

/// The durable record of an image. Names and digests are in canonical text form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredImage {
    /// Format version.
    pub version: u32,
    /// Digest of the configuration: the image id.
    pub id: String,
    /// Digest of the platform's manifest.
    pub manifest: String,
    /// `host/repository:tag` names.
    pub repo_tags: BTreeSet<String>,
    /// `host/repository@digest` names.
    pub repo_digests: BTreeSet<String>,
    /// Bytes on disk, unpacked.
    pub size_bytes: u64,
    /// Chain id of the topmost layer; none for an image without layers.
    pub chain: Option<String>,
    /// Chain ids of all layers, lowest first.
    pub chains: Vec<String>,
    /// What a container takes from the image.
    pub config: StoredConfig,
}

/// The parts of an image configuration that a container starts from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StoredConfig {
    /// User as the image states it.
    pub user: String,
    /// Environment, `KEY=value`.
    pub env: Vec<String>,
    /// Entrypoint.
    pub entrypoint: Vec<String>,
    /// Command.
    pub cmd: Vec<String>,
    /// Working directory.
    pub working_dir: String,
    /// Stop signal as the image states it.
    pub stop_signal: Option<String>,
}

impl StoredImage {
    /// What a ContainerStatus calls `image_ref`: a repository digest, else the id.
    #[must_use]
    pub fn reference(&self) -> String {
        self.repo_digests
            .first()
            .cloned()
            .unwrap_or_else(|| self.id.clone())
    }
}

/// All images by id, and who has which name.
#[derive(Debug, Default)]
pub struct ImageIndex {
    images: BTreeMap<String, Arc<StoredImage>>,
}

/// Several images have an id that begins so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("image id {prefix:?} begins the ids of {count} images")]
pub struct Ambiguous {
    /// What was given.
    pub prefix: String,
    /// How many match.
    pub count: usize,
}

impl ImageIndex {
    /// Adds or replaces an image; answers those that lost a tag to it.
    pub fn put(&mut self, image: StoredImage) -> Vec<Arc<StoredImage>> {
        let mut changed = Vec::new();
        for other in self
            .images
            .values_mut()
            .filter(|other| other.id != image.id)
        {
            if other
                .repo_tags
                .iter()
                .any(|tag| image.repo_tags.contains(tag))
            {
                let mut less = StoredImage::clone(other);
                less.repo_tags.retain(|tag| !image.repo_tags.contains(tag));
                *other = Arc::new(less);
                changed.push(Arc::clone(other));
            }
        }
        self.images.insert(image.id.clone(), Arc::new(image));
        changed
    }

    /// Takes an image out.
    pub fn remove(&mut self, id: &str) -> Option<Arc<StoredImage>> {
        self.images.remove(id)
    }

    /// An image by its full id.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<Arc<StoredImage>> {
        self.images.get(id).cloned()
    }

    /// An image by a canonical `host/repository:tag` or `host/repository@digest` name.
    #[must_use]
    pub fn by_name(&self, name: &str) -> Option<Arc<StoredImage>> {
        let has = |image: &&Arc<StoredImage>| {
            image.repo_tags.contains(name) || image.repo_digests.contains(name)
        };
        self.images.values().find(has).cloned()
    }

    /// An image by the beginning of its id, without the algorithm.
    ///
    /// # Errors
    /// Several images match.
    pub fn by_id_prefix(&self, hex: &str) -> Result<Option<Arc<StoredImage>>, Ambiguous> {
        let matches = |image: &&Arc<StoredImage>| {
            image
                .id
                .split_once(':')
                .is_some_and(|(_, id)| id.starts_with(hex))
        };
        let mut found: Vec<_> = self.images.values().filter(matches).collect();
        match found.len() {
            0 | 1 => Ok(found.pop().cloned()),
            count => Err(Ambiguous {
                prefix: hex.to_owned(),
                count,
            }),
        }
    }

    /// All images, by id.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<StoredImage>> {
        self.images.values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(id: &str, tags: &[&str]) -> StoredImage {
        StoredImage {
            version: IMAGE_RECORD_VERSION,
            id: format!("sha256:{id}"),
            manifest: "sha256:00".into(),
            repo_tags: tags.iter().map(|&tag| tag.to_owned()).collect(),
            repo_digests: BTreeSet::from([format!("host/repo@sha256:{id}")]),
            size_bytes: 1,
            chain: None,
            chains: vec![],
            config: StoredConfig::default(),
        }
    }

    #[test]
    fn a_tag_belongs_to_the_image_pulled_last() {
        let mut index = ImageIndex::default();
        assert!(index.put(image("aa", &["h/r:1", "h/r:2"])).is_empty());
        let changed = index.put(image("bb", &["h/r:1"]));
        assert_eq!(changed.len(), 1);
        assert_eq!(index.by_name("h/r:1").unwrap().id, "sha256:bb");
        assert_eq!(index.by_name("h/r:2").unwrap().id, "sha256:aa");
    }

    #[test]
    fn an_ambiguous_prefix_is_an_error() {
        let mut index = ImageIndex::default();
        index.put(image("aab", &[]));
        index.put(image("aac", &[]));
        assert!(index.by_id_prefix("aa").is_err());
        assert_eq!(index.by_id_prefix("aab").unwrap().unwrap().id, "sha256:aab");
        assert!(index.by_id_prefix("ff").unwrap().is_none());
    }
}
