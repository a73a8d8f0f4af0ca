//! The `process` object: arguments, identity, capabilities, limits.

use rustix::process::Resource;

use super::scheduling::{plan_affinity, plan_io_priority, plan_memory_policy, plan_scheduler};
use super::{SpecError, check_text, invalid};
use crate::config::{Capabilities, Linux, Personality, Process, Rlimit};
use crate::plan::{CapabilityPlan, ProcessPlan, RlimitPlan};

/// Names by number, see capabilities(7).
pub const CAPABILITY_NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

const RLIMITS: [(&str, Resource); 16] = [
    ("RLIMIT_CPU", Resource::Cpu),
    ("RLIMIT_FSIZE", Resource::Fsize),
    ("RLIMIT_DATA", Resource::Data),
    ("RLIMIT_STACK", Resource::Stack),
    ("RLIMIT_CORE", Resource::Core),
    ("RLIMIT_RSS", Resource::Rss),
    ("RLIMIT_NPROC", Resource::Nproc),
    ("RLIMIT_NOFILE", Resource::Nofile),
    ("RLIMIT_MEMLOCK", Resource::Memlock),
    ("RLIMIT_AS", Resource::As),
    ("RLIMIT_LOCKS", Resource::Locks),
    ("RLIMIT_SIGPENDING", Resource::Sigpending),
    ("RLIMIT_MSGQUEUE", Resource::Msgqueue),
    ("RLIMIT_NICE", Resource::Nice),
    ("RLIMIT_RTPRIO", Resource::Rtprio),
    ("RLIMIT_RTTIME", Resource::Rttime),
];

/// The uid and gid that system calls read as "unchanged".
const NO_ID: u32 = u32::MAX;

/// Decides a process from its document (`process`, or the file given to `exec --process`) and from what
/// `linux` says about every process of the container.
///
/// # Errors
/// [`SpecError`] naming the field.
pub fn plan_process(process: Process, linux: &Linux) -> Result<ProcessPlan, SpecError> {
    if process.args.is_empty() || process.args[0].is_empty() {
        return Err(SpecError::Missing {
            field: "process.args",
        });
    }
    for (index, argument) in process.args.iter().enumerate() {
        check_text(format!("process.args[{index}]"), argument)?;
    }
    for (index, variable) in process.env.iter().enumerate() {
        let field = format!("process.env[{index}]");
        check_text(&field, variable)?;
        if variable.find('=').is_none_or(|at| at == 0) {
            return Err(invalid(field, variable, "is not of the form NAME=value"));
        }
    }
    let cwd = if process.cwd.is_empty() {
        "/".to_owned()
    } else {
        process.cwd
    };
    check_text("process.cwd", &cwd)?;
    if !cwd.starts_with('/') {
        return Err(invalid("process.cwd", cwd, "is not absolute"));
    }
    check_ids(&process.user)?;
    if let Some(score) = process
        .oom_score_adj
        .filter(|score| !(-1000..=1000).contains(score))
    {
        return Err(invalid(
            "process.oomScoreAdj",
            score.to_string(),
            "is not between -1000 and 1000",
        ));
    }
    check_text("process.apparmorProfile", &process.apparmor_profile)?;
    check_text("process.selinuxLabel", &process.selinux_label)?;
    Ok(ProcessPlan {
        terminal: process.terminal,
        console_size: process.console_size.map(|size| (size.height, size.width)),
        args: process.args,
        env: process.env,
        cwd,
        uid: process.user.uid,
        gid: process.user.gid,
        additional_gids: process.user.additional_gids,
        umask: process.user.umask.unwrap_or(0o022) & 0o777,
        capabilities: process
            .capabilities
            .as_ref()
            .map(plan_capabilities)
            .transpose()?,
        rlimits: plan_rlimits(&process.rlimits)?,
        no_new_privileges: process.no_new_privileges,
        apparmor_profile: process.apparmor_profile,
        selinux_label: process.selinux_label,
        oom_score_adj: process.oom_score_adj,
        scheduler: process.scheduler.as_ref().map(plan_scheduler).transpose()?,
        io_priority: process
            .io_priority
            .as_ref()
            .map(plan_io_priority)
            .transpose()?,
        exec_cpu_affinity: plan_affinity(&process.exec_cpu_affinity.unwrap_or_default())?,
        personality: linux
            .personality
            .as_ref()
            .map(plan_personality)
            .transpose()?,
        memory_policy: linux
            .memory_policy
            .as_ref()
            .map(plan_memory_policy)
            .transpose()?,
    })
}

