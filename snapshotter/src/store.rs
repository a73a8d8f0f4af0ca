//! The store as a whole: opening it, what is kept in memory about it, and leases.
//!
//! ```text
//! <root>/lock                              held while a store is open
//! <root>/content/blobs/<alg>/<hex>         whole, verified, durable
//! <root>/content/ingest/<chain>.<alg>.<hex>.part   compressed layer as far as it was received
//! <root>/content/boot                      the boot in which that was
//! <root>/measured                          what writable layers took when they were measured last
//! <root>/snapshots/<id>/fs                 files of a layer or of a container
//! <root>/snapshots/<id>/work               work directory of overlayfs, containers only
//! <root>/snapshots/meta/<id>.json          makes <id> exist
//! <root>/snapshots/meta/<id>.removing      <id> is being removed
//! <root>/snapshots/meta/<id>.condemned     <id> is a damaged layer; it goes when no container uses it
//! <root>/snapshots/<id>/skeleton           the layer's archive without the content of its files
//! <root>/snapshots/<id>/aside, moves       content the archive itself replaced, and what moved where
//! ```
//!
//! Invariant: a record appears after what it names is on disk and goes before it goes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{
    AtFlags, CWD, Dir, FlockOperation, Mode, OFlags, fchmod, flock, fstat, mkdirat, openat, statat,
    syncfs, unlinkat,
};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::confined::{open_beneath, open_dir};
use crate::content::digest::{Algorithm, Digest};
use crate::content::ingest;
use crate::durable::{SyncGroup, TMP_PREFIX};
use crate::error::{ErrorClass, PathError};
use crate::gc::Roots;
use crate::snapshot::chain::ChainId;
use crate::snapshot::kind::{ActiveRecord, LayerRecord, RECORD_MAX, Record, SnapshotId};
use crate::snapshot::measured;
use crate::snapshotter::{Choice, Chosen, Snapshotter, choose};
use crate::tree::{Usage, allocated, remove_tree};
use crate::worker::Worker;

/// Content, layers and snapshots below one root directory. Cheap to clone; all clones are the
/// same store.
#[derive(Clone)]
pub struct Store {
    pub(crate) shared: Arc<Shared>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("root", &self.shared.root)
            .finish_non_exhaustive()
    }
}

/// How a store works.
#[derive(Debug, Clone, Default)]
pub struct StoreOptions {
    /// The program that unpacks layers in a process of its own. Without one threads of this process do, which
    /// then parse what strangers wrote.
    pub worker: Option<Worker>,
    /// How the root file systems of containers are made.
    pub snapshotter: Choice,
}

/// What all clones of a store and its leases share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) root: PathBuf,
    pub(crate) top: OwnedFd,
    pub(crate) blobs: OwnedFd,
    pub(crate) ingest: OwnedFd,
    pub(crate) snapshots: OwnedFd,
    pub(crate) meta: OwnedFd,
    index: Mutex<Index>,
    syncs: SyncGroup,
    /// Who unpacks layers; `None` is threads of this process.
    pub(crate) worker: Option<Worker>,
    pub(crate) snapshotter: Box<dyn Snapshotter>,
    snapshotter_reason: String,
    /// What the file of a record takes.
    pub(crate) record_bytes: u64,
    /// Keeps a second process out.
    _lock: OwnedFd,
}

/// What is known about the disk. Small values only; no lock is held while files are written,
/// except for the unlink of a single blob.
#[derive(Debug, Default)]
pub(crate) struct Index {
    pub(crate) blobs: BTreeMap<Digest, u64>,
    pub(crate) layers: HashMap<ChainId, LayerRecord>,
    pub(crate) actives: HashMap<String, Active>,
    /// Layers being pulled, each from one blob. Two blobs may be on their way to one place.
    pub(crate) in_flight: HashMap<(ChainId, Digest), InFlight>,
    /// Sets kept by a [`Lease`].
    pub(crate) leases: HashMap<u64, Roots>,
    pub(crate) damaged: Vec<DamagedRecord>,
    /// What opening the store removed as unfinished.
    pub(crate) swept: Vec<String>,
    /// Layers that are out of use and wait for their removal: garbage collection could not remove them
    /// completely, or they are damaged and a container is still on them.
    pub(crate) doomed: Vec<LayerRecord>,
    /// Layers that were completely checked since the store was opened, and held (`share.rs`).
    pub(crate) proven: HashSet<SnapshotId>,
    /// Directories that this process is making and that have no record yet.
    pub(crate) making: BTreeMap<SnapshotId, Arc<Growing>>,
    /// Archives of images on their way in.
    pub(crate) spools: Vec<Weak<Growing>>,
    next_id: SnapshotId,
    next_lease: u64,
}

