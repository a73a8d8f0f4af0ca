//! The place of a container in the cgroup tree: made, or done without where an ordinary user may not make it
//! and nothing depends on it.

use std::borrow::Cow;
use std::path::Path;

use super::error::ProcessError;
use super::user_namespace::{UserNamespace, is_privileged};
use crate::cgroup::{self, Cgroup, CgroupDirectory, CgroupError, CgroupRecord, Hierarchies, Wish};
use crate::config::{DeviceRule, Resources};
use crate::plan::{CgroupPath, MountKind, NamespaceKind, Plan};
use crate::rootfs::is_in_user_namespace;
use crate::sys::MountAttributes;

/// Where the container will be, and what may be tolerated.
#[derive(Debug)]
pub(super) struct Placement<'a> {
    hierarchies: &'a Hierarchies,
    plan: &'a Plan,
    /// All hierarchies of the host.
    record: CgroupRecord,
    rootless: bool,
    /// What is left of the plan's when device rules cannot be had.
    resources: Cow<'a, Resources>,
}

/// What could be made of the container's place.
#[derive(Debug)]
pub(super) enum Made {
    /// Everything.
    Whole,
    /// What the user may make, which can be nothing: for a rootless container without limits and without
    /// a path of its own.
    Part(Option<Box<dyn Cgroup>>),
}

impl<'a> Placement<'a> {
    pub(super) fn new(
        hierarchies: &'a Hierarchies,
        plan: &'a Plan,
        wish: &Wish<'_>,
        rootless: bool,
    ) -> Result<Placement<'a>, CgroupError> {
        let mut resources = Cow::Borrowed(&plan.resources);
        // Device rules are for the host's root alone, and in a user namespace nobody makes devices.
        if rootless && (!is_privileged() || is_in_user_namespace()) {
            resources.to_mut().devices = vec![DeviceRule {
                allow: true,
                kind: "a".to_owned(),
                access: "rwm".to_owned(),
                ..DeviceRule::default()
            }];
        }
        Ok(Placement {
            hierarchies,
            plan,
            record: cgroup::locate(hierarchies, wish)?,
            rootless,
            resources,
        })
    }

    /// The limits that can be asked of the kernel.
    pub(super) fn resources(&self) -> &Resources {
        &self.resources
    }

    /// The version of the host.
    pub(super) fn version(&self) -> u8 {
        self.record.version
    }

    /// All of it, before anything was made.
    pub(super) fn whole(&self) -> Box<dyn Cgroup> {
        cgroup::open(self.record.clone())
    }

    /// Makes the directories of `group`, which is the whole, and writes the limits; moves nobody in.
    pub(super) fn make(
        &self,
        group: &dyn Cgroup,
        warnings: &mut Vec<String>,
    ) -> Result<Made, ProcessError> {
        let error = match group.prepare(&self.resources, warnings) {
            Ok(()) => return Ok(Made::Whole),
            Err(error) => error,
        };
        self.tolerate(error)?;
        let mut kept = Vec::new();
        for directory in &self.record.directories {
            let alone = CgroupRecord {
                directories: vec![directory.clone()],
                ..self.record.clone()
            };
            let alone = cgroup::open(alone);
            let was_there = directory.path.exists();
            match alone.prepare(&Resources::default(), warnings) {
                Ok(()) if is_writable(&directory.path.join("cgroup.procs")) => {
                    kept.push(directory.clone());
                }
                Ok(()) if was_there => {}
                Ok(()) => alone.remove()?,
                Err(error) => self.tolerate(error)?,
            }
        }
        self.refuse_limits_without(&kept)?;
        if kept.is_empty() {
            return Ok(Made::Part(None));
        }
        let part = cgroup::open(CgroupRecord {
            directories: kept,
            ..self.record.clone()
        });
        part.prepare(&self.resources, warnings)?;
        Ok(Made::Part(Some(part)))
    }

    /// Passes `error` on, unless it may be tolerated.
    pub(super) fn tolerate(&self, error: CgroupError) -> Result<(), ProcessError> {
        if !self.rootless || !is_for_want_of_permission(&error) {
            return Err(error.into());
        }
        let told = |reason: &str| ProcessError::Rootless {
            reason: reason.to_owned(),
            cause: crate::error_chain(&error),
        };
        if self.plan.cgroup_path != CgroupPath::Relative(String::new()) {
            return Err(told(
                "linux.cgroupsPath is set and permission denied for it",
            ));
        }
        let unconfined = self.record.version == 1 || limits(&self.plan.resources).is_empty();
        if unconfined {
            return Ok(());
        }
        Err(told(
            "rootless needs no limits + no cgrouppath when no permission is granted for cgroups",
        ))
    }

    fn refuse_limits_without(&self, kept: &[CgroupDirectory]) -> Result<(), ProcessError> {
        for (limit, controller) in limits(&self.plan.resources) {
            let has = |d: &CgroupDirectory| d.controllers.iter().any(|c| c == controller);
            if self.record.directories.iter().any(has) && !kept.iter().any(has) {
                return Err(ProcessError::Rootless {
                    reason: format!(
                        "cannot set {limit} limit: container could not join or create cgroup"
                    ),
                    cause: format!("permission denied in the {controller} hierarchy"),
                });
            }
        }
        Ok(())
    }

    /// What a cgroup mount shows: the container's directories, where there are none the runtime's own.
    pub(super) fn shown(&self, group: Option<&dyn Cgroup>) -> Vec<CgroupDirectory> {
        let made = group.map_or(&[][..], |group| &group.record().directories);
        let own = self.hierarchies.iter().map(|h| {
            let below = h.own.strip_prefix(h.root.trim_end_matches('/'));
            let below = below.unwrap_or_default().trim_start_matches('/');
            h.mount_point.join(below)
        });
        let all = self.record.directories.iter().zip(own);
        all.map(|(directory, own)| {
            if made.iter().any(|known| known.path == directory.path) {
                directory.clone()
            } else {
                CgroupDirectory {
                    path: own,
                    ..directory.clone()
                }
            }
        })
        .collect()
    }
}

