//! Writes to cgroup files that can be taken back: an update that fails half-way leaves the old limits.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use super::CgroupError;
use super::files::{read, write, write_io};

/// Where the limits of a container are written through.
#[derive(Debug, Default)]
pub(super) struct Journal {
    /// What to write to go back, oldest first; `None` where nobody will.
    undo: Option<RefCell<Vec<(PathBuf, String)>>>,
}

impl Journal {
    /// Remembers nothing: for a cgroup that is removed when a write fails.
    pub(super) fn forgetful() -> Journal {
        Journal::default()
    }

    /// Reads each file before it is written.
    pub(super) fn remembering() -> Journal {
        Journal {
            undo: Some(RefCell::default()),
        }
    }

    /// Writes `value` into `file` of `directory`.
    pub(super) fn write(
        &self,
        directory: &Path,
        file: &str,
        value: &str,
    ) -> Result<(), CgroupError> {
        let old = self
            .undo
            .as_ref()
            .and_then(|_| read(directory, file))
            .and_then(|text| restorable(file, &text, value));
        write(directory, file, value)?;
        if let (Some(undo), Some(old)) = (&self.undo, old) {
            undo.borrow_mut().push((directory.join(file), old));
        }
        Ok(())
    }

    /// Writes the old values back, the last write first: each state on the way was one the kernel took.
    /// Answers what could not be restored.
    pub(super) fn take_back(self) -> Vec<String> {
        let undo = self.undo.unwrap_or_default().into_inner();
        undo.into_iter()
            .rev()
            .filter_map(|(path, old)| {
                let error = write_io(&path, &old).err()?;
                Some(format!("{} keeps its new value: {error}", path.display()))
            })
            .collect()
    }

    /// Runs `work`; when it fails, takes its writes back.
    pub(super) fn all_or_nothing(
        work: impl FnOnce(&Journal) -> Result<(), CgroupError>,
        warnings: &mut Vec<String>,
    ) -> Result<(), CgroupError> {
        let journal = Journal::remembering();
        let done = work(&journal);
        if done.is_err() {
            warnings.extend(journal.take_back());
        }
        done
    }
}

/// What to write into `file`, which reads `old`, to undo writing `new`; `None` when nothing can.
///
/// Files with a line per device or interface take one line per write, and show only lines that differ from
/// the default.
fn restorable(file: &str, old: &str, new: &str) -> Option<String> {
    let default = match file {
        "io.max" => Some("rbps=max wbps=max riops=max wiops=max"),
        "io.weight" | "io.bfq.weight" => Some("default"),
        "rdma.max" => Some("hca_handle=max hca_object=max"),
        "net_prio.ifpriomap" => Some("0"),
        // What the file shows is a report of three lines, what it takes is the first value.
        "memory.oom_control" => {
            return old
                .lines()
                .find_map(|line| line.strip_prefix("oom_kill_disable "))
                .map(str::to_owned);
        }
        name if name.starts_with("blkio.") && name.ends_with("_device") => Some("0"),
        _ => None,
    };
    let Some(default) = default else {
        return if old.is_empty() {
            // A cpuset of v2 that follows its parent; an empty write would be no write at all.
            Some("\n".to_owned())
        } else {
            Some(old.to_owned())
        };
    };
    let (key, _) = new.split_once(' ').unwrap_or(("default", ""));
    let line = old
        .lines()
        .find(|line| line.split(' ').next() == Some(key))
        .map(str::to_owned);
    // An old bfq shows its one weight without the word.
    let alone = || (key == "default" && !old.contains('\n')).then(|| old.to_owned());
    line.or_else(alone)
        .or_else(|| Some(format!("{key} {default}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_values_are_written_as_the_kernel_takes_them() {
        for (file, old, new, back) in [
            ("memory.max", "max", "4096", "max"),
            ("cpu.max", "max 100000", "5 10", "max 100000"),
            ("cpuset.cpus", "", "0", "\n"),
            (
                "memory.oom_control",
                "oom_kill_disable 0\nunder_oom 0\noom_kill 3",
                "1",
                "0",
            ),
            (
                "io.max",
                "8:0 rbps=1 wbps=max riops=max wiops=max\n8:16 rbps=2 wbps=2 riops=2 wiops=2",
                "8:16 rbps=9",
                "8:16 rbps=2 wbps=2 riops=2 wiops=2",
            ),
            (
                "io.max",
                "",
                "8:0 rbps=1",
                "8:0 rbps=max wbps=max riops=max wiops=max",
            ),
            ("io.weight", "default 100\n8:0 50", "70", "default 100"),
            ("io.weight", "default 100\n8:0 50", "8:0 70", "8:0 50"),
            ("io.weight", "default 100", "8:0 70", "8:0 default"),
            ("io.bfq.weight", "100", "70", "100"),
            ("blkio.throttle.read_bps_device", "8:0 7", "8:0 9", "8:0 7"),
            ("blkio.throttle.read_bps_device", "", "8:0 9", "8:0 0"),
            ("net_prio.ifpriomap", "lo 0\neth0 3", "eth0 9", "eth0 3"),
        ] {
            assert_eq!(restorable(file, old, new).as_deref(), Some(back), "{file}");
        }
    }

    #[test]
    fn a_failed_update_leaves_the_old_values() {
        let dir = tempfile::tempdir().unwrap();
        let value = |file: &str| std::fs::read_to_string(dir.path().join(file)).unwrap();
        for (file, old) in [("pids.max", "20"), ("memory.max", "4096")] {
            std::fs::write(dir.path().join(file), old).unwrap();
        }
        let mut warnings = Vec::new();
        let failed = Journal::all_or_nothing(
            |journal| {
                journal.write(dir.path(), "pids.max", "30")?;
                journal.write(dir.path(), "memory.max", "8192")?;
                assert_eq!(value("memory.max"), "8192");
                journal.write(dir.path(), "cpu.idle", "1")
            },
            &mut warnings,
        );
        assert!(failed.unwrap_err().to_string().contains("cpu.idle"));
        assert_eq!(
            (value("pids.max"), value("memory.max")),
            ("20".into(), "4096".into())
        );
        assert!(warnings.is_empty(), "{warnings:?}");
    }
}
