//! Looking things up in a stack of layer directories as overlayfs would show it, without mounting
//! it: whiteouts and opaque directories are honoured, symbolic links are taken inside the stack.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, openat, readlinkat, statat};
use rustix::io::Errno;

use super::apply::LINKS_MAX;
use super::attributes::is_opaque;
use super::entry::LayerPath;
use crate::confined::{is_whiteout, kind_of, open_dir};
use crate::snapshot::kind::SnapshotId;

/// Layers, top first, as directories `<id>/fs` below `snapshots`. Opened one at a time, since a
/// stack may have more layers than a process has descriptors to spare.
#[derive(Debug)]
pub(crate) struct Stack<'a> {
    snapshots: &'a OwnedFd,
    layers: Vec<SnapshotId>,
}

/// What a path is in the merged view.
#[derive(Debug)]
pub(crate) enum Found {
    Nothing,
    /// A directory; the topmost of those that merge, open for reading.
    Directory(OwnedFd),
    /// Anything else.
    Other(Node),
}

/// A file, link or device found in a layer.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) layer: SnapshotId,
    pub(crate) parent: OwnedFd,
    pub(crate) name: Vec<u8>,
    pub(crate) stat: Stat,
}

impl<'a> Stack<'a> {
    pub(crate) fn new(snapshots: &'a OwnedFd, layers: Vec<SnapshotId>) -> Self {
        Self { snapshots, layers }
    }

    /// Opens the root of a layer.
    pub(crate) fn root_of(&self, layer: SnapshotId) -> io::Result<OwnedFd> {
        open_dir(self.snapshots, format!("{layer}/fs").as_bytes())
    }

    /// Looks `path` up. No component is followed as a symbolic link.
    pub(crate) fn lookup(&self, path: &LayerPath) -> io::Result<Found> {
        let names: Vec<&[u8]> = path.components().collect();
        for &layer in &self.layers {
            match self.lookup_in(layer, &names)? {
                InLayer::Here(found) => return Ok(found),
                InLayer::Hidden => return Ok(Found::Nothing),
                InLayer::LookBelow => {}
            }
        }
        Ok(Found::Nothing)
    }

    fn lookup_in(&self, layer: SnapshotId, names: &[&[u8]]) -> io::Result<InLayer> {
        let mut dir = self.root_of(layer)?;
        let mut hides_below = false;
        for (position, &name) in names.iter().enumerate() {
            let stat = match statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) if hides_below => return Ok(InLayer::Hidden),
                Err(Errno::NOENT) => return Ok(InLayer::LookBelow),
                Err(error) => return Err(error.into()),
            };
            if is_whiteout(&stat) {
                return Ok(InLayer::Hidden);
            }
            if kind_of(&stat) != FileType::Directory {
                if position + 1 < names.len() {
                    return Ok(InLayer::Hidden);
                }
                let node = Node {
                    layer,
                    parent: dir,
                    name: name.to_vec(),
                    stat,
                };
                return Ok(InLayer::Here(Found::Other(node)));
            }
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            dir = openat(&dir, name, flags, Mode::empty())?;
            hides_below |= is_opaque(&dir)?;
        }
        Ok(InLayer::Here(Found::Directory(dir)))
    }

    /// Returns the path without symbolic links that `path` means, read from directory `from`. The
    /// last component is followed too. `None` when something on the way is missing or no
    /// directory, or when there are too many links.
    pub(crate) fn resolve(&self, from: &LayerPath, path: &[u8]) -> io::Result<Option<LayerPath>> {
        let split = |path: &[u8]| -> Vec<Vec<u8>> {
            path.split(|&b| b == b'/')
                .rev()
                .map(<[u8]>::to_vec)
                .collect()
        };
        let start = if path.starts_with(b"/") {
            LayerPath::default()
        } else {
            from.clone()
        };
        let mut at = start;
        let mut todo = split(path);
        let mut links = 0;
        while let Some(name) = todo.pop() {
            match &name[..] {
                b"" | b"." => continue,
                b".." => {
                    at.pop();
                    continue;
                }
                _ => {}
            }
            let next = at.join(&name);
            match self.lookup(&next)? {
                Found::Nothing => return Ok(None),
                Found::Directory(_) => at = next,
                Found::Other(node) if kind_of(&node.stat) == FileType::Symlink => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Ok(None);
                    }
                    let target = readlinkat(&node.parent, &node.name[..], Vec::new())?;
                    if target.as_bytes().starts_with(b"/") {
                        at = LayerPath::default();
                    }
                    todo.extend(split(target.as_bytes()));
                }
                Found::Other(_) => return Ok(None),
            }
        }
        Ok(Some(at))
    }
}

/// What one layer says about a path.
enum InLayer {
    Here(Found),
    /// This layer makes sure that nothing below is seen.
    Hidden,
    LookBelow,
}
