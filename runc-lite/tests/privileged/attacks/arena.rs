//! The ground the attacks are made on: what of the host must stay as it is, and a container with the attacker
//! of `examples/attacker` inside.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::bundle::{Bundle, eventually, runtime};

/// Values of the host that the attacks of the advisories were after.
const SYSCTLS: [&str; 9] = [
    "kernel/core_pattern",
    "kernel/modprobe",
    "kernel/sysrq",
    "kernel/hostname",
    "kernel/domainname",
    "kernel/shm_rmid_forced",
    "kernel/msgmax",
    "net/ipv4/ip_unprivileged_port_start",
    "net/ipv4/ip_forward",
];
/// Devices of the host whose owner and mode a container could change through a bind of them.
const DEVICES: [&str; 7] = [
    "null", "zero", "full", "random", "urandom", "tty", "console",
];

/// What the host's sysctl `name` says now: an attack writes this, so that one that gets through is seen and
/// changes nothing. Empty where the kernel has no such sysctl.
pub(crate) fn present(name: &str) -> String {
    let value = fs::read_to_string(Path::new("/proc/sys").join(name));
    value.unwrap_or_default().trim_end().to_owned()
}

/// What sysrq takes as a request for its list of requests, see sysrq.rst of the kernel. Most other letters end
/// the machine.
pub(crate) const SYSRQ_HELP: &str = "h";

/// A directory outside every container with a file in it, and the state of the host around: checked when it
/// is dropped.
#[derive(Debug)]
pub(crate) struct Canary {
    place: tempfile::TempDir,
    before: Vec<(String, String)>,
}

impl Canary {
    pub(crate) fn new() -> Canary {
        let place = tempfile::Builder::new()
            .prefix("axil-canary-")
            .tempdir()
            .unwrap();
        let path = place.path().join("canary");
        fs::create_dir(&path).unwrap();
        let file = path.join("file");
        fs::write(&file, "alive").unwrap();
        fs::set_permissions(&file, PermissionsExt::from_mode(0o640)).unwrap();
        std::os::unix::fs::chown(&file, Some(4242), Some(4243)).unwrap();
        let long_ago = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        let times = fs::FileTimes::new().set_modified(long_ago);
        fs::File::open(&file).unwrap().set_times(times).unwrap();
        let before = state(&path);
        Canary { place, before }
    }

    /// The directory.
    pub(crate) fn path(&self) -> PathBuf {
        self.place.path().join("canary")
    }

    /// The file in it.
    pub(crate) fn file(&self) -> PathBuf {
        self.path().join("file")
    }

    /// Compares everything with how it was.
    #[track_caller]
    pub(crate) fn assert_alive(&self) {
        let now = state(&self.path());
        for (before, now) in self.before.iter().zip(&now) {
            assert_eq!(before, now, "an attack changed the host");
        }
        assert_eq!(self.before.len(), now.len());
    }
}

impl Drop for Canary {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.assert_alive();
        }
    }
}

fn state(canary: &Path) -> Vec<(String, String)> {
    let mut state = Vec::new();
    let mut note = |what: &str, value: String| state.push((what.to_owned(), value));
    for path in [canary, &canary.join("file")] {
        note(
            &path.display().to_string(),
            format!("{} {}", identity(path), times(path)),
        );
    }
    note("canary's names", format!("{:?}", names(canary)));
    note("canary's bytes", digest(&canary.join("file")));
    for device in DEVICES {
        let path = Path::new("/dev").join(device);
        note(device, identity(&path));
    }
    for sysctl in SYSCTLS {
        let value = fs::read_to_string(Path::new("/proc/sys").join(sysctl));
        note(sysctl, value.unwrap_or_default());
    }
    let binary = runtime();
    note("the runtime", identity(&binary));
    note("the runtime's bytes", digest(&binary));
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    note("mounts", mounts);
    state
}

