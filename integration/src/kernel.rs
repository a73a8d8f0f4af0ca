//! What the kernel says of a cgroup, read past the daemon, whichever version of cgroups the machine has.

use std::fs;
use std::path::PathBuf;

/// A cgroup, by its path below the hierarchies.
#[derive(Debug, Clone)]
pub struct Cgroup(pub String);

/// Where a number is: a controller and a file of cgroup v1, or a file of the unified tree; each with the name of
/// the line when the file has several.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Hierarchy of cgroup v1.
    pub controller: &'static str,
    /// File and line there.
    pub v1: (&'static str, Option<&'static str>),
    /// File and line in the unified tree.
    pub v2: (&'static str, Option<&'static str>),
}

impl Cgroup {
    /// The last part of its path.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }

    /// Reads a number; none when it is `max` or cannot be read.
    #[must_use]
    pub fn number(&self, place: Place) -> Option<u64> {
        let v1 = PathBuf::from("/sys/fs/cgroup").join(place.controller);
        let below = self.0.trim_start_matches('/');
        let (path, (file, line)) = if v1.is_dir() {
            (v1.join(below), place.v1)
        } else {
            (PathBuf::from("/sys/fs/cgroup").join(below), place.v2)
        };
        let text = fs::read_to_string(path.join(file)).ok()?;
        let Some(line) = line else {
            return text.split_whitespace().next()?.parse().ok();
        };
        let mut lines = text.lines().filter_map(|text| text.split_once(' '));
        let (_, value) = lines.find(|(name, _)| *name == line)?;
        value.trim().parse().ok()
    }

    /// Text of a file of the unified tree, also where it is mounted beside cgroup v1.
    #[must_use]
    pub fn unified(&self, file: &str) -> Option<String> {
        let below = self.0.trim_start_matches('/');
        let tops = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
        let mut paths = tops
            .iter()
            .map(|top| PathBuf::from(top).join(below).join(file));
        paths.find_map(|path| fs::read_to_string(path).ok())
    }
}
