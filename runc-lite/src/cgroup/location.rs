//! Which cgroup hierarchies the host has, and where in them this process is.

use std::path::{Path, PathBuf};

use super::{CgroupDirectory, CgroupError, io_error};
use crate::plan::CgroupPath;

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Controllers (`name=systemd` counts as one); empty for the unified hierarchy.
    pub controllers: Vec<String>,
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// Which of its directories is mounted there.
    pub root: String,
    /// This process's directory in it.
    pub own: String,
}

/// All hierarchies mounted on this host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hierarchies {
    v1: Vec<Hierarchy>,
    unified: Option<Hierarchy>,
}

/// Mount options of cgroup v1 that are no controllers.
const PLAIN_OPTIONS: [&str; 9] = [
    "rw",
    "ro",
    "relatime",
    "xattr",
    "noprefix",
    "clone_children",
    "all",
    "none",
    "cpuset_v2_mode",
];

impl Hierarchies {
    /// Reads the host's.
    ///
    /// # Errors
    /// [`CgroupError::Io`] when procfs cannot be read.
    pub fn of_this_host() -> Result<Hierarchies, CgroupError> {
        let read = |path: &str| {
            std::fs::read_to_string(path).map_err(|e| io_error("read", Path::new(path), e))
        };
        Ok(Hierarchies::parse(
            &read("/proc/self/mountinfo")?,
            &read("/proc/self/cgroup")?,
        ))
    }

    /// Understands `/proc/self/mountinfo` and `/proc/self/cgroup`.
    #[must_use]
    pub fn parse(mountinfo: &str, own: &str) -> Hierarchies {
        let mut found = Hierarchies::default();
        for line in mountinfo.lines() {
            let Some((head, tail)) = line.split_once(" - ") else {
                continue;
            };
            let mut tail = tail.split(' ');
            let fs_type = tail.next().unwrap_or_default();
            if fs_type != "cgroup" && fs_type != "cgroup2" {
                continue;
            }
            let options = tail.nth(1).unwrap_or_default();
            let mut head = head.split(' ').skip(3);
            let (Some(root), Some(mount_point)) = (head.next(), head.next()) else {
                continue;
            };
            let mut hierarchy = Hierarchy {
                controllers: Vec::new(),
                mount_point: PathBuf::from(unescape(mount_point)),
                root: unescape(root),
                own: String::new(),
            };
            if fs_type == "cgroup2" {
                if found.unified.is_none() {
                    hierarchy.own = own_path(own, &[]).unwrap_or_default();
                    found.unified = Some(hierarchy);
                }
                continue;
            }
            hierarchy.controllers = options
                .split(',')
                .filter(|o| !PLAIN_OPTIONS.contains(o) && !o.starts_with("release_agent="))
                .map(str::to_owned)
                .collect();
            // The same hierarchy may be mounted twice; the first mount is as good as the second.
            if found
                .v1
                .iter()
                .any(|known| known.controllers == hierarchy.controllers)
            {
                continue;
            }
            hierarchy.own = own_path(own, &hierarchy.controllers).unwrap_or_default();
            found.v1.push(hierarchy);
        }
        found
    }

    /// 2 when the controllers are in the unified tree, 1 when v1 hierarchies hold them, `None` without
    /// any.
    #[must_use]
    pub fn version(&self) -> Option<u8> {
        let named_only = |h: &Hierarchy| h.controllers.iter().all(|c| c.starts_with("name="));
        if self.v1.iter().all(named_only) {
            self.unified.as_ref().map(|_| 2)
        } else {
            Some(1)
        }
    }

    /// Those a container's processes are put into. With v1 the unified tree of a hybrid host is one of
    /// them, for its cgroup.kill.
    pub fn iter(&self) -> impl Iterator<Item = &Hierarchy> {
        let v1 = if self.version() == Some(2) {
            &[]
        } else {
            self.v1.as_slice()
        };
        v1.iter().chain(&self.unified)
    }
}

