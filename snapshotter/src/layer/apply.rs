//! Executes the actions of a layer below a directory descriptor, without looking at other layers.
//!
//! Nothing here follows a symbolic link out of the layer: parents are opened by openat2 without
//! links, or walked one component at a time with links taken back to the root of the layer, and
//! the last component is never followed. The parent kept between entries is a descriptor and is
//! dropped as soon as anything is replaced (CVE-2025-47290). What only lower layers can answer is
//! collected in [`Pending`] for `settle.rs`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Uid, linkat, makedev, mkdirat, mknodat, openat,
    readlinkat, statat, symlinkat,
};
use rustix::io::Errno;

use super::attic::Attic;
use super::attributes::{
    Direct, SetAttribute, apply_open_by, apply_unopenable_by, set_opaque_by, set_time,
};
use super::entry::{Action, LayerPath, Metadata, Node, plan};
use super::limits::Limits;
use super::moves::Move;
use super::pax::Time;
use super::skeleton::Recorder;
use super::sparse::Segment;
use super::tar::{TarError, TarReader};
use crate::confined::{is_whiteout, kind_of, open_dir, open_dir_path};
use crate::error::{ErrorClass, PathError};

/// How many symbolic links one path may lead through, as in the kernel (path_resolution(7)).
pub(crate) const LINKS_MAX: u32 = 40;
/// Permissions of a directory nobody described.
pub(crate) const IMPLIED_MODE: Mode = Mode::from_raw_mode(0o755);
/// Runs of zeros of at least this many bytes become holes.
const HOLE_MIN: usize = 64 * 1024;

/// Why a layer could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The archive is not valid, not supported or beyond a limit.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// An entry cannot be made for what the layer has there.
    #[error("layer entry \"{path}\": {reason}")]
    Entry {
        /// Path inside the layer, cut and escaped.
        path: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The unpack process told of one of these.
    #[error("{reason}")]
    Told {
        /// What it means.
        class: ErrorClass,
        /// The failure with its causes, cut and escaped.
        reason: String,
    },
    /// A system call failed.
    #[error(transparent)]
    Path(#[from] PathError),
}

impl ApplyError {
    /// Returns the class.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Tar(error) => error.class(),
            Self::Entry { .. } => ErrorClass::InvalidArgument,
            Self::Told { class, .. } => *class,
            Self::Path(error) => error.class(),
        }
    }
}

/// Questions to the layers below, answered when the layer is committed.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    /// Directories without an entry of their own; by path, parents first.
    pub(crate) implied: Vec<LayerPath>,
    /// Hard links to files this layer does not have, in the order of the archive.
    pub(crate) links: Vec<(LayerPath, LayerPath)>,
}

/// What applying a layer left to know.
#[derive(Debug)]
pub(crate) struct Applied {
    pub(crate) pending: Pending,
    /// The root hides all lower layers. Overlayfs ignores the attribute there.
    pub(crate) opaque_root: bool,
    /// Where content went that the archive itself replaced.
    pub(crate) moves: Vec<Move>,
}

/// Whether files get their content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    Written,
    /// Files have their size and nothing in it: for a look at everything else.
    Outlined,
}

/// What is known about a directory of the layer.
#[derive(Debug, Clone, Copy)]
enum Known {
    Implied,
    Described(Time),
}

/// A directory in which an entry is made.
#[derive(Debug, Clone)]
struct Parent {
    fd: Arc<OwnedFd>,
    /// Its path without symbolic links.
    path: LayerPath,
}

/// Applies one layer.
#[derive(Debug)]
pub(crate) struct Applier<'a> {
    root: Arc<OwnedFd>,
    limits: Limits,
    directories: BTreeMap<LayerPath, Known>,
    links: BTreeMap<LayerPath, (usize, LayerPath)>,
    links_seen: usize,
    remembered: usize,
    /// The parent of the last entry, by the path the archive used.
    last_parent: Option<(LayerPath, Parent)>,
    opaque_root: bool,
    content: Content,
    attic: Attic,
    /// Files with content before the current entry.
    payloads: u64,
    attributes: Box<dyn SetAttribute + 'a>,
}

