//! The surroundings of a test: a store in a temporary directory, a canary beside it, a private
//! mount namespace, and a way to see everything about a tree.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use axil_snapshotter::{
    ChainId, Compression, Digest, LayerError, LayerRequest, Limits, Mount, StagedLayer, Store,
    StoreOptions, Worker,
};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::archive::gzip;

/// Tells whether the test can run. It needs root, because layers carry owners, devices and
/// attributes only root can make.
pub(crate) fn can_run() -> bool {
    if rustix::process::geteuid().is_root() && unshare(CloneFlags::CLONE_NEWNS).is_ok() {
        // Nothing mounted here is seen elsewhere, and it goes with the thread.
        let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).unwrap();
        return true;
    }
    assert_ne!(
        std::env::var("AXIL_TEST_REQUIRE").as_deref(),
        Ok("1"),
        "root is required"
    );
    println!("skipped: needs root and CAP_SYS_ADMIN");
    false
}

/// Opens a store as the daemon does: layers are unpacked in a process of their own.
pub(crate) fn open(root: &Path) -> Store {
    let program = Path::new(env!("CARGO_BIN_EXE_axil-unpack"));
    let options = StoreOptions {
        worker: Some(Worker::program(program)),
        ..StoreOptions::default()
    };
    Store::open_with(root, options).unwrap()
}

pub(crate) struct World {
    pub(crate) store: Store,
    pub(crate) root: PathBuf,
    pub(crate) canary: PathBuf,
    before: BTreeMap<String, String>,
    _tmp: tempfile::TempDir,
}

impl World {
    pub(crate) fn new() -> Self {
        let tmp = tempfile::Builder::new()
            .prefix("axil-layers-")
            .tempdir()
            .unwrap();
        let canary = tmp.path().join("canary");
        fs::create_dir(&canary).unwrap();
        fs::write(canary.join("file"), "untouched").unwrap();
        let root = tmp.path().join("store");
        let store = open(&root);
        let before = see(&canary);
        Self {
            store,
            root,
            canary,
            before,
            _tmp: tmp,
        }
    }

    /// Closes the store and opens it again, as after a crash.
    pub(crate) fn reopened(self) -> Self {
        let Self {
            store,
            root,
            canary,
            before,
            _tmp,
        } = self;
        drop(store);
        let store = open(&root);
        Self {
            store,
            root,
            canary,
            before,
            _tmp,
        }
    }

    pub(crate) fn stage(&self, layer: &Layer) -> Result<StagedLayer, LayerError> {
        self.store
            .begin_layer(layer.request.clone())?
            .unpack(&layer.blob[..])
    }

    /// Pulls archives as the layers of an image, bottom first, and returns the top.
    pub(crate) fn pull(&self, archives: &[Vec<u8>]) -> Result<ChainId, LayerError> {
        let layers = stack_of(archives);
        let staged: Result<Vec<_>, _> = layers
            .iter()
            .filter(|layer| !self.store.has_layer(&layer.request.chain))
            .map(|layer| self.stage(layer))
            .collect();
        self.store.commit_layers(staged?)?;
        Ok(layers.last().unwrap().request.chain.clone())
    }

    /// Returns the directory of a committed layer.
    pub(crate) fn files_of(&self, chain: &ChainId) -> PathBuf {
        let mounts = self.store.prepare("files-of", Some(chain)).unwrap();
        self.store.remove("files-of").unwrap();
        lowers(&mounts).into_iter().next().unwrap()
    }

    /// Mounts an image and returns everything in it.
    pub(crate) fn mounted(&self, chain: &ChainId) -> BTreeMap<String, String> {
        let target = tempfile::tempdir().unwrap();
        let mounts = self.store.prepare("mounted", Some(chain)).unwrap();
        axil_snapshotter::mount::mount_all(&mounts, target.path()).unwrap();
        let seen = see(target.path());
        assert!(axil_snapshotter::mount::unmount(target.path()).unwrap());
        self.store.remove("mounted").unwrap();
        seen
    }

    /// Checks that nothing outside the store changed.
    pub(crate) fn assert_canary(&self) {
        assert_eq!(see(&self.canary), self.before, "the canary was touched");
        let beside: Vec<_> = fs::read_dir(self.root.parent().unwrap())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(beside.len(), 2, "{beside:?}");
    }

    /// Checks that no snapshot directory and no partial download is left.
    pub(crate) fn assert_empty(&self) {
        assert_eq!(names(&self.root.join("snapshots")), ["meta"]);
        assert!(names(&self.root.join("snapshots/meta")).is_empty());
        assert!(names(&self.root.join("content/ingest")).is_empty());
        assert!(
            self.store.damaged().is_empty(),
            "{:?}",
            self.store.damaged()
        );
    }
}

