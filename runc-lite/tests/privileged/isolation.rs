//! What the program finds: identity, limits, files, filters.

use serde_json::json;

use super::bundle::{Bundle, ready};

#[test]
fn privileged_identity_is_exactly_the_document_s() {
    if !ready() {
        return;
    }
    let mut bundle = Bundle::new(
        "id -u; id -g; id -G; umask; echo $HOME; grep -E '^Cap|NoNewPrivs' /proc/self/status; hostname",
    );
    bundle.set(
        "/process/user",
        json!({"uid": 1000, "gid": 100, "additionalGids": [7, 9], "umask": 0o27}),
    );
    let out = bundle.run().ok();
    assert_eq!(
        out,
        "1000\n100\n100 7 9\n0027\n/home/user\n\
         CapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n\
         CapBnd:\t00000000000004e1\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\nbox"
    );
}

#[test]
fn privileged_ambient_and_inheritable_come_as_written() {
    if !ready() {
        return;
    }
    let mut bundle = Bundle::new("grep ^Cap /proc/self/status");
    let kill = json!(["CAP_KILL"]);
    bundle.set("/process/user", json!({"uid": 1000, "gid": 1000}));
    bundle.set(
        "/process/capabilities",
        json!({"bounding": kill, "permitted": kill, "effective": kill,
                                               "inheritable": kill, "ambient": kill}),
    );
    let out = bundle.run().ok();
    assert_eq!(out.matches("0000000000000020").count(), 5, "{out}");
}

#[test]
fn privileged_capabilities_nobody_can_give_are_left_out_and_logged() {
    if !ready() {
        return;
    }
    let all: Vec<&str> = runc_lite::spec::CAPABILITY_NAMES.to_vec();
    let mut bundle = Bundle::new("grep ^Cap /proc/self/status");
    bundle.set(
        "/process/capabilities",
        json!({"bounding": all, "permitted": all, "effective": all}),
    );
    let out = bundle.run().ok();
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let own = own
        .lines()
        .find_map(|l| l.strip_prefix("CapPrm:\t"))
        .unwrap()
        .to_owned();
    assert!(out.contains(&format!("CapEff:\t{own}")), "{out}");
    let missing = own != "000001ffffffffff";
    assert_eq!(
        bundle.log().contains("capabilities left out"),
        missing,
        "{}",
        bundle.log()
    );
}

#[test]
fn privileged_limits_are_set_or_clamped() {
    if !ready() {
        return;
    }
    let mut bundle = Bundle::new("ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj");
    bundle.set(
        "/process/rlimits",
        json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]),
    );
    bundle.set("/process/oomScoreAdj", json!(500));
    assert_eq!(bundle.run().ok(), "100\n200\n500");
    let mut bundle = Bundle::new("ulimit -Hc");
    bundle.set(
        "/process/rlimits",
        json!([{"type": "RLIMIT_CORE", "soft": 10, "hard": u64::MAX}]),
    );
    bundle.set("/process/oomScoreAdj", json!(-1000));
    bundle.run().ok();
}

#[test]
fn privileged_masked_and_readonly_paths() {
    if !ready() {
        return;
    }
    let mut bundle = Bundle::new(
        "cat /proc/keys | head -c 1; ls /sys/firmware /secret; cat /file; \
         echo x > /proc/sys/kernel/domainname; touch /secret/x; touch /ro/x",
    );
    std::fs::create_dir(bundle.rootfs().join("secret")).unwrap();
    std::fs::create_dir(bundle.rootfs().join("ro")).unwrap();
    std::fs::write(bundle.rootfs().join("secret/inner"), "hidden").unwrap();
    std::fs::write(bundle.rootfs().join("file"), "hidden").unwrap();
    bundle.set(
        "/linux/maskedPaths",
        json!([
            "/proc/keys",
            "/sys/firmware",
            "/secret",
            "/file",
            "/proc/kcore",
            "/not/there"
        ]),
    );
    bundle.set(
        "/linux/readonlyPaths",
        json!(["/proc/sys", "/ro", "/not/there"]),
    );
    let done = bundle.run();
    assert_eq!(
        done.out
            .replace("/sys/firmware:", "")
            .replace("/secret:", "")
            .trim(),
        "",
        "{done:?}"
    );
    assert_eq!(
        done.err.matches("Read-only file system").count(),
        3,
        "{done:?}"
    );
    assert!(!bundle.rootfs().join("ro/x").exists());
}

