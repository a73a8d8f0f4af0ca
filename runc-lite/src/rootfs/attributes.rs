//! What the option words of a bind make of the attributes its source has: a bind without words keeps them
//! all, one with words has what they say and nothing else. So do mount(8) and runc. The choice of access times
//! stays unless a word makes another one.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::{StatVfsMountFlags, fstatvfs};

use crate::sys::{MountAttributes, mount_setattr};

/// What mount_namespaces(7) locks besides the access times: a less privileged mount namespace may set these,
/// but not clear them.
const LOCKABLE: [(u64, StatVfsMountFlags, &str); 4] = [
    (MountAttributes::RDONLY, StatVfsMountFlags::RDONLY, "ro"),
    (MountAttributes::NOSUID, StatVfsMountFlags::NOSUID, "nosuid"),
    (MountAttributes::NODEV, StatVfsMountFlags::NODEV, "nodev"),
    (MountAttributes::NOEXEC, StatVfsMountFlags::NOEXEC, "noexec"),
];

/// The access-time choice, and whether it holds for directories.
const TIMES: u64 = MountAttributes::ATIME_MASK | MountAttributes::NODIRATIME;

/// Gives the cloned `tree` what the `words` of its entry say. With `locked`, what its source has is locked for
/// the container as the kernel would lock it: kept where no word speaks of it, an error where one clears it.
/// The kernel says so itself only where the clone was made in the container's mount namespace.
///
/// # Errors
/// The errno of mount_setattr(2), or `PermissionDenied` naming the word that is locked.
pub(super) fn replace(
    tree: BorrowedFd<'_>,
    words: MountAttributes,
    locked: bool,
) -> io::Result<()> {
    let mut wanted = replacement(words);
    if locked {
        let source = lockable(tree)?;
        if let Some(word) = refused(tree, source & words.clear)? {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("the source is {word}, which is locked in a user namespace: {DENIED}"),
            ));
        }
        wanted = inheriting(wanted, source & !words.clear);
    }
    match mount_setattr(tree, c"", false, wanted) {
        Err(e) if e.raw_os_error() == Some(libc::EPERM) => {
            wanted = inheriting(wanted, lockable(tree)? & !words.clear);
            if wanted.set & TIMES == 0 {
                // Callers ask for `relatime` out of habit.
                wanted.clear &= !TIMES;
            }
            mount_setattr(tree, c"", false, wanted)
        }
        other => other,
    }
}

const DENIED: &str = "operation not permitted";

/// What the words come to when they stand for everything.
fn replacement(words: MountAttributes) -> MountAttributes {
    let all = LOCKABLE.iter().fold(0, |all, (bit, ..)| all | bit);
    let mut clear = all | MountAttributes::NOSYMFOLLOW;
    if words.clear & MountAttributes::ATIME_MASK != 0
        || words.set & MountAttributes::NODIRATIME != 0
    {
        clear |= TIMES;
    }
    MountAttributes {
        set: words.set,
        // mount_setattr(2) takes the access times as one number: all or nothing of the mask.
        clear: clear & (!words.set | MountAttributes::ATIME_MASK),
        ..MountAttributes::default()
    }
}

fn inheriting(wanted: MountAttributes, source: u64) -> MountAttributes {
    MountAttributes {
        set: wanted.set | source,
        clear: wanted.clear & !source,
        ..wanted
    }
}

/// The lockable attributes of the mount.
fn lockable(tree: BorrowedFd<'_>) -> io::Result<u64> {
    let found = fstatvfs(tree)?.f_flag;
    let set = LOCKABLE.iter().filter(|(_, flag, _)| found.contains(*flag));
    Ok(set.fold(0, |all, (bit, ..)| all | bit))
}

/// The first word of `cleared` that the mount really has.
fn refused(tree: BorrowedFd<'_>, cleared: u64) -> io::Result<Option<&'static str>> {
    for (bit, _, word) in LOCKABLE.iter().filter(|(bit, ..)| cleared & bit != 0) {
        if *bit == MountAttributes::RDONLY {
            // statfs(2) says it of a file system that is read-only as well, and then it is not the mount's.
            // The clone is nobody's yet: it can be tried.
            let writable = MountAttributes {
                clear: MountAttributes::RDONLY,
                ..MountAttributes::default()
            };
            mount_setattr(tree, c"", false, writable)?;
            if lockable(tree)? & MountAttributes::RDONLY != 0 {
                continue;
            }
        }
        return Ok(Some(word));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stand_for_all_attributes_but_the_access_times() {
        let word = |set, clear| {
            replacement(MountAttributes {
                set,
                clear,
                ..MountAttributes::default()
            })
        };
        let only = word(MountAttributes::RDONLY, 0);
        assert_eq!(only.set, MountAttributes::RDONLY);
        assert_eq!(only.clear & (MountAttributes::RDONLY | TIMES), 0);
        assert_ne!(only.clear & MountAttributes::NODEV, 0);
        assert_ne!(only.clear & MountAttributes::NOSYMFOLLOW, 0);
        let times = word(MountAttributes::NODIRATIME, 0);
        assert_eq!(times.clear & TIMES, MountAttributes::ATIME_MASK);
        let relative = word(0, MountAttributes::ATIME_MASK);
        assert_eq!(relative.clear & TIMES, TIMES);
        // `diratime` alone is no choice, to mount(8) neither.
        assert_eq!(word(0, MountAttributes::NODIRATIME).clear & TIMES, 0);
    }
}
