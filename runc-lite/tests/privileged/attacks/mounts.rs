//! Mounts: tests 12, 15, 20, 21, 30 and 31.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::json;

use super::arena::{
    Canary, armed, assert_nothing_got, bind, empower, traced_create, tried, without_mounts,
};
use super::loops::{
    creations_beside_a_hostile_container, creations_under_exchange, lives_leave_no_mount,
};
use crate::bundle::{Bundle, ready};

#[test]
fn privileged_mount_targets_stay_inside_the_root() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    let mut bundle = Bundle::new("ls /in; cat /in/mark");
    let volume = bundle.dir.path().join("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("mark"), "mounted").unwrap();
    // Absolute, and more dots than there are directories: both lead to the container's own root.
    let inside = "../../../../../../../../../../in";
    symlink(inside, bundle.rootfs().join("link")).unwrap();
    fs::create_dir(bundle.rootfs().join("in")).unwrap();
    symlink(canary.path(), bundle.rootfs().join("out")).unwrap();
    bind(&mut bundle, &volume, "/link", &[]);
    assert_eq!(bundle.run().ok(), "mark\nmounted");
    bundle.set(
        "/mounts/-",
        json!({"destination": "/out/new/dir", "type": "tmpfs"}),
    );
    // What the link names is made in the container's root.
    bundle.run().ok();
    canary.assert_alive();
    assert!(
        bundle
            .rootfs()
            .join(canary.path().strip_prefix("/").unwrap())
            .join("new/dir")
            .is_dir()
    );
    // Where the host has such a directory, it is still the container's that is mounted on.
    bundle.set("/process/args", json!(["cat", "/out/mark"]));
    bind(&mut bundle, &volume, "/out", &[]);
    assert_eq!(bundle.run().ok(), "mounted");
    canary.assert_alive();
    // Never in a volume of the host, which is another mount.
    symlink("/link/made", bundle.rootfs().join("into-volume")).unwrap();
    bundle.set(
        "/mounts/-",
        json!({"destination": "/into-volume/dir", "type": "tmpfs"}),
    );
    bundle.run().fails(1, "in another mount");
    assert!(!volume.join("made").exists());
}

#[test]
fn privileged_cve_2021_30465_cve_2024_45310_a_racing_neighbour_makes_nothing_on_the_host() {
    if !ready() {
        return;
    }
    creations_under_exchange(40);
}

#[test]
fn privileged_cve_2021_30465_a_container_that_exchanges_gets_no_mount_of_the_host() {
    if !ready() {
        return;
    }
    creations_beside_a_hostile_container(30);
}

/// CVE-2025-24965 and number 15, seen from the system calls: once the root is entered, names of the container
/// are given to openat2 with a confined resolution, or are single names below a descriptor.
#[test]
fn privileged_cve_2025_24965_names_of_the_container_are_resolved_below_its_root() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    let mut bundle = Bundle::new("true");
    let volume = bundle.dir.path().join("volume");
    fs::create_dir(&volume).unwrap();
    bind(&mut bundle, &volume, "/new/volume", &[]);
    fs::write(bundle.rootfs().join("secret"), "").unwrap();
    bundle.set("/linux/maskedPaths", json!(["/secret", "/sys/firmware"]));
    bundle.set("/linux/sysctl", json!({"kernel.msgmax": "4096"}));
    bundle.set("/process/cwd", json!("/made/by/the/runtime"));
    let Some(text) = traced_create(
        &bundle,
        "%file,openat2,mount_setattr,fchdir,pivot_root",
        &[],
    ) else {
        return;
    };
    let rootfs = bundle.rootfs();
    let rootfs = rootfs.to_str().unwrap();
    let mut confined = 0;
    for line in text
        .lines()
        .take_while(|line| !line.contains("pivot_root("))
    {
        if line.contains("openat2(") {
            confined += 1;
            let safe = line.contains("RESOLVE_IN_ROOT") && line.contains("RESOLVE_NO_MAGICLINKS")
                || line.contains("RESOLVE_BENEATH") && line.contains("RESOLVE_NO_SYMLINKS")
                || line.contains("RESOLVE_BENEATH") && line.contains("RESOLVE_NO_XDEV")
                || line.contains("RESOLVE_BENEATH")
                    && line.contains("O_NOFOLLOW")
                    && !line.split('"').nth(1).unwrap_or_default().contains('/');
            assert!(safe, "not confined: {line}");
        }
        // Below a descriptor of the container's root, one name and no link.
        let below = line.contains(&format!("<{rootfs}"));
        if below
            && ["mkdirat(", "mknodat(", "symlinkat(", "unlinkat("]
                .iter()
                .any(|c| line.contains(c))
        {
            let name = line.split('"').nth_back(1).unwrap_or_default();
            assert!(!name.contains('/') || line.contains("symlinkat("), "{line}");
        }
        // By its path the rootfs is opened once, as a whole.
        if let Some(at) = line.find(&format!("\"{rootfs}/")) {
            panic!("a path into the container: {} in {line}", &line[at..]);
        }
    }
    assert!(confined > 10, "{confined} confined lookups in {text}");
    canary.assert_alive();
}