fn plan_personality(personality: &Personality) -> Result<u64, SpecError> {
    if let Some(flag) = personality.flags.first() {
        // "Currently no flag values are supported" (config-linux.md, Personality).
        return Err(invalid(
            "linux.personality.flags[0]",
            flag,
            "is not a known flag, the specification has none yet",
        ));
    }
    match personality.domain.as_str() {
        "LINUX" => Ok(0x0000),
        "LINUX32" => Ok(0x0008),
        other => Err(invalid(
            "linux.personality.domain",
            other,
            "is neither LINUX nor LINUX32",
        )),
    }
}

fn check_ids(user: &crate::config::User) -> Result<(), SpecError> {
    for (field, id) in [
        ("process.user.uid", user.uid),
        ("process.user.gid", user.gid),
    ] {
        if id == NO_ID {
            return Err(invalid(
                field,
                id.to_string(),
                "is the number reserved for \"no id\"",
            ));
        }
    }
    if user.additional_gids.contains(&NO_ID) {
        return Err(invalid(
            "process.user.additionalGids",
            NO_ID.to_string(),
            "is the number reserved for \"no id\"",
        ));
    }
    Ok(())
}

fn plan_capabilities(sets: &Capabilities) -> Result<CapabilityPlan, SpecError> {
    let mask = |set: &str, names: &[String]| {
        let mut mask = 0u64;
        for (index, name) in names.iter().enumerate() {
            let number = capability_number(name).ok_or_else(|| {
                let field = format!("process.capabilities.{set}[{index}]");
                invalid(field, name, "is not a capability")
            })?;
            mask |= 1 << number;
        }
        Ok(mask)
    };
    Ok(CapabilityPlan {
        bounding: mask("bounding", &sets.bounding)?,
        effective: mask("effective", &sets.effective)?,
        inheritable: mask("inheritable", &sets.inheritable)?,
        permitted: mask("permitted", &sets.permitted)?,
        ambient: mask("ambient", &sets.ambient)?,
    })
}

/// The number of a capability by its name, in any case, with or without `CAP_`.
pub(crate) fn capability_number(name: &str) -> Option<usize> {
    let upper = name.to_ascii_uppercase();
    let plain = upper.strip_prefix("CAP_").unwrap_or(&upper);
    CAPABILITY_NAMES
        .iter()
        .position(|known| known[4..] == *plain)
}

fn plan_rlimits(limits: &[Rlimit]) -> Result<Vec<RlimitPlan>, SpecError> {
    let mut planned: Vec<RlimitPlan> = Vec::with_capacity(limits.len());
    for (index, limit) in limits.iter().enumerate() {
        let field = format!("process.rlimits[{index}].type");
        let Some(&(name, resource)) = RLIMITS.iter().find(|(name, _)| *name == limit.kind) else {
            return Err(invalid(field, &limit.kind, "is not a resource limit"));
        };
        if planned.iter().any(|known| known.name == name) {
            return Err(invalid(field, name, "is listed twice"));
        }
        if limit.soft > limit.hard {
            return Err(invalid(
                format!("process.rlimits[{index}].soft"),
                limit.soft.to_string(),
                format!("is above the hard limit {}", limit.hard),
            ));
        }
        planned.push(RlimitPlan {
            name,
            resource,
            soft: limit.soft,
            hard: limit.hard,
        });
    }
    Ok(planned)
}
