//! The bounds on what one layer may make us do, each with a name and a default.

use serde::{Deserialize, Serialize};

/// Bounds on one layer. Reaching one refuses the layer with an error that names the bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of the layer after inflating, tar headers and padding included.
    pub unpacked_bytes: u64,
    /// Entries of the archive.
    pub entries: u64,
    /// Bytes of one path or link target; Linux takes 4095 (`PATH_MAX`).
    pub path_bytes: usize,
    /// Components of one path.
    pub path_depth: usize,
    /// Bytes of one file name; Linux takes 255 (`NAME_MAX`).
    pub name_bytes: usize,
    /// Bytes of one extended attribute; Linux takes 65536 (`XATTR_SIZE_MAX`).
    pub xattr_bytes: usize,
    /// Bytes of one PAX extended header, and so of all attributes of a file.
    pub pax_bytes: u64,
    /// Segments of one sparse file.
    pub sparse_segments: usize,
    /// Bytes of directory and link names that have to be remembered until the end of the layer.
    pub remembered_bytes: usize,
    /// Bytes of the layer's skeleton, compressed. A layer beyond it is unpacked all the same, but cannot be
    /// checked deeply or exported.
    pub skeleton_bytes: u64,
    /// Largest window a zstd frame may ask for, in bytes; it is what unpacking such a layer takes of memory. RFC
    /// 8878 recommends decoders to support 8 MiB, which writers of images stay within.
    pub zstd_window: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            unpacked_bytes: 64 << 30,
            entries: 2_000_000,
            path_bytes: 4095,
            path_depth: 256,
            name_bytes: 255,
            xattr_bytes: 65_536,
            pax_bytes: 1 << 20,
            sparse_segments: 65_536,
            remembered_bytes: 64 << 20,
            skeleton_bytes: 256 << 20,
            zstd_window: 32 << 20,
        }
    }
}

impl Limits {
    /// The bounds of an archive that was unpacked before: only those that memory needs.
    pub(crate) fn unlimited() -> Self {
        Self {
            unpacked_bytes: u64::MAX,
            entries: u64::MAX,
            remembered_bytes: usize::MAX,
            skeleton_bytes: u64::MAX,
            ..Self::default()
        }
    }
}
