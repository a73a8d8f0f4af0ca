//! Compares two trees entry by entry: names, types, owners, permissions, times, sizes, links, devices and
//! attributes. Content is compared where asked only; of the rest its archive knows.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, openat, readlinkat, statat};

use super::attributes::all_xattrs;
use super::entry::LayerPath;
use crate::confined::{is_whiteout, kind_of, open_beneath, open_dir};
use crate::store::names_raw;

/// Most differences that are named; more are counted.
const NAMED: usize = 32;
/// Bytes compared at a time.
const PIECE: usize = 64 * 1024;

/// How a tree differs from what it should be, named up to a bound.
#[derive(Debug, Default)]
pub(crate) struct Differences {
    pub(crate) named: Vec<String>,
    pub(crate) count: u64,
}

impl Differences {
    fn add(&mut self, path: &LayerPath, what: impl AsRef<str>) {
        self.count += 1;
        if self.named.len() < NAMED {
            self.named
                .push(format!("{}: {}", path.shown(), what.as_ref()));
        }
    }
}

/// Compares `found` with `expected`, both directories open for reading. The content of the files in
/// `with_content` is compared as well.
pub(crate) fn compare(
    found: &OwnedFd,
    expected: &OwnedFd,
    with_content: &[LayerPath],
) -> io::Result<Differences> {
    let mut comparison = Comparison {
        found,
        expected,
        differences: Differences::default(),
        linked: [HashMap::new(), HashMap::new()],
    };
    let root = LayerPath::default();
    let stats = [rustix::fs::fstat(found)?, rustix::fs::fstat(expected)?];
    comparison.same_stat(&root, &stats);
    comparison.same_xattrs(&root, [open_dir(found, b"")?, open_dir(expected, b"")?])?;
    // Directories by path, not by descriptor: their number is bounded by memory only.
    let mut todo = vec![root];
    while let Some(directory) = todo.pop() {
        comparison.directory(&directory, &mut todo)?;
    }
    for path in with_content {
        comparison.same_content(path)?;
    }
    Ok(comparison.differences)
}

struct Comparison<'a> {
    found: &'a OwnedFd,
    expected: &'a OwnedFd,
    differences: Differences,
    /// First path of each file with several names, in either tree.
    linked: [HashMap<(u64, u64), LayerPath>; 2],
}

impl Comparison<'_> {
    fn directory(&mut self, path: &LayerPath, todo: &mut Vec<LayerPath>) -> io::Result<()> {
        let dirs = [
            open_dir(self.found, path.as_bytes())?,
            open_dir(self.expected, path.as_bytes())?,
        ];
        let found: BTreeSet<Vec<u8>> = names_raw(&dirs[0])?.into_iter().collect();
        let expected: BTreeSet<Vec<u8>> = names_raw(&dirs[1])?.into_iter().collect();
        for name in found.difference(&expected) {
            self.differences
                .add(&path.join(name), "is not in the archive");
        }
        for name in expected.difference(&found) {
            self.differences.add(&path.join(name), "is missing");
        }
        for name in found.intersection(&expected) {
            let child = path.join(name);
            let stat = |dir: &OwnedFd| statat(dir, &name[..], AtFlags::SYMLINK_NOFOLLOW);
            let stats = [stat(&dirs[0])?, stat(&dirs[1])?];
            if !self.same_stat(&child, &stats) {
                continue;
            }
            let kind = kind_of(&stats[0]);
            if kind == FileType::Symlink {
                let target = |dir: &OwnedFd| readlinkat(dir, &name[..], Vec::new());
                if target(&dirs[0])? != target(&dirs[1])? {
                    self.differences.add(&child, "has another target");
                }
            }
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let open = |dir: &OwnedFd| openat(dir, &name[..], flags, Mode::empty());
            self.same_xattrs(&child, [open(&dirs[0])?, open(&dirs[1])?])?;
            self.same_links(&child, &stats);
            if kind == FileType::Directory {
                todo.push(child);
            }
        }
        Ok(())
    }

    /// Answers whether both are of one type.
    fn same_stat(&mut self, path: &LayerPath, [found, expected]: &[Stat; 2]) -> bool {
        if kind_of(found) != kind_of(expected) {
            self.differences.add(path, "is of another type");
            return false;
        }
        let kind = kind_of(found);
        let device = matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
        // The size of a directory is the file system's own.
        let is_sized = kind == FileType::RegularFile;
        let is_directory = kind == FileType::Directory;
        for (differs, what) in [
            (found.st_mode != expected.st_mode, "permissions"),
            (
                (found.st_uid, found.st_gid) != (expected.st_uid, expected.st_gid),
                "owner",
            ),
            (
                // An archive's whiteout has no time, and nobody sees one in a mount.
                !is_whiteout(expected)
                    && (found.st_mtime, found.st_mtime_nsec)
                        != (expected.st_mtime, expected.st_mtime_nsec),
                "time",
            ),
            (is_sized && found.st_size != expected.st_size, "size"),
            (device && found.st_rdev != expected.st_rdev, "device"),
            (
                !is_directory && found.st_nlink != expected.st_nlink,
                "number of links",
            ),
        ] {
            if differs {
                self.differences
                    .add(path, format!("{what} differ from the archive"));
            }
        }
        true
    }

    fn same_xattrs(&mut self, path: &LayerPath, nodes: [OwnedFd; 2]) -> io::Result<()> {
        if all_xattrs(&nodes[0])? != all_xattrs(&nodes[1])? {
            self.differences
                .add(path, "extended attributes differ from the archive");
        }
        Ok(())
    }

    /// Names of one file there have to be names of one file here.
    fn same_links(&mut self, path: &LayerPath, stats: &[Stat; 2]) {
        if kind_of(&stats[0]) == FileType::Directory || stats[1].st_nlink < 2 {
            return;
        }
        let mut firsts = Vec::new();
        for (linked, stat) in self.linked.iter_mut().zip(stats) {
            let first = linked
                .entry((stat.st_dev, stat.st_ino))
                .or_insert_with(|| path.clone());
            firsts.push(first.clone());
        }
        if firsts[0] != firsts[1] {
            self.differences.add(path, "is a link to another file");
        }
    }

    fn same_content(&mut self, path: &LayerPath) -> io::Result<()> {
        let open = |dir: &OwnedFd| {
            open_beneath(dir, path.as_bytes(), OFlags::RDONLY | OFlags::NONBLOCK).map(File::from)
        };
        // What is missing or of another type was told already.
        let (Ok(mut found), Ok(mut expected)) = (open(self.found), open(self.expected)) else {
            return Ok(());
        };
        let (mut here, mut there) = (Vec::new(), Vec::new());
        loop {
            here.clear();
            there.clear();
            (&mut found).take(PIECE as u64).read_to_end(&mut here)?;
            (&mut expected).take(PIECE as u64).read_to_end(&mut there)?;
            if here != there {
                self.differences
                    .add(path, "content differs from the layer below");
                return Ok(());
            }
            if here.is_empty() {
                return Ok(());
            }
        }
    }
}
