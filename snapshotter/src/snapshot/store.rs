//! Writable layers of containers: made, mounted, measured and removed by key.

use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, renameat, unlinkat};
use rustix::io::Errno;

use super::chain::ChainId;
use super::kind::{ActiveRecord, Record, SnapshotId};
use super::measured;
use crate::confined::open_dir;
use crate::copy::Copy;
use crate::durable::{atomic_write, sync_dir};
use crate::error::{ErrorClass, PathError, shown};
use crate::ids::Owners;
use crate::mount::Mount;
use crate::overlay;
use crate::overlay::Overlayfs;
use crate::snapshotter::{Choice, Lowers, Snapshotter, choose, probe_ids};
use crate::store::{
    Active, ActivePhase, Index, Made, Store, condemned_name, make_new_dir, record_name,
    removing_name,
};
use crate::tree::{Usage, measure};

/// Longest key, in bytes.
const KEY_MAX: usize = 256;

/// Why a snapshot could not be made, used or removed.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The key is empty or too long.
    #[error("snapshot key \"{key}\" is empty or longer than {KEY_MAX} bytes")]
    Key {
        /// The key, cut.
        key: String,
    },
    /// There is one with this key.
    #[error("snapshot {key} already exists")]
    AlreadyExists {
        /// The key.
        key: String,
    },
    /// There is none with this key.
    #[error("snapshot {key} does not exist")]
    NotFound {
        /// The key.
        key: String,
    },
    /// It is being made or removed by another caller.
    #[error("snapshot {key} is being made or removed")]
    Busy {
        /// The key.
        key: String,
    },
    /// A layer of the stack is not in the store; the image has to be pulled again.
    #[error("layer {chain} is not in the store")]
    LayerMissing {
        /// The missing layer.
        chain: ChainId,
    },
    /// The snapshotter does not take that many layers.
    #[error("layer {chain} lies on {count} layers, the snapshotter takes {most}")]
    TooManyLayers {
        /// The top layer.
        chain: ChainId,
        /// Layers including it.
        count: usize,
        /// The most there may be.
        most: usize,
    },
    /// A system call failed.
    #[error(transparent)]
    Path(#[from] PathError),
}

impl SnapshotError {
    /// Returns the class.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Key { .. } | Self::TooManyLayers { .. } => ErrorClass::InvalidArgument,
            Self::AlreadyExists { .. } => ErrorClass::AlreadyExists,
            Self::NotFound { .. } => ErrorClass::NotFound,
            Self::Busy { .. } => ErrorClass::Unavailable,
            Self::LayerMissing { .. } => ErrorClass::FailedPrecondition,
            Self::Path(error) => error.class(),
        }
    }
}

impl Store {
    /// Makes the writable layer `key` on top of a committed layer, or of nothing, and returns how
    /// to mount it. It survives a restart.
    ///
    /// # Errors
    /// `AlreadyExists` for a key in use, `FailedPrecondition` when a layer is missing,
    /// `InvalidArgument` for a bad key or too many layers, `Exhausted` on a full disk. Nothing
    /// stays after an error.
    pub fn prepare(
        &self,
        key: &str,
        parent: Option<&ChainId>,
    ) -> Result<Vec<Mount>, SnapshotError> {
        self.prepare_for(key, parent, Owners::AsStored)
    }

    /// As [`Store::prepare`], for `owners`. Mapped ones need [`crate::mount::mount_mapped`]; shifted ones need a
    /// copy of all layers.
    ///
    /// # Errors
    /// As [`Store::prepare`].
    pub fn prepare_for(
        &self,
        key: &str,
        parent: Option<&ChainId>,
        owners: Owners<'_>,
    ) -> Result<Vec<Mount>, SnapshotError> {
        self.prepare_by(Choice::Auto, key, parent, owners)
    }

    /// As [`Store::prepare_for`], by a snapshotter that need not be the store's; `Auto` is the store's. What it
    /// lies on is in its record, so the store mounts, measures and removes it as any other, whatever the store's
    /// snapshotter is by then.
    ///
    /// # Errors
    /// As [`Store::prepare`].
    pub fn prepare_by(
        &self,
        choice: Choice,
        key: &str,
        parent: Option<&ChainId>,
        owners: Owners<'_>,
    ) -> Result<Vec<Mount>, SnapshotError> {
        self.make(choice, key, parent, owners, false)
    }