/// What a directory that is being made takes so far: at first the bytes its archive had until now, at last what
/// was measured.
#[derive(Debug, Default)]
pub(crate) struct Growing {
    bytes: AtomicU64,
    inodes: AtomicU64,
}

impl Growing {
    pub(crate) fn set_bytes(&self, bytes: u64) {
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn set(&self, usage: Usage) {
        self.bytes.store(usage.bytes, Ordering::Relaxed);
        self.inodes.store(usage.inodes, Ordering::Relaxed);
    }

    pub(crate) fn usage(&self) -> Usage {
        Usage {
            bytes: self.bytes.load(Ordering::Relaxed),
            inodes: self.inodes.load(Ordering::Relaxed),
        }
    }
}

/// What a layer being pulled needs kept.
#[derive(Debug, Clone)]
pub(crate) struct InFlight {
    pub(crate) parent: Option<ChainId>,
    /// How far its directory is, once there is one.
    pub(crate) growing: Option<Arc<Growing>>,
}

/// A container's snapshot and whether it can be used.
#[derive(Debug, Clone)]
pub(crate) struct Active {
    pub(crate) record: ActiveRecord,
    pub(crate) phase: ActivePhase,
    /// What it took when it was measured last.
    pub(crate) usage: Usage,
}

/// Where a container's snapshot is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ActivePhase {
    Preparing,
    Ready,
    Removing,
}

/// Something in the store that cannot be used. It is left on disk for the operator, out of the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedRecord {
    /// The file or directory, relative to the root of the store.
    pub path: String,
    /// What is wrong.
    pub reason: String,
}

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The root path has a character that overlay mount options cannot carry.
    #[error("store root {path:?} contains {character:?}, which overlay mount options cannot carry")]
    RootPath {
        /// The path.
        path: PathBuf,
        /// The first such character.
        character: char,
    },
    /// The root path is relative.
    #[error("store root {path:?} is not absolute")]
    Relative {
        /// The path.
        path: PathBuf,
    },
    /// The root directory belongs to somebody else, who could change it under us.
    #[error("store root {path:?} belongs to uid {owner}, not to uid {expected}")]
    Owner {
        /// The path.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// The user of this process.
        expected: u32,
    },
    /// Another process, or another store of this one, has it open.
    #[error("store root {path:?} is in use by another process")]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// A system call failed.
    #[error(transparent)]
    Path(#[from] PathError),
}

impl OpenError {
    /// Returns the class.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::RootPath { .. } | Self::Relative { .. } => ErrorClass::InvalidArgument,
            Self::Owner { .. } => ErrorClass::FailedPrecondition,
            Self::InUse { .. } => ErrorClass::Unavailable,
            Self::Path(error) => error.class(),
        }
    }
}

/// Why something damaged could not be deleted.
#[derive(Debug, thiserror::Error)]
pub enum DiscardError {
    /// A container uses its files.
    #[error("{path} is used by snapshot {key}")]
    InUse {
        /// What was to be deleted.
        path: String,
        /// The container's key.
        key: String,
    },
    /// A system call failed.
    #[error(transparent)]
    Path(#[from] PathError),
}

impl DiscardError {
    /// Returns the class.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::InUse { .. } => ErrorClass::FailedPrecondition,
            Self::Path(error) => error.class(),
        }
    }
}

