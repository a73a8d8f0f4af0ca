//! Whether an image may have a layer that another image brought.
//!
//! A layer is named by what its archive hashes to, and that hash is taken where the archive is inflated: in an
//! unpack process, which a hostile blob may have taken over and which then says what it likes (`worker.rs`).
//! The digest of the blob is taken here. So an image gets a layer that is here already if it names the same
//! blob; if it names another one, only after this process made the archive of the layer again, found that it
//! hashes to the diff id, and found nothing in the layer but that archive (`layer/check.rs`).

use std::collections::BTreeSet;

use crate::content::digest::Digest;
use crate::error::PathError;
use crate::fsck::Depth;
use crate::layer::LayerError;
use crate::snapshot::chain::ChainId;
use crate::store::Store;

impl Store {
    /// Tells whether an image that names this blob for a layer may have the layer: it was made of that blob, or
    /// [`Store::prove_layer`] held since the store was opened. Not for a layer that is not here.
    #[must_use]
    pub fn is_proven(&self, chain: &ChainId, blob: &Digest) -> bool {
        let index = self.shared.index();
        let layer = index.layers.get(chain);
        layer.is_some_and(|layer| layer.blob == *blob || index.proven.contains(&layer.id))
    }

    /// Checks a layer completely and answers whether it holds, so that every image may have it. A layer without
    /// a skeleton cannot be checked and does not hold.
    ///
    /// # Errors
    /// When the check cannot be made.
    pub fn prove_layer(&self, chain: &ChainId) -> Result<bool, LayerError> {
        let Some(id) = self.shared.index().layers.get(chain).map(|layer| layer.id) else {
            return Ok(false);
        };
        let check = self.check_layer(chain, Depth::Deep)?;
        let holds = check.is_clean() && !check.is_unverifiable && check.lacks.is_none();
        let mut index = self.shared.index();
        // It may have been replaced while it was looked at.
        let is_same = index.layers.get(chain).is_some_and(|layer| layer.id == id);
        if holds && is_same {
            index.proven.insert(id);
        }
        Ok(holds && is_same)
    }

    /// Takes a layer out of use with every layer on it, which may have copied from it. Containers that are on
    /// them keep their files; they go with the last of them. Returns what was in use.
    ///
    /// # Errors
    /// The class of the first I/O error; what is above is out of use by then.
    pub fn condemn_stacks(&self, chain: &ChainId) -> Result<Vec<ChainId>, PathError> {
        let mut above = BTreeSet::from([chain.clone()]);
        let mut condemned = Vec::new();
        // Order: parents come first in this list, so one pass finds all.
        for layer in self.layers() {
            let parent = {
                let index = self.shared.index();
                index
                    .layers
                    .get(&layer)
                    .and_then(|layer| layer.parent.clone())
            };
            if parent.is_some_and(|parent| above.contains(&parent)) {
                above.insert(layer.clone());
            }
            if above.contains(&layer) {
                condemned.push(layer);
            }
        }
        // Order: from the top, so that nothing in use ever lies on something that is not.
        for layer in condemned.iter().rev() {
            self.condemn_layer(layer)?;
        }
        Ok(condemned)
    }
}
