//! Mount entries and their options; the option words are those of mount(8) and the OCI specification.

use std::path::PathBuf;

use super::namespaces::plan_mappings;
use super::{SpecError, check_text, clean_path, invalid, propagation_option, unsupported};
use crate::config::Mount;
use crate::plan::{IdMappings, IdmapPlan, LegacyMount, MountKind, MountParameter, MountPlan};
use crate::sys::MountAttributes;

/// Option words that set (`true`) or clear an attribute; with an `r` in front they mean the subtree.
const ATTRIBUTE_OPTIONS: [(&str, bool, u64); 18] = [
    ("ro", true, MountAttributes::RDONLY),
    ("rw", false, MountAttributes::RDONLY),
    ("nosuid", true, MountAttributes::NOSUID),
    ("suid", false, MountAttributes::NOSUID),
    ("nodev", true, MountAttributes::NODEV),
    ("dev", false, MountAttributes::NODEV),
    ("noexec", true, MountAttributes::NOEXEC),
    ("exec", false, MountAttributes::NOEXEC),
    ("nodiratime", true, MountAttributes::NODIRATIME),
    ("diratime", false, MountAttributes::NODIRATIME),
    ("nosymfollow", true, MountAttributes::NOSYMFOLLOW),
    ("symfollow", false, MountAttributes::NOSYMFOLLOW),
    ("noatime", true, MountAttributes::NOATIME),
    ("atime", false, MountAttributes::NOATIME),
    ("strictatime", true, MountAttributes::STRICTATIME),
    ("nostrictatime", false, MountAttributes::STRICTATIME),
    // Relative access times are the value zero of the choice.
    ("relatime", true, 0),
    ("norelatime", false, 0),
];

/// Words for the file system as a whole that every file system takes.
const SUPERBLOCK_OPTIONS: [&str; 7] = [
    "async",
    "sync",
    "dirsync",
    "lazytime",
    "nolazytime",
    "mand",
    "nomand",
];

/// Words of mount(8) for fstab(5) and its readers; mount(8) tells the kernel nothing of them.
fn is_for_fstab(word: &str) -> bool {
    matches!(word, "auto" | "noauto" | "nouser" | "_netdev")
        || ["x-", "X-", "comment="]
            .iter()
            .any(|prefix| word.starts_with(prefix))
}

/// Longest value that fsconfig(2) takes, and the longest data of mount(2) (a page with its NUL).
const MAX_FSCONFIG_VALUE: usize = 255;
const MAX_MOUNT_DATA: usize = 4095;

/// Every option word this runtime gives a meaning, for `features`.
pub(crate) fn known_options() -> Vec<String> {
    let mut options: Vec<String> = Vec::new();
    for (name, _, _) in ATTRIBUTE_OPTIONS {
        options.push(name.to_owned());
        options.push(format!("r{name}"));
    }
    options.extend(
        [
            "bind",
            "rbind",
            "private",
            "rprivate",
            "slave",
            "rslave",
            "shared",
            "rshared",
            "unbindable",
            "runbindable",
            "idmap",
            "ridmap",
            "remount",
            "defaults",
            "iversion",
            "noiversion",
            "silent",
            "loud",
            "tmpcopyup",
        ]
        .map(str::to_owned),
    );
    options.extend(SUPERBLOCK_OPTIONS.map(str::to_owned));
    options.sort();
    options
}

fn attribute_option(option: &str) -> Option<(bool, u64)> {
    ATTRIBUTE_OPTIONS
        .iter()
        .find(|(name, _, _)| *name == option)
        .map(|&(_, set, bits)| (set, bits))
}

fn is_atime_choice(option: &str) -> bool {
    option.ends_with("atime") && !option.ends_with("diratime")
}

fn apply(attributes: &mut MountAttributes, option: &str, set: bool, bits: u64) {
    if is_atime_choice(option) {
        // The access-time bits are one number: mount_setattr(2) wants the whole mask cleared first.
        attributes.clear |= MountAttributes::ATIME_MASK;
        attributes.set &= !MountAttributes::ATIME_MASK;
        if set {
            attributes.set |= bits;
        }
    } else if set {
        attributes.set |= bits;
        attributes.clear &= !bits;
    } else {
        attributes.clear |= bits;
        attributes.set &= !bits;
    }
}

/// A word such as `atime` on a bind takes an earlier choice back. The choice of the source it does not change,
/// and mount(8) does not either: `relatime` or `strictatime` do.
fn take_back(attributes: &mut MountAttributes, bits: u64) {
    if attributes.set & MountAttributes::ATIME_MASK == bits {
        attributes.set &= !bits;
        attributes.clear &= !MountAttributes::ATIME_MASK;
    }
}

