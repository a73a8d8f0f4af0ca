//! Results of plugins: per protocol version on the wire, one internal form here. A plugin's
//! output is hostile: counts and texts are bounded before anything is made of them.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use crate::{
    conf::Version,
    pod::{INTERFACE, PodInterface},
};

const MAX_INTERFACES: usize = 64;
const MAX_ADDRESSES: usize = 64;
const MAX_ROUTES: usize = 1024;
const MAX_TEXT: usize = 4096;

/// Why a plugin's result cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ResultError {
    /// It is not the JSON object the protocol asks for.
    #[error("result is not a CNI result")]
    Json {
        /// Where it differs.
        source: serde_json::Error,
    },
    /// It speaks a version that was not asked for and is not known.
    #[error("result has cniVersion {version:?}, asked for {asked}")]
    Version {
        /// What it says.
        version: String,
        /// What the configuration says.
        asked: String,
    },
    /// A list is longer than any real result's.
    #[error("result has {count} {what}, more than {limit}")]
    TooMany {
        /// "interfaces", "ips" or "routes".
        what: &'static str,
        /// How many.
        count: usize,
        /// The bound.
        limit: usize,
    },
    /// A field is wrong.
    #[error("result field {field} is {value:?}")]
    Field {
        /// Which.
        field: String,
        /// What it is, shortened.
        value: String,
    },
    /// No address inside the pod.
    #[error("result has no address for the pod")]
    NoAddress,
}

/// A checked result.
#[derive(Debug, Clone)]
pub(crate) struct CniResult {
    /// As the plugin wrote it.
    pub(crate) raw: Value,
    version: Version,
    interfaces: Vec<PodInterface>,
    /// Addresses with the index of their interface.
    ips: Vec<(IpNet, Option<usize>)>,
}

/// The fields that are read; 0.3 to 1.1 differ only in fields that are not.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    cni_version: Option<String>,
    #[serde(default)]
    interfaces: Option<Vec<WireInterface>>,
    #[serde(default)]
    ips: Option<Vec<WireIp>>,
    #[serde(default)]
    routes: Option<Vec<Value>>,
}

#[derive(Debug, Deserialize)]
struct WireInterface {
    name: String,
    #[serde(default)]
    mac: Option<String>,
    #[serde(default)]
    sandbox: Option<String>,
}

#[derive(Debug, Deserialize)]
struct WireIp {
    address: String,
    #[serde(default)]
    gateway: Option<String>,
    #[serde(default)]
    interface: Option<i64>,
}

impl CniResult {
    pub(crate) fn parse(raw: Value, asked: Version) -> Result<CniResult, ResultError> {
        let wire = Wire::deserialize(&raw).map_err(|source| ResultError::Json { source })?;
        // Old plugins leave the version out; then it is the one asked for.
        let version = match wire.cni_version.as_deref() {
            None | Some("") => asked,
            Some(text) => Version::parse(text).ok_or_else(|| ResultError::Version {
                version: shorten(text),
                asked: asked.to_string(),
            })?,
        };
        let interfaces = wire.interfaces.unwrap_or_default();
        let ips = wire.ips.unwrap_or_default();
        bounded("interfaces", interfaces.len(), MAX_INTERFACES)?;
        bounded("ips", ips.len(), MAX_ADDRESSES)?;
        bounded(
            "routes",
            wire.routes.map_or(0, |routes| routes.len()),
            MAX_ROUTES,
        )?;
        let interfaces = interfaces.into_iter().enumerate();
        let interfaces: Vec<_> = interfaces.map(parse_interface).collect::<Result<_, _>>()?;
        let ips = ips.into_iter().enumerate();
        let ips: Vec<_> = ips
            .map(|(index, ip)| parse_ip(index, &ip, interfaces.len()))
            .collect::<Result<_, _>>()?;
        Ok(CniResult {
            raw,
            version,
            interfaces,
            ips,
        })
    }