impl Store {
    /// Opens the store below `root`, making it if it is not there. Sweeps what an interrupted
    /// process left unfinished, except compressed layers that a pull can resume.
    ///
    /// # Errors
    /// `Unavailable` when another process has it open for a second and longer, `InvalidArgument` for a path that cannot
    /// be used in mount options, otherwise the class of the I/O error. Damaged records are not an
    /// error; see [`Store::damaged`].
    pub fn open(root: &Path) -> Result<Self, OpenError> {
        Self::open_with(root, StoreOptions::default())
    }

    /// As [`Store::open`], with options.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_with(root: &Path, options: StoreOptions) -> Result<Self, OpenError> {
        check_path(root)?;
        // Set-user-id programs of images must be out of reach of local users (CVE-2021-41103). A
        // directory that is there already keeps its mode; ours below it are always private.
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(root)
            .map_err(|source| PathError::new("create", root.display(), source))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let top = openat(CWD, root, flags, Mode::empty())
            .map_err(|error| PathError::new("open", root.display(), error))?;
        let owner = fstat(&top)
            .map_err(|error| PathError::new("stat", root.display(), error))?
            .st_uid;
        let expected = geteuid().as_raw();
        if owner != expected {
            return Err(OpenError::Owner {
                path: root.to_owned(),
                owner,
                expected,
            });
        }
        let lock = lock(&top, root)?;
        let Chosen {
            snapshotter,
            reason: snapshotter_reason,
        } = choose(options.snapshotter, &top, root)?;
        let content = make_dir(&top, "content")?;
        let blobs = make_dir(&content, "blobs")?;
        let ingest = make_dir(&content, "ingest")?;
        let snapshots = make_dir(&top, "snapshots")?;
        let meta = make_dir(&snapshots, "meta")?;
        let mut index = Index::default();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let dir = make_dir(&blobs, algorithm.as_str())?;
            load_blobs(&dir, algorithm, &mut index)?;
        }
        index.swept = ingest::sweep(&ingest, &content)?;
        load_snapshots(&snapshots, &meta, &mut index)?;
        measured::load(&top, &mut index);
        measured::keep(&top, &index)?;
        // A record is shorter than any block.
        let record_bytes = fstat(&meta)
            .map_err(|error| PathError::new("stat", "snapshots/meta", error))?
            .st_blksize;
        let record_bytes = u64::try_from(record_bytes).unwrap_or(0);
        Ok(Self {
            shared: Arc::new(Shared {
                root: root.to_owned(),
                top,
                blobs,
                ingest,
                snapshots,
                meta,
                index: Mutex::new(index),
                syncs: SyncGroup::default(),
                worker: options.worker,
                snapshotter,
                snapshotter_reason,
                record_bytes,
                _lock: lock,
            }),
        })
    }

    /// Returns the name of the snapshotter and why it was chosen.
    #[must_use]
    pub fn snapshotter(&self) -> (&'static str, &str) {
        (
            self.shared.snapshotter.name(),
            &self.shared.snapshotter_reason,
        )
    }

    /// Returns what was found unusable, on opening and since.
    #[must_use]
    pub fn damaged(&self) -> Vec<DamagedRecord> {
        self.shared.index().damaged.clone()
    }

    /// Returns what was removed as unfinished when the store was opened, as a crash leaves it.
    #[must_use]
    pub fn swept(&self) -> Vec<String> {
        self.shared.index().swept.clone()
    }

    /// Deletes something [`Store::damaged`] reported, with the files of the snapshot it stands for.
    /// Returns whether it was reported.
    ///
    /// # Errors
    /// `FailedPrecondition` while a container uses the files, otherwise the class of the I/O error.
    pub fn discard_damaged(&self, record: &DamagedRecord) -> Result<bool, DiscardError> {
        if !self.shared.index().damaged.contains(record) {
            return Ok(false);
        }
        let name = record.path.rsplit('/').next().unwrap_or_default();
        let in_meta = record.path.starts_with("snapshots/meta/");
        let id = name
            .split('.')
            .next()
            .and_then(|id| id.parse::<SnapshotId>().ok());
        if let Some(id) = id.filter(|_| record.path.starts_with("snapshots/")) {
            let index = self.shared.index();
            let user = index
                .actives
                .values()
                .find(|active| active.record.id == id || active.record.lowers.contains(&id));
            if let Some(active) = user {
                let (path, key) = (record.path.clone(), active.record.key.clone());
                return Err(DiscardError::InUse { path, key });
            }
            // Nothing new can come to use it: what is damaged is not in the index.
            drop(index);
            self.shared.remove_snapshot_dir(id)?;
        }
        if in_meta {
            remove_tree(&self.shared.meta, name.as_bytes())
                .map_err(|source| PathError::new("remove", &record.path, source))?;
        } else if let Some(name) = record.path.strip_prefix("snapshots/") {
            remove_tree(&self.shared.snapshots, name.as_bytes())
                .map_err(|source| PathError::new("remove", &record.path, source))?;
        } else if let Some(name) = record.path.strip_prefix("content/blobs/") {
            let (algorithm, name) = name.split_once('/').unwrap_or((name, ""));
            let digest = format!("{algorithm}:{name}").parse::<Digest>();
            if digest.is_ok_and(|digest| self.has_blob(&digest)) {
                // Fetched again in the meantime.
                self.shared.index().damaged.retain(|known| known != record);
                return Ok(true);
            }
            open_dir(&self.shared.blobs, algorithm.as_bytes())
                .and_then(|dir| remove_tree(dir, name.as_bytes()))
                .map_err(|source| PathError::new("remove", &record.path, source))?;
        }
        self.shared.index().damaged.retain(|known| known != record);
        Ok(true)
    }

    /// Keeps blobs and layers from garbage collection until the lease is dropped. They need not
    /// exist yet: a pull leases everything its manifest names before it stores anything, and
    /// drops the lease after the image is recorded.
    pub fn lease(&self, kept: Roots) -> Lease {
        let mut index = self.shared.index();
        let number = index.next_lease;
        index.next_lease += 1;
        index.leases.insert(number, kept);
        Lease {
            shared: self.shared.clone(),
            number,
        }
    }

    /// Returns the bytes that these layers and blobs occupy with their records, as [`Store::store_usage`] counts
    /// them. What is not there takes none.
    #[must_use]
    pub fn size_of(&self, layers: &[ChainId], blobs: &[&Digest]) -> u64 {
        let index = self.shared.index();
        let layers = layers.iter().filter_map(|chain| index.layers.get(chain));
        let layers = layers.map(|layer| layer.usage.bytes + self.shared.record_bytes);
        let blobs = blobs.iter().filter_map(|digest| index.blobs.get(digest));
        layers.chain(blobs.copied()).sum()
    }

    /// Returns what blobs, layers (also such that are being unpacked, and such that wait for their removal) and
    /// partial downloads occupy, from recorded sizes: nothing is walked. Inodes are files, directories and all
    /// other nodes of layers, one per blob, per record and per partial download. Writable layers of containers
    /// are not in it, nor are the directories of the store itself.
    ///
    /// # Errors
    /// The class of the I/O error when the directory of partial downloads cannot be read.
    pub fn store_usage(&self) -> Result<Usage, PathError> {
        let mut usage = ingest::usage(&self.shared.ingest)?;
        let mut index = self.shared.index();
        index.spools.retain(|spool| spool.strong_count() > 0);
        for spool in index.spools.iter().filter_map(Weak::upgrade) {
            usage += spool.usage();
        }
        for size in index.blobs.values() {
            usage += Usage {
                bytes: *size,
                inodes: 1,
            };
        }
        let record = Usage {
            bytes: self.shared.record_bytes,
            inodes: 1,
        };
        for layer in index.layers.values().chain(&index.doomed) {
            usage += layer.usage;
            usage += record;
        }
        for growing in index.making.values() {
            usage += growing.usage();
        }
        Ok(usage)
    }
}

