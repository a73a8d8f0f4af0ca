//! The command line in runc's form: terminals in the foreground, descriptors that are handed over, where options
//! and files go, and what is said when something is wrong.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use serde_json::json;

use super::bundle::{Bundle, eventually, ready};
use super::lifecycle::receive_descriptor;

/// A terminal: the side a person sits at, and the side programs get.
fn terminal() -> (OwnedFd, OwnedFd) {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let person = openpt(flags).unwrap();
    grantpt(&person).unwrap();
    unlockpt(&person).unwrap();
    let program = ioctl_tiocgptpeer(&person, flags).unwrap();
    (person, program)
}

fn set_size(person: &OwnedFd, rows: u16, columns: u16) {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(person, size).unwrap();
}

/// `command` in a session of its own with `program` as its terminal.
fn on_terminal(command: &Command, program: &OwnedFd) -> Command {
    let mut outer = Command::new("setsid");
    outer
        .args(["--ctty", "--wait"])
        .arg(command.get_program())
        .args(command.get_args())
        .current_dir(command.get_current_dir().unwrap())
        .stdin(Stdio::from(program.try_clone().unwrap()))
        .stdout(Stdio::from(program.try_clone().unwrap()))
        .stderr(Stdio::from(program.try_clone().unwrap()));
    outer
}

/// Reads what the person sees until `words` are among it.
#[track_caller]
fn see(person: &OwnedFd, words: &str) -> String {
    let mut text = String::new();
    let mut buffer = [0u8; 256];
    eventually(words, || {
        let mut polled = [rustix::event::PollFd::new(
            person,
            rustix::event::PollFlags::IN,
        )];
        let second = rustix::event::Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        };
        if rustix::event::poll(&mut polled, Some(&second)).unwrap() > 0
            && let Ok(length) = rustix::io::read(person, &mut buffer)
        {
            text.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
        text.contains(words)
    });
    text
}

#[test]
fn privileged_a_foreground_terminal_is_copied_resized_and_given_back() {
    if !ready() {
        return;
    }
    let mut bundle = Bundle::new(
        "tty; echo ready; \
         while read line; do busybox stty size; echo \"got $line\"; test \"$line\" = end && exit 7; done",
    );
    bundle.set("/process/terminal", json!(true));
    bundle.write();
    let (person, program) = terminal();
    set_size(&person, 31, 97);
    let before = tcgetattr(&program).unwrap();
    let run = bundle.command(&["run", &bundle.id]);
    let mut child = on_terminal(&run, &program).spawn().unwrap();
    let text = see(&person, "ready");
    assert!(text.contains("/dev/pts/0\r\n"), "{text:?}");
    let raw = tcgetattr(&program).unwrap();
    assert!(
        !raw.local_modes
            .intersects(LocalModes::ECHO | LocalModes::ICANON)
    );
    rustix::io::write(&person, b"hello\r").unwrap();
    assert!(see(&person, "got hello").contains("hello\r\n31 97\r\n"));
    set_size(&person, 12, 34);
    // The signal and the line after it come by different ways.
    eventually("the new size arrives", || {
        rustix::io::write(&person, b"again\r").unwrap();
        see(&person, "got again").contains("12 34")
    });
    rustix::io::write(&person, b"end\r").unwrap();
    see(&person, "got end");
    assert_eq!(child.wait().unwrap().code(), Some(7));
    let after = tcgetattr(&program).unwrap();
    assert_eq!(after.local_modes, before.local_modes);
    assert_eq!(after.input_modes, before.input_modes);
    assert_eq!(after.output_modes, before.output_modes);
    bundle.assert_gone();
}

#[test]
fn privileged_a_foreground_terminal_needs_none_of_the_caller() {
    if !ready() {
        return;
    }
    let mut bundle = Bundle::new("tty; busybox seq 1 20000; echo last");
    bundle.set("/process/terminal", json!(true));
    let done = bundle.run();
    let text = done.ok();
    assert!(text.starts_with("/dev/pts/0\n1\n"), "{:.40}", text);
    assert!(text.ends_with("20000\nlast"), "the last output is not lost");
    bundle.assert_gone();
}

#[test]
fn privileged_exec_with_a_terminal_copies_and_tells_the_exit_code() {
    if !ready() {
        return;
    }
    let bundle = Bundle::new("sleep 1000");
    bundle.create().ok();
    bundle.start().ok();
    let mut command = bundle.command(&["exec", "-t", &bundle.id, "sh", "-c"]);
    command.arg("tty; read line; echo \"got $line\"; exit 9");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // The input ends after this line; output goes on.
    child.stdin.take().unwrap().write_all(b"word\n").unwrap();
    let mut text = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert!(text.contains("/dev/pts/0\n"), "{text:?}");
    assert!(text.contains("got word\n"), "{text:?}");
    assert_eq!(child.wait().unwrap().code(), Some(9));
}

