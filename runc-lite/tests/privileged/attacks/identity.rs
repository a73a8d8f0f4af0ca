//! Who the container is: ids, capabilities, cgroups, keys, mappings: tests 6 to 10, 13 and 14.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};

use rustix::thread::CapabilitySet;
use serde_json::json;

use super::arena::{Canary, arm, assert_nothing_got, empower};
use crate::bundle::{Bundle, process_file, ready};

/// Number 6: far more mappings than any message of the runtime or the kernel holds.
#[test]
fn privileged_cve_2021_43784_ten_thousand_mappings_apply_in_whole_or_not_at_all() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    let mapping = |n: u32| json!({"containerID": n, "hostID": 100_000 + n, "size": 1});
    let mappings: Vec<_> = (0..10_000).map(mapping).collect();
    let mut bundle = Bundle::new("echo GOT to run");
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.push(json!({"type": "user"}));
    bundle.set("/linux/uidMappings", json!(mappings));
    bundle.set("/linux/gidMappings", json!(mappings));
    let done = bundle.run();
    assert_eq!((done.code, done.out.as_str()), (1, ""), "{done:?}");
    assert!(done.err.len() < 2000, "{} bytes of error", done.err.len());
    bundle.assert_gone();
    canary.assert_alive();
}

/// CVE-2016-3697: a user is a number.
#[test]
fn privileged_cve_2016_3697_names_are_not_users() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    let bundle = Bundle::new("sleep 1000");
    // A user whose name is a number.
    fs::write(
        bundle.rootfs().join("etc/passwd"),
        "1000:x:0:0::/root:/bin/sh\n",
    )
    .unwrap();
    fs::write(bundle.rootfs().join("etc/group"), "1000:x:0:\n").unwrap();
    bundle.create().ok();
    bundle.start().ok();
    let exec =
        |user: &str| bundle.call(&["exec", "-u", user, &bundle.id, "sh", "-c", "id -u; id -g"]);
    assert_eq!(exec("1000:1000").ok(), "1000\n1000");
    for user in [
        "root",
        "",
        ":",
        "1000:",
        "+0",
        "-0",
        " 0",
        "0 ",
        "4294967295",
        "4294967296",
        "0x0",
    ] {
        exec(user).fails(255, "user");
    }
    for user in [
        json!({"uid": 4_294_967_295u32}),
        json!({"gid": 4_294_967_295u32}),
        json!({"uid": -1}),
        json!({"uid": "0"}),
    ] {
        let mut bundle = Bundle::new("true");
        bundle.set("/process/user", user);
        assert_eq!(bundle.create().code, 1);
        bundle.assert_gone();
    }
    canary.assert_alive();
}

/// Capabilities of a file as the kernel stores them: all inheritable, and effective.
fn inheritable_file(path: &std::path::Path) {
    let mut value = Vec::new();
    // VFS_CAP_REVISION_2 with the effective bit, then permitted and inheritable, low and high.
    value.extend_from_slice(&0x0200_0001u32.to_le_bytes());
    for word in [0u32, u32::MAX, 0, 0x1ff] {
        value.extend_from_slice(&word.to_le_bytes());
    }
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(path, "security.capability", &value, flags).unwrap();
}