impl Hierarchy {
    /// The container's directory in this hierarchy, by the rules of runc's cgroupfs driver: an absolute
    /// path starts at the mount point; a relative one at this process's own cgroup, or on v2 at the
    /// parent of it, because a cgroup with processes cannot pass controllers on.
    pub(super) fn directory(&self, path: &CgroupPath, id: &str, version: u8) -> CgroupDirectory {
        let below = match path {
            CgroupPath::Absolute(path) | CgroupPath::Unit(path) => {
                path.trim_start_matches('/').to_owned()
            }
            CgroupPath::Relative(path) => {
                let own = self.own.strip_prefix(self.root.trim_end_matches('/'));
                let own = own.unwrap_or_default().trim_matches('/');
                let own = if version == 2 {
                    own.rsplit_once('/').map_or("", |(parent, _)| parent)
                } else {
                    own
                };
                let leaf = if path.is_empty() { id } else { path };
                if own.is_empty() {
                    leaf.to_owned()
                } else {
                    format!("{own}/{leaf}")
                }
            }
        };
        CgroupDirectory {
            controllers: self.controllers.clone(),
            path: self.mount_point.join(below),
            mount_point: self.mount_point.clone(),
        }
    }
}

/// The path in `/proc/self/cgroup` for a set of controllers (empty: the unified line, `0::`).
fn own_path(own: &str, controllers: &[String]) -> Option<String> {
    own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (id, names, path) = (fields.next()?, fields.next()?, fields.next()?);
        let matches = if controllers.is_empty() {
            id == "0" && names.is_empty()
        } else {
            names
                .split(',')
                .any(|name| controllers.iter().any(|c| c == name))
        };
        matches.then(|| path.to_owned())
    })
}

/// Undoes the octal escapes of mountinfo.
fn unescape(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        result.push_str(&rest[..at]);
        let code = rest
            .get(at + 1..at + 4)
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                result.push(char::from(code));
                rest = &rest[at + 4..];
            }
            None => {
                result.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    result.push_str(rest);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:5 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/x,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
50 31 0:32 / /mnt/again rw,relatime - cgroup cgroup rw,memory
";
    const HYBRID_OWN: &str =
        "4:memory:/pod/a\n3:name=systemd:/session\n1:cpu,cpuacct:/\n0::/session/x\n";

    fn paths(mounts: &str, own: &str, path: &CgroupPath) -> Vec<String> {
        let hierarchies = Hierarchies::parse(mounts, own);
        let wish = super::super::Wish {
            driver: super::super::Driver::Cgroupfs,
            path,
            id: "box",
            annotations: &std::collections::BTreeMap::new(),
        };
        let record = super::super::locate(&hierarchies, &wish).unwrap();
        record
            .directories
            .iter()
            .map(|d| d.path.display().to_string())
            .collect()
    }

    #[test]
    fn hybrid_hosts_use_every_hierarchy_once() {
        let hierarchies = Hierarchies::parse(HYBRID, HYBRID_OWN);
        assert_eq!(hierarchies.version(), Some(1));
        assert_eq!(
            paths(HYBRID, HYBRID_OWN, &CgroupPath::Absolute("/kube/x".into())),
            [
                "/sys/fs/cgroup/cpu,cpuacct/kube/x",
                "/sys/fs/cgroup/memory/kube/x",
                "/sys/fs/cgroup/systemd/kube/x",
                "/sys/fs/cgroup/unified/kube/x",
            ]
        );
    }

    #[test]
    fn relative_paths_start_at_the_own_cgroup() {
        assert_eq!(
            paths(HYBRID, HYBRID_OWN, &CgroupPath::Relative(String::new())),
            [
                "/sys/fs/cgroup/cpu,cpuacct/box",
                "/sys/fs/cgroup/memory/pod/a/box",
                "/sys/fs/cgroup/systemd/session/box",
                "/sys/fs/cgroup/unified/session/x/box",
            ]
        );
    }

    #[test]
    fn v2_starts_relative_paths_at_the_parent() {
        let mounts = "24 1 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
        let own = "0::/system.slice/axil.service\n";
        assert_eq!(Hierarchies::parse(mounts, own).version(), Some(2));
        assert_eq!(
            paths(mounts, own, &CgroupPath::Relative("x/y".into())),
            ["/sys/fs/cgroup/system.slice/x/y"]
        );
        assert_eq!(
            paths(mounts, own, &CgroupPath::Absolute("/x".into())),
            ["/sys/fs/cgroup/x"]
        );
    }

    #[test]
    fn a_mounted_subtree_is_taken_off_the_own_path() {
        let mounts = "24 1 0:28 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let own = "4:memory:/docker/abc/inner\n";
        assert_eq!(
            paths(mounts, own, &CgroupPath::Relative("x".into())),
            ["/sys/fs/cgroup/memory/inner/x"]
        );
    }

    #[test]
    fn nothing_mounted_is_an_error_later() {
        assert_eq!(Hierarchies::parse("", "").version(), None);
        assert_eq!(unescape("/a\\040b\\134c\\x"), "/a b\\c\\x");
    }
}
