//! `oom_score_adj` of every process of a cgroup.
//!
//! A process is held by its directory in procfs and asked for its cgroup through it before anything is written:
//! its number may be another's by then. Children inherit the score, so the list is read again until it has no
//! process that was not written to.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{Errno, read, write};

use super::meter::Hierarchies;
use crate::domain::failure::{Class, Failure};
use crate::ports::Answer;

/// How often the list is read: a container that forks faster than it is read through is told of.
const ROUNDS: usize = 16;

/// Sets the score of every process at or below a cgroup. A process that ends meanwhile needs none.
pub(super) fn set(hierarchies: &Hierarchies, cgroup: &str, score: i64) -> Answer<()> {
    let mut done = BTreeSet::new();
    for _ in 0..ROUNDS {
        let pids = hierarchies.processes(cgroup).unwrap_or_default();
        let new: Vec<u32> = pids.into_iter().filter(|pid| !done.contains(pid)).collect();
        if new.is_empty() {
            return Ok(());
        }
        for pid in new {
            match set_one(pid, cgroup, score) {
                // Gone, or not of this cgroup: neither needs the score.
                Ok(()) | Err(Errno::NOENT | Errno::SRCH) => {}
                Err(errno) => {
                    let what = format!("set oom_score_adj of process {pid} to {score}");
                    return Err(refused(what, errno));
                }
            }
            done.insert(pid);
        }
    }
    let message = format!("{cgroup} makes processes faster than their oom_score_adj can be set");
    Err(Failure::new(Class::Unavailable, message))
}

fn refused(what: String, errno: Errno) -> Failure {
    match errno {
        Errno::ACCESS | Errno::PERM => Failure::new(
            Class::PermissionDenied,
            format!("{what}: the kernel lets only CAP_SYS_RESOURCE lower it so far"),
        ),
        _ => Failure::io(what, &errno.into()),
    }
}

fn set_one(pid: u32, cgroup: &str, score: i64) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let process = openat(CWD, format!("/proc/{pid}"), flags, Mode::empty())?;
    if !belongs(&cgroups_of(&process)?, cgroup) {
        return Ok(());
    }
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = openat(&process, "oom_score_adj", flags, Mode::empty())?;
    write(&file, score.to_string().as_bytes()).map(|_| ())
}

fn cgroups_of(process: &OwnedFd) -> Result<String, Errno> {
    let file = openat(
        process,
        "cgroup",
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let mut bytes = vec![0; 16 << 10];
    let mut length = 0;
    while length < bytes.len() {
        match read(&file, &mut bytes[length..])? {
            0 => break,
            more => length += more,
        }
    }
    bytes.truncate(length);
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Whether a process's `cgroup` file (cgroups(7)) has it at or below a cgroup in any hierarchy.
fn belongs(file: &str, cgroup: &str) -> bool {
    let cgroup = format!("/{}", cgroup.trim_matches('/'));
    let paths = file.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    paths.into_iter().any(|path| {
        path.strip_prefix(cgroup.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_process_is_of_a_cgroup_or_of_one_below() {
        let file = "9:name=systemd:/\n4:memory:/pods/p/c/exec-1\n0::/pods/p/c\n";
        for (cgroup, wanted) in [
            ("/pods/p/c", true),
            ("/pods/p", true),
            ("pods/p/c/", true),
            ("/pods/p/c/exec-1", true),
            ("/pods/p/c/exec", false),
            ("/other", false),
        ] {
            assert_eq!(belongs(file, cgroup), wanted, "{cgroup}");
        }
    }

    #[test]
    fn a_process_of_another_cgroup_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("c")).unwrap();
        let list = format!("{}\n", std::process::id());
        fs::write(dir.path().join("c/cgroup.procs"), list).unwrap();
        let table = format!(
            "1 0 0:1 / {} rw - cgroup cgroup rw,pids\n",
            dir.path().display()
        );
        let before = fs::read_to_string("/proc/self/oom_score_adj").unwrap();
        // The list names this process, but the process is of no such cgroup.
        set(&Hierarchies::of(&table, Vec::new()), "/c", 1000).unwrap();
        assert_eq!(
            fs::read_to_string("/proc/self/oom_score_adj").unwrap(),
            before
        );
    }

    #[test]
    fn a_cgroup_without_processes_is_no_failure() {
        let hierarchies = Hierarchies::of("", Vec::new());
        set(&hierarchies, "/gone", 1).unwrap();
    }
}
