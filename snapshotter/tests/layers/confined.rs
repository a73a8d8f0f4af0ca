//! The unpack process seen from outside: what it holds while it works, how it ends, and what happens when it
//! lies. That nothing can be reached from inside is tested beside `cage.rs`.

use std::fs;
use std::io::{self, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use axil_snapshotter::{
    Compression, ErrorClass, LayerError, Limits, Store, StoreOptions, Worker, WorkerError,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::archive::Archive;
use crate::world::{Layer, World, can_run, names, open};

/// Longest a test waits for something that comes at once on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A source that gives what it has, then waits for more.
struct Dripping(Receiver<io::Result<Vec<u8>>>, Vec<u8>);

impl Read for Dripping {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.1.is_empty() {
            match self.0.recv() {
                Ok(piece) => self.1 = piece?,
                Err(_) => return Ok(0),
            }
        }
        let amount = out.len().min(self.1.len());
        out[..amount].copy_from_slice(&self.1[..amount]);
        self.1.drain(..amount);
        Ok(amount)
    }
}

fn dripping() -> (Sender<io::Result<Vec<u8>>>, Dripping) {
    let (pieces, source) = channel();
    (pieces, Dripping(source, Vec::new()))
}

/// Waits for a child of process `parent` that runs as the unpack process and is shut in.
fn worker_of(parent: u32) -> i32 {
    eventually("an unpack process", || {
        for name in fs::read_dir("/proc").unwrap() {
            let name = name.unwrap().file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            if field(&status, "PPid:") == parent.to_string()
                && fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default() == b"axil-unpack\0"
                && field(&status, "Seccomp:") == "2"
            {
                return Some(pid);
            }
        }
        None
    })
}

fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} did not come");
        thread::sleep(Duration::from_millis(5));
    }
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_default().trim()
}

fn is_alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ")
        .next()
        .is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

fn some_layer() -> Layer {
    let archive = Archive::new().dir("d").file("d/f", &[7; 300_000]).finish();
    Layer::compressed(None, &archive, Compression::None)
}

#[test]
fn privileged_the_unpack_process_holds_its_layer_and_nothing_else() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let layer = some_layer();
    let (pieces, source) = dripping();
    pieces.send(Ok(layer.blob[..200_000].to_vec())).unwrap();
    thread::scope(|scope| {
        let ingest = world.store.begin_layer(layer.request.clone()).unwrap();
        let unpacking = scope.spawn(move || ingest.unpack(source));
        let pid = worker_of(std::process::id());
        let proc = |name: &str| format!("/proc/{pid}/{name}");
        let status = fs::read_to_string(proc("status")).unwrap();
        // chown, dac_override, fowner, fsetid, mknod, setfcap.
        let kept = 1 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 27 | 1 << 31;
        for name in ["CapPrm:", "CapEff:", "CapBnd:"] {
            let held = u64::from_str_radix(field(&status, name), 16).unwrap();
            assert_eq!(held & !kept, 0, "{name} {held:x}");
        }
        assert_eq!(field(&status, "NoNewPrivs:"), "1");
        assert_eq!(field(&status, "CapInh:"), "0000000000000000");
        for namespace in ["mnt", "net", "ipc", "uts"] {
            let theirs = fs::read_link(proc(&format!("ns/{namespace}"))).unwrap();
            let ours = fs::read_link(format!("/proc/self/ns/{namespace}")).unwrap();
            assert_ne!(theirs, ours, "{namespace}");
        }
        let mounts = fs::read_to_string(proc("mountinfo")).unwrap();
        assert_eq!(mounts.lines().count(), 1, "{mounts}");
        assert!(mounts.contains("nosuid,nodev,noexec"), "{mounts}");
        let root = names(Path::new(&proc("root")));
        assert!(
            root.iter()
                .all(|name| matches!(&**name, "fs" | "skeleton" | "aside")),
            "{root:?}"
        );
        for fd in names(Path::new(&proc("fd"))) {
            let target = fs::read_link(proc(&format!("fd/{fd}"))).unwrap();
            let target = target.to_string_lossy().into_owned();
            let is_its_own = match &*fd {
                "0" => target.starts_with("pipe:"),
                "1" => target.starts_with("socket:"),
                "2" => target == "/dev/null",
                _ => {
                    target.starts_with('/') && !target.starts_with("/dev")
                        || target.starts_with("pipe:")
                }
            };
            assert!(is_its_own, "{fd} -> {target}");
        }
        assert!(fs::read(proc("environ")).unwrap().is_empty());
        let limits = fs::read_to_string(proc("limits")).unwrap();
        let data = limits
            .lines()
            .find(|line| line.starts_with("Max data size"));
        assert!(!data.unwrap().contains("unlimited"), "{limits}");
        pieces.send(Ok(layer.blob[200_000..].to_vec())).unwrap();
        drop(pieces);
        let staged = unpacking.join().unwrap().unwrap();
        assert!(!is_alive(pid));
        world.store.commit_layers(vec![staged]).unwrap();
    });
    world.assert_canary();
}

