//! Forwarding over WebSocket's channels: two for each port of the request, bytes and what goes wrong, one
//! connection each, begun at once. Each channel begins with its port, 16 bits, little-endian.

use std::future::Future;
use std::io;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::protocol::Message;

use super::Host;
use super::connections::{Gone, Said, forward};
use crate::cri::streaming::activity::Activity;
use crate::cri::streaming::line::Line;
use crate::cri::streaming::negotiate::Protocol;
use crate::cri::streaming::{Idle, LINGER, WAITING, websocket};
use crate::engine::Engine;
use crate::engine::port_forward::PortForwardOptions;

/// Messages that wait for the connection, each at most 32 KiB.
const MESSAGES: usize = 16;

/// Serves one session.
pub(super) async fn serve<S>(
    host: &Host<'_>,
    options: &PortForwardOptions,
    protocol: Protocol,
    io: S,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let text = protocol == Protocol::ChannelV4Base64;
    let idle: Idle = Arc::new(Activity::new());
    let (mut sink, mut source) = websocket::open(io).await.split();
    let (say, mut queue) = mpsc::channel::<(u8, Bytes)>(MESSAGES);
    let (mut connections, mut inputs) = begin(host.engine, options, &say, &idle);
    drop(say);
    let writing = async {
        while let Some((channel, bytes)) = queue.recv().await {
            sink.send(message(text, channel, &bytes)).await?;
        }
        // All connections are over.
        sink.send(websocket::farewell()).await
    };
    let reading = async {
        while let Some(Ok(message)) = source.next().await {
            let bytes = match message {
                Message::Binary(bytes) if !text => bytes,
                Message::Text(line) if text => match decode(line.as_str()) {
                    Some(bytes) => bytes,
                    None => break,
                },
                Message::Ping(_) | Message::Pong(_) => continue,
                _ => break,
            };
            if let Err(error) = hand_on(bytes, &mut inputs, host.line).await {
                tracing::debug!(error = %error, "a client is gone");
                break;
            }
        }
    };
    tokio::pin!(writing, reading);
    tokio::select! {
        written = &mut writing => match written {
            Ok(()) => {
                // Until the client hangs up as well, so that nothing under way is lost.
                let _silent = tokio::time::timeout(LINGER, reading).await;
            }
            Err(error) => tracing::debug!(error = %error, "a port-forward session broke"),
        },
        () = &mut reading => {}
        () = idle.idle(host.idle) => {
            tracing::info!(limit = ?host.idle, "a port-forward session in which nothing moves is ended");
        }
    }
    connections.shutdown().await;
}

/// Begins a connection for each port.
fn begin(
    engine: &Engine,
    options: &PortForwardOptions,
    say: &mpsc::Sender<(u8, Bytes)>,
    idle: &Idle,
) -> (JoinSet<()>, Vec<mpsc::Sender<Bytes>>) {
    let mut connections = JoinSet::new();
    let mut inputs = Vec::new();
    // The request was checked: at most 127 ports, as a channel is a byte.
    for (channel, &port) in (0u8..).step_by(2).zip(&options.ports) {
        let (input, from) = mpsc::channel(WAITING);
        inputs.push(input);
        let (engine, pod) = (engine.clone(), options.pod.clone());
        let (say, idle) = (say.clone(), Arc::clone(idle));
        connections.spawn(async move {
            let head = Bytes::copy_from_slice(&port.to_le_bytes());
            for channel in [channel, channel + 1] {
                if say.send((channel, head.clone())).await.is_err() {
                    return;
                }
            }
            let say = |said| pass_on(&say, channel, said);
            forward(&engine, &pod, port, from, &idle, say).await;
        });
    }
    (connections, inputs)
}

fn pass_on(
    say: &mpsc::Sender<(u8, Bytes)>,
    channel: u8,
    said: Said,
) -> impl Future<Output = Result<(), Gone>> + use<'_> {
    let message = match said {
        Said::Bytes(bytes) => Some((channel, bytes)),
        Said::Over(Some(problem)) => Some((channel + 1, Bytes::from(problem))),
        // This protocol has no words for it; the end of the connection is the end of all.
        Said::End | Said::Over(None) => None,
    };
    async move {
        match message {
            Some(message) => say.send(message).await.map_err(|_| Gone),
            None => Ok(()),
        }
    }
}

/// Gives a message of a client to its connection; the channels of errors take nothing.
async fn hand_on(
    mut bytes: Bytes,
    inputs: &mut [mpsc::Sender<Bytes>],
    line: &Line,
) -> io::Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    let payload = bytes.split_off(1);
    let channel = usize::from(bytes[0]);
    if channel.is_multiple_of(2)
        && let Some(input) = inputs.get(channel / 2)
    {
        // Ignored: a connection that is over takes no more.
        let _over = line.pass(input, payload).await?;
    }
    Ok(())
}

fn message(text: bool, channel: u8, bytes: &[u8]) -> Message {
    if text {
        let digit = char::from(b'0'.saturating_add(channel));
        return Message::Text(format!("{digit}{}", STANDARD.encode(bytes)).into());
    }
    let mut message = BytesMut::with_capacity(1 + bytes.len());
    message.put_u8(channel);
    message.extend_from_slice(bytes);
    Message::Binary(message.freeze())
}

fn decode(text: &str) -> Option<Bytes> {
    let (digit, rest) = text.split_at_checked(1)?;
    let channel = digit.bytes().next()?.checked_sub(b'0')?;
    let payload = STANDARD.decode(rest).ok()?;
    Some([&[channel], payload.as_slice()].concat().into())
}
