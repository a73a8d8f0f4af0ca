//! Content addressing: digests and the blobs kept under them.

pub mod digest;
