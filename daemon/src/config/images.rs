//! `[images]`: how registries are asked and what is taken of their answers.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::{ConfigError, PolicyConfig, seconds};
use crate::domain::image::pinned::PinnedPatterns;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// `[images]`; the table of keys says what each means.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageConfig {
    /// `certs.d` directories.
    pub hosts_dirs: Vec<PathBuf>,
    /// Layers at once.
    pub max_concurrent_downloads: usize,
    /// Stall bound.
    #[serde(deserialize_with = "seconds")]
    pub progress_timeout: Duration,
    /// Life of a pull without a caller.
    #[serde(deserialize_with = "seconds")]
    pub abandoned_pull_timeout: Duration,
    /// Bound of a connection.
    #[serde(deserialize_with = "seconds")]
    pub connect_timeout: Duration,
    /// Bound of a document or token.
    #[serde(deserialize_with = "seconds")]
    pub document_timeout: Duration,
    /// Further tries.
    pub max_retries: u32,
    /// First pause.
    #[serde(deserialize_with = "seconds")]
    pub retry_backoff: Duration,
    /// Longest pause a server may ask for.
    #[serde(deserialize_with = "seconds")]
    pub max_retry_after: Duration,
    /// Transfers of blobs from one host at once.
    pub max_transfers_per_host: usize,
    /// Parts of one layer at once.
    pub ranges_per_layer: usize,
    /// Bytes of a part.
    #[serde(deserialize_with = "bytes")]
    pub range_size: u64,
    /// Bytes from which a layer is fetched in parts.
    #[serde(deserialize_with = "bytes")]
    pub range_threshold: u64,
    /// Bytes held for parts that came early.
    #[serde(deserialize_with = "bytes")]
    pub download_buffer: u64,
    /// Redirects of one request.
    pub max_redirects: usize,
    /// Bytes of a token answer.
    #[serde(deserialize_with = "bytes")]
    pub max_token_size: u64,
    /// Bytes of a document.
    #[serde(deserialize_with = "bytes")]
    pub max_document_size: u64,
    /// Documents of an image.
    pub max_documents: usize,
    /// Documents above each other.
    pub max_index_depth: usize,
    /// Descriptors of an image.
    pub max_descriptors: usize,
    /// Layers of an image.
    pub max_layers: usize,
    /// Bytes of a layer and of all layers of an image.
    #[serde(deserialize_with = "bytes")]
    pub max_layer_size: u64,
    /// Non-distributable layers are taken.
    pub allow_nondistributable: bool,
    /// Patterns of pinned images.
    pub pinned: Vec<String>,
    /// `auto`, `overlayfs` or `copy`.
    pub snapshotter: String,
    /// Bound of a silent unpack process.
    #[serde(deserialize_with = "seconds")]
    pub unpack_timeout: Duration,
    /// Bounds of a layer.
    pub layer: LayerBounds,
    /// What may come and be used.
    pub policy: PolicyConfig,
}

/// `[images.layer]`: what one layer may make the node do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerBounds {
    /// Bytes after inflating.
    #[serde(deserialize_with = "bytes")]
    pub unpacked_bytes: u64,
    /// Entries of the archive.
    pub entries: u64,
    /// Components of a path.
    pub path_depth: usize,
    /// Bytes of an extended header.
    #[serde(deserialize_with = "bytes")]
    pub header_bytes: u64,
    /// Segments of a sparse file.
    pub sparse_segments: usize,
    /// Bytes of names in memory.
    #[serde(deserialize_with = "bytes")]
    pub remembered_bytes: u64,
    /// Bytes of a skeleton.
    #[serde(deserialize_with = "bytes")]
    pub skeleton_bytes: u64,
    /// Bytes of a zstd window.
    #[serde(deserialize_with = "bytes")]
    pub zstd_window: u64,
}

