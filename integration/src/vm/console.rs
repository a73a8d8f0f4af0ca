//! The guest's serial console: every line into a file with the time it came, and to whoever waits for one.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// What a guest may print before nothing more of it is kept.
const MOST_BYTES: u64 = 64 << 20;
/// What one line may hold; the rest goes to the next one.
const LONGEST_LINE: u64 = 16 << 10;
/// How many of the last lines a failure tells.
const LAST_LINES: usize = 15;

/// Lines with this beginning are from the lane's own programs in the guest.
pub const MARK: &str = "@lane ";

/// The receiving end. Ends when the machine does.
#[derive(Debug)]
pub struct Console {
    lines: Receiver<String>,
    log: PathBuf,
    last: Vec<String>,
}

impl Console {
    /// Reads `source` in a thread until it ends.
    ///
    /// # Errors
    /// When the log cannot be created.
    pub fn read(source: impl Read + Send + 'static, log: &Path) -> Result<Self> {
        let mut file = File::create(log).with_context(|| format!("create {}", log.display()))?;
        // Unbounded, but what is read has a bound: a guest must never wait for its console to be read.
        let (sender, lines) = mpsc::channel();
        let begun = Instant::now();
        thread::spawn(move || {
            let mut source = BufReader::new(source);
            let mut kept = 0;
            loop {
                let mut bytes = Vec::new();
                let mut limited = (&mut source).take(LONGEST_LINE);
                match limited.read_until(b'\n', &mut bytes) {
                    Ok(0) | Err(_) => return,
                    Ok(_) => {}
                }
                kept += bytes.len() as u64;
                if kept > MOST_BYTES {
                    continue;
                }
                let line = String::from_utf8_lossy(&bytes);
                let line = line.trim_end_matches(['\r', '\n']).to_owned();
                // Ignored: a full disk or a waiter that went away is no reason to stop the guest.
                let _ = writeln!(file, "{:9.3} {line}", begun.elapsed().as_secs_f64());
                let _ = sender.send(line);
            }
        });
        Ok(Self {
            lines,
            log: log.to_owned(),
            last: Vec::new(),
        })
    }

    /// The next line, or `None` at the end of the console.
    ///
    /// # Errors
    /// When `deadline` passes.
    pub fn next(&mut self, deadline: Instant) -> Result<Option<String>> {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.lines.recv_timeout(left) {
            Ok(line) => {
                if self.last.len() == LAST_LINES {
                    self.last.remove(0);
                }
                self.last.push(line.clone());
                Ok(Some(line))
            }
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => bail!("time is up; {}", self.tail()),
        }
    }

    /// Waits for a line that contains `text`.
    ///
    /// # Errors
    /// When `limit` passes or the machine ends before.
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> Result<String> {
        let deadline = Instant::now() + limit;
        loop {
            let line = self
                .next(deadline)
                .with_context(|| format!("the guest did not print {text:?} within {limit:?}"))?;
            match line {
                Some(line) if line.contains(text) => return Ok(line),
                Some(_) => {}
                None => bail!("the guest ended without printing {text:?}; {}", self.tail()),
            }
        }
    }

    /// The last lines seen and where the others are, for a message.
    #[must_use]
    pub fn tail(&self) -> String {
        format!(
            "the console, {}, ends with:\n{}",
            self.log.display(),
            self.last.join("\n")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console(bytes: &'static [u8], name: &str) -> (Console, PathBuf) {
        let log = std::env::temp_dir().join(format!("axil-console-{name}-{}", std::process::id()));
        (Console::read(bytes, &log).unwrap(), log)
    }

    const PATIENCE: Duration = Duration::from_secs(20);

    #[test]
    fn lines_come_without_their_ends_and_go_to_the_log() {
        let bytes = b"one\r\n@lane up\r\nlast, \xff not utf-8";
        let (mut console, log) = console(bytes, "lines");
        let line = console.wait_for("@lane", PATIENCE).unwrap();
        assert_eq!(line, "@lane up");
        let deadline = Instant::now() + PATIENCE;
        let line = console.next(deadline).unwrap().unwrap();
        assert_eq!(line, "last, \u{fffd} not utf-8");
        assert_eq!(console.next(deadline).unwrap(), None);
        let text = std::fs::read_to_string(&log).unwrap();
        std::fs::remove_file(&log).unwrap();
        assert_eq!(text.lines().count(), 3);
        assert!(text.contains(" @lane up\n"), "{text}");
    }

    #[test]
    fn a_machine_that_ends_is_told_with_its_last_words() {
        let (mut console, log) = console(b"Kernel panic\n", "panic");
        let error = console.wait_for("@lane up", PATIENCE).unwrap_err();
        std::fs::remove_file(&log).unwrap();
        let text = format!("{error:#}");
        assert!(text.contains("ended without printing"), "{text}");
        assert!(text.contains("Kernel panic"), "{text}");
    }

    #[test]
    fn a_line_that_never_ends_is_cut() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let log = std::env::temp_dir().join(format!("axil-console-long-{}", std::process::id()));
        let mut console = Console::read(reader, &log).unwrap();
        let length = usize::try_from(LONGEST_LINE).unwrap();
        writer.write_all(&vec![b'x'; length + 1]).unwrap();
        let line = console.next(Instant::now() + PATIENCE).unwrap().unwrap();
        std::fs::remove_file(&log).unwrap();
        assert_eq!(line.len(), length);
        let error = console.next(Instant::now()).unwrap_err();
        assert!(error.to_string().starts_with("time is up"), "{error}");
    }
}
