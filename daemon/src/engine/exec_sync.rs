//! ExecSync: one command in a running container, its output and exit code, within a time.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axil_proto::ids::{ContainerId, ExecId};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;

use super::fifos::Fifo;
use super::views::ContainerView;
use super::{Engine, Shared, pods, spawn};
use crate::domain::container::oci;
use crate::domain::container::phase::ContainerPhase;
use crate::domain::failure::{Class, Failure};
use crate::ports::{ExecPlan, Shim};

/// Most bytes kept of both streams together: what the kubelet takes in one message (16 MiB), less the
/// message's frame. The command goes on and the rest is discarded.
pub const MAX_OUTPUT: usize = (16 << 20) - 4096;

/// Pause before a command that is being started is killed again.
const KILL_AGAIN: Duration = Duration::from_millis(50);

/// What an ExecSync gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    /// Standard output, at most [`MAX_OUTPUT`] with standard error.
    pub stdout: Vec<u8>,
    /// Standard error, at most [`MAX_OUTPUT`] with standard output.
    pub stderr: Vec<u8>,
    /// Exit code, or 128 plus the signal's number.
    pub exit_code: i32,
}

impl Engine {
    /// A running container and its pod's shim.
    pub(super) fn running(&self, id: &str) -> Result<(ContainerView, Arc<dyn Shim>), Failure> {
        let (pod, container) = self.need_container(id)?;
        let views = &self.shared.views;
        let view = views
            .container(&container)
            .ok_or_else(|| pods::unknown_container(id))?;
        if !matches!(view.record.phase, ContainerPhase::Running { .. }) {
            let message = format!(
                "container {id:?} is {}, not running",
                view.record.phase.name()
            );
            return Err(Failure::precondition(message));
        }
        let shim = views.pod(&pod).and_then(|pod| pod.shim);
        let shim = shim.ok_or_else(|| {
            Failure::new(
                Class::Unavailable,
                format!("the shim of container {id:?} is not there"),
            )
        })?;
        Ok((view, shim))
    }

    /// Runs a command; a zero `timeout` waits without a bound. The work goes on when the caller leaves.
    ///
    /// # Errors
    /// `DeadlineExceeded` after the command and everything it started are killed, `NotFound`,
    /// `FailedPrecondition` when the container does not run, `InvalidArgument` for an empty command.
    pub async fn exec_sync(
        &self,
        id: &str,
        command: Vec<String>,
        timeout: Duration,
    ) -> Result<ExecOutput, Failure> {
        check_command(&command)?;
        let (view, shim) = self.running(id)?;
        let shared = Arc::clone(&self.shared);
        let work = async move {
            let bundle = shared.ports.files.bundle(&view.pod, &view.id);
            let score = exec_oom_score(&view, &shared)?;
            let process = exec_process(&bundle, &command, false, score).await?;
            let exec: ExecId = format!("e{}", &pods::random_id()?[..24])
                .parse()
                .map_err(|error| Failure::internal("exec id", &error))?;
            let run = Run {
                shim: shim.as_ref(),
                container: &view.id,
                exec,
                directory: bundle,
                drain: shared.bounds.exec_drain,
                kill: shared.bounds.kill,
            };
            run.all(process, timeout).await
        };
        match spawn::spawn("ExecSync", work).await {
            Ok(result) => result,
            Err(error) => Err(Failure::internal("ExecSync", &error)),
        }
    }
}

/// Checks that a command names a program.
///
/// # Errors
/// `InvalidArgument` for a command without one.
pub(super) fn check_command(command: &[String]) -> Result<(), Failure> {
    match command.first() {
        None => Err(Failure::invalid("cmd", command, "is empty")),
        Some(program) if program.is_empty() => {
            Err(Failure::invalid("cmd", command, "names no program"))
        }
        Some(_) => Ok(()),
    }
}

