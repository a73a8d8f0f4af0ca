//! Scheduling of a process: CPU scheduler, I/O priority, CPU affinity, and the NUMA memory policy.
//!
//! Combinations that sched_setattr(2) and set_mempolicy(2) answer with EINVAL on every kernel are refused
//! here, with the reason the kernel does not give.

use std::ops::BitOr;

use super::{SpecError, invalid};
use crate::config::{ExecCpuAffinity, IoPriority, MemoryPolicy, Scheduler};
use crate::plan::{AffinityPlan, IoPriorityPlan, MemoryPolicyPlan, NumberSet, SchedulerPlan};

const FIFO: u32 = 1;
const ROUND_ROBIN: u32 = 2;
const RESERVED_ISO: u32 = 4;
const DEADLINE: u32 = 6;

/// `SCHED_*` of linux/sched.h.
const POLICIES: [(&str, u32); 7] = [
    ("SCHED_OTHER", 0),
    ("SCHED_FIFO", FIFO),
    ("SCHED_RR", ROUND_ROBIN),
    ("SCHED_BATCH", 3),
    ("SCHED_ISO", RESERVED_ISO),
    ("SCHED_IDLE", 5),
    ("SCHED_DEADLINE", DEADLINE),
];

/// `SCHED_FLAG_*` of linux/sched.h.
const SCHEDULER_FLAGS: [(&str, u64); 7] = [
    ("SCHED_FLAG_RESET_ON_FORK", 0x01),
    ("SCHED_FLAG_RECLAIM", 0x02),
    ("SCHED_FLAG_DL_OVERRUN", 0x04),
    ("SCHED_FLAG_KEEP_POLICY", 0x08),
    ("SCHED_FLAG_KEEP_PARAMS", 0x10),
    ("SCHED_FLAG_UTIL_CLAMP_MIN", 0x20),
    ("SCHED_FLAG_UTIL_CLAMP_MAX", 0x40),
];

/// Shortest runtime the kernel accepts, in nanoseconds (`DL_SCALE`).
const LEAST_RUNTIME: u64 = 1 << 10;

pub(super) fn plan_scheduler(scheduler: &Scheduler) -> Result<SchedulerPlan, SpecError> {
    let field = |name: &str| format!("process.scheduler.{name}");
    if scheduler.policy.is_empty() {
        return Err(SpecError::Missing {
            field: "process.scheduler.policy",
        });
    }
    let Some(&(name, policy)) = POLICIES.iter().find(|(name, _)| *name == scheduler.policy) else {
        return Err(invalid(
            field("policy"),
            &scheduler.policy,
            "is not a scheduling policy",
        ));
    };
    if policy == RESERVED_ISO {
        return Err(invalid(
            field("policy"),
            name,
            "is a reserved name, no kernel implements it",
        ));
    }
    if !(-20..=19).contains(&scheduler.nice) {
        return Err(invalid(
            field("nice"),
            scheduler.nice.to_string(),
            "is not between -20 and 19",
        ));
    }
    let wrong = "is not a scheduler flag";
    let flags = bits_of(&SCHEDULER_FLAGS, &scheduler.flags, &field("flags"), wrong)?;
    check_priority(scheduler, policy)?;
    check_deadline(scheduler, policy)?;
    Ok(SchedulerPlan {
        name,
        policy,
        flags,
        nice: scheduler.nice,
        priority: scheduler.priority.cast_unsigned(),
        runtime: scheduler.runtime,
        deadline: scheduler.deadline,
        period: scheduler.period,
    })
}

/// The bits that the `flags` of `field` stand for.
fn bits_of<T>(
    known: &[(&str, T)],
    flags: &[String],
    field: &str,
    wrong: &str,
) -> Result<T, SpecError>
where
    T: Copy + Default + BitOr<Output = T>,
{
    let mut bits = T::default();
    for (index, flag) in flags.iter().enumerate() {
        let found = known.iter().find(|(name, _)| name == flag);
        let (_, bit) = found.ok_or_else(|| invalid(format!("{field}[{index}]"), flag, wrong))?;
        bits = bits | *bit;
    }
    Ok(bits)
}

fn check_priority(scheduler: &Scheduler, policy: u32) -> Result<(), SpecError> {
    let real_time = policy == FIFO || policy == ROUND_ROBIN;
    let reason = match (real_time, scheduler.priority) {
        (true, 1..=99) | (false, 0) => return Ok(()),
        (true, _) => "is not between 1 and 99, as the real-time policies want it",
        (false, _) => "goes with SCHED_FIFO and SCHED_RR only",
    };
    let shown = scheduler.priority.to_string();
    Err(invalid("process.scheduler.priority", shown, reason))
}

