//! SCMP_ACT_NOTIFY: an agent outside the container answers its calls.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};

use super::bundle::{Bundle, eventually, process_file, ready};
use super::sys::{Notification, Reply, answer, receive};

/// A container whose calls `names` are answered by an agent at the returned path.
fn asking(script: &str, names: &[&str]) -> (Bundle, PathBuf) {
    let mut bundle = Bundle::new(script);
    let path = bundle.dir.path().join("agent.sock");
    bundle.set(
        "/linux/seccomp",
        json!({
            "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": path, "listenerMetadata": "some words",
            "syscalls": [{"names": names, "action": "SCMP_ACT_NOTIFY"}]
        }),
    );
    (bundle, path)
}

/// Serves one connection: takes the state and the listener, then answers until the container is gone. What
/// the runtime sent comes through the channel.
fn agent(
    path: &std::path::Path,
    reply: impl Fn(&Notification) -> Reply + Send + 'static,
) -> Receiver<Value> {
    let socket = UnixListener::bind(path).unwrap();
    let (tell, told) = channel();
    std::thread::spawn(move || {
        // One connection after the other: init, then every exec.
        while let Ok((connection, _)) = socket.accept() {
            let Some((state, listener)) = take(&connection) else {
                continue;
            };
            let _ = tell.send(state);
            serve(&listener, &reply);
        }
    });
    told
}

fn serve(listener: &OwnedFd, reply: &impl Fn(&Notification) -> Reply) {
    loop {
        let mut fds = [PollFd::new(listener, PollFlags::IN)];
        let limit = Timespec {
            tv_sec: 20,
            tv_nsec: 0,
        };
        if poll(&mut fds, Some(&limit)).unwrap() == 0 || fds[0].revents().contains(PollFlags::HUP) {
            return;
        }
        let Ok(notification) = receive(listener.as_fd()) else {
            continue;
        };
        let _ = answer(listener.as_fd(), notification.id, reply(&notification));
    }
}

fn take(connection: &UnixStream) -> Option<(Value, OwnedFd)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = vec![0; 64 * 1024];
    let received = recvmsg(
        connection,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )
    .ok()?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    assert_eq!(fds.len(), 1);
    // The connection is closed after the one message.
    let mut rest = Vec::new();
    std::io::Read::read_to_end(&mut &*connection, &mut rest).unwrap();
    bytes.truncate(received.bytes);
    bytes.extend(rest);
    Some((serde_json::from_slice(&bytes).unwrap(), fds.remove(0)))
}

fn next(told: &Receiver<Value>) -> Value {
    told.recv_timeout(Duration::from_secs(20)).unwrap()
}

const MKDIR: i32 = 83;

#[test]
fn privileged_an_agent_answers_the_calls_of_init_and_is_told_who_it_is() {
    if !ready() {
        return;
    }
    for no_new_privileges in [true, false] {
        let (mut bundle, path) = asking("mkdir /tmp/a; ls /proc/self/fd | wc -w; true", &["mkdir"]);
        bundle.set("/process/noNewPrivileges", json!(no_new_privileges));
        bundle.set("/annotations", json!({"colour": "blue"}));
        let told = agent(&path, |call| {
            assert_eq!(call.nr, MKDIR);
            Reply::Errno(libc::ENOMEDIUM)
        });
        let done = bundle.create();
        done.ok();
        let pid = bundle.pid();
        bundle.start().ok();
        let state = next(&told);
        assert_eq!(state["fds"], json!(["seccompFd"]));
        assert_eq!(state["metadata"], "some words");
        assert_eq!(state["pid"], pid);
        assert_eq!(state["state"]["pid"], pid);
        assert_eq!(state["state"]["id"], bundle.id);
        assert_eq!(state["state"]["annotations"]["colour"], "blue");
        assert_eq!(state["ociVersion"], "1.2.0");
        eventually("the program to end", || bundle.status() == "stopped");
        let err = std::fs::read_to_string(bundle.dir.path().join("err")).unwrap();
        assert!(err.contains("No medium found"), "{err}");
        // 0, 1, 2 and the directory that is listed: the listener is nowhere in the container.
        assert_eq!(bundle.output(), "4");
    }
}

