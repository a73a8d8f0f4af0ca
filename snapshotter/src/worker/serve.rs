//! The unpack process from inside: it gets a directory and a recipe, shuts itself in, and works.

use std::io::{self, BufReader};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::stdio::{stdin, stdout};

use super::frame::{BATCH, Blame, Fault, FaultKind, Hex, MoveFrame, Order, Report};
use super::{NAME, cage, wire};
use crate::layer::LayerError;
use crate::layer::apply::Applied;
use crate::layer::attributes::{Direct, Node, SetAttribute};
use crate::layer::channel::CHUNK;
use crate::layer::limits::Limits;
use crate::layer::pipeline::{self, Outcome, Recipe};

/// Memory besides what a layer's limits account for: stacks and buffers of two threads.
const MEMORY: u64 = 96 << 20;

/// Inflated bytes from one report to the next: each wakes a thread of the other process.
const STEP: u64 = 1 << 20;

/// Tells whether this program was started to be the unpack process.
#[must_use]
pub fn is_asked_for() -> bool {
    std::env::args_os().next().is_some_and(|name| name == NAME)
}

/// Is the unpack process, with the pipe and the socket it was started with.
#[must_use]
pub fn main() -> ExitCode {
    // Should the parent be gone already, the socket has ended.
    let orphaned = set_parent_process_death_signal(Some(Signal::KILL));
    match orphaned.map_err(io::Error::from).and_then(|()| serve()) {
        Ok(()) => ExitCode::SUCCESS,
        // Nobody is there to be told.
        Err(_) => ExitCode::FAILURE,
    }
}

fn serve() -> io::Result<()> {
    cage::close_the_rest()?;
    let socket = socket();
    let Some((Order::Start(job), Some(snapshot))) = wire::receive(socket, None)? else {
        return Err(io::Error::from(io::ErrorKind::InvalidData));
    };
    let prepared = job.recipe().map_err(io::Error::other).and_then(|recipe| {
        cage::limit(memory_for(&recipe.limits))?;
        let (inside, cage) = cage::enter(snapshot)?;
        Ok((recipe, inside, cage))
    });
    let (recipe, inside, cage) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            let fault = Fault::new(FaultKind::Process, &error);
            return wire::send(socket, &Report::Failed(fault), None);
        }
    };
    let ready = Report::Ready {
        landlock: cage.landlock,
    };
    wire::send(socket, &ready, None)?;
    let teller = Teller::default();
    let last = match work(&recipe, inside, &teller) {
        Ok(Outcome {
            applied,
            archive_bytes,
        }) => {
            let opaque_root = applied.opaque_root;
            teller.applied(applied)?;
            Report::Done {
                opaque_root,
                archive_bytes,
            }
        }
        Err(error) => Report::Failed(fault(&error)),
    };
    teller.tell(&last, None)
}

fn socket() -> BorrowedFd<'static> {
    stdout()
}

/// The largest window of a decoder, what is remembered of names (again while it is told), and what is always
/// needed.
fn memory_for(limits: &Limits) -> u64 {
    let names = u64::try_from(limits.remembered_bytes).unwrap_or(u64::MAX);
    MEMORY
        .saturating_add(limits.zstd_window)
        .saturating_add(names.saturating_mul(2))
}

fn work(recipe: &Recipe, inside: OwnedFd, teller: &Teller) -> Result<Outcome, LayerError> {
    let input = stdin().try_clone_to_owned().map_err(|source| {
        crate::error::PathError::new("read", "the pipe of the unpack process", source)
    })?;
    let input = BufReader::with_capacity(CHUNK, std::fs::File::from(input));
    let told = AtomicU64::new(0);
    let progress = |total| {
        // Only one thread comes here.
        if total - told.load(Ordering::Relaxed) >= STEP {
            told.store(total, Ordering::Relaxed);
            // Ignored: when nobody listens any more the process is about to be killed.
            let _ = teller.tell(&Report::Inflated(total), None);
        }
    };
    pipeline::run(
        recipe,
        input,
        inside,
        &progress,
        Box::new(Asking { teller }),
    )
}

fn fault(error: &LayerError) -> Fault {
    match error {
        LayerError::DiffId { found, .. } => Fault::new(FaultKind::DiffId(found.to_string()), error),
        LayerError::Inflate { source, .. } => Fault::new(FaultKind::Inflate, source),
        LayerError::Apply { source, .. } => {
            Fault::new(FaultKind::Apply(Blame::of(source.class())), source)
        }
        other => Fault::new(FaultKind::Apply(Blame::of(other.class())), other),
    }
}

/// Speaks for all threads, one frame at a time.
#[derive(Debug, Default)]
struct Teller {
    speaking: Mutex<()>,
}

impl Teller {
    fn tell(&self, report: &Report, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let _turn = self.speaking.lock().unwrap_or_else(PoisonError::into_inner);
        wire::send(socket(), report, fd)
    }

    /// Tells what has to be known about the layer, in batches.
    fn applied(&self, applied: Applied) -> io::Result<()> {
        let implied = applied.pending.implied.iter().map(Hex::of);
        self.batches(implied, Hex::length, Report::Implied)?;
        let links = applied.pending.links.iter();
        let links = links.map(|(link, target)| (Hex::of(link), Hex::of(target)));
        let length = |(link, target): &(Hex, Hex)| link.length() + target.length();
        self.batches(links, length, Report::Links)?;
        let moves = applied.moves.iter().map(MoveFrame::new);
        self.batches(moves, MoveFrame::length, Report::Moves)
    }

    fn batches<T>(
        &self,
        items: impl Iterator<Item = T>,
        length: impl Fn(&T) -> usize,
        report: impl Fn(Vec<T>) -> Report,
    ) -> io::Result<()> {
        // What JSON adds to an item.
        const NOTATION: usize = 64;
        let mut batch = Vec::new();
        let mut bytes = 0;
        for item in items {
            bytes += length(&item) + NOTATION;
            batch.push(item);
            if bytes > BATCH {
                self.tell(&report(std::mem::take(&mut batch)), None)?;
                bytes = 0;
            }
        }
        if batch.is_empty() {
            return Ok(());
        }
        self.tell(&report(batch), None)
    }
}

/// Sets attributes where this process may, and asks for the others.
#[derive(Debug)]
struct Asking<'a> {
    teller: &'a Teller,
}

impl SetAttribute for Asking<'_> {
    fn set(&self, node: Node<'_>, name: &[u8], value: &[u8]) -> rustix::io::Result<()> {
        // Other names below `security.` and all below `trusted.` need CAP_SYS_ADMIN (xattr(7)).
        let is_free = name.starts_with(b"user.")
            || name.starts_with(b"system.")
            || name == b"security.capability";
        let fd = match node {
            Node::Open(fd) if is_free => return Direct.set(Node::Open(fd), name, value),
            Node::Open(fd) | Node::Unopenable(fd) => fd,
        };
        let report = Report::Attribute {
            name: Hex::new(name),
            value: Hex::new(value),
        };
        let gone = |_| Errno::PIPE;
        self.teller.tell(&report, Some(fd)).map_err(gone)?;
        // Only the thread that applies asks, so the next order is its answer.
        match wire::receive(socket(), None).map_err(gone)? {
            Some((Order::Attribute(0), None)) => Ok(()),
            Some((Order::Attribute(error), None)) => Err(Errno::from_raw_os_error(error)),
            _ => Err(Errno::PIPE),
        }
    }
}
