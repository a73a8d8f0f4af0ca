//! System calls of the attacks that rustix does not offer; every one is harmless to this process's memory.
#![expect(
    unsafe_code,
    reason = "ptrace, kill of everybody, ioctl and calls by number have no safe form"
)]

use std::io;

fn result(value: i64) -> io::Result<i64> {
    if value == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(value)
    }
}

/// Sends `signal` to `pid`, to every other process of the PID namespace when that is -1.
pub(crate) fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: plain integers.
    let sent = unsafe { libc::kill(pid, signal) };
    result(sent.into()).map(drop)
}

/// glibc's ptrace(2) takes an enumeration, musl's an int.
#[cfg(not(target_env = "musl"))]
type Request = libc::c_uint;
#[cfg(target_env = "musl")]
type Request = libc::c_int;

/// One ptrace(2) request without addresses into this process.
fn trace(request: Request, pid: i32, data: usize) -> io::Result<()> {
    // SAFETY: the requests below take no pointer into this process; `data` is a number.
    let done = unsafe { libc::ptrace(request, pid, 0usize, data) };
    result(done).map(drop)
}

/// Becomes the tracer of `pid` without stopping it.
pub(crate) fn seize(pid: i32) -> io::Result<()> {
    trace(libc::PTRACE_SEIZE, pid, 0)?;
    trace(libc::PTRACE_INTERRUPT, pid, 0)
}

/// Lets a stopped `pid` run to its next system call.
pub(crate) fn step(pid: i32) -> io::Result<()> {
    trace(libc::PTRACE_SYSCALL, pid, 0)
}

/// Lets `pid` go.
pub(crate) fn release(pid: i32) -> io::Result<()> {
    trace(libc::PTRACE_DETACH, pid, 0)
}

/// Waits until the traced `pid` stops; false when it has ended.
pub(crate) fn wait_for_stop(pid: i32) -> io::Result<bool> {
    let mut status = 0;
    // SAFETY: `status` lives until the call returns.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) };
    result(waited.into())?;
    Ok(libc::WIFSTOPPED(status))
}

/// Reaps whoever ended, without waiting.
pub(crate) fn reap() {
    let mut status = 0;
    loop {
        // SAFETY: `status` lives until the call returns.
        let reaped = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
        if reaped <= 0 {
            break;
        }
    }
}

/// Pushes one byte into the input of the terminal `fd`.
pub(crate) fn push_input(fd: i32, byte: u8) -> io::Result<()> {
    // SAFETY: TIOCSTI reads one byte behind the pointer.
    let pushed = unsafe { libc::ioctl(fd, libc::TIOCSTI, &raw const byte) };
    result(pushed.into()).map(drop)
}

/// A system call by number whose arguments are numbers; null where it wants a pointer.
pub(crate) fn call(number: i64, arguments: [usize; 5]) -> io::Result<i64> {
    let [a, b, c, d, e] = arguments;
    // SAFETY: no argument points into this process, so nothing of it is read or written.
    let done = unsafe { libc::syscall(number, a, b, c, d, e) };
    result(done)
}

/// keyctl(2) KEYCTL_SEARCH for a `user` key called `name` in the keyring `ring`.
pub(crate) fn search_key(ring: i32, name: &std::ffi::CStr) -> io::Result<i64> {
    const KEYCTL_SEARCH: i32 = 10;
    // SAFETY: both strings live until the call returns.
    let found = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            KEYCTL_SEARCH,
            ring,
            c"user".as_ptr(),
            name.as_ptr(),
            0,
        )
    };
    result(found)
}

/// add_key(2) of a `user` key called `name` into the keyring `ring`.
pub(crate) fn add_key(ring: i32, name: &std::ffi::CStr) -> io::Result<i64> {
    // SAFETY: the strings live until the call returns, and the payload is one byte of the first.
    let added = unsafe {
        libc::syscall(
            libc::SYS_add_key,
            c"user".as_ptr(),
            name.as_ptr(),
            c"x".as_ptr(),
            1usize,
            ring,
        )
    };
    result(added)
}
