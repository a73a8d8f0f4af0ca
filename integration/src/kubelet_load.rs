//! A load as kubelets make it: pods that come, restart their containers and go, asked for with deadlines that are
//! often too short, and then asked for again with the same request; a list every second, and one that listens.

mod listener;
mod pod;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::cri::{Answer, Cri};
use crate::say;
use listener::Heard;
use pod::Slot;
use tonic::Code;

/// How often the kubelet lists.
const RELIST: Duration = Duration::from_secs(1);

/// Tries of one request before it counts as never answered.
const TRIES: u32 = 50;

/// Tries that may have a deadline which is too short.
const HASTY: u32 = 4;

/// The deadline that is long enough.
const PATIENT: Duration = Duration::from_secs(120);

/// How much load, and for how long.
#[derive(Debug, Clone)]
pub struct Load {
    /// Pods at once, of two containers each.
    pub pods: usize,
    /// Time until no new pod is made.
    pub time: Duration,
    /// Threads that ask.
    pub workers: usize,
    /// Where deadlines and choices begin.
    pub seed: u64,
}

/// Where and with what.
#[derive(Debug, Clone)]
pub struct Place {
    /// Socket of the daemon.
    pub socket: PathBuf,
    /// Its process.
    pub pid: i32,
    /// An image with a shell.
    pub image: String,
    /// Directory of logs.
    pub logs: PathBuf,
}

/// What was seen.
#[derive(Debug, Default)]
pub struct Report {
    /// Calls made, lists apart.
    pub calls: u64,
    /// Those whose caller gave up, and asked again.
    pub given_up: u64,
    /// Pods that were run.
    pub pods: u64,
    /// Containers that were started.
    pub containers: u64,
    /// Events that came.
    pub events: usize,
    /// How long each round of lists took.
    pub lists: Vec<Duration>,
    /// CPU time of the daemon.
    pub cpu: Duration,
    /// How long it all took.
    pub wall: Duration,
    /// What must not be: a request refused, an exit code that is wrong, an event missing.
    pub problems: Vec<String>,
}

impl Report {
    /// The report in lines.
    #[must_use]
    pub fn text(&self) -> String {
        let mut lists = self.lists.clone();
        lists.sort_unstable();
        let at = |percent: usize| {
            let index = (lists.len() * percent / 100).min(lists.len().saturating_sub(1));
            lists.get(index).copied().unwrap_or_default()
        };
        let (p50, p99) = (at(50).as_secs_f64() * 1e3, at(99).as_secs_f64() * 1e3);
        let share = self.cpu.as_secs_f64() / self.wall.as_secs_f64().max(1e-9) * 100.0;
        format!(
            "{} pods, {} containers in {}; {} calls, {} given up and made again; {} events\n\
             {} lists of pods and containers: p50 {p50:.1} ms, p99 {p99:.1} ms\n\
             CPU of the daemon: {:.1} s, {share:.1} % of one processor\n\
             problems: {}",
            self.pods,
            self.containers,
            say::elapsed(self.wall),
            self.calls,
            self.given_up,
            self.events,
            self.lists.len(),
            self.cpu.as_secs_f64(),
            self.problems.len(),
        )
    }

    fn add(&mut self, other: Self) {
        self.calls += other.calls;
        self.given_up += other.given_up;
        self.pods += other.pods;
        self.containers += other.containers;
        self.lists.extend(other.lists);
        self.problems.extend(other.problems);
    }
}

/// Who asks: a client, its choices, and what it has seen.
struct Asker {
    cri: Cri,
    dice: fastrand::Rng,
    report: Report,
}

impl Asker {
    fn new(place: &Place, seed: u64) -> Result<Self> {
        Ok(Self {
            cri: Cri::new(&place.socket)?,
            dice: fastrand::Rng::with_seed(seed),
            report: Report::default(),
        })
    }

    /// Makes a call once, with a deadline that is long enough. `None` after a refusal.
    fn ask<T>(&mut self, what: &str, call: impl FnOnce(&Cri) -> Answer<T>) -> Option<T> {
        self.cri.set_deadline(PATIENT);
        self.report.calls += 1;
        let answer = call(&self.cri);
        answer
            .map_err(|status| self.report.problems.push(format!("{what}: {status}")))
            .ok()
    }

    /// Makes a call until it is answered, with the same request each time. `None` after a refusal.
    fn insist<T>(&mut self, what: &str, call: impl Fn(&Cri) -> Answer<T>) -> Option<T> {
        for number in 0..TRIES {
            let hasty = number < HASTY && self.dice.bool();
            let deadline = if hasty {
                Duration::from_millis(self.dice.u64(1..80))
            } else {
                PATIENT
            };
            self.cri.set_deadline(deadline);
            self.report.calls += 1;
            match call(&self.cri) {
                Ok(answer) => return Some(answer),
                Err(status) if hasty && is_impatience(status.code()) => {
                    self.report.given_up += 1;
                    thread::sleep(Duration::from_millis(self.dice.u64(0..20)));
                }
                Err(status) => {
                    let problem = format!("{what}, try {number}: {status}");
                    self.report.problems.push(problem);
                    return None;
                }
            }
        }
        let problem = format!("{what}: no answer after {TRIES} tries");
        self.report.problems.push(problem);
        None
    }
}

/// Whether the caller itself gave up.
fn is_impatience(code: Code) -> bool {
    matches!(code, Code::DeadlineExceeded | Code::Cancelled)
}

