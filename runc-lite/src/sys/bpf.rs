//! Loading BPF: a seccomp filter for this process, a device program for a cgroup v2 directory.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// One classic BPF instruction, `struct sock_filter`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BpfInstruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip when a conditional jump is taken.
    pub jt: u8,
    /// Instructions to skip when it is not.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

impl BpfInstruction {
    /// The instruction of eight bytes in little-endian order, whatever the machine's is.
    #[must_use]
    pub fn from_bytes([a, b, jt, jf, k @ ..]: [u8; 8]) -> BpfInstruction {
        BpfInstruction {
            code: u16::from_le_bytes([a, b]),
            jt,
            jf,
            k: u32::from_le_bytes(k),
        }
    }

    /// Its eight bytes, see [`BpfInstruction::from_bytes`].
    #[must_use]
    pub fn to_bytes(self) -> [u8; 8] {
        let [a, b] = self.code.to_le_bytes();
        let [c, d, e, f] = self.k.to_le_bytes();
        [a, b, self.jt, self.jf, c, d, e, f]
    }
}

#[repr(C)]
struct Program {
    len: u16,
    filter: *const BpfInstruction,
}

/// Installs `filter` for this thread with `SECCOMP_FILTER_FLAG_*` bits; with `NEW_LISTENER` among them the
/// result is the listener, which closes on execve.
///
/// # Errors
/// The errno of seccomp(2): EACCES without no_new_privs and CAP_SYS_ADMIN, EINVAL for a bad filter, ENOMEM
/// when all filters of the thread together are too long, EBUSY for a second listener.
pub fn load_seccomp(filter: &[BpfInstruction], flags: u32) -> io::Result<Option<OwnedFd>> {
    let len = u16::try_from(filter.len()).map_err(io::Error::other)?;
    let program = Program {
        len,
        filter: filter.as_ptr(),
    };
    // SAFETY: `program` describes `filter`, which outlives the call; the kernel copies it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            std::ptr::from_ref(&program),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    if flags & SECCOMP_NEW_LISTENER == 0 {
        return Ok(None);
    }
    let listener = i32::try_from(result).map_err(io::Error::other)?;
    // SAFETY: seccomp(2) returned a fresh descriptor that nobody else owns.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(listener) }))
}

/// `SECCOMP_FILTER_FLAG_NEW_LISTENER`.
pub const SECCOMP_NEW_LISTENER: u32 = 8;

/// Whether this kernel knows all of the `SECCOMP_FILTER_FLAG_*` bits `flags`; nothing is installed.
#[must_use]
pub fn seccomp_knows(flags: u32) -> bool {
    // SAFETY: a null program is never read: seccomp(2) looks at the flags first, then fails by EFAULT.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            std::ptr::null::<Program>(),
        )
    };
    result == -1 && io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT)
}

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_DETACH: libc::c_int = 9;
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;
const BPF_F_REPLACE: u32 = 4;

/// The head of `union bpf_attr` for program loading.
#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    // Some kernels write past the fields they were given (reliability note on bpf(2)); room to spare.
    spare: [u64; 24],
}

#[repr(C)]
#[derive(Default)]
struct AttachAttributes {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
    spare: [u64; 24],
}

#[repr(C)]
#[derive(Default)]
struct QueryAttributes {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    reserved: u32,
    spare: [u64; 24],
}

#[repr(C)]
#[derive(Default)]
struct IdAttributes {
    prog_id: u32,
    next_id: u32,
    open_flags: u32,
    spare: [u64; 24],
}

/// Bytes of an attribute block that the kernel is told about: the fields before `spare`.
const LOAD_SIZE: usize = 48;
const ATTACH_SIZE: usize = 20;
const QUERY_SIZE: usize = 32;
const ID_SIZE: usize = 12;
/// More device programs than any cgroup has of its own.
const MAX_PROGRAMS: usize = 64;

/// Loads eBPF `instructions` (raw 64-bit words) as a cgroup device program.
///
/// # Errors
/// The errno of bpf(2).
pub fn load_device_program(instructions: &[u64]) -> io::Result<OwnedFd> {
    let mut attributes = LoadAttributes {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(instructions.len()).map_err(io::Error::other)?,
        insns: instructions.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..LoadAttributes::default()
    };
    // SAFETY: the attribute block is larger than the size given and its pointers outlive the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_LOAD,
            std::ptr::from_mut(&mut attributes),
            LOAD_SIZE,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: bpf(2) returned a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches a device `program` to the cgroup v2 directory `cgroup`, beside those of its ancestors. With
/// `replaced` it takes the place of that one of its own in one step.
///
/// # Errors
/// The errno of bpf(2).
pub fn attach_device_program(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    replaced: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let attributes = AttachAttributes {
        target_fd: raw(cgroup)?,
        attach_bpf_fd: raw(program)?,
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI | replaced.map_or(0, |_| BPF_F_REPLACE),
        replace_bpf_fd: replaced.map(raw).transpose()?.unwrap_or_default(),
        ..AttachAttributes::default()
    };
    attach_or_detach(BPF_PROG_ATTACH, attributes)
}

/// Detaches a device `program` of the cgroup v2 directory `cgroup`.
///
/// # Errors
/// The errno of bpf(2).
pub fn detach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = AttachAttributes {
        target_fd: raw(cgroup)?,
        attach_bpf_fd: raw(program)?,
        attach_type: BPF_CGROUP_DEVICE,
        ..AttachAttributes::default()
    };
    attach_or_detach(BPF_PROG_DETACH, attributes)
}