fn check_deadline(scheduler: &Scheduler, policy: u32) -> Result<(), SpecError> {
    let Scheduler {
        runtime,
        deadline,
        period,
        ..
    } = *scheduler;
    let wrong = |name: &str, value: u64, reason: String| {
        let field = format!("process.scheduler.{name}");
        Err(invalid(field, value.to_string(), reason))
    };
    if policy != DEADLINE {
        let set = [
            ("runtime", runtime),
            ("deadline", deadline),
            ("period", period),
        ];
        return match set.into_iter().find(|(_, value)| *value != 0) {
            Some((name, value)) => wrong(name, value, "goes with SCHED_DEADLINE only".to_owned()),
            None => Ok(()),
        };
    }
    // sched_setattr(2): runtime <= deadline <= period, and a period of zero is the deadline.
    if runtime < LEAST_RUNTIME {
        return wrong("runtime", runtime, format!("is below {LEAST_RUNTIME} ns"));
    }
    if deadline < runtime {
        return wrong(
            "deadline",
            deadline,
            format!("is below the runtime {runtime}"),
        );
    }
    if period != 0 && period < deadline {
        return wrong(
            "period",
            period,
            format!("is below the deadline {deadline}"),
        );
    }
    Ok(())
}

const IO_CLASSES: [(&str, u32); 3] = [
    ("IOPRIO_CLASS_RT", 1),
    ("IOPRIO_CLASS_BE", 2),
    ("IOPRIO_CLASS_IDLE", 3),
];

pub(super) fn plan_io_priority(priority: &IoPriority) -> Result<IoPriorityPlan, SpecError> {
    if priority.class.is_empty() {
        return Err(SpecError::Missing {
            field: "process.ioPriority.class",
        });
    }
    let Some(&(name, class)) = IO_CLASSES.iter().find(|(name, _)| *name == priority.class) else {
        return Err(invalid(
            "process.ioPriority.class",
            &priority.class,
            "is not an I/O scheduling class",
        ));
    };
    let level = u32::try_from(priority.priority)
        .ok()
        .filter(|level| *level <= 7)
        .ok_or_else(|| {
            invalid(
                "process.ioPriority.priority",
                priority.priority.to_string(),
                "is not between 0 and 7",
            )
        })?;
    Ok(IoPriorityPlan { name, class, level })
}

pub(super) fn plan_affinity(affinity: &ExecCpuAffinity) -> Result<AffinityPlan, SpecError> {
    let set = |name: &str, list: &str| {
        if list.is_empty() {
            return Ok(None);
        }
        let field = format!("process.execCPUAffinity.{name}");
        NumberSet::parse(list)
            .map(Some)
            .map_err(|(part, reason)| invalid(field, part, reason))
    };
    Ok(AffinityPlan {
        initial: set("initial", &affinity.initial)?,
        last: set("final", &affinity.last)?,
    })
}

/// `MPOL_*` of linux/mempolicy.h, and whether the mode takes nodes: never, always, or as one likes.
const MEMORY_MODES: [(&str, i32, Nodes); 7] = [
    ("MPOL_DEFAULT", 0, Nodes::None),
    ("MPOL_PREFERRED", 1, Nodes::Any),
    ("MPOL_BIND", 2, Nodes::Some),
    ("MPOL_INTERLEAVE", 3, Nodes::Some),
    ("MPOL_LOCAL", 4, Nodes::None),
    ("MPOL_PREFERRED_MANY", 5, Nodes::Some),
    ("MPOL_WEIGHTED_INTERLEAVE", 6, Nodes::Some),
];

/// `MPOL_F_*` of linux/mempolicy.h.
const MEMORY_FLAGS: [(&str, i32); 3] = [
    ("MPOL_F_NUMA_BALANCING", 1 << 13),
    ("MPOL_F_RELATIVE_NODES", 1 << 14),
    ("MPOL_F_STATIC_NODES", 1 << 15),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Nodes {
    None,
    Some,
    Any,
}

/// Names of the modes, for `features`.
pub(crate) fn memory_policy_modes() -> Vec<&'static str> {
    MEMORY_MODES.iter().map(|(name, _, _)| *name).collect()
}

