//! Small kernel files, read with a bound relative to a directory that is open, and the forms they come in.

use std::io::Read as _;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use crate::domain::usage::DeviceNumber;

/// Most bytes read of one file: `io.stat` of a machine with hundreds of disks.
const LARGEST: u64 = 64 << 10;

/// From here on a limit of cgroup v1 is none: the kernel shows the largest number of pages there is.
const UNLIMITED: u64 = 1 << 62;

/// A directory of a kernel file system.
#[derive(Debug)]
pub(super) struct Directory(OwnedFd);

impl Directory {
    /// Opens a directory below another; none when there is none. Links and `..` are not followed.
    pub(super) fn below(at: impl AsFd, path: &str) -> Option<Self> {
        let path = path.trim_start_matches('/');
        let path = if path.is_empty() { "." } else { path };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        open(at, path, flags).ok().map(Self)
    }

    /// Text of a file; none when it cannot be read. What is longer than the bound is cut at a line's end.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        self.bounded(name, LARGEST)
    }

    /// As [`Directory::text`] with another bound, in bytes.
    pub(super) fn bounded(&self, name: &str, most: u64) -> Option<String> {
        let file = open(&self.0, name, OFlags::RDONLY | OFlags::CLOEXEC).ok()?;
        let mut bytes = Vec::with_capacity(1024);
        let file = std::fs::File::from(file);
        file.take(most).read_to_end(&mut bytes).ok()?;
        let mut text = String::from_utf8(bytes).ok()?;
        if u64::try_from(text.len()).is_ok_and(|length| length >= most) {
            text.truncate(text.rfind('\n').map_or(0, |end| end + 1));
        }
        Some(text)
    }

    /// A file that holds one number; none when it cannot be read or holds something else, such as `max`.
    pub(super) fn number(&self, name: &str) -> Option<u64> {
        self.text(name)?.trim().parse().ok()
    }

    /// A limit; none when there is none, whether it is `max`, -1, or the largest number of cgroup v1.
    pub(super) fn limit(&self, name: &str) -> Option<u64> {
        self.number(name).filter(|&limit| limit < UNLIMITED)
    }

    /// Names of the directories in it, at most this many.
    pub(super) fn directories(&self, most: usize) -> Vec<String> {
        use rustix::fs::{Dir, FileType};
        // A descriptor that only names the directory (O_PATH) cannot list it.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(entries) = open(&self.0, ".", flags).and_then(Dir::new) else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter(|entry| entry.file_type() == FileType::Directory)
            .filter_map(|entry| entry.file_name().to_str().ok().map(str::to_owned))
            .filter(|name| name != "." && name != "..")
            .take(most)
            .collect()
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn open(at: impl AsFd, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    openat2(at, path, flags, Mode::empty(), resolve)
}

/// Lines of a name and a number, as in `memory.stat`.
pub(super) fn fields(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (name, value) = line.split_once(' ')?;
        Some((name, value.trim().parse().ok()?))
    })
}

/// One of those lines.
pub(super) fn field(text: &str, wanted: &str) -> Option<u64> {
    fields(text).find_map(|(name, value)| (name == wanted).then_some(value))
}

/// `major:minor` of a device.
pub(super) fn device_number(text: &str) -> Option<DeviceNumber> {
    let (major, minor) = text.split_once(':')?;
    Some(DeviceNumber {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn open_dir(path: &std::path::Path) -> Directory {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Directory(rustix::fs::open(path, flags, Mode::empty()).unwrap())
    }

    #[test]
    fn numbers_and_limits_are_read_as_the_kernel_writes_them() {
        let dir = tempfile::tempdir().unwrap();
        let group = open_dir(dir.path());
        for (text, number, limit) in [
            ("4096\n", Some(4096), Some(4096)),
            ("max\n", None, None),
            ("-1\n", None, None),
            (
                "9223372036854771712\n",
                Some(9_223_372_036_854_771_712),
                None,
            ),
            ("", None, None),
        ] {
            fs::write(dir.path().join("file"), text).unwrap();
            assert_eq!(group.number("file"), number, "{text:?}");
            assert_eq!(group.limit("file"), limit, "{text:?}");
        }
        assert_eq!(group.number("missing"), None);
    }

    #[test]
    fn a_file_longer_than_the_bound_is_cut_at_a_line() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "11\n22\n33\n").unwrap();
        assert_eq!(open_dir(dir.path()).bounded("file", 5).unwrap(), "11\n");
        assert_eq!(open_dir(dir.path()).bounded("file", 2).unwrap(), "");
        assert_eq!(
            open_dir(dir.path()).bounded("file", 99).unwrap(),
            "11\n22\n33\n"
        );
    }

    #[test]
    fn a_path_never_leads_out_of_the_hierarchy() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("mount/pod")).unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        std::os::unix::fs::symlink("../outside", dir.path().join("mount/link")).unwrap();
        let mount = open_dir(&dir.path().join("mount"));
        assert!(Directory::below(&mount, "/pod").is_some());
        assert!(Directory::below(&mount, "/").is_some());
        for path in ["../outside", "/pod/../../outside", "link", "/missing"] {
            assert!(Directory::below(&mount, path).is_none(), "{path}");
        }
    }
}
