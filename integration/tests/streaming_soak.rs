//! Many sessions of exec, attach and port-forward over both wires, with clients that break off at random moments:
//! nothing of the daemon or the shim may grow (CVE-2025-64329, CVE-2022-23471).
//!
//! `AXIL_TEST_SESSIONS` says how many sessions; the default keeps the test short.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use axil_integration::build::ContainerBuilder;
use axil_integration::children;
use axil_integration::eventually::{PATIENCE, eventually, poll};
use axil_integration::http;
use axil_integration::lab::Lab;
use axil_integration::metrics::{parse, sum};
use axil_integration::node::Node;
use axil_integration::streaming::{Channel, Remote, Spdy, Streams, Wire, reset, upgrade};

/// Sessions when the environment says nothing.
const FEW: usize = 240;

/// Clients at once.
const CLIENTS: usize = 8;

/// Numbers that look random and are the same each time (xorshift).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// What may not grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    daemon_files: usize,
    daemon_threads: usize,
    tasks: usize,
    sessions: usize,
    shim_files: usize,
    shim_threads: usize,
    processes: usize,
    bundle_files: usize,
}

fn entries(path: impl AsRef<Path>) -> usize {
    fs::read_dir(path).map_or(0, Iterator::count)
}

fn resident_kib(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_ascii_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap()
}

fn held(node: &Node, shim: i32, bundle: &Path) -> Held {
    let scrape = http::get("127.0.0.1", node.metrics_port(), "/metrics").unwrap();
    let samples = parse(&scrape.body).unwrap();
    let value = |name: &str| format!("{:.0}", sum(&samples, name, &[])).parse().unwrap();
    let daemon = node.pid();
    Held {
        daemon_files: entries(format!("/proc/{daemon}/fd")),
        daemon_threads: entries(format!("/proc/{daemon}/task")),
        tasks: value("axil_tasks"),
        sessions: value("axil_streaming_sessions"),
        shim_files: entries(format!("/proc/{shim}/fd")),
        shim_threads: entries(format!("/proc/{shim}/task")),
        processes: children::descendants().len(),
        bundle_files: entries(bundle),
    }
}

/// One session, ended in one of many ways.
fn session(node: &axil_integration::cri::Cri, pod: &str, ids: &[String; 2], dice: &mut Dice) {
    let wire = Wire::ALL[usize::try_from(dice.roll(2)).unwrap()];
    let tty = dice.roll(3) == 0;
    let streams = Streams { stdin: true, tty };
    match dice.roll(10) {
        // Port-forward, to a port nobody listens at; the client leaves with or without a word.
        0 => {
            let url = node.port_forward_url(pod, &[]).unwrap();
            let socket = upgrade(&url, Wire::Spdy, &["portforward.k8s.io"]).unwrap();
            let mut spdy = Spdy::new(socket);
            for kind in ["error", "data"] {
                let headers = [("streamtype", kind), ("port", "9"), ("requestid", "0")];
                spdy.open(&headers).unwrap();
            }
            if dice.roll(2) == 0 {
                spdy.receive().unwrap();
                reset(spdy.socket()).unwrap();
            }
            return;
        }
        // A URL that nobody uses, or uses for nothing.
        1 => {
            let url = node.exec_url(&ids[0], &["true"], true, tty).unwrap();
            if dice.roll(2) == 0 {
                drop(upgrade(&url, wire, &["v4.channel.k8s.io"]).unwrap());
            }
            return;
        }
        _ => {}
    }
    let attach = dice.roll(3) == 0;
    let url = if attach {
        // The second container has a terminal.
        node.attach_url(&ids[usize::from(tty)], true, tty)
    } else {
        let script = match dice.roll(4) {
            0 => "exec cat",
            1 => "echo out; echo err >&2; exit 3",
            2 => "dd if=/dev/zero bs=64k count=40 2>/dev/null",
            _ => "exec /no/such/program",
        };
        node.exec_url(&ids[0], &["/bin/sh", "-c", script], true, tty)
    };
    let mut remote = Remote::open(&url.unwrap(), wire, streams).unwrap();
    // Every error from here on is that of a session that has ended already.
    if tty {
        for columns in 0..5 {
            let _over = remote.sender.resize(80 + columns, 24);
        }
    }
    let _over = remote.sender.send(Channel::Stdin, b"some input\n");
    match dice.roll(4) {
        0 => remote.reset().unwrap(),
        1 => drop(remote),
        2 if !attach && !tty => {
            let _over = remote.sender.end_stdin();
            remote.finish().unwrap();
        }
        _ => {
            let _first = remote.receiver.receive();
        }
    }
}

