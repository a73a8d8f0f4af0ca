//! From a tar entry to the action it asks for: names checked, markers read, attributes filtered.
//! Pure; `apply.rs` executes the actions.

use super::limits::Limits;
use super::pax::Time;
use super::sparse::Segment;
use super::tar::{Kind, TarEntry, TarError};
use super::whiteout::{self, Marker};
use crate::error::shown;

/// A path inside a layer: `a/b/c`, no slash at the ends, no empty, `.` or `..` component, no NUL.
/// The empty path is the root.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(crate) struct LayerPath(Vec<u8>);

impl LayerPath {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0.split(|&b| b == b'/').filter(|c| !c.is_empty())
    }

    /// Splits into the directory and the last component; `None` for the root.
    pub(crate) fn split(&self) -> Option<(Self, &[u8])> {
        match self.0.iter().rposition(|&b| b == b'/') {
            Some(slash) => Some((Self(self.0[..slash].to_vec()), &self.0[slash + 1..])),
            None if self.0.is_empty() => None,
            None => Some((Self::default(), &self.0)),
        }
    }

    /// Appends one component, which must be a plain name.
    pub(crate) fn join(&self, name: &[u8]) -> Self {
        debug_assert!(!name.contains(&b'/') && !matches!(name, b"" | b"." | b".."));
        let mut path = self.clone();
        path.push(name);
        path
    }

    pub(crate) fn push(&mut self, name: &[u8]) {
        if !self.0.is_empty() {
            self.0.push(b'/');
        }
        self.0.extend_from_slice(name);
    }

    /// Drops the last component; the root stays the root.
    pub(crate) fn pop(&mut self) {
        let end = self.0.iter().rposition(|&b| b == b'/').unwrap_or(0);
        self.0.truncate(end);
    }

    /// Returns the path with `from` at its start replaced by `to`, if it is below `from`.
    pub(crate) fn rebased(&self, from: &Self, to: &Self) -> Option<Self> {
        let rest = self.below(from)?;
        let mut path = to.clone();
        for name in rest.split(|&b| b == b'/') {
            path.push(name);
        }
        Some(path)
    }

    /// Returns a key that sorts directly before every path below this one.
    pub(crate) fn first_below(&self) -> Self {
        Self([&self.0[..], b"/"].concat())
    }

    /// Tells whether the path is strictly below `dir`.
    pub(crate) fn is_below(&self, dir: &Self) -> bool {
        self.below(dir).is_some()
    }

    /// Returns what follows `dir` if the path is strictly below it.
    fn below(&self, dir: &Self) -> Option<&[u8]> {
        if dir.is_root() {
            return (!self.is_root()).then_some(&self.0[..]);
        }
        self.0.strip_prefix(&dir.0[..])?.strip_prefix(b"/")
    }

    pub(crate) fn shown(&self) -> String {
        if self.is_root() {
            "/".to_owned()
        } else {
            shown(&self.0)
        }
    }

    /// Reads a path of our own records: in the form above, or it is none.
    pub(crate) fn from_record(bytes: &[u8]) -> Option<Self> {
        let is_plain = |name: &[u8]| !matches!(name, b"" | b"." | b"..") && !name.contains(&0);
        let is_valid = bytes.is_empty() || bytes.split(|&b| b == b'/').all(is_plain);
        is_valid.then(|| Self(bytes.to_vec()))
    }

    /// Reads a path as an archive states it. Leading slashes and `.` mean nothing; `..` is taken
    /// back lexically; a path that leaves the root is refused.
    pub(crate) fn parse(raw: &[u8], limits: &Limits) -> Result<Self, &'static str> {
        if raw.len() > limits.path_bytes {
            return Err("path is too long");
        }
        if raw.contains(&0) {
            return Err("path contains a NUL");
        }
        if raw.is_empty() {
            return Err("path is empty");
        }
        let mut path = Self::default();
        let mut depth = 0;
        for name in raw.split(|&b| b == b'/') {
            match name {
                b"" | b"." => {}
                b".." if depth == 0 => return Err("path leads out of the layer"),
                b".." => {
                    path.pop();
                    depth -= 1;
                }
                _ if name.len() > limits.name_bytes => return Err("file name is too long"),
                _ if depth == limits.path_depth => return Err("path is too deep"),
                _ => {
                    path.push(name);
                    depth += 1;
                }
            }
        }
        Ok(path)
    }
}

/// Owner, permissions, time and attributes of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Metadata {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A node that is neither file, directory nor link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Node {
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
}

