//! Every process a test starts, and every process those leave behind.
//!
//! The test process is a sub-reaper: what a daemon or shim abandons becomes its child, so that the leak
//! check sees a complete tree and nothing stays a zombie. The reaper must not take the exit of a process
//! that somebody here waits for; therefore everything is started through this file.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write as _};
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// Process ids started here and not yet waited for. Held while a child is being started, so that the
/// reaper never meets one that is not written down yet.
static OURS: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

fn ours() -> MutexGuard<'static, BTreeSet<i32>> {
    OURS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a finished command left.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
}

impl Finished {
    /// Standard error, or standard output when that is empty, for a message.
    #[must_use]
    pub fn text(&self) -> String {
        let from = if self.stderr.is_empty() {
            &self.stdout
        } else {
            &self.stderr
        };
        String::from_utf8_lossy(from).trim().to_owned()
    }
}

/// A long-running process; killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    done: bool,
}

impl Running {
    /// Starts `command`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(command: &mut Command) -> Result<Self> {
        Ok(Self {
            child: spawn(command)?,
            done: false,
        })
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        pid_of(&self.child)
    }

    /// Its standard output, where that was asked to be a pipe and nobody took it before.
    pub fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// How it ended, or `None` while it runs.
    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        let status = self.child.try_wait().ok().flatten();
        if status.is_some() {
            self.forget();
        }
        status
    }

    /// Waits until it ended, at most `limit`.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.try_wait() {
                return Some(status);
            }
            if Instant::now() >= deadline {
                return None;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends a signal; an ended process is no error.
    pub fn signal(&self, signal: Signal) {
        if !self.done {
            let _ = kill(Pid::from_raw(self.pid()), signal);
        }
    }

    /// Kills it and waits for its end.
    pub fn kill(&mut self) {
        if !self.done {
            let _ = self.child.kill();
            let _ = self.child.wait();
            self.forget();
        }
    }

    fn forget(&mut self) {
        if !self.done {
            self.done = true;
            let pid = self.pid();
            ours().remove(&pid);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

fn pid_of(child: &Child) -> i32 {
    i32::try_from(child.id()).expect("a process id is a positive pid_t")
}

fn spawn(command: &mut Command) -> Result<Child> {
    let mut ours = ours();
    let child = command
        .spawn()
        .with_context(|| format!("start {}", command.get_program().to_string_lossy()))?;
    ours.insert(pid_of(&child));
    Ok(child)
}

/// Runs a program to its end with captured output; a non-zero exit is not an error.
///
/// # Errors
/// When it cannot be started.
pub fn run(program: &str, args: &[&str]) -> Result<Finished> {
    output(Command::new(program).args(args), &[])
}

/// Runs a program that must succeed and answers its standard output as text.
///
/// # Errors
/// When it cannot be started or fails; the message has its standard error.
pub fn read(program: &str, args: &[&str]) -> Result<String> {
    let done = run(program, args)?;
    if !done.status.success() {
        bail!(
            "{program} {}: {}: {}",
            args.join(" "),
            done.status,
            done.text()
        );
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// Runs a prepared command to its end with `input` on its standard input.
///
/// # Errors
/// When it cannot be started or waited for.
pub fn output(command: &mut Command, input: &[u8]) -> Result<Finished> {
    command.stdin(if input.is_empty() {
        Stdio::null()
    } else {
        Stdio::piped()
    });
    to_its_end(command, input)
}

/// The same with a standard input that brings nothing and does not end before the command does.
///
/// # Errors
/// When it cannot be started or waited for.
pub fn output_without_end_of_input(command: &mut Command) -> Result<Finished> {
    let (reader, _writer) = io::pipe().context("pipe")?;
    command.stdin(reader);
    to_its_end(command, &[])
}

fn to_its_end(command: &mut Command, input: &[u8]) -> Result<Finished> {
    let program = command.get_program().to_string_lossy().into_owned();
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = spawn(command)?;
    let pid = pid_of(&child);
    if let Some(mut stdin) = child.stdin.take() {
        stdin
            .write_all(input)
            .with_context(|| format!("write to {program}"))?;
    }
    let waited = child.wait_with_output();
    ours().remove(&pid);
    let Output {
        status,
        stdout,
        stderr,
    } = waited.with_context(|| format!("wait for {program}"))?;
    Ok(Finished {
        status,
        stdout,
        stderr,
    })
}

/// Runs a command to its end with this process's own output, for commands people watch.
///
/// # Errors
/// When it cannot be started or waited for.
pub fn watch(command: &mut Command) -> Result<ExitStatus> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = spawn(command)?;
    let pid = pid_of(&child);
    let waited = child.wait();
    ours().remove(&pid);
    waited.with_context(|| format!("wait for {program}"))
}

/// Makes this process the parent of what its descendants abandon, and reaps it from then on.
///
/// # Errors
/// When the kernel refuses.
pub fn adopt_orphans() -> Result<()> {
    static ONCE: Once = Once::new();
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .context("become a sub-reaper")?;
    ONCE.call_once(|| {
        thread::spawn(|| {
            loop {
                reap_orphans();
                thread::sleep(Duration::from_millis(10));
            }
        });
    });
    Ok(())
}

fn reap_orphans() {
    let ours = ours();
    for process in children_of_this() {
        if process.is_zombie && !ours.contains(&process.pid) {
            let _ = waitpid(Pid::from_raw(process.pid), Some(WaitPidFlag::WNOHANG));
        }
    }
}

/// One process as `/proc` shows it.
#[derive(Debug, Clone)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// Its parent's id.
    pub parent: i32,
    /// The kernel's name of it.
    pub name: String,
    /// Ended and not reaped.
    pub is_zombie: bool,
    /// Its command line, with spaces.
    pub command: String,
}

/// Reads `/proc/<pid>/stat`; `None` when the process is gone.
fn process(pid: i32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may itself hold any character (proc_pid_stat(5)).
    let (head, tail) = stat.rsplit_once(')')?;
    let name = head.split_once('(')?.1.to_owned();
    let mut fields = tail.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let command = String::from_utf8_lossy(&command)
        .replace('\0', " ")
        .trim()
        .to_owned();
    Some(Process {
        pid,
        parent,
        name,
        is_zombie: matches!(state, "Z" | "X"),
        command,
    })
}

fn all_processes() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(process)
        .collect()
}

fn children_of_this() -> Vec<Process> {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else {
        return Vec::new();
    };
    tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|line| {
            line.split_ascii_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect::<Vec<i32>>()
        })
        .filter_map(process)
        .collect()
}

/// Every living descendant of this process, in no order.
#[must_use]
pub fn descendants() -> Vec<Process> {
    let all = all_processes();
    let mut family = BTreeSet::from([std::process::id().cast_signed()]);
    loop {
        let before = family.len();
        for process in &all {
            if family.contains(&process.parent) {
                family.insert(process.pid);
            }
        }
        if family.len() == before {
            break;
        }
    }
    let this = std::process::id().cast_signed();
    all.into_iter()
        .filter(|p| p.pid != this && !p.is_zombie && family.contains(&p.pid))
        .collect()
}

/// The living descendants of this process that it did not start itself: what a daemon left behind.
#[must_use]
pub fn abandoned() -> Vec<Process> {
    let ours = ours().clone();
    descendants()
        .into_iter()
        .filter(|p| !ours.contains(&p.pid))
        .collect()
}

/// Kills every descendant, round after round until none is left or five seconds passed.
pub fn kill_descendants() {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let left = descendants();
        if left.is_empty() || Instant::now() > deadline {
            return;
        }
        for process in left {
            let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
        }
        thread::sleep(Duration::from_millis(20));
    }
}
