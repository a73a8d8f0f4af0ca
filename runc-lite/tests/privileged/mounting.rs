//! Mount options, as the kernel shows them in the container.

use rustix::mount::{MountFlags, UnmountFlags, unmount};
use serde_json::{Value, json};

use super::bundle::{Bundle, ready};
use super::userns::mapped;

/// The output of `script` in a container with these mounts beside the usual ones.
fn with_mounts(script: &str, mounts: &[Value]) -> Bundle {
    let mut bundle = Bundle::new(script);
    for mount in mounts {
        bundle.set("/mounts/-", mount.clone());
    }
    bundle
}

fn tmpfs(destination: &str, options: Value) -> Value {
    json!({"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": options})
}

/// The options of a mount in the output of `cat /proc/mounts`.
fn options<'a>(table: &'a str, place: &str) -> Vec<&'a str> {
    let line = table
        .lines()
        .rfind(|line| line.split(' ').nth(1) == Some(place))
        .unwrap_or_else(|| panic!("{place} is not in {table}"));
    line.split(' ').nth(3).unwrap().split(',').collect()
}

#[test]
fn privileged_every_option_word_reaches_the_kernel() {
    if !ready() {
        return;
    }
    for (words, shown, hidden) in [
        (
            &["nosuid", "nodev", "noexec"][..],
            &["rw", "nosuid", "nodev", "noexec", "relatime"][..],
            &[][..],
        ),
        (
            &["noatime", "nodiratime"],
            &["noatime", "nodiratime"],
            &["relatime"],
        ),
        (&["strictatime"], &[], &["relatime", "noatime"]),
        (&["noatime", "atime"], &["relatime"], &["noatime"]),
        (&["nosuid", "suid"], &[], &["nosuid"]),
        (&["nosymfollow"], &["nosymfollow"], &[]),
        (&["sync", "dirsync"], &["sync", "dirsync"], &[]),
        (&["sync", "async"], &[], &["sync"]),
        (&["lazytime"], &["lazytime"], &[]),
        (&["lazytime", "nolazytime"], &[], &["lazytime"]),
        (&["iversion", "nodev"], &["nodev"], &[]),
        (
            &["iversion", "ro", "sync", "size=64k"],
            &["ro", "sync", "size=64k"],
            &[],
        ),
        (
            &[
                "noiversion",
                "silent",
                "loud",
                "defaults",
                "x-systemd.automount",
                "noauto",
            ],
            &["rw"],
            &[],
        ),
        (
            &["size=64k,nr_inodes=77"],
            &["size=64k", "nr_inodes=77"],
            &[],
        ),
        (&["ro"], &["ro"], &[]),
        (&["rro", "rnosuid"], &["ro", "nosuid"], &[]),
    ] {
        let bundle = with_mounts("cat /proc/mounts", &[tmpfs("/mnt", json!(words))]);
        let table = bundle.run().ok();
        let found = options(&table, "/mnt");
        assert!(
            shown.iter().all(|word| found.contains(word)),
            "{words:?}: {found:?}"
        );
        assert!(
            !hidden.iter().any(|word| found.contains(word)),
            "{words:?}: {found:?}"
        );
    }
}

#[test]
fn privileged_a_read_only_tmpfs_still_gets_what_is_mounted_in_it() {
    if !ready() {
        return;
    }
    let script = "touch /mnt/x 2>&1; touch /mnt/below/y && ls /mnt; touch /dev/x 2>&1; echo > /dev/null && cat /proc/mounts";
    let mut bundle = with_mounts(
        script,
        &[tmpfs("/mnt", json!(["ro"])), tmpfs("/mnt/below", json!([]))],
    );
    bundle.set("/mounts/1/options/-", json!("ro"));
    let out = bundle.run().ok();
    assert_eq!(out.matches("Read-only file system").count(), 2, "{out}");
    assert!(out.contains("\nbelow\n"), "{out}");
    assert!(options(&out, "/dev").contains(&"ro") && options(&out, "/mnt").contains(&"ro"));
}

