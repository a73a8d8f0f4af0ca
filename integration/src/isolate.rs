//! Private mount and network namespaces for the calling thread and everything it starts from then on.
//!
//! Call it before any other thread or child is started: a namespace belongs to the thread that asked for it.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use crate::children;

/// Mounts below `/sys` that are needed inside; the others are there with security modules only.
const KEPT: [&str; 3] = ["/sys/fs/cgroup", "/sys/kernel/security", "/sys/fs/selinux"];

/// Moves the calling thread into new mount and network namespaces fit to run a node in.
///
/// Inside, the root is shared recursively (mount propagation can be tested), `/sys` shows the new network
/// namespace with the cgroup mounts kept, loopback is up, and IPv4 and IPv6 are forwarded.
///
/// # Errors
/// When a step is refused; the thread may then be left half-way and should end.
pub fn isolate() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)
        .context("unshare the mount and network namespaces")?;
    propagate(MsFlags::MS_PRIVATE)?;
    refresh_sysfs()?;
    propagate(MsFlags::MS_SHARED)?;
    let up = children::run("ip", &["link", "set", "lo", "up"])?;
    ensure!(up.status.success(), "bring loopback up: {}", up.text());
    for (key, value) in [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv4/conf/all/route_localnet", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
        // A new IPv6 address is usable at once instead of after duplicate detection.
        ("net/ipv6/conf/default/accept_dad", "0"),
    ] {
        let path = Path::new("/proc/sys").join(key);
        if path.exists() {
            fs::write(&path, value)
                .with_context(|| format!("write {value} to {}", path.display()))?;
        }
    }
    Ok(())
}

fn propagate(how: MsFlags) -> Result<()> {
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        how | MsFlags::MS_REC,
        None::<&str>,
    )
    .with_context(|| format!("make the root {how:?}"))
}

/// Replaces `/sys`, which still shows the old network namespace, and puts the other mounts below it back.
fn refresh_sysfs() -> Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    let mut kept = Vec::new();
    for path in KEPT.iter().copied().filter(|path| is_mount_point(path)) {
        let tree = open_tree(rustix::fs::CWD, path, flags);
        kept.push((
            path,
            tree.with_context(|| format!("clone the mounts at {path}"))?,
        ));
    }
    umount2("/sys", MntFlags::MNT_DETACH).context("unmount the old /sys")?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("sysfs"), "/sys", Some("sysfs"), flags, None::<&str>).context("mount a new /sys")?;
    for (path, tree) in kept {
        move_mount(
            &tree,
            "",
            rustix::fs::CWD,
            path,
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )
        .with_context(|| format!("put the mounts at {path} back"))?;
    }
    Ok(())
}

fn is_mount_point(path: &str) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut points = table.lines().filter_map(|line| line.split(' ').nth(4));
    points.any(|point| point == path)
}
