//! Shuts the calling process in before it looks at a byte of an image: nothing is left but the directory of one
//! layer, the descriptors it came with, and the means to own files.
//!
//! Everything but Landlock is required. Order: what needs privileges first, the list of system calls last.

use std::io;
use std::os::fd::OwnedFd;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetStatus, Scope,
};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_change,
    mount_remount, move_mount, open_tree, unmount,
};
use rustix::process::{Resource, Rlimit, fchdir, pivot_root, setrlimit, umask};
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

use super::filter;

/// What is kept: to give files owners, modes, device numbers and capabilities of their own. Not CAP_SYS_ADMIN,
/// which attributes of overlayfs would need: those are asked for (`session.rs`).
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SETFCAP);

/// Highest capability number there may be.
const CAPABILITIES: u32 = 63;
/// Descriptors: the path of an entry is opened step by step, and a few files at a time.
const DESCRIPTORS: u64 = 256;

/// How far the kernel went along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cage {
    /// Landlock holds too.
    pub(super) landlock: bool,
}

/// Closes every descriptor but the three standard ones: whoever started this process may have let others through.
/// Nothing else of this process may have one open.
pub(super) fn close_the_rest() -> io::Result<()> {
    let mut open = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        open.extend(name.to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    for fd in open.into_iter().filter(|fd| *fd > 2) {
        // Ignored: the one that listed them is closed already.
        let _ = nix::unistd::close(fd);
    }
    Ok(())
}

/// Shuts the calling thread in with `snapshot`, and returns that directory as it is seen from inside. Threads
/// that start later are in as well; so this comes before them.
pub(super) fn enter(snapshot: OwnedFd) -> io::Result<(OwnedFd, Cage)> {
    let inside = move_in(snapshot).map_err(|error| told("leave the host's files", error))?;
    drop_capabilities().map_err(|error| told("drop capabilities", error))?;
    set_no_new_privs(true)?;
    let landlock = restrict().map_err(|error| told("restrict by Landlock", error))?;
    filter::load().map_err(|error| told("load the filter of system calls", error))?;
    Ok((inside, Cage { landlock }))
}

fn told(what: &str, error: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("cannot {what}: {error}"))
}

/// Bounds the process: `memory` is what it may allocate, in bytes. Modes of files are no business of whoever
/// started it.
pub(super) fn limit(memory: u64) -> io::Result<()> {
    umask(Mode::empty());
    for (resource, value) in [
        (Resource::Core, 0),
        (Resource::Data, memory),
        (Resource::Nofile, DESCRIPTORS),
    ] {
        let limit = Rlimit {
            current: Some(value),
            maximum: Some(value),
        };
        setrlimit(resource, limit).map_err(|error| told("set a limit", error))?;
    }
    Ok(())
}

/// Makes the directory the root of a mount namespace in which nothing else is mounted.
fn move_in(snapshot: OwnedFd) -> io::Result<OwnedFd> {
    let clone = OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::OPEN_TREE_CLONE;
    // Order: a descriptor stays in the mount namespace it was opened in, the working directory comes along
    // (unshare(2)). So the copy is taken before, and attached at the working directory after.
    fchdir(&snapshot)?;
    let tree = open_tree(CWD, ".", clone)?;
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    unshare(namespaces)?;
    let private = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
    mount_change("/", private)?;
    let whole = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&tree, "", CWD, ".", whole)?;
    fchdir(&tree)?;
    // The copy of a shared mount is shared, and pivot_root(2) takes none.
    mount_change(".", private)?;
    // Nothing of an image is run or opened as a device here, not even by mistake.
    let flags = MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_remount(".", flags, "")?;
    // pivot_root(2), "pivot_root(".", ".")": the old root comes to lie over the new one.
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    drop((snapshot, tree));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let inside = openat(CWD, "/", flags, Mode::empty())?;
    fchdir(&inside)?;
    Ok(inside)
}

fn drop_capabilities() -> io::Result<()> {
    clear_ambient_capability_set()?;
    for number in 0..=CAPABILITIES {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if !KEPT.contains(capability) {
            match remove_capability_from_bounding_set(capability) {
                Ok(()) => {}
                // The kernel's last capability was before this one.
                Err(rustix::io::Errno::INVAL) => break,
                Err(error) => return Err(error.into()),
            }
        }
    }
    let sets = CapabilitySets {
        effective: KEPT,
        permitted: KEPT,
        inheritable: CapabilitySet::empty(),
    };
    Ok(set_capabilities(None, sets)?)
}

