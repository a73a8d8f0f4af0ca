//! What is kept of a layer's archive beside its files: every byte but the content of regular files, and for
//! that which file it is in. With it the archive can be made again exactly (`assemble.rs`), for checking and
//! for export, at about a hundredth of its size.
//!
//! ```text
//! zstd( "axil skeleton 1\n" record* )
//! record  'r' length bytes                                           bytes of the archive
//!         'p' length path, count (offset length)*, crc32 (4 bytes)   content, from a file of the layer
//!         'e' length                                                 the end, with the size of the archive
//! ```
//! Numbers are LEB128. The checksums only tell which file is damaged; the digest of the archive decides.

use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::os::fd::OwnedFd;

use flate2::Crc;
use rustix::fs::{AtFlags, Mode, OFlags, openat, unlinkat};

use super::entry::LayerPath;
use super::sparse::Segment;

/// File of a snapshot directory.
pub(crate) const SKELETON: &str = "skeleton";
/// First bytes, with the version of the format.
pub(crate) const MAGIC: &[u8] = b"axil skeleton 1\n";
pub(crate) const RAW: u8 = b'r';
pub(crate) const PAYLOAD: u8 = b'p';
pub(crate) const END: u8 = b'e';
/// Bytes collected before a record is written.
const RUN: usize = 64 * 1024;
/// Headers of one layer repeat each other: the fastest level makes them a twentieth.
const LEVEL: i32 = 1;
/// Largest window a skeleton may ask for, as a power of two: more than that level uses, since an unpack process
/// that was taken over may have written anything.
pub(crate) const WINDOW_LOG: u32 = 23;

/// Passes an archive on to its reader and notes what the reader used of it, and for what.
pub(crate) struct Recorder<R> {
    input: R,
    writer: Option<Writer>,
    /// Files with content so far.
    payloads: u64,
    total: u64,
    crc: Crc,
    taken: u64,
    /// The first failure to write; told at the end, because consuming cannot fail.
    failure: Option<io::Error>,
}

impl<R> std::fmt::Debug for Recorder<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder")
            .field("payloads", &self.payloads)
            .field("total", &self.total)
            .finish_non_exhaustive()
    }
}

impl<R: BufRead> Recorder<R> {
    /// Counts only.
    pub(crate) fn counting(input: R) -> Self {
        Self::new(input, None)
    }

    /// Writes the skeleton into a snapshot directory. One that would take more than `limit` bytes is given
    /// up: the layer is as good as any, but cannot be made into its archive again.
    pub(crate) fn writing(input: R, dir: &OwnedFd, limit: u64) -> io::Result<Self> {
        Ok(Self::new(input, Some(Writer::create(dir, limit)?)))
    }

    fn new(input: R, writer: Option<Writer>) -> Self {
        Self {
            input,
            writer,
            payloads: 0,
            total: 0,
            crc: Crc::new(),
            taken: 0,
            failure: None,
        }
    }

    pub(crate) fn input(&self) -> &R {
        &self.input
    }

    pub(crate) fn into_input(self) -> R {
        self.input
    }

    /// How many files with content went by.
    pub(crate) fn payloads(&self) -> u64 {
        self.payloads
    }

    /// Uses bytes that are content of a file of the layer.
    pub(crate) fn take_content(&mut self, amount: usize) -> io::Result<()> {
        if self.writer.is_some() {
            let bytes = self.input.fill_buf()?;
            self.crc.update(&bytes[..amount]);
        }
        self.input.consume(amount);
        self.taken += amount as u64;
        self.total += amount as u64;
        Ok(())
    }

    /// Says in which file the content is that was taken since the last call.
    pub(crate) fn content_is_at(&mut self, path: &LayerPath, segments: &[Segment]) {
        let crc = std::mem::take(&mut self.crc).sum();
        if std::mem::take(&mut self.taken) == 0 {
            return;
        }
        self.payloads += 1;
        self.write(|writer| writer.payload(path, segments, crc));
    }

    /// Reads what is left of the input, to its end, and closes the skeleton. Returns the size of the archive if
    /// there is a skeleton now.
    pub(crate) fn finish(&mut self) -> io::Result<Option<u64>> {
        loop {
            let amount = self.fill_buf()?.len();
            if amount == 0 {
                break;
            }
            self.consume(amount);
        }
        let total = self.total;
        self.write(|writer| writer.end(total));
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        Ok(self.writer.take().map(|_| total))
    }

    fn write(&mut self, work: impl FnOnce(&mut Writer) -> io::Result<Kept>) {
        let Some(writer) = &mut self.writer else {
            return;
        };
        match work(writer) {
            Ok(Kept::Whole) => {}
            Ok(Kept::GivenUp) => self.writer = None,
            Err(error) => {
                self.writer = None;
                self.failure.get_or_insert(error);
            }
        }
    }
}

