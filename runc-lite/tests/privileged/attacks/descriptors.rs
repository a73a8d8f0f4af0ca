//! Descriptors of the host that a container could find: tests 1, 4 and 16, and the descriptors of 3.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::json;

use super::arena::{
    Canary, arm, armed, assert_nothing_got, empower, let_loose, trace, traced_create, tried,
    under_strace,
};
use super::loops::{leak_host_directories, newcomers_under_attack};
use crate::bundle::{Bundle, eventually, ready};

/// Also by the strongest init there is short of one that can mount: nothing protects a newcomer's memory from one
/// that may trace, so there must be nothing of the host in reach.
#[test]
fn privileged_cve_2016_9962_init_finds_nothing_of_the_host_in_newcomers() {
    if !ready() {
        return;
    }
    let tried = newcomers_under_attack(8);
    assert!(
        tried.iter().all(|(count, _)| *count >= 8),
        "the attacker had no power: {tried:?}"
    );
}

/// Inits born into the PID namespace of a container that attacks them; gives what the attacker said.
fn neighbours_under_attack(capabilities: &[&str]) -> String {
    let mut first = armed(&["crawl", "600"]);
    empower(&mut first, capabilities);
    let_loose(&first);
    for _ in 0..40 {
        let mut second = Bundle::new("true");
        second.config["linux"]["namespaces"][0]["path"] =
            json!(format!("/proc/{}/ns/pid", first.pid()));
        second.write();
        let mut command = second.command(&["run", &second.id]);
        command.env("AXIL_HOST_SECRET", "1");
        command.output().unwrap();
        if first.output().matches("TRIED").count() >= 4 {
            break;
        }
    }
    first.output()
}

/// As above, but the newcomer is the init of another container in the same PID namespace.
#[test]
fn privileged_cve_2016_9962_a_neighbour_finds_no_descriptor_in_a_new_init() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    let out = neighbours_under_attack(&["CAP_KILL"]);
    assert_nothing_got(&out);
    assert!(tried(&out, "victims") >= 4, "{out}");
    // One that may trace is in the place of the new init while that has the host's root and the runtime's
    // privileges: whoever puts such a container into a shared PID namespace trusts it with the host. What init
    // does not need is out of its reach all the same.
    let leaked = File::open(canary.path()).unwrap();
    rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).unwrap();
    let out = neighbours_under_attack(&["CAP_KILL", "CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE"]);
    assert!(tried(&out, "attached") > 0, "{out}");
    for forbidden in ["axil-canary", "log.json", "/state", "environment"] {
        assert!(!out.contains(forbidden), "{forbidden}: {out}");
    }
    drop(leaked);
    canary.assert_alive();
}

/// Whoever is born into an existing PID namespace is seen there at once: its descriptors are closed by the process
/// in between, which nobody there sees. The attacks above meet the difference only when they are quick enough.
#[test]
fn privileged_cve_2016_9962_descriptors_are_closed_before_the_birth() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    let calls = "clone3,close_range";
    let running = Bundle::new("sleep 1000");
    running.create().ok();
    running.start().ok();
    let mut second = Bundle::new("true");
    second.config["linux"]["namespaces"][0]["path"] =
        json!(format!("/proc/{}/ns/pid", running.pid()));
    let Some(created) = traced_create(&second, calls, &[]) else {
        return;
    };
    let exec = running.command(&["exec", &running.id, "true"]);
    let Some(mut exec) = under_strace(&running, calls, &exec) else {
        return;
    };
    let done = exec.output().unwrap();
    assert!(done.status.success(), "{done:?}");
    for text in [created, trace(&running)] {
        let birth = text
            .lines()
            .position(|line| line.contains("clone3(") && line.contains("CLONE_PARENT"));
        let birth = birth.unwrap_or_else(|| panic!("nobody was born: {text}"));
        let bearer = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
        let lines: Vec<&str> = text.lines().collect();
        let closed = lines[..birth].iter().any(|line| {
            bearer(line) == bearer(lines[birth])
                && line.contains("close_range(")
                && line.contains("4294967295, 0)")
        });
        assert!(closed, "open at the birth: {text}");
    }
    canary.assert_alive();
}

fn targets(pid: i32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let mut targets: Vec<String> = entries
        .map(|entry| {
            let target = fs::read_link(entry.path()).unwrap();
            target.to_string_lossy().into_owned()
        })
        .collect();
    targets.sort();
    targets
}

#[test]
fn privileged_a_created_container_holds_only_what_it_needs() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    let leaked = leak_host_directories();
    let bundle = Bundle::new("sleep 1000");
    bundle.create().ok();
    let targets = targets(bundle.pid());
    // Standard streams, and the socket start connects to.
    assert_eq!(targets.len(), 4, "{targets:?}");
    assert_eq!(
        targets.iter().filter(|t| t.starts_with("socket:")).count(),
        1,
        "{targets:?}"
    );
    assert!(targets.contains(&"/dev/null".to_owned()));
    drop(leaked);
    canary.assert_alive();
}

/// Namespaces joined by path are open until the runtime is in them.
#[test]
fn privileged_a_created_container_holds_no_namespace_that_it_joined() {
    if !ready() {
        return;
    }
    let first = Bundle::new("sleep 1000");
    first.create().ok();
    let mut second = Bundle::new("sleep 1000");
    second.config.as_object_mut().unwrap().remove("hostname");
    for (index, file) in [(1, "net"), (2, "ipc"), (3, "uts")] {
        let path = format!("/proc/{}/ns/{file}", first.pid());
        second.config["linux"]["namespaces"][index]["path"] = json!(path);
    }
    second.create().ok();
    let targets = targets(second.pid());
    // As above.
    assert_eq!(targets.len(), 4, "{targets:?}");
}

