//! Exec and Attach as kubectl and crictl use them: both wires, terminals, half close, exit codes, clients that
//! vanish or do not keep up, URLs that were used, a daemon that was killed.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use axil_integration::build::ContainerBuilder;
use axil_integration::children;
use axil_integration::eventually::eventually;
use axil_integration::lab::Lab;
use axil_integration::node::{Node, Pod};
use axil_integration::streaming::{
    Channel, Ended, Event, Remote, Streams, WebSocket, Wire, request, upgrade,
};
use axil_proto::cri::ContainerState;
use tonic::Code;

/// A node with one pod and one idle container.
fn idle(lab: &Lab) -> (Node, Pod, String, String) {
    let (node, image) = lab.node_with_busybox();
    let pod = node.up(&lab.pod("stream")).unwrap();
    let container = ContainerBuilder::new("c", &image).shell("sleep 300");
    let id = node.run_in(&pod, &container).unwrap();
    (node, pod, id, image)
}

fn exec(node: &Node, id: &str, wire: Wire, streams: Streams, script: &str) -> Remote {
    let command = ["/bin/sh", "-c", script];
    let url = node
        .exec_url(id, &command, streams.stdin, streams.tty)
        .unwrap();
    Remote::open(&url, wire, streams).unwrap()
}

fn attach(node: &Node, id: &str, wire: Wire, streams: Streams) -> Remote {
    let url = node.attach_url(id, streams.stdin, streams.tty).unwrap();
    Remote::open(&url, wire, streams).unwrap()
}

const INPUT: Streams = Streams {
    stdin: true,
    tty: false,
};
const OUTPUT: Streams = Streams {
    stdin: false,
    tty: false,
};
const TERMINAL: Streams = Streams {
    stdin: true,
    tty: true,
};

/// Waits until the shim copies a container's output to so many clients: axild has a FIFO open for each, and takes
/// its name away when the shim has it open as well.
fn attached(node: &Node, pod: &Pod, id: &str, clients: usize) {
    let fifo = format!("pods/{}/containers/{id}/a", pod.id);
    eventually("all are attached", || {
        let files = std::fs::read_dir(format!("/proc/{}/fd", node.pid())).unwrap();
        let links = files.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
        let texts = links.map(|link| link.to_string_lossy().into_owned());
        let taken = texts.filter(|t| t.contains(&fifo) && t.ends_with(".out (deleted)"));
        (taken.count() == clients).then_some(())
    });
}

/// The FIFOs in a container's bundle.
fn fifos(node: &Node, pod: &Pod, id: &str) -> Vec<String> {
    use std::os::unix::fs::FileTypeExt as _;
    let bundle = node
        .state()
        .join(format!("pods/{}/containers/{id}", pod.id));
    let entries = std::fs::read_dir(bundle).unwrap().flatten();
    let fifos = entries.filter(|entry| entry.file_type().unwrap().is_fifo());
    fifos
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect()
}

#[test]
fn privileged_exec_output_and_exit_codes_come_over_both_wires() {
    let Some(lab) = Lab::open() else { return };
    let (node, pod, id, _) = idle(&lab);
    for wire in Wire::ALL {
        let script = "echo out; echo err >&2; exit 5";
        let ended = exec(&node, &id, wire, OUTPUT, script).finish().unwrap();
        assert_eq!(
            (ended.stdout.as_slice(), ended.stderr.as_slice()),
            (&b"out\n"[..], &b"err\n"[..]),
            "{wire:?}"
        );
        assert_eq!(ended.exit_code(), Some(5), "{wire:?}: {}", ended.status);
        let ended = exec(&node, &id, wire, OUTPUT, "true").finish().unwrap();
        assert_eq!(ended.exit_code(), Some(0), "{wire:?}: {}", ended.status);
        let killed = exec(&node, &id, wire, OUTPUT, "kill -9 $$").finish();
        assert_eq!(killed.unwrap().exit_code(), Some(137), "{wire:?}");
    }
    let url = node.exec_url(&id, &["/no/such"], false, false).unwrap();
    let ended = Remote::open(&url, Wire::Spdy, OUTPUT).unwrap().finish();
    let status = ended.unwrap().status.to_string();
    assert!(status.contains("/no/such"), "{status}");
    assert!(fifos(&node, &pod, &id).is_empty());
    lab.close(node);
}

