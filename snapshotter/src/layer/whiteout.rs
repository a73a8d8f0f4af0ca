//! What a file name says about deletion (OCI image specification, layer, "Whiteouts"). Pure.

/// What starts the name of every marker.
const PREFIX: &[u8] = b".wh.";
/// What starts the names of aufs bookkeeping, which is no content.
const META_PREFIX: &[u8] = b".wh..wh.";
/// The marker that hides everything below a directory in lower layers.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// The meaning of the last component of an entry's path.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Marker<'a> {
    /// An ordinary name.
    None,
    /// The named sibling does not exist in lower layers any more.
    Remove(&'a [u8]),
    /// Nothing in this directory comes from lower layers.
    Opaque,
    /// Bookkeeping of aufs, to be left out.
    Bookkeeping,
}

/// Reads a file name.
pub(crate) fn marker(name: &[u8]) -> Result<Marker<'_>, &'static str> {
    if name == OPAQUE {
        return Ok(Marker::Opaque);
    }
    if name.starts_with(META_PREFIX) {
        return Ok(Marker::Bookkeeping);
    }
    match name.strip_prefix(PREFIX) {
        None => Ok(Marker::None),
        Some(b"" | b"." | b"..") => Err("whiteout names no file"),
        Some(hidden) => Ok(Marker::Remove(hidden)),
    }
}

/// Tells whether a name has a meaning other than itself, so that no real file may have it.
pub(crate) fn is_reserved(name: &[u8]) -> bool {
    name.starts_with(PREFIX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_and_their_meaning() {
        for (name, expected) in [
            (&b"file"[..], Ok(Marker::None)),
            (b".wh", Ok(Marker::None)),
            (b".whale", Ok(Marker::None)),
            (b".wh.file", Ok(Marker::Remove(b"file"))),
            (b".wh..hidden", Ok(Marker::Remove(b".hidden"))),
            (b".wh....", Ok(Marker::Remove(b"..."))),
            (b".wh.", Err("whiteout names no file")),
            (b".wh..", Err("whiteout names no file")),
            (b".wh...", Err("whiteout names no file")),
            (b".wh..wh..opq", Ok(Marker::Opaque)),
            (b".wh..wh.plnk", Ok(Marker::Bookkeeping)),
            (b".wh..wh.", Ok(Marker::Bookkeeping)),
        ] {
            assert_eq!(marker(name), expected, "{}", name.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn a_marker_never_names_a_directory_reference(name in proptest::collection::vec(any::<u8>(), 0..12)) {
            for name in [name.clone(), [b".wh.", &name[..]].concat()] {
                if let Ok(Marker::Remove(hidden)) = marker(&name) {
                    prop_assert!(!matches!(hidden, b"" | b"." | b".."));
                    prop_assert!(is_reserved(&name));
                }
            }
        }
    }
}
