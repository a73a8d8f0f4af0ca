//! Containers as plain copies, for file systems on which overlayfs does not work: the layers are merged into a
//! container's directory when it is made. It takes time and space for each container, and needs nothing.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, SeekFrom, fstat, linkat, mkdirat, mknodat, openat, readlinkat,
    seek, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;

use crate::confined::{is_whiteout, kind_of, open_beneath, open_dir};
use crate::ids::{IdRanges, Owners};
use crate::layer::attributes::{
    apply_open, apply_unopenable, is_opaque, read_open, read_unopenable,
};
use crate::layer::entry::{LayerPath, Metadata};
use crate::mount::Mount;
use crate::overlay;
use crate::snapshotter::{Lowers, Snapshotter};
use crate::store::names_raw;
use crate::tree::remove_tree;

/// Copies layers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Copy;

impl Snapshotter for Copy {
    fn name(&self) -> &'static str {
        "copy"
    }

    fn layers_max(&self) -> usize {
        usize::MAX
    }

    fn fill(
        &self,
        container: &OwnedFd,
        below: &Lowers<'_>,
        owners: Owners<'_>,
    ) -> io::Result<Vec<u64>> {
        copy_all(container, below, owners.ranges())
    }

    fn mounts(&self, store: &Path, container: u64, below: &[u64]) -> Vec<Mount> {
        overlay::mounts(store, container, below)
    }
}

/// Copies layers into the directory of a container, into the hands of those whom `ids` names. It lies on nothing
/// then: the layers may go before it does.
pub(crate) fn copy_all(
    container: &OwnedFd,
    below: &Lowers<'_>,
    ids: Option<&IdRanges>,
) -> io::Result<Vec<u64>> {
    let files = open_dir(container, b"fs")?;
    if below.layers().is_empty() {
        rustix::fs::fchmod(&files, Mode::from_raw_mode(0o755))?;
        give_root(&files, ids)?;
    }
    for &layer in below.layers().iter().rev() {
        let from = below.open(layer)?;
        let mut merge = Merge {
            top: &files,
            ids,
            links: HashMap::new(),
        };
        merge.directory(&from, &files, &LayerPath::default())?;
        merge.apply(&files, read_open(&from)?)?;
    }
    Ok(Vec::new())
}

/// Gives a directory that belongs to root to the root user of `ids`.
pub(crate) fn give_root(directory: &OwnedFd, ids: Option<&IdRanges>) -> io::Result<()> {
    let Some(ids) = ids else { return Ok(()) };
    let mut metadata = read_open(directory)?;
    ids.shift(&mut metadata);
    apply_open(directory, &metadata, false)
}

/// One layer on its way into a container's directory.
struct Merge<'a> {
    top: &'a OwnedFd,
    /// Whom the copies are for, in place of whom the layer says.
    ids: Option<&'a IdRanges>,
    /// Where files with several names in this layer were put first, by inode.
    links: HashMap<u64, LayerPath>,
}

impl Merge<'_> {
    fn apply(&self, copy: &OwnedFd, mut metadata: Metadata) -> io::Result<()> {
        if let Some(ids) = self.ids {
            ids.shift(&mut metadata);
        }
        apply_open(copy, &metadata, true)
    }

    /// Merges what is below one directory. As deep as a path may be, with two descriptors each.
    fn directory(&mut self, from: &OwnedFd, to: &OwnedFd, at: &LayerPath) -> io::Result<()> {
        for name in names_raw(from)? {
            let name = &name[..];
            let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if is_whiteout(&stat) {
                remove_tree(to, name)?;
                continue;
            }
            let path = at.join(name);
            if kind_of(&stat) == FileType::Directory {
                let inner = open_dir(from, name)?;
                let hides = is_opaque(&inner)? || !is_directory(to, name)?;
                if hides {
                    remove_tree(to, name)?;
                    mkdirat(to, name, Mode::RWXU)?;
                }
                let copy = open_dir(to, name)?;
                self.directory(&inner, &copy, &path)?;
                // Order: the time of a directory changes with what is put into it.
                self.apply(&copy, read_open(&inner)?)?;
                continue;
            }
            remove_tree(to, name)?;
            if let Some((directory, first)) =
                self.links.get(&stat.st_ino).and_then(LayerPath::split)
            {
                let directory = open_dir(self.top, directory.as_bytes())?;
                linkat(&directory, first, to, name, AtFlags::empty())?;
                continue;
            }
            let node = Original {
                directory: from,
                name,
                kind: kind_of(&stat),
                device: stat.st_rdev,
            };
            node.copy(to, self.ids)?;
            if stat.st_nlink > 1 {
                self.links.insert(stat.st_ino, path);
            }
        }
        Ok(())
    }
}

