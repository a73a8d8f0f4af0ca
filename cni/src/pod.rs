//! What a pod asks of its network, what it gets, and the check of the former.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, time::Duration};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::error::NetworkError;

/// The one interface axil makes in a pod.
pub(crate) const INTERFACE: &str = "eth0";

/// A pod's network as the caller wants it.
#[derive(Debug, Clone, Default)]
pub struct PodNetwork {
    /// Pod id: 1 to 128 of `[A-Za-z0-9_.-]`, beginning with a letter or digit.
    pub id: String,
    /// The pinned network namespace.
    pub netns: PathBuf,
    /// Kubernetes name.
    pub name: String,
    /// Kubernetes namespace.
    pub namespace: String,
    /// Kubernetes uid.
    pub uid: String,
    /// Annotations, for plugins that declare `io.kubernetes.cri.pod-annotations`.
    pub annotations: BTreeMap<String, String>,
    /// Host ports; a mapping with host port 0 asks for nothing.
    pub port_mappings: Vec<PortMapping>,
    /// Traffic limits; the built-in network has none and says so in the log.
    pub bandwidth: Option<Bandwidth>,
    /// Name servers, for plugins that declare `dns`.
    pub dns: Option<PodDns>,
    /// Cgroup path, for plugins that declare `cgroupPath`.
    pub cgroup_path: Option<String>,
    /// The node's pod subnets, for plugins that declare `ipRanges`.
    pub pod_cidrs: Vec<IpNet>,
}

/// One host port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// Address of the host; `None` and the unspecified address mean every address.
    #[serde(rename = "hostIP", default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
    /// Port on the host; 0 asks for nothing.
    pub host_port: u16,
    /// Port in the pod.
    pub container_port: u16,
    /// Transport.
    pub protocol: Protocol,
}

/// Transport protocol of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

impl Protocol {
    /// The IP protocol number.
    pub(crate) fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        })
    }
}

impl std::fmt::Display for PortMapping {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.address() {
            Some(IpAddr::V6(ip)) => {
                write!(formatter, "[{ip}]:{}/{}", self.host_port, self.protocol)
            }
            Some(ip) => write!(formatter, "{ip}:{}/{}", self.host_port, self.protocol),
            None => write!(formatter, "{}/{}", self.host_port, self.protocol),
        }
    }
}

impl PortMapping {
    /// The host address, unless every address is meant.
    pub(crate) fn address(&self) -> Option<IpAddr> {
        self.host_ip.filter(|ip| !ip.is_unspecified())
    }

    /// Whether pods with an address of this family are reached by this mapping.
    pub(crate) fn serves(&self, ipv4: bool) -> bool {
        self.host_ip.is_none_or(|ip| ip.is_ipv4() == ipv4)
    }

    /// Whether both would claim the same packets.
    pub(crate) fn collides(&self, other: &PortMapping) -> bool {
        let families = [true, false]
            .iter()
            .any(|v4| self.serves(*v4) && other.serves(*v4));
        let addresses = match (self.address(), other.address()) {
            (Some(one), Some(two)) => one == two,
            // "Every address" takes the port of each single one.
            _ => true,
        };
        self.protocol == other.protocol
            && self.host_port == other.host_port
            && families
            && addresses
    }
}

/// Traffic limits in bits per second, seen from the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bandwidth {
    /// Towards the pod.
    pub ingress_bits_per_second: Option<u64>,
    /// From the pod.
    pub egress_bits_per_second: Option<u64>,
}

/// Resolver settings of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodDns {
    /// Name servers.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Resolver options.
    pub options: Vec<String>,
}

/// What a pod got.
#[derive(Debug, Clone)]
pub struct PodAddresses {
    /// The pod's addresses, primary first; never empty.
    pub ips: Vec<IpAddr>,
    /// The interfaces of the result: in the pod and on the host.
    pub interfaces: Vec<PodInterface>,
    /// The CNI result (of the built-in network too), for the verbose status.
    pub raw: Value,
    /// How long each plugin or step took, in order; empty when the result was cached.
    pub timings: Vec<(String, Duration)>,
}

/// One interface of a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodInterface {
    /// Name of the link.
    pub name: String,
    /// Hardware address, empty when not told.
    pub mac: String,
    /// Whether it is inside the pod.
    pub in_pod: bool,
    /// Its addresses with prefix.
    pub addresses: Vec<IpNet>,
}

