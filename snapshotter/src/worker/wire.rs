//! Frames over a socket, each with at most one descriptor.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::frame::FRAME_MAX;

/// Bytes of the length before a frame.
const HEAD: usize = 4;

/// Sends one frame with the descriptor that belongs to it.
pub(super) fn send(
    socket: impl AsFd,
    frame: &impl Serialize,
    fd: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let body = serde_json::to_vec(frame)?;
    let length = u32::try_from(body.len())
        .ok()
        .filter(|_| body.len() <= FRAME_MAX)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "frame is too long"))?;
    let bytes = [&length.to_le_bytes()[..], &body].concat();
    let mut sent = 0;
    while sent < bytes.len() {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
        // The descriptor travels with the first byte.
        if sent == 0 && !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&fds));
        }
        let slice = [IoSlice::new(&bytes[sent..])];
        match sendmsg(socket.as_fd(), &slice, &mut control, SendFlags::NOSIGNAL) {
            Ok(amount) => sent += amount,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Receives one frame; `None` when the other side is gone. A wait that goes on until `deadline` is an error of
/// the kind `TimedOut`.
pub(super) fn receive<T: DeserializeOwned>(
    socket: impl AsFd,
    deadline: Option<Instant>,
) -> io::Result<Option<(T, Option<OwnedFd>)>> {
    let mut head = [0; HEAD];
    let mut fd = None;
    if !fill(socket.as_fd(), &mut head, &mut fd, deadline)? {
        return Ok(None);
    }
    let length = usize::try_from(u32::from_le_bytes(head)).unwrap_or(usize::MAX);
    if length > FRAME_MAX {
        return Err(invalid("frame is too long"));
    }
    let mut body = vec![0; length];
    let mut stray = None;
    if !fill(socket.as_fd(), &mut body, &mut stray, deadline)? || stray.is_some() {
        return Err(invalid("frame is cut off or has a stray descriptor"));
    }
    let frame = serde_json::from_slice(&body)
        .map_err(|error| invalid(&format!("frame is not valid: {error}")))?;
    Ok(Some((frame, fd)))
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Fills a buffer; `false` when the stream ended before its first byte.
fn fill(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    fd: &mut Option<OwnedFd>,
    deadline: Option<Instant>,
) -> io::Result<bool> {
    let mut filled = 0;
    while filled < buffer.len() {
        if deadline.is_some() {
            wait(socket, PollFlags::IN, deadline)?;
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut slice = [IoSliceMut::new(&mut buffer[filled..])];
        let received = match recvmsg(socket, &mut slice, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => received,
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(mut fds) = message {
                // What does not fit is closed by the kernel, the rest of a longer list here.
                *fd = fds.next();
            }
        }
        if received.bytes == 0 {
            if filled == 0 {
                return Ok(false);
            }
            return Err(invalid("stream ends inside a frame"));
        }
        filled += received.bytes;
    }
    Ok(true)
}

/// Waits until a descriptor is ready or its other side is gone.
pub(super) fn wait(fd: impl AsFd, events: PollFlags, deadline: Option<Instant>) -> io::Result<()> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            return Err(io::Error::from(io::ErrorKind::TimedOut));
        }
        let timeout = left.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        });
        match poll(&mut [PollFd::new(&fd, events)], timeout.as_ref()) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}
