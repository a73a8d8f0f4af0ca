//! conmon called as CRI-O calls it: create, exec with output and exit code, exit files.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

use axil_integration::children;
use axil_integration::engines::EngineLab;
use axil_integration::eventually::eventually;
use axil_integration::guard::Need;
use serde_json::{Value, json};

const NEEDS: &[Need] = &[Need::Program("conmon")];

/// A bundle, and the directories CRI-O would name to conmon.
struct Bundle<'a> {
    lab: &'a EngineLab,
    dir: PathBuf,
}

impl<'a> Bundle<'a> {
    fn make(lab: &'a EngineLab, script: &str) -> Self {
        let dir = lab.dir().join("bundle");
        let rootfs = dir.join("rootfs");
        for name in ["bin", "proc", "dev"] {
            fs::create_dir_all(rootfs.join(name)).unwrap();
        }
        for name in ["exits", "persist", "sockets"] {
            fs::create_dir(dir.join(name)).unwrap();
        }
        fs::copy("/bin/busybox", rootfs.join("bin/busybox")).unwrap();
        for applet in ["sh", "sleep", "cat"] {
            symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
        }
        let document = json!({
            "ociVersion": "1.0.2",
            "process": {
                "args": ["sh", "-c", script],
                "env": ["PATH=/bin"],
                "cwd": "/",
            },
            "root": { "path": "rootfs" },
            "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
            "linux": {
                "cgroupsPath": format!("{}/box", lab.cgroup()),
                "namespaces": [
                    { "type": "pid" }, { "type": "mount" }, { "type": "network" },
                    { "type": "ipc" }, { "type": "uts" },
                ],
            },
        });
        fs::write(dir.join("config.json"), document.to_string()).unwrap();
        Self { lab, dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Runs conmon with more options and gives what it writes to CRI-O's pipe, one JSON value a line.
    fn conmon(&self, name: &str, options: &[&str]) -> Vec<Value> {
        let pipe = self.path(&format!("{name}.pipe"));
        let mut command = Command::new("sh");
        // The pipe is descriptor 3 by CRI-O's convention; a file does as well.
        command
            .args(["-c", "pipe=$1; shift; exec \"$@\" 3>\"$pipe\"", "sh"])
            .arg(&pipe)
            .args([
                "conmon",
                "--syslog",
                "--cid=box",
                "--name=k8s_box",
                "--cuuid=box",
            ])
            .arg(format!("--runtime={}", self.lab.runtime().display()))
            .arg(format!(
                "--runtime-arg=--root={}",
                self.path("state").display()
            ))
            .arg(format!("--bundle={}", self.dir.display()))
            .arg(format!(
                "--log-path={}",
                self.path(&format!("{name}.log")).display()
            ))
            .arg(format!(
                "--container-pidfile={}",
                self.path(&format!("{name}.pid")).display()
            ))
            .arg(format!(
                "--socket-dir-path={}",
                self.path("sockets").display()
            ))
            .args(options)
            .env("_OCI_SYNCPIPE", "3");
        let done = children::output(&mut command, &[]).unwrap();
        assert!(done.status.success(), "conmon: {}", done.text());
        let read = || fs::read_to_string(&pipe).unwrap_or_default();
        eventually("conmon answers on the pipe", || {
            (!read().trim().is_empty()).then_some(())
        });
        values(&read())
    }

    fn runtime(&self, args: &[&str]) -> children::Finished {
        let mut command = Command::new(self.lab.runtime());
        command.arg("--root").arg(self.path("state")).args(args);
        children::output(&mut command, &[]).unwrap()
    }
}

fn values(text: &str) -> Vec<Value> {
    serde_json::Deserializer::from_str(text)
        .into_iter()
        .map(Result::unwrap)
        .collect()
}

#[test]
fn privileged_conmon_creates_execs_and_writes_exit_files_as_for_crio() {
    let Some(lab) = EngineLab::open(NEEDS) else {
        return;
    };
    let script = "echo out; echo err >&2; while [ ! -e /stop ]; do sleep 0.1; done; exit 9";
    let bundle = Bundle::make(&lab, script);
    let exits = format!("--exit-dir={}", bundle.path("exits").display());
    let persist = format!("--persist-dir={}", bundle.path("persist").display());
    let said = bundle.conmon("box", &[&exits, &persist, "--exit-delay=0"]);
    let pid = said[0]["data"]
        .as_i64()
        .or(said[0]["pid"].as_i64())
        .unwrap();
    let written = fs::read_to_string(bundle.path("box.pid")).unwrap();
    assert_eq!(written.trim(), pid.to_string());

    let started = bundle.runtime(&["start", "box"]);
    assert!(started.status.success(), "{}", started.text());
    let state = bundle.runtime(&["state", "box"]);
    let state: Value = serde_json::from_slice(&state.stdout).unwrap();
    assert_eq!(
        (state["status"].as_str(), state["pid"].as_i64()),
        (Some("running"), Some(pid))
    );
    eventually("the log has both streams, in CRI's form", || {
        let log = fs::read_to_string(bundle.path("box.log")).unwrap_or_default();
        (log.contains(" stdout F out\n") && log.contains(" stderr F err\n")).then_some(())
    });

    let process = json!({
        "args": ["sh", "-c", "echo said; exit 4"], "env": ["PATH=/bin"], "cwd": "/",
        "user": { "uid": 5, "gid": 6 },
    });
    fs::write(bundle.path("process.json"), process.to_string()).unwrap();
    let document = format!(
        "--exec-process-spec={}",
        bundle.path("process.json").display()
    );
    let _ = bundle.conmon("exec", &["--exec", &document]);
    let pipe = || values(&fs::read_to_string(bundle.path("exec.pipe")).unwrap());
    let code = eventually("the exec's exit code is on the pipe", || {
        pipe().iter().find_map(|value| value["exit_code"].as_i64())
    });
    assert_eq!(code, 4, "{:?}", pipe());
    let log = fs::read_to_string(bundle.path("exec.log")).unwrap();
    assert!(log.contains(" stdout F said\n"), "{log}");

    fs::write(bundle.path("rootfs/stop"), "").unwrap();
    let exit = eventually("conmon wrote the exit file", || {
        fs::read_to_string(bundle.path("exits/box")).ok()
    });
    assert_eq!(exit.trim(), "9");
    let deleted = bundle.runtime(&["delete", "box"]);
    assert!(deleted.status.success(), "{}", deleted.text());
    lab.close();
}
