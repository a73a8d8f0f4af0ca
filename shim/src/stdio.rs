//! The streams of a process: what a request names, opened and connected to tasks that copy.

pub mod cri_log;
pub mod log_file;
pub mod log_pump;
pub mod pipe;
pub mod pty;
pub mod stdin;
mod tap;

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use axil_proto::keys::{CRI_LOG_NONE, CRI_LOG_SCHEME};
use rustix::fs::OFlags;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use ttrpc::proto::Code;

use crate::log;
use crate::log::flags;
use crate::sys;
use log_file::LogFile;
use pipe::PumpHandle;
use pty::Console;
use stdin::StdinHandle;

/// How long an exit waits until what the process wrote has been passed on.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// Capacity asked for a log pipe, in bytes, so that a burst does not stop the container. The kernel
/// allocates pages only as they are filled.
const LOG_PIPE_SIZE: usize = 256 * 1024;

/// What a request says about the streams of a process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IoSpec {
    /// Whether the process has a terminal; then stderr is not used.
    pub terminal: bool,
    /// Empty, or the path of a FIFO.
    pub stdin: String,
    /// Empty, the path of a FIFO, `file://PATH`, `cri-log://PATH` or `cri-log:none`.
    pub stdout: String,
    /// As `stdout`.
    pub stderr: String,
    /// Owner of the pipes, for a process that opens its standard streams again by path.
    pub owner: (u32, u32),
}

/// Why the streams cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum StdioError {
    /// The request names something that is not a stream.
    #[error("field {field}: {reason}, got {value:?}")]
    Target {
        /// The field of the request.
        field: &'static str,
        /// What is wrong with it.
        reason: &'static str,
        /// The value given.
        value: String,
    },
    /// A file or FIFO cannot be opened.
    #[error("open {path:?} for {field}")]
    Open {
        /// The field of the request.
        field: &'static str,
        /// The path.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A descriptor cannot be made or registered.
    #[error("{action} for {field}")]
    Descriptor {
        /// The field of the request.
        field: &'static str,
        /// What was attempted.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// More clients than are served.
    #[error("{limit} clients are attached already")]
    Crowded {
        /// How many are served.
        limit: usize,
    },
    /// The runtime did not hand over the terminal.
    #[error("receive the terminal from the runtime")]
    Console {
        /// Why it failed.
        source: io::Error,
    },
}

impl StdioError {
    /// The code the error travels as.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Target { .. } => Code::INVALID_ARGUMENT,
            Self::Crowded { .. } => Code::RESOURCE_EXHAUSTED,
            Self::Open { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Code::INVALID_ARGUMENT
            }
            Self::Open { .. } | Self::Descriptor { .. } | Self::Console { .. } => Code::INTERNAL,
        }
    }
}

/// Where an output stream goes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Target {
    Null,
    Fifo(PathBuf),
    File(PathBuf),
    /// Read by the shim; without a path it is not written anywhere.
    CriLog(Option<PathBuf>),
}

impl Target {
    fn parse(field: &'static str, text: &str) -> Result<Self, StdioError> {
        let error = |reason| StdioError::Target {
            field,
            reason,
            value: text.to_owned(),
        };
        if text.is_empty() {
            return Ok(Self::Null);
        }
        if text == CRI_LOG_NONE {
            return Ok(Self::CriLog(None));
        }
        if text.bytes().any(|b| b == 0) {
            return Err(error("must not contain a NUL"));
        }
        let (kind, path): (fn(PathBuf) -> Self, &str) =
            if let Some(path) = text.strip_prefix(CRI_LOG_SCHEME) {
                (|path| Self::CriLog(Some(path)), path)
            } else if let Some(path) = text.strip_prefix("file://") {
                (Self::File, path)
            } else if text.contains("://") {
                return Err(error("must be a path, file:// or cri-log://"));
            } else {
                (Self::Fifo, text)
            };
        if !path.starts_with('/') {
            return Err(error("must be an absolute path"));
        }
        Ok(kind(PathBuf::from(path)))
    }
}

/// The child's ends, for the runtime's command.
#[derive(Debug)]
pub struct ChildStdio {
    /// Standard input.
    pub stdin: Stdio,
    /// Standard output.
    pub stdout: Stdio,
    /// Standard error.
    pub stderr: Stdio,
}