/// Runs the load, ends every pod it made, and compares the events with what was done.
///
/// # Errors
/// When a client cannot be made or the daemon is gone.
pub fn run(place: &Place, load: &Load) -> Result<Report> {
    let begun = Instant::now();
    let before = cpu_time(place.pid)?;
    let (over, done) = (AtomicBool::new(false), AtomicBool::new(false));
    let listening = AtomicBool::new(false);
    let mut report = Report::default();
    let heard = thread::scope(|scope| -> Result<Heard> {
        let listener = scope.spawn(|| listener::listen(place, &listening, &done));
        while !listening.load(Ordering::Acquire) && !listener.is_finished() {
            thread::sleep(Duration::from_millis(5));
        }
        let lister = scope.spawn(|| list(place, &done));
        let workers: Vec<_> = (0..load.workers)
            .map(|number| {
                let over = &over;
                scope.spawn(move || work(place, load, number, over))
            })
            .collect();
        let mut expected = Vec::new();
        while begun.elapsed() < load.time
            && !workers.iter().any(thread::ScopedJoinHandle::is_finished)
        {
            thread::sleep(Duration::from_millis(20));
        }
        over.store(true, Ordering::Release);
        let worked: Vec<_> = workers
            .into_iter()
            .map(|worker| joined("a worker", worker))
            .collect();
        // Order: before the first failure is returned, or the others would be waited for without an end.
        done.store(true, Ordering::Release);
        let listed = joined("the lister", lister);
        let heard = joined("the listener", listener);
        for part in worked {
            let (part, wanted) = part?;
            report.add(part);
            expected.extend(wanted);
        }
        report.add(listed?);
        let heard = heard?;
        report.problems.extend(heard.missing(&expected));
        Ok(heard)
    })?;
    report.events = heard.count();
    report.wall = begun.elapsed();
    report.cpu = cpu_time(place.pid)?.saturating_sub(before);
    Ok(report)
}

/// The result of a thread; a panic is an error.
fn joined<T>(who: &str, thread: thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    let result = thread.join();
    result.unwrap_or_else(|_| Err(anyhow::anyhow!("{who} panicked")))
}

/// One worker with its share of the pods; answers what it saw and the ids whose whole life must have been told.
fn work(
    place: &Place,
    load: &Load,
    number: usize,
    over: &AtomicBool,
) -> Result<(Report, Vec<String>)> {
    let seed = load.seed.wrapping_mul(1000).wrapping_add(number as u64);
    let mut asker = Asker::new(place, seed)?;
    let names = (number..load.pods).step_by(load.workers.max(1));
    let mut slots = Vec::new();
    for name in names {
        slots.push(Slot::new(place, &format!("load-{name}"))?);
    }
    while !over.load(Ordering::Acquire) {
        for slot in &mut slots {
            if over.load(Ordering::Acquire) {
                break;
            }
            slot.step(&mut asker, &place.image);
        }
        thread::sleep(Duration::from_millis(asker.dice.u64(0..50)));
    }
    let mut told = Vec::new();
    for mut slot in slots {
        slot.end(&mut asker);
        told.append(&mut slot.ended);
    }
    Ok((asker.report, told))
}

/// Lists as the kubelet does, and looks for two pods of one name.
fn list(place: &Place, done: &AtomicBool) -> Result<Report> {
    let cri = Cri::new(&place.socket)?.with_deadline(PATIENT);
    let mut report = Report::default();
    while !done.load(Ordering::Acquire) {
        let begun = Instant::now();
        let lists = cri
            .pods(None)
            .and_then(|pods| Ok((pods, cri.containers(None)?)));
        report.lists.push(begun.elapsed());
        match lists {
            Err(status) => report.problems.push(format!("a list: {status}")),
            Ok((pods, _)) => {
                let mut names: Vec<_> = pods
                    .iter()
                    .filter_map(|pod| pod.metadata.as_ref())
                    .map(|metadata| (&metadata.uid, metadata.attempt))
                    .collect();
                names.sort_unstable();
                for pair in names.windows(2).filter(|pair| pair[0] == pair[1]) {
                    report.problems.push(format!("listed twice: {:?}", pair[0]));
                }
            }
        }
        thread::sleep(RELIST.saturating_sub(begun.elapsed()));
    }
    Ok(report)
}

/// CPU time of a process so far, its children apart (`/proc/<pid>/stat`, fields 14 and 15, in ticks).
fn cpu_time(pid: i32) -> Result<Duration> {
    let path = PathBuf::from(format!("/proc/{pid}/stat"));
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let ticks = ticks(&text).with_context(|| format!("read {}: {text:?}", path.display()))?;
    let second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).context("ask for ticks")?;
    let second = u64::try_from(second.unwrap_or(100)).unwrap_or(100).max(1);
    Ok(Duration::from_millis(ticks * 1000 / second))
}

fn ticks(stat: &str) -> Option<u64> {
    // The name may have blanks and brackets; the last bracket ends it.
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ').skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// A directory for the logs of a pod.
fn log_directory(logs: &Path, pod: &str) -> Result<PathBuf> {
    let dir = logs.join(pod);
    std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_found_behind_any_name() {
        let stat = "1 (a) b) S 1 1 1 0 -1 4 5 6 7 8 30 12 0 0 20 0 1";
        assert_eq!(ticks(stat), Some(42));
        assert_eq!(ticks("1 (a"), None);
    }
}
