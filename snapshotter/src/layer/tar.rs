//! A pull reader of tar archives that trusts nothing: every length is bounded before it is used,
//! and archives that readers are known to disagree about are refused, not guessed.
//!
//! Only reading is here. What an entry means for a layer is decided in `entry.rs`.

use std::io::{self, BufRead};

use super::header::{self, BLOCK, Dialect, Header};
use super::limits::Limits;
use super::pax::{self, Extended, Time};
use super::skeleton::Recorder;
use super::sparse::{self, Segment};
use crate::error::{ErrorClass, shown};

/// The largest size eleven octal digits can state.
const OCTAL_SIZE_MAX: u64 = 0o77_777_777_777;

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// A header block is damaged.
    #[error("tar header at byte {offset}: {reason}")]
    Header {
        /// Where the block starts in the inflated layer.
        offset: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// An entry contradicts itself or uses what is not supported.
    #[error("tar entry \"{path}\": {reason}")]
    Entry {
        /// Its path, cut and escaped.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The archive ends in the middle of an entry.
    #[error("tar archive ends inside an entry at byte {offset}")]
    Truncated {
        /// Where it ends.
        offset: u64,
    },
    /// A named limit is reached.
    #[error("layer has more than {limit} {what}")]
    Limit {
        /// What is limited, in the plural.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// The stream could not be read.
    #[error("cannot read the inflated layer")]
    Read {
        /// Why.
        source: io::Error,
    },
}

impl TarError {
    /// Returns the class: limits are `Exhausted`, the rest is wrong input.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Limit { .. } => ErrorClass::Exhausted,
            Self::Read { source } => ErrorClass::of_io(source),
            Self::Header { .. } | Self::Entry { .. } | Self::Truncated { .. } => {
                ErrorClass::InvalidArgument
            }
        }
    }
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// One entry with long names and extended headers applied.
#[derive(Debug, Clone)]
pub(crate) struct TarEntry {
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Kind,
    /// Size of the file, holes included.
    pub(crate) size: u64,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) mtime: Time,
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the stored bytes belong; `None` for a file without holes.
    pub(crate) sparse: Option<Vec<Segment>>,
}

/// Extended and long-name headers seen since the last entry.
#[derive(Default)]
struct Announced {
    extended: Option<Extended>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

/// Reads entries one after the other.
#[derive(Debug)]
pub(crate) struct TarReader<R> {
    input: R,
    limits: Limits,
    offset: u64,
    /// Content of the current entry not read yet.
    content: u64,
    /// Filler after that content.
    padding: u64,
    entries: u64,
    ended: bool,
}

impl<R: BufRead> TarReader<R> {
    pub(crate) fn new(input: R, limits: Limits) -> Self {
        Self {
            input,
            limits,
            offset: 0,
            content: 0,
            padding: 0,
            entries: 0,
            ended: false,
        }
    }

    /// Gives the stream back, to read what follows the end of the archive.
    pub(crate) fn into_input(self) -> R {
        self.input
    }

    /// Skips what is left of the current entry and reads the next one.
    pub(crate) fn next_entry(&mut self) -> Result<Option<TarEntry>, TarError> {
        let mut announced = Announced::default();
        loop {
            self.skip_entry()?;
            let start = self.offset;
            let Some((header, block)) = self.header(&announced)? else {
                return Ok(None);
            };
            self.entries += 1;
            if self.entries > self.limits.entries {
                return Err(TarError::Limit {
                    what: "entries",
                    limit: self.limits.entries,
                });
            }
            let wrong = |reason| TarError::Header {
                offset: start,
                reason,
            };
            match header.kind {
                b'x' | b'g' | b'L' | b'K' if header.dialect == Dialect::V7 => {
                    return Err(wrong("a header that extends the next one in an old format"));
                }
                b'x' if announced.extended.is_some() => {
                    return Err(wrong("two extended headers for one entry"));
                }
                b'x' => {
                    let bytes = self.small_content(header.size)?;
                    let parsed = pax::parse(&bytes, self.limits.sparse_segments);
                    announced.extended = Some(parsed.map_err(wrong)?);
                }
                b'g' => {
                    let bytes = self.small_content(header.size)?;
                    pax::check_global(&bytes).map_err(wrong)?;
                }
                b'L' if announced.long_name.is_none() => {
                    announced.long_name = Some(self.long_text(header.size)?);
                }
                b'K' if announced.long_link.is_none() => {
                    announced.long_link = Some(self.long_text(header.size)?);
                }
                b'L' | b'K' => return Err(wrong("two long names for one entry")),
                _ => return self.entry(header, &block, announced, start).map(Some),
            }
        }
    }