#[test]
fn privileged_a_killed_unpack_process_is_an_error_and_the_next_try_works() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let layer = some_layer();
    let (pieces, source) = dripping();
    pieces.send(Ok(layer.blob[..200_000].to_vec())).unwrap();
    thread::scope(|scope| {
        let ingest = world.store.begin_layer(layer.request.clone()).unwrap();
        let unpacking = scope.spawn(move || ingest.unpack(source));
        kill(
            Pid::from_raw(worker_of(std::process::id())),
            Signal::SIGKILL,
        )
        .unwrap();
        // The rest comes and is of no use.
        let _ = pieces.send(Ok(layer.blob[200_000..].to_vec()));
        drop(pieces);
        let error = unpacking.join().unwrap().unwrap_err();
        assert_eq!(error.class(), ErrorClass::Internal);
        assert!(error.to_string().contains("killed by signal 9"), "{error}");
    });
    world.assert_empty();
    world
        .pull(&[Archive::new().file("f", b"x").finish()])
        .unwrap();
}

#[test]
fn privileged_an_unpack_process_that_stands_still_is_killed() {
    if !can_run() {
        return;
    }
    let tmp = tempfile::tempdir().unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_axil-unpack"));
    let worker = Worker::program(program).with_stall(Duration::from_secs(2));
    let options = StoreOptions {
        worker: Some(worker),
        ..StoreOptions::default()
    };
    let store = Store::open_with(&tmp.path().join("store"), options).unwrap();
    let layer = some_layer();
    let (pieces, source) = dripping();
    pieces.send(Ok(layer.blob[..200_000].to_vec())).unwrap();
    thread::scope(|scope| {
        let ingest = store.begin_layer(layer.request.clone()).unwrap();
        let unpacking = scope.spawn(move || ingest.unpack(source));
        let pid = worker_of(std::process::id());
        kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
        pieces.send(Ok(layer.blob[200_000..].to_vec())).unwrap();
        drop(pieces);
        let error = unpacking.join().unwrap().unwrap_err();
        assert!(
            matches!(
                error,
                LayerError::Worker(WorkerError::Stalled { seconds: 2 })
            ),
            "{error}"
        );
        assert_eq!(error.class(), ErrorClass::Unavailable);
        assert!(!is_alive(pid));
    });
}

/// The role of the parent in the test below.
const PARENT: &str = "AXIL_TEST_PARENT";

#[test]
fn privileged_the_unpack_process_dies_with_its_parent() {
    if !can_run() {
        return;
    }
    let layer = some_layer();
    if let Ok(root) = std::env::var(PARENT) {
        let (pieces, source) = dripping();
        pieces.send(Ok(layer.blob[..200_000].to_vec())).unwrap();
        let store = open(Path::new(&root));
        let _ = store.begin_layer(layer.request).unwrap().unpack(source);
        return;
    }
    let world = World::new();
    let own = world.root.parent().unwrap().join("parent");
    let mut parent = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "confined::privileged_the_unpack_process_dies_with_its_parent",
        ])
        .env(PARENT, &own)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let pid = worker_of(parent.id());
    parent.kill().unwrap();
    assert_eq!(parent.wait().unwrap().signal(), Some(9));
    eventually("the end of the unpack process", || {
        (!is_alive(pid)).then_some(())
    });
    // What it left is swept when the store is opened again.
    let store = open(&own);
    assert_eq!(store.swept().len(), 1, "{:?}", store.swept());
    drop(store);
    fs::remove_dir_all(own).unwrap();
}