fn identity(path: &Path) -> String {
    match fs::symlink_metadata(path) {
        Ok(m) => format!(
            "{}:{} mode {:o} links {} owner {}:{} device {} size {}",
            m.dev(),
            m.ino(),
            m.mode(),
            m.nlink(),
            m.uid(),
            m.gid(),
            m.rdev(),
            m.size()
        ),
        Err(error) => error.to_string(),
    }
}

fn times(path: &Path) -> String {
    let m = fs::symlink_metadata(path).unwrap();
    format!(
        "{}.{} {}.{}",
        m.mtime(),
        m.mtime_nsec(),
        m.ctime(),
        m.ctime_nsec()
    )
}

pub(crate) fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

pub(crate) fn digest(file: &Path) -> String {
    let hash = Sha256::digest(fs::read(file).unwrap());
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The attacker that was built with these tests.
pub(crate) fn attacker() -> PathBuf {
    if let Some(path) = std::env::var_os("AXIL_TEST_ATTACKER") {
        return PathBuf::from(path);
    }
    // target/PROFILE/deps/TEST or target/PROFILE/examples/LOOPS
    let own = std::env::current_exe().unwrap();
    let profile = own.parent().and_then(Path::parent).unwrap();
    let path = profile.join("examples/attacker");
    assert!(
        path.exists(),
        "{} is not built; cargo builds examples with the tests unless it is told to build less",
        path.display()
    );
    path
}

/// Puts the attacker into the root file system, and the libraries of this process: attacker and runtime are
/// linked as this test is, and the real bytes of CVE-2019-5736 run the runtime inside.
pub(crate) fn arm(bundle: &Bundle) {
    fs::copy(attacker(), bundle.rootfs().join("attacker")).unwrap();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let mut libraries: Vec<&str> = maps
        .lines()
        .filter_map(|line| line.find('/').map(|at| &line[at..]))
        .filter(|path| path.contains(".so"))
        .collect();
    libraries.dedup();
    for library in libraries {
        let place = bundle.rootfs().join(&library[1..]);
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::copy(library, place).unwrap();
    }
    // Where the interpreter of the binaries is looked for.
    if let Some(loader) = maps.lines().find_map(|line| {
        line.find("/")
            .map(|at| &line[at..])
            .filter(|p| p.contains("/ld-"))
    }) {
        let place = bundle.rootfs().join("lib64");
        fs::create_dir_all(&place).unwrap();
        let name = Path::new(loader).file_name().unwrap();
        fs::copy(loader, place.join(name)).unwrap();
    }
}

/// A container whose program is the attacker.
pub(crate) fn armed(args: &[&str]) -> Bundle {
    let mut bundle = Bundle::new("");
    arm(&bundle);
    let mut all = vec!["/attacker"];
    all.extend(args);
    bundle.set("/process/args", json!(all));
    bundle
}

/// Gives the container exactly these capabilities.
pub(crate) fn empower(bundle: &mut Bundle, names: &[&str]) {
    bundle.set(
        "/process/capabilities",
        json!({"bounding": names, "effective": names, "permitted": names}),
    );
}

/// Creates and starts an armed container and waits until the attack goes on.
pub(crate) fn let_loose(bundle: &Bundle) {
    bundle.create().ok();
    bundle.start().ok();
    eventually("the attacker is ready", || {
        bundle.output().contains("READY")
    });
}

/// The number behind `name=` in the last line that tells what was tried.
#[track_caller]
pub(crate) fn tried(output: &str, name: &str) -> usize {
    let line = output
        .lines()
        .rev()
        .find(|line| line.starts_with("TRIED"))
        .unwrap_or_else(|| panic!("the attacker did not attack: {output}"));
    line.split(' ')
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("no {name} in {line}"))
}

/// Fails when the attacker got something.
#[track_caller]
pub(crate) fn assert_nothing_got(output: &str) {
    let got: Vec<&str> = output.lines().filter(|l| l.starts_with("GOT")).collect();
    assert!(got.is_empty(), "the attacker got through: {got:#?}");
}

