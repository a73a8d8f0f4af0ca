//! The profile as the OCI specification writes it (config-linux.md, "Seccomp"), read and checked field by
//! field. What a filter for it looks like is decided elsewhere.

use serde::{Deserialize, Deserializer};

use super::action::{NOTIFY, action};
use super::names::Arch;
use super::tree::{Comparison, Condition};
use super::{FLAG_LOG, FLAG_SPEC_ALLOW, FLAG_WAIT_KILLABLE_RECV, Listener, SeccompError};
use crate::sys::SECCOMP_NEW_LISTENER;

/// A checked profile.
#[derive(Debug)]
pub(super) struct Profile {
    /// What happens to calls without a rule.
    pub(super) default: u32,
    /// Architectures whose calls can be made here, the native one always among them.
    pub(super) architectures: Vec<Arch>,
    /// `SECCOMP_FILTER_FLAG_*` bits.
    pub(super) flags: u32,
    /// Whom `SCMP_ACT_NOTIFY` asks.
    pub(super) listener: Option<Listener>,
    /// Rules in the order of the document.
    pub(super) rules: Vec<Rule>,
}

/// One entry of `syscalls`.
#[derive(Debug)]
pub(super) struct Rule {
    /// At least one, none empty.
    pub(super) names: Vec<String>,
    /// What happens to them.
    pub(super) action: u32,
    /// Conditions of which one group must hold as a whole; none: always.
    pub(super) alternatives: Vec<Vec<Condition>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Document {
    #[serde(deserialize_with = "null_is_absent")]
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(deserialize_with = "null_is_absent")]
    architectures: Vec<String>,
    flags: Option<Vec<String>>,
    #[serde(deserialize_with = "null_is_absent")]
    listener_path: String,
    #[serde(deserialize_with = "null_is_absent")]
    listener_metadata: String,
    #[serde(deserialize_with = "null_is_absent")]
    syscalls: Vec<DocumentRule>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DocumentRule {
    #[serde(deserialize_with = "null_is_absent")]
    names: Vec<String>,
    #[serde(deserialize_with = "null_is_absent")]
    action: String,
    errno_ret: Option<u32>,
    #[serde(deserialize_with = "null_is_absent")]
    args: Vec<DocumentArgument>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DocumentArgument {
    index: u32,
    value: u64,
    value_two: u64,
    op: String,
}

/// Go writes an empty list as `null`.
fn null_is_absent<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Reads and checks a profile; `note` is told what is left out.
pub(super) fn parse(text: &str, note: &mut dyn FnMut(String)) -> Result<Profile, SeccompError> {
    let document: Document =
        serde_json::from_str(text).map_err(|source| SeccompError::Parse { source })?;
    if document.default_action.is_empty() {
        // runc runs the container without a filter then. A profile that was asked for and says nothing is
        // a mistake, and unconfined is the worst way to read it (CVE-2023-2431).
        return Err(invalid(
            "defaultAction",
            "",
            "is missing; without a profile, leave out linux.seccomp",
        ));
    }
    let default = action(
        "defaultAction",
        &document.default_action,
        document.default_errno_ret,
    )?;
    let listener = listener(&document, default)?;
    let flags = flags(document.flags.as_deref(), listener.is_some())?;
    let architectures = architectures(&document.architectures, note)?;
    let rules = document.syscalls.into_iter().enumerate();
    let rules = rules
        .map(|(index, rule)| checked_rule(index, rule))
        .collect::<Result<_, _>>()?;
    Ok(Profile {
        default,
        architectures,
        flags,
        listener,
        rules,
    })
}

pub(super) fn invalid(
    field: impl Into<String>,
    value: impl Into<String>,
    reason: &'static str,
) -> SeccompError {
    SeccompError::Invalid {
        field: field.into(),
        value: value.into(),
        reason,
    }
}

/// The agent, if any rule asks it. A profile that asks it for every call, or for `write`, is refused: the
/// agent would have to answer calls made on the way to giving it the listener. runc refuses the same two.
fn listener(document: &Document, default: u32) -> Result<Option<Listener>, SeccompError> {
    if default == NOTIFY {
        let reason = "SCMP_ACT_NOTIFY cannot be used as default action";
        return Err(invalid("defaultAction", "SCMP_ACT_NOTIFY", reason));
    }
    let mut asks = false;
    for (index, rule) in document.syscalls.iter().enumerate() {
        if rule.action != "SCMP_ACT_NOTIFY" {
            continue;
        }
        asks = true;
        if rule.names.iter().any(|name| name == "write") {
            let reason = "SCMP_ACT_NOTIFY cannot be used for the write syscall";
            return Err(invalid(format!("syscalls[{index}].names"), "write", reason));
        }
    }
    let path = &document.listener_path;
    if asks && path.is_empty() {
        return Err(invalid("listenerPath", "", "is needed by SCMP_ACT_NOTIFY"));
    }
    if path.is_empty() && !document.listener_metadata.is_empty() {
        let reason = "must not be set without listenerPath";
        return Err(invalid(
            "listenerMetadata",
            &document.listener_metadata,
            reason,
        ));
    }
    if !asks {
        return Ok(None);
    }
    if !path.starts_with(['/', '@']) || path.contains('\0') {
        let reason = "is neither an absolute path nor @ and an abstract name";
        return Err(invalid("listenerPath", path, reason));
    }
    Ok(Some(Listener {
        path: path.clone(),
        metadata: document.listener_metadata.clone(),
    }))
}

fn flags(names: Option<&[String]>, notifies: bool) -> Result<u32, SeccompError> {
    let mut flags = if notifies { SECCOMP_NEW_LISTENER } else { 0 };
    let Some(names) = names else {
        // Without a list: no speculation mitigations, which cost more than they give inside containers.
        return Ok(flags | FLAG_SPEC_ALLOW);
    };
    for name in names {
        match name.as_str() {
            // There is one thread when the program starts, nothing to synchronise.
            "SECCOMP_FILTER_FLAG_TSYNC" => {}
            "SECCOMP_FILTER_FLAG_LOG" => flags |= FLAG_LOG,
            "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => flags |= FLAG_SPEC_ALLOW,
            "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" if notifies => {
                flags |= FLAG_WAIT_KILLABLE_RECV;
            }
            "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" => {
                return Err(invalid("flags", name, "needs a rule with SCMP_ACT_NOTIFY"));
            }
            _ => return Err(invalid("flags", name, "is not a filter flag")),
        }
    }
    Ok(flags)
}

fn architectures(
    names: &[String],
    note: &mut dyn FnMut(String),
) -> Result<Vec<Arch>, SeccompError> {
    let mut list = vec![Arch::NATIVE];
    for name in names {
        match Arch::parse(name) {
            None => return Err(invalid("architectures", name, "is not an architecture")),
            Some(Some(arch)) if !list.contains(&arch) => list.push(arch),
            Some(Some(_)) => {}
            Some(None) => note(format!(
                "seccomp: architecture {name} left out, no program of it runs on this machine"
            )),
        }
    }
    list.sort();
    Ok(list)
}

fn checked_rule(index: usize, rule: DocumentRule) -> Result<Rule, SeccompError> {
    let field = format!("syscalls[{index}]");
    if rule.names.is_empty() {
        let reason = "names no call; the specification demands one";
        return Err(invalid(format!("{field}.names"), "[]", reason));
    }
    if rule.names.iter().any(String::is_empty) {
        let reason = "is not the name of a call";
        return Err(invalid(format!("{field}.names"), "", reason));
    }
    Ok(Rule {
        action: action(&format!("{field}.action"), &rule.action, rule.errno_ret)?,
        alternatives: alternatives(&field, &rule.args)?,
        names: rule.names,
    })
}

/// All conditions must hold; but several on one argument are alternatives, each for itself, because
/// libseccomp compares an argument only once in a rule and runc then makes a rule of each.
fn alternatives(
    field: &str,
    args: &[DocumentArgument],
) -> Result<Vec<Vec<Condition>>, SeccompError> {
    let mut conditions = Vec::with_capacity(args.len());
    for (at, arg) in args.iter().enumerate() {
        if arg.index > 5 {
            let index = arg.index.to_string();
            return Err(invalid(
                format!("{field}.args[{at}].index"),
                index,
                "is above 5",
            ));
        }
        let (comparison, value) = match arg.op.as_str() {
            "SCMP_CMP_NE" => (Comparison::NotEqual, arg.value),
            "SCMP_CMP_LT" => (Comparison::Less, arg.value),
            "SCMP_CMP_LE" => (Comparison::LessOrEqual, arg.value),
            "SCMP_CMP_EQ" => (Comparison::Equal, arg.value),
            "SCMP_CMP_GE" => (Comparison::GreaterOrEqual, arg.value),
            "SCMP_CMP_GT" => (Comparison::Greater, arg.value),
            "SCMP_CMP_MASKED_EQ" => (
                Comparison::MaskedEqual { mask: arg.value },
                arg.value_two & arg.value,
            ),
            other => {
                let reason = "is not a comparison";
                return Err(invalid(format!("{field}.args[{at}].op"), other, reason));
            }
        };
        conditions.push(Condition {
            index: arg.index,
            comparison,
            value,
        });
    }
    let repeated = (0..6).any(|i| conditions.iter().filter(|c| c.index == i).count() > 1);
    Ok(match (conditions.is_empty(), repeated) {
        (true, _) => Vec::new(),
        (false, true) => conditions.into_iter().map(|c| vec![c]).collect(),
        (false, false) => vec![conditions],
    })
}
