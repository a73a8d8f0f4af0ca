//! The terminal of a process that runs in the foreground: copies between the caller's streams and the master.
//!
//! ```text
//!   caller's stdin ──► input ──► master ══ slave: the process in the container
//!  caller's stdout ◄── output ◄─┘
//! ```
//!
//! When the caller's input ends, output goes on: nothing tells the process, as a terminal has no half that
//! could be closed. When the caller's output is gone the master is closed, so that the process gets SIGHUP as
//! from any terminal that goes away. One thread and poll(2); signals come by a descriptor.

use std::io::IsTerminal;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::stdio::{stderr, stdin, stdout};
use rustix::termios::{
    OptionalActions, OutputModes, Termios, tcgetattr, tcgetpgrp, tcgetwinsize, tcsetattr,
    tcsetwinsize,
};

use super::wait::{reap, timespec, wait_for};
use crate::socket::receive_descriptor;
use crate::sys::{SignalSet, read_signal, send_signal, signal_descriptor};

/// Bytes on their way in one direction; a pipe that poll(2) calls writable takes as many without blocking.
const CHUNK: usize = 4096;
/// How long the last output may take to come through the terminal after the process has ended.
const LAST_OUTPUT: Duration = Duration::from_millis(100);
/// Bound of writing it: the caller may not read.
const LAST_WRITES: Duration = Duration::from_secs(10);
/// How often to look for a slave that is opened again while nobody has it open.
const HUNG_UP: Duration = Duration::from_millis(200);

/// The runtime's end of a socket pair over which the master comes, and later the master itself.
#[derive(Debug)]
pub struct Relay {
    receiver: OwnedFd,
    sender: OwnedFd,
}

impl Relay {
    /// Makes the socket pair, before the process is made.
    ///
    /// # Errors
    /// The errno of socketpair(2).
    pub fn new() -> std::io::Result<Relay> {
        let kind = SocketType::STREAM;
        let (receiver, sender) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
        Ok(Relay { receiver, sender })
    }

    /// The end over which the container's side sends the master.
    #[must_use]
    pub fn sender(&self) -> BorrowedFd<'_> {
        self.sender.as_fd()
    }

    /// Copies until child `pid` exits and gives its exit code. Other signals than those that are about the
    /// terminal are passed on; those of `blocked` must be blocked since before the child was made.
    ///
    /// # Errors
    /// No master came, or poll(2), signalfd(2) failed.
    pub fn until_exit(
        self,
        pid: i32,
        pidfd: BorrowedFd<'_>,
        blocked: &SignalSet,
    ) -> std::io::Result<i32> {
        drop(self.sender);
        let (_, master) = receive_descriptor(self.receiver.as_fd(), &mut [0; 64])?;
        let master = master.ok_or_else(|| std::io::Error::other("no terminal came"))?;
        rustix::io::ioctl_fionbio(&master, true)?;
        let host = HostTerminal::find();
        let mut copy = Copy::new(master);
        copy.resize(host.as_ref());
        let signals = signal_descriptor(blocked)?;
        loop {
            if let Some(code) = reap(pid) {
                copy.finish();
                return Ok(code);
            }
            copy.step(&signals)?;
            while let Some(signal) = read_signal(signals.as_fd())? {
                match signal {
                    libc::SIGWINCH => copy.resize(host.as_ref()),
                    // The runtime's own: its child, its writes, its place behind another foreground process.
                    libc::SIGCHLD
                    | libc::SIGPIPE
                    | libc::SIGURG
                    | libc::SIGTTIN
                    | libc::SIGTTOU => {}
                    other => {
                        // It may have ended meanwhile; the next round sees that.
                        let _ = send_signal(pidfd, other);
                    }
                }
            }
        }
    }
}

/// The terminal the caller sits at; its modes are those it had when this is dropped.
struct HostTerminal {
    stream: BorrowedFd<'static>,
    modes: Option<Termios>,
}

impl HostTerminal {
    /// The first of the standard streams that is a terminal. Its modes change only when it is what the
    /// caller types at, and this process is the one it belongs to.
    fn find() -> Option<HostTerminal> {
        let streams = [stdin(), stderr(), stdout()];
        let stream = streams.into_iter().find(IsTerminal::is_terminal)?;
        let own_group = rustix::process::getpgrp();
        let is_foreground = tcgetpgrp(stream).is_ok_and(|group| group == own_group);
        let modes = (stdin().is_terminal() && is_foreground)
            .then(|| tcgetattr(stream).ok())
            .flatten();
        if let Some(modes) = &modes {
            let mut raw = modes.clone();
            raw.make_raw();
            // Newlines come as the program wrote them, see `open_terminal`: this side adds the return.
            let output = modes.output_modes & (OutputModes::OPOST | OutputModes::ONLCR);
            raw.output_modes |= output;
            let _ = tcsetattr(stream, OptionalActions::Now, &raw);
        }
        Some(HostTerminal { stream, modes })
    }
}

impl Drop for HostTerminal {
    fn drop(&mut self) {
        if let Some(modes) = &self.modes {
            // Ignored: the terminal may be gone.
            let _ = tcsetattr(self.stream, OptionalActions::Now, modes);
        }
    }
}

