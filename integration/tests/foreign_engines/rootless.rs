//! podman as an ordinary user, whose containers are in a user namespace.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use axil_integration::engines::EngineLab;
use axil_integration::engines::podman::Podman;
use axil_integration::guard::Need;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

const NEEDS: &[Need] = &[
    Need::Program("podman"),
    Need::Program("conmon"),
    Need::Program("newuidmap"),
    Need::Program("setpriv"),
    Need::Path("/proc/self/ns/user"),
];

/// A user nobody else has.
const USER: u32 = 64_117;

/// Lines added to files of `/etc`, in this test's mount namespace only; taken back when dropped.
struct Accounts(Vec<&'static str>);

impl Accounts {
    fn add(&mut self, lab: &EngineLab, path: &'static str, line: &str) {
        let text = fs::read_to_string(path).unwrap_or_default();
        let own = lab.dir().join(Path::new(path).file_name().unwrap());
        fs::write(&own, format!("{text}{line}\n")).unwrap();
        let none = None::<&str>;
        mount(Some(&own), path, none, MsFlags::MS_BIND, none).unwrap();
        self.0.push(path);
    }
}

impl Drop for Accounts {
    fn drop(&mut self) {
        for path in &self.0 {
            umount2(*path, MntFlags::MNT_DETACH).unwrap();
        }
    }
}

/// The user, with a home directory and a range of identifiers below its own.
fn user(lab: &EngineLab) -> (Accounts, PathBuf) {
    let home = lab.dir().join("home");
    fs::create_dir(&home).unwrap();
    chown(&home, Some(USER), Some(USER)).unwrap();
    let mut accounts = Accounts(Vec::new());
    let account = format!("axiltest:x:{USER}:{USER}::{}:/bin/sh", home.display());
    accounts.add(lab, "/etc/passwd", &account);
    accounts.add(lab, "/etc/group", &format!("axiltest:x:{USER}:"));
    accounts.add(lab, "/etc/subuid", "axiltest:1000000:65536");
    accounts.add(lab, "/etc/subgid", "axiltest:1000000:65536");
    (accounts, home)
}

#[test]
fn privileged_podman_maps_users_for_root() {
    let Some(lab) = EngineLab::open(NEEDS) else {
        return;
    };
    let podman = Podman::as_root(&lab);
    let map = ["--uidmap=0:100000:65536", "--gidmap=0:200000:65536"];
    let script =
        "id -u; cat /proc/self/uid_map /proc/self/gid_map | tr -s ' '; touch /x; stat -c %u /x";
    let said = podman.run(&map, script).ok();
    let words: Vec<_> = said.split_whitespace().collect();
    assert_eq!(
        words,
        ["0", "0", "100000", "65536", "0", "200000", "65536", "0"]
    );
    // Outside, root of the container is nobody that matters.
    let _ = podman.start("box", &map, "sleep 1000").ok();
    let pid = podman.inspect("box", "{{.State.Pid}}");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("Uid:\t100000"), "{status}");
    assert_eq!(
        podman.call(&["exec", "--user=7", "box", "id", "-u"]).ok(),
        "7"
    );
    let _ = podman.call(&["rm", "--force", "--time=0", "box"]).ok();
    lab.close();
}

#[test]
fn privileged_podman_runs_rootless() {
    let Some(lab) = EngineLab::open(NEEDS) else {
        return;
    };
    let (accounts, home) = user(&lab);
    let podman = Podman::as_user(&lab, USER, home);
    let said = podman.run(&[], "id -u; cat /proc/self/uid_map").ok();
    assert!(
        said.starts_with('0') && said.contains(&USER.to_string()),
        "{said}"
    );
    assert_eq!(podman.run(&[], "exit 7").code, 7);
    assert_eq!(podman.run(&["--user=1000"], "id -u").ok(), "1000");
    assert_eq!(
        podman.run(&["--userns=keep-id"], "id -u").ok(),
        USER.to_string()
    );
    let _ = podman.start("box", &[], "sleep 1000").ok();
    assert_eq!(
        podman
            .call(&["exec", "box", "sh", "-c", "echo in; exit 3"])
            .code,
        3
    );
    let _ = podman.call(&["stop", "--time=1", "box"]).ok();
    let _ = podman.call(&["rm", "box"]).ok();
    // Ends the process that holds the user's namespaces.
    let _ = podman.call(&["system", "migrate"]).ok();
    drop(accounts);
    lab.close();
}
