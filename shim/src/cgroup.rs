//! The cgroup of a container, found through /proc: listing and killing its processes, and a child
//! group per exec. Creating and removing the container's group itself is the OCI runtime's work.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use crate::log;
use crate::sys::signal::{self, SignalNumber};

/// How deep below a container's group processes are looked for. A container that may create groups
/// could nest them without end.
const MAX_DEPTH: usize = 32;

/// How long killing a whole group may take.
pub const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// The v1 hierarchies that can tell a container's processes, best first: the freezer can stop them
/// from forking while they are killed.
const V1_TREES: [&str; 3] = ["freezer", "pids", "memory"];

/// Where a container's processes are grouped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroup {
    /// The directory whose processes, and those of its children, are the container's.
    tree: PathBuf,
    /// The v1 controller of `tree`; `None` for the unified hierarchy.
    controller: Option<String>,
    /// The directory with the memory events.
    memory: Option<PathBuf>,
}

/// A child group that holds one exec and what it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecCgroup {
    parent: Cgroup,
    name: String,
}

/// One cgroup mount: its controllers (empty for v2), its root within the hierarchy, its mount point.
#[derive(Debug, PartialEq, Eq)]
struct Hierarchy {
    controllers: Vec<String>,
    root: PathBuf,
    mount_point: PathBuf,
}

impl Cgroup {
    /// Finds the group of `pid`. `None` when it has none of its own, that is, when every hierarchy
    /// has it in a group that also holds the shim: killing that group would be wrong.
    ///
    /// # Errors
    /// /proc cannot be read.
    pub fn of(pid: u32) -> io::Result<Option<Self>> {
        let theirs = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let ours = fs::read_to_string("/proc/self/cgroup")?;
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        Ok(find(&theirs, &ours, &parse_mounts(&mounts)))
    }

    /// The pids of the group and its children. Empty once the group is gone.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        let mut pids = Vec::new();
        collect(&self.tree, MAX_DEPTH, &mut pids);
        pids
    }

    /// Sends `signal` to every process of the group.
    pub fn signal_all(&self, signal: SignalNumber) {
        signal_pids(&self.pids(), signal);
    }

    /// Kills every process of the group and waits until it is empty, at most [`KILL_TIMEOUT`].
    /// Answers whether it is empty.
    pub async fn kill_all(&self) -> bool {
        kill_tree(&self.tree, self.controller.is_none()).await
    }

    /// Kills what the group holds now, once. Answers whether there was anything.
    #[must_use]
    pub fn kill_once(&self) -> bool {
        if self.pids().is_empty() {
            return false;
        }
        kill_round(&self.tree, self.controller.is_none());
        true
    }

    /// How many processes of the group the kernel has killed for memory, if it counts.
    #[must_use]
    pub fn oom_kills(&self) -> Option<u64> {
        let memory = self.memory.as_ref()?;
        let text = fs::read_to_string(memory.join("memory.events"))
            .or_else(|_| fs::read_to_string(memory.join("memory.oom_control")))
            .ok()?;
        crate::oom::parse_kills(&text)
    }

    /// The counters of memory, to be followed. `None` on v1.
    #[must_use]
    pub fn memory_events(&self) -> Option<fs::File> {
        fs::File::open(self.memory.as_ref()?.join("memory.events")).ok()
    }

    /// Creates a child group for an exec.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn create_child(&self, name: String) -> io::Result<ExecCgroup> {
        fs::create_dir(self.tree.join(&name))?;
        Ok(ExecCgroup {
            parent: self.clone(),
            name,
        })
    }

    /// Removes the child groups a dead shim left, when they are empty.
    pub fn remove_children(&self) {
        let Ok(entries) = fs::read_dir(&self.tree) else {
            return;
        };
        for entry in entries.flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(b"exec-") {
                ignore_missing(fs::remove_dir(entry.path()), "remove cgroup", &entry.path());
            }
        }
    }
}

impl ExecCgroup {
    /// The `--cgroup` argument of the runtime, relative to the container's group.
    #[must_use]
    pub fn argument(&self) -> String {
        match &self.parent.controller {
            Some(controller) => format!("{controller}:/{}", self.name),
            None => format!("/{}", self.name),
        }
    }

    fn directory(&self) -> PathBuf {
        self.parent.tree.join(&self.name)
    }

