//! Containers of an ordinary user.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use super::bundle::{Bundle, eventually, ready, runtime};
use super::guard::{Need, ready_with};
use super::userns::give;

/// A user nobody else is.
const USER: u32 = 54_321;

/// A bundle that belongs to an ordinary user, with a session directory and a binary the user can run.
struct Rootless {
    bundle: Bundle,
}

impl Rootless {
    fn new(script: &str) -> Rootless {
        let bundle = Bundle::new(script);
        let session = bundle.dir.path().join("session");
        std::fs::create_dir(&session).unwrap();
        std::fs::copy(runtime(), bundle.dir.path().join("runc-lite")).unwrap();
        let rootless = Rootless { bundle };
        let document: Value = {
            rootless.give();
            rootless.call(&["spec", "--rootless"]);
            let path = rootless.bundle.dir.path().join("config.json");
            serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
        };
        let mut rootless = rootless;
        rootless.bundle.config = document;
        rootless.set("/process/terminal", json!(false));
        rootless.set("/process/args", json!(["sh", "-c", script]));
        rootless.set("/process/env", json!(["PATH=/bin"]));
        rootless
    }

    fn set(&mut self, pointer: &str, value: Value) {
        self.bundle.set(pointer, value);
    }

    fn give(&self) {
        give(self.bundle.dir.path(), USER);
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.bundle.dir.path().join("runc-lite"));
        command
            .current_dir(self.bundle.dir.path())
            .env("XDG_RUNTIME_DIR", self.bundle.dir.path().join("session"))
            .env("USER", "somebody")
            .args(args)
            .stdin(Stdio::null())
            .uid(USER)
            .gid(USER);
        command
    }

    fn call(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs the container and gives its output.
    #[track_caller]
    fn run(&self) -> String {
        self.write();
        done(&self.call(&["run", &self.bundle.id]))
    }

    fn write(&self) {
        self.bundle.write();
        self.give();
    }

    /// Creating fails with these words and leaves nothing.
    #[track_caller]
    fn refused(&self, words: &str) {
        self.write();
        let output = self.call(&["create", &self.bundle.id]);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{text}");
        assert!(text.contains(words), "{words:?} is not in {text:?}");
        assert!(!self.state().join(&self.bundle.id).exists());
    }

    fn state(&self) -> PathBuf {
        self.bundle.dir.path().join("session/runc-lite")
    }
}

#[track_caller]
fn done(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn privileged_a_rootless_document_runs_for_an_ordinary_user() {
    if !ready() {
        return;
    }
    let rootless = Rootless::new(
        "id -u; cat /proc/self/setgroups; head -c 2 /dev/zero | wc -c; touch /mnt/made 2>&1; sleep 1000",
    );
    rootless.write();
    let id = rootless.bundle.id.clone();
    let out = std::fs::File::create(rootless.bundle.dir.path().join("out")).unwrap();
    let status = rootless
        .command(&["create", "--pid-file", "pid", &id])
        .stdout(out)
        .status()
        .unwrap();
    assert!(status.success());
    let mode = std::fs::metadata(rootless.state())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o1700);
    done(&rootless.call(&["start", &id]));
    eventually("output", || rootless.bundle.output().lines().count() >= 3);
    assert!(
        rootless.bundle.output().starts_with("0\ndeny\n2"),
        "{}",
        rootless.bundle.output()
    );
    let exec = done(&rootless.call(&["exec", &id, "sh", "-c", "id -u; cat /proc/self/uid_map"]));
    assert_eq!(
        exec.split_whitespace().collect::<Vec<_>>(),
        ["0", "0", "54321", "1"]
    );
    let failed = rootless.call(&["exec", "-u", "5", &id, "true"]);
    assert_eq!(failed.status.code(), Some(255));
    assert!(String::from_utf8_lossy(&failed.stderr).contains("process.user.uid"));
    let failed = rootless.call(&["exec", "-g", "0", &id, "true"]);
    assert!(String::from_utf8_lossy(&failed.stderr).contains("additionalGids"));
    assert!(done(&rootless.call(&["list"])).contains(&id));
    done(&rootless.call(&["kill", &id, "KILL"]));
    eventually("stopped", || {
        done(&rootless.call(&["state", &id])).contains("\"stopped\"")
    });
    done(&rootless.call(&["delete", &id]));
    assert!(!rootless.state().join(&id).exists());
}

