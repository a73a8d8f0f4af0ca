//! Content addressing: digests, the blobs kept under them, and layers on their way in.

pub mod compress;
pub mod digest;
pub(crate) mod ingest;
pub mod spool;
pub mod store;