impl<'a> Applier<'a> {
    /// Starts in a snapshot directory with an empty directory `fs`.
    pub(crate) fn new(
        snapshot: OwnedFd,
        limits: Limits,
        content: Content,
    ) -> Result<Self, ApplyError> {
        let root = open_dir(&snapshot, b"fs").map_err(at("open", &LayerPath::default()))?;
        let directories = BTreeMap::from([(LayerPath::default(), Known::Implied)]);
        Ok(Self {
            root: Arc::new(root),
            limits,
            directories,
            links: BTreeMap::new(),
            links_seen: 0,
            remembered: 0,
            last_parent: None,
            opaque_root: false,
            content,
            attic: Attic::new(snapshot, Vec::new()),
            payloads: 0,
            attributes: Box::new(Direct),
        })
    }

    /// Lets somebody else set the attributes.
    pub(crate) fn with_attributes(mut self, attributes: Box<dyn SetAttribute + 'a>) -> Self {
        self.attributes = attributes;
        self
    }

    /// Applies all entries of an archive.
    pub(crate) fn run<R: BufRead>(
        mut self,
        archive: &mut TarReader<Recorder<R>>,
    ) -> Result<Applied, ApplyError> {
        while let Some(entry) = archive.next_entry()? {
            self.payloads = archive.recorder().payloads();
            match plan(entry, &self.limits)? {
                Action::Directory { path, metadata } => self.directory(&path, &metadata)?,
                Action::File {
                    path,
                    metadata,
                    size,
                    sparse,
                } => {
                    let (mut file, place) = self.new_file(&path)?;
                    let whole = [Segment {
                        offset: 0,
                        length: size,
                    }];
                    let segments = sparse.as_deref().unwrap_or(&whole);
                    match self.content {
                        Content::Written => {
                            write_content(&mut file, archive, size, segments, &path)?;
                        }
                        Content::Outlined => skip_content(&file, archive, size, &path)?,
                    }
                    archive.recorder().content_is_at(&place, segments);
                    apply_open_by(&*self.attributes, &file, &metadata, true)
                        .map_err(at("set metadata of", &path))?;
                }
                Action::Symlink {
                    path,
                    target,
                    metadata,
                } => {
                    self.make(&path, "create symbolic link", |dir, name| {
                        symlinkat(&target[..], dir, name)
                    })
                    .and_then(|parent| self.describe(&parent, &path, &metadata, true))?;
                }
                Action::Node {
                    path,
                    node,
                    metadata,
                } => {
                    let (kind, device) = match node {
                        Node::CharDevice(major, minor) => {
                            (FileType::CharacterDevice, makedev(major, minor))
                        }
                        Node::BlockDevice(major, minor) => {
                            (FileType::BlockDevice, makedev(major, minor))
                        }
                        Node::Fifo => (FileType::Fifo, 0),
                    };
                    self.make(&path, "create node", |dir, name| {
                        mknodat(dir, name, kind, Mode::from_raw_mode(0o600), device)
                    })
                    .and_then(|parent| self.describe(&parent, &path, &metadata, false))?;
                }
                Action::HardLink { path, target } => self.hard_link(&path, &target)?,
                Action::Whiteout { path } => self.whiteout(&path)?,
                Action::Opaque { directory } => self.opaque(&directory)?,
                Action::Nothing => {}
            }
        }
        self.finish()
    }

    fn finish(self) -> Result<Applied, ApplyError> {
        let mut pending = Pending::default();
        for (path, known) in self.directories {
            match known {
                Known::Implied => pending.implied.push(path),
                Known::Described(mtime) => open_dir(&*self.root, path.as_bytes())
                    .and_then(|fd| set_time(fd, mtime))
                    .map_err(at("set time of", &path))?,
            }
        }
        let mut links: Vec<_> = self.links.into_iter().collect();
        links.sort_by_key(|(_, (order, _))| *order);
        pending.links = links
            .into_iter()
            .map(|(link, (_, target))| (link, target))
            .collect();
        Ok(Applied {
            pending,
            opaque_root: self.opaque_root,
            moves: self.attic.into_moves(),
        })
    }

