//! cgroups that axil makes around containers: where they are, and their removal.
//!
//! `domain/pod/cgroup.rs` has their names. The kubelet makes the parent of a pod's containers and removes it;
//! without one the parent is axil's, and is removed here, or as a slice stopped.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use axil_proto::ids::{ContainerId, PodId};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Command;

use super::meter::Hierarchies;
use super::oom_score;
use crate::domain::failure::{Class, Failure};
use crate::domain::pod::cgroup::{CgroupDriver, CgroupNames};
use crate::domain::pod::spec::PodSpec;
use crate::engine::spawn::blocking;
use crate::ports::{Answer, Cgroups};

/// How long processes of a killed cgroup may take to leave it.
const EMPTY: Duration = Duration::from_secs(5);

/// Pause between two looks at a cgroup that is not empty yet.
const PAUSE: Duration = Duration::from_millis(5);

/// How long systemd may take to stop a slice whose processes are gone.
const UNIT_STOP: Duration = Duration::from_secs(10);

/// cgroupfs hierarchies of this machine.
#[derive(Debug, Clone)]
pub struct CgroupTree {
    mounts: Vec<PathBuf>,
    hierarchies: Arc<Hierarchies>,
    names: CgroupNames,
}

impl CgroupTree {
    /// Finds the mounted hierarchies.
    ///
    /// # Errors
    /// The kernel's mount table cannot be read.
    pub fn open(names: CgroupNames) -> Result<Self, Failure> {
        let table = fs::read_to_string("/proc/self/mountinfo")
            .map_err(|error| Failure::io("read /proc/self/mountinfo", &error))?;
        Ok(Self {
            mounts: cgroup_mounts(&table),
            hierarchies: Arc::new(Hierarchies::open()?),
            names,
        })
    }

    fn remove_everywhere(&self, path: &str) -> Answer<()> {
        for mount in &self.mounts {
            remove_tree(&mount.join(path.trim_start_matches('/')))?;
        }
        Ok(())
    }
}

#[async_trait]
impl Cgroups for CgroupTree {
    fn driver(&self) -> CgroupDriver {
        self.names.driver()
    }

    fn cgroups_path(&self, pod: &PodId, spec: &PodSpec, container: &str) -> String {
        let (pod, parent) = (pod.as_str(), &spec.cgroup_parent);
        self.names.cgroups_path(pod, parent, container)
    }

    fn container_dir(&self, pod: &PodId, spec: &PodSpec, container: &str) -> String {
        let (pod, parent) = (pod.as_str(), &spec.cgroup_parent);
        self.names.container_dir(pod, parent, container)
    }

    fn pod_dir(&self, pod: &PodId, spec: &PodSpec) -> String {
        self.names.pod_dir(pod.as_str(), &spec.cgroup_parent)
    }

    async fn set_oom_score_adj(&self, path: &str, score: i64) -> Answer<()> {
        let (hierarchies, path) = (Arc::clone(&self.hierarchies), path.to_owned());
        blocking("set oom_score_adj", move || {
            oom_score::set(&hierarchies, &path, score)
        })
        .await
    }

    async fn remove(&self, pod: &PodId, spec: &PodSpec, containers: &[ContainerId]) -> Answer<()> {
        let (names, parent) = (&self.names, &spec.cgroup_parent);
        let mut paths: Vec<String> = containers
            .iter()
            .map(|one| self.container_dir(pod, spec, one.as_str()))
            .collect();
        paths.push(self.container_dir(pod, spec, pod.as_str()));
        let slice = names.own_slice(pod.as_str(), parent);
        if parent.is_empty() && slice.is_none() {
            paths.push(names.pod_dir(pod.as_str(), parent));
        }
        let tree = self.clone();
        blocking("remove cgroups", move || {
            for path in paths {
                tree.remove_everywhere(&path)?;
            }
            if tree.names.driver() == CgroupDriver::Cgroupfs {
                // axil's own parent goes with the last pod; another pod keeps it, which is no failure.
                let own = tree.names.own_dir();
                for mount in &tree.mounts {
                    let _kept = fs::remove_dir(mount.join(own.trim_start_matches('/')));
                }
            }
            Ok(())
        })
        .await?;
        match slice {
            Some(slice) => stop_unit(&slice).await,
            None => Ok(()),
        }
    }
}

