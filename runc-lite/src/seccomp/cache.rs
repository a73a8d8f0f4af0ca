//! Compiled filters on disk, named by the hash of profile, compiler and architecture.
//!
//! ```text
//! <root>/.seccomp-cache/<sha256>     owner only, 0600, in a directory 0700
//!   "axilbpf2" | key 32 | flags u32 | programs u32 | bytes of path u32 | of metadata u32
//!   programs × (count u32 | count × (code u16, jt u8, jf u8, k u32)) | path | metadata | sha256 32
//! ```
//!
//! An entry that is not exactly that, that the kernel would not take, or that anybody else could have written
//! is compiled again. Whoever runs as the same user is not kept out by any of this: they could as well change
//! the container's record, or the runtime.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, fstat, mkdirat, openat, renameat};
use rustix::fs::{statat, unlinkat};
use sha2::{Digest, Sha256};

use super::program::{MAX_INSTRUCTIONS, is_legal};
use super::{Filter, Listener, MAX_PROFILE, SeccompError, compile, is_coherent};
use crate::log::{Level, Log};
use crate::sys::BpfInstruction;

/// The directory below `--root`; no container may have this id.
pub const DIRECTORY: &str = ".seccomp-cache";

const MAGIC: &[u8; 8] = b"axilbpf2";
/// Differs between compilers that may give different programs for the same profile.
const COMPILER: [u8; 8] = fingerprint(&[
    env!("CARGO_PKG_VERSION").as_bytes(),
    include_bytes!("action.rs"),
    include_bytes!("compile.rs"),
    include_bytes!("names.rs"),
    include_bytes!("profile.rs"),
    include_bytes!("split.rs"),
    include_bytes!("tree.rs"),
])
.to_le_bytes();
const CHECKSUM: usize = 32;
/// The longest entry: header, four full programs, path and metadata of a profile's size, checksum.
const MAX_SIZE: usize = 64 + 4 * (4 + MAX_INSTRUCTIONS * 8) + MAX_PROFILE + CHECKSUM;
/// Most entries that are kept. Machines have a handful of profiles; more come from somebody who makes them up.
const MAX_ENTRIES: usize = 128;
/// Entries left after the oldest went, so that not every new one has to look for room.
const KEPT_ENTRIES: usize = 96;
/// Bound of all entries together, in bytes.
const MAX_TOTAL: u64 = 8 << 20;

/// FNV-1a, at compile time: nothing of the sources ends up in the binary.
const fn fingerprint(parts: &[&[u8]]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut part = 0;
    while part < parts.len() {
        let bytes = parts[part];
        let mut at = 0;
        while at < bytes.len() {
            hash = (hash ^ bytes[at] as u64).wrapping_mul(0x0100_0000_01b3);
            at += 1;
        }
        part += 1;
    }
    hash
}

/// The filter of `profile`: from the cache below `root`, or compiled and put there. What a profile says in
/// vain goes to `log` when it is compiled.
///
/// A cache that cannot be used costs time, never correctness.
///
/// # Errors
/// [`SeccompError`] when the profile itself cannot be compiled.
pub fn filter(root: &Path, profile: &str, log: &Log) -> Result<Filter, SeccompError> {
    let filter = find_or_compile(root, profile, log)?;
    log.debug(|| format!("seccomp filter flags: {}", filter.flags));
    Ok(filter)
}

fn find_or_compile(root: &Path, profile: &str, log: &Log) -> Result<Filter, SeccompError> {
    if profile.len() > MAX_PROFILE {
        return Err(SeccompError::TooBig {
            length: profile.len(),
            limit: MAX_PROFILE,
        });
    }
    let key = key(profile);
    let directory = open_directory(root);
    if let Some(found) = directory
        .as_ref()
        .and_then(|directory| read(directory, &key))
    {
        return Ok(found);
    }
    let filter = compile::compile(profile, &mut |text| log.write(Level::Debug, &text))?;
    if let Some(directory) = directory {
        // Losing an entry is harmless: the next container compiles again.
        let _ = write(&directory, &key, &filter);
    }
    Ok(filter)
}

fn key(profile: &str) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(COMPILER);
    hash.update(std::env::consts::ARCH.as_bytes());
    hash.update([0]);
    hash.update(profile.as_bytes());
    hash.finalize().into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Opens the directory, making it if needed; `None` when it is not ours alone.
fn open_directory(root: &Path) -> Option<OwnedFd> {
    let path = root.join(DIRECTORY);
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    let directory = openat(CWD, &path, flags, Mode::empty())
        .or_else(|_| {
            mkdirat(CWD, &path, Mode::from_raw_mode(0o700))?;
            openat(CWD, &path, flags, Mode::empty())
        })
        .ok()?;
    is_ours(&directory, 0o077).then_some(directory)
}

/// Whether the open file belongs to this user and grants nobody else anything of `forbidden`.
fn is_ours(file: impl AsFd, forbidden: u32) -> bool {
    fstat(file).is_ok_and(|stat| {
        stat.st_uid == rustix::process::geteuid().as_raw() && stat.st_mode & forbidden == 0
    })
}