    fn directory(&mut self, path: &LayerPath, metadata: &Metadata) -> Result<(), ApplyError> {
        let (fd, path) = if path.is_root() {
            (
                open_dir(&*self.root, b"").map_err(at("open", path))?,
                path.clone(),
            )
        } else {
            let (parent, name) = self.parent(path)?;
            let canonical = parent.path.join(&name);
            self.links.remove(&canonical);
            let mut made = mkdirat(&*parent.fd, &name[..], Mode::from_raw_mode(0o700));
            let mut fresh_over_file = false;
            if made == Err(Errno::EXIST) && self.clear_unless_directory(&parent, &name)? {
                // Order: what stood here replaced the lower directory, which must not reappear.
                fresh_over_file = true;
                made = mkdirat(&*parent.fd, &name[..], Mode::from_raw_mode(0o700));
            }
            if !matches!(made, Ok(()) | Err(Errno::EXIST)) {
                made.map_err(|error| at("create directory", path)(error.into()))?;
            }
            let fd = open_dir(&*parent.fd, &name).map_err(at("open", path))?;
            if fresh_over_file {
                set_opaque_by(&*self.attributes, &fd).map_err(at("mark as opaque", path))?;
            }
            (fd, canonical)
        };
        apply_open_by(&*self.attributes, &fd, metadata, false)
            .map_err(at("set metadata of", &path))?;
        self.remember(path, Known::Described(metadata.mtime))
    }

