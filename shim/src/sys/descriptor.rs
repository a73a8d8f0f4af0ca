//! Watches descriptors in the event loop.
#![expect(
    unsafe_code,
    reason = "tokio cannot know that a type keeps its descriptor"
)]

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers a non-blocking descriptor with the current event loop.
///
/// # Errors
/// The kernel cannot watch it, as with a regular file.
pub fn watch(owner: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` keeps its descriptor open and the same until it is dropped, and it moves
    // into the result, which takes the registration back before that.
    let watched = unsafe { AsyncFd::register_with_interest(owner, interest) };
    watched.map_err(io::Error::from)
}
