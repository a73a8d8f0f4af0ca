//! Calls into the kernel by one `run`, counted by strace in a run of its own that is not timed.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::bundle::Bundle;
use super::contestant::Contestant;
use crate::children;
use crate::guard::find_program;

/// The counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// System calls of all processes.
    pub all: usize,
    /// Programs executed, the container's own and the runtime's start included.
    pub execs: usize,
    /// Processes and threads made.
    pub clones: usize,
}

/// Counts one `run` of `bundle`; `None` where strace is not installed.
///
/// # Errors
/// When the runtime fails under strace.
pub fn of_run(contestant: &Contestant, bundle: &Bundle, file: &Path) -> Result<Option<Counts>> {
    let Some(strace) = find_program("strace") else {
        return Ok(None);
    };
    let id = format!("{}-{}-trace", contestant.name(), std::process::id());
    let mut command = Command::new(strace);
    command
        .args(["--follow-forks", "--quiet=all", "--signal=none", "--output"])
        .arg(file)
        .arg(contestant.program())
        .args(contestant.arguments(&["run", "--bundle", bundle.path(), &id]));
    let done = children::output(&mut command, &[])?;
    ensure!(done.status.success(), "{command:?}: {}", done.text());
    let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    Ok(Some(count(&text)))
}

fn count(trace: &str) -> Counts {
    let mut counts = Counts::default();
    for line in trace.lines() {
        // "PID name(arguments…"; a call that was interrupted is told again as "<... name resumed>".
        let Some((_, call)) = line.trim_start().split_once(' ') else {
            continue;
        };
        let call = call.trim_start();
        let Some((name, _)) = call.split_once('(') else {
            continue;
        };
        if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            continue;
        }
        counts.all += 1;
        match name {
            "execve" | "execveat" => counts.execs += 1,
            "clone" | "clone3" | "fork" | "vfork" => counts.clones += 1,
            _ => {}
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_once() {
        let trace = "\
11 execve(\"/bin/x\", [\"x\"], 0x7ff /* 3 vars */) = 0
11 clone3({flags=CLONE_NEWNS}, 88 <unfinished ...>
12 read(3,  <unfinished ...>
11 <... clone3 resumed>)             = 12
12 <... read resumed>\"(\", 1)       = 1
12 execveat(3, \"\", [\"y\"], 0x7ff, AT_EMPTY_PATH) = 0
12 +++ exited with 0 +++
";
        let expected = Counts {
            all: 4,
            execs: 2,
            clones: 1,
        };
        assert_eq!(count(trace), expected);
    }
}
