//! What is kept of a pulled image: its record, and the look-up of images by what people call them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::reference::Reference;

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
    /// Bytes on disk: unpacked layers with what is kept to check them, documents, and their records. Layers that
    /// other images have as well count for each; removing an image that shares none frees exactly this.
    pub size_bytes: u64,
    /// Chain id of the topmost layer; none for an image without layers.
    pub chain: Option<String>,
    /// Chain ids of all layers, lowest first.
    pub chains: Vec<String>,
    /// Annotations of the manifest, as far as they are kept; only shown.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// What a container takes from the image.
    pub config: StoredConfig,
    /// Whose good signatures were seen when it was pulled.
    #[serde(default)]
    pub endorsements: BTreeSet<String>,
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

    /// As [`StoredImage::reference`]; an image that was pulled from several repositories is told by the one it
    /// is asked for by.
    #[must_use]
    pub fn reference_for(&self, asked: &[&str]) -> String {
        let repositories = asked.iter().filter_map(|text| Reference::parse(text).ok());
        let digests = repositories.flat_map(|asked| {
            let prefix = format!("{}@", asked.name());
            let of_repository = move |digest: &&String| digest.starts_with(&prefix);
            self.repo_digests.iter().filter(of_repository)
        });
        let mut digests = digests.cloned();
        digests.next().unwrap_or_else(|| self.reference())
    }

    /// What people call the image: the tag it is asked for by, else one it has. None for an image without a tag.
    #[must_use]
    pub fn tag_for(&self, asked: &[&str]) -> Option<String> {
        let names = asked.iter().filter_map(|text| Reference::parse(text).ok());
        let mut names = names.map(|reference| reference.stored_name());
        let asked = names.find(|name| self.repo_tags.contains(name));
        asked.or_else(|| self.repo_tags.first().cloned())
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
            annotations: BTreeMap::new(),
            config: StoredConfig::default(),
            endorsements: BTreeSet::new(),
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
    fn an_image_is_told_by_the_repository_it_is_asked_for_by() {
        let mut one = image("aa", &["a.x/one:1", "b.x/two:2"]);
        let digest = format!("sha256:{}", "0".repeat(64));
        let names = ["a.x/one", "b.x/two"].map(|name| format!("{name}@{digest}"));
        one.repo_digests = names.clone().into();
        assert_eq!(one.reference_for(&["b.x/two:9"]), names[1]);
        assert_eq!(one.reference_for(&["sha256:aa", "b.x/two"]), names[1]);
        assert_eq!(one.reference_for(&["c.x/three", ""]), names[0]);
        assert_eq!(one.tag_for(&["", "b.x/two:2"]).unwrap(), "b.x/two:2");
        assert_eq!(one.tag_for(&[&names[1]]).unwrap(), "a.x/one:1");
        one.repo_tags.clear();
        one.repo_digests.clear();
        assert_eq!(one.tag_for(&["b.x/two:2"]), None);
        assert_eq!(one.reference_for(&["b.x/two:2"]), one.id);
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
