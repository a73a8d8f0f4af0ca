//! Completes a layer that was unpacked without its parents, once they are known:
//!
//! - a directory the archive implied but did not describe takes its metadata from the nearest
//!   layer below that has it; without one it is root's, 0755, of the epoch, so that the same layers
//!   always make the same tree;
//! - where a layer below has a symbolic link instead, the entries were meant to go through it:
//!   they move to where it leads (a layer with `bin/tool` over one with `bin -> usr/bin`);
//! - a hard link to a file of a layer below copies that file up, then links.
//!
//! The layer is not visible yet and nobody else writes to it.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{
    AtFlags, FileType, RenameFlags, linkat, mkdirat, readlinkat, renameat_with, statat,
};
use rustix::io::Errno;

use super::apply::{ApplyError, IMPLIED_MODE, Pending, at, give_to_root, is_not_a_directory};
use super::attic::Attic;
use super::attributes::{apply_open, is_opaque, keeping_times, read_open, set_opaque, set_time};
use super::entry::LayerPath;
use super::moves::Move;
use super::pax::Time;
use super::stack::{Found, Node, Stack};
use crate::confined::{kind_of, open_dir};
use crate::copy::copy_node;
use crate::snapshot::kind::SnapshotId;
use crate::store::names_raw;
use crate::tree::remove_tree;

/// What settling a layer did.
#[derive(Debug)]
pub(crate) struct Settled {
    /// The layer may take more space now.
    pub(crate) grown: bool,
    /// All that moved, what the archive itself moved included.
    pub(crate) moves: Vec<Move>,
    /// Files that came from a layer below with their content.
    pub(crate) copied: Vec<LayerPath>,
}

/// Settles layer `id` on top of `below` (top first). `moves` is what moved when it was unpacked.
pub(crate) fn settle(
    snapshots: &OwnedFd,
    id: SnapshotId,
    below: Vec<SnapshotId>,
    pending: Pending,
    moves: Vec<Move>,
) -> Result<Settled, ApplyError> {
    let root_path = LayerPath::default();
    let lower = Stack::new(snapshots, below.clone());
    let root = lower.root_of(id).map_err(at("open", &root_path))?;
    let merged = Stack::new(snapshots, std::iter::once(id).chain(below).collect());
    let snapshot =
        open_dir(snapshots, id.to_string().as_bytes()).map_err(at("open", &root_path))?;
    let mut settling = Settling {
        id,
        root,
        lower,
        merged,
        links: pending.links,
        grown: false,
        attic: Attic::new(snapshot, moves),
        copied: Vec::new(),
    };
    let mut implied: BTreeSet<LayerPath> = pending.implied.into_iter().collect();
    // A parent sorts before what is below it, so it is settled first.
    while let Some(path) = implied.pop_first() {
        if let Some(target) = settling.directory(&path)? {
            implied = implied
                .into_iter()
                .map(|other| other.rebased(&path, &target).unwrap_or(other))
                .collect();
        }
    }
    for (link, target) in std::mem::take(&mut settling.links) {
        settling.hard_link(&link, &target)?;
    }
    Ok(Settled {
        grown: settling.grown,
        moves: settling.attic.into_moves(),
        copied: settling.copied,
    })
}

struct Settling<'a> {
    id: SnapshotId,
    root: OwnedFd,
    /// The layers below.
    lower: Stack<'a>,
    /// This layer and those below.
    merged: Stack<'a>,
    links: Vec<(LayerPath, LayerPath)>,
    grown: bool,
    attic: Attic,
    copied: Vec<LayerPath>,
}

