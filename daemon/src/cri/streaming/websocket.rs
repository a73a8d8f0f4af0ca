//! WebSocket below the channel protocols: its handshake, its bounds, and SPDY tunnelled through it.

use std::io;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use hyper::header::HeaderValue;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role, WebSocketConfig};

use super::spdy::MAX_PIECE;

/// Largest message taken; clients send 32 KiB.
pub(super) const MAX_MESSAGE: usize = 1 << 20;

/// Bytes a tunnel holds in each direction.
const TUNNEL: usize = 64 << 10;

/// The answer to a client's key (RFC 6455, 4.2.2).
pub(super) fn accept(key: &[u8]) -> Option<HeaderValue> {
    HeaderValue::from_str(&derive_accept_key(key)).ok()
}

/// The server's end of an upgraded connection.
pub(super) async fn open<S>(io: S) -> WebSocketStream<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config())).await
}

/// What is taken and kept.
pub(super) fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE))
        // A message is written at once; what the kernel does not take waits, and so does the sender.
        .write_buffer_size(0)
        .max_write_buffer_size(4 * MAX_MESSAGE)
}

/// The words at the end.
pub(super) fn farewell() -> Message {
    Message::Close(Some(CloseFrame {
        code: CloseCode::Normal,
        reason: "".into(),
    }))
}

/// Turns binary messages into a stream of bytes and back; the other end is for who speaks SPDY. Returns when
/// either side has closed.
pub(super) async fn tunnel<S>(socket: WebSocketStream<S>, plain: DuplexStream)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut sink, mut source) = socket.split();
    let (mut from, mut to) = tokio::io::split(plain);
    let inward = async {
        while let Some(message) = source.next().await {
            match message {
                Ok(Message::Binary(bytes)) => to.write_all(&bytes).await?,
                Ok(Message::Ping(_) | Message::Pong(_)) => {}
                Ok(_) => break,
                Err(error) => return Err(io::Error::other(error)),
            }
        }
        to.shutdown().await
    };
    let outward = async {
        let mut buffer = vec![0; MAX_PIECE];
        loop {
            let count = from.read(&mut buffer).await?;
            let message = if count == 0 {
                farewell()
            } else {
                Message::Binary(Bytes::copy_from_slice(&buffer[..count]))
            };
            sink.send(message).await.map_err(io::Error::other)?;
            if count == 0 {
                return Ok(());
            }
        }
    };
    let ended = tokio::try_join!(inward, outward);
    if let Err(error) = ended {
        tracing::debug!(error = %error, "a tunnel broke");
    }
}

/// Both ends of a tunnel's inside.
pub(super) fn tunnel_ends() -> (DuplexStream, DuplexStream) {
    tokio::io::duplex(TUNNEL)
}