    /// Makes a file and returns it with its path without symbolic links.
    fn new_file(&mut self, path: &LayerPath) -> Result<(File, LayerPath), ApplyError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let mut opened = None;
        let parent = self.make(path, "create", |dir, name| {
            let mode = Mode::from_raw_mode(0o600);
            opened = Some(openat(dir, name, flags | OFlags::CLOEXEC, mode)?);
            Ok(())
        })?;
        let (_, name) = path.split().expect("plan refuses a file as the root");
        let file = opened.expect("make returns only after the file was opened");
        Ok((File::from(file), parent.path.join(name)))
    }

    /// Makes one entry; what this layer already has under that name goes away first.
    fn make(
        &mut self,
        path: &LayerPath,
        action: &'static str,
        mut create: impl FnMut(&OwnedFd, &[u8]) -> rustix::io::Result<()>,
    ) -> Result<Parent, ApplyError> {
        let (parent, name) = self.parent(path)?;
        if !self.links.is_empty() {
            self.links.remove(&parent.path.join(&name));
        }
        let mut made = create(&parent.fd, &name);
        if made == Err(Errno::EXIST) {
            self.clear(&parent, &name)?;
            made = create(&parent.fd, &name);
        }
        made.map_err(|error| at(action, path)(error.into()))?;
        Ok(parent)
    }

    fn describe(
        &self,
        parent: &Parent,
        path: &LayerPath,
        metadata: &Metadata,
        is_symlink: bool,
    ) -> Result<(), ApplyError> {
        let (_, name) = path.split().expect("the root is always a directory");
        apply_unopenable_by(&*self.attributes, &*parent.fd, name, metadata, is_symlink)
            .map_err(at("set metadata of", path))
            .map_err(ApplyError::from)
    }

    fn hard_link(&mut self, path: &LayerPath, target: &LayerPath) -> Result<(), ApplyError> {
        let refused = |reason| ApplyError::Entry {
            path: path.shown(),
            reason,
        };
        let (target_parent, target_name) = target.split().expect("plan refuses the root");
        let found = match self.resolve(&target_parent, false)? {
            Some(parent) => match statat(&*parent.fd, target_name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => Some((parent, stat)),
                Err(Errno::NOENT) => None,
                Err(error) => return Err(at("look up", target)(error.into()).into()),
            },
            None => None,
        };
        let Some((source, stat)) = found else {
            // Only a layer below can have it. The parent has to exist by then.
            let (parent, name) = self.parent(path)?;
            let canonical = parent.path.join(&name);
            self.clear(&parent, &name)?;
            self.charge(canonical.as_bytes().len() + target.as_bytes().len())?;
            self.links_seen += 1;
            self.links
                .insert(canonical, (self.links_seen, target.clone()));
            return Ok(());
        };
        if is_whiteout(&stat) {
            return Err(refused("hard link target is removed by this layer"));
        }
        if kind_of(&stat) == FileType::Directory {
            return Err(refused("hard link target is a directory"));
        }
        // A link to itself would be removed before it is made.
        let (parent, name) = self.parent(path)?;
        if parent.path == source.path && name == target_name {
            return Ok(());
        }
        self.make(path, "create hard link", |dir, name| {
            linkat(&*source.fd, target_name, dir, name, AtFlags::empty())
        })?;
        Ok(())
    }

    /// Hides a name of lower layers. What this layer itself has under the name stays (OCI image
    /// specification, layer, "Whiteouts"), but no longer merges with anything below.
    fn whiteout(&mut self, path: &LayerPath) -> Result<(), ApplyError> {
        let (parent, name) = self.parent(path)?;
        if self.links.contains_key(&parent.path.join(&name)) {
            return Ok(());
        }
        let no_mode = Mode::empty();
        match mknodat(
            &*parent.fd,
            &name[..],
            FileType::CharacterDevice,
            no_mode,
            makedev(0, 0),
        ) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => match open_dir(&*parent.fd, &name) {
                Ok(dir) => Ok(
                    set_opaque_by(&*self.attributes, dir).map_err(at("mark as opaque", path))?
                ),
                Err(error) if is_not_a_directory(&error) => Ok(()),
                Err(error) => Err(at("open", path)(error).into()),
            },
            Err(error) => Err(at("create whiteout", path)(error.into()).into()),
        }
    }

    fn opaque(&mut self, directory: &LayerPath) -> Result<(), ApplyError> {
        let parent = self
            .resolve(directory, true)?
            .expect("resolving with creation always yields a directory");
        if parent.path.is_root() {
            self.opaque_root = true;
            return Ok(());
        }
        open_dir(&*parent.fd, b"")
            .and_then(|dir| set_opaque_by(&*self.attributes, dir))
            .map_err(at("mark as opaque", directory))
            .map_err(ApplyError::from)
    }

    /// Opens the directory an entry goes to and returns it with the entry's name.
    fn parent(&mut self, path: &LayerPath) -> Result<(Parent, Vec<u8>), ApplyError> {
        let (directory, name) = path
            .split()
            .expect("the root has no parent and is never made");
        let name = name.to_vec();
        if let Some((known, parent)) = &self.last_parent
            && *known == directory
        {
            return Ok((parent.clone(), name));
        }
        let parent = self
            .resolve(&directory, true)?
            .expect("resolving with creation always yields a directory");
        self.last_parent = Some((directory, parent.clone()));
        Ok((parent, name))
    }

    /// Finds the directory `path` means inside the layer, through the layer's own symbolic links.
    /// What is missing is made, or answered with `None`.
    fn resolve(&mut self, path: &LayerPath, create: bool) -> Result<Option<Parent>, ApplyError> {
        match open_dir_path(&*self.root, path.as_bytes()) {
            Ok(fd) => {
                return Ok(Some(Parent {
                    fd: Arc::new(fd),
                    path: path.clone(),
                }));
            }
            Err(error) if is_not_a_directory(&error) => {}
            Err(error) => return Err(at("open", path)(error).into()),
        }
        self.walk(path, create)
    }

    fn walk(&mut self, path: &LayerPath, create: bool) -> Result<Option<Parent>, ApplyError> {
        let refused = |reason| ApplyError::Entry {
            path: path.shown(),
            reason,
        };
        let top = Parent {
            fd: self.root.clone(),
            path: LayerPath::default(),
        };
        let mut at_dir = top.clone();
        let mut links = 0;
        let mut todo: Vec<Vec<u8>> = path.components().rev().map(<[u8]>::to_vec).collect();
        while let Some(name) = todo.pop() {
            match &name[..] {
                b"" | b"." => continue,
                b".." => {
                    at_dir.path.pop();
                    let fd = open_dir_path(&*self.root, at_dir.path.as_bytes());
                    at_dir.fd = Arc::new(fd.map_err(at("open", &at_dir.path))?);
                    continue;
                }
                _ => {}
            }
            let stat = match statat(&*at_dir.fd, &name[..], AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => Some(stat),
                Err(Errno::NOENT) => None,
                Err(error) => return Err(at("look up", path)(error.into()).into()),
            };
            match stat.as_ref().map(kind_of) {
                Some(FileType::Directory) => {}
                Some(FileType::Symlink) => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(refused("leads through too many symbolic links"));
                    }
                    let target = readlinkat(&*at_dir.fd, &name[..], Vec::new())
                        .map_err(|error| at("read symbolic link in", path)(error.into()))?;
                    let target = target.as_bytes();
                    if target.starts_with(b"/") {
                        at_dir = top.clone();
                    }
                    todo.extend(target.split(|&b| b == b'/').rev().map(<[u8]>::to_vec));
                    continue;
                }
                Some(_) if !stat.as_ref().is_some_and(is_whiteout) => {
                    if create {
                        return Err(refused("lies below something that is not a directory"));
                    }
                    return Ok(None);
                }
                _ if !create => return Ok(None),
                found => self.make_implied(&at_dir, &name, found.is_some())?,
            }
            at_dir.path.push(&name);
            if at_dir.path.as_bytes().len() > self.limits.path_bytes {
                return Err(refused("is too long after following symbolic links"));
            }
            let fd = open_dir_path(&*at_dir.fd, &name).map_err(at("open", &at_dir.path))?;
            at_dir.fd = Arc::new(fd);
        }
        Ok(Some(at_dir))
    }

    /// Makes a directory the archive has no entry for (yet). Over a whiteout it hides what the
    /// whiteout hid.
    fn make_implied(
        &mut self,
        parent: &Parent,
        name: &[u8],
        over_whiteout: bool,
    ) -> Result<(), ApplyError> {
        let path = parent.path.join(name);
        if over_whiteout {
            self.clear(parent, name)?;
        }
        mkdirat(&*parent.fd, name, IMPLIED_MODE)
            .map_err(|error| at("create directory", &path)(error.into()))?;
        let fd = open_dir(&*parent.fd, name).map_err(at("open", &path))?;
        give_to_root(&fd).map_err(at("set owner and mode of", &path))?;
        if over_whiteout {
            set_opaque_by(&*self.attributes, &fd).map_err(at("mark as opaque", &path))?;
        }
        self.remember(path, Known::Implied)
    }

    fn remember(&mut self, path: LayerPath, known: Known) -> Result<(), ApplyError> {
        let length = path.as_bytes().len();
        if self.directories.insert(path, known).is_none() {
            self.charge(length)?;
        }
        Ok(())
    }

    /// Counts what has to stay in memory until the layer is committed.
    fn charge(&mut self, bytes: usize) -> Result<(), ApplyError> {
        // What a map entry costs besides its key: twice its size, since nodes of a map are half full, and what
        // the allocator adds.
        const OVERHEAD: usize = 128;
        self.remembered += bytes + OVERHEAD;
        if self.remembered > self.limits.remembered_bytes {
            let limit = self.limits.remembered_bytes as u64;
            let what = "bytes of directory and link names";
            return Err(TarError::Limit { what, limit }.into());
        }
        Ok(())
    }

    /// Removes what this layer has under a name unless it is a directory; returns whether it did.
    fn clear_unless_directory(&mut self, parent: &Parent, name: &[u8]) -> Result<bool, ApplyError> {
        let path = parent.path.join(name);
        match statat(&*parent.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if kind_of(&stat) == FileType::Directory => Ok(false),
            Ok(_) => {
                self.put_aside(parent, name, &path)?;
                Ok(true)
            }
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(at("look up", &path)(error.into()).into()),
        }
    }

    /// Takes a name out of the layer. Its content is kept beside the layer, since the archive has it.
    fn put_aside(
        &mut self,
        parent: &Parent,
        name: &[u8],
        path: &LayerPath,
    ) -> Result<(), ApplyError> {
        self.last_parent = None;
        let cleared = self.attic.clear(&*parent.fd, name, path, self.payloads);
        if cleared.map_err(at("replace", path))? {
            self.charge(path.as_bytes().len())?;
        }
        Ok(())
    }

    /// Removes whatever this layer has under a name, and what was known about it.
    fn clear(&mut self, parent: &Parent, name: &[u8]) -> Result<(), ApplyError> {
        let path = parent.path.join(name);
        self.put_aside(parent, name, &path)?;
        self.links.remove(&path);
        if self.directories.remove(&path).is_some() {
            forget_below(&mut self.directories, &path);
            forget_below(&mut self.links, &path);
        }
        Ok(())
    }
}