/// Decides one entry of `mounts`.
pub(super) fn plan_mount(
    index: usize,
    mount: &Mount,
    warnings: &mut Vec<String>,
) -> Result<MountPlan, SpecError> {
    let field = |name: &str| format!("mounts[{index}].{name}");
    check_text(field("destination"), &mount.destination)?;
    check_text(field("source"), &mount.source)?;
    if mount.destination.is_empty() {
        return Err(invalid(field("destination"), "", "is empty"));
    }
    if !mount.destination.starts_with('/') {
        warnings.push(format!(
            "{}: {:?} is not absolute, taken relative to the container's root",
            field("destination"),
            mount.destination
        ));
    }
    let destination = clean_path(&mount.destination);
    if destination == "/" {
        return Err(invalid(
            field("destination"),
            &mount.destination,
            "is the container's root",
        ));
    }
    let mut planned = MountPlan {
        index,
        destination,
        kind: MountKind::Cgroup,
        attributes: MountAttributes::default(),
        recursive_attributes: MountAttributes::default(),
        propagation: Vec::new(),
        idmap: None,
    };
    let mut idmap_option = None;
    let mut bind = match mount.kind.as_str() {
        "bind" => Some(false),
        "rbind" => Some(true),
        _ => None,
    };
    let mut words = Words::default();
    let mut plain = Vec::new();
    for option in &mount.options {
        check_text(field("options"), option)?;
        match option.as_str() {
            // The kernel's words go into this runtime's error, whether it shall be silent or loud.
            "" | "defaults" | "silent" | "loud" => {}
            "bind" => bind = bind.or(Some(false)),
            "rbind" => bind = Some(true),
            "remount" => words.remount = true,
            "idmap" => idmap_option = Some(false),
            "ridmap" => idmap_option = Some(true),
            "tmpcopyup" => words.copy_up = true,
            "iversion" => words.inode_versions = true,
            "noiversion" => words.inode_versions = false,
            word if is_for_fstab(word) => {}
            word => {
                if let Some(propagation) = propagation_option(word) {
                    planned.propagation.push(propagation);
                } else if let Some((set, bits)) = attribute_option(word) {
                    plain.push((word, set, bits));
                } else if let Some((plain, (set, bits))) = word
                    .strip_prefix('r')
                    .and_then(|plain| attribute_option(plain).map(|found| (plain, found)))
                {
                    apply(&mut planned.recursive_attributes, plain, set, bits);
                } else {
                    words.parameters.extend(split_parameters(word));
                }
            }
        }
    }
    for (word, set, bits) in &plain {
        if bind.is_some() && !words.remount && !set && is_atime_choice(word) {
            take_back(&mut planned.attributes, *bits);
        } else {
            apply(&mut planned.attributes, word, *set, *bits);
        }
    }
    planned.idmap = plan_idmap(index, mount, idmap_option)?;
    if planned.idmap.is_some() && (words.remount || bind.is_none()) {
        let field = if idmap_option.is_some() {
            "options"
        } else {
            "uidMappings"
        };
        return Err(unsupported(
            format!("mounts[{index}].{field}"),
            "ids can be mapped on bind mounts only",
        ));
    }
    if words.copy_up && (mount.kind != "tmpfs" || words.remount || bind.is_some()) {
        return Err(invalid(
            field("options"),
            "tmpcopyup",
            "goes with a new tmpfs only",
        ));
    }
    let mut without_meaning = |what: &str, parameters: &[MountParameter]| {
        for (key, _) in parameters {
            // File system options mean nothing there; mount(2) ignores them as well.
            warnings.push(format!(
                "{}: {key:?} has no meaning for a {what}",
                field("options")
            ));
        }
    };
    planned.kind = if words.remount {
        if bind.is_some() {
            without_meaning("bind", &std::mem::take(&mut words.parameters));
        } else if words.inode_versions {
            words.parameters.push(("iversion".to_owned(), None));
        }
        check_reconfiguration(&field("options"), &words.parameters)?;
        MountKind::Remount {
            parameters: words.parameters,
        }
    } else if let Some(recursive) = bind {
        if mount.source.is_empty() {
            return Err(invalid(
                field("source"),
                "",
                "is empty, but the mount is a bind",
            ));
        }
        without_meaning("bind", &words.parameters);
        MountKind::Bind {
            source: PathBuf::from(&mount.source),
            recursive,
            replaces: !plain.is_empty(),
        }
    } else {
        if matches!(mount.kind.as_str(), "cgroup" | "cgroup2") {
            without_meaning("cgroup mount", &words.parameters);
        }
        new_file_system(index, mount, words, &planned.destination)?
    };
    Ok(planned)
}

/// What the option words of an entry say besides attributes and propagation.
#[derive(Default)]
struct Words {
    remount: bool,
    copy_up: bool,
    inode_versions: bool,
    parameters: Vec<MountParameter>,
}

/// One word may be several options: the kernel splits at commas, except behind a backslash (overlay) and inside
/// of quotes (SELinux contexts).
fn split_parameters(word: &str) -> Vec<MountParameter> {
    let mut parts = vec![String::new()];
    let (mut escaped, mut quoted) = (false, false);
    for c in word.chars() {
        if c == ',' && !escaped && !quoted {
            parts.push(String::new());
            continue;
        }
        quoted ^= c == '"';
        escaped = c == '\\' && !escaped;
        if let Some(last) = parts.last_mut() {
            last.push(c);
        }
    }
    let parts = parts.into_iter().filter(|part| !part.is_empty());
    parts
        .map(|part| match part.split_once('=') {
            Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
            None => (part, None),
        })
        .collect()
}