impl ChildStdio {
    /// All three are /dev/null.
    #[must_use]
    pub fn null() -> Self {
        Self {
            stdin: Stdio::null(),
            stdout: Stdio::null(),
            stderr: Stdio::null(),
        }
    }
}

/// The shim's ends of a process's streams, and the tasks that copy them. Clones share them; when the
/// last one is dropped, copying ends.
#[derive(Debug, Clone, Default)]
pub struct ProcessIo {
    pumps: Vec<PumpHandle>,
    log: Option<log_pump::LogPumpHandle>,
    stdin: Option<StdinHandle>,
    terminal: Option<Arc<OwnedFd>>,
}

impl ProcessIo {
    /// Opens what `spec` names and starts copying. For a terminal, [`Self::attach`] does so later.
    ///
    /// # Errors
    /// A target is malformed or cannot be opened; nothing runs then.
    pub fn open(spec: &IoSpec) -> Result<(Self, ChildStdio), StdioError> {
        let stdout = Target::parse("stdout", &spec.stdout)?;
        let stderr = Target::parse("stderr", &spec.stderr)?;
        let stdin = parse_stdin(&spec.stdin)?;
        let mut io = Self::default();
        let mut child = ChildStdio::null();
        if spec.terminal {
            return Ok((io, child));
        }
        let mut sources = LogSources::default();
        let outputs = [
            ("stdout", stdout, &mut child.stdout),
            ("stderr", stderr, &mut child.stderr),
        ];
        for (field, target, slot) in outputs {
            match target {
                Target::Null => {}
                Target::File(path) => *slot = Stdio::from(open_append(field, path)?),
                Target::Fifo(path) => {
                    let sink = open_fifo_sink(field, path)?;
                    let (ours, theirs) = output_pipe(field, spec.owner, None)?;
                    io.pumps.push(pipe::spawn(ours, sink));
                    *slot = Stdio::from(theirs);
                }
                Target::CriLog(path) => {
                    let (ours, theirs) = output_pipe(field, spec.owner, Some(LOG_PIPE_SIZE))?;
                    sources.add(field, path, ours)?;
                    *slot = Stdio::from(theirs);
                }
            }
        }
        io.log = sources.start();
        if let Some(path) = stdin {
            let source = stdin::open(path)?;
            let (ours, theirs) = input_pipe(spec.owner)?;
            io.stdin = Some(stdin::spawn(source, ours));
            child.stdin = Stdio::from(theirs);
        }
        Ok((io, child))
    }

    /// Connects the terminal the runtime hands over through `console`.
    ///
    /// # Errors
    /// It is not handed over in time, or a target cannot be opened.
    pub async fn attach(&mut self, spec: &IoSpec, console: &Console) -> Result<(), StdioError> {
        let master = console
            .receive()
            .await
            .map_err(|source| StdioError::Console { source })?;
        set_nonblocking("terminal", &master)?;
        let reading = || {
            let copy = duplicate(&master)?;
            register("stdout", copy, Interest::READABLE)
        };
        match Target::parse("stdout", &spec.stdout)? {
            // Something must read, or the process stops when the terminal's buffer is full.
            Target::Null => {
                let sink = register_null()?;
                self.pumps.push(pipe::spawn(reading()?, sink));
            }
            Target::Fifo(path) => {
                let sink = open_fifo_sink("stdout", path)?;
                self.pumps.push(pipe::spawn(reading()?, sink));
            }
            Target::File(path) => {
                let sink = pipe::Sink::File(open_append("stdout", path)?);
                self.pumps.push(pipe::spawn(reading()?, sink));
            }
            Target::CriLog(path) => {
                let mut sources = LogSources {
                    terminal: true,
                    ..LogSources::default()
                };
                sources.add("stdout", path, reading()?)?;
                self.log = sources.start();
            }
        }
        if let Some(path) = parse_stdin(&spec.stdin)? {
            let source = stdin::open(path)?;
            let writing = register("stdin", duplicate(&master)?, Interest::WRITABLE)?;
            self.stdin = Some(stdin::spawn(source, writing));
        }
        self.terminal = Some(Arc::new(master));
        Ok(())
    }

