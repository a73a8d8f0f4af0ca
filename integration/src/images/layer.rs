//! One layer: its entries, packed as a tar archive and compressed.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::{CREATED, digest};

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// `tar+gzip`.
    Gzip,
    /// `tar+zstd`.
    Zstd,
    /// Plain `tar`.
    Plain,
}

/// What an entry of a layer is; paths are relative to the root of the image.
#[derive(Debug, Clone)]
pub enum Entry {
    /// A directory.
    Dir,
    /// A file with its bytes.
    Text(Vec<u8>),
    /// A file with the bytes of a file of this machine.
    Copy(PathBuf),
    /// A symbolic link to the given target.
    Symlink(String),
    /// A hard link to an entry of the same archive.
    Hardlink(String),
}

#[derive(Debug, Clone)]
struct Item {
    path: String,
    mode: u32,
    owner: u64,
    entry: Entry,
}

/// A layer under construction.
#[derive(Debug, Clone)]
pub struct Layer {
    compression: Compression,
    items: Vec<Item>,
}

/// A layer as a blob.
#[derive(Debug)]
pub struct Packed {
    /// Its media type.
    pub media_type: &'static str,
    /// Digest of the archive before compression.
    pub diff_id: String,
    /// The compressed archive.
    pub bytes: Vec<u8>,
}

impl Layer {
    /// An empty layer.
    #[must_use]
    pub fn new(compression: Compression) -> Self {
        Self {
            compression,
            items: Vec::new(),
        }
    }

    /// Adds any entry.
    #[must_use]
    pub fn entry(mut self, path: &str, mode: u32, owner: u64, entry: Entry) -> Self {
        self.items.push(Item {
            path: path.to_owned(),
            mode,
            owner,
            entry,
        });
        self
    }

    /// Adds a directory, mode 0755, of root.
    #[must_use]
    pub fn dir(self, path: &str) -> Self {
        self.entry(path, 0o755, 0, Entry::Dir)
    }

    /// Adds a file, mode 0644, of root.
    #[must_use]
    pub fn text(self, path: &str, content: &str) -> Self {
        self.entry(path, 0o644, 0, Entry::Text(content.as_bytes().to_vec()))
    }

    /// Adds a script, mode 0755, of root.
    #[must_use]
    pub fn script(self, path: &str, content: &str) -> Self {
        self.entry(path, 0o755, 0, Entry::Text(content.as_bytes().to_vec()))
    }

    /// Adds a program or library of this machine, mode 0755, of root.
    #[must_use]
    pub fn copy(self, path: &str, from: &Path) -> Self {
        self.entry(path, 0o755, 0, Entry::Copy(from.to_owned()))
    }

    /// Adds a symbolic link.
    #[must_use]
    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(path, 0o777, 0, Entry::Symlink(target.to_owned()))
    }

    /// Adds the directories above `path` that are not in this layer yet.
    #[must_use]
    pub fn parents(mut self, path: &str) -> Self {
        let ancestors: Vec<_> = Path::new(path).ancestors().skip(1).collect();
        for dir in ancestors.iter().rev().filter_map(|dir| dir.to_str()) {
            if !dir.is_empty() && !self.items.iter().any(|item| item.path == dir) {
                self = self.dir(dir);
            }
        }
        self
    }

    /// Packs and compresses the layer.
    ///
    /// # Errors
    /// When a file to copy cannot be read or an entry cannot be expressed in tar.
    pub fn pack(&self) -> Result<Packed> {
        let mut archive = tar::Builder::new(Vec::new());
        for item in &self.items {
            item.append(&mut archive)
                .with_context(|| format!("pack the entry {}", item.path))?;
        }
        let plain = archive.into_inner().context("end the archive")?;
        let diff_id = digest(&plain);
        let (media_type, bytes) = match self.compression {
            Compression::Plain => ("application/vnd.oci.image.layer.v1.tar", plain),
            Compression::Gzip => ("application/vnd.oci.image.layer.v1.tar+gzip", gzip(&plain)?),
            Compression::Zstd => {
                let bytes = zstd::encode_all(plain.as_slice(), 3).context("compress by zstd")?;
                ("application/vnd.oci.image.layer.v1.tar+zstd", bytes)
            }
        };
        Ok(Packed {
            media_type,
            diff_id,
            bytes,
        })
    }
}

fn gzip(plain: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = flate2::GzBuilder::new()
        .mtime(0)
        .write(Vec::new(), flate2::Compression::new(3));
    encoder.write_all(plain).context("compress by gzip")?;
    encoder.finish().context("compress by gzip")
}

impl Item {
    fn append(&self, archive: &mut tar::Builder<Vec<u8>>) -> Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_mtime(CREATED);
        header.set_mode(self.mode);
        header.set_uid(self.owner);
        header.set_gid(self.owner);
        header.set_size(0);
        let kind = match &self.entry {
            Entry::Dir => tar::EntryType::Directory,
            Entry::Text(_) | Entry::Copy(_) => tar::EntryType::Regular,
            Entry::Symlink(_) => tar::EntryType::Symlink,
            Entry::Hardlink(_) => tar::EntryType::Link,
        };
        header.set_entry_type(kind);
        match &self.entry {
            Entry::Dir => archive.append_data(&mut header, &self.path, [].as_slice())?,
            Entry::Text(bytes) => append_file(archive, &mut header, &self.path, bytes)?,
            Entry::Copy(from) => {
                let bytes = fs::read(from).with_context(|| format!("read {}", from.display()))?;
                append_file(archive, &mut header, &self.path, &bytes)?;
            }
            Entry::Symlink(target) | Entry::Hardlink(target) => {
                archive.append_link(&mut header, &self.path, target)?;
            }
        }
        if self.path.is_empty() {
            bail!("an entry without a path");
        }
        Ok(())
    }
}

fn append_file(
    archive: &mut tar::Builder<Vec<u8>>,
    header: &mut tar::Header,
    path: &str,
    bytes: &[u8],
) -> Result<()> {
    header.set_size(bytes.len() as u64);
    archive.append_data(header, path, bytes)?;
    Ok(())
}