/// A superblock that exists is changed by fsconfig(2) only, which takes shorter values than mount(2).
fn check_reconfiguration(field: &str, parameters: &[MountParameter]) -> Result<(), SpecError> {
    for (key, value) in parameters {
        let length = value.as_ref().map_or(0, String::len);
        if length > MAX_FSCONFIG_VALUE {
            let reason =
                format!("has a value of {length} bytes, a remount takes {MAX_FSCONFIG_VALUE}");
            return Err(invalid(field, key, reason));
        }
    }
    Ok(())
}

/// The mappings of an entry, or the wish for those of the container's user namespace.
fn plan_idmap(
    index: usize,
    mount: &Mount,
    option: Option<bool>,
) -> Result<Option<IdmapPlan>, SpecError> {
    let field = |name: &str| format!("mounts[{index}].{name}");
    let recursive = option.unwrap_or(false);
    match (&mount.uid_mappings[..], &mount.gid_mappings[..]) {
        ([], []) => Ok(option.map(|recursive| IdmapPlan {
            recursive,
            mappings: None,
        })),
        ([], _) => Err(invalid(
            field("uidMappings"),
            "[]",
            "is empty, but gidMappings is not",
        )),
        (_, []) => Err(invalid(
            field("gidMappings"),
            "[]",
            "is empty, but uidMappings is not",
        )),
        (uids, gids) => Ok(Some(IdmapPlan {
            recursive,
            mappings: Some(IdMappings {
                uids: plan_mappings(&field("uidMappings"), uids)?,
                gids: plan_mappings(&field("gidMappings"), gids)?,
            }),
        })),
    }
}

fn new_file_system(
    index: usize,
    mount: &Mount,
    words: Words,
    destination: &str,
) -> Result<MountKind, SpecError> {
    let field = &format!("mounts[{index}].type");
    check_text(field, &mount.kind)?;
    let below_proc = destination.starts_with("/proc/");
    match mount.kind.as_str() {
        "" => Err(invalid(field, "", "is empty, and the mount is not a bind")),
        "cgroup" | "cgroup2" => Ok(MountKind::Cgroup),
        // A file system over part of /proc could stand in for the files that labels and sysctls are
        // written to (CVE-2019-16884 and kin).
        _ if below_proc || (destination == "/proc" && mount.kind != "proc") => Err(invalid(
            field,
            &mount.kind,
            format!("cannot be mounted on {destination}: only proc may be mounted on /proc"),
        )),
        fs_type => Ok(MountKind::New {
            fs_type: fs_type.to_owned(),
            source: mount.source.clone(),
            by_mount2: plan_by_mount2(index, &words)?,
            copy_up: words.copy_up,
            parameters: words.parameters,
        }),
    }
}

/// Gives a new file system the container's SELinux context (`linux.mountLabel`), unless the entry has one. The
/// files of procfs, sysfs and mqueue have contexts of their own.
pub(super) fn label(mount: &mut MountPlan, label: &str) {
    if let MountKind::New {
        fs_type,
        parameters,
        ..
    } = &mut mount.kind
        && !label.is_empty()
        && !matches!(fs_type.as_str(), "proc" | "sysfs" | "mqueue")
        && !parameters.iter().any(|(key, _)| key == "context")
    {
        parameters.push(("context".to_owned(), Some(label.to_owned())));
    }
}

fn plan_by_mount2(index: usize, words: &Words) -> Result<Option<LegacyMount>, SpecError> {
    let long = |(_, value): &MountParameter| {
        value
            .as_ref()
            .is_some_and(|value| value.len() > MAX_FSCONFIG_VALUE)
    };
    if !words.inode_versions && !words.parameters.iter().any(long) {
        return Ok(None);
    }
    let field = format!("mounts[{index}].options");
    let sizes = words
        .parameters
        .iter()
        .map(|(key, value)| key.len() + 1 + value.as_ref().map_or(0, |value| value.len() + 1));
    let size = sizes.sum::<usize>().saturating_sub(1);
    if size > MAX_MOUNT_DATA {
        let shown: String = words
            .parameters
            .iter()
            .map(|(key, _)| format!("{key} "))
            .collect();
        let shown: String = shown.chars().take(64).collect();
        let reason = format!("are {size} bytes together, the kernel takes {MAX_MOUNT_DATA}");
        return Err(invalid(field, shown.trim(), reason));
    }
    if words.copy_up {
        let reason = "goes neither with \"iversion\" nor with values above 255 bytes";
        return Err(invalid(field, "tmpcopyup", reason));
    }
    Ok(Some(LegacyMount {
        inode_versions: words.inode_versions,
    }))
}
