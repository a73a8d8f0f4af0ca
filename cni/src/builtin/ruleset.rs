//! What axil's own nf_tables table says, as values; how it is spoken to is in `netlink::nft`.
//!
//! The number of rules is constant; a pod adds and removes elements of maps and sets only.
//!
//! ```text
//! table inet axil {
//!   set subnets4, subnets6                  pod subnets
//!   map ports4, ports6                      proto . host port            : pod . port
//!   map address_ports4, address_ports6      proto . host address . port  : pod . port
//!   set published4, published6              proto . pod . port, of all mappings
//!   chain guard        prerouting, raw      nobody but lo speaks from or to 127.0.0.0/8
//!   chain host_ports                        the four maps, the exact address first
//!   chain prerouting, output                to a local address: jump host_ports
//!   chain postrouting                       masquerade: 127.0.0.1 to a pod; a pod to a pod by
//!                                           way of a host port; pods to everywhere else
//! }
//! ```
//! `guard` is what keeps `route_localnet`, which 127.0.0.1:port needs, from opening the host's
//! loopback to pods and neighbours (CVE-2020-8558). Only packets to a local address are
//! redirected, so a pod's port 53 does not catch its neighbours' DNS (CVE-2019-9946), and the
//! asked host address is part of the key (CVE-2025-67499).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

use crate::{
    netlink::{
        nft::{
            Batch, Element, Hook, LOCAL_OUT, MetaKey, POST_ROUTING, PRE_ROUTING, REG_1, REG_2,
            REG32_01, REG32_02, REG32_05, Rule, SetShape, TYPE_IPV4, TYPE_IPV6, TYPE_PROTO,
            TYPE_SERVICE, Verdict, concat,
        },
        route::octets,
    },
    pod::PortMapping,
};

/// The host ports of one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Published {
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) ports: Vec<PortMapping>,
}

/// Elements by set name.
pub(crate) type Elements = BTreeMap<&'static str, BTreeSet<Element>>;

/// The address family of a rule: names and offsets that differ.
struct Family {
    /// `NFPROTO_*`, also what `meta nfproto` loads.
    number: u8,
    source: u32,
    destination: u32,
    length: u32,
    /// Register of the port behind proto . address.
    port_after_address: u32,
    /// Register of the port behind a mapped address.
    mapped_port: u32,
    subnets: &'static str,
    ports: &'static str,
    address_ports: &'static str,
    published: &'static str,
}

const IPV4: Family = Family {
    number: 2,
    source: 12,
    destination: 16,
    length: 4,
    port_after_address: REG32_02,
    mapped_port: REG32_01,
    subnets: "subnets4",
    ports: "ports4",
    address_ports: "address_ports4",
    published: "published4",
};

const IPV6: Family = Family {
    number: 10,
    source: 8,
    destination: 24,
    length: 16,
    port_after_address: REG32_05,
    mapped_port: REG_2,
    subnets: "subnets6",
    ports: "ports6",
    address_ports: "address_ports6",
    published: "published6",
};

/// The sets that pods add elements to.
pub(crate) const POD_SETS: [&str; 6] = [
    "ports4",
    "ports6",
    "address_ports4",
    "address_ports6",
    "published4",
    "published6",
];

/// Rules per chain; differs from the kernel's count when somebody else edited the table.
const RULE_COUNTS: [(&str, usize); 5] = [
    ("guard", 2),
    ("host_ports", 5),
    ("output", 1),
    ("postrouting", 5),
    ("prerouting", 1),
];

/// `RTN_LOCAL` in host order.
const LOCAL: [u8; 4] = 2u32.to_ne_bytes();
/// `IPS_DST_NAT` in host order.
const DESTINATION_CHANGED: [u8; 4] = 0x20u32.to_ne_bytes();

/// Whether the rules in the kernel are as many as written.
pub(crate) fn rules_are_whole(counts: &BTreeMap<String, usize>) -> bool {
    let expected = RULE_COUNTS.map(|(chain, count)| (chain.to_owned(), count));
    *counts == BTreeMap::from(expected)
}

