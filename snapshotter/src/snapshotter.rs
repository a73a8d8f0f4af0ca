//! How a container's root file system comes to be from layers: the trait, and which implementation a machine gets.
//!
//! Layers are the same for all: a directory each, with the marks of overlayfs for what is deleted. Where a layer
//! comes from is no business of a snapshotter.

use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::str::FromStr;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RenameFlags, XattrFlags, fsetxattr, makedev, mkdirat, mknodat,
    openat, renameat_with, unlinkat,
};

use crate::confined::open_dir;
use crate::copy::Copy;
use crate::error::PathError;
use crate::ids::Owners;
use crate::layer::attributes::set_opaque;
use crate::mount::{self, Mount};
use crate::overlay::{Overlayfs, overlay};
use crate::snapshot::kind::SnapshotId;
use crate::tree::remove_tree;

/// Makes writable layers of containers. Implementations keep nothing in memory: everything is on disk, and what
/// one made another one mounts and removes.
pub trait Snapshotter: fmt::Debug + Send + Sync {
    /// The name in the configuration.
    fn name(&self) -> &'static str;

    /// Most layers a container may lie on.
    fn layers_max(&self) -> usize;

    /// Fills the new directories `fs` and `work` of a container on top of `below`. Answers on which layers it
    /// needs to be mounted, top first: those are kept as long as the container. Who answers none has copied, and
    /// given the copies to `owners`.
    ///
    /// # Errors
    /// The I/O error; the caller removes what was made.
    fn fill(
        &self,
        container: &OwnedFd,
        below: &Lowers<'_>,
        owners: Owners<'_>,
    ) -> io::Result<Vec<u64>>;

    /// As [`Snapshotter::fill`], for a view that nothing is written to.
    ///
    /// # Errors
    /// As [`Snapshotter::fill`].
    fn fill_view(
        &self,
        view: &OwnedFd,
        below: &Lowers<'_>,
        owners: Owners<'_>,
    ) -> io::Result<Vec<u64>> {
        self.fill(view, below, owners)
    }

    /// Returns how to mount the directory of a container below the root of the store. Pure.
    fn mounts(&self, store: &Path, container: u64, below: &[u64]) -> Vec<Mount>;
}

/// The layers below a container, top first.
#[derive(Debug)]
pub struct Lowers<'a> {
    snapshots: &'a OwnedFd,
    layers: &'a [SnapshotId],
}

impl<'a> Lowers<'a> {
    pub(crate) fn new(snapshots: &'a OwnedFd, layers: &'a [SnapshotId]) -> Self {
        Self { snapshots, layers }
    }

    /// Their numbers, top first.
    #[must_use]
    pub fn layers(&self) -> &[u64] {
        self.layers
    }

    /// Opens the files of one.
    ///
    /// # Errors
    /// The I/O error.
    pub fn open(&self, layer: u64) -> io::Result<OwnedFd> {
        open_dir(self.snapshots, format!("{layer}/fs").as_bytes())
    }
}

/// What the operator asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// Overlayfs where it works, else copies.
    #[default]
    Auto,
    /// Overlayfs, or the store does not open.
    Overlayfs,
    /// Copies.
    Copy,
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "overlayfs" => Ok(Self::Overlayfs),
            "copy" => Ok(Self::Copy),
            _ => Err(format!("\"{text}\" is not one of auto, overlayfs, copy")),
        }
    }
}

/// A snapshotter and why it was chosen.
#[derive(Debug)]
pub(crate) struct Chosen {
    pub(crate) snapshotter: Box<dyn Snapshotter>,
    pub(crate) reason: String,
}

/// Chooses for a store in the directory `root`, open as `top`.
pub(crate) fn choose(choice: Choice, top: &OwnedFd, root: &Path) -> Result<Chosen, PathError> {
    let asked = |snapshotter: Box<dyn Snapshotter>| Chosen {
        snapshotter,
        reason: "configured".to_owned(),
    };
    if choice == Choice::Copy {
        return Ok(asked(Box::new(Copy)));
    }
    match (probe(top, root), choice) {
        (Ok(()), Choice::Auto) => Ok(Chosen {
            snapshotter: Box::new(Overlayfs),
            reason: "a trial mount worked".to_owned(),
        }),
        (Ok(()), _) => Ok(asked(Box::new(Overlayfs))),
        (Err(why), Choice::Auto) => Ok(Chosen {
            snapshotter: Box::new(Copy),
            reason: format!("overlayfs does not work here: {why}"),
        }),
        (Err(why), _) => Err(PathError::new(
            "use overlayfs in",
            root.display(),
            io::Error::other(why),
        )),
    }
}

/// The directory of a trial, and that of one with mapped ids.
const TRIAL: &str = "probe";
const IDS_TRIAL: &str = "probe-ids";

