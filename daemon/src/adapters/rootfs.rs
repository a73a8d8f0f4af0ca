//! Root file systems and image volumes of containers over the crate `axil-snapshotter`.

use std::fs;
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use axil_proto::ids::ContainerId;
use axil_snapshotter::{
    Choice, ErrorClass, IdRange, IdRanges, Mount, MountError, Owners, Store, mount,
};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2};

use super::durable::make_private_dir;
use super::layers::class;
use crate::domain::failure::{Class, Failure, chain};
use crate::domain::pod::user_namespace::IdMapping;
use crate::domain::runtime_handler::HandlerSnapshotter;
use crate::engine::spawn::blocking;
use crate::host::selinux::relabel_tree;
use crate::ports::{Answer, Rootfs, RootfsPlan, UserFiles, Users, VolumePlan};

/// Largest /etc/passwd or /etc/group read, in bytes (containerd's bound).
const MAX_USER_FILE: u64 = 10 << 20;

/// Writable layers over committed ones, mounted with overlayfs.
#[derive(Debug, Clone)]
pub struct OverlayRootfs {
    store: Arc<Store>,
    maps_ids: bool,
}

impl OverlayRootfs {
    /// Root file systems of this store. Where mounts cannot have mapped ids (`maps_ids`), what belongs to users of
    /// a user namespace is copied.
    #[must_use]
    pub fn new(store: Arc<Store>, maps_ids: bool) -> Self {
        Self { store, maps_ids }
    }
}

#[async_trait]
impl Rootfs for OverlayRootfs {
    async fn prepare(&self, id: &ContainerId, plan: &RootfsPlan, target: &Path) -> Answer<()> {
        let (rootfs, id, target) = (self.clone(), id.clone(), target.to_owned());
        let plan = plan.clone();
        blocking("prepare a root file system", move || {
            rootfs.make(&id, &plan, &target)
        })
        .await
    }

    async fn mount_image(
        &self,
        id: &ContainerId,
        volume: &VolumePlan,
        bundle: &Path,
    ) -> Answer<PathBuf> {
        let (rootfs, id, bundle) = (self.clone(), id.clone(), bundle.to_owned());
        let volume = volume.clone();
        blocking("mount an image", move || {
            rootfs.make_view(&id, &volume, &bundle)
        })
        .await
    }

