//! Device nodes, the links of /dev, the container's terminal.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, FsWord, Gid, Mode, OFlags, Uid, chmodat, chownat, fstat, fstatfs,
    makedev, mknodat, readlinkat, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;
use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, OutputModes, Winsize};

use super::mounts::{attach, clone_of, clone_path};
use super::{Root, RootfsError, io_error};
use crate::plan::{DeviceKind, DeviceNode, MountKind, MountPlan};
use crate::sys::{MountAttributes, mount_setattr};

/// `DEVPTS_SUPER_MAGIC`.
const DEVPTS_MAGIC: FsWord = 0x1cd1;

/// Links every container has, see "Dev symbolic links" of the OCI specification.
const LINKS: [(&str, &str); 4] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// Where the devices of a container come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nodes {
    /// They are made.
    Made,
    /// The host's are bound: in a user namespace nobody may make devices, and those on its file systems
    /// cannot be opened.
    Bound,
}

/// Makes nodes and links, unless /dev was bound from the host and is the host's business.
///
/// # Errors
/// [`RootfsError`]; `/dev` must be an ordinary directory (CVE-2026-41579).
pub fn make_devices(
    root: &Root,
    devices: &[DeviceNode],
    mounts: &[MountPlan],
    nodes: Nodes,
) -> Result<(), RootfsError> {
    let bound = mounts
        .iter()
        .any(|m| m.destination == "/dev" && matches!(m.kind, MountKind::Bind { .. }));
    if bound {
        return Ok(());
    }
    let dev = match root.find_plain_directory("/dev")? {
        Some(dev) => dev,
        None => root.make_directory("/dev", 0o755)?,
    };
    devices
        .iter()
        .try_for_each(|device| make_device(root, &dev, device, nodes))?;
    make_links(&dev)
}

fn make_device(
    root: &Root,
    dev: &OwnedFd,
    device: &DeviceNode,
    nodes: Nodes,
) -> Result<(), RootfsError> {
    let fail = |operation, errno: Errno| io_error(operation, &device.path, errno);
    let kind = match device.kind {
        DeviceKind::Character => FileType::CharacterDevice,
        DeviceKind::Block => FileType::BlockDevice,
        DeviceKind::Fifo => FileType::Fifo,
    };
    let number = makedev(device.major, device.minor);
    let mode = Mode::from_raw_mode(device.mode);
    let parent_fd;
    let (parent, name) = match device.path.strip_prefix("/dev/") {
        Some(name) if !name.contains('/') => (dev, name),
        below => {
            // A link of the image could lead into a volume, and the node would be one of the host's.
            if below.is_some() {
                let (parent, _) = device.path.rsplit_once('/').unwrap_or_default();
                root.find_plain_directory(parent)?;
            }
            let (parent, name) = root.make_parent(&device.path)?;
            parent_fd = parent;
            (&parent_fd, name)
        }
    };
    if nodes == Nodes::Bound && kind != FileType::Fifo {
        return bind_device(parent, name, device, kind);
    }
    match mknodat(parent, name, kind, mode, number) {
        Ok(()) => {}
        // Root of a user namespace, whose container has no other one.
        Err(Errno::PERM) if kind != FileType::Fifo && is_in_user_namespace() => {
            return bind_device(parent, name, device, kind);
        }
        Err(Errno::EXIST) => {
            // Whoever put it there: only the very device asked for is accepted, never a link to one.
            let stat =
                statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|e| fail("examine", e))?;
            let same = FileType::from_raw_mode(stat.st_mode) == kind
                && (kind == FileType::Fifo || stat.st_rdev == number);
            return if same {
                Ok(())
            } else {
                Err(RootfsError::Unsafe {
                    path: device.path.clone(),
                    reason: "exists and is not the device it should be".to_owned(),
                })
            };
        }
        Err(errno) => return Err(fail("make device", errno)),
    }
    if device.uid != 0 || device.gid != 0 {
        let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
        chownat(
            parent,
            name,
            Some(uid),
            Some(gid),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .map_err(|e| fail("change the owner of", e))?;
        // A change of owner may clear mode bits.
        chmodat(parent, name, mode, AtFlags::empty()).map_err(|e| fail("change the mode of", e))?;
    }
    Ok(())
}

/// Binds the host's node of the same path, which must be the very device asked for. Owner and mode are the
/// host's.
fn bind_device(
    parent: &OwnedFd,
    name: &str,
    device: &DeviceNode,
    kind: FileType,
) -> Result<(), RootfsError> {
    let fail = |operation, errno: Errno| io_error(operation, &device.path, errno);
    let refuse = |reason: &str| RootfsError::Unsafe {
        path: device.path.clone(),
        reason: reason.to_owned(),
    };
    let is_it = |fd: &OwnedFd| {
        let number = makedev(device.major, device.minor);
        fstat(fd).map(|s| FileType::from_raw_mode(s.st_mode) == kind && s.st_rdev == number)
    };
    let tree = clone_path(Path::new(&device.path))?;
    if !is_it(&tree).map_err(|e| fail("examine the host's", e))? {
        return Err(refuse(
            "of the host is not the device it should be, and in a user namespace none can be made",
        ));
    }
    // What a device needs no mount for.
    let attributes = MountAttributes {
        set: MountAttributes::NOSUID,
        ..MountAttributes::default()
    };
    mount_setattr(tree.as_fd(), c"", false, attributes)
        .map_err(|e| io_error("restrict the bind of", &device.path, e))?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o666)) {
        Ok(_) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(fail("make", errno)),
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let target =
        rustix::fs::openat(parent, name, flags, Mode::empty()).map_err(|e| fail("open", e))?;
    let stat = fstat(&target).map_err(|e| fail("examine", e))?;
    if !FileType::from_raw_mode(stat.st_mode).is_file() && !is_it(&target).unwrap_or(false) {
        return Err(refuse("exists and is not the device it should be"));
    }
    attach(tree.as_fd(), target.as_fd()).map_err(|e| fail("bind", e))
}