/// Tries what overlayfs needs of the file system the store is on. The reason of a failure is for the operator.
fn probe(top: &OwnedFd, root: &Path) -> Result<(), String> {
    let swept = remove_tree(top, TRIAL.as_bytes());
    swept.map_err(|error| format!("cannot remove {TRIAL}: {error}"))?;
    let tried = try_overlay(top, &root.join(TRIAL));
    let removed = remove_tree(top, TRIAL.as_bytes());
    tried?;
    removed.map_err(|error| format!("cannot remove {TRIAL}: {error}"))?;
    Ok(())
}

/// Tries whether an overlay can show the files of a layer with the owners of the user namespace `ids`, whose root
/// is not the host's. The reason of a failure is for the operator.
pub(crate) fn probe_ids(top: &OwnedFd, root: &Path, ids: BorrowedFd<'_>) -> Result<(), String> {
    let trial = root.join(IDS_TRIAL);
    // A process that was killed in the middle of it leaves a mount.
    mount::unmount(&trial.join("place")).map_err(failed("unmount"))?;
    let remove = || {
        let removed = remove_tree(top, IDS_TRIAL.as_bytes());
        removed.map_err(|error| format!("cannot remove {IDS_TRIAL}: {error}"))
    };
    remove()?;
    let tried = try_ids(top, &trial, ids);
    let removed = remove();
    tried?;
    removed.map(drop)
}

fn try_ids(top: &OwnedFd, trial: &Path, ids: BorrowedFd<'_>) -> Result<(), String> {
    mkdirat(top, IDS_TRIAL, Mode::RWXU).map_err(failed("create a directory"))?;
    let dir = open_dir(top, IDS_TRIAL.as_bytes()).map_err(failed("open a directory"))?;
    for name in ["lower", "upper", "work", "place"] {
        mkdirat(&dir, name, Mode::RWXU).map_err(failed("create a directory"))?;
    }
    let lower = open_dir(&dir, b"lower").map_err(failed("open a directory"))?;
    mkdirat(&lower, "inside", Mode::RWXU).map_err(failed("create a directory"))?;
    let below = |name: &str| trial.join(name).display().to_string();
    let overlay = overlay(&below("lower"), &below("upper"), &below("work"));
    let place = trial.join("place");
    mount::mount_mapped(&overlay, &place, ids).map_err(|error| {
        let why = std::error::Error::source(&error).map_or(String::new(), |why| format!(": {why}"));
        format!("{error}{why}")
    })?;
    let seen = rustix::fs::stat(place.join("inside").as_path());
    mount::unmount(&place).map_err(failed("unmount"))?;
    match seen {
        Ok(stat) if stat.st_uid != 0 => Ok(()),
        Ok(_) => Err("ids of lower directories are not mapped".to_owned()),
        Err(error) => Err(format!("cannot stat: {error}")),
    }
}

fn failed<E: fmt::Display>(what: &str) -> impl FnOnce(E) -> String + '_ {
    move |error| format!("cannot {what}: {error}")
}

fn try_overlay(top: &OwnedFd, trial: &Path) -> Result<(), String> {
    mkdirat(top, TRIAL, Mode::RWXU).map_err(failed("create a directory"))?;
    let dir = open_dir(top, TRIAL.as_bytes()).map_err(failed("open a directory"))?;
    for name in ["lower", "upper", "work"] {
        mkdirat(&dir, name, Mode::RWXU).map_err(failed("create a directory"))?;
    }
    let upper = open_dir(&dir, b"upper").map_err(failed("open a directory"))?;
    set_opaque(&upper).map_err(failed("set trusted.overlay.opaque"))?;
    let whiteout = makedev(0, 0);
    mknodat(
        &upper,
        "whiteout",
        FileType::CharacterDevice,
        Mode::empty(),
        whiteout,
    )
    .map_err(failed("create a whiteout"))?;
    // Deleting in a mounted overlay renames so (kernel documentation, overlayfs, "Upper directory").
    let file = openat(
        &upper,
        "file",
        OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::RUSR,
    )
    .map_err(failed("create a file"))?;
    fsetxattr(&file, "trusted.axil", b"", XattrFlags::empty())
        .map_err(failed("set a trusted attribute"))?;
    renameat_with(&upper, "file", &upper, "gone", RenameFlags::WHITEOUT)
        .map_err(failed("rename with a whiteout"))?;
    for name in ["file", "gone", "whiteout"] {
        unlinkat(&upper, name, AtFlags::empty()).map_err(failed("remove a file"))?;
    }
    let below = |name: &str| trial.join(name).display().to_string();
    let overlay = overlay(&below("lower"), &below("upper"), &below("work"));
    mount::try_overlay(&overlay).map_err(|error| format!("cannot mount: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_named_as_in_the_configuration() {
        assert_eq!("auto".parse(), Ok(Choice::Auto));
        assert_eq!("copy".parse(), Ok(Choice::Copy));
        let error = "overlay".parse::<Choice>().unwrap_err();
        assert_eq!(error, "\"overlay\" is not one of auto, overlayfs, copy");
    }

    #[test]
    fn snapshotters_have_the_names_they_are_chosen_by() {
        for name in [Overlayfs.name(), Copy.name()] {
            assert!(name.parse::<Choice>().is_ok(), "{name}");
        }
    }
}
