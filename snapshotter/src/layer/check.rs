//! The complete check of a committed layer: its archive is made again and hashed, and applied once more,
//! without content, into a directory that is thrown away; that tree and the layer's have to be the same.

use std::io::{BufReader, Read};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::apply::{Applier, Content};
use super::assemble::{Assembled, Tolerance};
use super::channel::CHUNK;
use super::compare::compare;
use super::limits::Limits;
use super::settle::settle;
use super::skeleton::Recorder;
use super::tar::TarReader;
use super::{LayerError, StagingDir};
use crate::confined::open_dir;
use crate::content::digest::Hasher;
use crate::error::PathError;
use crate::snapshot::kind::{LayerRecord, SnapshotId};
use crate::store::Shared;

/// What a complete check found.
#[derive(Debug, Default)]
pub(crate) struct Checked {
    /// Bytes of the archive that were hashed.
    pub(crate) bytes: u64,
    /// What is wrong, named up to a bound.
    pub(crate) problems: Vec<String>,
    /// How many are wrong; at least the number of `problems`.
    pub(crate) count: u64,
}

impl Checked {
    fn add(&mut self, problem: String) {
        self.count += 1;
        self.problems.push(problem);
    }
}

/// Checks a layer that lies on `below` (top first) and has a skeleton.
///
/// # Errors
/// When the check itself cannot be made, as on a full disk; what is wrong with the layer is no error.
pub(crate) fn check_layer(
    shared: &Arc<Shared>,
    layer: &LayerRecord,
    below: Vec<SnapshotId>,
) -> Result<Checked, LayerError> {
    let mut checked = Checked::default();
    let snapshot = open_dir(&shared.snapshots, layer.id.to_string().as_bytes());
    let snapshot = match snapshot {
        Ok(snapshot) => snapshot,
        Err(error) => {
            checked.add(format!("its directory: {error}"));
            return Ok(checked);
        }
    };
    let archive = match Assembled::open(&snapshot, Tolerance::Note) {
        Ok(archive) => archive,
        Err(error) => {
            checked.add(format!("its skeleton: {error}"));
            return Ok(checked);
        }
    };
    let (outline, files) = StagingDir::new(shared)?;
    drop(files);
    let place = format!("snapshots/{}", outline.id);
    let failed = |source| PathError::new("open", &place, source);
    let outline_dir: OwnedFd =
        open_dir(&shared.snapshots, outline.id.to_string().as_bytes()).map_err(failed)?;

    let hashing = Hashing {
        archive,
        hasher: Hasher::new(layer.diff_id.algorithm()),
        bytes: 0,
    };
    let mut reader = TarReader::new(
        Recorder::counting(BufReader::with_capacity(CHUNK, hashing)),
        // What was committed once was within the limits of its time.
        Limits::unlimited(),
    );
    let applied = Applier::new(outline_dir, Limits::unlimited(), Content::Outlined)
        .and_then(|applier| applier.run(&mut reader));
    let mut recorder = reader.into_input();
    let drained = recorder.finish();
    let mut hashing = recorder.into_input().into_inner();
    checked.bytes = hashing.bytes;
    let damage = hashing.archive.damage();
    checked.count += damage.count;
    checked.problems.extend(damage.named);
    if let Err(error) = drained {
        checked.add(format!("its skeleton: {error}"));
        return Ok(checked);
    }
    let found = hashing.hasher.finish();
    if found != layer.diff_id && checked.count == 0 {
        checked.add(format!("its archive has digest {found}"));
    }
    let applied = match applied {
        Ok(applied) => applied,
        // The check failed, not the layer.
        Err(super::apply::ApplyError::Path(error)) => return Err(error.into()),
        Err(error) => {
            checked.add(format!("its archive: {error}"));
            return Ok(checked);
        }
    };
    if applied.opaque_root != layer.opaque_root {
        checked.add("its record is wrong about an opaque root".to_owned());
    }
    let below = if applied.opaque_root {
        Vec::new()
    } else {
        below
    };
    let settled = settle(
        &shared.snapshots,
        outline.id,
        below,
        applied.pending,
        applied.moves,
    )
    .map_err(|source| LayerError::Apply {
        diff_id: layer.diff_id.clone(),
        source,
    })?;
    let open = |id: SnapshotId| {
        let path = format!("{id}/fs");
        open_dir(&shared.snapshots, path.as_bytes())
            .map_err(|source| PathError::new("open", format!("snapshots/{path}"), source))
    };
    let differences = compare(&open(layer.id)?, &open(outline.id)?, &settled.copied)
        .map_err(|source| PathError::new("compare", format!("snapshots/{}", layer.id), source))?;
    checked.count += differences.count;
    checked.problems.extend(differences.named);
    Ok(checked)
}

/// Hashes what is read.
pub(crate) struct Hashing {
    archive: Assembled,
    hasher: Hasher,
    bytes: u64,
}

impl Read for Hashing {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let amount = self.archive.read(out)?;
        self.hasher.update(&out[..amount]);
        self.bytes += amount as u64;
        Ok(amount)
    }
}
