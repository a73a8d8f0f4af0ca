//! The terminal: tests 23 and 26 with a terminal, and input pushed into a terminal of the host.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

use serde_json::json;

use super::arena::{
    Canary, arm, armed, assert_nothing_got, bind, traced_create, tried, without_mounts,
};
use super::loops::{create, receive_master, terminals_under_exchange, with_terminal};
use crate::bundle::{Bundle, ready};

#[test]
fn privileged_cve_2026_88264_a_console_link_gets_no_terminal_and_no_file() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    for target in [
        canary.path().join("made"),
        canary.file(),
        "/proc/sysrq-trigger".into(),
    ] {
        let (mut bundle, _listener) = with_terminal("true");
        without_mounts(&mut bundle, "/dev");
        let dev = bundle.rootfs().join("dev");
        fs::create_dir(&dev).unwrap();
        fs::create_dir(dev.join("pts")).unwrap();
        symlink(&target, dev.join("console")).unwrap();
        bundle.set(
            "/mounts/-",
            json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                   "options": ["newinstance", "ptmxmode=0666", "mode=0620"]}),
        );
        create(&bundle).fails(1, "/dev/console");
        bundle.assert_gone();
        canary.assert_alive();
    }
}

#[test]
fn privileged_cve_2025_52565_a_terminal_is_never_one_of_the_image() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    // No devpts, but something that looks like one: plain files, links, a multiplexer on another file system.
    for hostile in ["file", "link", "node", "fifo"] {
        let (mut bundle, listener) = with_terminal("true");
        without_mounts(&mut bundle, "/dev");
        let pts = bundle.rootfs().join("dev/pts");
        fs::create_dir_all(&pts).unwrap();
        let ptmx = pts.join("ptmx");
        let make = |kind, number| {
            rustix::fs::mknodat(rustix::fs::CWD, &ptmx, kind, 0o666.into(), number).unwrap();
        };
        match hostile {
            "file" => fs::write(&ptmx, "").unwrap(),
            "link" => symlink(canary.file(), &ptmx).unwrap(),
            "node" => make(
                rustix::fs::FileType::CharacterDevice,
                rustix::fs::makedev(5, 2),
            ),
            _ => make(rustix::fs::FileType::Fifo, 0),
        }
        create(&bundle).fails(1, "/dev/pts/ptmx");
        assert!(receive_master(&listener).is_none(), "{hostile}");
        bundle.assert_gone();
    }
    canary.assert_alive();
}

#[test]
fn privileged_cve_2025_52565_a_terminal_under_exchange_is_a_terminal_or_none() {
    if !ready() {
        return;
    }
    terminals_under_exchange(20);
}

/// The other side of the terminal is asked for, not looked up: whatever lies at its name by then.
#[test]
fn privileged_cve_2025_52565_a_terminal_is_opened_by_no_name() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    let (bundle, listener) = with_terminal("sleep 1000");
    let options = ["--console-socket", "tty.sock"];
    let Some(text) = traced_create(&bundle, "%file,openat2,ioctl", &options) else {
        return;
    };
    assert!(receive_master(&listener).is_some());
    assert!(text.contains("TIOCGPTPEER"), "{text}");
    for line in text.lines().filter(|line| line.contains("open")) {
        assert!(!line.contains("pts/0\""), "{line}");
    }
    canary.assert_alive();
}

/// An exec into a container whose /dev/pts was made by its owner.
#[test]
fn privileged_cve_2025_52565_exec_takes_no_terminal_of_the_container_s_making() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    let mut bundle = Bundle::new("sleep 1000");
    without_mounts(&mut bundle, "/dev");
    let pts = bundle.rootfs().join("dev/pts");
    fs::create_dir_all(&pts).unwrap();
    symlink("/proc/1/root/etc/passwd", pts.join("ptmx")).unwrap();
    bundle.create().ok();
    bundle.start().ok();
    let listener = UnixListener::bind(bundle.dir.path().join("tty.sock")).unwrap();
    let args = [
        "exec",
        "-d",
        "-t",
        "--console-socket",
        "tty.sock",
        &bundle.id,
        "true",
    ];
    bundle.call(&args).fails(255, "/dev/pts/ptmx");
    assert!(receive_master(&listener).is_none());
    fs::remove_file(pts.join("ptmx")).unwrap();
    fs::write(pts.join("ptmx"), "").unwrap();
    bundle.call(&args).fails(255, "is not the multiplexer");
    canary.assert_alive();
}

/// CVE-2017-5226: the caller's terminal is handed through as the streams, without one of the container's own.
#[test]
fn privileged_cve_2017_5226_nothing_is_pushed_into_the_caller_s_terminal() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    let mut bundle = armed(&["terminal"]);
    bundle.place_anywhere();
    bundle.write();
    // As at a shell: the terminal controls the session the runtime is called from.
    let script = format!(
        "exec {} --root state run {}",
        crate::bundle::runtime().display(),
        bundle.id
    );
    let mut child = std::process::Command::new("script")
        .args(["-q", "-e", "-c", &script, "/dev/null"])
        .current_dir(bundle.dir.path())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut out)
        .unwrap();
    child.wait().unwrap();
    assert_nothing_got(&out);
    assert!(tried(&out.replace('\r', ""), "terminals") >= 3, "{out}");
    assert!(!out.contains('#'), "input arrived: {out}");
    canary.assert_alive();
}

/// A console that is a bind of a host file does not become the container's.
#[test]
fn privileged_a_console_over_a_bound_file_leaves_the_file_alone() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    let (mut bundle, listener) = with_terminal("echo to the console > /dev/console; sleep 1000");
    arm(&bundle);
    bind(&mut bundle, &canary.file(), "/dev/console", &[]);
    create(&bundle).ok();
    let master = receive_master(&listener).unwrap();
    bundle.start().ok();
    let mut text = Vec::new();
    let mut master = fs::File::from(master);
    while !String::from_utf8_lossy(&text).contains("console") {
        let mut buffer = [0; 256];
        let length = master.read(&mut buffer).unwrap();
        text.extend_from_slice(&buffer[..length]);
    }
    let _ = master.write(b"x");
    canary.assert_alive();
}
