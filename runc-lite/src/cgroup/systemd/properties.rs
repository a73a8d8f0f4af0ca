//! Limits as properties of a unit, see systemd.resource-control(5) and org.freedesktop.systemd1(5).

use zbus::Variant;

use super::super::device::{Kind, access_text};
use super::super::v2::limits::{DEFAULT_PERIOD, io_weight, swap_alone, weight_of_shares};
use super::super::{CgroupError, Change, DeviceSet};
use super::{SystemdError, Unit};
use crate::config::{Cpu, DeviceRule, Memory, Resources};
use crate::plan::NumberSet;

/// Name and value.
pub(super) type Property = (String, Variant<'static>);

/// Versions that decide which properties there are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Version {
    /// Of the cgroup tree: 1 or 2.
    pub(super) cgroup: u8,
    /// Of systemd.
    pub(super) systemd: u32,
}

/// `infinity`.
const NO_LIMIT: u64 = u64::MAX;
/// systemd writes the quota to its files in whole percents of a CPU: microseconds in a second.
const PERCENT: u64 = 10_000;
const SECOND: u64 = 1_000_000;

fn property(name: &str, value: impl Into<Variant<'static>>) -> Property {
    (name.to_owned(), value.into())
}

/// What makes a unit the container's scope.
pub(super) fn of_scope(
    unit: &Unit,
    pid: i32,
    version: Version,
) -> Result<Vec<Property>, SystemdError> {
    let io = if version.cgroup == 2 {
        "IOAccounting"
    } else {
        "BlockIOAccounting"
    };
    Ok(vec![
        property("Description", format!("container {}", unit.name)),
        property("Slice", unit.slice.clone()),
        property("Delegate", true),
        property("PIDs", vec![pid.unsigned_abs()]),
        // Stopped with its container, not by the order of a shutdown.
        property("DefaultDependencies", false),
        // A scope whose processes were killed would stay as a failed one.
        property("CollectMode", "inactive-or-failed"),
        property("MemoryAccounting", true),
        property("CPUAccounting", true),
        property("TasksAccounting", true),
        property(io, true),
    ])
}

/// Whether the killer takes all processes: to be told when the unit starts, later it is refused.
pub(super) fn of_oom_group(resources: &Resources, version: Version) -> Option<Property> {
    // OOMPolicy= of scopes came with 253.
    let value = resources.unified.get("memory.oom.group")?;
    let policy = match value.trim() {
        "0" => "continue",
        "1" => "kill",
        _ => return None,
    };
    (version.systemd >= 253).then(|| property("OOMPolicy", policy))
}

/// What is asked for, with the known quota beside a new period and the other way round: systemd has the one
/// only as a share of the other.
pub(super) fn with_bandwidth(change: Change<'_>) -> Resources {
    let mut asked = change.asked.clone();
    let known = change.known.cpu.as_ref();
    if let (Some(cpu), Some(known)) = (&mut asked.cpu, known)
        && (cpu.quota.is_some_and(|q| q != 0) || cpu.period.is_some_and(|p| p != 0))
    {
        cpu.quota = cpu.quota.filter(|q| *q != 0).or(known.quota);
        cpu.period = cpu.period.filter(|p| *p != 0).or(known.period);
    }
    asked
}

/// The quota as whole percents of a CPU, rounded up, so that a later `daemon-reload` changes nothing.
pub(super) fn rounded(resources: &Resources) -> Resources {
    let mut resources = resources.clone();
    if let Some(cpu) = &mut resources.cpu
        && let Some(quota) = cpu.quota.filter(|quota| *quota > 0)
    {
        let period = cpu.period.filter(|p| *p != 0).unwrap_or(DEFAULT_PERIOD);
        let exact = u128::from(quota.unsigned_abs()) * u128::from(SECOND) / u128::from(period);
        let whole = u128::from(per_second(quota, period));
        if exact != whole {
            let rounded = whole * u128::from(period) / u128::from(SECOND);
            cpu.quota = i64::try_from(rounded).ok().or(cpu.quota);
        }
    }
    resources
}