#[test]
fn privileged_calls_the_runtime_makes_may_be_the_agent_s_too() {
    if !ready() {
        return;
    }
    let names = [
        "execve",
        "openat",
        "open",
        "read",
        "close",
        "fcntl",
        "sendmsg",
        "sendto",
        "capset",
        "futex",
        "munmap",
        "madvise",
        "prctl",
        "exit",
        "exit_group",
        "close_range",
    ];
    for no_new_privileges in [true, false] {
        let (mut bundle, path) = asking("echo done", &names);
        bundle.set("/process/noNewPrivileges", json!(no_new_privileges));
        let _told = agent(&path, |_| Reply::Continue);
        assert_eq!(bundle.run().ok(), "done");
    }
}

#[test]
fn privileged_an_agent_answers_the_calls_of_exec() {
    if !ready() {
        return;
    }
    let (bundle, path) = asking("sleep 60", &["mkdir", "execve"]);
    let told = agent(&path, |call| {
        if call.nr == MKDIR {
            Reply::Errno(libc::ENOMEDIUM)
        } else {
            Reply::Continue
        }
    });
    bundle.create().ok();
    bundle.start().ok();
    let init = next(&told);
    // The agent of this test serves one listener at a time.
    drop(told);
    let second = bundle.dir.path().join("agent.sock");
    std::fs::remove_file(&second).unwrap();
    let told = agent(&second, |call| {
        if call.nr == MKDIR {
            Reply::Errno(libc::ENOMEDIUM)
        } else {
            Reply::Continue
        }
    });
    let done = bundle.exec(&["sh", "-c", "mkdir /tmp/a; ls /proc/self/fd | wc -w; exit 7"]);
    assert_eq!((done.code, done.out.as_str()), (7, "4"), "{done:?}");
    assert!(done.err.contains("No medium found"), "{done:?}");
    let state = next(&told);
    assert_eq!(state["state"]["status"], "running");
    assert_eq!(state["state"]["pid"], init["pid"]);
    assert_ne!(state["pid"], init["pid"]);
}

#[test]
fn privileged_without_an_agent_nothing_is_made() {
    if !ready() {
        return;
    }
    let (mut bundle, path) = asking("true", &["mkdir"]);
    bundle
        .run()
        .fails(1, "failed to connect with seccomp agent");
    bundle.assert_gone();
    // A file nobody listens at, and a socket of another kind.
    drop(UnixListener::bind(&path).unwrap());
    bundle
        .run()
        .fails(1, "failed to connect with seccomp agent");
    std::fs::remove_file(&path).unwrap();
    let _datagrams = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    bundle
        .run()
        .fails(1, "failed to connect with seccomp agent");
    bundle.set(
        "/linux/seccomp/listenerPath",
        json!("@axil-test-nobody-is-here"),
    );
    bundle
        .run()
        .fails(1, "failed to connect with seccomp agent");
    bundle.set("/linux/seccomp/listenerPath", json!(""));
    bundle.run().fails(1, "linux.seccomp.listenerPath");
    bundle.set("/linux/seccomp/syscalls/0/names", json!(["write"]));
    let words = "SCMP_ACT_NOTIFY cannot be used for the write syscall";
    bundle.run().fails(1, words);
    bundle.assert_gone();
}

#[test]
fn privileged_an_agent_that_left_after_create_leaves_the_container_created() {
    if !ready() {
        return;
    }
    let (bundle, path) = asking("mkdir /tmp/a && echo made", &["mkdir"]);
    let socket = UnixListener::bind(&path).unwrap();
    bundle.create().ok();
    drop(socket);
    bundle
        .start()
        .fails(1, "failed to connect with seccomp agent");
    assert_eq!(bundle.status(), "created");
    std::fs::remove_file(&path).unwrap();
    let _told = agent(&path, |_| Reply::Continue);
    bundle.start().ok();
    eventually("the program to end", || bundle.status() == "stopped");
    assert_eq!(bundle.output(), "made");
}

