//! Checking a store and taking out of use what is damaged. It works on an open store, beside pulls, removals
//! and containers. What images need is the caller's to know; here are blobs, layers, and what belongs to
//! nothing.

use std::io::Read;

use rustix::fs::renameat;

use crate::confined::{open_beneath, open_dir};
use crate::content::digest::{Digest, Hasher};
use crate::content::ingest;
use crate::error::PathError;
use crate::gc::Roots;
use crate::layer::check::check_layer;
use crate::layer::skeleton::SKELETON;
use crate::layer::{LayerError, moves};
use crate::snapshot::chain::ChainId;
use crate::snapshot::kind::LayerRecord;
use crate::store::{DamagedRecord, Store, condemned_name, names, record_name};
use crate::tree::{measure, remove_tree};

/// How much a layer is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Its record, its directory, and that no file of it is missing.
    Shallow,
    /// All of it: its archive is made again and has to have the diff id, and its tree has to be what that
    /// archive makes.
    Deep,
}

/// What checking a layer found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LayerCheck {
    /// Bytes of the archive that were compared with the diff id; 0 when they were not.
    pub verified_bytes: u64,
    /// The check was to be deep, and the layer has no skeleton: it was pulled by an older version, or its
    /// skeleton would have been too large. Pulling it again gives it one, if it can have one.
    pub is_unverifiable: bool,
    /// The layer below is not in the store, so that this one could not be compared with anything.
    pub lacks: Option<ChainId>,
    /// What is wrong, named up to a bound.
    pub problems: Vec<String>,
    /// How many things are wrong.
    pub count: u64,
}

impl LayerCheck {
    fn of(problem: impl Into<String>) -> Self {
        Self {
            problems: vec![problem.into()],
            count: 1,
            ..Self::default()
        }
    }

    /// Tells whether nothing is wrong.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.count == 0
    }
}

impl Store {
    /// Returns the names of all layers, each after the one below it.
    #[must_use]
    pub fn layers(&self) -> Vec<ChainId> {
        let index = self.shared.index();
        let mut layers: Vec<(usize, ChainId)> = index
            .layers
            .keys()
            .map(|chain| {
                let height = index.stack(chain).map_or(usize::MAX, |stack| stack.len());
                (height, chain.clone())
            })
            .collect();
        layers.sort();
        layers.into_iter().map(|(_, chain)| chain).collect()
    }

