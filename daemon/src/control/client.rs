//! A command's end of the side door.

use std::io;
use std::path::Path;

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::StatusCode;
use hyper::body::{Frame, Incoming};
use hyper::header::HeaderValue;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

use super::{Answer, Line, REQUEST, Request};
use crate::engine::spawn::spawn;
use crate::pieces::{Piece, WAITING};

/// Longest line of an answer, in bytes: a report names what it found.
const MAX_LINE: usize = 64 << 20;

/// Asks the daemon behind this socket; `None` when none is there, and the body is given back.
///
/// # Errors
/// The daemon refused, or the connection broke.
pub async fn ask(
    socket: &Path,
    request: &Request,
    body: mpsc::Receiver<Piece>,
) -> anyhow::Result<Result<Answer, mpsc::Receiver<Piece>>> {
    let stream = match UnixStream::connect(socket).await {
        Ok(stream) => stream,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            return Ok(Err(body));
        }
        Err(error) => {
            return Err(error).with_context(|| format!("connect to {}", socket.display()));
        }
    };
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.context("speak to the daemon")?;
    spawn("control connection", async move {
        // Ignored: who reads the answer sees that it ended early.
        let _broken = connection.await;
    });
    let asked = serde_json::to_vec(request).context("write the request")?;
    let pieces = ReceiverStream::new(body).map(|piece| piece.map(Frame::data));
    let request = hyper::Request::post("/v1")
        .header(hyper::header::HOST, "axild")
        .header(REQUEST, HeaderValue::from_bytes(&asked)?)
        .body(StreamBody::new(pieces))
        .context("build the request")?;
    let response = sender
        .send_request(request)
        .await
        .context("ask the daemon")?;
    let is_archive = response
        .headers()
        .get(hyper::header::CONTENT_TYPE)
        .is_some_and(|kind| kind == "application/x-tar");
    let refused = response.status() != StatusCode::OK;
    let mut body = response.into_body();
    if is_archive {
        let (pieces, answer) = mpsc::channel(WAITING);
        spawn("control answer", async move {
            while let Some(piece) = next(&mut body).await {
                if pieces.send(piece).await.is_err() {
                    break;
                }
            }
            drop(sender);
        });
        return Ok(Ok(Answer::Archive(answer)));
    }
    let (lines, mut answer) = mpsc::channel(WAITING);
    spawn("control answer", async move {
        read_lines(&mut body, &lines).await;
        drop(sender);
    });
    if refused {
        return match answer.recv().await {
            Some(Line::Failed(message)) => Err(anyhow::anyhow!(message)),
            _ => Err(anyhow::anyhow!("the daemon refused without a reason")),
        };
    }
    Ok(Ok(Answer::Lines(answer)))
}

async fn next(body: &mut Incoming) -> Option<Piece> {
    loop {
        match body.frame().await?.map(Frame::into_data) {
            Ok(Ok(piece)) => return Some(Ok(piece)),
            Ok(Err(_trailers)) => {}
            Err(error) => return Some(Err(io::Error::other(error))),
        }
    }
}

/// Passes lines on; a stream that ends without its last line fails.
async fn read_lines(body: &mut Incoming, lines: &mpsc::Sender<Line>) {
    let mut waiting = Vec::new();
    loop {
        let piece: Bytes = match next(body).await {
            Some(Ok(piece)) => piece,
            Some(Err(error)) => {
                let _gone = lines
                    .send(Line::Failed(format!("the daemon broke off: {error}")))
                    .await;
                return;
            }
            None => return,
        };
        waiting.extend_from_slice(&piece);
        while let Some(end) = waiting.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = waiting.drain(..=end).collect();
            let line = serde_json::from_slice(&line)
                .unwrap_or_else(|error| Line::Failed(format!("the daemon's answer: {error}")));
            if lines.send(line).await.is_err() {
                return;
            }
        }
        if waiting.len() > MAX_LINE {
            let _gone = lines
                .send(Line::Failed("the daemon's answer is too long".to_owned()))
                .await;
            return;
        }
    }
}
