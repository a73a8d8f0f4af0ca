//! CVE-2016-9962 and CVE-2024-21626 from inside: stops whoever enters the container as soon as it is born,
//! looks through its descriptors, root and environment, and traces it from system call to system call.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::time::Instant;

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::sys;

/// What the caller has in its environment and no container may see.
const SECRET: &[u8] = b"AXIL_HOST_SECRET";
/// Targets of descriptors that a process on its way into a container may hold: streams, the channel to its
/// parent, the console socket, its own sealed executable.
const HARMLESS: [&str; 8] = [
    "pipe:",
    "socket:",
    "anon_inode:",
    "/dev/null",
    "/dev/pts/",
    "/memfd:runc-lite",
    "/proc/",
    "/allowed",
];
/// System calls watched of one victim: more than the runtime makes before execve.
const MAX_STEPS: usize = 600;

#[derive(Default)]
struct Tally {
    victims: usize,
    looks: usize,
    opened: usize,
    attached: usize,
    steps: usize,
}

/// Attacks every newcomer until `end`.
pub(crate) fn run(end: Instant) {
    let own = fs::metadata("/").map(|m| (m.dev(), m.ino())).ok();
    let me = i32::try_from(std::process::id()).unwrap_or_default();
    let mut tally = Tally::default();
    // Rounds spent on a process; a program of the container that stays is left alone after some.
    let mut known: BTreeMap<i32, usize> = BTreeMap::new();
    let mut traced = BTreeSet::new();
    println!("READY");
    while Instant::now() < end {
        // Everybody but this process and init stands still, wherever it was. As long as there is nobody the
        // call fails, and the one that does not meets its victim at birth.
        if sys::kill(-1, libc::SIGSTOP).is_err() {
            known.clear();
            continue;
        }
        let present = processes();
        known.retain(|pid, _| present.contains(pid));
        let mut news = false;
        for pid in present.into_iter().filter(|pid| *pid != me && *pid != 1) {
            let rounds = known.entry(pid).or_default();
            *rounds += 1;
            if *rounds == 1 {
                tally.victims += 1;
                news = true;
            }
            if *rounds <= 40 {
                look(pid, own, &mut tally);
            }
            // Half of the victims are traced, as soon as they can be; the others are only looked at.
            if pid % 2 == 0 && !traced.contains(&pid) && trace(pid, own, &mut tally) {
                traced.insert(pid);
            }
        }
        let _ = sys::kill(-1, libc::SIGCONT);
        sys::reap();
        if news {
            tell(&tally);
        }
    }
    tell(&tally);
}

fn tell(tally: &Tally) {
    println!(
        "TRIED victims={} looks={} opened={} attached={} steps={}",
        tally.victims, tally.looks, tally.opened, tally.attached, tally.steps
    );
}

fn processes() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// Looks at everything procfs shows of `pid`.
fn look(pid: i32, own: Option<(u64, u64)>, tally: &mut Tally) {
    tally.looks += 1;
    for name in ["root", "cwd"] {
        let opened = fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
            .open(format!("/proc/{pid}/{name}"));
        let Ok(meta) = opened.and_then(|file| file.metadata()) else {
            continue;
        };
        if name == "root" && own.is_some_and(|own| own != (meta.dev(), meta.ino())) {
            println!("GOT another root directory of {pid}");
        }
    }
    let mut environment = Vec::new();
    let read = fs::File::open(format!("/proc/{pid}/environ"));
    if read
        .and_then(|mut f| f.read_to_end(&mut environment))
        .is_ok()
        && environment.windows(SECRET.len()).any(|w| w == SECRET)
    {
        println!("GOT the environment of the runtime from {pid}");
    }
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return;
    };
    for entry in entries.flatten() {
        let Ok(target) = fs::read_link(entry.path()) else {
            continue;
        };
        let opened = fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH)
            .open(entry.path());
        tally.opened += usize::from(opened.is_ok());
        let target = target.to_string_lossy();
        // A file of the container's own, by the name it has here.
        let id = |meta: fs::Metadata| (meta.dev(), meta.ino());
        let here = fs::metadata(&*target).map(id).ok();
        let theirs = opened.and_then(|file| file.metadata()).map(id).ok();
        if here.is_none() || theirs != here {
            judge(pid, &target, theirs, "opened");
        }
    }
}

fn judge(pid: i32, target: &str, id: Option<(u64, u64)>, how: &str) {
    if !HARMLESS.iter().any(|harmless| target.starts_with(harmless)) {
        let (device, inode) = id.unwrap_or_default();
        println!("GOT descriptor {target} ({device}:{inode}) of {pid}, {how}");
    }
}

/// Takes copies of the descriptors of a traced `pid`.
fn steal(pid: i32) {
    let Some(handle) = Pid::from_raw(pid) else {
        return;
    };
    let Ok(pidfd) = pidfd_open(handle, PidfdFlags::empty()) else {
        return;
    };
    for number in 3..16 {
        let stolen: Result<OwnedFd, _> = pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty());
        let Ok(stolen) = stolen else { continue };
        let Ok(target) = fs::read_link(format!("/proc/self/fd/{}", stolen.as_raw_fd())) else {
            continue;
        };
        let id = |meta: fs::Metadata| (meta.dev(), meta.ino());
        let theirs = fs::File::from(stolen).metadata().map(id).ok();
        if theirs.is_none() || fs::metadata(&target).map(id).ok() != theirs {
            judge(pid, &target.to_string_lossy(), theirs, "stolen");
        }
    }
}

/// Traces `pid` to its execve or end, looking at every system call; false when it may not.
fn trace(pid: i32, own: Option<(u64, u64)>, tally: &mut Tally) -> bool {
    if sys::seize(pid).is_err() {
        return false;
    }
    tally.attached += 1;
    if fs::read_link(format!("/proc/{pid}/exe"))
        .is_ok_and(|exe| exe.to_string_lossy().contains("runc-lite"))
    {
        // Without the power to trace this is a way round the filter that is not loaded yet.
        println!("TRACED the runtime in {pid}");
    }
    let _ = sys::kill(pid, libc::SIGCONT);
    for step in 0..MAX_STEPS {
        match sys::wait_for_stop(pid) {
            Ok(true) => {}
            // It has ended.
            _ => return true,
        }
        tally.steps += 1;
        if step < 8 || step % 8 == 0 {
            look(pid, own, tally);
            steal(pid);
        }
        if sys::step(pid).is_err() {
            return true;
        }
    }
    let _ = sys::wait_for_stop(pid);
    let _ = sys::release(pid);
    true
}
