//! Starts what was created: the init of a container by `start`, an exec by `exec`.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use axil_proto::shim::events::{TaskExecStarted, TaskStart};

use crate::cgroup::ExecCgroup;
use crate::error::VerbError;
use crate::log;
use crate::pod::Pod;
use crate::reaper::ExitReceiver;
use crate::record::create_new;
use crate::runtime::{Call, CallStdio, RuntimeError, read_pid_file};
use crate::stdio::{ProcessIo, pty::Console};
use crate::sys::signal::SignalNumber;
use crate::task::create::{LOG_FILE, io_error};
use crate::task::phase::{Event, Phase};
use crate::task::process::Process;
use crate::task::table::Task;

impl Pod {
    /// Starts the init process of a container, or an exec, and answers its pid.
    ///
    /// # Errors
    /// It is not there, not in a phase to start from, or the runtime fails.
    pub async fn start(self: &Arc<Self>, id: &str, exec_id: &str) -> Result<u32, VerbError> {
        let task = self.tasks.get(id)?;
        let process = task.process(exec_id)?;
        if !exec_id.is_empty() && task.init.phase() != Phase::Running {
            return Err(VerbError::Precondition {
                id: task.id.clone(),
                reason: "an exec needs a running container",
            });
        }
        process.apply(Event::StartBegun)?;
        let started = if exec_id.is_empty() {
            self.start_init(&task).await
        } else {
            self.start_exec(&task, &process).await
        };
        let event = match &started {
            Ok(_) => Event::StartDone,
            Err(_) => Event::StartFailed,
        };
        process.apply(event)?;
        let (pid, exit) = started?;
        if exec_id.is_empty() {
            self.events.publish(&TaskStart {
                container_id: task.id.clone(),
                pid,
            });
        } else {
            self.events.publish(&TaskExecStarted {
                container_id: task.id.clone(),
                exec_id: exec_id.to_owned(),
                pid,
            });
        }
        if let Some(exit) = exit {
            self.supervise(task, process, exit);
        }
        Ok(pid)
    }

    async fn start_init(&self, task: &Task) -> Result<(u32, Option<ExitReceiver>), VerbError> {
        let log = task.bundle.join(LOG_FILE);
        let call = Call::new("start", &log).arg(&task.id);
        task.runtime.run(&self.reaper, call).await?;
        Ok((task.init.pid(), None))
    }

    async fn start_exec(
        &self,
        task: &Task,
        process: &Process,
    ) -> Result<(u32, Option<ExitReceiver>), VerbError> {
        let files = ExecFiles::write(task, process)?;
        let cgroup = exec_cgroup(task);
        let started = self.run_exec(task, process, &files, cgroup.as_ref()).await;
        let started = match started {
            Err(VerbError::Runtime(error)) if cgroup.is_some() && error.is_about_cgroup() => {
                log::warn(format_args!("exec without a cgroup of its own: {error}"));
                task.refuse_exec_cgroup();
                files.remove_outputs();
                self.run_exec(task, process, &files, None).await
            }
            other => other,
        };
        let (pid, exit) = started?;
        if let Some(cgroup) = cgroup.filter(|_| !task.refuses_exec_cgroup()) {
            if cgroup.holds(pid) {
                process.set_cgroup(Some(cgroup));
            } else {
                // Some runtimes take the option and mean another group by it.
                log::warn(format_args!(
                    "exec {:?} is not in its own cgroup",
                    process.id
                ));
                task.refuse_exec_cgroup();
                cgroup.release().await;
            }
        }
        Ok((pid, Some(exit)))
    }

    async fn run_exec(
        &self,
        task: &Task,
        process: &Process,
        files: &ExecFiles,
        cgroup: Option<&ExecCgroup>,
    ) -> Result<(u32, ExitReceiver), VerbError> {
        let result = self.run_exec_steps(task, process, files, cgroup).await;
        if let (Err(_), Some(cgroup)) = (&result, cgroup) {
            cgroup.release().await;
        }
        result
    }

    async fn run_exec_steps(
        &self,
        task: &Task,
        process: &Process,
        files: &ExecFiles,
        cgroup: Option<&ExecCgroup>,
    ) -> Result<(u32, ExitReceiver), VerbError> {
        let (mut io, child) = ProcessIo::open(&process.io_spec)?;
        let console = self.console(process.io_spec.terminal)?;
        let mut call = Call::new("exec", &files.log)
            .arg("--process")
            .arg(&files.document);
        if let Some(console) = &console {
            call = call.arg("--console-socket").arg(console.path());
        }
        if let Some(cgroup) = cgroup {
            call = call.arg("--cgroup").arg(cgroup.argument());
        }
        call = call
            .arg("--pid-file")
            .arg(&files.pid)
            .arg("--detach")
            .arg(&task.id);
        let hold = self.reaper.hold();
        let run: Result<(), RuntimeError> = task
            .runtime
            .run(&self.reaper, call.stdio(CallStdio::Container(child)))
            .await;
        run?;
        let pid =
            read_pid_file(&files.pid).map_err(|source| io_error("read", &files.pid, source))?;
        let (pidfd, exit) = self.adopt(task, pid)?;
        drop(hold);
        let attached = attach(&mut io, process, console.as_ref()).await;
        process.set_live(pid, pidfd, io);
        if let Err(error) = attached {
            // Nobody will hear of the process, so it must not live on.
            let _ = process.signal(SignalNumber::KILL);
            return Err(error);
        }
        Ok((pid, exit))
    }
}

async fn attach(
    io: &mut ProcessIo,
    process: &Process,
    console: Option<&Console>,
) -> Result<(), VerbError> {
    match console {
        Some(console) => Ok(io.attach(&process.io_spec, console).await?),
        None => Ok(()),
    }
}

/// A child cgroup for an exec; without one the exec runs all the same.
fn exec_cgroup(task: &Task) -> Option<ExecCgroup> {
    if task.refuses_exec_cgroup() {
        return None;
    }
    let name = format!("exec-{}", task.next_exec_number());
    match task.cgroup()?.create_child(name) {
        Ok(cgroup) => Some(cgroup),
        Err(error) => {
            log::warn(format_args!("cgroup for an exec of {:?}: {error}", task.id));
            None
        }
    }
}

/// The files of one exec in the bundle; removed when dropped. The document may hold secrets in its
/// environment, so it is private and short-lived.
#[derive(Debug)]
struct ExecFiles {
    document: PathBuf,
    log: PathBuf,
    pid: PathBuf,
}

impl ExecFiles {
    fn write(task: &Task, process: &Process) -> Result<Self, VerbError> {
        let path = |suffix: &str| task.bundle.join(format!("exec-{}.{suffix}", process.id));
        let files = Self {
            document: path("process.json"),
            log: path("log.json"),
            pid: path("pid"),
        };
        // Left-overs of a dead shim.
        let _ = fs::remove_file(&files.document);
        files.remove_outputs();
        create_new(&files.document)
            .and_then(|mut file| file.write_all(&process.document))
            .map_err(|source| io_error("write", &files.document, source))?;
        Ok(files)
    }

    /// Removes what a run of the runtime wrote.
    fn remove_outputs(&self) {
        for path in [&self.log, &self.pid] {
            let _ = fs::remove_file(path);
        }
    }
}

impl Drop for ExecFiles {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.document);
        self.remove_outputs();
    }
}