    /// Makes a read-only view `key` of a committed layer and those below it, or of nothing, and returns how to
    /// mount it. The layers stay as long as the view; it is removed as a writable layer is.
    ///
    /// # Errors
    /// As [`Store::prepare`].
    pub fn view(&self, key: &str, parent: Option<&ChainId>) -> Result<Vec<Mount>, SnapshotError> {
        self.view_for(key, parent, Owners::AsStored)
    }

    /// As [`Store::view`], for `owners`; see [`Store::prepare_for`].
    ///
    /// # Errors
    /// As [`Store::prepare`].
    pub fn view_for(
        &self,
        key: &str,
        parent: Option<&ChainId>,
        owners: Owners<'_>,
    ) -> Result<Vec<Mount>, SnapshotError> {
        self.view_by(Choice::Auto, key, parent, owners)
    }

    /// As [`Store::view_for`], by a snapshotter as for [`Store::prepare_by`].
    ///
    /// # Errors
    /// As [`Store::prepare`].
    pub fn view_by(
        &self,
        choice: Choice,
        key: &str,
        parent: Option<&ChainId>,
        owners: Owners<'_>,
    ) -> Result<Vec<Mount>, SnapshotError> {
        self.make(choice, key, parent, owners, true)
    }

    /// Tells whether this choice works here, by the trial that opening a store with it makes.
    ///
    /// # Errors
    /// The reason.
    pub fn try_snapshotter(&self, choice: Choice) -> Result<(), PathError> {
        choose(choice, &self.shared.top, &self.shared.root).map(drop)
    }

    /// Tells whether mounts of this store can have mapped ids, or why not: `ids` is a user namespace whose root
    /// is not the host's. Tries it, so it is for the start.
    ///
    /// # Errors
    /// The reason, for the operator.
    pub fn can_map_ids(&self, ids: BorrowedFd<'_>) -> Result<(), String> {
        let name = self.shared.snapshotter.name();
        if name != "overlayfs" {
            return Err(format!("the snapshotter is {name}"));
        }
        probe_ids(&self.shared.top, &self.shared.root, ids)
    }

    fn make(
        &self,
        choice: Choice,
        key: &str,
        parent: Option<&ChainId>,
        owners: Owners<'_>,
        is_view: bool,
    ) -> Result<Vec<Mount>, SnapshotError> {
        if key.is_empty() || key.len() > KEY_MAX {
            return Err(SnapshotError::Key {
                key: shown(key.as_bytes()),
            });
        }
        let snapshotter: &dyn Snapshotter = match choice {
            Choice::Auto => self.shared.snapshotter.as_ref(),
            Choice::Overlayfs => &Overlayfs,
            Choice::Copy => &Copy,
        };
        let lowers = {
            let mut index = self.shared.index();
            if index.actives.contains_key(key) {
                return Err(SnapshotError::AlreadyExists {
                    key: key.to_owned(),
                });
            }
            let lowers = match parent {
                Some(chain) => index
                    .lowers(chain)
                    .map_err(|chain| SnapshotError::LayerMissing { chain })?,
                None => Vec::new(),
            };
            let most = snapshotter.layers_max();
            // A view has its own directory below the layers.
            let count = lowers.len() + usize::from(is_view);
            if let Some(chain) = parent
                && count > most
            {
                return Err(SnapshotError::TooManyLayers {
                    chain: chain.clone(),
                    count,
                    most,
                });
            }
            // From here on garbage collection keeps the layers, and the key is taken.
            let record = ActiveRecord {
                id: 0,
                key: key.to_owned(),
                parent: parent.cloned(),
                lowers: lowers.clone(),
                is_view,
            };
            let active = Active {
                record,
                phase: ActivePhase::Preparing,
                usage: Usage::default(),
            };
            index.actives.insert(key.to_owned(), active);
            lowers
        };
        let made = self.make_active(snapshotter, key, parent, lowers, owners, is_view);
        let usage = made.as_ref().map_or(Usage::default(), |record| {
            let id = record.id.to_string();
            let copied = record.lowers.is_empty() && parent.is_some();
            let measured = copied.then(|| open_dir(&self.shared.snapshots, id.as_bytes()));
            // Its directory, its files' and overlayfs' own; of a copy it is known only when it is measured.
            let fresh = Usage {
                bytes: 3 * self.shared.record_bytes,
                inodes: 3,
            };
            measured.map_or(fresh, |dir| dir.and_then(measure).unwrap_or(fresh))
        });
        let mut index = self.shared.index();
        match made {
            Ok(record) => {
                let root = &self.shared.root;
                let mounts = if is_view {
                    overlay::view_mounts(root, record.id, &record.lowers)
                } else {
                    snapshotter.mounts(root, record.id, &record.lowers)
                };
                index.making.remove(&record.id);
                let active = Active {
                    record,
                    phase: ActivePhase::Ready,
                    usage,
                };
                index.actives.insert(key.to_owned(), active);
                Ok(mounts)
            }
            Err(error) => {
                index.actives.remove(key);
                Err(error)
            }
        }
    }