#[test]
fn privileged_a_read_only_root_and_mount_options() {
    if !ready() {
        return;
    }
    let mut bundle =
        Bundle::new("touch /x; touch /mnt/a/x /mnt/b/x /mnt/b/sub/y; mount | grep /mnt");
    let source = bundle.dir.path().join("volume");
    std::fs::create_dir_all(source.join("sub")).unwrap();
    bundle.set("/root/readonly", json!(true));
    for name in ["a", "b"] {
        std::fs::create_dir(bundle.rootfs().join("mnt").join(name)).unwrap();
    }
    bundle.set(
        "/mounts/-",
        json!({"destination": "/mnt/a", "type": "bind", "source": source,
                                   "options": ["rbind", "rw", "nosuid", "noexec", "noatime"]}),
    );
    bundle.set(
        "/mounts/-",
        json!({"destination": "/mnt/b", "type": "bind", "source": source,
                                   "options": ["rbind", "rro"]}),
    );
    let done = bundle.run();
    assert_eq!(
        done.err.matches("Read-only file system").count(),
        3,
        "{done:?}"
    );
    assert!(source.join("x").exists() && !source.join("sub/y").exists());
    let a = done.out.lines().find(|l| l.contains("/mnt/a")).unwrap();
    for option in ["nosuid", "noexec", "noatime"] {
        assert!(a.contains(option), "{a}");
    }
}

#[test]
fn privileged_devices_and_links() {
    if !ready() {
        return;
    }
    let mut bundle = Bundle::new(
        "cd /dev; for d in null zero full random urandom tty fuse; do stat -c '%n %t:%T %a %F' $d; done; \
         readlink ptmx; readlink fd; readlink stdin; echo x > null && head -c 3 zero | dd bs=1 2>&1 | grep -c records; \
         cat < fuse",
    );
    bundle.set(
        "/linux/devices",
        json!([{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229,
                                         "fileMode": 0o666, "uid": 3, "gid": 4}]),
    );
    let done = bundle.run();
    for line in [
        "null 1:3 666 character special file",
        "tty 5:0 666",
        "fuse a:e5 666",
        "pts/ptmx",
        "/proc/self/fd",
        "/proc/self/fd/0",
    ] {
        assert!(done.out.contains(line), "{line}: {done:?}");
    }
    // The node is there, the device rules say no.
    assert!(done.err.contains("Operation not permitted"), "{done:?}");
}

#[test]
fn privileged_sysctls_are_set_in_the_container_only() {
    if !ready() {
        return;
    }
    let host = std::fs::read_to_string("/proc/sys/kernel/shm_rmid_forced").unwrap();
    let mut bundle = Bundle::new(
        "cat /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/ip_unprivileged_port_start",
    );
    bundle.set(
        "/linux/sysctl",
        json!({"kernel.shm_rmid_forced": "1",
                                       "net.ipv4.ip_unprivileged_port_start": "77"}),
    );
    assert_eq!(bundle.run().ok(), "1\n77");
    assert_eq!(
        std::fs::read_to_string("/proc/sys/kernel/shm_rmid_forced").unwrap(),
        host
    );
}

