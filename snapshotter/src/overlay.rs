//! The mounts of a container's snapshot as values. Pure.

use std::path::Path;

use crate::mount::Mount;
use crate::snapshot::kind::{ActiveRecord, SnapshotId};

/// Most lower layers overlayfs takes (`OVL_MAX_STACK`).
pub(crate) const LOWERS_MAX: usize = 500;

/// Returns the mounts of a writable layer: an overlay, or a bind mount when nothing is below.
pub(crate) fn mounts(root: &Path, record: &ActiveRecord) -> Vec<Mount> {
    let dir = |id: SnapshotId, name: &str| format!("{}/snapshots/{id}/{name}", root.display());
    if record.lowers.is_empty() {
        return vec![Mount {
            kind: "bind".to_owned(),
            source: dir(record.id, "fs"),
            target: None,
            options: vec!["rbind".to_owned(), "rw".to_owned()],
        }];
    }
    let lowers: Vec<String> = record.lowers.iter().map(|id| dir(*id, "fs")).collect();
    vec![Mount {
        kind: "overlay".to_owned(),
        source: "overlay".to_owned(),
        target: None,
        options: vec![
            // Lower layers are shared by many mounts, which the inode index does not allow.
            "index=off".to_owned(),
            // A container's layer is gone after a crash of the machine, so nothing in it is
            // worth a sync; without this every unmount syncs the whole file system.
            "volatile".to_owned(),
            format!("lowerdir={}", lowers.join(":")),
            format!("upperdir={}", dir(record.id, "fs")),
            format!("workdir={}", dir(record.id, "work")),
        ],
    }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_top_layer_comes_first() {
        let mut record = ActiveRecord {
            id: 9,
            key: "k".to_owned(),
            parent: None,
            lowers: vec![3, 1],
        };
        let overlay = mounts(Path::new("/s"), &record);
        assert_eq!(overlay[0].kind, "overlay");
        assert!(
            overlay[0]
                .options
                .contains(&"lowerdir=/s/snapshots/3/fs:/s/snapshots/1/fs".into())
        );
        assert!(
            overlay[0]
                .options
                .contains(&"upperdir=/s/snapshots/9/fs".into())
        );
        record.lowers.clear();
        assert_eq!(
            mounts(Path::new("/s"), &record)[0].source,
            "/s/snapshots/9/fs"
        );
    }
}