#[test]
fn privileged_exec_input_ends_and_every_byte_of_it_comes_back() {
    let Some(lab) = Lab::open() else { return };
    let (node, _, id, _) = idle(&lab);
    for wire in Wire::ALL {
        let Remote {
            mut sender,
            mut receiver,
        } = exec(&node, &id, wire, INPUT, "cat; echo end >&2");
        let sent: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
        let bytes = sent.clone();
        let writing = std::thread::spawn(move || {
            for piece in bytes.chunks(40_000) {
                sender.send(Channel::Stdin, piece).unwrap();
            }
            sender.end_stdin().unwrap();
            sender
        });
        let ended = receiver.finish().unwrap();
        writing.join().unwrap();
        assert_eq!(ended.exit_code(), Some(0), "{wire:?}: {}", ended.status);
        assert!(ended.stdout == sent, "{wire:?}: {}", ended.stdout.len());
        assert_eq!(ended.stderr, b"end\n", "{wire:?}");
    }
    lab.close(node);
}

#[test]
fn privileged_exec_has_a_terminal_with_the_clients_size() {
    let Some(lab) = Lab::open() else { return };
    let (node, _, id, _) = idle(&lab);
    for wire in Wire::ALL {
        // A read that the signal interrupts ends as one at the end of the input.
        let script = "trap 'echo size $(stty size)' WINCH; echo ready $TERM; tty; \
                      while [ \"$line\" != end ]; do read line; echo got $line; done; cat";
        let mut remote = exec(&node, &id, wire, TERMINAL, script);
        remote.receiver.until("/dev/pts/").unwrap();
        remote.sender.resize(101, 37).unwrap();
        // Dash runs a trap when the read returns.
        remote.sender.send(Channel::Stdin, b"one\n").unwrap();
        remote.receiver.until("size 37 101").unwrap();
        remote.sender.resize(80, 24).unwrap();
        remote.sender.send(Channel::Stdin, b"two\n").unwrap();
        remote.receiver.until("size 24 80").unwrap();
        remote.sender.send(Channel::Stdin, b"end\n").unwrap();
        remote.receiver.until("got end").unwrap();
        // The end of a terminal's input is a character.
        remote.sender.send(Channel::Stdin, b"\x04").unwrap();
        let ended = remote.finish().unwrap();
        assert_eq!(ended.exit_code(), Some(0), "{wire:?}: {}", ended.status);
    }
    let term = exec(&node, &id, Wire::Spdy, TERMINAL, "echo $TERM").finish();
    assert_eq!(term.unwrap().text(), "xterm");
    lab.close(node);
}

/// The processes below this test whose command line holds `part`.
fn count(part: &str) -> usize {
    let all = children::descendants();
    all.iter()
        .filter(|p| !p.is_zombie && p.command.contains(part))
        .count()
}

#[test]
fn privileged_a_command_whose_client_vanishes_is_ended() {
    let Some(lab) = Lab::open() else { return };
    let (node, pod, id, _) = idle(&lab);
    for (wire, seconds) in [(Wire::Spdy, 47_110), (Wire::WebSocket, 47_111)] {
        let (child, stubborn) = (seconds + 100, seconds + 200);
        let script = format!(
            "sleep {child} & (trap '' HUP; echo ready; exec sleep {stubborn}) & exec sleep {seconds}"
        );
        let mut remote = exec(&node, &id, wire, OUTPUT, &script);
        remote.receiver.until("ready").unwrap();
        remote.reset().unwrap();
        eventually("the command and its child are hung up", || {
            let left = count(&format!("sleep {seconds}")) + count(&format!("sleep {child}"));
            (left == 0).then_some(())
        });
        assert_eq!(
            count(&format!("sleep {stubborn}")),
            1,
            "who ignores the hang-up lives on"
        );
        let mut deaf = exec(&node, &id, wire, OUTPUT, "trap '' HUP; echo ready; yes");
        deaf.receiver.until("ready").unwrap();
        deaf.reset().unwrap();
        eventually("a command that ignores it is killed", || {
            (count("/bin/sh -c trap '' HUP; echo ready; yes") == 0).then_some(())
        });
    }
    assert!(fifos(&node, &pod, &id).is_empty());
    node.stop(&id, 0).unwrap();
    lab.close(node);
}