    fn make_active(
        &self,
        snapshotter: &dyn Snapshotter,
        key: &str,
        parent: Option<&ChainId>,
        lowers: Vec<SnapshotId>,
        owners: Owners<'_>,
        is_view: bool,
    ) -> Result<ActiveRecord, SnapshotError> {
        let (id, dir, _growing) = self.shared.new_snapshot_dir()?;
        let mut record = ActiveRecord {
            id,
            key: key.to_owned(),
            parent: parent.cloned(),
            lowers,
            is_view,
        };
        let made = (|| {
            make_new_dir(&dir, "fs")?;
            make_new_dir(&dir, "work")?;
            let below = Lowers::new(&self.shared.snapshots, &record.lowers);
            let filled = if is_view {
                snapshotter.fill_view(&dir, &below, owners)
            } else {
                snapshotter.fill(&dir, &below, owners)
            };
            record.lowers = filled
                .map_err(|source| PathError::new("fill", format!("snapshots/{id}/fs"), source))?;
            let bytes = Record::Active(record.clone()).to_json();
            atomic_write(&self.shared.meta, &record_name(id), &bytes).map_err(|source| {
                PathError::new(
                    "write",
                    format!("snapshots/meta/{}", record_name(id)),
                    source,
                )
            })
        })();
        if let Err(error) = made {
            let _made = Made(&self.shared, id);
            // The record may exist if only the sync failed.
            let _ = unlinkat(&self.shared.meta, record_name(id), AtFlags::empty());
            if let Err(left) = self.shared.remove_snapshot_dir(id) {
                let reason = format!("not removed: {}", left.source);
                self.shared
                    .index()
                    .report(format!("snapshots/{id}"), reason);
            }
            return Err(error.into());
        }
        Ok(record)
    }

    /// Returns how to mount the writable layer or view `key`.
    ///
    /// # Errors
    /// `NotFound` for an unknown key, `Unavailable` while it is being made or removed.
    pub fn mounts(&self, key: &str) -> Result<Vec<Mount>, SnapshotError> {
        let index = self.shared.index();
        let record = ready(&index, key)?;
        // What is below is in the record, so that a container made by another snapshotter mounts too.
        let mounts = if record.is_view {
            overlay::view_mounts
        } else {
            overlay::mounts
        };
        Ok(mounts(&self.shared.root, record.id, &record.lowers))
    }

    /// Removes the writable layer `key` and returns whether it existed. It must not be mounted.
    /// When this returns the space is free. A failed removal can be tried again.
    ///
    /// # Errors
    /// `Unavailable` while another caller makes or removes it, otherwise the class of the I/O
    /// error.
    pub fn remove(&self, key: &str) -> Result<bool, SnapshotError> {
        let id = {
            let mut index = self.shared.index();
            let Some(active) = index.actives.get_mut(key) else {
                return Ok(false);
            };
            if active.phase != ActivePhase::Ready {
                return Err(SnapshotError::Busy {
                    key: key.to_owned(),
                });
            }
            active.phase = ActivePhase::Removing;
            active.record.id
        };
        let removed = self.remove_snapshot(id);
        let mut index = self.shared.index();
        match removed {
            Ok(()) => {
                index.actives.remove(key);
                Ok(true)
            }
            Err(error) => {
                if let Some(active) = index.actives.get_mut(key) {
                    active.phase = ActivePhase::Ready;
                }
                Err(error.into())
            }
        }
    }

    /// Removes a snapshot of either kind: first the record, so that a crash in between leaves
    /// something to finish and nothing half there.
    pub(crate) fn remove_snapshot(&self, id: SnapshotId) -> Result<(), PathError> {
        self.take_record(id)?;
        self.sync_records()?;
        self.remove_taken(id)
    }

