//! Mount entries and their options; the option words are those of mount(8) and the OCI specification.

use std::path::PathBuf;

use super::namespaces::plan_mappings;
use super::{SpecError, check_text, clean_path, invalid, propagation_option, unsupported};
use crate::config::Mount;
use crate::plan::{IdMappings, IdmapPlan, MountKind, MountPlan};
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
            "async",
            "sync",
            "dirsync",
            "lazytime",
            "nolazytime",
            "mand",
            "nomand",
            "silent",
            "loud",
        ]
        .map(str::to_owned),
    );
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
        kind: MountKind::Remount,
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
    let mut remount = false;
    let mut parameters = Vec::new();
    for option in &mount.options {
        check_text(field("options"), option)?;
        match option.as_str() {
            "" | "defaults" | "silent" | "loud" => {}
            "bind" => bind = bind.or(Some(false)),
            "rbind" => bind = Some(true),
            "remount" => remount = true,
            "idmap" => idmap_option = Some(false),
            "ridmap" => idmap_option = Some(true),
            "tmpcopyup" => {
                return Err(unsupported(
                    field("options"),
                    "\"tmpcopyup\" is not implemented",
                ));
            }
            word => {
                if let Some(propagation) = propagation_option(word) {
                    planned.propagation.push(propagation);
                } else if let Some((set, bits)) = attribute_option(word) {
                    apply(&mut planned.attributes, word, set, bits);
                } else if let Some((plain, (set, bits))) = word
                    .strip_prefix('r')
                    .and_then(|plain| attribute_option(plain).map(|found| (plain, found)))
                {
                    apply(&mut planned.recursive_attributes, plain, set, bits);
                } else {
                    parameters.push(match word.split_once('=') {
                        Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                        None => (word.to_owned(), None),
                    });
                }
            }
        }
    }
    planned.idmap = plan_idmap(index, mount, idmap_option)?;
    if planned.idmap.is_some() && (remount || bind.is_none()) {
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
    planned.kind = if remount {
        MountKind::Remount
    } else if let Some(recursive) = bind {
        if mount.source.is_empty() {
            return Err(invalid(
                field("source"),
                "",
                "is empty, but the mount is a bind",
            ));
        }
        for (key, _) in &parameters {
            // File system options mean nothing to a bind; mount(2) ignores them as well.
            warnings.push(format!(
                "{}: {key:?} has no meaning for a bind",
                field("options")
            ));
        }
        MountKind::Bind {
            source: PathBuf::from(&mount.source),
            recursive,
        }
    } else {
        new_file_system(&field("type"), mount, parameters, &planned.destination)?
    };
    Ok(planned)
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
    field: &str,
    mount: &Mount,
    parameters: Vec<(String, Option<String>)>,
    destination: &str,
) -> Result<MountKind, SpecError> {
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
            parameters,
        }),
    }
}