#[test]
fn privileged_a_slow_client_holds_up_its_command_and_nothing_else() {
    let Some(lab) = Lab::open() else { return };
    let (node, _, id, _) = idle(&lab);
    let script = "dd if=/dev/zero bs=64k count=512 2>/dev/null; echo done > /tmp/done";
    for wire in Wire::ALL {
        node.sh(&id, "rm -f /tmp/done");
        let slow = exec(&node, &id, wire, OUTPUT, script);
        // Others go on meanwhile; 32 MiB do not fit into any buffer on the way.
        assert_eq!(node.sh(&id, "sleep 1; ls /tmp"), "", "{wire:?}");
        let ended = slow.finish().unwrap();
        assert_eq!(ended.stdout.len(), 512 << 16, "{wire:?}");
        assert_eq!(ended.exit_code(), Some(0), "{wire:?}");
        assert_eq!(node.sh(&id, "cat /tmp/done"), "done");
    }
    lab.close(node);
}

#[test]
fn privileged_output_ends_with_the_command_though_its_child_lives_on() {
    let Some(lab) = Lab::open() else { return };
    let (node, _, id, _) = idle(&lab);
    for wire in Wire::ALL {
        let begun = Instant::now();
        let script = "sleep 47333 & echo started";
        let ended = exec(&node, &id, wire, OUTPUT, script).finish().unwrap();
        assert_eq!(
            (ended.text().as_str(), ended.exit_code()),
            ("started", Some(0))
        );
        assert!(begun.elapsed() < Duration::from_secs(20), "{wire:?}");
    }
    assert_eq!(count("sleep 47333"), 2);
    lab.close(node);
}

#[test]
fn privileged_requests_that_cannot_be_are_refused_by_field() {
    let Some(lab) = Lab::open() else { return };
    let (node, pod, id, image) = idle(&lab);
    let exec = |id: &str, cmd: &[&str], tty, stdout, stderr| {
        let request = axil_proto::cri::ExecRequest {
            container_id: id.to_owned(),
            cmd: cmd.iter().map(|word| (*word).to_owned()).collect(),
            tty,
            stdin: false,
            stdout,
            stderr,
        };
        node.runtime(|mut client| async move { client.exec(request).await })
            .map(|answer| answer.url)
            .unwrap_err()
    };
    for (status, code, word) in [
        (
            exec(&id, &["a"], true, true, true),
            Code::InvalidArgument,
            "stderr",
        ),
        (
            exec(&id, &[""], false, true, true),
            Code::InvalidArgument,
            "cmd [\"\"]",
        ),
        (
            exec(&id, &["a"], false, false, false),
            Code::InvalidArgument,
            "stdin",
        ),
        (
            exec(&id, &[], false, true, true),
            Code::InvalidArgument,
            "cmd",
        ),
        (
            exec("0123", &["a"], false, true, true),
            Code::NotFound,
            "0123",
        ),
        (
            exec("", &["a"], false, true, true),
            Code::InvalidArgument,
            "container_id",
        ),
    ] {
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(word), "{status}");
    }
    let created = node
        .create_in(
            &pod,
            &ContainerBuilder::new("not-run", &image).shell("true"),
        )
        .unwrap();
    for status in [
        exec(&created, &["a"], false, true, true),
        node.attach_url(&created, false, false).unwrap_err(),
    ] {
        assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    }
    lab.close(node);
}

#[test]
fn privileged_a_url_is_good_once_and_only_for_an_upgrade_cve_2018_1002105() {
    let Some(lab) = Lab::open() else { return };
    let (node, _, id, _) = idle(&lab);
    let url = || node.exec_url(&id, &["true"], false, false).unwrap();
    assert!(url().starts_with("http://127.0.0.1:"), "{}", url());
    let used = url();
    let remote = Remote::open(&used, Wire::Spdy, OUTPUT).unwrap();
    let again = upgrade(&used, Wire::Spdy, &["v4.channel.k8s.io"]).unwrap_err();
    assert!(again.to_string().contains(" 404 "), "{again}");
    remote.finish().unwrap();
    // A request that is no upgrade uses the URL up, and is told nothing.
    let plain = url();
    assert_eq!(request(&plain, "GET", &[]).unwrap().status, 400);
    assert_eq!(request(&plain, "GET", &[]).unwrap().status, 404);
    let other_kind = url().replace("/exec/", "/attach/");
    assert_eq!(request(&other_kind, "GET", &[]).unwrap().status, 404);
    let base = url();
    let base = base.rsplit_once('/').unwrap().0;
    for path in ["", "/", "/0000", "/../exec"] {
        let answer = request(&format!("{base}{path}"), "GET", &[]).unwrap();
        assert_eq!(answer.status, 404, "{path}");
    }
    let foreign = upgrade(&url(), Wire::WebSocket, &["chat"]).unwrap_err();
    assert!(foreign.to_string().contains(" 403 "), "{foreign}");
    lab.close(node);
}