/// Everything: replaces the table in one commit.
pub(crate) fn whole_table<'a>(
    table: &'a str,
    bridge: &str,
    subnets: &[IpNet],
    elements: &Elements,
) -> Batch<'a> {
    let mut batch = Batch::new(table);
    batch.replace_table();
    for (id, shape) in (1..).zip(set_shapes()) {
        batch.add_set(id, &shape);
    }
    for family in [IPV4, IPV6] {
        batch.add_elements(
            family.subnets,
            &intervals(subnets, family.number == IPV4.number),
        );
    }
    add_chains(&mut batch);
    add_rules(&mut batch, bridge);
    for (set, elements) in elements {
        batch.add_elements(set, &elements.iter().cloned().collect::<Vec<_>>());
    }
    batch
}

fn set_shapes() -> Vec<SetShape> {
    let mut shapes = Vec::new();
    for family in [IPV4, IPV6] {
        let address = if family.number == IPV4.number {
            TYPE_IPV4
        } else {
            TYPE_IPV6
        };
        let exact = concat(&[TYPE_PROTO, address, TYPE_SERVICE]);
        let target = Some((concat(&[address, TYPE_SERVICE]), family.length + 4));
        let shape = |name, key_type, key_len, data| SetShape {
            name,
            key_type,
            key_len,
            data,
            interval: false,
        };
        let subnets = shape(family.subnets, address, family.length, None);
        shapes.push(SetShape {
            interval: true,
            ..subnets
        });
        shapes.push(shape(
            family.ports,
            concat(&[TYPE_PROTO, TYPE_SERVICE]),
            8,
            target,
        ));
        shapes.push(shape(
            family.address_ports,
            exact,
            family.length + 8,
            target,
        ));
        shapes.push(shape(family.published, exact, family.length + 8, None));
    }
    shapes
}

fn add_chains(batch: &mut Batch<'_>) {
    let hook = |kind, hook, priority| {
        Some(Hook {
            kind,
            hook,
            priority,
        })
    };
    batch.add_chain("guard", hook("filter", PRE_ROUTING, -300));
    batch.add_chain("host_ports", None);
    batch.add_chain("prerouting", hook("nat", PRE_ROUTING, -100));
    batch.add_chain("output", hook("nat", LOCAL_OUT, -100));
    batch.add_chain("postrouting", hook("nat", POST_ROUTING, 100));
}

fn add_rules(batch: &mut Batch<'_>, bridge: &str) {
    for offset in [IPV4.destination, IPV4.source] {
        // Before connection tracking: answers to 127.0.0.1:port still carry the bridge's address.
        let rule = Rule::default()
            .meta(MetaKey::InputName, REG_1)
            .compare(true, &name("lo"));
        let rule = loopback(of_family(rule, &IPV4), offset);
        batch.add_rule("guard", &rule.verdict(Verdict::Drop));
    }
    for chain in ["prerouting", "output"] {
        let rule = Rule::default().destination_type().compare(false, &LOCAL);
        batch.add_rule(chain, &rule.verdict(Verdict::Jump("host_ports")));
    }
    // IPv6 has no route_localnet: a redirected ::1 could never leave lo.
    let mut ipv6_loopback = [0; 16];
    ipv6_loopback[15] = 1;
    let rule = of_family(Rule::default(), &IPV6).network(IPV6.destination, 16, REG_1);
    let rule = rule.compare(false, &ipv6_loopback).verdict(Verdict::Return);
    batch.add_rule("host_ports", &rule);
    for family in [IPV4, IPV6] {
        let rule = exact_key(of_family(Rule::default(), &family), &family);
        let rule = rule.map(family.address_ports);
        batch.add_rule(
            "host_ports",
            &rule.dnat(family.number.into(), family.mapped_port),
        );
        let rule = of_family(Rule::default(), &family).meta(MetaKey::Transport, REG_1);
        let rule = rule.destination_port(REG32_01).map(family.ports);
        batch.add_rule(
            "host_ports",
            &rule.dnat(family.number.into(), family.mapped_port),
        );
    }
    let rule = Rule::default()
        .meta(MetaKey::OutputName, REG_1)
        .compare(false, &name(bridge));
    let rule = loopback(of_family(rule, &IPV4), IPV4.source);
    batch.add_rule("postrouting", &rule.masquerade());
    for family in [IPV4, IPV6] {
        batch.add_rule("postrouting", &by_host_port(&family));
        batch.add_rule("postrouting", &to_the_world(&family));
    }
}

