//! Architectures and their syscall numbers.

use std::str::FromStr;

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

    /// Whether syscall arguments are 32 bits wide.
    pub(super) fn is_32_bit(self) -> bool {
        matches!(self, Arch::X86 | Arch::Arm)
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

    /// The number of syscall `name`, if this architecture has it.
    pub(super) fn number(self, name: &str) -> Option<u32> {
        let number = match self {
            Arch::X86_64 => syscalls::x86_64::Sysno::from_str(name).ok()?.id(),
            Arch::X86 => syscalls::x86::Sysno::from_str(name).ok()?.id(),
            Arch::Aarch64 => syscalls::aarch64::Sysno::from_str(name).ok()?.id(),
            Arch::Arm => syscalls::arm::Sysno::from_str(name).ok()?.id(),
            Arch::X32 => return x32_number(name),
        };
        u32::try_from(number).ok()
    }
}

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

fn x32_number(name: &str) -> Option<u32> {
    if let Some(&(_, number)) = X32_OWN.iter().find(|(own, _)| *own == name) {
        return Some(number | X32_BIT);
    }
    let number = u32::try_from(syscalls::x86_64::Sysno::from_str(name).ok()?.id()).ok()?;
    Some(number | X32_BIT)
}