impl Settling<'_> {
    /// Settles one implied directory. Returns where its content went if it was only a way through
    /// a symbolic link.
    fn directory(&mut self, path: &LayerPath) -> Result<Option<LayerPath>, ApplyError> {
        match self.lower.lookup(path).map_err(at("look up below", path))? {
            Found::Directory(below) => {
                let dir = open_dir(&self.root, path.as_bytes());
                let dir = match dir {
                    Ok(dir) => dir,
                    // Replaced by what moved here.
                    Err(error) if is_not_a_directory(&error) => return Ok(None),
                    Err(error) => return Err(at("open", path)(error).into()),
                };
                read_open(&below)
                    .and_then(|metadata| apply_open(&dir, &metadata, true))
                    .map_err(at("copy metadata to", path))?;
                Ok(None)
            }
            Found::Other(node) if kind_of(&node.stat) == FileType::Symlink => {
                let moved = self.through_link(path, &node)?;
                if moved.is_none() {
                    self.give_time(path)?;
                }
                Ok(moved)
            }
            Found::Other(_) | Found::Nothing => self.give_time(path).map(|()| None),
        }
    }

    /// Gives a directory that nothing describes a time that does not depend on when it was made.
    fn give_time(&self, path: &LayerPath) -> Result<(), ApplyError> {
        match open_dir(&self.root, path.as_bytes()) {
            Ok(dir) => Ok(set_time(dir, Time::default()).map_err(at("set time of", path))?),
            // Replaced by what moved here.
            Err(error) if is_not_a_directory(&error) => Ok(()),
            Err(error) => Err(at("open", path)(error).into()),
        }
    }

    /// Moves the content of an implied directory to where the link below leads. A link that leads
    /// nowhere, or back, leaves the directory where it is.
    fn through_link(
        &mut self,
        path: &LayerPath,
        link: &Node,
    ) -> Result<Option<LayerPath>, ApplyError> {
        let target = readlinkat(&link.parent, &link.name[..], Vec::new())
            .map_err(|error| at("read symbolic link", path)(error.into()))?;
        let (directory, _) = path.split().expect("the root is never a symbolic link");
        let target = self.merged.resolve(&directory, target.as_bytes());
        let Some(target) = target.map_err(at("resolve symbolic link", path))? else {
            return Ok(None);
        };
        if target == *path || target.is_below(path) {
            return Ok(None);
        }
        let to = self.make_directories(&target)?;
        let from = open_dir(&self.root, path.as_bytes()).map_err(at("open", path))?;
        if is_opaque(&from).map_err(at("read", path))? {
            set_opaque(&to).map_err(at("mark as opaque", &target))?;
        }
        keeping_times(&to, |to| {
            move_content(from, to, path, &target, &mut self.attic)
        })
        .map_err(at("move", path))?;
        let (above, name) = path.split().expect("the root is never a symbolic link");
        let above = open_dir(&self.root, above.as_bytes()).map_err(at("open", &above))?;
        keeping_times(&above, |above| remove_tree(above, name)).map_err(at("remove", path))?;
        for (link, target_of_link) in &mut self.links {
            for name in [link, target_of_link] {
                if let Some(moved) = name.rebased(path, &target) {
                    *name = moved;
                }
            }
        }
        Ok(Some(target))
    }

    /// Makes sure that a directory of the merged view exists in this layer, and opens it.
    fn make_directories(&mut self, path: &LayerPath) -> Result<OwnedFd, ApplyError> {
        let mut at_path = LayerPath::default();
        let mut dir = open_dir(&self.root, b"").map_err(at("open", &at_path))?;
        for name in path.components() {
            at_path.push(name);
            let made = keeping_times(&dir, |dir| match mkdirat(dir, name, IMPLIED_MODE) {
                Ok(()) => Ok(true),
                Err(Errno::EXIST) => Ok(false),
                Err(error) => Err(error.into()),
            });
            let made = made.map_err(at("create directory", &at_path))?;
            dir = open_dir(&dir, name).map_err(at("open", &at_path))?;
            if made {
                self.grown = true;
                give_to_root(&dir).map_err(at("set owner and mode of", &at_path))?;
                let below = self
                    .lower
                    .lookup(&at_path)
                    .map_err(at("look up below", &at_path))?;
                if let Found::Directory(below) = below {
                    read_open(&below)
                        .and_then(|metadata| apply_open(&dir, &metadata, true))
                        .map_err(at("copy metadata to", &at_path))?;
                }
            }
        }
        Ok(dir)
    }

    fn hard_link(&mut self, link: &LayerPath, target: &LayerPath) -> Result<(), ApplyError> {
        let refused = |reason| ApplyError::Entry {
            path: link.shown(),
            reason,
        };
        let (directory, name) = target.split().expect("plan refuses the root");
        let failed = || at("look up", target);
        let root = LayerPath::default();
        let directory = self
            .merged
            .resolve(&root, directory.as_bytes())
            .map_err(failed())?;
        let directory = directory.ok_or_else(|| refused("hard link target does not exist"))?;
        let canonical = directory.join(name);
        let node = match self.merged.lookup(&canonical).map_err(failed())? {
            Found::Nothing => return Err(refused("hard link target does not exist")),
            Found::Directory(_) => return Err(refused("hard link target is a directory")),
            Found::Other(node) => node,
        };
        let dir = self.make_directories(&directory)?;
        if node.layer != self.id {
            keeping_times(&dir, |dir| {
                let (kind, device) = (kind_of(&node.stat), node.stat.st_rdev);
                copy_node(&node.parent, &node.name, kind, device, dir)
            })
            .map_err(at("copy up from a lower layer", &canonical))?;
            self.grown = true;
            self.copied.push(canonical.clone());
        }
        if *link == canonical {
            return Ok(());
        }
        let (link_directory, link_name) = link.split().expect("plan refuses the root");
        let to = open_dir(&self.root, link_directory.as_bytes());
        let to = to.map_err(at("open", &link_directory))?;
        keeping_times(&to, |to| {
            Ok(linkat(&dir, name, to, link_name, AtFlags::empty())?)
        })
        .map_err(at("create hard link", link))?;
        Ok(())
    }
}

/// Moves everything from one directory of a layer to another. What the archive described wins
/// over what is at the destination; directories merge.
fn move_content(
    from: OwnedFd,
    to: &OwnedFd,
    from_path: &LayerPath,
    to_path: &LayerPath,
    attic: &mut Attic,
) -> io::Result<()> {
    // Depth is bounded by the limit on paths, so the descriptors held are too.
    for name in names_raw(&from)? {
        let name = &name[..];
        let (source, target) = (from_path.join(name), to_path.join(name));
        match renameat_with(&from, name, to, name, RenameFlags::NOREPLACE) {
            Ok(()) => {
                attic.moved(source, target);
                continue;
            }
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let is_directory = |dir: &OwnedFd| -> io::Result<bool> {
            let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
            Ok(kind_of(&stat) == FileType::Directory)
        };
        if is_directory(&from)? && is_directory(to)? {
            let inner = open_dir(&from, name)?;
            keeping_times(&open_dir(to, name)?, |to| {
                move_content(inner, to, &source, &target, attic)
            })?;
        } else {
            attic.clear(to, name, &target, u64::MAX)?;
            renameat_with(&from, name, to, name, RenameFlags::NOREPLACE)?;
            attic.moved(source, target);
        }
    }
    Ok(())
}
