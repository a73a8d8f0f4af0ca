//! Sysctls of a pod: only such as belong to namespaces the pod has to itself.

use std::collections::BTreeMap;

use crate::domain::failure::Class;
use crate::domain::pod::spec::{NamespaceMode, PodSpec};

/// Longest value, in bytes.
const MAX_VALUE_BYTES: usize = 4096;

/// Set in every pod with its own network, unless it says otherwise: inside a pod a low port or a ping is
/// nobody else's business.
const DEFAULTS: [(&str, &str); 2] = [
    ("net.ipv4.ip_unprivileged_port_start", "0"),
    ("net.ipv4.ping_group_range", "0 2147483647"),
];

/// A sysctl that is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("sysctl {name:?} = {value:?}: {reason}")]
pub struct SysctlError {
    /// The name as given.
    pub name: String,
    /// The value as given, shortened.
    pub value: String,
    /// What is wrong.
    pub reason: &'static str,
}

impl SysctlError {
    /// The class of the failure: the request is wrong and stays wrong.
    #[must_use]
    pub fn class(&self) -> Class {
        Class::InvalidArgument
    }
}

/// The sysctls to set in the pod's namespaces, by dotted name, with the defaults.
///
/// Names come as `net.ipv4.ip_forward` or `net/ipv4/ip_forward`; whichever of the two comes first separates, so
/// that `net/ipv4/conf/eth0.1/forwarding` and `net.ipv4.conf.eth0/1.forwarding` are the same.
///
/// # Errors
/// [`SysctlError`] when a name is not of a namespace (CVE-2022-0811), the namespace is the node's
/// (CVE-2022-0532), or the value has characters no sysctl has.
pub fn check_sysctls(pod: &PodSpec) -> Result<BTreeMap<String, String>, SysctlError> {
    let mut checked = BTreeMap::new();
    for (name, value) in &pod.sysctls {
        let refuse = |reason| SysctlError {
            name: name.clone(),
            value: value.chars().take(64).collect(),
            reason,
        };
        let dotted = canonical(name).ok_or_else(|| refuse("not the name of a sysctl"))?;
        match scope(&dotted).ok_or_else(|| refuse("not a sysctl of a namespace"))? {
            Scope::Network if pod.host_network() => {
                return Err(refuse("not allowed on the node's network"));
            }
            Scope::Ipc if pod.namespaces.ipc == NamespaceMode::Node => {
                return Err(refuse("not allowed in the node's IPC namespace"));
            }
            Scope::Network | Scope::Ipc => {}
        }
        let odd = |c: char| (c.is_control() && c != '\t') || c == '+' || c == '=';
        if value.len() > MAX_VALUE_BYTES || value.contains(odd) {
            return Err(refuse(
                "the value is too long, or has a control character, \"+\" or \"=\"",
            ));
        }
        if checked.insert(dotted, value.clone()).is_some() {
            return Err(refuse("set twice, in two notations"));
        }
    }
    if !pod.host_network() {
        for (name, value) in DEFAULTS {
            checked
                .entry(name.to_owned())
                .or_insert_with(|| value.to_owned());
        }
    }
    Ok(checked)
}

/// The file of a sysctl below /proc/sys, for a name from [`check_sysctls`].
#[must_use]
pub fn sysctl_path(name: &str) -> String {
    swap_separators(name)
}

enum Scope {
    Network,
    Ipc,
}

fn scope(name: &str) -> Option<Scope> {
    const IPC: [&str; 3] = ["kernel.shm", "kernel.msg", "fs.mqueue."];
    if name.starts_with("net.") {
        Some(Scope::Network)
    } else if name == "kernel.sem" || IPC.iter().any(|prefix| name.starts_with(prefix)) {
        // Only interfaces have dots in their names.
        (!name.contains('/')).then_some(Scope::Ipc)
    } else {
        None
    }
}

/// The dotted form of a name, where "/" stands for a dot within a part; none when a part is empty, climbs or has
/// other characters than names of sysctls and interfaces.
fn canonical(name: &str) -> Option<String> {
    let dotted = match name.find(['.', '/']) {
        Some(first) if name.as_bytes()[first] == b'/' => swap_separators(name),
        Some(_) => name.to_owned(),
        None => return None,
    };
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-:@/".contains(&byte);
    let is_part = |part: &str| part.bytes().all(allowed) && part.bytes().any(|byte| byte != b'/');
    (dotted.len() <= 255 && dotted.split('.').all(is_part)).then_some(dotted)
}

