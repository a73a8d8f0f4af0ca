//! Chooses the conflist that serves: the first valid file of the directory by name.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use crate::conf::{ConfError, Conflist};

/// A chosen configuration and its file.
#[derive(Debug, Clone)]
pub(crate) struct Selection {
    pub(crate) path: PathBuf,
    pub(crate) list: Conflist,
}

/// What the directory says.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    pub(crate) chosen: Option<Selection>,
    /// Files before the chosen one that are not valid.
    pub(crate) skipped: Vec<Arc<ConfError>>,
}

/// Reads the directory on each use; parses again only when a file changed.
#[derive(Debug)]
pub(crate) struct Selector {
    dir: PathBuf,
    cached: Mutex<Option<(Vec<Fingerprint>, Arc<Listing>)>>,
}

/// What tells one state of a file from another without reading it.
#[derive(Debug, PartialEq, Eq)]
struct Fingerprint {
    path: PathBuf,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Selector {
    pub(crate) fn new(dir: &Path) -> Selector {
        Selector {
            dir: dir.to_owned(),
            cached: Mutex::new(None),
        }
    }

    /// The present state of the directory; a missing directory is an empty one.
    pub(crate) fn listing(&self) -> Result<Arc<Listing>, ConfError> {
        let found = match fingerprints(&self.dir) {
            Err(source) if source.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(source) => {
                return Err(ConfError::File {
                    path: self.dir.clone(),
                    source,
                });
            }
            Ok(found) => found,
        };
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, listing)) = &*cached
            && *known == found
        {
            return Ok(listing.clone());
        }
        let mut listing = Listing::default();
        for file in &found {
            match Conflist::load(&file.path) {
                Ok(list) => {
                    listing.chosen = Some(Selection {
                        path: file.path.clone(),
                        list,
                    });
                    break;
                }
                Err(error) => listing.skipped.push(Arc::new(error)),
            }
        }
        let listing = Arc::new(listing);
        *cached = Some((found, listing.clone()));
        Ok(listing)
    }
}

fn fingerprints(dir: &Path) -> io::Result<Vec<Fingerprint>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let named = path.extension().and_then(|extension| extension.to_str());
        if !matches!(named, Some("conflist" | "conf" | "json")) {
            continue;
        }
        // Links are followed: configuration is often mounted that way. One that leads nowhere
        // was replaced this moment.
        match fs::metadata(&path) {
            Ok(meta) if meta.is_file() => found.push(Fingerprint {
                path,
                inode: meta.ino(),
                size: meta.size(),
                changed: (meta.ctime(), meta.ctime_nsec()),
            }),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    found.sort_by(|one, two| one.path.cmp(&two.path));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_valid_file_by_name_serves_and_changes_are_seen() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, network: &str| {
            let text = format!(
                r#"{{"cniVersion":"1.0.0","name":"{network}","plugins":[{{"type":"x"}}]}}"#
            );
            fs::write(dir.path().join(name), text).unwrap();
        };
        let selector = Selector::new(dir.path());
        let chosen = || {
            let listing = selector.listing().unwrap();
            let name = listing
                .chosen
                .as_ref()
                .map(|chosen| chosen.list.name.clone());
            (name, listing.skipped.len())
        };
        assert_eq!(chosen(), (None, 0));
        put("20-b.conflist", "b");
        put("30-c.conflist", "c");
        put("10-ignored.txt", "ignored");
        assert_eq!(chosen(), (Some("b".into()), 0));
        fs::write(dir.path().join("10-a.conf"), "not json").unwrap();
        assert_eq!(chosen(), (Some("b".into()), 1));
        put("10-a.conf", "a");
        assert_eq!(chosen(), (Some("a".into()), 0));
        fs::remove_dir_all(dir.path()).unwrap();
        assert_eq!(chosen(), (None, 0));
    }
}
