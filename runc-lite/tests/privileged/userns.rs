//! Containers with a user namespace of their own: ids, what they own, and what stays out of reach.

use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};

use super::bundle::{Bundle, eventually, process_file, ready};

/// The first id of the host that containers of these tests have.
pub(crate) const FIRST: u32 = 100_000;

/// A container whose ids 0 to 65535 are [`FIRST`] and up on the host, and that owns its rootfs.
pub(crate) fn mapped(script: &str) -> Bundle {
    let mut bundle = Bundle::new(script);
    give(&bundle.rootfs(), FIRST);
    let range = json!([{"containerID": 0, "hostID": FIRST, "size": 65536}]);
    bundle.set("/linux/uidMappings", range.clone());
    bundle.set("/linux/gidMappings", range);
    bundle.set("/linux/namespaces/-", json!({"type": "user"}));
    bundle
}

/// Gives a tree to user and group `id`.
pub(crate) fn give(path: &Path, id: u32) {
    lchown(path, Some(id), Some(id)).unwrap();
    if path.is_dir() && !path.is_symlink() {
        for entry in std::fs::read_dir(path).unwrap() {
            give(&entry.unwrap().path(), id);
        }
    }
}

/// The inode of a namespace of a process.
pub(crate) fn namespace(pid: i32, kind: &str) -> u64 {
    let path = format!("/proc/{pid}/ns/{kind}");
    std::fs::metadata(path).unwrap().ino()
}

/// The inode of a namespace of this test.
pub(crate) fn own_namespace(kind: &str) -> u64 {
    namespace(i32::try_from(std::process::id()).unwrap(), kind)
}

/// A line of `/proc/<pid>/status`.
fn status_line(pid: i32, name: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap().trim_start_matches(':').trim().to_owned()
}

#[test]
fn privileged_root_of_a_user_namespace_is_nobody_special_outside() {
    if !ready() {
        return;
    }
    let mut bundle = mapped(
        "id -u; id -g; cat /proc/self/uid_map; touch /tmp/made; hostname; cat /proc/sys/net/ipv4/ip_forward; \
         head -c 3 /dev/zero | wc -c; echo x > /dev/null; stat -c %u /dev/mqueue; stat -c %t:%T /dev/full; \
         ls /secret; sleep 1000",
    );
    std::fs::create_dir(bundle.rootfs().join("secret")).unwrap();
    std::fs::write(bundle.rootfs().join("secret/file"), "").unwrap();
    bundle.set("/linux/maskedPaths", json!(["/secret"]));
    bundle.set("/linux/sysctl", json!({"net.ipv4.ip_forward": "1"}));
    bundle.set(
        "/mounts/-",
        json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue"}),
    );
    bundle.create().ok();
    let pid = bundle.pid();
    bundle.start().ok();
    eventually("output", || bundle.output().lines().count() >= 8);
    let lines: Vec<String> = bundle.output().lines().map(str::to_owned).collect();
    let map: Vec<&str> = lines[2].split_whitespace().collect();
    assert_eq!(map, ["0", "100000", "65536"]);
    let others = [&lines[..2], &lines[3..]].concat();
    assert_eq!(others, ["0", "0", "box", "1", "3", "0", "1:7"]);
    assert_eq!(status_line(pid, "Uid"), "100000\t100000\t100000\t100000");
    assert_eq!(status_line(pid, "Groups"), "");
    assert_eq!(status_line(pid, "CapEff"), "00000000000004e1");
    let made = std::fs::metadata(bundle.rootfs().join("tmp/made")).unwrap();
    assert_eq!((made.uid(), made.gid()), (FIRST, FIRST));
    assert_ne!(namespace(pid, "user"), own_namespace("user"));
    bundle.call(&["kill", &bundle.id, "KILL"]).ok();
    eventually("stopped", || bundle.status() == "stopped");
    bundle.call(&["delete", &bundle.id]).ok();
    bundle.assert_gone();
}

