//! Namespaces joined by their paths: all kinds, in any order of ownership, and files that are none.

use serde_json::{Value, json};

use super::bundle::{Bundle, ready};
use super::userns::{FIRST, give, mapped, namespace, own_namespace};

const KINDS: [(&str, &str); 8] = [
    ("user", "user"),
    ("pid", "pid"),
    ("network", "net"),
    ("mount", "mnt"),
    ("ipc", "ipc"),
    ("uts", "uts"),
    ("cgroup", "cgroup"),
    ("time", "time"),
];

/// Makes every namespace of `bundle` that of process `pid`, but the mount namespace.
fn join_all(bundle: &mut Bundle, pid: i32) {
    let list: Vec<Value> = KINDS
        .iter()
        .map(|(kind, file)| match *kind {
            "mount" => json!({"type": "mount"}),
            kind => json!({"type": kind, "path": format!("/proc/{pid}/ns/{file}")}),
        })
        .collect();
    bundle.set("/linux/namespaces", Value::Array(list));
    let linux = bundle.config["linux"].as_object_mut().unwrap();
    linux.remove("uidMappings");
    linux.remove("gidMappings");
    bundle.config.as_object_mut().unwrap().remove("hostname");
}

#[test]
fn privileged_a_container_joins_every_namespace_of_another() {
    if !ready() {
        return;
    }
    let mut first = mapped("sleep 1000");
    first.set("/linux/namespaces/-", json!({"type": "time"}));
    first.create().ok();
    first.start().ok();
    let mut second = mapped("sleep 1000");
    join_all(&mut second, first.pid());
    second.create().ok();
    second.start().ok();
    for (_, file) in KINDS {
        let same = namespace(first.pid(), file) == namespace(second.pid(), file);
        assert_eq!(same, file != "mnt", "{file}");
        assert_ne!(namespace(first.pid(), file), own_namespace(file), "{file}");
    }
    let out = second
        .exec(&["sh", "-c", "id -u; stat -L -c %i /proc/self/ns/user"])
        .ok();
    assert_eq!(out, format!("0\n{}", namespace(first.pid(), "user")));
    second.call(&["delete", "--force", &second.id]).ok();
    second.assert_gone();
    // The ids may be repeated, but not contradicted.
    let mut repeated = mapped("cat /proc/self/gid_map");
    let mappings = repeated.config["linux"]["uidMappings"].clone();
    join_all(&mut repeated, first.pid());
    repeated.set("/linux/uidMappings", mappings.clone());
    repeated.set("/linux/gidMappings", mappings);
    assert!(repeated.run().ok().contains("100000"));
    repeated.set(
        "/linux/gidMappings",
        json!([{"containerID": 0, "hostID": FIRST + 1, "size": 65536}]),
    );
    repeated.create().fails(1, "0:100000:65536");
    repeated.assert_gone();
}

#[test]
fn privileged_namespaces_of_the_host_s_owner_are_joined_before_the_user_namespace() {
    if !ready() {
        return;
    }
    // A network and an IPC namespace that the container's user namespace does not own.
    let holder = Bundle::new("sleep 1000");
    holder.create().ok();
    let path = |kind: &str| format!("/proc/{}/ns/{kind}", holder.pid());
    let owner = mapped("sleep 1000");
    owner.create().ok();
    for user in [
        json!({"type": "user"}),
        json!({"type": "user", "path": format!("/proc/{}/ns/user", owner.pid())}),
    ] {
        let mut bundle = mapped("sleep 1000");
        bundle.set(
            "/linux/namespaces",
            json!([user, {"type": "mount"}, {"type": "pid"}, {"type": "uts", "path": path("uts")},
                   {"type": "network", "path": path("net")}, {"type": "ipc", "path": path("ipc")}]),
        );
        if bundle.config["linux"]["namespaces"][0]
            .get("path")
            .is_some()
        {
            let linux = bundle.config["linux"].as_object_mut().unwrap();
            linux.remove("uidMappings");
            linux.remove("gidMappings");
        }
        bundle.config.as_object_mut().unwrap().remove("hostname");
        bundle.config["mounts"][3] = json!({"destination": "/sys", "type": "none", "source": "/sys", "options": ["rbind", "ro"]});
        bundle.set("/linux/maskedPaths", json!([]));
        bundle.create().ok();
        bundle.start().ok();
        for kind in ["net", "ipc", "uts"] {
            assert_eq!(
                namespace(bundle.pid(), kind),
                namespace(holder.pid(), kind),
                "{kind}"
            );
        }
        assert_ne!(
            namespace(bundle.pid(), "user"),
            namespace(holder.pid(), "user")
        );
        // Entering again goes the same way.
        let out = bundle
            .exec(&["stat", "-L", "-c", "%i", "/proc/self/ns/net"])
            .ok();
        assert_eq!(out, namespace(holder.pid(), "net").to_string());
    }
}

#[test]
fn privileged_a_mount_namespace_is_joined_in_a_user_namespace() {
    if !ready() {
        return;
    }
    let first = mapped("sleep 1000");
    first.create().ok();
    let mut second = Bundle::new("cat /etc/passwd | head -1; sleep 1000");
    give(&second.rootfs(), FIRST);
    join_all(&mut second, first.pid());
    let list = second.config["linux"]["namespaces"].as_array_mut().unwrap();
    list.retain(|n| n["type"] != "mount" && n["type"] != "time");
    list.push(json!({"type": "mount", "path": format!("/proc/{}/ns/mnt", first.pid())}));
    // The other container has pivoted: its root is all there is, and the bundle is not in it.
    second.create().fails(1, "rootfs");
    second.assert_gone();
}

#[test]
fn privileged_files_that_are_no_such_namespace_are_refused_by_name() {
    if !ready() {
        return;
    }
    let bundle = Bundle::new("true");
    let plain = bundle.dir.path().join("plain");
    std::fs::write(&plain, "").unwrap();
    let fifo = bundle.dir.path().join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    let own = |file: &str| format!("/proc/{}/ns/{file}", std::process::id());
    for (kind, file) in KINDS {
        let other = if file == "ipc" { "uts" } else { "ipc" };
        for (path, words) in [
            (own(other), format!("one of type {other}")),
            (
                plain.to_str().unwrap().to_owned(),
                "but another file".to_owned(),
            ),
            // Opening it for reading would wait for a writer.
            (
                fifo.to_str().unwrap().to_owned(),
                "but another file".to_owned(),
            ),
            ("/dev/null".to_owned(), "but another file".to_owned()),
            ("/".to_owned(), "but another file".to_owned()),
            ("/no/such".to_owned(), "/no/such".to_owned()),
        ] {
            let mut bundle = Bundle::new("true");
            let list = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
            list.retain(|n| n["type"] != kind);
            list.push(json!({"type": kind, "path": path}));
            bundle.config.as_object_mut().unwrap().remove("hostname");
            let text = bundle.create().fails(1, &words);
            assert!(text.contains(kind), "{text}");
            assert!(!bundle.state_root().exists(), "{kind} {path}");
            bundle.assert_gone();
        }
    }
}