/// Stops a unit of systemd and waits for it; one that is not loaded is stopped.
async fn stop_unit(unit: &str) -> Answer<()> {
    let what = format!("systemctl stop {unit}");
    let output = Command::new("systemctl")
        .args(["--quiet", "stop", unit])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(UNIT_STOP, output).await.map_err(|_| {
        let message = format!("{what}: no answer within {UNIT_STOP:?}");
        Failure::new(Class::DeadlineExceeded, message)
    })?;
    let output = output.map_err(|error| Failure::io(&what, &error))?;
    // systemctl(1) answers 5 for a unit that is not loaded.
    if output.status.success() || output.status.code() == Some(5) {
        return Ok(());
    }
    let said: String = String::from_utf8_lossy(&output.stderr)
        .trim()
        .chars()
        .take(512)
        .collect();
    let message = format!("{what}: {}: {said}", output.status);
    Err(Failure::new(Class::Internal, message))
}

/// Mount points of cgroup hierarchies in a mountinfo table (proc(5)).
fn cgroup_mounts(table: &str) -> Vec<PathBuf> {
    let mut points: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let kind = right.split(' ').next()?;
            let point = left.split(' ').nth(4)?;
            matches!(kind, "cgroup" | "cgroup2").then(|| PathBuf::from(point))
        })
        .collect();
    points.sort();
    points.dedup();
    points
}

/// Kills every process below a cgroup and removes it, children first; none is success.
fn remove_tree(dir: &Path) -> Answer<()> {
    let deadline = Instant::now() + EMPTY;
    loop {
        match try_remove(dir) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            // EBUSY: a process is still there, or the kernel has not let go of it.
            Err(error)
                if error.raw_os_error() == Some(nix::libc::EBUSY) && Instant::now() < deadline =>
            {
                kill_all(dir);
                std::thread::sleep(PAUSE);
            }
            Err(error) if error.raw_os_error() == Some(nix::libc::EBUSY) => {
                let message = format!(
                    "cgroup {} is not empty {EMPTY:?} after SIGKILL",
                    dir.display()
                );
                return Err(Failure::new(Class::DeadlineExceeded, message));
            }
            Err(error) => {
                return Err(Failure::io(
                    format!("remove the cgroup {}", dir.display()),
                    &error,
                ));
            }
        }
    }
}

fn try_remove(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            match try_remove(&entry.path()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
    }
    fs::remove_dir(dir)
}

/// Sends SIGKILL to all processes at and below a cgroup: at once where the kernel can (v2), thawed
/// first where it was frozen (v1).
fn kill_all(dir: &Path) {
    // Ignored: these files exist on one version of cgroups each; the caller looks at the result.
    let _v2 = fs::write(dir.join("cgroup.kill"), "1");
    let _v1 = fs::write(dir.join("freezer.state"), "THAWED");
    let Ok(text) = fs::read_to_string(dir.join("cgroup.procs")) else {
        return;
    };
    for pid in text
        .lines()
        .filter_map(|line| line.parse::<i32>().ok())
        .filter(|&pid| pid > 1)
    {
        let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            kill_all(&entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_every_hierarchy_of_a_hybrid_machine() {
        let table = "25 30 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
            26 25 0:23 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
            27 25 0:24 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let found = cgroup_mounts(table);
        assert_eq!(
            found,
            [
                PathBuf::from("/sys/fs/cgroup/cpu"),
                PathBuf::from("/sys/fs/cgroup/unified")
            ]
        );
    }
}
