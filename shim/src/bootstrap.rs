//! The short-lived starter: binds the socket, runs the server behind it, answers its address.
//!
//! The socket is bound here and passed on, so a client can connect as soon as `start` has answered;
//! it waits for the server's word all the same, so that a broken server is an error of `start`.

use std::fs::{self, DirBuilder};
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use axil_proto::keys::{SANDBOX_ID, TTRPC_ADDRESS};
use axil_proto::shim::bootstrap::BootstrapParams;
use prost::Message as _;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::args::Args;
use crate::record::{read_bounded, write_atomic};
use crate::server::READY;

/// Where sockets go unless the daemon names a directory.
pub const DEFAULT_SOCKET_DIR: &str = "/run/axil/s";

/// Longest bootstrap request, in bytes.
pub const STDIN_LIMIT: u64 = 4 << 20;

/// Longest path of a socket (unix(7)).
const SOCKET_PATH_LIMIT: usize = 107;

/// Largest `config.json` that is looked into.
const SPEC_LIMIT: u64 = 16 << 20;

/// How long the server may take to be ready, and how long another starter may hold the directory.
const READY_TIMEOUT: Duration = Duration::from_secs(10);

/// Environment that is the daemon's own: a runtime would pass it on into containers.
const DAEMON_ENVIRONMENT: [&str; 6] = [
    "NOTIFY_SOCKET",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
];

/// Why no server was started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A path or a descriptor failed.
    #[error("{action} {path:?}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The request on stdin is too long.
    #[error("bootstrap request on stdin is longer than {STDIN_LIMIT} bytes")]
    RequestSize,
    /// A field of the bootstrap request is wrong.
    #[error("bootstrap field {field}: {reason}, got {value:?}")]
    Field {
        /// Its name.
        field: &'static str,
        /// What is wrong.
        reason: &'static str,
        /// The value given.
        value: String,
    },
    /// The directory of the sockets is open to others.
    #[error(
        "socket directory {path:?} must be owned by uid {uid} with mode 0700, has uid {owner} mode {mode:o}"
    )]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Whose it must be.
        uid: u32,
        /// Whose it is.
        owner: u32,
        /// Its permissions.
        mode: u32,
    },
    /// The server did not become ready.
    #[error("shim server is not ready: {reason}")]
    NotReady {
        /// What it said, or that it said nothing.
        reason: String,
    },
}

fn io_error<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> StartError + 'a {
    move |source| StartError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

/// Starts the server of the pod that the bundle belongs to, or finds it. Answers what `start` prints.
///
/// # Errors
/// No server serves the pod then, unless it did before.
pub fn start(args: &Args) -> Result<String, StartError> {
    let bundle = bundle_of(args)?;
    let params = parse_params(&read_stdin()?, args);
    let directory = socket_dir(&params)?;
    let pod = pod_of(&bundle).unwrap_or_else(|| args.id.clone());
    let socket = socket_path(&directory, &args.namespace, &pod)?;
    prepare_directory(&directory)?;
    let answer = format!(
        r#"{{"version":3,"address":"unix://{}","protocol":"ttrpc"}}"#,
        socket.display()
    );
    if let Some(listener) = bind(&directory, &socket)? {
        let started = run_server(args, &bundle, &pod, &socket, &params, listener);
        if started.is_err() {
            let _ = fs::remove_file(&socket);
        }
        let pid = started?;
        write(&bundle, "shim.pid", pid.to_string().as_bytes())?;
    }
    write(
        &bundle,
        "address",
        format!("unix://{}", socket.display()).as_bytes(),
    )?;
    write(&bundle, "bootstrap.json", answer.as_bytes())?;
    Ok(answer)
}

fn write(bundle: &Path, name: &str, bytes: &[u8]) -> Result<(), StartError> {
    let path = bundle.join(name);
    write_atomic(&path, bytes).map_err(io_error("write", &path))
}

/// The bundle of this invocation: `-bundle`, else the working directory.
///
/// # Errors
/// It does not exist.
pub fn bundle_of(args: &Args) -> Result<PathBuf, StartError> {
    let path = args.bundle.clone().unwrap_or_else(|| PathBuf::from("."));
    fs::canonicalize(&path).map_err(io_error("find bundle", &path))
}

fn read_stdin() -> Result<Vec<u8>, StartError> {
    use std::io::IsTerminal as _;
    if io::stdin().is_terminal() {
        return Ok(Vec::new());
    }
    let mut bytes = Vec::new();
    let mut stdin = io::stdin().lock().take(STDIN_LIMIT + 1);
    let read = stdin.read_to_end(&mut bytes);
    read.map_err(io_error("read", Path::new("stdin")))?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length <= STDIN_LIMIT) {
        Ok(bytes)
    } else {
        Err(StartError::RequestSize)
    }
}

