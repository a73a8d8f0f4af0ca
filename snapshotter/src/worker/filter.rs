//! The system calls of the unpack process: what threads, memory and files below one directory need. All others
//! fail with EPERM; there is no socket, no program, no process and no mount to be had.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};

/// Calls allowed whatever their arguments are.
const ALLOWED: &[libc::c_long] = &[
    // Streams and descriptors.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_close,
    libc::SYS_lseek,
    libc::SYS_ppoll,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    // Files, by a directory's descriptor.
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fstat,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_symlinkat,
    libc::SYS_linkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_unlinkat,
    libc::SYS_ftruncate,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchmodat2,
    libc::SYS_utimensat,
    libc::SYS_fsetxattr,
    // Memory and threads.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Refused by the filter before this one.
    libc::SYS_clone3,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_getrandom,
];

#[cfg(target_arch = "x86_64")]
const ARCH: TargetArch = TargetArch::x86_64;
#[cfg(target_arch = "aarch64")]
const ARCH: TargetArch = TargetArch::aarch64;

#[cfg(target_arch = "x86_64")]
const OLD_CALLS: &[libc::c_long] = &[libc::SYS_poll];
#[cfg(target_arch = "aarch64")]
const OLD_CALLS: &[libc::c_long] = &[];

/// Loads the filter for this thread and all it starts.
pub(super) fn load() -> Result<(), seccompiler::Error> {
    // Whether a clone makes a thread cannot be seen in clone3's arguments: without it libc uses clone.
    let no_clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let no_clone3 = SeccompFilter::new(
        no_clone3,
        SeccompAction::Allow,
        SeccompAction::Errno(libc::ENOSYS.unsigned_abs()),
        ARCH,
    )?;
    let list = SeccompFilter::new(
        rules()?,
        SeccompAction::Errno(libc::EPERM.unsigned_abs()),
        SeccompAction::Allow,
        ARCH,
    )?;
    // Order: after the list no other filter can be loaded. Where the two differ the kernel takes the stricter
    // action (seccomp(2)).
    apply_filter(&BpfProgram::try_from(no_clone3)?)?;
    apply_filter(&BpfProgram::try_from(list)?)
}

fn rules() -> Result<BTreeMap<libc::c_long, Vec<SeccompRule>>, seccompiler::BackendError> {
    let mut rules: BTreeMap<libc::c_long, Vec<SeccompRule>> = ALLOWED
        .iter()
        .chain(OLD_CALLS)
        .map(|&call| (call, Vec::new()))
        .collect();
    let thread = libc::CLONE_VM | libc::CLONE_THREAD;
    let masked = |argument, mask: libc::c_int, value: libc::c_int| {
        let mask = SeccompCmpOp::MaskedEq(u64::from(mask.unsigned_abs()));
        let value = u64::from(value.unsigned_abs());
        SeccompCondition::new(argument, SeccompCmpArgLen::Qword, mask, value)
    };
    let equal = |argument, value: libc::c_int| {
        let value = u64::from(value.unsigned_abs());
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
    };
    // Threads only; memory that is never code; names of threads; copies of descriptors, the calling process's
    // own file flags.
    for (call, conditions) in [
        (libc::SYS_clone, vec![masked(0, thread, thread)?]),
        (libc::SYS_mmap, vec![masked(2, libc::PROT_EXEC, 0)?]),
        (libc::SYS_mprotect, vec![masked(2, libc::PROT_EXEC, 0)?]),
        (libc::SYS_prctl, vec![equal(0, libc::PR_SET_NAME)?]),
        (libc::SYS_fcntl, vec![equal(1, libc::F_DUPFD_CLOEXEC)?]),
        (libc::SYS_fcntl, vec![equal(1, libc::F_GETFD)?]),
        (libc::SYS_fcntl, vec![equal(1, libc::F_GETFL)?]),
    ] {
        rules
            .entry(call)
            .or_default()
            .push(SeccompRule::new(conditions)?);
    }
    Ok(rules)
}
