//! Device rules as cgroup v1 has them, and as systemd's `DeviceAllow` has them: a default and the accesses
//! for which the opposite holds, in no order.

use std::collections::BTreeMap;

use super::{Device, DeviceSet, Kind, access_bits, access_text};
use crate::cgroup::CgroupError;

/// A default and its exceptions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cgroup) struct Exceptions {
    pub(in crate::cgroup) allow_by_default: bool,
    pub(in crate::cgroup) entries: BTreeMap<Device, u8>,
}

impl DeviceSet {
    /// The same without an order.
    ///
    /// # Errors
    /// [`CgroupError::HoleInRules`] when a later rule takes only a part of an earlier one back: the kernel
    /// would leave the earlier one as it is.
    pub(in crate::cgroup) fn exceptions(&self) -> Result<Exceptions, CgroupError> {
        let mut entries: BTreeMap<Device, u8> = BTreeMap::new();
        for rule in &self.rules {
            if rule.allow != self.allow_by_default {
                *entries.entry(rule.device).or_default() |= rule.access;
                continue;
            }
            for (device, bits) in &mut entries {
                if *bits & rule.access == 0 || !rule.device.overlaps(*device) {
                    continue;
                }
                if !rule.device.covers(*device) {
                    return Err(CgroupError::HoleInRules {
                        rule: format!("{} {}", rule.device, access_text(rule.access)),
                        wider: format!("{device} {}", access_text(*bits)),
                    });
                }
                *bits &= !rule.access;
            }
            entries.retain(|_, bits| *bits != 0);
        }
        Ok(Exceptions {
            allow_by_default: self.allow_by_default,
            entries,
        })
    }
}

impl Exceptions {
    /// Understands `devices.list`. A list that begins with everything says nothing about its exceptions.
    pub(in crate::cgroup) fn parse(list: &str) -> Option<Exceptions> {
        let mut entries = BTreeMap::new();
        for line in list.lines() {
            let mut words = line.split_whitespace();
            let kind = match words.next()? {
                "b" => Kind::Block,
                "c" => Kind::Character,
                _ => return None,
            };
            let (major, minor) = words.next()?.split_once(':')?;
            let device = Device {
                kind,
                major: major.parse().ok(),
                minor: minor.parse().ok(),
            };
            *entries.entry(device).or_default() |= access_bits(words.next()?);
        }
        Some(Exceptions {
            allow_by_default: false,
            entries,
        })
    }

    /// The writes that lead from nothing known to this: file and value, in order.
    pub(in crate::cgroup) fn writes(&self) -> Vec<(&'static str, String)> {
        let (reset, except) = if self.allow_by_default {
            ("devices.allow", "devices.deny")
        } else {
            ("devices.deny", "devices.allow")
        };
        let mut writes = vec![(reset, "a".to_owned())];
        for (device, bits) in &self.entries {
            writes.push((except, format!("{device} {}", access_text(*bits))));
        }
        writes
    }

    /// The writes that lead here from `now`. Between two lists of the allowed nothing that both allow is
    /// denied for a moment: what is new comes first, what is gone goes after it.
    pub(in crate::cgroup) fn writes_from(
        &self,
        now: Option<&Exceptions>,
    ) -> Vec<(&'static str, String)> {
        let Some(now) = now.filter(|now| !now.allow_by_default && !self.allow_by_default) else {
            return self.writes();
        };
        let missing = |in_set: &Exceptions, of: &Exceptions, file: &'static str| {
            let mut writes = Vec::new();
            for (device, bits) in &of.entries {
                let lacking = bits & !in_set.entries.get(device).copied().unwrap_or_default();
                if lacking != 0 {
                    writes.push((file, format!("{device} {}", access_text(lacking))));
                }
            }
            writes
        };
        let mut writes = missing(now, self, "devices.allow");
        writes.extend(missing(self, now, "devices.deny"));
        writes
    }
}
