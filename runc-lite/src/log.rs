//! The log of `--log`, or of standard error without it: one line per event, runc's two formats.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

/// How a line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `time="…" level=… msg="…"`.
    Text,
    /// One JSON object with `level`, `msg` and `time`.
    Json,
}

/// The severity of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Something asked for did not happen.
    Error,
    /// Something was tolerated or left out.
    Warning,
    /// Written with `--debug` only.
    Debug,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Level::Error => "error",
            Level::Warning => "warning",
            Level::Debug => "debug",
        }
    }
}

#[derive(Serialize)]
struct Line<'a> {
    level: &'a str,
    msg: &'a str,
    time: &'a str,
}

/// Where lines go: a file, standard error, or nowhere.
#[derive(Debug)]
pub struct Log {
    file: Option<File>,
    stderr: bool,
    format: Format,
    debug: bool,
}

impl Log {
    /// A log that keeps nothing.
    #[must_use]
    pub fn none() -> Log {
        Log {
            file: None,
            stderr: false,
            format: Format::Text,
            debug: false,
        }
    }

    /// A log on standard error. Without `--debug` it has errors only: on success nothing is said there.
    #[must_use]
    pub fn stderr(format: Format, debug: bool) -> Log {
        Log {
            file: None,
            stderr: true,
            format,
            debug,
        }
    }

    /// Whether lines go to standard error.
    #[must_use]
    pub fn is_stderr(&self) -> bool {
        self.stderr
    }

    /// Opens `path` for appending.
    ///
    /// # Errors
    /// What open(2) says.
    pub fn open(path: &Path, format: Format, debug: bool) -> std::io::Result<Log> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o644)
            .custom_flags(libc::O_CLOEXEC | libc::O_NOCTTY)
            .open(path)?;
        Ok(Log {
            file: Some(file),
            stderr: false,
            format,
            debug,
        })
    }

    /// Writes one line. A log that cannot be written never stops the work.
    pub fn write(&self, level: Level, message: &str) {
        let wanted = match level {
            Level::Error => true,
            Level::Warning => self.debug || !self.stderr,
            Level::Debug => self.debug,
        };
        if !wanted || self.file.is_none() && !self.stderr {
            return;
        }
        let time = rfc3339(SystemTime::now());
        let line = match self.format {
            Format::Json => {
                let line = Line {
                    level: level.name(),
                    msg: message,
                    time: &time,
                };
                serde_json::to_string(&line).unwrap_or_default()
            }
            Format::Text => format!("time={time:?} level={} msg={message:?}", level.name()),
        };
        let line = format!("{line}\n");
        // One write per line: several runtimes may append to one file.
        let _ = match &self.file {
            Some(file) => (&mut &*file).write_all(line.as_bytes()),
            None => std::io::stderr().write_all(line.as_bytes()),
        };
    }

    /// Writes a decision, with `--debug` only.
    pub fn debug(&self, message: impl FnOnce() -> String) {
        if self.debug {
            self.write(Level::Debug, &message());
        }
    }

    /// Writes a warning.
    pub fn warn(&self, message: &str) {
        self.write(Level::Warning, message);
    }
}

/// `time` in UTC with seconds, as `2026-01-31T23:59:59Z`.
#[must_use]
pub fn rfc3339(time: SystemTime) -> String {
    let seconds = time
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Civil date from a day count: eras of 400 years that begin on the first of March.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        rest / 3_600,
        rest % 3_600 / 60,
        rest % 60
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let check = |seconds, expect| {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), expect);
        };
        check(0, "1970-01-01T00:00:00Z");
        check(951_782_399, "2000-02-28T23:59:59Z");
        check(951_782_400, "2000-02-29T00:00:00Z");
        check(1_798_761_599, "2026-12-31T23:59:59Z");
    }

    #[test]
    fn json_lines_have_the_three_fields() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.json");
        let log = Log::open(&path, Format::Json, false).unwrap();
        log.write(Level::Error, "a \"quoted\" word");
        log.write(Level::Debug, "unseen");
        let text = std::fs::read_to_string(path).unwrap();
        let value: serde_json::Value = serde_json::from_str(text.trim()).unwrap();
        assert_eq!(value["level"], "error");
        assert_eq!(value["msg"], "a \"quoted\" word");
        assert!(value["time"].as_str().unwrap().ends_with('Z'));
    }
}