#[test]
fn privileged_exec_enters_the_user_namespace() {
    if !ready() {
        return;
    }
    let bundle = mapped("sleep 1000");
    bundle.create().ok();
    bundle.start().ok();
    let out = bundle.exec(&[
        "sh",
        "-c",
        "id -u; cat /proc/self/uid_map; touch /tmp/by-exec",
    ]);
    let text = out.ok();
    assert!(text.starts_with("0\n") && text.contains("100000"), "{text}");
    let made = std::fs::metadata(bundle.rootfs().join("tmp/by-exec")).unwrap();
    assert_eq!(made.uid(), FIRST);
    let exec = |args: &[&str]| {
        let mut all = vec!["exec"];
        all.extend(args);
        bundle.call(&all)
    };
    let id = bundle.id.as_str();
    let groups = exec(&["-u", "1000:100", "-g", "7", id, "sh", "-c", "id -u; id -G"]).ok();
    assert_eq!(groups, "1000\n100 7");
    exec(&["-u", "70000", id, "true"]).fails(255, "process.user.uid");
    exec(&["-g", "70000", id, "true"]).fails(255, "process.user.additionalGids");
    let document = json!({"args": ["sh", "-c", "cat /proc/self/oom_score_adj"], "cwd": "/", "oomScoreAdj": 321,
                          "env": ["PATH=/bin"]});
    let file = process_file(&bundle, &document);
    assert_eq!(exec(&["-p", &file, id]).ok(), "321");
    let out = exec(&[id, "sh", "-c", "stat -L -c %i /proc/self/ns/user"]).ok();
    assert_eq!(out, namespace(bundle.pid(), "user").to_string());
}

#[test]
fn privileged_ids_come_from_all_ranges_and_zero_need_not_be_one_of_them() {
    if !ready() {
        return;
    }
    let mut bundle = mapped("id -u; id -g; cat /proc/self/gid_map; touch /tmp/made");
    let ranges = json!([{"containerID": 5, "hostID": 100_000, "size": 5},
                        {"containerID": 10, "hostID": 200_000, "size": 100}]);
    bundle.set("/linux/uidMappings", ranges.clone());
    bundle.set("/linux/gidMappings", ranges);
    bundle.set("/process/user", json!({"uid": 12, "gid": 5}));
    let devpts = json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                        "options": ["newinstance", "ptmxmode=0666", "gid=5"]});
    bundle.config["mounts"][2] = devpts;
    std::fs::set_permissions(
        bundle.rootfs().join("tmp"),
        std::fs::Permissions::from_mode(0o1777),
    )
    .unwrap();
    let out = bundle.run().ok();
    assert!(out.starts_with("12\n5\n"), "{out}");
    assert_eq!(out.lines().count(), 4, "{out}");
    let made = std::fs::metadata(bundle.rootfs().join("tmp/made")).unwrap();
    assert_eq!((made.uid(), made.gid()), (200_002, 100_000));
}

#[test]
fn privileged_cve_2021_43784_every_mapping_counts_or_none() {
    if !ready() {
        return;
    }
    let ranges = |count: u32, step: u32| -> Value {
        let range = |i| json!({"containerID": i, "hostID": FIRST + i * step, "size": 1});
        (0..count).map(range).collect()
    };
    let mut bundle = mapped("cat /proc/self/uid_map");
    // As many as the kernel takes, and short enough for its page.
    let most: Value = (0..340u32)
        .map(|i| json!({"containerID": i, "hostID": i, "size": 1}))
        .collect();
    bundle.set("/linux/uidMappings", most);
    give(&bundle.rootfs(), 0);
    assert_eq!(bundle.run().ok().lines().count(), 340);
    for (count, words) in [(341, "341 entries"), (10_000, "10000 entries")] {
        bundle.set("/linux/uidMappings", ranges(count, 1));
        let text = bundle.create().fails(1, words);
        assert!(text.contains("linux.uidMappings"), "{text}");
        bundle.assert_gone();
    }
    let long: Value = (0..340u32)
        .map(|i| json!({"containerID": 3_000_000_000 + i, "hostID": 2_000_000_000 + i * 2, "size": 1}))
        .collect();
    bundle.set("/linux/gidMappings", long);
    bundle.set("/linux/uidMappings", ranges(2, 1));
    bundle.set("/process/user", json!({"uid": 0, "gid": 3_000_000_000u32}));
    bundle.config["mounts"][2]["options"] = json!(["newinstance"]);
    if rustix_page_size() == 4096 {
        let text = bundle.create().fails(1, "linux.gidMappings");
        assert!(text.contains("4096"), "{text}");
        bundle.assert_gone();
    }
    assert!(!bundle.state_root().join(&bundle.id).exists());
}

