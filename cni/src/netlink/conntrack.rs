//! Forgets UDP connections of a host port, so that datagrams follow its new mapping at once.

use std::collections::BTreeSet;

use rustix::{
    io::{Errno, Result},
    net::netlink,
};

use super::{Message, Reply, Socket, attributes};

const SUBSYSTEM: u16 = 1;
const GET: u16 = 1;
const DELETE: u16 = 2;
const NFGENMSG: usize = 4;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_ID: u16 = 12;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
const IPPROTO_UDP: u8 = 17;

/// Deletes the tracked UDP connections of both families whose original destination port is one
/// of `ports`; returns how many. A kernel without connection tracking has none.
pub(crate) fn forget_udp(ports: &BTreeSet<u16>) -> Result<usize> {
    if ports.is_empty() {
        return Ok(0);
    }
    let mut socket = match Socket::open(Some(netlink::NETFILTER)) {
        Err(Errno::PROTONOSUPPORT) => return Ok(0),
        socket => socket?,
    };
    let mut forgotten = 0;
    for family in [2u8, 10] {
        let question = Message::new(SUBSYSTEM << 8 | GET, 0, &[family, 0, 0, 0]);
        for entry in socket.dump(&question)? {
            if udp_port(&entry).is_none_or(|port| !ports.contains(&port)) {
                continue;
            }
            let mut delete = Message::new(SUBSYSTEM << 8 | DELETE, 0, &[family, 0, 0, 0]);
            for (kind, value) in entry.attributes(NFGENMSG) {
                match kind {
                    CTA_TUPLE_ORIG => delete.attributes().bytes(kind | super::NESTED, value),
                    CTA_ID => delete.attributes().bytes(kind, value),
                    _ => continue,
                };
            }
            match socket.change(delete) {
                // It ended by itself in between.
                Err(Errno::NOENT) => {}
                done => done.map(|()| forgotten += 1)?,
            }
        }
    }
    Ok(forgotten)
}

fn udp_port(entry: &Reply) -> Option<u16> {
    let child = |bytes, wanted| {
        attributes(bytes)
            .find(|(kind, _)| *kind == wanted)
            .map(|(_, v)| v)
    };
    let (_, tuple) = entry
        .attributes(NFGENMSG)
        .find(|(kind, _)| *kind == CTA_TUPLE_ORIG)?;
    let transport = child(tuple, CTA_TUPLE_PROTO)?;
    if child(transport, CTA_PROTO_NUM)? != [IPPROTO_UDP] {
        return None;
    }
    Some(u16::from_be_bytes(
        child(transport, CTA_PROTO_DST_PORT)?.try_into().ok()?,
    ))
}
