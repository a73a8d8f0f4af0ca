//! The guest's kernel: Debian's, unpacked from its package, with the modules the initramfs has to load.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use super::apt::KernelPackage;
use crate::children;

/// Drivers of the guest's disks; everything else is loaded when it is asked for.
const AT_BOOT: &[&str] = &["virtio_pci", "virtio_blk"];

/// A module as the initramfs has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// File name.
    pub name: String,
    /// The uncompressed object.
    pub object: Vec<u8>,
}

/// An unpacked kernel package.
#[derive(Debug)]
pub struct Kernel {
    /// As `uname -r` prints it.
    pub release: String,
    /// The image to boot.
    pub vmlinuz: PathBuf,
    /// What goes to `/lib/modules`.
    pub modules: PathBuf,
}

impl Kernel {
    /// Downloads and unpacks `package` below `dir`.
    ///
    /// # Errors
    /// When apt or dpkg fail, or the package is not what a kernel package looks like.
    pub fn fetch(package: &KernelPackage, dir: &Path) -> Result<Self> {
        let fetched = dir.join("kernel");
        fs::create_dir_all(&fetched).with_context(|| format!("create {}", fetched.display()))?;
        package.download(&fetched)?;
        let deb = only(&fetched, |name| name.ends_with(".deb"))?;
        let mut unpack = Command::new("dpkg-deb");
        unpack.arg("-x").arg(&deb).arg(&fetched);
        let done = children::output(&mut unpack, &[])?;
        ensure!(done.status.success(), "dpkg-deb -x: {}", done.text());
        let vmlinuz = only(&fetched.join("boot"), |name| name.starts_with("vmlinuz-"))?;
        let modules = ["usr/lib/modules", "lib/modules"].map(|path| fetched.join(path));
        let Some(modules) = modules.into_iter().find(|path| path.is_dir()) else {
            bail!("{} has no modules", deb.display());
        };
        let release = only(&modules, |_| true)?;
        let release = release.file_name().unwrap_or_default().to_string_lossy();
        Ok(Self {
            release: release.into_owned(),
            vmlinuz,
            modules,
        })
    }

    /// The modules to load before there is a root disk, in their order, from a root where depmod ran.
    ///
    /// # Errors
    /// When a module is not there.
    pub fn boot_modules(&self, root: &Path) -> Result<Vec<Module>> {
        let dir = root.join("usr/lib/modules").join(&self.release);
        let table = dir.join("modules.dep");
        let table =
            fs::read_to_string(&table).with_context(|| format!("read {}", table.display()))?;
        let builtin = fs::read_to_string(dir.join("modules.builtin")).unwrap_or_default();
        load_order(&table, &builtin, AT_BOOT)?
            .into_iter()
            .map(|path| read_module(&dir.join(path)))
            .collect()
    }
}

fn only(dir: &Path, wanted: impl Fn(&str) -> bool) -> Result<PathBuf> {
    let entries = fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))?;
    let mut found = entries
        .flatten()
        .filter(|entry| wanted(&entry.file_name().to_string_lossy()));
    match (found.next(), found.next()) {
        (Some(entry), None) => Ok(entry.path()),
        _ => bail!("not exactly one file of its kind in {}", dir.display()),
    }
}

/// The name of a module in a path, with the two spellings of a dash made one.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    let stem = file.split(".ko").next().unwrap_or(file);
    stem.replace('-', "_")
}

/// Paths of the wanted modules and of what they need, each after what it needs itself. `modules.dep` lists the
/// needs of a module, of needs too, the last to be loaded first (depmod(8)).
fn load_order(table: &str, builtin: &str, wanted: &[&str]) -> Result<Vec<String>> {
    let mut order = Vec::new();
    let mut seen = BTreeSet::new();
    for name in wanted {
        if builtin.lines().any(|path| module_name(path) == *name) {
            continue;
        }
        let line = table
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(path, _)| module_name(path) == *name);
        let (path, needs) = line.with_context(|| format!("the kernel has no module {name}"))?;
        let needs: Vec<_> = needs.split_ascii_whitespace().collect();
        for path in needs.into_iter().rev().chain([path]) {
            if seen.insert(path) {
                order.push(path.to_owned());
            }
        }
    }
    Ok(order)
}

/// Reads a module, unpacked: busybox gives the kernel plain objects only.
fn read_module(path: &Path) -> Result<Module> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let Some(plain) = name.strip_suffix(".xz") else {
        let object = fs::read(path).with_context(|| format!("read {}", path.display()))?;
        let name = name.into_owned();
        return Ok(Module { name, object });
    };
    let mut xz = Command::new("xz");
    xz.arg("-dc").arg(path);
    let done = children::output(&mut xz, &[])?;
    ensure!(
        done.status.success(),
        "xz -dc {}: {}",
        path.display(),
        done.text()
    );
    Ok(Module {
        name: plain.to_owned(),
        object: done.stdout,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_after_what_they_need_and_once() {
        let table = "kernel/a/virtio_ring.ko:\n\
                     kernel/a/virtio.ko: kernel/a/virtio_ring.ko\n\
                     kernel/a/virtio-pci.ko: kernel/a/virtio.ko kernel/a/virtio_ring.ko\n\
                     kernel/b/virtio_blk.ko.xz: kernel/a/virtio.ko kernel/a/virtio_ring.ko\n";
        let order = load_order(table, "", &["virtio_pci", "virtio_blk"]).unwrap();
        assert_eq!(
            order,
            [
                "kernel/a/virtio_ring.ko",
                "kernel/a/virtio.ko",
                "kernel/a/virtio-pci.ko",
                "kernel/b/virtio_blk.ko.xz"
            ]
        );
        let builtin = "kernel/drivers/virtio/virtio_pci.ko\n";
        let order = load_order(table, builtin, &["virtio_pci"]).unwrap();
        assert_eq!(order, Vec::<String>::new());
        let error = load_order(table, "", &["nvme"]).unwrap_err();
        assert_eq!(error.to_string(), "the kernel has no module nvme");
    }
}
