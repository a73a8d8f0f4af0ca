//! Compiled filters on disk, named by the hash of profile, compiler and architecture.
//!
//! ```text
//! <root>/.seccomp-cache/<sha256>     owner only, 0600, in a directory 0700
//!   "axilbpf1" | key 32 | flags u32 | count u32 | count × (code u16, jt u8, jf u8, k u32) | sha256 32
//! ```
//!
//! An entry that is not exactly that, or that anybody else could have written, is compiled again.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, fstat, mkdirat, openat, renameat, unlinkat};
use sha2::{Digest, Sha256};

use super::{Filter, SeccompError, compile};
use crate::sys::BpfInstruction;

/// The directory below `--root`; no container may have this id.
pub const DIRECTORY: &str = ".seccomp-cache";

const MAGIC: &[u8; 8] = b"axilbpf1";
/// Changes whenever the compiler gives another program for the same profile.
const COMPILER: &[u8] = concat!("1 ", env!("CARGO_PKG_VERSION")).as_bytes();
const HEADER: usize = 8 + 32 + 4 + 4;
const CHECKSUM: usize = 32;
/// Header, 4096 instructions of 8 bytes, checksum.
const MAX_SIZE: usize = HEADER + 4096 * 8 + CHECKSUM;

/// The filter of `profile`: from the cache below `root`, or compiled and put there.
///
/// A cache that cannot be used costs time, never correctness.
///
/// # Errors
/// [`SeccompError`] when the profile itself cannot be compiled.
pub fn filter(root: &Path, profile: &str) -> Result<Filter, SeccompError> {
    let key = key(profile);
    let directory = open_directory(root);
    if let Some(found) = directory
        .as_ref()
        .and_then(|directory| read(directory, &key))
    {
        return Ok(found);
    }
    let filter = compile::compile(profile)?;
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
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat(directory, hex(key), flags, Mode::empty()).ok()?;
    let stat = fstat(&file).ok()?;
    let regular = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file();
    if !regular || stat.st_nlink != 1 || !is_ours(&file, 0o077) {
        return None;
    }
    let mut bytes = Vec::with_capacity(usize::try_from(stat.st_size).ok()?.min(MAX_SIZE + 1));
    File::from(file)
        .take(MAX_SIZE as u64 + 1)
        .read_to_end(&mut bytes)
        .ok()?;
    decode(&bytes, key)
}

fn write(directory: &OwnedFd, key: &[u8; 32], filter: &Filter) -> std::io::Result<()> {
    let name = hex(key);
    let temporary = format!("{name}.{}", std::process::id());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(directory, &temporary, flags, Mode::from_raw_mode(0o600))?;
    let written = File::from(file)
        .write_all(&encode(key, filter))
        .and_then(|()| Ok(renameat(directory, &temporary, directory, &name)?));
    if written.is_err() {
        let _ = unlinkat(directory, &temporary, rustix::fs::AtFlags::empty());
    }
    written
}

fn encode(key: &[u8; 32], filter: &Filter) -> Vec<u8> {
    let count = u32::try_from(filter.program.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(HEADER + filter.program.len() * 8 + CHECKSUM);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(key);
    bytes.extend_from_slice(&filter.flags.to_le_bytes());
    bytes.extend_from_slice(&count.to_le_bytes());
    for i in &filter.program {
        bytes.extend_from_slice(&i.code.to_le_bytes());
        bytes.extend_from_slice(&[i.jt, i.jf]);
        bytes.extend_from_slice(&i.k.to_le_bytes());
    }
    let checksum = Sha256::digest(&bytes);
    bytes.extend_from_slice(&checksum);
    bytes
}

fn decode(bytes: &[u8], key: &[u8; 32]) -> Option<Filter> {
    let (content, checksum) = bytes.split_at_checked(bytes.len().checked_sub(CHECKSUM)?)?;
    if Sha256::digest(content).as_slice() != checksum {
        return None;
    }
    let content = content.strip_prefix(MAGIC.as_slice())?;
    let content = content.strip_prefix(key.as_slice())?;
    let (flags, content) = content.split_first_chunk::<4>()?;
    let (count, content) = content.split_first_chunk::<4>()?;
    let count = usize::try_from(u32::from_le_bytes(*count)).ok()?;
    if count == 0 || content.len() != count.checked_mul(8)? {
        return None;
    }
    let program = content
        .chunks_exact(8)
        .map(|c| BpfInstruction {
            code: u16::from_le_bytes([c[0], c[1]]),
            jt: c[2],
            jf: c[3],
            k: u32::from_le_bytes([c[4], c[5], c[6], c[7]]),
        })
        .collect();
    Some(Filter {
        flags: u32::from_le_bytes(*flags),
        program,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    const PROFILE: &str = r#"{"defaultAction":"SCMP_ACT_ERRNO",
        "syscalls":[{"names":["read","write","execve"],"action":"SCMP_ACT_ALLOW"}]}"#;

    fn entry(root: &Path) -> std::path::PathBuf {
        root.join(DIRECTORY).join(hex(&key(PROFILE)))
    }

    #[test]
    fn the_second_lookup_reads_what_the_first_wrote() {
        let root = tempfile::tempdir().unwrap();
        let first = filter(root.path(), PROFILE).unwrap();
        assert!(entry(root.path()).exists());
        let directory = open_directory(root.path()).unwrap();
        assert_eq!(read(&directory, &key(PROFILE)), Some(first.clone()));
        assert_eq!(filter(root.path(), PROFILE).unwrap(), first);
    }

    #[test]
    fn a_hostile_or_damaged_entry_is_compiled_again() {
        let root = tempfile::tempdir().unwrap();
        let good = filter(root.path(), PROFILE).unwrap();
        let path = entry(root.path());
        let bytes = std::fs::read(&path).unwrap();
        let allow_all = Filter {
            flags: 0,
            program: vec![BpfInstruction {
                code: 6,
                jt: 0,
                jf: 0,
                k: 0x7fff_0000,
            }],
        };
        let mut flipped = bytes.clone();
        flipped[HEADER + 3] ^= 1;
        let damaged: Vec<Vec<u8>> = vec![
            Vec::new(),
            bytes[..bytes.len() - 1].to_vec(),
            flipped,
            vec![0; bytes.len()],
            // Well formed, but the entry of another profile.
            encode(&[7; 32], &allow_all),
        ];
        for bytes in damaged {
            std::fs::write(&path, &bytes).unwrap();
            assert_eq!(filter(root.path(), PROFILE).unwrap(), good);
        }
        // Well formed and rightly named, but writable by others.
        std::fs::write(&path, encode(&key(PROFILE), &allow_all)).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).unwrap();
        assert_eq!(filter(root.path(), PROFILE).unwrap(), good);
        // A link to such an entry.
        let elsewhere = root.path().join("elsewhere");
        std::fs::write(&elsewhere, encode(&key(PROFILE), &allow_all)).unwrap();
        std::fs::set_permissions(&elsewhere, PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::remove_file(&path).unwrap();
        symlink(&elsewhere, &path).unwrap();
        assert_eq!(filter(root.path(), PROFILE).unwrap(), good);
    }

    #[test]
    fn a_directory_others_can_write_is_not_used() {
        let root = tempfile::tempdir().unwrap();
        filter(root.path(), PROFILE).unwrap();
        let directory = root.path().join(DIRECTORY);
        std::fs::set_permissions(&directory, PermissionsExt::from_mode(0o777)).unwrap();
        assert!(open_directory(root.path()).is_none());
        assert!(filter(root.path(), PROFILE).is_ok());
    }
}
