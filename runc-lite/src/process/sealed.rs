//! The runtime's own executable as a container may see it: one that nobody can write (CVE-2019-5736).
//!
//! A process inside the container can open `/proc/<pid>/exe` of the runtime's child, or make it the
//! container's program by `#!/proc/self/exe`. Every process that enters a container therefore runs
//!
//! - from a detached overlay of lower layers only: its superblock is read-only and cannot become writable,
//!   and it shares the pages of the installed binary; or, where the kernel gives none (nested overlays, no
//!   right to mount),
//! - from a sealed copy in memory that nobody can write, grow or shrink.
//!
//! A caller that starts the runtime from a sealed memfd pays nothing.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{
    FsWord, MemfdFlags, Mode, OFlags, SealFlags, StatVfsMountFlags, fcntl_add_seals,
    fcntl_get_seals, fstat, fstatfs, fstatvfs, memfd_create, openat, sendfile,
};
use rustix::io::Errno;

use crate::rootfs::make_detached;
use crate::sys::{Arguments, MountAttributes};

const SEALS: SealFlags = SealFlags::SEAL
    .union(SealFlags::SHRINK)
    .union(SealFlags::GROW)
    .union(SealFlags::WRITE);

/// How often sealing is tried, within some four seconds in all.
const SEAL_ATTEMPTS: u32 = 25;

/// Between two tries.
const SEAL_PAUSE: Duration = Duration::from_millis(10);

/// `OVERLAYFS_SUPER_MAGIC`.
const OVERLAY_MAGIC: FsWord = 0x794c_7630;

/// Set to the process id by a runtime that goes on from the overlay. Nothing else tells a detached
/// read-only overlay from one that somebody else can write; a value inherited from a caller names another
/// process.
const MARK: &str = "_RUNC_LITE_SEALED";

/// What the runtime itself may want to know of its caller. The rest, secrets of an engine perhaps, would lie in
/// the memory of processes that enter a container, where a tracer in it finds it.
const KEPT: [&str; 9] = [
    "DBUS_SESSION_BUS_ADDRESS",
    "DBUS_SYSTEM_BUS_ADDRESS",
    "LISTEN_FDNAMES",
    "LISTEN_FDS",
    "LISTEN_PID",
    "NOTIFY_SOCKET",
    "PATH",
    "RUST_BACKTRACE",
    "XDG_RUNTIME_DIR",
];

/// Returns at once in a process that runs from such an executable; otherwise makes one and executes it
/// with the same arguments, and returns only on failure. `empty` is any directory of the runtime's own.
///
/// # Errors
/// The errno of the call that failed.
pub fn run_from_sealed_copy(empty: &Path) -> io::Result<()> {
    let own = File::open("/proc/self/exe")?;
    let mark = std::process::id().to_string();
    if std::env::var(MARK).is_ok_and(|value| value == mark) && is_readonly_overlay(&own) {
        return Ok(());
    }
    if fcntl_get_seals(&own).is_ok_and(|seals| seals.contains(SEALS)) {
        return Ok(());
    }
    let sealed = match overlay(&own, empty) {
        Some(sealed) => sealed,
        None => copy(&own)?,
    };
    let strings = |list: Vec<Vec<u8>>| -> io::Result<Vec<CString>> {
        list.into_iter()
            .map(|s| CString::new(s).map_err(io::Error::other))
            .collect()
    };
    let argv = strings(std::env::args_os().map(OsStringExt::into_vec).collect())?;
    let inherited = std::env::vars_os().filter(|(name, _)| KEPT.iter().any(|kept| name == kept));
    let env = strings(
        inherited
            .map(|(name, value)| [name.into_vec(), b"=".to_vec(), value.into_vec()].concat())
            .chain([format!("{MARK}={mark}").into_bytes()])
            .collect(),
    )?;
    let arguments = Arguments::new(argv, env);
    Err(crate::sys::exec_fd(sealed.as_fd(), &arguments))
}

fn is_readonly_overlay(file: &File) -> bool {
    fstatfs(file).is_ok_and(|fs| fs.f_type == OVERLAY_MAGIC)
        && fstatvfs(file).is_ok_and(|fs| fs.f_flag.contains(StatVfsMountFlags::RDONLY))
}

/// The executable in an overlay of its directory; `None` when there can be none. Without an upper layer
/// the superblock is read-only, and remounting it writable is refused (the kernel's overlayfs.rst).
fn overlay(own: &File, empty: &Path) -> Option<OwnedFd> {
    let path = std::fs::read_link("/proc/self/exe").ok()?;
    let (directory, name) = (path.parent()?.to_str()?, path.file_name()?);
    // Two lower layers are the least without an upper one. The binary's comes first: nothing covers it.
    let layers = [directory, empty.to_str()?];
    if layers.iter().any(|layer| layer.contains([':', '\\', ','])) {
        return None;
    }
    let parameters = [
        ("lowerdir".to_owned(), Some(layers.join(":"))),
        // Inode numbers then stay those of the layer, and the kernel's log stays quiet.
        ("xino".to_owned(), Some("off".to_owned())),
    ];
    let attributes = MountAttributes::RDONLY | MountAttributes::NOSUID | MountAttributes::NODEV;
    let mount = make_detached("overlay", "overlay", &parameters, attributes).ok()?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = openat(&mount, name, flags, Mode::empty()).ok()?;
    // Another binary may have been installed at this path since this one was started.
    let (a, b) = (fstat(own).ok()?, fstat(&found).ok()?);
    let same = (a.st_ino, a.st_size, a.st_mtime, a.st_mtime_nsec)
        == (b.st_ino, b.st_size, b.st_mtime, b.st_mtime_nsec);
    same.then_some(found)
}

/// The executable as a sealed copy in memory.
fn copy(own: &File) -> io::Result<OwnedFd> {
    let size = usize::try_from(own.metadata()?.len()).map_err(io::Error::other)?;
    // Order: with MFD_EXEC first, kernels before 6.3 do not know it.
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let copy = memfd_create("runc-lite", flags | MemfdFlags::EXEC)
        .or_else(|_| memfd_create("runc-lite", flags))?;
    let mut left = size;
    while left > 0 {
        match sendfile(&copy, own, None, left)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            sent => left -= sent.min(left),
        }
    }
    seal(&copy)?;
    Ok(copy)
}

/// Seals what was just written. A page may still be on a CPU's list of new ones; the kernel has these drained, waits
/// some 150 ms and answers `EBUSY` (`memfd_wait_for_pins`), which is too short on a machine without idle CPUs.
fn seal(copy: &OwnedFd) -> io::Result<()> {
    for _ in 1..SEAL_ATTEMPTS {
        match fcntl_add_seals(copy, SEALS) {
            Err(Errno::BUSY) => std::thread::sleep(SEAL_PAUSE),
            result => return Ok(result?),
        }
    }
    Ok(fcntl_add_seals(copy, SEALS)?)
}