impl<R: BufRead> Read for Recorder<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let amount = self.fill_buf()?.read(out)?;
        self.consume(amount);
        Ok(amount)
    }
}

impl<R: BufRead> BufRead for Recorder<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.input.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        if let Some(mut writer) = self.writer.take() {
            // What is consumed was in the buffer a moment ago, so this only looks at it again.
            let written = match self.input.fill_buf() {
                Ok(bytes) => writer.raw(&bytes[..amount]),
                Err(error) => Err(error),
            };
            self.writer = Some(writer);
            self.write(|_| written);
        }
        self.input.consume(amount);
        self.total += amount as u64;
    }
}

/// Whether the skeleton goes on.
enum Kept {
    Whole,
    GivenUp,
}

struct Writer {
    encoder: zstd::stream::write::Encoder<'static, Limited>,
    dir: OwnedFd,
    run: Vec<u8>,
    /// Written by [`Writer::end`] or removed; otherwise removed when dropped.
    is_settled: bool,
}

impl Writer {
    fn create(dir: &OwnedFd, limit: u64) -> io::Result<Self> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = File::from(openat(dir, SKELETON, flags | OFlags::CLOEXEC, mode)?);
        let sink = Limited { file, left: limit };
        let mut encoder = zstd::stream::write::Encoder::new(sink, LEVEL)?;
        encoder.include_checksum(true)?;
        encoder.write_all(MAGIC)?;
        Ok(Self {
            encoder,
            dir: dir.try_clone()?,
            run: Vec::new(),
            is_settled: false,
        })
    }

    fn raw(&mut self, bytes: &[u8]) -> io::Result<Kept> {
        self.run.extend_from_slice(bytes);
        if self.run.len() < RUN {
            return Ok(Kept::Whole);
        }
        let flushed = self.flush();
        self.judged(flushed)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.run.is_empty() {
            return Ok(());
        }
        let mut head = vec![RAW];
        put_number(&mut head, self.run.len() as u64);
        self.encoder.write_all(&head)?;
        self.encoder.write_all(&self.run)?;
        self.run.clear();
        Ok(())
    }

    fn payload(&mut self, path: &LayerPath, segments: &[Segment], crc: u32) -> io::Result<Kept> {
        let mut record = vec![PAYLOAD];
        put_number(&mut record, path.as_bytes().len() as u64);
        record.extend_from_slice(path.as_bytes());
        put_number(&mut record, segments.len() as u64);
        for segment in segments {
            put_number(&mut record, segment.offset);
            put_number(&mut record, segment.length);
        }
        record.extend_from_slice(&crc.to_le_bytes());
        let written = self.flush().and_then(|()| self.encoder.write_all(&record));
        self.judged(written)
    }

    fn end(&mut self, total: u64) -> io::Result<Kept> {
        let mut record = vec![END];
        put_number(&mut record, total);
        let written = self
            .flush()
            .and_then(|()| self.encoder.write_all(&record))
            .and_then(|()| self.encoder.do_finish());
        let kept = self.judged(written)?;
        self.is_settled = matches!(kept, Kept::Whole);
        Ok(kept)
    }

    /// Tells reaching the limit, which is no error, from a disk that failed.
    fn judged(&mut self, written: io::Result<()>) -> io::Result<Kept> {
        match written {
            Ok(()) => Ok(Kept::Whole),
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => Ok(Kept::GivenUp),
            Err(error) => Err(error),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.is_settled {
            // Ignored: a part of a skeleton is never read, and goes with its layer.
            let _ = unlinkat(&self.dir, SKELETON, AtFlags::empty());
        }
    }
}

/// A file that takes so many bytes.
struct Limited {
    file: File,
    left: u64,
}

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.left {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge));
        }
        let amount = self.file.write(bytes)?;
        self.left -= amount as u64;
        Ok(amount)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn put_number(out: &mut Vec<u8>, mut number: u64) {
    loop {
        let [low, ..] = number.to_le_bytes();
        number >>= 7;
        if number == 0 {
            out.push(low & 0x7f);
            return;
        }
        out.push(low | 0x80);
    }
}

/// Reads a number as [`put_number`] writes it.
pub(crate) fn read_number(input: &mut impl Read) -> io::Result<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let mut byte = [0];
        input.read_exact(&mut byte)?;
        let digit = u64::from(byte[0] & 0x7f);
        if shift == 63 && digit > 1 {
            break;
        }
        number |= digit << shift;
        if byte[0] & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidData,
        "a number of the skeleton is too large",
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_survive_the_round_trip(number: u64) {
            let mut bytes = Vec::new();
            put_number(&mut bytes, number);
            prop_assert_eq!(read_number(&mut &bytes[..]).unwrap(), number);
        }
    }

    #[test]
    fn a_number_beyond_64_bits_is_refused() {
        assert!(read_number(&mut &[0xff; 11][..]).is_err());
        assert!(read_number(&mut &[0x80, 0x80][..]).is_err());
    }
}