#[test]
fn privileged_mounts_of_containers_never_stay_on_the_host() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    lives_leave_no_mount(8);
    let bundle = Bundle::new("true");
    bundle.write();
    for verb in ["create", "run"] {
        bundle
            .call(&[verb, "--no-pivot", &bundle.id])
            .fails(1, "--no-pivot");
    }
    bundle.assert_gone();
    canary.assert_alive();
}

/// Number 30 from inside: the host's root is not below the container's, nor above it, nor another process's.
#[test]
fn privileged_no_way_leads_up_to_the_host_s_root() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    let file = canary.file();
    let file = file.to_str().unwrap();
    let mut bundle = armed(&["leave", file]);
    empower(&mut bundle, &["CAP_SYS_CHROOT", "CAP_DAC_OVERRIDE"]);
    let out = bundle.run().ok();
    assert_nothing_got(&out);
    assert_eq!(tried(&out, "up"), 64);
    assert!(out.contains("is not there"), "it could not try: {out}");
    bundle.set("/process/args", json!(["sleep", "1000"]));
    bundle.create().ok();
    bundle.start().ok();
    let out = bundle.exec(&["/attacker", "leave", file]).ok();
    assert_nothing_got(&out);
    assert!(out.contains("is not there"), "it could not try: {out}");
    let mounts = bundle.exec(&["cat", "/proc/self/mountinfo", "/proc/1/mountinfo"]);
    let mounts = mounts.ok();
    let roots = mounts.lines().filter(|l| l.split(' ').nth(4) == Some("/"));
    // One for each of the two processes.
    assert_eq!(roots.count(), 2, "{mounts}");
    canary.assert_alive();
}

/// A host whose mounts are shared, as systemd makes them, sees none of a container's.
#[test]
fn privileged_mounts_of_a_container_do_not_reach_a_shared_host() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    let mut bundle = Bundle::new("sleep 1000");
    let place = bundle.dir.path().to_owned();
    rustix::mount::mount_bind(&place, &place).unwrap();
    let shared = rustix::mount::MountPropagationFlags::SHARED;
    rustix::mount::mount_change(&place, shared).unwrap();
    let mounts = || fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let before = mounts();
    bundle.set(
        "/mounts/-",
        json!({"destination": "/mnt", "type": "tmpfs", "source": "tmpfs"}),
    );
    for propagation in ["", "slave", "private", "rslave", "rprivate"] {
        bundle.set("/linux/rootfsPropagation", json!(propagation));
        bundle.create().ok();
        assert_eq!(mounts(), before, "{propagation:?}");
        bundle.call(&["delete", "--force", &bundle.id]).ok();
    }
    rustix::mount::unmount(&place, rustix::mount::UnmountFlags::DETACH).unwrap();
    canary.assert_alive();
}

/// CVE-2026-119101, -115520, -119614.
#[test]
fn privileged_cve_2026_119101_there_is_no_checkpoint_and_no_restore() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    let bundle = Bundle::new("sleep 1000");
    bundle.create().ok();
    for verb in ["checkpoint", "restore"] {
        let done = bundle.call(&[verb, &bundle.id]);
        done.fails(1, verb);
    }
    assert_eq!(bundle.status(), "created");
    canary.assert_alive();
}