/// The first number that a child of this process finds free.
fn first_free() -> usize {
    const CLOEXEC: u32 = 0o2_000_000;
    let is_handed_on = |fd: &usize| {
        let text = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap_or_default();
        let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
        flags.is_some_and(|flags| flags & CLOEXEC == 0)
    };
    (3..).find(|fd| !is_handed_on(fd)).unwrap()
}

/// The log is opened first and gets the number that the caller says it passes, but does not.
#[test]
fn privileged_a_number_to_preserve_does_not_keep_the_runtime_s_own_descriptor() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    let bundle = Bundle::new("sleep 1000");
    bundle.write();
    let out = File::create(bundle.dir.path().join("out")).unwrap();
    let err = File::create(bundle.dir.path().join("err")).unwrap();
    let count = (first_free() - 2).to_string();
    let args = [
        "create",
        "--preserve-fds",
        &count,
        "--pid-file",
        "pid",
        &bundle.id,
    ];
    let mut command = bundle.command(&args);
    if command.stdout(out).stderr(err).status().unwrap().success() {
        let targets = targets(bundle.pid());
        for own in ["log.json", "/state"] {
            assert!(!targets.iter().any(|t| t.contains(own)), "{targets:?}");
        }
        let sockets = targets.iter().filter(|t| t.starts_with("socket:"));
        assert_eq!(sockets.count(), 1, "{targets:?}");
    } else {
        let text = fs::read_to_string(bundle.dir.path().join("err")).unwrap();
        assert!(text.contains("preserve-fds"), "{text}");
    }
    canary.assert_alive();
}

/// Runs the container with `three` handed on as descriptor 3.
fn with_third(bundle: &Bundle, three: &Path) -> Output {
    let run = bundle.command(&["run", "--preserve-fds", "1", &bundle.id]);
    Command::new("/bin/sh")
        .args(["-c", "exec 3<\"$0\"; exec \"$@\""])
        .arg(three)
        .arg(run.get_program())
        .args(run.get_args())
        .current_dir(bundle.dir.path())
        .output()
        .unwrap()
}

#[test]
fn privileged_preserved_descriptors_arrive() {
    if !ready() {
        return;
    }
    let bundle = Bundle::new("cat <&3");
    let three = bundle.dir.path().join("three");
    fs::write(&three, "third").unwrap();
    bundle.write();
    let output = with_third(&bundle, &three);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "third",
        "{output:?}"
    );
}

#[test]
fn privileged_cve_2024_21626_the_program_has_its_streams_only() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    let leaked = leak_host_directories();
    assert!(leaked.iter().any(|file| file.as_raw_fd() > 20));
    let running = Bundle::new("ls -l /proc/self/fd; sleep 1000");
    running.create().ok();
    running.start().ok();
    eventually("output", || running.output().lines().count() >= 5);
    // Three streams, the directory that ls reads, and the line of the total.
    assert_eq!(running.output().lines().count(), 5, "{}", running.output());
    let exec = running.exec(&["ls", "-l", "/proc/self/fd"]).ok();
    assert_eq!(exec.lines().count(), 5, "{exec}");
    drop(leaked);
    canary.assert_alive();
}

/// CVE-2026-84042 and number 16: what runs on the host for a container gets nothing that the image chose.
#[test]
fn privileged_cve_2026_84042_hooks_get_what_the_document_says_and_nothing_of_the_image() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    let mut bundle = Bundle::new("true");
    arm(&bundle);
    bundle.set(
        "/process/env",
        json!(["PATH=/bin", "LD_PRELOAD=/evil.so", "IMAGE=chosen"]),
    );
    bundle.set("/process/cwd", json!("/tmp"));
    bundle.set("/annotations", json!({"image.label": "$(touch /evil)"}));
    let log = bundle.dir.path().join("hooks");
    // A shell adds three names itself.
    let script = format!(
        "{{ echo \"env $(env | grep -v -e ^PWD= -e ^SHLVL= -e ^_= | tr '\\n' ' ')\"; echo \"args $0 $*\"; \
         ls -l /proc/self/fd | grep -c -e socket -e ' {}$' || true; }} >> '{}'",
        canary.path().display(),
        log.display()
    );
    let hook = json!({"path": "/bin/sh", "args": ["sh", "-c", script, "hook", "one"], "env": ["ONLY=this"]});
    for kind in [
        "prestart",
        "createRuntime",
        "createContainer",
        "poststart",
        "poststop",
    ] {
        bundle.config["hooks"][kind] = json!([hook]);
    }
    bundle.write();
    // A descriptor of the caller's that is handed on is for the program, not for hooks.
    let done = with_third(&bundle, &canary.path());
    assert!(done.status.success(), "{done:?}");
    let text = fs::read_to_string(&log).unwrap();
    for (kind, expected) in [("env ", "env ONLY=this"), ("args ", "args hook one")] {
        let lines = text.lines().filter(|line| line.starts_with(kind));
        let lines: Vec<&str> = lines.map(str::trim_end).collect();
        assert_eq!(lines, [expected; 5], "{text}");
    }
    for word in ["IMAGE", "LD_PRELOAD", "PATH=/bin\n", "evil"] {
        assert!(!text.contains(word), "{word}: {text}");
    }
    // None of the runtime's sockets either, nor the caller's descriptor.
    assert_eq!(
        text.lines().filter(|line| *line == "0").count(),
        5,
        "{text}"
    );
    canary.assert_alive();
}
