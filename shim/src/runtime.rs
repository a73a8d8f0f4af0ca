//! Runs the OCI runtime by its command line, with a deadline, and reads its log when it fails.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use axil_proto::keys::RUNTIME_BINARY;
use axil_proto::shim::options::Options;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use serde::Deserialize;
use ttrpc::proto::Code;

use crate::reaper::{Exit, Reaper};
use crate::record::TaskRecord;
use crate::stdio::ChildStdio;

/// Where runtimes keep their state unless the options say otherwise.
pub const DEFAULT_ROOT: &str = "/run/axil/runtime";

/// How long one runtime command may take.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// How much of the end of a runtime's log or stderr is read.
const LOG_TAIL: u64 = 64 * 1024;

/// Longest message taken from a runtime, in bytes; it travels in an RPC status and in events.
const MESSAGE_LIMIT: usize = 4096;

/// Which OCI runtime, and where it keeps its state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime {
    /// The program.
    pub binary: PathBuf,
    /// Its `--root`.
    pub root: PathBuf,
    /// Whether it gets `--systemd-cgroup`.
    pub systemd_cgroup: bool,
    /// Whether `create` gets `--no-pivot`.
    no_pivot_root: bool,
    /// Whether `create` gets `--no-new-keyring`.
    no_new_keyring: bool,
}

/// Why a runtime command failed.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// It could not be run.
    #[error("run OCI runtime {binary:?}")]
    Spawn {
        /// The program.
        binary: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It ended with an error.
    #[error("OCI runtime {command} failed: {message}")]
    Failed {
        /// Its subcommand.
        command: &'static str,
        /// What it said, verbatim.
        message: String,
    },
    /// It did not end, and was killed.
    #[error("OCI runtime {command} did not finish in {seconds} s")]
    Deadline {
        /// Its subcommand.
        command: &'static str,
        /// The bound.
        seconds: u64,
    },
}

impl RuntimeError {
    /// The code the error travels as.
    ///
    /// The runtimes' messages are the only thing to go by. A program that is not in the image is the
    /// caller's mistake (`INVALID_ARGUMENT`); what is not recognised is `UNKNOWN`.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Spawn { .. } => Code::INTERNAL,
            Self::Deadline { .. } => Code::DEADLINE_EXCEEDED,
            Self::Failed { message, .. } => classify(message),
        }
    }

    /// Whether the runtime does not know the container.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.code() == Code::NOT_FOUND
    }

    /// Whether the message is about a cgroup or an unknown flag, as when `exec --cgroup` is refused.
    #[must_use]
    pub fn is_about_cgroup(&self) -> bool {
        match self {
            Self::Failed { message, .. } => {
                let message = message.to_ascii_lowercase();
                [
                    "cgroup",
                    "flag provided",
                    "unrecognized option",
                    "unexpected argument",
                    "unknown",
                ]
                .iter()
                .any(|part| message.contains(part))
            }
            Self::Spawn { .. } | Self::Deadline { .. } => false,
        }
    }
}

fn classify(message: &str) -> Code {
    let message = message.to_ascii_lowercase();
    let has = |part: &str| message.contains(part);
    if has("container") && (has("does not exist") || has("not found: container")) {
        Code::NOT_FOUND
    } else if has("container") && has("already exists") {
        Code::ALREADY_EXISTS
    } else if has("executable file")
        || has("exec format error")
        || ((has("exec: \"") || has("exec /")) && (has("no such file") || has("permission denied")))
    {
        Code::INVALID_ARGUMENT
    } else if has("not running") || has("stopped container") || has("paused") {
        Code::FAILED_PRECONDITION
    } else {
        Code::UNKNOWN
    }
}

/// One line of a runtime's JSON log.
#[derive(Debug, Deserialize)]
struct LogLine {
    #[serde(default)]
    level: String,
    #[serde(default)]
    msg: String,
}

/// One command line of the runtime.
#[derive(Debug)]
pub struct Call<'a> {
    /// The subcommand, for messages.
    pub command: &'static str,
    /// What follows the global options, the subcommand included.
    pub arguments: Vec<OsString>,
    /// Where the runtime writes its log.
    pub log: &'a Path,
    /// The streams of the container, or of the runtime itself.
    pub stdio: CallStdio,
}

