//! The rtnetlink vocabulary axil speaks: bridges, veth pairs, addresses, default routes.

use std::{
    net::IpAddr,
    os::fd::{AsRawFd, BorrowedFd},
};

use ipnet::IpNet;
use rustix::io::Result;

use super::{Attributes, CREATE, EXCL, Message, REPLACE, Reply, Socket, text_of, u32_at};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;

const AF_BRIDGE: u8 = 7;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_PROTINFO: u16 = 12;
const IFLA_OPERSTATE: u16 = 16;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_BRPORT_MODE: u16 = 4;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
const IFA_F_NODAD: u32 = 0x2;

const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;

const IFF_UP: u32 = 1;
const IF_OPER_UP: u8 = 6;
const IFINFO: usize = 16;
const IFADDR: usize = 8;

/// What the kernel says about one link.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) up: bool,
    /// RFC 2863 "up": packets flow.
    pub(crate) operational: bool,
    pub(crate) master: Option<u32>,
    pub(crate) mac: Vec<u8>,
    pub(crate) alias: String,
}

/// A veth pair whose peer is born inside the pod.
#[derive(Debug)]
pub(crate) struct VethPlan<'a> {
    pub(crate) host_name: &'a str,
    pub(crate) peer_name: &'a str,
    pub(crate) peer_mac: [u8; 6],
    pub(crate) netns: BorrowedFd<'a>,
    pub(crate) bridge: u32,
    pub(crate) mtu: Option<u32>,
}

/// An rtnetlink socket with the few verbs axil needs.
#[derive(Debug)]
pub(crate) struct Route {
    socket: Socket,
}

impl Route {
    /// Opens a socket in the network namespace of the calling thread.
    pub(crate) fn open() -> Result<Route> {
        Ok(Route {
            socket: Socket::open(None)?,
        })
    }

    pub(crate) fn link(&mut self, name: &str) -> Result<Option<Link>> {
        let mut message = Message::new(RTM_GETLINK, 0, &ifinfo(0, 0, 0));
        message.attributes().text(IFLA_IFNAME, name);
        Ok(self.socket.ask(&message)?.map(|reply| parse_link(&reply)))
    }

    /// All links enslaved to `bridge`.
    pub(crate) fn ports(&mut self, bridge: u32) -> Result<Vec<Link>> {
        let mut message = Message::new(RTM_GETLINK, 0, &ifinfo(0, 0, 0));
        message.attributes().u32(IFLA_MASTER, bridge);
        let links = self.socket.dump(&message)?;
        // Old kernels ignore the filter, so it is applied again.
        Ok(links
            .iter()
            .map(parse_link)
            .filter(|link| link.master == Some(bridge))
            .collect())
    }

    pub(crate) fn create_bridge(
        &mut self,
        name: &str,
        mac: [u8; 6],
        mtu: Option<u32>,
    ) -> Result<()> {
        let mut message = Message::new(RTM_NEWLINK, CREATE | EXCL, &ifinfo(0, 0, 0));
        let attributes = message.attributes();
        // A bridge without an address of its own takes a port's and changes it under the pods.
        attributes.text(IFLA_IFNAME, name).bytes(IFLA_ADDRESS, &mac);
        if let Some(mtu) = mtu {
            attributes.u32(IFLA_MTU, mtu);
        }
        attributes.nest(IFLA_LINKINFO, |linkinfo| {
            linkinfo.text(IFLA_INFO_KIND, "bridge");
        });
        self.socket.change(message)
    }

    /// Creates both ends in one message: the host end enslaved and up, the peer in the pod.
    pub(crate) fn create_veth(&mut self, plan: &VethPlan<'_>) -> Result<()> {
        let mut message = Message::new(RTM_NEWLINK, CREATE | EXCL, &ifinfo(0, 0, IFF_UP));
        let attributes = message.attributes();
        attributes
            .text(IFLA_IFNAME, plan.host_name)
            .u32(IFLA_MASTER, plan.bridge);
        if let Some(mtu) = plan.mtu {
            attributes.u32(IFLA_MTU, mtu);
        }
        attributes.nest(IFLA_LINKINFO, |linkinfo| {
            linkinfo
                .text(IFLA_INFO_KIND, "veth")
                .nest(IFLA_INFO_DATA, |data| {
                    data.nest(VETH_INFO_PEER, |peer| fill_peer(peer, plan));
                });
        });
        self.socket.change(message)
    }

    /// Notes the owner on a link (`ip link` shows it as alias).
    pub(crate) fn set_alias(&mut self, name: &str, alias: &str) -> Result<()> {
        let mut message = Message::new(RTM_SETLINK, 0, &ifinfo(0, 0, 0));
        message
            .attributes()
            .text(IFLA_IFNAME, name)
            .text(IFLA_IFALIAS, alias);
        self.socket.change(message)
    }

    /// Lets a bridge port send a frame back where it came from.
    pub(crate) fn set_hairpin(&mut self, index: u32) -> Result<()> {
        let mut message = Message::new(RTM_SETLINK, 0, &ifinfo(AF_BRIDGE, index, 0));
        message.attributes().nest(IFLA_PROTINFO, |port| {
            port.u8(IFLA_BRPORT_MODE, 1);
        });
        self.socket.change(message)
    }

