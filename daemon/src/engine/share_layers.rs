//! Which layers of other images an image may have: those it names by the blob they were made of, and those that
//! hold against their diff id (`snapshotter/src/share.rs`). The others go, and are fetched as if they were not
//! here; so do layers that rotted.

use std::sync::Arc;

use axil_snapshotter::ChainId;

use super::images::Images;
use crate::domain::failure::Failure;
use crate::domain::image::manifest::ImageManifest;

/// Looks at the layers of an image that are here already. Nobody else may pull or remove these stacks meanwhile.
///
/// # Errors
/// When a layer cannot be looked at or not be taken out of use.
pub(super) async fn share_layers(
    images: &Arc<Images>,
    manifest: &ImageManifest,
    chains: &[ChainId],
) -> Result<(), Failure> {
    for (layer, chain) in manifest.layers.iter().zip(chains) {
        let is_here = images.layers.has(&chain.to_string());
        if !is_here || images.layers.is_proven(chain, &layer.digest) {
            continue;
        }
        if images.layers.prove(chain).await? {
            tracing::debug!(layer = %chain, blob = %layer.digest, "a layer made of another blob holds");
            continue;
        }
        let gone = images.layers.condemn_stacks(chain).await?;
        tracing::warn!(
            layer = %chain,
            blob = %layer.digest,
            layers = gone.len(),
            "a layer made of another blob does not hold; it is out of use with all above it"
        );
        for image in images.all() {
            if !images.is_complete(&image) {
                images.set_aside(&image);
            }
        }
        // Nothing above it is here any more.
        break;
    }
    Ok(())
}
