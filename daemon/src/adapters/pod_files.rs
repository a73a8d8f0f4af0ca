//! Run-time files of pods, gone at reboot.
//!
//! ```text
//! <state>/pods/<pod>/ns/{net,ipc,uts}            pins, made by adapters/namespaces.rs
//! <state>/pods/<pod>/shm                         tmpfs for /dev/shm
//! <state>/pods/<pod>/{resolv.conf,hostname}
//! <state>/pods/<pod>/sandbox/                    the shim's bundle and working directory
//! <state>/pods/<pod>/containers/<container>/     a container's bundle: config.json, rootfs, exit.json
//! ```

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, lchown};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use axil_proto::ids::{ContainerId, PodId};
use axil_proto::keys;
use nix::mount::{MsFlags, mount};
use serde::Deserialize;

use super::durable::make_private_dir;
use crate::domain::failure::{Class, Failure};
use crate::domain::pod::spec::{NamespaceMode, PodSpec};
use crate::domain::selinux::Labels;
use crate::engine::spawn::blocking;
use crate::host::selinux::relabel_tree;
use crate::ports::{Answer, PodFiles, PodPaths, TaskExit};

/// Size of a pod's /dev/shm, as the field has it.
const SHM_SIZE: &str = "64m";

/// Largest exit record read, in bytes.
const MAX_EXIT_RECORD: u64 = 4096;

/// The run-time files below one state directory.
#[derive(Debug, Clone)]
pub struct RunFiles {
    pods: PathBuf,
}

impl RunFiles {
    /// Makes the directory.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(state: &Path) -> Result<Self, Failure> {
        let files = Self {
            pods: state.join("pods"),
        };
        make_private_dir(&files.pods)?;
        Ok(files)
    }

    fn dir(&self, pod: &PodId) -> PathBuf {
        self.pods.join(pod.as_str())
    }
}

#[async_trait]
impl PodFiles for RunFiles {
    async fn prepare(
        &self,
        pod: &PodId,
        spec: &PodSpec,
        labels: Option<&Labels>,
    ) -> Answer<PodPaths> {
        let paths = self.paths(pod, spec);
        let (dir, spec, made) = (self.dir(pod), spec.clone(), paths.clone());
        let labels = labels.cloned();
        blocking("make a pod's files", move || {
            prepare(&dir, &spec, labels.as_ref(), &made)
        })
        .await?;
        Ok(paths)
    }

    fn paths(&self, pod: &PodId, spec: &PodSpec) -> PodPaths {
        let dir = self.dir(pod);
        let own_ipc = spec.namespaces.ipc != NamespaceMode::Node;
        PodPaths {
            sandbox_bundle: dir.join("sandbox"),
            resolv_conf: dir.join("resolv.conf"),
            hostname: (!spec.host_network()).then(|| dir.join("hostname")),
            shm: if own_ipc {
                dir.join("shm")
            } else {
                PathBuf::from("/dev/shm")
            },
        }
    }

    async fn write_sandbox_bundle(
        &self,
        pod: &PodId,
        spec: &PodSpec,
        document: Vec<u8>,
    ) -> Answer<()> {
        let bundle = self.dir(pod).join("sandbox");
        let spec = spec.clone();
        blocking("write the sandbox bundle", move || {
            let rootfs = bundle.join("rootfs");
            make_private_dir(&rootfs)?;
            // The sandbox process is nobody: it must reach its own binary through this root.
            fs::set_permissions(&rootfs, fs::Permissions::from_mode(0o755)).map_err(|error| {
                Failure::io(format!("set the mode of {}", rootfs.display()), &error)
            })?;
            // The OCI runtime makes places for mounts in it, as root of the pod.
            give_to_root_of(&spec, &rootfs)?;
            write_plain(&bundle.join("config.json"), &document, 0o600)
        })
        .await
    }

    async fn remove(&self, pod: &PodId) -> Answer<()> {
        let dir = self.dir(pod);
        blocking("remove a pod's files", move || {
            unmount(&dir.join("shm"))?;
            remove_tree(&dir)
        })
        .await
    }

    async fn make_bundle(&self, pod: &PodId, container: &ContainerId) -> Answer<PathBuf> {
        let bundle = self.bundle(pod, container);
        let made = bundle.clone();
        blocking("make a bundle", move || {
            make_private_dir(&made.join("rootfs"))
        })
        .await?;
        Ok(bundle)
    }

    async fn write_document(&self, bundle: &Path, document: Vec<u8>) -> Answer<()> {
        let path = bundle.join("config.json");
        blocking("write config.json", move || {
            write_plain(&path, &document, 0o600)
        })
        .await
    }

    async fn remove_bundle(&self, pod: &PodId, container: &ContainerId) -> Answer<()> {
        let bundle = self.bundle(pod, container);
        blocking("remove a bundle", move || remove_tree(&bundle)).await
    }

    fn bundle(&self, pod: &PodId, container: &ContainerId) -> PathBuf {
        self.dir(pod).join("containers").join(container.as_str())
    }

