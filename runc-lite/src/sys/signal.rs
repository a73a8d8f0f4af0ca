//! Signal masks and synchronous waiting: the runtime installs no handlers, but for an init that waits.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// A kernel signal set.
#[derive(Clone, Copy)]
pub struct SignalSet(libc::sigset_t);

impl std::fmt::Debug for SignalSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SignalSet")
    }
}

fn empty_set() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the whole set it is given.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: initialised just above.
    unsafe { set.assume_init() }
}

/// Blocks every signal so that [`wait_for_signal`] receives them in order.
///
/// # Errors
/// The errno of sigprocmask(2).
pub fn block_all_signals() -> io::Result<SignalSet> {
    let mut set = empty_set();
    // SAFETY: `set` is initialised.
    unsafe { libc::sigfillset(&raw mut set) };
    // SAFETY: `set` is initialised and the old mask is not asked for.
    let result =
        unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut()) };
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(SignalSet(set))
    }
}

/// Unblocks all signals and gives SIGPIPE, which Rust's start-up ignores, its default action back.
///
/// # Errors
/// The errno of sigprocmask(2).
pub fn restore_default_signals() -> io::Result<()> {
    // SAFETY: SIG_DFL is a valid disposition for SIGPIPE.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let set = empty_set();
    // SAFETY: `set` is initialised and the old mask is not asked for.
    let result =
        unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut()) };
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Lets SIGHUP, SIGINT, SIGQUIT and SIGTERM end this process with 128 and their number, also where it is the
/// first of a PID namespace, for which signals without a handler do not exist (pid_namespaces(7)). An execve
/// takes this back.
///
/// # Errors
/// The errno of sigaction(2) or sigprocmask(2).
pub fn exit_on_termination() -> io::Result<()> {
    extern "C" fn leave(signal: libc::c_int) {
        // SAFETY: _exit(2) is safe in a signal handler and does not return.
        unsafe { libc::_exit(128 + signal) }
    }
    let mut set = empty_set();
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM] {
        // SAFETY: the handler only calls _exit(2), so it may interrupt anything.
        let old = unsafe { libc::signal(signal, leave as *const () as libc::sighandler_t) };
        if old == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `set` is initialised and the number is that of a signal.
        unsafe { libc::sigaddset(&raw mut set, signal) };
    }
    // SAFETY: `set` is initialised and the old mask is not asked for.
    let result =
        unsafe { libc::sigprocmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut()) };
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Waits for one of the signals of `set`, as long as it takes.
///
/// # Errors
/// The errno of sigwaitinfo(2) other than EINTR.
pub fn wait_for_signal(set: &SignalSet) -> io::Result<i32> {
    loop {
        // SAFETY: the set is initialised and no siginfo is asked for.
        let signal = unsafe { libc::sigwaitinfo(&raw const set.0, std::ptr::null_mut()) };
        if signal >= 0 {
            return Ok(signal);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINTR) {
            return Err(error);
        }
    }
}

/// A descriptor that becomes readable when one of the signals of `set` arrives, for poll(2); the signals must
/// be blocked. Reads do not block, see [`read_signal`].
///
/// # Errors
/// The errno of signalfd(2).
pub fn signal_descriptor(set: &SignalSet) -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised; -1 asks for a new descriptor.
    let fd =
        unsafe { libc::signalfd(-1, &raw const set.0, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: signalfd(2) returned a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes one signal from a descriptor of [`signal_descriptor`]; `None` when none waits.
///
/// # Errors
/// The errno of read(2) other than EAGAIN.
pub fn read_signal(signals: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    // struct signalfd_siginfo is 128 bytes and begins with the signal's number.
    let mut siginfo = [0u8; 128];
    match rustix::io::retry_on_intr(|| rustix::io::read(signals, &mut siginfo)) {
        Ok(_) => {
            let [a, b, c, d, ..] = siginfo;
            Ok(i32::try_from(u32::from_ne_bytes([a, b, c, d])).ok())
        }
        Err(rustix::io::Errno::AGAIN) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Sends `signal` to the process behind `pidfd`; any number the kernel knows, real-time ones included.
///
/// # Errors
/// The errno of pidfd_send_signal(2); ESRCH when the process is gone.
pub fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: no siginfo is passed; the descriptor is borrowed for the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0u32,
        )
    };
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
