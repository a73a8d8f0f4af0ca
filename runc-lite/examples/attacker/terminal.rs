//! CVE-2017-5226 and kin: puts a command into the input of a terminal that belongs to somebody outside.

use std::os::fd::AsRawFd;

use crate::sys;

/// Tries the streams, and every terminal it can open.
pub(crate) fn run() {
    let mut tries = 0;
    let mut attempt = |fd: i32, what: &str| {
        tries += 1;
        match sys::push_input(fd, b'#') {
            Ok(()) => println!("GOT input into {what}"),
            Err(error) => println!("REFUSED {what}: {error}"),
        }
    };
    for fd in 0..3 {
        attempt(fd, &format!("stream {fd}"));
    }
    for path in ["/dev/tty", "/proc/self/fd/0", "/proc/1/fd/0"] {
        // Without O_NOCTTY, so that it becomes the controlling terminal if anybody lets it.
        match std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
        {
            Ok(file) => attempt(file.as_raw_fd(), path),
            Err(error) => println!("REFUSED {path}: {error}"),
        }
    }
    println!("TRIED terminals={tries}");
}
