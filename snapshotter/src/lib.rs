//! axil-snapshotter: content-addressed blobs, verified unpacking, overlayfs snapshots and their
//! garbage collection. It knows nothing of registries, manifests or the CRI.
//!
//! The API is synchronous; callers with an event loop move it to blocking threads. Everything
//! starts at [`Store::open`].

#![deny(unsafe_code)]

pub mod content;
pub mod fsck;
#[doc(hidden)]
pub mod fuzzing;
pub mod gc;
pub mod layer;
pub mod mount;
pub mod share;
pub mod snapshot;
pub mod snapshotter;
pub mod worker;

mod confined;
mod copy;
mod durable;
mod error;
mod ids;
mod overlay;
mod store;
mod sys;
mod tree;

pub use content::compress::compress;
pub use content::digest::{Algorithm, Digest, ParseDigestError};
pub use content::spool::{Spool, SpoolError, SpoolLimits, compression_of};
pub use content::store::ContentError;
pub use error::{ErrorClass, PathError};
pub use fsck::{Depth, LayerCheck};
pub use gc::{GcError, Reclaimed, Roots};
pub use ids::{IdRange, IdRanges, Owners};
pub use layer::apply::ApplyError;
pub use layer::assemble::LayerArchive;
pub use layer::inflate::Compression;
pub use layer::limits::Limits;
pub use layer::tar::TarError;
pub use layer::{LayerError, LayerIngest, LayerRequest, StagedLayer};
pub use mount::{Mount, MountError};
pub use snapshot::chain::ChainId;
pub use snapshot::store::SnapshotError;
pub use snapshotter::{Choice, Snapshotter};
pub use store::{DamagedRecord, DiscardError, Lease, OpenError, Store, StoreOptions};
pub use tree::Usage;
pub use worker::{Worker, WorkerError};
