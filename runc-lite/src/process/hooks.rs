//! Hooks: programs that are given the container's state on standard input, in the order of the document.
//!
//! Each runs in a process group of its own, which is killed whole when its time is over. What a hook says is
//! read as it comes and kept up to a bound; a hook that leaves something running gives it an output of its own.

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitOptions, kill_process_group, setpgid, waitpid};

use super::wait::{KILL_PATIENCE, timespec, wait_for, wait_for_exit};
use crate::config::Hook;
use crate::sys::{
    Arguments, CloneFlags, Forked, clone3, close_range, exec, exit_now, restore_default_signals,
};

/// Bound of a hook that names none.
const DEFAULT_PATIENCE: Duration = Duration::from_secs(120);
/// How much of what a hook says is told.
const MAX_WORDS: usize = 1024;

/// What the hooks of one kind are run with.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// The container's state document.
    pub state: &'a str,
    /// Working directory; `None`: the caller's.
    pub directory: Option<&'a Path>,
    /// Environment of a hook that names none.
    pub environment: &'a [CString],
}

impl<'a> Surroundings<'a> {
    /// Those of the hooks of the runtime namespace: they run in the bundle, without an environment.
    #[must_use]
    pub fn of_runtime(state: &'a str, bundle: &'a Path) -> Surroundings<'a> {
        Surroundings {
            state,
            directory: Some(bundle),
            environment: &[],
        }
    }
}

/// Runs the hooks of one kind in order, stopping at the first that fails.
///
/// # Errors
/// A text that names kind, index and program.
pub fn run(kind: &str, hooks: &[Hook], surroundings: Surroundings<'_>) -> Result<(), String> {
    for (index, hook) in hooks.iter().enumerate() {
        run_one(hook, surroundings).map_err(|reason| {
            format!(
                "error running {kind} hook #{index}: {}: {reason}",
                hook.path
            )
        })?;
    }
    Ok(())
}

/// Runs the hooks of one kind in order, past failures; gives a text for each that failed.
#[must_use]
pub fn run_all(kind: &str, hooks: &[Hook], surroundings: Surroundings<'_>) -> Vec<String> {
    let outcomes = hooks.iter().enumerate().map(|(index, hook)| {
        run_one(hook, surroundings).map_err(|reason| {
            format!(
                "error running {kind} hook #{index}: {}: {reason}",
                hook.path
            )
        })
    });
    outcomes.filter_map(Result::err).collect()
}

/// How long these hooks may take together.
#[must_use]
pub fn patience(hooks: &[Hook]) -> Duration {
    hooks
        .iter()
        .map(|hook| patience_of(hook) + KILL_PATIENCE)
        .fold(Duration::ZERO, Duration::saturating_add)
}

fn patience_of(hook: &Hook) -> Duration {
    // A year stands for whatever is longer, so that sums and deadlines stay in range.
    const YEAR: u64 = 365 * 86_400;
    hook.timeout
        .and_then(|seconds| u64::try_from(seconds).ok())
        .map_or(DEFAULT_PATIENCE, |seconds| {
            Duration::from_secs(seconds.min(YEAR))
        })
}

/// A hook that runs, in a process group of its own.
struct Running {
    pid: Pid,
    pidfd: OwnedFd,
}

fn run_one(hook: &Hook, surroundings: Surroundings<'_>) -> Result<(), String> {
    let text = |e: rustix::io::Errno| e.to_string();
    let program = Program::of(hook, surroundings)?;
    // A file in memory instead of a pipe: a hook that does not read cannot make the runtime wait.
    let mut input = memfd_create("hook input", MemfdFlags::CLOEXEC)
        .map(File::from)
        .map_err(text)?;
    input
        .write_all(surroundings.state.as_bytes())
        .and_then(|()| input.rewind())
        .map_err(|e| e.to_string())?;
    let (output, said) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(text)?;
    // The hook's own end blocks, as programs expect it.
    rustix::fs::fcntl_setfl(&said, rustix::fs::OFlags::empty()).map_err(text)?;
    let deadline = Instant::now() + patience_of(hook);
    let late = |running: Running, words: &[u8]| {
        running.kill();
        let seconds = patience_of(hook).as_secs();
        format!("not done after {seconds} s{}", told(words))
    };
    let (running, failure) = program.start(&input, said, surroundings.directory)?;
    // The pipe closes by itself on execve; a file system that hangs may keep it from that.
    if !wait_for(failure.as_fd(), PollFlags::IN, patience_of(hook)) {
        return Err(late(running, &[]));
    }
    let mut code = [0; 4];
    if File::from(failure).read_exact(&mut code).is_ok() {
        let _ = running.reap();
        let errno = std::io::Error::from_raw_os_error(i32::from_ne_bytes(code));
        return Err(crate::errno_text(&errno));
    }
    let mut words = Vec::new();
    if !watch(&running, File::from(output), &mut words, deadline) {
        return Err(late(running, &words));
    }
    match running.reap() {
        Some(0) => Ok(()),
        Some(code) if code > 0 => Err(format!("exit status {code}{}", told(&words))),
        Some(code) => Err(format!(
            "killed by signal {}{}{}",
            -code,
            signal_text(-code),
            told(&words)
        )),
        None => Err("it was waited for by somebody else".to_owned()),
    }
}

