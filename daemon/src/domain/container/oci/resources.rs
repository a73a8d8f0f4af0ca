//! Limits of the CRI as limits of the OCI runtime spec. Zero and empty are "not set", as in the CRI.

use super::{CgroupResources, Cpu, HostFacts, HugepageLimit, Memory, OciError, Pids};
use crate::domain::resources::LinuxResources;

/// What the kernel takes as a CFS period, in microseconds.
const CPU_PERIOD_US: std::ops::RangeInclusive<i64> = 1_000..=1_000_000;

/// The smallest CFS quota the kernel takes, in microseconds.
const MIN_CPU_QUOTA_US: i64 = 1_000;

/// The highest number a list of CPUs or memory nodes may have: kernels are built for 8192 CPUs at most
/// (`CONFIG_NR_CPUS`).
const MAX_CPU_NUMBER: u32 = 8191;

/// Longest value of a cgroup file, in bytes.
const MAX_UNIFIED_BYTES: usize = 4096;

/// `linux.resources` without device rules: of a container's document, or of an update.
///
/// # Errors
/// [`OciError::Resource`] or [`OciError::ResourceUnsupported`] naming the field.
pub fn cgroup_resources(
    resources: &LinuxResources,
    pids_limit: Option<i64>,
    host: &HostFacts,
) -> Result<CgroupResources, OciError> {
    Ok(CgroupResources {
        devices: Vec::new(),
        memory: memory(resources, host)?,
        cpu: cpu(resources)?,
        pids: pids_limit
            .filter(|limit| *limit != 0)
            .map(|limit| Pids { limit }),
        hugepage_limits: hugepages(resources, host)?,
        unified: unified(resources, host)?,
    })
}

/// What is asked for, but not below what the daemon may give.
///
/// # Errors
/// [`OciError::Resource`] when it is not within -1000 to 1000.
pub fn oom_score_adj(asked: i64, host: &HostFacts) -> Result<i64, OciError> {
    if !(-1000..=1000).contains(&asked) {
        return Err(refused("oom_score_adj", asked, "not within -1000 to 1000"));
    }
    Ok(asked.max(host.oom_score_adj_floor))
}

fn refused(field: &'static str, value: impl ToString, reason: &'static str) -> OciError {
    OciError::Resource {
        field,
        value: value.to_string(),
        reason,
    }
}

fn memory(resources: &LinuxResources, host: &HostFacts) -> Result<Option<Memory>, OciError> {
    let limit = resources.memory_limit_bytes;
    let mut swap = resources.memory_swap_limit_bytes;
    if limit > 0 && swap > 0 && swap < limit {
        return Err(refused(
            "memory_swap_limit_in_bytes",
            swap,
            "less than the memory limit, which it includes",
        ));
    }
    // Without a word on swap a container with a limit gets none.
    if swap == 0 {
        swap = limit;
    }
    if !host.swap {
        swap = 0;
    }
    let memory = Memory {
        limit: set(limit),
        swap: set(swap),
    };
    Ok((memory != Memory::default()).then_some(memory))
}

fn cpu(resources: &LinuxResources) -> Result<Option<Cpu>, OciError> {
    let (shares, quota, period) = (
        resources.cpu_shares,
        resources.cpu_quota_us,
        resources.cpu_period_us,
    );
    if shares < 0 {
        return Err(refused("cpu_shares", shares, "negative"));
    }
    if period != 0 && !CPU_PERIOD_US.contains(&period) {
        return Err(refused(
            "cpu_period",
            period,
            "not within 1000 to 1000000 microseconds",
        ));
    }
    if quota > 0 && quota < MIN_CPU_QUOTA_US {
        return Err(refused("cpu_quota", quota, "less than 1000 microseconds"));
    }
    for (field, list) in [
        ("cpuset_cpus", &resources.cpuset_cpus),
        ("cpuset_mems", &resources.cpuset_mems),
    ] {
        check_list(field, list)?;
    }
    let cpu = Cpu {
        shares: set(shares),
        quota: set(quota),
        period: set(period),
        cpus: resources.cpuset_cpus.clone(),
        mems: resources.cpuset_mems.clone(),
    };
    Ok((cpu != Cpu::default()).then_some(cpu))
}