const MAX_ID: usize = 128;
const MAX_ANNOTATION_BYTES: usize = 256 << 10;
const MAX_PORTS: usize = 1024;

impl PodNetwork {
    /// Refuses what would be unsafe to hand to a plugin or to use as a file name.
    pub(crate) fn check(&self) -> Result<(), NetworkError> {
        check_id(&self.id)?;
        let fields = [
            ("name", &self.name),
            ("namespace", &self.namespace),
            ("uid", &self.uid),
        ];
        for (field, value) in fields {
            // These become CNI_ARGS, where `;` and `=` separate and nothing escapes.
            if value.len() > 253 || value.contains([';', '=']) || value.contains(char::is_control) {
                return Err(wrong(
                    field,
                    value,
                    "must be short, without `;`, `=` or control characters",
                ));
            }
        }
        if !self.netns.is_absolute() || self.netns.to_str().is_none_or(|path| path.contains('\0')) {
            return Err(wrong(
                "netns",
                &self.netns.to_string_lossy(),
                "must be an absolute path",
            ));
        }
        let annotations = self
            .annotations
            .iter()
            .map(|(key, value)| key.len() + value.len());
        let annotations: usize = annotations.sum();
        if annotations > MAX_ANNOTATION_BYTES {
            return Err(wrong(
                "annotations",
                &annotations.to_string(),
                "more than 256 KiB",
            ));
        }
        self.check_ports()
    }

    fn check_ports(&self) -> Result<(), NetworkError> {
        if self.port_mappings.len() > MAX_PORTS {
            let count = self.port_mappings.len().to_string();
            return Err(wrong("port_mappings", &count, "more than 1024"));
        }
        let asked = self.host_ports();
        for (position, port) in asked.iter().enumerate() {
            if port.container_port == 0 {
                return Err(wrong(
                    "port_mappings.container_port",
                    "0",
                    "must be from 1 to 65535",
                ));
            }
            if let Some(ip) = port.address().filter(IpAddr::is_multicast) {
                return Err(wrong(
                    "port_mappings.host_ip",
                    &ip.to_string(),
                    "is multicast",
                ));
            }
            if asked[..position].iter().any(|other| other.collides(port)) {
                return Err(wrong("port_mappings", &port.to_string(), "is there twice"));
            }
        }
        Ok(())
    }

    /// The mappings that ask for a host port.
    pub(crate) fn host_ports(&self) -> Vec<PortMapping> {
        self.port_mappings
            .iter()
            .filter(|port| port.host_port != 0)
            .cloned()
            .collect()
    }

    /// The value of `CNI_ARGS` by the convention of Kubernetes' runtimes.
    pub(crate) fn cni_args(&self) -> String {
        format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
            self.namespace, self.name, self.id, self.uid
        )
    }

    /// What plugins may receive as `runtimeConfig`, by capability name (CNI conventions).
    pub(crate) fn capabilities(&self) -> Map<String, Value> {
        let mut values = Map::new();
        let mut offer = |name: &str, value: Value| values.insert(name.to_owned(), value);
        let ports = self.host_ports();
        if !ports.is_empty() {
            offer("portMappings", json!(ports));
        }
        if let Some(bandwidth) = self.bandwidth {
            offer("bandwidth", bandwidth_value(bandwidth));
        }
        if let Some(dns) = &self.dns {
            let PodDns {
                servers,
                searches,
                options,
            } = dns;
            offer(
                "dns",
                json!({"servers": servers, "searches": searches, "options": options}),
            );
        }
        if !self.annotations.is_empty() {
            offer("io.kubernetes.cri.pod-annotations", json!(self.annotations));
        }
        if let Some(path) = &self.cgroup_path {
            offer("cgroupPath", json!(path));
        }
        if !self.pod_cidrs.is_empty() {
            let sets = self
                .pod_cidrs
                .iter()
                .map(|subnet| json!([{"subnet": subnet}]));
            offer("ipRanges", sets.collect());
        }
        values
    }
}