/// CVE-2022-24769 and kin (-29162, -27649, -27650, -27651, -27652): called by a process that has inheritable
/// and ambient capabilities itself.
#[test]
fn privileged_cve_2022_24769_nothing_is_inheritable_unless_the_document_says_so() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    let own = rustix::thread::capabilities(None).unwrap();
    let given = CapabilitySet::CHOWN | CapabilitySet::NET_ADMIN | CapabilitySet::KILL;
    let mut sets = own;
    sets.inheritable = given;
    rustix::thread::set_capabilities(None, sets).unwrap();
    for one in [
        CapabilitySet::CHOWN,
        CapabilitySet::NET_ADMIN,
        CapabilitySet::KILL,
    ] {
        rustix::thread::configure_capability_in_ambient_set(one, true).unwrap();
    }
    for uid in [0, 1000] {
        for no_new_privileges in [true, false] {
            let script = "grep -E '^Cap(Inh|Amb)' /proc/self/status; /bin/inheriting grep CapPrm /proc/self/status";
            let mut bundle = Bundle::new(script);
            // Busybox by this name runs what its first argument names.
            let file = bundle.rootfs().join("bin/busybox-inheriting");
            fs::copy(bundle.rootfs().join("bin/busybox"), &file).unwrap();
            inheritable_file(&file);
            let script = script.replace("/bin/inheriting", "/bin/busybox-inheriting");
            bundle.set("/process/args", json!(["sh", "-c", script]));
            bundle.set("/process/user", json!({"uid": uid, "gid": uid}));
            bundle.set("/process/noNewPrivileges", json!(no_new_privileges));
            let none = "0000000000000000";
            let permitted = if uid == 0 { "00000000000004e1" } else { none };
            let expected = format!("CapInh:\t{none}\nCapAmb:\t{none}\nCapPrm:\t{permitted}");
            assert_eq!(bundle.run().ok(), expected, "{uid} {no_new_privileges}");
            bundle.set("/process/args", json!(["sleep", "1000"]));
            bundle.create().ok();
            bundle.start().ok();
            assert_eq!(bundle.exec(&["sh", "-c", &script]).ok(), expected);
        }
    }
    // What the document makes inheritable does not become ambient for it.
    let mut bundle = Bundle::new("grep -E '^Cap(Inh|Amb)' /proc/self/status");
    let kill = json!(["CAP_KILL"]);
    bundle.set(
        "/process/capabilities",
        json!({"bounding": kill, "permitted": kill, "effective": kill, "inheritable": kill}),
    );
    let expected = "CapInh:\t0000000000000020\nCapAmb:\t0000000000000000";
    assert_eq!(bundle.run().ok(), expected);
    canary.assert_alive();
}

/// CVE-2018-1000400: a user that is not root gets no effective capability without asking for ambient ones.
#[test]
fn privileged_cve_2018_1000400_an_added_capability_is_not_in_force_for_a_user() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    let mut bundle = Bundle::new("grep -E '^Cap' /proc/self/status");
    empower(&mut bundle, &["CAP_NET_ADMIN"]);
    bundle.set("/process/user", json!({"uid": 1000, "gid": 1000}));
    let none = "0000000000000000";
    let bounding = "0000000000001000";
    let expected = format!(
        "CapInh:\t{none}\nCapPrm:\t{none}\nCapEff:\t{none}\nCapBnd:\t{bounding}\nCapAmb:\t{none}"
    );
    assert_eq!(bundle.run().ok(), expected);
    canary.assert_alive();
}

/// CVE-2025-27612: a later process has no more than the container.
#[test]
fn privileged_cve_2025_27612_exec_has_the_container_s_capabilities() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    let grep = "grep -E '^Cap' /proc/self/status; grep -E '^Cap' /proc/1/status";
    for names in [&["CAP_KILL"][..], &[]] {
        let mut bundle = Bundle::new("sleep 1000");
        empower(&mut bundle, names);
        bundle.create().ok();
        bundle.start().ok();
        let file = process_file(
            &bundle,
            &json!({"args": ["sh", "-c", grep], "cwd": "/", "env": ["PATH=/bin"],
                    "user": {"uid": 0, "gid": 0}}),
        );
        for out in [
            bundle.exec(&["sh", "-c", grep]).ok(),
            bundle.call(&["exec", "--process", &file, &bundle.id]).ok(),
        ] {
            let lines: Vec<&str> = out.lines().collect();
            assert_eq!(lines[..5], lines[5..], "{names:?}: {out}");
        }
    }
    // A document without capabilities gives none at all, whatever the runtime has.
    let mut bundle = Bundle::new("grep CapBnd /proc/self/status");
    let process = bundle.config["process"].as_object_mut().unwrap();
    process.remove("capabilities");
    assert_eq!(bundle.run().ok(), "CapBnd:\t0000000000000000");
    canary.assert_alive();
}