/// Whether this process is in another user namespace than the one the kernel began with.
pub(crate) fn is_in_user_namespace() -> bool {
    /// `PROC_USER_INIT_INO` of linux/proc_ns.h.
    const INITIAL: u64 = 0xeffffffd;
    rustix::fs::stat("/proc/self/ns/user").is_ok_and(|s| s.st_ino != INITIAL)
}

fn make_links(dev: &OwnedFd) -> Result<(), RootfsError> {
    let link = |name: &str, target: &str| match symlinkat(target, dev, name) {
        Ok(()) => Ok(()),
        // Images may bring links of their own; they lead somewhere inside the container only.
        Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(io_error("make link", format!("/dev/{name}"), errno)),
    };
    for (name, target) in LINKS {
        link(name, target)?;
    }
    if rustix::fs::access("/proc/kcore", rustix::fs::Access::EXISTS).is_ok() {
        link("core", "/proc/kcore")?;
    }
    // ptmx must be that of the container's own devpts instance.
    let current = readlinkat(dev, "ptmx", Vec::new()).ok();
    if current.as_deref() != Some(c"pts/ptmx") {
        match unlinkat(dev, "ptmx", AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(io_error("replace", "/dev/ptmx", errno)),
        }
        symlinkat("pts/ptmx", dev, "ptmx").map_err(|e| io_error("make link", "/dev/ptmx", e))?;
    }
    Ok(())
}

/// Opens a new terminal on the container's own devpts: master and the slave, which is never looked up
/// by name (CVE-2025-52565). `relayed` says that the runtime copies what is written itself; other receivers of the
/// master choose the modes they want.
///
/// # Errors
/// [`RootfsError::Unsafe`] when /dev/pts is no devpts.
pub fn open_terminal(
    root: &Root,
    size: Option<(u16, u16)>,
    relayed: bool,
) -> Result<(OwnedFd, OwnedFd), RootfsError> {
    let path = "/dev/pts/ptmx";
    let fail = |operation, errno: Errno| io_error(operation, path, errno);
    let master = root
        .open(path, OFlags::RDWR | OFlags::NOCTTY)
        .map_err(|e| fail("open", e))?;
    let is_devpts = fstatfs(&master).is_ok_and(|s| s.f_type == DEVPTS_MAGIC);
    let stat = fstat(&master).map_err(|e| fail("examine", e))?;
    if !is_devpts || stat.st_rdev != makedev(5, 2) {
        return Err(RootfsError::Unsafe {
            path: path.to_owned(),
            reason: "is not the multiplexer of a devpts file system".to_owned(),
        });
    }
    rustix::pty::unlockpt(&master).map_err(|e| fail("unlock", e))?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave =
        rustix::pty::ioctl_tiocgptpeer(&master, flags).map_err(|e| fail("open the peer of", e))?;
    if relayed {
        // Newlines reach the caller as the program wrote them: its own terminal adds the return, a file has none.
        let mut modes = rustix::termios::tcgetattr(&slave).map_err(|e| fail("read modes of", e))?;
        modes.output_modes.remove(OutputModes::ONLCR);
        rustix::termios::tcsetattr(&slave, OptionalActions::Now, &modes)
            .map_err(|e| fail("set modes of", e))?;
    }
    if let Some((rows, columns)) = size {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(&master, size).map_err(|e| fail("set the size of", e))?;
    }
    Ok((master, slave))
}

/// Binds the terminal's slave over /dev/console.
///
/// # Errors
/// [`RootfsError::Unsafe`] when /dev/console is a link or no plain file.
pub fn bind_console(root: &Root, slave: &OwnedFd) -> Result<(), RootfsError> {
    let path = "/dev/console";
    let fail = |operation, errno: Errno| io_error(operation, path, errno);
    let dev = match root.find_plain_directory("/dev")? {
        Some(dev) => dev,
        None => root.make_directory("/dev", 0o755)?,
    };
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(&dev, "console", flags, Mode::from_raw_mode(0o666)) {
        Ok(_) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(fail("make", errno)),
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let target =
        rustix::fs::openat(&dev, "console", flags, Mode::empty()).map_err(|e| fail("open", e))?;
    let stat = fstat(&target).map_err(|e| fail("examine", e))?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind != FileType::RegularFile && kind != FileType::CharacterDevice {
        return Err(RootfsError::Unsafe {
            path: path.to_owned(),
            reason: "is neither a plain file nor a device".to_owned(),
        });
    }
    let tree = clone_of(slave.as_fd(), false).map_err(|e| fail("clone the terminal for", e))?;
    attach(tree.as_fd(), target.as_fd()).map_err(|e| fail("bind", e))
}

/// Opens the host's null device and makes sure it is that (CVE-2025-31133).
pub(super) fn host_null() -> Result<OwnedFd, RootfsError> {
    let path = "/dev/null";
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let null = rustix::fs::openat(CWD, path, flags, Mode::empty())
        .map_err(|e| io_error("open the host's", path, e))?;
    let stat = fstat(&null).map_err(|e| io_error("examine the host's", path, e))?;
    let is_null = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && stat.st_rdev == makedev(1, 3);
    if is_null {
        Ok(null)
    } else {
        Err(RootfsError::Unsafe {
            path: path.to_owned(),
            reason: "of the host is not the null device".to_owned(),
        })
    }
}
