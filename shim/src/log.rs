//! The shim's own log: one line per event on stderr, which `bootstrap` points at a file or a FIFO.
//!
//! A line that cannot be written is dropped: the log must never hold up a container.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use rustix::fs::OFlags;

static DEBUG: AtomicBool = AtomicBool::new(false);

/// Sets whether [`debug`] writes.
pub fn set_debug(on: bool) {
    DEBUG.store(on, Ordering::Relaxed);
}

/// Something asked for did not happen, or something may be lost.
pub fn error(message: fmt::Arguments<'_>) {
    line("error", message);
}

/// Abnormal, but handled.
pub fn warn(message: fmt::Arguments<'_>) {
    line("warn", message);
}

/// A decision, for who asked to see them.
pub fn debug(message: fmt::Arguments<'_>) {
    if DEBUG.load(Ordering::Relaxed) {
        line("debug", message);
    }
}

fn line(level: &str, message: fmt::Arguments<'_>) {
    let time = crate::clock::rfc3339_string(SystemTime::now());
    let text = format!(
        "time={time:?} level={level} msg={:?}\n",
        message.to_string()
    );
    // One write, so that lines of several processes do not mix; a full FIFO drops the line.
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Opens the log of a server: the daemon's FIFO `log` in the bundle if there is one, else `shim.log`.
///
/// # Errors
/// Neither can be opened.
pub fn open(bundle: &Path) -> io::Result<File> {
    let fifo = bundle.join("log");
    // Read and write: a FIFO without a reader neither blocks the open nor breaks a write.
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags(OFlags::NONBLOCK | OFlags::NOFOLLOW))
        .open(&fifo);
    if let Ok(file) = opened
        && file.metadata().is_ok_and(|m| m.file_type().is_fifo())
    {
        return Ok(file);
    }
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(flags(OFlags::NONBLOCK | OFlags::NOFOLLOW))
        .open(bundle.join("shim.log"))
}

/// Open flags in the type `OpenOptions` takes.
#[must_use]
pub(crate) fn flags(flags: OFlags) -> i32 {
    flags.bits().cast_signed()
}