/// Supplementary groups of the caller stay outside.
#[test]
fn privileged_cve_2022_2989_groups_are_exactly_the_document_s() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    let groups: Vec<_> = [0, 4, 27, 999].map(rustix::process::Gid::from_raw).to_vec();
    rustix::thread::set_thread_groups(&groups).unwrap();
    for (more, expected) in [(json!([]), "1000"), (json!([7]), "1000 7")] {
        let mut bundle = Bundle::new("id -G; sleep 0.1");
        bundle.set(
            "/process/user",
            json!({"uid": 1000, "gid": 1000, "additionalGids": more}),
        );
        assert_eq!(bundle.run().ok(), expected);
    }
    canary.assert_alive();
}

/// Number 13: neither a way up nor a neighbour whose name begins alike.
#[test]
fn privileged_exec_joins_no_cgroup_but_the_container_s() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    let short = Bundle::new("sleep 1000");
    let mut long = Bundle::new("sleep 1000");
    let sibling = format!("{}-sibling", short.id);
    short.create().ok();
    short.start().ok();
    long.place(&sibling);
    long.create().ok();
    for bad in [
        "/../x".to_owned(),
        "..".to_owned(),
        format!("../{sibling}"),
        format!("/../{sibling}"),
        format!("sub/../../{sibling}"),
        format!("pids:../{sibling}"),
        "/./../".to_owned(),
    ] {
        let args = ["exec", "--cgroup", &bad, &short.id, "true"];
        short.call(&args).fails(255, "cgroup");
    }
    canary.assert_alive();
}

/// Number 14: an id is a plain name, whatever verb it is given to.
#[test]
fn privileged_ids_that_are_paths_reach_no_directory() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    let mut bundle = Bundle::new("true");
    // A state directory to be reached by them.
    fs::create_dir_all(bundle.state_root()).unwrap();
    fs::create_dir(bundle.dir.path().join("x")).unwrap();
    fs::write(bundle.dir.path().join("x/state.json"), "{}").unwrap();
    bundle.write();
    let long = "a".repeat(4096);
    for id in [
        "../x", "a/b", ".", "..", "", "a\nb", "\u{1}", "a b", "/", "/etc", "ä", "*", &long,
    ] {
        for verb in ["create", "run", "start", "state", "kill", "delete", "exec"] {
            let done = bundle.call(&[verb, id]);
            assert!(
                done.code == 1 || done.code == 255,
                "{verb} {id:?}: {done:?}"
            );
            assert_eq!(done.out, "", "{verb} {id:?}");
        }
        let forced = bundle.call(&["delete", "--force", id]);
        assert_eq!(forced.code, 1, "{id:?}: {forced:?}");
    }
    assert_eq!(
        super::arena::names(&bundle.state_root()),
        Vec::<String>::new()
    );
    assert!(bundle.dir.path().join("x/state.json").exists());
    for path in ["../x", "/a/../../b", "a/..", "/.."] {
        bundle.set("/linux/cgroupsPath", json!(path));
        bundle.create().fails(1, "cgroupsPath");
    }
    canary.assert_alive();
}

#[test]
fn privileged_callers_of_one_id_at_once_leave_nothing() {
    if !ready() {
        return;
    }
    super::loops::callers_of_one_id(16);
}

