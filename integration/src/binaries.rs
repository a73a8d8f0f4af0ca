//! Builds the binaries a node consists of, into one directory: the daemon finds the others beside itself.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use nix::fcntl::{Flock, FlockArg};

use crate::children;

/// Environment variable naming a directory with the three binaries, built beforehand.
pub const BIN_DIR: &str = "AXIL_BIN_DIR";

/// What the binaries are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A daemon for tests: debug, with fail points.
    Test,
    /// A daemon as operators run it: release, without fail points.
    Run,
}

/// The three binaries, in one directory.
#[derive(Debug, Clone)]
pub struct Binaries {
    dir: PathBuf,
}

impl Binaries {
    /// The binaries for tests: those of [`BIN_DIR`], or built now, once per process tree at a time.
    ///
    /// # Errors
    /// When one is missing or does not build.
    pub fn for_tests() -> Result<Self> {
        match env::var_os(BIN_DIR) {
            Some(dir) => Self::at(Path::new(&dir)),
            None => Self::build(Purpose::Test),
        }
    }

    /// Binaries that lie in `dir`.
    ///
    /// # Errors
    /// When one is missing.
    pub fn at(dir: &Path) -> Result<Self> {
        for name in ["axild", "containerd-shim-axil-v1", "runc-lite"] {
            let path = dir.join(name);
            if !path.is_file() {
                bail!(
                    "{} does not exist ({BIN_DIR} names its directory)",
                    path.display()
                );
            }
        }
        Ok(Self {
            dir: dir.to_owned(),
        })
    }

    /// Builds the shim and the OCI runtime static and small, and the daemon as `purpose` asks.
    ///
    /// # Errors
    /// When cargo fails.
    pub fn build(purpose: Purpose) -> Result<Self> {
        let target = target_dir()?;
        let dir = target.join(match purpose {
            Purpose::Test => "axil-test-bin",
            Purpose::Run => "axil-run-bin",
        });
        fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let _lock = lock(&dir.join(".lock"))?;
        let triple = format!("{}-unknown-linux-musl", env::consts::ARCH);
        cargo(&[
            "--profile",
            "small",
            "--target",
            &triple,
            "-p",
            "containerd-shim-axil-v1",
            "-p",
            "runc-lite",
        ])?;
        let small = target.join(&triple).join("small");
        install(&small.join("containerd-shim-axil-v1"), &dir)?;
        install(&small.join("runc-lite"), &dir)?;
        match purpose {
            Purpose::Test => {
                cargo(&["-p", "axild", "--features", "failpoints"])?;
                install(&target.join("debug/axild"), &dir)?;
            }
            Purpose::Run => {
                cargo(&["--release", "-p", "axild"])?;
                install(&target.join("release/axild"), &dir)?;
            }
        }
        Self::at(&dir)
    }

    /// Where they lie.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The daemon.
    #[must_use]
    pub fn axild(&self) -> PathBuf {
        self.dir.join("axild")
    }

    /// The OCI runtime.
    #[must_use]
    pub fn runc_lite(&self) -> PathBuf {
        self.dir.join("runc-lite")
    }
}

/// The root of the workspace this package lies in.
#[must_use]
pub fn workspace() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package).to_owned()
}

/// Where cargo puts what it builds: this program lies in it.
fn target_dir() -> Result<PathBuf> {
    if let Some(dir) = env::var_os("CARGO_TARGET_DIR") {
        return Ok(workspace().join(dir));
    }
    let exe = env::current_exe().context("find this program")?;
    // target/<profile>/name or target/<profile>/deps/name
    let dir = exe
        .ancestors()
        .find(|dir| dir.join("CACHEDIR.TAG").is_file());
    dir.map(Path::to_owned)
        .with_context(|| format!("{} is in no target directory", exe.display()))
}

fn cargo(args: &[&str]) -> Result<()> {
    let program = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.current_dir(workspace()).arg("build").args(args);
    // What cargo sets for this program must not reach another package's build.
    for (key, _) in env::vars_os() {
        let name = key.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&key);
        }
    }
    let status = children::watch(&mut command)?;
    if !status.success() {
        bail!("cargo build {}: {status}", args.join(" "));
    }
    Ok(())
}

/// Puts a copy of `from` into `dir`, replacing atomically: an older copy may be running.
fn install(from: &Path, dir: &Path) -> Result<()> {
    let name = from.file_name().context("a binary has a name")?;
    let staged = dir.join(format!(".{}.new", name.to_string_lossy()));
    fs::copy(from, &staged).with_context(|| format!("copy {}", from.display()))?;
    let to = dir.join(name);
    fs::rename(&staged, &to).with_context(|| format!("install {}", to.display()))
}

fn lock(path: &Path) -> Result<Flock<File>> {
    let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, errno)| errno)
        .with_context(|| format!("lock {}", path.display()))
}