    /// Passes on what the process wrote until now, for at most [`DRAIN_TIMEOUT`]; copying goes on.
    pub async fn drain(&self) {
        let all = async {
            for pump in &self.pumps {
                pump.drain().await;
            }
            if let Some(log) = &self.log {
                log.drain().await;
            }
        };
        if tokio::time::timeout(DRAIN_TIMEOUT, all).await.is_err() {
            log::warn(format_args!("output is not read; it is passed on later"));
        }
    }

    /// Passes on what is left, for a bounded time, and stops copying.
    pub async fn finish(&self) {
        if let Some(stdin) = &self.stdin {
            stdin.stop();
        }
        for pump in &self.pumps {
            pump.finish().await;
        }
        if let Some(log) = &self.log {
            log.finish().await;
        }
    }

    /// Ends the input of the process once its writers are gone.
    pub fn close_stdin(&self) {
        if let Some(stdin) = &self.stdin {
            stdin.close();
        }
    }

    /// Copies the output to the FIFOs at these paths as well; an empty path wants nothing. `None` when the
    /// output is not read here.
    pub async fn tap(&self, stdout: &str, stderr: &str) -> Option<Result<(), StdioError>> {
        let log = self.log.as_ref()?;
        match tap::Tap::open(stdout, stderr) {
            Ok(tap) => Some(log.tap(tap).await),
            Err(error) => Some(Err(error)),
        }
    }

    /// Ends all copies of [`Self::tap`].
    pub async fn untap(&self) {
        if let Some(log) = &self.log {
            log.untap().await;
        }
    }

    /// Opens the log again at its path. `None` when the process has no log.
    pub async fn reopen_log(&self) -> Option<Result<(), StdioError>> {
        match &self.log {
            Some(log) => Some(log.reopen().await),
            None => None,
        }
    }

    /// Sets the size of the terminal. `None` when the process has none.
    #[must_use]
    pub fn resize(&self, columns: u16, rows: u16) -> Option<io::Result<()>> {
        let terminal = self.terminal.as_ref()?;
        Some(pty::resize(terminal.as_fd(), columns, rows))
    }
}

/// Collects the streams that go to one log file.
#[derive(Default)]
struct LogSources {
    /// Whether there is a log, and its file if it has one.
    log: Option<Option<LogFile>>,
    streams: [Option<AsyncFd<OwnedFd>>; 2],
    /// Whether they are a terminal's.
    terminal: bool,
}

impl LogSources {
    fn add(
        &mut self,
        field: &'static str,
        path: Option<PathBuf>,
        source: AsyncFd<OwnedFd>,
    ) -> Result<(), StdioError> {
        match &self.log {
            Some(log) if log.as_ref().map(LogFile::path) == path.as_deref() => {}
            Some(_) => {
                let path = path.unwrap_or_default();
                return Err(StdioError::Target {
                    field,
                    reason: "must be the same log as stdout",
                    value: path.display().to_string(),
                });
            }
            None => {
                let open = |path: PathBuf| {
                    LogFile::open(&path).map_err(|source| StdioError::Open {
                        field,
                        path,
                        source,
                    })
                };
                self.log = Some(path.map(open).transpose()?);
            }
        }
        self.streams[usize::from(field == "stderr")] = Some(source);
        Ok(())
    }

    fn start(self) -> Option<log_pump::LogPumpHandle> {
        Some(log_pump::spawn(self.log?, self.streams, self.terminal))
    }
}

fn parse_stdin(text: &str) -> Result<Option<PathBuf>, StdioError> {
    match Target::parse("stdin", text)? {
        Target::Null => Ok(None),
        Target::Fifo(path) => Ok(Some(path)),
        Target::File(_) | Target::CriLog(_) => Err(StdioError::Target {
            field: "stdin",
            reason: "must be the path of a FIFO",
            value: text.to_owned(),
        }),
    }
}

/// Opens a FIFO for reading and writing, which neither waits for the other side nor breaks without it.
pub(crate) fn open_fifo(field: &'static str, path: &Path) -> Result<OwnedFd, StdioError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags(OFlags::NONBLOCK | OFlags::NOFOLLOW))
        .open(path)
        .map_err(|source| StdioError::Open {
            field,
            path: path.to_owned(),
            source,
        })?;
    if file.metadata().is_ok_and(|m| m.file_type().is_fifo()) {
        Ok(file.into())
    } else {
        Err(StdioError::Target {
            field,
            reason: "must be a FIFO",
            value: path.display().to_string(),
        })
    }
}

