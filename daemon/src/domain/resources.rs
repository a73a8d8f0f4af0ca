//! Resource limits as the CRI states them, in the kernel's units.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// CRI `LinuxContainerResources`. Zero and empty mean "not set", as in the CRI.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LinuxResources {
    /// CFS period in microseconds.
    pub cpu_period_us: i64,
    /// CFS quota in microseconds per period; negative is unlimited.
    pub cpu_quota_us: i64,
    /// Relative CPU weight, 2 to 262144, cgroup v1 scale.
    pub cpu_shares: i64,
    /// Memory limit in bytes.
    pub memory_limit_bytes: i64,
    /// Memory plus swap limit in bytes.
    pub memory_swap_limit_bytes: i64,
    /// `oom_score_adj` of the processes, -1000 to 1000.
    pub oom_score_adj: i64,
    /// CPUs allowed, in the kernel's list format.
    pub cpuset_cpus: String,
    /// Memory nodes allowed, in the kernel's list format.
    pub cpuset_mems: String,
    /// Limits by page size ("2MB"), in bytes.
    pub hugepage_limits: Vec<HugepageLimit>,
    /// cgroup v2 files and values written as they are.
    pub unified: BTreeMap<String, String>,
}

/// A limit on huge pages of one size.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HugepageLimit {
    /// The page size as the kernel names it: "2MB", "1GB".
    pub page_size: String,
    /// Bytes.
    pub limit_bytes: u64,
}
