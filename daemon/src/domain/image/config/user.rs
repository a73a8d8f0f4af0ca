//! The user of an image config: `uid`, `name`, `uid:gid`, `name:group` and mixtures. Looking a
//! name up in the image's files is not done here.

use super::super::reference::shown;
use crate::domain::failure::Class;

/// Largest uid and gid, as the OCI runtimes take them: 2^31 - 1.
const MAX_ID: u32 = i32::MAX as u32;
/// Longest name, in bytes (LOGIN_NAME_MAX).
const MAX_NAME_BYTES: usize = 256;

/// A user or a group, by number or by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Account {
    /// A number from 0 to 2^31 - 1.
    Id(u32),
    /// A name to look up in the image; never a number.
    Name(String),
}

/// The parsed user of an image; both parts `None` means root.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImageUser {
    /// The user, if one is given.
    pub user: Option<Account>,
    /// The primary group, if one is given.
    pub group: Option<Account>,
}

impl ImageUser {
    /// Parses the text of the config's `User`.
    ///
    /// # Errors
    /// Whatever looks like a number and is not one from 0 to 2^31 - 1 is an error and never a
    /// name: a wrapped number would be another user (CVE-2024-40635, CVE-2026-46680). Names with
    /// characters that no account can have are errors too.
    pub fn parse(text: &str) -> Result<Self, ParseImageUserError> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, group),
            None => (text, ""),
        };
        let account = |part: &str| {
            parse_account(part).map_err(|problem| ParseImageUserError {
                value: shown(text),
                problem,
            })
        };
        Ok(Self {
            user: account(user)?,
            group: account(group)?,
        })
    }

    /// Returns the uid when the user is given by number.
    #[must_use]
    pub fn uid(&self) -> Option<u32> {
        match self.user {
            Some(Account::Id(uid)) => Some(uid),
            Some(Account::Name(_)) | None => None,
        }
    }

    /// Returns the name when the user is given by name.
    #[must_use]
    pub fn username(&self) -> Option<&str> {
        match &self.user {
            Some(Account::Name(name)) => Some(name),
            Some(Account::Id(_)) | None => None,
        }
    }
}

fn parse_account(part: &str) -> Result<Option<Account>, &'static str> {
    if part.is_empty() {
        return Ok(None);
    }
    let unsigned = part.strip_prefix(['+', '-']).unwrap_or(part);
    if unsigned.bytes().all(|b| b.is_ascii_digit()) && !unsigned.is_empty() {
        return match part.parse::<u32>() {
            Ok(id) if id <= MAX_ID && unsigned == part => Ok(Some(Account::Id(id))),
            _ => Err("a number must be from 0 to 2147483647, without a sign"),
        };
    }
    if part.len() > MAX_NAME_BYTES {
        return Err("a name may have at most 256 bytes");
    }
    if part.starts_with(['+', '-']) {
        return Err("a name cannot start with a sign");
    }
    let forbidden = |c: char| c.is_control() || c.is_whitespace() || matches!(c, ':' | '/' | ',');
    if part.contains(forbidden) {
        return Err("a name cannot have spaces, control characters, \":\", \"/\" or \",\"");
    }
    Ok(Some(Account::Name(part.to_owned())))
}

/// Why a text is not a user. The value is cut to 80 characters and escaped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("image config, field \"config.User\": \"{value}\": {problem}")]
pub struct ParseImageUserError {
    /// The refused text.
    pub value: String,
    /// The rule it breaks.
    pub problem: &'static str,
}

impl ParseImageUserError {
    /// Returns the class of the error.
    #[must_use]
    pub fn class(&self) -> Class {
        Class::InvalidArgument
    }
}
