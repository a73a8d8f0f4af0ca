//! Netlink framing: attributes, messages, replies, and the socket that carries them.
//! What the messages mean is in `route` (links, addresses, routes), `nft` and `conntrack`.

pub(crate) mod conntrack;
pub(crate) mod nft;
pub(crate) mod route;

use std::{os::fd::OwnedFd, time::Duration};

use rustix::{
    io::{Errno, Result},
    net::{
        AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind,
        netlink::SocketAddrNetlink, recv, send, socket_with, sockopt,
    },
};

/// `NLM_F_*` flags of linux/netlink.h.
pub(crate) const REQUEST: u16 = 0x1;
pub(crate) const ACK: u16 = 0x4;
pub(crate) const REPLACE: u16 = 0x100;
pub(crate) const EXCL: u16 = 0x200;
pub(crate) const DUMP: u16 = 0x300;
pub(crate) const CREATE: u16 = 0x400;
pub(crate) const APPEND: u16 = 0x800;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const DUMP_INTERRUPTED: u16 = 0x10;
const NESTED: u16 = 0x8000;
const TYPE_MASK: u16 = 0x3fff;
const HEADER: usize = 16;
/// The kernel fills dump replies up to 32 KiB; twice that leaves room.
const RECEIVE_BUFFER: usize = 64 << 10;
/// The kernel answers inside `send`, so a reply that takes this long never comes.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);
/// A dump is repeated when a concurrent change made it inconsistent.
const DUMP_TRIES: usize = 16;

/// A sequence of netlink attributes.
#[derive(Debug, Default, Clone)]
pub(crate) struct Attributes {
    bytes: Vec<u8>,
}

impl Attributes {
    /// Appends raw bytes that precede the attributes (a family header inside a nest).
    pub(crate) fn header(&mut self, header: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(header);
        self.pad();
        self
    }

    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = u16::try_from(value.len() + 4).expect("attributes are built below 64 KiB");
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
        self
    }

    pub(crate) fn u8(&mut self, kind: u16, value: u8) -> &mut Self {
        self.bytes(kind, &[value])
    }

    /// A 32-bit number in host order, as rtnetlink wants it.
    pub(crate) fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// A 32-bit number in network order, as nfnetlink wants it.
    pub(crate) fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// A NUL-terminated string.
    pub(crate) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Attributes)) -> &mut Self {
        let mut inside = Attributes::default();
        fill(&mut inside);
        self.bytes(kind | NESTED, &inside.bytes)
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// One message: its type and flags, a family header, attributes.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    body: Attributes,
}

impl Message {
    pub(crate) fn new(kind: u16, flags: u16, family_header: &[u8]) -> Message {
        let mut body = Attributes::default();
        body.header(family_header);
        Message {
            kind,
            flags: flags | REQUEST,
            body,
        }
    }

    pub(crate) fn attributes(&mut self) -> &mut Attributes {
        &mut self.body
    }

    pub(crate) fn append_to(&self, buffer: &mut Vec<u8>, sequence: u32) {
        let length = u32::try_from(HEADER + self.body.len()).expect("built below 4 GiB");
        buffer.extend_from_slice(&length.to_ne_bytes());
        buffer.extend_from_slice(&self.kind.to_ne_bytes());
        buffer.extend_from_slice(&self.flags.to_ne_bytes());
        buffer.extend_from_slice(&sequence.to_ne_bytes());
        buffer.extend_from_slice(&0u32.to_ne_bytes());
        buffer.extend_from_slice(&self.body.bytes);
    }
}

/// One received message, cut out of its datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) kind: u16,
    flags: u16,
    sequence: u32,
    pub(crate) payload: Vec<u8>,
}

impl Reply {
    /// The attributes after a family header of `header` bytes.
    pub(crate) fn attributes(&self, header: usize) -> AttributeIter<'_> {
        attributes(
            self.payload
                .get(header.next_multiple_of(4)..)
                .unwrap_or_default(),
        )
    }

    /// The verdict of an NLMSG_ERROR: `Ok` for an acknowledgement.
    fn verdict(&self) -> Option<Result<()>> {
        if self.kind != NLMSG_ERROR {
            return None;
        }
        Some(match u32_at(&self.payload, 0).map(u32::cast_signed) {
            Some(0) => Ok(()),
            Some(code) => Err(Errno::from_raw_os_error(code.saturating_neg())),
            None => Err(Errno::BADMSG),
        })
    }
}

/// Iterates over `(type, value)`; stops at the first malformed attribute.
#[derive(Debug, Clone)]
pub(crate) struct AttributeIter<'a> {
    rest: &'a [u8],
}

pub(crate) fn attributes(bytes: &[u8]) -> AttributeIter<'_> {
    AttributeIter { rest: bytes }
}

impl<'a> Iterator for AttributeIter<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16::from_ne_bytes(self.rest.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(self.rest.get(2..4)?.try_into().ok()?);
        let value = self.rest.get(4..length)?;
        self.rest = self
            .rest
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
        Some((kind & TYPE_MASK, value))
    }
}

pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(
        bytes.get(offset..offset + 4)?.try_into().ok()?,
    ))
}

