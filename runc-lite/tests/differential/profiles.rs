//! Profiles as values: one of the shape of Docker's, and random ones from a seed.

use serde_json::{Value, json};

/// An action with the value the kernel has for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Action {
    pub(crate) name: &'static str,
    pub(crate) errno: Option<u32>,
    pub(crate) value: u32,
}

pub(crate) const ALLOW: Action = Action::plain("SCMP_ACT_ALLOW", 0x7fff_0000);
pub(crate) const EPERM: Action = Action::plain("SCMP_ACT_ERRNO", 0x0005_0001);
const ACTIONS: [Action; 9] = [
    ALLOW,
    EPERM,
    Action::with_number("SCMP_ACT_ERRNO", 42, 0x0005_0000),
    Action::plain("SCMP_ACT_KILL", 0),
    Action::plain("SCMP_ACT_KILL_PROCESS", 0x8000_0000),
    Action::plain("SCMP_ACT_TRAP", 0x0003_0000),
    Action::plain("SCMP_ACT_LOG", 0x7ffc_0000),
    Action::plain("SCMP_ACT_TRACE", 0x7ff0_0001),
    Action::with_number("SCMP_ACT_TRACE", 7, 0x7ff0_0000),
];

impl Action {
    const fn plain(name: &'static str, value: u32) -> Action {
        Action {
            name,
            errno: None,
            value,
        }
    }

    const fn with_number(name: &'static str, errno: u32, kind: u32) -> Action {
        Action {
            name,
            errno: Some(errno),
            value: kind | errno,
        }
    }
}

/// An architecture of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arch {
    X86_64,
    X86,
    X32,
}

impl Arch {
    pub(crate) const ALL: [Arch; 3] = [Arch::X86_64, Arch::X86, Arch::X32];

    /// libseccomp's number for it.
    pub(crate) fn token(self) -> u32 {
        match self {
            Arch::X86_64 => 0xc000_003e,
            Arch::X86 => 0x4000_0003,
            Arch::X32 => 0x4000_003e,
        }
    }

