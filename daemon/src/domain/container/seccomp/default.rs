//! The runtime's default profile: what unprivileged programs need, and what each capability adds.
//!
//! Everything not named fails with EPERM, among it io_uring, userfaultfd, the key ring, kexec, swap, and all
//! that makes or enters namespaces. It allows what the default profiles of docker and containerd allow, so
//! that programs behave the same here.

use std::collections::BTreeSet;

use super::{Action, Arch, Condition, Operator, Rule, Seccomp};

#[cfg(test)]
mod tests;

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// Opening, reading, writing, waiting on descriptors.
const DESCRIPTORS: &str = "close close_range copy_file_range creat dup dup2 dup3 epoll_create epoll_create1
    epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 fadvise64
    fadvise64_64 fallocate fcntl fcntl64 fdatasync flock fsync ftruncate ftruncate64 inotify_add_watch
    inotify_init inotify_init1 inotify_rm_watch fanotify_mark ioctl lseek _llseek memfd_create memfd_secret
    open openat openat2 pipe pipe2 poll ppoll ppoll_time64 pread64 preadv preadv2 pselect6 pselect6_time64
    pwrite64 pwritev pwritev2 read readahead readv select _newselect sendfile sendfile64 signalfd signalfd4
    splice sync sync_file_range syncfs tee truncate truncate64 vmsplice write writev
    io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit";

/// Names, attributes and directories.
const FILES: &str = "access chdir chmod chown chown32 faccessat faccessat2 fchdir fchmod fchmodat fchmodat2
    fchown fchown32 fchownat fgetxattr flistxattr fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs
    fstatfs64 futimesat getcwd getdents getdents64 getxattr getxattrat lchown lchown32 lgetxattr link linkat
    listxattr listxattrat llistxattr lremovexattr lsetxattr lstat lstat64 mkdir mkdirat mknod mknodat
    name_to_handle_at newfstatat readlink readlinkat removexattr removexattrat rename renameat renameat2
    rmdir setxattr setxattrat stat stat64 statfs statfs64 statx symlink symlinkat umask unlink unlinkat
    utime utimensat utimensat_time64 utimes listmount statmount";

/// Memory.
const MEMORY: &str =
    "brk cachestat madvise map_shadow_stack membarrier mincore mlock mlock2 mlockall mmap
    mmap2 mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect
    remap_file_pages";

/// Processes, threads, identities, limits. clone is decided by its flags.
const PROCESSES: &str = "capget capset execve execveat exit exit_group fork getegid getegid32 geteuid
    geteuid32 getgid getgid32 getgroups getgroups32 getpgid getpgrp getpid getppid getpriority getresgid
    getresgid32 getresuid getresuid32 getrlimit getrusage getsid gettid getuid getuid32 get_thread_area
    ioprio_get ioprio_set kill landlock_add_rule landlock_create_ruleset landlock_restrict_self
    lsm_get_self_attr lsm_list_modules lsm_set_self_attr pidfd_open pidfd_send_signal prctl prlimit64
    process_mrelease rseq seccomp setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups
    setgroups32 setpgid setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32
    setreuid setreuid32 setrlimit setsid setuid setuid32 set_thread_area set_tid_address tgkill tkill
    ugetrlimit uretprobe vfork wait4 waitid waitpid";

/// Reading and writing other processes the kernel's own checks allow; harmless to filters since Linux 4.8.
const TRACING: &str = "process_vm_readv process_vm_writev ptrace";

/// Scheduling and locks.
const SCHEDULING: &str = "futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake getcpu
    get_robust_list set_robust_list sched_getaffinity sched_getattr sched_getparam sched_get_priority_max
    sched_get_priority_min sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64
    sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield";

/// Signals.
const SIGNALS: &str =
    "pause restart_syscall rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo
    rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaltstack
    sigprocmask sigreturn";

/// Clocks and timers; setting a clock takes the capability all the same.
const TIME: &str = "adjtimex alarm clock_adjtime clock_adjtime64 clock_getres clock_getres_time64
    clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday nanosleep
    setitimer time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime
    timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64
    times";

/// Sockets. socket is decided by its family; socketcall, of 32-bit programs, cannot be.
const NETWORK: &str = "accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom
    recvmmsg recvmmsg_time64 recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair";

/// Queues, semaphores, shared memory.
const IPC: &str =
    "ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend
    mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop
    semtimedop_time64 shmat shmctl shmdt shmget";

/// Questions about the system.
const SYSTEM: &str = "getrandom sysinfo uname";