/// A pod that reaches a pod of the same bridge through a host port would get the answer from an
/// address it never asked, so the host stands in between.
fn by_host_port(family: &Family) -> Rule {
    let rule = from_pods(family);
    let rule = rule
        .network(family.destination, family.length, REG_1)
        .in_set(family.subnets, false);
    let rule = rule
        .connection_status()
        .mask(&DESTINATION_CHANGED)
        .compare(true, &[0; 4]);
    exact_key(rule, family)
        .in_set(family.published, false)
        .masquerade()
}

fn to_the_world(family: &Family) -> Rule {
    let rule = from_pods(family);
    let rule = rule
        .network(family.destination, family.length, REG_1)
        .in_set(family.subnets, true);
    // Multicast keeps its source: receivers answer to it.
    let rule = if family.number == IPV4.number {
        rule.network(family.destination, 4, REG_1)
            .mask(&[0xf0, 0, 0, 0])
            .compare(true, &[0xe0, 0, 0, 0])
    } else {
        rule.network(family.destination, 1, REG_1)
            .compare(true, &[0xff])
    };
    rule.masquerade()
}

fn from_pods(family: &Family) -> Rule {
    let rule = of_family(Rule::default(), family);
    rule.network(family.source, family.length, REG_1)
        .in_set(family.subnets, false)
}

fn of_family(rule: Rule, family: &Family) -> Rule {
    rule.meta(MetaKey::Family, REG_1)
        .compare(false, &[family.number])
}

/// Loads proto . destination address . destination port from register 1 on.
fn exact_key(rule: Rule, family: &Family) -> Rule {
    rule.meta(MetaKey::Transport, REG_1)
        .network(family.destination, family.length, REG32_01)
        .destination_port(family.port_after_address)
}

fn loopback(rule: Rule, offset: u32) -> Rule {
    rule.network(offset, 1, REG_1).compare(false, &[127])
}

/// An interface name as the kernel compares it.
fn name(text: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..text.len()].copy_from_slice(text.as_bytes());
    bytes
}

/// The elements of an interval set: each subnet from its first address to the one behind its
/// last. Adjacent subnets share that address, and the kernel refuses it twice, so they merge.
fn intervals(subnets: &[IpNet], ipv4: bool) -> Vec<Element> {
    let of_family = subnets
        .iter()
        .copied()
        .filter(|subnet| subnet.addr().is_ipv4() == ipv4);
    let mut ends: BTreeMap<Vec<u8>, bool> = BTreeMap::new();
    for subnet in IpNet::aggregate(&of_family.collect()) {
        // Aggregated subnets come in ascending order, so an end is there before the next start.
        if ends.remove(&octets(subnet.network())).is_none() {
            ends.insert(octets(subnet.network()), false);
        }
        if let Some(behind) = successor(octets(subnet.broadcast())) {
            ends.insert(behind, true);
        }
    }
    let element = |(key, interval_end)| Element {
        key,
        data: None,
        interval_end,
    };
    ends.into_iter().map(element).collect()
}

/// The next number; `None` behind the last.
fn successor(mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    for byte in bytes.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            return Some(bytes);
        }
    }
    None
}

