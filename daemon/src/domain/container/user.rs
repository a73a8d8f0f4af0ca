//! Who a container's process runs as: a request or an image's USER, resolved against the image's passwd and
//! group files, whose bytes the caller has read (bounded, confined to the image).
//!
//! How USER is read is decided once, in `domain::image::config`: a number is an id and never a name, and an id
//! above 2^31-1 is refused (CVE-2016-3697, CVE-2024-40635, CVE-2026-46680). Lines of passwd and group that make
//! no sense are passed over, as libc does.

use std::collections::BTreeSet;

use crate::domain::container::spec::{GroupsPolicy, UserRequest};
use crate::domain::failure::Class;
use crate::domain::image::config::{Account, ImageUser};

#[cfg(test)]
mod tests;

/// The largest user or group id: what every OCI runtime accepts.
pub const MAX_ID: u32 = 0x7fff_ffff;

/// Longest line of passwd or group that is looked at, in bytes.
const MAX_LINE_BYTES: usize = 64 * 1024;

/// The identity of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedUser {
    /// User id, at most [`MAX_ID`].
    pub uid: u32,
    /// Primary group id, at most [`MAX_ID`].
    pub gid: u32,
    /// Groups of the process, sorted, with the primary one (CVE-2023-25173).
    pub additional_gids: Vec<u32>,
    /// Home directory by passwd.
    pub home: Option<String>,
    /// Name by passwd.
    pub name: Option<String>,
}

/// Why a user could not be resolved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveUserError {
    /// The text is not of the form of a user.
    #[error("invalid user \"{user}\": {reason}")]
    Malformed {
        /// The text, shortened and escaped.
        user: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The number does not fit.
    #[error("{what} {value} is out of range: the largest is {MAX_ID}")]
    OutOfRange {
        /// "user id", "group id" or "supplemental group".
        what: &'static str,
        /// The number.
        value: u32,
    },
    /// The name is not in passwd.
    #[error("unable to find user {user}: {reason}")]
    NoSuchUser {
        /// The name.
        user: String,
        /// Why.
        reason: &'static str,
    },
    /// The name is not in group.
    #[error("unable to find group {group}: {reason}")]
    NoSuchGroup {
        /// The name.
        group: String,
        /// Why.
        reason: &'static str,
    },
}

impl ResolveUserError {
    /// The class of the failure: the request or the image is wrong and stays wrong.
    #[must_use]
    pub fn class(&self) -> Class {
        Class::InvalidArgument
    }
}

/// Resolves who a process runs as.
///
/// `passwd` and `group` are the image's files, `None` when it has none. A number without an entry in passwd
/// has group 0. Under [`GroupsPolicy::Merge`] the groups that list the user's name count as well.
///
/// # Errors
/// [`ResolveUserError`] when the text is malformed, a number is out of range or a name is unknown.
pub fn resolve_user(
    request: &UserRequest,
    image_user: &str,
    passwd: Option<&[u8]>,
    group: Option<&[u8]>,
    supplemental: &[u32],
    policy: GroupsPolicy,
) -> Result<ResolvedUser, ResolveUserError> {
    let wanted = wanted(request, image_user)?;
    let entry = find_user(wanted.user.as_ref(), passwd);
    let uid = match (&wanted.user, &entry) {
        (None, _) => 0,
        (Some(Account::Id(uid)), _) => *uid,
        (Some(Account::Name(_)), Some(entry)) => entry.uid,
        (Some(Account::Name(user)), None) => {
            let reason = match passwd {
                Some(_) => "no matching entry in passwd file",
                None => "the image has no passwd file",
            };
            return Err(ResolveUserError::NoSuchUser {
                user: user.clone(),
                reason,
            });
        }
    };
    let gid = match &wanted.group {
        Some(Account::Id(gid)) => *gid,
        Some(Account::Name(name)) => find_group(name, group)?,
        None => entry.as_ref().map_or(0, |entry| entry.gid),
    };
    let mut gids = BTreeSet::from([gid]);
    for extra in supplemental {
        gids.insert(in_range("supplemental group", *extra)?);
    }
    if let (GroupsPolicy::Merge, Some(entry), Some(group)) = (policy, &entry, group) {
        gids.extend(
            groups(group)
                .filter(|line| line.lists(entry.name))
                .map(|line| line.gid),
        );
    }
    Ok(ResolvedUser {
        uid,
        gid,
        additional_gids: gids.into_iter().collect(),
        home: entry
            .as_ref()
            .and_then(|entry| printable(entry.home))
            .filter(|home| home.starts_with('/')),
        name: entry.as_ref().and_then(|entry| printable(entry.name)),
    })
}

