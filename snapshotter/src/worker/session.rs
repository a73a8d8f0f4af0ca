//! One layer unpacked by an unpack process, from this side: the blob goes out, attributes are set on request,
//! what was applied comes back.
//!
//! The far side is treated as if the image spoke: every path and number is checked, and what it may say is
//! bounded by the limits of the layer.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::fs::{FileType, OFlags, XattrFlags, fcntl_getfl, fstat, setxattr};
use rustix::io::Errno;

use super::frame::{Blame, Fault, FaultKind, Job, Order, Report, printable};
use super::process::{Process, describe};
use super::{Worker, WorkerError, wire};
use crate::confined::kind_of;
use crate::error::PathError;
use crate::layer::LayerError;
use crate::layer::apply::{Applied, ApplyError, Pending};
use crate::layer::attributes::OPAQUE;
use crate::layer::channel::Stopped;
use crate::layer::entry::keeps_xattr;
use crate::layer::limits::Limits;
use crate::layer::pipeline::{Outcome, Recipe};
use crate::layer::receive::Sink;
use crate::store::Growing;

/// How often it is looked whether the process still does something.
const LOOK: Duration = Duration::from_millis(500);
/// How long an ending process may take until it is killed, when how it ended is worth knowing.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Unpacks what `feed` gives, in a process of its own, into a snapshot directory with an empty directory `fs`.
/// When this returns the process is gone.
pub(crate) fn unpack(
    worker: &Worker,
    recipe: &Recipe,
    snapshot: &OwnedFd,
    growing: &Growing,
    feed: impl FnOnce(&mut dyn Sink) -> Result<(), Option<LayerError>>,
) -> Result<Outcome, LayerError> {
    let (process, ends) = Process::start(worker)?;
    let session = Session {
        process: &process,
        socket: &ends.socket,
        recipe,
        device: fstat(snapshot)
            .map_err(|error| PathError::new("stat", "the unpacked layer", error))?
            .st_dev,
        alive: Mutex::new(Instant::now()),
        is_fed: AtomicBool::new(false),
        has_stalled: AtomicBool::new(false),
        stall: worker.stall,
    };
    let start = Order::Start(Job::new(recipe));
    wire::send(&ends.socket, &start, Some(snapshot.as_fd()))
        .map_err(|error| session.died(&error))?;
    let pipe = ends.pipe;
    let (fed, heard) = thread::scope(|scope| {
        let listening = thread::Builder::new()
            .name("unpack-session".to_owned())
            .spawn_scoped(scope, || {
                let heard = session.listen(growing);
                // Whatever it said, it needs nothing any more; who feeds it sees the pipe's end.
                process.kill();
                heard
            });
        let listening = match listening {
            Ok(listening) => listening,
            Err(source) => {
                process.kill();
                return (Ok(()), Err(thread_failed(&source.to_string())));
            }
        };
        let mut sink = PipeSink {
            pipe,
            session: &session,
            spare: Vec::new(),
        };
        let fed = feed(&mut sink);
        drop(sink);
        match &fed {
            Ok(()) => session.is_fed.store(true, Ordering::Relaxed),
            // An end of the pipe would look like the end of the blob.
            Err(_) => process.kill(),
        }
        let heard = listening
            .join()
            .unwrap_or_else(|_| Err(thread_failed("panicked")));
        (fed, heard)
    });
    process.end(Duration::ZERO);
    match fed {
        // What is wrong with the bytes themselves comes first.
        Err(Some(error)) => Err(error),
        Ok(()) | Err(None) => heard,
    }
}

fn thread_failed(reason: &str) -> LayerError {
    LayerError::Thread {
        stage: "session",
        reason: reason.to_owned(),
    }
}

fn protocol(reason: &str) -> LayerError {
    let reason = printable(reason);
    WorkerError::Protocol { reason }.into()
}

/// What both threads of a session know.
struct Session<'a> {
    process: &'a Process,
    socket: &'a UnixStream,
    recipe: &'a Recipe,
    /// Where the layer lies.
    device: u64,
    /// When the process last took something or told something.
    alive: Mutex<Instant>,
    /// All bytes are in the pipe.
    is_fed: AtomicBool,
    has_stalled: AtomicBool,
    stall: Duration,
}

