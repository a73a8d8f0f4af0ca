//! Unix sockets: connecting with a bound and by paths of any length, passing descriptors (SCM_RIGHTS), and the
//! last words of a process.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, recvmsg, send,
    sendmsg, socket_with, sockopt,
};

/// Where a socket is bound.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Address<'a> {
    /// A file.
    Path(&'a Path),
    /// A name without a file, see unix(7).
    Abstract(&'a [u8]),
}

/// Connects a stream to a listener, which may take `patience` to have room for one more. A later send on the
/// socket waits no longer than that either.
///
/// # Errors
/// The errno of connect(2); EAGAIN when there is no room in time.
pub(crate) fn connect(address: Address<'_>, patience: Duration) -> io::Result<OwnedFd> {
    let socket = unix_socket(SocketType::STREAM)?;
    // It bounds connect(2) too, see socket(7).
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(patience))?;
    connect_to(&socket, address)?;
    Ok(socket)
}

/// Makes sure that a stream listens there, without disturbing it: a datagram socket cannot be connected to a
/// stream socket, and the errno tells that there is one (unix(7), EPROTOTYPE).
///
/// # Errors
/// The errno of connect(2); EPROTOTYPE when there is a datagram socket.
pub(crate) fn check_listener(address: Address<'_>) -> io::Result<()> {
    let probe = unix_socket(SocketType::DGRAM)?;
    match connect_to(&probe, address) {
        Err(Errno::PROTOTYPE) => Ok(()),
        Err(errno) => Err(errno.into()),
        Ok(()) => Err(Errno::PROTOTYPE.into()),
    }
}

/// A socket that is neither bound nor connected.
pub(crate) fn unix_socket(kind: SocketType) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    Ok(socket_with(AddressFamily::UNIX, kind, flags, None)?)
}

fn connect_to(socket: &OwnedFd, address: Address<'_>) -> Result<(), Errno> {
    let to = |address: &SocketAddrUnix| retry_on_intr(|| rustix::net::connect(socket, address));
    let path = match address {
        Address::Abstract(name) => return to(&SocketAddrUnix::new_abstract_name(name)?),
        Address::Path(path) => path,
    };
    if let Ok(short) = SocketAddrUnix::new(path) {
        return to(&short);
    }
    // Addresses end at 108 bytes: a longer path goes through a descriptor of its directory.
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Errno::INVAL);
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(CWD, directory, flags, Mode::empty())?;
    let short = Path::new("/proc/self/fd")
        .join(directory.as_raw_fd().to_string())
        .join(name);
    to(&SocketAddrUnix::new(short)?)
}

/// Sends the last words of a process whose calls a seccomp filter may judge. write(2) first: hardly a profile
/// forbids it, and none may leave it to an agent, who would have to answer before anybody hears why the process
/// failed.
pub(crate) fn say_last(socket: BorrowedFd<'_>, words: &[u8]) {
    let said = retry_on_intr(|| rustix::io::write(socket, words));
    if said.is_err() {
        // Ignored: the process ends either way, and whoever waits sees that it ended too early.
        let _ = send(socket, words, SendFlags::NOSIGNAL);
    }
}

/// Sends `payload` with `descriptor` beside it; gives how much of the payload was taken.
///
/// # Errors
/// The errno of sendmsg(2).
pub(crate) fn send_descriptor(
    socket: BorrowedFd<'_>,
    payload: &[u8],
    descriptor: BorrowedFd<'_>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor];
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    let sent = retry_on_intr(|| {
        sendmsg(
            socket,
            &[IoSlice::new(payload)],
            &mut control,
            SendFlags::NOSIGNAL,
        )
    })?;
    Ok(sent)
}

/// Receives a payload into `buffer`, and the descriptor beside it if there is one. The descriptor closes on
/// execve; more than one is never taken.
///
/// # Errors
/// The errno of recvmsg(2).
pub(crate) fn receive_descriptor(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = retry_on_intr(|| {
        recvmsg(
            socket,
            &mut [IoSliceMut::new(buffer)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
    })?;
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok((received.bytes, descriptor))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::time::Instant;

    use super::*;

    #[test]
    fn listeners_are_reached_by_paths_of_any_length() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(100)).join("e".repeat(100));
        std::fs::create_dir_all(&deep).unwrap();
        let place = std::fs::File::open(&deep).unwrap();
        let short = format!("/proc/self/fd/{}/socket", place.as_raw_fd());
        let path = deep.join("socket");
        let address = Address::Path(&path);
        assert_eq!(
            check_listener(address).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        let listener = UnixListener::bind(short).unwrap();
        check_listener(address).unwrap();
        connect(address, Duration::from_secs(5)).unwrap();
        listener.accept().unwrap();
        drop(listener);
        assert_eq!(
            check_listener(address).unwrap_err().kind(),
            io::ErrorKind::ConnectionRefused
        );
        assert!(connect(address, Duration::from_secs(5)).is_err());
    }

    #[test]
    fn a_listener_without_room_is_waited_for_with_a_bound() {
        let name = format!("axil-test-{}-full", std::process::id());
        let listener = unix_socket(SocketType::STREAM).unwrap();
        let address = SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap();
        rustix::net::bind(&listener, &address).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let address = Address::Abstract(name.as_bytes());
        let patience = Duration::from_millis(100);
        let started = Instant::now();
        // How many fit the kernel decides; nobody accepts them.
        let mut kept = Vec::new();
        let error = loop {
            match connect(address, patience) {
                Ok(socket) => kept.push(socket),
                Err(error) => break error,
            }
            assert!(kept.len() < 8);
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(started.elapsed() >= patience);
    }
}
