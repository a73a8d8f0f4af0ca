//! The cgroup path and the checks of `linux.resources` that need no host.

use super::{SpecError, check_text, invalid};
use crate::config::Resources;
use crate::plan::CgroupPath;

/// Far more rules than any container has, few enough to compare each with all others.
const MAX_DEVICE_RULES: usize = 4096;

/// Where the cgroup lies, by the rules of runc's drivers.
pub(super) fn plan_cgroup_path(path: &str) -> Result<CgroupPath, SpecError> {
    let field = "linux.cgroupsPath";
    check_text(field, path)?;
    if path.split('/').any(|part| part == "..") {
        return Err(invalid(field, path, "contains \"..\""));
    }
    if !path.starts_with('/') && path.matches(':').count() == 2 {
        return Ok(CgroupPath::Unit(path.to_owned()));
    }
    let clean = super::clean_path(path);
    if path.starts_with('/') {
        if clean == "/" {
            return Err(invalid(field, path, "is the root cgroup"));
        }
        return Ok(CgroupPath::Absolute(clean));
    }
    // Empty stays empty: the container id takes its place, below the runtime's own cgroup.
    Ok(CgroupPath::Relative(
        clean.trim_start_matches('/').to_owned(),
    ))
}

/// Checks values that no kernel would take.
pub(super) fn check(resources: &Resources) -> Result<(), SpecError> {
    if resources.devices.len() > MAX_DEVICE_RULES {
        return Err(invalid(
            "linux.resources.devices",
            format!("{} rules", resources.devices.len()),
            format!("are more than {MAX_DEVICE_RULES}"),
        ));
    }
    for (index, rule) in resources.devices.iter().enumerate() {
        let field = |name: &str| format!("linux.resources.devices[{index}].{name}");
        if !matches!(rule.kind.as_str(), "" | "a" | "b" | "c") {
            return Err(invalid(field("type"), &rule.kind, "is none of a, b, c"));
        }
        if let Some(odd) = rule.access.chars().find(|c| !"rwm".contains(*c)) {
            return Err(invalid(
                field("access"),
                odd.to_string(),
                "is none of r, w, m",
            ));
        }
        for (name, number) in [("major", rule.major), ("minor", rule.minor)] {
            if let Some(number) = number.filter(|n| *n < -1 || *n > i64::from(u32::MAX)) {
                return Err(invalid(field(name), number.to_string(), "is out of range"));
            }
        }
    }
    if let Some(memory) = &resources.memory
        && let (Some(limit), Some(swap)) = (memory.limit, memory.swap)
        && limit > 0
        && swap > 0
        && swap < limit
    {
        return Err(invalid(
            "linux.resources.memory.swap",
            swap.to_string(),
            format!("is below the memory limit {limit}; it counts memory and swap together"),
        ));
    }
    for (key, value) in &resources.unified {
        let field = format!("linux.resources.unified[{key:?}]");
        check_text(&field, value)?;
        if key.is_empty() || key.contains(['/', '\0']) || key.starts_with("cgroup.") {
            return Err(invalid(field, value, "is not a controller file"));
        }
    }
    for limit in &resources.hugepage_limits {
        if limit.page_size.is_empty() || limit.page_size.contains(['/', '\0']) {
            return Err(invalid(
                "linux.resources.hugepageLimits.pageSize",
                &limit.page_size,
                "is not a page size",
            ));
        }
    }
    Ok(())
}