fn open_fifo_sink(field: &'static str, path: PathBuf) -> Result<pipe::Sink, StdioError> {
    let fifo = open_fifo(field, &path)?;
    Ok(pipe::Sink::Fifo(register(field, fifo, Interest::WRITABLE)?))
}

fn open_append(field: &'static str, path: PathBuf) -> Result<std::fs::File, StdioError> {
    log_file::open(&path).map_err(|source| StdioError::Open {
        field,
        path,
        source,
    })
}

fn output_pipe(
    field: &'static str,
    owner: (u32, u32),
    size: Option<usize>,
) -> Result<(AsyncFd<OwnedFd>, OwnedFd), StdioError> {
    let (read, write) = new_pipe(field, owner)?;
    if let Some(size) = size {
        // Best effort: the user's pipe quota may be used up.
        let _ = fcntl_setpipe_size(&write, size);
    }
    set_nonblocking(field, &read)?;
    Ok((register(field, read, Interest::READABLE)?, write))
}

fn input_pipe(owner: (u32, u32)) -> Result<(AsyncFd<OwnedFd>, OwnedFd), StdioError> {
    let (read, write) = new_pipe("stdin", owner)?;
    set_nonblocking("stdin", &write)?;
    Ok((register("stdin", write, Interest::WRITABLE)?, read))
}

fn new_pipe(field: &'static str, (uid, gid): (u32, u32)) -> Result<(OwnedFd, OwnedFd), StdioError> {
    let (read, write) =
        pipe_with(PipeFlags::CLOEXEC).map_err(|errno| descriptor(field, "make a pipe", errno))?;
    if (uid, gid) != (0, 0) {
        let (uid, gid) = (
            rustix::fs::Uid::from_raw(uid),
            rustix::fs::Gid::from_raw(gid),
        );
        // Both ends are one inode.
        rustix::fs::fchown(&read, Some(uid), Some(gid))
            .map_err(|errno| descriptor(field, "change the owner of a pipe", errno))?;
    }
    Ok((read, write))
}

fn set_nonblocking(field: &'static str, fd: &OwnedFd) -> Result<(), StdioError> {
    rustix::io::ioctl_fionbio(fd, true)
        .map_err(|errno| descriptor(field, "set non-blocking", errno))
}

fn duplicate(fd: &OwnedFd) -> Result<OwnedFd, StdioError> {
    fd.try_clone()
        .map_err(|source| descriptor("terminal", "duplicate", source))
}

fn register(
    field: &'static str,
    fd: OwnedFd,
    interest: Interest,
) -> Result<AsyncFd<OwnedFd>, StdioError> {
    sys::descriptor::watch(fd, interest)
        .map_err(|source| descriptor(field, "watch a descriptor", source))
}

fn register_null() -> Result<pipe::Sink, StdioError> {
    let null = OpenOptions::new()
        .write(true)
        .open("/dev/null")
        .map_err(|source| descriptor("stdout", "open /dev/null", source))?;
    Ok(pipe::Sink::File(null))
}

fn descriptor(
    field: &'static str,
    action: &'static str,
    source: impl Into<io::Error>,
) -> StdioError {
    StdioError::Descriptor {
        field,
        action,
        source: source.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_told_apart() {
        let path = || PathBuf::from("/a/b");
        let check = |text: &str, expect: Target| {
            assert_eq!(Target::parse("stdout", text).unwrap(), expect);
        };
        check("", Target::Null);
        check("/a/b", Target::Fifo(path()));
        check("file:///a/b", Target::File(path()));
        check("cri-log:///a/b", Target::CriLog(Some(path())));
        check("cri-log:none", Target::CriLog(None));
        for bad in [
            "a/b",
            "cri-log:nothing",
            "file://a/b",
            "cri-log://a",
            "binary:///x",
            "/a\0b",
        ] {
            let error = Target::parse("stdout", bad).unwrap_err();
            assert_eq!(error.code(), Code::INVALID_ARGUMENT);
            assert!(error.to_string().contains("stdout"), "{error}");
        }
        assert!(parse_stdin("file:///a").is_err());
    }
}
