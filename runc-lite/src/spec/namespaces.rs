//! Namespaces, the ids of a user namespace and the clocks of a time namespace.

use super::{SpecError, check_text, invalid, unsupported};
use crate::config::{self, Linux};
use crate::plan::{
    IdMapping, IdMappings, MountKind, MountPlan, NamespaceKind, Namespaces, OffsetClock,
    ProcessPlan, TimeOffset,
};
use std::path::PathBuf;

/// `UID_GID_MAP_MAX_EXTENTS` of the kernel, see user_namespaces(7).
const MAX_MAPPINGS: usize = 340;
/// Nanoseconds of a second.
const NANOSECONDS: u32 = 1_000_000_000;

/// Decides which namespaces are made and which are joined.
pub(super) fn plan_namespaces(linux: &Linux) -> Result<Namespaces, SpecError> {
    let mut planned = Namespaces::default();
    for (index, namespace) in linux.namespaces.iter().enumerate() {
        let field = format!("linux.namespaces[{index}].type");
        let Some(kind) = NamespaceKind::ALL
            .into_iter()
            .find(|kind| kind.name() == namespace.kind)
        else {
            return Err(invalid(field, &namespace.kind, "is not a namespace type"));
        };
        if planned.separates(kind) {
            return Err(invalid(field, kind.name(), "is listed twice"));
        }
        if namespace.path.is_empty() {
            planned.new.push(kind);
        } else {
            let field = format!("linux.namespaces[{index}].path");
            check_text(&field, &namespace.path)?;
            if !namespace.path.starts_with('/') {
                return Err(invalid(field, &namespace.path, "is not absolute"));
            }
            planned.join.push((kind, PathBuf::from(&namespace.path)));
        }
    }
    if !planned.separates(NamespaceKind::Mount) {
        return Err(unsupported(
            "linux.namespaces without \"mount\"",
            "the container's mounts would be made on the host",
        ));
    }
    Ok(planned)
}

/// The kinds of namespaces a document lists, known ones only.
pub(crate) fn kinds(linux: &Linux) -> Vec<NamespaceKind> {
    let all = NamespaceKind::ALL.into_iter();
    all.filter(|kind| linux.namespaces.iter().any(|n| n.kind == kind.name()))
        .collect()
}

/// Checks a list of ranges by the rules of the kernel, so that writing it can only fail for want of
/// permission.
pub(super) fn plan_mappings(
    field: &str,
    mappings: &[config::IdMapping],
) -> Result<Vec<IdMapping>, SpecError> {
    // CVE-2021-43784: a list too long for whatever carries it must be refused, never cut.
    if mappings.len() > MAX_MAPPINGS {
        return Err(invalid(
            field,
            format!("{} entries", mappings.len()),
            format!("are more than the {MAX_MAPPINGS} the kernel takes"),
        ));
    }
    let mut planned: Vec<IdMapping> = Vec::with_capacity(mappings.len());
    for (index, mapping) in mappings.iter().enumerate() {
        let field = |name: &str| format!("{field}[{index}].{name}");
        if mapping.size == 0 {
            return Err(invalid(field("size"), "0", "maps nothing"));
        }
        for (name, first) in [
            ("containerID", mapping.container_id),
            ("hostID", mapping.host_id),
        ] {
            // The highest number means "no id" and is not mapped.
            if u64::from(first) + u64::from(mapping.size) > u64::from(u32::MAX) {
                return Err(invalid(
                    field(name),
                    first.to_string(),
                    format!("with size {} goes beyond the highest id", mapping.size),
                ));
            }
        }
        let overlaps = |a: u32, b: u32, size: u32| {
            u64::from(a) < u64::from(b) + u64::from(size)
                && u64::from(b) < u64::from(a) + u64::from(mapping.size)
        };
        for earlier in &planned {
            if overlaps(mapping.container_id, earlier.container, earlier.size) {
                return Err(invalid(
                    field("containerID"),
                    mapping.container_id.to_string(),
                    "overlaps an earlier entry",
                ));
            }
            if overlaps(mapping.host_id, earlier.host, earlier.size) {
                return Err(invalid(
                    field("hostID"),
                    mapping.host_id.to_string(),
                    "overlaps an earlier entry",
                ));
            }
        }
        planned.push(IdMapping {
            container: mapping.container_id,
            host: mapping.host_id,
            size: mapping.size,
        });
    }
    Ok(planned)
}

/// The ids of the container's user namespace.
pub(super) fn plan_id_mappings(
    linux: &Linux,
    namespaces: &Namespaces,
) -> Result<IdMappings, SpecError> {
    let lists = [
        ("linux.uidMappings", &linux.uid_mappings),
        ("linux.gidMappings", &linux.gid_mappings),
    ];
    for (field, list) in lists {
        if list.is_empty() && namespaces.makes(NamespaceKind::User) {
            return Err(invalid(
                field,
                "[]",
                "is empty, but a user namespace is to be made",
            ));
        }
        if !list.is_empty() && !namespaces.separates(NamespaceKind::User) {
            return Err(invalid(
                field,
                format!("{} entries", list.len()),
                "need a user namespace in linux.namespaces",
            ));
        }
    }
    Ok(IdMappings {
        uids: plan_mappings("linux.uidMappings", &linux.uid_mappings)?,
        gids: plan_mappings("linux.gidMappings", &linux.gid_mappings)?,
    })
}

