//! PortForward: connections to ports of a pod, from inside its network namespace.

use std::path::PathBuf;

use tokio::net::TcpStream;

use super::Engine;
use crate::domain::failure::Failure;
use crate::domain::pod::phase::PodPhase;

/// Most ports of one request: over WebSocket each has two channels, and a channel is one byte.
const MAX_PORTS: usize = 127;

/// What a PortForward asked for.
#[derive(Debug, Clone)]
pub struct PortForwardOptions {
    /// The pod, as the request names it.
    pub pod: String,
    /// Ports; SPDY clients name them later.
    pub ports: Vec<u16>,
}

impl PortForwardOptions {
    /// Reads the ports of a request.
    ///
    /// # Errors
    /// `InvalidArgument` that names the port.
    pub fn new(pod: String, ports: &[i32]) -> Result<Self, Failure> {
        if ports.len() > MAX_PORTS {
            let why = format!("more than {MAX_PORTS} ports");
            return Err(Failure::invalid("port", ports.len(), why));
        }
        let ports = ports.iter().map(|&port| {
            let known = u16::try_from(port).ok().filter(|&port| port > 0);
            known.ok_or_else(|| Failure::invalid("port", port, "must be 1 to 65535"))
        });
        Ok(Self {
            pod,
            ports: ports.collect::<Result<_, _>>()?,
        })
    }
}

impl Engine {
    /// Checks what can be checked before a client has come.
    ///
    /// # Errors
    /// `NotFound`, or `FailedPrecondition` when the pod is not ready.
    pub fn check_port_forward(&self, options: &PortForwardOptions) -> Result<(), Failure> {
        self.network_of(&options.pod).map(|_| ())
    }

    /// Connects to a port of a pod: `127.0.0.1`, then `::1`.
    ///
    /// # Errors
    /// The pod is not ready, or nobody listens.
    pub async fn dial(&self, pod: &str, port: u16) -> Result<TcpStream, Failure> {
        let netns = self.network_of(pod)?;
        self.shared
            .ports
            .namespaces
            .dial(netns.as_deref(), port)
            .await
    }

    /// The pin of a ready pod's network namespace; none is the node's.
    fn network_of(&self, id: &str) -> Result<Option<PathBuf>, Failure> {
        let view = self.pod(id)?;
        if !matches!(view.record.phase, PodPhase::Ready(_)) {
            let phase = view.record.phase.name();
            let message = format!("pod sandbox {id:?} is {phase}, not ready");
            return Err(Failure::precondition(message));
        }
        Ok(self.namespaces(&view).net)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_checked_one_by_one() {
        let parse = |ports: &[i32]| PortForwardOptions::new("p".to_owned(), ports);
        assert_eq!(parse(&[1, 65535]).unwrap().ports, [1, 65535]);
        for bad in [0, -1, 65536, i32::MIN] {
            let error = parse(&[80, bad]).unwrap_err();
            assert!(error.message.contains(&bad.to_string()), "{error}");
        }
        assert!(parse(&[1; 128]).is_err());
    }
}
