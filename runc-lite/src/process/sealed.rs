//! The runtime's own executable as a container may see it: a sealed copy in memory (CVE-2019-5736).
//!
//! A process inside the container can open `/proc/<pid>/exe` of the runtime's child, or make it the
//! container's program by `#!/proc/self/exe`. Every process that enters a container therefore runs from a
//! memfd that nobody can write, grow or shrink. The binary is small, so the copy costs less than an
//! overlay mount; a caller that starts the runtime from a sealed memfd pays nothing.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create, sendfile};

const SEALS: SealFlags = SealFlags::SEAL
    .union(SealFlags::SHRINK)
    .union(SealFlags::GROW)
    .union(SealFlags::WRITE);

/// Returns at once in a process that runs from a sealed copy; otherwise makes the copy and executes it
/// with the same arguments, and returns only on failure.
///
/// # Errors
/// The errno of the call that failed.
pub fn run_from_sealed_copy() -> io::Result<()> {
    let own = File::open("/proc/self/exe")?;
    if fcntl_get_seals(&own).is_ok_and(|seals| seals.contains(SEALS)) {
        return Ok(());
    }
    let size = usize::try_from(own.metadata()?.len()).map_err(io::Error::other)?;
    // Order: with MFD_EXEC first, kernels before 6.3 do not know it.
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let copy = memfd_create("runc-lite", flags | MemfdFlags::EXEC)
        .or_else(|_| memfd_create("runc-lite", flags))?;
    let mut left = size;
    while left > 0 {
        match sendfile(&copy, &own, None, left)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            sent => left -= sent.min(left),
        }
    }
    fcntl_add_seals(&copy, SEALS)?;
    let strings = |list: Vec<Vec<u8>>| -> io::Result<Vec<CString>> {
        list.into_iter()
            .map(|s| CString::new(s).map_err(io::Error::other))
            .collect()
    };
    let argv = strings(std::env::args_os().map(OsStringExt::into_vec).collect())?;
    let env = strings(
        std::env::vars_os()
            .map(|(name, value)| [name.into_vec(), b"=".to_vec(), value.into_vec()].concat())
            .collect(),
    )?;
    Err(crate::sys::exec_fd(copy.as_fd(), &argv, &env))
}