impl Session<'_> {
    fn is_alive(&self) {
        *self.alive.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// When patience ends.
    fn deadline(&self) -> Instant {
        *self.alive.lock().unwrap_or_else(PoisonError::into_inner) + self.stall
    }

    fn give_up(&self) {
        self.has_stalled.store(true, Ordering::Relaxed);
        self.process.kill();
    }

    /// Tells of a process that went away, or of what it said that cannot be read.
    fn died(&self, error: &io::Error) -> LayerError {
        if self.has_stalled.load(Ordering::Relaxed) {
            let seconds = self.stall.as_secs();
            return WorkerError::Stalled { seconds }.into();
        }
        if error.kind() == io::ErrorKind::InvalidData {
            return protocol(&error.to_string());
        }
        let status = describe(self.process.end(LAST_WORD));
        WorkerError::Died { status }.into()
    }

    /// Receives one report. Before everything is fed silence means nothing: the source may be slow, and whether
    /// the process takes what there is, the pipe tells.
    fn report(&self, is_ready: bool) -> Result<(Report, Option<OwnedFd>), LayerError> {
        loop {
            let look = Instant::now() + LOOK;
            match wire::wait(self.socket, PollFlags::IN, Some(look)) {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {}
                Err(error) => return Err(self.died(&error)),
            }
            let has_all = self.is_fed.load(Ordering::Relaxed) || !is_ready;
            if has_all && self.deadline() <= Instant::now() {
                self.give_up();
            }
            // The end of the socket is not waited for: who knows who holds it.
            if self.has_stalled.load(Ordering::Relaxed) {
                return Err(self.died(&io::Error::from(io::ErrorKind::TimedOut)));
            }
        }
        match wire::receive(self.socket, Some(Instant::now() + self.stall)) {
            Ok(Some(report)) => {
                self.is_alive();
                Ok(report)
            }
            Ok(None) => Err(self.died(&io::Error::other("gone"))),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                self.give_up();
                Err(self.died(&error))
            }
            Err(error) => Err(self.died(&error)),
        }
    }

    fn listen(&self, growing: &Growing) -> Result<Outcome, LayerError> {
        match self.report(false)? {
            (Report::Ready { .. }, None) => {}
            (Report::Failed(fault), None) => return Err(self.fault(fault)),
            _ => return Err(protocol("a report before it was ready")),
        }
        let limits = &self.recipe.limits;
        let mut collected = Collected::default();
        let mut inflated = 0_u64;
        let mut attributes = 0_u64;
        loop {
            match self.report(true)? {
                (Report::Inflated(total), None) => {
                    // It has to go up and end somewhere, or this could go on for ever.
                    if total <= inflated || total > limits.unpacked_bytes {
                        return Err(protocol("a count of inflated bytes that cannot be"));
                    }
                    inflated = total;
                    growing.set_bytes(total);
                }
                (Report::Attribute { name, value }, Some(node)) => {
                    attributes += 1;
                    if attributes > attributes_max(limits) {
                        return Err(protocol("more attributes than a layer can have"));
                    }
                    let name = name.bytes().map_err(|reason| protocol(&reason))?;
                    let value = value.bytes().map_err(|reason| protocol(&reason))?;
                    let set = self.set_attribute(&node, &name, &value)?;
                    let answer = Order::Attribute(set.map_or_else(Errno::raw_os_error, |()| 0));
                    wire::send(self.socket, &answer, None).map_err(|error| self.died(&error))?;
                }
                (
                    Report::Done {
                        opaque_root,
                        archive_bytes,
                    },
                    None,
                ) => {
                    if archive_bytes.is_some_and(|bytes| bytes > limits.unpacked_bytes) {
                        return Err(protocol("an archive larger than its limit"));
                    }
                    return Ok(Outcome {
                        applied: Applied {
                            pending: Pending {
                                implied: collected.implied,
                                links: collected.links,
                            },
                            opaque_root,
                            moves: collected.moves,
                        },
                        archive_bytes,
                    });
                }
                (Report::Failed(fault), None) => return Err(self.fault(fault)),
                (report, None) => collected
                    .add(report, limits)
                    .map_err(|reason| protocol(&reason))?,
                (_, Some(_)) => return Err(protocol("a descriptor that was not asked for")),
            }
        }
    }

    /// Sets an attribute only CAP_SYS_ADMIN may set, on a file of the layer.
    fn set_attribute(
        &self,
        node: &OwnedFd,
        name: &[u8],
        value: &[u8],
    ) -> Result<rustix::io::Result<()>, LayerError> {
        let stat = fstat(node).map_err(|error| protocol(&format!("a descriptor: {error}")))?;
        // A process in a mount namespace with one mount can open no file of another disk.
        if stat.st_dev != self.device {
            return Err(protocol("an attribute for a file outside the layer"));
        }
        let kind = kind_of(&stat);
        let is_opaque = name == OPAQUE.as_bytes() && value == b"y" && kind == FileType::Directory;
        if name.contains(&0) || !(is_opaque || keeps_xattr(name, true)) {
            return Err(protocol("an attribute that images cannot have"));
        }
        Ok(set_by_descriptor(node, name, value))
    }

    fn fault(&self, fault: Fault) -> LayerError {
        let text = printable(&fault.text);
        let recipe = self.recipe;
        match fault.kind {
            FaultKind::DiffId(found) => match found.parse() {
                Ok(found) => LayerError::DiffId {
                    expected: recipe.diff_id.clone(),
                    found,
                },
                Err(error) => protocol(&format!("a diff id: {error}")),
            },
            FaultKind::Inflate => LayerError::Inflate {
                blob: recipe.blob.clone(),
                compression: recipe.compression,
                source: io::Error::new(io::ErrorKind::InvalidData, text),
            },
            FaultKind::Apply(blame) => self.apply_error(blame, text),
            FaultKind::Process => WorkerError::Told { reason: text }.into(),
        }
    }

    fn apply_error(&self, blame: Blame, reason: String) -> LayerError {
        LayerError::Apply {
            diff_id: self.recipe.diff_id.clone(),
            source: ApplyError::Told {
                class: blame.class(),
                reason,
            },
        }
    }
}

