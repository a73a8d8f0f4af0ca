//! Reads a profile the operator keeps on the node: the form of the OCI runtime spec, and of docker's profiles
//! as far as it says the same for every container.
//!
//! A profile that cannot be honoured whole is refused; there is no way from here to "unconfined"
//! (CVE-2023-2431).

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Action, Arch, Condition, Rule, Seccomp};
use crate::domain::failure::Class;

#[cfg(test)]
mod tests;

/// Largest profile read, in bytes.
pub const MAX_PROFILE_BYTES: usize = 1024 * 1024;

/// Why a profile of the node is refused.
#[derive(Debug, thiserror::Error)]
pub enum SeccompProfileError {
    /// Nothing in it.
    #[error("seccomp profile is empty")]
    Empty,
    /// More than [`MAX_PROFILE_BYTES`].
    #[error("seccomp profile of {size} bytes is larger than {MAX_PROFILE_BYTES}")]
    TooLarge {
        /// Its size.
        size: usize,
    },
    /// Not JSON, or not of the form.
    #[error("seccomp profile is malformed")]
    Malformed {
        /// Where and what.
        #[source]
        source: serde_json::Error,
    },
    /// A field says what is not supported or makes no sense.
    #[error("seccomp profile: {field}: {reason}")]
    Field {
        /// The field, with the rule's index.
        field: String,
        /// Why.
        reason: String,
    },
}

impl SeccompProfileError {
    /// The class of the failure: the profile named by the request is wrong.
    #[must_use]
    pub fn class(&self) -> Class {
        Class::InvalidArgument
    }
}

/// The document as written. Fields that only inform ("comment") are passed over.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WrittenProfile {
    default_action: Action,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Vec<String>,
    #[serde(default)]
    arch_map: Vec<WrittenArch>,
    #[serde(default)]
    flags: Vec<String>,
    #[serde(default)]
    listener_path: String,
    #[serde(default)]
    syscalls: Option<Vec<WrittenRule>>,
}

/// docker's way of naming calling conventions.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WrittenArch {
    architecture: String,
    #[serde(default)]
    sub_architectures: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WrittenRule {
    #[serde(default)]
    names: Vec<String>,
    /// Older docker profiles have one name.
    #[serde(default)]
    name: String,
    action: Action,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<Condition>>,
    #[serde(default)]
    includes: Option<Conditions>,
    #[serde(default)]
    excludes: Option<Conditions>,
}

/// docker's conditions on the container: lists and a kernel version, empty when there is none.
type Conditions = BTreeMap<String, serde_json::Value>;

/// Reads a profile.
///
/// # Errors
/// [`SeccompProfileError`] naming the field; the container must not be created then.
pub fn parse_localhost(bytes: &[u8], arch: Arch) -> Result<Seccomp, SeccompProfileError> {
    if bytes.len() > MAX_PROFILE_BYTES {
        return Err(SeccompProfileError::TooLarge { size: bytes.len() });
    }
    if bytes.trim_ascii().is_empty() {
        return Err(SeccompProfileError::Empty);
    }
    let written: WrittenProfile = serde_json::from_slice(bytes)
        .map_err(|source| SeccompProfileError::Malformed { source })?;
    if !written.listener_path.is_empty() {
        return refuse("listenerPath", "user notification is not supported");
    }
    let architectures = architectures(written.architectures, written.arch_map, arch)?;
    for flag in &written.flags {
        if !flag.starts_with("SECCOMP_FILTER_FLAG_") {
            return refuse("flags", format!("unknown flag {flag:?}"));
        }
    }
    let syscalls = written
        .syscalls
        .unwrap_or_default()
        .into_iter()
        .enumerate()
        .map(|(index, rule)| checked_rule(index, rule))
        .collect::<Result<_, _>>()?;
    Ok(Seccomp {
        default_action: written.default_action,
        default_errno_ret: written.default_errno_ret,
        architectures,
        flags: written.flags,
        syscalls,
    })
}

fn architectures(
    mut named: Vec<String>,
    map: Vec<WrittenArch>,
    arch: Arch,
) -> Result<Vec<String>, SeccompProfileError> {
    if named.is_empty() {
        let native = arch.conventions().first().copied();
        if let Some(entry) = map
            .into_iter()
            .find(|entry| Some(entry.architecture.as_str()) == native)
        {
            named.push(entry.architecture);
            named.extend(entry.sub_architectures.unwrap_or_default());
        }
    }
    if let Some(name) = named.iter().find(|name| !name.starts_with("SCMP_ARCH_")) {
        return refuse("architectures", format!("unknown architecture {name:?}"));
    }
    Ok(named)
}

fn checked_rule(index: usize, rule: WrittenRule) -> Result<Rule, SeccompProfileError> {
    let field = |name: &str| format!("syscalls[{index}].{name}");
    for (name, conditions) in [("includes", &rule.includes), ("excludes", &rule.excludes)] {
        if conditions
            .iter()
            .flatten()
            .any(|(_, value)| !is_empty(value))
        {
            return refuse(
                field(name),
                "rules for some containers only are not supported",
            );
        }
    }
    let mut names = rule.names;
    if !rule.name.is_empty() {
        names.push(rule.name);
    }
    if names.is_empty() {
        return refuse(field("names"), "no system call is named");
    }
    let call = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if let Some(name) = names
        .iter()
        .find(|name| name.is_empty() || !name.bytes().all(call))
    {
        return refuse(
            field("names"),
            format!("{name:?} is no name of a system call"),
        );
    }
    let args = rule.args.unwrap_or_default();
    if let Some(condition) = args.iter().find(|condition| condition.index > 5) {
        return refuse(
            field("args"),
            format!("argument {} does not exist", condition.index),
        );
    }
    Ok(Rule {
        names,
        action: rule.action,
        errno_ret: rule.errno_ret,
        args,
    })
}

fn is_empty(value: &serde_json::Value) -> bool {
    match value {
        serde_json::Value::Null => true,
        serde_json::Value::Array(items) => items.is_empty(),
        serde_json::Value::Object(fields) => fields.is_empty(),
        serde_json::Value::String(text) => text.is_empty(),
        serde_json::Value::Bool(_) | serde_json::Value::Number(_) => false,
    }
}

fn refuse<T>(
    field: impl Into<String>,
    reason: impl Into<String>,
) -> Result<T, SeccompProfileError> {
    Err(SeccompProfileError::Field {
        field: field.into(),
        reason: reason.into(),
    })
}
