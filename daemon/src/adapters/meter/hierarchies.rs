//! Where each controller's files are: in the unified tree, or in a hierarchy of cgroup v1. The mount points are
//! opened once; a cgroup's directory is opened once for all of its files.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};

use super::files::Directory;
use super::{processes, v1, v2};
use crate::domain::failure::Failure;
use crate::domain::usage::{CgroupUsage, HugePageUsage, Stalls};

/// The mounted hierarchies.
#[derive(Debug)]
pub(in crate::adapters) struct Hierarchies {
    /// By controller; a hierarchy of several controllers is there several times.
    v1: BTreeMap<String, OwnedFd>,
    unified: Option<OwnedFd>,
    /// Sizes of huge pages as the files are named: "2MB".
    page_sizes: Vec<String>,
}

/// The directories of one cgroup.
pub(super) struct Group<'a> {
    hierarchies: &'a Hierarchies,
    path: &'a str,
    unified: Option<Directory>,
}

impl Group<'_> {
    /// Its directory in the hierarchy of a controller of cgroup v1.
    pub(super) fn v1(&self, controller: &str) -> Option<Directory> {
        Directory::below(self.hierarchies.v1.get(controller)?, self.path)
    }

    /// Its directory in the unified tree.
    pub(super) fn unified(&self) -> Option<&Directory> {
        self.unified.as_ref()
    }

    fn has_v1(&self, controller: &str) -> bool {
        self.hierarchies.v1.contains_key(controller)
    }
}

impl Hierarchies {
    /// Opens what this machine has mounted.
    ///
    /// # Errors
    /// The mount table cannot be read.
    pub(in crate::adapters) fn open() -> Result<Self, Failure> {
        let table = fs::read_to_string("/proc/self/mountinfo")
            .map_err(|error| Failure::io("read /proc/self/mountinfo", &error))?;
        Ok(Self::of(
            &table,
            page_sizes(Path::new("/sys/kernel/mm/hugepages")),
        ))
    }

    /// Opens what a mount table lists; a mount point that cannot be opened counts as absent.
    pub(in crate::adapters) fn of(table: &str, page_sizes: Vec<String>) -> Self {
        let mut v1 = BTreeMap::new();
        let mut unified = None;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        for (controllers, point) in mounts(table) {
            for controller in &controllers {
                if let Ok(fd) = openat(CWD, &point, flags, Mode::empty()) {
                    v1.entry(controller.clone()).or_insert(fd);
                }
            }
            if controllers.is_empty() && unified.is_none() {
                unified = openat(CWD, &point, flags, Mode::empty()).ok();
            }
        }
        Self {
            v1,
            unified,
            page_sizes,
        }
    }

    /// A cgroup; its directories may not exist.
    pub(super) fn group<'a>(&'a self, path: &'a str) -> Group<'a> {
        let unified = self.unified.as_ref();
        Group {
            hierarchies: self,
            path,
            unified: unified.and_then(|mount| Directory::below(mount, path)),
        }
    }

    /// A cgroup's directory in a hierarchy where its processes are listed.
    pub(super) fn listing(&self, path: &str) -> Option<Directory> {
        let group = self.group(path);
        let v1 = ["pids", "cpuacct", "memory", "cpu"];
        let v1 = v1.iter().find_map(|controller| group.v1(controller));
        v1.or(group.unified)
    }

    /// Every process of a cgroup and of those below it; none when it does not exist.
    pub(in crate::adapters) fn processes(&self, path: &str) -> Option<Vec<u32>> {
        processes::pids(self, path)
    }

    /// CPU time of a cgroup in nanoseconds.
    pub(super) fn cpu_time(&self, path: &str) -> Option<u64> {
        let group = self.group(path);
        if group.has_v1("cpuacct") {
            return group.v1("cpuacct")?.number("cpuacct.usage");
        }
        v2::cpu_time(group.unified()?)
    }

    /// What a cgroup uses; none when it does not exist.
    pub(super) fn usage(&self, path: &str, now: i64) -> Option<CgroupUsage> {
        let group = self.group(path);
        let unified = group.unified();
        let cpu = if group.has_v1("cpuacct") {
            v1::cpu(&group)
        } else {
            unified.and_then(v2::cpu)
        };
        let memory = if group.has_v1("memory") {
            group.v1("memory").as_ref().and_then(v1::memory)
        } else {
            unified.and_then(v2::memory)
        };
        let tasks = if group.has_v1("pids") {
            group.v1("pids").as_ref().and_then(v2::tasks)
        } else {
            unified.and_then(v2::tasks)
        };
        if cpu.is_none() && memory.is_none() && tasks.is_none() {
            return None;
        }
        let devices = if group.has_v1("blkio") {
            group.v1("blkio").as_ref().map(v1::devices)
        } else {
            unified.map(v2::devices)
        };
        Some(CgroupUsage {
            read_at: now,
            cpu,
            memory,
            tasks,
            devices: devices.unwrap_or_default(),
            huge_pages: self.huge_pages(&group),
            stalls: unified.map_or_else(Stalls::default, v2::stalls),
        })
    }