    async fn release(&self, id: &ContainerId, bundle: &Path) -> Answer<()> {
        let (store, id, bundle) = (Arc::clone(&self.store), id.clone(), bundle.to_owned());
        blocking("release a root file system", move || {
            release(&store, &id, &bundle)
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

impl OverlayRootfs {
    fn make(&self, id: &ContainerId, plan: &RootfsPlan, target: &Path) -> Answer<()> {
        let chain = plan.chain.as_deref();
        let chain = chain.map(super::layers::parse_chain).transpose()?;
        make_private_dir(target)?;
        let by = plan.snapshotter;
        let ranges = plan.users.as_ref().map(ranges);
        let owners = self.owners(ranges.as_ref(), by);
        let mounts = self
            .store
            .prepare_by(choice(by), id.as_str(), chain.as_ref(), owners)
            .map_err(|e| Failure::new(class(e.class()), self::chain(&e)))?;
        let mounts = labelled(mounts, plan.label.as_deref())?;
        self.mount(&mounts, target, plan.users.as_ref(), by)
    }

    fn make_view(&self, id: &ContainerId, volume: &VolumePlan, bundle: &Path) -> Answer<PathBuf> {
        let number = volume.number;
        let place = bundle.join(VOLUMES).join(number.to_string());
        make_private_dir(&place)?;
        let chain = volume.chain.as_deref();
        let chain = chain.map(super::layers::parse_chain).transpose()?;
        let key = format!("{}{number}", views_of(id));
        let (users, by) = (volume.users.as_ref(), volume.snapshotter);
        let ranges = users.map(ranges);
        let owners = self.owners(ranges.as_ref(), by);
        let mounts = self
            .store
            .view_by(choice(by), &key, chain.as_ref(), owners)
            .map_err(|e| Failure::new(class(e.class()), self::chain(&e)))?;
        let mounts = labelled(mounts, volume.label.as_deref())?;
        self.mount(&mounts, &place, users, by)?;
        if volume.sub_path.is_empty() {
            return Ok(place);
        }
        let part = place.with_extension("part");
        mount::mount_part(&place, &volume.sub_path, &part).map_err(|e| mount_failed(&e))?;
        Ok(part)
    }

    /// Whether mounts have mapped ids: copies are given to their owners as they are made.
    fn maps(&self, by: Option<HandlerSnapshotter>) -> bool {
        self.maps_ids && by != Some(HandlerSnapshotter::Copy)
    }

    fn owners<'a>(
        &self,
        ranges: Option<&'a IdRanges>,
        by: Option<HandlerSnapshotter>,
    ) -> Owners<'a> {
        match ranges {
            None => Owners::AsStored,
            Some(ranges) if self.maps(by) => Owners::Mapped(ranges),
            Some(ranges) => Owners::Shifted(ranges),
        }
    }

    fn mount(
        &self,
        mounts: &[Mount],
        target: &Path,
        users: Option<&Users>,
        by: Option<HandlerSnapshotter>,
    ) -> Answer<()> {
        let Some(users) = users.filter(|_| self.maps(by)) else {
            return mount::mount_all(mounts, target).map_err(|e| mount_failed(&e));
        };
        let path = &users.namespace;
        let namespace = fs::File::open(path)
            .map_err(|error| Failure::io(format!("open {}", path.display()), &error))?;
        for one in mounts {
            mount::mount_mapped(one, target, namespace.as_fd()).map_err(|e| mount_failed(&e))?;
        }
        Ok(())
    }
}

/// The same mounts with a context for all files on them: an overlay shows it, whatever its layers have; what is bound
/// is the container's own and has it from now on.
fn labelled(mut mounts: Vec<Mount>, context: Option<&str>) -> Answer<Vec<Mount>> {
    let Some(context) = context else {
        return Ok(mounts);
    };
    for mount in &mut mounts {
        if mount.kind == "overlay" {
            mount.options.push(format!("context={context}"));
        } else {
            relabel_tree(Path::new(&mount.source), context)?;
        }
    }
    Ok(mounts)
}

/// The snapshotter of a handler, or the store's.
#[must_use]
pub fn choice(by: Option<HandlerSnapshotter>) -> Choice {
    match by {
        None => Choice::Auto,
        Some(HandlerSnapshotter::Overlayfs) => Choice::Overlayfs,
        Some(HandlerSnapshotter::Copy) => Choice::Copy,
    }
}

fn ranges(users: &Users) -> IdRanges {
    let runs = |list: &[IdMapping]| {
        let range = |run: &IdMapping| IdRange {
            inside: run.container,
            outside: run.host,
            count: run.length,
        };
        list.iter().map(range).collect()
    };
    IdRanges {
        uids: runs(&users.ids.uids),
        gids: runs(&users.ids.gids),
    }
}

/// Directory of a bundle where images are mounted.
const VOLUMES: &str = "volumes";

/// What the keys of a container's views of images begin with.
fn views_of(id: &ContainerId) -> String {
    format!("{id}.volume.")
}

/// What is wrong with a mount is wrong with the request here: the store's mounts are sound.
fn mount_failed(error: &MountError) -> Failure {
    let class = match error.class() {
        ErrorClass::InvalidArgument => Class::InvalidArgument,
        other => class(other),
    };
    Failure::new(class, chain(error))
}

fn release(store: &Store, id: &ContainerId, bundle: &Path) -> Answer<()> {
    let volumes = bundle.join(VOLUMES);
    let mut places = vec![bundle.join("rootfs")];
    match fs::read_dir(&volumes) {
        Ok(entries) => places.extend(entries.flatten().map(|entry| entry.path())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(Failure::io(format!("list {}", volumes.display()), &error)),
    }
    for place in &places {
        mount::unmount(place).map_err(|e| Failure::new(class(e.class()), chain(&e)))?;
    }
    let views = views_of(id);
    let mut keys = store.active_keys();
    keys.retain(|key| key.starts_with(&views) || key == id.as_str());
    for key in keys {
        let removed = store.remove(&key);
        removed.map_err(|e| Failure::new(class(e.class()), chain(&e)))?;
    }
    Ok(())
}

/// Reads a file of an image within its root: no link leads out, no device or FIFO is opened for reading,
/// and the size is bounded before the first byte (CVE-2024-9676, CVE-2026-47262).
fn read_inside(rootfs: &Path, name: &str) -> Answer<Option<Vec<u8>>> {
    use rustix::io::Errno;
    let failed = |errno: Errno| Failure::io(format!("read {name} of the image"), &errno.into());
    let refuse =
        |why: &str| Failure::new(Class::InvalidArgument, format!("{name} of the image {why}"));
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
        // A loop of links is the image's fault, not this machine's.
        Err(Errno::LOOP) => return Err(refuse("leads through too many links")),
        Err(errno) => return Err(failed(errno)),
    };
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
        symlink("group", root.join("etc/group")).unwrap();
        let error = read_inside(&root, "etc/group").unwrap_err();
        assert_eq!(error.class, Class::InvalidArgument, "{error}");
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