#[test]
fn privileged_a_tmpfs_has_the_mode_of_its_directory_or_that_of_its_options() {
    if !ready() {
        return;
    }
    let script = "stat -c %a /there /there2 /new/a/b";
    let mounts = [
        tmpfs("/there", json!([])),
        tmpfs("/there2", json!(["mode=1500"])),
        tmpfs("/new/a/b", json!([])),
    ];
    let bundle = with_mounts(script, &mounts);
    for name in ["there", "there2"] {
        use std::os::unix::fs::PermissionsExt;
        std::fs::create_dir(bundle.rootfs().join(name)).unwrap();
        let mode = PermissionsExt::from_mode(0o710);
        std::fs::set_permissions(bundle.rootfs().join(name), mode).unwrap();
    }
    assert_eq!(bundle.run().ok(), "710\n1500\n1777");
}

#[test]
fn privileged_tmpcopyup_fills_a_tmpfs_with_what_was_there() {
    if !ready() {
        return;
    }
    let script = "cat /full/file; stat -c '%a %u:%g' /full/dir /full; readlink /full/link; \
                  touch /full/new 2>&1; ls /full/dir";
    let bundle = with_mounts(
        script,
        &[tmpfs("/full", json!(["tmpcopyup", "ro", "nosuid"]))],
    );
    let full = bundle.rootfs().join("full");
    std::fs::create_dir_all(full.join("dir")).unwrap();
    std::fs::write(full.join("file"), "content\n").unwrap();
    std::fs::write(full.join("dir/inner"), "").unwrap();
    std::os::unix::fs::symlink("/etc/../../../x", full.join("link")).unwrap();
    for (path, mode, owner) in [("full/dir", 0o2775, 7), ("full", 0o751, 8)] {
        let path = bundle.rootfs().join(path);
        std::os::unix::fs::chown(&path, Some(owner), Some(owner)).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(&path, mode).unwrap();
    }
    let out = bundle.run().ok();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(
        &lines[..4],
        ["content", "2775 7:7", "751 8:8", "/etc/../../../x"]
    );
    assert!(lines[4].contains("Read-only file system"), "{out}");
    assert_eq!(lines[5], "inner");
    assert!(!full.join("new").exists());
}

#[test]
fn privileged_values_longer_than_fsconfig_takes_go_by_mount2() {
    if !ready() {
        return;
    }
    let layers = |bundle: &Bundle| -> String {
        let layer = |number: usize| {
            let path = bundle.dir.path().join(format!("layer-{number:02}"));
            std::fs::create_dir_all(&path).unwrap();
            std::fs::write(path.join(format!("file{number}")), "").unwrap();
            path.display().to_string()
        };
        (0..20).map(layer).collect::<Vec<_>>().join(":")
    };
    let mut bundle = Bundle::new("ls /mnt | grep -c file; cat /proc/mounts");
    let lower = layers(&bundle);
    assert!(lower.len() > 255);
    let entry = json!({"destination": "/mnt", "type": "overlay", "source": "overlay",
                       "options": ["ro", "nodev", "private", format!("lowerdir={lower}")]});
    bundle.set("/mounts/-", entry);
    let out = bundle.run().ok();
    assert!(out.starts_with("20\n"), "{out}");
    let found = options(&out, "/mnt");
    assert!(
        found.contains(&"ro") && found.contains(&"nodev"),
        "{found:?}"
    );
    let huge = tmpfs("/mnt", json!([format!("size={}", "9".repeat(4096))]));
    let bundle = with_mounts("true", &[huge]);
    bundle.run().fails(1, "the kernel takes 4095");
    bundle.assert_gone();
}

