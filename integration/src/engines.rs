//! A private place for foreign engines (podman, containerd, docker, conmon) to drive `runc-lite` in.
//!
//! What these programs keep at fixed places (`/run`, `/dev/shm`) is covered by empty file systems of the
//! test's own mount namespace, so that engines of several tests, or of the machine, never meet.

pub mod containerd;
pub mod docker;
pub mod podman;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MsFlags, mount};
use serde_json::json;

use crate::binaries;
use crate::children::{self, Finished};
use crate::eventually::poll;
use crate::guard::{self, Need, find_program};
use crate::images::{Compression, Image, busybox};
use crate::isolate::isolate;
use crate::lab::Ground;
use crate::leakcheck::{self, Snapshot};

/// What every test with a foreign engine needs.
const NEEDS: &[Need] = &[
    Need::Root,
    Need::Program("ip"),
    Need::Program("nft"),
    Need::Program("busybox"),
];

/// Engines of one process follow each other: the process tree is one of the oracles.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The image every engine is given: busybox, its applets and some users.
pub const IMAGE: &str = "docker.io/axil/busybox:1";

/// The place.
#[derive(Debug)]
pub struct EngineLab {
    ground: Ground,
    runtime: PathBuf,
    before: Snapshot,
    _turn: std::sync::MutexGuard<'static, ()>,
}

impl EngineLab {
    /// Opens the place for a test that needs `needs` besides the usual, or prints why it cannot run here.
    ///
    /// # Panics
    /// When it must open (see [`guard::ready`]) or cannot be set up.
    #[must_use]
    pub fn open(needs: &[Need]) -> Option<Self> {
        let ready = guard::ready(NEEDS) && guard::ready(needs);
        ready.then(|| {
            Self::set_up().unwrap_or_else(|error| panic!("set up the engine's place: {error:#}"))
        })
    }

    fn set_up() -> Result<Self> {
        let turn = ONE_AT_A_TIME
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        // Order: cargo may need the network and the /run of the machine, so the binary comes first.
        let runtime = binaries::static_runtime()?;
        isolate()?;
        for (place, mode) in [("/run", "mode=755"), ("/dev/shm", "mode=1777")] {
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            mount(Some("tmpfs"), place, Some("tmpfs"), flags, Some(mode))
                .with_context(|| format!("cover {place}"))?;
        }
        children::adopt_orphans()?;
        let ground = Ground::claim("e")?;
        ground.clear_on_signal();
        let before = Snapshot::take(&ground)?;
        Ok(Self {
            ground,
            runtime,
            before,
            _turn: turn,
        })
    }

    /// The directory everything of this test is below.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.ground.dir()
    }

    /// The cgroup every container is put below.
    #[must_use]
    pub fn cgroup(&self) -> &str {
        self.ground.cgroup()
    }

    /// The OCI runtime under test.
    #[must_use]
    pub fn runtime(&self) -> &Path {
        &self.runtime
    }

    /// The files of the image as one archive.
    ///
    /// # Errors
    /// When busybox is missing or the file cannot be written.
    pub fn rootfs_archive(&self) -> Result<PathBuf> {
        let path = self.dir().join("rootfs.tar");
        if !path.exists() {
            let packed = busybox::base(Compression::Plain)?.pack()?;
            fs::write(&path, packed.bytes).with_context(|| format!("write {}", path.display()))?;
        }
        Ok(path)
    }

    /// The image as an OCI archive.
    ///
    /// # Errors
    /// When busybox is missing or the files cannot be written.
    pub fn image_archive(&self) -> Result<PathBuf> {
        let path = self.dir().join("image.tar");
        if path.exists() {
            return Ok(path);
        }
        let image = Image::build(
            &json!({ "Env": ["PATH=/bin:/sbin"], "Cmd": ["sh"] }),
            &[busybox::base(Compression::Plain)?],
        )?;
        let layout = self.dir().join("layout");
        image.write_layout(&layout, IMAGE)?;
        let file = fs::File::create(&path).with_context(|| format!("create {}", path.display()))?;
        let mut archive = tar::Builder::new(file);
        archive
            .append_dir_all(".", &layout)
            .and_then(|()| archive.finish())
            .with_context(|| format!("pack {}", layout.display()))?;
        Ok(path)
    }

    /// Fails the test if the engine, which removed its containers, left anything.
    ///
    /// # Panics
    /// When something is left; the message lists it.
    pub fn close(self) {
        let mut left = Vec::new();
        poll(std::time::Duration::from_secs(5), || {
            left = leakcheck::look(&self.ground, &self.before, None);
            // Parts of the engine, not of a container; they go with the ground: the cgroup podman moves
            // conmon to, and the mount of its overlay driver on itself.
            left.retain(|line| {
                !(line.starts_with("cgroup ") && line.ends_with("/conmon")
                    || line.starts_with("mount ") && line.ends_with("/root/overlay"))
            });
            left.is_empty().then_some(())
        });
        assert!(left.is_empty(), "left behind:\n  {}", left.join("\n  "));
    }
}