    /// Returns the next piece of the current entry's stored content; empty at its end.
    pub(crate) fn content(&mut self) -> Result<&[u8], TarError> {
        if self.content == 0 {
            return Ok(&[]);
        }
        let offset = self.offset;
        let left = self.content;
        let buffer = self
            .input
            .fill_buf()
            .map_err(|source| TarError::Read { source })?;
        if buffer.is_empty() {
            return Err(TarError::Truncated { offset });
        }
        Ok(&buffer[..buffer
            .len()
            .min(usize::try_from(left).unwrap_or(usize::MAX))])
    }

    /// Marks `amount` bytes of what [`Self::content`] returned as used.
    pub(crate) fn consume(&mut self, amount: usize) {
        self.input.consume(amount);
        self.content -= amount as u64;
        self.offset += amount as u64;
    }

    fn skip_entry(&mut self) -> Result<(), TarError> {
        self.content += std::mem::take(&mut self.padding);
        loop {
            let amount = self.content()?.len();
            if amount == 0 {
                return Ok(());
            }
            self.consume(amount);
        }
    }

    fn header(&mut self, announced: &Announced) -> Result<Option<(Header, [u8; BLOCK])>, TarError> {
        if self.ended {
            return Ok(None);
        }
        let start = self.offset;
        let wrong = |reason| TarError::Header {
            offset: start,
            reason,
        };
        let block = self.block()?;
        let header = match block {
            Some(block) => header::parse(&block)
                .map_err(wrong)?
                .map(|header| (header, block)),
            None => None,
        };
        if header.is_none() {
            if announced.extended.is_some()
                || announced.long_name.is_some()
                || announced.long_link.is_some()
            {
                return Err(TarError::Truncated { offset: start });
            }
            // The end is two blocks of zeros; a file that just stops is accepted as by GNU and Go.
            let second = if block.is_some() { self.block()? } else { None };
            if second.is_some_and(|block| block.iter().any(|&b| b != 0)) {
                return Err(wrong("one block of zeros in the middle of the archive"));
            }
            self.ended = true;
        }
        Ok(header)
    }