/// Checks a list such as `0-3,7` (cpuset(7), "List format"); empty is not set.
fn check_list(field: &'static str, list: &str) -> Result<(), OciError> {
    if list.is_empty() {
        return Ok(());
    }
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| {
            let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            // Digits that fit no u32 are a number above every bound.
            plain.then(|| text.parse::<u32>().unwrap_or(u32::MAX))
        };
        let (Some(first), Some(last)) = (number(first), number(last)) else {
            return Err(refused(field, list, "not a list such as 0-3,7"));
        };
        if first > last {
            let why = "has a range that ends before it begins";
            return Err(refused(field, list, why));
        }
        if last > MAX_CPU_NUMBER {
            return Err(refused(field, list, "has a number above 8191"));
        }
    }
    Ok(())
}

/// The kubelet limits every page size it knows to zero; only a size that is given something has to exist.
fn hugepages(resources: &LinuxResources, host: &HostFacts) -> Result<Vec<HugepageLimit>, OciError> {
    let mut limits = Vec::new();
    for limit in &resources.hugepage_limits {
        if host.hugetlb.contains(&limit.page_size) {
            limits.push(HugepageLimit {
                page_size: limit.page_size.clone(),
                limit: limit.limit_bytes,
            });
        } else if limit.limit_bytes > 0 {
            return Err(OciError::ResourceUnsupported {
                field: "hugepage_limits",
                value: limit.page_size.clone(),
                reason: "this host has no cgroup limit for huge pages of that size",
            });
        }
    }
    Ok(limits)
}

fn unified(
    resources: &LinuxResources,
    host: &HostFacts,
) -> Result<std::collections::BTreeMap<String, String>, OciError> {
    if let Some(file) = resources.unified.keys().next().filter(|_| !host.cgroup_v2) {
        let reason = "this host does not run on cgroup v2";
        return Err(OciError::ResourceUnsupported {
            field: "unified",
            value: file.clone(),
            reason,
        });
    }
    for (file, value) in &resources.unified {
        // A file of a controller: "memory.high". Those of cgroup.* move and kill processes.
        let name = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let of_controller = file
            .split_once('.')
            .is_some_and(|(c, rest)| !c.is_empty() && !rest.is_empty());
        if !of_controller || !file.bytes().all(name) || file.starts_with("cgroup.") {
            return Err(refused("unified", file, "not a controller's file"));
        }
        if value.len() > MAX_UNIFIED_BYTES || value.contains('\0') {
            return Err(refused(
                "unified",
                file,
                "the value has a NUL byte or is longer than 4096 bytes",
            ));
        }
    }
    Ok(resources.unified.clone())
}

