//! The ids of a user namespace as asked for, checked by the rules of the kernel and of the CRI before anything is
//! made of them.

use serde::{Deserialize, Serialize};

/// Most runs of ids of one namespace (user_namespaces(7), `UID_GID_MAP_MAX_EXTENTS`).
const MAX_MAPPINGS: usize = 340;

/// A run of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMapping {
    /// First id in the namespace; for a volume, in its file system.
    pub container: u32,
    /// First id on the node.
    pub host: u32,
    /// How many.
    pub length: u32,
}

/// Users and groups of a namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMappings {
    /// Users.
    pub uids: Vec<IdMapping>,
    /// Groups.
    pub gids: Vec<IdMapping>,
}

/// Whose user namespace a pod or container has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UserNamespace {
    /// Nothing was asked: a pod has the node's, a container its pod's.
    #[default]
    Unset,
    /// The node's.
    Node,
    /// The pod's own.
    Pod(IdMappings),
}

impl UserNamespace {
    /// The ids of a namespace of the pod's own.
    #[must_use]
    pub fn ids(&self) -> Option<&IdMappings> {
        match self {
            Self::Unset | Self::Node => None,
            Self::Pod(ids) => Some(ids),
        }
    }

    /// Whether a container that asks for `self` fits into a pod with `pod`.
    #[must_use]
    pub fn fits(&self, pod: &Self) -> bool {
        *self == Self::Unset || self.ids() == pod.ids()
    }
}

/// Why ids cannot be mapped so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct MappingError {
    /// The field, from `uids` or `gids` on.
    pub field: String,
    /// What is wrong.
    pub reason: String,
}

impl IdMappings {
    /// Checks ids of a volume or a namespace.
    ///
    /// # Errors
    /// Names the field: no runs or too many, an empty one, one beyond the last id, two that overlap.
    pub fn check(&self) -> Result<(), MappingError> {
        check("uids", &self.uids)?;
        check("gids", &self.gids)
    }

    /// Checks ids of a pod's namespace: one run, as the kubelet sends and critest wants, and with a root.
    ///
    /// # Errors
    /// As [`IdMappings::check`], and more than one run, no id 0, or one that is the node's own root.
    pub fn check_namespace(&self) -> Result<(), MappingError> {
        self.check()?;
        for (field, list, id) in [
            ("uids", &self.uids, self.host_uid(0)),
            ("gids", &self.gids, self.host_gid(0)),
        ] {
            let refuse = |reason: &str| MappingError {
                field: field.to_owned(),
                reason: reason.to_owned(),
            };
            if list.len() > 1 {
                return Err(refuse("has more than one entry"));
            }
            if id.is_none() {
                return Err(refuse("id 0 of the pod is not mapped"));
            }
            if list.iter().any(|run| run.host == 0) {
                return Err(refuse("id 0 of the node must stay the node's"));
            }
        }
        Ok(())
    }

    /// The node's id of a user of the namespace.
    #[must_use]
    pub fn host_uid(&self, uid: u32) -> Option<u32> {
        host_of(&self.uids, uid)
    }

    /// The node's id of a group of the namespace.
    #[must_use]
    pub fn host_gid(&self, gid: u32) -> Option<u32> {
        host_of(&self.gids, gid)
    }
}

fn host_of(list: &[IdMapping], id: u32) -> Option<u32> {
    list.iter().find_map(|run| {
        let offset = id.checked_sub(run.container)?;
        (offset < run.length).then(|| run.host + offset)
    })
}