fn filtered(script: &str, no_new_privileges: bool, uid: u32) -> Bundle {
    let mut bundle = Bundle::new(script);
    bundle.set("/process/noNewPrivileges", json!(no_new_privileges));
    bundle.set("/process/user", json!({"uid": uid, "gid": uid}));
    bundle.set(
        "/linux/seccomp",
        json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
               "syscalls": [{"names": ["mkdir", "mkdirat", "made_up_call"],
                             "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]}),
    );
    bundle
}

#[test]
fn privileged_seccomp_works_with_and_without_no_new_privs() {
    if !ready() {
        return;
    }
    for (no_new_privileges, uid) in [(true, 0), (false, 0), (true, 1000), (false, 1000)] {
        let bundle = filtered(
            "mkdir /tmp/x; grep -E 'Seccomp:|CapPrm' /proc/self/status",
            no_new_privileges,
            uid,
        );
        let done = bundle.run();
        assert!(done.err.contains("No space left"), "{done:?}");
        assert!(done.out.contains("Seccomp:\t2"), "{done:?}");
        // What was kept for loading the filter is gone.
        let permitted = if uid == 0 {
            "00000000000004e1"
        } else {
            "0000000000000000"
        };
        assert!(done.out.contains(permitted), "{done:?}");
    }
}

#[test]
fn privileged_a_hostile_seccomp_cache_is_not_believed() {
    if !ready() {
        return;
    }
    let bundle = filtered("mkdir /tmp/x", true, 0);
    assert!(bundle.run().err.contains("No space left"));
    let cache = bundle.state_root().join(".seccomp-cache");
    let entry = std::fs::read_dir(&cache)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let mut bytes = std::fs::read(&entry).unwrap();
    // "Return allow" at the head of the program, the rest as it was.
    bytes[48..56].copy_from_slice(&[6, 0, 0, 0, 0, 0, 0xff, 0x7f]);
    std::fs::write(&entry, bytes).unwrap();
    assert!(bundle.run().err.contains("No space left"));
}

#[test]
fn privileged_namespaces_by_path_are_joined() {
    if !ready() {
        return;
    }
    let first = Bundle::new("sleep 1000");
    first.create().ok();
    first.start().ok();
    let mut second =
        Bundle::new("for n in pid net ipc uts mnt; do readlink /proc/self/ns/$n; done; hostname");
    second.config.as_object_mut().unwrap().remove("hostname");
    for (index, file) in [(0, "pid"), (1, "net"), (2, "ipc"), (3, "uts")] {
        let path = format!("/proc/{}/ns/{file}", first.pid());
        second.config["linux"]["namespaces"][index]["path"] = json!(path);
    }
    let out = second.run().ok();
    let lines: Vec<&str> = out.lines().collect();
    for (line, file) in lines.iter().zip(["pid", "net", "ipc", "uts"]) {
        let link = std::fs::read_link(format!("/proc/{}/ns/{file}", first.pid())).unwrap();
        assert_eq!(*line, link.to_str().unwrap());
    }
    let mount = std::fs::read_link(format!("/proc/{}/ns/mnt", first.pid())).unwrap();
    assert_ne!(lines[4], mount.to_str().unwrap());
    assert_eq!(lines[5], "box");
}

#[test]
fn privileged_propagation_reaches_the_host_only_when_asked() {
    if !ready() {
        return;
    }
    for (option, seen) in [("rshared", true), ("rslave", false), ("rprivate", false)] {
        let mut bundle = Bundle::new("mount -t tmpfs inner /mnt/sub && sleep 1000");
        let source = bundle.dir.path().join("volume");
        std::fs::create_dir_all(source.join("sub")).unwrap();
        // A shared mount of the "host", which is this test's own namespace.
        rustix::mount::mount_bind(&source, &source).unwrap();
        let shared = rustix::mount::MountPropagationFlags::SHARED;
        rustix::mount::mount_change(&source, shared).unwrap();
        let caps = json!(["CAP_SYS_ADMIN"]);
        bundle.set(
            "/process/capabilities",
            json!({"bounding": caps, "effective": caps, "permitted": caps}),
        );
        bundle.set(
            "/mounts/-",
            json!({"destination": "/mnt", "type": "bind", "source": source,
                                       "options": ["rbind", option]}),
        );
        bundle.create().ok();
        bundle.start().ok();
        super::bundle::eventually("the mount in the container", || {
            let path = format!("/proc/{}/mountinfo", bundle.pid());
            std::fs::read_to_string(path).is_ok_and(|text| text.contains("/mnt/sub"))
        });
        let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        assert_eq!(mounts.contains("volume/sub"), seen, "{option}");
        bundle.call(&["delete", "--force", &bundle.id]).ok();
        let detach = rustix::mount::UnmountFlags::DETACH;
        if seen {
            rustix::mount::unmount(source.join("sub"), detach).unwrap();
        }
        rustix::mount::unmount(&source, detach).unwrap();
    }
}
