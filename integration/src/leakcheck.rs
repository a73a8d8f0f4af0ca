//! The leak oracle: what the machine looked like before a node did anything, and what differs after it was
//! emptied.
//!
//! It looks at mounts, links and addresses, nftables, cgroups, processes, the daemon's descriptors and the
//! files below its root and state. What a node keeps for the next pod on purpose (a bridge, tables and
//! base chains without anything of a pod in them) is allowed by name in [`network`].

pub mod network;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::children;
use crate::eventually::poll;
use crate::lab::Ground;
use crate::node::Node;

/// Work that ends after the answer, such as a shim's exit, may take this long.
const SETTLE: Duration = Duration::from_secs(5);

/// One look at the machine; every line names one thing.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    lines: BTreeSet<String>,
}

impl Snapshot {
    /// Looks.
    ///
    /// # Errors
    /// When `ip` or `nft` fail.
    pub fn take(ground: &Ground) -> Result<Self> {
        let mut lines = BTreeSet::new();
        lines.extend(
            mount_points()?
                .into_iter()
                .map(|point| format!("mount {point}")),
        );
        lines.extend(network::links()?);
        lines.extend(network::rules()?);
        lines.extend(
            cgroups_below(ground.cgroup())
                .into_iter()
                .map(|dir| format!("cgroup {dir}")),
        );
        lines.extend(children::abandoned().into_iter().map(|process| {
            format!(
                "process {} {} ({})",
                process.pid, process.name, process.command
            )
        }));
        Ok(Self { lines })
    }
}

/// What is there now, was not there before, and is not a file of an idle node. Waits a little for it to go.
#[must_use]
pub fn leaks(ground: &Ground, before: &Snapshot, node: &Node) -> Vec<String> {
    let mut left = Vec::new();
    poll(SETTLE, || {
        left = look(ground, before, Some(node.pid()));
        left.extend(node.idle_files().added(&FileList::read(ground.dir())));
        left.is_empty().then_some(())
    });
    left
}

/// The same without files, for a ground whose files are about to be removed; `daemon` if it still runs.
#[must_use]
pub fn look(ground: &Ground, before: &Snapshot, daemon: Option<i32>) -> Vec<String> {
    let mut left: Vec<String> = match Snapshot::take(ground) {
        Ok(now) => now.lines.difference(&before.lines).cloned().collect(),
        Err(error) => vec![format!("the leak check itself failed: {error:#}")],
    };
    if let Some(pid) = daemon {
        left.extend(namespace_descriptors(pid));
    }
    left
}

/// Mount points of this thread's namespace, in mount order.
fn mount_points() -> Result<Vec<String>> {
    let path = "/proc/thread-self/mountinfo";
    let text = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    // The fifth field (proc_pid_mountinfo(5)); spaces in it are written as \040.
    let points = text.lines().filter_map(|line| line.split(' ').nth(4));
    Ok(points.map(|point| point.replace("\\040", " ")).collect())
}

/// Mount points below a directory, in mount order.
#[must_use]
pub fn mounts_below(dir: &Path) -> Vec<String> {
    let points = mount_points().unwrap_or_default();
    points
        .into_iter()
        .filter(|point| Path::new(point).starts_with(dir))
        .collect()
}

/// The mount points of the cgroup hierarchies.
fn hierarchies() -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
    let is_cgroup = |line: &&str| line.contains(" - cgroup ") || line.contains(" - cgroup2 ");
    let points = text
        .lines()
        .filter(is_cgroup)
        .filter_map(|line| line.split(' ').nth(4));
    points.map(PathBuf::from).collect()
}

/// Every cgroup strictly below `parent`, in every hierarchy, children after parents.
fn cgroups_below(parent: &str) -> Vec<String> {
    let mut found = Vec::new();
    for hierarchy in hierarchies() {
        let mut open = vec![hierarchy.join(parent.trim_start_matches('/'))];
        while let Some(dir) = open.pop() {
            let Ok(entries) = fs::read_dir(&dir) else {
                continue;
            };
            for entry in entries.flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    found.push(entry.path().to_string_lossy().into_owned());
                    open.push(entry.path());
                }
            }
        }
    }
    found.sort();
    found
}

