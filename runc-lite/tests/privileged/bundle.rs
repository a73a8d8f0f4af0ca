//! A bundle made of busybox, and the runtime's command line on it.

use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::guard::{BUSYBOX, ready_with, systemd_driver};

const CGROUPS: &str = "/sys/fs/cgroup";
const APPLETS: [&str; 30] = [
    "sh", "true", "false", "cat", "echo", "sleep", "id", "ls", "mkdir", "env", "pwd", "readlink",
    "stat", "grep", "kill", "hostname", "ps", "mount", "umount", "touch", "chmod", "head", "dd",
    "test", "ln", "tty", "sed", "setsid", "rm", "seq",
];

/// Whether a test that needs nothing special can run here.
pub(crate) fn ready() -> bool {
    ready_with(&[])
}

pub(crate) fn runtime() -> PathBuf {
    if let Some(path) = std::env::var_os("AXIL_TEST_RUNTIME") {
        return PathBuf::from(path);
    }
    // Cargo tells tests where it is, and an example nothing: it lies one directory above.
    option_env!("CARGO_BIN_EXE_runc-lite").map_or_else(
        || {
            let own = std::env::current_exe().unwrap();
            let profile = own.parent().and_then(Path::parent).unwrap();
            profile.join("runc-lite")
        },
        PathBuf::from,
    )
}

/// A name no other test or run uses.
pub(crate) fn unique() -> String {
    static COUNTER: AtomicUsize = AtomicUsize::new(0);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("axil-test-{}-{number}", std::process::id())
}

/// What a finished command left.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Done {
    fn of(output: &Output) -> Done {
        Done {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).trim().to_owned(),
            err: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        }
    }

    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }

    #[track_caller]
    pub(crate) fn fails(self, code: i32, words: &str) -> String {
        assert_eq!(self.code, code, "{self:?}");
        assert!(
            self.err.contains(words),
            "{words:?} is not in {:?}",
            self.err
        );
        self.err
    }
}

/// A container to be: bundle, document, state directory and cgroup, all removed at the end.
pub(crate) struct Bundle {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) id: String,
    pub(crate) config: Value,
}

impl Bundle {
    /// A container that runs `script` by `sh -c`.
    pub(crate) fn new(script: &str) -> Bundle {
        let dir = tempfile::Builder::new()
            .prefix("axil-test-")
            .tempdir()
            .unwrap();
        let rootfs = dir.path().join("rootfs");
        for name in ["bin", "etc", "tmp", "mnt"] {
            std::fs::create_dir_all(rootfs.join(name)).unwrap();
        }
        std::fs::copy(BUSYBOX, rootfs.join("bin/busybox")).unwrap();
        for applet in APPLETS {
            symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
        }
        let passwd = "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n";
        std::fs::write(rootfs.join("etc/passwd"), passwd).unwrap();
        let id = unique();
        let config = document(script, &id);
        Bundle { dir, id, config }
    }

    /// Puts the container into a cgroup called `name`, as the driver of this run writes it.
    pub(crate) fn place(&mut self, name: &str) {
        self.set("/linux/cgroupsPath", json!(cgroups_path(name)));
    }

    /// Leaves the cgroup to the runtime: for commands that are given no driver.
    pub(crate) fn place_anywhere(&mut self) {
        let linux = self.config["linux"].as_object_mut().unwrap();
        linux.remove("cgroupsPath");
    }

    pub(crate) fn rootfs(&self) -> PathBuf {
        self.dir.path().join("rootfs")
    }

    pub(crate) fn state_root(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// Changes the document at a JSON pointer.
    pub(crate) fn set(&mut self, pointer: &str, value: Value) -> &mut Bundle {
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        let parent = self
            .config
            .pointer_mut(parent)
            .unwrap_or_else(|| panic!("no {parent}"));
        match parent {
            Value::Array(list) if name == "-" => list.push(value),
            other => {
                other
                    .as_object_mut()
                    .unwrap()
                    .insert(name.to_owned(), value);
            }
        }
        self
    }

    pub(crate) fn write(&self) {
        let text = serde_json::to_vec(&self.config).unwrap();
        std::fs::write(self.dir.path().join("config.json"), text).unwrap();
    }

    /// The runtime with the global options of this bundle.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(runtime());
        command
            .current_dir(self.dir.path())
            .arg("--root")
            .arg(self.state_root())
            .arg("--log")
            .arg(self.dir.path().join("log.json"))
            .args(["--log-format", "json"]);
        if systemd_driver() {
            command.arg("--systemd-cgroup");
        }
        command.args(args).stdin(Stdio::null());
        command
    }

    pub(crate) fn call(&self, args: &[&str]) -> Done {
        Done::of(&self.command(args).output().unwrap())
    }

    pub(crate) fn run(&self) -> Done {
        self.write();
        self.call(&["run", &self.id])
    }

    /// Creates the container with its output in files, as a shim would keep it apart.
    pub(crate) fn create(&self) -> Done {
        self.write();
        let file = |name| std::fs::File::create(self.dir.path().join(name)).unwrap();
        let mut command = self.command(&["create", "--bundle", ".", "--pid-file", "pid", &self.id]);
        command.stdout(file("out")).stderr(file("err"));
        let status = command.status().unwrap();
        let text = |name| std::fs::read_to_string(self.dir.path().join(name)).unwrap();
        Done {
            code: status.code().unwrap_or(-1),
            out: text("out"),
            err: text("err"),
        }
    }

