//! Users, capabilities and limits of a process of the container.

use rustix::process::{DumpableBehavior, Gid, Rlimit, Uid, set_dumpable_behavior};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

use crate::plan::{CapabilityPlan, ProcessPlan};
use crate::spec::CAPABILITY_NAMES;

/// What is still to be done about capabilities once the filter is loaded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Identity {
    sets: CapabilityPlan,
}

fn set(mask: u64) -> CapabilitySet {
    CapabilitySet::from_bits_retain(mask)
}

fn names(mask: u64) -> String {
    let names: Vec<&str> = CAPABILITY_NAMES
        .iter()
        .enumerate()
        .filter(|(number, _)| mask & (1 << number) != 0)
        .map(|(_, name)| *name)
        .collect();
    names.join(", ")
}

/// Cuts the planned sets down to what this process can give; `warn` is told what is left out.
fn available(
    planned: CapabilityPlan,
    warn: &mut dyn FnMut(String),
) -> std::io::Result<CapabilityPlan> {
    let own = capabilities(None)?.permitted.bits();
    let wanted = planned.bounding
        | planned.effective
        | planned.permitted
        | planned.inheritable
        | planned.ambient;
    let missing = wanted & !own;
    if missing != 0 {
        warn(format!(
            "capabilities left out, the runtime does not have them: {}",
            names(missing)
        ));
    }
    let permitted = planned.permitted & own;
    let inheritable = planned.inheritable & own;
    let ambient = planned.ambient & permitted & inheritable;
    let not_ambient = planned.ambient & own & !ambient;
    if not_ambient != 0 {
        warn(format!(
            "ambient capabilities left out, not permitted and inheritable: {}",
            names(not_ambient)
        ));
    }
    Ok(CapabilityPlan {
        bounding: planned.bounding & own,
        effective: planned.effective & permitted,
        inheritable,
        permitted,
        ambient,
    })
}

/// Takes on user, groups and capabilities. `keep` stays permitted (not effective) until execve:
/// a filter without no_new_privs is loaded with it. `may_set_groups` is false where the user namespace denies
/// setgroups(2).
pub(super) fn take_on(
    plan: &ProcessPlan,
    keep: CapabilitySet,
    may_set_groups: bool,
    warn: &mut dyn FnMut(String),
) -> Result<Identity, String> {
    let fail = |what: &str, e: &dyn std::fmt::Display| format!("cannot {what}: {e}");
    let sets = available(plan.capabilities.unwrap_or_default(), warn)
        .map_err(|e| fail("read the runtime's capabilities", &e))?;
    for number in 0..64 {
        let bit = 1u64 << number;
        if sets.bounding & bit != 0 {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(set(bit)) {
            Ok(()) => {}
            // Above the last capability of this kernel.
            Err(rustix::io::Errno::INVAL) => break,
            Err(e) => return Err(fail("drop a capability from the bounding set", &e)),
        }
    }
    rustix::thread::set_keep_capabilities(true).map_err(|e| fail("keep capabilities", &e))?;
    let groups: Vec<Gid> = plan
        .additional_gids
        .iter()
        .map(|gid| Gid::from_raw(*gid))
        .collect();
    // Where the user namespace denies it, the groups of the user who called the runtime stay.
    if may_set_groups {
        rustix::thread::set_thread_groups(&groups)
            .map_err(|e| fail(&format!("set the groups {:?}", plan.additional_gids), &e))?;
    }
    let gid = Gid::from_raw(plan.gid);
    rustix::thread::set_thread_res_gid(gid, gid, gid)
        .map_err(|e| fail(&format!("set the group {}", plan.gid), &e))?;
    let uid = Uid::from_raw(plan.uid);
    rustix::thread::set_thread_res_uid(uid, uid, uid)
        .map_err(|e| fail(&format!("set the user {}", plan.uid), &e))?;
    // With fs.suid_dumpable set, a change of user makes a process traceable again.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|e| fail("protect the process", &e))?;
    rustix::thread::set_keep_capabilities(false).map_err(|e| fail("drop capabilities", &e))?;
    let now = CapabilitySets {
        effective: set(sets.effective),
        permitted: set(sets.permitted) | keep,
        inheritable: set(sets.inheritable),
    };
    set_capabilities(None, now).map_err(|e| fail("set the capabilities", &e))?;
    rustix::thread::clear_ambient_capability_set()
        .map_err(|e| fail("clear the ambient capabilities", &e))?;
    for number in 0..CAPABILITY_NAMES.len() {
        if sets.ambient & (1 << number) != 0 {
            rustix::thread::configure_capability_in_ambient_set(set(1 << number), true)
                .map_err(|e| fail("set the ambient capabilities", &e))?;
        }
    }
    Ok(Identity { sets })
}

impl Identity {
    /// Puts the kept capability in force, for the one call that needs it.
    pub(super) fn raise(&self, kept: CapabilitySet) -> std::io::Result<()> {
        let now = CapabilitySets {
            effective: set(self.sets.effective) | kept,
            permitted: set(self.sets.permitted) | kept,
            inheritable: set(self.sets.inheritable),
        };
        Ok(set_capabilities(None, now)?)
    }
}

/// Sets the resource limits. A hard limit that cannot be raised for want of CAP_SYS_RESOURCE stays where it
/// is, and `warn` is told.
pub(super) fn set_limits(plan: &ProcessPlan, warn: &mut dyn FnMut(String)) -> Result<(), String> {
    let value = |number: u64| {
        if number == u64::MAX {
            None
        } else {
            Some(number)
        }
    };
    for limit in &plan.rlimits {
        let wanted = Rlimit {
            current: value(limit.soft),
            maximum: value(limit.hard),
        };
        match rustix::process::setrlimit(limit.resource, wanted) {
            Ok(()) => {}
            Err(rustix::io::Errno::PERM) => {
                let hard = rustix::process::getrlimit(limit.resource)
                    .maximum
                    .unwrap_or(u64::MAX);
                let soft = limit.soft.min(hard);
                warn(format!(
                    "{} {}:{} clamped to {soft}:{hard}, the runtime may not raise hard limits",
                    limit.name, limit.soft, limit.hard
                ));
                let clamped = Rlimit {
                    current: value(soft),
                    maximum: value(hard),
                };
                rustix::process::setrlimit(limit.resource, clamped)
                    .map_err(|e| format!("cannot set {}: {e}", limit.name))?;
            }
            Err(e) => {
                return Err(format!(
                    "cannot set {} to {}:{}: {e}",
                    limit.name, limit.soft, limit.hard
                ));
            }
        }
    }
    Ok(())
}