/// Allows everything below the root, which is the layer, and nothing else: no file by a descriptor that got in,
/// no TCP, no abstract socket, no signal to a process outside. Answers whether the kernel has Landlock.
fn restrict() -> io::Result<bool> {
    // Older kernels take less of it.
    let abi = ABI::V6;
    let all = AccessFs::from_all(abi);
    let root = PathFd::new("/").map_err(io::Error::other)?;
    let restricted = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)
        .and_then(|set| set.handle_access(AccessNet::from_all(abi)))
        .and_then(|set| set.scope(Scope::from_all(abi)))
        .and_then(Ruleset::create)
        .and_then(|set| set.add_rule(PathBeneath::new(root, all)))
        .and_then(RulesetCreated::restrict_self);
    let status = restricted.map_err(io::Error::other)?;
    Ok(status.ruleset != RulesetStatus::NotEnforced)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::{Read, Write};
    use std::path::Path;
    use std::thread;

    use nix::sys::ptrace;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    use rustix::fs::{FileType, XattrFlags, fsetxattr, makedev, mkdirat, mknodat};
    use rustix::io::Errno;
    use rustix::process::{Signal, getppid, kill_process};

    use super::*;

    /// Runs `attack` in a thread that is shut in with a directory, beside a file nobody may reach.
    fn shut_in(attack: impl FnOnce(&OwnedFd) + Send) {
        if !rustix::process::geteuid().is_root() {
            assert_ne!(std::env::var("AXIL_TEST_REQUIRE").as_deref(), Ok("1"));
            println!("skipped: needs root");
            return;
        }
        let tmp = tempfile::tempdir().unwrap();
        let secret = tmp.path().join("secret");
        fs::write(&secret, "of the host").unwrap();
        let layer = tmp.path().join("layer");
        fs::create_dir_all(layer.join("fs")).unwrap();
        let dir = OwnedFd::from(File::open(&layer).unwrap());
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let (dir, _) = enter(dir).unwrap();
                attack(&dir);
            });
            inside.join().unwrap();
        });
        assert_eq!(fs::read_to_string(secret).unwrap(), "of the host");
    }

    #[test]
    fn privileged_inside_there_are_no_files_but_those_of_the_layer() {
        shut_in(|dir| {
            File::create("/fs/own").unwrap().write_all(b"x").unwrap();
            let missing = |path: &str| File::open(path).unwrap_err().kind();
            for path in ["/etc/passwd", "/proc/self/status", "/secret", "../secret"] {
                assert_eq!(missing(path), io::ErrorKind::NotFound, "{path}");
            }
            // Up from the root is the root.
            let up = openat(dir, "..", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
            let names: Vec<_> = rustix::fs::Dir::read_from(&up)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().to_owned())
                .collect();
            assert_eq!(names.len(), 3, "{names:?}");
            // A device can be made, for the layer, but not opened.
            let disk = makedev(1, 1);
            mknodat(dir, "disk", FileType::BlockDevice, Mode::RWXU, disk).unwrap();
            assert_eq!(missing("/disk"), io::ErrorKind::PermissionDenied);
        });
    }

    #[test]
    fn privileged_inside_there_is_no_network_and_no_other_process() {
        let parent = getppid().unwrap();
        shut_in(|_| {
            for family in [
                AddressFamily::Inet,
                AddressFamily::Inet6,
                AddressFamily::Unix,
                AddressFamily::Netlink,
                AddressFamily::Packet,
            ] {
                let made = socket(family, SockType::Datagram, SockFlag::empty(), None);
                assert_eq!(made.unwrap_err(), nix::errno::Errno::EPERM, "{family:?}");
            }
            assert_eq!(kill_process(parent, Signal::CONT), Err(Errno::PERM));
            let parent = nix::unistd::Pid::from_raw(parent.as_raw_nonzero().get());
            assert_eq!(ptrace::attach(parent), Err(nix::errno::Errno::EPERM));
            assert!(std::process::Command::new("/fs/own").spawn().is_err());
        });
    }

    #[test]
    fn privileged_inside_there_is_no_mount_no_namespace_and_no_way_to_run_code() {
        shut_in(|dir| {
            let eperm = Err(nix::errno::Errno::EPERM);
            assert_eq!(unshare(CloneFlags::CLONE_NEWUSER), eperm);
            assert_eq!(unshare(CloneFlags::CLONE_NEWNS), eperm);
            let tree = open_tree(CWD, ".", OpenTreeFlags::OPEN_TREE_CLONE);
            assert_eq!(tree.unwrap_err(), Errno::PERM);
            assert_eq!(rustix::process::chroot("/fs"), Err(Errno::PERM));
            assert_eq!(unmount("/", UnmountFlags::DETACH), Err(Errno::PERM));
            let memory = rustix::fs::memfd_create("code", rustix::fs::MemfdFlags::empty());
            assert_eq!(memory.unwrap_err(), Errno::PERM);
            // What steers overlayfs is not to be had without asking.
            mkdirat(dir, "fs/d", Mode::RWXU).unwrap();
            let inner = openat(dir, "fs/d", OFlags::RDONLY, Mode::empty()).unwrap();
            let set = fsetxattr(&inner, "trusted.overlay.opaque", b"y", XattrFlags::empty());
            assert_eq!(set, Err(Errno::PERM));
            let held = rustix::thread::capabilities(None);
            assert_eq!(
                held.unwrap_err(),
                Errno::PERM,
                "capget is not on the list either"
            );
        });
    }

    #[test]
    fn privileged_inside_threads_start_and_files_get_their_owners() {
        shut_in(|dir| {
            let made = thread::Builder::new().name("inner".to_owned()).spawn(|| {
                let file = File::create("/fs/file").unwrap();
                rustix::fs::fchown(
                    &file,
                    Some(rustix::fs::Uid::from_raw(70_000)),
                    Some(rustix::fs::Gid::from_raw(5)),
                )
                .unwrap();
                rustix::fs::fchmod(&file, Mode::from_raw_mode(0o6755)).unwrap();
                rustix::fs::fstat(&file).unwrap().st_mode & 0o7777
            });
            assert_eq!(made.unwrap().join().unwrap(), 0o6755);
            let mut text = String::new();
            let file = openat(dir, "fs/file", OFlags::RDONLY, Mode::empty()).unwrap();
            File::from(file).read_to_string(&mut text).unwrap();
            assert!(Path::new("/fs/file").symlink_metadata().is_ok());
        });
    }
}