impl ImageConfig {
    /// Checks the ranges the table of keys tells.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let count = |value: usize| u64::try_from(value).unwrap_or(u64::MAX);
        let counts = [
            (
                "images.max_concurrent_downloads",
                count(self.max_concurrent_downloads),
                1,
                32,
            ),
            ("images.max_retries", u64::from(self.max_retries), 0, 20),
            (
                "images.max_transfers_per_host",
                count(self.max_transfers_per_host),
                1,
                64,
            ),
            (
                "images.ranges_per_layer",
                count(self.ranges_per_layer),
                1,
                16,
            ),
            ("images.max_redirects", count(self.max_redirects), 0, 20),
            ("images.max_documents", count(self.max_documents), 1, 1024),
            ("images.max_index_depth", count(self.max_index_depth), 1, 16),
            (
                "images.max_descriptors",
                count(self.max_descriptors),
                1,
                65536,
            ),
            ("images.max_layers", count(self.max_layers), 1, 512),
            (
                "images.layer.path_depth",
                count(self.layer.path_depth),
                1,
                2048,
            ),
        ];
        let sizes = [
            ("images.range_size", self.range_size, MIB, 64 * MIB),
            ("images.range_threshold", self.range_threshold, 0, TIB),
            ("images.download_buffer", self.download_buffer, 0, 4 * GIB),
            ("images.max_token_size", self.max_token_size, KIB, 4 * MIB),
            (
                "images.max_document_size",
                self.max_document_size,
                64 * KIB,
                4 * MIB,
            ),
            ("images.max_layer_size", self.max_layer_size, 1, TIB),
            (
                "images.layer.remembered_bytes",
                self.layer.remembered_bytes,
                MIB,
                GIB,
            ),
            (
                "images.layer.zstd_window",
                self.layer.zstd_window,
                MIB,
                2 * GIB,
            ),
        ];
        for (key, value, least, most) in counts {
            check(key, value, least, most, &|n| n.to_string())?;
        }
        for (key, value, least, most) in sizes {
            check(key, value, least, most, &shown)?;
        }
        self.pinned_patterns()?;
        let choice: Result<axil_snapshotter::Choice, String> = self.snapshotter.parse();
        choice.map(drop).map_err(|reason| ConfigError::Value {
            key: "images.snapshotter",
            value: self.snapshotter.clone(),
            reason,
        })?;
        self.policy.check()
    }
}

impl ImageConfig {
    /// Which images are pinned.
    ///
    /// # Errors
    /// A pattern that no image can match.
    pub fn pinned_patterns(&self) -> Result<PinnedPatterns, ConfigError> {
        let patterns = PinnedPatterns::parse(self.pinned.iter().map(String::as_str));
        patterns.map_err(|error| ConfigError::Value {
            key: "images.pinned",
            value: self.pinned.join(", "),
            reason: error.to_string(),
        })
    }
}

fn check(
    key: &'static str,
    value: u64,
    least: u64,
    most: u64,
    show: &dyn Fn(u64) -> String,
) -> Result<(), ConfigError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(ConfigError::Value {
        key,
        value: show(value),
        reason: format!("must be {} to {}", show(least), show(most)),
    })
}

/// A size such as "64KiB", "8MiB", "4GiB" or "1TiB"; a number alone is bytes.
fn bytes<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_bytes(&text)
        .ok_or_else(|| serde::de::Error::custom(format!("{text:?} is no size such as 8MiB")))
}

fn parse_bytes(text: &str) -> Option<u64> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = match unit {
        "" => 1,
        "KiB" => KIB,
        "MiB" => MIB,
        "GiB" => GIB,
        "TiB" => TIB,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

fn shown(bytes: u64) -> String {
    let units = [(TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")];
    let unit = units
        .iter()
        .find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit));
    match unit {
        Some((unit, name)) => format!("{}{name}", bytes / unit),
        None => bytes.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [("0", 0), ("17", 17), ("64KiB", 65536), ("1TiB", 1 << 40)] {
            assert_eq!(parse_bytes(text), Some(bytes));
            assert_eq!(shown(bytes), text);
        }
        for bad in ["", "MiB", "1MB", "1 MiB", "-1", "1.5GiB", "99999999999TiB"] {
            assert_eq!(parse_bytes(bad), None, "{bad}");
        }
        assert_eq!(shown(1025), "1025");
    }
}
