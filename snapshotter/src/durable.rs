//! The one way a file of the store comes into being: written aside, synced, renamed, directory synced. Who
//! writes many prepares them all, syncs the file system once, together with everybody else who commits at that
//! moment, and publishes them.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use rustix::fs::{AtFlags, Mode, OFlags, fsync, openat, renameat, unlinkat};

/// Names that start so are unfinished writes; opening the store deletes them.
pub(crate) const TMP_PREFIX: &str = ".tmp-";

/// Writes `bytes` to `name` in `dir` so that after a power cut the name has the old content or the
/// new one, never a part.
pub(crate) fn atomic_write(dir: impl AsFd, name: &str, bytes: &[u8]) -> io::Result<()> {
    let mut prepared = Prepared::write(dir.as_fd(), name, bytes)?;
    prepared.sync()?;
    prepared.publish()?;
    sync_dir(dir)
}

/// A file that is written and not visible. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct Prepared {
    dir: OwnedFd,
    tmp: String,
    name: String,
    is_published: bool,
}

impl Prepared {
    /// Writes `bytes` beside what will be `name` in `dir`. They are not durable yet.
    pub(crate) fn write(dir: impl AsFd, name: &str, bytes: &[u8]) -> io::Result<Self> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let prepared = Self {
            dir: dir.as_fd().try_clone_to_owned()?,
            tmp: format!("{TMP_PREFIX}{number}-{name}"),
            name: name.to_owned(),
            is_published: false,
        };
        create_new(&prepared.dir, &prepared.tmp)?.write_all(bytes)?;
        Ok(prepared)
    }

    /// Makes the bytes durable, for a file that is written alone.
    fn sync(&self) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(fsync(openat(&self.dir, &*self.tmp, flags, Mode::empty())?)?)
    }

    /// Gives the file its name. The bytes are durable by now; the caller syncs the directory.
    pub(crate) fn publish(&mut self) -> io::Result<()> {
        renameat(&self.dir, &*self.tmp, &self.dir, &*self.name)?;
        self.is_published = true;
        Ok(())
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        if !self.is_published {
            // Ignored: what stays is swept when the store is opened.
            let _ = unlinkat(&self.dir, &*self.tmp, AtFlags::empty());
        }
    }
}

/// Syncs once for all who ask at about the same time.
#[derive(Debug, Default)]
pub(crate) struct SyncGroup {
    rounds: Mutex<Rounds>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct Rounds {
    started: u64,
    finished: u64,
    /// The last round that failed and its error number.
    failed: Option<(u64, i32)>,
}

impl SyncGroup {
    /// Returns after a run of `sync` that began after this call. One caller runs it, the others wait for it; who
    /// comes while it runs waits for the next one, since its own writes may have been missed.
    pub(crate) fn sync(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut rounds = self.rounds.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = rounds.started + 1;
        while rounds.finished < mine && rounds.started > rounds.finished {
            rounds = self
                .ended
                .wait(rounds)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if rounds.finished < mine {
            rounds.started += 1;
            let round = rounds.started;
            drop(rounds);
            let outcome = sync();
            rounds = self.rounds.lock().unwrap_or_else(PoisonError::into_inner);
            rounds.finished = round;
            if let Err(error) = &outcome {
                rounds.failed = Some((round, error.raw_os_error().unwrap_or(0)));
            }
            self.ended.notify_all();
            return outcome;
        }
        // A later round that failed is taken for this one: better twice than never.
        match rounds.failed {
            Some((round, errno)) if round >= mine => Err(io::Error::from_raw_os_error(errno)),
            _ => Ok(()),
        }
    }
}

/// Writes a new file whose durability is the caller's business.
pub(crate) fn write_unsynced(dir: impl AsFd, name: &str, bytes: &[u8]) -> io::Result<()> {
    create_new(dir, name)?.write_all(bytes)
}

/// Makes names created, renamed or removed in `dir` durable.
pub(crate) fn sync_dir(dir: impl AsFd) -> io::Result<()> {
    // An O_PATH descriptor cannot be synced, so the directory is opened for reading.
    let readable: OwnedFd = openat(
        dir,
        ".",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    Ok(fsync(readable)?)
}

fn create_new(dir: impl AsFd, name: &str) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(File::from(openat(
        dir,
        name,
        flags,
        Mode::from_raw_mode(0o600),
    )?))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn who_comes_during_a_sync_shares_the_next_one() {
        let group = Arc::new(SyncGroup::default());
        let runs = Arc::new(AtomicUsize::new(0));
        let (entered, first_runs) = channel();
        let (release, go_on) = channel::<()>();
        let first = {
            let (group, runs) = (Arc::clone(&group), Arc::clone(&runs));
            std::thread::spawn(move || {
                group.sync(|| {
                    runs.fetch_add(1, Ordering::SeqCst);
                    entered.send(()).unwrap();
                    go_on.recv().unwrap();
                    Ok(())
                })
            })
        };
        first_runs.recv().unwrap();
        let waiting: Vec<_> = (0..8)
            .map(|_| {
                let (group, runs) = (Arc::clone(&group), Arc::clone(&runs));
                std::thread::spawn(move || {
                    group.sync(|| {
                        runs.fetch_add(1, Ordering::SeqCst);
                        Err(io::Error::from_raw_os_error(5))
                    })
                })
            })
            .collect();
        while Arc::strong_count(&group) < 10 {
            std::thread::yield_now();
        }
        release.send(()).unwrap();
        first.join().unwrap().unwrap();
        for waiting in waiting {
            // Whoever failed to sync for the others failed for all of them.
            assert_eq!(waiting.join().unwrap().unwrap_err().raw_os_error(), Some(5));
        }
        let runs = runs.load(Ordering::SeqCst);
        assert!((2..=9).contains(&runs), "{runs}");
        assert!(group.sync(|| Ok(())).is_ok());
    }
}
