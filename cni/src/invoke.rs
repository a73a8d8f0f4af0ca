//! Runs one plugin process: clean environment, bounded input, output and time, its error read.

use std::{
    io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use serde::Deserialize;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt, unix::AsyncFd},
    process::{Child, Command},
    time::{Instant, timeout, timeout_at},
};

use crate::error::ErrorClass;

/// Bound of a plugin's standard output and of what is kept of its standard error.
const MAX_OUTPUT_BYTES: usize = 1 << 20;
/// How much of standard error a message carries.
const SHOWN_STDERR: usize = 1024;
/// A plugin that ended may have left children that hold its pipes; they are not waited for.
const DRAIN: Duration = Duration::from_millis(200);
/// After SIGKILL a process is gone at once unless the kernel hangs.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a plugin run failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InvokeError {
    /// No plugin directory has the executable.
    #[error("executable {name} is in none of {dirs:?}")]
    Missing {
        /// The plugin's type.
        name: String,
        /// Where it was looked for.
        dirs: Vec<PathBuf>,
    },
    /// The process could not be started or watched.
    #[error("cannot {step} {program}")]
    Process {
        /// What was attempted.
        step: &'static str,
        /// The executable.
        program: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// It ran too long; it and its children were killed.
    #[error("{program} did not end within {timeout:?}")]
    Timeout {
        /// The executable.
        program: PathBuf,
        /// The bound.
        timeout: Duration,
    },
    /// It wrote too much; it and its children were killed.
    #[error("{program} wrote more than {limit} bytes")]
    TooMuchOutput {
        /// The executable.
        program: PathBuf,
        /// The bound.
        limit: usize,
    },
    /// It answered with a CNI error.
    #[error("{}{}", message, reported_tail(*code, details))]
    Reported {
        /// The code of the specification, or the plugin's own from 100 on.
        code: u64,
        /// The plugin's message.
        message: String,
        /// The plugin's details, possibly empty.
        details: String,
    },
    /// It failed without a CNI error.
    #[error("{program} failed ({status}) without a CNI error; standard error: {stderr:?}")]
    Failed {
        /// The executable.
        program: PathBuf,
        /// How it ended.
        status: String,
        /// The last of its standard error.
        stderr: String,
    },
    /// It succeeded, but what it wrote is not JSON.
    #[error("{program} succeeded but its output is not JSON: {output:?}")]
    Garbage {
        /// The executable.
        program: PathBuf,
        /// The first of its standard output.
        output: String,
        /// Where it stops being JSON.
        source: serde_json::Error,
    },
    /// Its result is not usable.
    #[error("result is not usable")]
    Result(#[source] crate::result::ResultError),
}

fn reported_tail(code: u64, details: &str) -> String {
    if details.is_empty() {
        format!(" (code {code})")
    } else {
        format!(" (code {code}): {details}")
    }
}

impl InvokeError {
    /// The class of this error.
    pub fn class(&self) -> ErrorClass {
        match self {
            InvokeError::Timeout { .. } => ErrorClass::DeadlineExceeded,
            InvokeError::Missing { .. } => ErrorClass::FailedPrecondition,
            // 11: try again later; 50 and 51: the plugin is not (fully) available.
            InvokeError::Reported {
                code: 11 | 50 | 51, ..
            } => ErrorClass::Unavailable,
            // 1: version; 2: field; 7: configuration.
            InvokeError::Reported {
                code: 1 | 2 | 7, ..
            } => ErrorClass::FailedPrecondition,
            InvokeError::Reported { .. }
            | InvokeError::Process { .. }
            | InvokeError::TooMuchOutput { .. }
            | InvokeError::Failed { .. }
            | InvokeError::Garbage { .. }
            | InvokeError::Result(_) => ErrorClass::Internal,
        }
    }
}

/// One run of a plugin.
#[derive(Debug)]
pub(crate) struct Invocation<'a> {
    pub(crate) program: &'a Path,
    /// `CNI_*` variables.
    pub(crate) environment: Vec<(&'static str, String)>,
    pub(crate) stdin: Vec<u8>,
    pub(crate) timeout: Duration,
}

/// Runs a plugin and returns its standard output as JSON; `Null` when it wrote nothing.
///
/// When the future is dropped, the plugin and its children are killed.
pub(crate) async fn run(invocation: Invocation<'_>) -> Result<Value, InvokeError> {
    let program = invocation.program;
    let failed = |step| {
        move |source| InvokeError::Process {
            step,
            program: program.to_owned(),
            source,
        }
    };
    let path = std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
    let mut child = Command::new(program)
        .env_clear()
        .env("PATH", path)
        .envs(
            invocation
                .environment
                .iter()
                .map(|(name, value)| (name, value)),
        )
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(failed("start"))?;
    let mut group = Group::of(&child).map_err(failed("watch"))?;
    let mut output = Output::default();
    let deadline = Instant::now() + invocation.timeout;
    let ended = timeout_at(
        deadline,
        converse(&mut child, &group, &invocation.stdin, &mut output),
    );
    match ended.await {
        Err(_elapsed) => {
            group.kill_and_reap(&mut child).await;
            let timeout = invocation.timeout;
            return Err(InvokeError::Timeout {
                program: program.to_owned(),
                timeout,
            });
        }
        Ok(Err(ending)) => {
            group.kill_and_reap(&mut child).await;
            let (program, limit) = (program.to_owned(), MAX_OUTPUT_BYTES);
            return Err(match ending {
                Ending::TooMuch => InvokeError::TooMuchOutput { program, limit },
                Ending::Broken(source) => failed("talk to")(source),
            });
        }
        Ok(Ok(())) => {}
    }
    let status = group.reap(&mut child).await.map_err(failed("wait for"))?;
    judge(program, status, &output)
}

#[derive(Debug, Default)]
struct Output {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

/// Why a conversation was broken off.
#[derive(Debug)]
enum Ending {
    TooMuch,
    Broken(io::Error),
}

impl From<io::Error> for Ending {
    fn from(error: io::Error) -> Ending {
        Ending::Broken(error)
    }
}

/// Feeds and reads the plugin until it ends or writes too much. It is not reaped here, so that
/// its process group's number stays its own.
async fn converse(
    child: &mut Child,
    group: &Group,
    stdin: &[u8],
    output: &mut Output,
) -> Result<(), Ending> {
    let mut input = child.stdin.take().expect("piped above");
    let mut stdout = child.stdout.take().expect("piped above");
    let mut stderr = child.stderr.take().expect("piped above");
    let feed = async move {
        // A plugin may end without reading all of it.
        let _ = input.write_all(stdin).await;
        Ok::<_, Ending>(())
    };
    let Output {
        stdout: out,
        stderr: err,
    } = output;
    let read_out = async {
        // Too much ends the conversation.
        if read(&mut stdout, out).await? {
            Err(Ending::TooMuch)
        } else {
            Ok(())
        }
    };
    let read_err = async {
        if read(&mut stderr, err).await? {
            // Chatter is discarded, so that the plugin does not block on it.
            tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await?;
        }
        Ok::<_, Ending>(())
    };
    let streams = async { tokio::try_join!(feed, read_out, read_err).map(drop) };
    tokio::pin!(streams);
    tokio::select! {
        done = &mut streams => {
            done?;
            group.ended().await?;
            Ok(())
        }
        ended = group.ended() => {
            ended?;
            // Whatever children still hold the pipes, the plugin has said its word.
            timeout(DRAIN, streams).await.unwrap_or(Ok(()))
        }
    }
}

/// Reads up to the bound; returns whether there was more.
async fn read(from: &mut (impl AsyncRead + Unpin), into: &mut Vec<u8>) -> io::Result<bool> {
    let mut part = vec![0; 16 << 10];
    loop {
        match from.read(&mut part).await? {
            0 => return Ok(false),
            length if into.len() + length > MAX_OUTPUT_BYTES => return Ok(true),
            length => into.extend_from_slice(&part[..length]),
        }
    }
}

fn judge(program: &Path, status: ExitStatus, output: &Output) -> Result<Value, InvokeError> {
    let program = program.to_owned();
    let empty = output.stdout.iter().all(u8::is_ascii_whitespace);
    let parsed = serde_json::from_slice::<Value>(&output.stdout);
    // Some plugins report an error and exit with 0.
    if let Ok(value) = &parsed
        && let Some(error) = reported(value, status.success())
    {
        return Err(error);
    }
    if !status.success() {
        let stderr = last(&output.stderr);
        return Err(InvokeError::Failed {
            program,
            status: status.to_string(),
            stderr,
        });
    }
    match parsed {
        Ok(value) => Ok(value),
        Err(_) if empty => Ok(Value::Null),
        Err(source) => {
            let output = printable(&output.stdout[..output.stdout.len().min(SHOWN_STDERR)]);
            Err(InvokeError::Garbage {
                program,
                output,
                source,
            })
        }
    }
}

/// The error object of the specification.
fn reported(value: &Value, succeeded: bool) -> Option<InvokeError> {
    #[derive(Deserialize)]
    struct Wire {
        code: u64,
        #[serde(default)]
        msg: String,
        #[serde(default)]
        details: String,
    }
    let wire = Wire::deserialize(value).ok()?;
    if succeeded && (wire.code == 0 || value.get("ips").is_some()) {
        return None;
    }
    let shorten = |text: String| printable(&text.as_bytes()[..text.len().min(4 * SHOWN_STDERR)]);
    let (message, details) = (shorten(wire.msg), shorten(wire.details));
    Some(InvokeError::Reported {
        code: wire.code,
        message,
        details,
    })
}

fn last(bytes: &[u8]) -> String {
    printable(&bytes[bytes.len().saturating_sub(SHOWN_STDERR)..])
}

fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.trim()
        .replace(|c: char| c.is_control() && c != '\n', "?")
}

/// The process group of a running plugin; killed when dropped before the plugin was reaped.
#[derive(Debug)]
struct Group {
    leader: Pid,
    pidfd: AsyncFd<std::os::fd::OwnedFd>,
    reaped: bool,
}

impl Group {
    fn of(child: &Child) -> io::Result<Group> {
        let raw = child.id().map(u32::cast_signed).and_then(Pid::from_raw);
        let leader = raw.ok_or(io::ErrorKind::NotFound)?;
        #[expect(
            deprecated,
            reason = "its unsafe successor is for types that lie about their descriptor; an \
                      OwnedFd does not"
        )]
        let pidfd = AsyncFd::new(pidfd_open(leader, PidfdFlags::NONBLOCK)?)?;
        Ok(Group {
            leader,
            pidfd,
            reaped: false,
        })
    }

    /// Waits until the leader has ended, and leaves it unreaped.
    async fn ended(&self) -> io::Result<()> {
        self.pidfd.readable().await.map(drop)
    }

    fn kill(&self) {
        // Without a member left there is nobody to kill.
        let _ = kill_process_group(self.leader, Signal::KILL);
    }

    /// Order: kill before reaping, for the number of a reaped leader may become another's.
    async fn kill_and_reap(&mut self, child: &mut Child) {
        self.kill();
        self.reaped = true;
        // A process in an uninterruptible wait is left to the runtime's reaper.
        let _ = timeout(KILL_TIMEOUT, child.wait()).await;
    }

    /// Reaps an ended leader and kills what it left in its group: a helper that is meant to
    /// outlive its plugin makes itself a session of its own.
    async fn reap(&mut self, child: &mut Child) -> io::Result<ExitStatus> {
        self.kill();
        self.reaped = true;
        child.wait().await
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.reaped {
            self.kill();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_error_object_is_recognised() {
        let check = |value: Value, succeeded: bool, expect: Option<&str>| {
            let text = reported(&value, succeeded).map(|error| error.to_string());
            assert_eq!(text.as_deref(), expect);
        };
        check(
            json!({"code": 7, "msg": "bad", "details": "field x"}),
            false,
            Some("bad (code 7): field x"),
        );
        check(
            json!({"code": 11, "msg": "later"}),
            true,
            Some("later (code 11)"),
        );
        check(
            json!({"cniVersion": "1.0.0", "ips": [], "code": 1}),
            true,
            None,
        );
        check(json!({"cniVersion": "1.0.0"}), false, None);
    }
}