const ALWAYS: [&str; 11] = [
    DESCRIPTORS,
    FILES,
    MEMORY,
    PROCESSES,
    TRACING,
    SCHEDULING,
    SIGNALS,
    TIME,
    NETWORK,
    IPC,
    SYSTEM,
];

/// What a capability adds.
const BY_CAPABILITY: [(&str, &str); 14] = [
    ("CAP_BPF", "bpf"),
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    ("CAP_PERFMON", "perf_event_open"),
    (
        "CAP_SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr
        move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog
        umount umount2 unshare",
    ),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module finit_module init_module"),
    ("CAP_SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("CAP_SYS_PACCT", "acct"),
    ("CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise"),
    ("CAP_SYS_RAWIO", "ioperm iopl"),
    ("CAP_SYS_TIME", "clock_settime clock_settime64 settimeofday stime"),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    ("CAP_SYSLOG", "syslog"),
];

/// Execution domains programs switch to: Linux, no randomisation, UNAME26, both, and asking for the current.
const PERSONALITIES: [u64; 5] = [0x0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Socket families 0 to 63 but AF_ALG (38) and AF_VSOCK (40), as (mask, value) over the lower 32 bits.
///
/// The kernel takes the family as an int, so a comparison in 64 bits ("greater than 40") would let
/// 2^32 + 38 through to AF_ALG. A rule that refuses the two would be dropped by libseccomp beside one that
/// allows the rest.
const SOCKET_FAMILIES: [(u64, u64); 8] = [
    (0xffff_ffe0, 0),  // 0 to 31
    (0xffff_fffc, 32), // 32 to 35
    (0xffff_fffe, 36), // 36, 37
    (0xffff_ffff, 39),
    (0xffff_ffff, 41),
    (0xffff_fffe, 42), // 42, 43
    (0xffff_fffc, 44), // 44 to 47
    (0xffff_fff0, 48), // 48 to 63, for families to come
];

/// NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET of clone(2).
const CLONE_NAMESPACES: u64 =
    0x2_0000 | 0x200_0000 | 0x400_0000 | 0x800_0000 | 0x1000_0000 | 0x2000_0000 | 0x4000_0000;

/// The default profile of a container whose bounding set is `capabilities` ("CAP_X").
///
/// clone(2) is judged by its first argument, where every architecture but s390x has the flags.
#[must_use]
pub fn default_profile(capabilities: &BTreeSet<String>, arch: Arch) -> Seccomp {
    let mut names: BTreeSet<&str> = ALWAYS
        .iter()
        .flat_map(|group| group.split_ascii_whitespace())
        .collect();
    names.extend(match arch {
        Arch::X86_64 => ["arch_prctl", "modify_ldt"].as_slice(),
        Arch::Aarch64 => &[
            "arm_fadvise64_64",
            "arm_sync_file_range",
            "breakpoint",
            "cacheflush",
            "set_tls",
            "sync_file_range2",
        ],
        Arch::Other => &[],
    });
    for (capability, group) in BY_CAPABILITY {
        if capabilities.contains(capability) {
            names.extend(group.split_ascii_whitespace());
        }
    }

    let mut syscalls = vec![Rule {
        names: names.into_iter().map(str::to_owned).collect(),
        action: Action::Allow,
        errno_ret: None,
        args: Vec::new(),
    }];
    syscalls.extend(
        SOCKET_FAMILIES
            .map(|(mask, family)| allow_if("socket", Operator::MaskedEqual, mask, family)),
    );
    syscalls.extend(PERSONALITIES.map(|value| allow_if("personality", Operator::Equal, value, 0)));
    if !capabilities.contains("CAP_SYS_ADMIN") {
        syscalls.push(allow_if(
            "clone",
            Operator::MaskedEqual,
            CLONE_NAMESPACES,
            0,
        ));
        // clone3 hides its flags in memory; ENOSYS makes libc fall back to clone.
        syscalls.push(Rule {
            names: vec!["clone3".to_owned()],
            action: Action::Errno,
            errno_ret: Some(ENOSYS),
            args: Vec::new(),
        });
    }
    Seccomp {
        default_action: Action::Errno,
        default_errno_ret: Some(EPERM),
        architectures: arch
            .conventions()
            .iter()
            .map(|&name| name.to_owned())
            .collect(),
        flags: Vec::new(),
        syscalls,
    }
}

/// Allows a call by its first argument.
fn allow_if(name: &str, op: Operator, value: u64, value_two: u64) -> Rule {
    Rule {
        names: vec![name.to_owned()],
        action: Action::Allow,
        errno_ret: None,
        args: vec![Condition {
            index: 0,
            value,
            value_two,
            op,
        }],
    }
}