    pub(crate) fn start(&self) -> Done {
        self.call(&["start", &self.id])
    }

    pub(crate) fn exec(&self, args: &[&str]) -> Done {
        let mut all = vec!["exec", self.id.as_str()];
        all.extend(args);
        self.call(&all)
    }

    pub(crate) fn state(&self) -> Value {
        serde_json::from_str(&self.call(&["state", &self.id]).ok()).unwrap()
    }

    pub(crate) fn status(&self) -> String {
        self.state()["status"].as_str().unwrap().to_owned()
    }

    pub(crate) fn pid(&self) -> i32 {
        let text = std::fs::read_to_string(self.dir.path().join("pid")).unwrap();
        text.parse().unwrap()
    }

    pub(crate) fn output(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("out"))
            .unwrap()
            .trim()
            .to_owned()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log.json")).unwrap_or_default()
    }

    /// The container's directory in the v1 hierarchy of `controller`, if that is mounted.
    pub(crate) fn cgroup(&self, controller: &str) -> Option<PathBuf> {
        let path = Path::new(CGROUPS).join(controller);
        path.is_dir().then(|| path.join(&self.id))
    }

    /// The container's directory where the host has cgroup v2 alone.
    pub(crate) fn unified(&self) -> Option<PathBuf> {
        let root = Path::new(CGROUPS);
        let alone = root.join("cgroup.controllers").exists();
        alone.then(|| root.join(self.scope().as_ref().unwrap_or(&self.id)))
    }

    /// Where systemd's scope for the container is below the root of cgroups, if systemd makes it.
    fn scope(&self) -> Option<String> {
        systemd_driver().then(|| format!("system.slice/axil-{}.scope", self.id))
    }

    /// The directory that tells of all the container's processes, whichever version the host has.
    pub(crate) fn processes(&self) -> PathBuf {
        let found = self.unified().or_else(|| self.cgroup("pids"));
        found.or_else(|| self.cgroup("unified")).unwrap()
    }

    /// What the container should not have left on the host.
    #[track_caller]
    pub(crate) fn assert_gone(&self) {
        assert_eq!(self.leftovers(), Vec::<PathBuf>::new());
        assert!(
            !self.state_root().join(&self.id).exists(),
            "state directory left"
        );
        let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        assert!(
            !mounts.contains(self.dir.path().to_str().unwrap()),
            "mounts left"
        );
    }

    fn leftovers(&self) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(CGROUPS) else {
            return Vec::new();
        };
        let v1 = entries.flatten().map(|e| e.path().join(&self.id));
        let v2 = [Path::new(CGROUPS).join(&self.id)];
        v1.chain(v2)
            .chain(self.unified())
            .filter(|path| path.exists())
            .collect()
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let _ = self.command(&["delete", "--force", &self.id]).output();
        let left = self.leftovers();
        if !left.is_empty() && !std::thread::panicking() {
            panic!("cgroups left: {left:?}");
        }
    }
}

fn cgroups_path(id: &str) -> String {
    if systemd_driver() {
        format!("system.slice:axil:{id}")
    } else {
        format!("/{id}")
    }
}

/// A document much like the one a container of Kubernetes gets.
fn document(script: &str, id: &str) -> Value {
    let caps = json!([
        "CAP_CHOWN",
        "CAP_KILL",
        "CAP_SETUID",
        "CAP_SETGID",
        "CAP_NET_BIND_SERVICE"
    ]);
    json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs", "readonly": false},
        "hostname": "box",
        "process": {
            "args": ["sh", "-c", script],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "user": {"uid": 0, "gid": 0},
            "noNewPrivileges": true,
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps}
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]}
        ],
        "linux": {
            "cgroupsPath": cgroups_path(id),
            "namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"},
                           {"type": "mount"}, {"type": "cgroup"}],
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware"],
            "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger"]
        }
    })
}

/// Waits, with a bound, until `condition` holds.
#[track_caller]
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Writes a process document for `exec --process`.
pub(crate) fn process_file(bundle: &Bundle, document: &Value) -> String {
    let path = bundle.dir.path().join("process.json");
    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(document.to_string().as_bytes()).unwrap();
    path.to_str().unwrap().to_owned()
}

/// The process that adopts orphans here: init, or a subreaper above this test.
pub(crate) fn adopter() -> i32 {
    let script = "sleep 5 >/dev/null 2>&1 & echo $!";
    let output = Command::new("/bin/sh")
        .args(["-c", script])
        .output()
        .unwrap();
    let orphan: i32 = String::from_utf8_lossy(&output.stdout)
        .trim()
        .parse()
        .unwrap();
    let parent = parent_of(orphan);
    let pid = rustix::process::Pid::from_raw(orphan).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    parent
}

/// The parent of a process.
pub(crate) fn parent_of(pid: i32) -> i32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("PPid:"))
        .unwrap();
    line.trim().parse().unwrap()
}
