//! How a container's root file system comes to be from layers: the trait, and which implementation a machine gets.
//!
//! Layers are the same for all: a directory each, with the marks of overlayfs for what is deleted. Where a layer
//! comes from is no business of a snapshotter.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::str::FromStr;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RenameFlags, XattrFlags, fsetxattr, makedev, mkdirat, mknodat,
    openat, renameat_with, unlinkat,
};

use crate::confined::open_dir;
use crate::copy::Copy;
use crate::error::PathError;
use crate::layer::attributes::set_opaque;
use crate::mount::{self, Mount};
use crate::overlay::Overlayfs;
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
    /// needs to be mounted, top first: those are kept as long as the container.
    ///
    /// # Errors
    /// The I/O error; the caller removes what was made.
    fn fill(&self, container: &OwnedFd, below: &Lowers<'_>) -> io::Result<Vec<u64>>;

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

/// The directory of a trial.
const TRIAL: &str = "probe";

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

fn try_overlay(top: &OwnedFd, trial: &Path) -> Result<(), String> {
    fn failed<E: fmt::Display>(what: &str) -> impl FnOnce(E) -> String + '_ {
        move |error| format!("cannot {what}: {error}")
    }
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
    let overlay = Mount {
        kind: "overlay".to_owned(),
        source: "overlay".to_owned(),
        target: None,
        options: vec![
            "index=off".to_owned(),
            "volatile".to_owned(),
            format!("lowerdir={}", below("lower")),
            format!("upperdir={}", below("upper")),
            format!("workdir={}", below("work")),
        ],
    };
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
