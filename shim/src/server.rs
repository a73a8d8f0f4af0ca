//! The long-lived server: one thread, ttrpc on the inherited socket, until it is told to end.

use std::future::Future as _;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axil_proto::keys::TTRPC_ADDRESS;
use axil_proto::shim::{axil, sandbox, task};
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::Stream;
use ttrpc::asynchronous::Server;
use ttrpc::asynchronous::transport::Listener;

use crate::args::Args;
use crate::events::Publisher;
use crate::log;
use crate::pod::{Pod, Settings};
use crate::reaper::Reaper;
use crate::service::axil::ShimService;
use crate::service::sandbox::SandboxService;
use crate::service::task::TaskService;

/// What the server writes to the starter when it serves.
pub const READY: &[u8] = b"ready\n";

/// How long an answer to `Shutdown` has to leave before the process ends.
const LAST_ANSWER: Duration = Duration::from_millis(100);

/// How long no connection is accepted after an accept failed, as when descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why the server cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// `start` has not passed a flag.
    #[error("flag -{flag} is needed to serve; use the start action")]
    Flag {
        /// Its name.
        flag: &'static str,
    },
    /// A step of becoming a server failed.
    #[error("{step}")]
    Step {
        /// Which.
        step: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The ttrpc server failed.
    #[error("serve ttrpc: {message}")]
    Ttrpc {
        /// What it said.
        message: String,
    },
}

fn step(step: &'static str) -> impl Fn(io::Error) -> ServeError {
    move |source| ServeError::Step { step, source }
}

/// Serves until `Shutdown`. The listening socket is stdin, the readiness pipe stdout.
///
/// # Errors
/// It cannot begin; nothing was served then.
pub fn serve(args: &Args) -> Result<(), ServeError> {
    let socket = args
        .socket
        .clone()
        .ok_or(ServeError::Flag { flag: "socket" })?;
    if args.bundle.is_none() {
        return Err(ServeError::Flag { flag: "bundle" });
    }
    log::set_debug(args.debug);
    // Out of the daemon's session and off its file systems; fails only for a group leader.
    let _ = rustix::process::setsid();
    std::env::set_current_dir("/").map_err(step("change to /"))?;
    let listener = take_listener().map_err(step("take over the listening socket"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(step("build the runtime"))?;
    runtime.block_on(run(args, &socket, listener))
}

/// Takes the socket from stdin, which becomes /dev/null.
fn take_listener() -> io::Result<std::os::unix::net::UnixListener> {
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    let null = std::fs::File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    let listener = std::os::unix::net::UnixListener::from(socket);
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Tells the starter, and gives the pipe up.
fn report_ready() -> io::Result<()> {
    let mut stdout = io::stdout();
    stdout.write_all(READY)?;
    stdout.flush()?;
    let null = std::fs::OpenOptions::new().write(true).open("/dev/null")?;
    Ok(rustix::stdio::dup2_stdout(&null)?)
}

async fn run(
    args: &Args,
    socket: &Path,
    listener: std::os::unix::net::UnixListener,
) -> Result<(), ServeError> {
    let reaper = Reaper::start().map_err(step("become the sub-reaper"))?;
    let listener = UnixListener::from_std(listener).map_err(step("listen"))?;
    let events = Publisher::start(&args.namespace, std::env::var(TTRPC_ADDRESS).ok());
    let settings = Settings {
        namespace: args.namespace.clone(),
        socket_dir: socket.parent().map_or_else(PathBuf::new, Path::to_owned),
    };
    let pod = Pod::new(settings, reaper, events);
    let mut server = Server::new()
        .add_listener(Listener::new(Connections::new(listener)))
        .register_service(task::serve_task(Arc::new(TaskService(Arc::clone(&pod)))))
        .register_service(sandbox::serve_sandbox(Arc::new(SandboxService(
            Arc::clone(&pod),
        ))))
        .register_service(axil::serve_shim(Arc::new(ShimService(Arc::clone(&pod)))));
    let identity = identity(socket);
    server.start().await.map_err(|error| ServeError::Ttrpc {
        message: error.to_string(),
    })?;
    report_ready().map_err(step("report readiness"))?;
    log::debug(format_args!("serving pod {:?} at {socket:?}", args.id));
    pod.shutdown.notified().await;
    // Order: no new client finds the socket while the last answer leaves.
    if identity.is_some() && self::identity(socket) == identity {
        let _ = std::fs::remove_file(socket);
    }
    tokio::time::sleep(LAST_ANSWER).await;
    Ok(())
}

/// Which file is at `path`, so that a successor's socket is not taken for ours.
fn identity(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = std::fs::symlink_metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// Accepted connections of our own user. Others cannot reach the socket; this is the second lock.
struct Connections {
    listener: UnixListener,
    pause: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Connections {
    fn new(listener: UnixListener) -> Self {
        Self {
            listener,
            pause: None,
        }
    }
}

impl Stream for Connections {
    type Item = io::Result<UnixStream>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(pause) = &mut self.pause {
                std::task::ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            match std::task::ready!(self.listener.poll_accept(cx)) {
                Ok((stream, _)) if is_ours(&stream) => return Poll::Ready(Some(Ok(stream))),
                Ok(_) => log::warn(format_args!("connection of another user refused")),
                Err(error) => {
                    log::warn(format_args!("accept: {error}"));
                    self.pause = Some(Box::pin(tokio::time::sleep(ACCEPT_PAUSE)));
                }
            }
        }
    }
}

fn is_ours(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream
        .peer_cred()
        .is_ok_and(|peer| peer.uid() == own || peer.uid() == 0)
}
