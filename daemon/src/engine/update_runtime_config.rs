//! UpdateRuntimeConfig: the kubelet tells the addresses it has for pods.
//!
//! They are acknowledged and shown, and change nothing: addresses are the conflist's matter where there is one,
//! and the built-in network's subnets are the operator's (`network.subnets`), because pods hold leases of them.

use super::{Engine, lock};
use crate::domain::failure::Failure;

impl Engine {
    /// Takes note of the pod addresses of this node: CIDRs separated by commas, empty when there are none.
    ///
    /// # Errors
    /// `InvalidArgument` when one is no CIDR.
    pub fn update_runtime_config(&self, pod_cidr: &str) -> Result<(), Failure> {
        for one in pod_cidr.split(',').filter(|_| !pod_cidr.is_empty()) {
            if let Err(error) = one.trim().parse::<ipnet::IpNet>() {
                let field = "runtime_config.network_config.pod_cidr";
                return Err(Failure::invalid(field, one, error));
            }
        }
        let mut known = lock(&self.shared.pod_cidr);
        if *known != pod_cidr {
            pod_cidr.clone_into(&mut known);
            let network = self.network().describe();
            tracing::info!(
                pod_cidr,
                network = %network,
                "the kubelet's pod addresses are noted; the network keeps its own configuration"
            );
        }
        Ok(())
    }

    /// The pod addresses the kubelet told last; empty when it told none.
    #[must_use]
    pub fn pod_cidr(&self) -> String {
        lock(&self.shared.pod_cidr).clone()
    }
}