fn rustix_page_size() -> usize {
    rustix::param::page_size()
}

#[test]
fn privileged_sources_the_container_s_users_cannot_reach_are_bound() {
    if !ready() {
        return;
    }
    let mut bundle = mapped("cat /mnt/one/file /mnt/two; ls /mnt/one/below");
    // The bundle's own directory is one of them: only root may pass it.
    let private = std::fs::Permissions::from_mode(0o700);
    std::fs::set_permissions(bundle.dir.path(), private).unwrap();
    let hidden = bundle.dir.path().join("hidden");
    std::fs::create_dir_all(hidden.join("one/below")).unwrap();
    std::fs::write(hidden.join("one/file"), "first\n").unwrap();
    std::fs::write(hidden.join("two"), "second\n").unwrap();
    std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(0o700)).unwrap();
    // A mount below a directory that is bound without what is below it.
    let below = rustix::fs::openat(
        rustix::fs::CWD,
        hidden.join("one/below"),
        rustix::fs::OFlags::PATH,
        rustix::fs::Mode::empty(),
    )
    .unwrap();
    rustix::mount::mount_bind(
        "/proc/self/fdinfo",
        format!("/proc/self/fd/{}", {
            use std::os::fd::AsRawFd;
            below.as_raw_fd()
        }),
    )
    .unwrap();
    for (source, destination) in [("hidden/one", "/mnt/one"), ("hidden/two", "/mnt/two")] {
        bundle.set(
            "/mounts/-",
            json!({"destination": destination, "type": "bind", "source": source, "options": ["bind"]}),
        );
    }
    assert_eq!(bundle.run().ok(), "first\nsecond");
    rustix::mount::unmount(
        hidden.join("one/below"),
        rustix::mount::UnmountFlags::DETACH,
    )
    .unwrap();
}

#[test]
fn privileged_sources_in_the_container_s_root_show_what_is_mounted_there() {
    if !ready() {
        return;
    }
    for (make, owner) in [(Bundle::new as fn(&str) -> Bundle, 0), (mapped, FIRST)] {
        let mut bundle = make("cat /tmp/final/file");
        let tree = bundle.dir.path().join("tree");
        std::fs::create_dir(&tree).unwrap();
        std::fs::write(tree.join("file"), "deep").unwrap();
        give(&bundle.rootfs(), owner);
        let inside = bundle.rootfs().join("mnt");
        // Also as libcontainer's callers name a destination.
        let last = bundle.rootfs().join("tmp/final");
        for (source, destination) in [(&tree, "/mnt"), (&inside, last.to_str().unwrap())] {
            bundle.set(
                "/mounts/-",
                json!({"destination": destination, "type": "bind", "source": source, "options": ["rbind"]}),
            );
        }
        assert_eq!(bundle.run().ok(), "deep");
        // A link of the image leads nowhere else, although the source is a path of the host.
        std::fs::create_dir(bundle.dir.path().join("secret")).unwrap();
        let escape = bundle.rootfs().join("escape");
        symlink(bundle.dir.path().join("secret"), &escape).unwrap();
        bundle.config["mounts"]
            .as_array_mut()
            .unwrap()
            .last_mut()
            .unwrap()["source"] = json!(escape);
        bundle.create().fails(1, "mounts[5]");
        bundle.assert_gone();
    }
}

