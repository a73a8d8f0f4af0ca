//! The container's terminal: made in the container, its master sent to the caller's console socket.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, FileType, Gid, Mode, OFlags, Uid, fchown, fstat};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, sendmsg, socket_with,
};

/// Connects to the caller's console socket.
///
/// # Errors
/// The errno of connect(2).
pub(super) fn connect_console(path: &Path) -> std::io::Result<OwnedFd> {
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let address = SocketAddrUnix::new(path);
    if let Ok(address) = address {
        connect(&socket, &address)?;
        return Ok(socket);
    }
    // Addresses end at 108 bytes: a longer path goes through a descriptor of its directory.
    let (directory, name) = match (path.parent(), path.file_name()) {
        (Some(directory), Some(name)) => (directory, name),
        _ => return Err(std::io::ErrorKind::InvalidInput.into()),
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(CWD, directory, flags, Mode::empty())?;
    let short = Path::new("/proc/self/fd")
        .join(directory.as_raw_fd().to_string())
        .join(name);
    connect(&socket, &SocketAddrUnix::new(short)?)?;
    Ok(socket)
}

/// Sends the master of a terminal over the console socket.
pub(super) fn send_master(socket: BorrowedFd<'_>, master: BorrowedFd<'_>) -> std::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [master];
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    // The payload is a name for the terminal; receivers only show it.
    let payload = [IoSlice::new(b"/dev/ptmx")];
    sendmsg(socket, &payload, &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Makes the slave standard input, output and error and the controlling terminal.
pub(super) fn take_terminal(slave: &OwnedFd) -> std::io::Result<()> {
    rustix::process::ioctl_tiocsctty(slave)?;
    rustix::stdio::dup2_stdin(slave)?;
    rustix::stdio::dup2_stdout(slave)?;
    rustix::stdio::dup2_stderr(slave)?;
    Ok(())
}

/// Gives the standard streams to the container's user where that is safe: pipes, and the container's own
/// terminal. Files and devices of the host keep their owner (CVE-2026-88265).
pub(super) fn give_streams(own_terminal: bool, uid: u32, gid: u32) {
    let streams = [
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
    ];
    for stream in streams {
        let Ok(stat) = fstat(stream) else { continue };
        let is_pipe = FileType::from_raw_mode(stat.st_mode) == FileType::Fifo;
        if !(is_pipe || own_terminal) || stat.st_uid == uid {
            continue;
        }
        // A pipe of another user namespace cannot be given away; the program then uses it as it is.
        let group = if own_terminal {
            None
        } else {
            Some(Gid::from_raw(gid))
        };
        let _ = fchown(stream.as_fd(), Some(Uid::from_raw(uid)), group);
    }
}