#[test]
fn privileged_a_remount_changes_attributes_and_file_system_options() {
    if !ready() {
        return;
    }
    let mounts = [
        tmpfs("/mnt", json!(["size=1m", "nosuid"])),
        json!({"destination": "/mnt", "options": ["remount", "size=2m", "nodev", "sync"]}),
        json!({"destination": "/bound", "source": "rootfs/etc", "type": "bind", "options": ["bind", "nosuid"]}),
        json!({"destination": "/bound", "options": ["remount", "bind", "ro"]}),
    ];
    let table = with_mounts("cat /proc/mounts", &mounts).run().ok();
    let found = options(&table, "/mnt");
    for word in ["size=2048k", "nosuid", "nodev", "sync"] {
        assert!(found.contains(&word), "{found:?}");
    }
    let found = options(&table, "/bound");
    assert!(
        found.contains(&"ro") && found.contains(&"nosuid"),
        "{found:?}"
    );
    for (entry, words) in [
        (
            json!({"destination": "/nowhere", "options": ["remount", "ro"]}),
            "it does not exist",
        ),
        (
            json!({"destination": "/etc", "options": ["remount", "ro"]}),
            "mounts[4]: cannot mount remount on \"/etc\"",
        ),
        (
            json!({"destination": "/dev", "options": ["remount", "size=axil"]}),
            "option \"size\"",
        ),
    ] {
        let bundle = with_mounts("true", &[entry]);
        bundle.run().fails(1, words);
        bundle.assert_gone();
    }
}

#[test]
fn privileged_recursive_options_reach_the_mounts_below_a_bind() {
    if !ready() {
        return;
    }
    for (words, top, below) in [
        (json!(["rbind", "ro"]), true, false),
        (json!(["rbind", "rro"]), true, true),
        (json!(["rbind", "ro", "rro", "rslave"]), true, true),
        (json!(["rbind", "rro", "rrw"]), false, false),
    ] {
        let script = "touch /vol/x 2>/dev/null; echo $?; touch /vol/sub/x 2>/dev/null; echo $?";
        let mut bundle = Bundle::new(script);
        let volume = bundle.dir.path().join("volume");
        std::fs::create_dir(&volume).unwrap();
        // In the mount namespace of this test's thread, which ends with it.
        let made = |path: &std::path::Path| {
            rustix::mount::mount(
                "none",
                path,
                "tmpfs",
                rustix::mount::MountFlags::empty(),
                None,
            )
            .unwrap();
        };
        made(&volume);
        std::fs::create_dir(volume.join("sub")).unwrap();
        made(&volume.join("sub"));
        bundle.set(
            "/mounts/-",
            json!({"destination": "/vol", "source": volume, "options": words}),
        );
        let code = |readonly: bool| if readonly { "1" } else { "0" };
        assert_eq!(
            bundle.run().ok(),
            format!("{}\n{}", code(top), code(below)),
            "{words}"
        );
        for path in [volume.join("sub"), volume] {
            rustix::mount::unmount(&path, rustix::mount::UnmountFlags::empty()).unwrap();
        }
    }
}

/// A tmpfs mounted below the bundle, in the mount namespace of this test's thread, with attributes of the mount
/// and not of the file system.
fn volume(bundle: &Bundle, flags: MountFlags) -> std::path::PathBuf {
    let volume = bundle.dir.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    rustix::mount::mount("none", &volume, "tmpfs", MountFlags::empty(), None).unwrap();
    rustix::mount::mount_remount(&volume, MountFlags::BIND | flags, "").unwrap();
    volume
}