    fn huge_pages(&self, group: &Group<'_>) -> Vec<HugePageUsage> {
        let v1 = group.v1("hugetlb");
        let read = |size: &String| {
            let file = |part: &str| format!("hugetlb.{size}.{part}");
            let (usage, peak) = match &v1 {
                Some(directory) => (
                    directory.number(&file("usage_in_bytes"))?,
                    directory.number(&file("max_usage_in_bytes")),
                ),
                None => (group.unified()?.number(&file("current"))?, None),
            };
            Some(HugePageUsage {
                size: size.clone(),
                usage,
                peak,
            })
        };
        self.page_sizes.iter().filter_map(read).collect()
    }
}

/// Controllers and mount points of the cgroup mounts in a mountinfo table (proc(5)); the unified tree has no
/// controllers there. Named hierarchies count nothing.
fn mounts(table: &str) -> Vec<(Vec<String>, PathBuf)> {
    let parse = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        let kind = right.next()?;
        let options = right.nth(1)?;
        let point = PathBuf::from(left.split(' ').nth(4)?);
        let controllers: Vec<String> = match kind {
            "cgroup2" => Vec::new(),
            "cgroup" => options
                .split(',')
                .filter(|one| !matches!(*one, "rw" | "ro") && !one.contains('='))
                .map(str::to_owned)
                .collect(),
            _ => return None,
        };
        (kind == "cgroup2" || !controllers.is_empty()).then_some((controllers, point))
    };
    table.lines().filter_map(parse).collect()
}

/// Sizes of huge pages in the form of the controller's files: "hugepages-2048kB" is "2MB".
fn page_sizes(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let name = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let kilobytes = name.strip_prefix("hugepages-")?.strip_suffix("kB")?;
        let kilobytes: u64 = kilobytes.parse().ok()?;
        // hugetlb_cgroup.c, mem_fmt().
        Some(match kilobytes {
            large if large >= 1 << 20 => format!("{}GB", large >> 20),
            medium if medium >= 1 << 10 => format!("{}MB", medium >> 10),
            small => format!("{small}KB"),
        })
    };
    let mut sizes: Vec<String> = entries.flatten().filter_map(name).collect();
    sizes.sort();
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controllers_are_found_mounted_alone_together_and_unified() {
        let table = "25 30 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
            26 25 0:23 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
            27 25 0:24 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
            28 25 0:25 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n";
        let wanted: Vec<(Vec<String>, PathBuf)> = vec![
            (
                vec!["cpu".into(), "cpuacct".into()],
                "/sys/fs/cgroup/cpu,cpuacct".into(),
            ),
            (vec!["xattr".into()], "/sys/fs/cgroup/systemd".into()),
            (Vec::new(), "/sys/fs/cgroup/unified".into()),
        ];
        assert_eq!(mounts(table), wanted);
    }

    #[test]
    fn page_sizes_are_named_as_the_controller_names_them() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "hugepages-2048kB",
            "hugepages-1048576kB",
            "hugepages-64kB",
            "x",
        ] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        assert_eq!(page_sizes(dir.path()), ["1GB", "2MB", "64KB"]);
    }

    /// A hybrid machine in a directory: v1 hierarchies and a unified tree with one controller.
    #[test]
    fn a_hybrid_machine_counts_in_both_trees() {
        let dir = tempfile::tempdir().unwrap();
        let file = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        file("cpuacct/pod/cpuacct.usage", "123\n");
        file("pids/pod/pids.current", "3\n");
        file("pids/pod/pids.max", "max\n");
        file("unified/pod/hugetlb.2MB.current", "2097152\n");
        let pressure = "some avg10=1.50 avg60=0.00 avg300=0.00 total=77\n\
            full avg10=0.00 avg60=0.00 avg300=0.00 total=0\n";
        file("unified/pod/cpu.pressure", pressure);
        let top = dir.path().display();
        let table = format!(
            "1 0 0:1 / {top}/cpuacct rw - cgroup cgroup rw,cpuacct\n\
             2 0 0:2 / {top}/pids rw - cgroup cgroup rw,pids\n\
             3 0 0:3 / {top}/unified rw - cgroup2 cgroup2 rw\n"
        );
        let hierarchies = Hierarchies::of(&table, vec!["2MB".to_owned()]);
        let usage = hierarchies.usage("/pod", 42).unwrap();
        assert_eq!(usage.read_at, 42);
        assert_eq!(usage.cpu.unwrap().total_ns, 123);
        assert_eq!(usage.tasks.unwrap().threads, 3);
        assert_eq!(usage.memory, None);
        assert_eq!(usage.huge_pages[0].usage, 2_097_152);
        let stall = usage.stalls.cpu.unwrap();
        assert_eq!((stall.some.total_us, stall.full.total_us), (77, 0));
        assert_eq!(usage.stalls.memory, None);
        assert_eq!(hierarchies.usage("/gone", 42), None);
        assert_eq!(hierarchies.cpu_time("/pod"), Some(123));
    }
}
