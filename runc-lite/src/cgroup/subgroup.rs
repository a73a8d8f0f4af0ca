//! A cgroup below the container's, as `exec --cgroup` names it.

use std::path::PathBuf;

use super::{CgroupDirectory, CgroupError};

/// `exec --cgroup [controller[,controller]:]path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subgroup {
    /// Only for these hierarchies; empty: all.
    pub controllers: Vec<String>,
    /// Relative and clean, below the container's cgroup.
    pub path: String,
}

impl Subgroup {
    /// Parses and checks the option's value.
    ///
    /// # Errors
    /// [`CgroupError::BadSubgroup`] for a path that leaves the container's cgroup.
    pub fn parse(text: &str) -> Result<Subgroup, CgroupError> {
        let bad = |reason| CgroupError::BadSubgroup {
            path: text.to_owned(),
            reason,
        };
        let (controllers, path) = match text.split_once(':') {
            Some((controllers, path)) => {
                (controllers.split(',').map(str::to_owned).collect(), path)
            }
            None => (Vec::new(), text),
        };
        if path.is_empty() {
            return Err(bad("it is empty"));
        }
        if controllers.iter().any(String::is_empty) {
            return Err(bad("a controller name is empty"));
        }
        if path.contains('\0') || path.split('/').any(|part| part == "..") {
            return Err(bad("it leads out of the container's cgroup"));
        }
        let path = crate::spec::clean_path(path)
            .trim_start_matches('/')
            .to_owned();
        Ok(Subgroup { controllers, path })
    }

    /// Whether it speaks of the hierarchy of `directory`.
    pub(super) fn concerns(&self, directory: &CgroupDirectory) -> bool {
        self.controllers.is_empty()
            || self
                .controllers
                .iter()
                .any(|c| directory.controllers.contains(c))
    }

    /// The directory to join for `directory`.
    pub(super) fn below(&self, directory: &CgroupDirectory) -> PathBuf {
        if self.concerns(directory) {
            directory.path.join(&self.path)
        } else {
            directory.path.clone()
        }
    }

    /// Refuses a sub-cgroup that does not exist: exec never makes cgroups.
    pub(super) fn check_exists(&self, directories: &[CgroupDirectory]) -> Result<(), CgroupError> {
        let bad = |reason| CgroupError::BadSubgroup {
            path: self.path.clone(),
            reason,
        };
        for controller in &self.controllers {
            if !directories
                .iter()
                .any(|d| d.controllers.contains(controller))
            {
                return Err(bad("unknown controller in the container's cgroup"));
            }
        }
        for directory in directories.iter().filter(|d| self.concerns(d)) {
            // The unified tree of a hybrid host need not mirror what was made in v1.
            let optional = directory.controllers.is_empty() && directories.len() > 1;
            if !self.below(directory).is_dir() && !optional {
                return Err(bad("failed adding pid to it: no such file or directory"));
            }
        }
        Ok(())
    }
}