    /// The kernel's number of a call, x32 with its bit.
    pub(crate) fn number(self, name: &str) -> Option<u32> {
        let number = match self {
            Arch::X86_64 => name.parse::<syscalls::x86_64::Sysno>().ok()?.id(),
            Arch::X86 => name.parse::<syscalls::x86::Sysno>().ok()?.id(),
            Arch::X32 => {
                // /usr/include/asm/unistd_x32.h: some have numbers of their own, some none.
                const OWN: [(&str, u32); 36] = [
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
                const NONE: [&str; 11] = [
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
                if NONE.contains(&name) {
                    return None;
                }
                let own = OWN.iter().find(|(own, _)| *own == name);
                let number = own.map(|(_, number)| *number);
                return Some(number.or_else(|| Arch::X86_64.number(name))? | 0x4000_0000);
            }
        };
        u32::try_from(number).ok()
    }

    /// Bits of an argument that are compared.
    pub(crate) fn width(self) -> u32 {
        if self == Arch::X86_64 { 64 } else { 32 }
    }

    fn name(self) -> &'static str {
        match self {
            Arch::X86_64 => "SCMP_ARCH_X86_64",
            Arch::X86 => "SCMP_ARCH_X86",
            Arch::X32 => "SCMP_ARCH_X32",
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Argument {
    pub(crate) index: u32,
    /// Without `SCMP_CMP_`.
    pub(crate) op: &'static str,
    pub(crate) value: u64,
    pub(crate) value_two: u64,
}

impl Argument {
    /// Whether it holds for `args`, on an architecture that sees `width` bits of each.
    pub(crate) fn holds(&self, args: &[u64; 6], width: u32) -> bool {
        let mask = u64::MAX >> (64 - width);
        let (found, value) = (args[self.index as usize] & mask, self.value & mask);
        match self.op {
            "NE" => found != value,
            "LT" => found < value,
            "LE" => found <= value,
            "EQ" => found == value,
            "GE" => found >= value,
            "GT" => found > value,
            _ => found & value == self.value_two & value,
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Rule {
    pub(crate) name: &'static str,
    pub(crate) action: Action,
    pub(crate) args: Vec<Argument>,
}

impl Rule {
    /// Whether it compares one argument more than once: then each comparison is a rule of its own.
    fn repeats(&self) -> bool {
        (0..6).any(|i| self.args.iter().filter(|a| a.index == i).count() > 1)
    }

    /// How many rules it is for libseccomp.
    pub(crate) fn groups(&self) -> usize {
        if self.repeats() { self.args.len() } else { 1 }
    }

    /// Whether it applies to a call with `args`.
    pub(crate) fn matches(&self, args: &[u64; 6], width: u32) -> bool {
        if self.repeats() {
            self.args.iter().any(|a| a.holds(args, width))
        } else {
            self.args.iter().all(|a| a.holds(args, width))
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Profile {
    pub(crate) default: Action,
    pub(crate) architectures: Vec<Arch>,
    pub(crate) rules: Vec<Rule>,
}

impl Profile {
    /// The JSON of `linux.seccomp`.
    pub(crate) fn json(&self) -> String {
        let rule = |rule: &Rule| {
            let args: Vec<Value> = rule
                .args
                .iter()
                .map(|a| {
                    json!({"index": a.index, "value": a.value, "valueTwo": a.value_two,
                           "op": format!("SCMP_CMP_{}", a.op)})
                })
                .collect();
            json!({"names": [rule.name], "action": rule.action.name, "errnoRet": rule.action.errno,
                   "args": args})
        };
        let architectures: Vec<_> = self.architectures.iter().map(|arch| arch.name()).collect();
        let rules: Vec<Value> = self.rules.iter().map(rule).collect();
        json!({"defaultAction": self.default.name, "defaultErrnoRet": self.default.errno,
               "architectures": architectures, "syscalls": rules})
        .to_string()
    }
}

/// Every name of the three architectures.
pub(crate) fn names() -> Vec<&'static str> {
    let x86_64 = (0..syscalls::x86_64::Sysno::table_size())
        .filter_map(|id| Some(syscalls::x86_64::Sysno::new(id)?.name()));
    let x86 = (0..syscalls::x86::Sysno::table_size())
        .filter_map(|id| Some(syscalls::x86::Sysno::new(id)?.name()));
    let mut names: Vec<_> = x86_64.chain(x86).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// A profile of the shape engines write by default: nothing but what is listed, nearly everything is, and
/// a few calls only with some arguments.
pub(crate) fn default_shape() -> Profile {
    const FORBIDDEN: [&str; 38] = [
        "acct",
        "add_key",
        "bpf",
        "clock_adjtime",
        "clock_settime",
        "clone",
        "clone3",
        "create_module",
        "delete_module",
        "finit_module",
        "init_module",
        "ioperm",
        "iopl",
        "io_uring_enter",
        "io_uring_register",
        "io_uring_setup",
        "kexec_file_load",
        "kexec_load",
        "keyctl",
        "mount",
        "move_mount",
        "nfsservctl",
        "open_tree",
        "perf_event_open",
        "personality",
        "pivot_root",
        "quotactl",
        "reboot",
        "request_key",
        "setns",
        "settimeofday",
        "socket",
        "swapoff",
        "swapon",
        "umount2",
        "unshare",
        "userfaultfd",
        "vm86",
    ];
    let mut rules: Vec<Rule> = names()
        .into_iter()
        .filter(|name| !FORBIDDEN.contains(name))
        .map(|name| Rule {
            name,
            action: ALLOW,
            args: Vec::new(),
        })
        .collect();
    let one = |index, op, value, value_two| Argument {
        index,
        op,
        value,
        value_two,
    };
    let mut conditional = |name, args| {
        rules.push(Rule {
            name,
            action: ALLOW,
            args,
        });
    };
    for persona in [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff] {
        conditional("personality", vec![one(0, "EQ", persona, 0)]);
    }
    conditional("clone", vec![one(0, "MASKED_EQ", 0x7e02_0000, 0)]);
    conditional("socket", vec![one(0, "LT", 38, 0)]);
    conditional("socket", vec![one(0, "EQ", 39, 0)]);
    conditional("socket", vec![one(0, "GT", 40, 0)]);
    rules.push(Rule {
        name: "clone3",
        action: Action::with_number("SCMP_ACT_ERRNO", 38, 0x0005_0000),
        args: Vec::new(),
    });
    Profile {
        default: EPERM,
        architectures: Arch::ALL.to_vec(),
        rules,
    }
}

/// Whether the 32-bit architecture has it behind `socketcall` or `ipc`.
pub(crate) fn is_multiplexed(name: &str) -> bool {
    const NAMES: [&str; 32] = [
        "socket",
        "bind",
        "connect",
        "listen",
        "accept",
        "getsockname",
        "getpeername",
        "socketpair",
        "send",
        "recv",
        "sendto",
        "recvfrom",
        "shutdown",
        "setsockopt",
        "getsockopt",
        "sendmsg",
        "recvmsg",
        "accept4",
        "recvmmsg",
        "sendmmsg",
        "semop",
        "semget",
        "semctl",
        "semtimedop",
        "msgsnd",
        "msgrcv",
        "msgget",
        "msgctl",
        "shmat",
        "shmdt",
        "shmget",
        "shmctl",
    ];
    NAMES.contains(&name)
}

/// Numbers from a seed: splitmix64.
#[derive(Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap()
    }

    pub(crate) fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }

    /// A number near a border that compilers get wrong.
    pub(crate) fn value(&mut self) -> u64 {
        const BORDERS: [u64; 12] = [
            0,
            1,
            7,
            0x7fff_ffff,
            0x8000_0000,
            0xffff_fffe,
            0xffff_ffff,
            0x1_0000_0000,
            0x1_0000_0001,
            0x7fff_ffff_ffff_ffff,
            u64::MAX - 1,
            u64::MAX,
        ];
        match self.below(4) {
            0 => self.next(),
            1 => self.next() & 0xff,
            _ => self.pick(&BORDERS),
        }
    }
}

/// A random profile. The rules of one call have one action, unless `mixed`.
pub(crate) fn random(random: &mut Random, mixed: bool) -> Profile {
    let names = names();
    let default = random.pick(&ACTIONS);
    let mut architectures = vec![Arch::X86_64];
    architectures.extend(
        [Arch::X86, Arch::X32]
            .into_iter()
            .filter(|_| random.below(2) == 0),
    );
    let mut rules = Vec::new();
    for _ in 0..random.below(60) {
        let name = random.pick(&names);
        let action = random.pick(&ACTIONS);
        for _ in 0..=random.below(3) {
            let args = (0..random.below(4)).map(|_| argument(random)).collect();
            rules.push(Rule {
                name,
                action: if mixed { random.pick(&ACTIONS) } else { action },
                args,
            });
        }
    }
    Profile {
        default,
        architectures,
        rules,
    }
}

fn argument(random: &mut Random) -> Argument {
    let op = random.pick(&["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"]);
    let value = random.value();
    Argument {
        index: u32::try_from(random.below(6)).unwrap(),
        op,
        value,
        value_two: if random.below(2) == 0 {
            random.value()
        } else {
            random.value() & value
        },
    }
}