/// What a command of an engine printed and how it ended, for assertions.
#[derive(Debug)]
pub struct Answer {
    /// The command line.
    pub asked: String,
    /// Exit code; 128 and more for signals.
    pub code: i32,
    /// Standard output, trimmed.
    pub out: String,
    /// Standard error, trimmed.
    pub err: String,
}

impl Answer {
    fn of(asked: String, done: &Finished) -> Self {
        use std::os::unix::process::ExitStatusExt as _;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        Self {
            asked,
            code: done
                .status
                .code()
                .unwrap_or_else(|| 128 + done.status.signal().unwrap_or_default()),
            out: text(&done.stdout),
            err: text(&done.stderr),
        }
    }

    /// Standard output of a command that succeeded.
    ///
    /// # Panics
    /// When it failed.
    #[track_caller]
    #[must_use]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{}\n{}\n{}", self.asked, self.out, self.err);
        self.out
    }

    /// Checks the exit code, and that `words` are in what was printed.
    ///
    /// # Panics
    /// When either is not so.
    #[track_caller]
    pub fn fails(self, code: i32, words: &str) {
        let said = format!("{}\n{}", self.out, self.err);
        assert_eq!(self.code, code, "{}\n{said}", self.asked);
        assert!(
            said.contains(words),
            "{}: {words:?} is not in {said}",
            self.asked
        );
    }
}

/// Runs a command of an engine with a bound; `input` goes to its standard input.
fn ask(command: &Command, input: &[u8]) -> Answer {
    let (mut bounded, asked) = bounded(command);
    let done =
        children::output(&mut bounded, input).unwrap_or_else(|error| panic!("{asked}: {error:#}"));
    Answer::of(asked, &done)
}

/// The command with a bound, and its words: an engine that waits for ever must not take the test run
/// with it.
fn bounded(command: &Command) -> (Command, String) {
    let mut bounded = Command::new("timeout");
    bounded
        .args(["--kill-after=5", "90"])
        .arg(command.get_program());
    bounded.args(command.get_args());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => bounded.env(key, value),
            None => bounded.env_remove(key),
        };
    }
    let asked = bounded
        .get_args()
        .map(|arg| arg.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ");
    (bounded, asked)
}

/// Runs a command on a terminal of its own (script(1)) and answers what appeared there.
fn ask_on_terminal(command: &Command) -> Answer {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let line: Vec<String> = words.map(quoted).collect();
    let mut script = Command::new("script");
    script.args([
        "--quiet",
        "--return",
        "--command",
        &line.join(" "),
        "/dev/null",
    ]);
    for (key, value) in command.get_envs() {
        if let Some(value) = value {
            script.env(key, value);
        }
    }
    // script passes an end of input on, and on a busy machine podman then loses what a short program
    // said (7 runs of 24; none of 48 without it): its connection to conmon is reset, probably, when
    // conmon ends with that input unread.
    let (mut bounded, asked) = bounded(&script);
    let done = children::output_without_end_of_input(&mut bounded)
        .unwrap_or_else(|error| panic!("{asked}: {error:#}"));
    Answer::of(asked, &done)
}

/// One word of a shell's command line.
fn quoted(word: &OsStr) -> String {
    format!("'{}'", word.to_string_lossy().replace('\'', r"'\''"))
}

/// The program, or an error that names it.
fn program(name: &str) -> Result<PathBuf> {
    let found = find_program(name);
    ensure!(found.is_some(), "{name} is not installed");
    Ok(found.unwrap_or_default())
}
