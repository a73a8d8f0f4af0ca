//! Hooks: programs of the host that are given the container's state on standard input.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::wait::wait_for_exit;
use crate::config::Hook;

/// Bound of a hook that names none.
const DEFAULT_PATIENCE: Duration = Duration::from_secs(120);

/// Runs the hooks of one kind in order, stopping at the first that fails.
///
/// # Errors
/// A text that names kind, index and program.
pub fn run(kind: &str, hooks: &[Hook], state: &str) -> Result<(), String> {
    for (index, hook) in hooks.iter().enumerate() {
        run_one(hook, state).map_err(|reason| {
            format!(
                "error running {kind} hook #{index} {:?}: {reason}",
                hook.path
            )
        })?;
    }
    Ok(())
}

fn run_one(hook: &Hook, state: &str) -> Result<(), String> {
    let mut command = Command::new(&hook.path);
    if let Some(name) = hook.args.first() {
        command.arg0(name).args(&hook.args[1..]);
    }
    command.env_clear();
    for variable in &hook.env {
        if let Some((name, value)) = variable.split_once('=') {
            command.env(name, value);
        }
    }
    // Files in memory instead of pipes: neither a hook that does not read nor one that talks a lot can
    // make the runtime wait.
    let mut input = memory_file("hook input")?;
    input
        .write_all(state.as_bytes())
        .and_then(|()| input.rewind())
        .map_err(|e| e.to_string())?;
    let mut said = memory_file("hook output")?;
    let stderr = said.try_clone().map_err(|e| e.to_string())?;
    command.stdin(input).stdout(Stdio::null()).stderr(stderr);
    let mut child = command.spawn().map_err(|e| e.to_string())?;
    let patience = hook
        .timeout
        .and_then(|seconds| u64::try_from(seconds).ok())
        .map_or(DEFAULT_PATIENCE, Duration::from_secs);
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pidfd = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    let in_time = pidfd.is_none_or(|pidfd| {
        use std::os::fd::AsFd;
        wait_for_exit(pidfd.as_fd(), patience)
    });
    if !in_time {
        let _ = child.kill();
        let _ = child.wait();
        return Err(format!("not done after {} s", patience.as_secs()));
    }
    let status = child.wait().map_err(|e| e.to_string())?;
    if status.success() {
        return Ok(());
    }
    Err(format!("{status}{}", first_words(&mut said)))
}

fn memory_file(name: &str) -> Result<File, String> {
    memfd_create(name, MemfdFlags::CLOEXEC)
        .map(File::from)
        .map_err(|e| e.to_string())
}

/// What the hook said, cut to a line's worth.
fn first_words(said: &mut File) -> String {
    let mut text = Vec::new();
    let _ = said
        .rewind()
        .and_then(|()| said.take(1024).read_to_end(&mut text));
    let text = String::from_utf8_lossy(&text);
    let text = text.trim();
    if text.is_empty() {
        String::new()
    } else {
        format!(": {text}")
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
            timeout: Some(5),
        }
    }

    #[test]
    fn hooks_get_state_and_environment() {
        assert_eq!(
            run("prestart", &[hook("test \"$(cat)\" = state")], "state"),
            Ok(())
        );
        assert_eq!(
            run(
                "prestart",
                &[hook("test $ANSWER = 42 && test -z \"$HOME\"")],
                ""
            ),
            Ok(())
        );
    }

    #[test]
    fn a_failure_names_kind_index_program_and_words() {
        let hooks = [hook("exit 0"), hook("echo no luck >&2; exit 3")];
        let text = run("poststop", &hooks, "").unwrap_err();
        for part in ["poststop hook #1", "/bin/sh", "3", "no luck"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn a_hook_that_hangs_is_killed_after_its_timeout() {
        let slow = Hook {
            timeout: Some(1),
            ..hook("exec sleep 60")
        };
        assert!(
            run("prestart", &[slow], "")
                .unwrap_err()
                .contains("not done after 1 s")
        );
    }
}