fn raw(fd: BorrowedFd<'_>) -> io::Result<u32> {
    u32::try_from(fd.as_raw_fd()).map_err(io::Error::other)
}

fn attach_or_detach(command: libc::c_int, mut attributes: AttachAttributes) -> io::Result<()> {
    // SAFETY: the attribute block is larger than the size given and lives until the call returns.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(&mut attributes),
            ATTACH_SIZE,
        )
    };
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// The device programs attached to the cgroup v2 directory `cgroup` itself.
///
/// # Errors
/// The errno of bpf(2).
pub fn device_programs(cgroup: BorrowedFd<'_>) -> io::Result<Vec<OwnedFd>> {
    // Twice the room the kernel is told about, see the note at `LoadAttributes`.
    let mut ids = [0u32; 2 * MAX_PROGRAMS];
    let mut attributes = QueryAttributes {
        target_fd: raw(cgroup)?,
        attach_type: BPF_CGROUP_DEVICE,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: u32::try_from(MAX_PROGRAMS).map_err(io::Error::other)?,
        ..QueryAttributes::default()
    };
    query(&mut attributes)?;
    let count = usize::try_from(attributes.prog_cnt).map_err(io::Error::other)?;
    let ids = ids.iter().take(count.min(MAX_PROGRAMS));
    ids.map(|id| program_by_id(*id)).collect()
}

fn query(attributes: &mut QueryAttributes) -> io::Result<()> {
    // SAFETY: the attribute block is larger than the size given, the array it points to larger than the
    // count given, and both outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_QUERY,
            std::ptr::from_mut(attributes),
            QUERY_SIZE,
        )
    };
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn program_by_id(prog_id: u32) -> io::Result<OwnedFd> {
    let mut attributes = IdAttributes {
        prog_id,
        ..IdAttributes::default()
    };
    // SAFETY: the attribute block is larger than the size given and lives until the call returns.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_GET_FD_BY_ID,
            std::ptr::from_mut(&mut attributes),
            ID_SIZE,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: bpf(2) returned a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    /// The largest block any kernel knows of for these commands is far smaller.
    const ROOM: usize = 128;

    #[test]
    fn every_block_has_room_behind_what_the_kernel_is_told() {
        for (size, told) in [
            (size_of::<LoadAttributes>(), LOAD_SIZE),
            (size_of::<AttachAttributes>(), ATTACH_SIZE),
            (size_of::<QueryAttributes>(), QUERY_SIZE),
            (size_of::<IdAttributes>(), ID_SIZE),
        ] {
            assert!(size >= told + ROOM, "{size} {told}");
        }
    }

    /// Kernels from 6.17 on write the revision of the list behind a block that ends before it. It lands in the
    /// room, and nothing lands behind that.
    #[test]
    fn privileged_a_kernel_that_writes_too_far_stays_in_the_room() {
        const PATTERN: u64 = 0x5afe_5afe_5afe_5afe;
        let place = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
            .iter()
            .find(|place| std::path::Path::new(place).join("cgroup.procs").exists());
        let (Some(place), true) = (place, rustix::process::geteuid().is_root()) else {
            assert!(
                std::env::var("AXIL_TEST_REQUIRE").as_deref() != Ok("1"),
                "cannot run: it needs root and a cgroup2 mount"
            );
            println!("skipped: it needs root and a cgroup2 mount");
            return;
        };
        let cgroup = std::fs::File::open(place).unwrap();
        let mut ids = [u32::MAX; 2 * MAX_PROGRAMS];
        let mut attributes = QueryAttributes {
            target_fd: raw(cgroup.as_fd()).unwrap(),
            attach_type: BPF_CGROUP_DEVICE,
            prog_ids: ids.as_mut_ptr() as u64,
            prog_cnt: u32::try_from(MAX_PROGRAMS).unwrap(),
            spare: [PATTERN; 24],
            ..QueryAttributes::default()
        };
        query(&mut attributes).unwrap();
        let written = attributes.spare.iter().rposition(|word| *word != PATTERN);
        println!(
            "words written behind the block: {:?}",
            written.map(|at| at + 1)
        );
        assert!(written.is_none_or(|at| (at + 1) * 8 <= ROOM));
        assert!(ids[MAX_PROGRAMS..].iter().all(|id| *id == u32::MAX));
    }
}
