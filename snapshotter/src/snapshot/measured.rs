//! What writable layers took when they were measured last, over a restart: measuring is a walk, and whoever asks
//! for sizes right after a start is not kept waiting for it. Only a statement of sizes, so nothing is synced.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use crate::durable::Prepared;
use crate::error::PathError;
use crate::store::{Index, read_bounded};
use crate::tree::Usage;

/// The file, below the root of the store.
const MEASURED: &str = "measured";
/// Largest file that is read, in bytes.
const MEASURED_MAX: u64 = 16 << 20;

/// Snapshot to bytes and inodes.
type Sizes = BTreeMap<u64, (u64, u64)>;

/// Gives writable layers the sizes of an earlier life. A file that cannot be read is as good as none.
pub(crate) fn load(top: &OwnedFd, index: &mut Index) {
    let sizes: Option<Sizes> = read_bounded(top, MEASURED, MEASURED_MAX)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let sizes = sizes.unwrap_or_default();
    for active in index.actives.values_mut() {
        if let Some(&(bytes, inodes)) = sizes.get(&active.record.id) {
            active.usage = Usage { bytes, inodes };
        }
    }
}

/// Keeps the sizes for the next start.
pub(crate) fn keep(top: &OwnedFd, index: &Index) -> Result<(), PathError> {
    let sizes: Sizes = index
        .actives
        .values()
        .map(|active| (active.record.id, (active.usage.bytes, active.usage.inodes)))
        .collect();
    let failed = |source| PathError::new("write", MEASURED, source);
    let bytes = serde_json::to_vec(&sizes).map_err(|error| failed(error.into()))?;
    let mut file = Prepared::write(top, MEASURED, &bytes).map_err(failed)?;
    file.publish().map_err(failed)
}