/// A hook in the form execve wants.
struct Program {
    path: CString,
    arguments: Arguments,
}

impl Program {
    fn of(hook: &Hook, surroundings: Surroundings<'_>) -> Result<Program, String> {
        let c = |text: &String| CString::new(text.as_str()).map_err(|e| e.to_string());
        let path = c(&hook.path)?;
        let mut argv = hook.args.iter().map(c).collect::<Result<Vec<_>, _>>()?;
        if argv.is_empty() {
            argv.push(path.clone());
        }
        let mut env = hook.env.iter().map(c).collect::<Result<Vec<_>, _>>()?;
        if env.is_empty() {
            env = surroundings.environment.to_vec();
        }
        Ok(Program {
            path,
            arguments: Arguments::new(argv, env),
        })
    }

    /// The process that becomes the hook, and the pipe over which it tells the errno when it cannot.
    fn start(
        self,
        input: &File,
        said: OwnedFd,
        directory: Option<&Path>,
    ) -> Result<(Running, OwnedFd), String> {
        let (failure, report) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| e.to_string())?;
        match clone3(CloneFlags::NONE, None).map_err(|e| e.to_string())? {
            Forked::Child => {
                let error = self.become_hook(input, &said, directory);
                let code = error.raw_os_error().unwrap_or(libc::EIO);
                // Ignored: the exit code alone then tells that it failed.
                let _ = rustix::io::write(&report, &code.to_ne_bytes());
                exit_now(127)
            }
            Forked::Parent { pid, pidfd } => {
                let pid = Pid::from_raw(pid).ok_or("the hook has no pid")?;
                drop(report);
                let running = Running { pid, pidfd };
                // On both sides, whichever comes first. Ignored: it may have executed its program by now.
                let _ = setpgid(Some(pid), Some(pid));
                Ok((running, failure))
            }
        }
    }

    /// In the new process, a copy of this one: becomes the hook, or gives the reason why not.
    fn become_hook(
        &self,
        input: &File,
        said: &OwnedFd,
        directory: Option<&Path>,
    ) -> std::io::Error {
        let ready = || -> std::io::Result<()> {
            setpgid(None, None)?;
            rustix::stdio::dup2_stdin(input)?;
            rustix::stdio::dup2_stdout(said)?;
            rustix::stdio::dup2_stderr(said)?;
            // What --preserve-fds keeps is for the container's program.
            close_range(3, u32::MAX, true)?;
            if let Some(directory) = directory
                && rustix::process::chdir(directory).is_err()
            {
                // A bundle may be gone by the time of the poststop hooks.
                rustix::process::chdir("/")?;
            }
            restore_default_signals()
        };
        match ready() {
            Ok(()) => exec(&self.path, &self.arguments),
            Err(error) => error,
        }
    }
}

