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

impl LinuxResources {
    /// These with a change upon them: what the change leaves unset stays as it is.
    ///
    /// A new memory limit without a word on swap keeps what may be swapped: none stays none, unlimited stays
    /// unlimited, and an amount stays that amount.
    #[must_use]
    pub fn with(&self, change: &Self) -> Self {
        let number = |before: i64, after: i64| if after == 0 { before } else { after };
        let text = |before: &str, after: &str| {
            let chosen = if after.is_empty() { before } else { after };
            chosen.to_owned()
        };
        let mut hugepage_limits = self.hugepage_limits.clone();
        for limit in &change.hugepage_limits {
            let same = |known: &&mut HugepageLimit| known.page_size == limit.page_size;
            match hugepage_limits.iter_mut().find(same) {
                Some(known) => known.limit_bytes = limit.limit_bytes,
                None => hugepage_limits.push(limit.clone()),
            }
        }
        let mut unified = self.unified.clone();
        unified.extend(change.unified.clone());
        Self {
            cpu_period_us: number(self.cpu_period_us, change.cpu_period_us),
            cpu_quota_us: number(self.cpu_quota_us, change.cpu_quota_us),
            cpu_shares: number(self.cpu_shares, change.cpu_shares),
            memory_limit_bytes: number(self.memory_limit_bytes, change.memory_limit_bytes),
            memory_swap_limit_bytes: self.swap_limit_with(change),
            oom_score_adj: number(self.oom_score_adj, change.oom_score_adj),
            cpuset_cpus: text(&self.cpuset_cpus, &change.cpuset_cpus),
            cpuset_mems: text(&self.cpuset_mems, &change.cpuset_mems),
            hugepage_limits,
            unified,
        }
    }

    fn swap_limit_with(&self, change: &Self) -> i64 {
        let (limit, both) = (self.memory_limit_bytes, self.memory_swap_limit_bytes);
        if change.memory_swap_limit_bytes != 0 {
            return change.memory_swap_limit_bytes;
        }
        if change.memory_limit_bytes > 0 && limit > 0 && both > 0 {
            return change.memory_limit_bytes.saturating_add(both - limit);
        }
        both
    }

    /// This change with what belongs to what it names, from the whole it leads to: the kernel takes memory and
    /// swap as a pair.
    #[must_use]
    pub fn completed_from(&self, whole: &Self) -> Self {
        let mut change = self.clone();
        if change.memory_limit_bytes != 0 || change.memory_swap_limit_bytes != 0 {
            change.memory_limit_bytes = whole.memory_limit_bytes;
            change.memory_swap_limit_bytes = whole.memory_swap_limit_bytes;
        }
        change
    }

