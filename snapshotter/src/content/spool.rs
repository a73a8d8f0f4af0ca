//! An archive of images on its way in: read once, from wherever it comes, and kept in a file without a name
//! until its images are stored. A crash leaves nothing of it.
//!
//! Archives are hostile: names are only ever looked up, never opened; numbers and sizes are bounded.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;

use crate::error::{ErrorClass, PathError};
use crate::layer::entry::LayerPath;
use crate::layer::inflate::{self, Compression};
use crate::layer::limits::Limits;
use crate::layer::tar::{Kind, TarError, TarReader};
use crate::store::{Growing, Store};
use crate::tree::Usage;

/// Bounds on an archive of images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpoolLimits {
    /// Files, links and directories.
    pub members: u64,
    /// Bytes of the archive after inflating.
    pub bytes: u64,
}

impl Default for SpoolLimits {
    fn default() -> Self {
        Self {
            members: 65_536,
            bytes: 256 << 30,
        }
    }
}

/// Why an archive cannot be taken in.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// It is no tar archive, or one readers disagree about, or beyond a limit.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// A member cannot be part of an archive of images.
    #[error("archive member \"{name}\": {reason}")]
    Member {
        /// Its name, cut and escaped.
        name: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A system call failed.
    #[error(transparent)]
    Path(#[from] PathError),
}

impl SpoolError {
    /// Returns the class.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Tar(error) => error.class(),
            Self::Member { .. } => ErrorClass::InvalidArgument,
            Self::Path(error) => error.class(),
        }
    }
}

/// Where the content of a member is.
#[derive(Debug, Clone, Copy)]
struct Extent {
    offset: u64,
    size: u64,
}

/// The members of an archive by name.
#[derive(Debug)]
pub struct Spool {
    file: Arc<File>,
    members: BTreeMap<LayerPath, Extent>,
    links: BTreeMap<LayerPath, LayerPath>,
    _growing: Arc<Growing>,
}

impl Store {
    /// Reads an archive to its end; gzip and zstd around it are seen by their first bytes.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no archive of images, `Exhausted` for a limit or a full disk.
    pub fn spool(&self, source: impl Read, limits: &SpoolLimits) -> Result<Spool, SpoolError> {
        let failed = |source| PathError::new("write", "the archive beside the store", source);
        let file = self.unnamed_file().map_err(failed)?;
        let growing = Arc::new(Growing::default());
        self.shared.index().spools.push(Arc::downgrade(&growing));
        let bounds = Limits {
            entries: limits.members,
            ..Limits::default()
        };
        let mut input = BufReader::with_capacity(64 * 1024, source);
        let compression = compression_of(&mut input).map_err(|source| TarError::Read { source })?;
        let inflated = inflate::reader(compression, input, bounds.zstd_window)
            .map_err(|source| TarError::Read { source })?;
        let inflated = BufReader::with_capacity(256 * 1024, inflated.take(limits.bytes));
        let mut archive = TarReader::new(inflated, bounds);
        let mut spool = Spool {
            file: Arc::new(file),
            members: BTreeMap::new(),
            links: BTreeMap::new(),
            _growing: Arc::clone(&growing),
        };
        let mut end = 0;
        while let Some(entry) = archive.next_entry()? {
            let refused = |reason| SpoolError::Member {
                name: crate::error::shown(&entry.path),
                reason,
            };
            let name = LayerPath::parse(&entry.path, &bounds).map_err(refused)?;
            match entry.kind {
                Kind::File if entry.sparse.is_some() => return Err(refused("is sparse")),
                Kind::File => {
                    let extent = Extent {
                        offset: end,
                        size: entry.size,
                    };
                    if name.is_root() || spool.members.insert(name.clone(), extent).is_some() {
                        return Err(refused("is there twice"));
                    }
                    loop {
                        let piece = archive.content()?;
                        let amount = piece.len();
                        if amount == 0 {
                            break;
                        }
                        (&*spool.file).write_all(piece).map_err(failed)?;
                        archive.consume(amount);
                        end += amount as u64;
                        growing.set(Usage {
                            bytes: end,
                            inodes: 1,
                        });
                    }
                }
                Kind::Symlink | Kind::HardLink => {
                    // Old archives of docker have one layer in several places this way.
                    let target = match (entry.kind, name.split()) {
                        (Kind::Symlink, Some((above, _))) if !entry.link.starts_with(b"/") => {
                            [above.as_bytes(), b"/", &entry.link].concat()
                        }
                        _ => entry.link.clone(),
                    };
                    let target = LayerPath::parse(&target, &bounds).map_err(refused)?;
                    spool.links.insert(name, target);
                }
                Kind::Directory => {}
                Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => {
                    return Err(refused("is a device"));
                }
            }
        }
        let mut rest = archive.into_input();
        loop {
            let amount = rest
                .fill_buf()
                .map_err(|source| TarError::Read { source })?
                .len();
            if amount == 0 {
                break;
            }
            rest.consume(amount);
        }
        if rest.get_ref().limit() == 0 {
            let limit = limits.bytes;
            return Err(TarError::Limit {
                what: "bytes in the archive",
                limit,
            }
            .into());
        }
        Ok(spool)
    }