#[test]
fn privileged_attached_clients_all_see_the_output_and_share_the_input() {
    let Some(lab) = Lab::open() else { return };
    let (mut node, image) = lab.node_with_busybox();
    let pod = node.up(&lab.pod("attach")).unwrap();
    let container = ContainerBuilder::new("c", &image)
        .shell("while read line; do echo out $line; echo err $line >&2; done; echo over; exit 3")
        .with(|config| config.stdin = true);
    let id = node.run_in(&pod, &container).unwrap();
    let mut first = attach(&node, &id, Wire::Spdy, INPUT);
    let mut second = attach(&node, &id, Wire::WebSocket, INPUT);
    let mut silent = attach(&node, &id, Wire::Spdy, OUTPUT);
    // Output before they are attached is in the log alone.
    attached(&node, &pod, &id, 3);
    let mut said = Vec::new();
    for (client, word) in [(0, "one"), (1, "two"), (0, "three")] {
        let sender = if client == 0 {
            &mut first.sender
        } else {
            &mut second.sender
        };
        sender
            .send(Channel::Stdin, format!("{word}\n").as_bytes())
            .unwrap();
        said.push(word);
        for receiver in [
            &mut first.receiver,
            &mut second.receiver,
            &mut silent.receiver,
        ] {
            let mut seen = (String::new(), String::new());
            while !(seen.0.contains(word) && seen.1.contains(word)) {
                match receiver.receive().unwrap() {
                    Event::Bytes(Channel::Stdout, bytes) => {
                        seen.0.push_str(&String::from_utf8(bytes).unwrap());
                    }
                    Event::Bytes(Channel::Stderr, bytes) => {
                        seen.1.push_str(&String::from_utf8(bytes).unwrap());
                    }
                    other => panic!("{other:?} after {seen:?}"),
                }
            }
        }
    }
    // A client that leaves ends nothing.
    first.reset().unwrap();
    second.sender.send(Channel::Stdin, b"four\n").unwrap();
    second.receiver.until("out four").unwrap();
    node.restart();
    let mut third = attach(&node, &id, Wire::WebSocket, INPUT);
    third.sender.send(Channel::Stdin, b"five\n").unwrap();
    third.receiver.until("out five").unwrap();
    node.stop(&id, 0).unwrap();
    let ended: Ended = third.finish().unwrap();
    assert_eq!(ended.status["status"], "Success", "{}", ended.status);
    let log = node.log_of(&pod, "c");
    for word in ["one", "two", "three", "four", "five"] {
        assert_eq!(log.matches(&format!("out {word}")).count(), 1, "{log}");
    }
    lab.close(node);
}

#[test]
fn privileged_stdin_once_ends_with_the_first_client() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let pod = node.up(&lab.pod("once")).unwrap();
    for (wire, leaves_by_reset) in [
        (Wire::Spdy, false),
        (Wire::WebSocket, false),
        (Wire::Spdy, true),
    ] {
        let name = format!("{wire:?}-{leaves_by_reset}").to_lowercase();
        let container = ContainerBuilder::new(&name, &image)
            .shell("cat; echo over; exit 4")
            .with(|config| {
                config.stdin = true;
                config.stdin_once = true;
                // Nothing is logged: the output is for who attaches.
                config.log_path = String::new();
            });
        let id = node.run_in(&pod, &container).unwrap();
        let mut remote = attach(&node, &id, wire, INPUT);
        remote.sender.send(Channel::Stdin, b"said\n").unwrap();
        remote.receiver.until("said").unwrap();
        if leaves_by_reset {
            remote.reset().unwrap();
        } else {
            remote.sender.end_stdin().unwrap();
            let ended = remote.finish().unwrap();
            assert_eq!(ended.text(), "over", "{name}");
            assert_eq!(ended.status["status"], "Success", "{name}");
        }
        assert_eq!(node.exit_of(&id).exit_code, 4, "{name}");
    }
    lab.close(node);
}