/// The streams of a runtime command.
#[derive(Debug)]
pub enum CallStdio {
    /// The container inherits them.
    Container(ChildStdio),
    /// Nothing on stdin; stderr is kept for the message.
    Plain,
    /// These bytes on stdin.
    Input(Vec<u8>),
}

impl<'a> Call<'a> {
    /// A command without streams.
    #[must_use]
    pub fn new(command: &'static str, log: &'a Path) -> Self {
        Self {
            command,
            arguments: vec![command.into()],
            log,
            stdio: CallStdio::Plain,
        }
    }

    /// Appends an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Sets the streams.
    #[must_use]
    pub fn stdio(mut self, stdio: CallStdio) -> Self {
        self.stdio = stdio;
        self
    }
}

/// A command that was spawned: what is needed to explain its failure.
struct Started {
    pid: Pid,
    child: std::process::Child,
    stderr: Option<File>,
    log_start: u64,
}

impl Runtime {
    /// The runtime that `options` name, with its state for `namespace`.
    ///
    /// # Errors
    /// `binary_name` is not found.
    pub fn from_options(options: &Options, namespace: &str) -> Result<Self, RuntimeError> {
        let name = match options.binary_name.as_str() {
            "" => RUNTIME_BINARY,
            name => name,
        };
        let root = match options.root.as_str() {
            "" => DEFAULT_ROOT,
            root => root,
        };
        Ok(Self {
            binary: find_binary(name)?,
            // Ids are unique only within a namespace.
            root: Path::new(root).join(namespace),
            systemd_cgroup: options.systemd_cgroup,
            no_pivot_root: options.no_pivot_root,
            no_new_keyring: options.no_new_keyring,
        })
    }

    /// The runtime of a recorded task.
    #[must_use]
    pub fn from_record(record: &TaskRecord) -> Self {
        Self {
            binary: record.binary.clone(),
            root: record.root.clone(),
            systemd_cgroup: record.systemd_cgroup,
            no_pivot_root: false,
            no_new_keyring: false,
        }
    }