#[test]
fn privileged_a_program_hears_that_its_foreground_terminal_is_gone() {
    if !ready() {
        return;
    }
    let mut bundle = Bundle::new(
        "trap 'touch /tmp/hup; exit 3' HUP; echo up; while :; do echo x; sleep 0.1; done",
    );
    bundle.set("/process/terminal", json!(true));
    bundle.write();
    let mut command = bundle.command(&["run", &bundle.id]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut first = [0u8; 2];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut first)
        .unwrap();
    assert_eq!(&first, b"up");
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(3));
    assert!(bundle.rootfs().join("tmp/hup").exists());
}

#[test]
fn privileged_terminals_and_sockets_that_do_not_go_together_are_refused() {
    if !ready() {
        return;
    }
    let mut bundle = Bundle::new("true");
    bundle.write();
    let _listener = UnixListener::bind(bundle.dir.path().join("tty.sock")).unwrap();
    bundle
        .call(&["run", "--console-socket", "tty.sock", &bundle.id])
        .fails(1, "--detach only");
    bundle
        .call(&["create", "--console-socket", "tty.sock", &bundle.id])
        .fails(1, "that has a terminal only");
    bundle.set("/process/terminal", json!(true));
    bundle.write();
    bundle
        .call(&["run", "-d", &bundle.id])
        .fails(1, "a terminal needs --console-socket");
    bundle
        .call(&["create", "--console-socket", "nobody.sock", &bundle.id])
        .fails(1, "nobody.sock");
    bundle.assert_gone();
}

#[test]
fn privileged_handles_of_processes_go_to_the_pidfd_socket() {
    if !ready() {
        return;
    }
    let bundle = Bundle::new("sleep 1000");
    bundle.write();
    let listener = UnixListener::bind(bundle.dir.path().join("pidfd.sock")).unwrap();
    // Options stand before and after the id; files are named from the caller's directory.
    let args = ["run", "-d", &bundle.id, "--pidfd-socket", "pidfd.sock"];
    let mut command = bundle.command(&args);
    command.args(["--pid-file", "pid"]);
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    assert!(status.unwrap().success());
    let init = receive_descriptor(&listener);
    assert_eq!(pid_of(&init), bundle.pid());
    let args = ["exec", "--pidfd-socket", "pidfd.sock", "-d", "--pid-file"];
    let mut command = bundle.command(&args);
    command.args(["exec.pid", &bundle.id, "sleep", "1000"]);
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    assert!(status.unwrap().success());
    let exec = receive_descriptor(&listener);
    let pid = std::fs::read_to_string(bundle.dir.path().join("exec.pid")).unwrap();
    assert_eq!(pid_of(&exec).to_string(), pid);
    bundle
        .call(&["exec", "--pidfd-socket", "nobody.sock", &bundle.id, "true"])
        .fails(255, "nobody.sock");
    runc_lite::sys::send_signal(init.as_fd(), libc::SIGKILL).unwrap();
    eventually("the handle ends the container", || {
        bundle.status() == "stopped"
    });
}

/// The process a pidfd stands for, as its fdinfo tells (pidfd_open(2)).
fn pid_of(pidfd: &OwnedFd) -> i32 {
    use std::os::fd::AsRawFd;
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Pid:"));
    line.unwrap().trim().parse().unwrap()
}

#[test]
fn privileged_descriptors_that_are_not_open_cannot_be_preserved() {
    if !ready() {
        return;
    }
    let bundle = Bundle::new("true");
    bundle.write();
    bundle
        .call(&["run", "--preserve-fds", "60", &bundle.id])
        .fails(1, "is not open");
    bundle.assert_gone();
}

#[test]
fn privileged_sockets_of_a_service_manager_reach_the_program() {
    if !ready() {
        return;
    }
    let bundle = Bundle::new("echo $LISTEN_FDS $LISTEN_PID; cat <&3");
    bundle.write();
    std::fs::write(bundle.dir.path().join("three"), "from three").unwrap();
    let command = bundle.command(&["run", &bundle.id]);
    let words: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| format!("'{}'", word.to_str().unwrap()))
        .collect();
    // LISTEN_PID names the process that takes them: the shell that becomes the runtime.
    let script = format!(
        "exec 3<three; export LISTEN_FDS=1 LISTEN_PID=$$; exec {}",
        words.join(" ")
    );
    let output = Command::new("/bin/sh")
        .args(["-c", &script])
        .current_dir(bundle.dir.path())
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "1 1\nfrom three",
        "{output:?}"
    );
}

#[test]
fn privileged_success_is_silent_and_failures_are_told_twice() {
    if !ready() {
        return;
    }
    let bundle = Bundle::new("true");
    let done = bundle.run();
    assert_eq!((done.code, done.err.as_str()), (0, ""));
    assert_eq!(bundle.log(), "");
    let told = bundle
        .call(&["start", "nobody"])
        .fails(1, "container \"nobody\" does not exist");
    let line: serde_json::Value = serde_json::from_str(bundle.log().trim()).unwrap();
    assert_eq!(line["level"], "error");
    assert_eq!(line["msg"], told.as_str());
    let time = line["time"].as_str().unwrap();
    assert!(time.len() == 20 && time.ends_with('Z'), "{time}");
    for (args, words) in [
        (vec!["kill", "nobody", "TERM"], "does not exist"),
        (vec!["delete", "nobody"], "does not exist"),
        (vec!["state", "nobody"], "does not exist"),
        (vec!["kill", "nobody", "NOSUCH"], "unknown signal"),
        (vec!["start"], "a container id is needed"),
        (vec!["--root", "/", "list"], "is the root directory"),
        (vec!["checkpoint", "nobody"], "not built in"),
        (vec!["restore", "nobody"], "not built in"),
    ] {
        bundle.call(&args).fails(1, words);
    }
    bundle
        .call(&["exec", "nobody", "true"])
        .fails(255, "does not exist");
    bundle.call(&["delete", "--force", "nobody"]).ok();
}