    /// Makes a file that is gone with its descriptor.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub(crate) fn unnamed_file(&self) -> io::Result<File> {
        let mode = Mode::RUSR | Mode::WUSR;
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        match openat(&self.shared.ingest, ".", flags | OFlags::TMPFILE, mode) {
            Ok(fd) => Ok(File::from(fd)),
            Err(Errno::OPNOTSUPP | Errno::ISDIR) => {
                // Swept when the store is opened, should the machine stop before the next call.
                let name = format!("spool-{}", std::process::id());
                let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
                let fd = openat(&self.shared.ingest, &*name, flags, mode)?;
                unlinkat(&self.shared.ingest, &*name, AtFlags::empty())?;
                Ok(File::from(fd))
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl Spool {
    fn extent(&self, name: &str) -> Option<Extent> {
        let name = LayerPath::parse(name.as_bytes(), &Limits::default()).ok()?;
        let target = self.links.get(&name).unwrap_or(&name);
        self.members.get(target).copied()
    }

    /// Returns the size of a member in bytes; `None` when there is no such file.
    #[must_use]
    pub fn size(&self, name: &str) -> Option<u64> {
        self.extent(name).map(|extent| extent.size)
    }

    /// Returns a reader of a member from `offset` on.
    #[must_use]
    pub fn open(&self, name: &str, offset: u64) -> Option<Member> {
        let extent = self.extent(name)?;
        let offset = offset.min(extent.size);
        Some(Member {
            file: Arc::clone(&self.file),
            offset: extent.offset + offset,
            left: extent.size - offset,
        })
    }

    /// Reads a small member whole. `None` when there is no such file.
    ///
    /// # Errors
    /// When it has more than `limit` bytes, or as the disk says.
    pub fn read(&self, name: &str, limit: u64) -> io::Result<Option<Vec<u8>>> {
        let Some(mut member) = self.open(name, 0) else {
            return Ok(None);
        };
        if member.left > limit {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("is larger than {limit} bytes"),
            ));
        }
        let mut bytes = Vec::new();
        member.read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }
}

/// The bytes of a member.
#[derive(Debug)]
pub struct Member {
    file: Arc<File>,
    offset: u64,
    left: u64,
}

impl Read for Member {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let wanted = out
            .len()
            .min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let amount = self.file.read_at(&mut out[..wanted], self.offset)?;
        if amount == 0 && wanted > 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        self.offset += amount as u64;
        self.left -= amount as u64;
        Ok(amount)
    }
}

/// Tells how a stream is compressed by its first bytes.
///
/// # Errors
/// As the stream.
pub fn compression_of(input: &mut impl BufRead) -> io::Result<Compression> {
    let first = input.fill_buf()?;
    Ok(match first {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
        _ => Compression::None,
    })
}
