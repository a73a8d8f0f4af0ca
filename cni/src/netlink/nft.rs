//! An nfnetlink encoder for nf_tables: tables, chains, sets, rules, elements and atomic batches.
//! Numbers are those of linux/netfilter/nf_tables.h; what axil's own table says is in
//! `builtin::ruleset`.

use std::collections::{BTreeMap, BTreeSet};

use rustix::{
    io::{Errno, Result},
    net::netlink,
};

use super::{ACK, APPEND, Attributes, CREATE, Message, Socket, attributes, text_of};

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NFPROTO_INET: u8 = 1;
const NFPROTO_UNSPEC: u8 = 0;

const NEWTABLE: u16 = 0;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const NEWRULE: u16 = 6;
const GETRULE: u16 = 7;
const NEWSET: u16 = 9;
const NEWSETELEM: u16 = 12;
const GETSETELEM: u16 = 13;
const DELSETELEM: u16 = 14;

const LIST_ELEM: u16 = 1;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const NFGENMSG: usize = 4;
/// Elements per message: a list attribute holds 64 KiB, an element about 100 bytes.
const ELEMENTS_PER_MESSAGE: usize = 256;

/// 16-byte registers, and the 4-byte ones that alias them (8 is the first quarter of 1).
const REG_VERDICT: u32 = 0;
pub(crate) const REG_1: u32 = 1;
pub(crate) const REG_2: u32 = 2;
pub(crate) const REG32_01: u32 = 9;
pub(crate) const REG32_02: u32 = 10;
pub(crate) const REG32_05: u32 = 13;

/// `nft`'s data type numbers, so that `nft list` shows elements as an operator expects.
pub(crate) const TYPE_IPV4: u32 = 7;
pub(crate) const TYPE_IPV6: u32 = 8;
pub(crate) const TYPE_PROTO: u32 = 12;
pub(crate) const TYPE_SERVICE: u32 = 13;

/// Packs up to five data types into a concatenated type, six bits each.
pub(crate) fn concat(types: &[u32]) -> u32 {
    types.iter().fold(0, |packed, kind| packed << 6 | kind)
}

/// Where a base chain sits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hook {
    pub(crate) kind: &'static str,
    pub(crate) hook: u32,
    pub(crate) priority: i32,
}

pub(crate) const PRE_ROUTING: u32 = 0;
pub(crate) const LOCAL_OUT: u32 = 3;
pub(crate) const POST_ROUTING: u32 = 4;

/// The shape of a set or map.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SetShape {
    pub(crate) name: &'static str,
    pub(crate) key_type: u32,
    pub(crate) key_len: u32,
    /// Type and length of the mapped value; `None` for a set.
    pub(crate) data: Option<(u32, u32)>,
    pub(crate) interval: bool,
}

/// One element of a set or map, in kernel layout.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Element {
    pub(crate) key: Vec<u8>,
    pub(crate) data: Option<Vec<u8>>,
    pub(crate) interval_end: bool,
}

/// The expressions of one rule, in order.
#[derive(Debug, Default)]
pub(crate) struct Rule {
    expressions: Attributes,
}

impl Rule {
    fn expression(mut self, name: &str, fill: impl FnOnce(&mut Attributes)) -> Rule {
        self.expressions.nest(LIST_ELEM, |element| {
            element.text(1, name).nest(2, fill);
        });
        self
    }

    pub(crate) fn meta(self, key: MetaKey, register: u32) -> Rule {
        self.expression("meta", |meta| {
            meta.be32(1, register).be32(2, key as u32);
        })
    }

    /// Loads bytes of the network header.
    pub(crate) fn network(self, offset: u32, length: u32, register: u32) -> Rule {
        self.payload(1, offset, length, register)
    }

    /// Loads the destination port; all of TCP, UDP and SCTP keep it at offset 2.
    pub(crate) fn destination_port(self, register: u32) -> Rule {
        self.payload(2, 2, 2, register)
    }

    fn payload(self, base: u32, offset: u32, length: u32, register: u32) -> Rule {
        self.expression("payload", |payload| {
            payload
                .be32(1, register)
                .be32(2, base)
                .be32(3, offset)
                .be32(4, length);
        })
    }

    /// Continues only when register 1 equals (or, inverted, differs from) the value.
    pub(crate) fn compare(self, invert: bool, value: &[u8]) -> Rule {
        self.expression("cmp", |cmp| {
            cmp.be32(1, REG_1)
                .be32(2, u32::from(invert))
                .nest(3, |data| {
                    data.bytes(DATA_VALUE, value);
                });
        })
    }

    /// Masks register 1.
    pub(crate) fn mask(self, mask: &[u8]) -> Rule {
        let length = u32::try_from(mask.len()).expect("masks are at most 16 bytes");
        self.expression("bitwise", |bitwise| {
            bitwise.be32(1, REG_1).be32(2, REG_1).be32(3, length);
            bitwise.nest(4, |data| {
                data.bytes(DATA_VALUE, mask);
            });
            bitwise.nest(5, |data| {
                data.bytes(DATA_VALUE, &vec![0; mask.len()]);
            });
        })
    }