    /// Whether a process is in this group; one that has ended counts as if it had been.
    #[must_use]
    pub fn holds(&self, pid: u32) -> bool {
        let Ok(groups) = fs::read_to_string(format!("/proc/{pid}/cgroup")) else {
            return true;
        };
        let tail = format!("/{}", self.name);
        groups.lines().any(|line| line.ends_with(&tail))
    }

    /// Sends `signal` to every process of the exec.
    pub fn signal_all(&self, signal: SignalNumber) {
        let mut pids = Vec::new();
        collect(&self.directory(), MAX_DEPTH, &mut pids);
        signal_pids(&pids, signal);
    }

    /// Kills every process of the exec and waits until none is left. Answers whether none is.
    pub async fn kill_all(&self) -> bool {
        kill_tree(&self.directory(), self.parent.controller.is_none()).await
    }

    /// Moves what still runs into the container's group and removes the child group.
    pub async fn release(&self) {
        let directory = self.directory();
        // A fork between the listing and the move leaves a process behind, so it is tried again.
        for attempt in 0..20u64 {
            let mut pids = Vec::new();
            collect(&directory, 1, &mut pids);
            for pid in pids {
                // The process may have ended meanwhile; then there is nothing to move.
                let _ = fs::write(self.parent.tree.join("cgroup.procs"), pid.to_string());
            }
            match fs::remove_dir(&directory) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                    tokio::time::sleep(Duration::from_millis(1 + attempt * 5)).await;
                }
                result => return ignore_missing(result, "remove cgroup", &directory),
            }
        }
        log::warn(format_args!("cgroup {directory:?} stays busy"));
    }
}

fn ignore_missing(result: io::Result<()>, action: &str, path: &Path) {
    if let Err(error) = result
        && error.kind() != io::ErrorKind::NotFound
    {
        log::warn(format_args!("{action} {path:?}: {error}"));
    }
}

fn signal_pids(pids: &[u32], signal: SignalNumber) {
    for pid in pids {
        let Some(pid) = i32::try_from(*pid).ok().and_then(Pid::from_raw) else {
            continue;
        };
        // A process that has ended needs no signal; the pidfd keeps a reused number from being hit
        // only from here on, which is why killing works on a frozen group.
        if let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) {
            let _ = signal::send(std::os::fd::AsFd::as_fd(&pidfd), signal);
        }
    }
}

/// Lists the processes of `directory` and, `depth - 1` levels deep, of its children.
fn collect(directory: &Path, depth: usize, pids: &mut Vec<u32>) {
    if let Ok(text) = fs::read_to_string(directory.join("cgroup.procs")) {
        // A process outside our pid namespace shows as 0.
        let listed = text.lines().filter_map(|line| line.parse::<u32>().ok());
        pids.extend(listed.filter(|pid| *pid != 0));
    }
    if depth <= 1 {
        return;
    }
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            collect(&entry.path(), depth - 1, pids);
        }
    }
}