/// Microseconds of CPU time in a second, in whole percents.
fn per_second(quota: i64, period: u64) -> u64 {
    let exact = u128::from(quota.unsigned_abs()) * u128::from(SECOND) / u128::from(period.max(1));
    u64::try_from(exact.next_multiple_of(u128::from(PERCENT))).unwrap_or(NO_LIMIT)
}

/// The limits that are asked for, as far as systemd knows such limits.
pub(super) fn of_limits(
    change: Change<'_>,
    version: Version,
    warnings: &mut Vec<String>,
) -> Result<Vec<Property>, CgroupError> {
    let Change { asked, known, .. } = change;
    let mut properties = Vec::new();
    if let Some(memory) = &asked.memory {
        let known = known.memory.as_ref().unwrap_or(memory);
        of_memory(memory, known, version, &mut properties)?;
    }
    if let Some(cpu) = &asked.cpu {
        let known = known.cpu.as_ref().unwrap_or(cpu);
        of_cpu(cpu, known, version, warnings, &mut properties)?;
    }
    if let Some(limit) = asked.pids.as_ref().and_then(|pids| pids.limit) {
        let limit = match limit {
            // systemd takes no zero.
            0 => 1,
            limit if limit < 0 => NO_LIMIT,
            limit => limit.unsigned_abs(),
        };
        properties.push(property("TasksMax", limit));
    }
    let weight = asked.block_io.as_ref().and_then(|io| io.weight);
    if let Some(weight) = weight.filter(|weight| *weight != 0) {
        properties.push(if version.cgroup == 2 {
            property("IOWeight", io_weight(weight))
        } else {
            property("BlockIOWeight", u64::from(weight))
        });
    }
    if version.cgroup == 2 {
        of_unified(asked, version, warnings, &mut properties)?;
    }
    Ok(properties)
}

/// What takes `changed` back to the limits `before`.
pub(super) fn of_earlier(
    before: &Resources,
    changed: &[Property],
    version: Version,
) -> Result<Vec<Property>, CgroupError> {
    let before = rounded(before);
    let change = Change {
        asked: &before,
        known: &before,
        before: &before,
    };
    let mut earlier = of_limits(change, version, &mut Vec::new())?;
    earlier.retain(|(name, _)| changed.iter().any(|(known, _)| known == name));
    for (name, value) in changed {
        if earlier.iter().any(|(known, _)| known == name) {
            continue;
        }
        // What was not set: no protection, no limit, no weight and no mask.
        match (name.as_str(), value) {
            ("MemoryMin" | "MemoryLow", _) => earlier.push(property(name, 0u64)),
            (_, Variant::U64(_)) => earlier.push(property(name, NO_LIMIT)),
            ("AllowedCPUs" | "AllowedMemoryNodes", _) => {
                earlier.push(property(name, Vec::<u8>::new()));
            }
            _ => {}
        }
    }
    Ok(earlier)
}

fn bytes(value: i64) -> u64 {
    if value < 0 {
        NO_LIMIT
    } else {
        value.unsigned_abs()
    }
}

fn of_memory(
    asked: &Memory,
    known: &Memory,
    version: Version,
    properties: &mut Vec<Property>,
) -> Result<(), CgroupError> {
    let limit = asked.limit.filter(|limit| *limit != 0);
    if version.cgroup != 2 {
        properties.extend(limit.map(|limit| property("MemoryLimit", bytes(limit))));
        return Ok(());
    }
    properties.extend(limit.map(|limit| property("MemoryMax", bytes(limit))));
    if let Some(low) = asked.reservation.filter(|low| *low != 0) {
        properties.push(property("MemoryLow", bytes(low)));
    }
    if let Some(swap) = swap_alone(asked, known)? {
        properties.push(property("MemorySwapMax", bytes(swap)));
    }
    Ok(())
}