fn set(value: i64) -> Option<i64> {
    (value != 0).then_some(value)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::domain::resources;

    fn v2() -> HostFacts {
        HostFacts {
            cgroup_v2: true,
            swap: true,
            hugetlb: BTreeSet::from(["2MB".to_owned()]),
            oom_score_adj_floor: -1000,
            ..HostFacts::default()
        }
    }

    fn json(resources: &LinuxResources, host: &HostFacts) -> String {
        serde_json::to_string(&cgroup_resources(resources, None, host).unwrap()).unwrap()
    }

    fn refusal(resources: &LinuxResources, host: &HostFacts) -> String {
        cgroup_resources(resources, None, host)
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn nothing_asked_for_is_nothing_written() {
        assert_eq!(json(&LinuxResources::default(), &v2()), "{}");
    }

    #[test]
    fn limits_are_written_as_the_kubelet_gives_them() {
        let resources = LinuxResources {
            cpu_period_us: 100_000,
            cpu_quota_us: 50_000,
            cpu_shares: 512,
            cpuset_cpus: "0-1,3".to_owned(),
            memory_limit_bytes: 1 << 28,
            hugepage_limits: vec![
                resources::HugepageLimit {
                    page_size: "2MB".to_owned(),
                    limit_bytes: 0,
                },
                resources::HugepageLimit {
                    page_size: "1GB".to_owned(),
                    limit_bytes: 0,
                },
            ],
            unified: BTreeMap::from([("memory.high".to_owned(), "200000000".to_owned())]),
            ..LinuxResources::default()
        };
        let limits = cgroup_resources(&resources, Some(100), &v2()).unwrap();
        assert_eq!(
            serde_json::to_string(&limits).unwrap(),
            r#"{"memory":{"limit":268435456,"swap":268435456},"cpu":{"shares":512,"quota":50000,"#
                .to_owned()
                + r#""period":100000,"cpus":"0-1,3"},"pids":{"limit":100},"#
                + r#""hugepageLimits":[{"pageSize":"2MB","limit":0}],"unified":{"memory.high":"200000000"}}"#
        );
    }

    #[test]
    fn swap_follows_the_limit_where_it_can_be_limited() {
        let limits = |memory, swap, host: &HostFacts| {
            let resources = LinuxResources {
                memory_limit_bytes: memory,
                memory_swap_limit_bytes: swap,
                ..LinuxResources::default()
            };
            json(&resources, host)
        };
        assert_eq!(limits(5, 0, &v2()), r#"{"memory":{"limit":5,"swap":5}}"#);
        assert_eq!(limits(5, 9, &v2()), r#"{"memory":{"limit":5,"swap":9}}"#);
        assert_eq!(limits(5, -1, &v2()), r#"{"memory":{"limit":5,"swap":-1}}"#);
        assert_eq!(
            limits(5, 9, &HostFacts::default()),
            r#"{"memory":{"limit":5}}"#
        );
        assert_eq!(
            limits(-1, 0, &HostFacts::default()),
            r#"{"memory":{"limit":-1}}"#
        );
    }

    #[test]
    fn wrong_limits_are_refused_with_field_and_value() {
        let empty = LinuxResources::default;
        for (resources, expect) in [
            (
                LinuxResources {
                    cpu_shares: -1,
                    ..empty()
                },
                "resources.cpu_shares \"-1\"",
            ),
            (
                LinuxResources {
                    cpu_period_us: 999,
                    ..empty()
                },
                "resources.cpu_period \"999\"",
            ),
            (
                LinuxResources {
                    cpu_period_us: 1_000_001,
                    ..empty()
                },
                "resources.cpu_period \"1000001\"",
            ),
            (
                LinuxResources {
                    cpu_quota_us: 1,
                    ..empty()
                },
                "resources.cpu_quota \"1\"",
            ),
            (
                LinuxResources {
                    cpuset_cpus: "0\n".into(),
                    ..empty()
                },
                "resources.cpuset_cpus",
            ),
            (
                LinuxResources {
                    cpuset_mems: "all".into(),
                    ..empty()
                },
                "resources.cpuset_mems \"all\"",
            ),
            (
                LinuxResources {
                    cpuset_cpus: "0-8192".into(),
                    ..empty()
                },
                "resources.cpuset_cpus \"0-8192\"",
            ),
            (
                LinuxResources {
                    cpuset_mems: "99999999999".into(),
                    ..empty()
                },
                "resources.cpuset_mems \"99999999999\": has a number above 8191",
            ),
            (
                LinuxResources {
                    cpuset_cpus: "3-1".into(),
                    ..empty()
                },
                "resources.cpuset_cpus \"3-1\"",
            ),
            (
                LinuxResources {
                    cpuset_cpus: "0,".into(),
                    ..empty()
                },
                "resources.cpuset_cpus \"0,\"",
            ),
            (
                LinuxResources {
                    memory_limit_bytes: 9,
                    memory_swap_limit_bytes: 5,
                    ..empty()
                },
                "resources.memory_swap_limit_in_bytes \"5\"",
            ),
        ] {
            let text = refusal(&resources, &v2());
            assert!(text.starts_with(expect), "{text}");
        }
    }

    #[test]
    fn cve_2023_6476_cgroup_files_are_names_of_controllers_files() {
        for file in [
            "",
            "memory",
            ".high",
            "memory.",
            "../x.y",
            "a/b.c",
            "cgroup.procs",
            "cgroup.kill",
            "m.h\n",
        ] {
            let unified = BTreeMap::from([(file.to_owned(), "1".to_owned())]);
            let resources = LinuxResources {
                unified,
                ..LinuxResources::default()
            };
            assert!(
                refusal(&resources, &v2()).contains("not a controller's file"),
                "{file:?}"
            );
            let text = refusal(&resources, &HostFacts::default());
            assert!(text.contains("cgroup v2"), "{text}");
        }
    }

    #[test]
    fn huge_pages_have_to_exist_when_given() {
        let limit = resources::HugepageLimit {
            page_size: "1GB".to_owned(),
            limit_bytes: 1,
        };
        let resources = LinuxResources {
            hugepage_limits: vec![limit],
            ..LinuxResources::default()
        };
        let error = cgroup_resources(&resources, None, &v2()).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("resources.hugepage_limits \"1GB\""),
            "{error}"
        );
    }

    #[test]
    fn oom_score_adj_has_bounds_and_a_floor() {
        assert_eq!(oom_score_adj(-997, &v2()), Ok(-997));
        assert_eq!(oom_score_adj(-997, &HostFacts::default()), Ok(0));
        assert!(
            oom_score_adj(1001, &v2())
                .unwrap_err()
                .to_string()
                .contains("\"1001\"")
        );
    }
}
