//! What is brought into the guest: files as a tar archive that is the guest's second disk, read-only. Its `run`
//! is what the guest runs; with `RESULTS` in the environment naming the directory that is brought back.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Sectors of a disk; a disk that is no whole number of them loses its end.
const SECTOR: u64 = 512;

#[derive(Debug, Clone)]
enum Content {
    Bytes(Vec<u8>),
    File(PathBuf),
}

#[derive(Debug, Clone)]
struct Entry {
    name: String,
    mode: u32,
    content: Content,
}

/// Files for the guest.
#[derive(Debug, Clone)]
pub struct Payload {
    entries: Vec<Entry>,
}

impl Payload {
    /// A payload whose `run` is this shell script.
    #[must_use]
    pub fn script(text: &str) -> Self {
        let script = format!("#!/bin/bash\n{text}\n");
        Self {
            entries: vec![Entry {
                name: "run".to_owned(),
                mode: 0o755,
                content: Content::Bytes(script.into_bytes()),
            }],
        }
    }

    /// Adds a text file.
    #[must_use]
    pub fn text(mut self, name: &str, text: &str) -> Self {
        self.entries.push(Entry {
            name: name.to_owned(),
            mode: 0o644,
            content: Content::Bytes(text.as_bytes().to_vec()),
        });
        self
    }

    /// Adds a program of the host's; it must be static, or run on the guest's libraries.
    #[must_use]
    pub fn program(mut self, name: &str, from: &Path) -> Self {
        self.entries.push(Entry {
            name: name.to_owned(),
            mode: 0o755,
            content: Content::File(from.to_owned()),
        });
        self
    }

    /// Writes the disk.
    ///
    /// # Errors
    /// When a file cannot be read or the disk not be written.
    pub fn write(&self, disk: &Path) -> Result<()> {
        let file = File::create(disk).with_context(|| format!("create {}", disk.display()))?;
        let mut tar = tar::Builder::new(file);
        for entry in &self.entries {
            let mut header = tar::Header::new_gnu();
            header.set_mode(entry.mode);
            let appended = match &entry.content {
                Content::Bytes(bytes) => {
                    header.set_size(bytes.len() as u64);
                    tar.append_data(&mut header, &entry.name, bytes.as_slice())
                }
                Content::File(from) => {
                    let source =
                        File::open(from).with_context(|| format!("open {}", from.display()))?;
                    header.set_size(source.metadata()?.len());
                    tar.append_data(&mut header, &entry.name, source)
                }
            };
            appended.with_context(|| format!("pack {}", entry.name))?;
        }
        let file = tar.into_inner().context("end the archive")?;
        let length = file.metadata()?.len();
        file.set_len(length.next_multiple_of(SECTOR))
            .with_context(|| format!("pad {}", disk.display()))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn the_disk_is_an_archive_of_whole_sectors() {
        let disk = std::env::temp_dir().join(format!("axil-payload-{}", std::process::id()));
        let payload = Payload::script("echo hello")
            .text("plan", "one\n")
            .program("self", Path::new("/proc/self/status"));
        // A file of /proc has no size: what cannot be packed as it is must not be packed at all.
        assert!(
            Payload::script("")
                .program("x", Path::new("/nonexistent"))
                .write(&disk)
                .is_err()
        );
        let payload = Payload {
            entries: payload.entries[..2].to_vec(),
        };
        payload.write(&disk).unwrap();
        let length = std::fs::metadata(&disk).unwrap().len();
        let mut archive = tar::Archive::new(File::open(&disk).unwrap());
        let mut found = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            found.push((name, entry.header().mode().unwrap(), text));
        }
        std::fs::remove_file(&disk).unwrap();
        assert_eq!(length % SECTOR, 0);
        let script = "#!/bin/bash\necho hello\n".to_owned();
        assert_eq!(
            found,
            [
                ("run".to_owned(), 0o755, script),
                ("plan".to_owned(), 0o644, "one\n".to_owned())
            ]
        );
    }
}
