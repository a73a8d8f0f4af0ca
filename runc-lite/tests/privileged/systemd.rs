//! What systemd knows of a container, asked of systemd: the VM lane runs these.

use std::path::Path;
use std::process::Command;

use serde_json::json;

use super::bundle::{Bundle, eventually};
use super::guard::{Need, ready_with};

const NEEDS: &[Need] = &[Need::CgroupV2, Need::Systemd];

/// A bundle for `--systemd-cgroup`, whatever driver the run is for.
struct Scope {
    bundle: Bundle,
}

impl Scope {
    fn new(script: &str) -> Scope {
        let mut bundle = Bundle::new(script);
        let path = format!("{}:axil:{}", slice(&bundle.id), bundle.id);
        bundle.set("/linux/cgroupsPath", json!(path));
        Scope { bundle }
    }

    /// Below `axil.slice`, as the dash in its name says, and of this test alone.
    fn slice(&self) -> String {
        slice(&self.bundle.id)
    }

    fn unit(&self) -> String {
        format!("axil-{}.scope", self.bundle.id)
    }

    fn file(&self, name: &str) -> String {
        let directory = Path::new("/sys/fs/cgroup/axil.slice")
            .join(self.slice())
            .join(self.unit());
        std::fs::read_to_string(directory.join(name))
            .unwrap_or_default()
            .trim()
            .to_owned()
    }

    fn call(&self, arguments: &[&str]) -> super::bundle::Done {
        // Twice is once, where the run is for this driver anyway.
        let mut all = vec!["--systemd-cgroup"];
        all.extend(arguments);
        self.bundle.call(&all)
    }

    fn start(&self) {
        self.bundle.write();
        self.call(&["run", "--detach", &self.bundle.id]).ok();
    }

    fn shown(&self, property: &str) -> String {
        systemctl(&["show", "--value", "--property", property, &self.unit()])
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        // systemd keeps a slice that a scope asked for. It may not be there when the test failed early.
        let _ = Command::new("systemctl")
            .args(["stop", "--quiet", &self.slice()])
            .status();
    }
}

fn slice(id: &str) -> String {
    format!("axil-{}.slice", id.replace('-', "_"))
}

fn systemctl(arguments: &[&str]) -> String {
    let output = Command::new("systemctl").args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn privileged_systemd_knows_the_limits_of_a_scope_and_keeps_them() {
    if !ready_with(NEEDS) {
        return;
    }
    let mut scope = Scope::new("sleep 1000 > /dev/null 2>&1");
    scope.bundle.set(
        "/linux/resources",
        json!({
            "devices": [{"allow": false, "access": "rwm"}],
            "memory": {"limit": 67_108_864, "reservation": 33_554_432, "swap": 100_663_296},
            "cpu": {"shares": 512, "quota": 50_000, "period": 100_000, "cpus": "0", "mems": "0"},
            "pids": {"limit": 42},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 4_194_304}]
        }),
    );
    scope.bundle.set(
        "/annotations",
        json!({"org.systemd.property.RuntimeMaxSec": "7200",
               "org.systemd.property.Description": "'told by an annotation'"}),
    );
    scope.start();
    let hugetlb = || scope.file("hugetlb.2MB.max");
    for (property, value) in [
        ("ActiveState", "active"),
        ("Slice", scope.slice().as_str()),
        ("Delegate", "yes"),
        ("Transient", "yes"),
        ("DefaultDependencies", "no"),
        ("MemoryMax", "67108864"),
        ("MemoryLow", "33554432"),
        ("MemorySwapMax", "33554432"),
        ("TasksMax", "42"),
        ("CPUQuotaPerSecUSec", "500ms"),
        ("AllowedCPUs", "0"),
        ("DevicePolicy", "strict"),
        ("RuntimeMaxUSec", "2h"),
        ("Description", "told by an annotation"),
    ] {
        assert_eq!(scope.shown(property), value, "{property}");
    }
    // What systemd has no property for, in the scope's directory.
    assert_eq!(hugetlb(), "4194304");
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    assert!(
        !own.contains(&scope.unit()),
        "this test got into the scope: {own}"
    );

    let id = scope.bundle.id.clone();
    let flags = [
        "update",
        "--memory",
        "80M",
        "--memory-swap",
        "100M",
        "--pids-limit",
        "50",
        "--cpu-quota",
        "25000",
        &id,
    ];
    scope.call(&flags).ok();
    for (property, value) in [
        ("MemoryMax", "83886080"),
        ("MemorySwapMax", "20971520"),
        ("TasksMax", "50"),
        ("CPUQuotaPerSecUSec", "250ms"),
    ] {
        assert_eq!(scope.shown(property), value, "{property}");
    }
    let opens = || {
        scope
            .call(&["exec", &id, "dd", "if=/dev/null", "of=/dev/zero", "count=0"])
            .code
    };
    assert_eq!(opens(), 0);
    // systemd writes its own idea of every unit again.
    systemctl(&["daemon-reload"]);
    for (file, value) in [
        ("memory.max", "83886080"),
        ("memory.swap.max", "20971520"),
        ("pids.max", "50"),
        ("cpu.max", "25000 100000"),
        ("hugetlb.2MB.max", "4194304"),
    ] {
        assert_eq!(scope.file(file), value, "{file} after daemon-reload");
    }
    assert_eq!(opens(), 0);
    scope.call(&["pause", &id]).ok();
    assert_eq!(scope.bundle.status(), "paused");
    scope.call(&["delete", "--force", &id]).ok();
    assert_eq!(scope.shown("LoadState"), "not-found");
    assert_eq!(scope.file("pids.max"), "");
}

#[test]
fn privileged_a_scope_ends_with_its_container_and_the_name_is_free_again() {
    if !ready_with(NEEDS) {
        return;
    }
    let scope = Scope::new("sleep 1000 > /dev/null 2>&1");
    let id = scope.bundle.id.clone();
    for _ in 0..3 {
        scope.start();
        assert_eq!(scope.shown("ActiveState"), "active");
        scope.call(&["kill", &id, "KILL"]).ok();
        eventually("stopped", || scope.bundle.status() == "stopped");
        scope.call(&["delete", &id]).ok();
        assert_eq!(scope.shown("LoadState"), "not-found");
    }
}

#[test]
fn privileged_a_unit_that_systemd_refuses_leaves_nothing() {
    if !ready_with(NEEDS) {
        return;
    }
    let mut scope = Scope::new("true");
    scope.bundle.set(
        "/annotations",
        json!({"org.systemd.property.NoSuchProperty": "true"}),
    );
    scope.bundle.write();
    let id = scope.bundle.id.clone();
    scope.call(&["run", &id]).fails(1, "NoSuchProperty");
    assert_eq!(scope.shown("LoadState"), "not-found");
    scope.bundle.set(
        "/annotations",
        json!({"org.systemd.property.PIDs": "[uint32 1]"}),
    );
    scope.bundle.write();
    scope
        .call(&["run", &id])
        .fails(1, "the runtime sets itself");
    scope.bundle.set("/annotations", json!({}));
    scope.bundle.set("/linux/cgroupsPath", json!("/plain/path"));
    scope.bundle.write();
    scope.call(&["run", &id]).fails(1, "slice:prefix:name");
    scope.bundle.assert_gone();
}