#[test]
fn privileged_without_a_log_errors_are_its_lines_on_standard_error() {
    if !ready() {
        return;
    }
    let bundle = Bundle::new("true");
    let call = |format: &[&str]| {
        let mut command = Command::new(super::bundle::runtime());
        command.arg("--root").arg(bundle.state_root()).args(format);
        let output = command.args(["state", "nobody"]).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    let text = call(&[]);
    let words = "level=error msg=\"container \\\"nobody\\\" does not exist\"";
    assert!(text.starts_with("time=") && text.contains(words), "{text}");
    let line: serde_json::Value = serde_json::from_str(&call(&["--log-format", "json"])).unwrap();
    assert_eq!(line["level"], "error");
    assert_eq!(line["msg"], "container \"nobody\" does not exist");
}

#[test]
fn privileged_debug_lines_go_to_the_log_or_to_standard_error() {
    if !ready() {
        return;
    }
    let mut bundle = Bundle::new("true");
    bundle.place_anywhere();
    bundle.write();
    let root = bundle.state_root();
    let mut command = Command::new(super::bundle::runtime());
    command.args(["--debug", "--root"]).arg(&root);
    let output = command
        .args(["run", "--bundle"])
        .arg(bundle.dir.path())
        .arg(&bundle.id)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("level=debug msg="), "{text}");
    bundle.call(&["--debug", "run", &bundle.id]).ok();
    assert!(bundle.log().contains("\"level\":\"debug\""));
}

#[test]
fn privileged_every_command_gives_its_help() {
    if !ready() {
        return;
    }
    let bundle = Bundle::new("true");
    for name in [
        "checkpoint",
        "create",
        "delete",
        "exec",
        "features",
        "kill",
        "list",
        "restore",
        "run",
        "spec",
        "start",
        "state",
    ] {
        for option in ["-h", "--help"] {
            let answer = bundle.call(&[name, option]);
            if option == "--help" && ["checkpoint", "restore"].contains(&name) {
                // podman asks like this whether there are checkpoints.
                answer.fails(1, "not built in");
                continue;
            }
            let text = answer.ok();
            assert!(
                text.starts_with(&format!("NAME:\n   runc-lite {name} - ")),
                "{text}"
            );
        }
    }
    assert!(
        bundle
            .call(&["-h"])
            .ok()
            .starts_with("NAME:\n   runc-lite - ")
    );
    // The program's own options are its own.
    let bundle = Bundle::new("sleep 1000");
    bundle.create().ok();
    bundle.start().ok();
    assert_eq!(bundle.exec(&["echo", "-h"]).ok(), "-h");
}

#[test]
fn privileged_a_created_container_ends_on_a_signal_like_any_other() {
    if !ready() {
        return;
    }
    let bundle = Bundle::new("sleep 1000");
    bundle.create().ok();
    bundle.call(&["kill", &bundle.id, "0"]).ok();
    assert_eq!(bundle.status(), "created");
    bundle.call(&["kill", &bundle.id, "TERM"]).ok();
    eventually("init ends", || bundle.status() == "stopped");
    bundle
        .call(&["kill", &bundle.id, "0"])
        .fails(1, "container not running");
    bundle.call(&["delete", &bundle.id]).ok();
    bundle.assert_gone();
}

#[test]
fn privileged_kill_reaches_what_outlives_an_init_of_the_hosts_pid_namespace() {
    if !ready() {
        return;
    }
    let mut bundle = Bundle::new("sleep 1000");
    bundle.config["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .retain(|namespace| namespace["type"] != "pid");
    bundle.create().ok();
    bundle.start().ok();
    let mut command = bundle.command(&["exec", "-d", "--pid-file", "exec.pid", &bundle.id]);
    command.args(["sleep", "1000"]);
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    assert!(status.unwrap().success());
    let pid = std::fs::read_to_string(bundle.dir.path().join("exec.pid")).unwrap();
    bundle.call(&["kill", &bundle.id, "TERM"]).ok();
    eventually("init ends", || bundle.status() == "stopped");
    let is_alive = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
        stat.is_ok_and(|stat| !stat.contains(") Z "))
    };
    assert!(is_alive());
    bundle.call(&["kill", &bundle.id, "KILL"]).ok();
    eventually("the other process ends", || !is_alive());
    bundle
        .call(&["kill", &bundle.id, "KILL"])
        .fails(1, "container not running");
}
