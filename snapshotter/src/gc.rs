//! Garbage collection: what is reachable (pure), then the removal of the rest.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rustix::fs::{AtFlags, unlinkat};
use rustix::io::Errno;

use crate::confined::open_dir;
use crate::content::digest::Digest;
use crate::content::ingest;
use crate::durable::sync_dir;
use crate::error::{ErrorClass, PathError};
use crate::snapshot::chain::ChainId;
use crate::snapshot::kind::LayerRecord;
use crate::store::{Index, Store};
use crate::tree::Usage;

/// What has to stay: blobs by digest, and layers with everything below them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Roots {
    /// Manifests, configurations, and layer blobs whose partial download is to be kept.
    pub blobs: BTreeSet<Digest>,
    /// Top layers of images.
    pub chains: BTreeSet<ChainId>,
}

/// What a collection removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reclaimed {
    /// Blobs and partial downloads.
    pub blobs: u64,
    /// Committed layers.
    pub layers: u64,
    /// Space and files that are free again.
    pub usage: Usage,
}

/// Why a collection did not remove everything. What is listed is tried again by the next one.
#[derive(Debug, thiserror::Error)]
#[error("{} of the unused blobs and layers could not be removed", failures.len())]
pub struct GcError {
    /// What was removed all the same.
    pub reclaimed: Reclaimed,
    /// Each failure.
    pub failures: Vec<PathError>,
}

impl GcError {
    /// Returns the class of the first failure.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        self.failures
            .first()
            .map_or(ErrorClass::Internal, PathError::class)
    }
}

/// Returns the layers reachable from `tops` through their parents.
fn reachable<'a>(
    layers: &HashMap<ChainId, LayerRecord>,
    tops: impl Iterator<Item = &'a ChainId>,
) -> BTreeSet<ChainId> {
    let mut kept = BTreeSet::new();
    for top in tops {
        let mut next = Some(top.clone());
        while let Some(chain) = next {
            next = layers.get(&chain).and_then(|layer| layer.parent.clone());
            if !kept.insert(chain) {
                break;
            }
        }
    }
    kept
}

/// Takes what nothing keeps out of the index.
fn take_unreachable(index: &mut Index, roots: &Roots) -> (Vec<LayerRecord>, BTreeMap<Digest, u64>) {
    let sets = || std::iter::once(roots).chain(index.leases.values());
    let in_flight = index
        .in_flight
        .iter()
        .flat_map(|((chain, _), layer)| std::iter::once(chain).chain(layer.parent.as_ref()));
    let actives = index
        .actives
        .values()
        .filter_map(|active| active.record.parent.as_ref());
    let tops = sets()
        .flat_map(|set| &set.chains)
        .chain(in_flight)
        .chain(actives);
    let kept = reachable(&index.layers, tops);
    // The directories under a container stay even if a record between them is missing.
    let mounted: BTreeSet<u64> = index
        .actives
        .values()
        .flat_map(|active| active.record.lowers.iter().copied())
        .collect();
    let kept_blobs: BTreeSet<Digest> = sets().flat_map(|set| &set.blobs).cloned().collect();
    let mut layers: Vec<LayerRecord> = index
        .layers
        .extract_if(|chain, layer| !kept.contains(chain) && !mounted.contains(&layer.id))
        .map(|(_, layer)| layer)
        .collect();
    let goes = |layer: &mut LayerRecord| !mounted.contains(&layer.id);
    layers.extend(index.doomed.extract_if(.., goes));
    let unused = index
        .blobs
        .extract_if(.., |digest, _| !kept_blobs.contains(digest))
        .collect();
    (layers, unused)
}

