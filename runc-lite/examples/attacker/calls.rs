//! System calls that a default profile keeps from a container, and keys that belong to the caller.

use crate::sys;

/// Name, number and arguments; every pointer is null, so that a call let through fails in its own way.
fn dangerous() -> Vec<(&'static str, i64, [usize; 5])> {
    const AF_ALG: usize = 38;
    const AF_VSOCK: usize = 40;
    const SOCK_SEQPACKET: usize = 5;
    const SOCK_STREAM: usize = 1;
    const NEWUSER: usize = 0x1000_0000;
    vec![
        ("unshare", libc::SYS_unshare, [NEWUSER, 0, 0, 0, 0]),
        ("clone3", libc::SYS_clone3, [0, 0, 0, 0, 0]),
        ("mount", libc::SYS_mount, [0, 0, 0, 0, 0]),
        (
            "socket-alg",
            libc::SYS_socket,
            [AF_ALG, SOCK_SEQPACKET, 0, 0, 0],
        ),
        (
            "socket-vsock",
            libc::SYS_socket,
            [AF_VSOCK, SOCK_STREAM, 0, 0, 0],
        ),
        ("io_uring_setup", libc::SYS_io_uring_setup, [1, 0, 0, 0, 0]),
        ("bpf", libc::SYS_bpf, [0, 0, 0, 0, 0]),
        ("userfaultfd", libc::SYS_userfaultfd, [0, 0, 0, 0, 0]),
        ("keyctl", libc::SYS_keyctl, [0, 0, 0, 0, 0]),
        (
            "open_by_handle_at",
            libc::SYS_open_by_handle_at,
            [0, 0, 0, 0, 0],
        ),
        ("kexec_load", libc::SYS_kexec_load, [0, 0, 0, 0, 0]),
        (
            "perf_event_open",
            libc::SYS_perf_event_open,
            [0, 0, 0, 0, 0],
        ),
    ]
}

/// Makes each call and prints what it answers.
pub(crate) fn run() {
    for (name, number, arguments) in dangerous() {
        match sys::call(number, arguments) {
            Ok(value) => println!("ANSWER {name} {value}"),
            Err(error) => println!(
                "ANSWER {name} errno {}",
                error.raw_os_error().unwrap_or_default()
            ),
        }
    }
}

/// The keyring of this session.
const SESSION: i32 = -3;

/// Looks for a key of the caller in the session keyring.
pub(crate) fn search_keys(name: &str) {
    let Ok(name) = std::ffi::CString::new(name) else {
        return;
    };
    match sys::search_key(SESSION, &name) {
        Ok(key) => println!("GOT key {key} of the caller's session"),
        Err(error) => println!("REFUSED {error}"),
    }
    println!("TRIED keys=1");
}

/// Puts a key into the session keyring: what a caller of the runtime may have done.
pub(crate) fn add_key(name: &str) {
    let Ok(name) = std::ffi::CString::new(name) else {
        return;
    };
    match sys::add_key(SESSION, &name) {
        Ok(key) => println!("ADDED {key}"),
        Err(error) => println!("REFUSED {error}"),
    }
}