/// What to do for one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    Directory {
        path: LayerPath,
        metadata: Metadata,
    },
    File {
        path: LayerPath,
        metadata: Metadata,
        size: u64,
        sparse: Option<Vec<Segment>>,
    },
    Symlink {
        path: LayerPath,
        target: Vec<u8>,
        metadata: Metadata,
    },
    HardLink {
        path: LayerPath,
        target: LayerPath,
    },
    Node {
        path: LayerPath,
        node: Node,
        metadata: Metadata,
    },
    Whiteout {
        path: LayerPath,
    },
    Opaque {
        directory: LayerPath,
    },
    Nothing,
}

/// Decides what an entry asks for.
pub(crate) fn plan(entry: TarEntry, limits: &Limits) -> Result<Action, TarError> {
    let shown_path = shown(&entry.path);
    decide(entry, limits).map_err(|reason| TarError::Entry {
        path: shown_path,
        reason,
    })
}

fn decide(entry: TarEntry, limits: &Limits) -> Result<Action, &'static str> {
    let path = LayerPath::parse(&entry.path, limits)?;
    let Some((parent, name)) = path.split() else {
        if entry.kind != Kind::Directory {
            return Err("the root of a layer can only be a directory");
        }
        return Ok(Action::Directory {
            path,
            metadata: metadata(entry, limits)?,
        });
    };
    if parent
        .components()
        .any(|name| name.starts_with(b".wh..wh."))
    {
        return Ok(Action::Nothing);
    }
    if parent.components().any(whiteout::is_reserved) {
        return Err("a directory has the name of a whiteout");
    }
    match whiteout::marker(name)? {
        Marker::None => {}
        Marker::Opaque => return Ok(Action::Opaque { directory: parent }),
        Marker::Bookkeeping => return Ok(Action::Nothing),
        Marker::Remove(hidden) => {
            return Ok(Action::Whiteout {
                path: parent.join(hidden),
            });
        }
    }
    Ok(match entry.kind {
        Kind::Directory => Action::Directory {
            path,
            metadata: metadata(entry, limits)?,
        },
        Kind::File => {
            let (size, sparse) = (entry.size, entry.sparse.clone());
            Action::File {
                path,
                metadata: metadata(entry, limits)?,
                size,
                sparse,
            }
        }
        Kind::Symlink => {
            let target = entry.link.clone();
            if target.is_empty() || target.contains(&0) || target.len() > limits.path_bytes {
                return Err("symbolic link target is empty, too long or contains a NUL");
            }
            Action::Symlink {
                path,
                target,
                metadata: metadata(entry, limits)?,
            }
        }
        Kind::HardLink => {
            let target = LayerPath::parse(&entry.link, limits)
                .map_err(|_| "hard link target is not a path inside the layer")?;
            if target.is_root() {
                return Err("hard link target is a directory");
            }
            if target.components().any(whiteout::is_reserved) {
                return Err("hard link target is a whiteout");
            }
            Action::HardLink { path, target }
        }
        // Overlay cannot show a 0:0 device: to the kernel it is a whiteout, and so it is to us.
        Kind::CharDevice if entry.device == (0, 0) => Action::Whiteout { path },
        Kind::CharDevice => {
            let node = Node::CharDevice(entry.device.0, entry.device.1);
            Action::Node {
                path,
                node,
                metadata: metadata(entry, limits)?,
            }
        }
        Kind::BlockDevice => {
            let node = Node::BlockDevice(entry.device.0, entry.device.1);
            Action::Node {
                path,
                node,
                metadata: metadata(entry, limits)?,
            }
        }
        Kind::Fifo => Action::Node {
            path,
            node: Node::Fifo,
            metadata: metadata(entry, limits)?,
        },
    })
}

fn metadata(entry: TarEntry, limits: &Limits) -> Result<Metadata, &'static str> {
    // -1 means "leave as it is" to chown(2).
    let id = |id: u64| u32::try_from(id).ok().filter(|id| *id != u32::MAX);
    let takes_user_xattrs = matches!(entry.kind, Kind::File | Kind::Directory);
    let mut xattrs = Vec::new();
    for (name, value) in entry.xattrs {
        if name.is_empty() || name.contains(&0) || name.len() > 255 {
            return Err("extended attribute name is not valid");
        }
        if value.len() > limits.xattr_bytes {
            return Err("extended attribute is too large");
        }
        if keeps_xattr(&name, takes_user_xattrs) {
            xattrs.push((name, value));
        }
    }
    Ok(Metadata {
        mode: entry.mode,
        uid: id(entry.uid).ok_or("uid is out of range")?,
        gid: id(entry.gid).ok_or("gid is out of range")?,
        mtime: entry.mtime,
        xattrs,
    })
}