/// Reads bootstrap parameters. Before containerd 2.3 stdin was empty or held an Any with options; it
/// decodes as parameters too, with another identity than the command line's.
fn parse_params(bytes: &[u8], args: &Args) -> BootstrapParams {
    match BootstrapParams::decode(bytes) {
        Ok(p) if p.instance_id == args.id && p.namespace == args.namespace => p,
        _ => BootstrapParams::default(),
    }
}

fn socket_dir(params: &BootstrapParams) -> Result<PathBuf, StartError> {
    let directory = match params.socket_dir.as_deref() {
        None | Some("") => DEFAULT_SOCKET_DIR,
        Some(directory) => directory,
    };
    if directory.starts_with('/') {
        return Ok(PathBuf::from(directory));
    }
    Err(StartError::Field {
        field: "socket_dir",
        reason: "must be an absolute path",
        value: directory.to_owned(),
    })
}

/// The path of a pod's socket, of a fixed length whatever the ids.
fn socket_path(directory: &Path, namespace: &str, pod: &str) -> Result<PathBuf, StartError> {
    let digest = Sha256::digest(format!("{namespace}/{pod}").as_bytes());
    let name: String = digest
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let path = directory.join(name + ".sock");
    if path.as_os_str().len() <= SOCKET_PATH_LIMIT && path.to_str().is_some() {
        return Ok(path);
    }
    Err(StartError::Field {
        field: "socket_dir",
        reason: "is not UTF-8 or too long for a socket path of 107 bytes",
        value: directory.display().to_string(),
    })
}

#[derive(Deserialize)]
struct SpecAnnotations {
    #[serde(default)]
    annotations: Option<std::collections::HashMap<String, String>>,
}

/// The pod a bundle says it belongs to. A pod without a process has no `config.json`.
fn pod_of(bundle: &Path) -> Option<String> {
    let bytes = read_bounded(&bundle.join("config.json"), SPEC_LIMIT).ok()?;
    let spec: SpecAnnotations = serde_json::from_slice(&bytes).ok()?;
    let pod = spec.annotations?.remove(SANDBOX_ID)?;
    // It comes from a pod's description, so it is checked before it names anything.
    pod.parse::<axil_proto::ids::PodId>()
        .ok()
        .map(|id| id.to_string())
}

fn prepare_directory(directory: &Path) -> Result<(), StartError> {
    let create = DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory);
    create.map_err(io_error("create", directory))?;
    let metadata = fs::symlink_metadata(directory).map_err(io_error("read", directory))?;
    let uid = rustix::process::geteuid().as_raw();
    let mode = metadata.mode() & 0o7777;
    if metadata.is_dir() && metadata.uid() == uid && mode & 0o077 == 0 {
        return Ok(());
    }
    Err(StartError::Directory {
        path: directory.to_owned(),
        uid,
        owner: metadata.uid(),
        mode,
    })
}

/// Binds the socket, replacing a stale one. `None` when a live server has it.
fn bind(directory: &Path, socket: &Path) -> Result<Option<UnixListener>, StartError> {
    // Two starters of one pod must not both take the socket for stale; held for a moment.
    let _lock = lock(directory).map_err(io_error("lock", directory))?;
    if is_served(socket).map_err(io_error("connect to", socket))? {
        return Ok(None);
    }
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(io_error("remove stale socket", socket)(error));
        }
        _ => {}
    }
    // The mode is right from the beginning: this process has one thread.
    let old = rustix::process::umask(Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(socket);
    rustix::process::umask(old);
    listener.map(Some).map_err(io_error("bind", socket))
}

