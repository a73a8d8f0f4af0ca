//! The file of a container's log: opened safely, written in whole entries, replaced on rotation.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

/// How often a look-up that raced with a rename is tried again (openat2(2), EAGAIN).
const AGAIN_LIMIT: u32 = 32;

/// An open log.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: File,
    /// How much of the first unwritten entry is already in the file.
    torn: usize,
}

/// Opens a file for appending, creating it 0640; its directory must exist, and it is no link itself. In a path with
/// `/./` what comes before is the node's, and what comes after the container's: there no link is followed.
///
/// # Errors
/// It cannot be opened, or is not a regular file.
pub fn open(path: &Path) -> io::Result<File> {
    // Not blocking: opening a FIFO that was put there must not wait for its reader.
    let flags = OFlags::WRONLY
        | OFlags::APPEND
        | OFlags::CREATE
        | OFlags::NOFOLLOW
        | OFlags::NONBLOCK
        | OFlags::NOCTTY
        | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(0o640);
    let file = match halves(path) {
        None => openat(CWD, path, flags, mode)?,
        Some((directory, inside)) => {
            let path_only = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let directory = openat(CWD, directory, path_only, Mode::empty())?;
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
            let mut tries = 0;
            loop {
                match openat2(&directory, inside, flags, mode, resolve) {
                    Err(Errno::AGAIN) if tries < AGAIN_LIMIT => tries += 1,
                    opened => break opened?,
                }
            }
        }
    };
    let file = File::from(file);
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        ))
    }
}

/// What comes before and after the last `/./`.
fn halves(path: &Path) -> Option<(&Path, &Path)> {
    let bytes = path.as_os_str().as_bytes();
    let at = bytes.windows(3).rposition(|three| three == b"/./")?;
    let part = |bytes| Path::new(OsStr::from_bytes(bytes));
    // The root keeps its slash.
    Some((part(&bytes[..at.max(1)]), part(&bytes[at + 3..])))
}

impl LogFile {
    /// Opens the log at `path`.
    ///
    /// # Errors
    /// See [`open`].
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            file: open(path)?,
            torn: 0,
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes whole entries and removes from `entries` what needs no other try.
    ///
    /// # Errors
    /// The file system refuses. What is left in `entries` begins with an entry of which some bytes
    /// may be in the file already; the next write goes on from there.
    pub fn write(&mut self, entries: &mut Vec<u8>) -> io::Result<()> {
        while self.torn < entries.len() {
            match self.file.write(&entries[self.torn..]) {
                Ok(0) => return self.keep(entries, io::ErrorKind::WriteZero.into()),
                Ok(count) => self.torn += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return self.keep(entries, error),
            }
        }
        entries.clear();
        self.torn = 0;
        Ok(())
    }

    fn keep(&mut self, entries: &mut Vec<u8>, error: io::Error) -> io::Result<()> {
        let whole = entries[..self.torn].iter().rposition(|b| *b == b'\n');
        let whole = whole.map_or(0, |end| end + 1);
        entries.drain(..whole);
        self.torn -= whole;
        Err(error)
    }

    /// Opens the log at its path again, after the old file was renamed. An entry that the old file
    /// holds in part is written to the new one in full.
    ///
    /// # Errors
    /// See [`open`]; the old file stays in use, and no file was created.
    pub fn reopen(&mut self) -> io::Result<()> {
        // Order: the new file is there before the old one is given up.
        self.file = open(&self.path)?;
        self.torn = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn rotation_goes_on_in_the_new_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        let mut log = LogFile::open(&path).unwrap();
        log.write(&mut b"one\n".to_vec()).unwrap();
        fs::rename(&path, directory.path().join("0.log.1")).unwrap();
        log.write(&mut b"two\n".to_vec()).unwrap();
        log.reopen().unwrap();
        log.write(&mut b"three\n".to_vec()).unwrap();
        let read = |name: &str| fs::read_to_string(directory.path().join(name)).unwrap();
        assert_eq!(read("0.log.1"), "one\ntwo\n");
        assert_eq!(read("0.log"), "three\n");
    }

    #[test]
    fn a_failed_rotation_keeps_the_old_file_and_creates_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let pod = directory.path().join("pod");
        fs::create_dir(&pod).unwrap();
        let mut log = LogFile::open(&pod.join("0.log")).unwrap();
        let moved = directory.path().join("moved");
        fs::rename(&pod, &moved).unwrap();
        assert!(log.reopen().is_err());
        log.write(&mut b"kept\n".to_vec()).unwrap();
        assert_eq!(fs::read_to_string(moved.join("0.log")).unwrap(), "kept\n");
        assert!(!pod.exists());
    }

    #[test]
    fn refuses_links_and_fifos() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink("/dev/null", &link).unwrap();
        assert!(LogFile::open(&link).is_err());
        let fifo = directory.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RWXU).unwrap();
        assert!(LogFile::open(&fifo).is_err());
    }

    #[test]
    fn follows_links_to_the_directory_and_none_inside() {
        use std::os::unix::fs::symlink;
        let directory = tempfile::tempdir().unwrap();
        let top = directory.path().canonicalize().unwrap();
        let (logs, elsewhere) = (top.join("logs"), top.join("elsewhere"));
        fs::create_dir_all(logs.join("c")).unwrap();
        fs::create_dir(&elsewhere).unwrap();
        symlink(&logs, top.join("link")).unwrap();
        symlink("../elsewhere", logs.join("out")).unwrap();
        symlink("c", logs.join("in")).unwrap();
        symlink("/proc/self/cwd", logs.join("magic")).unwrap();
        fs::create_dir(logs.join("directory.log")).unwrap();
        for refused in [
            "logs/./out/0.log",
            "logs/./in/0.log",
            "logs/./magic/0.log",
            "logs/./../elsewhere/0.log",
            "logs/./c/../../elsewhere/0.log",
            "logs/./directory.log",
            "logs/./missing/0.log",
            "logs/./",
        ] {
            assert!(LogFile::open(&top.join(refused)).is_err(), "{refused}");
        }
        for taken in ["logs/./c/0.log", "link/./c/1.log", "logs/out/2.log"] {
            let mut log = LogFile::open(&top.join(taken)).unwrap();
            log.write(&mut b"x\n".to_vec()).unwrap();
            assert_eq!(fs::read(top.join(taken)).unwrap(), b"x\n", "{taken}");
        }
        let names = |path: &Path| fs::read_dir(path).unwrap().count();
        assert_eq!((names(&elsewhere), names(&logs.join("c"))), (1, 2));
        assert_eq!(
            halves(Path::new("/./a")),
            Some((Path::new("/"), Path::new("a")))
        );
    }

    #[test]
    fn a_torn_entry_is_finished_or_repeated() {
        let mut log = LogFile {
            path: PathBuf::new(),
            file: File::open("/dev/null").unwrap(),
            torn: 6,
        };
        // Six bytes are written: "a\n" whole and "bbbb" of the next entry.
        let mut entries = b"a\nbbbbbb\nc\n".to_vec();
        assert!(log.write(&mut entries).is_err(), "opened for reading only");
        assert_eq!((entries.as_slice(), log.torn), (&b"bbbbbb\nc\n"[..], 4));
    }
}
