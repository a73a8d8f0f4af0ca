//! axil-snapshotter: content-addressed blobs, verified unpacking, overlayfs snapshots and their
//! garbage collection. It knows nothing of registries, manifests or the CRI.

#![forbid(unsafe_code)]

pub mod content;

pub use content::digest::{Algorithm, Digest, ParseDigestError};
