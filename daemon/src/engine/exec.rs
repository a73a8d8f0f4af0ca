//! Exec: one command in a running container, its streams at a client.

use std::path::Path;
use std::time::Duration;

use axil_proto::ids::{ContainerId, ExecId};
use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use super::exec_sync::{check_command, exec_oom_score, exec_process};
use super::fifos::{Fifo, pass_input, pass_output};
use super::session::{Session, StreamsAsked, TerminalSize, is_gone};
use super::{Engine, Shared, pods};
use crate::domain::failure::{Class, Failure};
use crate::ports::{ExecPlan, Shim, TaskExit};

/// The signal of a terminal that hangs up, and the one nobody survives.
const SIGHUP: i32 = 1;
const SIGKILL: i32 = 9;

/// What an Exec asked for.
#[derive(Debug, Clone, Default)]
pub struct ExecOptions {
    /// The container, as the request names it.
    pub container: String,
    /// The command.
    pub command: Vec<String>,
    /// Its streams.
    pub streams: StreamsAsked,
}

impl Engine {
    /// Checks what can be checked before a client has come.
    ///
    /// # Errors
    /// `NotFound`, `FailedPrecondition` when the container does not run, `InvalidArgument` for an empty
    /// command or impossible streams.
    pub fn check_exec(&self, options: &ExecOptions) -> Result<(), Failure> {
        check_command(&options.command)?;
        options.streams.check()?;
        self.running(&options.container).map(|_| ())
    }

    /// Runs a command and answers its exit code when all its output is at the client. When the client goes
    /// away the command is hung up: SIGHUP to all it started, and SIGKILL to itself if it lives on.
    ///
    /// # Errors
    /// The container does not run any more, or the shim's failure.
    pub async fn exec(&self, options: &ExecOptions, session: Session) -> Result<i32, Failure> {
        let (view, shim) = self.running(&options.container)?;
        let shared = &self.shared;
        let bundle = shared.ports.files.bundle(&view.pod, &view.id);
        let terminal = options.streams.terminal;
        let score = exec_oom_score(&view, shared)?;
        let process = exec_process(&bundle, &options.command, terminal, score).await?;
        let exec: ExecId = format!("e{}", &pods::random_id()?[..24])
            .parse()
            .map_err(|error| Failure::internal("exec id", &error))?;
        let fifos = Fifos::make(&bundle, &exec, &session)?;
        let plan = ExecPlan {
            container: view.id.clone(),
            exec: exec.clone(),
            process,
            terminal,
            stdin: fifos.path(&fifos.stdin),
            stdout: fifos.path(&fifos.stdout),
            stderr: fifos.path(&fifos.stderr),
        };
        shim.exec(&plan).await?;
        let running = Running {
            shim: shim.as_ref(),
            container: &view.id,
            exec: &exec,
            drain: shared.bounds.exec_drain,
            hang_up: shared.bounds.hang_up,
            kill: shared.bounds.kill,
        };
        let result = running.run(fifos, session).await;
        // Ignored: the shim deletes an ended exec with its task at the latest.
        let _gone = shim.delete(&view.id, Some(&exec)).await;
        Ok(result?.status)
    }
}

/// The FIFOs of the streams that are asked for.
struct Fifos {
    stdin: Option<Fifo>,
    stdout: Option<Fifo>,
    stderr: Option<Fifo>,
}

impl Fifos {
    fn make(bundle: &Path, exec: &ExecId, session: &Session) -> Result<Self, Failure> {
        let make = |wanted: bool, name: &str| match wanted {
            true => Fifo::make(bundle.join(format!("{exec}.{name}"))).map(Some),
            false => Ok(None),
        };
        Ok(Self {
            stdin: make(session.stdin.is_some(), "in")?,
            stdout: make(session.stdout.is_some(), "out")?,
            stderr: make(session.stderr.is_some(), "err")?,
        })
    }

    fn path(&self, fifo: &Option<Fifo>) -> Option<std::path::PathBuf> {
        fifo.as_ref().map(|fifo| fifo.path().to_owned())
    }
}

/// An exec the shim knows of.
struct Running<'a> {
    shim: &'a dyn Shim,
    container: &'a ContainerId,
    exec: &'a ExecId,
    drain: Duration,
    hang_up: Duration,
    kill: Duration,
}

