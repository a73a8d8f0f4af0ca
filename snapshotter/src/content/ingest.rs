//! The compressed bytes of a layer while it is pulled, kept so that an interrupted pull resumes.
//! They are not trusted: the digest is taken again over all of them.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, Mode, OFlags, openat, statat, unlinkat};
use rustix::io::Errno;

use super::digest::Digest;
use crate::durable::Prepared;
use crate::error::PathError;
use crate::snapshot::chain::ChainId;
use crate::store::{names, read_bounded};
use crate::tree::{Usage, allocated};

/// Where the kernel tells one boot from another (random(4)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// The file that says in which boot partial downloads were received.
const BOOT: &str = "boot";
/// What ends the names of partial downloads.
const SUFFIX: &str = ".part";
/// How long a partial download nobody works on is kept by garbage collection. The kubelet's
/// longest pause between two attempts is five minutes.
pub(crate) const KEPT_FOR: Duration = Duration::from_secs(60 * 60);

/// A partial download, open for appending.
#[derive(Debug)]
pub(crate) struct Partial {
    pub(crate) name: String,
    file: File,
    length: u64,
}

/// Returns the file name for a layer: the chain first, because one blob can be wanted for two
/// stacks at the same time.
pub(crate) fn name_of(chain: &ChainId, blob: &Digest) -> String {
    let chain = chain.digest().hex();
    // Two sha512 names would exceed NAME_MAX; 128 bits tell stacks apart.
    let chain = chain.get(..32).unwrap_or(chain);
    format!("{chain}.{}.{}{SUFFIX}", blob.algorithm(), blob.hex())
}

impl Partial {
    /// Opens what is there of a blob of `size` bytes; something longer cannot be right and is
    /// started again.
    pub(crate) fn open(
        dir: &OwnedFd,
        chain: &ChainId,
        blob: &Digest,
        size: u64,
    ) -> Result<Self, PathError> {
        let name = name_of(chain, blob);
        let failed = |source: io::Error| PathError::new("open partial download", &name, source);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(dir, &*name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|error| failed(error.into()))?;
        let file = File::from(fd);
        let mut length = file.metadata().map_err(failed)?.len();
        if length > size {
            file.set_len(0).map_err(failed)?;
            length = 0;
        }
        Ok(Self { name, file, length })
    }

    /// One that is gone with its descriptor; removing its name does nothing.
    pub(crate) fn unnamed(file: File) -> Self {
        Self {
            name: String::new(),
            file,
            length: 0,
        }
    }

    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Goes to the start and returns the file, to read what is there.
    pub(crate) fn replay(&mut self) -> Result<&mut File, PathError> {
        self.file
            .seek(SeekFrom::Start(0))
            .map_err(|source| PathError::new("read partial download", &self.name, source))?;
        Ok(&mut self.file)
    }

    /// Returns the file where the last read left it.
    pub(crate) fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Adds received bytes at the end.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<(), PathError> {
        self.file
            .seek(SeekFrom::Start(self.length))
            .and_then(|_| self.file.write_all(bytes))
            .map_err(|source| PathError::new("write partial download", &self.name, source))?;
        self.length += bytes.len() as u64;
        Ok(())
    }
}

/// Deletes a partial download; it may be gone already.
pub(crate) fn discard(dir: &OwnedFd, name: &str) -> Result<(), PathError> {
    match unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(PathError::new("remove partial download", name, error)),
    }
}

/// Removes everything that is not a partial download. After a boot partial downloads go as well: they were not
/// synced, so that a power cut may have left them with the right length and without their bytes.
///
/// `content` has the file that tells one boot from another. Answers what was removed.
pub(crate) fn sweep(dir: &OwnedFd, content: &OwnedFd) -> Result<Vec<String>, PathError> {
    let boot = std::fs::read(BOOT_ID).map_err(|source| PathError::new("read", BOOT_ID, source))?;
    let is_of_this_boot = read_bounded(content, BOOT, 256).is_ok_and(|known| known == boot);
    let mut swept = Vec::new();
    for (name, blob, _) in partials(dir)? {
        if blob.is_none() || !is_of_this_boot {
            discard(dir, &name)?;
            swept.push(format!("content/ingest/{name}"));
        }
    }
    if !is_of_this_boot {
        // Order: after the removals. Lost with the power it only costs another sweep.
        let written = Prepared::write(content, BOOT, &boot).and_then(|mut file| file.publish());
        written.map_err(|source| PathError::new("write", format!("content/{BOOT}"), source))?;
    }
    Ok(swept)
}

/// Names what is there and is no partial download.
pub(crate) fn strangers(dir: &OwnedFd) -> Result<Vec<String>, PathError> {
    let found = partials(dir)?;
    let strange = |(name, blob, _): Listed| blob.is_none().then_some(name);
    Ok(found.into_iter().filter_map(strange).collect())
}

/// Returns what partial downloads occupy.
pub(crate) fn usage(dir: &OwnedFd) -> Result<Usage, PathError> {
    let mut usage = Usage::default();
    for (_, _, stat) in partials(dir)? {
        usage += Usage {
            bytes: allocated(&stat),
            inodes: 1,
        };
    }
    Ok(usage)
}

/// Removes partial downloads that are old and not wanted. Returns what that freed.
pub(crate) fn collect(
    dir: &OwnedFd,
    is_wanted: impl Fn(&Digest) -> bool,
) -> Result<Usage, PathError> {
    let mut freed = Usage::default();
    let now = SystemTime::now();
    for (name, blob, stat) in partials(dir)? {
        let seconds = Duration::from_secs(u64::try_from(stat.st_mtime).unwrap_or(0));
        let age = now
            .duration_since(SystemTime::UNIX_EPOCH + seconds)
            .unwrap_or_default();
        if age < KEPT_FOR || blob.is_some_and(|blob| is_wanted(&blob)) {
            continue;
        }
        discard(dir, &name)?;
        freed += Usage {
            bytes: allocated(&stat),
            inodes: 1,
        };
    }
    Ok(freed)
}

type Listed = (String, Option<Digest>, rustix::fs::Stat);

fn partials(dir: &OwnedFd) -> Result<Vec<Listed>, PathError> {
    let place = "content/ingest";
    let mut found = Vec::new();
    for name in names(dir).map_err(|source| PathError::new("list", place, source))? {
        match statat(dir, &*name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => {
                let blob = blob_of(&name);
                found.push((name, blob, stat));
            }
            // Finished or given up in the meantime.
            Err(Errno::NOENT) => {}
            Err(error) => return Err(PathError::new("stat", format!("{place}/{name}"), error)),
        }
    }
    Ok(found)
}

fn blob_of(name: &str) -> Option<Digest> {
    let mut parts = name.strip_suffix(SUFFIX)?.splitn(2, '.');
    parts.next()?;
    parts.next()?.replacen('.', ":", 1).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_the_blob() {
        let blob = Digest::of(super::super::digest::Algorithm::Sha512, b"x");
        let name = name_of(&ChainId::first(&blob), &blob);
        assert!(name.len() <= 255, "{}", name.len());
        assert_eq!(blob_of(&name), Some(blob));
        assert_eq!(blob_of("anything.part"), None);
    }
}
