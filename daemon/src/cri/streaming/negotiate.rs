//! What an upgrade request agrees on: SPDY or WebSocket, and which protocol over it. Pure.

use hyper::header::{HeaderMap, HeaderName};
use hyper::{Method, Request, StatusCode};

use super::Asked;

/// Protocols over SPDY, in headers of their own (Kubernetes' `httpstream`).
pub(super) const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// What the server would have taken.
pub(super) const ACCEPTED_PROTOCOLS: HeaderName =
    HeaderName::from_static("x-accepted-stream-protocol-versions");

/// What carries the streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wire {
    Spdy,
    WebSocket,
}

/// A protocol of Kubernetes over one of the wires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    /// Errors are text; no resizing.
    ChannelV2,
    /// Errors are text.
    ChannelV3,
    /// Errors are a `metav1.Status`.
    ChannelV4,
    /// The same as text messages; for browsers.
    ChannelV4Base64,
    /// With a message that half-closes a channel.
    ChannelV5,
    /// Streams in pairs, for each forwarded connection.
    PortForward,
    /// The same with SPDY in binary messages.
    PortForwardTunnel,
}

impl Protocol {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::ChannelV2 => "v2.channel.k8s.io",
            Self::ChannelV3 => "v3.channel.k8s.io",
            Self::ChannelV4 => "v4.channel.k8s.io",
            Self::ChannelV4Base64 => "v4.base64.channel.k8s.io",
            Self::ChannelV5 => "v5.channel.k8s.io",
            Self::PortForward => "portforward.k8s.io",
            Self::PortForwardTunnel => "SPDY/3.1+portforward.k8s.io",
        }
    }
}

/// What is spoken from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Agreed {
    pub(super) wire: Wire,
    pub(super) protocol: Protocol,
}

/// Why a request cannot be upgraded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) status: StatusCode,
    pub(super) message: String,
}

fn supported(asked: &Asked, wire: Wire) -> &'static [Protocol] {
    use Protocol::{
        ChannelV2, ChannelV3, ChannelV4, ChannelV4Base64, ChannelV5, PortForward, PortForwardTunnel,
    };
    match (asked, wire) {
        (Asked::Exec(_) | Asked::Attach(_), Wire::Spdy) => &[ChannelV4, ChannelV3, ChannelV2],
        (Asked::Exec(_) | Asked::Attach(_), Wire::WebSocket) => {
            &[ChannelV5, ChannelV4, ChannelV4Base64]
        }
        (Asked::PortForward(_), Wire::Spdy) => &[PortForward],
        (Asked::PortForward(_), Wire::WebSocket) => {
            &[PortForwardTunnel, ChannelV4, ChannelV4Base64]
        }
    }
}

/// The names of what would be taken, for the answer to a client that offers none of it.
pub(super) fn supported_names(asked: &Asked, wire: Wire) -> String {
    let names: Vec<&str> = supported(asked, wire).iter().map(|p| p.name()).collect();
    names.join(", ")
}

/// Decides what is spoken; the client's order counts, as RFC 6455 and Kubernetes have it.
pub(super) fn negotiate<B>(request: &Request<B>, asked: &Asked) -> Result<Agreed, Refused> {
    let bad = |message: &str| Refused {
        status: StatusCode::BAD_REQUEST,
        message: message.to_owned(),
    };
    let headers = request.headers();
    let wire = wire_of(request.method(), headers).map_err(bad)?;
    let offered = match wire {
        Wire::Spdy => list(headers, &STREAM_PROTOCOL),
        Wire::WebSocket => list(headers, &hyper::header::SEC_WEBSOCKET_PROTOCOL),
    };
    let supported = supported(asked, wire);
    let known = |name: &String| supported.iter().copied().find(|p| p.name() == name);
    if let Some(protocol) = offered.iter().find_map(known) {
        return Ok(Agreed { wire, protocol });
    }
    // A client that forwards ports and says nothing means the one protocol there is.
    if let (true, [only]) = (offered.is_empty(), supported) {
        let protocol = *only;
        return Ok(Agreed { wire, protocol });
    }
    let message = format!(
        "none of the protocols {offered:?} is spoken here, but {}",
        supported_names(asked, wire)
    );
    Err(Refused {
        status: StatusCode::FORBIDDEN,
        message,
    })
}