#[test]
fn privileged_a_rootless_container_asks_for_no_cgroup_in_vain() {
    if !ready() {
        return;
    }
    let mut limited = Rootless::new("true");
    limited.set("/linux/resources", json!({"pids": {"limit": 20}}));
    let version = runc_lite::cgroup::Hierarchies::of_this_host()
        .unwrap()
        .version();
    limited.refused(if version == Some(2) {
        "rootless needs no limits + no cgrouppath"
    } else {
        "cannot set pids limit: container could not join or create cgroup"
    });
    let mut placed = Rootless::new("true");
    placed.set(
        "/linux/cgroupsPath",
        json!(format!("/{}", placed.bundle.id)),
    );
    placed.refused("unable to apply cgroup configuration");
    let mut strict = Rootless::new("true");
    strict.set("/linux/resources", json!({}));
    strict.write();
    let output = strict.call(&["--rootless", "false", "run", &strict.bundle.id]);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("ermission denied"));
    let output = strict.call(&["--rootless", "perhaps", "run", &strict.bundle.id]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("--rootless"));
    // Device rules are for root alone: nothing in the container can make a device.
    strict.set(
        "/linux/resources",
        json!({"devices": [{"allow": false, "access": "rwm"}]}),
    );
    assert_eq!(strict.run(), "");
}

#[test]
fn privileged_a_cgroup_the_user_may_make_is_used_and_removed() {
    if !ready_with(&[Need::CgroupV1]) {
        return;
    }
    let rootless = {
        let mut rootless = Rootless::new("sleep 1000");
        rootless.set(
            "/linux/cgroupsPath",
            json!(format!("/{}/inner", rootless.bundle.id)),
        );
        rootless.set("/linux/resources", json!({"pids": {"limit": 20}}));
        rootless
    };
    let pids = rootless.bundle.cgroup("pids").unwrap();
    // The user gets a directory in every hierarchy, as a delegating root would give it.
    let mut given = Vec::new();
    for entry in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        let directory = entry.path().join(&rootless.bundle.id);
        // podman makes plain directories beside the hierarchies, named like controllers that are not mounted.
        let is_hierarchy = entry.path().join("cgroup.procs").exists();
        if is_hierarchy && std::fs::create_dir(&directory).is_ok() {
            for name in ["cpuset.cpus", "cpuset.mems"] {
                if let Ok(text) = std::fs::read_to_string(entry.path().join(name)) {
                    std::fs::write(directory.join(name), text).unwrap();
                }
            }
            give_cgroup(&directory);
            given.push(directory);
        }
    }
    let cleanup = Cleanup(given);
    rootless.write();
    let id = &rootless.bundle.id;
    // The kernel lets users move processes inside of what is theirs only: the runtime begins there.
    let enter: String = cleanup
        .0
        .iter()
        .map(|directory| format!("echo $$ > {}/cgroup.procs; ", directory.display()))
        .collect();
    let drop_root = format!(
        "exec setpriv --reuid {USER} --regid {USER} --clear-groups ./runc-lite run -d {id}"
    );
    let status = Command::new("/bin/sh")
        .args(["-ec", &format!("{enter}{drop_root}")])
        .current_dir(rootless.bundle.dir.path())
        .env(
            "XDG_RUNTIME_DIR",
            rootless.bundle.dir.path().join("session"),
        )
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    let limit = std::fs::read_to_string(pids.join("inner/pids.max")).unwrap();
    assert_eq!(limit.trim(), "20");
    assert_ne!(
        std::fs::read_to_string(pids.join("inner/cgroup.procs")).unwrap(),
        ""
    );
    done(&rootless.call(&["delete", "--force", id]));
    assert!(!pids.join("inner").exists());
    drop(cleanup);
}

/// Directories of cgroups to remove again.
struct Cleanup(Vec<PathBuf>);

impl Drop for Cleanup {
    fn drop(&mut self) {
        for directory in &self.0 {
            let _ = std::fs::remove_dir(directory.join("inner"));
            let _ = std::fs::remove_dir(directory);
        }
    }
}

fn give_cgroup(directory: &std::path::Path) {
    std::os::unix::fs::chown(directory, Some(USER), Some(USER)).unwrap();
    for name in ["cgroup.procs", "tasks", "cgroup.subtree_control"] {
        let _ = std::os::unix::fs::chown(directory.join(name), Some(USER), Some(USER));
    }
}