/// The text of a NUL-terminated attribute.
pub(crate) fn text_of(value: &[u8]) -> String {
    let end = value
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// A netlink socket of the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    pub(crate) fn open(protocol: Option<Protocol>) -> Result<Socket> {
        let fd = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )?;
        bind(&fd, &SocketAddrNetlink::new(0, 0))?;
        sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, Some(REPLY_TIMEOUT))?;
        Ok(Socket {
            fd,
            sequence: 0,
            buffer: vec![0; RECEIVE_BUFFER],
        })
    }

    /// Sends one message that changes something and waits for its acknowledgement.
    pub(crate) fn change(&mut self, mut message: Message) -> Result<()> {
        message.flags |= ACK;
        self.converse(&message).map(drop)
    }

    /// Sends a question with one answer; `None` when the object does not exist.
    pub(crate) fn ask(&mut self, message: &Message) -> Result<Option<Reply>> {
        let mut message = message.clone();
        message.flags |= ACK;
        match self.converse(&message) {
            Ok(replies) => Ok(replies.into_iter().next()),
            Err(Errno::NODEV | Errno::NOENT | Errno::NXIO) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends a question about a whole table.
    pub(crate) fn dump(&mut self, message: &Message) -> Result<Vec<Reply>> {
        let mut message = message.clone();
        message.flags |= DUMP;
        for _ in 0..DUMP_TRIES {
            let replies = self.converse(&message)?;
            if replies
                .iter()
                .all(|reply| reply.flags & DUMP_INTERRUPTED == 0)
            {
                return Ok(replies);
            }
        }
        Err(Errno::AGAIN)
    }

    /// Sends prepared bytes (an nfnetlink batch) and returns the verdicts per sequence number
    /// until `last` is among them, then whatever is queued behind it.
    pub(crate) fn batch(&mut self, bytes: &[u8], last: u32) -> Result<Vec<(u32, Result<()>)>> {
        // A batch is one datagram; the default send buffer holds about 200 KiB.
        if bytes.len() > 64 << 10 {
            sockopt::set_socket_send_buffer_size_force(&self.fd, bytes.len() * 2)?;
        }
        send(&self.fd, bytes, SendFlags::empty())?;
        let mut verdicts = Vec::new();
        let mut flags = RecvFlags::empty();
        loop {
            let replies = match self.receive(flags) {
                Ok(replies) => replies,
                Err(Errno::AGAIN) if !flags.is_empty() => return Ok(verdicts),
                Err(error) => return Err(error),
            };
            for reply in replies {
                if let Some(verdict) = reply.verdict() {
                    if reply.sequence == last {
                        flags = RecvFlags::DONTWAIT;
                    }
                    verdicts.push((reply.sequence, verdict));
                }
            }
        }
    }

    fn converse(&mut self, message: &Message) -> Result<Vec<Reply>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut bytes = Vec::with_capacity(256);
        message.append_to(&mut bytes, self.sequence);
        send(&self.fd, &bytes, SendFlags::empty())?;
        let mut answers = Vec::new();
        loop {
            for reply in self.receive(RecvFlags::empty())? {
                // A reply to an earlier, abandoned question.
                if reply.sequence != self.sequence {
                    continue;
                }
                if let Some(verdict) = reply.verdict() {
                    return verdict.map(|()| answers);
                }
                if reply.kind == NLMSG_DONE {
                    return Ok(answers);
                }
                answers.push(reply);
            }
        }
    }

    fn receive(&mut self, flags: RecvFlags) -> Result<Vec<Reply>> {
        let (_, length) = recv(&self.fd, &mut self.buffer[..], flags | RecvFlags::TRUNC)?;
        let datagram = self.buffer.get(..length).ok_or(Errno::MSGSIZE)?;
        split(datagram).ok_or(Errno::BADMSG)
    }
}

/// Cuts a datagram into messages; `None` when a length contradicts the datagram.
fn split(mut rest: &[u8]) -> Option<Vec<Reply>> {
    let mut replies = Vec::new();
    while rest.len() >= HEADER {
        let length = usize::try_from(u32_at(rest, 0)?).ok()?;
        replies.push(Reply {
            kind: u16::from_ne_bytes(rest.get(4..6)?.try_into().ok()?),
            flags: u16::from_ne_bytes(rest.get(6..8)?.try_into().ok()?),
            sequence: u32_at(rest, 8)?,
            payload: rest.get(HEADER..length)?.to_vec(),
        });
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(replies)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_read_back() {
        let mut message = Message::new(16, ACK, &[1, 2, 3, 4]);
        message.attributes().text(3, "eth0").nest(18, |inside| {
            inside.u8(1, 7).u32(2, 0xdead_beef);
        });
        let mut bytes = Vec::new();
        message.append_to(&mut bytes, 9);
        let replies = split(&bytes).unwrap();
        assert_eq!(
            (replies.len(), replies[0].sequence, replies[0].kind),
            (1, 9, 16)
        );
        let read: Vec<_> = replies[0].attributes(4).collect();
        assert_eq!(read[0], (3, &b"eth0\0"[..]));
        let nested: Vec<_> = attributes(read[1].1).collect();
        assert_eq!(
            nested,
            [(1, &[7][..]), (2, &0xdead_beef_u32.to_ne_bytes()[..])]
        );
    }

    proptest::proptest! {
        #[test]
        fn hostile_datagrams_end(bytes in proptest::collection::vec(0u8.., 0..256)) {
            if let Some(replies) = split(&bytes) {
                for reply in replies {
                    let _ = reply.attributes(4).count();
                }
            }
        }
    }
}