fn read(directory: &OwnedFd, key: &[u8; 32]) -> Option<Filter> {
    // Non-blocking: a FIFO must not make anybody wait.
    let flags =
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = openat(directory, hex(key), flags, Mode::empty()).ok()?;
    let stat = fstat(&file).ok()?;
    let regular = FileType::from_raw_mode(stat.st_mode).is_file();
    let size = usize::try_from(stat.st_size).ok()?;
    if !regular || stat.st_nlink != 1 || size > MAX_SIZE || !is_ours(&file, 0o077) {
        return None;
    }
    let mut bytes = Vec::with_capacity(size + 1);
    // It may grow meanwhile; what is read then has no valid checksum.
    File::from(file)
        .take(size as u64 + 1)
        .read_to_end(&mut bytes)
        .ok()?;
    decode(&bytes, key)
}

fn write(directory: &OwnedFd, key: &[u8; 32], filter: &Filter) -> std::io::Result<()> {
    let bytes = encode(key, filter);
    make_room(directory, bytes.len() as u64)?;
    let name = hex(key);
    // Of several writers each has its own file, and each renames a whole one.
    let temporary = format!("{name}.{}", std::process::id());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(directory, &temporary, flags, Mode::from_raw_mode(0o600))?;
    let written = File::from(file)
        .write_all(&bytes)
        .and_then(|()| Ok(renameat(directory, &temporary, directory, &name)?));
    if written.is_err() {
        let _ = unlinkat(directory, &temporary, AtFlags::empty());
    }
    written
}

/// Removes the oldest files until another one of `size` bytes fits, among them what writers left that were
/// killed.
fn make_room(directory: &OwnedFd, size: u64) -> std::io::Result<()> {
    let mut files = Vec::new();
    let mut total = size;
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        // Removed by another runtime meanwhile, or the directory itself.
        let Ok(stat) = statat(directory, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) else {
            continue;
        };
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            continue;
        }
        let length = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
        total = total.saturating_add(length);
        files.push((
            stat.st_mtime,
            stat.st_mtime_nsec,
            length,
            entry.file_name().to_owned(),
        ));
    }
    if files.len() < MAX_ENTRIES && total <= MAX_TOTAL {
        return Ok(());
    }
    files.sort();
    let mut left = files.len();
    for (.., length, name) in files {
        if left <= KEPT_ENTRIES && total <= MAX_TOTAL {
            break;
        }
        // Ignored: gone already, which is as good.
        let _ = unlinkat(directory, name, AtFlags::empty());
        left -= 1;
        total = total.saturating_sub(length);
    }
    Ok(())
}

fn encode(key: &[u8; 32], filter: &Filter) -> Vec<u8> {
    let number = |length: usize| u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes();
    let (path, metadata) = filter
        .listener
        .as_ref()
        .map_or(("", ""), |listener| (&listener.path, &listener.metadata));
    let instructions: usize = filter.programs.iter().map(Vec::len).sum();
    let mut bytes = Vec::with_capacity(256 + instructions * 8 + path.len() + metadata.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(key);
    bytes.extend_from_slice(&filter.flags.to_le_bytes());
    bytes.extend_from_slice(&number(filter.programs.len()));
    bytes.extend_from_slice(&number(path.len()));
    bytes.extend_from_slice(&number(metadata.len()));
    for program in &filter.programs {
        bytes.extend_from_slice(&number(program.len()));
        for i in program {
            bytes.extend_from_slice(&i.to_bytes());
        }
    }
    bytes.extend_from_slice(path.as_bytes());
    bytes.extend_from_slice(metadata.as_bytes());
    let checksum = Sha256::digest(&bytes);
    bytes.extend_from_slice(&checksum);
    bytes
}

/// Takes fields off the front of an entry.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(head)
    }

    fn number(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn length(&mut self) -> Option<usize> {
        usize::try_from(self.number()?).ok()
    }

    fn program(&mut self) -> Option<Vec<BpfInstruction>> {
        let count = self.length()?;
        let instructions = self.take(count.checked_mul(8)?)?;
        let program: Vec<_> = instructions
            .chunks_exact(8)
            .filter_map(|chunk| Some(BpfInstruction::from_bytes(chunk.try_into().ok()?)))
            .collect();
        is_legal(&program).then_some(program)
    }

    fn text(&mut self, length: usize) -> Option<String> {
        String::from_utf8(self.take(length)?.to_vec()).ok()
    }
}

fn decode(bytes: &[u8], key: &[u8; 32]) -> Option<Filter> {
    let (content, checksum) = bytes.split_at_checked(bytes.len().checked_sub(CHECKSUM)?)?;
    if Sha256::digest(content).as_slice() != checksum {
        return None;
    }
    let content = content.strip_prefix(MAGIC.as_slice())?;
    let mut reader = Reader(content.strip_prefix(key.as_slice())?);
    let flags = reader.number()?;
    let programs = reader.length()?;
    let (path, metadata) = (reader.length()?, reader.length()?);
    let programs = (0..programs)
        .map(|_| reader.program())
        .collect::<Option<Vec<_>>>()?;
    let path = reader.text(path)?;
    let metadata = reader.text(metadata)?;
    let listener = (!path.is_empty()).then_some(Listener { path, metadata });
    let filter = Filter {
        flags,
        programs,
        listener,
    };
    (reader.0.is_empty() && is_coherent(&filter)).then_some(filter)
}

#[cfg(test)]
mod tests;