#[test]
fn privileged_sessions_that_break_off_leave_nothing_cve_2025_64329() {
    let Some(lab) = Lab::open() else { return };
    let sessions: usize = std::env::var("AXIL_TEST_SESSIONS").map_or(FEW, |text| {
        text.parse().expect("AXIL_TEST_SESSIONS is a number")
    });
    let (node, image) = lab.node_with_busybox();
    let pod = node.up(&lab.pod("soak")).unwrap();
    let ids = [false, true].map(|tty| {
        let container = ContainerBuilder::new(if tty { "tty" } else { "plain" }, &image)
            .shell("while :; do read line && echo got $line || sleep 1; done")
            .with(|config| {
                config.stdin = true;
                config.tty = tty;
            });
        node.run_in(&pod, &container).unwrap()
    });
    let pod_dir = node.state().join("pods").join(&pod.id);
    let shim = fs::read_to_string(pod_dir.join("sandbox/shim.pid")).unwrap();
    let shim: i32 = shim.trim().parse().unwrap();
    let bundle = pod_dir.join("containers").join(&ids[0]);
    let run = |count: usize, seed: u64| {
        let left = AtomicUsize::new(count);
        std::thread::scope(|scope| {
            for client in 0..CLIENTS {
                let (left, pod, ids) = (&left, &pod.id, &ids);
                let socket = node.client();
                scope.spawn(move || {
                    let mut dice = Dice(seed + u64::try_from(client).unwrap() * 7919);
                    let take = |n: usize| n.checked_sub(1);
                    while left
                        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
                        .is_ok()
                    {
                        session(&socket, pod, ids, &mut dice);
                    }
                });
            }
        });
    };
    // What is made once (threads of pools, cached connections) is there after the first.
    run(CLIENTS * 6, 0x9e37_79b9);
    let settled = || {
        eventually("all sessions are over", || {
            let now = held(&node, shim, &bundle);
            let execs = children::descendants();
            let busy = execs
                .iter()
                .any(|p| p.command.contains("dd if=") || p.command == "cat");
            (now.sessions == 0 && !busy).then_some(now)
        })
    };
    let before = settled();
    let (daemon_kib, shim_kib) = (resident_kib(node.pid()), resident_kib(shim));
    let begun = std::time::Instant::now();
    run(sessions, 0x51_7cc1);
    let took = begun.elapsed();
    let mut last = before;
    let after = poll(PATIENCE, || {
        let now = held(&node, shim, &bundle);
        let grown = [
            (before.daemon_files, now.daemon_files),
            (before.tasks, now.tasks),
            (before.shim_files, now.shim_files),
            (before.shim_threads, now.shim_threads),
            (before.processes, now.processes),
            (before.bundle_files, now.bundle_files),
        ];
        let flat = grown.iter().all(|(before, now)| now <= before);
        last = now;
        (now.sessions == 0 && flat).then_some(now)
    });
    let after = after.unwrap_or_else(|| panic!("grown: {before:?}\nto {last:?}"));
    let (daemon_now, shim_now) = (resident_kib(node.pid()), resident_kib(shim));
    axil_integration::say::out(format!(
        "{sessions} sessions in {took:.1?}\nbefore {before:?}\nafter  {after:?}\nresident KiB: daemon {daemon_kib} \
         -> {daemon_now}, shim {shim_kib} -> {shim_now}"
    ));
    // The containers were never held up.
    assert_eq!(node.sh(&ids[0], "echo fine"), "fine");
    lab.close(node);
}
