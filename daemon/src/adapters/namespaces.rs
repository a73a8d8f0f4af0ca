//! Namespaces of pods, pinned by bind mounts.
//!
//! A thread of its own leaves the node's namespaces, sets the host name and the sysctls from inside,
//! and binds `/proc/thread-self/ns/*` to files. Nothing has to run to keep them. Namespaces that belong to
//! a user namespace of the pod are made by a process (`holder.rs`) and joined by the thread.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use axil_proto::ids::PodId;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use tokio::net::TcpStream;

use super::durable::make_private_dir;
use crate::domain::failure::{Class, Failure};
use crate::domain::pod::spec::{NamespaceMode, PodSpec};
use crate::domain::pod::user_namespace::{IdMapping, IdMappings};
use crate::engine::spawn::blocking;
use crate::ports::{Answer, NamespacePaths, NamespacePlan, Namespaces};

mod holder;

use holder::Holder;
pub use holder::{is_asked_for, main};

/// Root of the trial's user namespace: an id nobody has, as kubelets give them out from 65536 on.
const TRIAL_ROOT: u32 = 65_536;

/// Names of the pins, and what each is of.
const KINDS: [(&str, CloneFlags); 4] = [
    ("user", CloneFlags::CLONE_NEWUSER),
    ("net", CloneFlags::CLONE_NEWNET),
    ("ipc", CloneFlags::CLONE_NEWIPC),
    ("uts", CloneFlags::CLONE_NEWUTS),
];

/// Pins below `<state>/pods/<pod>/ns`.
#[derive(Debug, Clone)]
pub struct Pins {
    pods: PathBuf,
}

impl Pins {
    /// Pins below this state directory.
    #[must_use]
    pub fn new(state: &Path) -> Self {
        Self {
            pods: state.join("pods"),
        }
    }

    fn dir(&self, pod: &PodId) -> PathBuf {
        self.pods.join(pod.as_str()).join("ns")
    }
}

#[async_trait]
impl Namespaces for Pins {
    async fn pin(&self, pod: &PodId, plan: NamespacePlan) -> Answer<NamespacePaths> {
        let dir = self.dir(pod);
        blocking("pin namespaces", move || {
            // The thread ends with the namespaces it made, so it must not be one of a pool.
            let thread = std::thread::Builder::new().name("namespaces".to_owned());
            let work = thread.spawn(move || pin(&dir, &plan));
            let work = work.map_err(|error| Failure::io("start a thread", &error))?;
            work.join().unwrap_or_else(|_| {
                Err(Failure::new(
                    Class::Internal,
                    "the thread that pins namespaces panicked",
                ))
            })
        })
        .await
    }

    fn paths(&self, pod: &PodId, spec: &PodSpec) -> NamespacePaths {
        let dir = self.dir(pod);
        let own_net = !spec.host_network();
        let own_ipc = spec.namespaces.ipc != NamespaceMode::Node;
        let own_user = spec.namespaces.user.ids().is_some();
        NamespacePaths {
            user: own_user.then(|| dir.join("user")),
            net: own_net.then(|| dir.join("net")),
            ipc: own_ipc.then(|| dir.join("ipc")),
            uts: own_net.then(|| dir.join("uts")),
        }
    }

    async fn unpin(&self, pod: &PodId) -> Answer<()> {
        let dir = self.dir(pod);
        blocking("unpin namespaces", move || {
            for (name, _) in KINDS {
                let pin = dir.join(name);
                axil_snapshotter::mount::unmount(&pin)
                    .map_err(|error| Failure::internal("unpin a namespace", &error))?;
                match fs::remove_file(&pin) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => {
                        return Err(Failure::io(format!("remove {}", pin.display()), &error));
                    }
                }
            }
            match fs::remove_dir(&dir) {
                Ok(()) => Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(error) => Err(Failure::io(format!("remove {}", dir.display()), &error)),
            }
        })
        .await
    }

    async fn dial(&self, netns: Option<&Path>, port: u16) -> Answer<TcpStream> {
        super::dial::dial(netns, port).await
    }
}

