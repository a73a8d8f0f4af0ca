//! The guest's root file system: made of Debian packages once, kept by what it was made of.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest as _, Sha256};

use super::apt::{KernelPackage, Sources};
use super::kernel::Kernel;
use super::{initramfs, lock};
use crate::children;
use crate::say::out;

/// Goes up whenever the same packages would give another image.
const FORMAT: u32 = 1;
/// Size of the guest's disk; the file is sparse.
const SIZE: &str = "4G";
/// How long packages may take to arrive and unpack.
const BUILD_LIMIT: Duration = Duration::from_secs(20 * 60);

/// What is in the guest beside the essential packages.
const PACKAGES: &[&str] = &[
    "apparmor",
    "busybox-static",
    "dbus",
    "e2fsprogs",
    "iproute2",
    "kmod",
    "nftables",
    "procps",
    "selinux-policy-default",
    "strace",
    "systemd",
    "systemd-sysv",
    "uidmap",
];

/// Units that only cost time or take the console away. Profiles of the distribution are not loaded, so that
/// those of a test are alone.
const MASKED: &[&str] = &[
    "apparmor.service",
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "console-getty.service",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty.target",
    "serial-getty@ttyS0.service",
    "systemd-logind.service",
    "systemd-firstboot.service",
    "systemd-networkd.service",
    "systemd-pstore.service",
    "systemd-update-utmp.service",
    "systemd-update-utmp-runlevel.service",
];

const SERVICE: &str = include_str!("guest/axil-lane.service");
const LANE: &str = include_str!("guest/lane");
const CONTAINERS: &str = include_str!("guest/containers.cil");

/// An image in the cache, held against removal.
#[derive(Debug)]
pub struct Image {
    dir: PathBuf,
    /// Whether it was made just now.
    pub is_new: bool,
    _used: Flock<File>,
}

impl Image {
    /// Takes the image from `cache`, or makes it there, which needs the network and some minutes. Images of
    /// other packages that nobody uses are removed.
    ///
    /// # Errors
    /// When apt has no Debian source or a step fails.
    pub fn obtain(cache: &Path) -> Result<Self> {
        let kernel = KernelPackage::newest()?;
        let sources = Sources::of_this_machine()?;
        let key = key(&sources.suite, &kernel);
        let dir = cache.join(format!("image-{key}"));
        // Held shared by everybody who boots it; alone by who makes it.
        let used = lock(&lock_of(&dir), FlockArg::LockShared)?;
        let mut is_new = false;
        if !dir.is_dir() {
            let relock = |how| {
                used.relock(how)
                    .with_context(|| format!("lock {}", dir.display()))
            };
            relock(FlockArg::LockExclusive)?;
            is_new = !dir.is_dir();
            if is_new {
                out(format!(
                    "    making the image of {} with kernel {}; this takes some minutes, once",
                    sources.suite, kernel.version
                ));
                make(&dir, &sources, &kernel)?;
            }
            relock(FlockArg::LockShared)?;
        }
        prune(cache, &dir);
        Ok(Self {
            dir,
            is_new,
            _used: used,
        })
    }

    /// The root file system, never written to.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.dir.join("root.ext4")
    }

    /// The kernel.
    #[must_use]
    pub fn vmlinuz(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// The initramfs.
    #[must_use]
    pub fn initramfs(&self) -> PathBuf {
        self.dir.join("initramfs")
    }

    /// The kernel's release, as `uname -r` prints it.
    ///
    /// # Errors
    /// When the cache is damaged.
    pub fn kernel_release(&self) -> Result<String> {
        let path = self.dir.join("kernel-release");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(text.trim().to_owned())
    }
}

