//! Builds tar archives entry by entry, valid ones and ones no honest tool writes.

use std::io::Write;

/// The fields of one header, freely settable.
#[derive(Clone)]
pub(crate) struct Head {
    pub(crate) name: Vec<u8>,
    pub(crate) mode: u64,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) size: u64,
    pub(crate) mtime: u64,
    pub(crate) kind: u8,
    pub(crate) link: Vec<u8>,
    pub(crate) device: (u64, u64),
    pub(crate) magic: &'static [u8; 8],
}

pub(crate) const USTAR: &[u8; 8] = b"ustar\x0000";
pub(crate) const GNU: &[u8; 8] = b"ustar  \0";

impl Head {
    pub(crate) fn new(name: &str, kind: u8) -> Self {
        Self {
            name: name.into(),
            mode: if kind == b'5' { 0o755 } else { 0o644 },
            uid: 0,
            gid: 0,
            size: 0,
            mtime: 1_700_000_000,
            kind,
            link: Vec::new(),
            device: (0, 0),
            magic: USTAR,
        }
    }

    pub(crate) fn block(&self) -> [u8; 512] {
        let mut block = [0; 512];
        let put = |block: &mut [u8; 512], at: usize, bytes: &[u8]| {
            block[at..at + bytes.len()].copy_from_slice(bytes);
        };
        put(&mut block, 0, &self.name[..self.name.len().min(100)]);
        for (at, width, value) in [
            (100, 8, self.mode),
            (108, 8, self.uid),
            (116, 8, self.gid),
            (124, 12, self.size),
            (136, 12, self.mtime),
            (329, 8, self.device.0),
            (337, 8, self.device.1),
        ] {
            let octal = format!("{value:0width$o}", width = width - 1);
            if octal.len() < width {
                put(&mut block, at, octal.as_bytes());
            } else {
                put(&mut block, at + width - 8, &value.to_be_bytes());
                block[at] |= 0x80;
            }
        }
        block[156] = self.kind;
        put(&mut block, 157, &self.link[..self.link.len().min(100)]);
        put(&mut block, 257, self.magic);
        seal(&mut block);
        block
    }
}

/// Writes the checksum.
pub(crate) fn seal(block: &mut [u8; 512]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

#[derive(Default, Clone)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
}

impl Archive {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// Adds a header and its content, padded.
    pub(crate) fn entry(self, head: &Head, content: &[u8]) -> Self {
        let filler = content.len().wrapping_neg() % 512;
        self.raw(&head.block()).raw(content).raw(&vec![0; filler])
    }

    /// Adds an entry without content.
    pub(crate) fn node(self, head: Head) -> Self {
        self.entry(&head, b"")
    }

    pub(crate) fn file(self, name: &str, content: &[u8]) -> Self {
        let head = Head {
            size: content.len() as u64,
            ..Head::new(name, b'0')
        };
        self.entry(&head, content)
    }

    pub(crate) fn dir(self, name: &str) -> Self {
        self.node(Head::new(name, b'5'))
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.node(Head {
            link: target.into(),
            mode: 0o777,
            ..Head::new(name, b'2')
        })
    }

    pub(crate) fn hard_link(self, name: &str, target: &str) -> Self {
        self.node(Head {
            link: target.into(),
            ..Head::new(name, b'1')
        })
    }

    /// Adds an extended header for the next entry.
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut body = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length.to_string().len() + rest != length {
                length += 1;
            }
            write!(body, "{length} {key}=").unwrap();
            body.extend_from_slice(value);
            body.push(b'\n');
        }
        let head = Head {
            size: body.len() as u64,
            ..Head::new("pax", b'x')
        };
        self.entry(&head, &body)
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.raw(&[0; 1024]).bytes
    }

    /// The bytes so far, without an end.
    pub(crate) fn unfinished(self) -> Vec<u8> {
        self.bytes
    }
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}
