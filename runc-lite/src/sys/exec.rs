//! execve(2), execveat(2), close_range(2), personality(2) and the session keyring.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Strings and the array of pointers to them that execve(2) takes.
#[derive(Debug)]
struct Strings {
    strings: Vec<CString>,
    // Invariant: points to the texts of `strings`, which stay where they are when the vector moves, and ends
    // with a null pointer.
    pointers: Vec<*const libc::c_char>,
}

impl Strings {
    fn new(strings: Vec<CString>) -> Strings {
        let pointers = strings.iter().map(|s| s.as_ptr());
        let pointers = pointers.chain(std::iter::once(std::ptr::null())).collect();
        Strings { strings, pointers }
    }
}

/// The arguments and the environment of a program, ready for execve(2): once they are made nothing is
/// allocated, which a seccomp filter might forbid.
#[derive(Debug)]
pub struct Arguments {
    argv: Strings,
    env: Strings,
}

impl Arguments {
    /// Takes the program's own name with the arguments, and `NAME=value` entries.
    #[must_use]
    pub fn new(argv: Vec<CString>, env: Vec<CString>) -> Arguments {
        Arguments {
            argv: Strings::new(argv),
            env: Strings::new(env),
        }
    }

    /// The environment.
    #[must_use]
    pub fn environment(&self) -> &[CString] {
        &self.env.strings
    }
}

/// Replaces the process image by `path`; returns only on failure.
#[must_use]
pub fn exec(path: &CStr, arguments: &Arguments) -> io::Error {
    let (argv, env) = (&arguments.argv.pointers, &arguments.env.pointers);
    // SAFETY: both arrays end with a null pointer and point to strings that live until the call returns.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Replaces the process image by the file behind `fd`; returns only on failure.
#[must_use]
pub fn exec_fd(fd: BorrowedFd<'_>, arguments: &Arguments) -> io::Error {
    let (argv, env) = (&arguments.argv.pointers, &arguments.env.pointers);
    // SAFETY: the empty path is a valid C string, and both arrays end with a null pointer and point to
    // strings that live until the call returns.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            fd.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            env.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

/// Closes, or marks close-on-exec, every descriptor from `first` to `last` inclusive.
///
/// With `cloexec` false the caller promises never to touch a Rust owner of such a descriptor again.
///
/// # Errors
/// The errno of close_range(2).
pub fn close_range(first: u32, last: u32, cloexec: bool) -> io::Result<()> {
    let flags = if cloexec {
        libc::CLOSE_RANGE_CLOEXEC
    } else {
        0
    };
    // SAFETY: the call takes plain integers; callers pass descriptors whose owners are leaked (see above).
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Joins or makes the session keyring `name`, so that the container cannot use the caller's keys.
///
/// # Errors
/// The errno of keyctl(2); ENOSYS on kernels without keyrings.
pub fn join_session_keyring(name: &CStr) -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: the name is a valid C string for the duration of the call.
    let result =
        unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) };
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Sets the execution domain, see personality(2).
///
/// # Errors
/// The errno of personality(2).
pub fn set_personality(persona: u64) -> io::Result<()> {
    // SAFETY: plain integer argument, affects the calling thread only.
    let result = unsafe { libc::personality(persona) };
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Closes every descriptor from `first` on, and those from 3 to `first` that are marked close-on-exec, except
/// `keep`. Below `first` lies what the caller handed on; what is marked there is this process's own, which
/// found the number free.
///
/// For a cloned child that goes on with `keep` alone: the owners of all others are copies that the child
/// never drops, because it ends by exec or [`super::exit_now`].
///
/// # Errors
/// The errno of close_range(2).
pub fn close_all_except(first: u32, keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut kept: Vec<u32> = keep
        .iter()
        .filter_map(|fd| u32::try_from(fd.as_raw_fd()).ok())
        .collect();
    kept.sort_unstable();
    for fd in (3..first).filter(|fd| !kept.contains(fd)) {
        if is_close_on_exec(fd) {
            close_range(fd, fd, false)?;
        }
    }
    let mut next = first;
    for fd in kept.into_iter().filter(|fd| *fd >= first) {
        if fd > next {
            close_range(next, fd - 1, false)?;
        }
        next = next.max(fd + 1);
    }
    close_range(next, u32::MAX, false)
}

fn is_close_on_exec(fd: u32) -> bool {
    let Ok(fd) = libc::c_int::try_from(fd) else {
        return false;
    };
    // SAFETY: the request takes no argument and changes nothing, whatever the number is.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    flags != -1 && flags & libc::FD_CLOEXEC != 0
}