/// What is on its way, and which ends are still there.
struct Copy {
    /// `None` once the caller's output is gone.
    master: Option<OwnedFd>,
    /// Nobody has the slave open at the moment.
    hung_up: bool,
    input_open: bool,
    input: Vec<u8>,
    output: Vec<u8>,
}

impl Copy {
    fn new(master: OwnedFd) -> Copy {
        Copy {
            master: Some(master),
            hung_up: false,
            input_open: true,
            input: Vec::new(),
            output: Vec::new(),
        }
    }

    fn resize(&self, host: Option<&HostTerminal>) {
        if let (Some(master), Some(host)) = (&self.master, host)
            && let Ok(size) = tcgetwinsize(host.stream)
            && (size.ws_row, size.ws_col) != (0, 0)
        {
            // Ignored: the process may just have ended.
            let _ = tcsetwinsize(master, size);
        }
    }

    /// Waits for the next thing to do, and does it.
    fn step(&mut self, signals: &OwnedFd) -> std::io::Result<()> {
        let mut wanted = vec![(Side::Signals, PollFd::new(signals, PollFlags::IN))];
        let (stdin, stdout) = (stdin(), stdout());
        if self.input_open && self.input.is_empty() && self.master.is_some() {
            wanted.push((Side::Stdin, PollFd::new(&stdin, PollFlags::IN)));
        }
        if !self.output.is_empty() {
            wanted.push((Side::Stdout, PollFd::new(&stdout, PollFlags::OUT)));
        }
        if let Some(master) = self.master.as_ref().filter(|_| !self.hung_up) {
            let mut events = PollFlags::empty();
            events.set(PollFlags::IN, self.output.is_empty());
            events.set(PollFlags::OUT, !self.input.is_empty());
            // A hang-up is told even when nothing is asked for: not while output still waits.
            if !events.is_empty() {
                wanted.push((Side::Master, PollFd::new(master, events)));
            }
        }
        let (sides, mut polled): (Vec<Side>, Vec<PollFd<'_>>) = wanted.into_iter().unzip();
        let patience = self.hung_up.then_some(timespec(HUNG_UP));
        match poll(&mut polled, patience.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let ready: Vec<Side> = sides
            .into_iter()
            .zip(&polled)
            .filter(|(_, fd)| !fd.revents().is_empty())
            .map(|(side, _)| side)
            .collect();
        self.hung_up = false;
        for side in ready {
            match side {
                Side::Signals => {}
                Side::Stdin => self.read_input(),
                Side::Stdout => self.write_output(),
                Side::Master => {
                    self.read_master();
                    self.write_master();
                }
            }
        }
        Ok(())
    }

    fn read_input(&mut self) {
        self.input = match read_chunk(stdin()) {
            Ok(bytes) => bytes,
            // Somebody else who reads it was faster.
            Err(Errno::AGAIN) => return,
            // A terminal of which this process is in the background, for one.
            Err(_) => Vec::new(),
        };
        self.input_open = !self.input.is_empty();
    }

    fn write_output(&mut self) {
        match rustix::io::write(stdout(), &self.output) {
            Ok(written) => drop(self.output.drain(..written)),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => {
                // Order: the master is closed last, then the process hears of it.
                self.output.clear();
                self.master = None;
            }
        }
    }

    /// Takes output while there is room; whether some came.
    fn read_master(&mut self) -> bool {
        let Some(master) = self.master.as_ref().filter(|_| self.output.is_empty()) else {
            return false;
        };
        match read_chunk(master.as_fd()) {
            Ok(bytes) => self.output = bytes,
            Err(Errno::AGAIN | Errno::INTR) => return false,
            Err(_) => self.hung_up = true,
        }
        !self.output.is_empty()
    }

    fn write_master(&mut self) {
        let Some(master) = self.master.as_ref().filter(|_| !self.input.is_empty()) else {
            return;
        };
        match rustix::io::write(master, &self.input) {
            Ok(written) => drop(self.input.drain(..written)),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.input.clear(),
        }
    }

    /// Copies what the terminal still holds. Another process may have it open: the end is when nothing comes.
    fn finish(&mut self) {
        let deadline = Instant::now() + LAST_WRITES;
        while Instant::now() < deadline && self.master.is_some() {
            if !self.output.is_empty() {
                if wait_for(stdout(), PollFlags::OUT, LAST_OUTPUT) {
                    self.write_output();
                }
                continue;
            }
            let master = self.master.as_ref().map(AsFd::as_fd);
            let readable = master.is_some_and(|fd| wait_for(fd, PollFlags::IN, LAST_OUTPUT));
            if !readable || !self.read_master() {
                return;
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Side {
    Signals,
    Stdin,
    Stdout,
    Master,
}

fn read_chunk(fd: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    let mut chunk = vec![0; CHUNK];
    let length = rustix::io::retry_on_intr(|| rustix::io::read(fd, chunk.as_mut_slice()))?;
    chunk.truncate(length);
    Ok(chunk)
}