fn is_for_want_of_permission(error: &CgroupError) -> bool {
    let CgroupError::Io { source, .. } = error else {
        return false;
    };
    matches!(
        source.raw_os_error(),
        Some(libc::EACCES | libc::EPERM | libc::EROFS)
    )
}

fn is_writable(path: &Path) -> bool {
    rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok()
}

/// The limits that are asked for, and the controllers they need; device rules are none.
fn limits(resources: &Resources) -> Vec<(&'static str, &'static str)> {
    let cpu = resources.cpu.as_ref();
    let cpuset = cpu.is_some_and(|cpu| !cpu.cpus.is_empty() || !cpu.mems.is_empty());
    let memory = resources.memory.as_ref().is_some_and(|memory| {
        let values = [memory.limit, memory.reservation, memory.swap];
        values.iter().flatten().any(|value| *value != 0)
    });
    let time = cpu.is_some_and(|cpu| {
        cpu.shares.is_some_and(|shares| shares != 0)
            || cpu.quota.is_some_and(|quota| quota != 0)
            || cpu.period.is_some_and(|period| period != 0)
            || cpu.idle.is_some()
    });
    let found = [
        (memory, "memory", "memory"),
        (time, "cpu", "cpu"),
        (cpuset, "cpuset", "cpuset"),
        (
            resources
                .pids
                .as_ref()
                .is_some_and(|p| p.limit.is_some_and(|l| l != 0)),
            "pids",
            "pids",
        ),
        (resources.block_io.is_some(), "blkio", "blkio"),
        (!resources.hugepage_limits.is_empty(), "hugetlb", "hugetlb"),
        (!resources.rdma.is_empty(), "rdma", "rdma"),
        (resources.network.is_some(), "network", "net_cls"),
        (!resources.unified.is_empty(), "unified", ""),
    ];
    found
        .into_iter()
        .filter(|(set, _, _)| *set)
        .map(|(_, limit, controller)| (limit, controller))
        .collect()
}

/// Gives the container's cgroup to the user of the host that its process will be, by the rules of the OCI
/// specification, "Cgroup ownership": on cgroup v2, with a cgroup namespace of its own, and where the
/// container can write there at all. An ordinary user's is the user's already.
pub(super) fn delegate(
    plan: &Plan,
    group: &dyn Cgroup,
    namespace: &UserNamespace,
) -> Result<(), CgroupError> {
    let writable = plan.mounts.iter().any(|mount| {
        matches!(mount.kind, MountKind::Cgroup)
            && mount.attributes.set & MountAttributes::RDONLY == 0
    });
    let owns = group.record().version == 2 && plan.namespaces.makes(NamespaceKind::Cgroup);
    match namespace.ids.host_uid(plan.process.uid) {
        // The group stays, says the specification.
        Some(owner) if owns && writable && is_privileged() => {
            group.delegate(owner, rustix::process::getegid().as_raw())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits_of(resources: serde_json::Value) -> Vec<&'static str> {
        let resources: Resources = serde_json::from_value(resources).unwrap();
        limits(&resources).iter().map(|(limit, _)| *limit).collect()
    }

    #[test]
    fn what_is_zero_or_about_devices_is_no_limit() {
        let none = serde_json::json!({"devices": [{"allow": false, "access": "rwm"}],
                                      "memory": {"limit": 0}, "cpu": {}, "pids": {"limit": 0}});
        assert_eq!(limits_of(none), Vec::<&str>::new());
        let some = serde_json::json!({"memory": {"limit": 1 << 20}, "cpu": {"cpus": "0"},
                                      "pids": {"limit": 20}});
        assert_eq!(limits_of(some), ["memory", "cpuset", "pids"]);
    }
}
