//! Id-mapped mounts, with and without a user namespace of the container.

use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};
use serde_json::{Value, json};

use super::bundle::{Bundle, ready};
use super::userns::{FIRST, mapped};

/// A tree of the host, with a mount below it, whose files belong to users 100 and up.
struct Tree {
    below: PathBuf,
}

impl Tree {
    fn make(bundle: &Bundle) -> Tree {
        let top = bundle.dir.path().join("tree");
        std::fs::create_dir_all(top.join("below")).unwrap();
        for path in [top.clone(), top.join("below")] {
            if path.ends_with("below") {
                // Not a tmpfs: that maps ids since Linux 6.3 only.
                let lower = bundle.dir.path().join("below");
                std::fs::create_dir_all(&lower).unwrap();
                mount_bind(&lower, &path).unwrap();
            }
            std::fs::write(path.join("file"), "text").unwrap();
            chown(path.join("file"), Some(100), Some(200)).unwrap();
        }
        Tree {
            below: top.join("below"),
        }
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = unmount(&self.below, UnmountFlags::DETACH);
    }
}

fn entry(options: &[&str], mappings: Option<(Value, Value)>) -> Value {
    let mut entry =
        json!({"destination": "/mnt", "type": "bind", "source": "tree", "options": options});
    if let Some((uids, gids)) = mappings {
        entry["uidMappings"] = uids;
        entry["gidMappings"] = gids;
    }
    entry
}

/// 100 becomes `uid`, 200 becomes `gid`.
fn shift(uid: u32, gid: u32) -> Option<(Value, Value)> {
    let range = |from: u32, to: u32| json!([{"containerID": from, "hostID": to, "size": 50}]);
    Some((range(100, uid), range(200, gid)))
}

const OWNERS: &str = "stat -c %u:%g /mnt/file /mnt/below/file";

#[test]
fn privileged_ids_of_a_mount_are_shifted_for_a_plain_container() {
    if !ready() {
        return;
    }
    let mut bundle = Bundle::new(OWNERS);
    bundle.set("/mounts/-", entry(&["rbind"], shift(5000, 6000)));
    let tree = Tree::make(&bundle);
    assert_eq!(bundle.run().ok(), "5000:6000\n100:200");
    *bundle.config["mounts"]
        .as_array_mut()
        .unwrap()
        .last_mut()
        .unwrap() = entry(&["rbind", "ridmap", "ro"], shift(5000, 6000));
    drop(tree);
    let tree = Tree::make(&bundle);
    assert_eq!(bundle.run().ok(), "5000:6000\n5000:6000");
    drop(tree);
    // The host's own view of the files never changed.
    let file = std::fs::metadata(bundle.dir.path().join("tree/file")).unwrap();
    assert_eq!((file.uid(), file.gid()), (100, 200));
}

#[test]
fn privileged_ids_of_what_is_mounted_in_the_container_can_be_mapped_again() {
    if !ready() {
        return;
    }
    let mut bundle = Bundle::new("stat -c %u:%g /mnt/file /tmp/file");
    let tree = Tree::make(&bundle);
    bundle.set("/mounts/-", entry(&["bind"], None));
    let mut again = entry(&["bind"], shift(5000, 6000));
    again["source"] = json!(bundle.rootfs().join("mnt"));
    again["destination"] = json!("/tmp");
    bundle.set("/mounts/-", again);
    assert_eq!(bundle.run().ok(), "100:200\n5000:6000");
    drop(tree);
}

#[test]
fn privileged_ids_of_what_is_mounted_in_a_user_namespace_are_mapped_from_outside() {
    if !ready() {
        return;
    }
    let mut bundle = mapped("stat -c %u:%g /mnt/file /mnt/below/file /tmp/file /tmp/below/file");
    let tree = Tree::make(&bundle);
    bundle.set("/mounts/-", entry(&["rbind"], None));
    let mut again = entry(&["rbind", "idmap"], None);
    again["source"] = json!(bundle.rootfs().join("mnt"));
    again["destination"] = json!("/tmp");
    bundle.set("/mounts/-", again.clone());
    let nobody = "65534:65534";
    assert_eq!(
        bundle.run().ok(),
        format!("{nobody}\n{nobody}\n100:200\n{nobody}")
    );
    // A second time the kernel refuses: the runtime outside says so, and takes everything back.
    again["source"] = json!(bundle.rootfs().join("tmp"));
    again["destination"] = json!("/home");
    bundle.set("/mounts/-", again);
    bundle.run().fails(1, "its ids are mapped already");
    drop(tree);
    bundle.assert_gone();
}

