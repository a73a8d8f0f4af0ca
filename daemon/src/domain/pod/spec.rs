//! What a RunPodSandbox asked for: validated, immutable, recorded as it is.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::user_namespace::UserNamespace;
use crate::domain::resources::LinuxResources;
use crate::domain::selinux::SelinuxOptions;

/// A pod as asked for. Equality decides whether a repeated RunPodSandbox is a retry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodSpec {
    /// Who the pod is.
    pub metadata: PodMetadata,
    /// Runtime handler; empty is the default one.
    pub runtime_handler: String,
    /// Host name; empty for pods on the node's network.
    pub hostname: String,
    /// Absolute directory of the containers' logs; empty when nothing is logged.
    pub log_directory: String,
    /// Resolver settings written to the pod's resolv.conf.
    pub dns: Option<DnsSpec>,
    /// Host ports.
    pub port_mappings: Vec<PortMapping>,
    /// Labels, returned unchanged.
    pub labels: BTreeMap<String, String>,
    /// Annotations, returned unchanged; nothing in them is a decision.
    pub annotations: BTreeMap<String, String>,
    /// cgroup parent given by the kubelet; empty chooses axil's own.
    pub cgroup_parent: String,
    /// Namespaced sysctls.
    pub sysctls: BTreeMap<String, String>,
    /// Which namespaces are shared with whom.
    pub namespaces: NamespaceModes,
    /// Security settings of the sandbox process.
    pub security: PodSecurity,
    /// Overhead of the pod itself.
    pub overhead: Option<LinuxResources>,
    /// Sum of the containers' resources.
    pub resources: Option<LinuxResources>,
}

/// Name, namespace, uid and attempt of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PodMetadata {
    /// Pod name.
    pub name: String,
    /// Kubernetes namespace.
    pub namespace: String,
    /// Pod uid.
    pub uid: String,
    /// How often the kubelet has made a sandbox for this pod before.
    pub attempt: u32,
}

/// resolv.conf of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsSpec {
    /// Name servers.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Resolver options.
    pub options: Vec<String>,
}

/// One host port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// Transport.
    pub protocol: PortProtocol,
    /// Port in the pod, 1 to 65535.
    pub container_port: u16,
    /// Port on the host, 1 to 65535.
    pub host_port: u16,
    /// Host address; none is every address.
    pub host_ip: Option<IpAddr>,
}

/// Transport of a host port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PortProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// Whom a namespace is shared with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NamespaceMode {
    /// All containers of the pod share it.
    #[default]
    Pod,
    /// Each container has its own.
    Container,
    /// It is the node's.
    Node,
    /// It is another container's (`target_id`).
    Target,
}

/// CRI `NamespaceOption`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceModes {
    /// Network: pod or node.
    pub network: NamespaceMode,
    /// PID: pod, container, node or target.
    pub pid: NamespaceMode,
    /// IPC: pod or node.
    pub ipc: NamespaceMode,
    /// Container whose PID namespace is joined when `pid` is target; empty otherwise.
    pub target_id: String,
    /// User: pod or node.
    #[serde(default)]
    pub user: UserNamespace,
}

impl PodSpec {
    /// Whether the pod uses the node's network namespace.
    #[must_use]
    pub fn host_network(&self) -> bool {
        self.namespaces.network == NamespaceMode::Node
    }

    /// Whether the pod's containers share one PID namespace, which needs a sandbox process.
    #[must_use]
    pub fn shares_pid(&self) -> bool {
        self.namespaces.pid == NamespaceMode::Pod
    }
}

/// Security settings of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodSecurity {
    /// Whether privileged containers are allowed.
    pub privileged: bool,
    /// Seccomp profile of the sandbox process.
    pub seccomp: SecurityProfile,
    /// SELinux options of its containers; none is the node's default.
    #[serde(default)]
    pub selinux: Option<SelinuxOptions>,
}

/// Seccomp or AppArmor profile as asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SecurityProfile {
    /// Nothing was asked: unconfined for seccomp, the runtime's default for AppArmor.
    #[default]
    Unset,
    /// The runtime's default profile.
    RuntimeDefault,
    /// No profile.
    Unconfined,
    /// A profile of the node: an absolute path (seccomp) or a loaded name (AppArmor); never empty.
    Localhost(String),
}