    /// Reads one block, or `None` at the end of the stream.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            let buffer = self
                .input
                .fill_buf()
                .map_err(|source| TarError::Read { source })?;
            if buffer.is_empty() {
                break;
            }
            let amount = buffer.len().min(BLOCK - filled);
            block[filled..filled + amount].copy_from_slice(&buffer[..amount]);
            self.input.consume(amount);
            filled += amount;
            self.offset += amount as u64;
        }
        match filled {
            0 => Ok(None),
            BLOCK => Ok(Some(block)),
            _ => Err(TarError::Truncated {
                offset: self.offset,
            }),
        }
    }

    /// Reads the content of an extended header.
    fn small_content(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        if size > self.limits.pax_bytes {
            let limit = self.limits.pax_bytes;
            return Err(TarError::Limit {
                what: "bytes in an extended header",
                limit,
            });
        }
        self.set_content(size);
        let mut bytes = Vec::new();
        loop {
            let piece = self.content()?;
            if piece.is_empty() {
                return Ok(bytes);
            }
            bytes.extend_from_slice(piece);
            let amount = piece.len();
            self.consume(amount);
        }
    }

    fn long_text(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        let limit = self.limits.path_bytes as u64;
        // One more for the NUL that ends it.
        if size > limit + 1 {
            return Err(TarError::Limit {
                what: "bytes in a path",
                limit,
            });
        }
        let offset = self.offset;
        let bytes = self.small_content(size)?;
        let name = header::text(&bytes);
        if bytes[name.len()..].iter().any(|&b| b != 0) {
            return Err(TarError::Header {
                offset,
                reason: "long name contains a NUL",
            });
        }
        Ok(name.to_vec())
    }

    fn set_content(&mut self, size: u64) {
        self.content = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    fn entry(
        &mut self,
        header: Header,
        block: &[u8; BLOCK],
        announced: Announced,
        start: u64,
    ) -> Result<TarEntry, TarError> {
        let extended = announced.extended.unwrap_or_default();
        if (extended.path.is_some() && announced.long_name.is_some())
            || (extended.link.is_some() && announced.long_link.is_some())
        {
            let reason = "named by a GNU and by a PAX header";
            return Err(TarError::Header {
                offset: start,
                reason,
            });
        }
        let sparse_name = extended.sparse.name.clone();
        let path = sparse_name
            .or(extended.path)
            .or(announced.long_name)
            .unwrap_or_else(|| header.name.clone());
        let link = extended.link.or(announced.long_link).unwrap_or(header.link);
        let shown_path = shown(&path);
        let wrong = |reason| TarError::Entry {
            path: shown_path.clone(),
            reason,
        };

        let stored = agreed_size(header.size, extended.size).map_err(wrong)?;
        let kind = kind_of(header.kind, &path).map_err(wrong)?;
        match kind {
            Kind::File => self.set_content(stored),
            // Readers disagree whether content of a hard link is there, so it must not be.
            _ if stored == 0 => self.set_content(0),
            _ => return Err(wrong("has content but is not a regular file")),
        }
        let is_old_sparse = header.kind == b'S';
        let (sparse, size) = if is_old_sparse || extended.sparse.is_used() {
            if kind != Kind::File || (is_old_sparse && header.dialect != Dialect::Gnu) {
                return Err(wrong("has a sparse map but is not a regular file"));
            }
            let (segments, size) =
                self.sparse_map(is_old_sparse, block, &extended.sparse, &wrong)?;
            sparse::check(&segments, size, self.content).map_err(wrong)?;
            (Some(segments), size)
        } else {
            (None, self.content)
        };
        Ok(TarEntry {
            path,
            link,
            kind,
            size,
            mode: header.mode,
            uid: extended.uid.unwrap_or(header.uid),
            gid: extended.gid.unwrap_or(header.gid),
            mtime: extended.mtime.unwrap_or(Time {
                seconds: header.mtime,
                nanoseconds: 0,
            }),
            device: header.device,
            xattrs: extended.xattrs,
            sparse,
        })
    }

    /// Collects the sparse map in whichever of its four notations it comes.
    fn sparse_map(
        &mut self,
        is_old: bool,
        block: &[u8; BLOCK],
        records: &pax::SparseRecords,
        wrong: &dyn Fn(&'static str) -> TarError,
    ) -> Result<(Vec<Segment>, u64), TarError> {
        let limit = self.limits.sparse_segments;
        if is_old {
            let (mut segments, size, mut more) = sparse::old_header(block).map_err(wrong)?;
            while more {
                // The map continues in blocks that the size field does not count.
                let offset = self.offset;
                let block = self.block()?.ok_or(TarError::Truncated { offset })?;
                more = sparse::old_extension(&block, &mut segments).map_err(wrong)?;
                if segments.len() > limit {
                    return Err(wrong("sparse map has too many segments"));
                }
            }
            return Ok((segments, size));
        }
        let size = records
            .real_size
            .ok_or_else(|| wrong("sparse map without the real size"))?;
        let segments = match (records.major, records.minor) {
            (Some(1), Some(0)) => self.inline_map(limit, wrong)?,
            (None | Some(0), None | Some(0 | 1)) => {
                if records
                    .count
                    .is_some_and(|count| count != (records.map.len() / 2) as u64)
                {
                    return Err(wrong("sparse map has another length than announced"));
                }
                sparse::pairs(&records.map).map_err(wrong)?
            }
            _ => return Err(wrong("sparse map of an unknown version")),
        };
        Ok((segments, size))
    }

    /// Reads a map of version 1.0: decimal lines at the start of the content, padded to a block.
    fn inline_map(
        &mut self,
        limit: usize,
        wrong: &dyn Fn(&'static str) -> TarError,
    ) -> Result<Vec<Segment>, TarError> {
        let before = self.content;
        let count = self.decimal_line(wrong)?;
        let count = usize::try_from(count).ok().filter(|count| *count <= limit);
        let count = count.ok_or_else(|| wrong("sparse map has too many segments"))?;
        let mut numbers = Vec::new();
        for _ in 0..count * 2 {
            numbers.push(self.decimal_line(wrong)?);
        }
        let mut filler = (before - self.content).wrapping_neg() % BLOCK as u64;
        while filler > 0 {
            let amount = self
                .content()?
                .len()
                .min(usize::try_from(filler).unwrap_or(BLOCK));
            if amount == 0 {
                return Err(wrong("sparse map is cut off"));
            }
            self.consume(amount);
            filler -= amount as u64;
        }
        sparse::pairs(&numbers).map_err(wrong)
    }

    fn decimal_line(&mut self, wrong: &dyn Fn(&'static str) -> TarError) -> Result<u64, TarError> {
        let mut digits = Vec::new();
        loop {
            let Some(&byte) = self.content()?.first() else {
                return Err(wrong("sparse map is cut off"));
            };
            self.consume(1);
            if byte == b'\n' {
                return pax::decimal(&digits).ok_or_else(|| wrong("sparse map is not decimal"));
            }
            digits.push(byte);
            if digits.len() > 20 {
                return Err(wrong("sparse map is not decimal"));
            }
        }
    }
}

impl<R: BufRead> TarReader<Recorder<R>> {
    /// Marks bytes as used that are content of a file of the layer.
    pub(crate) fn take_content(&mut self, amount: usize) -> Result<(), TarError> {
        let taken = self.input.take_content(amount);
        taken.map_err(|source| TarError::Read { source })?;
        self.content -= amount as u64;
        self.offset += amount as u64;
        Ok(())
    }

    pub(crate) fn recorder(&mut self) -> &mut Recorder<R> {
        &mut self.input
    }
}

/// Decides how many bytes follow the header. Where the two statements differ and the short one
/// could have been exact, readers disagree on where the next entry starts (CVE-2025-62518).
fn agreed_size(base: u64, extended: Option<u64>) -> Result<u64, &'static str> {
    match extended {
        None => Ok(base),
        Some(size) if size == base => Ok(size),
        Some(size) if size > OCTAL_SIZE_MAX && (base == 0 || base == OCTAL_SIZE_MAX) => Ok(size),
        Some(_) => Err("size differs between the PAX and the ustar header"),
    }
}

fn kind_of(flag: u8, path: &[u8]) -> Result<Kind, &'static str> {
    Ok(match flag {
        // Before ustar a directory was a file whose name ends in a slash.
        b'0' | 0 if path.ends_with(b"/") => Kind::Directory,
        b'0' | 0 | b'7' | b'S' => Kind::File,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'3' => Kind::CharDevice,
        b'4' => Kind::BlockDevice,
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        _ => return Err("type is not supported"),
    })
}

#[cfg(test)]
mod tests;