/// An unpack process in the hands of an attacker: a shell, whose program comes as the blob.
fn attacker(script: &str) -> Result<(), LayerError> {
    let tmp = tempfile::tempdir().unwrap();
    let worker = Worker::program(Path::new("/bin/sh")).with_stall(Duration::from_secs(3));
    let options = StoreOptions {
        worker: Some(worker),
        ..StoreOptions::default()
    };
    let store = Store::open_with(&tmp.path().join("store"), options).unwrap();
    let layer = Layer::compressed(None, script.as_bytes(), Compression::None);
    let staged = store
        .begin_layer(layer.request.clone())?
        .unpack(&layer.blob[..]);
    let staged = staged.and_then(|staged| store.commit_layers(vec![staged]));
    let left = names(&tmp.path().join("store/snapshots"));
    assert!(staged.is_ok() || left == ["meta"], "{left:?}");
    staged
}

/// Says frames, as a shell program.
fn frames(bodies: &[&str]) -> String {
    let mut script = String::new();
    for body in bodies {
        let length = u32::try_from(body.len()).unwrap().to_le_bytes();
        let octal: String = length.iter().map(|byte| format!("\\{byte:03o}")).collect();
        script += &format!("printf '{octal}'; printf '%s' '{body}'\n");
    }
    script
}

const READY: &str = r#"{"Ready":{"landlock":true}}"#;

