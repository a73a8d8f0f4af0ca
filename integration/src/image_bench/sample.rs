//! The image that is pulled: six gzip layers of the many small files that packages of this machine have.
//!
//! The same machine makes the same image: packages by name, files as dpkg lists them, no time of making.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::children;
use crate::images::{Image, Packed, digest};

/// How many layers there are.
const LAYERS: u64 = 6;
/// Larger files are left out: few of them would be most of the image.
const FILE_MAX: u64 = 1 << 20;
/// So many files of one package, so that none is most of the image.
const FILES_OF_PACKAGE: usize = 5000;
/// Where files are as their packages brought them; elsewhere the machine works on them meanwhile.
const STILL: [&str; 3] = ["/etc", "/opt", "/usr"];
/// What docker and buildkit compress layers with.
const LEVEL: u32 = 6;

/// The image and what is in it.
#[derive(Debug)]
pub struct Sample {
    image: Image,
    unpacked: u64,
    entries: usize,
}

impl Sample {
    /// Makes one of about `megabytes` of archives, or of what this machine has. Lists are left in `dir`.
    ///
    /// # Errors
    /// When dpkg or tar is missing or fails.
    pub fn make(megabytes: u64, dir: &Path) -> Result<Self> {
        let each = megabytes * 1_000_000 / LAYERS;
        let layers = files(each)?;
        let packed: Result<Vec<(Packed, u64)>> = thread::scope(|scope| {
            let packing: Vec<_> = layers
                .iter()
                .enumerate()
                .map(|(number, files)| {
                    let list = dir.join(format!("layer-{number}"));
                    scope.spawn(move || pack(files, &list))
                })
                .collect();
            packing
                .into_iter()
                .map(|packing| {
                    packing
                        .join()
                        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
                .collect()
        });
        let (packed, sizes): (Vec<Packed>, Vec<u64>) = packed?.into_iter().unzip();
        Ok(Self {
            image: Image::of(&json!({ "Cmd": ["/none"] }), packed),
            unpacked: sizes.iter().sum(),
            entries: layers.iter().map(Vec::len).sum(),
        })
    }

    /// The image.
    #[must_use]
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// Bytes of its archives.
    #[must_use]
    pub fn unpacked(&self) -> u64 {
        self.unpacked
    }

    /// Entries of its archives.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.entries
    }
}

/// One layer under construction: what it holds, parents before what is in them.
#[derive(Debug, Default)]
struct Contents {
    paths: Vec<PathBuf>,
    known: BTreeSet<PathBuf>,
    bytes: u64,
}

impl Contents {
    fn add(&mut self, path: &Path, size: u64) {
        let ancestors: Vec<&Path> = path.ancestors().skip(1).collect();
        for parent in ancestors.into_iter().rev().skip(1) {
            if self.known.insert(parent.to_owned()) {
                self.paths.push(parent.to_owned());
                self.bytes += 512;
            }
        }
        if self.known.insert(path.to_owned()) {
            self.paths.push(path.to_owned());
            // A header, and the content in blocks.
            self.bytes += 512 + size.next_multiple_of(512);
        }
    }
}

/// The files of each layer, `each` bytes or a little more with their headers.
fn files(each: u64) -> Result<Vec<Vec<PathBuf>>> {
    let format = "${binary:Package}\n";
    let shown = children::read("dpkg-query", &["--show", "--showformat", format])?;
    let packages: BTreeSet<&str> = shown.lines().collect();
    let mut seen = BTreeSet::new();
    let mut layers = Vec::new();
    let mut layer = Contents::default();
    'all: for package in packages {
        let listed = children::read("dpkg-query", &["--listfiles", package])?;
        let mut count = 0;
        for path in listed.lines().map(Path::new) {
            // Where a directory became a link, dpkg still lists the old name; images have the new one.
            let Some(path) = without_links(path) else {
                continue;
            };
            let Ok(stat) = fs::symlink_metadata(&path) else {
                continue;
            };
            let is_still = STILL.iter().any(|top| path.starts_with(top));
            // Directories come with what is in them.
            if stat.is_dir() || !is_still || stat.len() > FILE_MAX || !seen.insert(path.clone()) {
                continue;
            }
            count += 1;
            if count > FILES_OF_PACKAGE {
                break;
            }
            layer.add(&path, if stat.is_file() { stat.len() } else { 0 });
            if layer.bytes >= each {
                layers.push(std::mem::take(&mut layer).paths);
                if layers.len() as u64 == LAYERS {
                    break 'all;
                }
            }
        }
    }
    if !layer.paths.is_empty() {
        layers.push(layer.paths);
    }
    Ok(layers)
}

/// The path with the links of its directories followed; `None` for the root and for what is not a path.
fn without_links(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?;
    let parent = path.parent().filter(|parent| parent.is_absolute())?;
    Some(fs::canonicalize(parent).ok()?.join(name))
}

/// Packs files with GNU tar, and compresses; answers the size of the archive too.
fn pack(files: &[PathBuf], list: &Path) -> Result<(Packed, u64)> {
    let mut names = Vec::new();
    for file in files {
        names.extend_from_slice(
            file.strip_prefix("/")
                .unwrap_or(file)
                .as_os_str()
                .as_bytes(),
        );
        names.push(0);
    }
    let mut tar = Command::new("tar");
    tar.args(["--create", "--file=-", "--format=gnu", "--numeric-owner"])
        .args(["--no-recursion", "--directory=/", "--null"])
        .args(["--verbatim-files-from", "--files-from"])
        .arg(list);
    fs::write(list, &names).with_context(|| format!("write {}", list.display()))?;
    let packed = children::output(&mut tar, &[])?;
    ensure!(packed.status.success(), "tar: {}", packed.text());
    let archive = packed.stdout;
    let mut encoder = flate2::GzBuilder::new()
        .mtime(0)
        .write(Vec::new(), flate2::Compression::new(LEVEL));
    encoder.write_all(&archive).context("compress by gzip")?;
    let bytes = encoder.finish().context("compress by gzip")?;
    let packed = Packed {
        media_type: "application/vnd.oci.image.layer.v1.tar+gzip",
        diff_id: digest(&archive),
        bytes,
    };
    Ok((packed, archive.len() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_has_each_directory_once_and_before_what_is_in_it() {
        let mut layer = Contents::default();
        layer.add(Path::new("/usr/share/a/f"), 1000);
        layer.add(Path::new("/usr/share/g"), 0);
        let paths: Vec<&str> = layer
            .paths
            .iter()
            .filter_map(|path| path.to_str())
            .collect();
        let expected = [
            "/usr",
            "/usr/share",
            "/usr/share/a",
            "/usr/share/a/f",
            "/usr/share/g",
        ];
        assert_eq!(paths, expected);
        assert_eq!(layer.bytes, 5 * 512 + 1024);
    }

    #[test]
    fn remarks_of_dpkg_and_the_root_are_no_paths() {
        assert_eq!(without_links(Path::new("/.")), None);
        let remark = "diverted by dash to: /bin/sh.distrib";
        assert_eq!(without_links(Path::new(remark)), None);
        assert_eq!(without_links(Path::new("/no/such/place/file")), None);
    }
}
