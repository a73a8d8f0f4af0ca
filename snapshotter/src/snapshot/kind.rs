//! The record of a snapshot: what is on disk, and its checked form. A record that is there makes
//! its snapshot exist; a snapshot directory without one is the rest of something unfinished.

use serde::{Deserialize, Serialize};

use super::chain::ChainId;
use crate::content::digest::Digest;
use crate::tree::Usage;

/// Version of the record format. Readers refuse what is newer.
const VERSION: u32 = 1;
/// Largest record that is read, in bytes; 500 lower layers take a few kilobytes.
pub(crate) const RECORD_MAX: u64 = 1 << 20;

/// The number that names a snapshot directory. Short, because overlay mounts repeat it per layer.
pub(crate) type SnapshotId = u64;

/// A committed layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LayerRecord {
    pub(crate) id: SnapshotId,
    pub(crate) chain: ChainId,
    pub(crate) parent: Option<ChainId>,
    pub(crate) diff_id: Digest,
    pub(crate) blob: Digest,
    pub(crate) usage: Usage,
    /// Nothing of the layers below is visible.
    pub(crate) opaque_root: bool,
    /// Size of the archive that the skeleton and the files make; `None` without a skeleton.
    pub(crate) archive_bytes: Option<u64>,
}

/// The writable layer of a container, or a view of layers that nothing is written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ActiveRecord {
    pub(crate) id: SnapshotId,
    pub(crate) key: String,
    pub(crate) parent: Option<ChainId>,
    /// Directories below, top first. Kept here so that a damaged layer record does not take the
    /// containers on top of it down.
    pub(crate) lowers: Vec<SnapshotId>,
    pub(crate) is_view: bool,
}

/// Either record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Record {
    Layer(LayerRecord),
    Active(ActiveRecord),
}

#[derive(Serialize, Deserialize)]
struct Document {
    version: u32,
    id: SnapshotId,
    #[serde(flatten)]
    kind: KindDocument,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum KindDocument {
    Committed {
        chain: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        parent: Option<String>,
        diff_id: String,
        blob: String,
        bytes: u64,
        inodes: u64,
        #[serde(default)]
        opaque_root: bool,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        archive_bytes: Option<u64>,
    },
    Active {
        key: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        parent: Option<String>,
        lowers: Vec<SnapshotId>,
        #[serde(default, skip_serializing_if = "is_false")]
        view: bool,
    },
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_false(flag: &bool) -> bool {
    !flag
}

impl Record {
    pub(crate) fn id(&self) -> SnapshotId {
        match self {
            Self::Layer(layer) => layer.id,
            Self::Active(active) => active.id,
        }
    }

    /// Writes the record as a JSON document.
    pub(crate) fn to_json(&self) -> Vec<u8> {
        let kind = match self {
            Self::Layer(layer) => KindDocument::Committed {
                chain: layer.chain.to_string(),
                parent: layer.parent.as_ref().map(ToString::to_string),
                diff_id: layer.diff_id.to_string(),
                blob: layer.blob.to_string(),
                bytes: layer.usage.bytes,
                inodes: layer.usage.inodes,
                opaque_root: layer.opaque_root,
                archive_bytes: layer.archive_bytes,
            },
            Self::Active(active) => KindDocument::Active {
                key: active.key.clone(),
                parent: active.parent.as_ref().map(ToString::to_string),
                lowers: active.lowers.clone(),
                view: active.is_view,
            },
        };
        let document = Document {
            version: VERSION,
            id: self.id(),
            kind,
        };
        serde_json::to_vec(&document).expect("a record has only strings, numbers and lists")
    }

    /// Reads a record; the reason of a refusal is for the operator.
    pub(crate) fn from_json(bytes: &[u8]) -> Result<Self, String> {
        let document: Document =
            serde_json::from_slice(bytes).map_err(|error| format!("not a record: {error}"))?;
        if document.version != VERSION {
            return Err(format!("version {} is not supported", document.version));
        }
        let id = document.id;
        let digest = |text: &str| text.parse::<Digest>().map_err(|error| error.to_string());
        let chain = |text: &str| digest(text).map(ChainId::from);
        Ok(match document.kind {
            KindDocument::Committed {
                chain: name,
                parent,
                diff_id,
                blob,
                bytes,
                inodes,
                opaque_root,
                archive_bytes,
            } => Self::Layer(LayerRecord {
                id,
                chain: chain(&name)?,
                parent: parent.as_deref().map(chain).transpose()?,
                diff_id: digest(&diff_id)?,
                blob: digest(&blob)?,
                usage: Usage { bytes, inodes },
                opaque_root,
                archive_bytes,
            }),
            KindDocument::Active {
                key,
                parent,
                lowers,
                view,
            } => Self::Active(ActiveRecord {
                id,
                key,
                parent: parent.as_deref().map(chain).transpose()?,
                lowers,
                is_view: view,
            }),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn records_survive_the_round_trip(id: u64, key in "\\PC{1,40}", lowers: Vec<u64>, bytes: u64, opaque_root: bool, archive_bytes: Option<u64>, is_view: bool) {
            let chain = ChainId::first(&Digest::sha256_of(key.as_bytes()));
            let parent = lowers.first().map(|_| chain.clone());
            let active = Record::Active(ActiveRecord { id, key, parent: parent.clone(), lowers, is_view });
            prop_assert_eq!(Record::from_json(&active.to_json()), Ok(active));
            let digest = Digest::sha256_of(b"x");
            let layer = Record::Layer(LayerRecord {
                id, chain, parent, diff_id: digest.clone(), blob: digest,
                usage: Usage { bytes, inodes: 1 }, opaque_root, archive_bytes,
            });
            prop_assert_eq!(Record::from_json(&layer.to_json()), Ok(layer));
        }

        #[test]
        fn damaged_records_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            prop_assert!(Record::from_json(&bytes).is_err());
        }
    }

    #[test]
    fn records_with_a_wrong_digest_or_version_are_refused() {
        for text in [
            r#"{"version":2,"id":1,"kind":"active","key":"k","lowers":[]}"#,
            r#"{"version":1,"id":1,"kind":"active","key":"k","parent":"sha256:../x","lowers":[]}"#,
            r#"{"version":1,"id":1,"kind":"other"}"#,
        ] {
            assert!(Record::from_json(text.as_bytes()).is_err(), "{text}");
        }
    }
}
