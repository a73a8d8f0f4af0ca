//! Root file systems of containers over the crate `axil-snapshotter`.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use axil_proto::ids::ContainerId;
use axil_snapshotter::{ChainId, Store};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2};

use super::durable::make_private_dir;
use super::layers::class;
use crate::domain::failure::{Class, Failure, chain};
use crate::engine::spawn::blocking;
use crate::ports::{Answer, Rootfs, UserFiles};

/// Largest /etc/passwd or /etc/group read, in bytes (containerd's bound).
const MAX_USER_FILE: u64 = 10 << 20;

/// Writable layers over committed ones, mounted with overlayfs.
#[derive(Debug, Clone)]
pub struct OverlayRootfs {
    store: Arc<Store>,
}

impl OverlayRootfs {
    /// Root file systems of this store.
    #[must_use]
    pub fn new(store: Arc<Store>) -> Self {
        Self { store }
    }
}

#[async_trait]
impl Rootfs for OverlayRootfs {
    async fn prepare(&self, id: &ContainerId, chain: Option<&str>, target: &Path) -> Answer<()> {
        let (store, id, target) = (Arc::clone(&self.store), id.clone(), target.to_owned());
        let chain = chain.map(super::layers::parse_chain).transpose()?;
        blocking("prepare a root file system", move || {
            prepare(&store, &id, chain.as_ref(), &target)
        })
        .await
    }

    async fn release(&self, id: &ContainerId, target: &Path) -> Answer<()> {
        let (store, id, target) = (Arc::clone(&self.store), id.clone(), target.to_owned());
        blocking("release a root file system", move || {
            let unmounted = axil_snapshotter::mount::unmount(&target);
            unmounted.map_err(|e| Failure::new(class(e.class()), self::chain(&e)))?;
            let removed = store.remove(id.as_str());
            removed
                .map(|_| ())
                .map_err(|e| Failure::new(class(e.class()), self::chain(&e)))
        })
        .await
    }

    async fn user_files(&self, rootfs: &Path) -> Answer<UserFiles> {
        let rootfs = rootfs.to_owned();
        blocking("read the user database of an image", move || {
            Ok(UserFiles {
                passwd: read_inside(&rootfs, "etc/passwd")?,
                group: read_inside(&rootfs, "etc/group")?,
            })
        })
        .await
    }
}

fn prepare(store: &Store, id: &ContainerId, chain: Option<&ChainId>, target: &Path) -> Answer<()> {
    make_private_dir(target)?;
    let mounts = store
        .prepare(id.as_str(), chain)
        .map_err(|e| Failure::new(class(e.class()), self::chain(&e)))?;
    axil_snapshotter::mount::mount_all(&mounts, target)
        .map_err(|e| Failure::new(class(e.class()), self::chain(&e)))
}

/// Reads a file of an image within its root: no link leads out, no device or FIFO is opened for reading,
/// and the size is bounded before the first byte (CVE-2024-9676, CVE-2026-47262).
fn read_inside(rootfs: &Path, name: &str) -> Answer<Option<Vec<u8>>> {
    use rustix::io::Errno;
    let failed = |errno: Errno| Failure::io(format!("read {name} of the image"), &errno.into());
    let root = openat(
        CWD,
        rootfs,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(failed)?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let path_only = OFlags::PATH | OFlags::CLOEXEC;
    let handle = match openat2(&root, name, path_only, Mode::empty(), resolve) {
        Ok(handle) => handle,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(errno) => return Err(failed(errno)),
    };
    let refuse =
        |why: &str| Failure::new(Class::InvalidArgument, format!("{name} of the image {why}"));
    let stat = fstat(&handle).map_err(failed)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(refuse("is not a regular file"));
    }
    let read_only = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat2(&root, name, read_only, Mode::empty(), resolve).map_err(failed)?;
    // Looked at again: the path may lead elsewhere by now.
    let again = fstat(&file).map_err(failed)?;
    if (again.st_dev, again.st_ino) != (stat.st_dev, stat.st_ino) {
        return Err(refuse("changes while it is read"));
    }
    let mut bytes = Vec::new();
    let read = fs::File::from(file)
        .take(MAX_USER_FILE + 1)
        .read_to_end(&mut bytes);
    read.map_err(|error| Failure::io(format!("read {name} of the image"), &error))?;
    if bytes.len() as u64 > MAX_USER_FILE {
        return Err(refuse(&format!("is larger than {MAX_USER_FILE} bytes")));
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_link_out_of_the_image_stays_inside_it() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::write(dir.path().join("secret"), "host").unwrap();
        symlink("../../../secret", root.join("etc/passwd")).unwrap();
        assert_eq!(read_inside(&root, "etc/passwd").unwrap(), None);
        fs::write(root.join("secret"), "image").unwrap();
        assert_eq!(read_inside(&root, "etc/passwd").unwrap().unwrap(), b"image");
    }

    #[test]
    fn cve_2024_9676_a_fifo_is_refused_before_it_is_read() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        let fifo = dir.path().join("etc/passwd");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let refused = read_inside(dir.path(), "etc/passwd").unwrap_err();
        assert_eq!(refused.class, Class::InvalidArgument);
    }

    #[test]
    fn cve_2026_47262_a_sparse_giant_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        let file = fs::File::create(dir.path().join("etc/group")).unwrap();
        file.set_len(1 << 40).unwrap();
        assert!(read_inside(dir.path(), "etc/group").is_err());
    }
}