    /// Takes the record of a snapshot away. The caller syncs before anything of the snapshot goes.
    pub(crate) fn take_record(&self, id: SnapshotId) -> Result<(), PathError> {
        let meta = &self.shared.meta;
        for record in [record_name(id), condemned_name(id)] {
            match renameat(meta, &*record, meta, removing_name(id)) {
                // Missing also after an earlier attempt got this far.
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => {
                    let path = format!("snapshots/meta/{record}");
                    return Err(PathError::new("remove", path, error));
                }
            }
        }
        Ok(())
    }

    /// Makes the names of records durable.
    pub(crate) fn sync_records(&self) -> Result<(), PathError> {
        sync_dir(&self.shared.meta)
            .map_err(|source| PathError::new("sync directory", "snapshots/meta", source))
    }

    /// Removes the files of a snapshot whose record was taken.
    pub(crate) fn remove_taken(&self, id: SnapshotId) -> Result<(), PathError> {
        self.shared.remove_snapshot_dir(id)?;
        let removing = removing_name(id);
        match unlinkat(&self.shared.meta, &*removing, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(PathError::new(
                "remove",
                format!("snapshots/meta/{removing}"),
                error,
            )),
        }
    }

    /// Measures the writable layer `key`, mounted or not.
    ///
    /// # Errors
    /// `NotFound` for an unknown key, `Unavailable` while it is being made or removed.
    pub fn usage(&self, key: &str) -> Result<Usage, SnapshotError> {
        let id = ready(&self.shared.index(), key)?.id;
        let path = format!("{id}/fs");
        open_dir(&self.shared.snapshots, path.as_bytes())
            .and_then(measure)
            .map_err(|source| PathError::new("measure", format!("snapshots/{path}"), source).into())
    }

    /// Returns what all writable layers took when each was measured last, with their records. Nothing is
    /// measured now; see [`Store::measure_actives`].
    #[must_use]
    pub fn actives_usage(&self) -> Usage {
        let mut usage = Usage::default();
        for active in self.shared.index().actives.values() {
            usage += active.usage;
            usage += Usage {
                bytes: self.shared.record_bytes,
                inodes: 1,
            };
        }
        usage
    }

    /// Returns what the writable layer `key` took when it was measured last; none for an unknown key. Nothing
    /// is measured now.
    #[must_use]
    pub fn active_usage(&self, key: &str) -> Option<Usage> {
        let index = self.shared.index();
        index.actives.get(key).map(|active| active.usage)
    }

    /// Measures every writable layer, one after the other, and keeps the result, also for the next start.
    ///
    /// # Errors
    /// The class of the first I/O error; the rest is measured all the same.
    pub fn measure_actives(&self) -> Result<(), PathError> {
        let actives: Vec<(String, SnapshotId)> = {
            let index = self.shared.index();
            let ready = index
                .actives
                .values()
                .filter(|active| active.phase == ActivePhase::Ready);
            ready
                .map(|active| (active.record.key.clone(), active.record.id))
                .collect()
        };
        let mut outcome = Ok(());
        for (key, id) in actives {
            let measured =
                open_dir(&self.shared.snapshots, id.to_string().as_bytes()).and_then(measure);
            match measured {
                Ok(usage) => {
                    let mut index = self.shared.index();
                    if let Some(active) = index.actives.get_mut(&key)
                        && active.record.id == id
                    {
                        active.usage = usage;
                    }
                }
                // Removed in the meantime.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(source) => {
                    let error = PathError::new("measure", format!("snapshots/{id}"), source);
                    outcome = outcome.and(Err(error));
                }
            }
        }
        let kept = measured::keep(&self.shared.top, &self.shared.index());
        outcome.and(kept)
    }

    /// Returns the keys of all writable layers, sorted.
    #[must_use]
    pub fn active_keys(&self) -> Vec<String> {
        let mut keys: Vec<String> = self.shared.index().actives.keys().cloned().collect();
        keys.sort_unstable();
        keys
    }
}

fn ready<'a>(index: &'a Index, key: &str) -> Result<&'a ActiveRecord, SnapshotError> {
    let key_text = || shown(key.as_bytes());
    match index.actives.get(key) {
        None => Err(SnapshotError::NotFound { key: key_text() }),
        Some(active) if active.phase == ActivePhase::Ready => Ok(&active.record),
        Some(_) => Err(SnapshotError::Busy { key: key_text() }),
    }
}