#[test]
fn privileged_mounts_made_inside_never_reach_the_host() {
    if !ready() {
        return;
    }
    let mut bundle = mapped("mount -t tmpfs none /mnt && echo mounted; sleep 1000");
    let all: Vec<&str> = runc_lite::spec::CAPABILITY_NAMES.to_vec();
    bundle.set(
        "/process/capabilities",
        json!({"bounding": all, "permitted": all, "effective": all}),
    );
    // The host's mounts are shared: what is mounted on a peer would appear here.
    let root = std::fs::File::open("/").unwrap();
    let shared = runc_lite::sys::MountAttributes {
        propagation: libc::MS_SHARED,
        ..Default::default()
    };
    runc_lite::sys::mount_setattr(std::os::fd::AsFd::as_fd(&root), c"", true, shared).unwrap();
    let source = bundle.dir.path().join("shared");
    std::fs::create_dir(&source).unwrap();
    bundle.set(
        "/mounts/-",
        json!({"destination": "/mnt", "type": "bind", "source": "shared", "options": ["rbind", "rshared"]}),
    );
    bundle.create().ok();
    bundle.start().ok();
    eventually("mounted", || bundle.output() == "mounted");
    let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    assert!(!mounts.contains(source.to_str().unwrap()), "{mounts}");
    assert!(!mounts.contains("rootfs"), "{mounts}");
}

#[test]
fn privileged_pipes_are_given_to_the_mapped_user_and_devices_are_not() {
    if !ready() {
        return;
    }
    let mut bundle = mapped("stat -L -c %u:%g /proc/self/fd/1; echo again > /proc/self/fd/1");
    bundle.set("/process/user", json!({"uid": 1000, "gid": 100}));
    bundle.write();
    let before = std::fs::metadata("/dev/null").unwrap();
    let output = bundle.command(&["run", &bundle.id]).output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "1000:100\nagain\n",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let after = std::fs::metadata("/dev/null").unwrap();
    assert_eq!((before.uid(), before.gid()), (after.uid(), after.gid()));
}

#[test]
fn privileged_devices_are_bound_from_the_host_and_no_others() {
    if !ready() {
        return;
    }
    let device = |path: &str, kind: &str, major: u32, minor: u32| json!({"path": path, "type": kind, "major": major, "minor": minor});
    let mut bundle =
        mapped("stat -c %F:%t:%T /dev/tty /dev/pipe; echo x 2>/dev/null > /dev/full || echo full");
    bundle.set("/linux/devices", json!([device("/dev/pipe", "p", 0, 0)]));
    assert_eq!(
        bundle.run().ok(),
        "character special file:5:0\nfifo:0:0\nfull"
    );
    for (bad, words) in [
        (device("/dev/null", "c", 1, 5), "is not the device"),
        (device("/dev/no-such", "c", 1, 3), "/dev/no-such"),
    ] {
        bundle.set("/linux/devices", json!([bad]));
        bundle.create().fails(1, words);
        bundle.assert_gone();
    }
    // An image that brings a link where a device belongs.
    let mut hostile = mapped("true");
    hostile.config["mounts"]
        .as_array_mut()
        .unwrap()
        .retain(|m| !m["destination"].as_str().unwrap().starts_with("/dev"));
    std::fs::create_dir(hostile.rootfs().join("dev")).unwrap();
    std::fs::write(hostile.dir.path().join("victim"), "alive").unwrap();
    symlink("../../victim", hostile.rootfs().join("dev/null")).unwrap();
    give(&hostile.rootfs(), FIRST);
    hostile.create().fails(1, "/dev/null");
    hostile.assert_gone();
    let victim = std::fs::read_to_string(hostile.dir.path().join("victim")).unwrap();
    assert_eq!(victim, "alive");
}

