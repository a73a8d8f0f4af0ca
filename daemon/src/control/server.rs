//! The daemon's end of the side door.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

use super::{Answer, Line, REQUEST, Request};
use crate::domain::failure::{Class, Failure};
use crate::engine::images::Images;
use crate::engine::spawn::spawn;
use crate::pieces::{Piece, WAITING};

/// Connections served at once; an operator has a few terminals.
const CONNECTIONS: usize = 16;

type Body = BoxBody<Bytes, std::io::Error>;

/// Serves until the daemon ends.
pub async fn serve(listener: UnixListener, images: Arc<Images>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(error = %error, "accept a control connection");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let images = Arc::clone(&images);
        spawn("control connection", async move {
            let service = service_fn(|request| {
                let images = Arc::clone(&images);
                async move { Ok::<_, Infallible>(respond(&images, request).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!(error = %error, "a control connection broke");
            }
            drop(place);
        });
    }
}

async fn respond(images: &Arc<Images>, request: hyper::Request<Incoming>) -> Response<Body> {
    let asked = match parse(&request) {
        Ok(asked) => asked,
        Err(failure) => return refuse(&failure),
    };
    let (sender, pieces) = mpsc::channel(WAITING);
    let mut body = request.into_body();
    spawn("control body", async move {
        while let Some(frame) = body.frame().await {
            let piece = match frame.map(Frame::into_data) {
                Ok(Ok(piece)) => Ok(piece),
                Ok(Err(_trailers)) => continue,
                Err(error) => Err(std::io::Error::other(error)),
            };
            // Nobody reads on: the request needs no body, or failed.
            if sender.send(piece).await.is_err() {
                break;
            }
        }
    });
    match super::answer(images, asked, pieces).await {
        Err(failure) => refuse(&failure),
        Ok(Answer::Lines(lines)) => {
            let pieces = ReceiverStream::new(lines).map(|line| Ok(line_bytes(&line)));
            stream(pieces, "application/x-ndjson")
        }
        Ok(Answer::Archive(pieces)) => stream(ReceiverStream::new(pieces), "application/x-tar"),
    }
}

fn parse(request: &hyper::Request<Incoming>) -> Result<Request, Failure> {
    if (request.method().as_str(), request.uri().path()) != ("POST", "/v1") {
        return Err(Failure::new(
            Class::InvalidArgument,
            "only POST /v1 is here",
        ));
    }
    let asked = request
        .headers()
        .get(REQUEST)
        .map(HeaderValue::as_bytes)
        .unwrap_or_default();
    serde_json::from_slice(asked)
        .map_err(|error| Failure::new(Class::InvalidArgument, format!("{REQUEST}: {error}")))
}

fn stream(
    pieces: impl tokio_stream::Stream<Item = Piece> + Send + Sync + 'static,
    kind: &'static str,
) -> Response<Body> {
    let body = StreamBody::new(pieces.map(|piece| piece.map(Frame::data)));
    let mut response = Response::new(BoxBody::new(body));
    let kind = HeaderValue::from_static(kind);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

fn refuse(failure: &Failure) -> Response<Body> {
    let status = match failure.class {
        Class::InvalidArgument => StatusCode::BAD_REQUEST,
        Class::NotFound => StatusCode::NOT_FOUND,
        Class::FailedPrecondition | Class::AlreadyExists => StatusCode::CONFLICT,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let line = line_bytes(&Line::Failed(failure.to_string()));
    let body = Full::new(line).map_err(|never: Infallible| match never {});
    let mut response = Response::new(BoxBody::new(body));
    *response.status_mut() = status;
    response
}

fn line_bytes(line: &Line) -> Bytes {
    let mut bytes = serde_json::to_vec(line).unwrap_or_default();
    bytes.push(b'\n');
    Bytes::from(bytes)
}