    /// The `create` command, with the options that only it takes.
    #[must_use]
    pub fn create<'a>(&self, bundle: &Path, log: &'a Path) -> Call<'a> {
        let mut call = Call::new("create", log).arg("--bundle").arg(bundle);
        if self.no_pivot_root {
            call = call.arg("--no-pivot");
        }
        if self.no_new_keyring {
            call = call.arg("--no-new-keyring");
        }
        call
    }

    /// Runs a command to its end, under the reaper.
    ///
    /// # Errors
    /// It cannot be run, fails, or takes longer than [`DEADLINE`].
    pub async fn run(&self, reaper: &Reaper, call: Call<'_>) -> Result<(), RuntimeError> {
        let (command, log) = (call.command, call.log);
        let started = self.spawn(call)?;
        // Order: no await since the spawn, so the reaper cannot have seen the exit yet.
        let exit = reaper.watch(started.pid.as_raw_nonzero().get());
        match tokio::time::timeout(DEADLINE, exit).await {
            Ok(Ok(Exit { status: 0, .. })) => Ok(()),
            Ok(Ok(exit)) => Err(failure(command, log, started, exit.status)),
            // The reaper lives as long as the process.
            Ok(Err(_)) | Err(_) => {
                let _ = kill_process_group(started.pid, Signal::KILL);
                Err(RuntimeError::Deadline {
                    command,
                    seconds: DEADLINE.as_secs(),
                })
            }
        }
    }

    /// Runs a command to its end without a reaper, for the `delete` action.
    ///
    /// # Errors
    /// As [`Self::run`], with `deadline` as the bound.
    pub fn run_blocking(&self, call: Call<'_>, deadline: Duration) -> Result<(), RuntimeError> {
        let (command, log) = (call.command, call.log);
        let mut started = self.spawn(call)?;
        let spawn_error = |source: io::Error| RuntimeError::Spawn {
            binary: self.binary.clone(),
            source,
        };
        let pidfd = pidfd_open(started.pid, PidfdFlags::empty());
        if !wait_gone(&pidfd.map_err(|e| spawn_error(e.into()))?, deadline) {
            let _ = kill_process_group(started.pid, Signal::KILL);
            let _ = started.child.wait();
            return Err(RuntimeError::Deadline {
                command,
                seconds: deadline.as_secs(),
            });
        }
        let status = started.child.wait().map_err(spawn_error)?;
        if status.success() {
            return Ok(());
        }
        let status = status.code().and_then(|code| u32::try_from(code).ok());
        Err(failure(command, log, started, status.unwrap_or(137)))
    }

    fn spawn(&self, call: Call<'_>) -> Result<Started, RuntimeError> {
        let error = |source: io::Error| RuntimeError::Spawn {
            binary: self.binary.clone(),
            source,
        };
        let log_start = fs::metadata(call.log).map_or(0, |m| m.len());
        let mut command = Command::new(&self.binary);
        command.arg("--root").arg(&self.root);
        command.arg("--log").arg(call.log);
        command.args(["--log-format", "json"]);
        if self.systemd_cgroup {
            command.arg("--systemd-cgroup");
        }
        command.args(&call.arguments);
        // Its own group, so that a deadline ends also what it started. Nothing here keeps the
        // standard library from using posix_spawn, which does not copy our page tables.
        command.process_group(0);
        let stderr = match call.stdio {
            CallStdio::Container(stdio) => {
                command.stdin(stdio.stdin);
                command.stdout(stdio.stdout);
                command.stderr(stdio.stderr);
                None
            }
            CallStdio::Plain => Some((Stdio::null(), memory_file(&[]).map_err(error)?)),
            CallStdio::Input(bytes) => {
                let input = memory_file(&bytes).map_err(error)?;
                Some((Stdio::from(input), memory_file(&[]).map_err(error)?))
            }
        };
        let stderr = match stderr {
            None => None,
            Some((stdin, stderr)) => {
                command.stdin(stdin).stdout(Stdio::null());
                command.stderr(stderr.try_clone().map_err(error)?);
                Some(stderr)
            }
        };
        let child = command.spawn().map_err(error)?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        Ok(Started {
            pid: pid.ok_or_else(|| error(io::ErrorKind::InvalidData.into()))?,
            child,
            stderr,
            log_start,
        })
    }
}

/// A file in memory that holds `bytes` and is read from its beginning.
fn memory_file(bytes: &[u8]) -> io::Result<File> {
    let fd: OwnedFd = memfd_create("runtime", MemfdFlags::CLOEXEC)?;
    let mut file = File::from(fd);
    if !bytes.is_empty() {
        io::Write::write_all(&mut file, bytes)?;
        file.seek(SeekFrom::Start(0))?;
    }
    Ok(file)
}

fn failure(command: &'static str, log: &Path, started: Started, status: u32) -> RuntimeError {
    let message = last_error(log, started.log_start)
        .or_else(|| started.stderr.and_then(last_line))
        .unwrap_or_else(|| format!("exit status {status}, and no message"));
    RuntimeError::Failed {
        command,
        message: shorten(message),
    }
}

fn shorten(mut message: String) -> String {
    if message.len() > MESSAGE_LIMIT {
        let end = (0..=MESSAGE_LIMIT)
            .rev()
            .find(|i| message.is_char_boundary(*i));
        message.truncate(end.unwrap_or(0));
    }
    message
}

/// The last error of a JSON log, among what was written since it had `start` bytes.
fn last_error(log: &Path, start: u64) -> Option<String> {
    let mut file = File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(start.max(length.saturating_sub(LOG_TAIL))))
        .ok()?;
    let mut text = Vec::new();
    file.take(LOG_TAIL).read_to_end(&mut text).ok()?;
    let lines = text.rsplit(|b| *b == b'\n');
    lines
        .filter_map(|line| serde_json::from_slice::<LogLine>(line).ok())
        .find(|line| matches!(line.level.as_str(), "error" | "fatal" | "panic"))
        .map(|line| line.msg.trim().to_owned())
        .filter(|message| !message.is_empty())
}

