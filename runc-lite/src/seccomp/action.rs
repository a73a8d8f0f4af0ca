//! Actions: names of the profile, values of the kernel (`SECCOMP_RET_*`), and which of two is stricter.

use super::SeccompError;
use super::profile::invalid;

pub(super) const KILL_PROCESS: u32 = 0x8000_0000;
pub(super) const KILL_THREAD: u32 = 0;
pub(super) const TRAP: u32 = 0x0003_0000;
pub(super) const ERRNO: u32 = 0x0005_0000;
pub(super) const NOTIFY: u32 = 0x7fc0_0000;
pub(super) const TRACE: u32 = 0x7ff0_0000;
pub(super) const LOG: u32 = 0x7ffc_0000;
pub(super) const ALLOW: u32 = 0x7fff_0000;

/// `ENOSYS` and `EPERM`, the same on every architecture a filter is made for here.
pub(super) const ENOSYS: u32 = 38;
const EPERM: u32 = 1;
/// `MAX_ERRNO` of the kernel, which cuts larger values down to it.
const MAX_ERRNO: u32 = 4095;
/// What a tracer is told has 16 bits.
const MAX_MESSAGE: u32 = 0xffff;
/// The bits that say what happens; the others are an errno or a message.
const KIND: u32 = 0xffff_0000;

/// The value of action `name` with `errnoRet`; `field` is for messages.
pub(super) fn action(field: &str, name: &str, errno: Option<u32>) -> Result<u32, SeccompError> {
    let limit = match name {
        "SCMP_ACT_ERRNO" => Some((MAX_ERRNO, "is above 4095 (errnoRet)")),
        "SCMP_ACT_TRACE" => Some((MAX_MESSAGE, "is above 65535 (errnoRet)")),
        _ => None,
    };
    match (errno, limit) {
        (Some(_), None) => return Err(invalid(field, name, "does not take errnoRet")),
        (Some(number), Some((limit, reason))) if number > limit => {
            return Err(invalid(field, number.to_string(), reason));
        }
        _ => {}
    }
    let number = errno.unwrap_or(EPERM);
    Ok(match name {
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => KILL_THREAD,
        "SCMP_ACT_KILL_PROCESS" => KILL_PROCESS,
        "SCMP_ACT_TRAP" => TRAP,
        "SCMP_ACT_ERRNO" => ERRNO | number,
        "SCMP_ACT_NOTIFY" => NOTIFY,
        "SCMP_ACT_TRACE" => TRACE | number,
        "SCMP_ACT_LOG" => LOG,
        "SCMP_ACT_ALLOW" => ALLOW,
        _ => return Err(invalid(field, name, "is not an action")),
    })
}

/// Whether the kernel prefers `one` when two filters answer `one` and `other`: it takes the smallest value,
/// read as a signed number (seccomp(2), "precedence").
pub(super) fn is_stricter(one: u32, other: u32) -> bool {
    (one & KIND).cast_signed() < (other & KIND).cast_signed()
}

/// Whether calls newer than the profile should look unimplemented rather than forbidden, so that programs
/// fall back. Not where they are permitted, and not where a tracer decides, which must see all of them.
pub(super) fn hides_newer(default: u32) -> bool {
    !matches!(default & KIND, ALLOW | LOG | TRACE)
}

/// Whether the kernel's meaning of `value` is one that a profile can ask for.
pub(super) fn is_known(value: u32) -> bool {
    let message = value & !KIND;
    match value & KIND {
        ERRNO => message <= MAX_ERRNO,
        TRACE => true,
        KILL_PROCESS | KILL_THREAD | TRAP | NOTIFY | LOG | ALLOW => message == 0,
        _ => false,
    }
}
