//! `LinuxContainerResources`.

use axil_proto::cri;

use crate::domain::failure::Failure;
use crate::domain::resources::{HugepageLimit, LinuxResources};

/// From the wire; absent is all unset.
///
/// # Errors
/// `InvalidArgument` naming the field and its value.
pub fn from_wire(wire: Option<cri::LinuxContainerResources>) -> Result<LinuxResources, Failure> {
    wire.map_or_else(
        || Ok(LinuxResources::default()),
        |wire| named("linux.resources", wire),
    )
}

/// From the wire, where the message is the field `name` of its request.
///
/// # Errors
/// `InvalidArgument` naming the field and its value.
pub fn named(name: &str, wire: cri::LinuxContainerResources) -> Result<LinuxResources, Failure> {
    let bounded = [
        ("cpu_period", wire.cpu_period, 0, 1_000_000),
        ("cpu_quota", wire.cpu_quota, -1, i64::MAX),
        ("cpu_shares", wire.cpu_shares, 0, 262_144),
        (
            "memory_limit_in_bytes",
            wire.memory_limit_in_bytes,
            0,
            i64::MAX,
        ),
        (
            "memory_swap_limit_in_bytes",
            wire.memory_swap_limit_in_bytes,
            -1,
            i64::MAX,
        ),
        ("oom_score_adj", wire.oom_score_adj, -1000, 1000),
    ];
    for (field, value, least, most) in bounded {
        if !(least..=most).contains(&value) {
            let field = format!("{name}.{field}");
            return Err(Failure::invalid(
                &field,
                value,
                format!("must be {least} to {most}"),
            ));
        }
    }
    Ok(LinuxResources {
        cpu_period_us: wire.cpu_period,
        cpu_quota_us: wire.cpu_quota,
        cpu_shares: wire.cpu_shares,
        memory_limit_bytes: wire.memory_limit_in_bytes,
        memory_swap_limit_bytes: wire.memory_swap_limit_in_bytes,
        oom_score_adj: wire.oom_score_adj,
        cpuset_cpus: wire.cpuset_cpus,
        cpuset_mems: wire.cpuset_mems,
        hugepage_limits: wire
            .hugepage_limits
            .into_iter()
            .map(|one| HugepageLimit {
                page_size: one.page_size,
                limit_bytes: one.limit,
            })
            .collect(),
        unified: wire.unified.into_iter().collect(),
    })
}

/// To the wire.
#[must_use]
pub fn to_wire(resources: &LinuxResources) -> cri::LinuxContainerResources {
    cri::LinuxContainerResources {
        cpu_period: resources.cpu_period_us,
        cpu_quota: resources.cpu_quota_us,
        cpu_shares: resources.cpu_shares,
        memory_limit_in_bytes: resources.memory_limit_bytes,
        oom_score_adj: resources.oom_score_adj,
        cpuset_cpus: resources.cpuset_cpus.clone(),
        cpuset_mems: resources.cpuset_mems.clone(),
        hugepage_limits: resources
            .hugepage_limits
            .iter()
            .map(|one| cri::HugepageLimit {
                page_size: one.page_size.clone(),
                limit: one.limit_bytes,
            })
            .collect(),
        unified: resources.unified.clone().into_iter().collect(),
        memory_swap_limit_in_bytes: resources.memory_swap_limit_bytes,
    }
}