/// As many as there can be names, a few for each.
fn attributes_max(limits: &Limits) -> u64 {
    limits.entries.saturating_mul(4)
}

/// Goes through procfs, which also serves descriptors that are open for nothing (`O_PATH`).
fn set_by_descriptor(node: &OwnedFd, name: &[u8], value: &[u8]) -> rustix::io::Result<()> {
    // A descriptor for anything but its place would make the path below mean something else.
    if !fcntl_getfl(node)?.contains(OFlags::PATH) {
        return rustix::fs::fsetxattr(node, name, value, XattrFlags::empty());
    }
    let path = format!("/proc/self/fd/{}", node.as_raw_fd());
    setxattr(&*path, name, value, XattrFlags::empty())
}

/// What was said of a layer so far.
#[derive(Default)]
struct Collected {
    implied: Vec<crate::layer::entry::LayerPath>,
    links: Vec<(
        crate::layer::entry::LayerPath,
        crate::layer::entry::LayerPath,
    )>,
    moves: Vec<crate::layer::moves::Move>,
    bytes: usize,
}

impl Collected {
    fn add(&mut self, report: Report, limits: &Limits) -> Result<(), String> {
        match report {
            Report::Implied(paths) => {
                for path in paths {
                    self.charge(path.length(), limits)?;
                    self.implied.push(path.path()?);
                }
            }
            Report::Links(links) => {
                for (link, target) in links {
                    self.charge(link.length() + target.length(), limits)?;
                    let link = link.path()?;
                    let target = target.path()?;
                    if link.is_root() || target.is_root() {
                        return Err("a hard link that is the root".to_owned());
                    }
                    self.links.push((link, target));
                }
            }
            Report::Moves(moves) => {
                for made in moves {
                    self.charge(0, limits)?;
                    let made = made.read()?;
                    self.charge(made.from.as_bytes().len(), limits)?;
                    self.moves.push(made);
                }
            }
            other => return Err(format!("{other:?} out of place")),
        }
        Ok(())
    }

    /// Counts what has to stay in memory, as the process on the other side does.
    fn charge(&mut self, hex: usize, limits: &Limits) -> Result<(), String> {
        self.bytes += hex / 2 + 64;
        // The other side counts the same with what it has to forget.
        if self.bytes > limits.remembered_bytes.saturating_mul(2) {
            return Err("more names than a layer can have".to_owned());
        }
        Ok(())
    }
}

/// Reads a report as [`Session::listen`] does, for `fuzzing.rs`: the paths it would be believed.
pub(crate) fn fuzzed_report(bytes: &[u8]) -> Vec<Vec<u8>> {
    let Ok(report) = serde_json::from_slice::<Report>(bytes) else {
        return Vec::new();
    };
    let mut collected = Collected::default();
    if collected.add(report, &Limits::default()).is_err() {
        return Vec::new();
    }
    let links = collected.links.into_iter().flat_map(|(a, b)| [a, b]);
    let moves = collected.moves.into_iter().map(|made| made.from);
    let paths = collected.implied.into_iter().chain(links).chain(moves);
    paths.map(|path| path.as_bytes().to_vec()).collect()
}

/// The way of the blob's bytes to the process.
struct PipeSink<'a> {
    pipe: OwnedFd,
    session: &'a Session<'a>,
    spare: Vec<u8>,
}

impl Sink for PipeSink<'_> {
    fn buffer(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.spare)
    }

    fn send(&mut self, bytes: Vec<u8>) -> Result<(), Stopped> {
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            match rustix::io::write(&self.pipe, rest) {
                Ok(amount) => rest = &rest[amount..],
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait()?,
                // It is gone, and the other thread knows why.
                Err(_) => return Err(Stopped),
            }
        }
        self.spare = bytes;
        Ok(())
    }
}

impl PipeSink<'_> {
    /// Waits until the process takes something.
    fn wait(&self) -> Result<(), Stopped> {
        loop {
            let deadline = self.session.deadline();
            match wire::wait(&self.pipe, PollFlags::OUT, Some(deadline)) {
                Ok(()) => {
                    self.session.is_alive();
                    return Ok(());
                }
                // It may have told something in the meantime.
                Err(_) if self.session.deadline() > deadline => {}
                Err(_) => {
                    self.session.give_up();
                    return Err(Stopped);
                }
            }
        }
    }
}
