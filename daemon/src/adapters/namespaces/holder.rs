//! A process that stands in a user namespace while others take hold of it. The daemon has threads, and the kernel
//! lets only a process without make a user namespace (unshare(2)); so the daemon runs itself again, under [`NAME`].
//!
//! ```text
//!   the daemon                                  the holder
//!   starts it, with the names of namespaces  -> makes a user namespace
//!   writes its ids                           <- "u"
//!   "i"                                      -> makes the other namespaces, which the first one owns
//!   binds /proc/<pid>/ns/*                   <- "n"
//!   closes the pipe                          -> ends
//! ```
//!
//! What goes wrong in the holder is told by "!" and a text.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::KINDS;
use crate::domain::failure::{Class, Failure};
use crate::domain::pod::user_namespace::{IdMapping, IdMappings};
use crate::ports::Answer;

/// The name the program has to have been started by.
const NAME: &str = "axil-userns";

/// How long the holder may take for a step. It makes a system call or two.
const PATIENCE: Duration = Duration::from_secs(10);

/// Longest text of a holder that is read, in bytes.
const MAX_TEXT: u64 = 1024;

/// Whether this program was started to be a holder.
#[must_use]
pub fn is_asked_for() -> bool {
    std::env::args_os().next().is_some_and(|name| name == NAME)
}

/// The holder's whole life. It has one thread.
#[must_use]
pub fn main() -> ExitCode {
    match hold() {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            // Ignored: the daemon that is to be told may be gone.
            let _gone = io::stdout().write_all(format!("!{text}").as_bytes());
            ExitCode::FAILURE
        }
    }
}

fn hold() -> Result<(), String> {
    let asked: Vec<String> = std::env::args().skip(1).collect();
    let wanted = KINDS
        .iter()
        .filter(|(name, _)| asked.iter().any(|one| one == name));
    let flags: CloneFlags = wanted.map(|(_, flag)| *flag).collect();
    let say = |word: &[u8]| {
        let mut out = io::stdout();
        let said = out.write_all(word).and_then(|()| out.flush());
        said.map_err(|error| error.to_string())
    };
    let mut heard = [0];
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|errno| format!("a user namespace: {errno}"))?;
    say(b"u")?;
    let hear = io::stdin().read_exact(&mut heard);
    hear.map_err(|error| error.to_string())?;
    unshare(flags).map_err(|errno| format!("namespaces in a user namespace: {errno}"))?;
    say(b"n")?;
    // It ends with the daemon's end of the pipe, whatever happens to the daemon.
    let wait = io::stdin().read(&mut heard);
    wait.map(drop).map_err(|error| error.to_string())
}

/// A holder. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Holder {
    child: Child,
    input: Option<ChildStdin>,
    output: ChildStdout,
}

impl Holder {
    /// Makes a user namespace with these ids, and those of `kinds` in it.
    pub(super) fn start(ids: &IdMappings, kinds: &[&str]) -> Answer<Self> {
        let mut child = Command::new("/proc/self/exe")
            .arg0(NAME)
            .args(kinds)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|error| Failure::io("start a process for a user namespace", &error))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Failure::new(Class::Internal, "a process without its pipes"));
        };
        let mut holder = Self {
            child,
            input: Some(input),
            output,
        };
        holder.expect(b'u')?;
        holder.write_ids("uid_map", &ids.uids)?;
        holder.write_ids("gid_map", &ids.gids)?;
        if let Some(input) = &mut holder.input {
            let told = input.write_all(b"i").and_then(|()| input.flush());
            told.map_err(|error| Failure::io("speak to a process", &error))?;
        }
        holder.expect(b'n')?;
        Ok(holder)
    }

    /// One of its namespaces, by the name of its file in procfs.
    pub(super) fn namespace(&self, kind: &str) -> PathBuf {
        format!("/proc/{}/ns/{kind}", self.child.id()).into()
    }

    /// Its user namespace, open.
    pub(super) fn user_namespace(&self) -> Answer<OwnedFd> {
        let path = self.namespace("user");
        let opened = fs::File::open(&path);
        let failed = |error| Failure::io(format!("open {}", path.display()), &error);
        opened.map(OwnedFd::from).map_err(failed)
    }

    fn write_ids(&self, file: &str, runs: &[IdMapping]) -> Answer<()> {
        let mut text = String::new();
        for run in runs {
            text.push_str(&format!("{} {} {}\n", run.container, run.host, run.length));
        }
        // The kernel takes it in one piece only (user_namespaces(7)).
        let path = format!("/proc/{}/{file}", self.child.id());
        let write = || {
            fs::File::options()
                .write(true)
                .open(&path)?
                .write_all(text.as_bytes())
        };
        write().map_err(|error| {
            let text = text.trim_end();
            Failure::precondition(format!("write {text:?} to {path}: {error}"))
        })
    }

    fn expect(&mut self, word: u8) -> Answer<()> {
        let until = Instant::now() + PATIENCE;
        let mut heard = [0];
        let read = self.wait(until).and_then(|()| self.output.read(&mut heard));
        match read {
            Ok(1) if heard[0] == word => Ok(()),
            Ok(1) if heard[0] == b'!' => {
                let mut text = Vec::new();
                // Ignored: what was read of it is told.
                let _partial = (&mut self.output).take(MAX_TEXT).read_to_end(&mut text);
                let text = String::from_utf8_lossy(&text).into_owned();
                Err(Failure::precondition(format!("cannot make {text}")))
            }
            Ok(_) => {
                let message = "the process for a user namespace ended early";
                Err(Failure::new(Class::Internal, message))
            }
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(Failure::new(
                Class::DeadlineExceeded,
                format!("the process for a user namespace is silent for {PATIENCE:?}"),
            )),
            Err(error) => Err(Failure::io("hear from a process", &error)),
        }
    }

    fn wait(&self, until: Instant) -> io::Result<()> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
            let mut polled = [PollFd::new(&self.output, PollFlags::IN)];
            match poll(&mut polled, Some(&timeout)) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.input.take());
        // Ignored: it may have ended by itself. A killed process that makes no call that waits is gone at once.
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}