#[test]
fn privileged_an_unpack_process_that_lies_is_not_believed() {
    if !can_run() {
        return;
    }
    let up = hex(b"../../etc");
    for (what, bodies) in [
        ("no greeting", vec![r#"{"Inflated":1}"#]),
        (
            "a count that stands still",
            vec![READY, r#"{"Inflated":1}"#, r#"{"Inflated":1}"#],
        ),
        (
            "a count beyond the limit",
            vec![READY, r#"{"Inflated":99999999999999}"#],
        ),
        (
            "a directory outside",
            vec![READY, &format!(r#"{{"Implied":["{up}"]}}"#)],
        ),
        (
            "a link outside",
            vec![READY, &format!(r#"{{"Links":[["61","{up}"]]}}"#)],
        ),
        (
            "a link that is the root",
            vec![READY, r#"{"Links":[["","61"]]}"#],
        ),
        (
            "a move outside",
            vec![
                READY,
                &format!(r#"{{"Moves":[{{"before":1,"from":"61","to":"{up}","aside":null}}]}}"#),
            ],
        ),
        (
            "an attribute of nothing",
            vec![READY, r#"{"Attribute":{"name":"61","value":"61"}}"#],
        ),
        (
            "an archive too large",
            vec![
                READY,
                r#"{"Done":{"opaque_root":false,"archive_bytes":99999999999999}}"#,
            ],
        ),
        (
            "a diff id that is none",
            vec![READY, r#"{"Failed":{"kind":{"DiffId":"../x"},"text":""}}"#],
        ),
        ("what is no report", vec![READY, r#"{"Else":1}"#]),
        ("what is no JSON", vec![READY, "\u{7f}"]),
    ] {
        let bodies: Vec<&str> = bodies.iter().map(|body| &**body).collect();
        let error = attacker(&format!("{}cat >/dev/null\n", frames(&bodies))).unwrap_err();
        assert!(
            matches!(error, LayerError::Worker(WorkerError::Protocol { .. })),
            "{what}: {error:?}"
        );
    }
    let script = format!(
        "{}printf '\\377\\377\\377\\177'\ncat >/dev/null\n",
        frames(&[READY])
    );
    let error = attacker(&script).unwrap_err();
    assert!(error.to_string().contains("frame is too long"), "{error}");
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn privileged_an_unpack_process_that_ends_or_waits_is_told_apart() {
    if !can_run() {
        return;
    }
    let error = attacker("exit 7\n").unwrap_err();
    assert!(error.to_string().contains("exit code 7"), "{error}");
    let error = attacker(&format!(
        "{}cat >/dev/null; kill -STOP $$\n",
        frames(&[READY])
    ))
    .unwrap_err();
    assert!(
        matches!(error, LayerError::Worker(WorkerError::Stalled { .. })),
        "{error}"
    );
    let fault = r#"{"Failed":{"kind":"Process","text":"a\nb"}}"#;
    let error = attacker(&frames(&[fault])).unwrap_err();
    assert!(error.to_string().ends_with("a\\nb"), "{error}");
}

#[test]
fn privileged_a_program_that_is_not_there_is_named() {
    if !can_run() {
        return;
    }
    let tmp = tempfile::tempdir().unwrap();
    let options = StoreOptions {
        worker: Some(Worker::program(Path::new("/nowhere/axil-unpack"))),
        ..StoreOptions::default()
    };
    let store = Store::open_with(&tmp.path().join("store"), options).unwrap();
    let layer = some_layer();
    let error = store
        .begin_layer(layer.request)
        .unwrap()
        .unpack(&layer.blob[..])
        .unwrap_err();
    assert!(
        error.to_string().contains("/nowhere/axil-unpack"),
        "{error}"
    );
}

/// Attributes only CAP_SYS_ADMIN may set are there although the unpack process has it not.
#[test]
fn privileged_attributes_that_need_more_are_asked_for() {
    if !can_run() {
        return;
    }
    let archive = Archive::new()
        .pax(&[
            ("SCHILY.xattr.trusted.note", b"1"),
            (
                "SCHILY.xattr.security.capability",
                b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            ),
            ("SCHILY.xattr.security.note", b"2"),
            ("SCHILY.xattr.user.note", b"3"),
        ])
        .file("file", b"x")
        .pax(&[("SCHILY.xattr.trusted.note", b"4")])
        .symlink("link", "file")
        .pax(&[("SCHILY.xattr.trusted.note", b"5")])
        .entry(&crate::archive::Head::new("fifo", b'6'), b"")
        .file("d/.wh..wh..opq", b"")
        .finish();
    let world = World::new();
    let files = world.files_of(&world.pull(&[archive]).unwrap());
    let xattr = |name: &str, attribute: &str| crate::world::xattr(files.join(name), attribute);
    assert_eq!(xattr("file", "trusted.note"), Some(b"1".to_vec()));
    assert_eq!(xattr("file", "security.note"), Some(b"2".to_vec()));
    assert_eq!(xattr("file", "user.note"), Some(b"3".to_vec()));
    assert_eq!(
        xattr("file", "security.capability").map(|v| v.len()),
        Some(20)
    );
    assert_eq!(xattr("link", "trusted.note"), Some(b"4".to_vec()));
    assert_eq!(xattr("fifo", "trusted.note"), Some(b"5".to_vec()));
    assert_eq!(xattr("d", "trusted.overlay.opaque"), Some(b"y".to_vec()));
}

/// A memory limit of the process keeps a decoder from what the limits do not allow.
#[test]
fn privileged_a_zstd_window_beyond_the_limit_is_refused() {
    if !can_run() {
        return;
    }
    let archive = Archive::new().file("f", &vec![1; 20 << 20]).finish();
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
    encoder.window_log(25).unwrap();
    encoder.long_distance_matching(true).unwrap();
    io::Write::write_all(&mut encoder, &archive).unwrap();
    let blob = encoder.finish().unwrap();
    let mut layer = Layer::compressed(None, &archive, Compression::Zstd);
    layer.request.blob = axil_snapshotter::Digest::sha256_of(&blob);
    layer.request.size = blob.len() as u64;
    layer.blob = blob;
    let world = World::new();
    let mut small = layer.clone();
    small.request.limits = Limits {
        zstd_window: 8 << 20,
        ..Limits::default()
    };
    let error = world.stage(&small).unwrap_err();
    assert_eq!(error.class(), ErrorClass::InvalidArgument);
    world.stage(&layer).unwrap();
}
