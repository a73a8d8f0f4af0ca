//! A part of a mounted image in a place of its own: looked up below the image's root by descriptors, so that no
//! name in the image leads anywhere else, and mounted from the descriptor that was found.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::{MountError, attach, unmount_one};
use crate::confined::kind_of;
use crate::error::{PathError, shown};

/// How often a look-up that raced with a rename elsewhere on the machine is tried again (openat2(2), EAGAIN).
const AGAIN_LIMIT: u32 = 32;

/// Takes the mount off `root` and mounts the directory or file `part` of it at `target` instead, which is made
/// and must not be there. After an error nothing is mounted at `target`; `root` stays as it was.
///
/// # Errors
/// `InvalidArgument` when the part leads out of the root or is neither a directory nor a regular file,
/// `NotFound` when it is not there.
pub fn mount_part(root: &Path, part: &str, target: &Path) -> Result<(), MountError> {
    let path_only = OFlags::PATH | OFlags::CLOEXEC;
    let failed = |what, error: Errno| PathError::new(what, root.display(), error);
    let top = openat(CWD, root, path_only | OFlags::DIRECTORY, Mode::empty())
        .map_err(|error| failed("open", error))?;
    let found = find(&top, part)?;
    let kind = kind_of(&fstat(&found).map_err(|error| failed("stat a part of", error))?);
    let made = match kind {
        FileType::Directory => fs::create_dir(target),
        FileType::RegularFile => fs::File::create_new(target).map(drop),
        _ => return Err(refused(part, "is neither a directory nor a regular file")),
    };
    made.map_err(|source| PathError::new("create", target.display(), source))?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(found.as_fd(), "", flags)
        .map_err(|error| failed("clone the mount of a part of", error))?;
    let place = openat(CWD, target, path_only | OFlags::NOFOLLOW, Mode::empty())
        .map_err(|error| PathError::new("open", target.display(), error))?;
    attach(&tree, &place).map_err(|error| PathError::new("mount on", target.display(), error))?;
    drop((found, top));
    // The part keeps the file system.
    unmount_one(root).map(drop)
}

fn find(top: &OwnedFd, part: &str) -> Result<OwnedFd, MountError> {
    // Links within the image are followed. One that leads out is refused, also where it would end inside if the
    // image were the root: what the user sees at that path elsewhere is not what he would get.
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let mut tries = 0;
    loop {
        match openat2(top, part, flags, Mode::empty(), resolve) {
            Ok(found) => return Ok(found),
            Err(Errno::AGAIN) if tries < AGAIN_LIMIT => tries += 1,
            Err(Errno::XDEV) => return Err(refused(part, "leads out of it")),
            Err(Errno::LOOP) => return Err(refused(part, "has too many links")),
            Err(error) => {
                let part = format!("{:?} of the image", shown(part.as_bytes()));
                return Err(PathError::new("open", part, error).into());
            }
        }
    }
}

fn refused(part: &str, reason: &'static str) -> MountError {
    MountError::Part {
        part: shown(part.as_bytes()),
        reason,
    }
}