/// The `oom_score_adj` a container has now: its document has the one it began with.
///
/// # Errors
/// It is out of bounds.
pub(super) fn exec_oom_score(view: &ContainerView, shared: &Shared) -> Result<i64, Failure> {
    let asked = view.record.limits().oom_score_adj;
    let score = oci::oom_score_adj(asked, &shared.host);
    score.map_err(|error| Failure::new(error.class(), error.to_string()))
}

/// The OCI process of an exec: the container's own with another command, and the score of now.
///
/// # Errors
/// The container's document cannot be read.
pub(super) async fn exec_process(
    bundle: &Path,
    command: &[String],
    terminal: bool,
    oom_score_adj: i64,
) -> Result<Vec<u8>, Failure> {
    let path = bundle.join("config.json");
    let text = tokio::fs::read(&path)
        .await
        .map_err(|error| Failure::io(format!("read {}", path.display()), &error))?;
    let mut document: serde_json::Value = serde_json::from_slice(&text)
        .map_err(|error| Failure::internal(format!("parse {}", path.display()), &error))?;
    let mut process = document["process"].take();
    process["args"] = serde_json::Value::from(command);
    process["terminal"] = terminal.into();
    process["oomScoreAdj"] = oom_score_adj.into();
    if terminal {
        name_terminal(&mut process["env"]);
    }
    serde_json::to_vec(&process).map_err(|error| Failure::internal("encode a process", &error))
}

/// Gives a process with a terminal a TERM, as containerd does, unless the container has its own.
fn name_terminal(env: &mut serde_json::Value) {
    if let Some(env) = env.as_array_mut()
        && !env
            .iter()
            .any(|entry| entry.as_str().is_some_and(|e| e.starts_with("TERM=")))
    {
        env.push("TERM=xterm".into());
    }
}

/// Cuts two streams to [`MAX_OUTPUT`] together; each keeps at least half of that if it has as much.
fn fit(mut stdout: Vec<u8>, mut stderr: Vec<u8>) -> (Vec<u8>, Vec<u8>) {
    let half = MAX_OUTPUT / 2;
    stdout.truncate(MAX_OUTPUT - stderr.len().min(half));
    stderr.truncate(MAX_OUTPUT - stdout.len());
    (stdout, stderr)
}

/// One exec with its FIFOs.
struct Run<'a> {
    shim: &'a dyn Shim,
    container: &'a ContainerId,
    exec: ExecId,
    directory: PathBuf,
    drain: Duration,
    kill: Duration,
}

