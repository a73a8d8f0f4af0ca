//! Architectures and their syscall numbers.

use std::collections::HashMap;

/// An architecture whose system calls this machine's kernel can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Arch {
    X86_64,
    X86,
    X32,
    Aarch64,
    Arm,
}

/// x32 numbers carry this bit, under the same audit architecture as x86_64.
pub(super) const X32_BIT: u32 = 0x4000_0000;

impl Arch {
    /// The architecture this runtime is built for.
    #[cfg(target_arch = "x86_64")]
    pub(super) const NATIVE: Arch = Arch::X86_64;
    #[cfg(target_arch = "aarch64")]
    pub(super) const NATIVE: Arch = Arch::Aarch64;

    /// `AUDIT_ARCH_*`, the value of `seccomp_data.arch`.
    pub(super) fn audit(self) -> u32 {
        match self {
            Arch::X86_64 | Arch::X32 => 0xc000_003e,
            Arch::X86 => 0x4000_0003,
            Arch::Aarch64 => 0xc000_00b7,
            Arch::Arm => 0x4000_0028,
        }
    }

    /// Whether arguments are compared by their lower 32 bits. On x32 too, as libseccomp does it: longs and
    /// pointers have 32 bits there.
    pub(super) fn is_32_bit(self) -> bool {
        matches!(self, Arch::X86 | Arch::X32 | Arch::Arm)
    }

    /// The architectures a process on this machine can make calls of.
    fn runs_here(self) -> bool {
        match Arch::NATIVE {
            Arch::X86_64 => matches!(self, Arch::X86_64 | Arch::X86 | Arch::X32),
            _ => matches!(self, Arch::Aarch64 | Arch::Arm),
        }
    }

    /// The architecture named `SCMP_ARCH_*`: `None` for a name nobody knows, `Some(None)` for one whose
    /// calls cannot be made on this machine, so that its rules have nothing to do.
    pub(super) fn parse(name: &str) -> Option<Option<Arch>> {
        let arch = match name {
            "SCMP_ARCH_NATIVE" => Arch::NATIVE,
            "SCMP_ARCH_X86_64" => Arch::X86_64,
            "SCMP_ARCH_X86" => Arch::X86,
            "SCMP_ARCH_X32" => Arch::X32,
            "SCMP_ARCH_AARCH64" => Arch::Aarch64,
            "SCMP_ARCH_ARM" => Arch::Arm,
            "SCMP_ARCH_MIPS"
            | "SCMP_ARCH_MIPS64"
            | "SCMP_ARCH_MIPS64N32"
            | "SCMP_ARCH_MIPSEL"
            | "SCMP_ARCH_MIPSEL64"
            | "SCMP_ARCH_MIPSEL64N32"
            | "SCMP_ARCH_PPC"
            | "SCMP_ARCH_PPC64"
            | "SCMP_ARCH_PPC64LE"
            | "SCMP_ARCH_S390"
            | "SCMP_ARCH_S390X"
            | "SCMP_ARCH_PARISC"
            | "SCMP_ARCH_PARISC64"
            | "SCMP_ARCH_RISCV64"
            | "SCMP_ARCH_LOONGARCH64"
            | "SCMP_ARCH_M68K"
            | "SCMP_ARCH_SH"
            | "SCMP_ARCH_SHEB" => {
                return Some(None);
            }
            _ => return None,
        };
        Some(arch.runs_here().then_some(arch))
    }

    /// The calls of this architecture. Made once for a profile: the crate's own search by name compares with
    /// one name after the other.
    pub(super) fn numbers(self) -> HashMap<&'static str, u32> {
        macro_rules! table {
            ($arch:ident) => {
                (0..syscalls::$arch::Sysno::table_size())
                    .filter_map(|id| Some((syscalls::$arch::Sysno::new(id)?.name(), id)))
                    .filter_map(|(name, id)| Some((name, u32::try_from(id).ok()?)))
            };
        }
        match self {
            Arch::X86_64 => table!(x86_64).collect(),
            Arch::X86 => table!(x86).collect(),
            Arch::Aarch64 => table!(aarch64).collect(),
            Arch::Arm => table!(arm).collect(),
            Arch::X32 => table!(x86_64)
                .filter(|(name, _)| !X86_64_ONLY.contains(name))
                .chain(X32_OWN)
                .map(|(name, number)| (name, number | X32_BIT))
                .collect(),
        }
    }
}