/// Keeps blobs and layers while it lives.
#[derive(Debug)]
#[must_use = "a lease that is dropped keeps nothing"]
pub struct Lease {
    shared: Arc<Shared>,
    number: u64,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.shared.index().leases.remove(&self.number);
    }
}

impl Shared {
    pub(crate) fn index(&self) -> MutexGuard<'_, Index> {
        // Every change of the index is a single insert or remove, so that a panic in between
        // leaves it whole.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes an empty directory for a new snapshot.
    pub(crate) fn new_snapshot_dir(
        &self,
    ) -> Result<(SnapshotId, OwnedFd, Arc<Growing>), PathError> {
        let growing = Arc::new(Growing::default());
        let id = {
            let mut index = self.index();
            index.next_id += 1;
            let id = index.next_id;
            index.making.insert(id, Arc::clone(&growing));
            id
        };
        let made = make_new_dir(&self.snapshots, &id.to_string());
        if made.is_err() {
            self.index().making.remove(&id);
        }
        made.map(|fd| (id, fd, growing))
    }

    /// Makes everything in the store durable, once for all who ask at the same time.
    pub(crate) fn sync_all(&self) -> io::Result<()> {
        self.syncs.sync(|| {
            syncfs(&self.snapshots)?;
            // The operator may have mounted a disk of its own at either place.
            if fstat(&self.snapshots)?.st_dev != fstat(&self.blobs)?.st_dev {
                syncfs(&self.blobs)?;
            }
            Ok(())
        })
    }