pub(crate) fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

pub(crate) fn lowers(mounts: &[Mount]) -> Vec<PathBuf> {
    let option = mounts[0]
        .options
        .iter()
        .find_map(|option| option.strip_prefix("lowerdir="));
    option.unwrap().split(':').map(PathBuf::from).collect()
}

/// A layer with its blob.
#[derive(Clone)]
pub(crate) struct Layer {
    pub(crate) request: LayerRequest,
    pub(crate) blob: Vec<u8>,
}

impl Layer {
    pub(crate) fn new(parent: Option<&ChainId>, archive: &[u8]) -> Self {
        Self::compressed(parent, archive, Compression::Gzip)
    }

    pub(crate) fn compressed(
        parent: Option<&ChainId>,
        archive: &[u8],
        compression: Compression,
    ) -> Self {
        let diff_id = Digest::sha256_of(archive);
        let blob = match compression {
            Compression::None => archive.to_vec(),
            Compression::Gzip => gzip(archive),
            Compression::Zstd => zstd::encode_all(archive, 3).unwrap(),
        };
        let request = LayerRequest {
            blob: Digest::sha256_of(&blob),
            size: blob.len() as u64,
            compression,
            chain: parent.map_or_else(|| ChainId::first(&diff_id), |p| p.extend(&diff_id)),
            diff_id,
            parent: parent.cloned(),
            limits: Limits::default(),
            is_resumable: true,
        };
        Self { request, blob }
    }
}

pub(crate) fn stack_of(archives: &[Vec<u8>]) -> Vec<Layer> {
    let mut layers: Vec<Layer> = Vec::new();
    for archive in archives {
        let parent = layers.last().map(|layer| layer.request.chain.clone());
        layers.push(Layer::new(parent.as_ref(), archive));
    }
    layers
}

/// Describes everything in a tree: type, mode, owner, time, size, links, device, attributes and
/// content. Times of directories are left out, since looking for one is what most tests do not do.
pub(crate) fn see(root: &Path) -> BTreeMap<String, String> {
    let mut seen = BTreeMap::new();
    let mut inodes: BTreeMap<u64, String> = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        let name = path
            .strip_prefix(root)
            .unwrap()
            .to_string_lossy()
            .into_owned();
        let meta = fs::symlink_metadata(&path).unwrap();
        let kind = meta.file_type();
        let mut text = format!("{:o} {}:{}", meta.mode(), meta.uid(), meta.gid());
        if kind.is_dir() {
            let mut children: Vec<_> = fs::read_dir(&path)
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .collect();
            children.sort();
            todo.extend(children.into_iter().rev());
        } else {
            text += &format!(" {}.{:09}", meta.mtime(), meta.mtime_nsec());
            if kind.is_file() {
                text += &format!(" {}", Digest::sha256_of(&fs::read(&path).unwrap()));
                if meta.nlink() > 1 {
                    let first = inodes.entry(meta.ino()).or_insert_with(|| name.clone());
                    // Overlayfs shows the count of the layer, so the first name gets no mark: the
                    // others may be hidden by a layer above.
                    if *first != name {
                        text += &format!(" = {first}");
                    }
                }
            } else if kind.is_symlink() {
                text += &format!(" -> {}", fs::read_link(&path).unwrap().display());
            } else if !kind.is_fifo() {
                text += &format!(" device {}", meta.rdev());
            }
        }
        for (name, value) in xattrs(&path) {
            text += &format!(" {name}={}", value.escape_ascii());
        }
        seen.insert(name, text);
    }
    seen
}

/// Reads the attributes of a file itself, without those of overlayfs.
pub(crate) fn xattrs(path: &Path) -> Vec<(String, Vec<u8>)> {
    let mut list = vec![0; 65_536];
    let length = rustix::fs::llistxattr(path, &mut list).unwrap();
    let mut found = Vec::new();
    for name in list[..length]
        .split(|&b| b == 0)
        .filter(|name| !name.is_empty())
    {
        let name = String::from_utf8(name.to_vec()).unwrap();
        if let Some(value) = xattr(path, &name)
            && !name.starts_with("trusted.overlay.")
        {
            found.push((name, value));
        }
    }
    found.sort();
    found
}

pub(crate) fn xattr(path: impl AsRef<OsStr>, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 65_536];
    let length = rustix::fs::lgetxattr(Path::new(path.as_ref()), name, &mut value).ok()?;
    value.truncate(length);
    Some(value)
}