    /// The result as a plugin of another version wants to read it.
    pub(crate) fn to_version(&self, version: Version) -> Value {
        let mut value = self.raw.clone();
        value["cniVersion"] = version.to_string().into();
        let family_told = |version| version < Version::V1_0_0;
        if family_told(self.version) == family_told(version) {
            return value;
        }
        // Before 1.0 each address told its family.
        for ip in value["ips"].as_array_mut().into_iter().flatten() {
            let six = ip["address"]
                .as_str()
                .is_some_and(|address| address.contains(':'));
            if let Some(ip) = ip.as_object_mut() {
                ip.remove("version");
                if family_told(version) {
                    ip.insert("version".into(), if six { "6" } else { "4" }.into());
                }
            }
        }
        value
    }

    /// All interfaces with their addresses.
    pub(crate) fn interfaces(&self) -> Vec<PodInterface> {
        let mut interfaces = self.interfaces.clone();
        for (address, index) in &self.ips {
            if let Some(interface) = index.and_then(|index| interfaces.get_mut(index)) {
                interface.addresses.push(*address);
            }
        }
        interfaces
    }

    /// The pod's addresses, those of its own interface first, in the order of the result.
    pub(crate) fn pod_ips(&self) -> Result<Vec<IpAddr>, ResultError> {
        let rank = |index: Option<usize>| match index.and_then(|index| self.interfaces.get(index)) {
            // Plugins that list no interfaces mean the pod's.
            None => Some(0),
            Some(interface) if interface.in_pod && interface.name == INTERFACE => Some(0),
            Some(interface) if interface.in_pod => Some(1),
            Some(_) => None,
        };
        let ranked = self
            .ips
            .iter()
            .filter_map(|(ip, index)| Some((rank(*index)?, ip.addr())));
        let mut ranked: Vec<_> = ranked.collect();
        ranked.sort_by_key(|(rank, _)| *rank);
        if ranked.is_empty() {
            return Err(ResultError::NoAddress);
        }
        Ok(ranked.into_iter().map(|(_, ip)| ip).collect())
    }
}

fn parse_interface((index, wire): (usize, WireInterface)) -> Result<PodInterface, ResultError> {
    let wrong = |field: &str, value: &str| {
        Err(ResultError::Field {
            field: format!("interfaces[{index}].{field}"),
            value: shorten(value),
        })
    };
    let WireInterface { name, mac, sandbox } = wire;
    let (mac, sandbox) = (mac.unwrap_or_default(), sandbox.unwrap_or_default());
    if !is_interface_name(&name) {
        return wrong("name", &name);
    }
    if mac.len() > 64 || mac.contains(char::is_control) {
        return wrong("mac", &mac);
    }
    if sandbox.len() > MAX_TEXT || sandbox.contains(char::is_control) {
        return wrong("sandbox", &sandbox);
    }
    Ok(PodInterface {
        name,
        mac,
        in_pod: !sandbox.is_empty(),
        addresses: Vec::new(),
    })
}

fn parse_ip(
    index: usize,
    wire: &WireIp,
    interfaces: usize,
) -> Result<(IpNet, Option<usize>), ResultError> {
    let wrong = |field: &str, value: &str| ResultError::Field {
        field: format!("ips[{index}].{field}"),
        value: shorten(value),
    };
    let address: IpNet = wire
        .address
        .parse()
        .map_err(|_| wrong("address", &wire.address))?;
    if address.addr().is_unspecified() || address.addr().is_multicast() {
        return Err(wrong("address", &wire.address));
    }
    if let Some(gateway) = wire
        .gateway
        .as_deref()
        .filter(|gateway| !gateway.is_empty())
    {
        gateway
            .parse::<IpAddr>()
            .map_err(|_| wrong("gateway", gateway))?;
    }
    let interface = match wire.interface {
        // -1 is what some plugins write for "none".
        None | Some(-1) => None,
        Some(number) => {
            let known = usize::try_from(number)
                .ok()
                .filter(|number| *number < interfaces);
            Some(known.ok_or_else(|| wrong("interface", &number.to_string()))?)
        }
    };
    Ok((address, interface))
}

