//! What the cgroups of a pod are called: as paths below the hierarchies, or as slices and scopes of systemd
//! (systemd.slice(5), systemd.scope(5)).
//!
//! ```text
//! cgroupfs   <parent>/<container>                           parent given, or <axil's parent>/<pod>
//! systemd    <slice, expanded>/axil-<container>.scope       slice given, or <axil's slice>-<pod>.slice
//! ```

/// The prefix of scopes.
const SCOPE_PREFIX: &str = "axil";

/// Longest name of a unit, in bytes (systemd.unit(5)).
const MAX_UNIT: usize = 255;

/// Who makes cgroups of containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CgroupDriver {
    /// The OCI runtime, as directories.
    #[default]
    Cgroupfs,
    /// systemd, as units.
    Systemd,
}

impl CgroupDriver {
    /// The driver of this name in the configuration.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "cgroupfs" => Some(Self::Cgroupfs),
            "systemd" => Some(Self::Systemd),
            _ => None,
        }
    }

    /// Where pods are for which the kubelet names no parent, unless the operator chose.
    #[must_use]
    pub fn default_parent(self) -> &'static str {
        match self {
            Self::Cgroupfs => "/axil",
            Self::Systemd => "axil.slice",
        }
    }

    /// Tells what is wrong with a parent.
    ///
    /// # Errors
    /// It is no absolute path, or no slice, or of the other driver.
    pub fn check_parent(self, parent: &str) -> Result<(), &'static str> {
        match self {
            Self::Cgroupfs if parent.ends_with(".slice") => {
                Err("is a systemd slice: axil is configured for cgroupfs")
            }
            Self::Cgroupfs => {
                let plain = |part: &str| part != ".." && part != ".";
                let fits = parent.starts_with('/')
                    && parent.len() > 1
                    && parent.split('/').all(plain)
                    && !parent.contains('\0');
                if fits {
                    Ok(())
                } else {
                    Err("must be an absolute path without .., and not /")
                }
            }
            Self::Systemd => expand(unit(parent)).map(drop),
        }
    }
}

/// Names the cgroups of pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupNames {
    driver: CgroupDriver,
    parent: String,
}

impl CgroupNames {
    /// `parent` is axil's own, empty for the driver's default.
    ///
    /// # Errors
    /// As [`CgroupDriver::check_parent`].
    pub fn new(driver: CgroupDriver, parent: &str) -> Result<Self, &'static str> {
        let parent = if parent.is_empty() {
            driver.default_parent()
        } else {
            parent
        };
        driver.check_parent(parent)?;
        Ok(Self {
            driver,
            parent: parent.trim_end_matches('/').to_owned(),
        })
    }

    /// The driver.
    #[must_use]
    pub fn driver(&self) -> CgroupDriver {
        self.driver
    }

    /// axil's own cgroup, as a path below each hierarchy.
    #[must_use]
    pub fn own_dir(&self) -> String {
        self.dir_of(&self.parent)
    }

    /// The cgroup around the containers of a pod, as a path below each hierarchy. `given` is the kubelet's
    /// parent, or empty.
    #[must_use]
    pub fn pod_dir(&self, pod: &str, given: &str) -> String {
        self.dir_of(&self.pod_parent(pod, given))
    }

    /// The cgroup of a container, as a path below each hierarchy.
    #[must_use]
    pub fn container_dir(&self, pod: &str, given: &str, container: &str) -> String {
        let dir = self.pod_dir(pod, given);
        match self.driver {
            CgroupDriver::Cgroupfs => format!("{dir}/{container}"),
            CgroupDriver::Systemd => format!("{dir}/{SCOPE_PREFIX}-{container}.scope"),
        }
    }

    /// `linux.cgroupsPath` of a container: a path, or `slice:prefix:name` (runc's form for systemd).
    #[must_use]
    pub fn cgroups_path(&self, pod: &str, given: &str, container: &str) -> String {
        match self.driver {
            CgroupDriver::Cgroupfs => self.container_dir(pod, given, container),
            CgroupDriver::Systemd => {
                let slice = self.pod_parent(pod, given);
                format!("{slice}:{SCOPE_PREFIX}:{container}")
            }
        }
    }

    /// The slice that is made for a pod without a parent and has to be stopped with it; none with cgroupfs, where
    /// directories are removed.
    #[must_use]
    pub fn own_slice(&self, pod: &str, given: &str) -> Option<String> {
        let own = self.driver == CgroupDriver::Systemd && given.is_empty();
        own.then(|| self.pod_parent(pod, given))
    }

    /// The parent of a pod's containers in the words of the driver.
    fn pod_parent(&self, pod: &str, given: &str) -> String {
        match (self.driver, given.is_empty()) {
            (CgroupDriver::Cgroupfs, true) => format!("{}/{pod}", self.parent),
            (CgroupDriver::Cgroupfs, false) => given.trim_end_matches('/').to_owned(),
            (CgroupDriver::Systemd, true) => {
                let base = unit(&self.parent).trim_end_matches(".slice");
                format!("{base}-{pod}.slice")
            }
            // The kubelet sends the whole path of the slice; its last part says all.
            (CgroupDriver::Systemd, false) => unit(given).to_owned(),
        }
    }

    fn dir_of(&self, parent: &str) -> String {
        match self.driver {
            CgroupDriver::Cgroupfs => parent.to_owned(),
            // Checked when it was taken.
            CgroupDriver::Systemd => expand(unit(parent)).unwrap_or_default(),
        }
    }
}