    /// Continues only when the key from register 1 on is (or, inverted, is not) in the set.
    pub(crate) fn in_set(self, set: &str, invert: bool) -> Rule {
        self.expression("lookup", |lookup| {
            lookup.text(1, set).be32(2, REG_1);
            if invert {
                lookup.be32(5, 1);
            }
        })
    }

    /// Loads the mapped value into register 1 on, or ends the rule.
    pub(crate) fn map(self, map: &str) -> Rule {
        self.expression("lookup", |lookup| {
            lookup.text(1, map).be32(2, REG_1).be32(3, REG_1);
        })
    }

    /// Loads the type of the destination address (`RTN_*`, host order) into register 1.
    pub(crate) fn destination_type(self) -> Rule {
        self.expression("fib", |fib| {
            fib.be32(1, REG_1).be32(2, 3).be32(3, 2);
        })
    }

    /// Loads the connection's status bits (host order) into register 1.
    pub(crate) fn connection_status(self) -> Rule {
        self.expression("ct", |ct| {
            ct.be32(1, REG_1).be32(2, 2);
        })
    }

    /// Rewrites the destination to the address in register 1 and the port in `port_register`.
    pub(crate) fn dnat(self, family: u32, port_register: u32) -> Rule {
        self.expression("nat", |nat| {
            nat.be32(1, 1)
                .be32(2, family)
                .be32(3, REG_1)
                .be32(5, port_register);
        })
    }

    pub(crate) fn masquerade(self) -> Rule {
        self.expression("masq", |_| {})
    }

    pub(crate) fn verdict(self, verdict: Verdict<'_>) -> Rule {
        let (code, chain) = match verdict {
            Verdict::Drop => (0, None),
            Verdict::Return => (-5, None),
            Verdict::Jump(chain) => (-3, Some(chain)),
        };
        self.expression("immediate", |immediate| {
            immediate.be32(1, REG_VERDICT).nest(2, |data| {
                data.nest(DATA_VERDICT, |verdict| {
                    verdict.be32(1, i32::cast_unsigned(code));
                    if let Some(chain) = chain {
                        verdict.text(2, chain);
                    }
                });
            });
        })
    }
}

/// What a rule ends in.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Verdict<'a> {
    Drop,
    Return,
    Jump(&'a str),
}

/// `NFT_META_*`.
#[derive(Debug, Clone, Copy)]
pub(crate) enum MetaKey {
    InputName = 6,
    OutputName = 7,
    Family = 15,
    Transport = 16,
}

/// Messages that take effect together or not at all.
#[derive(Debug)]
pub(crate) struct Batch<'a> {
    table: &'a str,
    messages: Vec<Message>,
}