impl Run<'_> {
    async fn all(&self, process: Vec<u8>, timeout: Duration) -> Result<ExecOutput, Failure> {
        let stdout = Fifo::make(self.directory.join(format!("{}.out", self.exec)))?;
        let stderr = Fifo::make(self.directory.join(format!("{}.err", self.exec)))?;
        let out = Capture::open(&stdout)?;
        let err = Capture::open(&stderr)?;
        let plan = ExecPlan {
            container: self.container.clone(),
            exec: self.exec.clone(),
            process,
            terminal: false,
            stdin: None,
            stdout: Some(stdout.path().to_owned()),
            stderr: Some(stderr.path().to_owned()),
        };
        self.shim.exec(&plan).await?;
        let result = self.run(out, err, timeout).await;
        // Ignored: the shim deletes an ended exec with its task at the latest.
        let _gone = self.shim.delete(self.container, Some(&self.exec)).await;
        result
    }

    async fn run(
        &self,
        out: Capture,
        err: Capture,
        timeout: Duration,
    ) -> Result<ExecOutput, Failure> {
        let (exec, container) = (Some(&self.exec), self.container);
        let whole = async {
            self.shim.start(container, exec).await?;
            let (out, err) = (out.spawn(), err.spawn());
            let exit = self.shim.wait(container, exec).await?;
            // A process left in the background may hold the streams: do not wait for it for long.
            let deadline = tokio::time::Instant::now() + self.drain;
            let (stdout, stderr) = (out.finish(deadline).await, err.finish(deadline).await);
            let (stdout, stderr) = fit(stdout, stderr);
            Ok(ExecOutput {
                stdout,
                stderr,
                exit_code: exit.status,
            })
        };
        if timeout.is_zero() {
            return whole.await;
        }
        if let Ok(result) = tokio::time::timeout(timeout, whole).await {
            return result;
        }
        if tokio::time::timeout(self.kill, self.end()).await.is_err() {
            tracing::warn!(container.id = %container, exec = %self.exec, "a command that timed out may live on");
        }
        // The caller is told of the timeout however the end went: the kubelet takes any other code for a
        // probe that could not be made, and counts it as neither success nor failure.
        let message = format!("command in container {container} timed out after {timeout:?}");
        Err(Failure::new(Class::DeadlineExceeded, message))
    }

    /// Kills the command and what it started, and waits for its end.
    async fn end(&self) {
        let (exec, container) = (Some(&self.exec), self.container);
        loop {
            match self.shim.kill(container, exec, 9, true).await {
                // The runtime is just starting it; nobody would end it if it were left to that.
                Err(failure) if failure.class == Class::FailedPrecondition => {
                    tokio::time::sleep(KILL_AGAIN).await;
                }
                // It ended by itself meanwhile.
                Err(failure) if failure.class == Class::NotFound => return,
                Err(failure) => {
                    tracing::warn!(container.id = %container, error = %failure, "killing a command that timed out");
                    break;
                }
                Ok(()) => break,
            }
        }
        // Ignored: an end that cannot be waited for is one of the shim, which takes the command with it.
        let _ended = self.shim.wait(container, exec).await;
    }
}

/// A FIFO that is read into memory up to [`MAX_OUTPUT`].
struct Capture {
    reader: pipe::Receiver,
}

struct Capturing {
    bytes: Arc<std::sync::Mutex<Vec<u8>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Capture {
    fn open(fifo: &Fifo) -> Result<Self, Failure> {
        let reader = fifo.receiver()?;
        Ok(Self { reader })
    }

    fn spawn(mut self) -> Capturing {
        let bytes = Arc::new(std::sync::Mutex::new(Vec::new()));
        let sink = Arc::clone(&bytes);
        let task = spawn::spawn("exec output", async move {
            let mut buffer = vec![0; 32 << 10];
            loop {
                match self.reader.read(&mut buffer).await {
                    Ok(0) | Err(_) => return,
                    Ok(count) => {
                        let mut kept = super::lock(&sink);
                        let room = MAX_OUTPUT.saturating_sub(kept.len()).min(count);
                        kept.extend_from_slice(&buffer[..room]);
                    }
                }
            }
        });
        Capturing { bytes, task }
    }
}

impl Capturing {
    /// What was read until the writers closed, or until `deadline`.
    async fn finish(mut self, deadline: tokio::time::Instant) -> Vec<u8> {
        if tokio::time::timeout_at(deadline, &mut self.task)
            .await
            .is_err()
        {
            self.task.abort();
        }
        std::mem::take(&mut super::lock(&self.bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_streams_fit_into_one_message() {
        for (out, err, kept_out, kept_err) in [
            (10, 20, 10, 20),
            (MAX_OUTPUT, 0, MAX_OUTPUT, 0),
            (0, MAX_OUTPUT, 0, MAX_OUTPUT),
            (MAX_OUTPUT, 100, MAX_OUTPUT - 100, 100),
            (100, MAX_OUTPUT, 100, MAX_OUTPUT - 100),
            (MAX_OUTPUT, MAX_OUTPUT, MAX_OUTPUT / 2, MAX_OUTPUT / 2),
        ] {
            let (stdout, stderr) = fit(vec![0; out], vec![0; err]);
            assert_eq!((stdout.len(), stderr.len()), (kept_out, kept_err));
        }
    }
}