/// Makes a directory that nothing describes root's: mkdir is subject to the umask, and takes the group and the
/// set-group-id bit of a directory that has it.
pub(crate) fn give_to_root(directory: &OwnedFd) -> io::Result<()> {
    let root = (Some(Uid::ROOT), Some(Gid::ROOT));
    rustix::fs::fchown(directory, root.0, root.1)?;
    Ok(rustix::fs::fchmod(directory, IMPLIED_MODE)?)
}

/// Drops what is known about everything below a directory.
fn forget_below<T>(map: &mut BTreeMap<LayerPath, T>, directory: &LayerPath) {
    let below: Vec<LayerPath> = map
        .range(directory.first_below()..)
        .map(|(path, _)| path)
        .take_while(|path| path.is_below(directory))
        .cloned()
        .collect();
    for path in below {
        map.remove(&path);
    }
}

/// Copies the content of the current entry into a file. Zeros become holes.
fn write_content<R: BufRead>(
    file: &mut File,
    archive: &mut TarReader<Recorder<R>>,
    size: u64,
    segments: &[Segment],
    path: &LayerPath,
) -> Result<(), ApplyError> {
    let mut written_to = 0;
    let mut position = 0;
    for segment in segments {
        let mut left = segment.length;
        if position != segment.offset {
            position = segment.offset;
            file.seek(SeekFrom::Start(position))
                .map_err(at("seek in", path))?;
        }
        while left > 0 {
            let piece = archive.content()?;
            let amount = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            if amount == 0 {
                return Err(cut_off(path));
            }
            let piece = &piece[..amount];
            let step = i64::try_from(amount).expect("a buffer is smaller than i64::MAX");
            if amount >= HOLE_MIN && is_zero(piece) {
                file.seek(SeekFrom::Current(step))
                    .map_err(at("seek in", path))?;
            } else {
                file.write_all(piece).map_err(at("write", path))?;
                written_to = position + amount as u64;
            }
            archive.take_content(amount)?;
            position += amount as u64;
            left -= amount as u64;
        }
    }
    if written_to < size {
        file.set_len(size).map_err(at("set size of", path))?;
    }
    Ok(())
}

