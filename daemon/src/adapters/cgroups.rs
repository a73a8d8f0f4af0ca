//! cgroups that axil makes around containers: where they are, and their removal.
//!
//! Containers live at `<parent>/<container>`. The kubelet makes the parent and removes it; without one
//! the parent is `<axil's parent>/<pod>`, which is removed here.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use axil_proto::ids::{ContainerId, PodId};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::meter::Hierarchies;
use super::oom_score;
use crate::domain::failure::{Class, Failure};
use crate::domain::pod::spec::PodSpec;
use crate::engine::spawn::blocking;
use crate::ports::{Answer, Cgroups};

/// How long processes of a killed cgroup may take to leave it.
const EMPTY: Duration = Duration::from_secs(5);

/// Pause between two looks at a cgroup that is not empty yet.
const PAUSE: Duration = Duration::from_millis(5);

/// cgroupfs hierarchies of this machine.
#[derive(Debug, Clone)]
pub struct CgroupTree {
    mounts: Vec<PathBuf>,
    hierarchies: Arc<Hierarchies>,
    parent: String,
}

impl CgroupTree {
    /// Finds the mounted hierarchies; `parent` is axil's own cgroup below each.
    ///
    /// # Errors
    /// The kernel's mount table cannot be read.
    pub fn open(parent: &str) -> Result<Self, Failure> {
        let table = fs::read_to_string("/proc/self/mountinfo")
            .map_err(|error| Failure::io("read /proc/self/mountinfo", &error))?;
        Ok(Self {
            mounts: cgroup_mounts(&table),
            hierarchies: Arc::new(Hierarchies::open()?),
            parent: parent.to_owned(),
        })
    }

    fn pod_parent(&self, pod: &PodId, spec: &PodSpec) -> String {
        if spec.cgroup_parent.is_empty() {
            format!("{}/{pod}", self.parent)
        } else {
            spec.cgroup_parent.trim_end_matches('/').to_owned()
        }
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
    fn container_path(&self, pod: &PodId, spec: &PodSpec, container: &str) -> String {
        format!("{}/{container}", self.pod_parent(pod, spec))
    }

    async fn set_oom_score_adj(&self, path: &str, score: i64) -> Answer<()> {
        let (hierarchies, path) = (Arc::clone(&self.hierarchies), path.to_owned());
        blocking("set oom_score_adj", move || {
            oom_score::set(&hierarchies, &path, score)
        })
        .await
    }

    fn pod_path(&self, pod: &PodId, spec: &PodSpec) -> String {
        self.pod_parent(pod, spec)
    }

    async fn remove(&self, pod: &PodId, spec: &PodSpec, containers: &[ContainerId]) -> Answer<()> {
        let mut paths: Vec<String> = containers
            .iter()
            .map(|one| self.container_path(pod, spec, one.as_str()))
            .collect();
        paths.push(self.container_path(pod, spec, pod.as_str()));
        if spec.cgroup_parent.is_empty() {
            paths.push(self.pod_parent(pod, spec));
        }
        let tree = self.clone();
        blocking("remove cgroups", move || {
            for path in paths {
                tree.remove_everywhere(&path)?;
            }
            // axil's own parent goes with the last pod; another pod keeps it, which is no failure.
            for mount in &tree.mounts {
                let _kept = fs::remove_dir(mount.join(tree.parent.trim_start_matches('/')));
            }
            Ok(())
        })
        .await
    }
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