fn bandwidth_value(bandwidth: Bandwidth) -> Value {
    // The plugin refuses a rate without a burst (bits); Kubernetes has no word for the burst,
    // so it is as large as the plugin takes.
    let burst = u32::MAX;
    let mut value = Map::new();
    if let Some(rate) = bandwidth.ingress_bits_per_second {
        value.insert("ingressRate".into(), json!(rate));
        value.insert("ingressBurst".into(), json!(burst));
    }
    if let Some(rate) = bandwidth.egress_bits_per_second {
        value.insert("egressRate".into(), json!(rate));
        value.insert("egressBurst".into(), json!(burst));
    }
    Value::Object(value)
}

/// A pod id is a file name, an argument of plugins and a link alias.
pub(crate) fn check_id(id: &str) -> Result<(), NetworkError> {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    let starts = id
        .bytes()
        .next()
        .is_some_and(|byte| byte.is_ascii_alphanumeric());
    if starts && id.len() <= MAX_ID && id.bytes().all(word) {
        return Ok(());
    }
    Err(wrong(
        "id",
        id,
        "must be 1 to 128 of A-Z a-z 0-9 _ . -, beginning with a letter or digit",
    ))
}

fn wrong(field: &'static str, value: &str, reason: &str) -> NetworkError {
    let value = value.chars().take(MAX_ID).collect();
    NetworkError::Pod {
        field,
        value,
        reason: reason.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(host_ip: Option<&str>, host_port: u16) -> PortMapping {
        let host_ip = host_ip.map(|text| text.parse().unwrap());
        PortMapping {
            host_ip,
            host_port,
            container_port: 80,
            protocol: Protocol::Tcp,
        }
    }

    #[test]
    fn ports_collide_by_address_and_family() {
        let check = |one: Option<&str>, two: Option<&str>, expect: bool| {
            assert_eq!(
                port(one, 1).collides(&port(two, 1)),
                expect,
                "{one:?} {two:?}"
            );
            assert_eq!(
                port(two, 1).collides(&port(one, 1)),
                expect,
                "{two:?} {one:?}"
            );
            assert!(!port(one, 1).collides(&port(two, 2)));
        };
        check(None, None, true);
        check(None, Some("10.0.0.1"), true);
        check(Some("0.0.0.0"), Some("10.0.0.1"), true);
        check(Some("10.0.0.2"), Some("10.0.0.1"), false);
        check(Some("::"), Some("10.0.0.1"), false);
        check(Some("::"), Some("0.0.0.0"), false);
        check(None, Some("::1"), true);
    }

    #[test]
    fn arguments_that_would_split_are_refused() {
        let good = PodNetwork {
            id: "p1".into(),
            netns: "/run/netns/x".into(),
            name: "web".into(),
            namespace: "default".into(),
            uid: "u".into(),
            ..PodNetwork::default()
        };
        good.check().unwrap();
        for bad in ["a;b=c", "a=b", "a\nb", "a\0b"] {
            assert!(
                PodNetwork {
                    name: bad.into(),
                    ..good.clone()
                }
                .check()
                .is_err(),
                "{bad:?}"
            );
            assert!(
                PodNetwork {
                    uid: bad.into(),
                    ..good.clone()
                }
                .check()
                .is_err(),
                "{bad:?}"
            );
        }
        for bad in ["", "../x", ".x", "a/b", "a b"] {
            assert!(
                PodNetwork {
                    id: bad.into(),
                    ..good.clone()
                }
                .check()
                .is_err(),
                "{bad:?}"
            );
        }
        let twice = PodNetwork {
            port_mappings: vec![port(None, 80), port(Some("1.2.3.4"), 80)],
            ..good.clone()
        };
        assert!(
            twice
                .check()
                .unwrap_err()
                .to_string()
                .contains("1.2.3.4:80/tcp")
        );
        assert!(
            PodNetwork {
                netns: "relative".into(),
                ..good
            }
            .check()
            .is_err()
        );
    }

    #[test]
    fn capabilities_follow_the_conventions() {
        let pod = PodNetwork {
            port_mappings: vec![port(Some("127.0.0.1"), 8080), port(None, 0)],
            bandwidth: Some(Bandwidth {
                ingress_bits_per_second: Some(8),
                ..Bandwidth::default()
            }),
            ..PodNetwork::default()
        };
        let values = pod.capabilities();
        let expect = json!([{"hostIP": "127.0.0.1", "hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
        assert_eq!(values["portMappings"], expect);
        assert_eq!(
            values["bandwidth"],
            json!({"ingressRate": 8, "ingressBurst": u32::MAX})
        );
        assert!(!values.contains_key("dns"));
    }
}