/// Names of the flags, for `features`.
pub(crate) fn memory_policy_flags() -> Vec<&'static str> {
    MEMORY_FLAGS.iter().map(|(name, _)| *name).collect()
}

pub(super) fn plan_memory_policy(policy: &MemoryPolicy) -> Result<MemoryPolicyPlan, SpecError> {
    let field = |name: &str| format!("linux.memoryPolicy.{name}");
    let Some(&(name, number, wanted)) = MEMORY_MODES
        .iter()
        .find(|(name, _, _)| *name == policy.mode)
    else {
        return Err(invalid(
            field("mode"),
            &policy.mode,
            "is an invalid memory policy mode",
        ));
    };
    let wrong = "is an invalid memory policy flag";
    let mode = number | bits_of(&MEMORY_FLAGS, &policy.flags, &field("flags"), wrong)?;
    let nodes = if policy.nodes.trim().is_empty() {
        NumberSet::default()
    } else {
        NumberSet::parse(&policy.nodes).map_err(|(part, reason)| {
            let reason = format!("is an invalid memory policy node: it {reason}");
            invalid(field("nodes"), part, reason)
        })?
    };
    let count = nodes.count();
    match wanted {
        Nodes::None if count > 0 => {
            let reason =
                format!("cannot go with {name}: the mode requires 0 nodes but got {count}");
            return Err(invalid(field("nodes"), &policy.nodes, reason));
        }
        Nodes::Some if count == 0 => {
            let reason = format!("cannot go with {name}: the mode requires at least 1 node");
            return Err(invalid(field("nodes"), &policy.nodes, reason));
        }
        Nodes::None | Nodes::Some | Nodes::Any => {}
    }
    let has = |bit: i32| mode & bit != 0;
    let (balancing, relative, fixed) = (1 << 13, 1 << 14, 1 << 15);
    let shown = policy.flags.join(", ");
    // set_mempolicy(2), EINVAL.
    if has(relative) && has(fixed) {
        let reason = "has two flags that exclude each other";
        return Err(invalid(field("flags"), shown, reason));
    }
    if count == 0 && (has(relative) || has(fixed)) {
        let reason = "says how to read nodes, and there are none";
        return Err(invalid(field("flags"), shown, reason));
    }
    if has(balancing) && !matches!(name, "MPOL_BIND" | "MPOL_PREFERRED_MANY") {
        let reason =
            "has MPOL_F_NUMA_BALANCING, which goes with MPOL_BIND and MPOL_PREFERRED_MANY only";
        return Err(invalid(field("flags"), shown, reason));
    }
    Ok(MemoryPolicyPlan { name, mode, nodes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scheduler(policy: &str) -> Scheduler {
        Scheduler {
            policy: policy.to_owned(),
            ..Scheduler::default()
        }
    }

    #[test]
    fn every_policy_and_flag_has_its_number() {
        for (policy, priority, number) in [
            ("SCHED_OTHER", 0, 0),
            ("SCHED_FIFO", 1, 1),
            ("SCHED_RR", 99, 2),
            ("SCHED_BATCH", 0, 3),
            ("SCHED_IDLE", 0, 5),
        ] {
            let planned = plan_scheduler(&Scheduler {
                priority,
                flags: SCHEDULER_FLAGS.iter().map(|f| f.0.to_owned()).collect(),
                ..scheduler(policy)
            })
            .unwrap();
            assert_eq!((planned.policy, planned.flags), (number, 0x7f));
        }
        let planned = plan_scheduler(&Scheduler {
            runtime: 42_000,
            deadline: 100_000,
            ..scheduler("SCHED_DEADLINE")
        })
        .unwrap();
        assert_eq!((planned.policy, planned.period), (6, 0));
    }

    #[test]
    fn what_no_kernel_takes_is_refused_by_field() {
        let refused = |change: &dyn Fn(&mut Scheduler), field: &str| {
            let mut wrong = scheduler("SCHED_OTHER");
            change(&mut wrong);
            let text = plan_scheduler(&wrong).unwrap_err().to_string();
            assert!(
                text.contains(&format!("process.scheduler.{field}")),
                "{text}"
            );
        };
        refused(&|s| s.policy.clear(), "policy");
        refused(&|s| s.policy = "SCHED_ISO".to_owned(), "policy");
        refused(&|s| s.policy = "FIFO".to_owned(), "policy");
        refused(&|s| s.nice = 20, "nice");
        refused(&|s| s.nice = -21, "nice");
        refused(&|s| s.priority = 1, "priority");
        refused(&|s| s.policy = "SCHED_FIFO".to_owned(), "priority");
        refused(
            &|s| {
                s.policy = "SCHED_RR".to_owned();
                s.priority = 100;
            },
            "priority",
        );
        refused(&|s| s.flags = vec!["X".to_owned()], "flags[0]");
        refused(&|s| s.period = 1, "period");
        let deadline = |runtime, deadline, period| {
            move |s: &mut Scheduler| {
                s.policy = "SCHED_DEADLINE".to_owned();
                (s.runtime, s.deadline, s.period) = (runtime, deadline, period);
            }
        };
        refused(&deadline(1023, 2000, 3000), "runtime");
        refused(&deadline(2000, 1999, 3000), "deadline");
        refused(&deadline(2000, 3000, 2999), "period");
    }

    #[test]
    fn io_priorities_are_a_class_and_a_level() {
        let plan = |class: &str, priority| {
            plan_io_priority(&IoPriority {
                class: class.to_owned(),
                priority,
            })
        };
        assert_eq!(plan("IOPRIO_CLASS_RT", 7).unwrap().class, 1);
        assert_eq!(plan("IOPRIO_CLASS_IDLE", 0).unwrap().class, 3);
        for (class, priority) in [
            ("", 0),
            ("IOPRIO_CLASS_NONE", 0),
            ("IOPRIO_CLASS_BE", 8),
            ("IOPRIO_CLASS_BE", -1),
        ] {
            assert!(plan(class, priority).is_err(), "{class} {priority}");
        }
    }

    #[test]
    fn lists_of_numbers_become_masks() {
        let words = |text| NumberSet::parse(text).unwrap().words().to_vec();
        assert_eq!(words("0-3,7"), [0b1000_1111]);
        assert_eq!(words(" 64 , 0 "), [1, 1]);
        assert_eq!(NumberSet::parse("8191").unwrap().count(), 1);
        for bad in [
            "",
            ",",
            "1,",
            "-1",
            "1-",
            "3-1",
            "a",
            "8192",
            "0-9876543210",
            "0x1",
            "+1",
        ] {
            assert!(NumberSet::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn memory_policies_are_modes_with_flags_and_nodes() {
        let plan = |mode: &str, nodes: &str, flags: &[&str]| {
            plan_memory_policy(&MemoryPolicy {
                mode: mode.to_owned(),
                nodes: nodes.to_owned(),
                flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            })
        };
        assert_eq!(plan("MPOL_DEFAULT", "", &[]).unwrap().mode, 0);
        assert_eq!(plan("MPOL_LOCAL", "", &[]).unwrap().mode, 4);
        assert_eq!(plan("MPOL_PREFERRED", "", &[]).unwrap().nodes.count(), 0);
        for mode in [
            "MPOL_BIND",
            "MPOL_INTERLEAVE",
            "MPOL_WEIGHTED_INTERLEAVE",
            "MPOL_PREFERRED_MANY",
        ] {
            assert!(plan(mode, "0", &["MPOL_F_STATIC_NODES"]).is_ok(), "{mode}");
            assert!(plan(mode, "", &[]).is_err(), "{mode}");
        }
        assert_eq!(
            plan("MPOL_BIND", "0-1", &["MPOL_F_NUMA_BALANCING"])
                .unwrap()
                .mode,
            2 | 1 << 13
        );
        for (mode, nodes, flags, field) in [
            ("", "0", &[][..], "linux.memoryPolicy.mode"),
            ("BIND", "0", &[], "linux.memoryPolicy.mode"),
            ("MPOL_DEFAULT", "0-7", &[], "requires 0 nodes but got 8"),
            ("MPOL_BIND", "0-9876543210", &[], "linux.memoryPolicy.nodes"),
            (
                "MPOL_BIND",
                "0",
                &["badflag"],
                "linux.memoryPolicy.flags[0]",
            ),
            (
                "MPOL_BIND",
                "0",
                &["MPOL_F_STATIC_NODES", "MPOL_F_RELATIVE_NODES"],
                "exclude each other",
            ),
            (
                "MPOL_PREFERRED",
                "",
                &["MPOL_F_STATIC_NODES"],
                "there are none",
            ),
            (
                "MPOL_INTERLEAVE",
                "0",
                &["MPOL_F_NUMA_BALANCING"],
                "MPOL_BIND",
            ),
        ] {
            let text = plan(mode, nodes, flags).unwrap_err().to_string();
            assert!(text.contains(field), "{text}");
        }
    }
}