/// The cgroups below `parent` whose last part is `name`, one per hierarchy.
#[must_use]
pub fn find_cgroups(parent: &str, name: &str) -> Vec<PathBuf> {
    let all = cgroups_below(parent).into_iter().map(PathBuf::from);
    all.filter(|dir| dir.file_name().is_some_and(|last| last == name))
        .collect()
}

/// Removes the empty cgroups below and including `parent`.
pub fn remove_cgroups(parent: &str) {
    for dir in cgroups_below(parent).iter().rev() {
        let _ = fs::remove_dir(dir);
    }
    for hierarchy in hierarchies() {
        let _ = fs::remove_dir(hierarchy.join(parent.trim_start_matches('/')));
    }
    remove_plain(parent);
}

/// Removes what podman leaves where it takes a plain directory beside the hierarchies for one of them.
fn remove_plain(parent: &str) {
    let name = parent.trim_matches('/');
    if name.is_empty() {
        return;
    }
    for entry in fs::read_dir("/sys/fs/cgroup")
        .into_iter()
        .flatten()
        .flatten()
    {
        let is_hierarchy = entry.path().join("cgroup.procs").exists();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && !is_hierarchy {
            let _ = fs::remove_dir_all(entry.path().join(name));
        }
    }
}

/// Descriptors of the daemon that hold a namespace or a process of a pod.
fn namespace_descriptors(pid: i32) -> Vec<String> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| Some((entry.file_name(), fs::read_link(entry.path()).ok()?)))
        .map(|(fd, target)| (fd, target.to_string_lossy().into_owned()))
        .filter(|(_, target)| {
            [
                "net:[",
                "mnt:[",
                "ipc:[",
                "uts:[",
                "pid:[",
                "anon_inode:[pidfd]",
            ]
            .iter()
            .any(|kind| target.starts_with(kind))
        })
        .map(|(fd, target)| format!("descriptor {} of axild: {target}", fd.to_string_lossy()))
        .collect()
}

/// The files and directories of a node, below `root` and `state`.
#[derive(Debug, Clone, Default)]
pub struct FileList {
    paths: BTreeSet<PathBuf>,
}

impl FileList {
    /// Reads the tree; empty directories of one level below a known one do not count as a leak.
    #[must_use]
    pub fn read(dir: &Path) -> Self {
        let mut paths = BTreeSet::new();
        for top in ["root", "state", "ipam"] {
            walk(&dir.join(top), &mut paths);
        }
        Self { paths }
    }

    /// What `later` has more than this: files, and directories that hold none.
    #[must_use]
    pub fn added(&self, later: &Self) -> Vec<String> {
        later
            .paths
            .difference(&self.paths)
            .filter(|path| !kept_on_purpose(path))
            .map(|path| format!("file {}", path.display()))
            .collect()
    }
}

/// What the first pod creates for all that follow, by its place below the node's directory.
fn kept_on_purpose(path: &Path) -> bool {
    let text = path.to_string_lossy();
    // Directories that hold one kind of thing each, the lock of host-local, and its note of the address
    // it gave last; a compiled seccomp filter depends on the profile, not on the pod.
    let fixed = [
        "/root/content",
        "/root/content/blobs",
        "/root/content/blobs/sha256",
        "/root/content/ingest",
        "/root/snapshots",
        "/root/snapshots/meta",
        "/root/pods",
        "/root/images",
        "/root/cni",
        "/root/network",
        "/state/pods",
        "/state/s",
        "/state/runtime",
        "/state/runtime/k8s.io",
        "/state/runtimes",
        "/state/runtimes/other",
        "/state/runtimes/other/k8s.io",
        "/ipam/axil-test",
        "/ipam/axil-test/lock",
        "/ipam/axil-test/last_reserved_ip.0",
        "/ipam/axil-test/last_reserved_ip.1",
    ];
    fixed.iter().any(|end| text.ends_with(end)) || text.contains("/.seccomp-cache")
        // Where the next address is looked for, and the directory of each subnet.
        || text.contains("/root/network/leases") && (text.ends_with("/last") || path.is_dir())
}

fn walk(dir: &Path, paths: &mut BTreeSet<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&path, paths);
        }
        paths.insert(path);
    }
}
