//! `pause`: the sandbox process of a pod, first process of a PID namespace its containers share.
//!
//! It reaps what is reparented to it and ends on SIGTERM or SIGINT. It allocates next to nothing.

use std::process::ExitCode;

use rustix::process::{WaitOptions, wait};

pub(super) fn run() -> ExitCode {
    let Ok(blocked) = crate::sys::block_all_signals() else {
        return ExitCode::from(1);
    };
    loop {
        match crate::sys::wait_for_signal(&blocked, None) {
            Ok(Some(libc::SIGTERM | libc::SIGINT)) => return ExitCode::SUCCESS,
            // Signals of one kind merge: reap until nobody is left.
            Ok(Some(libc::SIGCHLD)) => while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {},
            Ok(_) => {}
            Err(_) => return ExitCode::from(1),
        }
    }
}