/// The last line of what a command wrote to stderr.
fn last_line(mut stderr: File) -> Option<String> {
    let length = stderr.metadata().ok()?.len();
    stderr
        .seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))
        .ok()?;
    let mut text = Vec::new();
    stderr.take(LOG_TAIL).read_to_end(&mut text).ok()?;
    let text = String::from_utf8_lossy(&text);
    let line = text.trim().lines().last()?.trim();
    (!line.is_empty()).then(|| line.to_owned())
}

/// Finds a runtime: a path as it is, a name beside the shim and then in PATH.
fn find_binary(name: &str) -> Result<PathBuf, RuntimeError> {
    let is_program = |path: &Path| {
        fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    };
    let beside = || {
        let shim = std::env::current_exe().ok()?;
        Some(shim.parent()?.join(name))
    };
    let in_path = || {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path)
            .map(|directory| directory.join(name))
            .find(|path| path.is_absolute() && is_program(path))
    };
    let found = if name.contains('/') {
        Some(PathBuf::from(name)).filter(|path| path.is_absolute())
    } else {
        beside().filter(|path| is_program(path)).or_else(in_path)
    };
    found
        .filter(|path| is_program(path))
        .ok_or_else(|| RuntimeError::Spawn {
            binary: PathBuf::from(name),
            source: io::ErrorKind::NotFound.into(),
        })
}

/// The pid a runtime wrote to a pid file.
///
/// # Errors
/// The file is missing or holds no pid.
pub fn read_pid_file(path: &Path) -> io::Result<u32> {
    let text = crate::record::read_bounded(path, 32)?;
    String::from_utf8_lossy(&text)
        .trim()
        .parse()
        .ok()
        .filter(|pid| *pid > 1)
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Blocks until the process held by `pidfd` has ended. Answers whether it did in time.
#[must_use]
pub fn wait_gone(pidfd: &OwnedFd, deadline: Duration) -> bool {
    let mut poll = [rustix::event::PollFd::new(
        pidfd,
        rustix::event::PollFlags::IN,
    )];
    let timeout = rustix::event::Timespec {
        tv_sec: i64::try_from(deadline.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: 0,
    };
    rustix::event::poll(&mut poll, Some(&timeout)).is_ok_and(|count| count > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_of_this_run_counts() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log.json");
        let old = "{\"level\":\"error\",\"msg\":\"old\",\"time\":\"t\"}\n";
        let new = "{\"level\":\"warning\",\"msg\":\"w\"}\n{\"level\":\"error\",\"msg\":\"first\"}\n\
                   {\"level\":\"error\",\"msg\":\"exec: \\\"x\\\": not found\"}\nnoise\n";
        fs::write(&log, format!("{old}{new}")).unwrap();
        let start = u64::try_from(old.len()).unwrap();
        assert_eq!(last_error(&log, start).unwrap(), "exec: \"x\": not found");
        fs::write(&log, old).unwrap();
        assert_eq!(last_error(&log, start), None);
    }

    #[test]
    fn messages_have_classes() {
        let check = |message: &str, code: Code| assert_eq!(classify(message), code, "{message}");
        check("container does not exist", Code::NOT_FOUND);
        check(
            "container with given ID already exists",
            Code::ALREADY_EXISTS,
        );
        check(
            "exec: \"nope\": executable file not found in $PATH",
            Code::INVALID_ARGUMENT,
        );
        check(
            "exec: \"/nope\": stat /nope: no such file or directory",
            Code::INVALID_ARGUMENT,
        );
        check(
            "error closing exec fds: open /proc/self/fd: no such file or directory",
            Code::UNKNOWN,
        );
        check(
            "cannot exec in a paused container",
            Code::FAILED_PRECONDITION,
        );
        check("something else", Code::UNKNOWN);
    }

    #[test]
    fn a_name_is_found_in_path_and_a_relative_path_is_not() {
        assert!(find_binary("sh").unwrap().is_absolute());
        assert!(find_binary("bin/sh").is_err());
        assert!(find_binary("/nonexistent/runtime").is_err());
    }
}