impl Store {
    /// Removes every blob and layer that is not reachable from `roots`, a [`crate::Lease`], a
    /// layer being pulled or a container. Partial downloads go after an hour unless they are
    /// among the roots. Safe at any time; when it returns the space is free.
    ///
    /// # Errors
    /// The class of the first I/O error; the rest is removed all the same.
    pub fn collect_garbage(&self, roots: &Roots) -> Result<Reclaimed, GcError> {
        let mut reclaimed = Reclaimed::default();
        let mut failures = Vec::new();
        let layers = {
            let mut index = self.shared.index();
            let (layers, blobs) = take_unreachable(&mut index, roots);
            // Unlinked under the lock: a blob stored again right now must not be lost.
            for (digest, size) in blobs {
                match self.unlink_blob(&digest) {
                    Ok(()) => {
                        reclaimed.blobs += 1;
                        reclaimed.usage += Usage {
                            bytes: size,
                            inodes: 1,
                        };
                    }
                    Err(error) => {
                        failures.push(error);
                        index.blobs.insert(digest, size);
                    }
                }
            }
            layers
        };
        if reclaimed.blobs > 0 {
            failures.extend(self.sync_blobs().err());
        }
        // Order: all records first, with one sync, then the files.
        let mut taken = Vec::new();
        for layer in layers {
            match self.take_record(layer.id) {
                Ok(()) => taken.push(layer),
                Err(error) => {
                    failures.push(error);
                    self.shared.index().doomed.push(layer);
                }
            }
        }
        if !taken.is_empty()
            && let Err(error) = self.sync_records()
        {
            failures.push(error);
            self.shared.index().doomed.append(&mut taken);
        }
        for layer in taken {
            match self.remove_taken(layer.id) {
                Ok(()) => {
                    reclaimed.layers += 1;
                    reclaimed.usage += layer.usage;
                }
                Err(error) => {
                    failures.push(error);
                    self.shared.index().doomed.push(layer);
                }
            }
        }
        let wanted = {
            let index = self.shared.index();
            let mut wanted = roots.blobs.clone();
            wanted.extend(index.in_flight.keys().map(|(_, blob)| blob.clone()));
            wanted.extend(
                index
                    .leases
                    .values()
                    .flat_map(|set| set.blobs.iter().cloned()),
            );
            wanted
        };
        match ingest::collect(&self.shared.ingest, |blob| wanted.contains(blob)) {
            Ok(freed) => {
                reclaimed.blobs += freed.inodes;
                reclaimed.usage += freed;
            }
            Err(error) => failures.push(error),
        }
        if failures.is_empty() {
            Ok(reclaimed)
        } else {
            Err(GcError {
                reclaimed,
                failures,
            })
        }
    }

    fn unlink_blob(&self, digest: &Digest) -> Result<(), PathError> {
        let failed = |source: std::io::Error| PathError::new("remove blob", digest, source);
        let dir = open_dir(&self.shared.blobs, digest.algorithm().as_str().as_bytes());
        match unlinkat(dir.map_err(failed)?, digest.hex(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(failed(error.into())),
        }
    }

    fn sync_blobs(&self) -> Result<(), PathError> {
        for algorithm in ["sha256", "sha512"] {
            open_dir(&self.shared.blobs, algorithm.as_bytes())
                .and_then(sync_dir)
                .map_err(|source| PathError::new("sync directory", "content/blobs", source))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn layers_of(parents: &[Option<usize>]) -> (Vec<ChainId>, HashMap<ChainId, LayerRecord>) {
        let digest = |i: usize| Digest::sha256_of(&i.to_le_bytes());
        let chains: Vec<ChainId> = (0..parents.len())
            .map(|i| ChainId::first(&digest(i)))
            .collect();
        let layers = parents
            .iter()
            .enumerate()
            .map(|(i, parent)| {
                let record = LayerRecord {
                    id: i as u64,
                    chain: chains[i].clone(),
                    parent: parent.map(|p| chains[p].clone()),
                    diff_id: digest(i),
                    blob: digest(i),
                    usage: Usage::default(),
                    opaque_root: false,
                    archive_bytes: None,
                };
                (chains[i].clone(), record)
            })
            .collect();
        (chains, layers)
    }

    proptest! {
        #[test]
        fn what_is_kept_is_closed_under_parents_and_nothing_more(
            seeds in proptest::collection::vec(any::<u16>(), 1..20),
            tops in proptest::collection::vec(any::<u16>(), 0..4),
        ) {
            // Each layer's parent is an earlier one or none.
            let parents: Vec<Option<usize>> = seeds.iter().enumerate()
                .map(|(i, seed)| (usize::from(*seed) % (i + 1)).checked_sub(1)).collect();
            let (chains, layers) = layers_of(&parents);
            let tops: Vec<usize> = tops.iter().map(|t| usize::from(*t) % chains.len()).collect();
            let kept = reachable(&layers, tops.iter().map(|t| &chains[*t]));
            let mut expected = BTreeSet::new();
            for top in tops {
                let mut next = Some(top);
                while let Some(i) = next {
                    expected.insert(chains[i].clone());
                    next = parents[i];
                }
            }
            prop_assert_eq!(kept, expected);
        }
    }

    #[test]
    fn a_record_that_is_its_own_parent_does_not_hang() {
        let (chains, layers) = layers_of(&[Some(0)]);
        assert_eq!(reachable(&layers, chains.iter()).len(), 1);
    }
}