    /// Reads a blob whole and compares it with its digest. `None` when it is fine, or gone by now.
    ///
    /// # Errors
    /// The class of the I/O error.
    pub fn check_blob(&self, digest: &Digest) -> Result<Option<String>, PathError> {
        let failed = |source| PathError::new("read blob", digest, source);
        let dir = open_dir(&self.shared.blobs, digest.algorithm().as_str().as_bytes());
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK;
        let opened = open_beneath(dir.map_err(failed)?, digest.hex().as_bytes(), flags);
        let mut file = match opened {
            Ok(fd) => std::fs::File::from(fd),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let known = self.shared.index().blobs.contains_key(digest);
                return Ok(known.then(|| "is missing".to_owned()));
            }
            Err(error) => return Err(failed(error)),
        };
        let mut hasher = Hasher::new(digest.algorithm());
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(amount) => hasher.update(&buffer[..amount]),
                // A disk that cannot give it back has lost it.
                Err(error) => return Ok(Some(error.to_string())),
            }
        }
        let found = hasher.finish();
        Ok((found != *digest).then(|| format!("has digest {found}")))
    }

    /// Checks a committed layer. It stays where it is meanwhile, whoever removes its image. A layer that is gone
    /// by now has nothing wrong.
    ///
    /// # Errors
    /// When the check cannot be made: an I/O error elsewhere than in the layer, a full disk.
    pub fn check_layer(&self, chain: &ChainId, depth: Depth) -> Result<LayerCheck, LayerError> {
        let mut kept = Roots::default();
        kept.chains.insert(chain.clone());
        let _lease = self.lease(kept);
        let (layer, below) = {
            let index = self.shared.index();
            let Some(layer) = index.layers.get(chain).cloned() else {
                return Ok(LayerCheck::default());
            };
            let below = layer.parent.as_ref().map(|parent| index.lowers(parent));
            (layer, below.transpose())
        };
        let mut found = self.check_shape(&layer);
        let below = match below {
            Ok(below) => below.unwrap_or_default(),
            Err(missing) => {
                found.lacks = Some(missing);
                return Ok(found);
            }
        };
        if depth == Depth::Shallow || !found.is_clean() {
            return Ok(found);
        }
        if layer.archive_bytes.is_none() {
            found.is_unverifiable = true;
            return Ok(found);
        }
        let checked = check_layer(&self.shared, &layer, below)?;
        Ok(LayerCheck {
            verified_bytes: checked.bytes,
            is_unverifiable: false,
            lacks: None,
            problems: checked.problems,
            count: checked.count,
        })
    }

    fn check_shape(&self, layer: &LayerRecord) -> LayerCheck {
        let snapshot = open_dir(&self.shared.snapshots, layer.id.to_string().as_bytes());
        let snapshot = match snapshot {
            Ok(snapshot) => snapshot,
            Err(error) => return LayerCheck::of(format!("its directory: {error}")),
        };
        match names(&snapshot) {
            Ok(names) => {
                let known = |name: &String| {
                    ["fs", SKELETON, moves::MOVES, moves::ASIDE].contains(&name.as_str())
                };
                if let Some(stray) = names.iter().find(|name| !known(name)) {
                    return LayerCheck::of(format!("its directory has a stray {stray:?}"));
                }
            }
            Err(error) => return LayerCheck::of(format!("its directory: {error}")),
        }
        // Sizes in blocks change when the file system allocates later; the number of files does not.
        match measure(snapshot) {
            Ok(usage) if usage.inodes == layer.usage.inodes => LayerCheck::default(),
            Ok(usage) => LayerCheck::of(format!(
                "has {} files, its record says {}",
                usage.inodes, layer.usage.inodes
            )),
            Err(error) => LayerCheck::of(format!("its directory: {error}")),
        }
    }

    /// Returns what lies in the store and belongs to nothing: no record, no pull, no container.
    ///
    /// # Errors
    /// When a directory cannot be read.
    pub fn orphans(&self) -> Result<Vec<DamagedRecord>, PathError> {
        let mut orphans = Vec::new();
        let mut add = |path: String, reason: &str| {
            orphans.push(DamagedRecord {
                path,
                reason: reason.to_owned(),
            });
        };
        let list =
            |dir, place: &str| names(dir).map_err(|source| PathError::new("list", place, source));
        // Order: what is listed first and then not known was not being made when it was listed.
        let directories = list(&self.shared.snapshots, "snapshots")?;
        let records = list(&self.shared.meta, "snapshots/meta")?;
        let index = self.shared.index();
        let known_ids: std::collections::BTreeSet<u64> = index
            .layers
            .values()
            .chain(&index.doomed)
            .map(|layer| layer.id)
            .chain(index.actives.values().map(|active| active.record.id))
            .chain(index.making.keys().copied())
            .collect();
        let is_reported = |path: &str| index.damaged.iter().any(|known| known.path == path);
        for name in directories {
            let path = format!("snapshots/{name}");
            let id = name.parse::<u64>().ok();
            let is_known = id.is_some_and(|id| {
                known_ids.contains(&id)
                    || id > index.next_id()
                    // A removal is finished at its own pace.
                    || records.iter().any(|record| record.split('.').next() == Some(&*name))
            });
            if name != "meta" && !is_known && !is_reported(&path) {
                add(path, "no record, pull or container has it");
            }
        }
        drop(index);
        for name in ingest::strangers(&self.shared.ingest)? {
            add(
                format!("content/ingest/{name}"),
                "is neither a partial download nor an import",
            );
        }
        Ok(orphans)
    }

    /// Removes something [`Store::orphans`] named. Returns whether it was there.
    ///
    /// # Errors
    /// The class of the I/O error.
    pub fn remove_orphan(&self, orphan: &DamagedRecord) -> Result<bool, PathError> {
        if !self.orphans()?.contains(orphan) {
            return Ok(false);
        }
        let removed = match orphan.path.rsplit_once('/') {
            Some(("snapshots", name)) => remove_tree(&self.shared.snapshots, name.as_bytes()),
            Some(("content/ingest", name)) => remove_tree(&self.shared.ingest, name.as_bytes()),
            _ => Ok(false),
        };
        removed.map_err(|source| PathError::new("remove", &orphan.path, source))
    }

    /// Takes a damaged layer out of use, so that the next pull fetches it again. Containers that are on it keep
    /// its files; they go with the last of them. Returns whether the layer was in use.
    ///
    /// # Errors
    /// The class of the I/O error.
    pub fn condemn_layer(&self, chain: &ChainId) -> Result<bool, PathError> {
        let Some(layer) = self.shared.index().layers.get(chain).cloned() else {
            return Ok(false);
        };
        let (record, condemned) = (record_name(layer.id), condemned_name(layer.id));
        let meta = &self.shared.meta;
        let failed = |source| PathError::new("condemn", format!("snapshots/meta/{record}"), source);
        renameat(meta, &*record, meta, &*condemned).map_err(|error| failed(error.into()))?;
        crate::durable::sync_dir(meta).map_err(failed)?;
        let mut index = self.shared.index();
        if index
            .layers
            .get(chain)
            .is_some_and(|known| known.id == layer.id)
        {
            index.layers.remove(chain);
            index.doomed.push(layer);
        }
        Ok(true)
    }
}