/// Reads what the hook says until it exits; false when the time is over.
fn watch(running: &Running, mut output: File, words: &mut Vec<u8>, deadline: Instant) -> bool {
    let mut buffer = [0; 4096];
    let mut open = true;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        let limit = timespec(left);
        let mut polled = [
            PollFd::new(&running.pidfd, PollFlags::IN),
            PollFd::new(&output, PollFlags::IN),
        ];
        let watched = if open {
            &mut polled[..]
        } else {
            &mut polled[..1]
        };
        if !matches!(poll(watched, Some(&limit)), Ok(count) if count > 0) {
            // Interrupted, or the time is over: the next round tells which.
            continue;
        }
        let exited = !polled[0].revents().is_empty();
        // What it said before it went is read, what its children may say later is not waited for.
        while open {
            match output.read(&mut buffer) {
                Ok(0) => open = false,
                Ok(length) => {
                    let room = MAX_WORDS.saturating_sub(words.len());
                    words.extend_from_slice(&buffer[..length.min(room)]);
                    if !exited || words.len() == MAX_WORDS {
                        break;
                    }
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        if exited {
            return true;
        }
    }
}

impl Running {
    /// Ends the whole process group. It is not reaped before, so the group's number is still its own.
    fn kill(self) {
        // Ignored: there may be nobody left to kill.
        let _ = kill_process_group(self.pid, Signal::KILL);
        if wait_for_exit(self.pidfd.as_fd(), KILL_PATIENCE) {
            let _ = self.reap();
        }
    }

    /// The exit code, or a signal's number negated.
    fn reap(&self) -> Option<i32> {
        let waited = rustix::io::retry_on_intr(|| waitpid(Some(self.pid), WaitOptions::empty()));
        let (_, status) = waited.ok()??;
        status
            .exit_status()
            .or_else(|| status.terminating_signal().map(|signal| -signal))
    }
}

/// What the hook said, in one line of a message.
fn told(words: &[u8]) -> String {
    let text = String::from_utf8_lossy(words);
    let text = text.trim();
    if text.is_empty() {
        String::new()
    } else {
        format!(": {text}")
    }
}

/// What a signal means that says why a hook was ended.
fn signal_text(signal: i32) -> &'static str {
    match signal {
        libc::SIGSYS => " (bad system call)",
        libc::SIGKILL => " (killed)",
        libc::SIGSEGV => " (segmentation fault)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(script: &str) -> Hook {
        Hook {
            path: "/bin/sh".to_owned(),
            args: vec!["sh".to_owned(), "-c".to_owned(), script.to_owned()],
            env: vec!["ANSWER=42".to_owned()],
            timeout: Some(20),
        }
    }

    fn plain(state: &str) -> Surroundings<'_> {
        Surroundings {
            state,
            directory: None,
            environment: &[],
        }
    }

    #[test]
    fn hooks_get_state_arguments_environment_and_directory() {
        assert_eq!(
            run(
                "prestart",
                &[hook("test \"$(cat)\" = state")],
                plain("state")
            ),
            Ok(())
        );
        let check = "test $ANSWER = 42 && test -z \"$HOME\" && test $0 = sh";
        assert_eq!(run("prestart", &[hook(check)], plain("")), Ok(()));
        let dir = tempfile::tempdir().unwrap();
        let own = [CString::new("OWN=1").unwrap()];
        let surroundings = Surroundings {
            state: "",
            directory: Some(dir.path()),
            environment: &own,
        };
        let bare = Hook {
            env: Vec::new(),
            ..hook("echo $OWN > here")
        };
        assert_eq!(run("startContainer", &[bare], surroundings), Ok(()));
        assert_eq!(
            std::fs::read_to_string(dir.path().join("here")).unwrap(),
            "1\n"
        );
    }

    #[test]
    fn a_failure_names_kind_index_program_and_words() {
        let hooks = [hook("exit 0"), hook("echo out; echo no luck >&2; exit 3")];
        let text = run("poststop", &hooks, plain("")).unwrap_err();
        assert_eq!(
            text,
            "error running poststop hook #1: /bin/sh: exit status 3: out\nno luck"
        );
        let text = run("poststop", &[hook("kill -9 $$")], plain("")).unwrap_err();
        assert!(text.contains("signal 9"), "{text}");
        let missing = Hook {
            path: "/no/such/hook".to_owned(),
            ..Hook::default()
        };
        let text = run("prestart", &[missing], plain("")).unwrap_err();
        assert!(text.contains("#0: /no/such/hook: no such file"), "{text}");
    }

    #[test]
    fn one_failure_does_not_keep_the_others_from_running_where_it_is_only_told() {
        let dir = tempfile::tempdir().unwrap();
        let surroundings = Surroundings::of_runtime("", dir.path());
        let told = run_all(
            "poststop",
            &[hook("exit 1"), hook("touch ran"), hook("exit 2")],
            surroundings,
        );
        assert_eq!(told.len(), 2);
        assert!(told[1].contains("#2"));
        assert!(dir.path().join("ran").exists());
    }

    #[test]
    fn a_hook_that_hangs_is_killed_with_its_whole_group() {
        let dir = tempfile::tempdir().unwrap();
        let slow = Hook {
            timeout: Some(1),
            ..hook("sleep 1000 & echo $! > child; echo waiting; wait")
        };
        let started = Instant::now();
        let text = run(
            "prestart",
            &[slow],
            Surroundings::of_runtime("", dir.path()),
        )
        .unwrap_err();
        assert!(text.contains("not done after 1 s: waiting"), "{text}");
        assert!(started.elapsed() < Duration::from_secs(15));
        let child = std::fs::read_to_string(dir.path().join("child")).unwrap();
        let stat = Path::new("/proc").join(child.trim()).join("stat");
        let gone = || !std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z "));
        let deadline = Instant::now() + Duration::from_secs(10);
        while !gone() {
            assert!(Instant::now() < deadline, "the hook's child lives on");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn a_hook_may_talk_without_end_or_leave_its_output_open() {
        let loud = hook("head -c 1000000 /dev/zero | tr '\\0' x; exit 1");
        let text = run("prestart", &[loud], plain("")).unwrap_err();
        assert!(text.len() < 2 * MAX_WORDS, "{}", text.len());
        let started = Instant::now();
        assert_eq!(
            run("prestart", &[hook("sleep 3 & exit 0")], plain("")),
            Ok(())
        );
        assert!(started.elapsed() < Duration::from_secs(3));
    }

    #[test]
    fn hooks_are_waited_for_as_long_as_they_say() {
        assert_eq!(patience(&[]), Duration::ZERO);
        let forever = Hook {
            timeout: Some(i64::MAX),
            ..Hook::default()
        };
        assert!(patience(&[forever.clone(), forever]) > Duration::from_secs(86_400));
        assert_eq!(
            patience(&[Hook::default()]),
            DEFAULT_PATIENCE + KILL_PATIENCE
        );
    }
}
