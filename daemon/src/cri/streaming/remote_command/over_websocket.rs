//! Exec and Attach over WebSocket: the first byte of a message is its channel.
//!
//! Version 5 of the protocol has a channel more, 255, whose messages end the channel they name; before it a client
//! could not end its input. In the base64 variant messages are text, and the channel is its digit.

use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Message;

use super::{Channel, Host, Inlets, Link, Transmit, Verb, words};
use crate::cri::streaming::negotiate::Protocol;
use crate::cri::streaming::status::Ended;
use crate::cri::streaming::websocket;

/// The channel of version 5 whose messages end others.
const CLOSE: u8 = 255;

/// Serves one session.
pub(in crate::cri::streaming) async fn serve<S>(
    host: &Host<'_>,
    verb: Verb,
    protocol: Protocol,
    io: S,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let (sink, source) = websocket::open(io).await.split();
    let (_answers, control) = mpsc::channel(1);
    let (all_open, opened) = oneshot::channel();
    let mut transmit = Channels { sink, protocol };
    // Some clients wait for a first message before they believe in the connection; Kubernetes' servers send an
    // empty one on the first channel there is.
    let first = if verb.streams().stdout {
        Channel::Stdout
    } else {
        Channel::Error
    };
    if transmit.output(first, Bytes::new()).await.is_err() {
        return;
    }
    // Ignored: the receiver is right above.
    let _held = all_open.send(());
    let link = Link {
        transmit,
        control,
        opened,
    };
    super::serve(host, verb, link, |inlets| read(source, inlets, protocol)).await;
}

async fn read<S>(
    mut source: SplitStream<WebSocketStream<S>>,
    mut inlets: Inlets,
    protocol: Protocol,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(message) = source.next().await {
        let said = match message {
            Ok(message) => read_message(message, protocol),
            Err(error) => {
                tracing::debug!(error = %error, "a client is gone");
                break;
            }
        };
        let passed = match said {
            Said::Stdin(bytes) => inlets.stdin(bytes).await,
            Said::Resize(text) => {
                inlets.resize(&text);
                Ok(())
            }
            Said::EndStdin => {
                inlets.end_stdin();
                Ok(())
            }
            Said::Nothing => Ok(()),
            Said::Over => break,
        };
        if let Err(error) = passed {
            tracing::debug!(error = %error, "a client is gone");
            break;
        }
    }
}

/// What a message of a client means.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::cri::streaming) enum Said {
    Stdin(Bytes),
    Resize(Bytes),
    EndStdin,
    /// A ping, which the library answers, or a channel on which nothing is expected.
    Nothing,
    /// It says no more, or what is not understood.
    Over,
}

pub(in crate::cri::streaming) fn read_message(message: Message, protocol: Protocol) -> Said {
    let mut bytes = match message {
        Message::Binary(bytes) if protocol != Protocol::ChannelV4Base64 => bytes,
        Message::Text(text) if protocol == Protocol::ChannelV4Base64 => {
            match decode(text.as_str()) {
                Some(bytes) => bytes,
                None => return Said::Over,
            }
        }
        Message::Ping(_) | Message::Pong(_) => return Said::Nothing,
        _ => return Said::Over,
    };
    if bytes.is_empty() {
        return Said::Nothing;
    }
    let payload = bytes.split_off(1);
    match bytes[0] {
        channel if channel == Channel::Stdin as u8 => Said::Stdin(payload),
        channel if channel == Channel::Resize as u8 => Said::Resize(payload),
        CLOSE if protocol == Protocol::ChannelV5 && payload.first() == Some(&0) => Said::EndStdin,
        _ => Said::Nothing,
    }
}

/// A text message of the base64 variant.
fn decode(text: &str) -> Option<Bytes> {
    let (digit, rest) = text.split_at_checked(1)?;
    let channel: u8 = digit.parse().ok()?;
    let payload = STANDARD.decode(rest).ok()?;
    let mut bytes = BytesMut::with_capacity(1 + payload.len());
    bytes.put_u8(channel);
    bytes.extend_from_slice(&payload);
    Some(bytes.freeze())
}

/// The sending half.
struct Channels<S> {
    sink: SplitSink<WebSocketStream<S>, Message>,
    protocol: Protocol,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Transmit for Channels<S> {
    /// The library answers what has to be answered.
    type Control = std::convert::Infallible;

    async fn control(&mut self, control: Self::Control) -> io::Result<()> {
        match control {}
    }

    async fn output(&mut self, channel: Channel, bytes: Bytes) -> io::Result<()> {
        let message = if self.protocol == Protocol::ChannelV4Base64 {
            Message::Text(format!("{}{}", channel as u8, STANDARD.encode(&bytes)).into())
        } else {
            let mut message = BytesMut::with_capacity(1 + bytes.len());
            message.put_u8(channel as u8);
            message.extend_from_slice(&bytes);
            Message::Binary(message.freeze())
        };
        self.sink.send(message).await.map_err(io::Error::other)
    }

    async fn end(&mut self, _channel: Channel) -> io::Result<()> {
        // Clients take the end of the connection for the end of all channels.
        Ok(())
    }

    async fn finish(&mut self, ended: &Ended) -> io::Result<()> {
        let words = words(self.protocol, ended);
        self.output(Channel::Error, words).await?;
        let closed = self.sink.send(websocket::farewell()).await;
        closed.map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_messages_name_their_channel_by_a_digit() {
        assert_eq!(decode("0aGk="), Some(Bytes::from_static(b"\0hi")));
        assert_eq!(decode("4"), Some(Bytes::from_static(b"\x04")));
        for bad in ["", "x", "0!", "é"] {
            assert_eq!(decode(bad), None, "{bad}");
        }
    }
}
