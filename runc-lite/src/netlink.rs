//! The few rtnetlink(7) messages that moving an interface needs: find, set, move, addresses.
//!
//! Our own encoder, because the libraries for it want an async runtime or bring types for every message
//! there is; a socket works in the network namespace it was opened in, whatever its process does later.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::{Errno, Result};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with,
    sockopt,
};

/// `RTM_*` of linux/rtnetlink.h.
const NEW_LINK: u16 = 16;
const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
const GET_ADDRESS: u16 = 22;
/// `NLM_F_*` and `NLMSG_*` of linux/netlink.h.
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const DUMP: u16 = 0x300;
const CREATE: u16 = 0x400;
const EXCL: u16 = 0x200;
const DUMP_INTERRUPTED: u16 = 0x10;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const HEADER: usize = 16;
/// `IFLA_*` of linux/if_link.h.
const IFLA_IFNAME: u16 = 3;
const IFLA_NET_NS_FD: u16 = 28;
/// `IFA_*` of linux/if_addr.h: what an address keeps when it is made anew.
const IFA_FLAGS: u16 = 8;
const KEPT_ATTRIBUTES: [u16; 5] = [1, 2, 4, 9, 11]; // address, local, broadcast, metric, protocol
/// Flags that are settings (no DAD, home address, temporary addresses, no prefix route, multicast); all
/// others are states.
const KEPT_FLAGS: u32 = 0x02 | 0x10 | 0x100 | 0x200 | 0x400;
const PERMANENT: u32 = 0x80;
const IFF_UP: u32 = 1;

/// The kernel fills replies up to 32 KiB; twice that leaves room.
const BUFFER: usize = 64 << 10;
/// The kernel answers inside send(2), so a reply that takes this long never comes.
const PATIENCE: Duration = Duration::from_secs(10);
/// A dump is repeated when a change made it inconsistent.
const DUMP_TRIES: usize = 16;

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) is_up: bool,
}

/// An address of an interface, with what it needs to be made anew elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    family: u8,
    prefix: u8,
    scope: u8,
    flags: u32,
    attributes: Vec<(u16, Vec<u8>)>,
}

impl Address {
    /// Permanent and of global scope (`RT_SCOPE_UNIVERSE` is 0): what is meant for a container too.
    pub(crate) fn is_lasting(&self) -> bool {
        self.flags & PERMANENT != 0 && self.scope == 0
    }
}

/// A socket to the routing side of one network namespace.
#[derive(Debug)]
pub(crate) struct Routing {
    socket: OwnedFd,
}

struct Message {
    kind: u16,
    flags: u16,
    payload: Vec<u8>,
}

fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) -> Result<()> {
    let length = u16::try_from(value.len() + 4).map_err(|_| Errno::MSGSIZE)?;
    body.extend_from_slice(&length.to_ne_bytes());
    body.extend_from_slice(&kind.to_ne_bytes());
    body.extend_from_slice(value);
    body.resize(body.len().next_multiple_of(4), 0);
    Ok(())
}

/// `struct ifinfomsg`.
fn link_header(index: u32, flags: u32, changed: u32) -> Vec<u8> {
    let mut body = vec![0; 4];
    for word in [index, flags, changed] {
        body.extend_from_slice(&word.to_ne_bytes());
    }
    body
}

fn name_value(name: &str) -> Vec<u8> {
    let mut value = name.as_bytes().to_vec();
    value.push(0);
    value
}

fn word_at(bytes: &[u8], offset: usize) -> Option<u32> {
    let word = bytes.get(offset..offset + 4)?;
    Some(u32::from_ne_bytes(word.try_into().ok()?))
}

fn half_at(bytes: &[u8], offset: usize) -> Option<u16> {
    let half = bytes.get(offset..offset + 2)?;
    Some(u16::from_ne_bytes(half.try_into().ok()?))
}