fn swap_separators(name: &str) -> String {
    name.chars()
        .map(|c| match c {
            '.' => '/',
            '/' => '.',
            other => other,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::container::oci::tests::pod;

    fn check(
        sysctls: &[(&str, &str)],
        network: NamespaceMode,
        ipc: NamespaceMode,
    ) -> Result<String, String> {
        let mut pod = pod();
        pod.sysctls = sysctls
            .iter()
            .map(|&(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        pod.namespaces.network = network;
        pod.namespaces.ipc = ipc;
        match check_sysctls(&pod) {
            Ok(map) => Ok(map
                .iter()
                .map(|(name, value)| format!("{name}={value};"))
                .collect()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn own(sysctls: &[(&str, &str)]) -> Result<String, String> {
        check(sysctls, NamespaceMode::Pod, NamespaceMode::Pod)
    }

    const DEFAULT: &str =
        "net.ipv4.ip_unprivileged_port_start=0;net.ipv4.ping_group_range=0 2147483647;";

    #[test]
    fn pods_with_a_network_of_their_own_have_defaults() {
        assert_eq!(own(&[]).unwrap(), DEFAULT);
        let given = [
            ("net/ipv4/ip_unprivileged_port_start", "1024"),
            ("net.ipv4.ping_group_range", "1 0"),
        ];
        assert_eq!(
            own(&given).unwrap(),
            "net.ipv4.ip_unprivileged_port_start=1024;net.ipv4.ping_group_range=1 0;"
        );
        assert_eq!(
            check(&[], NamespaceMode::Node, NamespaceMode::Node).unwrap(),
            ""
        );
    }

    #[test]
    fn both_notations_are_one_name() {
        for name in [
            "net.ipv4.conf.eth0/1.forwarding",
            "net/ipv4/conf/eth0.1/forwarding",
        ] {
            assert_eq!(
                own(&[(name, "1")]).unwrap(),
                format!("net.ipv4.conf.eth0/1.forwarding=1;{DEFAULT}")
            );
        }
        assert_eq!(
            sysctl_path("net.ipv4.conf.eth0/1.forwarding"),
            "net/ipv4/conf/eth0.1/forwarding"
        );
        let twice = [("kernel.shmmax", "1"), ("kernel/shmmax", "2")];
        assert!(own(&twice).unwrap_err().contains("set twice"));
    }

    #[test]
    fn cve_2022_0811_only_sysctls_of_namespaces() {
        for name in [
            "kernel.core_pattern",
            "kernel.domainname",
            "kernel.hostname",
            "kernel.semx",
            "vm.swappiness",
            "fs.file-max",
            "fs.mqueue",
            "net",
            "",
            ".",
            "net..ipv4",
            "net/../kernel/core_pattern",
            "net./.x",
            "net.ipv4.//.x",
            "net.ipv4.a b",
            "net.x\0",
            "kernel.shm_rmid_forced+kernel.core_pattern",
            "kernel.shm//core",
            "/net/ipv4/x",
            "net.\u{e4}",
        ] {
            assert!(own(&[(name, "1")]).is_err(), "{name:?}");
        }
        for value in ["1+kernel.core_pattern=|/x", "1\n", "1\0", "a=b", "\u{1b}"] {
            let error = own(&[("kernel.shm_rmid_forced", value)]).unwrap_err();
            assert!(
                error.starts_with("sysctl \"kernel.shm_rmid_forced\""),
                "{error}"
            );
        }
        for name in [
            "kernel.shmmax",
            "kernel.shm_rmid_forced",
            "kernel.msgmax",
            "kernel.sem",
            "fs.mqueue.msg_max",
            "net.core.somaxconn",
        ] {
            assert!(
                own(&[(name, "32000 1024000000\t500 32000")]).is_ok(),
                "{name}"
            );
        }
    }

    #[test]
    fn cve_2022_0532_nothing_of_the_nodes_namespaces() {
        let net = [("net.ipv4.ip_forward", "1")];
        assert!(
            check(&net, NamespaceMode::Node, NamespaceMode::Pod)
                .unwrap_err()
                .contains("network")
        );
        let ipc = [("kernel.shmmax", "1")];
        assert!(
            check(&ipc, NamespaceMode::Pod, NamespaceMode::Node)
                .unwrap_err()
                .contains("IPC")
        );
        assert!(check(&ipc, NamespaceMode::Node, NamespaceMode::Pod).is_ok());
    }
}
