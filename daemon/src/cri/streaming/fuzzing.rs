//! What the fuzz targets do with what clients of the streaming server send. Each panics when something that must
//! always hold does not.

use std::convert::Infallible;
use std::io::{self, Cursor, Read, Write};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{SEC_WEBSOCKET_ACCEPT, UPGRADE};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::tungstenite::WebSocket;
use tokio_tungstenite::tungstenite::protocol::{Message, Role};

use super::negotiate::{Protocol, negotiate};
use super::remote_command::newest_size;
use super::remote_command::over_websocket::{Said, read_message};
use super::server::{MAX_HEAD, http1, refuse, switch};
use super::{Asked, websocket};
use crate::engine::attach::AttachOptions;
use crate::engine::exec::ExecOptions;
use crate::engine::port_forward::PortForwardOptions;

/// Bytes that arrive some at a time; what is answered is forgotten.
struct Wire<'a> {
    bytes: Cursor<&'a [u8]>,
    step: usize,
}

impl Read for Wire<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let step = self.step.min(buffer.len());
        self.bytes.read(&mut buffer[..step])
    }
}

impl Write for Wire<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a client sends after an upgrade to WebSocket: messages do not depend on how their bytes arrive and stay
/// within their bounds, and no channel protocol makes more of them than there is.
pub(crate) fn websocket_frames(bytes: &[u8]) {
    let whole = messages(bytes, usize::MAX);
    assert_eq!(whole, messages(bytes, 3));
    for message in whole.0 {
        let length = message.len();
        assert!(length <= websocket::MAX_MESSAGE, "{length}");
        for protocol in [
            Protocol::ChannelV5,
            Protocol::ChannelV4,
            Protocol::ChannelV4Base64,
        ] {
            match read_message(message.clone(), protocol) {
                Said::Stdin(input) => assert!(input.len() < length),
                Said::Resize(text) => {
                    let (_, done) = newest_size(&text);
                    assert!(done <= text.len(), "{done}");
                }
                Said::EndStdin => assert_eq!(protocol, Protocol::ChannelV5),
                Said::Nothing | Said::Over => {}
            }
        }
    }
}

fn messages(bytes: &[u8], step: usize) -> (Vec<Message>, bool) {
    let wire = Wire {
        bytes: Cursor::new(bytes),
        step,
    };
    let config = Some(websocket::config());
    let mut socket = WebSocket::from_raw_socket(wire, Role::Server, config);
    let mut messages = Vec::new();
    loop {
        match socket.read() {
            Ok(message) => messages.push(message),
            Err(_) => return (messages, socket.can_read()),
        }
    }
}

/// The first bytes of a connection: what is upgraded was asked for, what is refused is told why, in bounds.
pub(crate) fn upgrade_request(bytes: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime without a reactor needs nothing");
    let mut answers = Vec::new();
    let io = tokio::io::join(bytes, &mut answers);
    let served = http1().serve_connection(TokioIo::new(io), service_fn(answer));
    // Ignored: what is no HTTP is an error, as it should be.
    let _served = runtime.block_on(served);
    let limit = 8 * MAX_HEAD;
    assert!(answers.len() <= limit, "{} bytes answered", answers.len());
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut last = None;
    for asked in [
        Asked::Exec(ExecOptions::default()),
        Asked::Attach(AttachOptions::default()),
        Asked::PortForward(PortForwardOptions {
            pod: String::new(),
            ports: Vec::new(),
        }),
    ] {
        let response = match negotiate(&request, &asked) {
            Ok(agreed) => {
                let response = switch(&request, agreed);
                assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
                let wire = response.headers()[UPGRADE].to_str();
                let wire = wire.expect("a name of ours").to_ascii_lowercase();
                let offers = request.headers().get_all(UPGRADE).iter();
                let mut offers = offers.filter_map(|line| line.to_str().ok());
                let asked_for = offers.any(|line| line.to_ascii_lowercase().contains(&wire));
                assert!(asked_for, "{wire}");
                let accepted = response.headers().contains_key(SEC_WEBSOCKET_ACCEPT);
                assert_eq!(accepted, wire == "websocket");
                response
            }
            Err(refused) => {
                assert!(refused.status.is_client_error(), "{}", refused.status);
                refuse(&refused, &asked)
            }
        };
        last = Some(response);
    }
    // The upgrade itself is hyper's; a connection that is not upgraded has to be answered as one.
    let response = last.filter(|response| response.status() != StatusCode::SWITCHING_PROTOCOLS);
    Ok(response.unwrap_or_default())
}
