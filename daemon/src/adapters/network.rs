//! The pod network over the crate `axil-cni`.

use std::collections::BTreeSet;
use std::path::Path;

use async_trait::async_trait;
use axil_cni::{ErrorClass, NetworkError, PodDns, PodNetwork, Protocol};
use axil_proto::ids::PodId;

use crate::domain::failure::{Class, Failure, chain};
use crate::domain::pod::spec::{PodSpec, PortProtocol};
use crate::ports::{Answer, Attached, Network};

/// Conflists when there are any, the built-in network otherwise.
#[derive(Debug)]
pub struct CniNetwork {
    network: axil_cni::Network,
}

impl CniNetwork {
    /// Checks the options; nothing in the kernel is touched.
    ///
    /// # Errors
    /// An option is wrong or a directory unusable.
    pub fn open(options: axil_cni::NetworkOptions) -> Result<Self, Failure> {
        let network = axil_cni::Network::new(options).map_err(|error| failure(&error))?;
        Ok(Self { network })
    }
}

fn class(class: ErrorClass) -> Class {
    match class {
        ErrorClass::InvalidArgument => Class::InvalidArgument,
        ErrorClass::Unavailable => Class::Unavailable,
        ErrorClass::DeadlineExceeded => Class::DeadlineExceeded,
        ErrorClass::FailedPrecondition => Class::FailedPrecondition,
        ErrorClass::Exhausted => Class::Exhausted,
        ErrorClass::Internal => Class::Internal,
    }
}

fn failure(error: &NetworkError) -> Failure {
    Failure::new(class(error.class()), chain(error))
}

/// The first of several errors, with all of them in its message.
fn failures(errors: &[NetworkError]) -> Failure {
    let text: Vec<String> = errors.iter().map(|error| chain(error)).collect();
    let class = errors
        .first()
        .map_or(Class::Internal, |error| class(error.class()));
    Failure::new(class, text.join("; "))
}

fn pod_network(pod: &PodId, spec: &PodSpec, netns: &Path) -> PodNetwork {
    let ports = spec
        .port_mappings
        .iter()
        .map(|mapping| axil_cni::PortMapping {
            host_ip: mapping.host_ip,
            host_port: mapping.host_port,
            container_port: mapping.container_port,
            protocol: match mapping.protocol {
                PortProtocol::Tcp => Protocol::Tcp,
                PortProtocol::Udp => Protocol::Udp,
                PortProtocol::Sctp => Protocol::Sctp,
            },
        });
    PodNetwork {
        id: pod.to_string(),
        netns: netns.to_owned(),
        name: spec.metadata.name.clone(),
        namespace: spec.metadata.namespace.clone(),
        uid: spec.metadata.uid.clone(),
        annotations: spec.annotations.clone(),
        port_mappings: ports.collect(),
        dns: spec.dns.as_ref().map(|dns| PodDns {
            servers: dns.servers.clone(),
            searches: dns.searches.clone(),
            options: dns.options.clone(),
        }),
        ..PodNetwork::default()
    }
}

#[async_trait]
impl Network for CniNetwork {
    async fn up(&self, pod: &PodId, spec: &PodSpec, netns: &Path) -> Answer<Attached> {
        let up = self.network.up(&pod_network(pod, spec, netns)).await;
        let addresses = up.map_err(|error| failure(&error))?;
        Ok(Attached {
            ips: addresses.ips,
            parts: addresses.timings,
        })
    }

    async fn down(&self, pod: &PodId, spec: &PodSpec, netns: &Path) -> Answer<()> {
        let down = self.network.down(&pod_network(pod, spec, netns)).await;
        down.map_err(|errors| failures(&errors))
    }

    async fn ready(&self) -> Result<(), (String, String)> {
        self.network
            .status()
            .await
            .map_err(|not| (not.reason, not.message))
    }

    fn describe(&self) -> serde_json::Value {
        serde_json::to_value(self.network.describe()).unwrap_or_default()
    }

    async fn restore(&self) -> Answer<()> {
        let repaired = self
            .network
            .restore()
            .await
            .map_err(|error| failure(&error))?;
        if repaired {
            tracing::warn!("rules or links of the built-in network were gone and are made again");
        }
        Ok(())
    }

    async fn reconcile(&self, keep: &[PodId]) -> Answer<()> {
        let keep: BTreeSet<String> = keep.iter().map(ToString::to_string).collect();
        let collected = self.network.collect_garbage(&keep).await;
        for pod in &collected.released {
            tracing::info!(pod.id = %pod, "a leaked network attachment is released");
        }
        self.network
            .restore()
            .await
            .map_err(|error| failure(&error))?;
        if collected.errors.is_empty() {
            Ok(())
        } else {
            Err(failures(&collected.errors))
        }
    }
}