/// The attributes of `bytes` up to the first that is malformed.
fn attributes(mut bytes: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let mut found = Vec::new();
    while let (Some(length), Some(kind)) = (half_at(bytes, 0), half_at(bytes, 2)) {
        let length = usize::from(length);
        let Some(value) = bytes.get(4..length) else {
            break;
        };
        // The upper bits tell nesting and byte order.
        found.push((kind & 0x3fff, value.to_vec()));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// Cuts a datagram into messages.
fn messages(mut bytes: &[u8]) -> Result<Vec<Message>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let parts = (word_at(bytes, 0), half_at(bytes, 4), half_at(bytes, 6));
        let (Some(length), Some(kind), Some(flags)) = parts else {
            return Err(Errno::BADMSG);
        };
        let length = length as usize;
        let payload = bytes.get(HEADER..length).ok_or(Errno::BADMSG)?.to_vec();
        found.push(Message {
            kind,
            flags,
            payload,
        });
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(found)
}

fn parse_link(payload: &[u8]) -> Option<Link> {
    let name = attributes(payload.get(16..)?)
        .into_iter()
        .find(|(kind, _)| *kind == IFLA_IFNAME)?
        .1;
    let name = name.strip_suffix(&[0]).unwrap_or(&name);
    Some(Link {
        index: word_at(payload, 4)?,
        name: String::from_utf8_lossy(name).into_owned(),
        is_up: word_at(payload, 8)? & IFF_UP != 0,
    })
}

/// The interface index and the address of an RTM_NEWADDR.
fn parse_address(payload: &[u8]) -> Option<(u32, Address)> {
    let found = attributes(payload.get(8..)?);
    let flags = found
        .iter()
        .find(|(kind, _)| *kind == IFA_FLAGS)
        .and_then(|(_, value)| word_at(value, 0));
    let address = Address {
        family: *payload.first()?,
        prefix: *payload.get(1)?,
        // IFA_FLAGS has all of them, the header those that fit into a byte.
        flags: flags.unwrap_or(u32::from(*payload.get(2)?)),
        scope: *payload.get(3)?,
        attributes: found
            .into_iter()
            .filter(|(kind, _)| KEPT_ATTRIBUTES.contains(kind))
            .collect(),
    };
    Some((word_at(payload, 4)?, address))
}

impl Routing {
    /// Opens a socket in the network namespace of the calling process.
    pub(crate) fn open() -> Result<Routing> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            // NETLINK_ROUTE is protocol number zero.
            None,
        )?;
        bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE))?;
        Ok(Routing { socket })
    }

    /// Sends one request and reads the answers up to the end or the acknowledgement.
    fn ask(&self, kind: u16, flags: u16, body: &[u8]) -> Result<Vec<Message>> {
        let length = u32::try_from(HEADER + body.len()).map_err(|_| Errno::MSGSIZE)?;
        let mut packet = length.to_ne_bytes().to_vec();
        packet.extend_from_slice(&kind.to_ne_bytes());
        packet.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
        // One request at a time: neither sequence nor port number is needed to tell answers apart.
        packet.extend_from_slice(&[0; 8]);
        packet.extend_from_slice(body);
        rustix::io::retry_on_intr(|| send(&self.socket, &packet, SendFlags::empty()))?;
        let mut buffer = vec![0; BUFFER];
        let mut answers = Vec::new();
        let mut interrupted = false;
        loop {
            let (length, _) = rustix::io::retry_on_intr(|| {
                recv(&self.socket, buffer.as_mut_slice(), RecvFlags::empty())
            })?;
            for message in messages(&buffer[..length])? {
                interrupted |= message.flags & DUMP_INTERRUPTED != 0;
                match message.kind {
                    ERROR => {
                        let code = word_at(&message.payload, 0).ok_or(Errno::BADMSG)?;
                        return match code.cast_signed() {
                            0 => Ok(answers),
                            code => Err(Errno::from_raw_os_error(code.saturating_neg())),
                        };
                    }
                    DONE if interrupted => return Err(Errno::INTR),
                    DONE => return Ok(answers),
                    _ => answers.push(message),
                }
            }
        }
    }

    fn dump(&self, kind: u16, body: &[u8]) -> Result<Vec<Message>> {
        for _ in 1..DUMP_TRIES {
            match self.ask(kind, DUMP, body) {
                Err(Errno::INTR) => {}
                other => return other,
            }
        }
        self.ask(kind, DUMP, body)
    }

    /// The interface of this name; `None` when there is none.
    pub(crate) fn link(&self, name: &str) -> Result<Option<Link>> {
        let mut body = link_header(0, 0, 0);
        attribute(&mut body, IFLA_IFNAME, &name_value(name))?;
        match self.ask(GET_LINK, ACK, &body) {
            Ok(answers) => Ok(answers
                .iter()
                .find_map(|answer| parse_link(&answer.payload))),
            Err(Errno::NODEV) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Every interface.
    pub(crate) fn links(&self) -> Result<Vec<Link>> {
        let answers = self.dump(GET_LINK, &link_header(0, 0, 0))?;
        Ok(answers
            .iter()
            .filter_map(|answer| parse_link(&answer.payload))
            .collect())
    }

    /// The addresses of every family of an interface.
    pub(crate) fn addresses(&self, index: u32) -> Result<Vec<Address>> {
        // `struct ifaddrmsg`; the kernel filters by index only when asked to be strict.
        let answers = self.dump(GET_ADDRESS, &[0; 8])?;
        let all = answers
            .iter()
            .filter_map(|answer| parse_address(&answer.payload));
        Ok(all
            .filter(|(owner, _)| *owner == index)
            .map(|(_, address)| address)
            .collect())
    }

    /// Sets an interface up or down.
    pub(crate) fn set_up(&self, index: u32, up: bool) -> Result<()> {
        let flags = if up { IFF_UP } else { 0 };
        self.ask(NEW_LINK, ACK, &link_header(index, flags, IFF_UP))
            .map(|_| ())
    }

    /// Moves an interface into another network namespace, where it is called `name`.
    pub(crate) fn move_to(&self, index: u32, namespace: BorrowedFd<'_>, name: &str) -> Result<()> {
        let mut body = link_header(index, 0, 0);
        // Both in one request: no name of the one namespace gets in the way in the other.
        attribute(&mut body, IFLA_IFNAME, &name_value(name))?;
        let fd = namespace.as_raw_fd().to_ne_bytes();
        attribute(&mut body, IFLA_NET_NS_FD, &fd)?;
        self.ask(NEW_LINK, ACK, &body).map(|_| ())
    }

    /// Gives an interface an address.
    pub(crate) fn add_address(&self, index: u32, address: &Address) -> Result<()> {
        let mut body = vec![address.family, address.prefix, 0, address.scope];
        body.extend_from_slice(&index.to_ne_bytes());
        for (kind, value) in &address.attributes {
            attribute(&mut body, *kind, value)?;
        }
        let flags = address.flags & KEPT_FLAGS;
        attribute(&mut body, IFA_FLAGS, &flags.to_ne_bytes())?;
        match self.ask(NEW_ADDRESS, ACK | CREATE | EXCL, &body) {
            // It is there: all that was wanted.
            Ok(_) | Err(Errno::EXIST) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_is_found_and_others_are_not() {
        let routing = Routing::open().unwrap();
        let loopback = routing.link("lo").unwrap().unwrap();
        assert_eq!((loopback.index, loopback.name.as_str()), (1, "lo"));
        assert!(routing.links().unwrap().contains(&loopback));
        assert_eq!(routing.link("no-such-link").unwrap(), None);
        // Its addresses are of host scope.
        let addresses = routing.addresses(1).unwrap();
        assert!(addresses.iter().all(|address| !address.is_lasting()));
    }

    #[test]
    fn damaged_answers_end_the_reading() {
        assert!(messages(&[1, 2, 3]).is_err());
        assert!(messages(&[255, 0, 0, 0, 0, 0, 0, 0]).is_err());
        assert!(attributes(&[3, 0, 1, 0]).is_empty());
        assert!(attributes(&[255, 255, 1, 0, 0]).is_empty());
        assert_eq!(attributes(&[5, 0, 7, 0, 9, 0, 0, 0]), [(7, vec![9])]);
        assert_eq!(parse_link(&[0; 15]), None);
        assert_eq!(parse_address(&[]), None);
    }
}