fn wire_of(method: &Method, headers: &HeaderMap) -> Result<Wire, &'static str> {
    let has = |name: &HeaderName, wanted: &str| {
        let values = list(headers, name);
        values
            .iter()
            .any(|value| value.eq_ignore_ascii_case(wanted))
    };
    if !has(&hyper::header::CONNECTION, "upgrade") {
        return Err("this URL is for an upgrade to SPDY/3.1 or WebSocket");
    }
    if has(&hyper::header::UPGRADE, "spdy/3.1") {
        return if method == Method::POST || method == Method::GET {
            Ok(Wire::Spdy)
        } else {
            Err("SPDY upgrades are POST or GET")
        };
    }
    if !has(&hyper::header::UPGRADE, "websocket") {
        return Err("upgrades are to SPDY/3.1 or WebSocket");
    }
    if method != Method::GET {
        return Err("WebSocket upgrades are GET");
    }
    if !has(&hyper::header::SEC_WEBSOCKET_VERSION, "13") {
        return Err("only version 13 of WebSocket is spoken");
    }
    if headers.get(hyper::header::SEC_WEBSOCKET_KEY).is_none() {
        return Err("Sec-WebSocket-Key is missing");
    }
    Ok(Wire::WebSocket)
}

/// The values of a header that may come several times and with commas.
fn list(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    let lines = headers.get_all(name).iter();
    let lines = lines.filter_map(|line| line.to_str().ok());
    lines
        .flat_map(|line| line.split(','))
        .map(|value| value.trim().to_owned())
        .filter(|value| !value.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::exec::ExecOptions;
    use crate::engine::port_forward::PortForwardOptions;

    fn exec() -> Asked {
        Asked::Exec(ExecOptions::default())
    }

    fn forward() -> Asked {
        Asked::PortForward(PortForwardOptions {
            pod: String::new(),
            ports: Vec::new(),
        })
    }

    fn request(method: &str, headers: &[(&str, &str)]) -> Request<()> {
        let mut builder = Request::builder().method(method).uri("/exec/x");
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap()
    }

    const SPDY: (&str, &str) = ("Upgrade", "SPDY/3.1");
    const UP: (&str, &str) = ("Connection", "keep-alive, Upgrade");

    #[test]
    fn the_first_protocol_both_know_is_spoken() {
        let version = "X-Stream-Protocol-Version";
        let request = request(
            "POST",
            &[
                UP,
                SPDY,
                (version, "v9.channel.k8s.io"),
                (version, "v4.channel.k8s.io, v3.channel.k8s.io"),
            ],
        );
        let agreed = negotiate(&request, &exec()).unwrap();
        assert_eq!(
            (agreed.wire, agreed.protocol),
            (Wire::Spdy, Protocol::ChannelV4)
        );
        let none = negotiate(&self::request("POST", &[UP, SPDY]), &forward()).unwrap();
        assert_eq!(none.protocol, Protocol::PortForward);
        let refused = negotiate(&self::request("POST", &[UP, SPDY]), &exec()).unwrap_err();
        assert_eq!(refused.status, StatusCode::FORBIDDEN);
        assert!(
            refused.message.contains("v4.channel.k8s.io"),
            "{}",
            refused.message
        );
    }

    #[test]
    fn websocket_needs_its_headers() {
        let full = [
            UP,
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA=="),
            (
                "Sec-WebSocket-Protocol",
                "v5.channel.k8s.io,v4.channel.k8s.io",
            ),
        ];
        let agreed = negotiate(&request("GET", &full), &exec()).unwrap();
        assert_eq!(agreed.protocol, Protocol::ChannelV5);
        assert_eq!(agreed.wire, Wire::WebSocket);
        assert!(negotiate(&request("POST", &full), &exec()).is_err());
        for left_out in 0..4 {
            let mut some = full.to_vec();
            some.remove(left_out);
            let refused = negotiate(&request("GET", &some), &exec()).unwrap_err();
            assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{left_out}");
        }
        assert!(negotiate(&request("GET", &[]), &forward()).is_err());
    }
}
