//! The processes of a cgroup and what they hold open. A container decides how many there are, so every walk
//! ends at a bound; past it the counts say "at least".

use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;

use rustix::fs::{CWD, Dir, Mode, OFlags, openat, readlinkat};

use super::files::Directory;
use super::hierarchies::Hierarchies;
use crate::domain::usage::ProcessUsage;

/// Most cgroups below a pod's or container's that are looked into.
const MAX_GROUPS: usize = 1024;

/// Deepest of them.
const MAX_DEPTH: usize = 16;

/// Most bytes of one list of processes: more than a hundred thousand.
const MAX_LIST: u64 = 1 << 20;

/// Most processes whose descriptors are counted.
const MAX_PROCESSES: usize = 4096;

/// Most descriptors of one container that are looked at.
const MAX_DESCRIPTORS: u64 = 16_384;

/// Every process of a cgroup, those of cgroups below included; none when it does not exist.
pub(super) fn pids(hierarchies: &Hierarchies, path: &str) -> Option<Vec<u32>> {
    let mut found = Vec::new();
    let mut groups = 0;
    let mut waiting = vec![(hierarchies.listing(path)?, 0)];
    while let Some((group, depth)) = waiting.pop() {
        groups += 1;
        let list = group.bounded("cgroup.procs", MAX_LIST).unwrap_or_default();
        found.extend(list.lines().filter_map(|line| line.parse::<u32>().ok()));
        if depth == MAX_DEPTH {
            continue;
        }
        for name in group.directories(MAX_GROUPS) {
            if groups + waiting.len() >= MAX_GROUPS {
                break;
            }
            let below = Directory::below(&group, &name);
            waiting.extend(below.map(|below| (below, depth + 1)));
        }
    }
    // A process that moves while the lists are read is in two of them.
    found.sort_unstable();
    found.dedup();
    Some(found)
}

/// What the processes of a cgroup hold open.
pub(super) fn open_files(hierarchies: &Hierarchies, path: &str) -> Option<ProcessUsage> {
    let pids = pids(hierarchies, path)?;
    let mut usage = ProcessUsage {
        processes: u64::try_from(pids.len()).unwrap_or(u64::MAX),
        ..ProcessUsage::default()
    };
    // The lowest number is the first process, unless numbers came round.
    let limits = pids.first().and_then(|pid| limits_of(*pid));
    usage.descriptor_limit = limits.as_deref().and_then(open_files_limit);
    for pid in pids.into_iter().take(MAX_PROCESSES) {
        count_descriptors(pid, &mut usage);
        if usage.descriptors >= MAX_DESCRIPTORS {
            break;
        }
    }
    Some(usage)
}

/// Adds the descriptors of a process; one that ended holds none.
fn count_descriptors(pid: u32, usage: &mut ProcessUsage) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = openat(CWD, format!("/proc/{pid}/fd"), flags, Mode::empty());
    let Ok(directory) = opened else { return };
    let Ok(entries) = Dir::read_from(&directory) else {
        return;
    };
    for entry in entries.flatten() {
        if !entry
            .file_name()
            .to_bytes()
            .first()
            .is_some_and(u8::is_ascii_digit)
        {
            continue;
        }
        usage.descriptors += 1;
        usage.sockets += u64::from(is_socket(&directory, entry.file_name()));
        if usage.descriptors >= MAX_DESCRIPTORS {
            return;
        }
    }
}

fn is_socket(directory: &OwnedFd, name: &std::ffi::CStr) -> bool {
    let target = readlinkat(directory, name, Vec::with_capacity(64));
    target.is_ok_and(|target| target.to_bytes().starts_with(b"socket:["))
}

fn limits_of(pid: u32) -> Option<String> {
    let mut text = String::new();
    let file = File::open(format!("/proc/{pid}/limits")).ok()?;
    file.take(16 << 10).read_to_string(&mut text).ok()?;
    Some(text)
}

/// The soft limit of open files in `/proc/<pid>/limits`; none when it is unlimited.
fn open_files_limit(limits: &str) -> Option<u64> {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsFd as _;

    use super::*;

    fn one_hierarchy(top: &std::path::Path) -> Hierarchies {
        let table = format!("1 0 0:1 / {} rw - cgroup cgroup rw,pids\n", top.display());
        Hierarchies::of(&table, Vec::new())
    }

    #[test]
    fn processes_of_cgroups_below_count_once() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("pod/c/exec")).unwrap();
        fs::write(dir.path().join("pod/cgroup.procs"), "").unwrap();
        fs::write(dir.path().join("pod/c/cgroup.procs"), "12\n10\n").unwrap();
        fs::write(dir.path().join("pod/c/exec/cgroup.procs"), "12\n30\n").unwrap();
        let hierarchies = one_hierarchy(dir.path());
        assert_eq!(pids(&hierarchies, "/pod").unwrap(), [10, 12, 30]);
        assert_eq!(pids(&hierarchies, "/pod/c/exec").unwrap(), [12, 30]);
        assert_eq!(pids(&hierarchies, "/gone"), None);
    }

    #[test]
    fn a_container_with_very_many_cgroups_is_not_walked_to_the_end() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..MAX_GROUPS + 50 {
            let group = dir.path().join(format!("pod/{number}"));
            fs::create_dir_all(&group).unwrap();
            fs::write(group.join("cgroup.procs"), format!("{}\n", number + 1)).unwrap();
        }
        let found = pids(&one_hierarchy(dir.path()), "/pod").unwrap().len();
        assert!(found < MAX_GROUPS, "{found}");
        assert!(found > MAX_GROUPS / 2, "{found}");
    }

    #[test]
    fn descriptors_and_sockets_of_a_process_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let list = format!("{}\n", std::process::id());
        fs::write(dir.path().join("cgroup.procs"), list).unwrap();
        let hierarchies = one_hierarchy(dir.path());
        let before = open_files(&hierarchies, "/").unwrap();
        assert_eq!(before.processes, 1);
        assert!(before.descriptors >= 3, "{before:?}");
        assert!(before.descriptor_limit.is_some(), "{before:?}");
        let sockets: Vec<_> = (0..64)
            .map(|_| std::os::unix::net::UnixDatagram::unbound().unwrap())
            .collect();
        let after = open_files(&hierarchies, "/").unwrap();
        assert!(
            sockets
                .iter()
                .all(|one| rustix::fs::fstat(one.as_fd()).is_ok())
        );
        // Other tests of this process may open and close some meanwhile.
        assert!(after.sockets >= before.sockets + 32, "{before:?} {after:?}");
        assert!(after.descriptors >= after.sockets + 3, "{after:?}");
    }

    #[test]
    fn the_soft_limit_of_open_files_is_found() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
            Max processes             95819                95819                processes \n\
            Max open files            1024                 524288               files     \n";
        assert_eq!(open_files_limit(text), Some(1024));
        assert_eq!(
            open_files_limit("Max open files unlimited unlimited files"),
            None
        );
        assert_eq!(open_files_limit(""), None);
    }
}