#[test]
fn privileged_cve_2023_25809_cgroups_are_readonly_without_a_cgroup_namespace() {
    if !ready() {
        return;
    }
    let mut bundle = mapped("grep -E '^cgroup2? /sys/fs/cgroup' /proc/self/mounts");
    let cgroup = json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rw"]});
    bundle.set("/mounts/-", cgroup);
    let with = bundle.run().ok();
    assert!(with.contains(" rw,"), "{with}");
    bundle.config["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .retain(|n| n["type"] != "cgroup");
    let without = bundle.run().ok();
    assert_eq!(without.lines().count(), with.lines().count(), "{without}");
    for line in without.lines() {
        assert!(line.split(' ').nth(3).unwrap().starts_with("ro"), "{line}");
    }
}

/// Shows this thread cgroup v2 alone, in its own mount namespace.
fn unified_only() {
    let place = Path::new("/sys/fs/cgroup");
    rustix::mount::unmount(place, rustix::mount::UnmountFlags::DETACH).unwrap();
    rustix::mount::mount(
        "cgroup2",
        place,
        "cgroup2",
        rustix::mount::MountFlags::empty(),
        None::<&std::ffi::CStr>,
    )
    .unwrap();
}

#[test]
fn privileged_on_v2_the_container_owns_its_cgroup_where_it_can_write_it() {
    if !ready() {
        return;
    }
    unified_only();
    let mut bundle = mapped(
        "mkdir /sys/fs/cgroup/below && echo $$ > /sys/fs/cgroup/below/cgroup.procs && grep 0:: /proc/self/cgroup; \
         sleep 1000",
    );
    bundle.set("/linux/resources", json!({}));
    bundle.set("/process/user", json!({"uid": 5, "gid": 5}));
    let mount = |access: &str| {
        json!({"destination": "/sys/fs/cgroup", "type": "cgroup2", "source": "cgroup",
                                       "options": [access]})
    };
    bundle.set("/mounts/-", mount("rw"));
    let directory = bundle.unified().unwrap();
    let owner = |name: &str| std::fs::metadata(directory.join(name)).unwrap().uid();
    bundle.create().ok();
    assert_eq!(owner(""), FIRST + 5);
    assert_eq!(owner("cgroup.procs"), FIRST + 5);
    assert_eq!(owner("cgroup.subtree_control"), FIRST + 5);
    assert_eq!(owner("cgroup.max.depth"), 0);
    bundle.start().ok();
    eventually("output", || bundle.output() == "0::/below");
    bundle.call(&["delete", "--force", &bundle.id]).ok();
    assert!(!directory.exists());
    *bundle.config["mounts"]
        .as_array_mut()
        .unwrap()
        .last_mut()
        .unwrap() = mount("ro");
    bundle.create().ok();
    assert_eq!(owner("cgroup.procs"), 0);
    bundle.call(&["delete", "--force", &bundle.id]).ok();
    bundle.config["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .retain(|n| n["type"] != "cgroup");
    *bundle.config["mounts"]
        .as_array_mut()
        .unwrap()
        .last_mut()
        .unwrap() = mount("rw");
    bundle.set(
        "/process/args",
        json!(["sh", "-c", "grep ' /sys/fs/cgroup ' /proc/self/mounts"]),
    );
    let line = bundle.run().ok();
    assert!(line.contains("cgroup2 ro"), "{line}");
}

#[test]
fn privileged_file_systems_of_foreign_namespaces_are_refused_with_the_way_out() {
    if !ready() {
        return;
    }
    let mut bundle = mapped("ls /sys | head -1");
    bundle.config["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .retain(|n| n["type"] != "network");
    let text = bundle.create().fails(1, "mounts[3]");
    assert!(text.contains("network namespace"), "{text}");
    bundle.assert_gone();
    bundle.config["mounts"][3] = json!({"destination": "/sys", "type": "none", "source": "/sys", "options": ["rbind", "ro"]});
    bundle.set("/linux/maskedPaths", json!([]));
    assert_eq!(bundle.run().ok(), "block");
}

#[test]
fn privileged_hooks_of_every_kind_run_for_a_mapped_container() {
    if !ready() {
        return;
    }
    let mut bundle = mapped("sleep 1000");
    let trace = bundle.dir.path().join("trace");
    std::fs::write(&trace, "").unwrap();
    std::fs::set_permissions(&trace, std::fs::Permissions::from_mode(0o666)).unwrap();
    let hook = |kind: &str| {
        let script = format!("echo {kind} $(id -u) >> {}", trace.display());
        json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]}])
    };
    bundle.set(
        "/hooks",
        json!({"createRuntime": hook("createRuntime"), "poststart": hook("poststart"),
               "poststop": hook("poststop")}),
    );
    bundle.config["hooks"]["createContainer"] = json!([{"path": "/bin/sh", "args": ["sh", "-c",
        "test \"$(id -u)\" = 0 && test \"$(cat /proc/self/uid_map | tr -s ' ')\" = ' 0 100000 65536'"],
        "env": ["PATH=/usr/bin:/bin"]}]);
    bundle.create().ok();
    bundle.start().ok();
    bundle.call(&["delete", "--force", &bundle.id]).ok();
    let text = std::fs::read_to_string(&trace).unwrap();
    assert_eq!(text, "createRuntime 0\npoststart 0\npoststop 0\n");
    bundle.assert_gone();
}