#[test]
fn privileged_a_bind_has_what_its_words_say_and_without_words_what_the_source_has() {
    if !ready() {
        return;
    }
    let all = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    for (source, words, expect) in [
        (all, json!(["bind"]), "ro,nosuid,nodev,noexec,relatime"),
        (
            all,
            json!(["rbind", "rslave"]),
            "ro,nosuid,nodev,noexec,relatime",
        ),
        (all, json!(["bind", "ro"]), "ro,relatime"),
        (all, json!(["bind", "dev"]), "rw,relatime"),
        (all, json!(["rbind", "rw", "nosuid"]), "rw,nosuid,relatime"),
        (MountFlags::NOATIME, json!(["bind", "ro"]), "ro,noatime"),
        (MountFlags::NOATIME, json!(["bind", "atime"]), "rw,noatime"),
        (
            MountFlags::NOATIME,
            json!(["bind", "norelatime"]),
            "rw,noatime",
        ),
        (
            MountFlags::NOATIME,
            json!(["bind", "relatime"]),
            "rw,relatime",
        ),
        (
            MountFlags::NOATIME,
            json!(["bind", "nodiratime"]),
            "rw,nodiratime,relatime",
        ),
        (MountFlags::NODIRATIME, json!(["bind", "strictatime"]), "rw"),
        (
            MountFlags::NODIRATIME,
            json!(["bind", "nosuid"]),
            "rw,nosuid,nodiratime,relatime",
        ),
    ] {
        let mut bundle = Bundle::new("cat /proc/mounts");
        let volume = volume(&bundle, source);
        let entry = json!({"destination": "/mnt", "source": volume, "options": words});
        bundle.set("/mounts/-", entry);
        let table = bundle.run().ok();
        let found: Vec<&str> = options(&table, "/mnt");
        let found: Vec<&str> = found
            .into_iter()
            .filter(|word| *word != "inode64")
            .collect();
        assert_eq!(found.join(","), expect, "{words} of {source:?}");
        unmount(&volume, UnmountFlags::empty()).unwrap();
    }
}

#[test]
fn privileged_a_user_namespace_keeps_what_is_locked_on_the_source_of_a_bind() {
    if !ready() {
        return;
    }
    let some = MountFlags::RDONLY | MountFlags::NODEV;
    for (words, expect) in [
        (json!(["bind"]), Ok("ro,nodev,relatime")),
        (json!(["bind", "nosuid"]), Ok("ro,nosuid,nodev,relatime")),
        (json!(["bind", "suid", "exec"]), Ok("ro,nodev,relatime")),
        (
            json!(["bind", "rw"]),
            Err("the source is ro, which is locked"),
        ),
        (
            json!(["bind", "ro", "dev"]),
            Err("the source is nodev, which is locked"),
        ),
    ] {
        let mut bundle = mapped("cat /proc/mounts");
        let volume = volume(&bundle, some);
        let entry = json!({"destination": "/mnt", "source": volume, "options": words});
        bundle.set("/mounts/-", entry);
        let done = bundle.run();
        unmount(&volume, UnmountFlags::empty()).unwrap();
        match expect {
            Ok(expect) => {
                let table = done.ok();
                let found = options(&table, "/mnt");
                assert_eq!(
                    found[..expect.split(',').count()].join(","),
                    expect,
                    "{words}"
                );
            }
            Err(reason) => {
                done.fails(1, reason);
                bundle.assert_gone();
            }
        }
    }
    // The file system is read-only here, not the mount: `rw` takes nothing from it.
    let mut bundle = mapped("cat /proc/mounts");
    let volume = bundle.dir.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    rustix::mount::mount("none", &volume, "tmpfs", MountFlags::empty(), None).unwrap();
    rustix::mount::mount_remount(&volume, MountFlags::RDONLY, "").unwrap();
    let writable = MountFlags::BIND | MountFlags::NODEV;
    rustix::mount::mount_remount(&volume, writable, "").unwrap();
    let entry = json!({"destination": "/mnt", "source": volume, "options": ["bind", "rw"]});
    bundle.set("/mounts/-", entry);
    let table = bundle.run().ok();
    assert!(
        options(&table, "/mnt").starts_with(&["ro", "nodev"]),
        "{table}"
    );
    unmount(&volume, UnmountFlags::empty()).unwrap();
}