async fn kill_tree(tree: &Path, unified: bool) -> bool {
    let deadline = Instant::now() + KILL_TIMEOUT;
    let mut pause = Duration::from_millis(1);
    loop {
        kill_round(tree, unified);
        tokio::time::sleep(pause).await;
        let mut pids = Vec::new();
        collect(tree, MAX_DEPTH, &mut pids);
        if pids.is_empty() {
            return true;
        }
        if Instant::now() > deadline {
            log::error(format_args!(
                "processes {pids:?} of {tree:?} survive SIGKILL"
            ));
            return false;
        }
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

fn kill_round(tree: &Path, unified: bool) {
    // The kernel's own way kills also what is being forked; it came with Linux 5.14.
    if !unified || fs::write(tree.join("cgroup.kill"), "1").is_err() {
        kill_frozen(tree);
    }
}

/// One round of v1 killing: frozen processes cannot fork away, and die when thawed.
fn kill_frozen(tree: &Path) {
    let state = tree.join("freezer.state");
    let frozen = state.exists() && fs::write(&state, "FROZEN").is_ok();
    let mut pids = Vec::new();
    collect(tree, MAX_DEPTH, &mut pids);
    signal_pids(&pids, SignalNumber::KILL);
    // Thawed also when freezing failed: a paused container must wake up to die.
    if (frozen || state.exists())
        && let Err(error) = fs::write(&state, "THAWED")
    {
        log::warn(format_args!("thaw {tree:?}: {error}"));
    }
}

fn find(theirs: &str, ours: &str, mounts: &[Hierarchy]) -> Option<Cgroup> {
    let directory = |controller: Option<&str>| -> Option<PathBuf> {
        let path = membership(theirs, controller)?;
        let own = membership(ours, controller)?;
        // `starts_with` compares whole components and holds for equal paths.
        if path == Path::new("/") || own.starts_with(path) {
            return None;
        }
        let mount = mounts.iter().find(|m| match controller {
            Some(name) => m.controllers.iter().any(|c| c == name),
            None => m.controllers.is_empty(),
        })?;
        Some(mount.mount_point.join(path.strip_prefix(&mount.root).ok()?))
    };
    let memory = directory(Some("memory"));
    for controller in V1_TREES {
        if let Some(tree) = directory(Some(controller)) {
            return Some(Cgroup {
                tree,
                controller: Some(controller.to_owned()),
                memory,
            });
        }
    }
    let tree = directory(None)?;
    Some(Cgroup {
        memory: memory.or_else(|| Some(tree.clone())),
        tree,
        controller: None,
    })
}

/// The path of a process in the hierarchy of `controller` (cgroups(7), /proc/pid/cgroup).
fn membership<'a>(text: &'a str, controller: Option<&str>) -> Option<&'a Path> {
    text.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (id, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let hit = match controller {
            Some(name) => controllers.split(',').any(|c| c == name),
            None => id == "0" && controllers.is_empty(),
        };
        hit.then_some(Path::new(path))
    })
}

/// The cgroup mounts of a mountinfo text (proc(5)).
fn parse_mounts(text: &str) -> Vec<Hierarchy> {
    let parse = |line: &str| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let (root, mount_point) = (mount.next()?, mount.next()?);
        let mut filesystem = filesystem.split(' ');
        let controllers = match filesystem.next()? {
            "cgroup2" => Vec::new(),
            "cgroup" => filesystem.nth(1)?.split(',').map(str::to_owned).collect(),
            _ => return None,
        };
        Some(Hierarchy {
            controllers,
            root: PathBuf::from(root),
            mount_point: PathBuf::from(mount_point),
        })
    };
    text.lines().filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "\
37 31 0:34 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw
23 1 0:5 / /proc rw - proc proc rw
";
    const V2: &str = "41 31 0:38 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw\n";

    #[test]
    fn finds_the_v1_tree_and_its_memory() {
        let theirs = "6:freezer:/pod/c1\n4:memory:/pod/c1\n0::/\n";
        let ours = "6:freezer:/\n4:memory:/system/shim\n0::/\n";
        let cgroup = find(theirs, ours, &parse_mounts(V1)).unwrap();
        assert_eq!(cgroup.tree, Path::new("/sys/fs/cgroup/freezer/pod/c1"));
        assert_eq!(
            cgroup.memory,
            Some(PathBuf::from("/sys/fs/cgroup/memory/pod/c1"))
        );
        let child = ExecCgroup {
            parent: cgroup,
            name: "exec-1".into(),
        };
        assert_eq!(child.argument(), "freezer:/exec-1");
    }

    #[test]
    fn finds_the_unified_tree() {
        let cgroup = find("0::/pod/c1\n", "0::/system/shim\n", &parse_mounts(V2)).unwrap();
        assert_eq!(cgroup.tree, Path::new("/sys/fs/cgroup/pod/c1"));
        assert_eq!(cgroup.memory, Some(cgroup.tree.clone()));
        assert_eq!(cgroup.controller, None);
    }

    #[test]
    fn never_takes_a_group_that_holds_the_shim() {
        for (theirs, ours) in [
            ("0::/\n", "0::/\n"),
            ("0::/pod\n", "0::/pod\n"),
            ("0::/pod\n", "0::/pod/shim\n"),
        ] {
            assert_eq!(find(theirs, ours, &parse_mounts(V2)), None, "{theirs}");
        }
        // A common prefix of names is not a common group.
        assert!(find("0::/pod\n", "0::/pod2\n", &parse_mounts(V2)).is_some());
    }
}