fn of_cpu(
    asked: &Cpu,
    known: &Cpu,
    version: Version,
    warnings: &mut Vec<String>,
    properties: &mut Vec<Property>,
) -> Result<(), CgroupError> {
    let shares = |cpu: &Cpu| cpu.shares.filter(|shares| *shares != 0);
    if version.cgroup == 2 {
        // Since 252 a weight of zero means idle.
        match asked.idle.filter(|_| version.systemd >= 252) {
            Some(1) => {
                if shares(asked).is_some() {
                    warnings.push(
                        "unable to apply both cpu.idle and cpu.weight to systemd: cpu.shares ignored"
                            .to_owned(),
                    );
                }
                properties.push(property("CPUWeight", 0u64));
            }
            Some(0) => {
                let weight = shares(known).map_or(100, weight_of_shares);
                properties.push(property("CPUWeight", weight));
            }
            _ => {
                let weight = shares(asked).map(weight_of_shares);
                properties.extend(weight.map(|weight| property("CPUWeight", weight)));
            }
        }
    } else {
        properties.extend(shares(asked).map(|shares| property("CPUShares", shares)));
    }
    let given = |cpu: &Cpu| {
        (
            cpu.quota.filter(|quota| *quota != 0),
            cpu.period.filter(|period| *period != 0),
        )
    };
    let (asked_quota, asked_period) = given(asked);
    if asked_quota.is_some() || asked_period.is_some() {
        let (quota, period) = given(known);
        let period = asked_period.or(period);
        properties.extend(of_bandwidth(asked_quota.or(quota), period, version));
    }
    for (name, field, list) in [
        ("AllowedCPUs", "cpu.cpus", &asked.cpus),
        ("AllowedMemoryNodes", "cpu.mems", &asked.mems),
    ] {
        if !list.is_empty() && version.systemd >= 244 {
            properties.push(property(name, bits(field, list)?));
        }
    }
    Ok(())
}

fn of_bandwidth(quota: Option<i64>, period: Option<u64>, version: Version) -> Vec<Property> {
    let mut properties = Vec::new();
    if let Some(period) = period.filter(|_| version.systemd >= 242) {
        properties.push(property("CPUQuotaPeriodUSec", period));
    }
    let quota = match quota {
        Some(quota) if quota > 0 => per_second(quota, period.unwrap_or(DEFAULT_PERIOD)),
        _ => NO_LIMIT,
    };
    properties.push(property("CPUQuotaPerSecUSec", quota));
    properties
}

/// Files of the unified tree that are properties too. The others are written to the tree alone.
fn of_unified(
    asked: &Resources,
    version: Version,
    warnings: &mut Vec<String>,
    properties: &mut Vec<Property>,
) -> Result<(), CgroupError> {
    let idles = |value: &str| value.trim() == "1" && version.systemd >= 252;
    let is_idle = asked.unified.get("cpu.idle").is_some_and(|v| idles(v));
    for (key, value) in &asked.unified {
        let value = value.trim();
        let bad = |reason| SystemdError::BadLimit {
            field: format!("unified[{key:?}]"),
            value: value.to_owned(),
            reason,
        };
        let number = |text: &str| match text {
            "max" => Ok(NO_LIMIT),
            text => text
                .parse::<u64>()
                .map_err(|_| bad("is neither a number nor max")),
        };
        match key.as_str() {
            "cpu.idle" if is_idle => properties.push(property("CPUWeight", 0u64)),
            "cpu.weight" if is_idle => warnings.push(
                "unable to apply both cpu.weight and cpu.idle to systemd: cpu.weight ignored"
                    .to_owned(),
            ),
            "cpu.weight" => properties.push(property("CPUWeight", number(value)?)),
            "cpu.max" => {
                let mut words = value.split_whitespace();
                let quota = match number(words.next().unwrap_or_default())? {
                    NO_LIMIT => -1,
                    quota => i64::try_from(quota).unwrap_or(-1),
                };
                let period = words.next().map(number).transpose()?;
                properties.extend(of_bandwidth(Some(quota), period, version));
            }
            "cpuset.cpus" if version.systemd >= 244 => {
                properties.push(property("AllowedCPUs", bits("unified", value)?));
            }
            "cpuset.mems" if version.systemd >= 244 => {
                properties.push(property("AllowedMemoryNodes", bits("unified", value)?));
            }
            "memory.min" => properties.push(property("MemoryMin", number(value)?)),
            "memory.low" => properties.push(property("MemoryLow", number(value)?)),
            "memory.high" => properties.push(property("MemoryHigh", number(value)?)),
            "memory.max" => properties.push(property("MemoryMax", number(value)?)),
            "memory.swap.max" => properties.push(property("MemorySwapMax", number(value)?)),
            "pids.max" => properties.push(property("TasksMax", number(value)?.max(1))),
            _ => {}
        }
    }
    // The map is the last word: what it says stands instead of what came from the other fields.
    let mut seen = std::collections::BTreeSet::new();
    properties.reverse();
    properties.retain(|(name, _)| seen.insert(name.clone()));
    properties.reverse();
    Ok(())
}