#[test]
fn privileged_a_client_leaves_by_the_end_of_its_input() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let pod = node.up(&lab.pod("leave")).unwrap();
    for (tty, once) in [(false, false), (true, false), (true, true)] {
        let name = format!("c-{tty}-{once}");
        let container = ContainerBuilder::new(&name, &image)
            .shell("while read line; do echo got $line; done; sleep 300")
            .with(|config| {
                (config.stdin, config.stdin_once, config.tty) = (true, once, tty);
            });
        let id = node.run_in(&pod, &container).unwrap();
        let streams = if tty { TERMINAL } else { INPUT };
        for wire in Wire::ALL.into_iter().take(if once { 1 } else { 2 }) {
            let mut remote = attach(&node, &id, wire, streams);
            remote.sender.send(Channel::Stdin, b"word\n").unwrap();
            remote.sender.end_stdin().unwrap();
            let ended = remote.finish().unwrap();
            assert!(
                ended.text().contains("got word"),
                "{name} {wire:?}: {ended:?}"
            );
            assert_eq!(ended.status["status"], "Success", "{name} {wire:?}");
        }
        let status = node.container_status(&id).unwrap();
        assert_eq!(status.state(), ContainerState::ContainerRunning, "{name}");
    }
    lab.close(node);
}

#[test]
fn privileged_a_terminal_returns_to_the_margin_and_its_log_does_not() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let pod = node.up(&lab.pod("lines")).unwrap();
    let container = ContainerBuilder::new("c", &image)
        .shell("read go; printf 'one\\ntwo\\n'; sleep 300")
        .with(|config| {
            (config.stdin, config.tty) = (true, true);
        });
    let id = node.run_in(&pod, &container).unwrap();
    for wire in Wire::ALL {
        let ended = exec(&node, &id, wire, TERMINAL, "printf 'a\\nb\\n'").finish();
        assert_eq!(ended.unwrap().stdout, b"a\r\nb\r\n", "{wire:?}");
    }
    let mut remote = attach(&node, &id, Wire::Spdy, TERMINAL);
    remote.sender.send(Channel::Stdin, b"go\n").unwrap();
    remote.receiver.until("one\r\ntwo\r\n").unwrap();
    remote.reset().unwrap();
    let log = eventually("the log has it", || {
        let log = node.log_of(&pod, "c");
        log.contains("two").then_some(log)
    });
    assert!(!log.contains('\r'), "{log:?}");
    assert!(
        log.contains(" F one\n") && log.contains(" F two\n"),
        "{log:?}"
    );
    lab.close(node);
}

#[test]
fn privileged_attach_to_a_terminal_resizes_it() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let pod = node.up(&lab.pod("tty")).unwrap();
    // A read that the signal interrupts ends as one at the end of the input.
    let script = "trap 'echo size $(stty size)' WINCH; while :; do read line; echo got $line; done";
    let container = ContainerBuilder::new("c", &image)
        .shell(script)
        .with(|config| {
            config.stdin = true;
            config.tty = true;
        });
    let id = node.run_in(&pod, &container).unwrap();
    for wire in Wire::ALL {
        let mut remote = attach(&node, &id, wire, TERMINAL);
        remote.sender.send(Channel::Stdin, b"hello\n").unwrap();
        remote.receiver.until("got hello").unwrap();
        let columns = if wire == Wire::Spdy { 99 } else { 98 };
        remote.sender.resize(columns, 33).unwrap();
        remote.sender.send(Channel::Stdin, b"more\n").unwrap();
        let size = format!("size 33 {columns}");
        remote.receiver.until(&size).unwrap();
        remote.reset().unwrap();
    }
    lab.close(node);
}

/// Steps of half a MiB.
const STEPS: usize = 64;

