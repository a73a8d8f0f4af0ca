//! Containers on overlayfs: layers are mounted together, a container's own directory on top.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, fchmod};

use crate::confined::open_dir;
use crate::copy::{copy_all, give_root};
use crate::ids::Owners;
use crate::layer::attributes::{apply_open, read_open};
use crate::mount::Mount;
use crate::snapshotter::{Lowers, Snapshotter};

/// Most lower layers overlayfs takes (`OVL_MAX_STACK`).
pub(crate) const LOWERS_MAX: usize = 500;

/// Mounts layers together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Overlayfs;

impl Snapshotter for Overlayfs {
    fn name(&self) -> &'static str {
        "overlayfs"
    }

    fn layers_max(&self) -> usize {
        LOWERS_MAX
    }

    fn fill(
        &self,
        container: &OwnedFd,
        below: &Lowers<'_>,
        owners: Owners<'_>,
    ) -> io::Result<Vec<u64>> {
        if let Owners::Shifted(ids) = owners {
            return copy_all(container, below, Some(ids));
        }
        let files = open_dir(container, b"fs")?;
        // The root of an overlay shows the attributes of its upper directory.
        match below.layers().first() {
            Some(&top) => {
                let mut metadata = read_open(below.open(top)?)?;
                if let Owners::Mapped(ids) = owners {
                    ids.shift(&mut metadata);
                }
                apply_open(&files, &metadata, true)?;
            }
            None => {
                fchmod(&files, Mode::from_raw_mode(0o755))?;
                give_root(&files, owners.ranges())?;
            }
        }
        Ok(below.layers().to_vec())
    }

    fn fill_view(
        &self,
        view: &OwnedFd,
        below: &Lowers<'_>,
        owners: Owners<'_>,
    ) -> io::Result<Vec<u64>> {
        // Only a view of nothing, or a copy, shows its own directory.
        if below.layers().is_empty() || matches!(owners, Owners::Shifted(_)) {
            return self.fill(view, below, owners);
        }
        Ok(below.layers().to_vec())
    }

    fn mounts(&self, store: &Path, container: u64, below: &[u64]) -> Vec<Mount> {
        mounts(store, container, below)
    }
}

/// Returns the mounts of a view: an overlay without an upper directory, or a bind mount when nothing is below.
pub(crate) fn view_mounts(root: &Path, view: u64, below: &[u64]) -> Vec<Mount> {
    let dir = |id: u64| format!("{}/snapshots/{id}/fs", root.display());
    let own = dir(view);
    if below.is_empty() {
        return vec![Mount {
            kind: "bind".to_owned(),
            source: own,
            target: None,
            options: vec!["rbind".to_owned(), "ro".to_owned()],
        }];
    }
    // The view's own directory is empty and comes last: overlayfs takes no fewer than two lower directories
    // without an upper one, and a single layer must not be bound, or its whiteouts were to be seen.
    let lowers: Vec<String> = below.iter().map(|id| dir(*id)).chain([own]).collect();
    vec![Mount {
        kind: "overlay".to_owned(),
        source: "overlay".to_owned(),
        target: None,
        options: vec!["ro".to_owned(), format!("lowerdir={}", lowers.join(":"))],
    }]
}

/// Returns the mounts of a writable layer: an overlay, or a bind mount when nothing is below.
pub(crate) fn mounts(root: &Path, container: u64, below: &[u64]) -> Vec<Mount> {
    let dir = |id: u64, name: &str| format!("{}/snapshots/{id}/{name}", root.display());
    if below.is_empty() {
        return vec![Mount {
            kind: "bind".to_owned(),
            source: dir(container, "fs"),
            target: None,
            options: vec!["rbind".to_owned(), "rw".to_owned()],
        }];
    }
    let lowers: Vec<String> = below.iter().map(|id| dir(*id, "fs")).collect();
    let (upper, work) = (dir(container, "fs"), dir(container, "work"));
    vec![overlay(&lowers.join(":"), &upper, &work)]
}

/// Returns the mount of an overlay. `lowers` are paths with colons between them, top first.
pub(crate) fn overlay(lowers: &str, upper: &str, work: &str) -> Mount {
    Mount {
        kind: "overlay".to_owned(),
        source: "overlay".to_owned(),
        target: None,
        options: vec![
            // Lower layers are shared by many mounts, which the inode index does not allow.
            "index=off".to_owned(),
            // A container's layer is gone after a crash of the machine, so nothing in it is
            // worth a sync; without this every unmount syncs the whole file system.
            "volatile".to_owned(),
            format!("lowerdir={lowers}"),
            format!("upperdir={upper}"),
            format!("workdir={work}"),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_top_layer_comes_first() {
        let overlay = mounts(Path::new("/s"), 9, &[3, 1]);
        assert_eq!(overlay[0].kind, "overlay");
        for option in [
            "lowerdir=/s/snapshots/3/fs:/s/snapshots/1/fs",
            "upperdir=/s/snapshots/9/fs",
        ] {
            assert!(overlay[0].options.contains(&option.into()), "{option}");
        }
        assert_eq!(
            mounts(Path::new("/s"), 9, &[])[0].source,
            "/s/snapshots/9/fs"
        );
        let view = view_mounts(Path::new("/s"), 9, &[3]);
        let lowers = "lowerdir=/s/snapshots/3/fs:/s/snapshots/9/fs";
        assert_eq!(view[0].options, ["ro", lowers]);
        assert_eq!(
            view_mounts(Path::new("/s"), 9, &[])[0].options,
            ["rbind", "ro"]
        );
    }
}