/// A list such as `0-2,5` as a mask, the lowest eight in the first byte.
fn bits(field: &str, list: &str) -> Result<Vec<u8>, SystemdError> {
    let set = NumberSet::parse(list).map_err(|(_, reason)| SystemdError::BadLimit {
        field: field.to_owned(),
        value: list.to_owned(),
        reason,
    })?;
    let words = set.words().iter();
    let mut mask: Vec<u8> = words.flat_map(|word| word.to_le_bytes()).collect();
    mask.truncate(
        mask.iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last + 1),
    );
    Ok(mask)
}

/// The device rules, where systemd has words for them. It knows allowed devices only; of what it cannot
/// say it is told nothing, and our own rules in the cgroup stand alone.
pub(super) fn of_devices(
    rules: &[DeviceRule],
    version: Version,
    warnings: &mut Vec<String>,
) -> Vec<Property> {
    let set = DeviceSet::of_rules(rules);
    // An empty list takes back what an earlier one allowed.
    let nothing = || property("DeviceAllow", Vec::<(String, String)>::new());
    let open = || vec![property("DevicePolicy", "auto"), nothing()];
    let exceptions = set.exceptions().ok().filter(|e| !e.allow_by_default);
    let entries = exceptions.and_then(|exceptions| {
        let entries = exceptions.entries.iter();
        entries
            .map(|(device, bits)| {
                let kind = if device.kind == Kind::Block {
                    "block"
                } else {
                    "char"
                };
                let path = match (device.major, device.minor) {
                    (None, None) => format!("{kind}-*"),
                    // By number since 240, by the name in /proc/devices before.
                    (Some(major), None) if version.systemd >= 240 => format!("{kind}-{major}"),
                    (Some(major), Some(minor)) => format!("/dev/{kind}/{major}:{minor}"),
                    _ => return None,
                };
                Some((path, access_text(*bits)))
            })
            .collect::<Option<Vec<(String, String)>>>()
    });
    match entries {
        Some(entries) => vec![
            property("DevicePolicy", "strict"),
            nothing(),
            property("DeviceAllow", entries),
        ],
        None => {
            if !set.allows_everything() && version.cgroup != 2 {
                warnings.push(
                    "linux.resources.devices: systemd cannot express the rules; they hold until its next reload"
                        .to_owned(),
                );
            }
            open()
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NEW: Version = Version {
        cgroup: 2,
        systemd: 252,
    };

    fn limits(asked: &serde_json::Value, version: Version) -> Vec<(String, String)> {
        changed(asked, asked, version).0
    }

    fn changed(
        asked: &serde_json::Value,
        known: &serde_json::Value,
        version: Version,
    ) -> (Vec<(String, String)>, Vec<String>) {
        let asked: Resources = serde_json::from_value(asked.clone()).unwrap();
        let known: Resources = serde_json::from_value(known.clone()).unwrap();
        let mut warnings = Vec::new();
        let change = Change {
            asked: &asked,
            known: &known,
            before: &known,
        };
        let found = of_limits(change, version, &mut warnings).unwrap();
        (texts(found), warnings)
    }

    fn texts(properties: Vec<Property>) -> Vec<(String, String)> {
        let text = |value: &Variant<'_>| match value {
            Variant::U64(n) => n.to_string(),
            Variant::Str(text) => text.to_string(),
            other => format!("{other}"),
        };
        properties
            .into_iter()
            .map(|(name, value)| (name, text(&value)))
            .collect()
    }

    #[track_caller]
    fn has(found: &[(String, String)], name: &str, value: &str) {
        assert!(
            found.contains(&(name.to_owned(), value.to_owned())),
            "{name}={value} is not in {found:?}"
        );
    }

    #[test]
    fn limits_are_properties_of_both_versions() {
        let asked = json!({
            "memory": {"limit": 100, "swap": 150, "reservation": 50},
            "cpu": {"shares": 1024, "quota": 50_000, "period": 100_000, "cpus": "0-1,9", "mems": "0"},
            "pids": {"limit": -1},
            "blockIO": {"weight": 1000}
        });
        let v2 = limits(&asked, NEW);
        has(&v2, "MemoryMax", "100");
        has(&v2, "MemoryLow", "50");
        has(&v2, "MemorySwapMax", "50");
        has(&v2, "CPUWeight", "100");
        has(&v2, "CPUQuotaPeriodUSec", "100000");
        has(&v2, "CPUQuotaPerSecUSec", "500000");
        has(&v2, "TasksMax", &u64::MAX.to_string());
        has(&v2, "IOWeight", "10000");
        let cpus = v2.iter().find(|(name, _)| name == "AllowedCPUs").unwrap();
        assert!(cpus.1.contains('3') || cpus.1.contains("\\x03"), "{cpus:?}");
        let v1 = limits(
            &asked,
            Version {
                cgroup: 1,
                systemd: 240,
            },
        );
        has(&v1, "MemoryLimit", "100");
        has(&v1, "CPUShares", "1024");
        has(&v1, "BlockIOWeight", "1000");
        for absent in [
            "MemorySwapMax",
            "CPUQuotaPeriodUSec",
            "AllowedCPUs",
            "CPUWeight",
        ] {
            assert!(!v1.iter().any(|(name, _)| name == absent), "{absent}");
        }
    }

    #[test]
    fn quotas_are_whole_percents() {
        let asked = json!({"cpu": {"quota": 12_345, "period": 100_000}});
        has(&limits(&asked, NEW), "CPUQuotaPerSecUSec", "130000");
        let resources: Resources = serde_json::from_value(asked).unwrap();
        assert_eq!(rounded(&resources).cpu.unwrap().quota, Some(13_000));
        for (quota, period) in [(50_000, 100_000), (-1, 100_000), (3000, 10_000)] {
            let same: Resources =
                serde_json::from_value(json!({"cpu": {"quota": quota, "period": period}})).unwrap();
            assert_eq!(rounded(&same).cpu.unwrap().quota, Some(quota));
        }
        // One is asked for, the other known.
        let known = json!({"cpu": {"quota": 500_000, "period": 900_000}});
        let (found, _) = changed(&json!({"cpu": {"period": 900_000}}), &known, NEW);
        has(&found, "CPUQuotaPerSecUSec", "560000");
        has(&found, "CPUQuotaPeriodUSec", "900000");
        has(
            &limits(&json!({"cpu": {"quota": -1}}), NEW),
            "CPUQuotaPerSecUSec",
            &u64::MAX.to_string(),
        );
    }

    #[test]
    fn idle_is_a_weight_of_zero() {
        let both = json!({"cpu": {"idle": 1, "shares": 200}});
        let (found, warnings) = changed(&both, &both, NEW);
        assert_eq!(found, [("CPUWeight".to_owned(), "0".to_owned())]);
        assert!(warnings[0].contains("unable to apply both"));
        let known = json!({"cpu": {"idle": 0, "shares": 1024}});
        let (found, _) = changed(&json!({"cpu": {"idle": 0}}), &known, NEW);
        has(&found, "CPUWeight", "100");
        let unified = json!({"unified": {"cpu.idle": "1", "cpu.weight": "8"}});
        let (found, warnings) = changed(&unified, &unified, NEW);
        assert_eq!(found, [("CPUWeight".to_owned(), "0".to_owned())]);
        assert!(warnings[0].contains("unable to apply both"));
    }

    #[test]
    fn the_unified_map_has_the_last_word() {
        let asked = json!({
            "pids": {"limit": 5},
            "unified": {"pids.max": "9", "cpu.max": "max 50000", "memory.high": "7",
                        "memory.swap.max": "max", "cpuset.cpus": "1", "hugetlb.2MB.max": "0"}
        });
        let found = limits(&asked, NEW);
        has(&found, "TasksMax", "9");
        has(&found, "CPUQuotaPerSecUSec", &u64::MAX.to_string());
        has(&found, "CPUQuotaPeriodUSec", "50000");
        has(&found, "MemoryHigh", "7");
        has(&found, "MemorySwapMax", &u64::MAX.to_string());
        assert_eq!(
            found.iter().filter(|(name, _)| name == "TasksMax").count(),
            1
        );
        let bad: Resources =
            serde_json::from_value(json!({"unified": {"pids.max": "many"}})).unwrap();
        let change = Change {
            asked: &bad,
            known: &bad,
            before: &bad,
        };
        let error = of_limits(change, NEW, &mut Vec::new())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("unified[\"pids.max\"]") && error.contains("\"many\""),
            "{error}"
        );
    }

    #[test]
    fn masks_have_the_lowest_bit_first() {
        assert_eq!(bits("f", "0").unwrap(), [1]);
        assert_eq!(bits("f", "0-2,5").unwrap(), [0b10_0111]);
        assert_eq!(bits("f", " 8 , 17").unwrap(), [0, 1, 2]);
        for list in ["", ",", "x", "3-1", "-1", "99999999", "1-"] {
            assert!(bits("f", list).is_err(), "{list:?}");
        }
    }

    #[test]
    fn devices_are_named_in_the_words_of_systemd() {
        let rules: Vec<DeviceRule> = serde_json::from_value(json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "b", "major": 8, "minor": 1, "access": "r"}
        ]))
        .unwrap();
        let found = texts(of_devices(&rules, NEW, &mut Vec::new()));
        has(&found, "DevicePolicy", "strict");
        for word in [
            "/dev/block/8:1",
            "/dev/char/1:3",
            "char-136",
            "char-*",
            "block-*",
        ] {
            assert!(found[2].1.contains(word), "{word}: {found:?}");
        }
        let all: Vec<DeviceRule> =
            serde_json::from_value(json!([{"allow": true, "access": "rwm"}])).unwrap();
        let open = of_devices(&all, NEW, &mut Vec::new());
        // systemd refuses any other type.
        assert_eq!(open[1].1.value_signature().to_string(), "a(ss)");
        has(&texts(open), "DevicePolicy", "auto");
        // Everything but one, which only our own program can say.
        let but: Vec<DeviceRule> = serde_json::from_value(json!([
            {"allow": true, "access": "rwm"},
            {"allow": false, "type": "b", "major": 8, "minor": 1, "access": "r"}
        ]))
        .unwrap();
        let mut warnings = Vec::new();
        has(
            &texts(of_devices(&but, NEW, &mut warnings)),
            "DevicePolicy",
            "auto",
        );
        assert!(warnings.is_empty());
        let old = Version { cgroup: 1, ..NEW };
        of_devices(&but, old, &mut warnings);
        assert_eq!(warnings.len(), 1);
    }

    #[test]
    fn killing_as_a_group_is_told_at_the_start() {
        let with = |value: &str| -> Resources {
            serde_json::from_value(json!({"unified": {"memory.oom.group": value}})).unwrap()
        };
        let newer = Version {
            systemd: 253,
            ..NEW
        };
        assert_eq!(of_oom_group(&with("1"), NEW), None);
        let kill = Some(property("OOMPolicy", "kill"));
        assert_eq!(of_oom_group(&with("1"), newer), kill);
        assert_eq!(of_oom_group(&with("2"), newer), None);
    }
}