fn is_directory(dir: &OwnedFd, name: &[u8]) -> io::Result<bool> {
    match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(kind_of(&stat) == FileType::Directory),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Anything but a directory.
struct Original<'a> {
    directory: &'a OwnedFd,
    name: &'a [u8],
    kind: FileType,
    /// Number of a device.
    device: u64,
}

impl Original<'_> {
    /// Copies it into another directory under its own name, with all metadata; `ids` says to whom, if not to its
    /// owner. The name must not be there.
    fn copy(&self, to: &OwnedFd, ids: Option<&IdRanges>) -> io::Result<()> {
        let shifted = |mut metadata: Metadata| {
            if let Some(ids) = ids {
                ids.shift(&mut metadata);
            }
            metadata
        };
        let (from, name) = (self.directory, self.name);
        match self.kind {
            FileType::RegularFile => {
                let source = open_beneath(from, name, OFlags::RDONLY | OFlags::NONBLOCK)?;
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
                let mode = Mode::from_raw_mode(0o600);
                let copy = openat(to, name, flags | OFlags::CLOEXEC, mode)?;
                let metadata = shifted(read_open(&source)?);
                let (source, mut copy) = (File::from(source), File::from(copy));
                copy_content(source, &mut copy)?;
                apply_open(&copy, &metadata, true)
            }
            kind => {
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let source = openat(from, name, flags, Mode::empty())?;
                let metadata = shifted(read_unopenable(&source)?);
                let is_symlink = kind == FileType::Symlink;
                if is_symlink {
                    let target = readlinkat(from, name, Vec::new())?;
                    symlinkat(target.as_c_str(), to, name)?;
                } else {
                    mknodat(to, name, kind, Mode::from_raw_mode(0o600), self.device)?;
                }
                apply_unopenable(to, name, &metadata, is_symlink)
            }
        }
        .inspect_err(|_| {
            // Ignored: what it was for is given up anyway; the first error is the one to tell.
            let _ = unlinkat(to, name, AtFlags::empty());
        })
    }
}

/// Copies anything but a directory into another directory under its own name, with all metadata. The name must
/// not be there.
pub(crate) fn copy_node(
    directory: &OwnedFd,
    name: &[u8],
    kind: FileType,
    device: u64,
    to: &OwnedFd,
) -> io::Result<()> {
    let original = Original {
        directory,
        name,
        kind,
        device,
    };
    original.copy(to, None)
}

/// Copies the content of a file and leaves its holes where they are.
fn copy_content(mut source: File, copy: &mut File) -> io::Result<()> {
    let size = u64::try_from(fstat(&source)?.st_size).unwrap_or(0);
    let mut at = 0;
    while at < size {
        let start = match seek(&source, SeekFrom::Data(at)) {
            Ok(start) => start,
            // lseek(2): no data after this.
            Err(Errno::NXIO) => break,
            // A file system without holes.
            Err(Errno::INVAL) => at,
            Err(error) => return Err(error.into()),
        };
        let end = seek(&source, SeekFrom::Hole(start)).unwrap_or(size);
        seek(&source, SeekFrom::Start(start))?;
        seek(&*copy, SeekFrom::Start(start))?;
        // Uses copy_file_range(2), which shares extents where the file system can.
        let piece = end.saturating_sub(start);
        let copied = io::copy(&mut io::Read::take(&mut source, piece), copy)?;
        if copied != piece {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        at = end;
    }
    copy.set_len(size)?;
    copy.flush()
}