    /// Removes the directory of a snapshot that has no record.
    pub(crate) fn remove_snapshot_dir(&self, id: SnapshotId) -> Result<(), PathError> {
        remove_tree(&self.snapshots, id.to_string().as_bytes())
            .map(|_| ())
            .map_err(|source| PathError::new("remove", format!("snapshots/{id}"), source))
    }
}

/// Forgets, when dropped, that a directory is being made: it has a record, or is gone.
pub(crate) struct Made<'a>(pub(crate) &'a Shared, pub(crate) SnapshotId);

impl Drop for Made<'_> {
    fn drop(&mut self) {
        self.0.index().making.remove(&self.1);
    }
}

impl Index {
    /// The highest number a snapshot has or had.
    pub(crate) fn next_id(&self) -> SnapshotId {
        self.next_id
    }

    /// Returns the layers of a stack, top first, or the name of the one that is missing.
    pub(crate) fn stack(&self, top: &ChainId) -> Result<Vec<&LayerRecord>, ChainId> {
        let mut stack: Vec<&LayerRecord> = Vec::new();
        let mut next = Some(top);
        while let Some(chain) = next {
            let layer = self.layers.get(chain).ok_or_else(|| chain.clone())?;
            // A record that was tampered with could name itself as its parent.
            if stack.len() > self.layers.len() {
                return Err(chain.clone());
            }
            stack.push(layer);
            next = layer.parent.as_ref();
        }
        Ok(stack)
    }

    /// Returns the directories an overlay mount of a stack needs, top first. What an opaque root
    /// hides is left out, since overlayfs does not look at that mark on the root of a layer.
    pub(crate) fn lowers(&self, top: &ChainId) -> Result<Vec<SnapshotId>, ChainId> {
        let stack = self.stack(top)?;
        let visible = stack.iter().position(|layer| layer.opaque_root);
        let visible = visible.map_or(stack.len(), |opaque| opaque + 1);
        Ok(stack[..visible].iter().map(|layer| layer.id).collect())
    }

    pub(crate) fn report(&mut self, path: String, reason: impl Into<String>) {
        self.damaged.push(DamagedRecord {
            path,
            reason: reason.into(),
        });
    }
}

fn check_path(root: &Path) -> Result<(), OpenError> {
    if !root.is_absolute() {
        return Err(OpenError::Relative {
            path: root.to_owned(),
        });
    }
    let text = root.to_string_lossy();
    // U+FFFD stands for bytes that are not UTF-8 and could not be in a mount option string.
    match text
        .chars()
        .find(|&c| matches!(c, ':' | ',' | '\\' | '\n' | char::REPLACEMENT_CHARACTER))
    {
        Some(character) => Err(OpenError::RootPath {
            path: root.to_owned(),
            character,
        }),
        None => Ok(()),
    }
}