impl Running<'_> {
    /// Starts the exec and stays with it to its end.
    async fn run(&self, fifos: Fifos, session: Session) -> Result<TaskExit, Failure> {
        let Session {
            mut stdin,
            stdout,
            stderr,
            resize,
            gone,
        } = session;
        let (exit, exited) = watch::channel(false);
        // Order: the reading ends are open before the shim writes, the writing end once the shim reads.
        let out = output(&fifos.stdout, stdout)?;
        let err = output(&fifos.stderr, stderr)?;
        self.shim.start(self.container, Some(self.exec)).await?;
        let writer = fifos.stdin.as_ref().map(Fifo::sender).transpose();
        drop(fifos);
        let writer = match writer {
            Ok(writer) => writer,
            Err(failure) => {
                self.hang_up(&exited).await;
                return Err(failure);
            }
        };
        let waiting = async {
            let ended = self.shim.wait(self.container, Some(self.exec)).await;
            exit.send_replace(true);
            ended
        };
        let pass = |output: Option<(_, _)>| {
            let (exited, drain) = (exited.clone(), self.drain);
            async move {
                if let Some((fifo, sink)) = output {
                    pass_output(fifo, sink, exited, drain).await;
                }
            }
        };
        let work = async { tokio::join!(waiting, pass(out), pass(err)).0 };
        let input = async {
            if let (Some(writer), Some(stdin)) = (writer, stdin.as_mut()) {
                let _end = pass_input(writer, stdin).await;
                // Ignored: an exec that has ended has no input to close.
                let _ended = self.shim.close_stdin(self.container, Some(self.exec)).await;
            }
            std::future::pending::<()>().await;
        };
        let abandoned = async {
            is_gone(gone).await;
            self.hang_up(&exited).await;
        };
        tokio::select! {
            biased;
            ended = work => ended,
            () = input => unreachable!("input never ends the session"),
            () = follow_size(self.shim, self.container, Some(self.exec), resize) => {
                unreachable!("sizes never end the session")
            }
            () = abandoned => Err(Failure::new(
                Class::DeadlineExceeded,
                format!("exec {} in container {} outlives SIGKILL", self.exec, self.container),
            )),
        }
    }

    /// Ends an exec whose client is gone, as far as it lets itself be ended. SIGHUP reaches all it started,
    /// as from a terminal; who ignores that was meant to live on, the command itself excepted.
    async fn hang_up(&self, exited: &watch::Receiver<bool>) {
        for (signal, all, pause) in [(SIGHUP, true, self.hang_up), (SIGKILL, false, self.kill)] {
            let sent = self.shim.kill(self.container, Some(self.exec), signal, all);
            if let Err(failure) = sent.await
                && !*exited.borrow()
            {
                tracing::debug!(container.id = %self.container, error = %failure, "hang up an exec");
            }
            tokio::time::sleep(pause).await;
        }
    }
}

/// Ends execs that a daemon before this one began: their clients are gone with it.
pub(super) async fn end_orphans(
    shared: &Shared,
    shim: &dyn Shim,
    container: &ContainerId,
    execs: &[ExecId],
) {
    let ends = execs.iter().map(|exec| async move {
        let (_exit, exited) = watch::channel(false);
        let running = Running {
            shim,
            container,
            exec,
            drain: shared.bounds.exec_drain,
            hang_up: shared.bounds.hang_up,
            kill: shared.bounds.kill,
        };
        tokio::select! {
            _ended = shim.wait(container, Some(exec)) => {}
            () = running.hang_up(&exited) => {}
        }
        tracing::info!(container.id = %container, exec = %exec, "an exec of an earlier life is ended");
        // Ignored: the shim deletes an ended exec with its task at the latest.
        let _gone = shim.delete(container, Some(exec)).await;
    });
    futures_util::future::join_all(ends).await;
}

/// The reading end of an output and where it goes.
fn output(
    fifo: &Option<Fifo>,
    sink: Option<mpsc::Sender<Bytes>>,
) -> Result<Option<(tokio::net::unix::pipe::Receiver, mpsc::Sender<Bytes>)>, Failure> {
    match (fifo, sink) {
        (Some(fifo), Some(sink)) => Ok(Some((fifo.receiver()?, sink))),
        _ => Ok(None),
    }
}

/// Gives a terminal each new size of the client's. Never returns.
pub(super) async fn follow_size(
    shim: &dyn Shim,
    container: &ContainerId,
    exec: Option<&ExecId>,
    sizes: Option<watch::Receiver<Option<TerminalSize>>>,
) {
    if let Some(mut sizes) = sizes {
        loop {
            let size = *sizes.borrow_and_update();
            if let Some(size) = size
                && let Err(failure) = shim.resize(container, exec, size).await
            {
                // A process that has ended, or a container without a terminal.
                tracing::debug!(container.id = %container, error = %failure, "resize a terminal");
            }
            if sizes.changed().await.is_err() {
                break;
            }
        }
    }
    std::future::pending::<()>().await;
}
