//! Makes the archive of a committed layer again, byte for byte, from its skeleton and its files.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use flate2::Crc;
use rustix::fs::{FileType, OFlags, fstat};
use rustix::io::Errno;

use super::entry::LayerPath;
use super::limits::Limits;
use super::moves::{self, ASIDE, MOVES, MOVES_MAX, Moves, Place};
use super::skeleton::{END, MAGIC, PAYLOAD, RAW, SKELETON, WINDOW_LOG, read_number};
use super::sparse::Segment;
use crate::confined::{kind_of, open_beneath, open_dir, open_dir_path};
use crate::error::{PathError, shown};
use crate::gc::Roots;
use crate::snapshot::chain::ChainId;
use crate::store::{Lease, Store, read_bounded};

/// Most damaged files that are named; more are counted.
const NAMED: usize = 32;

/// What to do about content that is not what it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tolerance {
    /// Fail at once.
    None,
    /// Note it, put zeros where bytes are missing, go on.
    Note,
}

/// Damaged files of a layer, named up to a bound.
#[derive(Debug, Default)]
pub(crate) struct Damage {
    pub(crate) named: Vec<String>,
    pub(crate) count: u64,
}

/// The archive of a layer as a stream.
pub(crate) struct Assembled {
    skeleton: BufReader<Box<dyn Read + Send>>,
    files: OwnedFd,
    aside: Option<OwnedFd>,
    moves: Moves,
    tolerance: Tolerance,
    number: u64,
    total: u64,
    state: State,
    damage: Damage,
}

impl std::fmt::Debug for Assembled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Assembled")
            .field("total", &self.total)
            .finish_non_exhaustive()
    }
}

/// The archive of a committed layer as it came, without compression. The layer stays while this is open.
#[derive(Debug)]
pub struct LayerArchive {
    archive: Assembled,
    size: u64,
    _lease: Lease,
}

impl LayerArchive {
    /// Returns the size of the archive in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }
}

impl Read for LayerArchive {
    /// Reads on. The caller takes the digest: damage shows in it, if not before.
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.archive.read(out)
    }
}

impl Store {
    /// Opens the archive of a layer. `None` when the layer is not here or has no skeleton.
    ///
    /// # Errors
    /// When its skeleton is damaged or cannot be read.
    pub fn open_archive(&self, chain: &ChainId) -> Result<Option<LayerArchive>, PathError> {
        let mut kept = Roots::default();
        kept.chains.insert(chain.clone());
        let lease = self.lease(kept);
        let Some(layer) = self.shared.index().layers.get(chain).cloned() else {
            return Ok(None);
        };
        let Some(size) = layer.archive_bytes else {
            return Ok(None);
        };
        let archive = open_dir(&self.shared.snapshots, layer.id.to_string().as_bytes())
            .and_then(|snapshot| Assembled::open(&snapshot, Tolerance::None))
            .map_err(|source| {
                PathError::new("open", format!("snapshots/{}/{SKELETON}", layer.id), source)
            })?;
        Ok(Some(LayerArchive {
            archive,
            size,
            _lease: lease,
        }))
    }
}

enum State {
    /// At the start of a record.
    Between,
    Raw(u64),
    Content(Content),
    End,
}

/// A file in the middle of being read.
struct Content {
    path: LayerPath,
    /// `None` when it could not be opened.
    file: Option<File>,
    /// Segments still to read, the next one last.
    segments: Vec<Segment>,
    crc: Crc,
    expected: u32,
    failed: Option<String>,
}