/// Gives a file the size of the current entry and passes over the content.
fn skip_content<R: BufRead>(
    file: &File,
    archive: &mut TarReader<Recorder<R>>,
    size: u64,
    path: &LayerPath,
) -> Result<(), ApplyError> {
    file.set_len(size).map_err(at("set size of", path))?;
    loop {
        let amount = archive.content()?.len();
        if amount == 0 {
            return Ok(());
        }
        archive.take_content(amount)?;
    }
}

fn cut_off(path: &LayerPath) -> ApplyError {
    ApplyError::Entry {
        path: path.shown(),
        reason: "content is cut off",
    }
}

/// Tells whether a buffer is all zeros, comparing word by word.
fn is_zero(bytes: &[u8]) -> bool {
    let (chunks, rest) = bytes.as_chunks::<16>();
    chunks.iter().all(|chunk| u128::from_ne_bytes(*chunk) == 0) && rest.iter().all(|&b| b == 0)
}

/// Wraps an I/O error with what was attempted on which path of the layer.
pub(crate) fn at(action: &'static str, path: &LayerPath) -> impl FnOnce(io::Error) -> PathError {
    let path = path.shown();
    move |source| PathError {
        action,
        path,
        source,
    }
}

/// Tells whether a path did not lead to a directory through directories only.
pub(crate) fn is_not_a_directory(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG)
    )
}