    async fn recorded_exit(&self, pod: &PodId, container: &ContainerId) -> Option<TaskExit> {
        let path = self.bundle(pod, container).join(keys::EXIT_RECORD);
        let read = blocking("read an exit record", move || Ok(read_exit(&path)));
        read.await.ok().flatten()
    }
}

fn prepare(dir: &Path, spec: &PodSpec, labels: Option<&Labels>, paths: &PodPaths) -> Answer<()> {
    make_private_dir(dir)?;
    make_private_dir(&paths.sandbox_bundle)?;
    make_private_dir(&dir.join("containers"))?;
    write_plain(&paths.resolv_conf, resolv_conf(spec)?.as_bytes(), 0o644)?;
    if let Some(path) = &paths.hostname {
        write_plain(path, format!("{}\n", spec.hostname).as_bytes(), 0o644)?;
    }
    if paths.shm.starts_with(dir) {
        make_private_dir(&paths.shm)?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let mut options = format!("mode=1777,size={SHM_SIZE}");
        if let Some(labels) = labels {
            // In quotes, because of the commas between categories.
            options.push_str(&format!(",context=\"{}\"", labels.file));
        }
        mount(
            Some("shm"),
            &paths.shm,
            Some("tmpfs"),
            flags,
            Some(options.as_str()),
        )
        .map_err(|errno| {
            Failure::io(
                format!("mount tmpfs at {}", paths.shm.display()),
                &errno.into(),
            )
        })?;
    }
    // What the containers of a pod share.
    let shared = [
        Some(&paths.resolv_conf),
        paths.hostname.as_ref(),
        Some(&paths.shm),
    ];
    let own = |path: &&PathBuf| path.starts_with(dir);
    for path in shared.into_iter().flatten().filter(own) {
        give_to_root_of(spec, path)?;
        // Containers of one pod may have levels of their own.
        if let Some(labels) = labels.filter(|_| *path != paths.shm) {
            relabel_tree(path, &labels.shared)?;
        }
    }
    Ok(())
}

/// Gives a file to the root user of the pod's user namespace, if it has one: in there it would be nobody's
/// otherwise.
fn give_to_root_of(spec: &PodSpec, path: &Path) -> Answer<()> {
    let Some(ids) = spec.namespaces.user.ids() else {
        return Ok(());
    };
    lchown(path, ids.host_uid(0), ids.host_gid(0))
        .map_err(|error| Failure::io(format!("change the owner of {}", path.display()), &error))
}

/// The resolver configuration: the request's, or the node's where the request has none.
fn resolv_conf(spec: &PodSpec) -> Answer<String> {
    let Some(dns) = &spec.dns else {
        return match fs::read_to_string("/etc/resolv.conf") {
            Ok(text) => Ok(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            Err(error) => Err(Failure::io("read /etc/resolv.conf", &error)),
        };
    };
    let mut text = String::new();
    for (key, values) in [("search", &dns.searches), ("options", &dns.options)] {
        if !values.is_empty() {
            text.push_str(&format!("{key} {}\n", values.join(" ")));
        }
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    Ok(text)
}

fn write_plain(path: &Path, bytes: &[u8], mode: u32) -> Answer<()> {
    let write = || {
        fs::write(path, bytes)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
    };
    write().map_err(|error| Failure::io(format!("write {}", path.display()), &error))
}

/// Unmounts what is mounted at a path; nothing, or no path, is success.
fn unmount(path: &Path) -> Answer<()> {
    axil_snapshotter::mount::unmount(path)
        .map(|_| ())
        .map_err(|error| Failure::internal("unmount", &error))
}

/// Removes a directory tree of ours; none is success. Never leaves the file system it is on, so that a
/// mount that could not be undone is never emptied.
fn remove_tree(dir: &Path) -> Answer<()> {
    if let Some(entry) = mounts_below(dir)? {
        let message = format!("{} is still mounted", entry.display());
        return Err(Failure::new(Class::Internal, message));
    }
    match fs::remove_dir_all(dir) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Failure::io(format!("remove {}", dir.display()), &error)),
    }
}

/// Mount points at or below a directory, from the kernel's table (proc(5), field 5 of mountinfo).
fn mounts_below(dir: &Path) -> Answer<Option<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo")
        .map_err(|error| Failure::io("read /proc/self/mountinfo", &error))?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    Ok(points
        .map(PathBuf::from)
        .find(|point| point.starts_with(dir)))
}

#[derive(Deserialize)]
struct ExitRecord {
    exit_status: i32,
    exited_at: String,
    #[serde(default)]
    oom_killed: bool,
}

fn read_exit(path: &Path) -> Option<TaskExit> {
    if fs::metadata(path).ok()?.len() > MAX_EXIT_RECORD {
        return None;
    }
    let record: ExitRecord = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    let at: prost_types::Timestamp = record.exited_at.parse().ok()?;
    Some(TaskExit {
        status: record.exit_status,
        exited_at: super::shim::nanos(Some(at)),
        oom_killed: record.oom_killed,
    })
}