#[test]
fn privileged_the_root_has_the_propagation_asked_for() {
    if !ready() {
        return;
    }
    for (kind, tag) in [
        ("private", None),
        ("rprivate", None),
        ("shared", Some("shared:")),
        ("rshared", Some("shared:")),
        ("unbindable", Some("unbindable")),
        ("runbindable", Some("unbindable")),
    ] {
        let mut bundle = Bundle::new("cat /proc/self/mountinfo");
        bundle.set("/linux/rootfsPropagation", json!(kind));
        let table = bundle.run().ok();
        let line = table
            .lines()
            .find(|line| line.split(' ').nth(4) == Some("/"))
            .unwrap();
        let place = line.split(" - ").next().unwrap();
        match tag {
            Some(tag) => assert!(place.contains(tag), "{kind}: {line}"),
            None => assert!(
                !place.contains(':') || place.matches(':').count() == 1,
                "{kind}: {line}"
            ),
        }
    }
}

#[test]
fn privileged_a_bind_goes_where_a_dangling_link_of_the_image_points() {
    if !ready() {
        return;
    }
    let source = std::env::current_exe().unwrap();
    let entry = json!({"destination": "/etc/hosts", "source": source, "options": ["bind", "ro"]});
    let bundle = with_mounts("stat -c %s /run/far/hosts; readlink /etc/hosts", &[entry]);
    std::os::unix::fs::symlink("../run/far/hosts", bundle.rootfs().join("etc/hosts")).unwrap();
    let size = std::fs::metadata(&source).unwrap().len();
    assert_eq!(bundle.run().ok(), format!("{size}\n../run/far/hosts"));
}

#[test]
fn privileged_a_masked_path_is_covered_once_and_its_like_share_one_tmpfs() {
    if !ready() {
        return;
    }
    let script = "grep -c ' /bin/hidden' /proc/mounts; stat -c %d /a /b | sort -u | grep -c .; ls -a /a; cat /bin/hidden";
    let mut bundle = Bundle::new(script);
    for name in ["a", "b"] {
        std::fs::create_dir(bundle.rootfs().join(name)).unwrap();
        std::fs::write(bundle.rootfs().join(name).join("secret"), "").unwrap();
    }
    std::fs::write(bundle.rootfs().join("bin/hidden"), "secret").unwrap();
    std::os::unix::fs::symlink("busybox", bundle.rootfs().join("bin/sort")).unwrap();
    let paths = json!(["/a", "/b", "/bin/hidden", "/a/", "/bin/hidden", "/no/such"]);
    bundle.set("/linux/maskedPaths", paths);
    assert_eq!(bundle.run().ok(), "1\n1\n.\n..");
}

#[test]
fn privileged_mounts_that_cannot_be_made_leave_nothing() {
    if !ready() {
        return;
    }
    for (entry, words) in [
        (
            json!({"destination": "/mnt", "source": "/no/such/axil", "options": ["bind"]}),
            "/no/such/axil",
        ),
        (
            json!({"destination": "/mnt", "type": "axilfs"}),
            "has no file system \"axilfs\"",
        ),
        (tmpfs("/mnt", json!(["axil-option"])), "axil-option"),
        (tmpfs("/mnt", json!(["size=big"])), "size"),
        (
            tmpfs("/mnt", json!(["tmpcopyup", "idmap"])),
            "mounts[4].options",
        ),
    ] {
        let bundle = with_mounts("true", &[entry]);
        let text = bundle.run().fails(1, words);
        assert!(text.contains("mounts[4]"), "{text}");
        assert!(bundle.log().contains("mounts[4]"));
        bundle.assert_gone();
    }
    if !std::path::Path::new("/sys/fs/selinux/enforce").exists() {
        let mut bundle = Bundle::new("true");
        bundle.set(
            "/linux/mountLabel",
            json!("system_u:object_r:container_file_t:s0"),
        );
        bundle.run().fails(1, "linux.mountLabel");
        assert!(!bundle.state_root().exists());
    }
}