impl<'a> Batch<'a> {
    pub(crate) fn new(table: &'a str) -> Batch<'a> {
        Batch {
            table,
            messages: Vec::new(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Begins the table anew: what was there is replaced in the same commit.
    pub(crate) fn replace_table(&mut self) {
        // Deleting a table that is not there is an error, so it is added first.
        self.add(NEWTABLE, CREATE);
        self.add(DELTABLE, 0);
        self.add(NEWTABLE, CREATE);
    }

    pub(crate) fn add_chain(&mut self, name: &str, hook: Option<Hook>) {
        let chain = self.add(NEWCHAIN, CREATE);
        chain.text(3, name);
        if let Some(hook) = hook {
            chain.nest(4, |place| {
                place
                    .be32(1, hook.hook)
                    .be32(2, hook.priority.cast_unsigned());
            });
            // NF_ACCEPT
            chain.be32(5, 1).text(7, hook.kind);
        }
    }

    pub(crate) fn add_rule(&mut self, chain: &str, rule: &Rule) {
        let message = self.add(NEWRULE, CREATE | APPEND);
        message
            .text(2, chain)
            .bytes(4 | super::NESTED, &rule.expressions.bytes);
    }

    pub(crate) fn add_set(&mut self, id: u32, shape: &SetShape) {
        const INTERVAL: u32 = 4;
        const MAP: u32 = 8;
        let set = self.add(NEWSET, CREATE);
        let mut flags = if shape.interval { INTERVAL } else { 0 };
        if shape.data.is_some() {
            flags |= MAP;
        }
        set.text(2, shape.name)
            .be32(3, flags)
            .be32(4, shape.key_type)
            .be32(5, shape.key_len);
        if let Some((kind, length)) = shape.data {
            set.be32(6, kind).be32(7, length);
        }
        set.be32(10, id);
    }

    pub(crate) fn add_elements(&mut self, set: &str, elements: &[Element]) {
        self.elements(NEWSETELEM, CREATE, set, elements);
    }

    pub(crate) fn delete_elements(&mut self, set: &str, elements: &[Element]) {
        self.elements(DELSETELEM, 0, set, elements);
    }

    fn elements(&mut self, kind: u16, flags: u16, set: &str, elements: &[Element]) {
        for part in elements.chunks(ELEMENTS_PER_MESSAGE) {
            self.add(kind, flags).text(2, set).nest(3, |list| {
                for element in part {
                    list.nest(LIST_ELEM, |inside| fill_element(inside, element));
                }
            });
        }
    }

    fn add(&mut self, kind: u16, flags: u16) -> &mut Attributes {
        let mut message = Message::new(SUBSYSTEM << 8 | kind, flags, &header(NFPROTO_INET, 0));
        message.attributes().text(1, self.table);
        self.messages.push(message);
        self.messages.last_mut().expect("just pushed").attributes()
    }

    /// The bytes of the whole batch and the sequence number of its last message.
    fn encode(mut self) -> (Vec<u8>, u32) {
        if let Some(last) = self.messages.last_mut() {
            last.flags |= ACK;
        }
        let frame = |kind| Message::new(kind, 0, &header(NFPROTO_UNSPEC, SUBSYSTEM));
        let mut bytes = Vec::new();
        frame(BATCH_BEGIN).append_to(&mut bytes, 0);
        let mut sequence = 0;
        for message in &self.messages {
            sequence += 1;
            message.append_to(&mut bytes, sequence);
        }
        frame(BATCH_END).append_to(&mut bytes, sequence + 1);
        (bytes, sequence)
    }
}

/// An nfnetlink socket that speaks nf_tables.
#[derive(Debug)]
pub(crate) struct Nft {
    socket: Socket,
}

impl Nft {
    /// Opens a socket in the network namespace of the calling thread.
    pub(crate) fn open() -> Result<Nft> {
        Ok(Nft {
            socket: Socket::open(Some(netlink::NETFILTER))?,
        })
    }

    /// Applies a batch atomically; the first refused message is the error.
    pub(crate) fn commit(&mut self, batch: Batch<'_>) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let (bytes, last) = batch.encode();
        let verdicts = self.socket.batch(&bytes, last)?;
        verdicts.into_iter().try_for_each(|(_, verdict)| verdict)
    }

    /// How many rules each chain of the table has; empty when the table is missing.
    pub(crate) fn rule_counts(&mut self, table: &str) -> Result<BTreeMap<String, usize>> {
        let mut message = Message::new(SUBSYSTEM << 8 | GETRULE, 0, &header(NFPROTO_INET, 0));
        message.attributes().text(1, table);
        let mut counts = BTreeMap::new();
        for reply in self.socket.dump(&message)? {
            let names: BTreeMap<u16, String> = reply
                .attributes(NFGENMSG)
                .filter(|(kind, _)| *kind <= 2)
                .map(|(kind, value)| (kind, text_of(value)))
                .collect();
            // The filter by table came with Linux 4.11; older kernels send every table.
            if names.get(&1).is_some_and(|name| name == table) {
                *counts
                    .entry(names.get(&2).cloned().unwrap_or_default())
                    .or_default() += 1;
            }
        }
        Ok(counts)
    }

    /// The elements of a set; `None` when it (or its table) does not exist.
    pub(crate) fn elements(&mut self, table: &str, set: &str) -> Result<Option<BTreeSet<Element>>> {
        let mut message = Message::new(SUBSYSTEM << 8 | GETSETELEM, 0, &header(NFPROTO_INET, 0));
        message.attributes().text(1, table).text(2, set);
        let replies = match self.socket.dump(&message) {
            Ok(replies) => replies,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error),
        };
        let lists = replies.iter().flat_map(|reply| reply.attributes(NFGENMSG));
        let elements = lists
            .filter(|(kind, _)| *kind == 3)
            .flat_map(|(_, list)| attributes(list));
        Ok(Some(
            elements
                .map(|(_, element)| parse_element(element))
                .collect(),
        ))
    }
}

fn fill_element(inside: &mut Attributes, element: &Element) {
    inside.nest(1, |key| {
        key.bytes(DATA_VALUE, &element.key);
    });
    if let Some(value) = &element.data {
        inside.nest(2, |data| {
            data.bytes(DATA_VALUE, value);
        });
    }
    if element.interval_end {
        inside.be32(3, 1);
    }
}

fn parse_element(bytes: &[u8]) -> Element {
    let value = |nested| {
        attributes(nested)
            .find(|(kind, _)| *kind == DATA_VALUE)
            .map(|(_, v)| v)
    };
    let mut element = Element::default();
    for (kind, nested) in attributes(bytes) {
        match kind {
            1 => element.key = value(nested).unwrap_or_default().to_vec(),
            2 => element.data = value(nested).map(<[u8]>::to_vec),
            3 => element.interval_end = nested.last().is_some_and(|flags| flags & 1 != 0),
            _ => {}
        }
    }
    element
}

/// `struct nfgenmsg`: family, version 0, resource id in network order.
fn header(family: u8, resource: u16) -> [u8; NFGENMSG] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}