#[test]
fn privileged_a_mapped_container_writes_through_its_mounts_as_the_host_s_users() {
    if !ready() {
        return;
    }
    let script = format!("{OWNERS}; touch /mnt/made 2>&1; stat -c %u:%g /mnt/made");
    let mut bundle = mapped(&script);
    // On disk 0 and up, in the container 0 and up.
    let same = json!([{"containerID": 0, "hostID": FIRST, "size": 65536}]);
    bundle.set("/mounts/-", entry(&["rbind"], Some((same.clone(), same))));
    let tree = Tree::make(&bundle);
    assert_eq!(bundle.run().ok(), "100:200\n65534:65534\n0:0");
    drop(tree);
    let made = std::fs::metadata(bundle.dir.path().join("tree/made")).unwrap();
    assert_eq!((made.uid(), made.gid()), (0, 0));
}

#[test]
fn privileged_mappings_are_taken_from_the_container_s_user_namespace() {
    if !ready() {
        return;
    }
    let first = {
        let mut bundle = mapped("sleep 1000");
        bundle.set("/mounts/-", entry(&["bind", "idmap"], None));
        bundle
    };
    let tree = Tree::make(&first);
    first.create().ok();
    first.start().ok();
    let owner = first.exec(&["stat", "-c", "%u:%g", "/mnt/file"]).ok();
    assert_eq!(owner, "100:200");
    // The same by way of another container's namespace, with everything below.
    let mut second = mapped(OWNERS);
    second.set("/mounts/-", entry(&["rbind", "ridmap"], None));
    let linux = second.config["linux"].as_object_mut().unwrap();
    linux.remove("uidMappings");
    linux.remove("gidMappings");
    let path = format!("/proc/{}/ns/user", first.pid());
    let namespaces = linux["namespaces"].as_array_mut().unwrap();
    *namespaces.last_mut().unwrap() = json!({"type": "user", "path": path});
    let other = Tree::make(&second);
    assert_eq!(second.run().ok(), "100:200\n100:200");
    drop(other);
    let mut plain = Bundle::new("true");
    plain.set("/mounts/-", entry(&["bind", "idmap"], None));
    plain.create().fails(1, "needs mappings");
    drop(tree);
}

#[test]
fn privileged_a_file_system_that_cannot_map_ids_is_refused_before_anything_is_made() {
    if !ready() {
        return;
    }
    let mut bundle = Bundle::new("true");
    bundle.set("/mounts/-", entry(&["rbind"], shift(5000, 6000)));
    bundle.config["mounts"]
        .as_array_mut()
        .unwrap()
        .last_mut()
        .unwrap()["source"] = json!("/proc");
    let text = bundle.create().fails(1, "mounts[4]");
    assert!(text.contains("does not support it"), "{text}");
    assert!(!bundle.state_root().exists());
    bundle.assert_gone();
    // The kernel changes all mounts of a tree or none: one that cannot keeps the others as they are.
    let tree = Tree::make(&bundle);
    let below = bundle.dir.path().join("tree/below");
    unmount(&below, UnmountFlags::DETACH).unwrap();
    mount(
        "proc",
        &below,
        "proc",
        MountFlags::empty(),
        None::<&std::ffi::CStr>,
    )
    .unwrap();
    *bundle.config["mounts"]
        .as_array_mut()
        .unwrap()
        .last_mut()
        .unwrap() = entry(&["rbind", "ridmap"], shift(5000, 6000));
    bundle.create().fails(1, "or one below does not");
    bundle.assert_no_mounts_but(&below);
    drop(tree);
}

#[test]
fn privileged_namespaces_made_for_mappings_leave_nothing() {
    if !ready() {
        return;
    }
    let mut bundle =
        Bundle::new("stat -c %u /mnt/0/file /mnt/19/file; ls /proc | grep -c '^[0-9]'");
    let tree = Tree::make(&bundle);
    for number in 0..20u32 {
        let mut one = entry(&["bind"], shift(5000 + number % 2, 6000));
        one["destination"] = json!(format!("/mnt/{number}"));
        bundle.set("/mounts/-", one);
    }
    bundle.set(
        "/process/rlimits",
        json!([{"type": "RLIMIT_NOFILE", "soft": 20, "hard": 20}]),
    );
    let before = children();
    let out = bundle.run().ok();
    assert!(out.starts_with("5000\n5001\n"), "{out}");
    assert_eq!(children(), before);
    drop(tree);
}

/// How many processes the system has that run this runtime's binary from this test's build.
fn children() -> usize {
    let mut count = 0;
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let parent = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let own = format!(" {} ", std::process::id());
        count += usize::from(
            parent
                .rsplit(')')
                .next()
                .is_some_and(|rest| rest.contains(&own)),
        );
    }
    count
}

impl Bundle {
    /// That nothing but `path` is mounted below the bundle.
    #[track_caller]
    fn assert_no_mounts_but(&self, path: &Path) {
        let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let own = self.dir.path().to_str().unwrap();
        let found: Vec<&str> = mounts.lines().filter(|line| line.contains(own)).collect();
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains(path.to_str().unwrap()), "{found:?}");
    }
}
