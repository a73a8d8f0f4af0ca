//! Which capabilities a container gets.

use std::collections::BTreeSet;

use super::{OciError, ProcessCapabilities};
use crate::domain::container::spec::ContainerSecurity;

/// Every capability of Linux, in the order of their numbers, without "CAP_".
const KNOWN: &str = "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP
    LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE
    SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME
    SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM
    BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE";

/// What containers have when nothing is asked for, the same everywhere in Kubernetes.
const DEFAULT: &str =
    "AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD NET_BIND_SERVICE NET_RAW SETFCAP
    SETGID SETPCAP SETUID SYS_CHROOT";

/// Capabilities granted, all of them the host's to give.
#[derive(Debug)]
pub(super) struct Granted {
    /// Bounding, effective and permitted set. The kernel empties the latter two when the process is not root.
    pub(super) bounding: BTreeSet<String>,
    /// Ambient and inheritable set, within the bounding one.
    pub(super) ambient: BTreeSet<String>,
    /// Asked for, and not the host's to give.
    pub(super) left_out: BTreeSet<String>,
}

impl Granted {
    pub(super) fn capabilities(&self) -> ProcessCapabilities {
        let bounding: Vec<String> = self.bounding.iter().cloned().collect();
        let ambient: Vec<String> = self.ambient.iter().cloned().collect();
        ProcessCapabilities {
            effective: bounding.clone(),
            permitted: bounding.clone(),
            bounding,
            inheritable: ambient.clone(),
            ambient,
        }
    }
}

/// What `security` asks for, within what the host has.
///
/// "ALL" is taken before single names, adding before dropping. Ambient capabilities are added to every set.
pub(super) fn grant(
    security: &ContainerSecurity,
    host: &BTreeSet<String>,
) -> Result<Granted, OciError> {
    let asked = &security.capabilities;
    let add = parse("capabilities.add_capabilities", &asked.add)?;
    let drop = parse("capabilities.drop_capabilities", &asked.drop)?;
    let ambient = parse("capabilities.add_ambient_capabilities", &asked.add_ambient)?;

    let mut wanted = if security.privileged {
        set_of(KNOWN)
    } else {
        let mut wanted = if add.all {
            set_of(KNOWN)
        } else {
            set_of(DEFAULT)
        };
        if drop.all {
            wanted.clear();
        }
        wanted.extend(add.names);
        wanted.retain(|name| !drop.names.contains(name));
        wanted
    };
    let ambient = if ambient.all {
        wanted.clone()
    } else {
        ambient.names
    };
    wanted.extend(ambient.iter().cloned());

    // "ALL" asks for what there is; only names asked for one by one can be missed.
    let everything = security.privileged || add.all;
    let left_out = if everything {
        BTreeSet::new()
    } else {
        wanted.difference(host).cloned().collect()
    };
    Ok(Granted {
        bounding: wanted.intersection(host).cloned().collect(),
        ambient: ambient.intersection(host).cloned().collect(),
        left_out,
    })
}

/// A list of the request.
#[derive(Default)]
struct Listed {
    all: bool,
    names: BTreeSet<String>,
}

fn parse(field: &'static str, list: &[String]) -> Result<Listed, OciError> {
    let mut listed = Listed::default();
    for name in list {
        let upper = name.to_ascii_uppercase();
        let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
        if bare == "ALL" {
            listed.all = true;
        } else if KNOWN.split_ascii_whitespace().any(|known| known == bare) {
            listed.names.insert(prefixed(bare));
        } else {
            return Err(OciError::Capability {
                field,
                name: name.clone(),
            });
        }
    }
    Ok(listed)
}

fn set_of(words: &str) -> BTreeSet<String> {
    words.split_ascii_whitespace().map(prefixed).collect()
}

fn prefixed(name: &str) -> String {
    format!("CAP_{name}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::container::spec::Capabilities;

    fn security(add: &[&str], drop: &[&str]) -> ContainerSecurity {
        let owned = |list: &[&str]| list.iter().map(|&name| name.to_owned()).collect();
        ContainerSecurity {
            capabilities: Capabilities {
                add: owned(add),
                drop: owned(drop),
                add_ambient: Vec::new(),
            },
            ..ContainerSecurity::default()
        }
    }

    fn names(set: &BTreeSet<String>) -> Vec<&str> {
        set.iter().map(String::as_str).collect()
    }

    /// The development machine's kind of host: all but SYS_RESOURCE.
    fn host() -> BTreeSet<String> {
        let mut host = set_of(KNOWN);
        host.remove("CAP_SYS_RESOURCE");
        host
    }

    #[test]
    fn adding_and_dropping() {
        let granted =
            |add: &[&str], drop: &[&str]| grant(&security(add, drop), &host()).unwrap().bounding;
        assert_eq!(granted(&[], &[]), set_of(DEFAULT));
        assert_eq!(
            granted(&["NET_ADMIN", "cap_sys_time"], &["CAP_MKNOD"]).len(),
            15
        );
        assert_eq!(
            names(&granted(&["NET_BIND_SERVICE"], &["ALL"])),
            ["CAP_NET_BIND_SERVICE"]
        );
        assert_eq!(granted(&["ALL"], &[]), host());
        assert_eq!(granted(&["all"], &["CHOWN"]).len(), 39);
        assert!(granted(&["ALL"], &["ALL"]).is_empty());
        assert!(granted(&["CHOWN"], &["CHOWN", "ALL"]).is_empty());
    }

    #[test]
    fn unknown_names_are_refused_with_the_field() {
        let error = grant(&security(&["NET_ADMIN", "CAP_FLY"], &[]), &host()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "capabilities.add_capabilities: unknown capability \"CAP_FLY\""
        );
        assert!(grant(&security(&[], &["CAP_CAP_CHOWN"]), &host()).is_err());
    }

    #[test]
    fn what_the_host_lacks_is_left_out_and_told() {
        let granted = grant(&security(&["SYS_RESOURCE", "SYS_TIME"], &[]), &host()).unwrap();
        assert_eq!(names(&granted.left_out), ["CAP_SYS_RESOURCE"]);
        assert!(!granted.bounding.contains("CAP_SYS_RESOURCE"));
        let privileged = ContainerSecurity {
            privileged: true,
            ..security(&[], &["ALL"])
        };
        let granted = grant(&privileged, &host()).unwrap();
        assert_eq!((granted.bounding, granted.left_out.len()), (host(), 0));
    }

    #[test]
    fn cve_2022_24769_nothing_is_inheritable_unless_ambient() {
        let sets = grant(&security(&["NET_ADMIN"], &[]), &host())
            .unwrap()
            .capabilities();
        assert!(sets.inheritable.is_empty() && sets.ambient.is_empty());
        let mut security = security(&[], &["ALL"]);
        security.capabilities.add_ambient = vec!["NET_BIND_SERVICE".to_owned()];
        let sets = grant(&security, &host()).unwrap().capabilities();
        for set in [
            &sets.bounding,
            &sets.permitted,
            &sets.effective,
            &sets.inheritable,
            &sets.ambient,
        ] {
            assert_eq!(*set, ["CAP_NET_BIND_SERVICE"]);
        }
    }
}
