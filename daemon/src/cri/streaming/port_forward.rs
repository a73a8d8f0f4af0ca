//! Forwards connections to ports of a pod, over either wire.

mod connections;
mod over_spdy;
mod over_websocket;

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use super::line::Line;
use super::negotiate::{Agreed, Protocol, Wire};
use super::websocket;
use crate::engine::Engine;
use crate::engine::port_forward::PortForwardOptions;

/// Where sessions run.
#[derive(Clone, Copy)]
pub(super) struct Host<'a> {
    pub(super) engine: &'a Engine,
    pub(super) idle: Duration,
    pub(super) line: &'a Arc<Line>,
}

/// Serves one session to its end.
pub(super) async fn serve<S>(host: &Host<'_>, options: &PortForwardOptions, agreed: Agreed, io: S)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let pod = options.pod.as_str();
    match (agreed.wire, agreed.protocol) {
        (Wire::Spdy, _) => over_spdy::serve(host, pod, io).await,
        (Wire::WebSocket, Protocol::PortForwardTunnel) => {
            let socket = websocket::open(io).await;
            let (inside, outside) = websocket::tunnel_ends();
            // Order: the tunnel goes on until it has passed on the last words of the session.
            tokio::join!(
                over_spdy::serve(host, pod, inside),
                websocket::tunnel(socket, outside),
            );
        }
        (Wire::WebSocket, protocol) => {
            over_websocket::serve(host, options, protocol, io).await;
        }
    }
}
