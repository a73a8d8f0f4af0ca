//! One forwarded connection: copies between a client's stream and a socket in the pod.

use std::future::Future;
use std::io;

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::cri::streaming::Idle;
use crate::cri::streaming::spdy::MAX_PIECE;
use crate::domain::failure::Failure;
use crate::engine::Engine;

/// What a forwarded connection says to its client.
#[derive(Debug)]
pub(super) enum Said {
    /// Bytes from the pod.
    Bytes(Bytes),
    /// The pod's half has ended.
    End,
    /// All is over; with a sentence when something went wrong.
    Over(Option<String>),
}

/// Dials `port` in the pod, copies `from` the client and what `say` passes on, until both halves have ended or
/// the client is gone. `say` fails when it is.
pub(super) async fn forward<F>(
    engine: &Engine,
    pod: &str,
    port: u16,
    mut from: mpsc::Receiver<Bytes>,
    idle: &Idle,
    say: impl Fn(Said) -> F,
) where
    F: Future<Output = Result<(), Gone>>,
{
    let problem = match engine.dial(pod, port).await {
        Ok(socket) => copy(socket, &mut from, idle, &say)
            .await
            .err()
            .map(|broken| match broken {
                Broken::Socket(error) => failed(pod, port, &error),
                Broken::Gone => String::new(),
            }),
        Err(failure) => Some(failed(pod, port, &failure)),
    };
    if problem.as_deref() == Some("") {
        return;
    }
    // Ignored: a client that is gone hears nothing.
    let _gone = say(Said::Over(problem)).await;
}

/// The client is gone.
#[derive(Debug)]
pub(super) struct Gone;

enum Broken {
    Socket(Failure),
    Gone,
}

fn failed(pod: &str, port: u16, why: &Failure) -> String {
    format!("forward port {port} to pod {pod}: {why}")
}

async fn copy<F>(
    socket: TcpStream,
    from: &mut mpsc::Receiver<Bytes>,
    idle: &Idle,
    say: &impl Fn(Said) -> F,
) -> Result<(), Broken>
where
    F: Future<Output = Result<(), Gone>>,
{
    let (read, mut write) = socket.into_split();
    let broken = |error: io::Error| Broken::Socket(Failure::io("copy", &error));
    let up = async {
        while let Some(bytes) = from.recv().await {
            idle.touch();
            write.write_all(&bytes).await.map_err(broken)?;
        }
        // A half close travels: the client has said all, and may still listen.
        match write.shutdown().await {
            Err(error) if error.kind() != io::ErrorKind::NotConnected => Err(broken(error)),
            _ => Ok(()),
        }
    };
    let down = async {
        loop {
            read.readable().await.map_err(broken)?;
            let mut buffer = BytesMut::with_capacity(MAX_PIECE);
            match read.try_read_buf(&mut buffer) {
                Ok(0) => break,
                Ok(_) => {
                    idle.touch();
                    let said = Said::Bytes(buffer.freeze());
                    say(said).await.map_err(|Gone| Broken::Gone)?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(broken(error)),
            }
        }
        say(Said::End).await.map_err(|Gone| Broken::Gone)
    };
    // A pod that has closed takes no more: waiting for the client's half would wait for ever with clients
    // that only end theirs when the connection ends.
    tokio::pin!(up, down);
    tokio::select! {
        result = &mut up => {
            result?;
            down.await
        }
        result = &mut down => result,
    }
}