#[test]
fn privileged_a_hostile_root_cannot_look_into_the_runtime_that_enters() {
    if !ready() {
        return;
    }
    // Whatever enters the container's namespaces and is not its program yet must stay closed to a root with
    // every capability of the user namespace.
    let script = "while :; do for p in /proc/[0-9]*; do \
                    case \"$(cat $p/comm 2>/dev/null)\" in runc-lite*|exe) \
                      echo seen; exe=$(readlink $p/exe 2>/dev/null) && test \"$exe\" != /bin/busybox \
                      && echo LEAK $exe;; esac; done; done";
    let mut bundle = mapped(script);
    let all: Vec<&str> = runc_lite::spec::CAPABILITY_NAMES.to_vec();
    bundle.set(
        "/process/capabilities",
        json!({"bounding": all, "permitted": all, "effective": all}),
    );
    bundle.create().ok();
    bundle.start().ok();
    for _ in 0..60 {
        let mut child = bundle
            .command(&["exec", &bundle.id, "true"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        assert!(child.wait().unwrap().success());
    }
    let output = bundle.output();
    assert!(output.contains("seen"), "nothing was caught on its way in");
    assert!(!output.contains("LEAK"), "{output}");
}

#[test]
fn privileged_a_terminal_belongs_to_the_mapped_user() {
    if !ready() {
        return;
    }
    let mut bundle = mapped(
        "stat -c %u /proc/self/fd/0 /dev/console >/dev/null; stat -L -c %u /proc/self/fd/0; tty",
    );
    bundle.set("/process/user", json!({"uid": 1000, "gid": 5}));
    bundle.set("/process/terminal", json!(true));
    bundle.write();
    let socket = bundle.dir.path().join("console.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let path = socket.to_str().unwrap().to_owned();
    bundle
        .call(&["create", "--console-socket", &path, &bundle.id])
        .ok();
    let (stream, _) = listener.accept().unwrap();
    let master = receive_descriptor(&stream);
    bundle.start().ok();
    let mut text = String::new();
    eventually("the terminal's words", || {
        let mut buffer = [0u8; 256];
        if let Ok(length) = rustix::io::read(&master, &mut buffer) {
            text.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
        text.contains("/dev/")
    });
    assert!(text.starts_with("1000"), "{text:?}");
}

/// Takes the descriptor somebody sends.
fn receive_descriptor(stream: &std::os::unix::net::UnixStream) -> std::os::fd::OwnedFd {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut payload = [0u8; 64];
    let mut slices = [std::io::IoSliceMut::new(&mut payload)];
    recvmsg(stream, &mut slices, &mut control, RecvFlags::empty()).unwrap();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message {
            return descriptors.next().unwrap();
        }
    }
    panic!("no descriptor came");
}
