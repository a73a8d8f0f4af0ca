//! What a pull cannot do without: both hashes, inflating, and a file made of each entry. Two layers at a time,
//! from memory, without checks, records or other processes.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt as _, fchown, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use rustix::fs::syncfs;
use sha2::{Digest as _, Sha256};

use super::meter::{Cost, cpu};
use super::sample::Sample;

/// As many as this has cores is what makes it a limit; more would only wait for each other.
const THREADS: usize = 2;

/// Does the work below `dir`.
///
/// # Errors
/// When a file cannot be made.
pub fn measure(sample: &Sample, dir: &Path) -> Result<Cost> {
    let image = sample.image();
    let config = std::str::from_utf8(image.blob(&image.config)).context("the configuration")?;
    let this = i32::try_from(std::process::id()).context("a process id")?;
    let before = cpu(this)?;
    let begun = Instant::now();
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        let work = || -> Result<()> {
            while let Some(layer) = image.layers.get(next.fetch_add(1, Ordering::Relaxed)) {
                let blob = image.blob(layer);
                let found = format!("sha256:{}", hex::encode(Sha256::digest(blob)));
                ensure!(found == *layer, "{found} is not {layer}");
                let below = dir.join(layer.trim_start_matches("sha256:"));
                let diff = unpack(blob, &below).with_context(|| format!("unpack {layer}"))?;
                ensure!(config.contains(&diff), "{diff} is not in the configuration");
            }
            Ok(())
        };
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })?;
    let wall = begun.elapsed();
    let cpu = cpu(this)?.saturating_sub(before);
    let dir = File::open(dir).with_context(|| format!("open {}", dir.display()))?;
    syncfs(&dir).context("sync the file system")?;
    Ok(Cost {
        wall,
        durable: begun.elapsed(),
        cpu,
        ..Cost::default()
    })
}

/// Makes the files of a layer and answers its diff id.
fn unpack(blob: &[u8], dir: &Path) -> Result<String> {
    fs::create_dir(dir)?;
    let inflated = flate2::bufread::MultiGzDecoder::new(blob);
    let mut archive = tar::Archive::new(Hashed(inflated, Sha256::new()));
    let mut content = Vec::new();
    let mut last = dir.to_owned();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = dir.join(entry.path()?);
        let parent = path.parent().unwrap_or(dir);
        if parent != last {
            fs::create_dir_all(parent)?;
            parent.clone_into(&mut last);
        }
        let kind = entry.header().entry_type();
        if kind.is_dir() {
            fs::create_dir_all(&path)?;
        } else if kind.is_symlink() {
            symlink(entry.link_name()?.unwrap_or_default(), &path)?;
        } else if kind.is_hard_link() {
            fs::hard_link(dir.join(entry.link_name()?.unwrap_or_default()), &path)?;
        } else {
            content.clear();
            entry.read_to_end(&mut content)?;
            let file = File::options()
                .write(true)
                .create_new(true)
                .mode(entry.header().mode()? & 0o7777)
                .open(&path)?;
            io::Write::write_all(&mut &file, &content)?;
            let header = entry.header();
            fchown(
                &file,
                Some(u32::try_from(header.uid()?)?),
                Some(u32::try_from(header.gid()?)?),
            )?;
            file.set_modified(UNIX_EPOCH + Duration::from_secs(header.mtime()?))?;
        }
    }
    // What follows the last entry belongs to the digest.
    let mut hashed = archive.into_inner();
    io::copy(&mut hashed, &mut io::sink())?;
    Ok(format!("sha256:{}", hex::encode(hashed.1.finalize())))
}

/// Hashes what is read through it.
struct Hashed<R>(R, Sha256);

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let amount = self.0.read(out)?;
        self.1.update(&out[..amount]);
        Ok(amount)
    }
}