fn check(field: &str, list: &[IdMapping]) -> Result<(), MappingError> {
    let refuse = |field: String, reason: &str| {
        Err(MappingError {
            field,
            reason: reason.to_owned(),
        })
    };
    if list.is_empty() {
        return refuse(field.to_owned(), "is empty");
    }
    if list.len() > MAX_MAPPINGS {
        return refuse(field.to_owned(), "has more than 340 entries");
    }
    for (index, run) in list.iter().enumerate() {
        let at = |name: &str| format!("{field}[{index}].{name}");
        if run.length == 0 {
            return refuse(at("length"), "is 0");
        }
        for (name, first) in [("container_id", run.container), ("host_id", run.host)] {
            // The last number means "no id" and is none.
            if u64::from(first) + u64::from(run.length) > u64::from(u32::MAX) {
                return refuse(at(name), "goes beyond the last id with its length");
            }
        }
        for earlier in &list[..index] {
            let overlap = |a: u32, b: u32| {
                u64::from(a) < u64::from(b) + u64::from(earlier.length)
                    && u64::from(b) < u64::from(a) + u64::from(run.length)
            };
            if overlap(run.container, earlier.container) {
                return refuse(at("container_id"), "overlaps an earlier entry");
            }
            if overlap(run.host, earlier.host) {
                return refuse(at("host_id"), "overlaps an earlier entry");
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(container: u32, host: u32, length: u32) -> IdMapping {
        IdMapping {
            container,
            host,
            length,
        }
    }

    fn both(list: &[IdMapping]) -> IdMappings {
        IdMappings {
            uids: list.to_vec(),
            gids: list.to_vec(),
        }
    }

    #[test]
    fn what_the_kubelet_sends_is_taken() {
        let ids = both(&[run(0, 65_536, 65_536)]);
        ids.check_namespace().unwrap();
        assert_eq!(ids.host_uid(0), Some(65_536));
        assert_eq!(ids.host_gid(65_535), Some(131_071));
        assert_eq!(ids.host_uid(65_536), None);
        both(&[run(1000, 5, 1), run(0, 100, 10)]).check().unwrap();
    }

    #[test]
    fn what_the_kernel_would_not_take_is_refused_by_field() {
        for (list, words) in [
            (vec![], "uids: is empty"),
            (vec![run(0, 1, 0)], "uids[0].length"),
            (vec![run(0, u32::MAX - 4, 5)], "uids[0].host_id"),
            (vec![run(u32::MAX, 1, 1)], "uids[0].container_id"),
            (
                vec![run(0, 10, 5), run(4, 20, 1)],
                "uids[1].container_id: overlaps",
            ),
            (
                vec![run(0, 10, 5), run(5, 14, 1)],
                "uids[1].host_id: overlaps",
            ),
            (vec![run(0, 10, 5), run(5, 20, 1)], "more than one"),
            (vec![run(1, 10, 5)], "id 0 of the pod"),
            (vec![run(0, 0, 5)], "id 0 of the node"),
            (
                (0..341).map(|n| run(n, n + 1, 1)).collect(),
                "more than 340",
            ),
        ] {
            let error = both(&list).check_namespace().unwrap_err().to_string();
            assert!(error.contains(words), "{words}: {error}");
        }
        let mut gids = both(&[run(0, 10, 5)]);
        gids.gids.clear();
        assert!(gids.check().unwrap_err().to_string().starts_with("gids"));
    }

    #[test]
    fn a_container_has_its_pods_namespace_or_none() {
        let pod = UserNamespace::Pod(both(&[run(0, 10, 5)]));
        let other = UserNamespace::Pod(both(&[run(0, 20, 5)]));
        assert!(UserNamespace::Unset.fits(&pod) && pod.fits(&pod));
        assert!(UserNamespace::Node.fits(&UserNamespace::Unset));
        assert!(!UserNamespace::Node.fits(&pod) && !other.fits(&pod));
        assert!(!pod.fits(&UserNamespace::Node));
    }

    proptest! {
        #[test]
        fn what_is_taken_maps_no_two_ids_to_one(
            runs in proptest::collection::vec((0u32..60, 1u32..60, 0u32..12), 1..5)
        ) {
            let list: Vec<_> = runs.into_iter().map(|(c, h, l)| run(c, h, l)).collect();
            let ids = both(&list);
            if ids.check().is_ok() {
                let mut seen = std::collections::BTreeSet::new();
                for id in (0..100).filter_map(|id| ids.host_uid(id)) {
                    prop_assert!(seen.insert(id));
                }
                let total: u32 = list.iter().map(|run| run.length).sum();
                prop_assert_eq!(seen.len(), usize::try_from(total).unwrap());
            }
        }
    }
}
