//! Interfaces moved into a container, between network namespaces of the test's own.

use std::process::{Child, Command, Stdio};

use serde_json::json;

use super::bundle::{Bundle, ready, unique};

const NEW_NETWORK: u64 = 0x4000_0000;

/// As [`ready`]; the calling thread gets a network namespace of its own too, which plays the host's.
fn ready_with_network() -> bool {
    if !ready() {
        return false;
    }
    runc_lite::sys::unshare(NEW_NETWORK).unwrap();
    ip("link set lo up");
    true
}

fn ip(words: &str) -> String {
    let output = Command::new("ip").args(words.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {words}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A veth pair; the first end has addresses, a size and a hardware address and is up.
fn interface(name: &str) {
    ip(&format!("link add {name} type veth peer name {name}p"));
    ip(&format!(
        "link set {name} address 02:00:00:00:00:42 mtu 1300"
    ));
    ip(&format!("addr add 192.0.2.7/24 brd + dev {name}"));
    ip(&format!(
        "addr add 198.51.100.1 peer 198.51.100.2/32 dev {name}"
    ));
    ip(&format!("addr add 192.0.2.66/32 scope host dev {name}"));
    ip(&format!("addr add 2001:db8::7/64 nodad dev {name}"));
    ip(&format!("link set {name}p up"));
    ip(&format!("link set {name} up"));
}

fn assert_whole(shown: &str) {
    for part in [
        "mtu 1300",
        "02:00:00:00:00:42",
        "192.0.2.7/24 brd 192.0.2.255",
        "198.51.100.1 peer 198.51.100.2/32",
        "2001:db8::7/64",
        ",UP",
    ] {
        assert!(shown.contains(part), "{part:?} is not in {shown}");
    }
}

/// A network namespace that outlives the container; its path.
struct Holder(Child);

impl Holder {
    fn new() -> Holder {
        let mut command = Command::new("unshare");
        command
            .args(["--net", "sh", "-c", "echo; exec sleep 1000"])
            .stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = [0];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
        Holder(child)
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }

    fn ip(&self, words: &str) -> String {
        let output = Command::new("nsenter")
            .arg(format!("--net={}", self.path()))
            .arg("ip")
            .args(words.split(' '))
            .output()
            .unwrap();
        assert!(output.status.success(), "ip {words}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn join(bundle: &mut Bundle, path: &str) {
    let namespaces = json!([{"type": "pid"}, {"type": "network", "path": path}, {"type": "ipc"},
                            {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"}]);
    bundle.set("/linux/namespaces", namespaces);
}

#[test]
fn privileged_an_interface_moves_with_its_addresses_and_gets_its_name() {
    if !ready_with_network() {
        return;
    }
    interface("host0");
    let mut bundle = Bundle::new("busybox ip addr show dev eth9");
    bundle.set("/linux/netDevices", json!({"host0": {"name": "eth9"}}));
    let shown = bundle.run().ok();
    assert_whole(&shown);
    assert!(
        !shown.contains("192.0.2.66"),
        "host scope stays on the host: {shown}"
    );
    bundle.assert_gone();
}

#[test]
fn privileged_an_interface_stays_in_a_namespace_that_outlives_the_container() {
    if !ready_with_network() {
        return;
    }
    interface("host0");
    let holder = Holder::new();
    let mut bundle = Bundle::new("busybox ip addr show dev host0");
    join(&mut bundle, &holder.path());
    bundle.set("/linux/netDevices", json!({"host0": {}}));
    assert_whole(&bundle.run().ok());
    bundle.assert_gone();
    assert_whole(&holder.ip("addr show dev host0"));
    assert!(!ip("link show").contains("host0@"));
}

#[test]
fn privileged_a_template_gets_the_first_free_number() {
    if !ready_with_network() {
        return;
    }
    for name in ["a0", "b0"] {
        ip(&format!("link add {name} type veth peer name {name}p"));
    }
    let mut bundle = Bundle::new("busybox ip -o link");
    bundle.set(
        "/linux/netDevices",
        json!({"a0": {"name": "net%d"}, "b0": {"name": "net%d"}}),
    );
    let shown = bundle.run().ok();
    assert!(
        shown.contains("net0@") && shown.contains("net1@"),
        "{shown}"
    );
}

#[test]
fn privileged_interfaces_come_back_when_create_fails() {
    if !ready_with_network() {
        return;
    }
    interface("host0");
    let back = |bundle: &Bundle| {
        assert_whole(&ip("addr show dev host0"));
        bundle.assert_gone();
    };
    // By a later step.
    let mut bundle = Bundle::new("true");
    bundle.set("/linux/netDevices", json!({"host0": {"name": "eth9"}}));
    bundle.set(
        "/hooks",
        json!({"createContainer": [{"path": "/bin/false"}]}),
    );
    bundle.run().fails(1, "createContainer hook #0");
    back(&bundle);
    // By a name that is taken in the container.
    let holder = Holder::new();
    holder.ip("link add eth9 type veth peer name eth9p");
    let mut bundle = Bundle::new("true");
    join(&mut bundle, &holder.path());
    bundle.set("/linux/netDevices", json!({"host0": {"name": "eth9"}}));
    let text = bundle.run().fails(1, "linux.netDevices[\"host0\"]");
    assert!(
        text.contains("eth9") && text.contains("there already"),
        "{text}"
    );
    back(&bundle);
    // By the second of two, after the first has arrived.
    ip("link add second type veth peer name secondp");
    let mut bundle = Bundle::new("true");
    join(&mut bundle, &holder.path());
    bundle.set(
        "/linux/netDevices",
        json!({"host0": {"name": "eth8"}, "second": {"name": "eth9"}}),
    );
    bundle.run().fails(1, "linux.netDevices[\"second\"]");
    back(&bundle);
    ip("link show second");
}

#[test]
fn privileged_what_cannot_be_moved_is_named_before_anything_is_made() {
    if !ready_with_network() {
        return;
    }
    let missing = format!("x{}", unique().bytes().map(u32::from).sum::<u32>());
    let mut bundle = Bundle::new("true");
    bundle.set("/linux/netDevices", json!({&missing: {}}));
    bundle.run().fails(1, "the host has no such interface");
    assert!(!bundle.state_root().exists());
    let mut bundle = Bundle::new("true");
    bundle.set("/linux/netDevices", json!({"lo": {"name": "lo1"}}));
    bundle
        .run()
        .fails(1, "linux.netDevices[\"lo\"]: cannot move it");
    bundle.assert_gone();
    // The namespace to join is the host's own.
    ip("link add host0 type veth peer name host0p");
    let own = format!(
        "/proc/{}/task/{}/ns/net",
        std::process::id(),
        rustix::thread::gettid().as_raw_pid()
    );
    let mut bundle = Bundle::new("true");
    join(&mut bundle, &own);
    bundle.set("/linux/netDevices", json!({"host0": {}}));
    bundle.run().fails(1, "the host's network namespace");
    bundle.assert_gone();
}

#[test]
fn privileged_intel_rdt_without_resctrl_is_an_error_before_anything_is_made() {
    if !ready() {
        return;
    }
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mounted = table.contains(" - resctrl ");
    let mut bundle = Bundle::new("true");
    bundle.set("/linux/intelRdt", json!({"closID": "axil-no-such-class"}));
    let words = if mounted {
        "does not exist"
    } else {
        "needs a resctrl file system"
    };
    bundle.run().fails(1, words);
    assert!(bundle.log().contains("linux.intelRdt"));
    assert!(!bundle.state_root().exists());
    bundle.assert_gone();
}
