//! Containers' snapshots: mounting, many layers, accounting, removal.

use std::fs;
use std::os::unix::fs::MetadataExt;

use axil_snapshotter::{ErrorClass, Mount, mount};

use crate::archive::{Archive, Head};
use crate::world::{World, can_run, lowers, names, stack_of, xattr};

#[test]
fn privileged_a_container_writes_without_changing_the_image() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let archive = Archive::new()
        .node(Head {
            mode: 0o750,
            uid: 42,
            ..Head::new("./", b'5')
        })
        .file("f", b"image")
        .finish();
    let top = world.pull(&[archive]).unwrap();
    let target = tempfile::tempdir().unwrap();
    let mounts = world.store.prepare("c1", Some(&top)).unwrap();
    assert_eq!(world.store.mounts("c1").unwrap(), mounts);
    let again = world.store.prepare("c1", Some(&top)).unwrap_err();
    assert_eq!(again.class(), ErrorClass::AlreadyExists);
    mount::mount_all(&mounts, target.path()).unwrap();
    let root = fs::metadata(target.path()).unwrap();
    assert_eq!((root.mode() & 0o7777, root.uid()), (0o750, 42));
    fs::write(target.path().join("f"), vec![1; 100_000]).unwrap();
    let usage = world.store.usage("c1").unwrap();
    assert!(usage.bytes >= 100_000 && usage.inodes == 2, "{usage:?}");
    assert!(mount::unmount(target.path()).unwrap());
    assert!(!mount::unmount(target.path()).unwrap());
    // The same snapshot mounts again, although it is volatile, with what was written.
    mount::mount_all(&mounts, target.path()).unwrap();
    assert_eq!(fs::read(target.path().join("f")).unwrap().len(), 100_000);
    mount::unmount(target.path()).unwrap();
    assert_eq!(fs::read(lowers(&mounts)[0].join("f")).unwrap(), b"image");
    // It survives a restart, and is gone when removed.
    let world = world.reopened();
    assert_eq!(world.store.active_keys(), ["c1"]);
    assert_eq!(world.store.mounts("c1").unwrap(), mounts);
    assert!(world.store.remove("c1").unwrap());
    assert!(!world.store.remove("c1").unwrap());
    assert_eq!(names(&world.root.join("snapshots")).len(), 2);
    assert_eq!(
        world.store.usage("c1").unwrap_err().class(),
        ErrorClass::NotFound
    );
}

#[test]
fn privileged_a_container_without_an_image_is_bound() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let target = tempfile::tempdir().unwrap();
    let mut mounts = world.store.prepare("scratch", None).unwrap();
    mount::mount_all(&mounts, target.path()).unwrap();
    fs::write(target.path().join("f"), "x").unwrap();
    assert!(mount::unmount(target.path()).unwrap());
    assert_eq!(world.store.usage("scratch").unwrap().inodes, 2);
    mounts[0].options = vec!["bind".into(), "ro".into()];
    mount::mount_all(&mounts, target.path()).unwrap();
    assert!(fs::write(target.path().join("f"), "y").is_err());
    assert!(mount::unmount(target.path()).unwrap());
}

#[test]
fn privileged_five_hundred_layers_mount() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let archives: Vec<Vec<u8>> = (0..501)
        .map(|i| {
            Archive::new()
                .file(&format!("f{i}"), b"x")
                .file("top", &[b'x'; 3])
                .finish()
        })
        .collect();
    let layers = stack_of(&archives);
    let staged = layers
        .iter()
        .map(|layer| world.stage(layer).unwrap())
        .collect();
    world.store.commit_layers(staged).unwrap();
    let seen = world.mounted(&layers[499].request.chain);
    assert_eq!(seen.len(), 1 + 500 + 1);
    let error = world
        .store
        .prepare("too-many", Some(&layers[500].request.chain))
        .unwrap_err();
    assert_eq!(error.class(), ErrorClass::InvalidArgument, "{error}");
    assert!(world.store.active_keys().is_empty());
}

#[test]
fn privileged_a_failed_mount_leaves_nothing_mounted() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let target = tempfile::tempdir().unwrap();
    let mut mounts = world.store.prepare("k", None).unwrap();
    mounts.push(Mount {
        source: "/nonexistent-axil".into(),
        ..mounts[0].clone()
    });
    let error = mount::mount_all(&mounts, target.path()).unwrap_err();
    assert_eq!(error.class(), ErrorClass::NotFound, "{error}");
    assert!(!mount::unmount(target.path()).unwrap());
}

