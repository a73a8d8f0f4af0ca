//! Installs what a command needs from the distribution, and says so.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::guard::find_program;
use crate::{children, say};

/// A package, a file that shows it is there, and what it is for.
#[derive(Debug, Clone, Copy)]
pub struct Package {
    /// Its name in Debian and Ubuntu.
    pub name: &'static str,
    /// A program or an absolute path it brings.
    pub brings: &'static str,
    /// What it is needed for.
    pub why: &'static str,
    /// A service it would start and enable; it is kept off.
    pub service: Option<&'static str>,
}

impl Package {
    /// A package without a service.
    #[must_use]
    pub const fn new(name: &'static str, brings: &'static str, why: &'static str) -> Self {
        Self {
            name,
            brings,
            why,
            service: None,
        }
    }

    /// Keeps the service of this package off when it is installed.
    #[must_use]
    pub const fn without_service(mut self, service: &'static str) -> Self {
        self.service = Some(service);
        self
    }

    /// Whether it is there.
    #[must_use]
    pub fn is_installed(&self) -> bool {
        if self.brings.starts_with('/') {
            Path::new(self.brings).exists()
        } else {
            find_program(self.brings).is_some()
        }
    }
}

/// How often apt is asked: a package may take the place of another that is needed too (Debian's qemu-system-x86
/// that of a newer qemu-utils).
const ROUNDS: usize = 3;

/// Installs those of `packages` that are missing.
///
/// # Errors
/// When apt is missing or fails, or something is missing all the same.
pub fn install(packages: &[Package]) -> Result<()> {
    for _ in 0..ROUNDS {
        let missing = missing(packages);
        if missing.is_empty() {
            return Ok(());
        }
        install_all(&missing)?;
    }
    let missing: Vec<_> = missing(packages).iter().map(|p| p.brings).collect();
    if !missing.is_empty() {
        bail!("missing also after apt-get install: {}", missing.join(" "));
    }
    Ok(())
}

fn missing(packages: &[Package]) -> Vec<&Package> {
    packages.iter().filter(|p| !p.is_installed()).collect()
}

fn install_all(missing: &[&Package]) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        let names: Vec<_> = missing.iter().map(|p| p.name).collect();
        bail!(
            "packages are missing, and only root installs them: apt-get install {}",
            names.join(" ")
        );
    }
    for package in missing {
        say::out(format!("  installing {} — {}", package.name, package.why));
    }
    if find_program("apt-get").is_none() {
        let names: Vec<_> = missing.iter().map(|p| p.name).collect();
        bail!(
            "this machine has no apt-get; install {} by hand",
            names.join(", ")
        );
    }
    let _quiet = KeepServicesOff::new()?;
    let mut install = vec!["install", "-y", "-q", "--no-install-recommends"];
    install.extend(missing.iter().map(|p| p.name));
    // A list of packages may be there already; refreshing it takes longer than most installs.
    let installed = apt(&install)? || (apt(&["update", "-q"])? && apt(&install)?);
    if !installed {
        bail!("apt-get install failed; its output is above");
    }
    for service in missing.iter().filter_map(|p| p.service) {
        if Path::new("/run/systemd/system").exists() {
            say::out(format!("  keeping the service {service} off"));
            let _ = children::run("systemctl", &["disable", "--now", service])?;
        }
    }
    Ok(())
}

fn apt(args: &[&str]) -> Result<bool> {
    let mut command = Command::new("apt-get");
    command.args(args).env("DEBIAN_FRONTEND", "noninteractive");
    let done = children::output(&mut command, &[])?;
    if !done.status.success() {
        say::err(done.text());
    }
    Ok(done.status.success())
}

/// Debian's switch against services starting while packages are installed (`policy-rc.d`); removed when
/// dropped. A machine that has the switch already keeps its own.
struct KeepServicesOff {
    created: bool,
}

const POLICY: &str = "/usr/sbin/policy-rc.d";

impl KeepServicesOff {
    fn new() -> Result<Self> {
        if Path::new(POLICY).exists() {
            return Ok(Self { created: false });
        }
        fs::write(POLICY, "#!/bin/sh\nexit 101\n").with_context(|| format!("write {POLICY}"))?;
        let keep = Self { created: true };
        fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("make {POLICY} executable"))?;
        Ok(keep)
    }
}

impl Drop for KeepServicesOff {
    fn drop(&mut self) {
        if self.created {
            let _ = fs::remove_file(POLICY);
        }
    }
}
