//! The handshake between the runtime's processes, over one sequenced-packet socket pair.
//!
//! ```text
//!  parent                     intermediate                    init
//!    │ clone ─────────────────►│ (only if namespaces are joined  │
//!    │                         │  from inside, and for exec)     │
//!    │ Proceed ───────────────►│ setns                           │
//!    │◄──────────────── Born ──┤ clone as a sibling ────────────►│
//!    │ or clone ──────────────────────────────────────────────► │
//!    │ cgroup, record                                            │
//!    │ Proceed ────────────────────────────────────────────────►│ namespaces, mounts, devices
//!    │◄────────────────────────────────────────────── RunHooks ─┤ (only if there are hooks of create)
//!    │◄──────────────────────────────────────────────── MapIds* ─┤ (only for id-mapped binds of what is
//!    │ IdsMapped ──────────────────────────────────────────────►│  mounted in a user namespace)
//!    │ HooksDone ──────────────────────────────────────────────►│ masks, pivot, identity, lookup
//!    │◄──────────────────────────────────────────── Warning* ───┤
//!    │◄──────────────────────────────────────── Ready | Failed ─┤
//!    │◄────────────────────────────────────────────── Listener ─┤ (exec with SCMP_ACT_NOTIFY only)
//! ```
//!
//! Each packet is one message: a tag byte and a payload. End of file after `Ready` means that the other side
//! has let go of everything it does not need, before it that it died. After `Ready` init waits on `start.sock`
//! (see `gate`), an exec'd process calls execve at once: whether it did the parent asks procfs.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair, sockopt};

use crate::socket::{receive_descriptor, say_last, send_descriptor};

/// Longest payload; longer texts are cut.
const MAX_PAYLOAD: usize = 16 * 1024;
/// How long one side waits for the other: mounts of network file systems may be slow. Time for hooks comes on
/// top, see [`Channel::wait_longer`].
const PATIENCE: Duration = Duration::from_secs(300);

/// Warnings taken from one process: more than there can be, so that one in somebody else's hands does not fill
/// the log for ever.
pub(super) const MAX_WARNINGS: usize = 256;

/// The packet of [`ToParent::Listener`], for whoever must send it without allocating.
pub(super) const LISTENER: &[u8] = b"L";

/// A message that can cross the socket.
pub trait Message: Sized {
    /// Tag and payload.
    fn encode(&self) -> (u8, &[u8]);
    /// The message of a tag and payload; `None` when they mean nothing.
    fn decode(tag: u8, payload: &[u8]) -> Option<Self>;
}

/// From the container's side to the parent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToParent {
    /// The process that will run the program was born; its pid as little-endian bytes.
    Born([u8; 4]),
    /// Something was tolerated.
    Warning(String),
    /// The ids of a bind of what init mounted before are to be mapped, which takes privileges outside: its
    /// number among the mounts as little-endian bytes. Its tree comes beside this.
    MapIds([u8; 4]),
    /// The hooks of create are due, those of the runtime namespace first.
    RunHooks,
    /// Everything is prepared.
    Ready,
    /// The filter of an exec'd process is in force; its listener comes beside this.
    Listener,
    /// It cannot be done; the text is for the user.
    Failed(String),
}

/// From the parent to the container's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToChild {
    /// The cgroup is joined and the record written.
    Proceed,
    /// The ids of the tree that was sent are mapped.
    IdsMapped,
    /// The hooks ran.
    HooksDone,
}

impl Message for ToParent {
    fn encode(&self) -> (u8, &[u8]) {
        match self {
            ToParent::Born(pid) => (b'B', pid),
            ToParent::Warning(text) => (b'W', text.as_bytes()),
            ToParent::MapIds(index) => (b'M', index),
            ToParent::RunHooks => (b'H', &[]),
            ToParent::Ready => (b'R', &[]),
            ToParent::Listener => (b'L', &[]),
            ToParent::Failed(text) => (b'F', text.as_bytes()),
        }
    }

    fn decode(tag: u8, payload: &[u8]) -> Option<ToParent> {
        let text = || String::from_utf8_lossy(payload).into_owned();
        match tag {
            b'B' => payload.try_into().ok().map(ToParent::Born),
            b'W' => Some(ToParent::Warning(text())),
            b'M' => payload.try_into().ok().map(ToParent::MapIds),
            b'H' if payload.is_empty() => Some(ToParent::RunHooks),
            b'R' if payload.is_empty() => Some(ToParent::Ready),
            b'L' if payload.is_empty() => Some(ToParent::Listener),
            b'F' => Some(ToParent::Failed(text())),
            _ => None,
        }
    }
}

impl Message for ToChild {
    fn encode(&self) -> (u8, &[u8]) {
        match self {
            ToChild::Proceed => (b'P', &[]),
            ToChild::IdsMapped => (b'I', &[]),
            ToChild::HooksDone => (b'D', &[]),
        }
    }

    fn decode(tag: u8, payload: &[u8]) -> Option<ToChild> {
        match (tag, payload) {
            (b'P', []) => Some(ToChild::Proceed),
            (b'I', []) => Some(ToChild::IdsMapped),
            (b'D', []) => Some(ToChild::HooksDone),
            _ => None,
        }
    }
}