/// CVE-2023-25809: without a cgroup namespace the container sees its cgroup, and may not write to it unless
/// the document says so.
#[test]
fn privileged_cve_2023_25809_the_cgroup_tree_is_read_only_where_it_should_be() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    // Whose cgroup is not to be seen.
    let neighbour = Bundle::new("sleep 1000");
    neighbour.create().ok();
    let mut bundle = Bundle::new(&format!(
        "find /sys/fs/cgroup -name release_agent -o -name '*{}*'; \
         for d in /sys/fs/cgroup /sys/fs/cgroup/*; do mkdir $d/made && echo GOT $d; done; true",
        neighbour.id
    ));
    std::os::unix::fs::symlink("busybox", bundle.rootfs().join("bin/find")).unwrap();
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "cgroup");
    bundle.set(
        "/mounts/-",
        json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
               "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}),
    );
    let out = bundle.run().ok();
    assert_eq!(out, "", "something of the tree was found or made");
    canary.assert_alive();
}

/// The kernel's own files stay on top: a link of the image takes no file system into procfs.
#[test]
fn privileged_a_link_of_the_image_takes_no_mount_into_proc() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    for (kind, target) in [
        ("tmpfs", "/proc/sys"),
        ("tmpfs", "/proc/self/attr"),
        ("mqueue", "/proc/self"),
        ("cgroup", "/proc/sys/kernel"),
        ("sysfs", "/proc/fs"),
        ("bind", "/proc/sys/net"),
    ] {
        let mut bundle = Bundle::new("true");
        symlink(target, bundle.rootfs().join("data")).unwrap();
        if kind == "bind" {
            let volume = bundle.dir.path().join("volume");
            fs::create_dir(&volume).unwrap();
            bind(&mut bundle, &volume, "/data", &[]);
        } else {
            bundle.set(
                "/mounts/-",
                json!({"destination": "/data", "type": kind, "source": kind}),
            );
        }
        let error = bundle.create();
        assert_eq!(error.code, 1, "{kind} on {target}: {error:?}");
        bundle.assert_gone();
    }
    // And none straight into it.
    for kind in ["cgroup", "tmpfs", "proc"] {
        let mut bundle = Bundle::new("true");
        without_mounts(&mut bundle, "/nothing");
        bundle.set(
            "/mounts/-",
            json!({"destination": "/proc/sys/kernel", "type": kind, "source": kind}),
        );
        let error = bundle.create();
        assert_eq!(error.code, 1, "{kind}: {error:?}");
    }
    canary.assert_alive();
}

/// A source below the container's own root is the image's to choose: a link in it leads to the container's
/// files, not to the host's (the way CVE-2026-119101 took).
#[test]
fn privileged_cve_2026_119101_a_source_in_the_image_leads_to_nothing_of_the_host() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    let hostile = canary.path();
    for target in [hostile.to_str().unwrap(), "/proc/self/root", "../../../.."] {
        let mut bundle =
            Bundle::new("cat /mnt/file; ls -a /mnt; echo x > /mnt/file; touch /mnt/made");
        let link = bundle.rootfs().join("link");
        symlink(target, &link).unwrap();
        bind(&mut bundle, &link, "/mnt", &["rbind", "rw"]);
        let done = bundle.run();
        assert!(!done.out.contains("alive"), "{target}: {done:?}");
        // The container's own root, where the link goes there, is told by what the bundle put into it.
        assert!(
            done.code != 0 || done.out.contains("busybox") || done.out.contains("mnt"),
            "{target}: {done:?}"
        );
        canary.assert_alive();
    }
}

/// tmpcopyup reads a directory of the image: links in it are copied as links, and what one would have led to
/// stays outside (the kind of CVE-2022-23648).
#[test]
fn privileged_cve_2022_23648_a_copied_directory_brings_nothing_of_the_host() {
    if !ready() {
        return;
    }
    let canary = Canary::new();
    let mut bundle =
        Bundle::new("readlink /data/dir; readlink /data/file; cat /data/*; cat /data/dir/*");
    let data = bundle.rootfs().join("data");
    fs::create_dir(&data).unwrap();
    symlink(canary.path(), data.join("dir")).unwrap();
    symlink(canary.file(), data.join("file")).unwrap();
    bundle.set(
        "/mounts/-",
        json!({"destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]}),
    );
    let done = bundle.run();
    let links = format!("{}\n{}", canary.path().display(), canary.file().display());
    assert_eq!(done.out, links, "{done:?}");
    // The directory itself as a link: only what the container has there.
    fs::remove_dir_all(&data).unwrap();
    symlink(canary.path(), &data).unwrap();
    bundle.set(
        "/process/args",
        json!(["sh", "-c", "cat /data/file; ls -A /data"]),
    );
    let done = bundle.run();
    assert_eq!(done.out, "", "{done:?}");
    canary.assert_alive();
}
