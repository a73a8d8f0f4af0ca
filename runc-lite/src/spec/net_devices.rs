//! `linux.netDevices`: which interfaces of the host the container gets, and under which names.

use std::collections::{BTreeMap, HashMap};

use super::{SpecError, invalid};
use crate::config::NetDevice;
use crate::plan::{NamespaceKind, Namespaces, NetDevicePlan};

/// `IFNAMSIZ` of linux/if.h, less the terminating NUL.
const MAX_NAME: usize = 15;

/// Why the kernel would not take `name` (`dev_valid_name`), if it would not.
fn fault(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        Some("is empty")
    } else if name.len() > MAX_NAME {
        Some("is longer than 15 bytes")
    } else if name == "." || name == ".." {
        Some("is not an interface name")
    } else if name.contains(['/', ':', '\0']) || name.chars().any(char::is_whitespace) {
        Some("contains a slash, colon, NUL or white space")
    } else {
        None
    }
}

/// Whether `name` is a template that the kernel fills in: one `%d` and no other `%`.
fn is_template(name: &str) -> bool {
    name.matches('%').count() == 1 && name.contains("%d")
}

pub(super) fn plan_net_devices(
    devices: &BTreeMap<String, NetDevice>,
    namespaces: &Namespaces,
) -> Result<Vec<NetDevicePlan>, SpecError> {
    let mut planned: Vec<NetDevicePlan> = Vec::with_capacity(devices.len());
    let mut taken: HashMap<&str, &str> = HashMap::with_capacity(devices.len());
    for (name, device) in devices {
        let field = format!("linux.netDevices[{name:?}]");
        if let Some(reason) = fault(name) {
            return Err(invalid(field, name, reason));
        }
        if !namespaces.separates(NamespaceKind::Network) {
            return Err(invalid(
                field,
                name,
                "needs a network namespace of the container",
            ));
        }
        let field = format!("{field}.name");
        let new_name = if device.name.is_empty() {
            name
        } else {
            &device.name
        };
        if let Some(reason) = fault(new_name) {
            return Err(invalid(field, new_name, reason));
        }
        if new_name.contains('%') && !is_template(new_name) {
            let reason = "has a % that is not the one %d of a template";
            return Err(invalid(field, new_name, reason));
        }
        let known = taken.insert(new_name, name);
        if let Some(known) = known.filter(|_| !is_template(new_name)) {
            let reason = format!("is the name of {known:?} in the container already");
            return Err(invalid(field, new_name, reason));
        }
        planned.push(NetDevicePlan {
            name: name.clone(),
            new_name: new_name.clone(),
        });
    }
    Ok(planned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(devices: &[(&str, &str)]) -> Result<Vec<NetDevicePlan>, SpecError> {
        let devices = devices.iter().map(|(name, new)| {
            let name_inside = (*new).to_owned();
            ((*name).to_owned(), NetDevice { name: name_inside })
        });
        let namespaces = Namespaces {
            new: vec![NamespaceKind::Network],
            ..Namespaces::default()
        };
        plan_net_devices(&devices.collect(), &namespaces)
    }

    #[test]
    fn devices_keep_their_name_or_get_another() {
        let planned = plan(&[("a0", ""), ("b0", "eth0"), ("c0", "x%d"), ("d0", "x%d")]).unwrap();
        let names: Vec<&str> = planned
            .iter()
            .map(|device| device.new_name.as_str())
            .collect();
        assert_eq!(names, ["a0", "eth0", "x%d", "x%d"]);
    }

    #[test]
    fn names_the_kernel_would_not_take_are_refused() {
        for (name, new) in [
            ("", ""),
            ("a/b", ""),
            ("..", ""),
            ("a b", ""),
            ("0123456789abcdef", ""),
            ("a", "e:0"),
            ("a", "e\u{0}"),
            ("a", "."),
            ("a", "x%s"),
            ("a", "x%d%d"),
            ("a", "100%"),
        ] {
            let text = plan(&[(name, new)]).unwrap_err().to_string();
            assert!(text.contains("linux.netDevices["), "{text}");
        }
        assert!(plan(&[("a", "eth0"), ("b", "eth0")]).is_err());
        assert!(plan(&[("a", ""), ("b", "a")]).is_err());
        let shared = Namespaces::default();
        let one = BTreeMap::from([("a".to_owned(), NetDevice::default())]);
        assert!(plan_net_devices(&one, &shared).is_err());
    }
}
