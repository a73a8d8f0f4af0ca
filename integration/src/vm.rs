//! The VM lane: a small Debian with systemd on cgroup v2 alone and with AppArmor or SELinux, booted by qemu for the tests
//! this machine's kernel cannot run, and for power cuts.
//!
//! ```text
//!  apt's own sources --> image   (packages -> root.ext4, kernel, modules; cached by content)      image, kernel, apt
//!  built binaries    --> payload (a tar as a read-only disk; its `run` is what the guest runs)    payload, suite, nodes
//!  boot  root overlay + payload + empty results disk, console on a pipe                           boot, console
//!    |-- the guest ends:   results disk -> files, one outcome per test                            results
//!    `-- cut_power:        SIGKILL; the overlay stays and can be booted again                     power
//! ```
//!
//! No step needs root when the packages of [`PACKAGES`] are installed. Nothing of the guest is trusted: its
//! results are read as a tar archive within bounds. The guest has no network.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::fcntl::{Flock, FlockArg};

use crate::packages::{self, Package};
use crate::say::{elapsed, out};

pub mod apt;
pub mod boot;
pub mod console;
pub mod image;
pub mod initramfs;
pub mod kernel;
pub mod nodes;
pub mod payload;
pub mod power;
pub mod results;
pub mod store;
pub mod suite;

use boot::{Accelerator, Disk, Machine, Resources, SecurityModule, Show};
use image::Image;
use payload::Payload;

/// What the lane runs on the host.
pub const PACKAGES: &[Package] = &[
    Package::new(
        "qemu-system-x86",
        "qemu-system-x86_64",
        "the virtual machine",
    ),
    Package::new(
        "qemu-utils",
        "qemu-img",
        "disks that are laid over an image",
    ),
    Package::new(
        "mmdebstrap",
        "mmdebstrap",
        "makes the guest's root file system of packages",
    ),
    Package::new(
        "fakeroot",
        "fakeroot",
        "keeps file owners in the image without root",
    ),
    Package::new("e2fsprogs", "mke2fs", "makes the guest's disk"),
    Package::new("kmod", "depmod", "lists the modules of the guest's kernel"),
    Package::new("xz-utils", "xz", "unpacks kernel modules"),
    Package::new(
        "util-linux",
        "setpriv",
        "lets the virtual machine end with this process",
    ),
];

/// How a lane is prepared.
#[derive(Debug, Clone)]
pub struct LaneOptions {
    /// Where images are kept between runs.
    pub cache: PathBuf,
    /// What runs the guest's instructions; probed when not given.
    pub accelerator: Option<Accelerator>,
    /// Memory and processors of the guest.
    pub resources: Resources,
    /// Its security module.
    pub module: SecurityModule,
}

impl LaneOptions {
    /// Images in the user's cache directory, the accelerator probed, a small machine.
    ///
    /// # Errors
    /// When neither `XDG_CACHE_HOME` nor `HOME` is set.
    pub fn new() -> Result<Self> {
        let base = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let home = || env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
        let base = base.or_else(home);
        Ok(Self {
            cache: base
                .context("neither XDG_CACHE_HOME nor HOME says where images can be kept")?
                .join("axil/vm"),
            accelerator: None,
            resources: Resources::default(),
            module: SecurityModule::default(),
        })
    }
}

/// How long a phase took.
#[derive(Debug, Clone)]
pub struct Phase {
    /// What was done.
    pub name: &'static str,
    /// How long that took.
    pub took: Duration,
}

/// An image, a kernel and a way to run them.
#[derive(Debug)]
pub struct Lane {
    image: Image,
    accelerator: Accelerator,
    resources: Resources,
    module: SecurityModule,
    scratch: PathBuf,
    phases: Vec<Phase>,
}

impl Lane {
    /// Installs what is missing, makes the image or takes it from the cache, and finds out whether KVM boots
    /// it. Scratch files go into `scratch`, which must exist.
    ///
    /// # Errors
    /// When a package is missing and cannot be installed, when apt has no Debian source, or when a step fails;
    /// the message has the failing program's last words.
    pub fn prepare(options: &LaneOptions, scratch: &Path) -> Result<Self> {
        ensure!(
            env::consts::ARCH == "x86_64",
            "the VM lane knows x86_64 only, this machine is {}",
            env::consts::ARCH
        );
        let begun = Instant::now();
        packages::install(PACKAGES)?;
        fs::create_dir_all(&options.cache)
            .with_context(|| format!("create {}", options.cache.display()))?;
        let mut phases = vec![phase("packages of this machine", begun)];
        let begun = Instant::now();
        let image = Image::obtain(&options.cache)?;
        let name = if image.is_new {
            "image, made"
        } else {
            "image, from the cache"
        };
        phases.push(phase(name, begun));
        let begun = Instant::now();
        let accelerator = match options.accelerator {
            Some(accelerator) => accelerator,
            None => boot::probe(&image, scratch)?,
        };
        phases.push(phase("accelerator", begun));
        Ok(Self {
            image,
            accelerator,
            resources: options.resources,
            module: options.module,
            scratch: scratch.to_owned(),
            phases,
        })
    }

    /// What runs the guest's instructions.
    #[must_use]
    pub fn accelerator(&self) -> Accelerator {
        self.accelerator
    }

    /// The security module of guests.
    #[must_use]
    pub fn module(&self) -> SecurityModule {
        self.module
    }

    /// The image guests start from.
    #[must_use]
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// How long preparing took.
    #[must_use]
    pub fn phases(&self) -> &[Phase] {
        &self.phases
    }

    /// A fresh disk over the image, named `name`, which outlives the machines booted on it.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn disk(&self, name: &str) -> Result<Disk> {
        Disk::over(
            &self.image.root(),
            &self.scratch.join(format!("{name}.qcow2")),
        )
    }

    /// Boots `disk` with `payload` and goes on at once. The console is written to `console`.
    ///
    /// # Errors
    /// When a disk cannot be written or qemu cannot be started.
    pub fn boot(&self, disk: &Disk, payload: &Payload, console: &Path) -> Result<Machine> {
        boot::start(
            &boot::Hardware {
                image: &self.image,
                accelerator: self.accelerator,
                resources: self.resources,
                module: self.module,
            },
            disk,
            payload,
            console,
        )
    }

    /// Boots a fresh disk with `payload`, waits at most `limit` for the guest to end, and answers what it left.
    ///
    /// # Errors
    /// As [`Lane::boot`]; also when the guest does not end in time or without results.
    pub fn run(
        &self,
        name: &str,
        payload: &Payload,
        show: Show,
        limit: Duration,
    ) -> Result<results::Collected> {
        let disk = self.disk(name)?;
        let console = self.scratch.join(format!("{name}.console"));
        self.boot(&disk, payload, &console)?.finish(show, limit)
    }
}

fn phase(name: &'static str, begun: Instant) -> Phase {
    let took = begun.elapsed();
    out(format!("    {name}: {}", elapsed(took)));
    Phase { name, took }
}

/// Opens a lock file and waits for the lock: shared between users of a thing, exclusive while it is made.
fn lock(path: &Path, how: FlockArg) -> Result<Flock<File>> {
    let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    Flock::lock(file, how)
        .map_err(|(_, errno)| errno)
        .with_context(|| format!("lock {}", path.display()))
}