/// A state directory that somebody else could fill says nothing.
#[test]
fn privileged_a_root_of_somebody_else_is_refused() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    for hostile in ["owner", "mode", "container"] {
        let bundle = Bundle::new("sleep 1000");
        bundle.create().ok();
        let root = bundle.state_root();
        let own = root.join(&bundle.id);
        match hostile {
            "owner" => chown(&root, Some(1000), Some(1000)).unwrap(),
            "mode" => fs::set_permissions(&root, PermissionsExt::from_mode(0o777)).unwrap(),
            _ => chown(&own, Some(1000), Some(1000)).unwrap(),
        }
        for verb in ["state", "start", "kill", "exec", "delete"] {
            let mut args = vec![verb, &bundle.id];
            if verb == "exec" {
                args.push("true");
            }
            let done = bundle.call(&args);
            assert!(
                done.err.contains("belongs to") || done.err.contains("written by others"),
                "{hostile} {verb}: {done:?}"
            );
        }
        if hostile != "container" {
            let mut other = Bundle::new("true");
            other.set("/root/path", json!(other.rootfs()));
            other.write();
            let id = format!("{}-second", bundle.id);
            let args = [
                "create",
                "--bundle",
                other.dir.path().to_str().unwrap(),
                &id,
            ];
            let done = bundle.call(&args);
            assert_eq!(done.code, 1, "{hostile}: {done:?}");
        }
        chown(&root, Some(0), Some(0)).unwrap();
        chown(&own, Some(0), Some(0)).unwrap();
        fs::set_permissions(&root, PermissionsExt::from_mode(0o711)).unwrap();
    }
    canary.assert_alive();
}

/// Keys of the caller's session are not the container's.
#[test]
fn privileged_keys_of_the_caller_stay_outside() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    let name = format!("axil-key-{}", std::process::id());
    if !add_key(&name) {
        println!("skipped: this kernel has no keyrings");
        return;
    }
    let mut bundle = Bundle::new("sleep 1000");
    arm(&bundle);
    bundle.create().ok();
    bundle.start().ok();
    assert_nothing_got(&bundle.exec(&["/attacker", "keys", &name]).ok());
    bundle.call(&["delete", "--force", &bundle.id]).ok();
    bundle.set("/process/args", json!(["/attacker", "keys", name]));
    let out = bundle.run().ok();
    assert!(out.contains("TRIED") && out.contains("REFUSED"), "{out}");
    canary.assert_alive();
}

/// Puts a key into a session keyring of this test's own, which the runtime then inherits.
fn add_key(name: &str) -> bool {
    let ring = std::ffi::CString::new(format!("ring-{name}")).unwrap();
    if runc_lite::sys::join_session_keyring(&ring).is_err() {
        return false;
    }
    // keyctl(1) is not everywhere; the attacker knows how.
    let done = std::process::Command::new(super::arena::attacker())
        .args(["add-key", name])
        .output()
        .unwrap();
    let seen = std::process::Command::new(super::arena::attacker())
        .args(["keys", name])
        .output()
        .unwrap();
    assert!(
        String::from_utf8_lossy(&seen.stdout).contains("GOT"),
        "the caller itself does not find its key: {done:?} {seen:?}"
    );
    true
}

/// The passwd file of the image is read for HOME only, and only when it is a plain file inside.
#[test]
fn privileged_a_hostile_passwd_file_gives_a_home_or_nothing() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    let secret = canary.file();
    for hostile in ["link", "fifo", "device", "huge"] {
        let mut bundle = Bundle::new("echo $HOME");
        let passwd = bundle.rootfs().join("etc/passwd");
        fs::remove_file(&passwd).unwrap();
        let make = |kind, number| {
            rustix::fs::mknodat(rustix::fs::CWD, &passwd, kind, 0o666.into(), number).unwrap();
        };
        match hostile {
            "link" => symlink(&secret, &passwd).unwrap(),
            "fifo" => make(rustix::fs::FileType::Fifo, 0),
            "device" => make(
                rustix::fs::FileType::CharacterDevice,
                rustix::fs::makedev(1, 5),
            ),
            _ => fs::File::create(&passwd).unwrap().set_len(1 << 40).unwrap(),
        }
        bundle.set("/process/user", json!({"uid": 1000, "gid": 1000}));
        assert_eq!(bundle.run().ok(), "/", "{hostile}");
    }
    canary.assert_alive();
}