/// What the kernel takes as a link name (dev_valid_name), and no more than printable ASCII.
fn is_interface_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_graphic() && byte != b'/' && byte != b':';
    (1..=15).contains(&name.len()) && name != "." && name != ".." && name.bytes().all(allowed)
}

fn bounded(what: &'static str, count: usize, limit: usize) -> Result<(), ResultError> {
    if count > limit {
        Err(ResultError::TooMany { what, count, limit })
    } else {
        Ok(())
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(value: Value) -> Result<CniResult, String> {
        CniResult::parse(value, Version::V1_0_0).map_err(|error| error.to_string())
    }

    #[test]
    fn addresses_of_the_pod_come_first() {
        let result = parse(json!({"cniVersion": "1.0.0",
            "interfaces": [{"name": "cni0"}, {"name": "net1", "sandbox": "/n"}, {"name": "eth0", "sandbox": "/n"}],
            "ips": [{"address": "10.0.0.1/24", "interface": 0}, {"address": "10.9.0.1/24", "interface": 1},
                    {"address": "10.0.0.2/24", "interface": 2, "gateway": "10.0.0.1"}, {"address": "fd00::2/64"}]}));
        let result = result.unwrap();
        let ips: Vec<_> = result
            .pod_ips()
            .unwrap()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(ips, ["10.0.0.2", "fd00::2", "10.9.0.1"]);
        assert_eq!(result.interfaces()[2].addresses.len(), 1);
    }

    #[test]
    fn versions_convert_both_ways() {
        let new = json!({"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.2/24"}, {"address": "fd00::2/64"}]});
        let old = json!({"cniVersion": "0.4.0", "ips": [
            {"address": "10.0.0.2/24", "version": "4"}, {"address": "fd00::2/64", "version": "6"}]});
        let up = CniResult::parse(old.clone(), Version::V0_4_0).unwrap();
        assert_eq!(up.to_version(Version::V1_0_0), new);
        assert_eq!(up.to_version(Version::V0_4_0), old);
        let down = CniResult::parse(new, Version::V1_0_0).unwrap();
        assert_eq!(down.to_version(Version::V0_4_0), old);
    }

    #[test]
    fn hostile_results_are_refused() {
        let check = |value: Value, fault: &str| {
            let error = parse(value).and_then(|result| result.pod_ips().map_err(|e| e.to_string()));
            let error = error.expect_err(fault);
            assert!(error.contains(fault), "{error}");
        };
        let many: Vec<_> = (0..10_000)
            .map(|_| json!({"address": "10.0.0.2/24"}))
            .collect();
        check(json!({"ips": many}), "10000 ips");
        check(json!({"cniVersion": "9.9.9"}), "9.9.9");
        check(json!({"ips": [{"address": "10.0.0.2"}]}), "ips[0].address");
        check(
            json!({"ips": [{"address": "10.0.0.2/24", "interface": 3}]}),
            "ips[0].interface",
        );
        check(
            json!({"ips": [{"address": "10.0.0.2/24", "gateway": "x"}]}),
            "ips[0].gateway",
        );
        check(
            json!({"interfaces": [{"name": "../etc"}]}),
            "interfaces[0].name",
        );
        check(
            json!({"interfaces": [{"name": "eth0", "sandbox": "a\nb"}]}),
            "sandbox",
        );
        check(json!([1]), "not a CNI result");
        check(json!({"ips": "x"}), "not a CNI result");
        check(json!({}), "no address");
    }

    proptest::proptest! {
        #[test]
        fn any_json_is_parsed_or_refused(text in "\\PC{0,300}") {
            if let Ok(value) = serde_json::from_str(&text) {
                let _ = parse(value);
            }
        }

        #[test]
        fn any_address_text_is_parsed_or_refused(address in "\\PC{0,40}", index in -3i64..5) {
            let value = json!({"interfaces": [{"name": "eth0", "sandbox": "/n"}],
                               "ips": [{"address": address, "interface": index}]});
            if let Ok(result) = parse(value) {
                result.to_version(Version::V0_3_0);
                let _ = result.pod_ips();
            }
        }
    }
}
