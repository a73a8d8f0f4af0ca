//! The scope of a container: its name, its slice, and where in the cgroup tree systemd puts it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::calls::Systemd;
use super::{SystemdError, annotation, bus};

/// Longest unit name, UNIT_NAME_MAX of systemd.
const MAX_NAME: usize = 255;
/// Prefix when `linux.cgroupsPath` is empty.
const PREFIX: &str = "runc-lite";

/// A transient scope, as it is kept in the container's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    /// With its suffix.
    pub name: String,
    /// With its suffix.
    pub slice: String,
    /// Whether the user's systemd has it instead of the system's.
    pub user: bool,
    /// Below the cgroup root, beginning with `/`.
    pub control_group: String,
    /// Values of the annotations `org.systemd.property.*`, by property, as they were given.
    #[serde(default)]
    pub properties: BTreeMap<String, String>,
}

impl Unit {
    /// The unit that `slice:prefix:name` names, with the properties of `annotations`.
    ///
    /// # Errors
    /// [`SystemdError::BadUnit`], [`SystemdError::BadProperty`]; for an ordinary user also what asking its
    /// systemd gives.
    pub fn parse(path: &str, annotations: &BTreeMap<String, String>) -> Result<Unit, SystemdError> {
        let mut parts = path.splitn(3, ':');
        let mut next = || parts.next().unwrap_or_default();
        let (slice, prefix, name) = (next(), next(), next());
        Unit::new(slice, prefix, name, annotations)
    }

    /// The unit of a container whose document names none.
    ///
    /// # Errors
    /// As [`Unit::parse`].
    pub fn of_container(
        id: &str,
        annotations: &BTreeMap<String, String>,
    ) -> Result<Unit, SystemdError> {
        Unit::new("", PREFIX, id, annotations)
    }

    fn new(
        slice: &str,
        prefix: &str,
        name: &str,
        annotations: &BTreeMap<String, String>,
    ) -> Result<Unit, SystemdError> {
        let user = is_ordinary_user();
        let slice = match (slice, user) {
            ("", false) => "system.slice",
            ("", true) => "user.slice",
            (slice, _) => slice,
        };
        let below = slice_path(slice)?;
        let name = scope_name(prefix, name)?;
        let properties = annotation::collect(annotations)?;
        let root = if user {
            // Such as /user.slice/user-1000.slice/user@1000.service.
            Systemd::connect(&bus::addresses(true))?.control_group()?
        } else {
            String::new()
        };
        Ok(Unit {
            control_group: format!("{}{below}/{name}", root.trim_end_matches('/')),
            name,
            slice: slice.to_owned(),
            user,
            properties,
        })
    }
}

/// Whether only the user's own systemd would obey this process: it is not root, or root of no more than a
/// user namespace.
pub(in crate::cgroup) fn is_ordinary_user() -> bool {
    !rustix::process::geteuid().is_root() || crate::rootfs::is_in_user_namespace()
}

fn scope_name(prefix: &str, name: &str) -> Result<String, SystemdError> {
    check("prefix", prefix)?;
    check("name", name)?;
    let bad = |reason: &str| SystemdError::BadUnit {
        part: "name",
        value: name.to_owned(),
        reason: reason.to_owned(),
    };
    if name.is_empty() {
        return Err(bad("is empty"));
    }
    if name.ends_with(".slice") {
        return Err(bad("is a slice, and a container needs a scope"));
    }
    let scope = format!("{prefix}-{name}.scope");
    if scope.len() > MAX_NAME {
        return Err(bad(&format!(
            "makes a unit name of more than {MAX_NAME} bytes"
        )));
    }
    Ok(scope)
}

/// systemd.unit(5): letters, digits and `:-_.\`; `@` would make it an instance.
fn check(part: &'static str, value: &str) -> Result<(), SystemdError> {
    let odd = value
        .chars()
        .find(|c| !c.is_ascii_alphanumeric() && !":-_.\\@".contains(*c));
    match odd {
        None => Ok(()),
        Some(odd) => Err(SystemdError::BadUnit {
            part,
            value: value.to_owned(),
            reason: format!("has {odd:?}, which no unit name may have"),
        }),
    }
}

/// systemd.slice(5): `a-b.slice` lies in `a.slice`, and `-.slice` is the root.
fn slice_path(slice: &str) -> Result<String, SystemdError> {
    check("slice", slice)?;
    let bad = |reason: &str| SystemdError::BadUnit {
        part: "slice",
        value: slice.to_owned(),
        reason: reason.to_owned(),
    };
    let stem = slice
        .strip_suffix(".slice")
        .filter(|stem| !stem.is_empty())
        .ok_or_else(|| bad("is not a name that ends in .slice"))?;
    if stem == "-" {
        return Ok(String::new());
    }
    let mut path = String::new();
    let mut prefix = String::new();
    for part in stem.split('-') {
        if part.is_empty() {
            return Err(bad("has an empty part between dashes"));
        }
        prefix.push_str(part);
        path.push_str(&format!("/{prefix}.slice"));
        prefix.push('-');
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_nest_by_their_dashes() {
        for (slice, path) in [
            ("system.slice", "/system.slice"),
            (
                "kubepods-besteffort-pod1.slice",
                "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1.slice",
            ),
            ("-.slice", ""),
        ] {
            assert_eq!(slice_path(slice).unwrap(), path);
        }
        for slice in [
            "",
            ".slice",
            "system",
            "a--b.slice",
            "-a.slice",
            "a-.slice",
            "../x.slice",
            "a/b.slice",
            "a b.slice",
            "a\n.slice",
        ] {
            let error = slice_path(slice).unwrap_err().to_string();
            assert!(error.contains("slice"), "{slice:?}: {error}");
        }
    }

    #[test]
    fn scopes_have_prefix_and_name() {
        assert_eq!(scope_name("docker", "1234").unwrap(), "docker-1234.scope");
        for (prefix, name) in [
            ("a", ""),
            ("a", "b/c"),
            ("a/b", "c"),
            ("a", "b.slice"),
            ("a", "b c"),
            ("a", "ü"),
            ("a", &"x".repeat(300)),
        ] {
            assert!(scope_name(prefix, name).is_err(), "{prefix}:{name}");
        }
    }
}