    pub(crate) fn set_master(&mut self, index: u32, master: u32) -> Result<()> {
        let mut message = Message::new(RTM_SETLINK, 0, &ifinfo(0, index, 0));
        message.attributes().u32(IFLA_MASTER, master);
        self.socket.change(message)
    }

    pub(crate) fn set_up(&mut self, index: u32) -> Result<()> {
        self.socket
            .change(Message::new(RTM_SETLINK, 0, &ifinfo(0, index, IFF_UP)))
    }

    /// Deletes a link and waits until the kernel has taken it down.
    pub(crate) fn delete_link(&mut self, index: u32) -> Result<()> {
        self.socket
            .change(Message::new(RTM_DELLINK, 0, &ifinfo(0, index, 0)))
    }

    /// Gives a link an address; the same address twice is no error. Duplicate address detection
    /// is skipped: the lease already made the address ours.
    pub(crate) fn add_address(&mut self, index: u32, address: IpNet) -> Result<()> {
        let header = [family(address.addr()), address.prefix_len(), 0, 0];
        let mut bytes = header.to_vec();
        bytes.extend_from_slice(&index.to_ne_bytes());
        let mut message = Message::new(RTM_NEWADDR, CREATE | REPLACE, &bytes);
        let octets = octets(address.addr());
        let attributes = message.attributes();
        attributes
            .bytes(IFA_LOCAL, &octets)
            .bytes(IFA_ADDRESS, &octets);
        if address.addr().is_ipv6() {
            attributes.u32(IFA_FLAGS, IFA_F_NODAD);
        }
        self.socket.change(message)
    }

    /// The addresses of one link.
    pub(crate) fn addresses(&mut self, index: u32) -> Result<Vec<IpNet>> {
        let message = Message::new(RTM_GETADDR, 0, &[0; IFADDR]);
        let replies = self.socket.dump(&message)?;
        Ok(replies
            .iter()
            .filter_map(|reply| parse_address(reply, index))
            .collect())
    }

    pub(crate) fn add_default_route(&mut self, gateway: IpAddr, index: u32) -> Result<()> {
        let header = [
            family(gateway),
            0,
            0,
            0,
            RT_TABLE_MAIN,
            RTPROT_STATIC,
            0,
            RTN_UNICAST,
            0,
            0,
            0,
            0,
        ];
        let mut message = Message::new(RTM_NEWROUTE, CREATE | REPLACE, &header);
        message
            .attributes()
            .bytes(RTA_GATEWAY, &octets(gateway))
            .u32(RTA_OIF, index);
        self.socket.change(message)
    }
}

fn fill_peer(peer: &mut Attributes, plan: &VethPlan<'_>) {
    peer.header(&ifinfo(0, 0, 0))
        .text(IFLA_IFNAME, plan.peer_name)
        .bytes(IFLA_ADDRESS, &plan.peer_mac)
        .u32(IFLA_NET_NS_FD, plan.netns.as_raw_fd().cast_unsigned());
    if let Some(mtu) = plan.mtu {
        peer.u32(IFLA_MTU, mtu);
    }
}

/// `struct ifinfomsg`; `up` sets the flag and its bit in the change mask.
fn ifinfo(family: u8, index: u32, up: u32) -> [u8; IFINFO] {
    let mut bytes = [0; IFINFO];
    bytes[0] = family;
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..12].copy_from_slice(&up.to_ne_bytes());
    bytes[12..16].copy_from_slice(&up.to_ne_bytes());
    bytes
}

fn parse_link(reply: &Reply) -> Link {
    let mut link = Link {
        index: u32_at(&reply.payload, 4).unwrap_or_default(),
        up: u32_at(&reply.payload, 8).unwrap_or_default() & IFF_UP != 0,
        ..Link::default()
    };
    for (kind, value) in reply.attributes(IFINFO) {
        match kind {
            IFLA_IFNAME => link.name = text_of(value),
            IFLA_IFALIAS => link.alias = text_of(value),
            IFLA_MASTER => link.master = u32_at(value, 0),
            IFLA_OPERSTATE => link.operational = value.first() == Some(&IF_OPER_UP),
            IFLA_ADDRESS => link.mac = value.to_vec(),
            IFLA_LINKINFO => {
                link.kind = super::attributes(value)
                    .find(|(kind, _)| *kind == IFLA_INFO_KIND)
                    .map(|(_, value)| text_of(value))
                    .unwrap_or_default();
            }
            _ => {}
        }
    }
    link
}

fn parse_address(reply: &Reply, index: u32) -> Option<IpNet> {
    if u32_at(&reply.payload, 4)? != index {
        return None;
    }
    let prefix = *reply.payload.get(1)?;
    // For broadcast links both attributes hold the same; IPv6 has only IFA_ADDRESS.
    let (_, value) = reply
        .attributes(IFADDR)
        .find(|(kind, _)| *kind == IFA_ADDRESS)?;
    let address = match value.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(value).ok()?),
        _ => IpAddr::from(<[u8; 16]>::try_from(value).ok()?),
    };
    IpNet::new(address, prefix).ok()
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { AF_INET } else { AF_INET6 }
}

/// The address in network order.
pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}