/// How long a killed process may hold the lock on: what it was about to start has its descriptors until the exec.
const LET_GO: Duration = Duration::from_secs(1);

/// Pause between two tries of the lock.
const LOOK: Duration = Duration::from_millis(10);

fn lock(top: &OwnedFd, root: &Path) -> Result<OwnedFd, OpenError> {
    let failed = |error| PathError::new("lock", root.join("lock").display(), error);
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let lock = openat(top, "lock", flags, Mode::RUSR | Mode::WUSR).map_err(failed)?;
    let deadline = Instant::now() + LET_GO;
    loop {
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(lock),
            Err(Errno::AGAIN) if Instant::now() < deadline => thread::sleep(LOOK),
            Err(Errno::AGAIN) => {
                return Err(OpenError::InUse {
                    path: root.to_owned(),
                });
            }
            Err(error) => return Err(failed(error).into()),
        }
    }
}

/// Opens a directory of the store, making it if needed.
fn make_dir(parent: &OwnedFd, name: &str) -> Result<OwnedFd, PathError> {
    match mkdirat(parent, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(PathError::new("create directory", name, error)),
    }
    // The operator may have mounted a disk here.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = openat(parent, name, flags, Mode::empty())
        .map_err(|error| PathError::new("open directory", name, error))?;
    fchmod(&fd, Mode::RWXU).map_err(|error| PathError::new("set mode of", name, error))?;
    Ok(fd)
}

/// Makes a directory that must not be there yet.
pub(crate) fn make_new_dir(parent: &OwnedFd, name: &str) -> Result<OwnedFd, PathError> {
    mkdirat(parent, name, Mode::RWXU)
        .map_err(|error| PathError::new("create directory", name, error))?;
    open_dir(parent, name.as_bytes())
        .map_err(|source| PathError::new("open directory", name, source))
}

/// Lists the names in a directory of a layer, which may be any bytes.
pub(crate) fn names_raw(dir: &OwnedFd) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            names.push(name.to_vec());
        }
    }
    Ok(names)
}

/// Lists the names in a directory of the store.
pub(crate) fn names(dir: &OwnedFd) -> io::Result<Vec<String>> {
    let text = |name: Vec<u8>| String::from_utf8_lossy(&name).into_owned();
    Ok(names_raw(dir)?.into_iter().map(text).collect())
}

fn load_blobs(dir: &OwnedFd, algorithm: Algorithm, index: &mut Index) -> Result<(), PathError> {
    let place = format!("content/blobs/{algorithm}");
    for name in names(dir).map_err(|source| PathError::new("list", &place, source))? {
        let path = format!("{place}/{name}");
        if name.starts_with(TMP_PREFIX) {
            unlinkat(dir, &*name, AtFlags::empty())
                .map_err(|error| PathError::new("remove", &path, error))?;
            continue;
        }
        let stat = statat(dir, &*name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| PathError::new("stat", &path, error))?;
        match format!("{algorithm}:{name}").parse::<Digest>() {
            Ok(digest) => {
                index.blobs.insert(digest, allocated(&stat));
            }
            Err(error) => index.report(path, error.to_string()),
        }
    }
    Ok(())
}