#[test]
fn privileged_what_only_root_may_is_refused_to_an_ordinary_user_by_name() {
    if !ready() {
        return;
    }
    let mut plain = Rootless::new("true");
    plain.set("/linux/uidMappings", json!([]));
    plain.set("/linux/gidMappings", json!([]));
    plain.bundle.config["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .retain(|n| n["type"] != "user");
    plain.refused("requires user namespaces");
    let mut groups = Rootless::new("true");
    groups.set("/process/user/additionalGids", json!([0]));
    groups.refused("process.user.additionalGids");
    let mut foreign = Rootless::new("true");
    foreign.set(
        "/linux/uidMappings",
        json!([{"containerID": 0, "hostID": 0, "size": 1}]),
    );
    foreign.refused("linux.uidMappings");
    let mut mapped = Rootless::new("true");
    let range = json!([{"containerID": 0, "hostID": USER, "size": 1}]);
    mapped.set(
        "/mounts/-",
        json!({"destination": "/mnt", "source": ".", "options": ["bind"], "uidMappings": range, "gidMappings": range}),
    );
    mapped.refused("uidMappings");
    let mut network = Rootless::new("true");
    network.bundle.config["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({"type": "network", "path": "/proc/self/ns/net"}));
    network.refused("network namespace");
}

/// Gives the user ids in the files newuidmap(1) reads, in this test's mount namespace.
fn subordinate_ids(rootless: &Rootless) {
    let line = format!("{USER}:200000:1000\n");
    let passwd = format!(
        "{}somebody:x:{USER}:{USER}::/:/bin/sh\n",
        std::fs::read_to_string("/etc/passwd").unwrap()
    );
    for (name, text) in [("subuid", &line), ("subgid", &line), ("passwd", &passwd)] {
        let path = rootless.bundle.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        let place = PathBuf::from("/etc").join(name);
        if !place.exists() {
            panic!("{} is needed", place.display());
        }
        rustix::mount::mount_bind(&path, &place).unwrap();
        // The rest of the bundle is given away, these must belong to root.
    }
}

#[test]
fn privileged_several_ids_come_from_newuidmap() {
    if !ready() {
        return;
    }
    let mut rootless = Rootless::new("id -u; id -G; cat /proc/self/uid_map; touch /mnt/made");
    std::fs::set_permissions(
        rootless.bundle.rootfs().join("mnt"),
        std::fs::Permissions::from_mode(0o1777),
    )
    .unwrap();
    let ranges = json!([{"containerID": 0, "hostID": USER, "size": 1},
                        {"containerID": 1, "hostID": 200_000, "size": 1000}]);
    rootless.set("/linux/uidMappings", ranges.clone());
    rootless.set("/linux/gidMappings", ranges);
    rootless.set(
        "/process/user",
        json!({"uid": 7, "gid": 8, "additionalGids": [9]}),
    );
    rootless.set("/root/readonly", json!(false));
    rootless.write();
    let id = rootless.bundle.id.clone();
    // Without the programs, and without an entry for the user.
    let output = rootless
        .command(&["create", &id])
        .env("PATH", "/nowhere")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("need newuidmap (package uidmap)"), "{text}");
    rootless.refused("refused by newuidmap");
    subordinate_ids(&rootless);
    let output = rootless.call(&["run", &id]);
    for name in ["subuid", "subgid", "passwd"] {
        let place = PathBuf::from("/etc").join(name);
        rustix::mount::unmount(place, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
    let out = done(&output);
    assert!(out.starts_with("7\n8 9\n"), "{out}");
    assert!(out.contains("200000"), "{out}");
    let made = rootless.bundle.rootfs().join("mnt/made");
    let made = std::fs::metadata(made).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&made), 200_006);
}

#[test]
fn privileged_root_of_a_user_namespace_runs_containers_without_another() {
    if !ready() {
        return;
    }
    let mut rootless = Rootless::new("id -u; head -c 2 /dev/zero | wc -c; ls /dev/null");
    rootless.set("/linux/uidMappings", json!([]));
    rootless.set("/linux/gidMappings", json!([]));
    rootless.bundle.config["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .retain(|n| n["type"] != "user");
    rootless.set("/process/oomScoreAdj", json!(-500));
    rootless.write();
    let binary = rootless.bundle.dir.path().join("runc-lite");
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "--"])
        .arg(binary)
        .args(["run", &rootless.bundle.id])
        .current_dir(rootless.bundle.dir.path())
        .env(
            "XDG_RUNTIME_DIR",
            rootless.bundle.dir.path().join("session"),
        )
        .env("USER", "somebody")
        .stdin(Stdio::null())
        .uid(USER)
        .gid(USER)
        .output()
        .unwrap();
    assert_eq!(done(&output), "0\n2\n/dev/null");
}
