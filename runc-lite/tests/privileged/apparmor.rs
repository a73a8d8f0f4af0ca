//! AppArmor profiles that are loaded for the test and seen to bite. The VM lane runs these: a profile is loaded
//! into the host's kernel.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::json;

use super::bundle::{Bundle, unique};
use super::guard::{Need, ready_with};

const NEEDS: &[Need] = &[Need::AppArmor];

/// A loaded profile that permits everything but what `rule` denies; unloaded when dropped.
struct Profile {
    name: String,
    text: String,
}

impl Profile {
    fn load(rule: &str) -> Profile {
        let name = unique();
        // An attached path may lie outside the namespace that the profile sees, as init's does before exec.
        let flags = "flags=(attach_disconnected,mediate_deleted)";
        let allow =
            "file, capability, network, mount, umount, pivot_root, signal, ptrace, unix, dbus,";
        let text = format!("profile {name} {flags} {{ {allow} deny {rule}, }}\n");
        let profile = Profile { name, text };
        profile.parser("--add");
        profile
    }

    fn parser(&self, how: &str) {
        let mut child = Command::new("/sbin/apparmor_parser")
            .args([how, "--skip-cache"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(self.text.as_bytes()).unwrap();
        drop(stdin);
        assert!(child.wait().unwrap().success(), "{how} {}", self.text);
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.parser("--remove");
        }
    }
}

const SCRIPT: &str =
    "cat /proc/self/attr/apparmor/current; echo x >/tmp/f && echo tmp; echo x >/mnt/f && echo mnt";

#[test]
fn privileged_an_apparmor_profile_confines_the_container() {
    if !ready_with(NEEDS) {
        return;
    }
    let profile = Profile::load("/mnt/** w");
    let mut bundle = Bundle::new(SCRIPT);
    assert_eq!(bundle.run().ok(), "unconfined\ntmp\nmnt");
    bundle.set("/process/apparmorProfile", json!(profile.name));
    let done = bundle.run();
    let expected = format!("{} (enforce)\ntmp", profile.name);
    assert_eq!((done.code, done.out), (1, expected));
    assert!(done.err.contains("Permission denied"), "{}", done.err);
    bundle.assert_gone();
}

#[test]
fn privileged_exec_takes_the_container_s_profile_or_its_own() {
    if !ready_with(NEEDS) {
        return;
    }
    let container = Profile::load("/mnt/** w");
    let other = Profile::load("/tmp/** w");
    let mut bundle = Bundle::new("sleep 1000");
    bundle.set("/process/apparmorProfile", json!(container.name));
    bundle.create().ok();
    bundle.start().ok();
    let out = bundle.exec(&["sh", "-c", SCRIPT]).out;
    assert_eq!(out, format!("{} (enforce)\ntmp", container.name));
    let args = ["exec", "--apparmor", &other.name, &bundle.id, "sh", "-c"];
    let out = bundle.call(&[&args[..], &[SCRIPT]].concat()).ok();
    assert_eq!(out, format!("{} (enforce)\nmnt", other.name));
    bundle.call(&["delete", "--force", &bundle.id]).ok();
    bundle.assert_gone();
}

#[test]
fn privileged_a_profile_that_is_not_loaded_is_refused() {
    if !ready_with(NEEDS) {
        return;
    }
    let mut bundle = Bundle::new("true");
    let name = unique();
    bundle.set("/process/apparmorProfile", json!(name));
    bundle.create().fails(1, &name);
    bundle.assert_gone();
}
