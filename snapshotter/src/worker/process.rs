//! The life of one unpack process: started with a pipe and a socket and nothing else, killed when given up.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

use super::{NAME, Worker, WorkerError};

/// What the pipe holds: fewer changes from one process to the other than with the kernel's 64 KiB.
const PIPE: usize = 1 << 20;
/// How long a killed process may take to be gone, before that is left to a thread of its own.
const GONE: Duration = Duration::from_secs(10);
/// Pause between two looks at a process that is ending.
const LOOK: Duration = Duration::from_millis(1);

/// A running process. Dropping it kills it.
#[derive(Debug)]
pub(super) struct Process {
    child: Mutex<Option<Child>>,
}

/// Our ends of what connects the two.
#[derive(Debug)]
pub(super) struct Ends {
    /// Blob bytes go in here; does not block.
    pub(super) pipe: OwnedFd,
    pub(super) socket: UnixStream,
}

impl Process {
    pub(super) fn start(worker: &Worker) -> Result<(Self, Ends), WorkerError> {
        let failed = |source: io::Error| WorkerError::Start {
            program: worker.program.clone(),
            source,
        };
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| failed(error.into()))?;
        // Ignored: beyond the user's share of pipe memory the kernel's size does as well.
        let _ = fcntl_setpipe_size(&write, PIPE);
        let flags = fcntl_getfl(&write).map_err(|error| failed(error.into()))?;
        fcntl_setfl(&write, flags | OFlags::NONBLOCK).map_err(|error| failed(error.into()))?;
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        // No shell, no environment, no words but the name; the process group keeps the terminal's signals away.
        let child = Command::new(&worker.program)
            .arg0(NAME)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(read))
            .stdout(Stdio::from(OwnedFd::from(theirs)))
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let process = Self {
            child: Mutex::new(Some(child)),
        };
        let ends = Ends {
            pipe: write,
            socket: ours,
        };
        Ok((process, ends))
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Kills the process; it is not waited for.
    pub(super) fn kill(&self) {
        if let Some(child) = self.child().as_mut() {
            // Ignored: it has ended already.
            let _ = child.kill();
        }
    }

    /// Kills the process unless it ended, waits until it is gone, and tells how it ended. One that the kernel
    /// cannot end, because its disk does not answer, is left to a thread.
    pub(super) fn end(&self, patience: Duration) -> Option<ExitStatus> {
        let mut child = self.child().take()?;
        if let Some(status) = wait(&mut child, patience) {
            return Some(status);
        }
        // Ignored: it has ended already.
        let _ = child.kill();
        if let Some(status) = wait(&mut child, GONE) {
            return Some(status);
        }
        let reaper = thread::Builder::new().name("unpack-reaper".to_owned());
        // Ignored: without the thread a zombie stays until this process ends.
        let _ = reaper.spawn(move || child.wait());
        None
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end(Duration::ZERO);
    }
}

fn wait(child: &mut Child, patience: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + patience;
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        if Instant::now() >= deadline {
            return None;
        }
        thread::sleep(LOOK);
    }
}

/// Says how a process ended.
pub(super) fn describe(status: Option<ExitStatus>) -> String {
    match status {
        None => "it cannot be ended".to_owned(),
        Some(status) => match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("killed by signal {signal}"),
            (None, None) => status.to_string(),
        },
    }
}
