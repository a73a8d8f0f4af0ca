//! Builds the binaries a node consists of, into one directory: the daemon finds the others beside itself.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use serde_json::Value;

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
        let triple = static_target();
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

/// The OCI runtime alone, static: of [`BIN_DIR`], or built now.
///
/// # Errors
/// When it is missing or does not build.
pub fn static_runtime() -> Result<PathBuf> {
    if let Some(dir) = env::var_os(BIN_DIR) {
        return Ok(Binaries::at(Path::new(&dir))?.runc_lite());
    }
    let triple = static_target();
    cargo(&["--profile", "small", "--target", &triple, "-p", "runc-lite"])?;
    Ok(target_dir()?.join(triple).join("small/runc-lite"))
}

/// Builds the test binary `test` of `package` static, so that it runs on any Linux of this architecture.
///
/// # Errors
/// When it does not build.
pub fn static_test(package: &str, test: &str) -> Result<PathBuf> {
    let triple = static_target();
    let mut command = cargo_command("test");
    command
        .args(["--no-run", "--quiet", "--target", &triple, "-p", package])
        .args([
            "--test",
            test,
            "--message-format",
            "json-render-diagnostics",
        ]);
    let done = children::output(&mut command, &[])?;
    if !done.status.success() {
        bail!("cargo test --no-run -p {package}: {}", done.text());
    }
    let messages = String::from_utf8_lossy(&done.stdout);
    executable(&messages, test).with_context(|| format!("cargo built no test {test} of {package}"))
}

/// Builds the test binaries `tests` of `package` for this machine, in their order.
///
/// # Errors
/// When one does not build.
pub fn tests(package: &str, tests: &[&str]) -> Result<Vec<PathBuf>> {
    let mut command = cargo_command("test");
    command.args(["--no-run", "--quiet", "-p", package]);
    command.args(["--message-format", "json-render-diagnostics"]);
    for test in tests {
        command.args(["--test", test]);
    }
    let done = children::output(&mut command, &[])?;
    if !done.status.success() {
        bail!("cargo test --no-run -p {package}: {}", done.text());
    }
    let messages = String::from_utf8_lossy(&done.stdout);
    let built = |test: &&str| {
        executable(&messages, test)
            .with_context(|| format!("cargo built no test {test} of {package}"))
    };
    tests.iter().map(built).collect()
}

/// Builds the example `name` of `package` static.
///
/// # Errors
/// When it does not build.
pub fn static_example(package: &str, name: &str) -> Result<PathBuf> {
    let triple = static_target();
    cargo(&["--target", &triple, "-p", package, "--example", name])?;
    Ok(target_dir()?.join(triple).join("debug/examples").join(name))
}

/// The path of a test binary in cargo's messages, one JSON object a line.
fn executable(messages: &str, test: &str) -> Option<PathBuf> {
    let artifacts = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut wanted = artifacts
        .filter(|message| message["target"]["name"] == test && message["profile"]["test"] == true);
    wanted.find_map(|message| Some(PathBuf::from(message["executable"].as_str()?)))
}

fn static_target() -> String {
    format!("{}-unknown-linux-musl", env::consts::ARCH)
}

/// The root of the workspace this package lies in.
#[must_use]
pub fn workspace() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package).to_owned()
}

/// Where cargo puts what it builds: this program lies in it.
///
/// # Errors
/// When this program lies in no target directory.
pub fn target_dir() -> Result<PathBuf> {
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
    let status = children::watch(cargo_command("build").args(args))?;
    if !status.success() {
        bail!("cargo build {}: {status}", args.join(" "));
    }
    Ok(())
}

fn cargo_command(verb: &str) -> Command {
    let program = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.current_dir(workspace()).arg(verb);
    // What cargo sets for this program must not reach another package's build.
    for (key, _) in env::vars_os() {
        let name = key.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&key);
        }
    }
    command
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