/// Where the 32-bit x86 kernel takes call `name` too: the number of `socketcall` or `ipc`, and the value of
/// its first argument (linux/net.h, linux/ipc.h).
pub(super) fn multiplexed(name: &str) -> Option<(u32, u32)> {
    const SOCKETCALL: u32 = 102;
    const IPC: u32 = 117;
    let (number, call) = match name {
        "socket" => (SOCKETCALL, 1),
        "bind" => (SOCKETCALL, 2),
        "connect" => (SOCKETCALL, 3),
        "listen" => (SOCKETCALL, 4),
        "accept" => (SOCKETCALL, 5),
        "getsockname" => (SOCKETCALL, 6),
        "getpeername" => (SOCKETCALL, 7),
        "socketpair" => (SOCKETCALL, 8),
        "send" => (SOCKETCALL, 9),
        "recv" => (SOCKETCALL, 10),
        "sendto" => (SOCKETCALL, 11),
        "recvfrom" => (SOCKETCALL, 12),
        "shutdown" => (SOCKETCALL, 13),
        "setsockopt" => (SOCKETCALL, 14),
        "getsockopt" => (SOCKETCALL, 15),
        "sendmsg" => (SOCKETCALL, 16),
        "recvmsg" => (SOCKETCALL, 17),
        "accept4" => (SOCKETCALL, 18),
        "recvmmsg" => (SOCKETCALL, 19),
        "sendmmsg" => (SOCKETCALL, 20),
        "semop" => (IPC, 1),
        "semget" => (IPC, 2),
        "semctl" => (IPC, 3),
        "semtimedop" => (IPC, 4),
        "msgsnd" => (IPC, 11),
        "msgrcv" => (IPC, 12),
        "msgget" => (IPC, 13),
        "msgctl" => (IPC, 14),
        "shmat" => (IPC, 21),
        "shmdt" => (IPC, 22),
        "shmget" => (IPC, 23),
        "shmctl" => (IPC, 24),
        _ => return None,
    };
    Some((number, call))
}

/// Calls of the shared table that x32 does not have at all (marked `64` in
/// arch/x86/entry/syscalls/syscall_64.tbl and without a number of their own below).
const X86_64_ONLY: [&str; 11] = [
    "uselib",
    "_sysctl",
    "create_module",
    "get_kernel_syms",
    "query_module",
    "nfsservctl",
    "set_thread_area",
    "get_thread_area",
    "epoll_ctl_old",
    "epoll_wait_old",
    "vserver",
];

/// x32 shares the table of x86_64 except for calls whose structures differ, which begin at 512
/// (arch/x86/entry/syscalls/syscall_64.tbl).
const X32_OWN: [(&str, u32); 36] = [
    ("rt_sigaction", 512),
    ("rt_sigreturn", 513),
    ("ioctl", 514),
    ("readv", 515),
    ("writev", 516),
    ("recvfrom", 517),
    ("sendmsg", 518),
    ("recvmsg", 519),
    ("execve", 520),
    ("ptrace", 521),
    ("rt_sigpending", 522),
    ("rt_sigtimedwait", 523),
    ("rt_sigqueueinfo", 524),
    ("sigaltstack", 525),
    ("timer_create", 526),
    ("mq_notify", 527),
    ("kexec_load", 528),
    ("waitid", 529),
    ("set_robust_list", 530),
    ("get_robust_list", 531),
    ("vmsplice", 532),
    ("move_pages", 533),
    ("preadv", 534),
    ("pwritev", 535),
    ("rt_tgsigqueueinfo", 536),
    ("recvmmsg", 537),
    ("sendmmsg", 538),
    ("process_vm_readv", 539),
    ("process_vm_writev", 540),
    ("setsockopt", 541),
    ("getsockopt", 542),
    ("io_setup", 543),
    ("io_submit", 544),
    ("execveat", 545),
    ("preadv2", 546),
    ("pwritev2", 547),
];
