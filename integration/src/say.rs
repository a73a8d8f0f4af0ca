//! Plain lines for people, on standard output and standard error.

use std::io::{self, Write as _};
use std::time::Duration;

/// Writes one line to standard output; a closed output is no reason to fail.
pub fn out(line: impl AsRef<str>) {
    let mut stdout = io::stdout().lock();
    let _ = writeln!(stdout, "{}", line.as_ref());
    let _ = stdout.flush();
}

/// Writes one line to standard error.
pub fn err(line: impl AsRef<str>) {
    let _ = writeln!(io::stderr().lock(), "{}", line.as_ref());
}

/// `1.2 s`, `340 ms`: a duration as people read it.
#[must_use]
pub fn elapsed(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        format!("{} ms", time.as_millis())
    } else {
        format!("{:.1} s", time.as_secs_f64())
    }
}

/// `12.3 MiB`: a size as people read it.
#[must_use]
pub fn bytes(count: u64) -> String {
    let kib = count / 1024;
    if count < 10 * 1024 {
        format!("{count} B")
    } else if kib < 10 * 1024 {
        format!("{kib} KiB")
    } else {
        format!("{}.{} MiB", kib / 1024, kib % 1024 * 10 / 1024)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_as_people_read() {
        assert_eq!(elapsed(Duration::from_millis(340)), "340 ms");
        assert_eq!(elapsed(Duration::from_millis(1250)), "1.2 s");
        assert_eq!(bytes(500), "500 B");
        assert_eq!(bytes(20 * 1024), "20 KiB");
        assert_eq!(bytes(12 * 1024 * 1024 + 512 * 1024), "12.5 MiB");
    }
}