fn lock(directory: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fd = rustix::fs::open(directory, flags, Mode::empty())?;
    let deadline = Instant::now() + READY_TIMEOUT;
    loop {
        match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(fd),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether somebody listens. Does not wait: a full backlog is a live, if busy, server.
pub(crate) fn is_served(socket: &Path) -> io::Result<bool> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&fd, &SocketAddrUnix::new(socket)?) {
        Ok(()) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INPROGRESS) => Ok(true),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::CONNREFUSED) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn run_server(
    args: &Args,
    bundle: &Path,
    pod: &str,
    socket: &Path,
    params: &BootstrapParams,
    listener: UnixListener,
) -> Result<u32, StartError> {
    let own = std::env::current_exe().map_err(io_error("find", Path::new("/proc/self/exe")))?;
    let log = crate::log::open(bundle).map_err(io_error("open the log in", bundle))?;
    let (ready, ready_writer) = io::pipe().map_err(io_error("make a pipe for", socket))?;
    let mut command = Command::new(&own);
    command.args([
        "-namespace",
        &args.namespace,
        "-id",
        pod,
        "-address",
        &args.address,
    ]);
    command
        .arg("-bundle")
        .arg(bundle)
        .arg("-socket")
        .arg(socket);
    if args.debug {
        command.arg("-debug");
    }
    for name in DAEMON_ENVIRONMENT {
        command.env_remove(name);
    }
    if std::env::var_os(TTRPC_ADDRESS).is_none() && !params.containerd_ttrpc_address.is_empty() {
        command.env(TTRPC_ADDRESS, &params.containerd_ttrpc_address);
    }
    command.stdin(Stdio::from(OwnedFd::from(listener)));
    command.stdout(ready_writer).stderr(log);
    let mut child = command.spawn().map_err(io_error("run", &own))?;
    // The command holds the writing end of the pipe, whose end is a sign.
    drop(command);
    adjust_oom_score(child.id());
    if let Err(error) = wait_ready(ready) {
        let _ = child.kill();
        let _ = child.wait();
        return Err(error);
    }
    Ok(child.id())
}

fn wait_ready(mut pipe: io::PipeReader) -> Result<(), StartError> {
    let deadline = Instant::now() + READY_TIMEOUT;
    let mut said = Vec::new();
    let not_ready = |reason: String| StartError::NotReady { reason };
    while said != READY {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(0),
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut fds = [PollFd::new(&pipe, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => {
                return Err(not_ready(format!(
                    "silent for {} s",
                    READY_TIMEOUT.as_secs()
                )));
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(not_ready(error.to_string())),
        }
        let mut part = [0; 512];
        match pipe.read(&mut part) {
            Ok(0) if said.is_empty() => {
                return Err(not_ready("it ended; see its log in the bundle".to_owned()));
            }
            Ok(0) => return Err(not_ready(String::from_utf8_lossy(&said).into_owned())),
            Ok(count) => said.extend_from_slice(&part[..count]),
            Err(error) => return Err(not_ready(error.to_string())),
        }
    }
    Ok(())
}

/// Makes the shim a little likelier to be killed for memory than the daemon. Best effort: lowering
/// needs a capability that may be missing.
fn adjust_oom_score(pid: u32) {
    let read = |pid: i32| {
        let text = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).ok()?;
        text.trim().parse::<i32>().ok()
    };
    let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get());
    let score = parent.and_then(read).map(|score| (score + 1).min(1000));
    if let Some(score) = score {
        let _ = fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Action;

    fn args() -> Args {
        Args {
            action: Action::Start,
            namespace: "k8s.io".into(),
            id: "pod1".into(),
            address: String::new(),
            bundle: None,
            socket: None,
            debug: false,
        }
    }

    #[test]
    fn parameters_count_only_with_our_identity() {
        let mut params = BootstrapParams {
            instance_id: "pod1".into(),
            namespace: "k8s.io".into(),
            socket_dir: Some("/run/x".into()),
            ..BootstrapParams::default()
        };
        assert_eq!(parse_params(&params.encode_to_vec(), &args()), params);
        params.instance_id = "other".into();
        let parsed = parse_params(&params.encode_to_vec(), &args());
        assert_eq!(parsed, BootstrapParams::default());
        assert_eq!(parse_params(b"", &args()), BootstrapParams::default());
        let options = prost_types::Any {
            type_url: "containerd.runc.v1.Options".into(),
            value: vec![1, 2, 3],
        };
        let parsed = parse_params(&options.encode_to_vec(), &args());
        assert_eq!(parsed, BootstrapParams::default());
    }

    #[test]
    fn socket_paths_are_short_and_fixed() {
        let path = socket_path(Path::new("/run/axil/s"), "k8s.io", "pod1").unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        assert_eq!(name.len(), 32 + ".sock".len());
        let other = socket_path(Path::new("/run/axil/s"), "k8s.io", "pod2").unwrap();
        assert_ne!(path, other);
        let long = PathBuf::from(format!("/{}", "x".repeat(90)));
        let error = socket_path(&long, "k8s.io", "pod1").unwrap_err();
        assert!(error.to_string().contains("socket_dir"), "{error}");
    }

    #[test]
    fn a_bundle_names_its_pod() {
        let bundle = tempfile::tempdir().unwrap();
        assert_eq!(pod_of(bundle.path()), None);
        let config = bundle.path().join("config.json");
        fs::write(
            &config,
            r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"p"}}"#,
        )
        .unwrap();
        assert_eq!(pod_of(bundle.path()).as_deref(), Some("p"));
        fs::write(
            &config,
            r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"../p"}}"#,
        )
        .unwrap();
        assert_eq!(pod_of(bundle.path()), None);
    }
}