#[test]
fn privileged_an_agent_that_dies_leaves_calls_unimplemented() {
    if !ready() {
        return;
    }
    let script = "until test -e /tmp/go; do sleep 0.1; done; mkdir /tmp/a";
    let (bundle, path) = asking(script, &["mkdir"]);
    let socket = UnixListener::bind(&path).unwrap();
    bundle.create().ok();
    let dying = std::thread::spawn(move || {
        let (connection, _) = socket.accept().unwrap();
        take(&connection)
    });
    bundle.start().ok();
    drop(dying.join().unwrap());
    std::fs::write(bundle.rootfs().join("tmp/go"), "").unwrap();
    eventually("the program to end", || bundle.status() == "stopped");
    let err = std::fs::read_to_string(bundle.dir.path().join("err")).unwrap();
    assert!(err.contains("Function not implemented"), "{err}");
}

#[test]
fn privileged_an_agent_that_hangs_up_without_taking_the_listener_stops_the_start() {
    if !ready() {
        return;
    }
    let (bundle, path) = asking("echo ran; sleep 60", &["execve"]);
    let socket = UnixListener::bind(&path).unwrap();
    bundle.create().ok();
    let rude = std::thread::spawn(move || drop(socket.accept()));
    let begun = Instant::now();
    let done = bundle.start();
    rude.join().unwrap();
    assert_ne!(done.code, 0, "{done:?}");
    assert!(begun.elapsed() < Duration::from_secs(30));
    eventually("init to be killed", || bundle.status() == "stopped");
    assert_eq!(bundle.output(), "");
}

#[test]
fn privileged_start_container_hooks_run_under_the_filter_and_without_the_listener() {
    if !ready() {
        return;
    }
    let (mut bundle, path) = asking("echo done", &["mkdir"]);
    let script =
        "test $(ls /proc/self/fd | wc -w) -eq 4 && grep -q '^Seccomp:.2' /proc/self/status";
    bundle.set(
        "/hooks",
        json!({"startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", script],
                                   "env": ["PATH=/bin"]}]}),
    );
    let _told = agent(&path, |_| Reply::Continue);
    assert_eq!(bundle.run().ok(), "done");
}

#[test]
fn privileged_waiting_for_an_agent_can_be_made_killable() {
    if !ready() {
        return;
    }
    let (mut bundle, path) = asking("mkdir /tmp/a && echo made", &["mkdir"]);
    let flags = json!([
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
        "SECCOMP_FILTER_FLAG_LOG"
    ]);
    bundle.set("/linux/seccomp/flags", flags);
    let _told = agent(&path, |_| Reply::Continue);
    if runc_lite::seccomp::supports_wait_killable() {
        assert_eq!(bundle.run().ok(), "made");
    } else {
        bundle.run().fails(1, "WAIT_KILLABLE_RECV");
    }
    bundle.set("/linux/seccomp/flags", json!(["SECCOMP_FILTER_FLAG_NEW"]));
    bundle.run().fails(1, "is not a filter flag");
}

#[test]
fn privileged_exec_of_a_process_document_is_under_the_agent_too() {
    if !ready() {
        return;
    }
    let (bundle, path) = asking("sleep 60", &["mkdir"]);
    let _told = agent(&path, |_| Reply::Continue);
    bundle.create().ok();
    bundle.start().ok();
    std::fs::remove_file(&path).unwrap();
    let document = json!({"args": ["sh", "-c", "mkdir /tmp/a && echo made"], "cwd": "/", "env": ["PATH=/bin"]});
    let file = process_file(&bundle, &document);
    // Nobody is there: nothing runs.
    bundle
        .exec(&["--process", &file])
        .fails(255, "failed to connect with seccomp agent");
    let _told = agent(&path, |_| Reply::Continue);
    assert_eq!(bundle.exec(&["--process", &file]).ok(), "made");
}
