//! Small documents by digest: manifests and configurations.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, unlinkat};
use rustix::io::Errno;

use super::digest::Digest;
use crate::confined::open_dir;
use crate::durable::{Prepared, atomic_write, sync_dir};
use crate::error::{ErrorClass, PathError};
use crate::store::{Store, read_bounded};

/// Why a blob could not be stored, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// The bytes to store are others than the digest says.
    #[error("content has digest {found}, expected {expected}")]
    DigestMismatch {
        /// The digest asked for.
        expected: Digest,
        /// The digest of the bytes.
        found: Digest,
    },
    /// A stored blob changed on disk. It was removed, so that it can be fetched again.
    #[error("stored blob {digest} was damaged on disk and has been removed")]
    Damaged {
        /// Its name.
        digest: Digest,
    },
    /// A stored blob is larger than the caller can take.
    #[error("stored blob {digest} is larger than {limit} bytes")]
    TooLarge {
        /// Its name.
        digest: Digest,
        /// The caller's limit in bytes.
        limit: u64,
    },
    /// A system call failed.
    #[error(transparent)]
    Path(#[from] PathError),
}

impl ContentError {
    /// Returns the class.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::DigestMismatch { .. } => ErrorClass::InvalidArgument,
            Self::Damaged { .. } => ErrorClass::Unavailable,
            Self::TooLarge { .. } => ErrorClass::Exhausted,
            Self::Path(error) => error.class(),
        }
    }
}

impl Store {
    /// Stores `bytes` under `digest`. When it returns, they are on disk. Storing what is there
    /// already does nothing.
    ///
    /// # Errors
    /// `InvalidArgument` when the bytes have another digest; `Exhausted` on a full disk.
    pub fn put_blob(&self, digest: &Digest, bytes: &[u8]) -> Result<(), ContentError> {
        let found = Digest::of(digest.algorithm(), bytes);
        if found != *digest {
            return Err(ContentError::DigestMismatch {
                expected: digest.clone(),
                found,
            });
        }
        if self.shared.index().blobs.contains_key(digest) {
            return Ok(());
        }
        let failed = |source| PathError::new("write blob", digest, source);
        let dir = open_dir(&self.shared.blobs, digest.algorithm().as_str().as_bytes());
        let dir = dir.map_err(failed)?;
        atomic_write(&dir, digest.hex(), bytes).map_err(failed)?;
        Ok(self.note_blob(&dir, digest)?)
    }

    /// Writes a blob that is not stored yet, invisibly.
    pub(crate) fn prepare_blob(
        &self,
        digest: &Digest,
        bytes: &[u8],
    ) -> Result<Option<(Digest, Prepared)>, ContentError> {
        let found = Digest::of(digest.algorithm(), bytes);
        if found != *digest {
            return Err(ContentError::DigestMismatch {
                expected: digest.clone(),
                found,
            });
        }
        if self.shared.index().blobs.contains_key(digest) {
            return Ok(None);
        }
        let failed = |source| PathError::new("write blob", digest, source);
        let dir = open_dir(&self.shared.blobs, digest.algorithm().as_str().as_bytes());
        let prepared = Prepared::write(dir.map_err(failed)?, digest.hex(), bytes);
        Ok(Some((digest.clone(), prepared.map_err(failed)?)))
    }

    /// Makes prepared blobs visible, after a sync.
    pub(crate) fn publish_blobs(&self, blobs: Vec<(Digest, Prepared)>) -> Result<(), PathError> {
        let mut dirs = BTreeMap::new();
        let mut published = Vec::new();
        for (digest, mut prepared) in blobs {
            let failed = |source| PathError::new("write blob", &digest, source);
            let algorithm = digest.algorithm();
            if let Entry::Vacant(entry) = dirs.entry(algorithm) {
                let dir = open_dir(&self.shared.blobs, algorithm.as_str().as_bytes());
                entry.insert(dir.map_err(failed)?);
            }
            prepared.publish().map_err(failed)?;
            published.push(digest);
        }
        // Order: durable names first, since who sees a blob in the index relies on it.
        for dir in dirs.values() {
            sync_dir(dir)
                .map_err(|source| PathError::new("sync directory", "content/blobs", source))?;
        }
        for digest in published {
            self.note_blob(&dirs[&digest.algorithm()], &digest)?;
        }
        Ok(())
    }

    /// Puts a blob that was renamed into place into the index.
    fn note_blob(&self, dir: &OwnedFd, digest: &Digest) -> Result<(), PathError> {
        let mut index = self.shared.index();
        // Inserted under the lock under which garbage collection unlinks, and only if no
        // collection took the file between its rename and now.
        let size = rustix::fs::statat(dir, digest.hex(), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| PathError::new("write blob", digest, error))?;
        index
            .blobs
            .insert(digest.clone(), crate::tree::allocated(&size));
        Ok(())
    }

    /// Tells whether a blob is stored, without reading it.
    #[must_use]
    pub fn has_blob(&self, digest: &Digest) -> bool {
        self.shared.index().blobs.contains_key(digest)
    }

    /// Returns the names of all stored blobs.
    #[must_use]
    pub fn blobs(&self) -> Vec<Digest> {
        self.shared.index().blobs.keys().cloned().collect()
    }

    /// Reads a blob of at most `limit` bytes and checks its digest. `None` when it is not stored.
    ///
    /// # Errors
    /// `Unavailable` when it was damaged on disk (it is removed, fetch it again), `Exhausted` when
    /// it is larger than `limit`.
    pub fn read_blob(&self, digest: &Digest, limit: u64) -> Result<Option<Vec<u8>>, ContentError> {
        if !self.shared.index().blobs.contains_key(digest) {
            return Ok(None);
        }
        let failed = |source| PathError::new("read blob", digest, source);
        let dir = open_dir(&self.shared.blobs, digest.algorithm().as_str().as_bytes());
        let bytes = match read_bounded(&dir.map_err(failed)?, digest.hex(), limit) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                return Err(ContentError::TooLarge {
                    digest: digest.clone(),
                    limit,
                });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Removed a moment ago, or by somebody else's hand.
                self.shared.index().blobs.remove(digest);
                return Ok(None);
            }
            Err(error) => return Err(failed(error).into()),
        };
        if !digest.matches(&bytes) {
            self.remove_blob(digest)?;
            let path = format!("content/blobs/{}/{}", digest.algorithm(), digest.hex());
            self.shared
                .index()
                .report(path, "content does not match the digest; removed");
            return Err(ContentError::Damaged {
                digest: digest.clone(),
            });
        }
        Ok(Some(bytes))
    }

    /// Removes a blob. Returns whether it was there.
    ///
    /// # Errors
    /// The class of the I/O error.
    pub fn remove_blob(&self, digest: &Digest) -> Result<bool, ContentError> {
        let failed = |source: io::Error| PathError::new("remove blob", digest, source);
        let dir = open_dir(&self.shared.blobs, digest.algorithm().as_str().as_bytes());
        let dir = dir.map_err(failed)?;
        {
            let mut index = self.shared.index();
            match unlinkat(&dir, digest.hex(), AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(failed(error.into()).into()),
            }
            if index.blobs.remove(digest).is_none() {
                return Ok(false);
            }
        }
        sync_dir(&dir).map_err(failed)?;
        Ok(true)
    }
}
