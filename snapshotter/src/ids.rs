//! Ids of a user namespace: which id outside stands for one inside, and how files come to belong to it.

use crate::layer::entry::Metadata;

/// The attribute with the capabilities of a program (capabilities(7), "File capability extended attribute
/// versioning").
const CAPABILITY: &[u8] = b"security.capability";
/// `VFS_CAP_REVISION_MASK`, `VFS_CAP_REVISION_2` and `VFS_CAP_REVISION_3`.
const REVISION_MASK: u32 = 0xff00_0000;
const REVISION_2: u32 = 0x0200_0000;
const REVISION_3: u32 = 0x0300_0000;
/// Bytes of the attribute's second revision; the third adds the id of a root user.
const REVISION_2_BYTES: usize = 20;

/// The id of who has none (`/proc/sys/kernel/overflowuid`, as every system has it).
const NOBODY: u32 = 65_534;

/// A run of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    /// First id inside.
    pub inside: u32,
    /// First id outside.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// The users and groups of a user namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdRanges {
    /// Users.
    pub uids: Vec<IdRange>,
    /// Groups.
    pub gids: Vec<IdRange>,
}

/// Who the files of a container's root file system belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Owners<'a> {
    /// Whom the image says.
    #[default]
    AsStored,
    /// Users of a user namespace; the ids of layers are mapped by their mounts ([`crate::mount::mount_mapped`]).
    Mapped(&'a IdRanges),
    /// Users of a user namespace; the files are copied and given to them.
    Shifted(&'a IdRanges),
}

impl Owners<'_> {
    /// The ids of the user namespace, if there is one.
    pub(crate) fn ranges(&self) -> Option<&IdRanges> {
        match self {
            Self::AsStored => None,
            Self::Mapped(ranges) | Self::Shifted(ranges) => Some(ranges),
        }
    }
}

impl IdRanges {
    /// Gives what belongs to somebody inside to whom that is outside. What belongs to nobody there, belongs to
    /// nobody.
    pub(crate) fn shift(&self, metadata: &mut Metadata) {
        metadata.uid = outside(&self.uids, metadata.uid);
        metadata.gid = outside(&self.gids, metadata.gid);
        let root = outside(&self.uids, 0);
        for (name, value) in &mut metadata.xattrs {
            if name == CAPABILITY {
                give_to_root(value, root);
            }
        }
    }
}

fn outside(ranges: &[IdRange], id: u32) -> u32 {
    let find = |range: &IdRange| {
        let offset = id.checked_sub(range.inside)?;
        (offset < range.count).then(|| range.outside.checked_add(offset))?
    };
    ranges.iter().find_map(find).unwrap_or(NOBODY)
}

/// Makes capabilities of a program hold in the user namespace whose root is `root`; as they are they hold in the
/// host's alone.
fn give_to_root(value: &mut Vec<u8>, root: u32) {
    let Some(word) = value.first_chunk::<4>().copied() else {
        return;
    };
    let word = u32::from_le_bytes(word);
    if value.len() != REVISION_2_BYTES || word & REVISION_MASK != REVISION_2 {
        return;
    }
    let word = REVISION_3 | (word & !REVISION_MASK);
    value[..4].copy_from_slice(&word.to_le_bytes());
    value.extend_from_slice(&root.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_those_outside_or_nobodys() {
        let ranges = [
            IdRange {
                inside: 0,
                outside: 100_000,
                count: 10,
            },
            IdRange {
                inside: 1000,
                outside: 5,
                count: 1,
            },
        ];
        for (inside, expect) in [
            (0, 100_000),
            (9, 100_009),
            (10, NOBODY),
            (999, NOBODY),
            (1000, 5),
            (1001, NOBODY),
            (u32::MAX, NOBODY),
        ] {
            assert_eq!(outside(&ranges, inside), expect, "{inside}");
        }
        let beyond = IdRange {
            inside: 0,
            outside: u32::MAX,
            count: 5,
        };
        assert_eq!(outside(&[beyond], 3), NOBODY);
    }

    #[test]
    fn capabilities_get_a_root() {
        let mut value = vec![1, 0, 0, 2];
        value.extend([7; 16]);
        give_to_root(&mut value, 0x0102_0304);
        assert_eq!(value.len(), 24);
        assert_eq!(value[..4], [1, 0, 0, 3]);
        assert_eq!(value[20..], [4, 3, 2, 1]);
        let third = value.clone();
        give_to_root(&mut value, 9);
        assert_eq!(value, third);
        for mut odd in [vec![], vec![2], vec![0; 20]] {
            let before = odd.clone();
            give_to_root(&mut odd, 9);
            assert_eq!(odd, before);
        }
    }
}