/// The user and group asked for, by the request or else by the image.
fn wanted(request: &UserRequest, image_user: &str) -> Result<ImageUser, ResolveUserError> {
    let group = |gid: Option<u32>| {
        gid.map(|gid| in_range("group id", gid).map(Account::Id))
            .transpose()
    };
    match request {
        UserRequest::Image => parse(image_user),
        UserRequest::Id { uid, gid } => Ok(ImageUser {
            user: Some(Account::Id(in_range("user id", *uid)?)),
            group: group(*gid)?,
        }),
        UserRequest::Name { name, gid } => match parse(name)? {
            ImageUser {
                user: Some(user),
                group: None,
            } if !name.contains(':') => Ok(ImageUser {
                user: Some(user),
                group: group(*gid)?,
            }),
            _ => Err(ResolveUserError::Malformed {
                user: name.chars().take(64).collect(),
                reason: "not the name of one user",
            }),
        },
    }
}

fn parse(text: &str) -> Result<ImageUser, ResolveUserError> {
    ImageUser::parse(text).map_err(|error| ResolveUserError::Malformed {
        user: error.value,
        reason: error.problem,
    })
}

fn in_range(what: &'static str, id: u32) -> Result<u32, ResolveUserError> {
    if id > MAX_ID {
        return Err(ResolveUserError::OutOfRange { what, value: id });
    }
    Ok(id)
}

/// One line of passwd.
struct UserLine<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
}

/// One line of group.
struct GroupLine<'a> {
    name: &'a [u8],
    gid: u32,
    members: &'a [u8],
}

impl GroupLine<'_> {
    fn lists(&self, user: &[u8]) -> bool {
        self.members
            .split(|byte| *byte == b',')
            .any(|member| member.trim_ascii() == user)
    }
}

/// The user's line; root's when no user is named.
fn find_user<'a>(wanted: Option<&Account>, passwd: Option<&'a [u8]>) -> Option<UserLine<'a>> {
    let mut users = users(passwd.unwrap_or_default());
    match wanted {
        None => users.find(|line| line.uid == 0),
        Some(Account::Id(uid)) => users.find(|line| line.uid == *uid),
        Some(Account::Name(name)) => users.find(|line| line.name == name.as_bytes()),
    }
}

fn find_group(name: &str, group: Option<&[u8]>) -> Result<u32, ResolveUserError> {
    let missing = |reason| ResolveUserError::NoSuchGroup {
        group: name.to_owned(),
        reason,
    };
    let group = group.ok_or_else(|| missing("the image has no group file"))?;
    groups(group)
        .find(|line| line.name == name.as_bytes())
        .map(|line| line.gid)
        .ok_or_else(|| missing("no matching entry in group file"))
}

fn users(passwd: &[u8]) -> impl Iterator<Item = UserLine<'_>> {
    // name:password:uid:gid:gecos:home:shell
    lines(passwd).filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let uid = parse_id(fields.nth(1)?)?;
        let gid = parse_id(fields.next()?)?;
        let home = fields.nth(1).unwrap_or_default();
        Some(UserLine {
            name,
            uid,
            gid,
            home,
        })
    })
}

fn groups(group: &[u8]) -> impl Iterator<Item = GroupLine<'_>> {
    // name:password:gid:member,member
    lines(group).filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = parse_id(fields.nth(1)?)?;
        let members = fields.next().unwrap_or_default();
        Some(GroupLine { name, gid, members })
    })
}

fn lines(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    file.split(|byte| *byte == b'\n')
        .filter(|line| line.len() <= MAX_LINE_BYTES && !line.contains(&0))
        .map(<[u8]>::trim_ascii)
        .filter(|line| !line.is_empty() && !line.starts_with(b"#"))
}

/// Digits only: `u32::from_str` alone would take a sign.
fn parse_id(field: &[u8]) -> Option<u32> {
    if !field.iter().all(u8::is_ascii_digit) {
        return None;
    }
    str::from_utf8(field)
        .ok()?
        .parse()
        .ok()
        .filter(|id| *id <= MAX_ID)
}

/// Text that may go into an environment or an answer; anything else is as good as absent.
fn printable(bytes: &[u8]) -> Option<String> {
    let text = str::from_utf8(bytes).ok()?;
    (!text.is_empty() && !text.contains(char::is_control)).then(|| text.to_owned())
}