/// Runs on a thread of its own: leaves the node's namespaces for good.
fn pin(dir: &Path, plan: &NamespacePlan) -> Answer<NamespacePaths> {
    make_private_dir(dir)?;
    let wanted = |name: &str| match name {
        "user" => plan.user.is_some(),
        "ipc" => plan.ipc,
        _ => plan.network,
    };
    let kinds: Vec<_> = KINDS.iter().filter(|(name, _)| wanted(name)).collect();
    match &plan.user {
        None => {
            let flags = kinds.iter().map(|(_, flag)| *flag).collect();
            unshare(flags).map_err(|errno| Failure::io("unshare namespaces", &errno.into()))?;
            for (name, _) in &kinds {
                bind(
                    &Path::new("/proc/thread-self/ns").join(name),
                    &dir.join(name),
                )?;
            }
        }
        Some(ids) => {
            let owned = kinds.iter().filter(|(name, _)| *name != "user");
            let names: Vec<&str> = owned.clone().map(|(name, _)| *name).collect();
            let holder = Holder::start(ids, &names)?;
            for (name, _) in &kinds {
                bind(&holder.namespace(name), &dir.join(name))?;
            }
            drop(holder);
            // The user namespace is not joined: it would take the thread's say over the others' settings.
            for (name, flag) in owned {
                join(&dir.join(name), *flag)?;
            }
        }
    }
    if plan.network && !plan.hostname.is_empty() {
        rustix::system::sethostname(plan.hostname.as_bytes()).map_err(|errno| {
            Failure::io(
                format!("set the host name {:?}", plan.hostname),
                &errno.into(),
            )
        })?;
    }
    for (key, value) in &plan.sysctls {
        write_sysctl(key, value)?;
    }
    let path = |kind: &str| wanted(kind).then(|| dir.join(kind));
    Ok(NamespacePaths {
        user: path("user"),
        net: path("net"),
        ipc: path("ipc"),
        uts: path("uts"),
    })
}

/// Binds a namespace to a file, which keeps it.
fn bind(namespace: &Path, pin: &Path) -> Answer<()> {
    fs::File::create_new(pin)
        .map_err(|error| Failure::io(format!("make {}", pin.display()), &error))?;
    let bound = mount(
        Some(namespace),
        pin,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    );
    bound.map_err(|errno| {
        Failure::io(
            format!("pin a namespace at {}", pin.display()),
            &errno.into(),
        )
    })
}

fn join(pin: &Path, flag: CloneFlags) -> Answer<()> {
    let failed = |error| Failure::io(format!("join the namespace {}", pin.display()), &error);
    let namespace = fs::File::open(pin).map_err(failed)?;
    setns(namespace, flag).map_err(|errno| failed(errno.into()))
}

/// A user namespace of nobody's, to try things with: its root is not the host's.
///
/// # Errors
/// `FailedPrecondition` where the kernel gives none.
pub fn trial_user_namespace() -> Answer<OwnedFd> {
    let run = IdMapping {
        container: 0,
        host: TRIAL_ROOT,
        length: 1,
    };
    let ids = IdMappings {
        uids: vec![run],
        gids: vec![run],
    };
    Holder::start(&ids, &[])?.user_namespace()
}

/// Writes a sysctl as seen by this thread's namespaces. Keys are checked by `domain` before.
fn write_sysctl(key: &str, value: &str) -> Answer<()> {
    use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
    let failed = |errno: rustix::io::Errno| {
        Failure::io(format!("set the sysctl {key} to {value:?}"), &errno.into())
    };
    let base = openat(
        CWD,
        "/proc/sys",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(failed)?;
    let relative = sysctl_path(key);
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let file = openat2(
        &base,
        relative,
        OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW,
        Mode::empty(),
        resolve,
    )
    .map_err(failed)?;
    rustix::io::write(&file, value.as_bytes()).map_err(failed)?;
    Ok(())
}

/// `net.ipv4.conf.eth0/1.x` style: a slash in a key stands for a dot in a name.
fn sysctl_path(key: &str) -> String {
    let swap = |c| match c {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    key.chars().map(swap).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctl_keys_become_paths() {
        assert_eq!(sysctl_path("net.core.somaxconn"), "net/core/somaxconn");
        assert_eq!(
            sysctl_path("net.ipv4.conf.eth0/100.rp_filter"),
            "net/ipv4/conf/eth0.100/rp_filter"
        );
    }
}
