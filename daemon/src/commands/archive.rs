//! Archives at the command's end: files, directories with an OCI layout, standard input and output.

use std::fs::{self, File};
use std::io::{self, IsTerminal as _, Read, Write};
use std::path::{Component, Path, PathBuf};

use anyhow::Context as _;
use tokio::sync::mpsc;

use crate::pieces::{Piece, PieceReader, PieceWriter};

/// Reads an archive, or makes one of a directory, and sends it. An error goes down the channel.
pub(super) fn read(source: &Path, pieces: mpsc::Sender<Piece>) {
    let failed = pieces.clone();
    let mut to = PieceWriter::new(pieces);
    let result = (|| -> io::Result<()> {
        if source == Path::new("-") {
            io::copy(&mut io::stdin().lock(), &mut to)?;
        } else if source.is_dir() {
            pack(source, &mut to)?;
        } else {
            io::copy(&mut File::open(source)?, &mut to)?;
        }
        to.flush()
    })();
    if let Err(error) = result {
        let message = format!("read {}: {error}", source.display());
        // Ignored: nobody takes pieces any more, which may be the very error.
        let _gone = failed.blocking_send(Err(io::Error::new(error.kind(), message)));
    }
}

/// Makes an archive of a layout: its documents first, then the blobs.
fn pack(dir: &Path, to: &mut impl Write) -> io::Result<()> {
    let mut tar = tar::Builder::new(to);
    let mut add = |path: &Path, name: &Path| -> io::Result<()> {
        let mut file = File::open(path)?;
        if !file.metadata()?.is_file() {
            return Ok(());
        }
        let mut header = tar::Header::new_ustar();
        header.set_size(file.metadata()?.len());
        header.set_mode(0o644);
        tar.append_data(&mut header, name, &mut file)
    };
    for name in ["oci-layout", "index.json", "manifest.json"] {
        let path = dir.join(name);
        if path.exists() {
            add(&path, Path::new(name))?;
        }
    }
    for algorithm in sorted(&dir.join("blobs"))? {
        for blob in sorted(&algorithm)? {
            let name = blob.strip_prefix(dir).map_err(io::Error::other)?;
            add(&blob, name)?;
        }
    }
    tar.finish()
}

fn sorted(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir)? {
        paths.push(entry?.path());
    }
    paths.sort();
    Ok(paths)
}

/// Where an archive goes.
#[derive(Debug)]
pub(super) enum Target {
    Stdout,
    File(PathBuf),
    /// As a layout.
    Directory(PathBuf),
}

impl Target {
    /// Decides by what is there: nothing is written yet.
    pub(super) fn of(output: &Path) -> anyhow::Result<Self> {
        if output == Path::new("-") {
            anyhow::ensure!(
                !io::stdout().is_terminal(),
                "standard output is a terminal; give --output"
            );
            return Ok(Self::Stdout);
        }
        let ends_in_slash = output.as_os_str().as_encoded_bytes().ends_with(b"/");
        if ends_in_slash || output.is_dir() {
            let is_empty = fs::read_dir(output).map_or(true, |mut names| names.next().is_none());
            anyhow::ensure!(is_empty, "{} is not empty", output.display());
            return Ok(Self::Directory(output.to_owned()));
        }
        Ok(Self::File(output.to_owned()))
    }

    /// Writes the archive; a file appears when it is whole and on disk.
    pub(super) fn write(self, pieces: mpsc::Receiver<Piece>) -> anyhow::Result<()> {
        let mut reader = PieceReader::new(pieces);
        match self {
            Self::Stdout => {
                let mut out = io::stdout().lock();
                io::copy(&mut reader, &mut out).context("write standard output")?;
                out.flush().context("write standard output")
            }
            Self::File(path) => {
                let mut name = path.clone().into_os_string();
                name.push(".partial");
                let partial = PathBuf::from(name);
                let written = write_file(&mut reader, &partial, &path);
                if written.is_err() {
                    // Ignored: the first error is the one to tell.
                    let _left = fs::remove_file(&partial);
                }
                written.with_context(|| format!("write {}", path.display()))
            }
            Self::Directory(path) => {
                unpack(reader, &path).with_context(|| format!("write {}", path.display()))
            }
        }
    }
}

fn write_file(reader: &mut impl Read, partial: &Path, path: &Path) -> io::Result<()> {
    let mut options = File::options();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .open(partial)?;
    io::copy(reader, &mut file)?;
    file.sync_all()?;
    fs::rename(partial, path)
}

/// Writes the files of a layout. The archive is the daemon's own, and still no name of it leads elsewhere.
fn unpack(reader: impl Read, dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir)?;
    let mut archive = tar::Archive::new(reader);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = entry.path()?.into_owned();
        let is_plain = name
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        anyhow::ensure!(
            is_plain && entry.header().entry_type().is_file(),
            "the archive has {name:?}, which no layout has"
        );
        let path = dir.join(&name);
        if let Some(above) = path.parent() {
            fs::create_dir_all(above)?;
        }
        let mut file = File::options().write(true).create_new(true).open(&path)?;
        io::copy(&mut entry, &mut file)?;
        file.sync_all()?;
    }
    Ok(())
}