impl Assembled {
    /// Opens the archive of the layer in this snapshot directory.
    pub(crate) fn open(snapshot: &OwnedFd, tolerance: Tolerance) -> io::Result<Self> {
        let file = open_beneath(
            snapshot,
            SKELETON.as_bytes(),
            OFlags::RDONLY | OFlags::NONBLOCK,
        )?;
        let mut decoder = zstd::stream::read::Decoder::new(File::from(file))?;
        decoder.window_log_max(WINDOW_LOG)?;
        let mut skeleton: BufReader<Box<dyn Read + Send>> = BufReader::new(Box::new(decoder));
        let mut magic = [0; MAGIC.len()];
        skeleton.read_exact(&mut magic)?;
        if magic != *MAGIC {
            return Err(damaged("is of a format this version does not know"));
        }
        let moves = match read_bounded(snapshot, MOVES, MOVES_MAX) {
            Ok(bytes) => moves::from_json(&bytes).map_err(damaged)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let aside = match open_dir_path(snapshot, ASIDE.as_bytes()) {
            Ok(dir) => Some(dir),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        Ok(Self {
            skeleton,
            files: open_dir(snapshot, b"fs")?,
            aside,
            moves: Moves::new(moves),
            tolerance,
            number: 0,
            total: 0,
            state: State::Between,
            damage: Damage::default(),
        })
    }

    /// What was found damaged so far.
    pub(crate) fn damage(&mut self) -> Damage {
        std::mem::take(&mut self.damage)
    }

    fn next_record(&mut self) -> io::Result<State> {
        let mut tag = [0];
        self.skeleton.read_exact(&mut tag)?;
        match tag[0] {
            RAW => Ok(State::Raw(read_number(&mut self.skeleton)?)),
            PAYLOAD => self.next_content().map(State::Content),
            END => {
                let total = read_number(&mut self.skeleton)?;
                if total != self.total {
                    return Err(damaged("states another size than it has"));
                }
                // The frame's own checksum is looked at where the stream ends.
                if self.skeleton.read(&mut tag)? != 0 {
                    return Err(damaged("goes on after its end"));
                }
                Ok(State::End)
            }
            _ => Err(damaged("has a record of an unknown kind")),
        }
    }

    fn next_content(&mut self) -> io::Result<Content> {
        let limits = Limits::default();
        let length = self.bounded(limits.path_bytes)?;
        let mut path = vec![0; length];
        self.skeleton.read_exact(&mut path)?;
        let path = LayerPath::from_record(&path)
            .ok_or_else(|| damaged("names what is no path inside the layer"))?;
        let count = self.bounded(limits.sparse_segments)?;
        let mut segments = Vec::new();
        for _ in 0..count {
            let offset = read_number(&mut self.skeleton)?;
            let length = read_number(&mut self.skeleton)?;
            segments.push(Segment { offset, length });
        }
        segments.reverse();
        let mut expected = [0; 4];
        self.skeleton.read_exact(&mut expected)?;
        let place = self.moves.place_of(self.number, &path);
        self.number += 1;
        let (file, failed) = match self.open_place(&place) {
            Ok(file) => (Some(file), None),
            Err(error) => (None, Some(error.to_string())),
        };
        Ok(Content {
            path,
            file,
            segments,
            crc: Crc::new(),
            expected: u32::from_le_bytes(expected),
            failed,
        })
    }

    fn bounded(&mut self, limit: usize) -> io::Result<usize> {
        let number = usize::try_from(read_number(&mut self.skeleton)?).ok();
        number
            .filter(|number| *number <= limit)
            .ok_or_else(|| damaged("has a length beyond its limit"))
    }

    fn open_place(&self, place: &Place) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let missing = || io::Error::from(Errno::NOENT);
        let opened = match place {
            Place::Files(path) => open_beneath(&self.files, path.as_bytes(), flags)?,
            Place::Aside(number, rest) => {
                let aside = self.aside.as_ref().ok_or_else(missing)?;
                let number = number.to_string();
                if rest.is_root() {
                    open_beneath(aside, number.as_bytes(), flags)?
                } else {
                    open_beneath(
                        open_dir_path(aside, number.as_bytes())?,
                        rest.as_bytes(),
                        flags,
                    )?
                }
            }
        };
        if kind_of(&fstat(&opened)?) != FileType::RegularFile {
            return Err(io::Error::other("is not a regular file"));
        }
        Ok(File::from(opened))
    }

    /// Notes a damaged file, or fails with it.
    fn note(&mut self, path: &LayerPath, reason: &str) -> io::Result<()> {
        let text = format!("{}: {reason}", path.shown());
        if self.tolerance == Tolerance::None {
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        self.damage.count += 1;
        if self.damage.named.len() < NAMED {
            self.damage.named.push(text);
        }
        Ok(())
    }

    fn read_content(&mut self, mut content: Content, out: &mut [u8]) -> io::Result<usize> {
        let Some(segment) = content.segments.last_mut() else {
            let found = content.crc.sum();
            if content.failed.is_none() && found != content.expected {
                content.failed = Some("content differs from the archive".to_owned());
            }
            if let Some(reason) = content.failed {
                self.note(&content.path, &reason)?;
            }
            return Ok(0);
        };
        if segment.length == 0 {
            content.segments.pop();
            self.state = State::Content(content);
            return Ok(0);
        }
        let wanted = out
            .len()
            .min(usize::try_from(segment.length).unwrap_or(usize::MAX));
        let read = match &content.file {
            Some(file) => file.read_at(&mut out[..wanted], segment.offset),
            None => Ok(0),
        };
        let amount = match read {
            Ok(0) => {
                content.file = None;
                content
                    .failed
                    .get_or_insert_with(|| "is shorter than in the archive".to_owned());
                out[..wanted].fill(0);
                wanted
            }
            Ok(amount) => amount,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => {
                content.file = None;
                content.failed.get_or_insert_with(|| error.to_string());
                0
            }
        };
        content.crc.update(&out[..amount]);
        segment.offset += amount as u64;
        segment.length -= amount as u64;
        self.total += amount as u64;
        self.state = State::Content(content);
        Ok(amount)
    }
}

impl Read for Assembled {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        loop {
            match std::mem::replace(&mut self.state, State::Between) {
                State::Between => self.state = self.next_record()?,
                State::Raw(0) => {}
                State::Raw(left) => {
                    let wanted = out.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    let amount = self.skeleton.read(&mut out[..wanted])?;
                    if amount == 0 {
                        return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
                    }
                    self.total += amount as u64;
                    self.state = State::Raw(left - amount as u64);
                    return Ok(amount);
                }
                State::Content(content) => {
                    let amount = self.read_content(content, out)?;
                    if amount > 0 {
                        return Ok(amount);
                    }
                }
                State::End => {
                    self.state = State::End;
                    return Ok(0);
                }
            }
        }
    }
}

fn damaged(reason: impl AsRef<str>) -> io::Error {
    let reason = shown(reason.as_ref().as_bytes());
    io::Error::new(io::ErrorKind::InvalidData, format!("the skeleton {reason}"))
}
