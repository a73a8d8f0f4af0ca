//! Scheduling of a process of the container: policy, I/O priority, execution domain, NUMA memory policy, CPUs.

use crate::plan::{MemoryPolicyPlan, NumberSet, ProcessPlan, SchedulerPlan};
use crate::sys::{self, SchedulingAttributes};

/// Takes on what the plan says. The caller is in its cgroup and has the runtime's capabilities.
pub(super) fn apply(plan: &ProcessPlan) -> Result<(), String> {
    if let Some(persona) = plan.personality {
        sys::set_personality(persona)
            .map_err(|e| format!("cannot set linux.personality to {persona:#x}: {e}"))?;
    }
    if let Some(policy) = &plan.memory_policy {
        set_memory_policy(policy)?;
    }
    if let Some(priority) = plan.io_priority {
        sys::set_io_priority(priority.class, priority.level).map_err(|e| {
            let needs = match e.raw_os_error() {
                Some(libc::EPERM) => " (the real-time class needs CAP_SYS_NICE)",
                _ => "",
            };
            format!(
                "cannot set process.ioPriority to {} {}: {e}{needs}",
                priority.name, priority.level
            )
        })?;
    }
    plan.scheduler.map_or(Ok(()), set_scheduler)
}

fn set_scheduler(plan: SchedulerPlan) -> Result<(), String> {
    let attributes = SchedulingAttributes {
        policy: plan.policy,
        flags: plan.flags,
        nice: plan.nice,
        priority: plan.priority,
        runtime: plan.runtime,
        deadline: plan.deadline,
        period: plan.period,
        ..SchedulingAttributes::default()
    };
    sys::set_scheduler(attributes).map_err(|e| {
        // sched_setattr(2) has one errno for several causes, and tells none of them.
        let hint = match (e.raw_os_error(), plan.name) {
            (Some(libc::EPERM), "SCHED_DEADLINE") => {
                " (it needs CAP_SYS_NICE and every CPU of the machine: a deadline process scheduler can't be \
                 used together with AllowedCPUs, linux.resources.cpu.cpus)"
            }
            (Some(libc::EPERM), "SCHED_FIFO" | "SCHED_RR") => {
                " (it needs CAP_SYS_NICE and, on cgroup v1, linux.resources.cpu.realtimeRuntime)"
            }
            (Some(libc::EPERM), _) => " (it needs CAP_SYS_NICE)",
            (Some(libc::EOPNOTSUPP), _) => {
                " (the kernel is built without one of the flags of process.scheduler.flags)"
            }
            (Some(libc::EBUSY), _) => " (the CPUs have no such bandwidth left)",
            _ => "",
        };
        format!("cannot set process.scheduler to {}: {e}{hint}", plan.name)
    })
}

fn set_memory_policy(plan: &MemoryPolicyPlan) -> Result<(), String> {
    sys::set_memory_policy(plan.mode, plan.nodes.words()).map_err(|e| {
        let hint = match e.raw_os_error() {
            Some(libc::ENOSYS) => " (the kernel is built without NUMA)",
            Some(libc::EINVAL) => {
                " (the kernel does not know the mode or a flag, or none of linux.memoryPolicy.nodes is \
                 among the memory nodes the container may use)"
            }
            _ => "",
        };
        format!("cannot set linux.memoryPolicy to {}: {e}{hint}", plan.name)
    })
}

/// Keeps process `pid` (0: the caller) on the CPUs of `field`.
pub(super) fn set_affinity(pid: i32, field: &str, cpus: &NumberSet) -> Result<(), String> {
    sys::set_cpu_affinity(pid, cpus.words()).map_err(|e| {
        let hint = match e.raw_os_error() {
            Some(libc::EINVAL) => " (none of them is online and allowed here)",
            _ => "",
        };
        format!("cannot set the CPUs of process.execCPUAffinity.{field}: {e}{hint}")
    })
}

/// Lets process `pid` run on every CPU its cgroup has: the affinity of whoever called the runtime is not
/// the container's. The kernel cuts the mask down to the cpuset.
pub(super) fn reset_affinity(pid: i32) -> std::io::Result<()> {
    sys::set_cpu_affinity(pid, NumberSet::all().words())
}