/// Tells whether an attribute is set. What steers overlayfs is ours alone; namespaces Linux does
/// not have (archives made elsewhere carry some) cannot be set; `user.` exists on files and
/// directories only (xattr(7)).
pub(crate) fn keeps_xattr(name: &[u8], takes_user_xattrs: bool) -> bool {
    if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
        return false;
    }
    if name.starts_with(b"user.") {
        return takes_user_xattrs;
    }
    name.starts_with(b"trusted.")
        || name.starts_with(b"security.")
        || matches!(
            name,
            b"system.posix_acl_access" | b"system.posix_acl_default"
        )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(path: &str, kind: Kind) -> TarEntry {
        TarEntry {
            path: path.into(),
            link: Vec::new(),
            kind,
            size: 0,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: Time::default(),
            device: (1, 3),
            xattrs: Vec::new(),
            sparse: None,
        }
    }

    fn planned(path: &str, kind: Kind) -> Result<Action, String> {
        plan(entry(path, kind), &Limits::default()).map_err(|error| error.to_string())
    }

    fn path(text: &str) -> LayerPath {
        LayerPath(text.into())
    }

    #[test]
    fn cve_2014_6407_paths_stay_inside_or_are_refused() {
        for (raw, expected) in [
            ("/etc/x", Some("etc/x")),
            ("./a//b/./c/", Some("a/b/c")),
            ("a/../b", Some("b")),
            ("./", Some("")),
            ("..", None),
            ("../x", None),
            ("a/../../x", None),
            ("/../x", None),
            ("", None),
            ("a\0b", None),
        ] {
            let parsed = LayerPath::parse(raw.as_bytes(), &Limits::default()).ok();
            assert_eq!(parsed, expected.map(path), "{raw:?}");
        }
    }

    #[test]
    fn long_and_deep_paths_are_refused() {
        let limits = Limits::default();
        for raw in [
            "x".repeat(1 << 20),
            "a/".repeat(10_000),
            "n".repeat(256),
            "d/".repeat(257),
        ] {
            assert!(LayerPath::parse(raw.as_bytes(), &limits).is_err());
        }
        assert!(LayerPath::parse("d/".repeat(256).as_bytes(), &limits).is_ok());
    }

    #[test]
    fn markers_become_actions() {
        assert_eq!(
            planned("d/.wh.f", Kind::File),
            Ok(Action::Whiteout { path: path("d/f") })
        );
        assert_eq!(
            planned("d/.wh..wh..opq", Kind::File),
            Ok(Action::Opaque {
                directory: path("d")
            })
        );
        assert_eq!(
            planned(".wh..wh..opq", Kind::File),
            Ok(Action::Opaque {
                directory: LayerPath::default()
            })
        );
        assert_eq!(planned(".wh..wh.plnk/1.2", Kind::File), Ok(Action::Nothing));
        for bad in [".wh.", ".wh..", "d/.wh...", ".wh.a/b", ".wh...//x"] {
            assert!(planned(bad, Kind::File).is_err(), "{bad}");
        }
    }

    #[test]
    fn hard_links_to_markers_directories_and_outside_are_refused() {
        for target in [".wh.a", "d/.wh..wh..opq", "../x", "", "/"] {
            let mut link = entry("l", Kind::HardLink);
            link.link = target.into();
            assert!(plan(link, &Limits::default()).is_err(), "{target}");
        }
    }

    #[test]
    fn an_id_that_means_unchanged_is_refused() {
        let mut file = entry("f", Kind::File);
        file.uid = u64::from(u32::MAX);
        assert!(plan(file, &Limits::default()).is_err());
    }

    #[test]
    fn attributes_of_overlayfs_are_dropped() {
        for (name, kept) in [
            ("security.capability", true),
            ("user.note", true),
            ("trusted.other", true),
            ("trusted.overlay.opaque", false),
            ("trusted.overlay.redirect", false),
            ("user.overlay.whiteout", false),
            ("com.apple.provenance", false),
        ] {
            assert_eq!(keeps_xattr(name.as_bytes(), true), kept, "{name}");
        }
        assert!(!keeps_xattr(b"user.note", false));
    }

    proptest! {
        #[test]
        fn parsed_paths_have_only_plain_names(raw in proptest::collection::vec(
            prop_oneof![Just(b'/'), Just(b'.'), Just(b'a'), any::<u8>()], 0..64)
        ) {
            if let Ok(parsed) = LayerPath::parse(&raw, &Limits::default()) {
                for name in parsed.components() {
                    prop_assert!(!matches!(name, b"" | b"." | b".."));
                }
                prop_assert_eq!(
                    LayerPath::parse(&[b"/", parsed.as_bytes()].concat(), &Limits::default()),
                    Ok(parsed)
                );
            }
        }
    }
}
