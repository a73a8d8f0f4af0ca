//! Cgroups below the container's, as `exec --cgroup` names them.

use std::path::PathBuf;

use super::{CgroupDirectory, CgroupError};

/// What `exec --cgroup [controller[,controller]:]path` says, given once or several times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subgroup {
    places: Vec<Place>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    /// Only for these hierarchies; empty: all.
    controllers: Vec<String>,
    /// Relative and clean, below the container's cgroup.
    path: String,
}

fn bad(path: &str, reason: &'static str) -> CgroupError {
    CgroupError::BadSubgroup {
        path: path.to_owned(),
        reason,
    }
}

impl Subgroup {
    /// Parses and checks the option's values.
    ///
    /// # Errors
    /// [`CgroupError::BadSubgroup`] for a path that leaves the container's cgroup, a controller that is
    /// named twice, and a path without controllers beside others.
    pub fn parse(texts: &[String]) -> Result<Option<Subgroup>, CgroupError> {
        let places: Vec<Place> = texts
            .iter()
            .map(|text| Place::parse(text))
            .collect::<Result<_, _>>()?;
        for (at, (place, text)) in places.iter().zip(texts).enumerate() {
            if place.controllers.is_empty() && places.len() > 1 {
                return Err(bad(text, "beside others it needs controllers before it"));
            }
            let mut before = places[..at].iter().flat_map(|place| &place.controllers);
            if before.any(|named| place.controllers.contains(named)) {
                return Err(bad(text, "a controller is named a second time"));
            }
        }
        Ok((!places.is_empty()).then_some(Subgroup { places }))
    }

    /// The place in the hierarchy of `directory`, if one is named.
    fn place(&self, directory: &CgroupDirectory) -> Option<&Place> {
        self.places.iter().find(|place| {
            let mut named = place.controllers.iter();
            place.controllers.is_empty() || named.any(|c| directory.controllers.contains(c))
        })
    }

    /// The directory to join for `directory`.
    pub(super) fn below(&self, directory: &CgroupDirectory) -> PathBuf {
        self.place(directory).map_or_else(
            || directory.path.clone(),
            |place| directory.path.join(&place.path),
        )
    }

    /// The path of the one place below the container's cgroup of the unified hierarchy, from `/` on.
    pub(super) fn below_unified(&self) -> String {
        let path = self.places.first().map_or("", |place| &place.path);
        format!("/{path}")
    }

    /// Refuses a sub-cgroup that does not exist: exec never makes cgroups.
    pub(super) fn check_exists(&self, directories: &[CgroupDirectory]) -> Result<(), CgroupError> {
        for place in &self.places {
            let known = |name: &String| directories.iter().any(|d| d.controllers.contains(name));
            if !place.controllers.iter().all(known) {
                return Err(bad(
                    &place.path,
                    "unknown controller in the container's cgroup",
                ));
            }
        }
        for directory in directories {
            let Some(place) = self.place(directory) else {
                continue;
            };
            // The unified tree of a hybrid host need not mirror what was made in v1.
            let optional = directory.controllers.is_empty() && directories.len() > 1;
            if !self.below(directory).is_dir() && !optional {
                return Err(bad(
                    &place.path,
                    "failed adding pid to it: no such file or directory",
                ));
            }
        }
        Ok(())
    }
}

impl Place {
    fn parse(text: &str) -> Result<Place, CgroupError> {
        let (controllers, path) = match text.split_once(':') {
            Some((controllers, path)) => {
                (controllers.split(',').map(str::to_owned).collect(), path)
            }
            None => (Vec::new(), text),
        };
        if path.is_empty() {
            return Err(bad(text, "it is empty"));
        }
        if controllers.iter().any(String::is_empty) {
            return Err(bad(text, "a controller name is empty"));
        }
        if path.contains('\0') || path.split('/').any(|part| part == "..") {
            return Err(bad(text, "it leads out of the container's cgroup"));
        }
        let path = crate::spec::clean_path(path)
            .trim_start_matches('/')
            .to_owned();
        Ok(Place { controllers, path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(texts: &[&str]) -> Result<Option<Subgroup>, CgroupError> {
        let texts: Vec<String> = texts.iter().map(|&text| text.to_owned()).collect();
        Subgroup::parse(&texts)
    }

    #[test]
    fn each_hierarchy_has_the_place_that_is_named_for_it() {
        let directory = |controller: &str| CgroupDirectory {
            controllers: vec![controller.to_owned()],
            path: PathBuf::from("/c"),
            mount_point: PathBuf::from("/"),
        };
        let subgroup = parse(&["memory:m", "cpu,cpuset:/c/d/"]).unwrap().unwrap();
        for (controller, path) in [("memory", "/c/m"), ("cpuset", "/c/c/d"), ("pids", "/c")] {
            let path = PathBuf::from(path);
            assert_eq!(subgroup.below(&directory(controller)), path);
        }
        let all = parse(&["x"]).unwrap().unwrap();
        assert_eq!(all.below(&directory("pids")), PathBuf::from("/c/x"));
        assert_eq!(parse(&[]).unwrap(), None);
    }

    #[test]
    fn contradictions_and_ways_out_are_refused() {
        for texts in [
            &["a", "b"][..],
            &["cpu:a", "b"],
            &["cpu:a", "cpu,memory:b"],
            &[".."],
            &["cpu:a/../.."],
            &[":a"],
            &["cpu:"],
            &[""],
        ] {
            assert!(parse(texts).is_err(), "{texts:?}");
        }
    }
}