/// One end of the socket pair: sends `S`, receives `R`.
#[derive(Debug)]
pub struct Channel<S, R> {
    fd: OwnedFd,
    directions: PhantomData<(S, R)>,
}

/// The parent's end.
pub type ParentEnd = Channel<ToChild, ToParent>;
/// The end of init, of an exec'd process and of the intermediate one.
pub type ChildEnd = Channel<ToParent, ToChild>;

/// Makes a connected pair.
///
/// # Errors
/// The errno of socketpair(2).
pub fn pair() -> io::Result<(ParentEnd, ChildEnd)> {
    let (parent, child) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    sockopt::set_socket_timeout(&parent, sockopt::Timeout::Recv, Some(PATIENCE))?;
    Ok((
        Channel {
            fd: parent,
            directions: PhantomData,
        },
        Channel {
            fd: child,
            directions: PhantomData,
        },
    ))
}

fn packet(message: &impl Message) -> Vec<u8> {
    let (tag, payload) = message.encode();
    let payload = &payload[..payload.len().min(MAX_PAYLOAD)];
    let mut packet = Vec::with_capacity(1 + payload.len());
    packet.push(tag);
    packet.extend_from_slice(payload);
    packet
}

impl<S: Message, R: Message> Channel<S, R> {
    /// Sends one message.
    ///
    /// # Errors
    /// The errno of send(2); EPIPE when the other side is gone.
    pub fn send(&self, message: &S) -> io::Result<()> {
        send(&self.fd, &packet(message), SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Sends the last message of a process that may be under a filter; it may not arrive.
    pub fn say_last(&self, message: &S) {
        say_last(self.fd.as_fd(), &packet(message));
    }

    /// Sends one message with `descriptor` beside it.
    ///
    /// # Errors
    /// As [`Channel::send`].
    pub fn send_with_descriptor(&self, message: &S, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        send_descriptor(self.fd.as_fd(), &packet(message), descriptor)?;
        Ok(())
    }

    /// Adds `time` to how long [`Channel::receive`] waits.
    ///
    /// # Errors
    /// The errno of setsockopt(2).
    pub fn wait_longer(&self, time: Duration) -> io::Result<()> {
        let patience = Some(PATIENCE.saturating_add(time));
        Ok(sockopt::set_socket_timeout(
            &self.fd,
            sockopt::Timeout::Recv,
            patience,
        )?)
    }

    /// Receives one message; `None` when the other side closed its end.
    ///
    /// # Errors
    /// The errno of recv(2), EAGAIN when the time is over, or `InvalidData`.
    pub fn receive(&self) -> io::Result<Option<R>> {
        let received = self.receive_with_descriptor()?;
        Ok(received.map(|(message, _)| message))
    }

    /// Receives one message and the descriptor beside it, if there is one.
    ///
    /// # Errors
    /// As [`Channel::receive`].
    pub fn receive_with_descriptor(&self) -> io::Result<Option<(R, Option<OwnedFd>)>> {
        let mut packet = vec![0; 1 + MAX_PAYLOAD];
        let (length, descriptor) = receive_descriptor(self.fd.as_fd(), &mut packet)?;
        match packet[..length].split_first() {
            None => Ok(None),
            Some((tag, payload)) => match R::decode(*tag, payload) {
                Some(message) => Ok(Some((message, descriptor))),
                None => Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("unknown message tag {tag}"),
                )),
            },
        }
    }
}

impl<S, R> AsFd for Channel<S, R> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_round_trip() {
        let (parent, child) = pair().unwrap();
        let messages = [
            ToParent::Born(4711i32.to_le_bytes()),
            ToParent::Warning("ünïcode \0 and more".to_owned()),
            ToParent::MapIds([7, 0, 0, 0]),
            ToParent::RunHooks,
            ToParent::Ready,
            ToParent::Listener,
            ToParent::Failed(String::new()),
        ];
        for message in &messages {
            child.send(message).unwrap();
            assert_eq!(parent.receive().unwrap().as_ref(), Some(message));
        }
        for message in [ToChild::Proceed, ToChild::IdsMapped, ToChild::HooksDone] {
            parent.send(&message).unwrap();
            assert_eq!(child.receive().unwrap(), Some(message));
        }
    }

    #[test]
    fn long_texts_are_cut_and_the_end_is_seen() {
        let (parent, child) = pair().unwrap();
        child
            .send(&ToParent::Failed("x".repeat(MAX_PAYLOAD * 2)))
            .unwrap();
        let Some(ToParent::Failed(text)) = parent.receive().unwrap() else {
            panic!()
        };
        assert_eq!(text.len(), MAX_PAYLOAD);
        drop(child);
        assert_eq!(parent.receive().unwrap(), None);
    }

    #[test]
    fn what_nobody_sends_is_refused() {
        assert_eq!(ToParent::decode(b'B', &[1, 2]), None);
        assert_eq!(ToParent::decode(b'R', &[1]), None);
        assert_eq!(ToParent::decode(b'M', &[1, 2, 3, 4, 5]), None);
        assert_eq!(ToParent::decode(b'P', &[]), None);
        assert_eq!(ToChild::decode(b'B', &[]), None);
    }
}
