//! The options of a [`crate::Network`] and their check.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use ipnet::IpNet;

use crate::error::NetworkError;

/// Where configuration, plugins and state are.
#[derive(Debug, Clone)]
pub struct NetworkOptions {
    /// Directory of conflists, read anew on each use; usually `/etc/cni/net.d`.
    pub conf_dir: PathBuf,
    /// Directories of plugin executables, first match wins.
    pub bin_dirs: Vec<PathBuf>,
    /// Durable directory for what DEL needs after a restart or reboot.
    pub cache_dir: PathBuf,
    /// Durable directory for the leases of the built-in network.
    pub state_dir: PathBuf,
    /// Bound of one plugin run; its process group is killed then.
    pub plugin_timeout: Duration,
    /// The network used when `conf_dir` has no configuration.
    pub builtin: BuiltinOptions,
}

/// The built-in network: one bridge, one nf_tables table, addresses from `subnets`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuiltinOptions {
    /// Serve pods when no configuration is present.
    pub enabled: bool,
    /// Name of the bridge: 1 to 15 of `[A-Za-z0-9_-]`.
    pub bridge: String,
    /// Pod subnets, at most eight; each pod gets one address per family. The first address of
    /// each is the bridge's.
    pub subnets: Vec<IpNet>,
    /// Name of the nf_tables table (family inet); nobody else may use it.
    pub table: String,
    /// MTU of bridge and pod links in bytes; the kernel's default when `None`.
    pub mtu: Option<u32>,
}

impl Default for NetworkOptions {
    fn default() -> NetworkOptions {
        NetworkOptions {
            conf_dir: "/etc/cni/net.d".into(),
            bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            cache_dir: "/var/lib/axil/network/attachments".into(),
            state_dir: "/var/lib/axil/network/builtin".into(),
            plugin_timeout: Duration::from_secs(60),
            builtin: BuiltinOptions::default(),
        }
    }
}

impl Default for BuiltinOptions {
    fn default() -> BuiltinOptions {
        let subnets = ["10.88.0.0/16", "fd00:10:88::/64"];
        BuiltinOptions {
            enabled: true,
            bridge: "axil0".into(),
            subnets: subnets
                .map(|text| text.parse().expect("a constant subnet"))
                .into(),
            table: "axil".into(),
            mtu: None,
        }
    }
}

/// More subnets than this are a mistake in the configuration.
const MAX_SUBNETS: usize = 8;

impl NetworkOptions {
    pub(crate) fn check(&self) -> Result<(), NetworkError> {
        let wrong = |option, value: &dyn ToString, reason: &str| {
            Err(NetworkError::Option {
                option,
                value: value.to_string(),
                reason: reason.into(),
            })
        };
        for dir in &self.bin_dirs {
            let text = dir.to_string_lossy();
            if !dir.is_absolute() || text.contains(':') || dir.to_str().is_none() {
                return wrong(
                    "bin_dirs",
                    &text,
                    "must be an absolute path without a colon",
                );
            }
        }
        if self.plugin_timeout.is_zero() {
            return wrong("plugin_timeout", &"0", "must be longer");
        }
        self.builtin.check()
    }
}

impl BuiltinOptions {
    fn check(&self) -> Result<(), NetworkError> {
        let wrong = |option, value: &dyn ToString, reason: &str| {
            Err(NetworkError::Option {
                option,
                value: value.to_string(),
                reason: reason.into(),
            })
        };
        let plain = |text: &str| {
            let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
            !text.is_empty() && text.bytes().all(word)
        };
        if !plain(&self.bridge) || self.bridge.len() > 15 {
            return wrong(
                "builtin.bridge",
                &self.bridge,
                "must be 1 to 15 of A-Z a-z 0-9 _ -",
            );
        }
        if !plain(&self.table) || self.table.len() > 31 {
            return wrong(
                "builtin.table",
                &self.table,
                "must be 1 to 31 of A-Z a-z 0-9 _ -",
            );
        }
        if self.mtu.is_some_and(|mtu| !(1280..=65535).contains(&mtu)) {
            let mtu = self.mtu.unwrap_or_default();
            return wrong(
                "builtin.mtu",
                &mtu,
                "must be from 1280 (the least of IPv6) to 65535",
            );
        }
        if self.subnets.is_empty() || self.subnets.len() > MAX_SUBNETS {
            return wrong(
                "builtin.subnets",
                &self.subnets.len(),
                "must be one to eight subnets",
            );
        }
        for (position, subnet) in self.subnets.iter().enumerate() {
            if let Some(reason) = unusable(subnet) {
                return wrong("builtin.subnets", subnet, reason);
            }
            let overlaps = |other: &&IpNet| other.contains(subnet) || subnet.contains(*other);
            if let Some(other) = self.subnets[..position].iter().find(overlaps) {
                return wrong("builtin.subnets", subnet, &format!("overlaps {other}"));
            }
        }
        Ok(())
    }
}

fn unusable(subnet: &IpNet) -> Option<&'static str> {
    if subnet.trunc() != *subnet {
        return Some("has bits set behind its prefix");
    }
    if subnet.max_prefix_len() - subnet.prefix_len() < 2 {
        return Some("is too small: gateway and one pod need a /30 or a /126");
    }
    if subnet.prefix_len() < 8 {
        return Some("is too large: use a /8 or smaller");
    }
    let special = match subnet.addr() {
        IpAddr::V4(first) => first.is_loopback() || first.is_multicast() || first.is_link_local(),
        IpAddr::V6(first) => {
            first.is_loopback() || first.is_multicast() || first.is_unicast_link_local()
        }
    };
    special.then_some("is loopback, multicast or link-local")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(subnets: &[&str], fault: Option<&str>) {
        let options = BuiltinOptions {
            subnets: subnets.iter().map(|text| text.parse().unwrap()).collect(),
            ..BuiltinOptions::default()
        };
        let found = options.check().err().map(|error| error.to_string());
        match fault {
            None => assert_eq!(found, None),
            Some(fault) => {
                let found = found.unwrap_or_default();
                assert!(found.contains(fault), "{subnets:?}: {found}");
            }
        }
    }

    #[test]
    fn subnets_are_checked() {
        check(&["10.0.0.0/8", "fd00::/64"], None);
        check(&["10.0.0.0/30"], None);
        check(&[], Some("one to eight"));
        check(&["10.0.0.1/16"], Some("bits set"));
        check(&["10.0.0.0/31"], Some("too small"));
        check(&["fe80::/64"], Some("link-local"));
        check(&["127.0.0.0/8"], Some("loopback"));
        check(
            &["10.0.0.0/16", "10.0.3.0/24"],
            Some("overlaps 10.0.0.0/16"),
        );
    }

    #[test]
    fn names_are_checked() {
        for bridge in ["", "a/b", "a b", "0123456789abcdef", ".."] {
            let options = BuiltinOptions {
                bridge: bridge.into(),
                ..BuiltinOptions::default()
            };
            assert!(options.check().is_err(), "{bridge:?}");
        }
        let colon = NetworkOptions {
            bin_dirs: vec!["/a:b".into()],
            ..NetworkOptions::default()
        };
        assert!(colon.check().is_err());
        NetworkOptions::default().check().unwrap();
    }
}