#[test]
fn privileged_a_busy_mount_is_detached() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let target = tempfile::tempdir().unwrap();
    let top = world
        .pull(&[Archive::new().file("f", b"x").finish()])
        .unwrap();
    let mounts = world.store.prepare("k", Some(&top)).unwrap();
    mount::mount_all(&mounts, target.path()).unwrap();
    let held = fs::File::open(target.path().join("f")).unwrap();
    assert!(mount::unmount(target.path()).unwrap());
    assert!(fs::read_dir(target.path()).unwrap().next().is_none());
    drop(held);
    // A symbolic link is never unmounted through.
    let link = target.path().join("link");
    std::os::unix::fs::symlink("/proc", &link).unwrap();
    assert!(!mount::unmount(&link).unwrap());
}

#[test]
fn privileged_a_part_of_an_image_is_found_below_its_root_only() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let archive = Archive::new()
        .file("dir/sub/f", b"inside")
        .file("file", b"alone")
        .symlink("dir/within", "sub")
        .symlink("dir/around", "../dir/sub")
        .symlink("absolute", "/dir")
        .symlink("outside", "../../../../../../../../etc")
        .symlink("proc", "/proc/self/root")
        .symlink("round", "round")
        .entry(
            &Head {
                device: (1, 3),
                ..Head::new("null", b'3')
            },
            b"",
        )
        .entry(&Head::new("fifo", b'6'), b"")
        .finish();
    let top = world.pull(&[archive]).unwrap();
    let tmp = tempfile::tempdir().unwrap();
    let (root, target) = (tmp.path().join("root"), tmp.path().join("part"));
    fs::create_dir(&root).unwrap();
    let mounts = world.store.view("v", Some(&top)).unwrap();
    mount::mount_all(&mounts, &root).unwrap();
    for (part, class, words) in [
        ("outside", ErrorClass::InvalidArgument, "leads out"),
        ("outside/passwd", ErrorClass::InvalidArgument, "leads out"),
        ("absolute", ErrorClass::InvalidArgument, "leads out"),
        ("proc/etc", ErrorClass::InvalidArgument, "leads out"),
        ("../root/file", ErrorClass::InvalidArgument, "leads out"),
        ("/etc", ErrorClass::InvalidArgument, "leads out"),
        ("round", ErrorClass::InvalidArgument, "links"),
        ("null", ErrorClass::InvalidArgument, "neither"),
        ("fifo", ErrorClass::InvalidArgument, "neither"),
        ("nowhere", ErrorClass::NotFound, "nowhere"),
        ("file/below", ErrorClass::NotFound, "file/below"),
    ] {
        let error = mount::mount_part(&root, part, &target).unwrap_err();
        assert_eq!(error.class(), class, "{part}: {error}");
        assert!(error.to_string().contains(words), "{part}: {error}");
        assert!(!target.exists(), "{part}");
    }
    for (part, seen) in [
        ("dir/sub", "inside"),
        ("dir/within", "inside"),
        ("dir/around", "inside"),
        ("./dir//sub/", "inside"),
        ("file", "alone"),
    ] {
        mount::mount_part(&root, part, &target).unwrap();
        // What was mounted whole is not any more; the part stays read-only.
        assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
        let file = if target.is_dir() {
            target.join("f")
        } else {
            target.clone()
        };
        assert_eq!(fs::read_to_string(&file).unwrap(), seen, "{part}");
        assert!(fs::write(&file, "x").is_err());
        assert!(mount::unmount(&target).unwrap());
        if target.is_dir() {
            fs::remove_dir(&target).unwrap();
        } else {
            fs::remove_file(&target).unwrap();
        }
        mount::mount_all(&mounts, &root).unwrap();
    }
    mount::unmount(&root).unwrap();
}

/// A user namespace whose root is `root`, held by a process until it is dropped.
struct UserNamespace(std::process::Child);

impl UserNamespace {
    fn new(root: u32) -> Self {
        let mut child = std::process::Command::new("unshare")
            .args(["--user", "cat"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // What it answers, it answers from inside.
        std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"x").unwrap();
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        for file in ["uid_map", "gid_map"] {
            let path = format!("/proc/{}/{file}", child.id());
            fs::write(path, format!("0 {root} 1000\n")).unwrap();
        }
        Self(child)
    }

    fn open(&self) -> fs::File {
        fs::File::open(format!("/proc/{}/ns/user", self.0.id())).unwrap()
    }
}

impl Drop for UserNamespace {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _status = self.0.wait();
    }
}