fn load_snapshots(snapshots: &OwnedFd, meta: &OwnedFd, index: &mut Index) -> Result<(), PathError> {
    let list =
        |dir, place: &str| names(dir).map_err(|source| PathError::new("list", place, source));
    let mut with_record = HashSet::new();
    let mut condemned = Vec::new();
    for name in list(meta, "snapshots/meta")? {
        let path = format!("snapshots/meta/{name}");
        let forget = || match unlinkat(meta, &*name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(PathError::new("remove", &path, error)),
        };
        if name.starts_with(TMP_PREFIX) {
            forget()?;
            continue;
        }
        let id = name
            .split('.')
            .next()
            .and_then(|id| id.parse::<SnapshotId>().ok());
        let Some(id) = id else {
            index.report(path.clone(), "name is not that of a record");
            continue;
        };
        index.next_id = index.next_id.max(id);
        if name == removing_name(id) {
            remove_tree(snapshots, id.to_string().as_bytes())
                .map_err(|source| PathError::new("remove", format!("snapshots/{id}"), source))?;
            forget()?;
            continue;
        }
        with_record.insert(id);
        if name == condemned_name(id) {
            condemned.push(id);
            continue;
        }
        if let Err(reason) = load_record(snapshots, meta, &name, id, index) {
            index.report(path.clone(), reason);
        }
    }
    for name in list(snapshots, "snapshots")? {
        let Ok(id) = name.parse::<SnapshotId>() else {
            if name != "meta" {
                index.report(
                    format!("snapshots/{name}"),
                    "name is not that of a snapshot",
                );
            }
            continue;
        };
        index.next_id = index.next_id.max(id);
        if !with_record.contains(&id) {
            remove_tree(snapshots, name.as_bytes())
                .map_err(|source| PathError::new("remove", format!("snapshots/{id}"), source))?;
            index.swept.push(format!("snapshots/{id}"));
        }
    }
    // Containers are known by now. What none of them is on goes with the first collection.
    for id in condemned {
        let record = read_bounded(meta, &condemned_name(id), RECORD_MAX)
            .map_err(|error| error.to_string())
            .and_then(|bytes| Record::from_json(&bytes));
        match record {
            Ok(Record::Layer(layer)) if layer.id == id => index.doomed.push(layer),
            _ => index.report(
                format!("snapshots/meta/{}", condemned_name(id)),
                "is not the record of a layer",
            ),
        }
    }
    Ok(())
}

fn load_record(
    snapshots: &OwnedFd,
    meta: &OwnedFd,
    name: &str,
    id: SnapshotId,
    index: &mut Index,
) -> Result<(), String> {
    if name != record_name(id) {
        return Err("name is not that of a record".to_owned());
    }
    let bytes = read_bounded(meta, name, RECORD_MAX).map_err(|error| error.to_string())?;
    let record = Record::from_json(&bytes)?;
    if record.id() != id {
        return Err(format!("describes snapshot {}", record.id()));
    }
    open_dir(snapshots, format!("{id}/fs").as_bytes())
        .map_err(|error| format!("its directory snapshots/{id}/fs: {error}"))?;
    match record {
        Record::Layer(layer) => {
            if let Some(other) = index.layers.get(&layer.chain) {
                return Err(format!("same layer as snapshot {}", other.id));
            }
            if layer.parent.as_ref().map_or_else(
                || ChainId::first(&layer.diff_id),
                |parent| parent.extend(&layer.diff_id),
            ) != layer.chain
            {
                return Err("its chain id does not follow from its parent and diff id".to_owned());
            }
            index.layers.insert(layer.chain.clone(), layer);
        }
        Record::Active(record) => {
            if let Some(other) = index.actives.get(&record.key) {
                return Err(format!("same key as snapshot {}", other.record.id));
            }
            let key = record.key.clone();
            index.actives.insert(
                key,
                Active {
                    record,
                    phase: ActivePhase::Ready,
                    usage: Usage::default(),
                },
            );
        }
    }
    Ok(())
}

/// Reads a small file of the store.
pub(crate) fn read_bounded(dir: &OwnedFd, name: &str, limit: u64) -> io::Result<Vec<u8>> {
    use std::io::Read;
    let fd = open_beneath(dir, name.as_bytes(), OFlags::RDONLY | OFlags::NONBLOCK)?;
    let mut bytes = Vec::new();
    std::fs::File::from(fd)
        .take(limit.saturating_add(1))
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("is larger than {limit} bytes"),
        ));
    }
    Ok(bytes)
}

/// Returns the name of the record of a snapshot.
pub(crate) fn record_name(id: SnapshotId) -> String {
    format!("{id}.json")
}

/// Returns the name the record of a layer has once the layer is known to be damaged.
pub(crate) fn condemned_name(id: SnapshotId) -> String {
    format!("{id}.condemned")
}

/// Returns the name the record has while the snapshot is being removed.
pub(crate) fn removing_name(id: SnapshotId) -> String {
    format!("{id}.removing")
}
