//! Loading the filter, and getting its listener out of the container.
//!
//! From the moment the filter is in force every call of this thread is judged by it: one that the agent
//! answers would wait for an agent that does not have the listener yet, one that is forbidden would fail. So
//! this thread makes none. A second thread, which was there before and has no filter, passes the listener on:
//!
//! ```text
//!  init                          courier (thread)                runtime              agent
//!    │ spawn ──────────────────────►│                               │                    │
//!    │ seccomp(2), listener         │                               │                    │
//!    │ slot ──── shared memory ────►│ SCM_RIGHTS ──────────────────►│ state, listener ──►│
//!    │ done ◄─── shared memory ─────┤ close                         │                    │
//!    │ execve, answered by the agent like any later call ───────────────────────────────►│
//! ```

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::seccomp::Filter;
use crate::socket::send_descriptor;
use crate::sys::{SECCOMP_NEW_LISTENER, exit_now, load_seccomp};

/// How often the courier looks for the listener; init waits for it with nothing to do.
const PAUSE: Duration = Duration::from_micros(20);
/// The courier calls little; musl's own default is twice this.
const STACK: usize = 64 * 1024;

/// Puts `filter` in force for this thread. A listener goes over `socket` with `payload` and is closed here.
///
/// # Errors
/// What seccomp(2) says, or that there can be no second thread. The filter is not in force then, or only
/// parts of it are: the process must end.
pub(super) fn load(
    filter: &Filter,
    socket: BorrowedFd<'_>,
    payload: &'static [u8],
) -> io::Result<()> {
    let mut courier = match filter.listener {
        Some(_) => Some(Courier::hire(socket, payload)?),
        None => None,
    };
    for (program, flags) in filter.loads() {
        let listener = load_seccomp(program, flags)?;
        if let (Some(listener), Some(courier)) = (
            listener,
            courier.take_if(|_| flags & SECCOMP_NEW_LISTENER != 0),
        ) {
            courier.carry(listener);
        }
    }
    Ok(())
}

struct Courier {
    slot: Arc<OnceLock<OwnedFd>>,
    done: Arc<AtomicBool>,
}

impl Courier {
    fn hire(socket: BorrowedFd<'_>, payload: &'static [u8]) -> io::Result<Courier> {
        let socket = socket.try_clone_to_owned()?;
        let slot: Arc<OnceLock<OwnedFd>> = Arc::new(OnceLock::new());
        let done = Arc::new(AtomicBool::new(false));
        let (mailbox, told) = (Arc::clone(&slot), Arc::clone(&done));
        let work = move || {
            // Init lets go of the slot once the listener is in it, or when there will be none.
            while Arc::strong_count(&mailbox) > 1 {
                std::thread::sleep(PAUSE);
            }
            let Some(listener) = Arc::into_inner(mailbox).and_then(OnceLock::into_inner) else {
                return;
            };
            if send_descriptor(socket.as_fd(), payload, listener.as_fd()).is_err() {
                // The runtime is gone: nobody would ever answer, so nothing may run.
                exit_now(1);
            }
            // Order: closed before init goes on, because hooks and the program must not have it.
            drop((listener, socket));
            told.store(true, Ordering::Release);
        };
        // The handle is dropped before there is a filter: detaching a thread may be a system call.
        std::thread::Builder::new()
            .stack_size(STACK)
            .spawn(work)
            .map(drop)
            .map_err(|e| io::Error::new(e.kind(), format!("no thread for its listener: {e}")))?;
        Ok(Courier { slot, done })
    }

    /// Hands the listener over and waits until it is on its way, without a system call.
    fn carry(self, listener: OwnedFd) {
        let _ = self.slot.set(listener);
        drop(self.slot);
        while !self.done.load(Ordering::Acquire) {
            std::hint::spin_loop();
        }
        // Giving memory back may be a system call too.
        std::mem::forget(self.done);
    }
}