#[test]
fn privileged_a_container_of_a_user_namespace_owns_its_files() {
    use std::os::fd::AsFd as _;

    use axil_snapshotter::{IdRange, IdRanges, Owners};
    if !can_run() {
        return;
    }
    let world = World::new();
    let owned = |name: &str, uid| Head {
        uid,
        gid: uid,
        mode: 0o640,
        size: 1,
        ..Head::new(name, b'0')
    };
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let archives = [
        Archive::new()
            .pax(&[("SCHILY.xattr.security.capability", &capability)])
            .entry(&owned("root", 0), b"a")
            .entry(&owned("app", 33), b"b")
            .entry(&owned("stranger", 5000), b"c"),
        Archive::new()
            .entry(&owned("dir/over", 7), b"d")
            .symlink("link", "root"),
    ];
    let top = world.pull(&archives.map(Archive::finish)).unwrap();
    let users = UserNamespace::new(300_000);
    let range = IdRange {
        inside: 0,
        outside: 300_000,
        count: 1000,
    };
    let ids = IdRanges {
        uids: vec![range],
        gids: vec![range],
    };
    let namespace = users.open();
    world.store.can_map_ids(namespace.as_fd()).unwrap();
    let target = tempfile::tempdir().unwrap();
    let owners = || {
        let of = |name: &str| {
            let metadata = fs::symlink_metadata(target.path().join(name)).unwrap();
            (metadata.uid(), metadata.gid())
        };
        ["", "root", "app", "dir/over", "link"].map(of)
    };
    let expected = [300_000, 300_000, 300_033, 300_007, 300_000].map(|id| (id, id));
    // Capabilities of programs hold for the root of the namespace: revision 3 with its id.
    let capable = || xattr(target.path().join("root"), "security.capability");
    let mut third = capability.to_vec();
    third[3] = 3;
    third.extend(300_000_u32.to_le_bytes());
    let third = Some(third);

    let mounts = world
        .store
        .prepare_for("mapped", Some(&top), Owners::Mapped(&ids))
        .unwrap();
    mount::mount_mapped(&mounts[0], target.path(), namespace.as_fd()).unwrap();
    assert_eq!(owners(), expected);
    assert_eq!(capable(), third);
    // What is written is the container's own, and copied up as it was seen.
    fs::write(target.path().join("app"), "more").unwrap();
    assert_eq!(owners(), expected);
    assert_eq!(
        fs::metadata(target.path().join("stranger")).unwrap().uid(),
        65_534
    );
    // Nothing but the overlay was left mounted there.
    assert!(mount::unmount(target.path()).unwrap());
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.contains(target.path().to_str().unwrap()), "{table}");
    mount::mount_mapped(&mounts[0], target.path(), namespace.as_fd()).unwrap();
    assert_eq!(fs::read(target.path().join("app")).unwrap(), b"more");
    mount::unmount(target.path()).unwrap();

    let mounts = world
        .store
        .view_for("view", Some(&top), Owners::Mapped(&ids))
        .unwrap();
    mount::mount_mapped(&mounts[0], target.path(), namespace.as_fd()).unwrap();
    assert_eq!(owners(), expected);
    assert!(fs::write(target.path().join("app"), "x").is_err());
    mount::unmount(target.path()).unwrap();

    for (key, owners_of) in [("copied", false), ("copied-view", true)] {
        let shifted = Owners::Shifted(&ids);
        let mounts = if owners_of {
            world.store.view_for(key, Some(&top), shifted).unwrap()
        } else {
            world.store.prepare_for(key, Some(&top), shifted).unwrap()
        };
        mount::mount_all(&mounts, target.path()).unwrap();
        assert_eq!(owners(), expected, "{key}");
        assert_eq!(capable(), third, "{key}");
        assert_eq!(fs::read(target.path().join("app")).unwrap(), b"b");
        mount::unmount(target.path()).unwrap();
    }
    // The layers are as they were.
    let seen = world.mounted(&top);
    assert!(
        !seen.values().any(|entry| entry.contains("300000")),
        "{seen:?}"
    );
}