/// The elements that publish the ports of some pods.
pub(crate) fn elements<'a>(pods: impl IntoIterator<Item = &'a Published>) -> Elements {
    let mut elements: Elements = POD_SETS.map(|set| (set, BTreeSet::new())).into();
    let mut add = |set, key, data| {
        let element = Element {
            key,
            data,
            interval_end: false,
        };
        elements
            .get_mut(set)
            .expect("a set of POD_SETS")
            .insert(element);
    };
    for pod in pods {
        for port in &pod.ports {
            for address in pod
                .addresses
                .iter()
                .filter(|address| port.serves(address.is_ipv4()))
            {
                let family = if address.is_ipv4() { IPV4 } else { IPV6 };
                let proto = [port.protocol.number(), 0, 0, 0].to_vec();
                let host_port = padded(port.host_port);
                let target = [octets(*address), padded(port.container_port)].concat();
                add(
                    family.published,
                    [proto.clone(), target.clone()].concat(),
                    None,
                );
                let (set, key) = match port.address() {
                    Some(host) => (
                        family.address_ports,
                        [proto, octets(host), host_port].concat(),
                    ),
                    None => (family.ports, [proto, host_port].concat()),
                };
                add(set, key, Some(target));
            }
        }
    }
    elements
}

/// A port in network order, padded to a register.
fn padded(port: u16) -> Vec<u8> {
    let [high, low] = port.to_be_bytes();
    vec![high, low, 0, 0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::Protocol;

    #[test]
    fn a_port_becomes_elements_of_its_families() {
        let mapping = |host_ip: Option<&str>| PortMapping {
            host_ip: host_ip.map(|text| text.parse().unwrap()),
            host_port: 8080,
            container_port: 80,
            protocol: Protocol::Tcp,
        };
        let addresses = vec!["10.88.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        let count = |host_ip| {
            let pod = Published {
                addresses: addresses.clone(),
                ports: vec![mapping(host_ip)],
            };
            let elements = elements([&pod]);
            POD_SETS.map(|set| elements[set].len())
        };
        assert_eq!(count(None), [1, 1, 0, 0, 1, 1]);
        assert_eq!(count(Some("0.0.0.0")), [1, 0, 0, 0, 1, 0]);
        assert_eq!(count(Some("192.0.2.1")), [0, 0, 1, 0, 1, 0]);
        assert_eq!(count(Some("2001:db8::1")), [0, 0, 0, 1, 0, 1]);
        let pod = Published {
            addresses: addresses.clone(),
            ports: vec![mapping(None)],
        };
        let elements = elements([&pod]);
        let element = elements["ports4"].first().unwrap();
        assert_eq!(element.key, [6, 0, 0, 0, 0x1f, 0x90, 0, 0]);
        assert_eq!(
            element.data.as_deref(),
            Some(&[10, 88, 0, 2, 0, 80, 0, 0][..])
        );
    }

    #[test]
    fn intervals_end_behind_the_subnet_and_merge() {
        let check = |texts: &[&str], expect: &[(&[u8], bool)]| {
            let subnets: Vec<IpNet> = texts.iter().map(|text| text.parse().unwrap()).collect();
            let found = intervals(&subnets, true);
            let found: Vec<_> = found.iter().map(|e| (&e.key[..], e.interval_end)).collect();
            assert_eq!(found, expect);
        };
        check(
            &["10.88.0.0/16", "fd00::/64"],
            &[(&[10, 88, 0, 0], false), (&[10, 89, 0, 0], true)],
        );
        check(
            &["10.0.0.0/24", "10.0.1.0/24"],
            &[(&[10, 0, 0, 0], false), (&[10, 0, 2, 0], true)],
        );
        check(
            &["10.0.1.0/24", "10.0.2.0/24"],
            &[(&[10, 0, 1, 0], false), (&[10, 0, 3, 0], true)],
        );
        check(&["248.0.0.0/5"], &[(&[248, 0, 0, 0], false)]);
    }
}