/// Refuses ids that the container's user namespace does not have, where it is made from the document.
pub(super) fn check_ids(
    mappings: &IdMappings,
    namespaces: &Namespaces,
    process: &ProcessPlan,
    mounts: &[MountPlan],
) -> Result<(), SpecError> {
    for mount in mounts {
        let implied = mount.idmap.as_ref().is_some_and(|i| i.mappings.is_none());
        if implied && !namespaces.separates(NamespaceKind::User) {
            return Err(invalid(
                format!("mounts[{}].options", mount.index),
                "idmap",
                "needs mappings, or a user namespace of the container to take them from",
            ));
        }
    }
    if !namespaces.makes(NamespaceKind::User) {
        return Ok(());
    }
    check_process_ids(mappings, process)?;
    for mount in mounts {
        let MountKind::New { parameters, .. } = &mount.kind else {
            continue;
        };
        for (key, value) in parameters {
            let id = value.as_deref().and_then(|value| value.parse::<u32>().ok());
            let mapped = match (key.as_str(), id) {
                ("uid", Some(id)) => mappings.host_uid(id).is_some(),
                ("gid", Some(id)) => mappings.host_gid(id).is_some(),
                _ => true,
            };
            if !mapped {
                return Err(invalid(
                    format!("mounts[{}].options", mount.index),
                    format!("{key}={}", value.as_deref().unwrap_or_default()),
                    "is not mapped in the container's user namespace",
                ));
            }
        }
    }
    Ok(())
}

/// Refuses a process whose user or groups are not mapped.
///
/// # Errors
/// [`SpecError::Invalid`] naming the field.
pub(crate) fn check_process_ids(
    mappings: &IdMappings,
    process: &ProcessPlan,
) -> Result<(), SpecError> {
    let groups = process.additional_gids.iter();
    let ids = [("process.user.gid", process.gid)]
        .into_iter()
        .chain(groups.map(|gid| ("process.user.additionalGids", *gid)))
        .map(|(field, gid)| (field, gid, mappings.host_gid(gid)));
    let uid = ("process.user.uid", process.uid);
    for (field, id, host) in std::iter::once((uid.0, uid.1, mappings.host_uid(uid.1))).chain(ids) {
        if host.is_none() {
            return Err(invalid(
                field,
                id.to_string(),
                "is not mapped in the container's user namespace",
            ));
        }
    }
    Ok(())
}

/// The clocks of a new time namespace.
pub(super) fn plan_time_offsets(
    linux: &Linux,
    namespaces: &Namespaces,
) -> Result<Vec<TimeOffset>, SpecError> {
    let mut planned = Vec::with_capacity(linux.time_offsets.len());
    for (name, offset) in &linux.time_offsets {
        let field = format!("linux.timeOffsets[{name:?}]");
        let clock = match name.as_str() {
            "monotonic" => OffsetClock::Monotonic,
            "boottime" => OffsetClock::Boottime,
            other => return Err(invalid(field, other, "is neither monotonic nor boottime")),
        };
        if !namespaces.makes(NamespaceKind::Time) {
            let reason = if namespaces.separates(NamespaceKind::Time) {
                "is for a new time namespace, the one of a path has its own"
            } else {
                "needs a time namespace in linux.namespaces"
            };
            return Err(invalid(field, offset.secs.to_string(), reason));
        }
        if offset.nanosecs >= NANOSECONDS {
            return Err(invalid(
                format!("{field}.nanosecs"),
                offset.nanosecs.to_string(),
                "is a second or more",
            ));
        }
        planned.push(TimeOffset {
            clock,
            seconds: offset.secs,
            nanoseconds: offset.nanosecs,
        });
    }
    Ok(planned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(container_id: u32, host_id: u32, size: u32) -> config::IdMapping {
        config::IdMapping {
            container_id,
            host_id,
            size,
        }
    }

    #[track_caller]
    fn refused(mappings: &[config::IdMapping], words: &str) {
        let text = plan_mappings("m", mappings).unwrap_err().to_string();
        assert!(text.contains(words), "{text:?} does not say {words:?}");
    }

    #[test]
    fn mappings_follow_the_rules_of_the_kernel() {
        let whole = [mapping(0, 0, u32::MAX)];
        assert_eq!(plan_mappings("m", &whole).unwrap()[0].size, u32::MAX);
        let touching = [
            mapping(0, 1000, 1),
            mapping(1, 100_000, 999),
            mapping(1000, 0, 1),
        ];
        assert_eq!(plan_mappings("m", &touching).unwrap().len(), 3);
        refused(&[mapping(0, 0, 0)], "m[0].size");
        refused(&[mapping(u32::MAX, 0, 1)], "m[0].containerID");
        refused(&[mapping(0, u32::MAX - 1, 2)], "m[0].hostID");
        refused(&[mapping(0, 0, 10), mapping(9, 100, 1)], "m[1].containerID");
        refused(&[mapping(0, 100, 10), mapping(10, 99, 2)], "m[1].hostID");
        refused(
            &[mapping(5, 5, 1), mapping(0, 100, 100)],
            "m[1].containerID",
        );
    }

    #[test]
    fn cve_2021_43784_ten_thousand_mappings_are_refused_whole() {
        let many = |count: u32| -> Vec<_> { (0..count).map(|i| mapping(i, i, 1)).collect() };
        assert_eq!(plan_mappings("m", &many(340)).unwrap().len(), 340);
        refused(&many(341), "341 entries");
        refused(&many(10_000), "more than the 340");
    }

    #[test]
    fn ids_are_found_through_all_ranges() {
        let uids = [mapping(0, 1000, 1), mapping(1, 100_000, 65_535)];
        let mappings = IdMappings {
            uids: plan_mappings("m", &uids).unwrap(),
            gids: Vec::new(),
        };
        assert_eq!(mappings.host_uid(0), Some(1000));
        assert_eq!(mappings.host_uid(65_535), Some(165_534));
        assert_eq!(mappings.host_uid(65_536), None);
        assert_eq!(mappings.host_gid(0), None);
    }
}
