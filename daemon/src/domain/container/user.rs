//! Who a container's process runs as: a request or an image's USER, resolved against the image's passwd and
//! group files, whose bytes the caller has read (bounded, confined to the image).
//!
//! Text that is a number is an id, never a name, and an id above 2^31-1 is refused (CVE-2016-3697,
//! CVE-2024-40635, CVE-2026-46680). Lines of passwd and group that make no sense are passed over, as libc does.

use std::collections::BTreeSet;

use crate::domain::container::spec::{GroupsPolicy, UserRequest};
use crate::domain::failure::Class;

#[cfg(test)]
mod tests;

/// The largest user or group id: what every OCI runtime accepts.
pub const MAX_ID: u32 = 0x7fff_ffff;

/// Longest USER text taken from an image or a request, in bytes.
const MAX_USER_BYTES: usize = 1024;

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

/// A user or a group as written: a number or a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// A number, at most [`MAX_ID`].
    Id(u32),
    /// A name, not empty and not a number.
    Name(String),
}

/// USER of an image, parsed: what ImageStatus reports and what containers run as are the same reading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageUser {
    /// The user.
    pub user: Identity,
    /// The group, if one is named.
    pub group: Option<Identity>,
}

/// Why a user could not be resolved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveUserError {
    /// The text is neither a number nor a name.
    #[error("invalid user {user:?}: {reason}")]
    Malformed {
        /// The text, shortened.
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
        value: String,
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
    let wanted = match request {
        UserRequest::Image => parse_image_user(image_user)?.unwrap_or(ImageUser {
            user: Identity::Id(0),
            group: Some(Identity::Id(0)),
        }),
        UserRequest::Id { uid, gid } => ImageUser {
            user: Identity::Id(in_range("user id", *uid)?),
            group: group_request(*gid)?,
        },
        UserRequest::Name { name, gid } => ImageUser {
            user: parse_identity("user id", name)?,
            group: group_request(*gid)?,
        },
    };
    let entry = find_user(&wanted.user, passwd);
    let uid = match (&wanted.user, &entry) {
        (Identity::Id(uid), _) => *uid,
        (Identity::Name(_), Some(entry)) => entry.uid,
        (Identity::Name(user), None) => {
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
        Some(Identity::Id(gid)) => *gid,
        Some(Identity::Name(name)) => find_group(name, group)?,
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

/// Reads USER of an image: "", "user", "user:group", each a number or a name. `None` is "not set".
///
/// # Errors
/// [`ResolveUserError`] when it has another form or a number is out of range.
pub fn parse_image_user(text: &str) -> Result<Option<ImageUser>, ResolveUserError> {
    if text.is_empty() {
        return Ok(None);
    }
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    Ok(Some(ImageUser {
        user: parse_identity("user id", user)?,
        group: group
            .map(|group| parse_identity("group id", group))
            .transpose()?,
    }))
}

fn group_request(gid: Option<u32>) -> Result<Option<Identity>, ResolveUserError> {
    gid.map(|gid| in_range("group id", gid).map(Identity::Id))
        .transpose()
}

fn in_range(what: &'static str, id: u32) -> Result<u32, ResolveUserError> {
    if id > MAX_ID {
        return Err(ResolveUserError::OutOfRange {
            what,
            value: id.to_string(),
        });
    }
    Ok(id)
}

fn parse_identity(what: &'static str, text: &str) -> Result<Identity, ResolveUserError> {
    let malformed = |reason| {
        Err(ResolveUserError::Malformed {
            user: text.chars().take(64).collect::<String>(),
            reason,
        })
    };
    if text.len() > MAX_USER_BYTES {
        return malformed("longer than 1024 bytes");
    }
    if text.is_empty() {
        return malformed("empty user or group");
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        // Too many digits for u32 is as much out of range as a number above the limit.
        return match text.parse::<u32>() {
            Ok(id) if id <= MAX_ID => Ok(Identity::Id(id)),
            _ => Err(ResolveUserError::OutOfRange {
                what,
                value: text.to_owned(),
            }),
        };
    }
    if text.starts_with(['+', '-']) {
        return malformed("a sign is neither part of an id nor of a name");
    }
    if text.contains(|c: char| c.is_whitespace() || c.is_control() || c == ':') {
        return malformed("white space, control characters and further colons are not allowed");
    }
    if text.chars().all(char::is_numeric) {
        return malformed("ids are written in ASCII digits");
    }
    Ok(Identity::Name(text.to_owned()))
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

fn find_user<'a>(wanted: &Identity, passwd: Option<&'a [u8]>) -> Option<UserLine<'a>> {
    let mut users = users(passwd.unwrap_or_default());
    match wanted {
        Identity::Id(uid) => users.find(|line| line.uid == *uid),
        Identity::Name(name) => users.find(|line| line.name == name.as_bytes()),
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