#[test]
fn privileged_an_attached_client_that_does_not_keep_up_is_let_go() {
    let Some(lab) = Lab::open() else { return };
    let (node, image) = lab.node_with_busybox();
    let pod = node.up(&lab.pod("slow")).unwrap();
    // Each step fits into what a client may be behind; all of them do not fit into any buffers on the way.
    let script = "while read step; do dd if=/dev/zero bs=64k count=8 2>/dev/null | tr '\\0' 'x' | fold -w 1000; \
                  echo; echo complete $step; done";
    let container = ContainerBuilder::new("c", &image)
        .shell(script)
        .with(|config| config.stdin = true);
    let id = node.run_in(&pod, &container).unwrap();
    let slow = attach(&node, &id, Wire::Spdy, OUTPUT);
    let mut fast = attach(&node, &id, Wire::WebSocket, INPUT);
    // The container, its log and the other client go on though one does not read.
    for step in 1..=STEPS {
        fast.sender
            .send(Channel::Stdin, format!("{step}\n").as_bytes())
            .unwrap();
        fast.receiver.until(&format!("complete {step}\n")).unwrap();
    }
    eventually("the log is complete", || {
        let last = format!("F complete {STEPS}\n");
        node.log_of(&pod, "c").contains(&last).then_some(())
    });
    let ended = slow.finish().unwrap();
    let status = ended.status.to_string();
    assert!(status.contains("not read in time"), "{status}");
    assert!(ended.stdout.len() < STEPS << 19, "{}", ended.stdout.len());
    fast.reset().unwrap();
    lab.close(node);
}

#[test]
fn privileged_frames_that_attack_end_the_session_alone() {
    let Some(lab) = Lab::open() else { return };
    let (node, _, id, _) = idle(&lab);
    let url = || node.exec_url(&id, &["cat"], true, false).unwrap();
    let spdy = || {
        let socket = upgrade(&url(), Wire::Spdy, &["v4.channel.k8s.io"]).unwrap();
        axil_integration::streaming::Spdy::new(socket)
    };
    let ends = |mut spdy: axil_integration::streaming::Spdy| {
        use axil_integration::streaming::Frame;
        loop {
            match spdy.receive() {
                Ok(Frame::End) | Err(_) => return,
                Ok(_) => {}
            }
        }
    };
    // SETTINGS that claims 2^24 entries (CVE-2026-35469), a stream that is opened twice, a version of its own.
    let mut settings = spdy();
    settings.control(4, &(1u32 << 24).to_be_bytes()).unwrap();
    ends(settings);
    let mut twice = spdy();
    twice.open(&[("streamtype", "error")]).unwrap();
    let mut payload = 1u32.to_be_bytes().to_vec();
    payload.extend([0; 6]);
    twice.control(1, &payload).unwrap();
    ends(twice);
    // Ten thousand streams: all but the expected are refused, and the session goes on to be of no use.
    let mut many = spdy();
    for _ in 0..10_000 {
        if many.open(&[("streamtype", "nonsense")]).is_err() {
            break;
        }
    }
    drop(many);
    // A WebSocket message that claims to be 4 GiB.
    let socket = upgrade(&url(), Wire::WebSocket, &["v5.channel.k8s.io"]).unwrap();
    use std::io::Write as _;
    let mut head = vec![0x82, 0xff];
    head.extend((4u64 << 30).to_be_bytes());
    head.extend([0; 4]);
    (&socket).write_all(&head).unwrap();
    let mut websocket = WebSocket::new(socket);
    while let Ok(message) = websocket.receive() {
        if message == axil_integration::streaming::Message::End {
            break;
        }
    }
    let fine = exec(&node, &id, Wire::Spdy, OUTPUT, "echo fine").finish();
    assert_eq!(fine.unwrap().text(), "fine");
    lab.close(node);
}

#[test]
fn privileged_execs_of_a_daemon_that_was_killed_are_ended_by_the_next() {
    let Some(lab) = Lab::open() else { return };
    let (mut node, _, id, _) = idle(&lab);
    let mut remote = exec(
        &node,
        &id,
        Wire::Spdy,
        INPUT,
        "echo ready; exec sleep 47444",
    );
    remote.receiver.until("ready").unwrap();
    node.kill9();
    assert_eq!(count("sleep 47444"), 1);
    node.launch(None).unwrap();
    eventually("the orphan is ended", || {
        (count("sleep 47444") == 0).then_some(())
    });
    let fine = exec(&node, &id, Wire::Spdy, OUTPUT, "echo fine").finish();
    assert_eq!(fine.unwrap().text(), "fine");
    lab.close(node);
}
