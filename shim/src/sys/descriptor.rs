//! Watches descriptors in the event loop.
#![expect(
    unsafe_code,
    reason = "tokio cannot know that a type keeps its descriptor"
)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::signalfd::SignalFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Owns one descriptor, always the same, until it is dropped.
pub trait OwnsDescriptor: AsRawFd {}

impl OwnsDescriptor for OwnedFd {}
impl OwnsDescriptor for SignalFd {}

/// Registers a non-blocking descriptor with the current event loop.
///
/// # Errors
/// The kernel cannot watch it, as with a regular file.
pub fn watch<T: OwnsDescriptor>(owner: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // SAFETY: the trait is implemented only for types that own their descriptor and never change it,
    // and the owner moves into the result, which takes the registration back before it is dropped.
    let watched = unsafe { AsyncFd::register_with_interest(owner, interest) };
    watched.map_err(io::Error::from)
}
