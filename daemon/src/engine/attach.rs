//! Attach: the streams of a running container at one more client.
//!
//! The shim reads the container's output for its log; while clients are attached it copies what it reads to each
//! of them as well. Input goes to the container's FIFO, which all clients share.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};

use super::create_container::STDIN;
use super::exec::follow_size;
use super::fifos::{self, Fifo, InputEnd, pass_input, pass_output};
use super::session::{Session, StreamsAsked, is_gone};
use super::views::ContainerView;
use super::{Engine, pods};
use crate::domain::failure::{Class, Failure};
use crate::ports::AttachPlan;

/// How long the exit of a container may take to be known after its output has ended.
const SETTLE: Duration = Duration::from_secs(2);

/// How long a client whose input has ended still sees what comes of it.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// What an Attach asked for.
#[derive(Debug, Clone, Default)]
pub struct AttachOptions {
    /// The container, as the request names it.
    pub container: String,
    /// Its streams.
    pub streams: StreamsAsked,
}

type Output = Option<(pipe::Receiver, mpsc::Sender<Bytes>)>;

impl Engine {
    /// Checks what can be checked before a client has come.
    ///
    /// # Errors
    /// `NotFound`, `FailedPrecondition` when the container does not run, `InvalidArgument` for impossible
    /// streams.
    pub fn check_attach(&self, options: &AttachOptions) -> Result<(), Failure> {
        options.streams.check()?;
        self.running(&options.container).map(|_| ())
    }

    /// Stays with a container until it exits, the client is gone, or its input has ended: who types at a container
    /// leaves it by that (the detach keys of kubectl and crictl do no more), unless it is the one input the container
    /// gets. A client that does not keep up is let go.
    ///
    /// # Errors
    /// The container does not run any more, the client did not keep up, or the shim's failure.
    pub async fn attach(&self, options: &AttachOptions, session: Session) -> Result<(), Failure> {
        let (view, shim) = self.running(&options.container)?;
        let Session {
            mut stdin,
            stdout,
            stderr,
            resize,
            gone,
        } = session;
        let outputs = self.tap(&view, shim.as_ref(), stdout, stderr).await?;
        let tapped = outputs.iter().any(Option::is_some);
        let writer = match &stdin {
            Some(_) => self.stdin_of(&view)?,
            None => None,
        };
        let once = writer.is_some() && view.record.spec.stdin_once;
        let (exit, exited) = watch::channel(false);
        let waiting = async {
            let ended = shim.wait(&view.id, None).await;
            exit.send_replace(true);
            ended.map(|_| ())
        };
        let drain = self.shared.bounds.exec_drain;
        let [out, err] = outputs.map(|output| {
            let exited = exited.clone();
            async move {
                if let Some((fifo, sink)) = output {
                    pass_output(fifo, sink, exited, drain).await;
                }
            }
        });
        let passing = async {
            tokio::join!(out, err);
        };
        let input = async {
            if let (Some(writer), Some(stdin)) = (writer, stdin.as_mut()) {
                let end = pass_input(writer, stdin).await;
                if end == InputEnd::Client && (!once || view.record.spec.tty) {
                    tokio::time::sleep(LAST_WORDS).await;
                    return;
                }
                if once {
                    // The first client's input is all there will be; what comes of it is still to be seen.
                    close_stdin(shim.as_ref(), &view).await;
                }
            }
            std::future::pending::<()>().await;
        };
        tokio::pin!(waiting, passing);
        let result = tokio::select! {
            biased;
            ended = &mut waiting => {
                passing.await;
                return ended;
            }
            () = &mut passing, if tapped => {
                // The shim ends a copy before the container's exit when it was not read in time.
                let settled = tokio::time::timeout(SETTLE, waiting).await;
                return settled.unwrap_or_else(|_| Err(too_slow(&view)));
            }
            () = input => Ok(()),
            () = follow_size(shim.as_ref(), &view.id, None, resize) => {
                unreachable!("sizes never end the session")
            }
            () = is_gone(gone) => Ok(()),
        };
        if once {
            close_stdin(shim.as_ref(), &view).await;
        }
        result
    }

    /// Has the shim copy the output to FIFOs that only the two of us have open.
    async fn tap(
        &self,
        view: &ContainerView,
        shim: &dyn crate::ports::Shim,
        stdout: Option<mpsc::Sender<Bytes>>,
        stderr: Option<mpsc::Sender<Bytes>>,
    ) -> Result<[Output; 2], Failure> {
        if stdout.is_none() && stderr.is_none() {
            return Ok([None, None]);
        }
        let bundle = self.shared.ports.files.bundle(&view.pod, &view.id);
        let id = &pods::random_id()?[..24];
        let make = |sink: &Option<_>, name: &str| match sink {
            Some(_) => Fifo::make(bundle.join(format!("a{id}.{name}"))).map(Some),
            None => Ok(None),
        };
        let fifos = [make(&stdout, "out")?, make(&stderr, "err")?];
        let open = |fifo: &Option<Fifo>, sink: Option<_>| match (fifo, sink) {
            (Some(fifo), Some(sink)) => Ok(Some((fifo.receiver()?, sink))),
            _ => Ok::<_, Failure>(None),
        };
        // Order: the reading ends are open before the shim opens the others.
        let outputs = [open(&fifos[0], stdout)?, open(&fifos[1], stderr)?];
        let path = |fifo: &Option<Fifo>| fifo.as_ref().map(|fifo| fifo.path().to_owned());
        let plan = AttachPlan {
            container: view.id.clone(),
            stdout: path(&fifos[0]),
            stderr: path(&fifos[1]),
        };
        shim.attach(&plan).await?;
        Ok(outputs)
    }

    /// The writing end of a container's input; none when it has no input, or no longer.
    fn stdin_of(&self, view: &ContainerView) -> Result<Option<pipe::Sender>, Failure> {
        if !view.record.spec.stdin {
            return Ok(None);
        }
        let bundle = self.shared.ports.files.bundle(&view.pod, &view.id);
        let path = bundle.join(STDIN);
        match fifos::sender(&path) {
            Ok(sender) => Ok(Some(sender)),
            // `ENXIO`: the shim has closed it, as `stdin_once` asks. A container of an older axild has none.
            Err(error)
                if error.raw_os_error() == Some(nix::errno::Errno::ENXIO as i32)
                    || error.kind() == io::ErrorKind::NotFound =>
            {
                Ok(None)
            }
            Err(error) => Err(Failure::io(format!("open {}", path.display()), &error)),
        }
    }
}

async fn close_stdin(shim: &dyn crate::ports::Shim, view: &ContainerView) {
    if let Err(failure) = shim.close_stdin(&view.id, None).await {
        tracing::debug!(container.id = %view.id, error = %failure, "close the input of a container");
    }
}

fn too_slow(view: &ContainerView) -> Failure {
    let message = format!(
        "the output of container {} was not read in time; the container runs on, its log is complete",
        view.id
    );
    Failure::new(Class::Exhausted, message)
}