/// The last part of a slice's path.
fn unit(path: &str) -> &str {
    let path = path.trim_end_matches('/');
    path.rsplit_once('/').map_or(path, |(_, last)| last)
}

/// The path of a slice: `a-b.slice` is `/a.slice/a-b.slice`; `-.slice` is the root.
fn expand(slice: &str) -> Result<String, &'static str> {
    let Some(name) = slice.strip_suffix(".slice") else {
        return Err("must be a systemd slice: axil is configured for systemd");
    };
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':' | '\\');
    if slice.len() > MAX_UNIT || !name.chars().all(fits) {
        return Err("is no name of a systemd unit");
    }
    if name == "-" {
        return Ok(String::new());
    }
    if name.split('-').any(str::is_empty) {
        return Err("has an empty part between dashes");
    }
    let ends = name
        .match_indices('-')
        .map(|(at, _)| at)
        .chain([name.len()]);
    Ok(ends.map(|end| format!("/{}.slice", &name[..end])).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_cgroupfs_are_below_the_parent() {
        let names = CgroupNames::new(CgroupDriver::Cgroupfs, "").unwrap();
        assert_eq!(names.container_dir("p", "", "c"), "/axil/p/c");
        assert_eq!(
            names.cgroups_path("p", "/kubepods/pod1/", "c"),
            "/kubepods/pod1/c"
        );
        assert_eq!(names.pod_dir("p", "/kubepods/pod1"), "/kubepods/pod1");
        assert_eq!(
            (names.own_slice("p", ""), names.own_dir()),
            (None, "/axil".into())
        );
    }

    #[test]
    fn slices_are_expanded() {
        let names = CgroupNames::new(CgroupDriver::Systemd, "").unwrap();
        let given = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice";
        let scope = format!("{given}/axil-c.scope");
        assert_eq!(names.container_dir("p", given, "c"), scope);
        assert_eq!(
            names.container_dir("p", "kubepods-burstable-pod1_2.slice", "c"),
            scope
        );
        assert_eq!(
            names.cgroups_path("p", given, "c"),
            "kubepods-burstable-pod1_2.slice:axil:c"
        );
        assert_eq!(names.own_slice("p", given), None);
        assert_eq!(names.pod_dir("p", ""), "/axil.slice/axil-p.slice");
        assert_eq!(names.own_slice("p", "").as_deref(), Some("axil-p.slice"));
        assert_eq!(names.container_dir("p", "-.slice", "c"), "/axil-c.scope");
    }

    #[test]
    fn a_parent_of_the_other_driver_is_refused() {
        for (driver, parents) in [
            (
                CgroupDriver::Cgroupfs,
                &[
                    "a.slice", "/a.slice", "relative", "/", "/a/../b", "/a/./b", "/a\0",
                ][..],
            ),
            (
                CgroupDriver::Systemd,
                &[
                    "/kubepods/pod1",
                    "a b.slice",
                    "a--b.slice",
                    "-a.slice",
                    "a-.slice",
                    ".slice",
                    "é.slice",
                ][..],
            ),
        ] {
            for parent in parents {
                assert!(
                    driver.check_parent(parent).is_err(),
                    "{driver:?} {parent:?}"
                );
            }
        }
        let long = format!("{}.slice", "a".repeat(300));
        assert!(CgroupDriver::Systemd.check_parent(&long).is_err());
        assert_eq!(CgroupDriver::Systemd.check_parent("user.slice"), Ok(()));
        assert_eq!(CgroupDriver::Cgroupfs.check_parent("/a/b"), Ok(()));
    }
}