/// What an image is made of, as a name.
fn key(suite: &str, kernel: &KernelPackage) -> String {
    let mut hash = Sha256::new();
    let parts = [
        &FORMAT.to_string(),
        SIZE,
        suite,
        &kernel.name,
        &kernel.version,
        SERVICE,
        LANE,
        CONTAINERS,
        initramfs::INIT,
    ];
    for part in parts.iter().chain(PACKAGES).chain(MASKED) {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    hex::encode(&hash.finalize()[..8])
}

fn lock_of(dir: &Path) -> PathBuf {
    dir.with_extension("lock")
}

/// Makes everything beside, then renames: a build that was interrupted is begun anew.
fn make(dir: &Path, sources: &Sources, package: &KernelPackage) -> Result<()> {
    let work = dir.with_extension("new");
    // Ignored: what an interrupted build left is usually not there.
    let _ = fs::remove_dir_all(&work);
    let fetched = work.join("fetched");
    fs::create_dir_all(&fetched).with_context(|| format!("create {}", fetched.display()))?;
    let made = build(&work, &fetched, sources, package);
    // Ignored: the error above all is the one to tell.
    let _ = fs::remove_dir_all(&fetched);
    made?;
    fs::rename(&work, dir).with_context(|| format!("keep {}", dir.display()))
}

fn build(work: &Path, scratch: &Path, sources: &Sources, package: &KernelPackage) -> Result<()> {
    let kernel = Kernel::fetch(package, scratch)?;
    let overlay = scratch.join("overlay.tar");
    write_overlay(&overlay, &kernel)?;
    let archive = scratch.join("root.tar");
    install_packages(sources, &kernel, &overlay, &archive, scratch)?;
    let root = scratch.join("root");
    let image = work.join("root.ext4");
    make_disk(&archive, &root, &image)?;
    fs::copy(&kernel.vmlinuz, work.join("vmlinuz")).context("copy the kernel")?;
    let modules = kernel.boot_modules(&root)?;
    let busybox = fs::read(root.join("usr/bin/busybox")).context("read the guest's busybox")?;
    let archive = initramfs::archive(&busybox, &modules);
    fs::write(work.join("initramfs"), archive).context("write the initramfs")?;
    fs::write(work.join("kernel-release"), &kernel.release).context("write the kernel's release")
}

/// Everything that comes from no package of the guest's: our service and the kernel's modules.
fn write_overlay(path: &Path, kernel: &Kernel) -> Result<()> {
    let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    let mut tar = tar::Builder::new(file);
    let mut add = |name: &str, mode: u32, text: &str| {
        let mut header = tar::Header::new_gnu();
        header.set_mode(mode);
        header.set_size(text.len() as u64);
        tar.append_data(&mut header, name, text.as_bytes())
    };
    let units = "etc/systemd/system";
    add("usr/lib/axil-lane/lane", 0o755, LANE)?;
    add("usr/lib/axil-lane/containers.cil", 0o644, CONTAINERS)?;
    add(&format!("{units}/axil-lane.service"), 0o644, SERVICE)?;
    add("etc/hostname", 0o644, "lane\n")?;
    let wants = format!("{units}/multi-user.target.wants/axil-lane.service");
    let links = MASKED
        .iter()
        .map(|unit| (format!("{units}/{unit}"), "/dev/null"))
        .chain([(wants, "../axil-lane.service")]);
    for (name, target) in links {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        tar.append_link(&mut header, name, target)?;
    }
    tar.append_dir_all("usr/lib/modules", &kernel.modules)
        .context("pack the kernel's modules")?;
    tar.into_inner()?.flush().context("write the overlay")
}

/// Runs mmdebstrap: apt does the work, with what this machine's apt is configured with. Without root it works in
/// a user namespace.
fn install_packages(
    sources: &Sources,
    kernel: &Kernel,
    overlay: &Path,
    archive: &Path,
    scratch: &Path,
) -> Result<()> {
    let list = scratch.join("sources.list");
    fs::write(&list, sources.lines.join("\n") + "\n").context("write the sources list")?;
    let options = scratch.join("apt.conf");
    let mut lines = sources.options.join("\n");
    lines.push_str("\nAcquire::Languages \"none\";\n");
    fs::write(&options, lines).context("write the apt configuration")?;
    let mut command = Command::new("mmdebstrap");
    command
        .arg("--variant=minbase")
        .arg(format!("--include={}", PACKAGES.join(",")))
        .arg(format!("--aptopt={}", options.display()))
        // An image that was interrupted is thrown away; nothing has to reach the disk in between.
        .arg("--dpkgopt=force-unsafe-io");
    for excluded in ["doc", "man", "locale", "info", "lintian"] {
        command.arg(format!("--dpkgopt=path-exclude=/usr/share/{excluded}/*"));
    }
    command
        .arg(format!("--customize-hook=tar-in {} /", overlay.display()))
        .arg(format!(
            "--customize-hook=chroot \"$1\" depmod {}",
            kernel.release
        ))
        .arg("--customize-hook=chroot \"$1\" semodule -n -i /usr/lib/axil-lane/containers.cil")
        .arg(&sources.suite)
        .arg(archive)
        .arg(&list);
    run_logged(command, &scratch.join("mmdebstrap.log"), BUILD_LIMIT)
}

/// Unpacks the archive and makes a file system of it in one go: without root the owners are what fakeroot
/// remembers.
fn make_disk(archive: &Path, root: &Path, image: &Path) -> Result<()> {
    let script = "mkdir \"$2\" && tar --numeric-owner -xpf \"$1\" -C \"$2\" && \
                  mke2fs -q -t ext4 -L lane -E root_owner=0:0 -d \"$2\" \"$3\" \"$4\"";
    let mut command = if nix::unistd::geteuid().is_root() {
        Command::new("sh")
    } else {
        let mut command = Command::new("fakeroot");
        command.args(["--", "sh"]);
        command
    };
    command
        .args(["-c", script, "sh"])
        .arg(archive)
        .arg(root)
        .arg(image)
        .arg(SIZE);
    run_logged(command, &image.with_extension("log"), BUILD_LIMIT)
}

/// Runs a program with its output in a file; a failure tells the end of it.
fn run_logged(mut command: Command, log: &Path, limit: Duration) -> Result<()> {
    let file = File::create(log).with_context(|| format!("create {}", log.display()))?;
    command
        .stdin(std::process::Stdio::null())
        .stdout(file.try_clone().context("share the log")?)
        .stderr(file);
    let program = command.get_program().to_string_lossy().into_owned();
    let ended = children::Running::start(&mut command)?.wait(limit);
    let status = ended.with_context(|| format!("{program} did not end within {limit:?}"))?;
    if !status.success() {
        let text = fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        let end = lines[lines.len().saturating_sub(15)..].join("\n");
        anyhow::bail!("{program}: {status}; it said:\n{end}");
    }
    // Ignored: a log that stays is no harm.
    let _ = fs::remove_file(log);
    Ok(())
}

/// Removes the images nobody holds, but for `keep`.
fn prune(cache: &Path, keep: &Path) {
    for entry in fs::read_dir(cache).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name();
        let is_image = name.to_string_lossy().starts_with("image-") && path.is_dir();
        let is_other = path != keep && path != keep.with_extension("new");
        if is_image && is_other && unused(&path).is_some() {
            // Ignored: it is tried again at the next run.
            let _ = fs::remove_dir_all(&path);
        }
    }
}

/// The lock of an image if nobody holds it.
fn unused(dir: &Path) -> Option<Flock<File>> {
    let file = File::create(lock_of(dir)).ok()?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_known_by_release_and_kernel() {
        let kernel = |version: &str| KernelPackage {
            name: "linux-image-6.1.0-1-cloud-amd64".to_owned(),
            version: version.to_owned(),
        };
        let first = key("bookworm", &kernel("6.1.1-1"));
        assert_eq!(first, key("bookworm", &kernel("6.1.1-1")));
        assert_ne!(first, key("trixie", &kernel("6.1.1-1")));
        assert_ne!(first, key("bookworm", &kernel("6.1.1-2")));
        assert_eq!(first.len(), 16);
    }
}