/// Removes the mounts of the document at and below `destination`.
pub(crate) fn without_mounts(bundle: &mut Bundle, destination: &str) {
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts.retain(|m| {
        let place = m["destination"].as_str().unwrap();
        place != destination && !place.starts_with(&format!("{destination}/"))
    });
}

/// Adds a bind.
pub(crate) fn bind(bundle: &mut Bundle, source: &Path, destination: &str, options: &[&str]) {
    let mut all = vec!["bind"];
    all.extend(options);
    let entry: Value =
        json!({"destination": destination, "type": "bind", "source": source, "options": all});
    bundle.set("/mounts/-", entry);
}

/// A thread of the host's side that exchanges two names until it is dropped: a neighbour with the same volume.
#[derive(Debug)]
pub(crate) struct Racer {
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    thread: Option<std::thread::JoinHandle<u64>>,
}

impl Racer {
    pub(crate) fn exchanging(a: &Path, b: &Path) -> Racer {
        use std::sync::atomic::{AtomicBool, Ordering};
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let (told, a, b) = (stop.clone(), a.to_owned(), b.to_owned());
        let thread = std::thread::spawn(move || {
            let (cwd, flags) = (rustix::fs::CWD, rustix::fs::RenameFlags::EXCHANGE);
            let mut rounds = 0;
            while !told.load(Ordering::Relaxed) {
                let done = rustix::fs::renameat_with(cwd, &a, cwd, &b, flags);
                rounds += u64::from(done.is_ok());
            }
            rounds
        });
        Racer {
            stop,
            thread: Some(thread),
        }
    }

    /// Ends the race and tells how many exchanges there were.
    pub(crate) fn finish(mut self) -> u64 {
        self.end()
    }

    fn end(&mut self) -> u64 {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        self.thread
            .take()
            .map_or(0, |thread| thread.join().unwrap())
    }
}

impl Drop for Racer {
    fn drop(&mut self) {
        self.end();
    }
}

/// `command` under strace(1), which writes the `calls` to the file that [`trace`] reads; `None`, with the reason
/// printed, where there is no strace.
pub(crate) fn under_strace(bundle: &Bundle, calls: &str, command: &Command) -> Option<Command> {
    let found = Command::new("strace").arg("-V").output();
    if !found.is_ok_and(|output| output.status.success()) {
        assert!(
            std::env::var("AXIL_TEST_REQUIRE").as_deref() != Ok("1"),
            "cannot run: it needs strace"
        );
        println!("skipped: it needs strace");
        return None;
    }
    let mut strace = Command::new("strace");
    strace
        .args(["-f", "-y", "-e", &format!("trace={calls}"), "-o"])
        .arg(bundle.dir.path().join("trace"))
        .arg(command.get_program())
        .args(command.get_args())
        .current_dir(bundle.dir.path())
        .stdin(Stdio::null());
    Some(strace)
}

/// What the last command under strace did.
pub(crate) fn trace(bundle: &Bundle) -> String {
    fs::read_to_string(bundle.dir.path().join("trace")).unwrap()
}

/// The system calls of a create with `options`; `None` where there is no strace. The container is deleted again.
pub(crate) fn traced_create(bundle: &Bundle, calls: &str, options: &[&str]) -> Option<String> {
    bundle.write();
    let mut create = vec!["create"];
    create.extend(options);
    create.push(&bundle.id);
    let mut create = under_strace(bundle, calls, &bundle.command(&create))?;
    // Into files: init keeps the streams.
    let sink = || fs::File::create(bundle.dir.path().join("sink")).unwrap();
    let mut child = create.stdout(sink()).stderr(sink()).spawn().unwrap();
    eventually("created", || {
        let state = bundle.call(&["state", &bundle.id]);
        state.out.contains("\"created\"")
    });
    // It still has its last steps to do, slowly under strace, and is waited for with a bound.
    eventually("deleted", || {
        bundle.call(&["delete", "--force", &bundle.id]).code == 0
    });
    child.wait().unwrap();
    Some(trace(bundle))
}
