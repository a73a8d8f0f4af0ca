//! sched_setattr(2), sched_setaffinity(2), ioprio_set(2) and set_mempolicy(2).

use std::io;

/// `struct sched_attr` of linux/sched/types.h.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SchedulingAttributes {
    /// Filled in by [`set_scheduler`].
    pub size: u32,
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*` bits.
    pub flags: u64,
    /// Nice value of the ordinary policies.
    pub nice: i32,
    /// Static priority of the real-time policies.
    pub priority: u32,
    /// Nanoseconds, deadline policy.
    pub runtime: u64,
    /// Nanoseconds, deadline policy.
    pub deadline: u64,
    /// Nanoseconds, deadline policy.
    pub period: u64,
    /// Utilization clamp; the OCI specification has no field for it.
    pub utilization_min: u32,
    /// Utilization clamp; the OCI specification has no field for it.
    pub utilization_max: u32,
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Sets policy and parameters of the calling thread.
///
/// # Errors
/// The errno of sched_setattr(2).
pub fn set_scheduler(attributes: SchedulingAttributes) -> io::Result<()> {
    let size = u32::try_from(size_of::<SchedulingAttributes>()).map_err(io::Error::other)?;
    let attributes = SchedulingAttributes { size, ..attributes };
    // SAFETY: `attributes` has the layout of struct sched_attr, says its size, and outlives the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_sched_setattr,
            0,
            std::ptr::from_ref(&attributes),
            0,
        )
    })
}

/// Sets the CPUs that thread `pid` (0: the caller) may run on, lowest CPU in the lowest bit of the first word.
///
/// # Errors
/// The errno of sched_setaffinity(2): EINVAL when no such CPU is there and allowed by its cpuset.
pub fn set_cpu_affinity(pid: i32, mask: &[u64]) -> io::Result<()> {
    // SAFETY: the pointer and the size in bytes describe `mask`, which outlives the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_sched_setaffinity,
            pid,
            size_of_val(mask),
            mask.as_ptr(),
        )
    })
}

/// Sets I/O class (1 to 3) and level (0 to 7) of the calling process's group.
///
/// # Errors
/// The errno of ioprio_set(2).
pub fn set_io_priority(class: u32, level: u32) -> io::Result<()> {
    const IOPRIO_WHO_PGRP: libc::c_int = 2;
    const IOPRIO_CLASS_SHIFT: u32 = 13;
    // SAFETY: plain integer arguments.
    check(unsafe {
        libc::syscall(
            libc::SYS_ioprio_set,
            IOPRIO_WHO_PGRP,
            0,
            class << IOPRIO_CLASS_SHIFT | level,
        )
    })
}

/// Sets the NUMA memory policy of the calling thread; `mode` carries the `MPOL_F_*` bits too.
///
/// # Errors
/// The errno of set_mempolicy(2): ENOSYS on a kernel without NUMA, EINVAL when it has none of `nodes` to give.
pub fn set_memory_policy(mode: i32, nodes: &[u64]) -> io::Result<()> {
    // The kernel reads one bit less than it is told, and no mask at all behind a null pointer only.
    let (mask, bits) = if nodes.is_empty() {
        (std::ptr::null(), 0)
    } else {
        (nodes.as_ptr(), nodes.len() * 64 + 1)
    };
    // SAFETY: the pointer is null, or it and the number of bits describe `nodes`, which outlives the call.
    check(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, mask, bits) })
}
