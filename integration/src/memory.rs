//! The most memory a daemon and the processes it starts ever had.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How often it is looked: what a process had before it ended is known up to then.
const LOOK: Duration = Duration::from_millis(5);

/// Watches the children of a process from its start until it is asked.
#[derive(Debug)]
pub struct Watch {
    pid: i32,
    name: &'static str,
    most: Arc<AtomicU64>,
    is_done: Arc<AtomicBool>,
    looking: Option<JoinHandle<()>>,
}

/// Peaks of resident memory, in KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peaks {
    /// Of the process itself, since it was started.
    pub own: u64,
    /// Of the child that had most, while it was watched.
    pub child: u64,
}

impl Watch {
    /// Watches the children of `pid` that were started by this name.
    #[must_use]
    pub fn start(pid: i32, name: &'static str) -> Self {
        let most = Arc::new(AtomicU64::new(0));
        let is_done = Arc::new(AtomicBool::new(false));
        let (seen, done) = (Arc::clone(&most), Arc::clone(&is_done));
        let looking = thread::spawn(move || {
            while !done.load(Ordering::Relaxed) {
                for child in children_of(pid).filter(|child| is_named(*child, name)) {
                    seen.fetch_max(kib(child, "VmHWM:"), Ordering::Relaxed);
                }
                thread::sleep(LOOK);
            }
        });
        Self {
            pid,
            name,
            most,
            is_done,
            looking: Some(looking),
        }
    }

    /// Stops watching and answers what was seen.
    ///
    /// # Panics
    /// When no child of that name was seen: a peak of nothing proves nothing.
    #[must_use]
    pub fn end(mut self) -> Peaks {
        self.stop();
        let child = self.most.load(Ordering::Relaxed);
        assert!(child > 0, "no {} was seen", self.name);
        Peaks {
            own: kib(self.pid, "VmHWM:"),
            child,
        }
    }

    fn stop(&mut self) {
        self.is_done.store(true, Ordering::Relaxed);
        if let Some(looking) = self.looking.take() {
            // Ignored: it has nothing to panic about.
            let _ = looking.join();
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The children of all threads of a process.
pub fn children_of(pid: i32) -> impl Iterator<Item = i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    tasks.into_iter().flatten().flatten().flat_map(|task| {
        let list = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        let pids: Vec<i32> = list
            .split_whitespace()
            .filter_map(|pid| pid.parse().ok())
            .collect();
        pids
    })
}

fn is_named(pid: i32, name: &str) -> bool {
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    command.split(|&b| b == 0).next() == Some(name.as_bytes())
}

/// A line of `/proc/<pid>/status`, in KiB; 0 when the process is gone.
#[must_use]
pub fn kib(pid: i32, line: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let value = status.lines().find_map(|text| text.strip_prefix(line));
    value
        .and_then(|value| value.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}