    /// What takes a change back: for each field it names the value here, or the kernel's own where here is none.
    /// What has no such value (CPUs, memory nodes, huge pages, files of cgroup v2) is left out.
    #[must_use]
    pub fn reversal_of(&self, change: &Self) -> Self {
        let number = |changed: i64, here: i64, kernels: i64| match (changed, here) {
            (0, _) => 0,
            (_, 0) => kernels,
            (_, here) => here,
        };
        let text = |changed: &str, here: &str| {
            let kept = if changed.is_empty() { "" } else { here };
            kept.to_owned()
        };
        let pages = self.hugepage_limits.iter().filter(|here| {
            let sizes = change.hugepage_limits.iter();
            sizes
                .into_iter()
                .any(|changed| changed.page_size == here.page_size)
        });
        let files = self.unified.iter();
        let files = files.filter(|(file, _)| change.unified.contains_key(*file));
        let memory = change.memory_limit_bytes | change.memory_swap_limit_bytes;
        let swap = if memory == 0 {
            0
        } else {
            self.memory_swap_limit_bytes
        };
        Self {
            cpu_period_us: number(change.cpu_period_us, self.cpu_period_us, 100_000),
            cpu_quota_us: number(change.cpu_quota_us, self.cpu_quota_us, -1),
            cpu_shares: number(change.cpu_shares, self.cpu_shares, 1024),
            memory_limit_bytes: number(memory, self.memory_limit_bytes, -1),
            memory_swap_limit_bytes: swap,
            oom_score_adj: 0,
            cpuset_cpus: text(&change.cpuset_cpus, &self.cpuset_cpus),
            cpuset_mems: text(&change.cpuset_mems, &self.cpuset_mems),
            hugepage_limits: pages.cloned().collect(),
            unified: files
                .map(|(file, value)| (file.clone(), value.clone()))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(limit: i64, swap: i64) -> LinuxResources {
        LinuxResources {
            memory_limit_bytes: limit,
            memory_swap_limit_bytes: swap,
            ..LinuxResources::default()
        }
    }

    #[test]
    fn what_a_change_leaves_unset_stays() {
        let before = LinuxResources {
            cpu_period_us: 1,
            cpu_quota_us: 2,
            cpu_shares: 3,
            memory_limit_bytes: 4,
            memory_swap_limit_bytes: 5,
            oom_score_adj: 6,
            cpuset_cpus: "7".into(),
            cpuset_mems: "8".into(),
            hugepage_limits: vec![HugepageLimit {
                page_size: "2MB".into(),
                limit_bytes: 9,
            }],
            unified: BTreeMap::from([("memory.high".into(), "10".into())]),
        };
        assert_eq!(before.with(&LinuxResources::default()), before);
        assert_eq!(LinuxResources::default().with(&before), before);
        let change = LinuxResources {
            cpu_quota_us: -1,
            cpuset_cpus: "0-3".into(),
            hugepage_limits: vec![
                HugepageLimit {
                    page_size: "2MB".into(),
                    limit_bytes: 0,
                },
                HugepageLimit {
                    page_size: "1GB".into(),
                    limit_bytes: 1,
                },
            ],
            unified: BTreeMap::from([("pids.max".into(), "11".into())]),
            ..LinuxResources::default()
        };
        let after = before.with(&change);
        assert_eq!((after.cpu_quota_us, after.cpu_shares), (-1, 3));
        assert_eq!(
            (after.cpuset_cpus.as_str(), after.cpuset_mems.as_str()),
            ("0-3", "8")
        );
        let pages: Vec<u64> = after
            .hugepage_limits
            .iter()
            .map(|one| one.limit_bytes)
            .collect();
        assert_eq!(pages, [0, 1]);
        assert_eq!(after.unified.len(), 2);
    }

    #[test]
    fn a_new_memory_limit_keeps_what_may_be_swapped() {
        let cases = [
            (memory(100, 100), memory(200, 0), (200, 200)),
            (memory(100, 150), memory(200, 0), (200, 250)),
            (memory(100, 150), memory(60, 0), (60, 110)),
            (memory(100, -1), memory(200, 0), (200, -1)),
            (memory(100, 0), memory(200, 0), (200, 0)),
            (memory(0, 0), memory(200, 0), (200, 0)),
            (memory(100, 100), memory(200, 300), (200, 300)),
            (memory(100, 100), memory(0, 300), (100, 300)),
        ];
        for (before, change, (limit, swap)) in cases {
            let after = before.with(&change);
            assert_eq!(
                (after.memory_limit_bytes, after.memory_swap_limit_bytes),
                (limit, swap),
                "{before:?} {change:?}"
            );
        }
    }

    #[test]
    fn a_change_is_taken_back_to_what_was_or_to_the_kernels_own() {
        let before = LinuxResources {
            cpu_shares: 512,
            cpuset_cpus: "0".into(),
            ..memory(100, 150)
        };
        let change = LinuxResources {
            cpu_quota_us: 5000,
            cpu_shares: 9,
            cpuset_cpus: "1".into(),
            cpuset_mems: "1".into(),
            ..memory(200, 0)
        };
        let back = LinuxResources {
            cpu_quota_us: -1,
            ..before.clone()
        };
        assert_eq!(before.reversal_of(&change), back);
        assert_eq!(
            LinuxResources::default().reversal_of(&memory(5, 5)),
            memory(-1, 0)
        );
        let nothing = LinuxResources::default();
        assert_eq!(before.reversal_of(&nothing), nothing);
    }

    #[test]
    fn memory_and_swap_are_told_together_and_only_with_a_word_on_either() {
        let whole = memory(100, 150);
        assert_eq!(memory(100, 0).completed_from(&whole), whole);
        assert_eq!(memory(0, 150).completed_from(&whole), whole);
        assert_eq!(memory(0, 0).completed_from(&whole), memory(0, 0));
    }
}
