//! Sets aside what an entry of an archive replaces, so that the archive can be made again, and keeps the list
//! of what moved where.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, mkdirat, renameat, statat, unlinkat};
use rustix::io::Errno;

use super::entry::LayerPath;
use super::moves::{ASIDE, Move, Target};
use crate::confined::{kind_of, open_dir};

/// What was set aside of one layer.
#[derive(Debug)]
pub(crate) struct Attic {
    snapshot: OwnedFd,
    aside: Option<OwnedFd>,
    next: u64,
    moves: Vec<Move>,
}

impl Attic {
    /// Goes on with a layer of which this moved so far, in its snapshot directory.
    pub(crate) fn new(snapshot: OwnedFd, moves: Vec<Move>) -> Self {
        let numbers = moves.iter().filter_map(|made| match made.to {
            Target::Aside(number) => Some(number + 1),
            Target::Files(_) => None,
        });
        let next = numbers.max().unwrap_or(0);
        Self {
            snapshot,
            aside: None,
            next,
            moves,
        }
    }

    /// Takes a name out of the layer: what has content, or may have it below, goes aside, the rest is deleted.
    /// `path` is what the layer calls it; files with content from number `before` on are not concerned. Answers
    /// whether something was there.
    pub(crate) fn clear(
        &mut self,
        parent: impl AsFd,
        name: &[u8],
        path: &LayerPath,
        before: u64,
    ) -> io::Result<bool> {
        let stat = match statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let has_content = match kind_of(&stat) {
            FileType::RegularFile => stat.st_size > 0,
            FileType::Directory => true,
            _ => false,
        };
        if !has_content {
            unlinkat(&parent, name, AtFlags::empty())?;
            return Ok(true);
        }
        let number = self.next;
        renameat(&parent, name, self.aside()?, number.to_string())?;
        self.next += 1;
        self.moves.push(Move {
            before,
            from: path.clone(),
            to: Target::Aside(number),
        });
        Ok(true)
    }

    /// Notes that a path of the layer is another one now.
    pub(crate) fn moved(&mut self, from: LayerPath, to: LayerPath) {
        self.moves.push(Move {
            before: u64::MAX,
            from,
            to: Target::Files(to),
        });
    }

    pub(crate) fn into_moves(self) -> Vec<Move> {
        self.moves
    }

    fn aside(&mut self) -> io::Result<&OwnedFd> {
        if self.aside.is_none() {
            match mkdirat(&self.snapshot, ASIDE, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            self.aside = Some(open_dir(&self.snapshot, ASIDE.as_bytes())?);
        }
        Ok(self.aside.as_ref().expect("opened above"))
    }
}
